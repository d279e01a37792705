#!/usr/bin/env python3
"""Reads a trace as an analyst would, with h5py alone, and checks what such a reader relies on: check_trace.py TRACE.h5

Tables are groups of 1-D columns of one length (no compounds), every column has units and long_name, text is UTF-8 of
variable length, booleans say what their flags mean, arrays are (samples of their point, ...) with a dimension scale on
every axis, sample numbers are unique in a point, and recomputed sums agree with stored ones.
"""
import sys

import h5py
import numpy

ROOT_ATTRIBUTES = ["Conventions", "schema_name", "schema_version", "run_id", "title", "source", "history",
                   "date_created", "complete"]
TABLES = {
    "points": "point model family parameters task length prefill decode weights_dtype kv_dtype seed tp sp dp batch key",
    "attempts": "attempt world_rank host tp sp dp date version command_line",
    "samples": "point sample attempt task length input_tokens output_tokens score metric format_ok prediction parsed "
               "reference prompt_hash finish_reason error prefill_s ttft_s tpot_s t_start prefill_sparsity "
               "decode_sparsity_first decode_sparsity",
}
problems = []


def expect(condition, message):
    if not condition:
        problems.append(message)


def check_dataset(data):
    expect(data.dtype.fields is None, f"{data.name} is a compound")
    if data.name.rsplit("/", 1)[-1].startswith("_") or data.is_scale and data.ndim == 1 and "units" not in data.attrs:
        return
    for attribute in ("units", "long_name"):
        expect(attribute in data.attrs, f"{data.name} has no {attribute}")
    string = h5py.check_string_dtype(data.dtype)
    if string is not None:
        expect(string.length is None, f"{data.name} is a fixed-length string")
        data.asstr()[()]  # must decode
    if data.dtype == numpy.uint8:
        expect("flag_values" in data.attrs and "flag_meanings" in data.attrs, f"{data.name} does not say its flags")


def check_table(file, name):
    group = file[name]
    lengths = {column: data.shape for column, data in group.items()}
    expect(all(len(shape) == 1 for shape in lengths.values()), f"/{name} has columns that are not 1-D")
    expect(len(set(lengths.values())) == 1, f"/{name} has columns of several lengths: {lengths}")
    for column in TABLES[name].split():
        expect(column in group, f"/{name}/{column} is missing")


def check_arrays(file):
    points, samples = file["points/point"][()], file["samples/point"][()]
    for point in points:
        group = file.get(f"arrays/{point:03d}")
        if group is None:
            expect(False, f"/arrays/{point:03d} is missing")
            continue
        count = int((samples == point).sum())
        for data in group.values():
            if data.is_scale:
                continue
            if data.ndim >= 2 or data.name.endswith("flops_paper"):
                expect(data.shape[0] == count, f"{data.name} has {data.shape[0]} samples of {count}")
            for axis, dimension in enumerate(data.dims):
                expect(len(dimension) > 0, f"{data.name}: axis {axis} has no scale")
        if "pairs_visible" in group and "pairs_causal" in group:
            visible, causal = group["pairs_visible"][()], group["pairs_causal"][()]
            expect(visible.dtype == numpy.uint64, "pairs_visible is not uint64")
            expect((visible <= causal).all(), "more pairs are visible than are causal")
            sparsity = file["samples/prefill_sparsity"][()][samples == point]
            total = causal.reshape(count, -1).sum(1)
            derived = 1 - visible.reshape(count, -1).sum(1) / numpy.maximum(total, 1)
            same = numpy.isclose(sparsity, derived, atol=1e-9) | numpy.isnan(sparsity) | (total == 0)
            expect(same.all(), "prefill_sparsity is not what its pairs give")


def main(path):
    with h5py.File(path, "r") as file:
        for attribute in ROOT_ATTRIBUTES:
            expect(attribute in file.attrs, f"/ has no attribute {attribute}")
        expect(file.attrs.get("schema_name") in ("tessera", b"tessera"), "schema_name is not tessera")
        for table in TABLES:
            check_table(file, table)
        file.visititems(lambda _, node: check_dataset(node) if isinstance(node, h5py.Dataset) else None)
        check_arrays(file)
        keys = list(zip(file["samples/point"][()].tolist(), file["samples/sample"][()].tolist()))
        expect(len(set(keys)) == len(keys), "a sample is there twice")
        count = len(keys)
    for problem in problems:
        print(problem)
    print(f"{path}: {count} samples read with h5py {h5py.__version__}, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

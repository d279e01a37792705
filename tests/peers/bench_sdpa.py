#!/usr/bin/env python3
"""Dense causal prefill attention: PyTorch's cuDNN attention and flex_attention, and `tessera bench attention` between.

    bench_sdpa.py [--tessera BINARY] [--path auto,…] [--shapes SUBSTRING …] [--turns 5] [--rounds 5] [--csv FILE]

Random bf16 inputs, one sequence, grouped queries. FLOP are those of the causal half, 2 · S² · D · H. In each of the
turns every contestant runs two launches that do not count and then `rounds` timed ones, so that what else the GPU does
and its clocks fall on all alike; times are medians over all turns. The clock of the multiprocessors is counted on the
GPU by the binary, and read from NVML while PyTorch's launches run. A cuDNN without grouped queries gets expanded keys
and values, and the row says so. flex_attention is compiled; where it is absent or fails, its row is left out.
"""
import argparse
import csv
import json
import statistics
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [("D128-H8-K1-32K", 128, 8, 1, 32768), ("D128-H64-K8-16K", 128, 64, 8, 16384),
          ("D128-H8-K1-128K", 128, 8, 1, 131072), ("D64-H16-K2-32K", 64, 16, 2, 32768),
          ("D256-H16-K8-32K", 256, 16, 8, 32768)]
WARM_LAUNCHES = 2


def sm_clock():
    try:
        return float(torch.cuda.clock_rate())  # NVML; needs nvidia-ml-py
    except Exception:
        return float("nan")


def cudnn(q, k, v):
    """A call of cuDNN's attention, and whether it takes grouped queries."""
    def call_with(keys, values, grouped):
        def call():
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=grouped)
        return call

    try:
        call = call_with(k, v, True)
        call()
        return call, "cudnn"
    except RuntimeError:
        group = q.shape[1] // k.shape[1]
        call = call_with(k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), False)
        call()
        return call, "cudnn-expanded"


def flex(q, k, v):
    """A call of compiled flex_attention over causal blocks, or None where there is none."""
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        length = q.shape[2]
        mask = create_block_mask(lambda b, h, row, column: row >= column, None, None, length, length, device="cuda")
        compiled = torch.compile(flex_attention, dynamic=False)

        def call():
            compiled(q, k, v, block_mask=mask, enable_gqa=True)

        call()
        torch.cuda.synchronize()
        return call
    except Exception as problem:  # absent, no compiler, or a shape that it does not take
        print(f"flex_attention left out: {str(problem).splitlines()[0][:100]}", file=sys.stderr)
        return None


def milliseconds(call, rounds):
    """Of each timed launch, and the clock while the last one ran."""
    for _ in range(WARM_LAUNCHES):
        call()
    times = []
    for _ in range(rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    call()
    clock = sm_clock()
    torch.cuda.synchronize()
    return times, clock


def tessera(binary, path, shape, rounds):
    """{work: (milliseconds, clock)} of one run of the binary."""
    command = [binary, "bench", "attention", "--device", "cuda", "--shapes", shape, "--path", path, "--repeats",
               str(rounds), "--json"]
    report = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"tessera" + row["work"].removeprefix("dense prefill"): ([s * 1e3 for s in row["seconds"]],
                                                                  row["sm_clock_mhz"]) for row in report["rows"]}


def bench(shape, options):
    """[(who, milliseconds, clocks)] after all turns."""
    name, head_dim, heads, kv_heads, length = shape
    q = torch.randn(1, heads, length, head_dim, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, kv_heads, length, head_dim, device="cuda", dtype=torch.bfloat16)
    v = torch.randn_like(k)
    call, label = cudnn(q, k, v)
    calls = {label: call}
    if options.flex and (compiled := flex(q, k, v)):
        calls["flex_attention"] = compiled
    times, clocks = {}, {}
    for _ in range(options.turns):
        results = tessera(options.tessera, options.path, name, options.rounds) if options.tessera else {}
        results |= {who: milliseconds(call, options.rounds) for who, call in calls.items()}
        for who, (values, clock) in results.items():
            times.setdefault(who, []).extend(values)
            clocks.setdefault(who, []).append(clock)
    return [(who, times[who], statistics.median(clocks[who])) for who in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tessera", help="the binary; without it PyTorch alone")
    parser.add_argument("--path", default="auto", help="kernels of the binary, as `tessera bench attention --path`")
    parser.add_argument("--shapes", nargs="*", default=[""])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-flex", dest="flex", action="store_false")
    parser.add_argument("--csv")
    options = parser.parse_args()
    card = torch.cuda.get_device_name()
    print(card, "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), flush=True)
    rows = []
    for shape in SHAPES:
        if not any(text in shape[0] for text in options.shapes):
            continue
        results = bench(shape, options)
        peer = next(statistics.median(times) for who, times, _ in results if who.startswith("cudnn"))
        _, head_dim, heads, _, length = shape
        for who, times, clock in results:
            ms = statistics.median(times)
            tflops = 2 * length * length * head_dim * heads / ms * 1e-9
            print(f"{shape[0]:18s} {who:20s} {ms:9.4f} ms (best {min(times):9.4f}) {tflops:7.1f} TFLOP/s "
                  f"{peer / ms:5.2f} x cuDNN {clock:5.0f} MHz", flush=True)
            rows.append([card, shape[0], who, f"{ms:.4f}", f"{min(times):.4f}", f"{tflops:.1f}", f"{peer / ms:.3f}",
                         f"{clock:.0f}", len(times)])
    if options.csv:
        with open(options.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow("card shape who median_ms best_ms tflops_median times_cudnn sm_clock_mhz launches".split())
            writer.writerows(rows)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes the rows that train.py draws from, made from text of `tessera tasks generate` by all cores.

    make_rows.py --tessera build/release/bin/tessera --output build/train/rows

For each length of conversations.LENGTHS: tokens-N.npy (rows, row) uint16, places-N.npy (rows, answers) int16,
tasks-N.npy (rows). Files that are there stay as they are.
"""
import argparse
import multiprocessing
import os
import time

import numpy as np

from conversations import LENGTHS, RowMaker

maker = None


def start_worker(tessera, tokenizer, seed):
    global maker
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    maker = RowMaker(tessera, tokenizer, seed)


def make_group(work):
    length, number = work
    return maker.group(length, number)


def rows_path(folder, kind, length):
    return os.path.join(folder, f"{kind}-{length.prompt}.npy")


def write_length(pool, folder, length, rows):
    """Tasks last: where that file is, the others are whole."""
    started = time.monotonic()
    work = ((length, number) for number in range(-(-rows // length.group)))
    groups = list(pool.imap_unordered(make_group, work))
    groups.sort(key=lambda group: (group[2], group[0].tobytes()))  # the order of arrival is nobody's
    arrays = {"tokens": np.concatenate([tokens for tokens, _, _ in groups]),
              "places": np.concatenate([places for _, places, _ in groups]),
              "tasks": np.concatenate([np.full(len(tokens), task, np.int64) for tokens, _, task in groups])}
    for kind, array in arrays.items():
        path = rows_path(folder, kind, length)
        with open(path + ".new", "wb") as file:
            np.save(file, array)
        os.replace(path + ".new", path)
    print(f"prompts of {length.prompt} tokens: {len(arrays['tasks'])} rows of {length.row} in "
          f"{time.monotonic() - started:.0f} s", flush=True)


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tessera", default="tessera")
    options.add_argument("--tokenizer", default=os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                                             "tokenizer.json"))
    options.add_argument("--output", required=True)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--workers", type=int, default=os.cpu_count())
    options.add_argument("--rows", default="80000,40000,12000,3200", help="rows of each length")
    given = options.parse_args()
    os.makedirs(given.output, exist_ok=True)
    with multiprocessing.Pool(given.workers, start_worker, (given.tessera, given.tokenizer, given.seed)) as pool:
        for length, rows in zip(LENGTHS, given.rows.split(",")):
            if not os.path.exists(rows_path(given.output, "tasks", length)):
                write_length(pool, given.output, length, int(rows))


if __name__ == "__main__":
    main()

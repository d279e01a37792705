#!/usr/bin/env python3
"""Dense causal prefill attention: PyTorch's scaled_dot_product_attention on cuDNN, and bench_attention_prefill beside it.

    bench_sdpa.py [--bench BINARY] [--shapes SUBSTRING …] [--rounds 15]

Random bf16 inputs, one sequence, grouped queries. FLOP are those of the causal half, 2 · S² · D · H; times are medians
by CUDA events after a warm-up. With --bench the binary is run on each shape before and after, so that what else the
GPU does falls on both. A cuDNN without grouped queries gets expanded keys and values, and the row says so.
"""
import argparse
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SHAPES = [("D128-H8-K1-16K", 128, 8, 1, 16384), ("D128-H8-K1-32K", 128, 8, 1, 32768),
          ("D128-H64-K8-16K", 128, 64, 8, 16384), ("D128-H8-K1-128K", 128, 8, 1, 131072),
          ("D64-H16-K2-32K", 64, 16, 2, 32768), ("D256-H16-K8-32K", 256, 16, 8, 32768)]


def milliseconds(call):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def bench(name, head_dim, heads, kv_heads, length, rounds):
    q = torch.randn(1, heads, length, head_dim, device="cuda", dtype=torch.bfloat16)
    k = torch.randn(1, kv_heads, length, head_dim, device="cuda", dtype=torch.bfloat16)
    v = torch.randn_like(k)
    grouped = True

    def call():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)

    try:
        call()
    except RuntimeError:
        grouped = False
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        call()
    for _ in range(2):
        call()
    times = [milliseconds(call) for _ in range(rounds)]
    ms = statistics.median(times)
    label = "cudnn" if grouped else "cudnn-expanded"
    print(f"{name:26s} {label:18s} {ms:9.4f} ms (best {min(times):9.4f}) "
          f"{2 * length * length * head_dim * heads / ms * 1e-9:7.1f} TFLOP/s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench")
    parser.add_argument("--shapes", nargs="*", default=[""])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "cuDNN", torch.backends.cudnn.version(), flush=True)
    for name, head_dim, heads, kv_heads, length in SHAPES:
        if not any(text in name for text in options.shapes):
            continue
        rounds = options.rounds if length < 100_000 else min(5, options.rounds)
        for turn in range(2 if options.bench else 1):
            if options.bench:
                subprocess.run([options.bench, name], check=True)
            bench(name, head_dim, heads, kv_heads, length, rounds)


if __name__ == "__main__":
    main()

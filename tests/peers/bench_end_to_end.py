#!/usr/bin/env python3
"""Prefill and decode of a model of Qwen2.5-7B's shape on one GPU: tessera against transformers, random weights.

    bench_end_to_end.py [--bench COMMAND] [--lengths 32768,131072] [--repeats 3] [--rounds 2] [--csv FILE] [--budget 150]

COMMAND is `tessera bench e2e … --json`; it names {dir}, a folder with config.json alone, {length} and {repeats}.
transformers runs in bf16 with SDPA, its KV cache filled, logits of the last position only; at the first length it tries
PyTorch's own choice of attention and cuDNN, and keeps the faster. An 80 GB card does not hold both at once: each run is
a process of its own, and they take turns, so that what the GPU's clocks do falls on both. Medians of all prefills after
each process's first one, and of the steps of each process; SM clocks are sampled while each runs. --budget: seconds
after which no new process starts.
"""
import argparse
import contextlib
import csv
import json
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
QWEN_7B = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
           "head_dim": 128, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
           "use_sliding_window": False, "tie_word_embeddings": False, "vocab_size": 152064, "torch_dtype": "bfloat16",
           "bos_token_id": 151643, "eos_token_id": 151645}
PEER_STEPS = 10
OURS = ("{root}/build/cuda/bin/tessera bench e2e --device cuda --model {dir} --weights random:1 --length {length} "
        "--tokens 48 --repeats {repeats} --json")


# ---- the peer, in a process of its own -------------------------------------------------------------------------------

def run_peer(config_dir, length, repeats, backend):
    """Prints seconds of each prefill after the first, as JSON. backend: default, cudnn, or faster (tries both)."""
    import torch
    import transformers
    from torch.nn.attention import SDPBackend, sdpa_kernel

    device = "cuda" if torch.cuda.is_available() else "cpu"
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    config = transformers.AutoConfig.from_pretrained(config_dir)
    with torch.device(device):  # drawn there, too
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    model.eval()
    ids = torch.randint(0, config.vocab_size, (1, length), device=device)

    def prefill(name):
        forced = sdpa_kernel(SDPBackend.CUDNN_ATTENTION) if name == "cudnn" else contextlib.nullcontext()
        synchronize()
        start = time.perf_counter()
        with torch.inference_mode(), forced:
            out = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
            token.tolist()
        seconds = time.perf_counter() - start
        return seconds, token, out.past_key_values

    def decode_seconds(token, cache):
        seconds = []
        with torch.inference_mode():
            for _ in range(PEER_STEPS):
                start = time.perf_counter()
                token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
                token.tolist()
                seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[2:])

    def warm_prefill(name):
        try:
            prefill(name)
            return prefill(name)[0]
        except RuntimeError:
            return math.inf

    tried = {}
    if backend == "faster":
        tried = {name: warm_prefill(name) for name in ("default", "cudnn")}
        backend = min(tried, key=tried.get)
    prefill(backend)
    seconds = []
    for turn in range(repeats):
        took, token, cache = prefill(backend)
        seconds.append(took)
        if turn + 1 < repeats:
            del cache
    step = decode_seconds(token, cache)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    print(json.dumps({"seconds": seconds, "step": step, "peak_bytes": peak, "backend": backend, "tried": tried,
                      "torch": torch.__version__, "transformers": transformers.__version__}))


# ---- taking turns ----------------------------------------------------------------------------------------------------

class Clocks:
    """Samples of the SM clock and the power while a process runs."""

    def __init__(self):
        device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        self.query = ["nvidia-smi", "-i", device, "--query-gpu=clocks.sm,power.draw,utilization.gpu",
                      "--format=csv,noheader,nounits"]
        self.samples = []
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.done.wait(0.5):
            try:
                answer = subprocess.run(self.query, capture_output=True, text=True, timeout=5).stdout
                self.samples.append([float(field) for field in answer.strip().split(",")])
            except (OSError, ValueError, subprocess.TimeoutExpired):
                continue

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()

    def medians(self):
        busy = [sample for sample in self.samples if sample[2] >= 90] or self.samples
        return [statistics.median(sample[i] for sample in busy) for i in (0, 1)] if busy else [0.0, 0.0]


def output_of(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{shlex.join(command)}\nended with code {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return done.stdout


def our_seconds(template, config_dir, length, repeats):
    """Of each prefill, and of a step."""
    command = shlex.split(template.format(root=ROOT, dir=config_dir, length=length, repeats=repeats))
    text = output_of(command)
    rows = {row["work"].split()[0]: row for row in json.loads(text[text.index("{"):])["rows"]}
    return rows["prefill"]["seconds"], rows["decode"]["seconds_median"]


def their_seconds(config_dir, length, repeats, backend):
    command = [sys.executable, __file__, "--peer", str(config_dir), str(length), str(repeats), backend]
    return json.loads(output_of(command).strip().splitlines()[-1])


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--peer":
        return run_peer(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default=OURS)
    parser.add_argument("--config", type=pathlib.Path, help="another config.json")
    parser.add_argument("--lengths", default="32768,131072")
    parser.add_argument("--repeats", type=int, default=3, help="prefills of a process after its first")
    parser.add_argument("--rounds", type=int, default=2, help="turns of both at a length")
    parser.add_argument("--backend", choices=["faster", "default", "cudnn"], default="faster")
    parser.add_argument("--budget", type=float, default=150)
    parser.add_argument("--csv", type=pathlib.Path)
    given = parser.parse_args()
    started = time.monotonic()

    table = []
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(given.config.read_text()) if given.config else QWEN_7B
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        lengths = [int(length) for length in given.lengths.split(",")]
        backend = given.backend
        for length in lengths:
            prefills, steps, clocks = ({"tessera": [], "transformers": []} for _ in range(3))
            for number in range(given.rounds):
                if number > 0 and time.monotonic() - started > given.budget:
                    print(f"{length}: {number} rounds, then the time was up", flush=True)
                    break
                with Clocks() as clock:
                    seconds, step = our_seconds(given.bench, folder, length, given.repeats)
                prefills["tessera"] += seconds
                steps["tessera"].append(step)
                clocks["tessera"].append(clock.medians())
                with Clocks() as clock:
                    answer = their_seconds(folder, length, given.repeats, backend)
                prefills["transformers"] += answer["seconds"]
                steps["transformers"].append(answer["step"])
                clocks["transformers"].append(clock.medians())
                backend = answer["backend"]
                if answer["tried"]:
                    print("attention of transformers:", answer["tried"], flush=True)
            for name, seconds in prefills.items():
                mhz, watts = (statistics.median(column) for column in zip(*clocks[name]))
                table.append({"length": length, "who": name, "prefill_s": f"{statistics.median(seconds):.4f}",
                              "least_s": f"{min(seconds):.4f}", "most_s": f"{max(seconds):.4f}",
                              "prefills": len(seconds), "step_ms": f"{1e3 * statistics.median(steps[name]):.3f}",
                              "sm_mhz": f"{mhz:.0f}", "watts": f"{watts:.0f}"})
            for what, values in (("prefill", prefills), ("step", steps)):
                ours, theirs = (statistics.median(values[name]) for name in ("tessera", "transformers"))
                print(f"{what} at {length}: tessera {ours:.4f} s, transformers {theirs:.4f} s, ratio "
                      f"{ours / theirs:.3f}", flush=True)
        print(f"transformers {answer['transformers']}, torch {answer['torch']}, attention: {backend}, "
              f"peak {answer['peak_bytes'] / 1e9:.1f} GB; {time.monotonic() - started:.0f} s in all")
    if given.csv:
        with open(given.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys())
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Prefill and decode of a model of Qwen2.5-0.5B's shape: tessera against transformers on the same CPU threads.

    bench_vs_transformers.py FOLDER [--tessera BINARY] [--length 4096] [--tokens 32] [--threads 2] [--repeats 3]

FOLDER receives (once) a checkpoint with random bf16 weights, about 1 GB, which both run. transformers runs it as it
runs fastest here: torch fp32 weights, SDPA, no_grad, warm, logits of the last position only in prefill, and in decode
the better of its dynamic and static KV caches. tessera runs `bench e2e`. The two take turns, so that what else the
machine does falls on both; the table shows medians. Exit code 1 when a ratio is below its target.
"""
import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED_TOKENIZER = ROOT.parent / "shared/data/tokenizers/qwen2.5/tokenizer.json"
FIXTURE_TOKENIZER = ROOT / "tests/fixtures/qwen2-tied/tokenizer.json"
CONFIG = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 896,
          "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
          "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False,
          "tie_word_embeddings": True, "vocab_size": 151936, "torch_dtype": "bfloat16", "bos_token_id": 151643,
          "eos_token_id": 151645}
TARGETS = {"prefill": 1.0, "decode": 1.3}


def make_model(folder):
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    hidden, mlp, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], 64 * CONFIG["num_key_value_heads"]
    rng = torch.Generator().manual_seed(1)
    matrix = lambda *shape: torch.randn(*shape, generator=rng).mul_(shape[-1] ** -0.5).to(torch.bfloat16)
    ones = lambda: torch.ones(hidden, dtype=torch.bfloat16)
    weights = {"model.embed_tokens.weight": matrix(CONFIG["vocab_size"], hidden), "model.norm.weight": ones()}
    for layer in range(CONFIG["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            weights[p + f"self_attn.{name}_proj.weight"] = matrix(rows, hidden)
            weights[p + f"self_attn.{name}_proj.bias"] = torch.zeros(rows, dtype=torch.bfloat16)
        weights[p + "self_attn.o_proj.weight"] = matrix(hidden, hidden)
        weights[p + "mlp.gate_proj.weight"] = matrix(mlp, hidden)
        weights[p + "mlp.up_proj.weight"] = matrix(mlp, hidden)
        weights[p + "mlp.down_proj.weight"] = matrix(hidden, mlp)
        weights[p + "input_layernorm.weight"] = ones()
        weights[p + "post_attention_layernorm.weight"] = ones()
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [151645, 151643]}) + "\n")
    shutil.copyfile(SHARED_TOKENIZER if SHARED_TOKENIZER.exists() else FIXTURE_TOKENIZER, folder / "tokenizer.json")
    save_file(weights, folder / "part.safetensors", {"format": "pt"})
    (folder / "part.safetensors").rename(folder / "model.safetensors")  # its presence means that all is there


class Transformers:
    def __init__(self, folder, length, tokens):
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
        self.model.eval()
        self.length, self.tokens = length, tokens
        self.ids = torch.randint(0, 151643, (1, length), generator=torch.Generator().manual_seed(2))
        self.caches = {"dynamic": lambda: DynamicCache(config=self.model.config),
                       "static": lambda: StaticCache(config=self.model.config, max_cache_len=length + tokens + 1)}

    def run(self, cache_name, length=None, tokens=None):
        """Seconds of prefill, and seconds a token of greedy decoding."""
        cache = self.caches[cache_name]()
        start = time.perf_counter()
        out = self.model(input_ids=self.ids[:, :length or self.length], past_key_values=cache, use_cache=True,
                         logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        prefill = time.perf_counter() - start
        tokens = tokens or self.tokens
        start = time.perf_counter()
        for _ in range(tokens):
            out = self.model(input_ids=token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        return prefill, (time.perf_counter() - start) / tokens

    def choose_cache(self):
        """Warms up, and keeps the cache that decodes faster after a whole prompt."""
        self.run("dynamic", 256, 4)
        found = {name: self.run(name, tokens=8) for name in self.caches}
        return min(found, key=lambda name: found[name][1]), found


def run_tessera(args):
    command = [args.tessera, "bench", "e2e", "--model", str(args.folder), "--length", str(args.length),
               "--tokens", str(args.tokens), "--threads", str(args.threads), "--repeats", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\nended with code {done.returncode}: {done.stderr.strip()}")
    answer = json.loads(done.stdout[done.stdout.index("{"):])
    return answer["prefill_s"], answer["decode_s_per_token"]


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tessera", default=str(ROOT / "build/release/bin/tessera"))
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model-only", action="store_true", help="make the checkpoint and stop")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    make_model(args.folder)
    if args.model_only:
        return 0

    peer = Transformers(args.folder, args.length, args.tokens)
    cache, found = peer.choose_cache()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {args.threads} threads; KV cache: {cache}"
          f" ({', '.join(f'{n} {1e3 * t[1]:.1f} ms a token' for n, t in found.items())})", flush=True)
    rounds = []
    for number in range(args.repeats):
        theirs, ours = peer.run(cache), run_tessera(args)
        rounds.append(theirs + ours)
        print(f"round {number + 1}: prefill {theirs[0]:.2f} s, {ours[0]:.2f} s; decode {1e3 * theirs[1]:.1f} ms, "
              f"{1e3 * ours[1]:.1f} ms", flush=True)

    their_prefill, their_decode, our_prefill, our_decode = (statistics.median(c) for c in zip(*rounds))
    rows = [("prefill", args.length / their_prefill, args.length / our_prefill),
            ("decode", 1 / their_decode, 1 / our_decode)]
    print(f"\n| tokens/s, prompt {args.length}, medians of {args.repeats} | transformers | tessera | ratio | target |")
    print("|---|---|---|---|---|")
    for name, theirs, ours in rows:
        print(f"| {name} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} | {TARGETS[name]} |")
    return 0 if all(ours / theirs >= TARGETS[name] for name, theirs, ours in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

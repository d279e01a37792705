#!/usr/bin/env python3
"""Answers generated samples with Hugging Face transformers, greedily, for `tessera tasks score` and comparisons.

    tessera tasks generate --task ruler_niah --model DIR --length 16384 --samples 100 --prompt-style compact > s.jsonl
    answer_with_transformers.py --model DIR --dtype float32 --batch 8 s.jsonl > predictions.jsonl
    tessera tasks score --samples s.jsonl predictions.jsonl

With --expect FILE, lines with predictions in the same order (`tessera trace export TRACE --format jsonl` after
`tessera eval --samples-from s.jsonl`), it says how many texts are identical, and fails where one is not.

Prompts get the Qwen chat prompt around them, as tessera gives it. Needs torch, transformers; a GPU where there is one.
"""
import argparse
import json
import sys
import time

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

CHAT = ("<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("samples", nargs="+", help="files of `tessera tasks generate`")
    options.add_argument("--model", required=True)
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    options.add_argument("--batch", type=int, default=1, help="prompts at a time, padded on the left")
    options.add_argument("--max-output-tokens", type=int, default=256)
    options.add_argument("--expect", help="JSON lines with the predictions to compare with")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = options.parse_args()

    tokenizer = Tokenizer.from_file(given.model + "/tokenizer.json")
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype),
                                                 attn_implementation="sdpa").to(given.device).eval()
    ends = model.generation_config.eos_token_id
    pad = model.generation_config.pad_token_id
    pad = pad if pad is not None else (ends[0] if isinstance(ends, list) else ends)
    samples = [json.loads(line) for path in given.samples for line in open(path, encoding="utf-8")]
    started = time.monotonic()
    texts = []
    for first in range(0, len(samples), given.batch):
        some = samples[first:first + given.batch]
        ids = [tokenizer.encode(CHAT.format(sample["prompt"]), add_special_tokens=False).ids for sample in some]
        longest = max(map(len, ids))
        tokens = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=given.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=given.device)
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=mask, do_sample=False, pad_token_id=pad,
                                 max_new_tokens=given.max_output_tokens)
        for sample, row in zip(some, out[:, longest:].tolist()):
            texts.append(tokenizer.decode(row, skip_special_tokens=True))
            print(json.dumps({"task": sample["task"], "sample": sample["sample"], "prediction": texts[-1]}), flush=True)
        print(f"{first + len(some)} of {len(samples)}, {time.monotonic() - started:.0f} s", file=sys.stderr)
    if given.expect:
        expected = [json.loads(line)["prediction"] for line in open(given.expect, encoding="utf-8")]
        same = sum(one == other for one, other in zip(texts, expected))
        print(f"{same} of {max(len(texts), len(expected))} texts identical", file=sys.stderr)
        sys.exit(0 if same == len(texts) == len(expected) else 1)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Learns the tokenizer of the mini models: a byte-level BPE of 4,096 entries over generated task text.

    make_tokenizer.py --tessera build/release/bin/tessera --output tokenizer.json

Identifiers are split in pairs, so that one written twice has the same tokens wherever it stands: groups of letters
and digits joined by hyphens (the keys and values of ruler_niah) and upper-case names (the variables of ruler_vt).
Everything else is split as Qwen does it, save that digits come in twos and line ends stand alone.
"""
import argparse
import json
import os
import subprocess

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from conversations import SYSTEM

ENTRIES = 4096  # special tokens included
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

PAIR = "[a-z0-9]{2}"
SPLIT = "|".join([
    " (?=[a-z0-9]{2,}-|[A-Z]{2})",             # the blank before an identifier
    f"{PAIR}(?=(?:{PAIR}){{0,7}}-)",           # a group with a hyphen behind it
    *(f"(?<=-{before}){PAIR}" for before in ("", "[a-z0-9]{2}", "[a-z0-9]{4}", "[a-z0-9]{6}")),  # the last group
    "[A-Z]{2}", "(?<=[A-Z]{2})[A-Z](?![a-z])",  # a name of upper-case letters
    r" ?\p{L}+(?:'\p{L}*)?",
    r"\p{N}{1,2}",
    r"[^\s\p{L}\p{N}]+",
    r"\n",
    r"\s+(?!\S)|\s+",
])

# Prompts of each task and style that are read; identifiers weigh most, for all pairs have to be learned.
SHARES = [("ruler_niah", "compact", 400), ("ruler_vt", "compact", 400), ("ruler_cwe", "compact", 400),
          ("story_retrieval", "compact", 120), ("story_multihop", "compact", 60), ("story_filtering", "compact", 60),
          ("ruler_niah", "full", 20), ("ruler_vt", "full", 20), ("ruler_cwe", "full", 20),
          ("story_retrieval", "full", 20), ("story_multihop", "full", 10), ("story_filtering", "full", 10)]
SETTINGS = {"ruler_vt": ["ruler_vt.chains=24", "ruler_vt.hops=8"],
            "ruler_cwe": ["ruler_cwe.repeats=2", "ruler_cwe.other_repeats=1"]}


def task_texts(tessera, tokenizer):
    for task, style, count in SHARES:
        settings = [word for setting in SETTINGS.get(task, []) for word in ("--set", setting)]
        command = [tessera, "tasks", "generate", "--task", task, "--tokenizer", tokenizer, "--length", "12000",
                   "--samples", str(count), "--seed", "7", "--prompt-style", style, *settings]
        for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
            yield json.loads(line)["prompt"]
    for _ in range(200):
        yield f"system\n{SYSTEM}\nuser\n\nassistant\n<answer>\n</answer>\n"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tessera", default="tessera")
    options.add_argument("--lengths-by", default=os.path.join(here, "../../tests/fixtures/qwen2-tied/tokenizer.json"),
                         help="a tokenizer.json that counts the tokens of the text to learn from")
    options.add_argument("--output", required=True)
    given = options.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=ENTRIES - len(SPECIAL), show_progress=False, special_tokens=[],
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(task_texts(given.tessera, given.lengths_by), trainer)

    spec = json.loads(tokenizer.to_str())
    entries = len(spec["model"]["vocab"])
    spec["added_tokens"] = [{"id": entries + i, "content": name, "single_word": False, "lstrip": False,
                             "rstrip": False, "normalized": False, "special": True} for i, name in enumerate(SPECIAL)]
    with open(given.output, "w", encoding="utf-8") as file:
        json.dump(spec, file, ensure_ascii=False, indent=0)
        file.write("\n")
    print(f"{given.output}: {entries + len(SPECIAL)} entries")


if __name__ == "__main__":
    main()

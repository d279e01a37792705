"""Training rows for the mini models: prompts of `tessera tasks generate` in the compact style, each with its answer,
and further turns that ask about the same text in the same words, so that most of a row teaches something.

A row is a conversation of one sample: (user, assistant), (user, assistant), ... Loss is on the assistant's tokens only.
Everything is drawn from (seed, length, number of the group).
"""
import dataclasses
import json
import os
import random
import re
import subprocess

import numpy as np
from tokenizers import Tokenizer

SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
OPENING = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
REPLY = "<|im_end|>\n<|im_start|>assistant\n"
NEXT = "\n<|im_start|>user\n"
END = "<|im_end|>"

STORY_TASKS = ("story_retrieval", "story_multihop", "story_filtering")
SHARES = {"ruler_niah": 5, "ruler_vt": 5, "ruler_cwe": 4, "story_retrieval": 4, "story_multihop": 4,
          "story_filtering": 3}
TASKS = tuple(SHARES)
# Samples of an evaluation have small seeds; those of training are drawn above this.
FIRST_TRAINING_SEED = 1 << 40


@dataclasses.dataclass(frozen=True)
class Length:
    """Rows of one length: prompts of about `prompt` tokens with further turns up to `row`."""
    prompt: int
    row: int
    answers: int  # tokens with loss in a row, at most
    group: int    # rows made together, with the same settings


LENGTHS = (Length(320, 768, 288, 64), Length(1024, 1536, 448, 64), Length(4096, 5120, 640, 32),
           Length(16384, 17408, 640, 8))


def settings_of(task, prompt, rng):
    """What a prompt of this length has room for; from 4,096 tokens on half of all prompts have the defaults."""
    if prompt >= 4096 and rng.random() < 0.5:
        return {}
    small = prompt < 1024
    if task == "ruler_niah":
        queries = rng.choice([1, 1, 2] if small else [1, 2, 3, 4] if prompt < 4096 else [4, 4, 8, 16])
        return {"queries": queries, "groups": 2 if small and queries > 1 else rng.choice([2, 4]) if small else 4}
    if task == "ruler_vt":
        return {"chains": rng.randint(2, 3), "hops": rng.randint(1, 3)} if small else {
            "chains": rng.randint(2, 8), "hops": rng.randint(2, 5)}
    if task == "ruler_cwe":
        if small:
            return {"words": rng.randint(1, 4), "repeats": rng.randint(4, 8), "other_repeats": rng.randint(1, 2)}
        if prompt < 4096:
            words, others = rng.choice([3, 5, 8, 10]), rng.randint(1, 3)
            return {"words": words, "repeats": rng.randint(2 * others + 1, max(2 * others + 2, 100 // words)),
                    "other_repeats": others}
        return {"words": rng.choice([5, 8, 10, 12]), "repeats": rng.choice([12, 20, 30]), "other_repeats": 3}
    chances = {"no_sale_percent": rng.choice([0, 25, 50])}
    if task == "story_filtering":
        most = 2 if small else 5 if prompt < 4096 else 10
        return {**chances, "empty_chapters": rng.randint(1, most)}
    chances["no_purchase_percent"] = rng.choice([3, 10, 25, 40])
    if task == "story_retrieval":
        chances["questions"] = rng.choice([1, 2, 3] if small else [4, 8] if prompt < 4096 else [8, 16, 24])
    return chances


# ---- what is asked and answered ----------------------------------------------------------------

def numbered(items):
    return "".join(f"{i}. {item}\n" for i, item in enumerate(items, 1))


def numbered_form(word, count):
    return numbered([word] * min(count, 2)) + ("...\n" if count > 2 else "")


def answer(text):
    return f"<answer>\n{text}</answer>"


def request(question, form):
    return f"{question}\nReply:\n<answer>\n{form}</answer>"


def first_answer(sample):
    task, gold = sample["task"], sample["gold"]
    if task == "ruler_vt":
        return answer(numbered(sample["metadata"]["variables"]))  # from the value along the chain
    if task == "ruler_cwe":
        # In the order in which they first appear: in a random order the next word cannot be known, and models learned to
        # name common words, but not to leave out those that they had named.
        entries = re.findall(r"^\d+\. (.+)$", sample["prompt"], re.M)
        return answer(numbered(sorted(gold, key=entries.index)))
    if task == "story_multihop":
        return answer(gold[0] + "\n")
    if task == "story_filtering":
        return answer(", ".join(gold) + "\n")
    return answer(numbered(gold))


# ---- further turns ------------------------------------------------------------------------------

def niah_turns(sample, rng):
    records = re.findall(r"^([a-z0-9-]+): ([a-z0-9-]+)$", sample["prompt"], re.M)
    asked = max(1, min(4, len(sample["gold"])))
    rng.shuffle(records)
    for first in range(0, len(records) - asked + 1, asked):
        some = records[first:first + asked]
        title = "Value of:\n" if asked == 1 else "Values of:\n"
        yield (request(title + numbered(key for key, _ in some), numbered_form("value", asked)),
               answer(numbered(value for _, value in some)))


def vt_turns(sample, rng):
    heads, following = {}, {}
    for variable, source in re.findall(r"^([A-Z]+) = (\w+)$", sample["prompt"], re.M):
        (heads if source.isdigit() else following)[source] = variable
    values = [value for value in heads if value != sample["metadata"]["value"]]
    rng.shuffle(values)
    for value in values:
        chain = [heads[value]]
        while chain[-1] in following:
            chain.append(following[chain[-1]])
        yield (request(f"All variables with the value {value}, also through others?\n", numbered_form("variable", 3)),
               answer(numbered(chain)))


def story_chapters(prompt):
    chapters = []
    for line in prompt.splitlines():
        if re.fullmatch(r"Chapter \d+", line):
            chapters.append({})
        elif chapters and (fact := re.fullmatch(r"(Place|Met|Event|Bought|Sold): (.+)", line)):
            chapters[-1][fact[1].lower()] = fact[2]
    return chapters


def story_turns(sample, rng):
    """Questions of the three story tasks in turn, beginning with the sample's own."""
    chapters = story_chapters(sample["prompt"])
    bought = [chapter["bought"] for chapter in chapters if "bought" in chapter]
    empty = [number for number, chapter in enumerate(chapters, 1) if "bought" not in chapter]
    pairs = list(zip(bought, bought[1:]))
    rng.shuffle(pairs)
    facts = [(number, name, text) for number, chapter in enumerate(chapters, 1) for name, text in chapter.items()]
    rng.shuffle(facts)
    asked = min(len(facts) // 2, len(sample["gold"]) if sample["task"] == "story_retrieval" else rng.randint(2, 6))
    listed = not 1 <= len(empty) <= 10 or sample["task"] == "story_filtering"
    kind = sample["task"]
    while pairs or len(facts) >= asked > 0 or not listed:
        if kind == "story_retrieval" and len(facts) >= asked > 0:
            some, facts = facts[:asked], facts[asked:]
            asks = "".join(f"{i}. Chapter {number}: {name}?\n" for i, (number, name, _) in enumerate(some, 1))
            yield request(asks, numbered_form("name", asked)), answer(numbered(text for *_, text in some))
        elif kind == "story_multihop" and pairs:
            before, named = pairs.pop()
            yield request(f"Bought last before {named}?\n", "item\n"), answer(before + "\n")
        elif kind == "story_filtering" and not listed:
            listed, count = True, len(empty)
            which = "chapter" if count == 1 else f"{count} chapters"
            form = ", ".join(["number"] * min(count, 3)) + (", ..." if count > 3 else "")
            yield request(f"The {which} with nothing bought?\n", form + "\n"), answer(", ".join(map(str, empty)) + "\n")
        kind = rng.choice(STORY_TASKS if rng.random() < 0.5 else (sample["task"],))
        if kind == "story_filtering" and listed:
            kind = "story_multihop" if pairs and (rng.random() < 0.5 or not len(facts) >= asked > 0) else "story_retrieval"


def further_turns(sample, rng):
    if sample["task"] == "ruler_niah":
        return niah_turns(sample, rng)
    if sample["task"] == "ruler_vt":
        return vt_turns(sample, rng)
    return story_turns(sample, rng) if sample["task"] in STORY_TASKS else iter(())


# What prompts and answers are worded with, whatever they are about.
WORDING = [OPENING + REPLY + END + NEXT, answer("\n"), "All variables with the value 1, also through others?\n = ",
           "Rain falls.\nBirds sing.\nTime goes by.\n(empty)\n", "The most frequent 10 words? The most frequent word?\n",
           "Value of:\nValues of:\n", "Chapter 1\nPlace: \nMet: \nEvent: \nBought: \nSold: \n",
           "1. Chapter 1: place?\n2. Chapter 2: met?\n3. Chapter 3: event?\n4. Chapter 4: bought?\n5. Chapter 5: sold?\n",
           "Bought last before ?\nThe 3 chapters with nothing bought?\nThe chapter with nothing bought?\n",
           *(request("", numbered_form(word, 3)) for word in ("value", "variable", "word", "name")),
           request("", "item\n"), request("", "number\n"), request("", "number, number, number, ...\n")]


# ---- rows ---------------------------------------------------------------------------------------

class RowMaker:
    def __init__(self, tessera, tokenizer_path, seed):
        self.tessera, self.tokenizer_path, self.seed = tessera, tokenizer_path, seed
        self.tokenizer = Tokenizer.from_file(tokenizer_path)

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def samples(self, task, prompt, count, seed, settings):
        words = [word for name, value in settings.items() for word in ("--set", f"{task}.{name}={value}")]
        command = [self.tessera, "tasks", "generate", "--task", task, "--tokenizer", self.tokenizer_path,
                   "--length", str(prompt), "--samples", str(count), "--seed", str(seed), "--prompt-style", "compact",
                   "--threads", "1", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def row(self, sample, length, rng):
        """Tokens, and the places whose next token has loss; None where the prompt and its answer do not fit."""
        tokens = self.ids(OPENING + sample["prompt"] + REPLY)
        places = []

        def say(reply):
            said = self.ids(reply + END)
            if len(tokens) + len(said) > length.row or len(places) + len(said) > length.answers:
                return False
            places.extend(range(len(tokens) - 1, len(tokens) + len(said) - 1))
            tokens.extend(said)
            return True

        if not say(first_answer(sample)):
            return None
        for question, reply in further_turns(sample, rng):
            asked = self.ids(NEXT + question + REPLY)
            before = len(tokens)
            tokens.extend(asked)
            if not say(reply):
                del tokens[before:]
                break
        return tokens, places

    def group(self, length, number):
        """Rows of one task with the same settings: tokens (rows, row), places (rows, answers) with −1 behind the last,
        and the task's number."""
        rng = random.Random(f"{self.seed} {length.prompt} {number}")
        task = rng.choices(TASKS, weights=[SHARES[task] for task in TASKS])[0]
        settings = settings_of(task, length.prompt, rng)
        # Half of all prompts are shorter than the named length, so that no position is special.
        prompt = length.prompt if rng.random() < 0.5 else rng.randint(length.prompt * 3 // 4, length.prompt)
        prompt = max(prompt, 300)
        if task == "ruler_cwe":  # has no further turns
            prompt += (length.row - length.prompt) * 3 // 4
        rows = []
        for sample in self.samples(task, prompt, length.group, FIRST_TRAINING_SEED + rng.getrandbits(60), settings):
            row = self.row(sample, length, rng)
            if row is not None:
                rows.append(row)
        tokens = np.zeros((len(rows), length.row), np.uint16)
        places = np.full((len(rows), length.answers), -1, np.int16)
        for i, (ids, answered) in enumerate(rows):
            tokens[i, :len(ids)] = ids
            places[i, :len(answered)] = answered
        return tokens, places, TASKS.index(task)

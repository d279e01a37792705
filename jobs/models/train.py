#!/usr/bin/env python3
"""Trains one of the mini models on one GPU, from the rows that make_rows.py writes.

    train.py mini-m --rows build/train/rows --work build/train/mini-m --output jobs/models/mini-m

Repeating the command goes on from the last checkpoint in --work; --seconds N ends a piece after that time. Rows that
are still being written are waited for. --start-from DIR begins with the weights of a trained model instead of drills:
    train.py mini-m --start-from jobs/models/mini-m --steps 0,0,8000,2000 …
"""
import argparse
import csv
import dataclasses
import math
import os
import random
import sys
import time

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from conversations import LENGTHS, TASKS, WORDING
from drills import FIRST_DRILLS, Drill, copying_rows, gradual_drills, name_classes, rename
from make_rows import rows_path
from model import ENTRIES, SHAPES, Model, export, exported_weights
from muon import Muon

WARM_UP = 200              # steps
FALL_FROM = 0.8            # share of the run after which the rate falls, in a line
LAST_RATE = 0.02           # of the highest, at the end
MUON = 2.0                 # its rate, in rates of AdamW
SHORTER = 0.25             # share of the steps of a stage that have a shorter length
MIXED_FROM = 1 / 3         # share of the steps of the longest length but one after which the longest come between
RENAMED = 0.6              # share of rows with other names
BATCH = (64, 32, 16, 6)    # rows by length
COPYING = (12, 6, 3, 1)    # of which drills in copying
EVERY_LINE = 15            # seconds
EVERY_CHECKPOINT = 60


@dataclasses.dataclass(frozen=True)
class Recipe:
    rate: float   # of AdamW; Muon's is MUON times it
    steps: tuple  # of each length
    drills: tuple = FIRST_DRILLS


RECIPES = {"mini-s": Recipe(2.0e-3, (8000, 5000, 4000, 1000), gradual_drills(1200, 60)),
           "mini-m": Recipe(1.5e-3, (4000, 3000, 5000, 1500), gradual_drills(500, 25)),
           # With the rate and the drills of mini-m it learned ruler_niah alone (.91 at 4,096 tokens); at 1.0e-3, with
           # drills all at once and 5000, 4000, 7000, 1800 steps, all but filtering (.02) and cwe (.43), whose answers
           # were then trained in a random order.
           "mini-l": Recipe(1.0e-3, (5500, 4500, 8500, 2000))}


def plan_steps(recipe, seed):
    """Every step of the run: a Drill, or an index into LENGTHS. The lengths come one after the other, the longest between
    those of the one before, so that it too is trained while the rate is high."""
    rng = random.Random(seed)
    stages = [stage for stage, count in enumerate(recipe.steps) for _ in range(count)]
    mixed_from = sum(recipe.steps[:-2]) + int(recipe.steps[-2] * MIXED_FROM)
    mixed = stages[mixed_from:]
    rng.shuffle(mixed)
    steps = [drill for count, drill in recipe.drills for _ in range(count)]
    for stage in stages[:mixed_from] + mixed:
        steps.append(rng.randrange(stage) if stage and rng.random() < SHORTER else stage)
    return steps


class Rows:
    """Batches of one length; the rows lie on the device."""

    def __init__(self, folder, length, device):
        path = rows_path(folder, "tasks", length)
        waited = time.monotonic()
        while not os.path.exists(path):
            if time.monotonic() - waited > 600:
                sys.exit(f"{path}: not there after 10 minutes; run make_rows.py --output {folder}")
            time.sleep(1)
        load = lambda kind: torch.from_numpy(np.load(rows_path(folder, kind, length)))
        self.tokens = load("tokens").to(torch.int16).to(device)  # ids are below 4,096
        self.places, self.tasks = load("places").to(device), load("tasks").to(device)

    def draw(self, count, generator):
        index = torch.randint(len(self.tasks), (count,), device=self.tasks.device, generator=generator)
        return self.tokens[index].long(), self.places[index].long(), self.tasks[index]


class Batches:
    """The batch of a step is drawn from (seed, step): a run that resumes sees what it would have seen."""

    def __init__(self, folder, tokenizer_path, seed, device):
        tokenizer = Tokenizer.from_file(tokenizer_path)
        wording = [number for text in WORDING for number in tokenizer.encode(text, add_special_tokens=False).ids]
        self.classes = name_classes(tokenizer_path, wording, device)
        self.folder, self.seed, self.device = folder, seed, device
        self.rows = {}
        self.generator = torch.Generator(device)

    def of(self, number, step):
        self.generator.manual_seed(self.seed * 1_000_003 + number)
        if isinstance(step, Drill):
            return self.drills(step, step.rows)
        length = LENGTHS[step]
        copying = Drill(length.row, COPYING[step], (32, ENTRIES), (6, 40), True)
        tokens, places, tasks = self.drills(copying, copying.rows)
        places = F.pad(places, (0, length.answers), value=-1)[:, :length.answers]
        if step not in self.rows:
            self.rows[step] = Rows(self.folder, length, self.device)
        drawn = self.rows[step].draw(BATCH[step] - copying.rows, self.generator)
        renamed = rename(drawn[0], self.classes, RENAMED, self.generator)
        return torch.cat([renamed, tokens]), torch.cat([drawn[1], places]), torch.cat([drawn[2], tasks])

    def drills(self, drill, rows):
        tokens, places = copying_rows(drill, rows, self.device, self.generator)
        return tokens, places, torch.full((rows,), len(TASKS), device=self.device)


class Tally:
    """Loss and rightness by task since the last line, kept on the device."""
    KINDS = (*TASKS, "copying")

    def __init__(self, device):
        self.sums = torch.zeros(5, len(self.KINDS), device=device)

    def add(self, tasks, losses, right, counts):
        count, right_count = counts.sum(1).float(), right.sum(1).float()
        self.sums.index_add_(1, tasks, torch.stack([losses.sum(1).float(), right_count, count,
                                                    (right_count == count).float(), torch.ones_like(count)]))

    def take(self):
        """{kind: (loss a token, share of tokens right, share of rows all right)}"""
        loss, right, count, whole, rows = self.sums.tolist()
        self.sums.zero_()
        return {kind: (loss[i] / max(1, count[i]), right[i] / max(1, count[i]), whole[i] / max(1, rows[i]))
                for i, kind in enumerate(self.KINDS)}


def rate_at(number, total):
    """Share of the highest rate: level for most of the run, so that each length is learned at a full rate; then down."""
    left = (1 - number / total) / (1 - FALL_FROM)
    return min(1.0, (number + 1) / WARM_UP, max(left, LAST_RATE))


def optimizers_of(model, rate):
    """Muon for the matrices of the layers, AdamW for embeddings, norms and biases. In the first drill mini-s had 98 % right
    after 300 steps of Muon at 4e-3, and 51 % after 525 of AdamW alone at 2e-3."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" in name]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizers = [Muon(matrices, lr=MUON * rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
                  torch.optim.AdamW([{"params": embeddings, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                    lr=rate, betas=(0.9, 0.95))]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return optimizers


def make_step(model, device, eager):
    """Forward passes: as written, for the few steps of the first drills, and compiled."""
    def forward(tokens, places):
        with torch.autocast(device.type, torch.bfloat16):
            losses, right, counts = model.answers(tokens, places)
        return losses.sum() / counts.sum().clamp(min=1), losses.detach(), right, counts

    if eager or device.type != "cuda":
        return forward, forward
    return forward, torch.compile(forward, dynamic=False)


class Run:
    """What a checkpoint holds."""

    def __init__(self, model, optimizers, path):
        self.model, self.optimizers, self.path, self.number = model, optimizers, path, 0
        if os.path.exists(path):
            state = torch.load(path, map_location=next(model.parameters()).device, weights_only=True)
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"]):
                optimizer.load_state_dict(saved)
            self.number = state["step"]

    def save(self):
        torch.save({"model": self.model.state_dict(), "step": self.number,
                    "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}, self.path + ".new")
        os.replace(self.path + ".new", self.path)


def parse():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", choices=SHAPES)
    options.add_argument("--rows", required=True, help="folder that make_rows.py writes")
    options.add_argument("--tokenizer", default=os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                                             "tokenizer.json"))
    options.add_argument("--work", required=True, help="folder of checkpoints and the log")
    options.add_argument("--output", help="folder of the trained model")
    options.add_argument("--start-from", metavar="DIR", help="a directory that this program wrote: its weights, no drills")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--seconds", type=float, default=math.inf, help="end this piece after so long")
    options.add_argument("--steps", help="steps of each length, with commas between, instead of the recipe's")
    options.add_argument("--eager", action="store_true", help="do not compile")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return options.parse_args()


def main():
    given = parse()
    started = last_line = last_save = time.monotonic()
    os.makedirs(given.work, exist_ok=True)
    recipe, shape = RECIPES[given.model], SHAPES[given.model]
    if given.steps:
        recipe = dataclasses.replace(recipe, steps=tuple(int(count) for count in given.steps.split(",")))
    if given.start_from:
        recipe = dataclasses.replace(recipe, drills=())
    steps = plan_steps(recipe, given.seed)

    torch.manual_seed(given.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device(given.device)
    model = Model(shape).to(device)
    if given.start_from:
        model.load_state_dict(exported_weights(given.start_from))
    optimizers = optimizers_of(model, recipe.rate)
    run = Run(model, optimizers, os.path.join(given.work, "checkpoint.pt"))
    batches = Batches(given.rows, given.tokenizer, given.seed, device)
    plain, compiled = make_step(model, device, given.eager)
    tally = Tally(device)
    print(f"{given.model}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(steps)} steps, "
          f"from step {run.number}", flush=True)

    log_path = os.path.join(given.work, "log.csv")
    new_log = not os.path.exists(log_path)
    log = open(log_path, "a", newline="", encoding="utf-8")
    lines = csv.writer(log)
    if new_log:
        lines.writerow(["step", "seconds", "row", "task", "loss", "token_accuracy", "whole_rows"])
    seen = 0
    while run.number < len(steps):
        step = steps[run.number]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * rate_at(run.number, len(steps))
        tokens, places, tasks = batches.of(run.number, step)
        forward = plain if isinstance(step, Drill) else compiled
        loss, losses, right, counts = forward(tokens, places)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tally.add(tasks, losses, right, counts)
        run.number += 1
        seen += tokens.numel()

        now = time.monotonic()
        if now - last_line > EVERY_LINE or run.number == len(steps):
            summary = tally.take()
            row = tokens.shape[1]
            for task, figures in summary.items():
                lines.writerow([run.number, f"{now - started:.0f}", row, task, *(f"{f:.4f}" for f in figures)])
            log.flush()
            print(f"{now - started:5.0f} s step {run.number} row {row} {seen / (now - last_line) / 1e6:.2f}M tokens/s | "
                  + " ".join(f"{task.split('_')[-1]} {loss:.3f} {token:.3f} {rows:.2f}"
                             for task, (loss, token, rows) in summary.items()), flush=True)
            last_line, seen = now, 0
            if any(math.isnan(figures[0]) for figures in summary.values()):
                sys.exit(f"{given.model}: the loss is NaN at step {run.number}; the last checkpoint is older")
        if now - last_save > EVERY_CHECKPOINT:
            run.save()
            last_save = now
        if now - started > given.seconds:
            break
    run.save()
    log.close()
    if given.output:
        export(model.state_dict(), shape, given.tokenizer, given.output)
        print(f"{given.output}: written", flush=True)
    if run.number < len(steps):
        print(f"{given.model}: stopped at step {run.number} of {len(steps)}; run again to go on", flush=True)


if __name__ == "__main__":
    main()

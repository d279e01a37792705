"""What train.py does to rows on the device: drills in copying, and renaming."""
import dataclasses
import json
import random
import re

import torch

from model import ENTRIES

# Tokens that stand for something only by being the same as another: any of a class may take another's place, if it
# does so everywhere in a row.
NAME_CLASSES = (r"(?=.*[a-z])[a-z0-9]{2}", r"[A-Z]{2}", r"[A-Z]", r"Ġ[a-z]+", r"Ġ[A-Z][a-z]+", r"[a-z]{3,}")


def name_classes(tokenizer_path, fixed_ids, device):
    """The ids of each class, without those that the prompts themselves are worded with."""
    with open(tokenizer_path, encoding="utf-8") as file:
        vocabulary = json.load(file)["model"]["vocab"]
    fixed = set(fixed_ids)
    classes = [[number for token, number in vocabulary.items() if re.fullmatch(form, token) and number not in fixed]
               for form in NAME_CLASSES]
    return [torch.tensor(sorted(ids), device=device) for ids in classes]


def rename(tokens, classes, share, generator):
    """Gives the names of each row others, drawn for the row; `share` of the rows only. tokens (rows, length)."""
    rows = tokens.shape[0]
    table = torch.arange(ENTRIES, device=tokens.device).repeat(rows, 1)
    for ids in classes:
        order = torch.rand(rows, len(ids), device=tokens.device, generator=generator).argsort(1)
        table[:, ids] = ids[order]
    changed = torch.rand(rows, 1, device=tokens.device, generator=generator) < share
    return torch.where(changed, table.gather(1, tokens), tokens)


@dataclasses.dataclass(frozen=True)
class Drill:
    row: int        # tokens of a row
    rows: int       # of a batch
    kinds: tuple    # different tokens of a row, at least and at most
    sizes: tuple    # tokens of a segment, at least and at most
    anywhere: bool  # which tokens these are changes from row to row

    @property
    def answers(self):
        return self.row * 3 // 8


# Heads that copy are found in a few hundred steps where rows are short and tokens few, and not at all in thousands
# where they are long and many; once found, they grow with the rows.
FIRST_DRILLS = ((400, Drill(64, 256, (64, 64), (4, 8), False)), (500, Drill(128, 128, (16, 256), (5, 16), True)),
                (500, Drill(256, 64, (32, 1024), (6, 24), True)))


def gradual_drills(first, rounds):
    """For the narrower models, which lose what they found where other tokens come all at once: they come between."""
    known, some, all_kinds = (Drill(64, 256, (64, most), (4, 8), False) for most in (64, 512, ENTRIES))
    longer = Drill(128, 128, (16, 256), (5, 16), True)
    return ((first, known),) + rounds * ((20, known), (20, some), (20, all_kinds), (20, longer))


def copying_rows(drill, rows, device, generator):
    """Random segments, then the same segments in another order; loss where enough of a segment was said to know it."""
    known = 2
    size = random.Random(generator.initial_seed()).randint(*drill.sizes)  # on the host: a number from the device waits
    count = drill.row // (2 * size)
    share = torch.rand(rows, 1, 1, generator=generator, device=device)
    kinds = drill.kinds[0] * (drill.kinds[1] / drill.kinds[0]) ** share
    first = (torch.rand(rows, count, size, generator=generator, device=device) * kinds).long()
    if drill.anywhere:  # an odd factor and a power of two: other tokens, as many as before
        shift = torch.randint(0, ENTRIES, (rows, 1, 1), generator=generator, device=device)
        first = (first * 1237 + shift) % ENTRIES
    order = torch.rand(rows, count, generator=generator, device=device).argsort(1)
    second = first.gather(1, order[..., None].expand(-1, -1, size))
    tokens = torch.zeros(rows, drill.row, dtype=torch.long, device=device)
    both = torch.cat([first.flatten(1), second.flatten(1)], 1)
    tokens[:, :both.shape[1]] = both

    at = torch.arange(count * size)
    usable = at[(at % size >= known - 1) & (at % size < size - 1)] + count * size  # predicts the token behind it
    usable = usable.to(device)
    drawn = torch.rand(rows, len(usable), generator=generator, device=device).argsort(1)[:, :drill.answers]
    places = torch.full((rows, drill.answers), -1, dtype=torch.long, device=device)
    places[:, :drawn.shape[1]] = usable[drawn]
    return tokens, places

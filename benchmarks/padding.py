"""Padding: batches of 32 verse pairs at random, as the scripts made them, and Vigil's: what each wastes, and a step's cost.

    python -m benchmarks.padding [--quick]

The waste is counted over one whole epoch of the pairs. The training step is forward and backward of a small Marian at the real
batch, on batches drawn from either order, by turns; its speed is in real tokens (without padding) per CPU second. A second line
stands for the step. --quick takes the sample that ships. Exit 0: at most 6 % wasted and at least 1.2 times the speed; else 1.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import MarianMTModel, MarianTokenizer

from benchmarks.bible_texts import context, marian, pairs
from benchmarks.row import Row, tell
from stages.data_order import cut, epoch_batches, padding_share
from stages.marian_tokens import Rows, tokenize
from stages.train_marian import Marks, collate, translation_loss

BATCH = 32
MOST_WASTE = 0.06
FLOOR = 1.2
STEPS = 6
"""Of each order in a round."""

Batches = Sequence[Sequence[int]]


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the sample, fewer rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vigil-padding-") as folder:
        return tell(measure(Path(folder), quick=quick, rounds=3 if quick else 9))


def measure(folder: Path, *, quick: bool, rounds: int) -> list[Row]:
    """Waste of an epoch, then steps of both orders by turns."""
    verses, name = pairs(folder, quick=quick)
    model_folder = marian(folder, verses, pieces=2000 if quick else 8000)
    rows = tokenize(context(folder), MarianTokenizer.from_pretrained(model_folder), verses)
    sizes = np.stack(rows.lengths(), axis=1)
    draw = np.random.default_rng(1)
    random: Batches = cut(draw.permutation(len(sizes)).tolist(), BATCH)
    ordered: Batches = epoch_batches(sizes, BATCH, seed=1, epoch=0)
    wasted = [padding_share(batches, sizes) for batches in (random, ordered)]
    model = MarianMTModel.from_pretrained(model_folder).train()
    speeds: list[list[NDArray[np.float64]]] = [[], []]
    for _ in range(rounds):
        for batches, found in zip((random, ordered), speeds, strict=True):
            chosen = [batches[number] for number in draw.choice(len(batches), STEPS)]
            found.append(tokens_per_second(model, rows, chosen))
    (slow, slow_wall), (fast, fast_wall) = (np.median(found, axis=0) for found in speeds)
    return [
        Row(
            item=f"padding at batch {BATCH}, {len(verses):,} pairs of {name}",
            unit="%",
            original=100 * wasted[0],
            ours=100 * wasted[1],
            demanded=f"at most {100 * MOST_WASTE:g} %",
            met=wasted[1] <= MOST_WASTE,
        ),
        Row(
            item=f"a training step at batch {BATCH}",
            unit="tokens/CPU s",
            original=slow,
            ours=fast,
            ratio=fast / slow,
            demanded=f"{FLOOR:g}",
            met=bool(fast >= FLOOR * slow),
            wall=f"{slow_wall:,.0f} and {fast_wall:,.0f} tokens/s",
        ),
    ]


def tokens_per_second(model: Any, rows: Rows, batches: Batches) -> NDArray[np.float64]:
    """Speed of forward and backward over the batches, in source and target tokens, by CPU and by wall time."""
    marks, loss_of = Marks(model.config), translation_loss(0.1)
    tokens = sum(len(side) for batch in batches for index in batch for side in rows.row(index))
    started = np.array([time.process_time(), time.perf_counter()])
    for batch in batches:
        loss, _ = loss_of(model, collate(rows, batch, marks))
        loss.backward()
        model.zero_grad()
    return tokens / (np.array([time.process_time(), time.perf_counter()]) - started)


if __name__ == "__main__":
    sys.exit(main())

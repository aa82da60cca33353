"""Tokenizing the verse pairs for MarianMT: `datasets.map` with its tokenizer, as the scripts did, and Vigil's way.

    python -m benchmarks.tokenize_pairs [--quick]

The original's way is measured on pairs spread over the corpus, since its time grows with their number, ours on all of them: it
tokenizes each text once. CPU seconds for all pairs; the rounds alternate. `map(num_proc=4)` spends the same CPU seconds in four
processes. Every text's ids must be equal to the tokenizer's own (--quick: of the sample that ships). Told too: how long the kept
arrays take to open. The vocabulary is learned here, in the layout of opus-mt-en-es. Exit 0: at least 8 times; else 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, disable_progress_bars
from numpy.typing import NDArray
from transformers import MarianTokenizer

from benchmarks.bible_texts import context, marian, pairs
from benchmarks.row import Row, tell
from stages.marian_tokens import Rows, load_rows, save_rows, slow_ids, tokenize
from stages.verse_pairs import TrainingPair

FLOOR = 8.0
SAMPLE = 5_000
MAX_TOKENS = 128


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the sample, one round")
    quick = parser.parse_args().quick
    disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="vigil-tokens-") as folder:
        return tell([measure(Path(folder), quick=quick, rounds=1 if quick else 3)])


def measure(folder: Path, *, quick: bool, rounds: int) -> Row:
    """Both ways by turns; medians."""
    verses, name = pairs(folder, quick=quick)
    tokenizer = MarianTokenizer.from_pretrained(marian(folder, verses, pieces=2000 if quick else 8000))
    ctx = context(folder)
    original, ours = [], []
    for number in range(rounds):
        some = verses[number :: max(1, len(verses) // SAMPLE)]
        original.append(seconds(lambda some=some: plain(tokenizer, some)) / len(some))  # type: ignore[misc]
        ours.append(seconds(lambda: tokenize(ctx, tokenizer, verses)) / len(verses))
    rows = tokenize(ctx, tokenizer, verses)
    save_rows(rows, folder)
    opened = []
    for _ in range(5):
        started = time.perf_counter()
        load_rows(folder)
        opened.append(time.perf_counter() - started)
    checked, differing = compare(tokenizer, rows, verses)
    slow, fast = (len(verses) * np.median(found, axis=0) for found in (original, ours))
    return Row(
        item=f"tokens of {len(verses):,} pairs of {name}",
        unit="CPU s",
        original=slow[0],
        ours=fast[0],
        ratio=slow[0] / fast[0],
        demanded=f"{FLOOR:g}, ids equal",
        met=bool(slow[0] / fast[0] >= FLOOR) and not differing,
        wall=f"{slow[1]:.1f} and {fast[1]:.1f} s",
        note=f"{differing} of {checked:,} texts differ; opened in {1e3 * statistics.median(opened):.1f} ms; the original's "
        f"measured on {SAMPLE:,} pairs a round",
    )


def seconds(work: Callable[[], object]) -> NDArray[np.float64]:
    """(CPU, wall) seconds of `work` in this process."""
    started = np.array([time.process_time(), time.perf_counter()])
    work()
    return np.array([time.process_time(), time.perf_counter()]) - started


def plain(tokenizer: Any, some: Sequence[TrainingPair]) -> None:
    """The original's way: one `map` over the pairs, repeated texts and all."""
    data = Dataset.from_dict({"en": [one.en for one in some], "es": [one.es for one in some]})
    data.map(
        lambda rows: tokenizer(rows["en"], text_target=rows["es"], max_length=MAX_TOKENS, truncation=True),
        batched=True,
        remove_columns=["en", "es"],
        load_from_cache_file=False,
    )


def compare(tokenizer: Any, rows: Rows, verses: Sequence[TrainingPair]) -> tuple[int, int]:
    """(texts compared with the tokenizer itself, those with other ids): each text of either language once."""
    sides = [{one.en: rows.row(number)[0] for number, one in enumerate(verses)}]
    sides.append({one.es: rows.row(number)[1] for number, one in enumerate(verses)})
    differing = sum(
        slow_ids(tokenizer, text, target=bool(side)) != ids.tolist()
        for side, known in enumerate(sides)
        for text, ids in known.items()
    )
    return sum(map(len, sides)), differing


if __name__ == "__main__":
    sys.exit(main())

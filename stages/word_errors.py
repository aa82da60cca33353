"""Word error rates with 95 % confidence intervals, by resampling chunks (Bisani and Ney 2004, doi:10.1109/ICASSP.2004.1326009).

Before and after are resampled together, so that the interval of the change knows that both heard the same chunks. Chunks of
one recording resemble each other: with few recordings held out the truth may lie outside more often than once in twenty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Compared:
    """Word edits of each chunk before and after, and the words of its reference; (chunks,) float64 each."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    words: NDArray[np.float64]


def compare(said: Mapping[str, str], before: Mapping[str, str], after: Mapping[str, str]) -> Compared:
    """What was heard against what was said, by id; case and punctuation do not count, chunks without a word are left out."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer

    plain = BasicTextNormalizer()
    texts = [(plain(said[one]), plain(before[one]), plain(after[one])) for one in said]
    texts = [triple for triple in texts if triple[0].strip()]
    edits = [(_edits(reference, first), _edits(reference, last), len(reference.split())) for reference, first, last in texts]
    columns = np.array(edits, dtype=np.float64).reshape(-1, 3).T
    return Compared(*columns)


def rates(name: str, compared: Compared, seed: int) -> dict[str, float]:
    """`NAME_before`, `NAME_after` and `NAME_change`, each with `_low` and `_high`; nothing without chunks."""
    count = len(compared.words)
    if not count:
        return {}
    drawn = np.random.default_rng(seed).integers(0, count, (RESAMPLES, count))
    words = compared.words[drawn].sum(axis=1)
    values = {"before": compared.before, "after": compared.after, "change": compared.after - compared.before}
    found: dict[str, float] = {}
    for when, edits in values.items():
        low, high = np.percentile(edits[drawn].sum(axis=1) / words, INTERVAL)
        found[f"{name}_{when}"] = float(edits.sum() / compared.words.sum())
        found |= {f"{name}_{when}_low": float(low), f"{name}_{when}_high": float(high)}
    return found


def in_words(name: str, found: Mapping[str, float]) -> str:
    """The same in one clause: both rates, the change, and whether it can be told from chance."""
    before, after = (_with_interval(f"{name}_{when}", found) for when in ("before", "after"))
    low, high = found[f"{name}_change_low"], found[f"{name}_change_high"]
    verdict = "better" if high < 0 else "worse" if low > 0 else "no clear change"
    return f"{before} -> {after}: {verdict}"


def _with_interval(name: str, found: Mapping[str, float]) -> str:
    return f"{found[name]:.1%} ({100 * found[f'{name}_low']:.1f} to {100 * found[f'{name}_high']:.1f})"


def _edits(reference: str, heard: str) -> int:
    import jiwer

    found: Any = jiwer.process_words(reference, heard)
    return int(found.substitutions + found.deletions + found.insertions)

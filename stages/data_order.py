"""In which order training examples are used: a pure function of (seed, epoch, sizes, effective batch).

Nothing here keeps state, so a resumed run cannot lose its place, and the ledger can be checked against a second
computation. The micro-batch plays no part: it may change at any time and the order stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Sizes = NDArray[np.int64]
"""(examples, 2): the length of each example and of what is padded on its own beside it (a target; else 0)."""

WINDOW_BATCHES = 400
"""Examples are bucketed by size inside shuffled windows of this many effective batches: little padding, new mixes each epoch."""


def steps_per_epoch(examples: int, effective_batch: int) -> int:
    """Effective batches of one epoch; the last made may be smaller."""
    return math.ceil(examples / effective_batch)


def epoch_batches(sizes: Sizes, effective_batch: int, seed: int, epoch: int) -> list[tuple[int, ...]]:
    """The effective batches of one epoch, as indices into `sizes`; each index occurs exactly once.

    Inside a batch the longest example stands first. Equal sizes are mixed at random: else verses that share one translation would
    meet in one batch.
    """
    draw = np.random.Generator(np.random.PCG64([seed, epoch]))
    shuffled = np.argsort(draw.random(len(sizes)), kind="stable")
    window = WINDOW_BATCHES * effective_batch
    parts = [shuffled[start : start + window] for start in range(0, len(shuffled), window)]
    batches = [batch for part in parts for batch in _buckets(part, sizes, effective_batch)]
    return [tuple(batches[i].tolist()) for i in np.argsort(draw.random(len(batches)), kind="stable")]


def _buckets(part: NDArray[np.int64], sizes: Sizes, effective_batch: int) -> list[NDArray[np.int64]]:
    """`part` cut into batches of like sizes: halved again and again along the length that differs most, as a k-d tree is.

    Measured on 305,000 verse pairs, batch 32: 4.9 % padding; sorted by the sum of both lengths 16.9 %, in random order 51 %.
    """
    if len(part) <= effective_batch:
        return [part[np.argsort(-sizes[part].sum(axis=1), kind="stable")]]
    own = sizes[part]
    ordered = part[np.argsort(own[:, np.ptp(own, axis=0).argmax()], kind="stable")]
    middle = math.ceil(len(part) / effective_batch) // 2 * effective_batch
    return [*_buckets(ordered[:middle], sizes, effective_batch), *_buckets(ordered[middle:], sizes, effective_batch)]


def worst_case(sizes: Sizes, micro_batch: int, effective_batch: int) -> tuple[int, ...]:
    """Indices for a probe in micro-batches: none of any step is padded to more, nor has more beside it.

    The longest in each respect stand first and together. Where a step takes several micro-batches they come twice, since every
    one after the first runs beside a gradient; and there are three or four, since which respect costs most is not known.
    """
    by_sum = np.argsort(-sizes.sum(axis=1), kind="stable").tolist()
    worst = tuple(dict.fromkeys([*sizes.argmax(axis=0).tolist(), *by_sum]))
    if micro_batch >= min(effective_batch, len(sizes)):
        return worst[:micro_batch]
    return worst[: micro_batch * math.ceil(3 / micro_batch)] * 2


def cut(batch: Sequence[int], micro_batch: int) -> list[Sequence[int]]:
    """An effective batch in micro-batches of at most `micro_batch` examples, in order."""
    return [batch[start : start + micro_batch] for start in range(0, len(batch), micro_batch)]


def padding_share(batches: Sequence[Sequence[int]], sizes: Sizes) -> float:
    """Share of the padded units that are padding, when each batch is padded to its longest example."""
    padded = sum(len(batch) * int(sizes[list(batch)].max(axis=0).sum()) for batch in batches)
    used = sum(int(sizes[list(batch)].sum()) for batch in batches)
    return 1 - used / padded if padded else 0.0


class DataOrder:
    """All steps of a training, computed one epoch at a time; with a `share` below 1 the first so many of them."""

    def __init__(self, sizes: Sizes, effective_batch: int, epochs: int, seed: int, share: float = 1.0) -> None:
        self.sizes = sizes
        self.effective_batch = effective_batch
        self.epochs = epochs
        self.seed = seed
        self.per_epoch = steps_per_epoch(len(sizes), effective_batch)
        self.steps = max(1, round(share * self.per_epoch * epochs))
        """Optimizer steps of the whole training."""
        self._epoch = -1
        self._batches: list[tuple[int, ...]] = []
        whole, rest = divmod(self.steps, self.per_epoch)
        last = sum(len(self.batch(whole * self.per_epoch + step)) for step in range(rest))
        self.examples = whole * len(sizes) + last
        """Used over all steps, each as often as it is."""

    def batch(self, step: int) -> tuple[int, ...]:
        """The indices that step `step` (from 0) uses."""
        epoch = step // self.per_epoch
        if epoch != self._epoch:
            self._batches = epoch_batches(self.sizes, self.effective_batch, self.seed, epoch)
            self._epoch = epoch
        return self._batches[step % self.per_epoch]

"""PURE: the rules of a training: its learning rate, when it evaluates and saves, and when it has gone wrong."""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence

import msgspec

MTBF_S = 24 * 3600.0
"""Assumed time between failures, of the whole machine."""
MIN_INTERVAL_S = 60.0
MAX_INTERVAL_S = 1800.0
WRITING_SHARE = 0.1
"""Of the time, at most, the disk is busy with checkpoints that are written in the background."""

RECENT_LOSSES = 50
ENOUGH_LOSSES = 20
SPIKE_FACTOR = 2.0
SPIKE_MARGIN = 1.0
SPIKES_IN_A_ROW = 10

PATIENCE = 3
WORSE_SHARE = 0.01


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """The share of the peak learning rate at step `step` (from 0): linear warm-up, then linear decay to zero."""
    warmup = min(math.ceil(steps * warmup_share), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return max(0.0, (steps - step) / max(1, steps - warmup))


def evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """After which steps the dev set is scored: before the first (0), after the last, and evenly between."""
    return frozenset({0, *(round(number * steps / evaluations) for number in range(1, evaluations + 1))})


def metric_steps(steps: int) -> int:
    """Every how many steps metrics are told: about 150 points a training."""
    return max(1, steps // 150)


def checkpoint_interval_s(save_s: float, first_s: float) -> float:
    """Seconds between checkpoints for a save that takes `save_s`: Young's first-order optimum, sqrt(2 * save * MTBF), in bounds.

    Source: J. W. Young, A first order approximation to the optimum checkpoint interval, CACM 17(9), 1974.
    """
    return min(max(math.sqrt(2 * max(save_s, 0.001) * MTBF_S), min(MIN_INTERVAL_S, first_s)), MAX_INTERVAL_S)


def sane_steps_for_health(steps: int) -> int:
    """How many sane steps in a row make the next checkpoint a healthy one."""
    return min(20, max(1, steps // 50))


def step_seed(seed: int, step: int) -> int:
    """The seed of all random numbers of step `step`: whatever happened before, a step that is done again equals itself."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{step}".encode(), digest_size=7).digest(), "big")


def falling(scores: Sequence[float]) -> bool:
    """Whether a dev score (lower is better) has clearly turned: the last PATIENCE are worse than the best, and not mending."""
    if len(scores) <= PATIENCE:
        return False
    best, last = min(scores[:-PATIENCE]), scores[-PATIENCE:]
    limit = best + WORSE_SHARE * abs(best)
    return all(score > limit for score in last) and last[-1] >= last[0]


class Sanity(msgspec.Struct, frozen=True):
    """What the last losses look like; kept in the checkpoint."""

    recent: tuple[float, ...] = ()
    """Losses of the last sane steps, at most RECENT_LOSSES."""
    sane_in_a_row: int = 0
    spikes_in_a_row: int = 0

    def after(self, loss: float) -> Sanity:
        """The same after one more finite loss. A spike is a loss far above the median of the recent ones."""
        if self.spike(loss):
            return Sanity(self.recent, 0, self.spikes_in_a_row + 1)
        return Sanity((*self.recent, loss)[-RECENT_LOSSES:], self.sane_in_a_row + 1, 0)

    def spike(self, loss: float) -> bool:
        """Whether `loss` is far above the median of the recent ones; False while they are too few to tell."""
        if len(self.recent) < ENOUGH_LOSSES:
            return False
        usual = statistics.median(self.recent)
        return loss > max(SPIKE_FACTOR * usual, usual + SPIKE_MARGIN)

    @property
    def diverged(self) -> bool:
        """Whether too many spikes came in a row."""
        return self.spikes_in_a_row >= SPIKES_IN_A_ROW

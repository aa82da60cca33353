"""Going back after a divergence, under fault: the healthy checkpoint stays whatever happens to the later ones that are dropped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.faults.checkpoint_program import checkpoints, fill

LAST = 2


def work(folder: Path, last: int, ack: Callable[[int], None]) -> None:
    kept = checkpoints(folder)
    if kept.newest_valid(healthy_only=True) is None:
        kept.publish(1, fill(1))
    ack(1)
    for step in (2, 3):
        kept.publish(step, fill(step), healthy=False)
    kept.drop_after(1)
    ack(2)


def found(folder: Path, acked: int) -> int:
    kept = checkpoints(folder)
    healthy, newest = kept.newest_valid(healthy_only=True), kept.newest_valid()
    assert not list(kept.folder.glob("damaged-*")), "a fault left half a checkpoint under the name of a whole one"
    assert healthy is not None or not acked, "the healthy one is gone"
    assert acked < 2 or (newest is not None and newest.step == 1), "a dropped one came back"
    return acked

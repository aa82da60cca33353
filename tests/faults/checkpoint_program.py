"""The real checkpoints under fault: publish, publish the same step again, retire. State n is checkpoint n; odd ones are healthy.

With NO_EXCHANGE in the environment the kernel refuses to exchange two names, as some file systems do.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from state import durable
from state.checkpoints import Checkpoints

LAST = 4
if "NO_EXCHANGE" in os.environ:
    durable._RENAME_EXCHANGE = 1 << 20  # the answer is EINVAL


def checkpoints(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "stage" / "checkpoints")


def fill(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(bytes([step]) * 5000)
        (folder / "position.json").write_text(f'{{"step": {step}}}')

    return write


def work(folder: Path, last: int, ack: Callable[[int], None]) -> None:
    kept = checkpoints(folder)
    newest = kept.newest_valid()
    for step in range(newest.step + 1 if newest else 1, last + 1):
        kept.publish(step, fill(step), healthy=step % 2 == 1)
        ack(step)
        kept.publish(step, fill(step), healthy=step % 2 == 1, info={"scored": True})
        kept.retire()


def found(folder: Path, acked: int) -> int:
    kept = checkpoints(folder)
    newest, healthy = kept.newest_valid(), kept.newest_valid(healthy_only=True)
    assert not list(kept.folder.glob("damaged-*")), "a fault left half a checkpoint under the name of a whole one"
    assert (healthy.step if healthy else 0) >= (acked - 1 if acked > 1 and acked % 2 == 0 else acked), (
        "the last healthy one is gone"
    )
    return newest.step if newest else 0

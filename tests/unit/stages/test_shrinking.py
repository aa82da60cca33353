"""What does not fit is done in smaller batches, and nothing that was done is done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from stages.shrinking import Shrinking
from state.contract import OutOfMemoryError
from tests.process.tiny_training import context
from tests.stage_attempts import notes

FITS = 3


def squares(tried: list[int]) -> Callable[[Sequence[int]], list[int]]:
    """Work that does not fit for more than FITS at once, and the sizes that it was tried with."""

    def work(batch: Sequence[int]) -> list[int]:
        tried.append(len(batch))
        if len(batch) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return [number**2 for number in batch]

    return work


def test_batches_get_smaller_for_good(tmp_path: Path) -> None:
    """Every thing has its own result once, in order; the next call begins with the size that fits, and the owner is told."""
    ctx, tried = context(tmp_path), list[int]()
    batches = Shrinking(ctx, 8, "dev example")
    for _ in range(2):
        assert [*batches.run(range(10), squares(tried))] == [(number, number**2) for number in range(10)]
    assert tried == [8, 4, 2, 2, 2, 2, 2] + [2] * 5
    assert notes(ctx).splitlines() == [
        "Out of memory at 8 dev examples at once; it goes on with 4",
        "Out of memory at 4 dev examples at once; it goes on with 2",
    ]


def test_one_that_does_not_fit_alone_ends_it(tmp_path: Path) -> None:
    """As out of memory, which the daemon's ladder knows; what came before it was given out."""

    def work(batch: Sequence[int]) -> list[int]:
        if 3 in batch:
            raise RuntimeError("CUDA error: out of memory")
        return list(batch)

    pairs = Shrinking(context(tmp_path), 4, "dev example").run(range(5), work)
    assert [next(pairs) for _ in range(3)] == [(0, 0), (1, 1), (2, 2)]
    with pytest.raises(OutOfMemoryError, match="one dev example alone"):
        next(pairs)


@pytest.mark.parametrize(
    "error", [ValueError("no"), RuntimeError("size mismatch"), torch.AcceleratorError("CUDA error: out of memory")]
)
def test_other_errors_and_a_broken_device_go_through(tmp_path: Path, error: Exception) -> None:
    """A smaller batch would not help."""

    def work(batch: Sequence[int]) -> list[int]:
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(Shrinking(context(tmp_path), 4, "dev example").run(range(5), work))

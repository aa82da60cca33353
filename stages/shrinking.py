"""Work on many things in batches that get smaller when memory runs out: what is done stays, and the attempt goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from stages.loading import free_memory
from stages.runtime import StageContext
from stages.training_gradient import recoverable
from state.contract import OutOfMemoryError

T = TypeVar("T")
R = TypeVar("R")


class Shrinking:
    """Batches of at most `size`, half as many for good after each out of memory; `what` names one, such as "dev example"."""

    def __init__(self, ctx: StageContext, size: int, what: str) -> None:
        self.size = max(1, size)
        self._ctx = ctx
        self._what = what

    def run(self, things: Sequence[T], work: Callable[[Sequence[T]], list[R]]) -> Iterator[tuple[T, R]]:
        """Each thing with its result, in order; `work` is given a batch and returns one for each of it.

        Raises:
            OutOfMemoryError: one alone does not fit.
        """
        done = 0
        while done < len(things):
            batch = things[done : done + self.size]
            found = _tried(work, batch)
            if found is None:
                self._halve(len(batch))
                continue
            yield from zip(batch, found, strict=True)
            done += len(batch)

    def _halve(self, tried: int) -> None:
        free_memory()
        if tried == 1:
            raise OutOfMemoryError(f"one {self._what} alone does not fit into memory; choose a smaller model")
        self.size = tried // 2
        self._ctx.note(f"Out of memory at {tried} {self._what}s at once; it goes on with {self.size}", level="warning")


def _tried(work: Callable[[Sequence[T]], list[R]], batch: Sequence[T]) -> list[R] | None:
    """None: it did not fit. Returning first lets go of the tensors that the traceback holds."""
    try:
        return work(batch)
    except (RuntimeError, MemoryError) as error:
        if not recoverable(error):
            raise
        return None

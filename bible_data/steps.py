"""The steps of a build: told, stopped between, kept for the next attempt, and some of them begun ahead in a second process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from bible_data.beside import Beside
from bible_data.keep import Keep

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, message); one unit is one step of one text."""
CheckStop = Callable[[], None]
"""Called between units; raises whatever the caller wants to end the build with. Nothing is left half written."""


class Steps:
    """Counts the steps of a build for the progress callback, looks at the stop callback between them, and keeps what they made."""

    def __init__(self, total: int, progress: Progress | None, check_stop: CheckStop | None, keep: Keep | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._keep = keep
        self._aside: list[Beside[Any]] = []
        self.check_stop: CheckStop = check_stop or (lambda: None)

    def start(self, message: str) -> None:
        """A step begins: the ones before it are done."""
        self.check_stop()
        if self._progress:
            self._progress(self._done, self._total, message)
        self._done += 1

    def unit(self, message: str, make: Callable[[], T], dump: Callable[[T], Any], load: Callable[[Any], T | None]) -> T:
        """One step: what an earlier attempt kept of it, else what `make` returns; `load` gives None for what is of no use."""
        kept = self.kept(message)
        value = None if kept is None else load(kept)
        if value is not None:
            self.start(f"{message}: kept from an earlier attempt")
            return value
        self.start(message)
        value = make()
        if self._keep:
            self._keep.write(message, dump(value))
        return value

    def ahead(self, message: str, make: Callable[[], T]) -> Callable[[], T]:
        """A `make` for the later unit `message` that a second process is at work on from now on, unless the unit is kept."""
        if self.kept(message) is not None:
            return make
        begun = Beside(make)
        self._aside.append(begun)
        return lambda: begun.result(self.check_stop)

    def close(self) -> None:
        """End what is still at work beside."""
        for begun in self._aside:
            begun.end()

    @property
    def keeping(self) -> bool:
        """Whether steps are kept for a later attempt."""
        return self._keep is not None

    def kept(self, message: str) -> Any:
        """What an earlier attempt kept of the step, None if nothing."""
        return self._keep.read(message) if self._keep else None

    def keep(self, message: str, value: Any) -> None:
        """Keep the result of the step; it must be what JSON can hold."""
        if self._keep:
            self._keep.write(message, value)

    def finish(self, message: str) -> None:
        """All steps are done."""
        if self._progress:
            self._progress(self._total, self._total, message)

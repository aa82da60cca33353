"""Work that a second process does meanwhile, on the other core.

The process is a fork, so it has everything at hand that its parent has; only the result travels, pickled through a pipe. It is a
matter of time alone: where no fork is possible, or it ends without a result (killed, out of memory, an error in the work),
the work is done when its result is asked for.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
LOOK_S = 0.2
"""Between two calls of `between` while a result is waited for."""


class Beside(Generic[T]):
    """`work`, begun in a process of its own."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._pid = 0
        if fork_is_safe():
            self._begin()

    def _begin(self) -> None:
        self._pipe, there = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:  # no memory or no process number left
            os.close(self._pipe)
        else:
            if self._pid == 0:
                _serve(self._work, there)
        os.close(there)

    def result(self, between: Callable[[], None]) -> T:
        """What `work` returns, or raises; `between` is called now and then while it is waited for, and may raise."""
        packed = bytearray()
        while self._pid:
            between()
            if select.select([self._pipe], [], [], LOOK_S)[0]:
                part = os.read(self._pipe, 1 << 20)
                if not part:
                    break
                packed += part
        if self._reap(0) == 0:
            result: T = pickle.loads(packed)  # noqa: S301 (from our own fork, through a pipe)
            return result
        return self._work()

    def end(self) -> None:
        """End the process if it is still at work."""
        if self._reap(os.WNOHANG) is None:
            os.kill(self._pid, signal.SIGKILL)
            self._reap(0)

    def _reap(self, options: int) -> int | None:
        """Its wait status, 0 after a good end; None while it is at work; -1 where there is none."""
        if not self._pid:
            return -1
        done, status = os.waitpid(self._pid, options)
        if not done:
            return None
        os.close(self._pipe)
        self._pid = 0
        return status


def fork_is_safe() -> bool:
    """There is a second core, and no thread besides this one: a lock that another thread holds would stay locked in the fork."""
    with contextlib.suppress(OSError):
        return len(os.sched_getaffinity(0)) > 1 and len([*Path("/proc/self/task").iterdir()]) == 1
    return False


def _serve(work: Callable[[], T], pipe: int) -> None:
    """The fork's whole life. It leaves without a word, so that nothing of its parent is flushed, closed or told twice."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        with open(pipe, "wb") as file:
            pickle.dump(work(), file, pickle.HIGHEST_PROTOCOL)
        code = 0
    finally:
        os._exit(code)

"""Two kinds of lock: vigil.lock belongs to the daemon and is not inherited; an attempt's lock is inherited by all its processes.

So a held attempt lock means alive, whatever the pids say, and a daemon that comes later can adopt the attempt.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

LOOK_S = 0.05
"""Whoever looks whether it is held has it for an instant: no reason to think that it is."""


class LockHeldError(Exception):
    """Somebody else holds the lock."""


def take(path: Path) -> int:
    """Lock `path` (made if missing) and return the open descriptor; closing it gives the lock back.

    Raises:
        LockHeldError: held by another process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline_s = time.monotonic() + LOOK_S
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError as error:
            if time.monotonic() > deadline_s:
                os.close(handle)
                raise LockHeldError(str(path)) from error
        time.sleep(LOOK_S / 10)


def held(path: Path) -> bool | None:
    """Whether some process holds the lock; None when that cannot be told."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def holders(path: Path) -> Iterator[int]:
    """Pids of the processes (but this one) that have `path` open, from /proc."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _has_open(process, wanted):
            yield int(process.name)


def end_attempts(run: Path) -> None:
    """End every process of the attempts below a run's folder: an attempt outlives its daemon."""
    for lock in run.glob("stages/*/attempts/*/attempt.lock"):
        while held(lock):
            for pid in holders(lock):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(LOOK_S)


def _has_open(process: Path, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):  # it ended, or is another user's
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False

"""The two clocks: wall time for people, the monotonic one for deadlines, and the boot that the latter belongs to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Now:
    """One reading of the clocks."""

    at: float
    """Wall time, seconds since the epoch, UTC."""
    monotonic_s: float
    boot: str


@cache
def boot_id() -> str:
    """The kernel's id of this boot; a container that hides it counts as one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def read() -> Now:
    """The clocks now."""
    return Now(time.time(), time.monotonic(), boot_id())

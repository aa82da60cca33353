"""PURE: how an attempt ended, told from what is left of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from state.contract import ExitCode, ExitRecord, Outcome, Result
from state.snapshot import Running


@dataclass(frozen=True)
class Sight:
    """What can be seen of an attempt now."""

    stage: str
    attempt: int
    alive: bool | None
    """None: unknown, and unknown never restarts anything."""
    code: int | None = None
    """Of a child: its exit code, or minus the signal; None when the daemon is not its parent."""
    record: ExitRecord | None = None
    receipt: Result | None = None
    """The stage's receipt, if this attempt wrote it."""
    checkpoint_step: int | None = None
    silent_s: float = 0.0
    quiet_s: float = 0.0
    """Announced by its last event."""
    oom_killed: bool = False
    """The kernel's OOM-kill counter rose while it ran."""
    adopted: bool = False
    ended_at: float | None = None


@dataclass(frozen=True)
class Ending:
    """An outcome and the sentence that goes with it."""

    outcome: Outcome
    reason: str


_CODES = {code.value: Outcome[code.name] for code in ExitCode if code is not ExitCode.SUCCEEDED}


def classify(sight: Sight, status: Running) -> Ending:
    """How a dead attempt ended; `status` says what the daemon itself did to it."""
    code = sight.record.code if sight.record is not None else sight.code
    message = (sight.record.message if sight.record is not None else "").strip()
    if code == 0:
        return _finished(sight)
    if status.killed_for is not None:
        return Ending(status.killed_for, "it said nothing for too long and was ended")
    if code in _CODES:
        return Ending(_CODES[code], message or _CODES[code].replace("_", " ").lower())
    if code is None:
        return Ending(Outcome.INTERRUPTED, "interrupted together with the daemon")
    if code < 0:
        return _signalled(-code, sight, status)
    error = sight.record.error if sight.record is not None else ""
    return Ending(Outcome.CRASHED, f"{error}: {message}" if error else f"exit code {code}")


def _finished(sight: Sight) -> Ending:
    if sight.receipt is None:
        return Ending(Outcome.CRASHED, "it ended with code 0 and left no receipt")
    return Ending(Outcome.SUCCEEDED, sight.receipt.summary)


def _signalled(number: int, sight: Sight, status: Running) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if status.intent is not None and number in (signal.SIGTERM, signal.SIGKILL):
        return Ending(Outcome.STOPPED, f"{status.intent.reason}; ended by {name}")
    if number == signal.SIGKILL and sight.oom_killed:
        return Ending(Outcome.OUT_OF_MEMORY, "the kernel ended it for want of memory")
    return Ending(Outcome.CRASHED, f"ended by {name}")

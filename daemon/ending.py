"""PURE: how an attempt ended, told from what is left of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

from daemon.silence import Silence
from state import symptoms
from state.contract import ExitCode, ExitRecord, Outcome, Result
from state.snapshot import Running

LAST_WORDS_CHARS = 200


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
    silence: Silence = field(default_factory=Silence)
    last_words: str = ""
    """The last line of output of a dead attempt that left no record."""
    oom_killed: bool = False
    """The kernel's OOM-kill counter rose while this daemon watched it."""
    adopted: bool = False
    ended_at: float | None = None


@dataclass(frozen=True)
class Ending:
    """An outcome and the sentence that goes with it."""

    outcome: Outcome
    reason: str
    needed_bytes: int = 0
    """Of a full disk: free space without which another try is of no use; 0: not known."""


_CODES = {code.value: Outcome[code.name] for code in ExitCode if code is not ExitCode.SUCCEEDED}


def classify(sight: Sight, status: Running) -> Ending:
    """How a dead attempt ended; `status` says what the daemon itself did to it."""
    code = sight.record.code if sight.record is not None else _of_shell(sight.code)
    if code == 0:
        return _finished(sight)
    if status.killed_for is not None:
        return Ending(status.killed_for, "it said nothing for too long and was ended")
    if code is None:
        return _vanished(sight)
    message = (sight.record.message if sight.record is not None else "").strip()
    if code in _CODES:
        needed_bytes = sight.record.needed_bytes if sight.record is not None else 0
        return Ending(_CODES[code], message or _CODES[code].replace("_", " ").lower(), needed_bytes)
    if code < 0:
        return _signalled(-code, sight, status)
    if sight.record is not None:
        return Ending(Outcome.CRASHED, f"{sight.record.error or f'exit code {code}'}: {message}".rstrip(": "))
    return _by_last_words(f"exit code {code}", sight)


def _of_shell(code: int | None) -> int | None:
    """A shell in between tells a signal as 128 and its number."""
    return 128 - code if code is not None and 128 < code <= 128 + signal.NSIG else code


def _finished(sight: Sight) -> Ending:
    if sight.receipt is None:
        return Ending(Outcome.CRASHED, "it ended with code 0 and left no receipt")
    return Ending(Outcome.SUCCEEDED, sight.receipt.summary)


def _vanished(sight: Sight) -> Ending:
    """Gone without a code: the daemon was not its parent."""
    if sight.oom_killed:
        return Ending(Outcome.OUT_OF_MEMORY, "the kernel ended it for want of memory")
    return Ending(Outcome.INTERRUPTED, "interrupted together with the daemon")


def _signalled(number: int, sight: Sight, status: Running) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if status.intent is not None and number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        return Ending(Outcome.STOPPED, f"{status.intent.reason}; ended by {name}")
    if number == signal.SIGKILL and sight.oom_killed:
        return Ending(Outcome.OUT_OF_MEMORY, "the kernel ended it for want of memory")
    if number == signal.SIGXFSZ:
        return Ending(Outcome.DISK_FULL, "it met the limit on the size of a file (SIGXFSZ)")
    if number == signal.SIGABRT:
        return _by_last_words(f"ended by {name}", sight)
    return Ending(Outcome.CRASHED, f"ended by {name}")


def _by_last_words(what: str, sight: Sight) -> Ending:
    """An end without a record: before the stage could catch anything, or in foreign code that aborts."""
    said = sight.last_words.strip()[:LAST_WORDS_CHARS]
    reason = f"{what}: {said}" if said else what
    if symptoms.out_of_memory(said):
        return Ending(Outcome.OUT_OF_MEMORY, reason)
    if symptoms.disk_refuses(said):
        return Ending(Outcome.DISK_FULL, reason)
    return Ending(Outcome.CRASHED, reason)

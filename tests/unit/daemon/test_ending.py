"""How attempts end: faults are told apart by what is left of them."""

import pytest

from daemon.ending import Sight, classify
from state.contract import ExitRecord, Outcome, Result
from state.snapshot import Intent, Running

RUNNING = Running(since=0.0)
TOLD_TO_STOP = Running(since=0.0, intent=Intent(skip=False, reason="paused", at=1.0, due_monotonic_s=9.0, boot="b"))
HUNG = Running(since=0.0, killed_for=Outcome.HUNG)
RECEIPT = Result(stage="a", attempt=1, at=1.0)


def recorded(code, receipt=None, seen_by_parent=True, **more):
    """An attempt that wrote exit.json."""
    record = ExitRecord(code=code, at=1.0, error="ValueError", message="bad thing")
    return Sight("a", 1, alive=False, code=code if seen_by_parent else None, record=record, receipt=receipt, **more)


def bare(code=None, words="", oom_killed=False, receipt=None):
    """An attempt that left a code at most, and perhaps a last line of output."""
    return Sight("a", 1, alive=False, code=code, last_words=words, oom_killed=oom_killed, receipt=receipt)


ENDINGS = [
    # a receipt decides, whatever was meant to happen
    ("done", recorded(0, RECEIPT), RUNNING, Outcome.SUCCEEDED),
    ("done under a daemon that came later", recorded(0, RECEIPT, seen_by_parent=False), RUNNING, Outcome.SUCCEEDED),
    ("done while told to stop", recorded(0, RECEIPT), TOLD_TO_STOP, Outcome.SUCCEEDED),
    ("done while being killed for silence", recorded(0, RECEIPT), HUNG, Outcome.SUCCEEDED),
    ("done, and its last act was lost", bare(0, receipt=RECEIPT), RUNNING, Outcome.SUCCEEDED),
    ("code 0 without a receipt", bare(0), RUNNING, Outcome.CRASHED),
    ("a record of 0 without a receipt", recorded(0), RUNNING, Outcome.CRASHED),
    # the stage said what it is
    ("network", recorded(75), RUNNING, Outcome.TRANSIENT),
    ("network, unrecorded", bare(75), RUNNING, Outcome.TRANSIENT),
    ("network, told to a later daemon", recorded(75, seen_by_parent=False), RUNNING, Outcome.TRANSIENT),
    ("configuration", recorded(78), RUNNING, Outcome.MISCONFIGURED),
    ("configuration, unrecorded", bare(78), RUNNING, Outcome.MISCONFIGURED),
    ("memory", recorded(80), RUNNING, Outcome.OUT_OF_MEMORY),
    ("memory, unrecorded", bare(80), RUNNING, Outcome.OUT_OF_MEMORY),
    ("divergence", recorded(81), RUNNING, Outcome.DIVERGED),
    ("disk", recorded(82), RUNNING, Outcome.DISK_FULL),
    ("disk, so full that nothing was recorded", bare(82), RUNNING, Outcome.DISK_FULL),
    ("stopped", recorded(83), TOLD_TO_STOP, Outcome.STOPPED),
    ("stopped by the system's shutdown", recorded(83), RUNNING, Outcome.STOPPED),
    ("stopped, told to a later daemon", recorded(83, seen_by_parent=False), RUNNING, Outcome.STOPPED),
    ("disk full while told to stop", recorded(82), TOLD_TO_STOP, Outcome.DISK_FULL),
    # crashes
    ("an exception", recorded(1), RUNNING, Outcome.CRASHED),
    ("an exception while told to stop", recorded(1), TOLD_TO_STOP, Outcome.CRASHED),
    ("a bad call", bare(2), RUNNING, Outcome.CRASHED),
    ("no such module", bare(1, "ModuleNotFoundError: No module named 'stages.nothing'"), RUNNING, Outcome.CRASHED),
    ("an unknown code", bare(120), RUNNING, Outcome.CRASHED),
    ("segmentation fault", bare(-11), RUNNING, Outcome.CRASHED),
    ("bus error", bare(-7), RUNNING, Outcome.CRASHED),
    ("illegal instruction", bare(-4), RUNNING, Outcome.CRASHED),
    ("abort", bare(-6, "double free or corruption"), RUNNING, Outcome.CRASHED),
    ("a signal without a name", bare(-64), RUNNING, Outcome.CRASHED),
    ("hang-up of a terminal", bare(-1), RUNNING, Outcome.CRASHED),
    # memory that nobody could catch
    ("foreign code aborts for memory", bare(-6, "what():  std::bad_alloc"), RUNNING, Outcome.OUT_OF_MEMORY),
    ("memory short while importing", bare(1, "MemoryError"), RUNNING, Outcome.OUT_OF_MEMORY),
    ("the interpreter cannot start", bare(1, "OSError: [Errno 12] Cannot allocate memory"), RUNNING, Outcome.OUT_OF_MEMORY),
    ("kernel OOM kill", bare(-9, oom_killed=True), RUNNING, Outcome.OUT_OF_MEMORY),
    ("kernel OOM kill behind a shell", bare(137, oom_killed=True), RUNNING, Outcome.OUT_OF_MEMORY),
    ("kernel OOM kill of an adopted attempt", bare(oom_killed=True), RUNNING, Outcome.OUT_OF_MEMORY),
    # disks that nobody could catch
    ("disk full while importing", bare(1, "OSError: [Errno 28] No space left on device"), RUNNING, Outcome.DISK_FULL),
    ("read-only file system", bare(1, "OSError: [Errno 30] Read-only file system: 'x'"), RUNNING, Outcome.DISK_FULL),
    ("limit on the size of a file", bare(-25), RUNNING, Outcome.DISK_FULL),
    # kills
    ("killed by somebody", bare(-9), RUNNING, Outcome.CRASHED),
    ("killed by somebody, behind a shell", bare(137), RUNNING, Outcome.CRASHED),
    ("terminated by somebody before it listened", bare(-15), RUNNING, Outcome.CRASHED),
    ("told to stop before it listened", bare(-15), TOLD_TO_STOP, Outcome.STOPPED),
    ("told to stop before it listened, behind a shell", bare(143), TOLD_TO_STOP, Outcome.STOPPED),
    ("too slow to stop, killed by the daemon", bare(-9), TOLD_TO_STOP, Outcome.STOPPED),
    ("crashed on its way to stop", bare(-11), TOLD_TO_STOP, Outcome.CRASHED),
    # hangs
    ("hung, killed by the daemon", bare(-9), HUNG, Outcome.HUNG),
    ("hung while memory was short elsewhere", bare(-9, oom_killed=True), HUNG, Outcome.HUNG),
    ("hung, gone under a later daemon", bare(), HUNG, Outcome.HUNG),
    # power
    ("power cut", bare(), RUNNING, Outcome.INTERRUPTED),
    ("power cut while told to stop", bare(), TOLD_TO_STOP, Outcome.INTERRUPTED),
]


@pytest.mark.parametrize(("seen", "status", "outcome"), [row[1:] for row in ENDINGS], ids=[row[0] for row in ENDINGS])
def test_each_ending_has_its_outcome(seen, status, outcome):
    """What the daemon did, the record, the code, the counter and the last words together name one outcome and give a reason."""
    ending = classify(seen, status)
    assert ending.outcome is outcome
    assert ending.reason or outcome is Outcome.SUCCEEDED


def test_a_crash_is_told_in_the_stages_own_words():
    """The exception's name and message, or the last line of output, reach the owner."""
    assert classify(recorded(1), RUNNING).reason == "ValueError: bad thing"
    assert classify(bare(1, "ImportError: libcublas.so.12"), RUNNING).reason == "exit code 1: ImportError: libcublas.so.12"
    assert classify(bare(-11, "a warning of long ago"), RUNNING).reason == "ended by SIGSEGV"


def test_the_space_that_a_full_disk_asks_for_is_passed_on():
    """So that nobody tries again before it is there."""
    record = ExitRecord(code=82, at=1.0, needed_bytes=12)
    assert classify(Sight("a", 1, alive=False, code=82, record=record), RUNNING).needed_bytes == 12

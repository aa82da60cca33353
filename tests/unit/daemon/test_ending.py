"""How attempts end: faults are told apart by what is left of them."""

import pytest

from daemon.ending import Sight, classify
from state.contract import ExitRecord, Outcome, Result
from state.snapshot import Intent, Running

RUNNING = Running(since=0.0)
TOLD_TO_STOP = Running(since=0.0, intent=Intent(skip=False, reason="paused", at=1.0, due_monotonic_s=9.0, boot="b"))
HUNG = Running(since=0.0, killed_for=Outcome.HUNG)
RECEIPT = Result(stage="a", attempt=1, at=1.0)


def sight(code=None, record_code=None, receipt=None, oom_killed=False):
    record = None if record_code is None else ExitRecord(code=record_code, at=1.0, error="ValueError", message="bad thing")
    return Sight("a", 1, alive=False, code=code, record=record, receipt=receipt, oom_killed=oom_killed)


@pytest.mark.parametrize(
    ("seen", "status", "outcome"),
    [
        (sight(code=0, record_code=0, receipt=RECEIPT), RUNNING, Outcome.SUCCEEDED),
        (sight(record_code=0, receipt=RECEIPT), RUNNING, Outcome.SUCCEEDED),
        (sight(record_code=0, receipt=RECEIPT), TOLD_TO_STOP, Outcome.SUCCEEDED),
        (sight(record_code=0, receipt=RECEIPT), HUNG, Outcome.SUCCEEDED),
        (sight(code=0), RUNNING, Outcome.CRASHED),
        (sight(code=0, record_code=0), RUNNING, Outcome.CRASHED),
        (sight(code=75, record_code=75), RUNNING, Outcome.TRANSIENT),
        (sight(code=78, record_code=78), RUNNING, Outcome.MISCONFIGURED),
        (sight(code=80), RUNNING, Outcome.OUT_OF_MEMORY),
        (sight(code=81), RUNNING, Outcome.DIVERGED),
        (sight(code=82), RUNNING, Outcome.DISK_FULL),
        (sight(code=83), TOLD_TO_STOP, Outcome.STOPPED),
        (sight(code=83), RUNNING, Outcome.STOPPED),
        (sight(record_code=83), RUNNING, Outcome.STOPPED),
        (sight(code=1, record_code=1), RUNNING, Outcome.CRASHED),
        (sight(code=2), RUNNING, Outcome.CRASHED),
        (sight(code=-9), RUNNING, Outcome.CRASHED),
        (sight(code=-9, oom_killed=True), RUNNING, Outcome.OUT_OF_MEMORY),
        (sight(code=-9), TOLD_TO_STOP, Outcome.STOPPED),
        (sight(code=-9), HUNG, Outcome.HUNG),
        (sight(code=-9, oom_killed=True), HUNG, Outcome.HUNG),
        (sight(code=-15), TOLD_TO_STOP, Outcome.STOPPED),
        (sight(code=-15), RUNNING, Outcome.CRASHED),
        (sight(code=-11), RUNNING, Outcome.CRASHED),
        (sight(code=-64), RUNNING, Outcome.CRASHED),
        (sight(), RUNNING, Outcome.INTERRUPTED),
        (sight(oom_killed=True), RUNNING, Outcome.INTERRUPTED),
    ],
)
def test_each_ending_has_its_outcome(seen, status, outcome):
    """What the daemon did, the record, the code and the counter together name one outcome and give a reason."""
    ending = classify(seen, status)
    assert ending.outcome is outcome
    assert ending.reason or outcome is Outcome.SUCCEEDED


def test_a_crash_is_told_in_the_stages_own_words():
    """The exception's name and message reach the owner."""
    assert classify(sight(code=1, record_code=1), RUNNING).reason == "ValueError: bad thing"

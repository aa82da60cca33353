"""The lifecycle's table."""

import itertools
from pathlib import Path

import pytest

from state.machine import SETTLED, IllegalTransitionError, Status, Trigger, advance, diagram

LEGAL = {
    (Status.PENDING, Trigger.START): Status.RUNNING,
    (Status.BACKING_OFF, Trigger.START): Status.RUNNING,
    (Status.RUNNING, Trigger.SUCCEED): Status.SUCCEEDED,
    (Status.RUNNING, Trigger.BACK_OFF): Status.BACKING_OFF,
    (Status.RUNNING, Trigger.FAIL): Status.FAILED,
    (Status.BACKING_OFF, Trigger.FAIL): Status.FAILED,
    (Status.PENDING, Trigger.SKIP): Status.SKIPPED,
    (Status.RUNNING, Trigger.SKIP): Status.SKIPPED,
    (Status.BACKING_OFF, Trigger.SKIP): Status.SKIPPED,
    (Status.FAILED, Trigger.RESET): Status.PENDING,
    (Status.SKIPPED, Trigger.RESET): Status.PENDING,
}


@pytest.mark.parametrize(("status", "trigger"), list(itertools.product(Status, Trigger)))
def test_the_table_allows_what_the_design_allows(status, trigger):
    """Each legal move leads where the design says; every other raises, naming both."""
    if (status, trigger) in LEGAL:
        assert advance(status, trigger) is LEGAL[status, trigger]
    else:
        with pytest.raises(IllegalTransitionError, match=f"{status} cannot {trigger}"):
            advance(status, trigger)


def test_nothing_leaves_succeeded():
    """What has a receipt stays done."""
    assert Status.SUCCEEDED in SETTLED
    assert not [pair for pair in LEGAL if pair[0] is Status.SUCCEEDED]


def test_the_diagram_in_the_docs_is_the_table():
    """docs/design.md carries the generated diagram; `python -m state.machine` prints it."""
    design = Path(__file__).parents[3] / "docs" / "design.md"
    assert diagram() in design.read_text()

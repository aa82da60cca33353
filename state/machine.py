"""The lifecycle of a stage as a table, checked by the transitions package; the only importer of it.

The table decides which moves exist. When to make one is `daemon.policy`'s business.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from transitions import Machine, MachineError
from transitions.extensions import GraphMachine


class Status(StrEnum):
    """Where a stage stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    BACKING_OFF = "BACKING_OFF"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    SKIPPED = "SKIPPED"


class Trigger(StrEnum):
    """What moves a stage."""

    START = "start"
    SUCCEED = "succeed"
    BACK_OFF = "back_off"
    FAIL = "fail"
    SKIP = "skip"
    RESET = "reset"


SETTLED = frozenset({Status.SUCCEEDED, Status.FAILED, Status.SKIPPED})

_UNFINISHED = [Status.PENDING, Status.RUNNING, Status.BACKING_OFF]
TABLE: list[dict[str, Any]] = [
    {"trigger": Trigger.START, "source": [Status.PENDING, Status.BACKING_OFF], "dest": Status.RUNNING},
    {"trigger": Trigger.SUCCEED, "source": Status.RUNNING, "dest": Status.SUCCEEDED},
    {"trigger": Trigger.BACK_OFF, "source": Status.RUNNING, "dest": Status.BACKING_OFF},
    {"trigger": Trigger.FAIL, "source": [Status.RUNNING, Status.BACKING_OFF], "dest": Status.FAILED},
    {"trigger": Trigger.SKIP, "source": _UNFINISHED, "dest": Status.SKIPPED},
    {"trigger": Trigger.RESET, "source": [Status.FAILED, Status.SKIPPED], "dest": Status.PENDING},
]


class IllegalTransitionError(Exception):
    """The lifecycle has no such move."""


class _Position:
    """The model that transitions moves; holds nothing but the state."""

    state: str


_POSITION = _Position()
_MACHINE = Machine(
    model=_POSITION, states=[str(s) for s in Status], transitions=TABLE, initial=str(Status.PENDING), auto_transitions=False
)


def advance(status: Status, trigger: Trigger) -> Status:
    """The status after `trigger`.

    Raises:
        IllegalTransitionError: naming both.
    """
    _MACHINE.set_state(str(status))
    try:
        _MACHINE.events[trigger].trigger(_POSITION)
    except MachineError as error:
        raise IllegalTransitionError(f"a stage that is {status} cannot {trigger}") from error
    return Status(_POSITION.state)


def diagram() -> str:
    """The table as a Mermaid state diagram, without the package's colours."""
    machine = GraphMachine(
        model=_Position(),
        states=[str(s) for s in Status],
        transitions=TABLE,
        initial=str(Status.PENDING),
        auto_transitions=False,
        graph_engine="mermaid",
    )
    source: str = machine.get_combined_graph().source  # type: ignore[attr-defined]  # the Mermaid graph has it, its protocol does not
    arrows = [line for line in source.splitlines() if "-->" in line or line.startswith("stateDiagram")]
    return "\n".join(arrows) + "\n"


if __name__ == "__main__":
    print(diagram(), end="")

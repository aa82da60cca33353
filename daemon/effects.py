"""What a step of the policy works with: what was seen, what is to be done, and the run in the making. Values only."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from msgspec.structs import replace

from daemon.clock import Now
from daemon.ending import Sight
from state.contract import Answer, Command, Event, Spec
from state.forecast import Forecast
from state.machine import Trigger, advance
from state.snapshot import Fact, Intent, Running, RunState, Skipped, StageState, StageStatus


class Ask(Enum):
    """How firmly an attempt is told to end."""

    TERM = "TERM"
    KILL = "KILL"


@dataclass(frozen=True)
class Launch:
    """Start a process for this spec."""

    spec: Spec
    number: int
    """Position of the stage in the pipeline, from 1."""


@dataclass(frozen=True)
class Stop:
    """Signal an attempt."""

    stage: str
    attempt: int
    ask: Ask


@dataclass(frozen=True)
class Tell:
    """Put a fact into the journal."""

    fact: Fact


@dataclass(frozen=True)
class Reply:
    """Answer a command."""

    answer: Answer


@dataclass(frozen=True)
class Leave:
    """End the daemon once the running stages have stopped."""


@dataclass(frozen=True)
class Reclaim:
    """Free disk space, off the tick; what it brought is seen later."""

    settled: tuple[str, ...]
    """Of these stages goes what interrupted saves left behind, and all checkpoints but the newest good ones."""
    succeeded: tuple[str, ...]
    """Of these the scratch goes too, but for the ledger."""


Effect = Launch | Stop | Tell | Reply | Leave | Reclaim


@dataclass(frozen=True)
class Heard:
    """One event of an attempt, with its place in the attempt's file: the id of the fact made from it."""

    stage: str
    attempt: int
    offset: int
    event: Event


@dataclass(frozen=True)
class Seen:
    """All that the daemon observed for this step."""

    sights: tuple[Sight, ...] = ()
    """Of the attempts that the run holds for running."""
    heard: tuple[Heard, ...] = ()
    commands: tuple[Command, ...] = ()
    leaving: bool = False
    """The daemon was told to end: stages checkpoint and leave, nothing new starts."""
    free_bytes: int | None = None
    """On the workspace's disk; None: not known, and unknown holds nothing."""
    free_windows_bytes: int | None = None
    """On the Windows drive that holds WSL's virtual disk."""
    reclaimed_bytes: int | None = None
    """A reclaim has ended and brought so much."""
    forecast: Forecast | None = None
    """The newest there is, some minutes old at most; None: none yet."""


@dataclass
class Work:
    """The run in the making, and what is to be done about it."""

    run: RunState
    now: Now
    seen: Seen = field(default_factory=Seen)
    effects: list[Effect] = field(default_factory=list)

    def stage(self, name: str) -> StageState:
        """The stage called `name`, as this step has left it so far."""
        return self.run.stage(name)

    def put(self, stage: StageState) -> None:
        """Replace the stage of that name."""
        self.run = replace(self.run, stages=tuple(stage if s.name == stage.name else s for s in self.run.stages))

    def move(self, stage: StageState, trigger: Trigger, status: StageStatus, **changes: Any) -> StageState:
        """Move a stage along the lifecycle's table; an illegal move raises."""
        moved = replace(stage, status=status, **changes)
        if moved.state is not advance(stage.state, trigger):
            raise AssertionError(f"{trigger} of {stage.name} led to {moved.state}")
        self.put(moved)
        return moved

    def tell(self, kind: str, text: str, *, level: str = "info", stage: str | None = None, **fields: Any) -> None:
        """Number a fact, save it with the decision and have it told."""
        attempt = len(self.stage(stage).attempts) if stage else None
        number = self.run.facts + 1
        fact = Fact(
            id=f"{number:06d}",
            at=self.now.at,
            kind=kind,
            text=text,
            level=level,
            stage=stage,
            attempt=attempt or None,
            fields=fields,
        )
        self.run = replace(self.run, facts=number)
        self.say(fact)

    def say(self, fact: Fact) -> None:
        """Save a fact with the decision and have it told."""
        self.run = replace(self.run, untold=(*self.run.untold, fact))
        self.effects.append(Tell(fact))

    def answer(self, command: Command, ok: bool, text: str) -> None:
        """Answer a command once the run is saved."""
        self.effects.append(Reply(Answer(id=command.id, ok=ok, text=text, at=self.now.at)))

    def intend_stop(self, stage: StageState, status: Running, *, skip: bool, reason: str, grace_s: float, by: str = "") -> None:
        """Record why a running attempt shall end; from this step on it is signalled with every tick until it has."""
        due_s = self.now.monotonic_s + grace_s
        intent = Intent(skip=skip, reason=reason, at=self.now.at, due_monotonic_s=due_s, boot=self.now.boot, by=by)
        self.put(replace(stage, status=replace(status, intent=intent)))

    def hold_all(self, reason: str) -> None:
        """Have every running stage checkpoint and wait."""
        for stage in self.run.stages:
            if isinstance(stage.status, Running) and stage.status.intent is None:
                grace_s = self.run.pipeline.stage(stage.name).grace_s
                self.intend_stop(stage, stage.status, skip=False, reason=reason, grace_s=grace_s)

    def leave_out(self, stage: StageState, reason: str, by: str) -> None:
        """Make a stage SKIPPED; `by` is `owner` or `policy`."""
        self.move(stage, Trigger.SKIP, Skipped(at=self.now.at, reason=reason, by=by))
        self.tell(
            "stage.skipped", f"{stage.name} skipped: {reason}", level="info" if by == "owner" else "warning", stage=stage.name
        )

"""What is saved of a run: decisions only. Progress lives in the events, so a quiet hour writes nothing.

A status carries the facts that are true only in it, as a tagged union. `upgrade` turns any older schema into this one.
"""

from __future__ import annotations

from typing import Any

import msgspec

from state.contract import BatchPlan, Outcome
from state.machine import SETTLED, Status
from state.pipeline import Pipeline

SCHEMA = 1


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """Why a running attempt was told to stop; decides what becomes of the stage when it has."""

    skip: bool
    """True: the stage becomes SKIPPED. False: it goes on later."""
    reason: str
    at: float
    due_monotonic_s: float
    """SIGKILL after this instant of this boot's monotonic clock."""
    boot: str
    by: str = ""


class Pending(msgspec.Struct, frozen=True, kw_only=True, tag="PENDING"):
    """Not started, or set back by the owner."""


class Running(msgspec.Struct, frozen=True, kw_only=True, tag="RUNNING"):
    """Its last attempt is at work."""

    since: float
    intent: Intent | None = None
    killed_for: Outcome | None = None
    """The daemon killed it for this (HUNG), whatever its exit looks like."""


class BackingOff(msgspec.Struct, frozen=True, kw_only=True, tag="BACKING_OFF"):
    """Waits for its next attempt."""

    since: float
    delay_s: float
    due_monotonic_s: float
    boot: str
    """The boot whose clock `due_monotonic_s` counts; after another boot it is due at once."""
    reason: str
    outcome: Outcome
    needed_bytes: int = 0
    """Free space that it waits for; 0: not known."""


class Succeeded(msgspec.Struct, frozen=True, kw_only=True, tag="SUCCEEDED"):
    """Has a receipt."""

    at: float
    summary: str = ""
    metrics: dict[str, float] = {}


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag="FAILED"):
    """Given up, with the reason and the next step for the owner."""

    at: float
    reason: str
    outcome: Outcome


class Skipped(msgspec.Struct, frozen=True, kw_only=True, tag="SKIPPED"):
    """Left out by the owner, or because something that it needs did not succeed."""

    at: float
    reason: str
    by: str
    """`owner` or `policy`; what the policy left out comes back when its need is retried."""


StageStatus = Pending | Running | BackingOff | Succeeded | Failed | Skipped


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One process of a stage."""

    number: int
    started_at: float
    ended_at: float | None = None
    outcome: Outcome | None = None
    reason: str = ""
    checkpoint_step: int | None = None
    """Newest checkpoint when it ended."""


class StageState(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of the run."""

    name: str
    status: StageStatus = Pending()
    attempts: tuple[Attempt, ...] = ()
    tries: int = 0
    """Bad endings since the stage last advanced its checkpoint; bounds the retries."""
    batch: BatchPlan = BatchPlan()
    learning_rate_scale: float = 1.0
    skip_examples: tuple[str, ...] = ()
    divergences: int = 0
    """Over the whole stage; unlike `tries` a new checkpoint does not forget them."""
    fits: dict[str, int] = {}
    """Micro-batches found to fit, by `contract.fit_key`."""
    deliver_best: bool = False
    """It diverged too often: the next attempt delivers the best weights and trains no further."""
    work_share: float = 1.0
    """Of its examples; settled when it begins, and never changed after."""
    insisted: bool = False
    """A bonus that the owner asked for: it begins whatever the forecast says."""

    @property
    def state(self) -> Status:
        """The lifecycle's word."""
        return Status(str(type(self.status).__struct_config__.tag))

    @property
    def settled(self) -> bool:
        """Whether nothing more will happen to the stage by itself."""
        return self.state in SETTLED


class Fact(msgspec.Struct, frozen=True, kw_only=True):
    """One thing worth telling, a line of journal.jsonl. The id makes telling it twice harmless."""

    id: str
    at: float
    kind: str
    """A dotted past-tense name: `stage.succeeded`."""
    text: str
    level: str = "info"
    stage: str | None = None
    attempt: int | None = None
    fields: dict[str, Any] = {}


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One start of the daemon on this run."""

    at: float
    boot: str


class PlanTold(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner was told last about the plan."""

    p80_at: float
    late: bool
    """That the deadline does not hold."""


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """state.json."""

    schema: int = SCHEMA
    id: str
    pipeline: Pipeline
    pipeline_path: str
    started_at: float
    stages: tuple[StageState, ...]
    finished_at: float | None = None
    paused: bool = False
    deadline_at: float | None = None
    """The instant that the pipeline's `deadline` names, counted from the run's start."""
    plan: PlanTold | None = None
    """None until a forecast was told, and again when the deadline changes."""
    disk_hold: str = ""
    """Why everything waits for disk space; empty when it does not."""
    starts: tuple[Start, ...] = ()
    facts: int = 0
    """Facts numbered so far; part of their ids."""
    untold: tuple[Fact, ...] = ()
    """Decided and saved, perhaps not yet in the journal; told again on load."""
    answered: tuple[str, ...] = ()
    """Ids of the latest commands carried out: each acts once."""

    def stage(self, name: str) -> StageState:
        """The stage called `name`.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    @property
    def finished(self) -> bool:
        """Whether every stage is settled."""
        return all(stage.settled for stage in self.stages)

    @property
    def failed_required(self) -> tuple[str, ...]:
        """Names of the stages that failed and were not optional."""
        return tuple(s.name for s in self.stages if s.state is Status.FAILED and not self.pipeline.stage(s.name).optional)


class UnknownSchemaError(Exception):
    """The state file is of a schema that this Vigil does not know."""


def decode(data: bytes) -> RunState:
    """A saved run, upgraded to this schema.

    Raises:
        msgspec.DecodeError: not JSON, or not a run.
        UnknownSchemaError: written by a newer Vigil.
    """
    return msgspec.convert(upgrade(msgspec.json.decode(data)), RunState)


def upgrade(saved: Any) -> Any:
    """`saved`, of any older schema, as the newest; each schema adds its step here."""
    schema = saved.get("schema") if isinstance(saved, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise UnknownSchemaError(f"state schema {schema} is newer than {SCHEMA}: use the Vigil that wrote it, or a newer one")
    return saved

"""What the daemon and a stage say to each other: spec in, events out, an exit code and a receipt at the end.

Covers the values only. The files that carry them are named by `state.workspace`; the stage's side of the talk is
`stages.runtime`, the daemon's side is `daemon.launcher` and `daemon.inbox`.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Any, ClassVar

import msgspec

SCHEMA = 1


class ExitCode(IntEnum):
    """How a stage process tells what its caller should do next; other codes and signals mean CRASHED."""

    SUCCEEDED = 0
    TRANSIENT = 75  # EX_TEMPFAIL of sysexits.h
    MISCONFIGURED = 78  # EX_CONFIG of sysexits.h
    OUT_OF_MEMORY = 80
    DIVERGED = 81
    DISK_FULL = 82
    STOPPED = 83


class Outcome(StrEnum):
    """How an attempt ended."""

    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    DIVERGED = "DIVERGED"
    DISK_FULL = "DISK_FULL"
    TRANSIENT = "TRANSIENT"
    MISCONFIGURED = "MISCONFIGURED"
    CRASHED = "CRASHED"
    HUNG = "HUNG"
    INTERRUPTED = "INTERRUPTED"  # gone together with the daemon: a power cut, a reboot


class StageError(Exception):
    """The stage cannot go on; see its log."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (self.__doc__ or "").strip())


class StopRequested(StageError):
    """A stop was asked for; the work so far is kept and the same attempt can go on later."""

    exit_code = ExitCode.STOPPED


class TransientError(StageError):
    """The outside world (network, site, a busy device) said no; the same call may work later."""

    exit_code = ExitCode.TRANSIENT


class MisconfiguredError(StageError):
    """A setting or an input is wrong and no retry can mend it; correct it, then retry the stage."""

    exit_code = ExitCode.MISCONFIGURED


class OutOfMemoryError(StageError):
    """The work does not fit into memory at this batch plan; the next attempt runs one rung lower."""

    exit_code = ExitCode.OUT_OF_MEMORY


class DivergedError(StageError):
    """Training diverged; the next attempt goes back to the last healthy checkpoint."""

    exit_code = ExitCode.DIVERGED


class DiskFullError(StageError):
    """No space is left for the next save; free some, the stage then goes on."""

    exit_code = ExitCode.DISK_FULL

    def __init__(self, message: str | None = None, needed_bytes: int = 0) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        """Free space without which another try is of no use; 0: not known."""


class BatchPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One rung of the memory ladder. The effective batch is a setting and never changes here."""

    micro_batch: int | None = None
    """Examples in one forward pass; None: the stage's own setting."""
    gradient_checkpointing: bool | None = None
    paged_optimizer: bool | None = None
    eval_batch: int | None = None


class Spec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that an attempt is told, written to spec.json before the process starts."""

    schema: int = SCHEMA
    run_id: str
    stage: str
    module: str
    attempt: int
    workspace: str
    """Absolute path of the run's folder."""
    settings: dict[str, Any] = {}
    seed: int = 0
    batch: BatchPlan = BatchPlan()
    learning_rate_scale: float = 1.0
    """1.0, or less after a divergence."""
    skip_examples: tuple[str, ...] = ()
    """Ids of training examples left out after a divergence."""
    fits: dict[str, int] = {}
    """Micro-batches found to fit, by `fit_key`."""
    deliver_best: bool = False
    """Train no further: deliver the best weights there are. It has diverged too often."""
    work_share: float = 1.0
    """Of the examples: a bonus with less time trains on the first so many of its order, with a schedule made for them."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """Work done so far; `done` of `total` in `unit`s. Also the heartbeat."""

    at: float
    """Wall time, seconds since the epoch, UTC; as in every event."""
    done: float
    total: float | None = None
    unit: str = "items"
    step: int | None = None
    steps: int | None = None
    message: str = ""
    quiet_s: float | None = None
    """The next event may take this long: a model load, a large save."""


class Metric(msgspec.Struct, frozen=True, kw_only=True, tag="metric"):
    """Named numbers measured at an optimizer step (or at none)."""

    at: float
    values: dict[str, float]
    step: int | None = None


class CheckpointSaved(msgspec.Struct, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint is durable and verified; `path` is relative to the workspace."""

    at: float
    step: int
    path: str
    seconds: float = 0.0
    """Until it was durable."""
    blocking_s: float | None = None
    """The work stood still for so long; None: for all of it."""
    size_bytes: int = 0


class MemoryFit(msgspec.Struct, frozen=True, kw_only=True, tag="memory_fit"):
    """The micro-batch that fits, found on `device` for `model`."""

    at: float
    model: str
    device: str
    micro_batch: int
    reason: str = ""


def fit_key(model: str, device: str) -> str:
    """Where a memory fit is valid: the same model on the same device (a GPU's name, or `cpu`)."""
    return f"{model} on {device}"


class Divergence(msgspec.Struct, frozen=True, kw_only=True, tag="divergence"):
    """Training diverged at a step; `examples` (their ids) are at fault as far as can be told and are skipped from now on."""

    at: float
    step: int
    reason: str
    examples: tuple[str, ...] = ()


class Note(msgspec.Struct, frozen=True, kw_only=True, tag="note"):
    """A fact worth telling in the report: something went wrong or was decided, and what was done about it."""

    at: float
    text: str
    level: str = "info"
    """`info`, `warning` or `error`."""
    fields: dict[str, Any] = {}


Event = Progress | Metric | CheckpointSaved | MemoryFit | Divergence | Note


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One delivered file or folder, by its path relative to the workspace."""

    path: str
    size_bytes: int
    sha256: str
    """Of the file; of a folder: of its sorted `sha256  relative/path` lines."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The receipt of a stage, result.json: without it nothing succeeded."""

    schema: int = SCHEMA
    stage: str
    attempt: int
    at: float
    outputs: tuple[Output, ...] = ()
    metrics: dict[str, float] = {}
    summary: str = ""


class ExitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """exit.json, an attempt's last act: a daemon that is not its parent can read how it ended."""

    code: int
    at: float
    error: str = ""
    """Name of the exception class; empty when there was none."""
    message: str = ""
    needed_bytes: int = 0
    """Of a full disk: free space without which another try is of no use; 0: not known."""


class CommandKind(StrEnum):
    """What the owner can ask for."""

    SKIP = "skip"
    RETRY = "retry"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"


class Command(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One request of the owner, a file renamed into control/."""

    id: str
    kind: CommandKind
    at: float
    stage: str | None = None
    now: bool = False
    """Skip: do not wait for the next checkpoint."""
    by: str = "cli"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a command, answered once, by id."""

    id: str
    ok: bool
    text: str
    at: float

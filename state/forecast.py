"""What the plan expects: how long each stage takes, when the run ends, whether the deadline holds. Values and their files.

Estimates are written by the rehearsal, durations by the daemon when a stage has succeeded, forecasts by the daemon too, a line
each time one says something new.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from state.durable import append_durably, write_atomically
from state.pipeline import StageConfig
from state.workspace import Workspace

T = TypeVar("T", bound=msgspec.Struct)

TAIL_BYTES = 256 << 10
"""Of a file that grows: more than the newest hundred lines."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stage is expected to take, undisturbed."""

    stage: str
    digest: str
    """`digest_of` the stage when it was measured: with other settings it says nothing."""
    at: float
    source: Literal["rehearsal", "history", "budget"]
    seconds: float
    """Median."""
    spread: float
    """Standard deviation of the logarithm of the seconds."""
    fixed_s: float = 0.0
    """Of the seconds: what does not shrink with less work (load, evaluate, save, deliver)."""
    peak_memory_bytes: int | None = None
    peak_gpu_bytes: int | None = None
    detail: str = ""
    """What was measured, in words: `2 steps of 1.9 s, load 41 s`."""


class Duration(msgspec.Struct, frozen=True, kw_only=True):
    """How long a stage of some run on this machine has worked: a line of the history."""

    run: str
    stage: str
    digest: str
    """`digest_of` the stage."""
    at: float
    seconds: float


class StageForecast(msgspec.Struct, frozen=True, kw_only=True):
    """When a stage that is not settled will be; seconds since the epoch."""

    stage: str
    p50_at: float
    p80_at: float
    source: str
    """What it rests on: an estimate's source, `pace` of the running stage, or `guess`."""
    work_share: float | None = None
    """Of a bonus that has not begun: 1 if it fits before the deadline by its P80, less if so much of its work does, 0 if none."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The whole plan as the daemon saw it at one moment."""

    at: float
    p50_at: float
    """The end of the run: half of the simulated runs are over by then."""
    p80_at: float
    deadline_at: float | None = None
    stages: tuple[StageForecast, ...] = ()
    leave_out: tuple[str, ...] = ()
    """Unsettled bonus stages without which the deadline holds by the P80; empty when it holds, or cannot be made to hold."""
    choice: str = ""
    """What the owner can do about a deadline that does not hold, in one sentence; empty when it holds."""
    text: str = ""
    """All of it in one sentence, `choice` included."""

    @property
    def fits(self) -> bool:
        """Whether the deadline, if there is one, holds by the P80."""
        return self.deadline_at is None or self.p80_at <= self.deadline_at

    def stage(self, name: str) -> StageForecast | None:
        """The forecast of one stage; None when it is settled."""
        return next((stage for stage in self.stages if stage.stage == name), None)


def digest_of(stage: StageConfig) -> str:
    """What an estimate is valid for: the stage's module and settings."""
    return hashlib.sha256(msgspec.json.encode([stage.module, stage.settings], order="deterministic")).hexdigest()[:16]


def estimates(workspace: Workspace) -> dict[str, Estimate]:
    """The estimates kept in the workspace, by stage; empty when there are none that can be read."""
    try:
        kept = msgspec.json.decode(workspace.estimates.read_bytes(), type=list[Estimate])
    except (OSError, msgspec.DecodeError):
        return {}
    return {estimate.stage: estimate for estimate in kept}


def keep_estimates(workspace: Workspace, fresh: list[Estimate]) -> None:
    """Lay `fresh` over the estimates kept in the workspace."""
    together = estimates(workspace) | {estimate.stage: estimate for estimate in fresh}
    write_atomically(workspace.estimates, msgspec.json.encode(list(together.values())))


def forecasts(workspace: Workspace) -> list[Forecast]:
    """Every forecast that was kept, oldest first; a torn line is passed over."""
    return _lines(workspace.forecasts, Forecast)


def latest(workspace: Workspace) -> Forecast | None:
    """The newest forecast; None when there is none yet."""
    kept = _lines(workspace.forecasts, Forecast, TAIL_BYTES)
    return kept[-1] if kept else None


def keep_forecast(workspace: Workspace, forecast: Forecast) -> None:
    """Add a forecast to those kept."""
    append_durably(workspace.forecasts, msgspec.json.encode(forecast))


def durations(history: Path) -> list[Duration]:
    """What the history says, oldest first; empty when there is none that can be read."""
    return _lines(history, Duration, TAIL_BYTES)


def keep_duration(history: Path, duration: Duration) -> None:
    """Add to the history, unless it knows this stage of this run."""
    if all((known.run, known.stage) != (duration.run, duration.stage) for known in durations(history)):
        append_durably(history, msgspec.json.encode(duration))


def _lines(path: Path, kind: type[T], most_bytes: int | None = None) -> list[T]:
    """The lines at the end of a file; one that is torn or of another kind is passed over."""
    try:
        with open(path, "rb") as file:
            file.seek(-min(most_bytes or sys.maxsize, file.seek(0, os.SEEK_END)), os.SEEK_END)
            data = file.read()
    except OSError:
        return []
    found = []
    for line in data.splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=kind))
    return found

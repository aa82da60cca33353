"""What the plan expects: how long each stage takes, when the run ends, whether the deadline holds. Values and their files.

Estimates are written by the rehearsal, and by stages that succeed; forecasts by the daemon, a line each time one says
something new.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from state.durable import write_atomically
from state.pipeline import StageConfig
from state.workspace import Workspace


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
    try:
        lines = workspace.forecasts.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(msgspec.json.decode(line, type=Forecast))
        except msgspec.DecodeError:
            continue
    return found


def latest(workspace: Workspace) -> Forecast | None:
    """The newest forecast; None when there is none yet."""
    kept = forecasts(workspace)
    return kept[-1] if kept else None

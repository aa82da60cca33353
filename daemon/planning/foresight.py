"""Keeps a forecast of the run up to date, off the tick: a thread is handed what the tick knows and hands back the newest forecast.

It computes anew each minute, and at once when a stage begins or ends. A forecast that says something new is kept in
WORKSPACE/plan/forecasts.jsonl; how long a stage took, in a history that all runs of this user on this machine share.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from datetime import tzinfo
from pathlib import Path

import structlog
from msgspec.structs import replace

from daemon.effects import Heard
from daemon.planning.expectation import Known, Pace, worked_s
from daemon.planning.forecast import foresee
from state.contract import Outcome, Progress
from state.forecast import Duration, Forecast, digest_of, durations, estimates, keep_duration, keep_forecast, latest
from state.machine import Status
from state.snapshot import Attempt, RunState
from state.workspace import Workspace

EVERY_S = 60.0
MOVED_S, MOVED_SHARE = 300.0, 0.02
"""A forecast that moves less, in seconds and as a share of the time left, says nothing new."""
LEAST_S = 60.0
"""A stage that took less teaches nothing about a plan of days."""
TRAINING = "stages.train_"

log = structlog.get_logger()


def history_file() -> Path:
    """Where this user keeps how long stages took (the XDG base directory specification's state folder)."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "vigil" / "durations.jsonl"


def moved(before: Forecast | None, after: Forecast) -> bool:
    """Whether `after` says something that `before` did not."""
    if before is None or before.deadline_at != after.deadline_at or before.leave_out != after.leave_out:
        return True
    if [(s.stage, s.work_share) for s in before.stages] != [(s.stage, s.work_share) for s in after.stages]:
        return True
    moved_s = max(abs(after.p50_at - before.p50_at), abs(after.p80_at - before.p80_at))
    return moved_s > min(MOVED_S, MOVED_SHARE * (after.p80_at - after.at))


class Foresight:
    """The forecast of one run, from its own thread; a forecast that cannot be made or kept is logged once and holds up nobody."""

    def __init__(self, workspace: Workspace, history: Path | None = None, zone: tzinfo | None = None) -> None:
        self.workspace = workspace
        self._history = history or history_file()
        self._zone = zone
        self._run: RunState | None = None
        self._paces: dict[str, Pace] = {}
        self._forecast: Forecast | None = None
        self._remembered: set[str] = set()
        self._wake = threading.Event()
        self._closing = False
        self._trouble = ""
        self._thread = threading.Thread(target=self._go, daemon=True, name="foresight")

    def follow(self, run: RunState, heard: Iterable[Heard]) -> Forecast | None:
        """Take over the run and what its attempts told; the newest forecast. Never waits."""
        for one in heard:
            self._hear(run, one)
        turned = self._run is None or _shape(run) != _shape(self._run)
        self._run = run
        if not self._thread.is_alive() and not self._closing:
            self._thread.start()
        if turned:
            self._wake.set()
        return self._forecast

    def close(self) -> None:
        """End the thread once the forecast at hand is made."""
        self._closing = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2.0)

    def _hear(self, run: RunState, heard: Heard) -> None:
        told = heard.event
        if not isinstance(told, Progress) or not told.total:
            return
        if told.step is None and run.pipeline.stage(heard.stage).module.startswith(TRAINING):
            return  # not yet a step: it reads, it cuts its texts into tokens
        pace = self._paces.get(heard.stage)
        alike = pace is not None and (pace.attempt, pace.last.unit, pace.last.total) == (heard.attempt, told.unit, told.total)
        began = pace.began if pace is not None and alike else told
        self._paces[heard.stage] = Pace(heard.attempt, began, told)

    def _go(self) -> None:
        kept = latest(self.workspace)
        while not self._closing:
            self._wake.wait(EVERY_S)
            self._wake.clear()
            try:
                kept = self._look(kept)
                self._trouble = ""
            except Exception as error:  # the tick goes on without a forecast, and bonuses wait for one until the deadline
                if str(error) != self._trouble:
                    log.error("forecast.failed", error=f"{type(error).__name__}: {error}")
                self._trouble = str(error)

    def _look(self, kept: Forecast | None) -> Forecast | None:
        """One forecast; the one kept last, which may be it."""
        if self._run is None:
            return kept
        run = as_heard(self._run, self.workspace)
        if not run.finished:
            known = Known(dict(self._paces), estimates(self.workspace), durations(self._history))
            self._forecast = foresee(run, known, time.time(), self._zone)
            if moved(kept, self._forecast):
                keep_forecast(self.workspace, self._forecast)
                kept = self._forecast
        self._remember(run)
        return kept

    def _remember(self, run: RunState) -> None:
        """Put the whole stages that have succeeded into the history."""
        for stage in run.stages:
            seconds = worked_s(stage)
            whole = stage.state is Status.SUCCEEDED and stage.work_share == 1.0 and seconds >= LEAST_S
            if whole and stage.name not in self._remembered:
                digest, at = digest_of(run.pipeline.stage(stage.name)), stage.attempts[-1].ended_at or 0.0
                keep_duration(self._history, Duration(run=run.id, stage=stage.name, digest=digest, at=at, seconds=seconds))
                self._remembered.add(stage.name)


def as_heard(run: RunState, workspace: Workspace) -> RunState:
    """The run with attempts that went down with the daemon ended when they were last heard, not when they were found."""

    def ended(stage: str, attempt: Attempt) -> Attempt:
        if attempt.outcome is not Outcome.INTERRUPTED or attempt.ended_at is None:
            return attempt
        try:
            heard_at = workspace.attempt(stage, attempt.number).events.stat().st_mtime
        except OSError:
            heard_at = attempt.started_at  # it told nothing
        return replace(attempt, ended_at=max(attempt.started_at, min(attempt.ended_at, heard_at)))

    return replace(
        run, stages=tuple(replace(stage, attempts=tuple(ended(stage.name, a) for a in stage.attempts)) for stage in run.stages)
    )


def _shape(run: RunState) -> tuple[object, ...]:
    """What a forecast must follow at once."""
    return (run.deadline_at, *((stage.state, len(stage.attempts)) for stage in run.stages))

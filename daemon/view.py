"""Reads a workspace, changing nothing, into one value: what `status`, `watch`, `log`, the bot and the report show.

Works beside a running daemon and with none. What is damaged or missing is left out or None; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from daemon import locks
from state.checkpoints import Checkpoints
from state.contract import CheckpointSaved, Event, Metric, Note, Progress, Result
from state.machine import Status
from state.pipeline import StageConfig
from state.snapshot import Attempt, Fact, RunState, StageState
from state.store import Store, read_journal
from state.workspace import Workspace

HEAD_BYTES = 64 << 10
TAIL_BYTES = 2 << 20
"""Of an events file: some hours of it, read in a few milliseconds."""
METRIC_ATTEMPTS = 5
"""So many of the newest attempts are searched for the latest metrics."""

_DECODER: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


@dataclass(frozen=True)
class StageView:
    """One stage as it stands now."""

    number: int
    """From 1, in the order of the pipeline file."""
    config: StageConfig
    state: StageState
    progress: Progress | None = None
    """The last one told by the newest attempt that told any."""
    rate: float | None = None
    """Units per second over that attempt; None while unknown."""
    step_s: float | None = None
    """Seconds per optimizer step over that attempt."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each; the receipt's come last."""
    checkpoint: int | None = None
    """Step of the newest checkpoint."""
    result: Result | None = None
    """The receipt, when the stage succeeded."""
    step: int | None = None
    steps: int | None = None
    """Optimizer steps done and planned, as told last; None for a stage without any."""
    working: bool | None = None
    """Of a RUNNING stage: whether a process of its attempt is alive; None for others, or when it cannot be told."""

    @property
    def title(self) -> str:
        return self.config.title or self.config.name

    @property
    def share(self) -> float | None:
        """Of the work done, in [0, 1]; None when the total is unknown or nothing was told."""
        if self.state.state is Status.SUCCEEDED:
            return 1.0
        told = self.progress
        if told is None or not told.total or told.total <= 0:
            return None
        return min(1.0, max(0.0, told.done / told.total))

    def eta_s(self, now: float) -> float | None:
        """Seconds until the work told of is done, at the newest attempt's own pace; None unless it runs and the pace is known."""
        told = self.progress
        if self.working is False or self.state.state is not Status.RUNNING or told is None or not told.total or not self.rate:
            return None
        return max(0.0, (told.total - told.done) / self.rate - max(0.0, now - told.at))


@dataclass(frozen=True)
class View:
    """A run as it stands now."""

    run: RunState
    stages: tuple[StageView, ...]
    facts: tuple[Fact, ...]
    """The journal, with what is saved and not yet in it."""
    alive: bool | None
    """A daemon holds the workspace; None when that cannot be told."""

    @property
    def optional(self) -> frozenset[str]:
        return frozenset(stage.config.name for stage in self.stages if stage.config.optional)


@dataclass(frozen=True)
class AttemptHistory:
    """All that one attempt told, but for its heartbeats."""

    stage: str
    record: Attempt
    metrics: tuple[Metric, ...] = ()
    checkpoints: tuple[CheckpointSaved, ...] = ()
    notes: tuple[Note, ...] = ()


def read(workspace: Workspace) -> View:
    """The run in `workspace`.

    Raises:
        FileNotFoundError: there was never a run here.
        StateUnreadableError: state.json and its previous generation are both damaged.
    """
    run = _peek(workspace)
    stages = tuple(
        _stage_view(workspace, number, config, state)
        for number, (config, state) in enumerate(zip(run.pipeline.stages, run.stages, strict=True), start=1)
    )
    return View(run=run, stages=stages, facts=facts(workspace, run), alive=daemon_alive(workspace))


def read_history(workspace: Workspace, run: RunState) -> tuple[AttemptHistory, ...]:
    """Every attempt of the run with its events, in order: for the report, which may take its time."""
    histories = []
    for stage in run.stages:
        for record in stage.attempts:
            events = list(_decoded(_lines(workspace.attempt(stage.name, record.number).events)))
            histories.append(
                AttemptHistory(
                    stage=stage.name,
                    record=record,
                    metrics=tuple(event for event in events if isinstance(event, Metric)),
                    checkpoints=tuple(event for event in events if isinstance(event, CheckpointSaved)),
                    notes=tuple(event for event in events if isinstance(event, Note)),
                )
            )
    return tuple(histories)


def results(workspace: Workspace, run: RunState) -> dict[str, Result]:
    """The receipts of the stages that succeeded, in order."""
    read_ones = ((stage.name, _receipt(workspace, stage)) for stage in run.stages)
    return {name: receipt for name, receipt in read_ones if receipt is not None}


def facts(workspace: Workspace, run: RunState) -> tuple[Fact, ...]:
    """The journal in order, then what was saved with the run and has not reached the journal."""
    told = read_journal(workspace.journal)
    ids = {fact.id for fact in told}
    return (*told, *(fact for fact in run.untold if fact.id not in ids))


def daemon_alive(workspace: Workspace) -> bool | None:
    """Whether a daemon holds the workspace; None when that cannot be told."""
    return locks.held(workspace.lock)


def tail_lines(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log, of its last 2 MiB; of one that rewrites itself its last state. Empty when there is none."""
    text = _tail(path, TAIL_BYTES).decode("utf-8", "replace")
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")] if text else []
    return lines[-count:] if count > 0 else []


def _peek(workspace: Workspace) -> RunState:
    return Store(workspace.state).peek()


def _stage_view(workspace: Workspace, number: int, config: StageConfig, state: StageState) -> StageView:
    told = _told(workspace, state)
    first, last = _phase(told)
    stepped = [event for event in told if event.step is not None]
    receipt = _receipt(workspace, state)
    metrics = _latest_metrics(workspace, state) | (receipt.metrics if receipt else {})
    return StageView(
        number=number,
        config=config,
        state=state,
        progress=last,
        rate=_rate(first, last),
        step_s=_step_s(stepped),
        metrics=metrics,
        checkpoint=_newest_step(workspace, state.name),
        result=receipt,
        step=stepped[-1].step if stepped else None,
        steps=stepped[-1].steps if stepped else None,
        working=_working(workspace, state),
    )


def _newest_step(workspace: Workspace, stage: str) -> int | None:
    with contextlib.suppress(OSError):  # a folder that is being retired while we look
        return Checkpoints(workspace.checkpoints(stage)).newest_step()
    return None


def _receipt(workspace: Workspace, stage: StageState) -> Result | None:
    if stage.state is not Status.SUCCEEDED:
        return None  # a receipt of an earlier time counts no more
    try:
        return msgspec.json.decode(workspace.result(stage.name).read_bytes(), type=Result)
    except (OSError, msgspec.DecodeError):
        return None


def _working(workspace: Workspace, stage: StageState) -> bool | None:
    if stage.state is not Status.RUNNING or not stage.attempts:
        return None
    return locks.held(workspace.attempt(stage.name, stage.attempts[-1].number).lock)


def _told(workspace: Workspace, stage: StageState) -> list[Progress]:
    """What the newest attempt that told any progress told at its beginning and lately."""
    for attempt in reversed(stage.attempts):
        path = workspace.attempt(stage.name, attempt.number).events
        recent = _tail(path, TAIL_BYTES)
        early = _head(path, HEAD_BYTES) if len(recent) >= TAIL_BYTES - HEAD_BYTES else b""
        told = [event for event in (*_decoded(early), *_decoded(recent)) if isinstance(event, Progress)]
        if told:
            return told
    return []


def _phase(told: Sequence[Progress]) -> tuple[Progress | None, Progress | None]:
    """The first and the last progress of the phase of work now at hand: of one unit and one total."""
    if not told:
        return None, None
    last = told[-1]
    return min(
        (event for event in told if (event.unit, event.total) == (last.unit, last.total)), key=lambda event: event.done
    ), last


def _rate(first: Progress | None, last: Progress | None) -> float | None:
    if first is None or last is None or last.at <= first.at or last.done <= first.done:
        return None
    return (last.done - first.done) / (last.at - first.at)


def _step_s(stepped: Sequence[Progress]) -> float | None:
    if not stepped:
        return None
    first, last = stepped[0], stepped[-1]
    steps = (last.step or 0) - (first.step or 0)
    return (last.at - first.at) / steps if steps > 0 and last.at > first.at else None


def _latest_metrics(workspace: Workspace, stage: StageState) -> dict[str, float]:
    latest: dict[str, float] = {}
    for attempt in reversed(stage.attempts[-METRIC_ATTEMPTS:]):
        path = workspace.attempt(stage.name, attempt.number).events
        for event in _decoded(_tail(path, TAIL_BYTES)):
            if isinstance(event, Metric):
                latest |= event.values
        if latest:
            break
    return latest


def _decoded(data: bytes | Sequence[bytes]) -> Iterator[Event]:
    """The events among the lines; a torn line, or a kind this Vigil does not know, is passed over."""
    for line in data.splitlines() if isinstance(data, bytes) else data:
        with contextlib.suppress(msgspec.DecodeError):
            yield _DECODER.decode(line)


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


def _head(path: Path, size_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size_bytes)
    except OSError:
        return b""


def _tail(path: Path, size_bytes: int) -> bytes:
    """The end of a file; its first, perhaps cut, line is dropped when the file is longer."""
    try:
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - size_bytes))
            data = file.read()
    except OSError:
        return b""
    return data if length <= size_bytes else data.partition(b"\n")[2]

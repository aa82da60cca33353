"""`vigil rehearse`: every stage of the owner's pipeline, end to end, on a few items, before the owner leaves.

It is an ordinary run of the cut-down pipeline in WORKSPACE/rehearsal/run/, by the real supervisor, each stage killed once in its
middle (`stages.rehearse`). What was seen becomes estimates for the plan, a verdict, and the page WORKSPACE/rehearsal/ready.html.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import msgspec
import psutil
from msgspec.structs import replace

from daemon import host, locks
from daemon.before_leaving import demo, rehearse_page, rehearse_plan, rehearse_result
from daemon.before_leaving.rehearse_measure import Measured, Share, estimate, measure
from daemon.before_leaving.rehearse_result import Machine, Ready, hopeless
from daemon.inbox import new_command, submit
from daemon.planning.expectation import Known
from daemon.planning.forecast import foresee
from daemon.planning.foresight import history_file
from daemon.supervisor import Supervisor, open_run
from state.contract import CommandKind, Event, ExitCode, Outcome
from state.forecast import Estimate, durations, estimates, keep_estimates
from state.pipeline import Pipeline, StageConfig
from state.rehearsal import VARIABLE
from state.settings import Download
from state.snapshot import BackingOff, RunState, StageState
from state.store import Store
from state.workspace import Workspace

_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def rehearse(
    workspace: Workspace, pipeline: Pipeline, path: Path, *, only: Sequence[str], again: str, as_json: bool, columns: int
) -> int:
    """Rehearse `pipeline` (all of it, or the stages named and what they need) and say what came of it.

    `again` is the command that rehearses it once more.

    Returns:
        0: ready to leave; 1: not; 83: interrupted, nothing is known.

    Raises:
        BadCallError: there is no such stage, or a run is at work in the workspace.
        ConfigError: the deadline is past.
        WorkspaceBusyError: a rehearsal is at work already.
        OSError: the workspace cannot be written.
    """
    from daemon import cli, logs

    names = rehearse_plan.chosen(pipeline, only)
    if locks.held(workspace.lock):
        raise cli.BadCallError(f"a run is at work in {workspace.root}; rehearse before it begins, or end it with `vigil stop`")
    owner, _repair = open_run(Store(workspace.rehearsal / "none" / "state.json"), pipeline, path)  # refuses a deadline that is past
    few = rehearse_plan.cut_down(pipeline, names)
    rehearsal = Workspace(workspace.rehearsal / "run")
    rehearse_plan.clear(rehearsal)
    had = rehearse_plan.lend(workspace, rehearsal, few)
    logs.set_up(rehearsal, console=None)
    if not as_json:
        print(f"Vigil rehearsal of {pipeline.name}: every stage on a few items, killed once and resumed.")
        print(f"It runs in {rehearsal.root}; Ctrl-C ends it.\n", flush=True)
    os.environ[VARIABLE] = msgspec.json.encode(rehearse_plan.plan(pipeline)).decode()
    began = time.monotonic()
    run = _run(rehearsal, few, path, quiet=as_json)
    if not (run.finished or run.disk_hold):
        print("vigil: the rehearsal was interrupted; the same command begins it anew", file=sys.stderr)
        return ExitCode.STOPPED
    ready = judge(workspace, rehearsal, owner, run, had, again, time.monotonic() - began)
    page = rehearse_page.write(workspace, ready)
    rehearse_plan.tidy(rehearsal)
    if as_json:
        whole = {**rehearse_result.as_object(ready), "page": str(page)}
        print(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode())
    else:
        print("\n".join(["", *rehearse_result.text(ready, columns), "", f"The page: {page}"]))
    return 0 if ready.good else 1


# -- the run


class Rehearsal(Supervisor):
    """A watch that loses no time: it goes on at once after the kill, and gives up what fails again and again."""

    def __init__(self, workspace: Workspace, store: Store, run: RunState) -> None:
        super().__init__(workspace, store, run)
        self.held = ""
        """Why it was broken off: the disk is full."""
        self._asked: set[tuple[str, int]] = set()

    def tick(self) -> None:
        """One tick, and what follows from it."""
        super().tick()
        if self.run.disk_hold:
            self.held = self.run.disk_hold
            self._leave()
        for stage in self.run.stages:
            if isinstance(stage.status, BackingOff) and (stage.name, len(stage.attempts)) not in self._asked:
                self._asked.add((stage.name, len(stage.attempts)))
                self._hurry(stage, stage.status.outcome)

    def _hurry(self, stage: StageState, outcome: Outcome) -> None:
        if hopeless(stage):
            submit(self.workspace, new_command(CommandKind.SKIP, stage.name, by="rehearsal"), 0.0)
        elif outcome is Outcome.CRASHED:
            submit(self.workspace, new_command(CommandKind.RETRY, stage.name, by="rehearsal"), 0.0)


def _run(rehearsal: Workspace, few: Pipeline, path: Path, *, quiet: bool) -> RunState:
    """Run the cut-down pipeline to its end, shown live unless `quiet`."""
    lock = locks.take(rehearsal.lock)
    try:
        store = Store(rehearsal.state)
        run, _repair = open_run(store, few, path)
        watch = Rehearsal(rehearsal, store, run)
        with nullcontext() if quiet else demo.watched(rehearsal):
            watch.watch()
        return replace(watch.run, disk_hold=watch.held)
    finally:
        os.close(lock)


# -- what came of it


def judge(workspace: Workspace, rehearsal: Workspace, owner: RunState, run: RunState, had: int, again: str, took_s: float) -> Ready:
    """Measure what the rehearsal left, keep the estimates, and judge. `owner` is the real run as it would begin."""
    now, pipeline = time.time(), owner.pipeline
    measured = {stage.name: _measured(rehearsal, pipeline, stage, had) for stage in run.stages if stage.attempts}
    shares = _shares(workspace, rehearsal, pipeline, measured, had)
    fresh: dict[str, Estimate] = {}
    for stage in pipeline.stages:
        if stage.name in measured and run.stage(stage.name).state == "SUCCEEDED":
            fresh[stage.name] = estimate(stage, measured[stage.name], shares.get(stage.module, Share()), now)
    keep_estimates(workspace, list(fresh.values()))
    stages = rehearse_result.found(pipeline, run, measured, fresh)
    machine, forecast = read_machine(), foresee(owner, Known({}, estimates(workspace), durations(history_file())), now)
    look = f"./vigil log --workspace {rehearsal.root}"
    return Ready(
        pipeline=pipeline.name,
        at=now,
        took_s=took_s,
        machine=machine,
        stages=stages,
        advice=rehearse_result.advise(stages, machine, forecast, look, again),
        forecast=forecast,
    )


def _measured(rehearsal: Workspace, pipeline: Pipeline, stage: StageState, had: int) -> Measured:
    told = [_events(rehearsal.attempt(stage.name, attempt.number).events) for attempt in stage.attempts]
    downloads = pipeline.stage(stage.name).module == "stages.download"
    return measure(stage.attempts, told, had if downloads else 0)


def _events(path: Path) -> list[Event]:
    """What an attempt said; a torn last line is passed over."""
    found: list[Event] = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(_EVENTS.decode(line))
    return found


def _shares(
    workspace: Workspace, rehearsal: Workspace, pipeline: Pipeline, measured: dict[str, Measured], had: int
) -> dict[str, Share]:
    """How much more the stages that follow from the recordings have to do, by module."""
    download = next((stage for stage in pipeline.stages if stage.module == "stages.download"), None)
    there, here = (rehearse_plan.recordings(one.raw_audio) for one in (workspace, rehearsal))
    if not here:
        return {}
    newest = _newest(download) if download is not None else len(there)
    fresh = len(here) - had
    left = Share(times=max(0, newest - len(there)) / fresh if fresh else 1.0)
    if len(there) >= newest:
        audio = Share(times=sum(map(_size, there)) / max(1, sum(map(_size, here))))
    else:
        audio = Share(times=newest / len(here), words=f"taking {newest} recordings to be like the {len(here)} here")
    cuts = [measured[one.name].cut for one in pipeline.stages if one.module == "stages.transcribe" and one.name in measured]
    segments = cuts[0].whole / cuts[0].here if cuts and cuts[0] is not None and cuts[0].here else 1.0
    heard = Share(times=audio.times * segments, words=audio.words)
    return {"stages.download": left, "stages.preprocess": audio, "stages.transcribe": audio, "stages.train_whisper": heard}


def _newest(stage: StageConfig) -> int:
    return msgspec.convert(stage.settings, Download).newest


def _size(path: Path) -> int:
    return path.stat().st_size


def read_machine() -> Machine:
    """Memory and the first GPU."""
    gpu = next(iter(host.read_gpus() or ()), None)
    total_bytes = psutil.virtual_memory().total
    return Machine(memory_bytes=total_bytes, gpu=gpu.name if gpu else "", gpu_bytes=gpu.memory_total_bytes if gpu else None)

"""The tick: observe, decide, save, act. The only writer of state.json, and the holder of vigil.lock."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import structlog
from msgspec.structs import replace

from daemon import clock, energy, host, locks, policy, pulse, report
from daemon.config import ConfigError
from daemon.effects import Effect, Heard, Launch, Leave, Reclaim, Reply, Seen, Stop, Tell
from daemon.ending import Sight
from daemon.inbox import Inbox
from daemon.launcher import Launcher
from daemon.notify import Notifier
from daemon.planning import deadline
from daemon.planning.foresight import Foresight
from daemon.reclaim import reclaim
from daemon.results.rendering import Rendering
from state.contract import ExitCode
from state.pipeline import Pipeline
from state.snapshot import Fact, Running, RunState, StageState
from state.store import Journal, Store, read_journal
from state.workspace import Workspace

TICK_S = 1.0
LAST_WORDS_S = 5.0
"""What the bot has for its last messages before the daemon ends."""

log = structlog.get_logger()


class WorkspaceBusyError(Exception):
    """Another daemon holds the workspace."""


class WorkspaceMismatchError(Exception):
    """The workspace holds the run of another pipeline."""


def watch_over(
    workspace: Workspace, pipeline: Pipeline, pipeline_path: Path, *, with_report: bool = True, with_bot: bool = False
) -> int:
    """Run `pipeline` in `workspace` to its end, going on where an earlier run stopped; then render the report.

    `with_bot`: tell the owner by Telegram, if a bot is paired.

    Returns:
        0 when no required stage failed, 1 when one did, 83 when it was told to stop before the end.

    Raises:
        WorkspaceBusyError, WorkspaceMismatchError: nothing was changed.
        StateUnreadableError: from the store; nothing was changed.
        OSError: the workspace cannot be written.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    try:
        lock = locks.take(workspace.lock)
    except locks.LockHeldError as error:
        raise WorkspaceBusyError(
            f"another daemon runs in {workspace.root}; look with `vigil status`, end it with `vigil stop`"
        ) from error
    try:
        store = Store(workspace.state)
        run, repair = open_run(store, pipeline, pipeline_path)
        with _told(workspace) if with_bot else nullcontext():
            rendering = Rendering(workspace) if with_report else None
            code = Supervisor(workspace, store, run, rendering).watch(repair)
            if rendering is not None and code != ExitCode.STOPPED:  # a stop must be quick; `vigil report` renders at any time
                rendering.finish()
        return code
    finally:
        os.close(lock)


@contextmanager
def _told(workspace: Workspace) -> Iterator[None]:
    """Have the bot follow the run; what it could not send in the end waits for its next start."""
    from daemon.phone.bot import attend  # late: a run without a bot does not pay for it

    bot = attend(workspace)
    try:
        yield
    finally:
        if bot is not None:
            bot.stop(LAST_WORDS_S)


def open_run(store: Store, pipeline: Pipeline, pipeline_path: Path) -> tuple[RunState, str]:
    """The run saved in `store` with `pipeline` laid over it, or a new one, and what had to be repaired.

    Raises:
        WorkspaceMismatchError: the saved run is of another pipeline, or has worked on a stage that is gone from it.
        ConfigError: the deadline is a date that is not after the run's start.
    """
    if not store.exists():
        at = time.time()
        run_id = time.strftime("%Y%m%d-%H%M%S", time.gmtime(at))
        stages = tuple(StageState(name=stage.name) for stage in pipeline.stages)
        run = RunState(id=run_id, pipeline=pipeline, pipeline_path=str(pipeline_path), started_at=at, stages=stages)
        return replace(run, deadline_at=_deadline_at(run)), ""
    loaded = store.load()
    run = loaded.run
    if run.pipeline.name != pipeline.name:
        raise WorkspaceMismatchError(
            f"{store.path.parent} holds a run of pipeline {run.pipeline.name!r}, not {pipeline.name!r}; choose another --workspace"
        )
    kept = {stage.name: stage for stage in run.stages}
    gone = [name for name, stage in kept.items() if stage.attempts and name not in {s.name for s in pipeline.stages}]
    if gone:
        raise WorkspaceMismatchError(
            f"{pipeline_path} no longer has {', '.join(gone)}, which this run has begun; put it back or choose another --workspace"
        )
    stages = tuple(kept.get(stage.name, StageState(name=stage.name)) for stage in pipeline.stages)
    was = run.pipeline.deadline
    run = replace(run, pipeline=pipeline, pipeline_path=str(pipeline_path), stages=stages)
    if pipeline.deadline != was:
        run = replace(run, deadline_at=_deadline_at(run), plan=None)
    return (run if run.finished else replace(run, finished_at=None)), loaded.repair


def _deadline_at(run: RunState) -> float | None:
    """The instant of the pipeline's deadline, counted from the run's start."""
    try:
        return deadline.instant(run.pipeline.deadline, run.started_at) if run.pipeline.deadline is not None else None
    except deadline.DeadlineError as error:
        raise ConfigError(f"{run.pipeline_path}: {error} - at `$.deadline`") from error


class Supervisor:
    """One daemon's watch over one run."""

    def __init__(self, workspace: Workspace, store: Store, run: RunState, rendering: Rendering | None = None) -> None:
        self.workspace = workspace
        self.store = store
        self.run = run
        self.journal = Journal(workspace.journal)
        self.launcher = Launcher(workspace)
        self.inbox = Inbox(workspace)
        self.disks = host.DiskWatch(workspace)
        self.foresight = Foresight(workspace)
        self.notifier = Notifier(os.environ)
        self._rendering = rendering
        self._aside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reclaim")
        self._reclaim: Future[int] | None = None
        self.leaving = False
        self._heard: tuple[Heard, ...] = ()
        """Heard and not yet saved: the disk refused."""
        self._trouble = ""

    def watch(self, repair: str = "") -> int:
        """Tick until the run is finished or the daemon is told to leave."""
        meter = energy.Meter(self.workspace, lambda: self.run)
        with _signals(self._leave):
            try:
                self._take(*policy.begin(self.run, clock.read(), self._damage(repair)))
                self.tick()  # also of a finished run: a retry may lie in control/
                while not self._over():
                    self.inbox.wait(TICK_S)
                    self.tick()
                    if self._rendering is not None:
                        self._rendering.go_on()
                self.notifier.ends()
            finally:
                if self._rendering is not None:
                    self._rendering.close()
                self.inbox.close()
                self.disks.close()
                meter.close()
                self.foresight.close()
                self._aside.shutdown(wait=True)
        return self._exit_code()

    def _damage(self, repair: str) -> list[str]:
        """What is broken on the disk and was not told yet."""
        told = {fact.text for fact in read_journal(self.workspace.journal) if fact.kind == "state.repaired"}
        found = [repair, self.journal.damage(self.run)]
        return [sentence for sentence in found if sentence and not any(sentence in text for text in told)]

    def tick(self) -> None:
        """Observe, decide, save, act. What the disk refuses is tried again with the next tick: nothing was done about it yet."""
        try:
            seen = self._observe()
            self._heard = seen.heard
            self._take(*policy.step(self.run, seen, clock.read()))
            self._heard, self._trouble = (), ""
            pulse.beat()
        except OSError as error:
            if str(error) != self._trouble:
                log.error("tick.failed", error=str(error))
            self._trouble = str(error)
        self.notifier.ticked(self.run, time.time(), leaving=self.leaving)

    def _observe(self) -> Seen:
        sights: list[Sight] = []
        heard: list[Heard] = list(self._heard)
        for stage in self._running():
            number = len(stage.attempts)
            sight = self.launcher.sight(stage.name, number)  # before its events: a dead attempt says no more
            heard += self.inbox.events(stage.name, number)
            sights.append(dataclasses.replace(sight, silence=self.inbox.silence(stage.name, number)))
        self.notifier.hear(heard)
        disks = {disk.path: disk.free_bytes for disk in self.disks.latest() or ()}
        windows_bytes = disks.pop(str(host.WINDOWS_DRIVE), None)
        return Seen(
            sights=tuple(sights),
            heard=tuple(heard),
            commands=self.inbox.commands(),
            leaving=self.leaving,
            free_bytes=next(iter(disks.values()), None),
            free_windows_bytes=windows_bytes,
            reclaimed_bytes=self._reclaimed(),
            forecast=self.foresight.follow(self.run, heard),
        )

    def _reclaimed(self) -> int | None:
        """What the last reclaim brought, once."""
        ended = self._reclaim
        if ended is None or not ended.done():
            return None
        self._reclaim = None
        try:
            return ended.result()
        except OSError as error:
            log.warning("reclaim.failed", error=str(error))
            return None

    def _take(self, run: RunState, effects: list[Effect]) -> None:
        if run != self.run:
            self.store.save(run)
        self.run = run
        for effect in effects:
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Launch():
                self.launcher.launch(effect)
            case Stop():
                self.launcher.stop(effect.stage, effect.attempt, effect.ask)
            case Reply():
                self.inbox.reply(effect.answer)
            case Leave():
                self.leaving = True
            case Reclaim():
                if self._reclaim is None:
                    self._reclaim = self._aside.submit(reclaim, self.workspace, effect)
            case Tell():
                self._tell(effect.fact)

    def _tell(self, fact: Fact) -> None:
        """Journal a fact, then count it as told; one that the disk refuses stays untold."""
        fresh = self.journal.tell(fact)
        self.run = replace(self.run, untold=tuple(f for f in self.run.untold if f.id != fact.id))
        if not fresh or fact.level == "debug":
            return
        getattr(log, fact.level)(fact.kind, text=fact.text)
        if self._rendering is not None:
            self._rendering.hear(fact)
        lines = report.progress_lines(self.run, fact)
        if lines:
            with open(self.workspace.progress_log, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def _running(self) -> list[StageState]:
        return [stage for stage in self.run.stages if isinstance(stage.status, Running)]

    def _over(self) -> bool:
        return not self._running() and (self.leaving or self.run.finished)

    def _leave(self) -> None:
        self.leaving = True
        self.inbox.wake()

    def _exit_code(self) -> int:
        if not self.run.finished:
            return ExitCode.STOPPED
        return 1 if self.run.failed_required else 0


@contextmanager
def _signals(leave: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C ask the daemon to leave; the handlers before are put back."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        leave()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""PURE: what the daemon decides. `step(run, seen, now)` gives the next run and the effects to perform; nothing here touches a file.

The order of a step is fixed: facts of the attempts, commands, endings, overdue stops, hangs, stages left out, launches, the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

from msgspec.structs import replace

from daemon.clock import Now
from daemon.ending import Ending, Sight, classify
from daemon.ladder import next_rung
from state.contract import Answer, Command, CommandKind, Event, MemoryFit, Note, Outcome, Spec
from state.machine import Status, Trigger, advance
from state.pipeline import StageConfig
from state.snapshot import (
    Attempt,
    BackingOff,
    Fact,
    Failed,
    Intent,
    Pending,
    Running,
    RunState,
    Skipped,
    StageState,
    StageStatus,
    Start,
    Succeeded,
)

TRANSIENT_DELAYS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
CRASH_DELAYS_S = (5.0, 20.0, 60.0, 180.0)
DISK_DELAY_S = 300.0
MAX_DIVERGENCES = 3
ANSWERS_KEPT = 200


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


Effect = Launch | Stop | Tell | Reply | Leave


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


@dataclass
class _Step:
    """The run in the making, and what is to be done about it."""

    run: RunState
    now: Now
    effects: list[Effect] = field(default_factory=list)

    def stage(self, name: str) -> StageState:
        return self.run.stage(name)

    def put(self, stage: StageState) -> None:
        self.run = replace(self.run, stages=tuple(stage if s.name == stage.name else s for s in self.run.stages))

    def move(self, stage: StageState, trigger: Trigger, status: StageStatus, **changes: Any) -> StageState:
        """Move a stage along the lifecycle's table; an illegal move raises."""
        moved = replace(stage, status=status, **changes)
        if moved.state is not advance(stage.state, trigger):
            raise AssertionError(f"{trigger} of {stage.name} led to {moved.state}")
        self.put(moved)
        return moved

    def tell(self, kind: str, text: str, *, level: str = "info", stage: str | None = None, **fields: Any) -> None:
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
        self.run = replace(self.run, untold=(*self.run.untold, fact))
        self.effects.append(Tell(fact))

    def answer(self, command: Command, ok: bool, text: str) -> None:
        self.effects.append(Reply(Answer(id=command.id, ok=ok, text=text, at=self.now.at)))


def step(run: RunState, seen: Seen, now: Now) -> tuple[RunState, list[Effect]]:
    """Decide. The caller saves the run before it performs the effects, and takes the facts told out of `untold`."""
    work = _renew(run, now)
    for heard in seen.heard:
        _listen(work, heard)
    for command in seen.commands:
        _obey(work, command)
    if seen.leaving:
        _hold_all(work, "the daemon is leaving")
    for sight in seen.sights:
        _look(work, sight)
    _leave_out(work)
    if not (seen.leaving or work.run.paused):
        _launch(work)
    _finish(work)
    return work.run, work.effects


def begin(run: RunState, now: Now, repair: str = "") -> tuple[RunState, list[Effect]]:
    """The first step of a daemon on a run."""
    work = _renew(run, now)
    again = bool(run.starts)
    work.run = replace(work.run, starts=(*run.starts, Start(at=now.at, boot=now.boot)))
    if repair:
        work.tell("state.repaired", f"state.json was damaged: {repair}", level="warning")
    if not again:
        work.tell("run.started", f"run {run.id} of pipeline {run.pipeline.name} started")
    elif not run.finished:
        rebooted = run.starts[-1].boot != now.boot
        work.tell("run.resumed", f"run {run.id} goes on{' after a restart of the machine' if rebooted else ''}", rebooted=rebooted)
    return work.run, work.effects


def _renew(run: RunState, now: Now) -> _Step:
    """A step on `run` that begins by telling what was decided before and not told."""
    work = _Step(replace(run, untold=()), now)
    for fact in run.untold:
        work.say(fact)
    return work


# -- what attempts say


def _listen(work: _Step, heard: Heard) -> None:
    event = heard.event
    if isinstance(event, MemoryFit):
        stage = work.stage(heard.stage)
        if stage.batch.micro_batch != event.micro_batch:
            work.put(replace(stage, batch=replace(stage.batch, micro_batch=event.micro_batch)))
        text, level, fields = (
            f"micro-batch {event.micro_batch} fits {event.model}: {event.reason}",
            "info",
            {"device": event.device},
        )
    elif isinstance(event, Note):
        text, level, fields = event.text, event.level, event.fields
    else:
        return
    identity = f"{heard.stage}/{heard.attempt:03d}@{heard.offset}"
    work.say(
        Fact(
            id=identity,
            at=event.at,
            kind="attempt.noted",
            text=text,
            level=level,
            stage=heard.stage,
            attempt=heard.attempt,
            fields=fields,
        )
    )


# -- what the owner asks


def _obey(work: _Step, command: Command) -> None:
    if command.id in work.run.answered:
        work.answer(command, True, "already done")
        return
    work.run = replace(work.run, answered=(*work.run.answered, command.id)[-ANSWERS_KEPT:])
    ok, text = _COMMANDS[command.kind](work, command)
    work.answer(command, ok, text)
    work.tell(
        "command.answered",
        f"{command.kind}{f' {command.stage}' if command.stage else ''}: {text}",
        by=command.by,
        ok=ok,
        id=command.id,
    )


def _named(act: Callable[[_Step, Command, StageState], tuple[bool, str]], work: _Step, command: Command) -> tuple[bool, str]:
    names = [stage.name for stage in work.run.stages]
    if command.stage not in names:
        return False, f"no stage is called {command.stage!r}; there are {', '.join(names)}"
    return act(work, command, work.stage(command.stage))


def _skip(work: _Step, command: Command, stage: StageState) -> tuple[bool, str]:
    if stage.settled:
        return False, f"{stage.name} is {stage.state} already"
    if isinstance(stage.status, Running):
        grace_s = 5.0 if command.now else work.run.pipeline.stage(stage.name).grace_s
        _intend_stop(
            work, stage, stage.status, skip=True, reason=f"skipped by the owner ({command.by})", grace_s=grace_s, by=command.by
        )
        return True, f"{stage.name} stops at its next safe point and is skipped; its checkpoints are kept"
    _set_skipped(work, stage, f"skipped by the owner ({command.by})", by="owner")
    return True, f"{stage.name} is skipped"


def _retry(work: _Step, command: Command, stage: StageState) -> tuple[bool, str]:
    if isinstance(stage.status, BackingOff):
        work.put(replace(stage, status=replace(stage.status, due_monotonic_s=work.now.monotonic_s)))
        return True, f"{stage.name} is tried again at once"
    if stage.state not in (Status.FAILED, Status.SKIPPED):
        return False, f"{stage.name} is {stage.state}; only a failed, skipped or waiting stage can be retried"
    work.move(stage, Trigger.RESET, Pending(), tries=0)
    revived = _revive_dependents(work, stage.name)
    work.run = replace(work.run, finished_at=None)
    return True, f"{stage.name} is tried again from its newest checkpoint" + (f", then {', '.join(revived)}" if revived else "")


def _revive_dependents(work: _Step, name: str) -> list[str]:
    revived = []
    for stage in work.run.stages:
        status = stage.status
        if isinstance(status, Skipped) and status.by == "policy" and name in work.run.pipeline.stage(stage.name).needs:
            work.move(stage, Trigger.RESET, Pending(), tries=0)
            revived += [stage.name, *_revive_dependents(work, stage.name)]
    return revived


def _pause(work: _Step, command: Command) -> tuple[bool, str]:
    if work.run.paused:
        return False, "the run is paused already"
    work.run = replace(work.run, paused=True)
    _hold_all(work, f"paused by the owner ({command.by})")
    return True, "paused: running stages checkpoint and wait for `resume`"


def _resume(work: _Step, command: Command) -> tuple[bool, str]:
    if not work.run.paused:
        return False, "the run is not paused"
    work.run = replace(work.run, paused=False)
    return True, "the run goes on"


def _stop_run(work: _Step, command: Command) -> tuple[bool, str]:
    if work.run.starts and command.at < work.run.starts[-1].at:
        return False, "asked before this daemon started; ask again to end it"
    work.effects.append(Leave())
    return True, "running stages checkpoint, then the daemon ends; `vigil run` with the same pipeline goes on"


_COMMANDS: dict[CommandKind, Callable[[_Step, Command], tuple[bool, str]]] = {
    CommandKind.SKIP: partial(_named, _skip),
    CommandKind.RETRY: partial(_named, _retry),
    CommandKind.PAUSE: _pause,
    CommandKind.RESUME: _resume,
    CommandKind.STOP: _stop_run,
}


def _hold_all(work: _Step, reason: str) -> None:
    for stage in work.run.stages:
        if isinstance(stage.status, Running) and stage.status.intent is None:
            _intend_stop(work, stage, stage.status, skip=False, reason=reason, grace_s=work.run.pipeline.stage(stage.name).grace_s)


def _intend_stop(work: _Step, stage: StageState, status: Running, *, skip: bool, reason: str, grace_s: float, by: str = "") -> None:
    """Record why a running attempt shall end; `_watch` signals it from this step on, again each tick."""
    now = work.now
    intent = Intent(skip=skip, reason=reason, at=now.at, due_monotonic_s=now.monotonic_s + grace_s, boot=now.boot, by=by)
    work.put(replace(stage, status=replace(status, intent=intent)))


# -- what the daemon sees


def _look(work: _Step, sight: Sight) -> None:
    stage = work.stage(sight.stage)
    status = stage.status
    if not isinstance(status, Running) or sight.attempt != len(stage.attempts):
        return
    if sight.alive is None:
        return  # unknown never restarts anything
    if sight.alive:
        _watch(work, stage, status, sight)
        return
    ending = classify(sight, status)
    attempt = replace(
        stage.attempts[-1],
        ended_at=sight.ended_at or work.now.at,
        outcome=ending.outcome,
        reason=ending.reason,
        checkpoint_step=sight.checkpoint_step,
    )
    advanced = sight.checkpoint_step is not None and sight.checkpoint_step > max(
        (a.checkpoint_step or 0 for a in stage.attempts[:-1]), default=0
    )
    stage = replace(stage, attempts=(*stage.attempts[:-1], attempt), tries=0 if advanced else stage.tries)
    work.put(stage)
    _settle(work, stage, status, ending, sight)


def _watch(work: _Step, stage: StageState, status: Running, sight: Sight) -> None:
    intent = status.intent
    if intent is not None:
        overdue = intent.boot != work.now.boot or work.now.monotonic_s >= intent.due_monotonic_s
        work.effects.append(Stop(stage.name, sight.attempt, Ask.KILL if overdue else Ask.TERM))
        return
    limit_s = max(work.run.pipeline.stage(stage.name).silence_s, 1.5 * sight.quiet_s)
    if sight.silent_s > limit_s and status.killed_for is None:
        work.put(replace(stage, status=replace(status, killed_for=Outcome.HUNG)))
        work.tell(
            "attempt.hung",
            f"{stage.name} said nothing for {sight.silent_s:.0f} s (limit {limit_s:.0f} s): ended, to be tried again",
            level="warning",
            stage=stage.name,
        )
        work.effects.append(Stop(stage.name, sight.attempt, Ask.KILL))


def _settle(work: _Step, stage: StageState, status: Running, ending: Ending, sight: Sight) -> None:
    if ending.outcome is Outcome.SUCCEEDED and sight.receipt is not None:
        receipt = sight.receipt
        work.move(stage, Trigger.SUCCEED, Succeeded(at=receipt.at, summary=receipt.summary, metrics=receipt.metrics))
        work.tell("stage.succeeded", f"{stage.name} succeeded{f': {receipt.summary}' if receipt.summary else ''}", stage=stage.name)
    elif status.intent is not None and status.intent.skip:
        _set_skipped(work, stage, status.intent.reason, by="owner")
    elif ending.outcome is Outcome.STOPPED:
        _back_off(work, stage, ending, 0.0, counts=False)
    else:
        _ENDINGS[ending.outcome](work, stage, ending)


def _set_skipped(work: _Step, stage: StageState, reason: str, by: str) -> None:
    work.move(stage, Trigger.SKIP, Skipped(at=work.now.at, reason=reason, by=by))
    work.tell("stage.skipped", f"{stage.name} skipped: {reason}", level="info" if by == "owner" else "warning", stage=stage.name)


def _back_off(work: _Step, stage: StageState, ending: Ending, delay_s: float, *, counts: bool = True, **changes: Any) -> None:
    now = work.now
    waiting = BackingOff(
        since=now.at,
        delay_s=delay_s,
        due_monotonic_s=now.monotonic_s + delay_s,
        boot=now.boot,
        reason=ending.reason,
        outcome=ending.outcome,
    )
    work.move(stage, Trigger.BACK_OFF, waiting, tries=stage.tries + counts, **changes)
    quiet = ending.outcome in (Outcome.STOPPED, Outcome.INTERRUPTED)
    again = "goes on with the next start" if ending.outcome is Outcome.STOPPED else f"tried again in {delay_s:.0f} s"
    work.tell(
        "stage.backed_off",
        f"{stage.name}: {ending.reason}; {again}",
        level="info" if quiet else "warning",
        stage=stage.name,
        outcome=ending.outcome,
        delay_s=delay_s,
    )


def _fail(work: _Step, stage: StageState, ending: Ending, why: str = "") -> None:
    reason = f"{ending.reason}{f' ({why})' if why else ''}"
    work.move(stage, Trigger.FAIL, Failed(at=work.now.at, reason=reason, outcome=ending.outcome))
    optional = work.run.pipeline.stage(stage.name).optional
    work.tell(
        "stage.failed",
        f"{stage.name} failed{' (a bonus: the run goes on)' if optional else ''}: {reason}",
        level="warning" if optional else "error",
        stage=stage.name,
        outcome=ending.outcome,
    )


def _after_transient(work: _Step, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, TRANSIENT_DELAYS_S[min(stage.tries, len(TRANSIENT_DELAYS_S) - 1)])


def _after_crash(work: _Step, stage: StageState, ending: Ending) -> None:
    if stage.tries >= len(CRASH_DELAYS_S):
        _fail(work, stage, ending, f"{stage.tries + 1} times without a new checkpoint")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[stage.tries])


def _after_interruption(work: _Step, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, 0.0, counts=False)


def _after_full_disk(work: _Step, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, DISK_DELAY_S)


def _after_out_of_memory(work: _Step, stage: StageState, ending: Ending) -> None:
    rung = next_rung(stage.batch, work.run.pipeline.stage(stage.name).settings)
    if rung is None:
        _fail(work, stage, ending, "the lowest rung of the memory ladder")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], counts=False, batch=rung)


def _after_divergence(work: _Step, stage: StageState, ending: Ending) -> None:
    if stage.tries >= MAX_DIVERGENCES:
        _fail(work, stage, ending, f"{stage.tries + 1} times, the last at {stage.learning_rate_scale:g} of the learning rate")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], learning_rate_scale=stage.learning_rate_scale / 2)


_ENDINGS: dict[Outcome, Callable[[_Step, StageState, Ending], None]] = {
    Outcome.TRANSIENT: _after_transient,
    Outcome.CRASHED: _after_crash,
    Outcome.HUNG: _after_crash,
    Outcome.INTERRUPTED: _after_interruption,
    Outcome.DISK_FULL: _after_full_disk,
    Outcome.OUT_OF_MEMORY: _after_out_of_memory,
    Outcome.DIVERGED: _after_divergence,
    Outcome.MISCONFIGURED: _fail,
}


# -- what starts next


def _leave_out(work: _Step) -> None:
    """Skip every stage that needs one which did not succeed, transitively."""
    changed = True
    while changed:
        changed = False
        for stage in work.run.stages:
            if stage.state is not Status.PENDING:
                continue
            for need in work.run.pipeline.stage(stage.name).needs:
                other = work.stage(need)
                if other.settled and other.state is not Status.SUCCEEDED:
                    _set_skipped(work, stage, f"it needs {need}, which is {other.state}", by="policy")
                    changed = True
                    break


def _launch(work: _Step) -> None:
    """Start, in listed order, every stage whose needs are met and whose resource is free."""
    pipeline = work.run.pipeline
    waiting = {pipeline.stage(s.name).resource: s.name for s in work.run.stages if _keeps_resource(s)}
    running = {pipeline.stage(s.name).resource: s.name for s in work.run.stages if isinstance(s.status, Running)}
    taken = {**waiting, **running}
    for stage in work.run.stages:
        config = pipeline.stage(stage.name)
        if not _ready(work, stage, config):
            continue
        if taken.setdefault(config.resource, stage.name) == stage.name:  # its own wait keeps it for itself
            _start(work, stage, config)


def _keeps_resource(stage: StageState) -> bool:
    """A short wait keeps the resource, lest a 26-hour stage slips in; a wait for the world does not."""
    return isinstance(stage.status, BackingOff) and stage.status.outcome not in (Outcome.TRANSIENT, Outcome.DISK_FULL)


def _ready(work: _Step, stage: StageState, config: StageConfig) -> bool:
    status = stage.status
    if isinstance(status, BackingOff):
        return status.boot != work.now.boot or work.now.monotonic_s >= status.due_monotonic_s
    return (
        isinstance(status, Pending)
        and all(work.stage(need).state is Status.SUCCEEDED for need in config.needs)
        and all(work.stage(other).settled for other in config.after)
    )


def _start(work: _Step, stage: StageState, config: StageConfig) -> None:
    number = len(stage.attempts) + 1
    work.move(
        stage,
        Trigger.START,
        Running(since=work.now.at),
        attempts=(*stage.attempts, Attempt(number=number, started_at=work.now.at)),
    )
    spec = Spec(
        run_id=work.run.id,
        stage=stage.name,
        module=config.module,
        attempt=number,
        workspace="",  # the launcher knows where the run lies; a moved workspace stays usable
        settings=config.settings,
        seed=config.seed,
        batch=stage.batch,
        learning_rate_scale=stage.learning_rate_scale,
        skip_examples=stage.skip_examples,
    )
    work.effects.append(Launch(spec, work.run.pipeline.number(stage.name)))
    work.tell("stage.started", f"{stage.name} started (attempt {number})", stage=stage.name)


def _finish(work: _Step) -> None:
    run = work.run
    if not run.finished or run.finished_at is not None:
        return
    work.run = replace(run, finished_at=work.now.at)
    counts = {status: sum(s.state is status for s in run.stages) for status in (Status.SUCCEEDED, Status.FAILED, Status.SKIPPED)}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    work.tell("run.finished", f"run {run.id} finished: {words}", level="error" if run.failed_required else "info")

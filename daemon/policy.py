"""PURE: what the daemon decides. `step(run, seen, now)` gives the next run and the effects to perform; nothing here touches a file.

The order of a step is fixed: facts of the attempts, commands, endings, overdue stops, hangs, stages left out, launches, the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from daemon.clock import Now
from daemon.effects import Ask, Effect, Heard, Launch, Seen, Stop, Work
from daemon.ending import Ending, Sight, classify
from daemon.ladder import next_rung
from daemon.orders import obey
from state.contract import MemoryFit, Note, Outcome, Spec
from state.machine import Status, Trigger
from state.pipeline import StageConfig
from state.snapshot import Attempt, BackingOff, Fact, Failed, Pending, Running, RunState, StageState, Start, Succeeded

TRANSIENT_DELAYS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
CRASH_DELAYS_S = (5.0, 20.0, 60.0, 180.0)
DISK_DELAY_S = 300.0
MAX_DIVERGENCES = 3


def step(run: RunState, seen: Seen, now: Now) -> tuple[RunState, list[Effect]]:
    """Decide. The caller saves the run before it performs the effects, and takes the facts told out of `untold`."""
    work = _renew(run, now)
    for heard in seen.heard:
        _listen(work, heard)
    for command in seen.commands:
        obey(work, command)
    if seen.leaving:
        work.hold_all("the daemon is leaving")
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


def _renew(run: RunState, now: Now) -> Work:
    """A step on `run` that begins by telling what was decided before and not told."""
    work = Work(replace(run, untold=()), now)
    for fact in run.untold:
        work.say(fact)
    return work


# -- what attempts say


def _listen(work: Work, heard: Heard) -> None:
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


# -- what the daemon sees


def _look(work: Work, sight: Sight) -> None:
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


def _watch(work: Work, stage: StageState, status: Running, sight: Sight) -> None:
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


def _settle(work: Work, stage: StageState, status: Running, ending: Ending, sight: Sight) -> None:
    if ending.outcome is Outcome.SUCCEEDED and sight.receipt is not None:
        receipt = sight.receipt
        work.move(stage, Trigger.SUCCEED, Succeeded(at=receipt.at, summary=receipt.summary, metrics=receipt.metrics))
        work.tell("stage.succeeded", f"{stage.name} succeeded{f': {receipt.summary}' if receipt.summary else ''}", stage=stage.name)
    elif status.intent is not None and status.intent.skip:
        work.leave_out(stage, status.intent.reason, by="owner")
    elif ending.outcome is Outcome.STOPPED:
        _back_off(work, stage, ending, 0.0, counts=False)
    else:
        _ENDINGS[ending.outcome](work, stage, ending)


def _back_off(work: Work, stage: StageState, ending: Ending, delay_s: float, *, counts: bool = True, **changes: Any) -> None:
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
        f"{stage.name}: {ending.reason.rstrip('.')}; {again}",
        level="info" if quiet else "warning",
        stage=stage.name,
        outcome=ending.outcome,
        delay_s=delay_s,
    )


def _fail(work: Work, stage: StageState, ending: Ending, why: str = "") -> None:
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


def _after_transient(work: Work, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, TRANSIENT_DELAYS_S[min(stage.tries, len(TRANSIENT_DELAYS_S) - 1)])


def _after_crash(work: Work, stage: StageState, ending: Ending) -> None:
    if stage.tries >= len(CRASH_DELAYS_S):
        _fail(work, stage, ending, f"{stage.tries + 1} times without a new checkpoint")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[stage.tries])


def _after_interruption(work: Work, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, 0.0, counts=False)


def _after_full_disk(work: Work, stage: StageState, ending: Ending) -> None:
    _back_off(work, stage, ending, DISK_DELAY_S)


def _after_out_of_memory(work: Work, stage: StageState, ending: Ending) -> None:
    rung = next_rung(stage.batch, work.run.pipeline.stage(stage.name).settings)
    if rung is None:
        _fail(work, stage, ending, "the lowest rung of the memory ladder")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], counts=False, batch=rung)


def _after_divergence(work: Work, stage: StageState, ending: Ending) -> None:
    if stage.tries >= MAX_DIVERGENCES:
        _fail(work, stage, ending, f"{stage.tries + 1} times, the last at {stage.learning_rate_scale:g} of the learning rate")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], learning_rate_scale=stage.learning_rate_scale / 2)


_ENDINGS: dict[Outcome, Callable[[Work, StageState, Ending], None]] = {
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


def _leave_out(work: Work) -> None:
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
                    work.leave_out(stage, f"it needs {need}, which is {other.state}", by="policy")
                    changed = True
                    break


def _launch(work: Work) -> None:
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


def _ready(work: Work, stage: StageState, config: StageConfig) -> bool:
    status = stage.status
    if isinstance(status, BackingOff):
        return status.boot != work.now.boot or work.now.monotonic_s >= status.due_monotonic_s
    return (
        isinstance(status, Pending)
        and all(work.stage(need).state is Status.SUCCEEDED for need in config.needs)
        and all(work.stage(other).settled for other in config.after)
    )


def _start(work: Work, stage: StageState, config: StageConfig) -> None:
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


def _finish(work: Work) -> None:
    run = work.run
    if not run.finished or run.finished_at is not None:
        return
    work.run = replace(run, finished_at=work.now.at)
    counts = {status: sum(s.state is status for s in run.stages) for status in (Status.SUCCEEDED, Status.FAILED, Status.SKIPPED)}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    work.tell("run.finished", f"run {run.id} finished: {words}", level="error" if run.failed_required else "info")

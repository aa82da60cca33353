"""PURE: what the daemon decides. `step(run, seen, now)` gives the next run and the effects to perform; nothing here touches a file.

The order of a step is fixed: facts of the attempts, commands, the disk, endings, overdue stops, hangs, stages left out, the plan,
launches, the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from daemon import silence
from daemon.clock import Now
from daemon.consequences import hung_before, settle
from daemon.effects import Ask, Effect, Heard, Launch, Seen, Stop, Work
from daemon.ending import Sight, classify
from daemon.orders import obey
from daemon.planning.plan import admit, mind_the_plan
from daemon.planning.turns import cleared, keeps_resource, next_in_line
from daemon.space import mind_the_disk
from daemon.words import duration
from state.contract import Divergence, MemoryFit, Note, Outcome, Spec, fit_key
from state.machine import Status, Trigger
from state.pipeline import StageConfig
from state.snapshot import Attempt, BackingOff, Fact, Pending, Running, RunState, StageState, Start

_BAD = {Status.FAILED: "has failed", Status.SKIPPED: "is skipped"}


def step(run: RunState, seen: Seen, now: Now) -> tuple[RunState, list[Effect]]:
    """Decide. The caller saves the run before it performs the effects, and takes the facts told out of `untold`."""
    work = _renew(run, now, seen)
    for heard in seen.heard:
        _listen(work, heard)
    for command in seen.commands:
        obey(work, command)
    mind_the_disk(work)
    if seen.leaving:
        work.hold_all("the daemon is leaving")
    for sight in seen.sights:
        _look(work, sight)
    _leave_out(work)
    mind_the_plan(work)
    if not (seen.leaving or work.run.paused or work.run.disk_hold):
        _launch(work)
    _finish(work)
    return work.run, work.effects


def begin(run: RunState, now: Now, damage: Sequence[str] = ()) -> tuple[RunState, list[Effect]]:
    """The first step of a daemon on a run; `damage`: what was found broken on the disk, a sentence each."""
    work = _renew(run, now, Seen())
    again = bool(run.starts)
    work.run = replace(work.run, starts=(*run.starts, Start(at=now.at, boot=now.boot)))
    for sentence in damage:
        work.tell("state.repaired", f"damage on the disk: {sentence}", level="warning")
    if not again:
        work.tell("run.started", f"run {run.id} of pipeline {run.pipeline.name} started")
    elif not run.finished:
        rebooted = run.starts[-1].boot != now.boot
        work.tell("run.resumed", f"run {run.id} goes on{' after a restart of the machine' if rebooted else ''}", rebooted=rebooted)
    return work.run, work.effects


def _renew(run: RunState, now: Now, seen: Seen) -> Work:
    """A step on `run` that begins by telling what was decided before and not told."""
    work = Work(replace(run, untold=()), now, seen)
    for fact in run.untold:
        work.say(fact)
    return work


# -- what attempts say


def _listen(work: Work, heard: Heard) -> None:
    event = heard.event
    stage = work.stage(heard.stage)
    if isinstance(event, MemoryFit):
        work.put(replace(stage, fits={**stage.fits, fit_key(event.model, event.device): event.micro_batch}))
        text = f"{event.micro_batch} at a time fit {event.model}: {event.reason}"
        _note(work, heard, Note(at=event.at, text=text, fields={"device": event.device}))
    elif isinstance(event, Divergence):
        blamed = tuple(dict.fromkeys((*stage.skip_examples, *event.examples)))
        work.put(replace(stage, skip_examples=blamed))  # the stage's own note tells it
    elif isinstance(event, Note):
        _note(work, heard, event)


def _note(work: Work, heard: Heard, note: Note) -> None:
    """Make a fact of what an attempt said; its place in the events file is its id, so that it is told once."""
    identity = f"{heard.stage}/{heard.attempt:03d}@{heard.offset}"
    work.say(
        Fact(
            id=identity,
            at=note.at,
            kind="attempt.noted",
            text=note.text,
            level=note.level,
            stage=heard.stage,
            attempt=heard.attempt,
            fields=note.fields,
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
    settle(work, stage, status, ending, sight)


def _watch(work: Work, stage: StageState, status: Running, sight: Sight) -> None:
    intent = status.intent
    if intent is not None:
        overdue = intent.boot != work.now.boot or work.now.monotonic_s >= intent.due_monotonic_s
        work.effects.append(Stop(stage.name, sight.attempt, Ask.KILL if overdue else Ask.TERM))
        return
    if status.killed_for is not None:  # not dead yet: it hangs in a driver, or the signal met no process
        work.effects.append(Stop(stage.name, sight.attempt, Ask.KILL))
        return
    limit_s = silence.limit_s(sight.silence, work.run.pipeline.stage(stage.name).silence_s, hung_before(stage))
    silent_s = sight.silence.silent_s
    if silent_s > limit_s:
        work.put(replace(stage, status=replace(status, killed_for=Outcome.HUNG)))
        work.tell(
            "attempt.hung",
            f"{stage.name} said nothing for {duration(silent_s)} (limit {duration(limit_s)}): ended, to be tried again",
            level="warning",
            stage=stage.name,
        )
        work.effects.append(Stop(stage.name, sight.attempt, Ask.KILL))


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
                    work.leave_out(stage, f"it needs {need}, which {_BAD[other.state]}", by="policy")
                    changed = True
                    break


def _launch(work: Work) -> None:
    """Start whose turn it is; a bonus only if the plan has time for it."""
    pipeline = work.run.pipeline
    waiting = {pipeline.stage(s.name).resource: s.name for s in work.run.stages if keeps_resource(s)}
    running = {pipeline.stage(s.name).resource: s.name for s in work.run.stages if isinstance(s.status, Running)}
    turns = next_in_line(
        pipeline.stages, {**waiting, **running}, lambda config: _ready(work, config), lambda config: admit(work, config)
    )
    for config in turns:
        _start(work, work.stage(config.name), config)


def _ready(work: Work, config: StageConfig) -> bool:
    status = work.stage(config.name).status
    if isinstance(status, BackingOff):
        if status.needed_bytes and work.seen.free_bytes is not None:
            return work.seen.free_bytes >= status.needed_bytes
        return status.boot != work.now.boot or work.now.monotonic_s >= status.due_monotonic_s
    return isinstance(status, Pending) and cleared(
        config,
        succeeded=lambda name: work.stage(name).state is Status.SUCCEEDED,
        settled=lambda name: work.stage(name).settled,
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
        fits=stage.fits,
        deliver_best=stage.deliver_best,
        work_share=stage.work_share,
    )
    work.effects.append(Launch(spec, work.run.pipeline.number(stage.name)))
    work.tell("stage.started", f"{stage.name} started (attempt {number})", stage=stage.name)


def _finish(work: Work) -> None:
    run = work.run
    if not run.finished or run.finished_at is not None:
        return
    work.run = replace(run, finished_at=work.now.at)
    counts = {status: sum(s.state is status for s in run.stages) for status in (Status.SUCCEEDED, Status.FAILED, Status.SKIPPED)}
    words = ", ".join(f"{count} {str(status).lower()}" for status, count in counts.items() if count)
    work.tell("run.finished", f"run {run.id} finished: {words}", level="error" if run.failed_required else "info")

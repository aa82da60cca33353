"""PURE: what follows from an ending: the next stage, a wait, a lower rung, a lower rate, or giving up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import Any

from daemon.effects import Work
from daemon.ending import Ending, Sight
from daemon.ladder import next_rung
from daemon.space import reclaim
from daemon.words import duration, size
from state.contract import Outcome
from state.machine import Trigger
from state.snapshot import Attempt, BackingOff, Failed, Running, StageState, Succeeded

TRANSIENT_DELAYS_S = (15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
CRASH_DELAYS_S = (5.0, 20.0, 60.0, 180.0)
DISK_DELAY_S = 300.0
MAX_DIVERGENCES = 4
SUSPICIOUS_INTERRUPTIONS = 3


def settle(work: Work, stage: StageState, status: Running, ending: Ending, sight: Sight) -> None:
    """Move a stage whose attempt has ended to where its ending leads."""
    if ending.outcome is Outcome.SUCCEEDED and sight.receipt is not None:
        receipt = sight.receipt
        work.move(stage, Trigger.SUCCEED, Succeeded(at=receipt.at, summary=receipt.summary, metrics=receipt.metrics))
        work.tell("stage.succeeded", f"{stage.name} succeeded{f': {receipt.summary}' if receipt.summary else ''}", stage=stage.name)
    elif status.intent is not None and status.intent.skip:
        work.leave_out(stage, status.intent.reason, by="owner")
    elif ending.outcome is Outcome.STOPPED:
        _back_off(work, stage, replace(ending, reason=_why_stopped(status, ending)), 0.0, counts=False)
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
        needed_bytes=ending.needed_bytes,
    )
    work.move(stage, Trigger.BACK_OFF, waiting, tries=stage.tries + counts, **changes)
    quiet = ending.outcome in (Outcome.STOPPED, Outcome.INTERRUPTED)
    work.tell(
        "stage.backed_off",
        f"{stage.name}{_what_now(ending, delay_s)}",
        level="info" if quiet else "warning",
        stage=stage.name,
        outcome=ending.outcome,
        delay_s=delay_s,
    )


def _why_stopped(status: Running, ending: Ending) -> str:
    """A stage that leaves in good order knows only that it was asked to."""
    if status.intent is None:
        return "it was stopped, and not by Vigil"
    return ending.reason if ending.reason.startswith(status.intent.reason) else status.intent.reason


def _what_now(ending: Ending, delay_s: float) -> str:
    """Why a stage waits, and for what."""
    why = ending.reason.rstrip(".")
    if ending.outcome is Outcome.STOPPED:
        return f" is saved and waits: {why}"
    if ending.needed_bytes:
        return f": {why}; goes on once {size(ending.needed_bytes)} are free"
    return f": {why}; tried again {f'in {duration(delay_s)}' if delay_s else 'at once'}"


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
    """A power cut costs nothing. A stage under which the machine goes down again and again gets less memory: it may be why."""
    newest = stage.attempts[-1]
    fruitless = _in_a_row(stage, lambda a: a.outcome is Outcome.INTERRUPTED and a.checkpoint_step == newest.checkpoint_step)
    lower = next_rung(stage.batch, work.run.pipeline.stage(stage.name).settings, stage.fits)
    suspicious = fruitless % SUSPICIOUS_INTERRUPTIONS == 0
    _back_off(work, stage, ending, 0.0, counts=False, batch=lower if lower is not None and suspicious else stage.batch)


def _after_full_disk(work: Work, stage: StageState, ending: Ending) -> None:
    """Never counts: only the owner can make a disk larger. What may go by rule goes at once."""
    _back_off(work, stage, ending, DISK_DELAY_S, counts=False)
    reclaim(work)


def _after_out_of_memory(work: Work, stage: StageState, ending: Ending) -> None:
    rung = next_rung(stage.batch, work.run.pipeline.stage(stage.name).settings, stage.fits)
    if rung is None:
        _fail(work, stage, ending, "nothing smaller is left to try")
    else:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], counts=False, batch=rung)


def _after_divergence(work: Work, stage: StageState, ending: Ending) -> None:
    """Lower the rate a bounded number of times, over the whole stage; then deliver the best there is."""
    count = stage.divergences + 1
    if stage.deliver_best:
        _fail(work, stage, ending, f"{count} times, and there are no good weights to deliver")
    elif count > MAX_DIVERGENCES:
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], counts=False, divergences=count, deliver_best=True)
    else:
        scale = stage.learning_rate_scale / 2
        _back_off(work, stage, ending, CRASH_DELAYS_S[0], counts=False, divergences=count, learning_rate_scale=scale)


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


def hung_before(stage: StageState) -> int:
    """How many attempts in a row, up to the running one, were ended for their silence."""
    return _in_a_row(stage, lambda attempt: attempt.outcome is Outcome.HUNG)


def _in_a_row(stage: StageState, like: Callable[[Attempt], bool]) -> int:
    """How many ended attempts, counted from the newest, are `like` that."""
    return len(list(takewhile(like, (a for a in reversed(stage.attempts) if a.outcome is not None))))

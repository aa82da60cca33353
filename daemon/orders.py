"""PURE: what the owner asks, and what becomes of it. Each command acts once and is answered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from daemon.effects import Leave, Work
from state.contract import Command, CommandKind
from state.machine import Status, Trigger
from state.snapshot import BackingOff, Pending, Running, Skipped, StageState

ANSWERS_KEPT = 200
NOW_GRACE_S = 5.0
"""What is skipped now has so long from SIGTERM to SIGKILL."""


def obey(work: Work, command: Command) -> None:
    """Carry out `command`, unless it was, and answer it."""
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


def _named(act: Callable[[Work, Command, StageState], tuple[bool, str]], work: Work, command: Command) -> tuple[bool, str]:
    names = [stage.name for stage in work.run.stages]
    if command.stage not in names:
        return False, f"no stage is called {command.stage!r}; there are {', '.join(names)}"
    return act(work, command, work.stage(command.stage))


def _skip(work: Work, command: Command, stage: StageState) -> tuple[bool, str]:
    if stage.settled:
        return False, f"{stage.name} is {stage.state} already"
    if isinstance(stage.status, Running):
        grace_s = NOW_GRACE_S if command.now else work.run.pipeline.stage(stage.name).grace_s
        reason = f"skipped by the owner ({command.by})"
        work.intend_stop(stage, stage.status, skip=True, reason=reason, grace_s=grace_s, by=command.by)
        return True, f"{stage.name} stops at its next save and is skipped; what is saved stays"
    work.leave_out(stage, f"skipped by the owner ({command.by})", by="owner")
    return True, f"{stage.name} is skipped"


def _retry(work: Work, command: Command, stage: StageState) -> tuple[bool, str]:
    if isinstance(stage.status, BackingOff):
        work.put(replace(stage, status=replace(stage.status, due_monotonic_s=work.now.monotonic_s, needed_bytes=0)))
        return True, f"{stage.name} is tried again at once"
    if stage.state not in (Status.FAILED, Status.SKIPPED):
        return False, f"{stage.name} is {stage.state}; only a failed, skipped or waiting stage can be retried"
    work.move(stage, Trigger.RESET, Pending(), tries=0, divergences=0, deliver_best=False, insisted=True)
    revived = _revive_dependents(work, stage.name, insisted=work.run.pipeline.stage(stage.name).optional)
    work.run = replace(work.run, finished_at=None)
    return True, f"{stage.name} is tried again from its newest checkpoint" + (f", then {', '.join(revived)}" if revived else "")


def _revive_dependents(work: Work, name: str, *, insisted: bool) -> list[str]:
    revived = []
    for stage in work.run.stages:
        status = stage.status
        if isinstance(status, Skipped) and status.by == "policy" and name in work.run.pipeline.stage(stage.name).needs:
            work.move(stage, Trigger.RESET, Pending(), tries=0, insisted=insisted)
            revived += [stage.name, *_revive_dependents(work, stage.name, insisted=insisted)]
    return revived


def _pause(work: Work, command: Command) -> tuple[bool, str]:
    if work.run.paused:
        return False, "the run is paused already"
    work.run = replace(work.run, paused=True)
    work.hold_all(f"paused by the owner ({command.by})")
    return True, "what runs is saved, then waits for `resume`"


def _resume(work: Work, command: Command) -> tuple[bool, str]:
    if not work.run.paused:
        return False, "the run is not paused"
    work.run = replace(work.run, paused=False)
    return True, "the run goes on"


def _stop_run(work: Work, command: Command) -> tuple[bool, str]:
    if work.run.starts and command.at < work.run.starts[-1].at:
        return False, "asked before this daemon started; ask again to end it"
    work.effects.append(Leave())
    return True, "what runs is saved, then Vigil ends; `vigil run` with the same pipeline goes on"


_COMMANDS: dict[CommandKind, Callable[[Work, Command], tuple[bool, str]]] = {
    CommandKind.SKIP: partial(_named, _skip),
    CommandKind.RETRY: partial(_named, _retry),
    CommandKind.PAUSE: _pause,
    CommandKind.RESUME: _resume,
    CommandKind.STOP: _stop_run,
}

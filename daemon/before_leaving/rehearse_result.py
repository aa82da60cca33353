"""PURE: what a rehearsal found, stage by stage, whether the owner can leave, what to mend first, and all of it in words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from daemon import words
from daemon.before_leaving.rehearse_measure import Measured
from state.contract import Outcome
from state.forecast import Estimate, Forecast
from state.machine import Status
from state.pipeline import Pipeline, StageConfig
from state.snapshot import RunState, StageState

State = Literal["rehearsed", "failed", "not rehearsed", "not asked for"]

MOST_TRIES = 2
"""Bad endings of one kind after which the rehearsal goes on without the stage; the run itself is more patient."""
ENOUGH_MEMORY = 0.9
"""Of the machine's: with more in use the real run is at risk."""
PLANNED_END = "ended by SIGKILL"
LOST_CAUSES = frozenset({Outcome.TRANSIENT, Outcome.DISK_FULL, Outcome.CRASHED, Outcome.HUNG})
NEXT: dict[Outcome, str] = {
    Outcome.TRANSIENT: "See that the network and the site answer, then rehearse the stage again.",
    Outcome.DISK_FULL: "Free some space, then rehearse the stage again.",
    Outcome.OUT_OF_MEMORY: "It does not fit, even at the lowest rung of the memory ladder: lower max_tokens, or choose a smaller "
    "model, then rehearse it again.",
    Outcome.MISCONFIGURED: "Correct that, then rehearse the stage again.",
}
LOOK = "Look at what it said, then rehearse it again."


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to be used."""

    memory_bytes: int
    gpu: str = ""
    gpu_bytes: int | None = None


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one stage."""

    stage: str
    title: str
    optional: bool
    state: State
    reason: str = ""
    outcome: Outcome | None = None
    """How the last attempt ended."""
    resumed: bool | None = None
    """Whether it went on after the kill; None: it was over before it could be killed, or never began."""
    measured: Measured | None = None
    estimate: Estimate | None = None


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to mend."""

    level: Literal["red", "yellow"]
    text: str
    commands: tuple[str, ...] = ()


class Ready(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    pipeline: str
    at: float
    took_s: float
    machine: Machine
    stages: tuple[Found, ...]
    advice: tuple[Advice, ...]
    forecast: Forecast | None = None
    """As if the run began now."""

    @property
    def good(self) -> bool:
        """Whether nothing speaks against leaving."""
        return all(one.level != "red" for one in self.advice)

    @property
    def verdict(self) -> str:
        """One sentence."""
        red = sum(one.level == "red" for one in self.advice)
        yellow = len(self.advice) - red
        if red:
            return f"Not ready: {words.plural(red, 'thing')} to mend."
        partly = any(one.state == "not asked for" for one in self.stages)
        start = "Ready, as far as it was rehearsed" if partly else "Ready to leave"
        return f"{start}, with {words.plural(yellow, 'warning')}." if yellow else f"{start}."


# -- judging


def hopeless(stage: StageState) -> bool:
    """Whether a stage that waits for its next attempt is to be given up; the planned kill does not count."""
    ends = [one for one in stage.attempts if one.outcome in LOST_CAUSES]
    planned = any(one.outcome is Outcome.CRASHED and one.reason == PLANNED_END for one in ends)
    return len(ends) - planned >= MOST_TRIES


def found(pipeline: Pipeline, run: RunState, measured: dict[str, Measured], expected: dict[str, Estimate]) -> tuple[Found, ...]:
    """What came of each stage of the owner's `pipeline`; `run` is the rehearsal's."""
    states = {stage.name: stage for stage in run.stages}
    lost = {name for name, stage in states.items() if stage.state is not Status.SUCCEEDED}
    return tuple(_found(stage, states.get(stage.name), lost, run, measured, expected) for stage in pipeline.stages)


def _found(
    config: StageConfig,
    stage: StageState | None,
    lost: set[str],
    run: RunState,
    measured: dict[str, Measured],
    expected: dict[str, Estimate],
) -> Found:
    plain = Found(stage=config.name, title=config.title or config.name, optional=config.optional, state="not asked for")
    told, replace = measured.get(config.name), msgspec.structs.replace
    if stage is None:
        return plain
    if stage.state is Status.SUCCEEDED and told is not None:
        resumed = (told.step is None or bool(told.resumed_step)) if told.killed else None
        return replace(plain, state="rehearsed", resumed=resumed, measured=told, estimate=expected.get(config.name))
    if need := next((need for need in config.needs if need in lost), None):
        return replace(plain, state="not rehearsed", reason=f"needs {need}")
    if not stage.attempts or stage.attempts[-1].outcome is None:
        return replace(plain, state="not rehearsed", reason=run.disk_hold or "it never began")
    last = stage.attempts[-1]
    return replace(plain, state="failed", reason=last.reason, outcome=last.outcome, measured=told)


def advise(stages: Sequence[Found], machine: Machine, forecast: Forecast | None, look: str, again: str) -> tuple[Advice, ...]:
    """What to mend, the worst first. `look` and `again` are the commands that show and rehearse a stage, but for its name."""
    advice = [advice for one in stages for advice in _advise(one, machine, look, again)]
    if forecast is not None and not forecast.fits:
        text = f"The deadline does not hold. {forecast.choice or forecast.text}".strip()
        advice.append(Advice(level="yellow", text=text))
    return tuple(sorted(advice, key=lambda one: one.level != "red"))


def _advise(one: Found, machine: Machine, look: str, again: str) -> list[Advice]:
    commands = (f"{look} {one.stage}", f"{again} --stage {one.stage}")
    level: Literal["red", "yellow"] = "yellow" if one.optional else "red"
    if one.state == "failed":
        bonus = " (a bonus: the run goes on without it)" if one.optional else ""
        step = NEXT.get(one.outcome, LOOK) if one.outcome is not None else LOOK
        return [Advice(level=level, text=f"{one.title} failed{bonus}: {one.reason.rstrip('.')}. {step}", commands=commands)]
    if one.state == "not rehearsed" and not one.reason.startswith("needs "):
        return [Advice(level=level, text=f"{one.title} was not rehearsed: {one.reason}.", commands=commands[1:])]
    if one.resumed is False:
        text = f"{one.title} began anew after the kill and did not resume from its checkpoint."
        return [Advice(level=level, text=text, commands=commands)]
    said = [f"{one.title}: {text.rstrip('.')}." for text in (one.measured.warnings if one.measured else ())]
    return [Advice(level="yellow", text=text) for text in (*said, *_tight(one, machine))]


def _tight(one: Found, machine: Machine) -> list[str]:
    """Where memory is nearly used up."""
    if one.measured is None:
        return []
    used = ((one.measured.memory_bytes, machine.memory_bytes, "memory"), (one.measured.gpu_bytes, machine.gpu_bytes, "GPU memory"))
    return [
        f"{one.title} took {words.size(taken)} of {words.size(there)} {what}: nothing else may run beside it."
        for taken, there, what in used
        if taken and there and taken > ENOUGH_MEMORY * there
    ]


# -- words

HEAD = ("stage", "result", "resumed", "memory", "GPU", "whole stage")


def rows(ready: Ready) -> list[tuple[str, ...]]:
    """The table, a row a stage."""
    return [_row(one) for one in ready.stages]


def _row(one: Found) -> tuple[str, ...]:
    told = one.measured
    resumed = {True: "yes", False: "NO", None: words.NONE}[one.resumed]
    memory, gpu = (words.size(taken) if taken else words.NONE for taken in _taken(told))
    took = f" in {words.duration(told.took_s)}" if told is not None and one.state == "rehearsed" else ""
    return one.stage, f"{one.state}{took}", resumed, memory, gpu, expected(one.estimate)


def _taken(told: Measured | None) -> tuple[int | None, int | None]:
    return (told.memory_bytes, told.gpu_bytes) if told is not None else (None, None)


def expected(estimate: Estimate | None) -> str:
    """How long the whole stage will take: the middle, and how far off it may be."""
    if estimate is None:
        return words.NONE
    return f"{words.duration(estimate.seconds)} ± {round(100 * estimate.spread)} %"


def there(machine: Machine) -> str:
    """The machine in a few words."""
    gpu = f", {machine.gpu} with {words.size(machine.gpu_bytes)}" if machine.gpu and machine.gpu_bytes else ", no GPU"
    return f"{words.size(machine.memory_bytes)} memory{gpu}"


def plan_lines(ready: Ready) -> list[str]:
    """When the run would end, if it began now."""
    known = [one.estimate.seconds for one in ready.stages if one.estimate is not None]
    lines = [f"The stages rehearsed take {words.duration(sum(known))} in all."] if known else []
    if ready.forecast is not None:
        half, most = (words.day_and_clock(at) for at in (ready.forecast.p50_at, ready.forecast.p80_at))
        lines.append(f"Begun now, the whole run ends by {half} (even odds), by {most} (four in five).")
        if guessed := [stage.stage for stage in ready.forecast.stages if stage.source == "guess"]:
            lines.append(f"That rests on a guess for {', '.join(guessed)}.")
        if ready.forecast.deadline_at is not None:
            held = "holds" if ready.forecast.fits else "does NOT hold"
            lines.append(f"The deadline, {words.day_and_clock(ready.forecast.deadline_at)}, {held} by that.")
    return lines


def text(ready: Ready, columns: int) -> list[str]:
    """All of it for a terminal, at most `columns` wide."""
    lines = [ready.verdict, "", *words.table([HEAD, *rows(ready)], right=(3, 4)), ""]
    for one in ready.stages:
        if one.state in ("failed", "not rehearsed"):
            lines += textwrap.wrap(f"{one.stage}: {one.reason}", columns, subsequent_indent="  ")
    lines += [line for sentence in plan_lines(ready) for line in textwrap.wrap(sentence, columns)]
    lines += textwrap.wrap(f"Rehearsed in {words.duration(ready.took_s)} on {there(ready.machine)}.", columns)
    for number, advice in enumerate(ready.advice, start=1):
        mark = "to mend" if advice.level == "red" else "warning"
        lines += ["", *textwrap.wrap(f"{number}. {mark}: {advice.text}", columns, subsequent_indent="   ")]
        lines += [f"     {command}" for command in advice.commands]
    return [line.rstrip() for line in lines]


def as_object(ready: Ready) -> dict[str, Any]:
    """All of it for a program."""
    return {"good": ready.good, "verdict": ready.verdict, **msgspec.to_builtins(ready)}

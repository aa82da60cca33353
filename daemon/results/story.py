"""PURE: what the owner reads first on coming back: a verdict in three sentences, the story day by day, the plan and what came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo

from daemon import report, words
from daemon.accounts import Accounts, Cost
from daemon.scores import ALL_GENRES, Row, briefly
from daemon.view import View
from state.contract import Outcome
from state.forecast import Forecast
from state.machine import Status
from state.snapshot import Fact, RunState

MARKS = {
    "run.started": "info",
    "run.resumed": "warning",
    "run.stopped": "info",
    "run.finished": "good",
    "stage.succeeded": "good",
    "stage.failed": "bad",
    "stage.skipped": "warning",
    "stage.backed_off": "warning",
    "attempt.hung": "warning",
    "state.repaired": "warning",
    "disk.held": "bad",
    "disk.freed": "good",
    "disk.reclaimed": "info",
    "command.answered": "info",
    "plan.made": "info",
    "plan.slipped": "warning",
    "plan.shortened": "info",
    "plan.recovered": "good",
}
"""The facts that the story tells, and their colour; of what the stages noted it tells the warnings."""
ENDINGS = frozenset({"stage.backed_off", "stage.failed", "stage.skipped"})
CLOCK_S = 5.0
"""An attempt's own time of its end and the daemon's may differ by so much."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    at: float
    clock: str
    mark: str
    """good, bad, warning or info."""
    stage: str
    """Its title; empty for the run."""
    text: str
    cost: str
    """The time that it cost; empty when none, or not known."""


@dataclass(frozen=True)
class Day:
    """What happened on one day."""

    title: str
    entries: tuple[Entry, ...]


# -- the verdict


def verdict(
    view: View,
    scores: Sequence[Row],
    accounts: Accounts | None,
    forecast: Forecast | None,
    now: float,
    zone: tzinfo | None = None,
    *,
    said: Sequence[tuple[str, str]] = (),
) -> tuple[str, str, str]:
    """How it ended, what it is worth, what it cost; `said`: see `worth`."""
    return _how_it_ended(view, forecast, now, zone), worth(scores, said), _what_it_cost(view, accounts)


def _how_it_ended(view: View, forecast: Forecast | None, now: float, zone: tzinfo | None) -> str:
    run = view.run
    said = report.liveness(view)
    if run.finished_at is not None:
        return f"{said} {_against_deadline(run.finished_at, run.deadline_at, zone)}".strip()
    if forecast is None:
        return said
    expected = (
        f"It is expected to end {words.near(forecast.p50_at, now, zone)}, with 80 % by {words.near(forecast.p80_at, now, zone)}"
    )
    return f"{said} {expected}{_and_deadline(forecast, now, zone)}."


def _against_deadline(at: float, deadline_at: float | None, zone: tzinfo | None) -> str:
    """How far the end is from the deadline."""
    if deadline_at is None:
        return ""
    apart = words.duration(abs(deadline_at - at))
    return f"That was {apart} {'before' if at <= deadline_at else 'after'} the deadline, {words.day_and_clock(deadline_at, zone)}."


def _and_deadline(forecast: Forecast, now: float, zone: tzinfo | None) -> str:
    if forecast.deadline_at is None:
        return ""
    due = f"the deadline, {words.near(forecast.deadline_at, now, zone)},"
    return f"; {due} holds" if forecast.fits else f"; {due} does not hold with 80 %"


def worth(rows: Sequence[Row], said: Sequence[tuple[str, str]] = ()) -> str:
    """Every model, in a line: better, worse, both, or not to be told from before.

    Args:
        said: (model, the evaluation's own sentence), which is used, shortened; a model without one gets a clause from its rows.
    """
    told = {model for model, _sentence in said}
    overall: dict[str, list[Row]] = {}
    for row in rows:
        if row.genre == ALL_GENRES and row.verdict not in ("", "same model") and row.model not in told:
            overall.setdefault(row.model, []).append(row)
    clauses = "; ".join(_clause(model, found) for model, found in overall.items())
    sentences = [*(briefly(sentence) for _model, sentence in said), *([f"{clauses}."] if clauses else [])]
    return "\n".join(sentences) or "No translation was measured both before and after."


def _clause(model: str, rows: Sequence[Row]) -> str:
    changed = [row for row in rows if row.verdict in ("better", "worse")]
    figures = ", ".join(f"{row.metric} {row.change}" for row in changed)
    ways = {row.verdict for row in changed}
    if len(ways) == 2:
        return f"{model} is better by one measure and worse by another ({figures})"
    if ways:
        return f"{model} translates {ways.pop()} than before ({figures})"
    if any(row.verdict == "not tested" for row in rows):
        return f"{model} was scored, but whether a change is more than chance was not tested"
    return f"{model} cannot be told from before"


def _what_it_cost(view: View, accounts: Accounts | None) -> str:
    needs_owner = f" It needs you: {', '.join(view.run.failed_required)} failed." if view.run.failed_required else ""
    costs = [cost for cost in accounts.costs if cost.outcome is not Outcome.STOPPED] if accounts is not None else []
    if not costs:
        return f"Nothing went wrong on the way.{needs_owner}" if accounts is not None else needs_owner.strip()
    times = "Once" if len(costs) == 1 else f"{len(costs):,} times"
    spent = words.duration(sum(cost.seconds for cost in costs))
    return f"{times} something went wrong on the way, which cost the stages {spent} in all.{needs_owner}"


# -- the story


def days(facts: Iterable[Fact], costs: Sequence[Cost], titles: Mapping[str, str], zone: tzinfo | None = None) -> list[Day]:
    """What is worth telling, by day; what happened again and again without anything between is told once, with its count."""
    found: dict[str, list[Entry]] = {}
    left = list(costs)
    for fact in sorted(facts, key=lambda fact: fact.at):
        mark = MARKS.get(fact.kind) or (fact.level if fact.kind == "attempt.noted" and fact.level != "info" else "")
        if not mark:
            continue
        moment = words.local(fact.at, zone)
        entry = Entry(
            at=fact.at,
            clock=words.clock(fact.at, zone),
            mark="bad" if fact.level == "error" else mark,
            stage=titles.get(fact.stage or "", fact.stage or ""),
            text=told(fact),
            cost=_cost(fact, left),
        )
        found.setdefault(f"{moment:%A} {moment.day} {moment:%B}", []).append(entry)
    return [Day(title, tuple(_folded(entries))) for title, entries in found.items()]


def told(fact: Fact) -> str:
    """A fact's text without the stage's name in front, which has a column of its own."""
    text = fact.text
    for front in (f"{fact.stage}: ", f"{fact.stage} ") if fact.stage else ():
        text = text.removeprefix(front)
    return text


def _cost(fact: Fact, left: list[Cost]) -> str:
    """What the ending that this fact tells of cost; each is told once."""
    if fact.kind not in ENDINGS:
        return ""
    for cost in left:
        if cost.stage == fact.stage and cost.at <= fact.at + CLOCK_S:
            left.remove(cost)
            return words.duration(cost.seconds) if cost.seconds >= 1 else ""
    return ""


def _folded(entries: Sequence[Entry]) -> Iterable[Entry]:
    """Runs of the same entry as one."""
    held: list[Entry] = []
    for entry in entries:
        if held and _alike(held[-1]) != _alike(entry):
            yield _one(held)
            held = []
        held.append(entry)
    if held:
        yield _one(held)


def _alike(entry: Entry) -> tuple[str, str, str]:
    """What makes two entries the same: all but their numbers."""
    return entry.mark, entry.stage, "".join(char for char in entry.text.rpartition("; ")[0] or entry.text if not char.isdigit())


def _one(entries: Sequence[Entry]) -> Entry:
    if len(entries) == 1:
        return entries[0]
    return replace(entries[0], text=f"{entries[0].text} ({len(entries)} times, the last at {entries[-1].clock})")


# -- the plan against what happened


def plan_rows(run: RunState, first: Forecast | None, zone: tzinfo | None = None) -> list[tuple[str, str, str, str, str]]:
    """(stage, expected end, with 80 % by, ended, earlier or later than expected); the last row is the whole run."""
    if first is None:
        return []
    rows = []
    for stage in run.stages:
        planned = first.stage(stage.name)
        if planned is None:
            continue
        title = run.pipeline.stage(stage.name).title or stage.name
        ended = stage.attempts[-1].ended_at if stage.attempts and stage.state is Status.SUCCEEDED else None
        rows.append(_plan_row(title, planned.p50_at, planned.p80_at, ended, str(stage.state), zone))
    state = "finished" if run.finished_at else "goes on"
    return [*rows, _plan_row("The whole run", first.p50_at, first.p80_at, run.finished_at, state, zone)]


def _plan_row(
    title: str, p50_at: float, p80_at: float, ended_at: float | None, state: str, zone: tzinfo | None
) -> tuple[str, str, str, str, str]:
    expected = words.day_and_clock(p50_at, zone), words.day_and_clock(p80_at, zone)
    if ended_at is None:
        return title, *expected, state, ""
    apart = f"{words.duration(abs(ended_at - p50_at))} {'earlier' if ended_at < p50_at else 'later'}"
    return title, *expected, words.day_and_clock(ended_at, zone), apart + (", beyond the 80 %" if ended_at > p80_at else "")

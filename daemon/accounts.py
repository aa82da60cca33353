"""PURE but for `read`: where the hours of each stage went, and what each failure cost.

A stage's life, from its first start to its end (or to now), is cut into pieces of one kind each, so that they always add up to the
wall time. Within an attempt work is useful from the moment at which it is further than any attempt before had come, until the last
advance that it told; what came before (the load, the steps done again) and after (the step in flight) counts as repeated. The
first load of all is useful. Between attempts, what would have kept the stage waiting anyway goes before an outage: a pause, then a
wait, then another stage that has the resource; an outage is what is left before a start of the daemon.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import tzinfo
from enum import StrEnum
from pathlib import Path

import msgspec

from daemon import words
from daemon.view import View
from state.contract import Outcome
from state.snapshot import Attempt, BackingOff, Fact, Failed, RunState, Skipped, StageState, Succeeded
from state.workspace import Workspace

FIRST_LOOK_S = 30.0
"""A daemon that starts finds within this time which attempts are gone."""
WHOLE_RUN = "all stages"

Interval = tuple[float, float]


class Kind(StrEnum):
    """What a piece of a stage's life was."""

    USEFUL = "useful"
    REPEATED = "repeated"
    WAITING = "waiting"
    PAUSED = "paused"
    LOST = "lost"
    QUEUED = "queued"


@dataclass(frozen=True)
class Account:
    """Where the seconds of a stage's life went; together its wall time."""

    stage: str
    useful_s: float = 0.0
    """Work that came further than any before, with the load of the first attempt that did."""
    repeated_s: float = 0.0
    """Loads after a restart, work done again, and what was in flight when an attempt died."""
    waiting_s: float = 0.0
    """For the next try, the network, the disk, or the owner's retry of a failed stage."""
    paused_s: float = 0.0
    """By the owner: a pause, a stop, a skip that was taken back."""
    lost_s: float = 0.0
    """The machine or the daemon was down, or the machine asleep."""
    queued_s: float = 0.0
    """Another stage had the resource."""

    @property
    def wall_s(self) -> float:
        """All of it, from the first start on."""
        return float(sum(getattr(self, f"{kind}_s") for kind in Kind))


@dataclass(frozen=True)
class Cost:
    """What one ending other than success cost its stage, until its work was new again."""

    at: float
    stage: str
    outcome: Outcome
    reason: str
    seconds: float
    """Repeated and waited, and of an attempt that an outage ended the outage; neither pauses nor the turns of other stages."""


@dataclass(frozen=True)
class Accounts:
    """Of the stages that have begun."""

    stages: tuple[Account, ...]
    total: Account
    """Of all of them; stages that ran beside each other count each for itself."""
    costs: tuple[Cost, ...]
    """In order of time."""


@dataclass(frozen=True)
class Trace:
    """What the events of one attempt say about time."""

    new_from: float | None = None
    """First event that told of work beyond all earlier attempts."""
    new_to: float | None = None
    """Last event that told of an advance beyond them."""
    moved_at: float | None = None
    """Last event that told of any advance within the attempt."""
    last_at: float | None = None
    """Last event."""
    asleep: tuple[Interval, ...] = ()
    """Silences that no living daemon would have borne."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a stage's life; `attempt` is the number of the one in which it lies, or after which."""

    start: float
    end: float
    kind: Kind
    attempt: int


class _Said(msgspec.Struct, frozen=True):
    """As much of any event as counts here."""

    at: float
    type: str = ""
    done: float = 0.0
    unit: str = ""
    quiet_s: float | None = None


# -- from events to traces


@dataclass
class Course:
    """How far a stage has come over its attempts; positions of later units lie beyond those of earlier ones."""

    silence_s: float
    furthest: tuple[int, float] = (0, 0.0)
    units: list[str] = field(default_factory=list)

    def follow(self, said: Iterable[_Said]) -> Trace:
        """The trace of the next attempt."""
        new_from = new_to = moved_at = last_at = None
        reached, allowed_s, asleep = (0, 0.0), self.silence_s, list[Interval]()
        for one in said:
            if last_at is not None and one.at - last_at > allowed_s:
                asleep.append((last_at, one.at))
            last_at, allowed_s = one.at, max(self.silence_s, 2 * (one.quiet_s or 0.0))
            position = self._position(one)
            if position > reached:
                reached, moved_at = position, one.at
            if position > self.furthest:
                self.furthest, new_to = position, one.at
                new_from = one.at if new_from is None else new_from
        return Trace(new_from, new_to, moved_at, last_at, tuple(asleep))

    def _position(self, said: _Said) -> tuple[int, float]:
        if said.type != "progress" or said.done <= 0:
            return (0, 0.0)
        if said.unit not in self.units:
            self.units.append(said.unit)
        return (self.units.index(said.unit) + 1, said.done)


def said_in(lines: Iterable[bytes]) -> Iterator[_Said]:
    """The events in the lines of an attempt's file; a torn one is passed over."""
    for line in lines:
        try:
            yield _SAID.decode(line)
        except msgspec.DecodeError:
            continue


_SAID = msgspec.json.Decoder(_Said)


# -- from traces to accounts


@dataclass(frozen=True)
class Known:
    """What is known of the run as a whole."""

    run: RunState
    facts: Sequence[Fact]
    now: float
    alive: bool
    """A daemon holds the workspace."""
    traces: Mapping[tuple[str, int], Trace]
    gone: frozenset[str] = frozenset()
    """Stages held for running whose process is dead."""

    @property
    def starts(self) -> list[float]:
        """When a daemon began; now counts as one where none is alive, since all that is not explained until then is an outage."""
        begun = [start.at for start in self.run.starts]
        return begun if self.alive or self.run.finished else [*begun, self.now]


def account(known: Known) -> Accounts:
    """The books of a run."""
    worked = {stage.name: _worked(known, stage) for stage in known.run.stages}
    books: list[Account] = []
    costs: list[Cost] = []
    for stage in known.run.stages:
        if not stage.attempts:
            continue
        pieces = list(_life(known, stage, worked))
        books.append(_book(stage.name, pieces))
        costs += _costs(stage, worked[stage.name], pieces)
    total = {one.name: sum((getattr(book, one.name) for book in books), 0.0) for one in fields(Account) if one.name != "stage"}
    return Accounts(tuple(books), Account(WHOLE_RUN, **total), tuple(sorted(costs, key=lambda cost: cost.at)))


def _book(stage: str, pieces: Sequence[Piece]) -> Account:
    spent = {kind: sum((piece.end - piece.start for piece in pieces if piece.kind is kind), 0.0) for kind in Kind}
    return Account(stage, **{f"{kind}_s": seconds for kind, seconds in spent.items()})


def _costs(stage: StageState, worked: Sequence[Interval], pieces: Sequence[Piece]) -> Iterator[Cost]:
    """What is repeated before an attempt's work was new belongs to the ending before it; of one that died before, to its own."""
    owed = dict.fromkeys((attempt.number for attempt in stage.attempts), 0.0)
    deaths = {attempt.number: died_at for attempt, (_start, died_at) in zip(stage.attempts, worked, strict=True)}
    renewed = {attempt.number: float("inf") for attempt in stage.attempts if attempt.outcome in (None, Outcome.SUCCEEDED)}
    renewed |= {piece.attempt: piece.start for piece in reversed(pieces) if piece.kind is Kind.USEFUL}
    cut = {one.number: deaths[one.number] for one in stage.attempts if one.outcome in (Outcome.INTERRUPTED, Outcome.STOPPED)}
    for piece in pieces:
        if piece.kind is Kind.REPEATED:
            again = piece.attempt > 1 and piece.start < renewed.get(piece.attempt, 0.0)
            owed[piece.attempt - again] += piece.end - piece.start
        elif piece.kind is Kind.WAITING or (piece.kind is Kind.LOST and piece.start >= cut.get(piece.attempt, float("inf"))):
            owed[piece.attempt] += piece.end - piece.start
    for attempt in stage.attempts:
        if attempt.outcome not in (None, Outcome.SUCCEEDED):
            yield Cost(deaths[attempt.number], stage.name, attempt.outcome, attempt.reason, owed[attempt.number])


def _life(known: Known, stage: StageState, worked: Mapping[str, Sequence[Interval]]) -> Iterator[Piece]:
    """The pieces of a stage's life, in order, without gaps."""
    mine = worked[stage.name]
    resource = known.run.pipeline.stage(stage.name).resource
    busy = [
        one
        for other in known.run.stages
        if other.name != stage.name and known.run.pipeline.stage(other.name).resource is resource
        for one in worked[other.name]
    ]
    for number, (attempt, (start, died_at)) in enumerate(zip(stage.attempts, mine, strict=True)):
        last = number + 1 == len(mine)
        trace = known.traces.get((stage.name, attempt.number), Trace())
        first, gone = _nothing_before(known, stage, number), stage.name in known.gone
        new = _new_ground(attempt, trace, (start, died_at), first=first, gone=gone)
        yield from _cut(start, died_at, attempt.number, [(Kind.LOST, trace.asleep), (Kind.USEFUL, [new])], Kind.REPEATED)
        until = max(died_at, _end(known, stage)) if last else mine[number + 1][0]
        rules = _between(known, stage, attempt, (died_at, until), busy)
        yield from _cut(died_at, until, attempt.number, rules, Kind.WAITING)


def _worked(known: Known, stage: StageState) -> list[Interval]:
    """Start and death of each attempt, in order and never overlapping, whatever the wall clock did."""
    spans: list[Interval] = []
    for attempt in stage.attempts:
        start = max(attempt.started_at, spans[-1][1] if spans else attempt.started_at)
        spans.append((start, max(start, _died_at(known, stage, attempt))))
    return spans


def _died_at(known: Known, stage: StageState, attempt: Attempt) -> float:
    """When an attempt ended. One that went down with its daemon was found only by the next: it lived until the last sign of it."""
    ended_at = known.now if attempt.ended_at is None else attempt.ended_at
    trace = known.traces.get((stage.name, attempt.number), Trace())
    if attempt.ended_at is None:
        found_at = known.now if stage.name in known.gone else None
    elif attempt.outcome is Outcome.INTERRUPTED:
        found_at = max((at for at in known.starts if ended_at - FIRST_LOOK_S <= at <= ended_at), default=None)
    else:
        found_at = None
    last_at = max(attempt.started_at, trace.last_at or 0.0)
    if found_at is None or last_at >= found_at:
        return ended_at
    told = (fact.at for fact in known.facts if fact.at < found_at and fact.kind not in _OF_A_START)
    return max(last_at, max(told, default=last_at))  # a daemon that tells anything would have seen it dead


_OF_A_START = frozenset({"run.started", "run.resumed", "state.repaired"})


def _nothing_before(known: Known, stage: StageState, number: int) -> bool:
    """Whether no attempt before this one told of any work."""
    return all(known.traces.get((stage.name, one.number), Trace()).new_to is None for one in stage.attempts[:number])


def _new_ground(attempt: Attempt, trace: Trace, span: Interval, *, first: bool, gone: bool) -> Interval:
    """Within an attempt: from where to where its work counts; empty when it never does."""
    start, died_at = span
    going = attempt.ended_at is None and not gone
    well = going or attempt.outcome is Outcome.SUCCEEDED
    if trace.new_from is not None and trace.new_to is not None:
        return (start if first else trace.new_from, died_at if well else trace.new_to)
    if first or not well:
        return (start, died_at if well else start)
    return (died_at if going else trace.moved_at or start, died_at)


def _end(known: Known, stage: StageState) -> float:
    status = stage.status
    return status.at if isinstance(status, Succeeded | Failed | Skipped) else known.now


def _between(
    known: Known, stage: StageState, attempt: Attempt, gap: Interval, busy: Sequence[Interval]
) -> list[tuple[Kind, Sequence[Interval]]]:
    """What may explain the time after an attempt, by precedence."""
    start, end = gap
    left = [
        (fact.at, Kind.WAITING if fact.kind == "stage.failed" else Kind.PAUSED)
        for fact in known.facts
        if fact.stage == stage.name and fact.kind in ("stage.failed", "stage.skipped") and fact.attempt == attempt.number
    ]
    retries = _asked(known.facts, f"retry {stage.name}:")
    settled = [(kind, [(at, min((r for r in retries if r >= at), default=end))]) for at, kind in left]
    waits = [*_delays(stage, attempt, known.facts), *_spells(known.facts, "disk.held", "disk.freed")]
    if attempt.outcome is Outcome.DISK_FULL:
        waits.append(gap)
    outages = [(start, at) for at in known.starts if start < at <= end]
    return [(Kind.PAUSED, _pauses(known)), *settled, (Kind.WAITING, waits), (Kind.QUEUED, busy), (Kind.LOST, outages)]


def _delays(stage: StageState, attempt: Attempt, facts: Sequence[Fact]) -> list[Interval]:
    told = [
        (fact.at, fact.at + float(fact.fields.get("delay_s", 0.0)))
        for fact in facts
        if fact.kind == "stage.backed_off" and fact.stage == stage.name and fact.attempt == attempt.number
    ]
    status = stage.status
    if not told and isinstance(status, BackingOff) and attempt is stage.attempts[-1]:
        return [(status.since, status.since + status.delay_s)]
    return told


def _pauses(known: Known) -> list[Interval]:
    """What the owner asked for: from a pause to the next resume, from a stop to the daemon's next start."""
    resumed, begun = _asked(known.facts, "resume:"), [start.at for start in known.run.starts]
    ends = [(at, resumed) for at in _asked(known.facts, "pause:")] + [(at, begun) for at in _asked(known.facts, "stop:")]
    return [(at, min((end for end in found if end > at), default=known.now)) for at, found in ends]


def _asked(facts: Sequence[Fact], words_: str) -> list[float]:
    """When the owner asked for something and got it."""
    return [fact.at for fact in facts if fact.kind == "command.answered" and fact.text.startswith(words_) and fact.fields.get("ok")]


def _spells(facts: Sequence[Fact], begin: str, end: str) -> list[Interval]:
    ends = [fact.at for fact in facts if fact.kind == end]
    return [(f.at, min((at for at in ends if at >= f.at), default=float("inf"))) for f in facts if f.kind == begin]


def _cut(
    start: float, end: float, attempt: int, rules: Sequence[tuple[Kind, Sequence[Interval]]], default: Kind
) -> Iterator[Piece]:
    """`start` to `end` in pieces: each of the first kind that has an interval over it."""
    edges = {edge for _kind, spans in rules for span in spans for edge in span if start < edge < end}
    for left, right in itertools.pairwise(sorted({start, end, *edges})):
        middle = (left + right) / 2
        kinds = (kind for kind, spans in rules if any(a <= middle < b for a, b in spans))
        yield Piece(left, right, next(kinds, default), attempt)


# -- for callers


def read(workspace: Workspace, view: View, now: float) -> Accounts:
    """The accounts of the run in `workspace`; reads every attempt's events, once each, so that a week takes seconds."""
    traces = {}
    for stage in view.run.stages:
        course = Course(view.run.pipeline.stage(stage.name).silence_s)
        for attempt in stage.attempts:
            traces[stage.name, attempt.number] = course.follow(
                said_in(_lines(workspace.attempt(stage.name, attempt.number).events))
            )
    gone = frozenset(stage.config.name for stage in view.stages if stage.working is False)
    return account(Known(view.run, view.facts, now, view.alive is not False, traces, gone))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from file
    except OSError:
        return


# -- words


def lines(accounts: Accounts, zone: tzinfo | None = None, columns: int = 80) -> list[str]:
    """The accounts for a terminal; kinds that never occurred are left out."""
    if not accounts.stages:
        return ["No stage has started yet."]
    shown = [kind for kind in Kind if getattr(accounts.total, f"{kind}_s") >= 0.5 or kind is Kind.USEFUL]
    rows = [["stage", *shown, "together"]]
    for book in (*accounts.stages, *([accounts.total] if len(accounts.stages) > 1 else [])):
        rows.append([words.clip(book.stage, 16), *(hours(getattr(book, f"{kind}_s")) for kind in shown), hours(book.wall_s)])
    found = words.table(rows, right=range(1, len(shown) + 2))
    if accounts.costs:
        heads = [[words.day_and_clock(c.at, zone), hours(c.seconds), f"{c.stage} {c.outcome}"] for c in accounts.costs]
        width = columns - max(words.cells(line) for line in words.table(heads)) - 2
        told = [[*head, words.clip(cost.reason, max(8, width))] for head, cost in zip(heads, accounts.costs, strict=True)]
        found += ["", "What each ending cost until the work was new again:", *words.table(told, right=(1,))]
    return found


def hours(seconds: float) -> str:
    """Short enough for a column: `12 s`, `34 min`, `26.1 h`; `-` for none."""
    if seconds < 0.5:
        return words.NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"

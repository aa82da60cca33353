"""PURE: when each attempt ran, as shares of a picture's width. Long stretches in which nothing ran are cut short and marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo

from daemon import words
from state.contract import Outcome
from state.snapshot import Attempt, RunState

IDLE_SHARE = 0.08
"""Of the busy time: a longer stretch without any attempt is drawn as a cut."""
CUT_SHARE = 0.03
"""Of the busy time: the width of a cut."""
LEAST_PERCENT = 0.4
TICKS = 5
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200)
DAY_S = 86_400


@dataclass(frozen=True)
class Segment:
    """One attempt; `left` and `width` in percent of the picture."""

    left: float
    width: float
    outcome: str
    """An outcome, or RUNNING."""
    title: str


@dataclass(frozen=True)
class Lane:
    """One stage."""

    number: int
    name: str
    title: str
    status: str
    optional: bool
    took: str
    segments: tuple[Segment, ...]
    reason: str


@dataclass(frozen=True)
class Timeline:
    """The whole picture."""

    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    """(left in percent, label)."""
    cuts: tuple[tuple[float, float, str], ...]
    """(left, width in percent, what was cut)."""


@dataclass(frozen=True)
class _Piece:
    """A stretch of time and where it is drawn, in seconds of picture."""

    start: float
    end: float
    at: float
    cut: bool
    shown_s: float


def timeline(run: RunState, reasons: Mapping[str, str], until: Mapping[str, float], zone: tzinfo | None = None) -> Timeline:
    """The attempts of `run` in time; one that has not ended is drawn as far as `until` says for its stage."""
    spans = [(a.started_at, _end(a, until.get(stage.name, 0.0))) for stage in run.stages for a in stage.attempts]
    pieces = _pieces(spans)
    whole_s = pieces[-1].at + pieces[-1].shown_s if pieces else 1.0
    lanes = []
    for number, (config, stage) in enumerate(zip(run.pipeline.stages, run.stages, strict=True), start=1):
        known = until.get(config.name, 0.0)
        spent = [_end(a, known) - a.started_at for a in stage.attempts]
        lanes.append(
            Lane(
                number=number,
                name=config.name,
                title=config.title or config.name,
                status=str(stage.state),
                optional=config.optional,
                took=words.duration(sum(spent)) if spent else "",
                segments=tuple(_segment(attempt, pieces, whole_s, known, zone) for attempt in stage.attempts),
                reason=reasons.get(config.name, ""),
            )
        )
    cuts = tuple(
        (_percent(p.at, whole_s), _percent(p.shown_s, whole_s), f"nothing ran for {words.duration(p.end - p.start)}")
        for p in pieces
        if p.cut
    )
    return Timeline(lanes=tuple(lanes), ticks=_ticks(pieces, whole_s), cuts=cuts)


def _end(attempt: Attempt, until: float) -> float:
    return max(attempt.started_at, attempt.ended_at if attempt.ended_at is not None else until)


def _pieces(spans: Sequence[tuple[float, float]]) -> list[_Piece]:
    """The time from the first start to the last end, busy and idle pieces by turns, long idle ones cut."""
    busy: list[list[float]] = []
    for start, end in sorted(spans):
        if busy and start <= busy[-1][1]:
            busy[-1][1] = max(busy[-1][1], end)
        else:
            busy.append([start, end])
    busy_s = sum(end - start for start, end in busy) or 1.0
    pieces: list[_Piece] = []
    at = 0.0
    for number, (start, end) in enumerate(busy):
        if number:
            idle_s = start - busy[number - 1][1]
            cut = idle_s > IDLE_SHARE * busy_s
            pieces.append(_Piece(busy[number - 1][1], start, at, cut, CUT_SHARE * busy_s if cut else idle_s))
            at += pieces[-1].shown_s
        pieces.append(_Piece(start, end, at, False, end - start or busy_s * 0.001))
        at += pieces[-1].shown_s
    return pieces


def _place(at: float, pieces: Sequence[_Piece]) -> float:
    """Seconds of picture at the time `at`."""
    for piece in pieces:
        if at <= piece.end:
            share = (at - piece.start) / (piece.end - piece.start) if piece.end > piece.start else 0.0
            return piece.at + max(0.0, share) * piece.shown_s
    return pieces[-1].at + pieces[-1].shown_s


def _segment(attempt: Attempt, pieces: Sequence[_Piece], whole_s: float, until: float, zone: tzinfo | None) -> Segment:
    end = _end(attempt, until)
    left, right = _place(attempt.started_at, pieces), _place(end, pieces)
    outcome = str(attempt.outcome) if attempt.outcome else "RUNNING"
    width = max(LEAST_PERCENT, _percent(right - left, whole_s))
    why = f": {attempt.reason}" if attempt.reason and attempt.outcome is not Outcome.SUCCEEDED else ""
    return Segment(
        left=min(_percent(left, whole_s), 100 - width),
        width=width,
        outcome=outcome,
        title=f"attempt {attempt.number}, {words.clock(attempt.started_at, zone)} to {words.clock(end, zone)}, "
        f"{words.duration(end - attempt.started_at)}, {outcome}{why}",
    )


def _ticks(pieces: Sequence[_Piece], whole_s: float) -> tuple[tuple[float, str], ...]:
    """Marks of time since the start, in working time: what was cut does not count."""
    step = next((s for s in STEPS_S if whole_s / s <= TICKS), DAY_S * math.ceil(whole_s / DAY_S / TICKS))
    if not pieces or whole_s < 1:
        return ()
    return tuple(
        (_percent(mark * step, whole_s), words.duration(mark * step) if mark else "0") for mark in range(int(whole_s // step) + 1)
    )


def _percent(part: float, whole: float) -> float:
    return round(100.0 * part / whole, 3)

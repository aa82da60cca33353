"""The parts that the texts share: ends, batches, deadlines."""

from __future__ import annotations

import dataclasses
from datetime import UTC
from typing import Any

import msgspec
import pytest

from daemon import words
from daemon.phone import standing
from daemon.phone.standing import More
from daemon.view import View
from state.contract import BatchPlan, Outcome
from state.forecast import Forecast, StageForecast
from state.snapshot import Attempt, Pending, Start
from tests.conftest import T0
from tests.unit.daemon.phone_views import fact, now_of, stage_of, with_run, with_stage


def test_the_end_of_the_run_follows_from_paces_and_budgets(mid: View) -> None:
    """One stage a resource at a time, each after what it waits for; without pace and budget no end is told."""
    assert standing.run_left_s(mid, now_of(mid)) is None
    stages = tuple(
        dataclasses.replace(s, config=msgspec.structs.replace(s.config, budget_h=hours), progress=None if hours else s.progress)
        for s, hours in zip(mid.stages, (None,) * 5 + (2.0, None, 3.0, 4.0, 5.0, 6.0), strict=True)
    )
    seen = dataclasses.replace(mid, stages=stages)
    marian_s = stage_of(seen, "train_marian").eta_s(now_of(mid))
    assert marian_s == pytest.approx(55)
    assert standing.run_left_s(seen, now_of(mid)) == pytest.approx(20 * 3600 + 55)
    assert standing.run_lines(seen, now_of(mid), UTC) == ["Run: 20 h left, until Fri 15:04"]


def test_two_resources_work_side_by_side(mid: View) -> None:
    """A stage on the CPU does not lengthen a run that waits for the GPU anyway."""
    pending = [
        dataclasses.replace(s, state=msgspec.structs.replace(s.state, status=Pending()), progress=None) for s in mid.stages[:5]
    ]
    seen = dataclasses.replace(
        mid, stages=tuple(dataclasses.replace(s, config=msgspec.structs.replace(s.config, budget_h=1.0)) for s in pending)
    )
    # download, preprocess and transcribe follow each other: 3 h; corpus goes beside them, and evaluate_before before transcribe
    assert standing.run_left_s(seen, T0) == pytest.approx(3 * 3600)


@pytest.mark.parametrize(
    ("settings", "state", "line"),
    [
        ({}, {}, ""),
        ({"effective_batch": 32}, {}, "Batch 32, as set"),
        ({"effective_batch": 32, "micro_batch": 4}, {}, "Batch 32, 4 at a time: as set"),
        ({"effective_batch": 32, "micro_batch": 8}, {"fits": {"m on G": 4}}, "Batch 32, 4 at a time: more did not fit"),
        ({"effective_batch": 32}, {"batch": BatchPlan(micro_batch=1)}, "Batch 32, 1 at a time: more did not fit"),
        ({"effective_batch": 32}, {"batch": BatchPlan(gradient_checkpointing=True)}, "Batch 32, as set, slower to save memory"),
        ({}, {"batch": BatchPlan(eval_batch=8)}, "Batch 8: more did not fit"),
    ],
)
def test_the_batch_and_why_it_is_so(mid: View, settings: dict[str, Any], state: dict[str, Any], line: str) -> None:
    """How many count as one step, how many fit at a time, and what decided it; nothing for a stage without a batch."""
    stage = stage_of(mid, "train_gemma_4b")
    config = msgspec.structs.replace(stage.config, settings=settings)
    told = dataclasses.replace(stage, config=config, state=msgspec.structs.replace(stage.state, **state))
    assert standing.batch_line(told) == line


DUE = T0 + 4 * 86_400
CHOICE = "Without the 12B it fits."


@pytest.mark.parametrize(
    ("p50_h", "p80_h", "lines"),
    [
        (-9, -3, ["Deadline Mon 18:00: fits", "80 % sure by Mon 15:00", ""]),
        (-1, 2, ["Deadline Mon 18:00: may be 2 h late", "80 % sure by Mon 20:00", CHOICE]),
        (1, 3, ["Deadline Mon 18:00: late by 3 h", "80 % sure by Mon 21:00", CHOICE]),
    ],
)
def test_the_deadline_and_whether_it_holds(mid: View, p50_h: float, p80_h: float, lines: list[str]) -> None:
    """By the P80; late with the choice; the end of the run is the forecast's P50; nothing once the run is over."""
    p50_at, p80_at = DUE + p50_h * 3600, DUE + p80_h * 3600
    plan = Forecast(at=T0, p50_at=p50_at, p80_at=p80_at, deadline_at=DUE, choice=CHOICE if p80_h > 0 else "")
    assert standing.deadline_lines(plan, T0, UTC) == lines
    end, *rest = standing.run_lines(mid, T0, UTC, More(forecast=plan))
    assert (end, rest) == (f"Run: {words.duration(p50_at - T0)} left, until {words.near(p50_at, T0, UTC)}", lines)
    assert standing.run_lines(with_run(mid, paused=True), T0, UTC, More(forecast=plan)) == ["", *lines]
    assert standing.deadline_lines(msgspec.structs.replace(plan, deadline_at=None), T0, UTC) == []
    assert standing.run_lines(dataclasses.replace(mid, alive=False), T0, UTC, More(forecast=plan)) == []


def test_a_forecast_that_is_a_guess_promises_no_end(mid: View) -> None:
    """Of a stage that nobody has measured, budgeted or seen at work."""
    guessed = StageForecast(stage="train_gemma_4b", p50_at=DUE, p80_at=DUE, source="guess")
    plan = Forecast(at=T0, p50_at=DUE, p80_at=DUE, stages=(guessed,))
    assert standing.run_lines(mid, T0, UTC, More(forecast=plan), unknown="Not known") == ["Not known"]


def test_the_deadline_of_a_finished_run_is_history(done: View) -> None:
    """How it went is in the report."""
    plan = Forecast(at=T0, p50_at=DUE, p80_at=DUE, deadline_at=DUE)
    assert standing.run_lines(done, T0, UTC, More(forecast=plan)) == []


@pytest.mark.parametrize(
    ("kind", "stage", "text", "shown"),
    [
        ("stage.started", "corpus", "corpus started (attempt 2)", "Parallel corpus started (attempt 2)"),
        ("attempt.noted", "corpus", "counted the corpus", "Parallel corpus: counted the corpus"),
        ("run.started", None, "run 20260212-180000 of pipeline Vigil demo started", "the run started"),
        ("stage.skipped", "corpus", "corpus skipped: skipped by the owner (telegram)", "Parallel corpus skipped: skipped by you"),
        ("command.answered", None, "pause: it is saved, then waits for `resume`", "pause: it is saved, then waits for /resume"),
    ],
)  # fmt: skip
def test_the_journal_reads_as_it_is_said(mid: View, kind: str, stage: str | None, text: str, shown: str) -> None:
    """Titles for names, `you` for the owner, commands to tap, no ids."""
    assert standing.said(fact(1, kind, text, stage), mid) == shown


def test_each_restart_has_its_cause(mid: View) -> None:
    """The machine, the owner's own /stop, or Vigil by itself; the last three."""
    starts = tuple(Start(at=T0 + hour * 3600, boot=boot) for hour, boot in enumerate("aabbb"))
    stop = fact(150, "command.answered", "stop: what runs is saved, then Vigil ends", fields={"ok": True})
    refused = fact(210, "command.answered", "stop: asked before this daemon started", fields={"ok": False})
    seen = dataclasses.replace(with_run(mid, starts=starts), facts=(stop, refused))
    assert standing.up_lines(seen, T0 + 5 * 3600, UTC) == [
        "Up 1 h, 4 restarts:",
        "20:00 the machine restarted",
        "21:00 started after your /stop",
        "22:00 Vigil restarted",
    ]


@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ([(Outcome.CRASHED, "ValueError: x")], "Attempt 2; before: ValueError: x"),
        ([(Outcome.CRASHED, "x"), (Outcome.STOPPED, "y")], "Attempt 3; before: a stop"),
        ([(Outcome.INTERRUPTED, "gone")], "Attempt 2; before: an interruption"),
        ([], ""),
    ],
)
def test_which_attempt_it_is_and_how_the_one_before_ended(mid: View, ends: list[tuple[Outcome, str]], line: str) -> None:
    """In /status, and not on the card, which changes only with the run."""
    tried = [Attempt(number=n, started_at=T0, ended_at=T0, outcome=how, reason=why) for n, (how, why) in enumerate(ends, start=1)]
    attempts = (*tried, Attempt(number=len(ends) + 1, started_at=T0))
    stage = stage_of(with_stage(mid, "train_marian", {"attempts": attempts}), "train_marian")
    told, card = (standing.stage_block(stage, mid, T0, UTC, More(), ages=ages)[7:] for ages in (True, False))
    assert (told, card) == ([line], [""])

"""The verdict, the story and the plan, word by word."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import msgspec
import pytest

from daemon import accounts
from daemon.accounts import Account, Accounts, Cost
from daemon.results import story
from daemon.scores import Row
from daemon.view import View, read
from state.contract import Outcome
from state.forecast import Forecast, StageForecast
from state.snapshot import Fact
from state.workspace import Workspace
from tests.conftest import T0

HOUR = 3600.0


def fact(at: float, kind: str, text: str, stage: str | None = None, level: str = "info") -> Fact:
    return Fact(id=f"{at:.0f}{kind}", at=T0 + at, kind=kind, text=text, stage=stage, level=level)


def row(model: str, metric: str, verdict: str, change: str = "+1.00", genre: str = "all") -> Row:
    return Row(model=model, genre=genre, metric=metric, before="1", after="2", change=change, interval="", p="", verdict=verdict)


def books(*costs: Cost) -> Accounts:
    return Accounts((), Account(accounts.WHOLE_RUN), costs)


def cost(at: float, seconds: float, stage: str = "train_marian", outcome: Outcome = Outcome.CRASHED) -> Cost:
    return Cost(T0 + at, stage, outcome, "killed by signal 9", seconds)


@pytest.fixture
def finished(finished_workspace: Workspace) -> View:
    return read(finished_workspace)


def test_a_finished_run_in_three_sentences(finished: View) -> None:
    """How it ended and how far from the deadline; what each model is worth; what went wrong, without the owner's stops."""
    ended_at = finished.run.finished_at
    assert ended_at is not None
    due = replace(finished, run=msgspec.structs.replace(finished.run, deadline_at=ended_at + 11 * HOUR))
    scores = [
        row("MarianMT", "BLEU", "better", "+13.25"),
        row("MarianMT", "chrF++", "not clear"),
        row("4B", "BLEU", "worse", "−0.50"),
        row("4B", "COMET", "better", "+0.01"),
        row("12B", "BLEU", "unchanged"),
        row("12B", "BLEU", "better", genre="poetry"),
    ]
    spent = books(cost(0, 600), cost(50, 3 * HOUR), cost(60, 10 * HOUR, outcome=Outcome.STOPPED))
    assert story.verdict(due, scores, spent, None, ended_at, UTC) == (
        "Finished: 9 of 11 stages succeeded, 1 bonus failed, 1 skipped. That was 11 h before the deadline, Fri 13 Feb 06:06.",
        "MarianMT translates better than before (BLEU +13.25); 4B is better by one measure and worse by another (BLEU −0.50, "
        "COMET +0.01); 12B cannot be told from before.",
        "2 times something went wrong on the way, which cost the stages 3 h 10 min in all.",
    )


def test_nothing_is_made_up(finished: View) -> None:
    """No scores, no deadline, no failures: each sentence says so; scores that were never tested are not called better."""
    assert story.verdict(finished, [], books(), None, T0, UTC)[1:] == (
        "No translation was measured both before and after.",
        "Nothing went wrong on the way.",
    )
    assert story.worth([row("A", "BLEU", "not tested", "+20")]) == (
        "A was scored, but whether a change is more than chance was not tested."
    )
    assert story.worth([row("A", "BLEU", "same model")]) == "No translation was measured both before and after."


def test_the_evaluations_own_sentence_counts() -> None:
    """Shortened, in place of a clause made from the rows; a model that it says nothing of keeps its clause."""
    said = [("A", "A is worse than before: chrF++ −2.00 (95 % interval −3.00 to −1.00); worse in poetry.")]
    rows = [row("A", "BLEU", "better"), row("B", "BLEU", "better", "+3.00")]
    assert story.worth(rows, said).splitlines() == [
        "A is worse than before: chrF++ −2.00; worse in poetry.",
        "B translates better than before (BLEU +3.00).",
    ]
    assert story.worth([], said) == "A is worse than before: chrF++ −2.00; worse in poetry."


def test_a_failed_stage_is_the_last_word(mid_workspace: Workspace) -> None:
    """What needs the owner stands in the verdict, whatever else is well."""
    from state.snapshot import Failed

    view = read(mid_workspace)
    stages = tuple(
        msgspec.structs.replace(s, status=Failed(at=T0, reason="r", outcome=Outcome.CRASHED)) if s.name == "train_marian" else s
        for s in view.run.stages
    )
    failed = replace(view, run=msgspec.structs.replace(view.run, stages=stages))
    assert (
        story.verdict(failed, [], books(), None, T0, UTC)[2] == "Nothing went wrong on the way. It needs you: train_marian failed."
    )


def test_a_running_run_looks_ahead(mid_workspace: Workspace) -> None:
    """The expected end as a range, and whether the deadline holds."""
    view = read(mid_workspace)
    ahead = Forecast(at=T0, p50_at=T0 + 20 * HOUR, p80_at=T0 + 30 * HOUR, deadline_at=T0 + 40 * HOUR)
    said = story.verdict(view, [], None, ahead, T0, UTC)[0]
    assert said.endswith("It is expected to end Fri 14:00, with 80 % by Sat 00:00; the deadline, Sat 10:00, holds.")
    late = msgspec.structs.replace(ahead, deadline_at=T0 + 25 * HOUR)
    assert story.verdict(view, [], None, late, T0, UTC)[0].endswith("the deadline, Fri 19:00, does not hold with 80 %.")


def test_the_story_is_told_by_day(finished: View) -> None:
    """Each day has a title; entries carry the stage's title, a colour and what they cost; small notes are left out."""
    told = story.days(
        [
            fact(0, "run.started", "run began"),
            fact(5, "stage.started", "train_marian started", "train_marian"),
            fact(6, "attempt.noted", "2,000 pairs", "train_marian"),
            fact(7, "attempt.noted", "no replay", "train_marian", "warning"),
            fact(100, "stage.backed_off", "train_marian: killed by signal 9; tried again in 5 s", "train_marian", "warning"),
            fact(8 * HOUR, "stage.failed", "train_marian failed: no", "train_marian", "error"),
        ],
        [cost(98, 240), cost(8 * HOUR - 2, 0.2)],
        {"train_marian": "MarianMT"},
        UTC,
    )
    assert [(day.title, [(e.clock, e.mark, e.stage, e.text, e.cost) for e in day.entries]) for day in told] == [
        (
            "Thursday 12 February",
            [
                ("18:00", "info", "", "run began", ""),
                ("18:00", "warning", "MarianMT", "no replay", ""),
                ("18:01", "warning", "MarianMT", "killed by signal 9; tried again in 5 s", "4 min"),
            ],
        ),
        ("Friday 13 February", [("02:00", "bad", "MarianMT", "failed: no", "")]),
    ]


def test_a_night_of_retries_is_one_line() -> None:
    """The same thing again and again, whatever its delay, is told once with its count and its last time."""
    facts = [
        fact(60.0 * n, "stage.backed_off", f"download: the network is away; tried again in {15 * n} s", "download", "warning")
        for n in range(40)
    ]
    [day] = story.days([*facts, fact(3000, "stage.succeeded", "download succeeded", "download")], [], {}, UTC)
    assert [entry.text for entry in day.entries] == [
        "the network is away; tried again in 0 s (40 times, the last at 18:39)",
        "succeeded",
    ]


def test_plan_against_what_happened(finished: View) -> None:
    """Each stage's expected and real end, the whole run last; what never ended says how it stands; without a plan, nothing."""
    ended_at = finished.run.finished_at
    assert ended_at is not None
    first = Forecast(
        at=T0,
        p50_at=ended_at - 2 * HOUR,
        p80_at=ended_at - HOUR,
        stages=(
            StageForecast(stage="download", p50_at=T0 + HOUR, p80_at=T0 + 2 * HOUR, source="budget"),
            StageForecast(stage="train_gemma_12b", p50_at=T0 + HOUR, p80_at=T0 + 2 * HOUR, source="budget"),
        ),
    )
    assert story.plan_rows(finished.run, first, UTC) == [
        ("Sermon download", "Thu 12 Feb 19:00", "Thu 12 Feb 20:00", "Thu 12 Feb 18:00", "59 min earlier"),
        ("TranslateGemma 12B QLoRA", "Thu 12 Feb 19:00", "Thu 12 Feb 20:00", "FAILED", ""),
        ("The whole run", "Thu 12 Feb 17:06", "Thu 12 Feb 18:06", "Thu 12 Feb 19:06", "2 h later, beyond the 80 %"),
    ]
    assert story.plan_rows(finished.run, None, UTC) == []

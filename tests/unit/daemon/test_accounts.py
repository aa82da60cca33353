"""Where the hours went, on runs whose course is known to the second."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import accounts, view
from daemon.accounts import Account, Course, Known, Trace
from state.contract import CheckpointSaved, Metric, Outcome, Progress
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import Attempt, BackingOff, Fact, Failed, Pending, Running, RunState, Skipped, StageState, Start, Succeeded
from state.workspace import Workspace

Span = tuple[float, float, Outcome | None]


def stage_state(name: str, status: Any, *spans: Span) -> StageState:
    attempts = tuple(
        Attempt(number=number, started_at=start, ended_at=end if outcome else None, outcome=outcome, reason=f"reason {number}")
        for number, (start, end, outcome) in enumerate(spans, start=1)
    )
    return StageState(name=name, status=status, attempts=attempts)


def fact(at: float, kind: str, text: str = "", stage: str | None = None, attempt: int | None = None, **fields: Any) -> Fact:
    return Fact(id=f"{at}{kind}", at=at, kind=kind, text=text, stage=stage, attempt=attempt, fields=fields)


def backed_off(at: float, stage: str, attempt: int, delay_s: float) -> Fact:
    return fact(at, "stage.backed_off", stage=stage, attempt=attempt, delay_s=delay_s)


def asked(at: float, text: str, ok: bool = True) -> Fact:
    return fact(at, "command.answered", text, ok=ok)


def known(
    *stages: StageState,
    facts: Sequence[Fact] = (),
    starts: Sequence[float] = (0.0,),
    now: float = 10_000.0,
    alive: bool = True,
    traces: dict[tuple[str, int], Trace] | None = None,
    gone: frozenset[str] = frozenset(),
    resource: Resource = Resource.GPU,
) -> Known:
    configs = tuple(StageConfig(name=stage.name, module="stages.x", resource=resource) for stage in stages)
    run = RunState(
        id="r",
        pipeline=Pipeline(name="p", stages=configs),
        pipeline_path="p",
        started_at=0.0,
        stages=stages,
        starts=tuple(Start(at=at, boot="b") for at in starts),
    )
    return Known(run, facts, now, alive, traces or {}, gone)


def progress(at: float, done: float, unit: str = "steps", quiet_s: float | None = None) -> Progress:
    return Progress(at=at, done=done, total=100, unit=unit, quiet_s=quiet_s)


def traced(*attempts: Sequence[Any], silence_s: float = 1800.0) -> list[Trace]:
    course = Course(silence_s)
    return [course.follow(accounts.said_in([msgspec.json.encode(event) for event in events])) for events in attempts]


def test_a_quiet_run_is_useful_from_end_to_end() -> None:
    """One attempt that succeeds: its load, its steps and its delivery all count, and there is nothing to pay."""
    done = stage_state("train", Succeeded(at=100), (0, 100, Outcome.SUCCEEDED))
    (trace,) = traced([progress(10, 1), progress(90, 100)])
    found = accounts.account(known(done, traces={("train", 1): trace}))
    assert found.stages == (Account("train", useful_s=100),)
    assert (found.total.wall_s, found.costs) == (100, ())


def test_a_crash_costs_the_step_in_flight_the_wait_the_load_and_what_is_done_again() -> None:
    """Killed at 50 (last told at 48), tried again at 55, at new ground at 70: 2 + 15 s repeated, 5 s waited, 22 s in all."""
    died = stage_state("train", Succeeded(at=100), (0, 50, Outcome.CRASHED), (55, 100, Outcome.SUCCEEDED))
    first, second = traced(
        [progress(10, 1), CheckpointSaved(at=30, step=20, path="x"), progress(48, 38)],
        [progress(56, 0, "items", quiet_s=60), progress(62, 21), progress(70, 39), progress(99, 100)],
    )
    found = accounts.account(
        known(died, traces={("train", 1): first, ("train", 2): second}, facts=[backed_off(50, "train", 1, 5.0)])
    )
    assert found.stages == (Account("train", useful_s=48 + 30, repeated_s=2 + 15, waiting_s=5),)
    (cost,) = found.costs
    assert (cost.at, cost.stage, cost.outcome, cost.reason, cost.seconds) == (50, "train", Outcome.CRASHED, "reason 1", 22)


def test_an_attempt_that_dies_before_its_work_is_new_pays_for_itself() -> None:
    """Three tries, the second dies in its load: the first pays its tail and its wait, the second all of its own and the third's."""
    spans: list[Span] = [(0, 50, Outcome.CRASHED), (55, 60, Outcome.CRASHED), (80, 130, Outcome.SUCCEEDED)]
    traces = traced([progress(50, 40)], [progress(56, 0)], [progress(90, 40), progress(95, 41)])
    found = accounts.account(
        known(
            stage_state("train", Succeeded(at=130), *spans),
            traces={("train", number): trace for number, trace in enumerate(traces, start=1)},
            facts=[backed_off(50, "train", 1, 5.0), backed_off(60, "train", 2, 20.0)],
        )
    )
    assert found.stages == (Account("train", useful_s=50 + 35, repeated_s=5 + 15, waiting_s=25),)
    assert [cost.seconds for cost in found.costs] == [5, 5 + 20 + 15]


def test_a_power_cut_is_lost_from_the_last_sign_of_life() -> None:
    """Found dead an hour later: the hour is an outage, and no work of the attempt, whose record ends with its discovery."""
    state = stage_state("train", Running(since=3701), (0, 3700.5, Outcome.INTERRUPTED), (3701, 0, None))
    first, second = traced([progress(10, 1), progress(100, 90)], [progress(3710, 70), progress(3720, 91)])
    found = accounts.account(
        known(state, traces={("train", 1): first, ("train", 2): second}, starts=(0, 3700), now=3800, facts=[
            fact(3700, "run.resumed"), backed_off(3700.5, "train", 1, 0.0),
        ])
    )  # fmt: skip
    (book,) = found.stages
    assert book == Account("train", useful_s=100 + 80, repeated_s=19, waiting_s=1, lost_s=3600)
    assert found.costs[0].at == 100
    assert found.costs[0].seconds == 3620


def test_a_quiet_phase_counts_as_alive_as_long_as_the_daemon_told_anything() -> None:
    """A load of ten minutes says nothing; a fact of the daemon in the middle proves that it was not yet dead."""
    state = stage_state("train", Succeeded(at=900), (0, 800, Outcome.INTERRUPTED), (801, 900, Outcome.SUCCEEDED))
    (first,) = traced([progress(5, 0, quiet_s=900)])
    found = accounts.account(known(state, traces={("train", 1): first}, starts=(0, 799), facts=[fact(300, "attempt.noted")]))
    assert found.stages[0].lost_s == 799 - 300


def test_a_dead_process_under_a_dead_daemon_is_an_outage_until_now() -> None:
    """Saved as RUNNING, both gone: work until the last event, lost since."""
    state = stage_state("train", Running(since=0), (0, 0, None))
    (trace,) = traced([progress(10, 1), progress(100, 90)])
    found = accounts.account(known(state, traces={("train", 1): trace}, now=500, alive=False, gone=frozenset({"train"})))
    assert found.stages == (Account("train", useful_s=100, lost_s=400),)


def test_what_would_have_kept_it_waiting_anyway_goes_before_an_outage() -> None:
    """A wait of 900 s in which the machine was down for 600 s cost 900 s of waiting; what is beyond the wait is lost."""
    state = stage_state("get", Succeeded(at=2000), (0, 100, Outcome.TRANSIENT), (1501, 2000, Outcome.SUCCEEDED))
    found = accounts.account(known(state, starts=(0, 1500), facts=[backed_off(100, "get", 1, 900.0)]))
    assert found.stages == (Account("get", useful_s=499, repeated_s=100, waiting_s=901, lost_s=500),)


def test_the_owners_pauses_and_stops_are_nobodys_fault() -> None:
    """Paused at 100, resumed at 400; stopped at 500, started again at 800: 300 s each, and they cost the endings nothing."""
    spans: list[Span] = [(0, 100, Outcome.STOPPED), (400, 500, Outcome.STOPPED), (800, 900, Outcome.SUCCEEDED)]
    facts = [
        asked(99, "pause: paused: running stages checkpoint and wait for `resume`"), asked(400, "resume: the run goes on"),
        asked(450, "pause: the run is paused already", ok=False),
        asked(499, "stop: running stages checkpoint, then the daemon ends"),
    ]  # fmt: skip
    traces = traced([progress(100, 10)], [progress(401, 11), progress(500, 20)], [progress(801, 21)])
    found = accounts.account(
        known(stage_state("train", Succeeded(at=900), *spans), starts=(0, 800), facts=facts,
              traces={("train", n): trace for n, trace in enumerate(traces, start=1)})
    )  # fmt: skip
    assert found.stages == (Account("train", useful_s=100 + 99 + 99, repeated_s=2, paused_s=600),)
    assert [cost.seconds for cost in found.costs] == [1, 1]


def test_a_failed_stage_waits_for_its_owner_and_a_skipped_one_is_paused() -> None:
    """From the failure to the retry is waiting, from the skip to the retry a pause."""
    failed = stage_state("train", Succeeded(at=500), (0, 100, Outcome.MISCONFIGURED), (400, 500, Outcome.SUCCEEDED))
    skipped = stage_state("score", Succeeded(at=900), (500, 600, Outcome.STOPPED), (800, 900, Outcome.SUCCEEDED))
    facts = [
        fact(100, "stage.failed", stage="train", attempt=1), asked(399, "retry train: train is tried again"),
        fact(600, "stage.skipped", stage="score", attempt=1), asked(800, "retry score: score is tried again"),
    ]  # fmt: skip
    train, score = accounts.account(known(failed, skipped, facts=facts)).stages
    assert (train.waiting_s, train.paused_s) == (300, 0)
    assert (score.waiting_s, score.paused_s) == (0, 200)


def test_waiting_for_the_disk_and_for_the_resource() -> None:
    """A full disk is waited for however long; a stage whose wait let another onto the GPU is queued until that one is done."""
    first = stage_state("one", Succeeded(at=1000), (0, 10, Outcome.TRANSIENT), (900, 1000, Outcome.SUCCEEDED))
    second = stage_state("two", Succeeded(at=900), (12, 900, Outcome.SUCCEEDED))
    third = stage_state("three", Succeeded(at=3000), (1000, 1100, Outcome.DISK_FULL), (2900, 3000, Outcome.SUCCEEDED))
    one, two, three = accounts.account(known(first, second, third, facts=[backed_off(10, "one", 1, 15.0)])).stages
    assert (one.waiting_s, one.queued_s) == (15, 875)
    assert (two.useful_s, three.waiting_s) == (888, 1800)


def test_a_machine_that_slept_is_no_work() -> None:
    """Eight hours between two events of a living attempt, whose silence may last half an hour: asleep, and no failure."""
    state = stage_state("train", Succeeded(at=30_000), (0, 30_000, Outcome.SUCCEEDED))
    (trace,) = traced([progress(10, 1), progress(28_810, 2), progress(29_000, 3, quiet_s=3600), progress(34_000, 4)])
    assert trace.asleep == ((10, 28_810),)
    found = accounts.account(known(state, traces={("train", 1): trace}))
    assert found.stages == (Account("train", useful_s=1200, lost_s=28_800),)


def test_units_that_come_later_lie_beyond_earlier_ones() -> None:
    """Texts are tokenized before examples are trained on: doing the texts again is no new ground, though the numbers rise."""
    first, second = traced(
        [progress(1, 500, "texts"), progress(2, 16, "examples")],
        [progress(11, 900, "texts"), progress(12, 16, "examples"), progress(13, 32, "examples")],
    )
    assert (first.new_from, first.new_to) == (1, 2)
    assert (second.new_from, second.new_to, second.moved_at) == (13, 13, 13)


def test_other_events_and_torn_lines_tell_of_no_work() -> None:
    """Only progress moves a stage on; any whole event is a sign of life."""
    torn = [msgspec.json.encode(Metric(at=5.0, values={"loss": 1.0}, step=9)), b'{"type":"progress","at":6.0,"do', b"\xff"]
    trace = Course(60.0).follow(accounts.said_in(torn))
    assert (trace.new_from, trace.last_at) == (None, 5.0)


TIMES = st.floats(0, 50_000, allow_nan=False)


@st.composite
def lives(draw: st.DrawFn) -> Known:
    """Any history, clocks that jump and journals that lost lines included."""
    stages, traces, facts = [], {}, []
    starts = sorted(draw(st.lists(TIMES, min_size=1, max_size=4)))
    now = draw(TIMES)
    for name in ("one", "two"):
        spans: list[Span] = [(draw(TIMES), draw(TIMES), draw(st.sampled_from([*Outcome]))) for _ in range(draw(st.integers(1, 4)))]
        waiting = BackingOff(since=now, delay_s=60, due_monotonic_s=0, boot="b", reason="", outcome=Outcome.CRASHED)
        ended = [Succeeded(at=draw(TIMES)), Failed(at=draw(TIMES), reason="", outcome=Outcome.CRASHED)]
        skipped = Skipped(at=draw(TIMES), reason="", by="owner")
        status = draw(st.sampled_from([*ended, skipped, waiting, Pending(), Running(since=0)]))
        if isinstance(status, Running):
            spans.append((draw(TIMES), 0, None))
        stages.append(stage_state(name, status, *spans))
        course = Course(1800)
        for number in range(1, len(spans) + 1):
            told = draw(st.lists(st.tuples(TIMES, st.integers(0, 100)), max_size=4))
            events = [msgspec.json.encode(progress(at, done)) for at, done in told]
            traces[name, number] = course.follow(accounts.said_in(events))
            facts += [backed_off(at, name, number, 300) for at in draw(st.lists(TIMES, max_size=1))]
        facts += [fact(at, "stage.failed", stage=name, attempt=1) for at in draw(st.lists(TIMES, max_size=1))]
    for text in ("pause: paused", "resume: the run", "stop: running", "retry one: it"):
        facts += [asked(at, text) for at in draw(st.lists(TIMES, max_size=2))]
    facts += [fact(at, kind) for kind in ("disk.held", "disk.freed") for at in draw(st.lists(TIMES, max_size=2))]
    gone = draw(st.sampled_from([frozenset[str](), frozenset({"one"})]))
    return known(*stages, facts=facts, starts=starts, now=now, alive=draw(st.booleans()), traces=traces, gone=gone)


@settings(max_examples=150, deadline=None)
@given(lives())
def test_the_pieces_of_a_life_add_up_to_its_wall_time(run: Known) -> None:
    """Whatever happened: no second is counted twice and none is missing, and no cost exceeds what was not useful."""
    found = accounts.account(run)
    for stage, book in zip(run.run.stages, found.stages, strict=True):
        worked = accounts._worked(run, stage)
        wall_s = max(worked[-1][1], accounts._end(run, stage)) - stage.attempts[0].started_at
        assert book.wall_s == pytest.approx(wall_s, abs=1e-3)
        assert all(getattr(book, f"{kind}_s") >= 0 for kind in accounts.Kind)
        paid_s = sum(cost.seconds for cost in found.costs if cost.stage == stage.name)
        assert paid_s <= book.repeated_s + book.waiting_s + book.lost_s + 1e-3
    assert found.total.wall_s == pytest.approx(sum(book.wall_s for book in found.stages), abs=1e-3)


def test_the_example_runs_accounts_can_be_read(finished_workspace: Workspace) -> None:
    """From real files: a power cut of an hour under Marian, a crash of Whisper, an out of memory that was never made good."""
    seen = view.read(finished_workspace)
    now = seen.run.finished_at
    assert now is not None
    found = accounts.read(finished_workspace, seen, now)
    books = {book.stage: book for book in found.stages}
    marian = seen.run.stage("train_marian")
    assert books["train_marian"].lost_s == pytest.approx(3600, abs=1)
    assert books["train_marian"].repeated_s == pytest.approx(11, abs=1)  # steps 50 to 60 again
    assert books["train_marian"].wall_s == pytest.approx((marian.attempts[-1].ended_at or 0) - marian.attempts[0].started_at)
    assert [(cost.stage, cost.outcome) for cost in found.costs] == [
        ("train_whisper", Outcome.CRASHED), ("train_marian", Outcome.INTERRUPTED), ("train_gemma_12b", Outcome.OUT_OF_MEMORY),
    ]  # fmt: skip
    assert "evaluate_12b" not in books


def test_a_terminal_shows_them_in_eighty_columns(finished_workspace: Workspace) -> None:
    """One row a stage, kinds that never occurred left out, each ending with its cost."""
    seen = view.read(finished_workspace)
    shown = accounts.lines(accounts.read(finished_workspace, seen, seen.run.finished_at or 0.0))
    assert max(map(len, shown)) <= 80
    assert shown[0].split() == ["stage", "useful", "repeated", "lost", "queued", "together"]
    assert "train_marian INTERRUPTED" in shown[-2]
    assert "60 min" in shown[-2]
    assert "60 min" not in shown[-3]  # Whisper had crashed before: the outage is no part of what that cost
    assert [accounts.hours(seconds) for seconds in (0.0, 12.0, 2000.0, 93_960.0)] == ["-", "12 s", "33 min", "26.1 h"]

"""The thread that keeps the forecast: it follows the run, keeps what is new, remembers durations, and can fail without harm."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from daemon import supervisor
from daemon.effects import Heard
from daemon.planning.foresight import Foresight, as_heard, history_file, moved
from state.contract import Outcome, Progress
from state.forecast import Duration, Forecast, StageForecast, digest_of, durations, forecasts, keep_duration, keep_forecast, latest
from state.machine import Status
from state.pipeline import Pipeline, StageConfig
from state.snapshot import Attempt, Running, RunState, StageState, Succeeded
from state.store import Store, read_journal
from state.workspace import Workspace

HOUR_S = 3600.0


def probe(name, **more):
    return StageConfig(name=name, module="tests.process.probe", **more)


def make_run(started_at, *stages, **states):
    return RunState(
        id="r",
        pipeline=Pipeline(name="p", stages=stages),
        pipeline_path="p.toml",
        started_at=started_at,
        stages=tuple(states.get(stage.name, StageState(name=stage.name)) for stage in stages),
    )


def until(condition):
    """What `condition` gives once it gives something."""
    end_s = time.monotonic() + 20.0
    while time.monotonic() < end_s:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to pass in time")


@pytest.fixture
def foresight(tmp_path):
    own = Foresight(Workspace.at(tmp_path / "w"), history=tmp_path / "state" / "durations.jsonl")
    yield own
    own.close()


def test_it_follows_the_run(tmp_path, foresight):
    """The first call starts it; a forecast comes, is kept, and rests on the pace once a stage has told one."""
    now = time.time()
    working = StageState(name="a", status=Running(since=now - 100), attempts=(Attempt(number=1, started_at=now - 100),))
    run = make_run(now - 100, probe("a", budget_h=5.0), probe("b", budget_h=1.0))
    assert foresight.follow(run, ()) is None
    first = until(lambda: foresight.follow(run, ()))
    assert [stage.source for stage in first.stages] == ["budget", "budget"]
    told = [Heard("a", 1, n, Progress(at=now - 100 + 50 * n, done=10.0 * n, total=1000.0, unit="files")) for n in range(3)]
    run = replace(run, stages=(working, run.stages[1]))
    foresight.follow(run, told)
    second = until(lambda: (found := foresight.follow(run, ())) is not first and found)
    assert second.stage("a").source == "pace"
    until(lambda: len(forecasts(Workspace.at(tmp_path / "w"))) == 2)
    assert latest(Workspace.at(tmp_path / "w")) == second


def test_what_a_training_tells_before_its_steps_is_no_pace(foresight):
    """Cutting texts into tokens takes minutes and says nothing about the hours after it."""
    stage = StageConfig(name="a", module="stages.train_x", budget_h=5.0)
    now = time.time()
    run = make_run(now, stage, a=StageState(name="a", status=Running(since=now), attempts=(Attempt(number=1, started_at=now),)))
    tokens = [Heard("a", 1, n, Progress(at=now + n, done=n, total=10.0, unit="texts")) for n in range(5)]
    foresight.follow(run, tokens)
    assert until(lambda: foresight.follow(run, ())).stage("a").source == "budget"


def test_whole_stages_are_remembered_once(tmp_path, foresight):
    """A stage that succeeded goes into the history, over any number of daemons; a shortened or a short one teaches nothing."""
    now = time.time()

    def done(name, seconds, **more):
        attempt = Attempt(number=1, started_at=now - seconds, ended_at=now, outcome=Outcome.SUCCEEDED)
        return StageState(name=name, status=Succeeded(at=now), attempts=(attempt,), **more)

    stages = (probe("long"), probe("short"), probe("less"), probe("last"))
    run = make_run(now, *stages, long=done("long", HOUR_S), short=done("short", 5), less=done("less", HOUR_S, work_share=0.5))
    history = tmp_path / "state" / "durations.jsonl"
    foresight.follow(run, ())
    until(lambda: durations(history))
    foresight.close()
    again = Foresight(Workspace.at(tmp_path / "w"), history=history)
    again.follow(run, ())
    until(lambda: again.follow(run, ()))
    again.close()
    (known,) = durations(history)
    assert (known.stage, known.digest, round(known.seconds)) == ("long", digest_of(stages[0]), 3600)


def test_an_outage_is_no_work(tmp_path):
    """An attempt that went down with the daemon worked until it was last heard, not until it was found."""
    workspace = Workspace.at(tmp_path)
    gone = Attempt(number=1, started_at=1000.0, ended_at=90_000.0, outcome=Outcome.INTERRUPTED)
    crashed = Attempt(number=2, started_at=90_000.0, ended_at=91_000.0, outcome=Outcome.CRASHED)
    silent = replace(gone, number=3, started_at=91_000.0, ended_at=95_000.0)
    events = workspace.attempt("a", 1).events
    events.parent.mkdir(parents=True)
    events.write_bytes(b"{}\n")
    os.utime(events, (4000.0, 4000.0))
    run = make_run(1000.0, probe("a"), a=StageState(name="a", attempts=(gone, crashed, silent)))
    found = as_heard(run, workspace).stage("a").attempts
    assert [attempt.ended_at for attempt in found] == [4000.0, 91_000.0, 91_000.0]


def test_what_cannot_be_kept_harms_nobody(tmp_path):
    """The plan's folder is a file: forecasts are made all the same, and the end is not held up."""
    workspace = Workspace.at(tmp_path / "w")
    workspace.root.mkdir()
    workspace.forecasts.parent.write_text("in the way")
    own = Foresight(workspace, history=tmp_path / "durations.jsonl")
    run = make_run(time.time(), probe("a"))
    assert until(lambda: own.follow(run, ()))
    began_s = time.monotonic()
    own.close()
    assert time.monotonic() - began_s < 1.0


def test_only_news_is_kept():
    """Five minutes or 2 % of what is left, a verdict, a deadline: news. Less is none."""
    base = Forecast(
        at=0.0,
        p50_at=50 * HOUR_S,
        p80_at=100 * HOUR_S,
        deadline_at=200 * HOUR_S,
        stages=(StageForecast(stage="a", p50_at=1.0, p80_at=2.0, source="pace", work_share=1.0),),
    )
    assert moved(None, base)
    assert not moved(base, replace(base, at=60.0, p80_at=base.p80_at + 290, p50_at=base.p50_at - 290))
    assert moved(base, replace(base, p80_at=base.p80_at + 310))
    assert moved(base, replace(base, p50_at=base.p50_at - 310))
    assert moved(base, replace(base, deadline_at=None))
    assert moved(base, replace(base, leave_out=("a",)))
    assert moved(base, replace(base, stages=(replace(base.stages[0], work_share=0.5),)))
    short = replace(base, p50_at=50.0, p80_at=100.0)
    assert moved(short, replace(short, p80_at=103.0))
    assert not moved(short, replace(short, p80_at=101.0))


def test_the_files_survive_torn_lines(tmp_path):
    """What a crash tore is passed over, and the next line stands by itself."""
    workspace, history = Workspace.at(tmp_path), tmp_path / "h" / "durations.jsonl"
    one = Forecast(at=1.0, p50_at=2.0, p80_at=3.0)
    keep_forecast(workspace, one)
    with open(workspace.forecasts, "ab") as file:
        file.write(msgspec.json.encode(one)[:-9])
    keep_forecast(workspace, replace(one, at=9.0))
    assert [kept.at for kept in forecasts(workspace)] == [1.0, 9.0]
    assert latest(workspace).at == 9.0
    lasted = Duration(run="r", stage="a", digest="d", at=1.0, seconds=2.0)
    keep_duration(history, lasted)
    keep_duration(history, replace(lasted, seconds=3.0))
    assert durations(history) == [lasted]
    assert latest(Workspace.at(tmp_path / "none")) is None


def test_the_history_belongs_to_the_user(monkeypatch):
    """The XDG state folder, where it is set."""
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert history_file() == Path("/somewhere/vigil/durations.jsonl")


def test_a_real_run_with_a_deadline(tmp_path):
    """A real daemon: the bonus for which there is no time is left out with the reason, the small one gets its time, all is told."""
    due = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + 3 * HOUR_S))
    stages = (
        probe("first", budget_h=0.1, settings={"steps": 2}),
        probe("large", budget_h=26.0, optional=True, after=("first",)),
        probe("small", budget_h=0.5, optional=True, after=("large",), settings={"steps": 2}),
    )
    workspace = Workspace.at(tmp_path / "w")
    workspace.logs.mkdir(parents=True)
    pipeline = Pipeline(name="p", deadline=due, keep_free_gb=0.0, stages=stages)
    assert supervisor.watch_over(workspace, pipeline, tmp_path / "p.toml", with_report=False) == 0
    run = Store(workspace.state).peek()
    assert [stage.state for stage in run.stages] == [Status.SUCCEEDED, Status.SKIPPED, Status.SUCCEEDED]
    assert run.stage("large").status.reason.startswith("there is no time for it: it may end ")
    assert run.deadline_at == time.mktime(time.strptime(due, "%Y-%m-%d %H:%M"))
    assert "plan.made" in [fact.kind for fact in read_journal(workspace.journal)]
    assert latest(workspace).deadline_at == run.deadline_at

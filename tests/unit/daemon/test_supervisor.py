"""Opening a run: a new one, the same one again, and what is refused."""

from datetime import datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

from daemon.config import ConfigError
from daemon.supervisor import WorkspaceMismatchError, open_run
from state.pipeline import Pipeline, StageConfig
from state.snapshot import Attempt, PlanTold, Succeeded
from state.store import Store

FILE = Path("p.toml")


def pipeline(*names, name="p", **settings):
    stages = tuple(StageConfig(name=n, module="tests.process.probe", settings=settings) for n in names)
    return Pipeline(name=name, stages=stages)


def worked_on(store, *names):
    """A saved run whose first stage has succeeded."""
    run, _ = open_run(store, pipeline(*names), FILE)
    first = replace(run.stages[0], status=Succeeded(at=1.0), attempts=(Attempt(number=1, started_at=0.5),))
    run = replace(run, stages=(first, *run.stages[1:]))
    store.save(run)
    return run


def test_the_same_pipeline_goes_on_with_its_settings_taken_anew(tmp_path):
    """Statuses stay, the id stays, changed settings and new stages count."""
    store = Store(tmp_path / "state.json")
    saved = worked_on(store, "a", "b")
    run, repair = open_run(store, pipeline("a", "new", "b", steps=9), FILE)
    assert repair == ""
    assert run.id == saved.id
    assert [stage.name for stage in run.stages] == ["a", "new", "b"]
    assert isinstance(run.stage("a").status, Succeeded)
    assert run.pipeline.stage("b").settings == {"steps": 9}


@pytest.mark.parametrize(("other", "word"), [(pipeline("b"), "a"), (pipeline("a", "b", name="q"), "another --workspace")])
def test_a_pipeline_that_does_not_fit_is_refused(tmp_path, other, word):
    """Another name, or a begun stage gone: refused, and the state stays as it is."""
    store = Store(tmp_path / "state.json")
    worked_on(store, "a", "b")
    before = store.path.read_bytes()
    with pytest.raises(WorkspaceMismatchError, match=word):
        open_run(store, other, FILE)
    assert store.path.read_bytes() == before


def test_the_deadline_counts_from_the_start_and_is_settled_once(tmp_path):
    """It is kept while its text stays, counted anew when that changes, and what was told of the plan is then forgotten."""
    store = Store(tmp_path / "state.json")
    first, _ = open_run(store, replace(pipeline("a"), deadline="Tue 08:00"), FILE)
    assert 0 < first.deadline_at - first.started_at <= 7 * 86_400 + 3600
    store.save(replace(first, deadline_at=5.0, plan=PlanTold(p80_at=1.0, late=True)))
    same, _ = open_run(store, replace(pipeline("a"), deadline="Tue 08:00"), FILE)
    assert (same.deadline_at, same.plan) == (5.0, PlanTold(p80_at=1.0, late=True))
    other, _ = open_run(store, replace(pipeline("a"), deadline="2099-02-17 08:00"), FILE)
    assert other.deadline_at == datetime(2099, 2, 17, 8).astimezone().timestamp()
    assert other.plan is None
    none, _ = open_run(store, pipeline("a"), FILE)
    assert none.deadline_at is None


def test_a_deadline_before_the_start_is_refused(tmp_path):
    """With the file, the field and what to write; the run is not begun."""
    store = Store(tmp_path / "state.json")
    with pytest.raises(ConfigError, match=r"p\.toml: the deadline '2001-01-01 08:00' is not after .* at `\$\.deadline`"):
        open_run(store, replace(pipeline("a"), deadline="2001-01-01 08:00"), FILE)
    assert not store.exists()


def test_a_stage_not_begun_may_go(tmp_path):
    """What never ran can be taken out of the pipeline."""
    store = Store(tmp_path / "state.json")
    worked_on(store, "a", "b")
    run, _ = open_run(store, pipeline("a"), FILE)
    assert [stage.name for stage in run.stages] == ["a"]

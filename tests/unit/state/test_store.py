"""state.json: old or new, never torn, and never silently clean."""

import msgspec
import pytest

from state.pipeline import Pipeline, StageConfig
from state.snapshot import Fact, RunState, StageState
from state.store import Journal, StateUnreadableError, Store, read_journal, seal, unseal


def make_run(paused: bool = False) -> RunState:
    pipeline = Pipeline(name="p", stages=(StageConfig(name="a", module="tests.process.probe"),))
    return RunState(
        id="r1", pipeline=pipeline, pipeline_path="p.toml", started_at=1.0, stages=(StageState(name="a"),), paused=paused
    )


def test_a_saved_run_loads_equal(tmp_path):
    """What was saved is what is loaded, and nothing needed mending."""
    store = Store(tmp_path / "state.json")
    store.save(make_run())
    store.save(make_run(paused=True))
    loaded = store.load()
    assert loaded.run == make_run(paused=True)
    assert loaded.repair == ""


def test_the_previous_generation_is_kept(tmp_path):
    """state.json.prev holds the run before the last save."""
    store = Store(tmp_path / "state.json")
    store.save(make_run())
    store.save(make_run(paused=True))
    assert unseal(store.previous.read_bytes()) == make_run()


@pytest.mark.parametrize("cut", [0, 1, 200])
def test_a_truncated_state_falls_back_and_says_so(tmp_path, cut):
    """The previous generation is used, the caller is told once, the damaged file is kept; test_store_damage.py has every cut."""
    store = Store(tmp_path / "state.json")
    store.save(make_run())
    store.save(make_run(paused=True))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:cut])
    loaded = store.load()
    assert loaded.run == make_run()
    assert "previous generation" in loaded.repair
    assert store.path.with_name("state.json.damaged").exists()
    assert store.load().repair == ""


def test_with_both_generations_damaged_loading_fails(tmp_path):
    """Never a clean start over an unreadable state: the message names both files and the next step."""
    store = Store(tmp_path / "state.json")
    store.save(make_run())
    store.save(make_run())
    store.path.write_bytes(b"{}")
    store.previous.write_bytes(b"")
    with pytest.raises(StateUnreadableError, match=r"state\.json.*state\.json\.prev.*restore one"):
        store.load()


def test_a_missing_state_beside_a_previous_one_is_repaired(tmp_path):
    """A state.json that vanished is brought back from the previous generation, and said so."""
    store = Store(tmp_path / "state.json")
    store.save(make_run())
    store.save(make_run(paused=True))
    store.path.unlink()
    assert store.load().run == make_run()
    assert store.path.exists()


def test_a_newer_schema_is_refused():
    """A state of a newer Vigil is not guessed at."""
    run = msgspec.structs.replace(make_run(), schema=99)
    with pytest.raises(Exception, match="newer"):
        unseal(seal(run))


def test_a_fact_is_told_once(tmp_path):
    """The journal passes over a fact whose id it has, also after a restart, and over a torn last line."""
    path = tmp_path / "journal.jsonl"
    fact = Fact(id="1", at=1.0, kind="run.started", text="started")
    assert Journal(path).tell(fact)
    with path.open("ab") as file:
        file.write(b'{"id":"2","at":1')
    again = Journal(path)
    assert not again.tell(fact)
    assert again.tell(msgspec.structs.replace(fact, id="3"))
    assert [fact.id for fact in read_journal(path)] == ["1", "3"]

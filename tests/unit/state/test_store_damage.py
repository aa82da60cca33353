"""Damage to state.json and journal.jsonl, bit by bit and byte by byte: detected or harmless, and never a silent clean start."""

import random
from pathlib import Path

import msgspec
import pytest

from state.durable import sealed
from state.pipeline import Pipeline, StageConfig
from state.snapshot import Fact, RunState, StageState
from state.store import Journal, StateUnreadableError, Store, read_journal, scan_journal

FLIPS = 10_000
FACTS = tuple(Fact(id=f"{n:06d}", at=float(n), kind="stage.noted", text=f"fact {n}", fields={"n": n}) for n in range(1, 5))


def run_of(facts: int) -> RunState:
    pipeline = Pipeline(name="p", stages=(StageConfig(name="a", module="tests.process.probe"),))
    return RunState(id="r", pipeline=pipeline, pipeline_path="p", started_at=1.0, stages=(StageState(name="a"),), facts=facts)


@pytest.fixture
def store(memory_path: Path) -> Store:
    store = Store(memory_path / "state.json")
    store.save(run_of(1))
    store.save(run_of(2))
    return store


def flips(whole: bytes) -> list[bytes]:
    rng, damaged = random.Random(3), []
    for _ in range(FLIPS):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(data))
    return damaged


def cuts(whole: bytes) -> list[bytes]:
    return [whole[:length] for length in range(len(whole))]


def restore(store: Store, current: bytes, previous: bytes) -> None:
    store.path.write_bytes(current)
    store.previous.unlink()  # a repair has made the two one file
    store.previous.write_bytes(previous)


@pytest.mark.parametrize("damage", [flips, cuts])
def test_a_damaged_state_gives_way_to_the_one_before(store, damage):
    """Every truncation and every flip of state.json is seen: the previous generation is used and that is said."""
    current, previous = store.path.read_bytes(), store.previous.read_bytes()
    for data in damage(current):
        restore(store, data, previous)
        loaded = store.load()
        assert loaded.run == run_of(1)
        assert "previous generation" in loaded.repair


@pytest.mark.parametrize("damage", [flips, cuts])
def test_a_damaged_previous_state_is_never_used(store, damage):
    """Beside a whole state.json it does no harm; beside a damaged one Vigil refuses to start."""
    current, previous = store.path.read_bytes(), store.previous.read_bytes()
    for data in damage(previous):
        restore(store, current, data)
        assert store.load().run == run_of(2)
        store.path.write_bytes(current[:-1])
        with pytest.raises(StateUnreadableError):
            store.load()


@pytest.mark.parametrize("damage", [flips, cuts])
def test_a_damaged_journal_is_said(memory_path, damage):
    """No flip or cut turns a fact into another one; what is lost is named against the run."""
    path = memory_path / "journal.jsonl"
    journal = Journal(path)
    for fact in FACTS:
        journal.tell(fact)
    whole = path.read_bytes()
    for data in damage(whole):
        path.write_bytes(data)
        kept = read_journal(path)
        assert all(fact in FACTS for fact in kept)
        assert (len(kept) == len(FACTS)) == (Journal(path).damage(run_of(len(FACTS))) == "")


def test_a_whole_journal_has_no_damage(memory_path):
    """A fact that is still untold is not missing, nor is a journal that was never begun."""
    run = msgspec.structs.replace(run_of(1), untold=FACTS[:1])
    assert Journal(memory_path / "journal.jsonl").damage(run) == ""
    assert "1 of the facts told are missing" in Journal(memory_path / "journal.jsonl").damage(run_of(1))


def test_a_damaged_journal_is_kept_and_goes_on(memory_path):
    """The first telling writes the whole facts anew and keeps the damaged file beside them."""
    path = memory_path / "journal.jsonl"
    path.write_bytes(sealed(msgspec.json.encode(FACTS[0])) + b"\n" + sealed(msgspec.json.encode(FACTS[1]))[:-9] + b"\n")
    journal = Journal(path)
    assert journal.tell(FACTS[2])
    assert scan_journal(path) == ([FACTS[0], FACTS[2]], 0)
    assert path.with_name("journal.jsonl.damaged").exists()
    assert "1 of its lines cannot be read, 1 of the facts told are missing" in journal.damage(run_of(3))


def test_lines_without_a_checksum_are_read(memory_path):
    """The journal of an older Vigil counts as told."""
    path = memory_path / "journal.jsonl"
    path.write_bytes(msgspec.json.encode(FACTS[0]) + b"\n")
    assert not Journal(path).tell(FACTS[0])
    assert read_journal(path) == [FACTS[0]]


def test_a_number_used_twice_is_told_under_another_name(memory_path):
    """A run that went back a generation numbers its facts anew: the story of the repair is told all the same, and once."""
    path = memory_path / "journal.jsonl"
    Journal(path).tell(FACTS[0])
    other = msgspec.structs.replace(FACTS[0], text="went on from the previous generation")
    assert Journal(path).tell(other)
    assert not Journal(path).tell(other)
    assert [fact.id for fact in read_journal(path)] == ["000001", "000001+"]


def test_a_state_that_cannot_be_seen_is_no_clean_start(store, monkeypatch):
    """A refused look at the files is an error, not a workspace without a run; nothing is set aside."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "lstat", refuse)
    with pytest.raises(PermissionError):
        store.exists()
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(PermissionError):
        store.load()
    monkeypatch.undo()
    assert store.load().run == run_of(2)

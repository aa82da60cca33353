"""The disk: everything waits before a save fails, and goes on by itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from daemon import policy
from daemon.clock import Now
from daemon.effects import Ask, Launch, Reclaim, Seen, Stop, Tell
from daemon.ending import Sight
from state.contract import ExitRecord, Result
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import RunState, StageState

GB = 1_000_000_000
PIPELINE = Pipeline(
    name="p",
    keep_free_gb=2.0,
    keep_free_windows_gb=10.0,
    stages=(
        StageConfig(name="a", module="tests.process.probe"),
        StageConfig(name="b", module="tests.process.probe", resource=Resource.GPU),
        StageConfig(name="c", module="tests.process.probe", needs=("a",)),
    ),
)
RECEIPT = Result(stage="a", attempt=1, at=1.0)


def step(run, seen, seconds):
    run, effects = policy.step(run, seen, Now(at=1000.0 + seconds, monotonic_s=seconds, boot="b"))
    return replace(run, untold=()), effects


def begun():
    """A run whose stages a and b are at work."""
    states = tuple(StageState(name=stage.name) for stage in PIPELINE.stages)
    run = RunState(id="r", pipeline=PIPELINE, pipeline_path="p.toml", started_at=0.0, stages=states)
    return step(run, Seen(free_bytes=50 * GB), 0)[0]


ALIVE = (Sight("a", 1, alive=True), Sight("b", 1, alive=True))
STOPPED = ExitRecord(code=83, at=1.0)


def kinds(effects):
    return [effect.fact.kind for effect in effects if isinstance(effect, Tell)]


@pytest.mark.parametrize(
    ("short", "words"),
    [
        ({"free_bytes": GB, "free_windows_bytes": 50 * GB}, "the disk has 1.0 GB free and 2 GB are to be kept"),
        ({"free_bytes": 50 * GB, "free_windows_bytes": 9 * GB}, "the Windows drive has 9.0 GB free and 10 GB are to be kept"),
    ],
)
def test_a_nearly_full_disk_holds_everything_and_space_lets_it_go_on(short, words):
    """Told once; running stages are asked to checkpoint; nothing starts; a quarter more than the limit ends the hold."""
    run, effects = step(begun(), Seen(sights=ALIVE, **short), 1)
    assert run.disk_hold == words
    assert kinds(effects) == ["disk.held"]
    assert [e for e in effects if isinstance(e, Reclaim)] == [Reclaim((), ())]
    assert {e for e in effects if isinstance(e, Stop)} == {Stop("a", 1, Ask.TERM), Stop("b", 1, Ask.TERM)}
    gone = tuple(Sight(name, 1, alive=False, record=STOPPED) for name in "ab")
    run, effects = step(run, Seen(sights=gone, **short), 2)
    assert not any(isinstance(e, Launch) for e in effects)
    barely = {name: int(size * 1.1) if size < 10 * GB else size for name, size in short.items()}
    run, effects = step(run, Seen(**barely), 9000)
    assert effects == []
    run, effects = step(run, Seen(free_bytes=50 * GB, free_windows_bytes=50 * GB), 9001)
    assert "disk.freed" in kinds(effects)
    assert [e.spec.stage for e in effects if isinstance(e, Launch)] == ["a", "b"]


def test_what_is_not_known_neither_holds_nor_releases():
    """A drive that does not answer changes nothing in either direction."""
    run = begun()
    after, effects = step(run, Seen(sights=ALIVE), 1)
    assert (after, effects) == (run, [])
    run, _ = step(run, Seen(sights=ALIVE, free_bytes=0), 2)
    run, effects = step(run, Seen(sights=ALIVE), 3)
    assert run.disk_hold
    assert "disk.freed" not in kinds(effects)


def test_what_may_go_is_named_by_how_the_stages_ended():
    """Of a settled stage the leftovers, of a succeeded one the scratch; nothing of one that is under way."""
    run, _ = step(
        begun(), Seen(sights=(Sight("a", 1, alive=False, record=ExitRecord(code=0, at=1.0), receipt=RECEIPT), ALIVE[1])), 1
    )
    _, effects = step(run, Seen(free_bytes=0), 2)
    assert [e for e in effects if isinstance(e, Reclaim)] == [Reclaim(("a",), ("a",))]


def test_what_was_freed_is_told():
    """In the owner's units."""
    _, effects = step(begun(), Seen(sights=ALIVE, reclaimed_bytes=3 * GB), 1)
    assert [e.fact.text for e in effects if isinstance(e, Tell)] == ["3.0 GB freed: leftovers, and the scratch of finished stages"]

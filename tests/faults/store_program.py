"""The real store and journal under fault: state n has told n facts. As in the daemon, a disk that refuses is tried again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from state.pipeline import Pipeline, StageConfig
from state.snapshot import Fact, RunState, StageState
from state.store import Journal, Store, read_journal

LAST = 3
TRIES = 2
PIPELINE = Pipeline(name="p", description="d" * 5000, stages=(StageConfig(name="a", module="tests.process.probe"),))


def generation(number: int) -> RunState:
    """State `number`, larger than a page of memory, so that it can tear."""
    untold = (Fact(id=f"{number:06d}", at=float(number), kind="stage.noted", text=f"fact {number}"),) if number else ()
    return RunState(
        id="r", pipeline=PIPELINE, pipeline_path="p", started_at=1.0, stages=(StageState(name="a"),), facts=number, untold=untold
    )


def work(folder: Path, last: int, ack: Callable[[int], None]) -> None:
    root = folder / "run"
    root.mkdir(exist_ok=True)
    store, journal = Store(root / "state.json"), Journal(root / "journal.jsonl")
    begun = store.load().run.facts if store.exists() else 0
    for number in range(max(1, begun), last + 1):  # the first save of a daemon comes before it acts on what it loaded
        _keep(store, journal, generation(number))
        ack(number)


def _keep(store: Store, journal: Journal, run: RunState) -> None:
    for left in reversed(range(TRIES)):
        try:
            store.save(run)
            for fact in run.untold:
                journal.tell(fact)
            return
        except OSError:
            if not left:
                raise


def found(folder: Path, acked: int) -> int:
    root = folder / "run"
    store = Store(root / "state.json")
    told = [int(fact.id) for fact in read_journal(root / "journal.jsonl")]
    assert told == list(range(1, len(told) + 1)), f"journal: {told}"
    assert len(told) >= acked, f"{acked} facts acknowledged, journal: {told}"
    if not store.exists():
        assert not told
        return 0
    loaded = store.load()
    assert not loaded.repair or not acked, loaded.repair  # the first generation's two names may be half there
    assert loaded.run == generation(loaded.run.facts)
    assert loaded.run.facts - 1 <= len(told) <= loaded.run.facts
    return loaded.run.facts

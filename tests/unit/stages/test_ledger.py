"""The ledger proves what was used, and notices what was not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.data_order import DataOrder
from stages.ledger import Entry, Ledger, LedgerError, Mark, Proof, prove

ORDER = DataOrder(np.array([(size, 0) for size in (5, 3, 8, 2, 9, 4, 7)]), effective_batch=3, epochs=2, seed=1)


def fill(ledger: Ledger, steps: range, skip: frozenset[int] = frozenset()) -> None:
    for step in steps:
        batch = ORDER.batch(step)
        ledger.append(Entry(step + 1, tuple(i for i in batch if i not in skip), tuple(i for i in batch if i in skip)))


def proof_of(ledger: Ledger) -> Proof:
    ledger.close()
    return prove(ledger.entries(), ORDER.batch, ORDER.steps, 2)


def test_whole_training_is_proved(tmp_path: Path) -> None:
    """A ledger that follows the order to its end proves every example used `epochs` times."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    fill(ledger, range(ORDER.steps))
    proof = proof_of(ledger)
    assert proof.exact
    assert proof.used == 14


def test_cut_back_to_a_checkpoint(tmp_path: Path) -> None:
    """What was recorded after the checkpoint is forgotten on resume, and the rest goes on to the same bytes."""
    whole = Ledger(tmp_path / "whole.jsonl")
    fill(whole, range(ORDER.steps))
    whole.close()
    ledger = Ledger(tmp_path / "ledger.jsonl")
    fill(ledger, range(2))
    mark = ledger.mark()
    fill(ledger, range(2, 4))
    ledger.close()
    resumed = Ledger(tmp_path / "ledger.jsonl", mark)
    fill(resumed, range(2, ORDER.steps))
    assert proof_of(resumed).exact
    assert (tmp_path / "ledger.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_skipped_examples_are_named(tmp_path: Path) -> None:
    """Examples left out after a divergence stand in the ledger by name, and the proof still holds."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    fill(ledger, range(2))
    fill(ledger, range(2, ORDER.steps), skip=frozenset({4}))
    proof = proof_of(ledger)
    assert proof.exact
    assert proof.skipped == (4,)
    assert proof.used < 14


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ([Entry(1, ORDER.batch(0)), Entry(3, ORDER.batch(2))], "step 3 follows step 1"),
        ([Entry(1, ORDER.batch(0)), Entry(2, ORDER.batch(0))], "step 2 used other examples"),
        ([Entry(1, ORDER.batch(0)[:-1])], "step 1 used other examples"),
        ([Entry(1, ORDER.batch(0))], "1 steps are recorded, 6 were done"),
    ],
    ids=["lost", "repeated", "incomplete", "short"],
)
def test_faults_are_found(entries: list[Entry], fault: str) -> None:
    """A lost, repeated or incomplete step is found and named."""
    proof = prove(iter(entries), ORDER.batch, ORDER.steps, 2)
    assert not proof.exact
    assert fault in proof.first_fault


def test_wrong_count_is_found() -> None:
    """A plan that itself repeats an example is found by counting."""
    proof = prove(iter([Entry(1, (0, 1)), Entry(2, (1, 1))]), lambda step: [(0, 1), (1, 1)][step], 2, 1)
    assert not proof.exact
    assert "example 1 stands 3 times" in proof.first_fault


@pytest.mark.parametrize("damage", ["shorter", "changed", "missing"])
def test_damaged_ledger_is_refused(tmp_path: Path, damage: str) -> None:
    """A ledger that is not what the checkpoint recorded is refused and left as it is."""
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    fill(ledger, range(3))
    mark = ledger.mark()
    ledger.close()
    content = path.read_bytes()
    damaged = {"shorter": content[:-5], "changed": content.replace(b"1", b"2"), "missing": b""}[damage]
    path.write_bytes(damaged)
    if damage == "missing":
        path.unlink()
    with pytest.raises(LedgerError):
        Ledger(path, mark)
    assert damage == "missing" or path.read_bytes() == damaged


def test_empty_mark_is_the_beginning(tmp_path: Path) -> None:
    """Without a checkpoint an older file is cut to nothing."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b'{"step":1,"examples":[1]}\n')
    ledger = Ledger(path, Mark())
    assert list(ledger.entries()) == []
    ledger.close()


def test_a_part_of_an_epoch_is_proved(tmp_path: Path) -> None:
    """Where the last epoch is not whole each example stands once more or not; twice more is a fault."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for step in range(4):
        ledger.append(Entry(step + 1, ORDER.batch(step)))
    proof = prove(ledger.entries(), ORDER.batch, 4, 4 / ORDER.per_epoch)
    ledger.close()
    assert (proof.exact, proof.used) == (True, sum(len(ORDER.batch(step)) for step in range(4)))
    assert not prove(iter([Entry(1, (0,)), Entry(2, (1, 1, 1))]), lambda step: [(0,), (1, 1, 1)][step], 2, 1.5).exact

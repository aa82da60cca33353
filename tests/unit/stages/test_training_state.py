"""The files of a training are read back as they were written, or refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from stages.ledger import Mark
from stages.training_rules import Sanity
from stages.training_state import (
    OPTIMIZER,
    WEIGHTS,
    BestWeights,
    Position,
    Scored,
    Snapshot,
    checkpoint_bytes,
    free_memory_bytes,
    load_optimizer,
    load_weights,
    save_optimizer,
    save_weights,
    trainable,
)
from state.contract import MisconfiguredError
from tests.process.tiny_training import TinyModel, recipe, tiny_model


def stepped(model: torch.nn.Module) -> torch.optim.AdamW:
    """An optimizer that has made one step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    plan = recipe(model)
    plan.token_loss(model, plan.train.collate(range(8)))[0].backward()
    optimizer.step()
    return optimizer


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    """Trainable weights survive the file; frozen ones are not in it."""
    model = tiny_model()
    model.words.weight.requires_grad_(False)
    stepped(model)
    save_weights(model, tmp_path / "w")
    other = TinyModel()
    other.words.weight.requires_grad_(False)
    load_weights(other, tmp_path / "w")
    assert all(torch.equal(value, trainable(other)[name]) for name, value in trainable(model).items())
    assert not torch.equal(other.words.weight, model.words.weight)


@pytest.mark.parametrize("width", [8, 16], ids=["shape", "names"])
def test_weights_of_another_model_are_refused(tmp_path: Path, width: int) -> None:
    """Other shapes, or another set of trainable names: the message names the first tensor."""
    save_weights(tiny_model(), tmp_path / "w")
    other = TinyModel(width=width)
    other.out.bias.requires_grad_(width != 16)
    with pytest.raises(MisconfiguredError, match=r"does not fit the model: .* the first is"):
        load_weights(other, tmp_path / "w")


def test_optimizer_goes_on_alike(tmp_path: Path) -> None:
    """A step with a restored optimizer equals the step that the original makes; nothing is unpickled."""
    model, other = tiny_model(0.0), tiny_model(0.0)
    optimizer = stepped(model)
    save_weights(model, tmp_path / "w")
    save_optimizer(optimizer, tmp_path / "o")
    load_weights(other, tmp_path / "w")
    restored = torch.optim.AdamW(other.parameters(), lr=0.01)
    load_optimizer(restored, tmp_path / "o")
    for one, steps in ((model, optimizer), (other, restored)):
        one.zero_grad()
        plan = recipe(one)
        plan.token_loss(one, plan.train.collate(range(8, 16)))[0].backward()
        steps.step()
    assert all(torch.equal(value, trainable(other)[name]) for name, value in trainable(model).items())


def test_position_is_readable_json() -> None:
    """The position survives the manifest's JSON exactly, losses included."""
    position = Position(
        step=3, sanity=Sanity((0.1, 1 / 3), 2, 0), scores=(Scored(0, 2 / 3),), ledger=Mark(5, "ab"), fingerprint={"a": "b"}
    )
    text = msgspec.json.encode(msgspec.to_builtins(position))
    assert msgspec.convert(msgspec.json.decode(text), Position) == position


def test_best_weights_are_kept_and_checked(tmp_path: Path) -> None:
    """The best weights are found again, a changed file is noticed, and those that nobody names are removed."""
    store, model = BestWeights(tmp_path / "best"), tiny_model()
    first = store.keep(model, Scored(1, 2.0))
    stepped(model)
    second = store.keep(model, Scored(9, 1.0))
    other = TinyModel()
    store.restore(other, second)
    assert all(torch.equal(value, trainable(other)[name]) for name, value in trainable(model).items())
    store.forget_all_but([9])
    assert (store.whole(first), store.whole(second)) == (False, True)
    file = tmp_path / "best" / "step-00000009" / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert not store.whole(second)


def test_a_snapshot_is_what_a_save_would_write(tmp_path: Path) -> None:
    """The files of a copy are to the byte those of the model at that moment, though training has gone on since."""
    model = tiny_model()
    optimizer, snapshot = stepped(model), Snapshot()
    save_weights(model, tmp_path / WEIGHTS)
    save_optimizer(optimizer, tmp_path / OPTIMIZER)
    snapshot.take(tiny_model(), torch.optim.AdamW(tiny_model().parameters()))  # what it held before does not shine through
    frozen = snapshot.take(model, optimizer)
    optimizer.step()
    assert frozen is not None
    (tmp_path / "later").mkdir()
    frozen.write(tmp_path / "later")
    assert (tmp_path / "later" / WEIGHTS).read_bytes() == (tmp_path / WEIGHTS).read_bytes()
    kept, now = (torch.load(folder / OPTIMIZER, weights_only=True) for folder in (tmp_path / "later", tmp_path))
    assert kept["param_groups"] == now["param_groups"]
    assert all(
        torch.equal(kept["state"][number][name], value) for number in now["state"] for name, value in now["state"][number].items()
    )
    assert frozen.finite()
    with torch.no_grad():
        model.words.weight[3] = float("nan")
    broken = snapshot.take(model, optimizer)
    assert broken is not None
    assert not broken.finite()


def test_a_snapshot_takes_a_share_of_what_is_free() -> None:
    """Four times its size must be free before it is made, and nothing once it is there; where memory is short there is none."""
    model = tiny_model()
    optimizer = stepped(model)
    free = iter([4 * checkpoint_bytes(model, optimizer) - 1, 4 * checkpoint_bytes(model, optimizer), 0])
    snapshot = Snapshot(lambda: next(free))
    assert snapshot.take(model, optimizer) is None
    assert snapshot.take(model, optimizer) is not None
    assert snapshot.take(model, optimizer) is not None
    assert Snapshot(lambda: 0).take(model, optimizer) is None
    assert free_memory_bytes() > 0

"""`train` as a whole, on a real model with dropout: exact resume, stop, divergence, the quality gate, the ledger."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from stages.recipe import Batch, Trained
from stages.runtime import StageContext
from stages.training import train
from stages.training_state import trainable
from state.checkpoints import MANIFEST, Manifest
from state.contract import (
    BatchPlan,
    DivergedError,
    MemoryFit,
    Metric,
    MisconfiguredError,
    Note,
    OutOfMemoryError,
    Progress,
    StopRequested,
)
from state.settings import Training
from tests.process.tiny_training import changed, context, data, recipe, sequences, tiny_model, token_loss, weights
from tests.stage_attempts import events, notes

SETTINGS = Training(model="tiny", epochs=3, effective_batch=8, learning_rate=1e-2, checkpoint_every_steps=4, evaluations=4)
STEPS = 24


def untimed(trained: Trained) -> dict[str, float]:
    return {name: value for name, value in trained.metrics.items() if name not in ("seconds", "tokens_per_s")}


@dataclass(frozen=True)
class Whole:
    """A training that nothing disturbed."""

    ctx: StageContext
    trained: Trained
    weights: torch.Tensor


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> Iterator[None]:
    """Trainer collects garbage at each start; without the 400,000 objects of the imports that takes 0.4 s less."""
    import stages.training_adapter  # noqa: F401  the imports that are meant

    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    ctx, plan = context(tmp_path_factory.mktemp("whole")), recipe()
    return Whole(ctx, train(ctx, SETTINGS, plan), weights(plan.model))


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights that SETTINGS give the model without dropout."""
    plan = recipe(tiny_model(0.0))
    train(context(tmp_path_factory.mktemp("whole")), SETTINGS, plan)
    return weights(plan.model)


class Stopping:
    """A token loss that asks for a stop at its `call`-th call, as SIGTERM would at that moment."""

    def __init__(self, ctx: StageContext, call: int) -> None:
        self.ctx, self.left = ctx, call

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        self.left -= 1
        if self.left == 0:
            self.ctx.request_stop()
        return token_loss(model, batch)


def test_training_learns_and_tells(uninterrupted: Whole) -> None:
    """A whole training lowers the dev loss, tells progress and metrics, and proves its ledger."""
    ctx, trained = uninterrupted.ctx, uninterrupted.trained
    assert trained.steps == STEPS
    assert trained.examples_seen == 180
    assert trained.metrics["ledger_exact"] == 1.0
    assert trained.metrics["dev_loss_after"] < trained.metrics["dev_loss_before"] - 0.3
    told = {event.step: event.values for event in events(ctx) if isinstance(event, Metric) and "loss" in event.values}
    assert {1, STEPS} <= told.keys()
    assert told[STEPS].keys() == {"loss", "learning_rate", "grad_norm", "tokens_per_s"}
    assert {event.step for event in events(ctx) if isinstance(event, Metric) and "dev_loss" in event.values} == {0, 6, 12, 18, 24}


@pytest.mark.parametrize("call", [1, 2, 9, 23, 35], ids=["probe", "evaluation", "early", "middle", "last score"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, uninterrupted: Whole, call: int) -> None:
    """Stopped at any moment and resumed with a fresh model, a training ends with the same bits, ledger and scores."""
    first = context(tmp_path / "cut")
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(recipe(), token_loss=Stopping(first, call)))
    again, plan = context(tmp_path / "cut", attempt=2), recipe()
    trained = train(again, SETTINGS, plan)
    assert torch.equal(weights(plan.model), uninterrupted.weights)
    assert (again.scratch() / "ledger.jsonl").read_bytes() == (uninterrupted.ctx.scratch() / "ledger.jsonl").read_bytes()
    assert untimed(trained) == untimed(uninterrupted.trained)
    assert trained.metrics["ledger_exact"] == 1.0


def test_finished_training_is_not_done_again(uninterrupted: Whole) -> None:
    """An attempt after the last step (killed while it delivered) trains nothing, and ends with the same weights."""

    def never(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        raise AssertionError("nothing is left to train")

    again = changed(recipe(), token_loss=never)
    root = uninterrupted.ctx.workspace.root
    assert train(context(root, attempt=2), SETTINGS, again).metrics == uninterrupted.trained.metrics
    assert torch.equal(weights(again.model), uninterrupted.weights)


def test_micro_batch_may_change_between_attempts(tmp_path: Path, without_dropout: torch.Tensor) -> None:
    """The data order stays when the micro-batch changes on resume; without dropout the weights agree to rounding."""
    first = context(tmp_path / "cut")
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(recipe(tiny_model(0.0)), token_loss=Stopping(first, 15)))
    plan = recipe(tiny_model(0.0))
    again = context(tmp_path / "cut", attempt=2, batch=BatchPlan(micro_batch=3))
    assert train(again, SETTINGS, plan).metrics["ledger_exact"] == 1.0
    assert torch.allclose(weights(plan.model), without_dropout, atol=1e-5)
    fits = [event.micro_batch for event in events(again) if isinstance(event, MemoryFit)]
    assert fits == [3]


def test_nothing_fits(tmp_path: Path) -> None:
    """Where one example alone does not fit, the attempt ends as OUT_OF_MEMORY before its first step."""

    def full(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(OutOfMemoryError, match="one example alone"):
        train(context(tmp_path), SETTINGS, changed(recipe(), token_loss=full))


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": {"data": "other"}}, {"train": data([*sequences(59), [1, 2, 3]])}, {"settings": "effective_batch"}],
    ids=["content", "lengths", "effective batch"],
)
def test_changed_data_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """A checkpoint of other data or another effective batch is not resumed from: the message says what changed."""
    first = context(tmp_path)
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(recipe(), token_loss=Stopping(first, 20)))
    settings = SETTINGS if "settings" not in change else msgspec.structs.replace(SETTINGS, effective_batch=4)
    values = {name: value for name, value in change.items() if name != "settings"}
    with pytest.raises(MisconfiguredError, match=r"belongs to another training: .* was .* and is"):
        train(context(tmp_path, attempt=2), settings, changed(recipe(), **values))


@pytest.mark.parametrize(("share", "steps", "examples"), [(0.4, 10, 76), (0.5, 12, 90), (0.001, 1, 8)])
def test_a_share_of_the_work(tmp_path: Path, share: float, steps: int, examples: int) -> None:
    """So much of all steps, whole effective batches, with a schedule that is made for them; the ledger proves exactly those."""
    ctx, plan = context(tmp_path, work_share=share), recipe()
    trained = train(ctx, SETTINGS, plan)
    told = [event for event in events(ctx) if isinstance(event, Progress) and event.steps]
    rates = [
        event.values["learning_rate"] for event in events(ctx) if isinstance(event, Metric) and "learning_rate" in event.values
    ]
    assert (trained.steps, trained.metrics["ledger_exact"], trained.metrics["work_share"]) == (steps, 1.0, share)
    assert trained.examples_seen == pytest.approx(examples, abs=8)
    assert (told[-1].done, told[-1].total, told[-1].steps) == (trained.examples_seen, trained.examples_seen, steps)
    assert rates[-1] == pytest.approx(SETTINGS.learning_rate / max(1, steps - 1))  # it has come down to its last step
    lines = (ctx.scratch() / "ledger.jsonl").read_bytes().splitlines()
    assert sum(len(msgspec.json.decode(line)["examples"]) for line in lines) == trained.examples_seen
    epochs = f"{steps // 8} or {steps // 8 + 1}"
    assert f"The ledger proves 60 examples used each {epochs} times, {trained.examples_seen} in all" in notes(ctx)


def test_a_share_is_settled_when_it_begins(tmp_path: Path) -> None:
    """A resumed attempt cannot change it: neither less nor all of the work goes on from there. The same share does, to the bit."""
    first, plan = context(tmp_path / "cut", work_share=0.5), recipe()
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(plan, token_loss=Stopping(first, 6)))
    for other in (0.4, 1.0):
        with pytest.raises(MisconfiguredError, match=r"work_share was 0\.5"):
            train(context(tmp_path / "cut", 2, work_share=other), SETTINGS, recipe())
    again, whole = recipe(), recipe()
    train(context(tmp_path / "cut", 3, work_share=0.5), SETTINGS, again)
    train(context(tmp_path / "whole", work_share=0.5), SETTINGS, whole)
    assert torch.equal(weights(again.model), weights(whole.model))


def test_no_examples(tmp_path: Path) -> None:
    """Nothing to train on is a wrong configuration, not a division by zero."""
    with pytest.raises(MisconfiguredError, match="no training example"):
        train(context(tmp_path), SETTINGS, changed(recipe(), train=data([])))


class Poisoned:
    """A token loss that is not finite for batches of training that contain the sequence of example 5."""

    def __init__(self, poison: float) -> None:
        self.poison = poison
        self.row = torch.tensor(sequences(60)[5][:-1])

    def __call__(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        loss, count = token_loss(model, batch)
        hit = model.training and any(torch.equal(row[: len(self.row)], self.row) for row in batch["tokens"])
        return (loss * self.poison if hit else loss), count


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_loss_that_is_not_finite_diverges(tmp_path: Path, poison: float) -> None:
    """NaN or Inf ends the attempt as DIVERGED before a weight changes, naming the examples; without them the next one finishes."""
    settings = msgspec.structs.replace(SETTINGS, checkpoint_every_steps=1)
    plan = changed(recipe(), token_loss=Poisoned(poison))
    ctx = context(tmp_path)
    with pytest.raises(DivergedError, match="diverged at step"):
        train(ctx, settings, plan)
    assert bool(torch.isfinite(weights(plan.model)).all())
    told = next(event for event in events(ctx) if isinstance(event, Note) and event.level == "error")
    assert "s5" in told.fields["examples"]
    plan = changed(recipe(), token_loss=Poisoned(poison))
    again = context(tmp_path, attempt=2, skip_examples=("s5",), learning_rate_scale=0.5)
    trained = train(again, settings, plan)
    assert trained.metrics["ledger_exact"] == 1.0
    assert trained.steps == STEPS
    assert "1 left out after a divergence" in notes(again)
    assert trained.examples_seen < 180


def test_divergence_goes_back_to_a_healthy_checkpoint(tmp_path: Path) -> None:
    """A loss that jumps and stays makes later checkpoints unhealthy; the attempt after the divergence starts before them."""
    settings = Training(model="tiny", epochs=20, effective_batch=8, learning_rate=1e-3, checkpoint_every_steps=3, dev_examples=0)
    calls = 0

    def jump(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        nonlocal calls
        calls += 1
        loss, count = token_loss(model, batch)
        return (loss * 4 if calls > 60 else loss), count

    with pytest.raises(DivergedError, match="far above"):
        train(context(tmp_path), settings, changed(recipe(dev=False), token_loss=jump))
    manifests = [
        msgspec.json.decode(file.read_bytes(), type=Manifest)
        for file in sorted(context(tmp_path).checkpoints.folder.glob(f"step-*/{MANIFEST}"))
    ]
    assert [manifest.healthy for manifest in manifests] == [True, False, False]
    assert manifests[0].step in (57, 60)
    again = context(tmp_path, attempt=2, learning_rate_scale=0.5)
    trained = train(again, settings, recipe(dev=False))
    assert f"Went back to the healthy checkpoint of step {manifests[0].step}; 2 later ones" in notes(again)
    assert trained.metrics["ledger_exact"] == 1.0


def test_learning_rate_scale_is_honoured(tmp_path: Path, uninterrupted: Whole) -> None:
    """The spec's scale multiplies the learning rate, also on resume from a checkpoint that was made at another one."""
    settings = msgspec.structs.replace(SETTINGS, checkpoint_every_steps=2)
    first = context(tmp_path)
    with pytest.raises(StopRequested):
        train(first, settings, changed(recipe(), token_loss=Stopping(first, 20)))
    again = context(tmp_path, attempt=2, learning_rate_scale=0.25)
    train(again, settings, recipe())

    def rates(ctx: StageContext) -> dict[int | None, float]:
        return {e.step: e.values["learning_rate"] for e in events(ctx) if isinstance(e, Metric) and "learning_rate" in e.values}

    assert rates(again)
    assert rates(again) == {step: pytest.approx(rates(uninterrupted.ctx)[step] / 4) for step in rates(again)}


def test_best_weights_are_delivered(tmp_path: Path) -> None:
    """When the score rises again, the training ends early and the weights of the best score are left in the model."""
    ctx = context(tmp_path)
    plan = recipe(dev=False)
    kept: dict[float, torch.Tensor] = {}
    scores = iter([5.0, 3.0, 4.0, 4.1, 4.2, 4.3, 4.4])

    def score() -> float:
        value = next(scores)
        kept[value] = weights(plan.model).clone()
        return value

    plan = changed(plan, dev_score=score)
    trained = train(ctx, msgspec.structs.replace(SETTINGS, evaluations=6), plan)
    assert trained.ended_early
    assert trained.best_step == 4
    assert trained.steps == 16
    assert torch.equal(weights(plan.model), kept[3.0])
    assert "ended early at step 16 of 24" in notes(ctx)
    assert trained.metrics["ledger_exact"] == 1.0
    assert (trained.metrics["dev_score_before"], trained.metrics["dev_score_after"]) == (5.0, 3.0)
    assert sorted(path.name for path in (ctx.scratch() / "best").iterdir()) == ["step-00000004"]


def test_training_that_only_harms_delivers_the_start(tmp_path: Path) -> None:
    """When no score beats the first, the weights are those that the model started with, and the owner is told."""
    ctx, plan = context(tmp_path), recipe(dev=False)
    start = weights(plan.model).clone()
    scores = iter(range(1, 100))
    plan = changed(plan, dev_score=lambda: float(next(scores)))
    assert train(ctx, SETTINGS, plan).best_step == 0
    assert torch.equal(weights(plan.model), start)
    assert "no better dev score" in notes(ctx)


def test_damaged_checkpoint_is_set_aside(tmp_path: Path, uninterrupted: Whole) -> None:
    """A flipped byte in the newest checkpoint: the one before it is used, the end is the same bits, and it is told."""
    first = context(tmp_path / "cut")
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(recipe(), token_loss=Stopping(first, 30)))
    newest = sorted(first.checkpoints.folder.glob("step-*"))[-1]
    file = newest / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    again, plan = context(tmp_path / "cut", attempt=2), recipe()
    assert train(again, SETTINGS, plan).metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(plan.model), uninterrupted.weights)
    assert f"damaged-{newest.name}" in notes(again)


def test_lost_ledger_is_admitted(tmp_path: Path) -> None:
    """Without its ledger a training still finishes, and does not claim the proof."""
    first = context(tmp_path)
    with pytest.raises(StopRequested):
        train(first, SETTINGS, changed(recipe(), token_loss=Stopping(first, 20)))
    (first.scratch() / "ledger.jsonl").unlink()
    again = context(tmp_path, attempt=2)
    assert train(again, SETTINGS, recipe()).metrics["ledger_exact"] == 0.0
    assert "does not prove" in notes(again)


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    """Only what has requires_grad is trained and checkpointed: an adapter's base is left alone."""
    plan = recipe()
    plan.model.words.weight.requires_grad_(False)
    before = plan.model.words.weight.detach().clone()
    ctx = context(tmp_path)
    train(ctx, SETTINGS, plan)
    assert torch.equal(plan.model.words.weight, before)
    assert "words.weight" not in trainable(plan.model)


def test_after_backward_masks_the_gradient(tmp_path: Path) -> None:
    """What `after_backward` sets to zero does not move."""
    plan = recipe()
    row = plan.model.words.weight.detach()[3].clone()

    def mask() -> None:
        plan.model.words.weight.grad[3] = 0.0

    train(context(tmp_path), SETTINGS, changed(plan, after_backward=mask))
    assert torch.equal(plan.model.words.weight[3], row)


def test_after_a_training_in_bfloat16_the_model_computes_in_its_own_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer's autocast would stay in the model's forward; an attempt that only delivers has none."""
    from stages import training_adapter

    arguments = training_adapter._arguments
    monkeypatch.setattr(training_adapter, "bf16", lambda _settings: True)
    monkeypatch.setattr(training_adapter, "_arguments", lambda *given: {**arguments(*given), "use_cpu": True})
    tokens, dtypes = torch.tensor([[1, 2, 3, 4]]), set()
    model = tiny_model()
    model.out.register_forward_hook(lambda _module, _inputs, output: dtypes.add(output.dtype))
    train(context(tmp_path), SETTINGS, recipe(model))
    assert torch.bfloat16 in dtypes
    plain = tiny_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(tokens), plain.eval()(tokens))

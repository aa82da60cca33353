"""Promise 7: a training that diverges goes back, leaves out what was at fault, and in the end delivers the best that it had."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from stages import training_rules as rules
from stages.data_order import DataOrder
from stages.recipe import Batch, Recipe, Trained
from stages.runtime import StageContext
from stages.training import train
from stages.training_state import OPTIMIZER, WEIGHTS
from state.checkpoints import MANIFEST, Manifest, verify
from state.contract import DivergedError, Divergence, Metric, StopRequested
from state.settings import Training
from tests.process.tiny_training import changed, context, data, recipe, tiny_model, token_loss, weights
from tests.stage_attempts import events, notes

SETTINGS = Training(model="tiny", epochs=1, effective_batch=8, learning_rate=1e-2, checkpoint_every_steps=1, evaluations=2)
LONG = Training(model="tiny", epochs=3, effective_batch=8, learning_rate=1e-2, checkpoint_every_steps=10, evaluations=15)
SEED = 3
MAX_ATTEMPTS = 6


def wide() -> Recipe:
    """400 examples, all different."""
    return changed(recipe(), train=data([[(start + i) % 40 for i in range(4 + size)] for size in range(10) for start in range(40)]))


def order(plan: Recipe, settings: Training) -> DataOrder:
    sizes = np.array([(one.length, one.target_length) for one in plan.train.examples])
    return DataOrder(sizes, settings.effective_batch, settings.epochs, SEED)


def ids(indices: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"s{index}" for index in indices)


def rows_of(plan: Recipe, indices: Sequence[int]) -> list[list[int]]:
    """What tells examples in a batch: their targets."""
    return [plan.train.collate([index])["labels"][0].tolist() for index in indices]


def contains(batch: Batch, rows: Sequence[list[int]]) -> bool:
    targets = [[label for label in line if label != -100] for line in batch["labels"].tolist()]
    return any(row in targets for row in rows)


@dataclass
class Story:
    """Attempts one after another, each told by the policy's rules what the ones before found out."""

    root: Path
    settings: Training
    attempts: list[StageContext] = field(default_factory=list)
    skip: set[str] = field(default_factory=set)

    def attempt(self, plan: Recipe, **spec: Any) -> Trained:
        values = {"learning_rate_scale": 0.5 ** len(self.attempts), "skip_examples": tuple(sorted(self.skip))} | spec
        ctx = context(self.root, attempt=len(self.attempts) + 1, **values)
        self.attempts.append(ctx)
        try:
            return train(ctx, self.settings, plan)
        finally:
            self.skip |= {one for event in self.divergences(ctx) for one in event.examples}

    def diverges(self, plan: Recipe, **spec: Any) -> Divergence:
        """The next attempt's divergence."""
        with pytest.raises(DivergedError):
            self.attempt(plan, **spec)
        (found,) = self.divergences(self.attempts[-1])
        return found

    @staticmethod
    def divergences(ctx: StageContext) -> list[Divergence]:
        return [event for event in events(ctx) if isinstance(event, Divergence)]

    @property
    def told(self) -> str:
        return notes(self.attempts[-1])


def nan_loss(loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan


def infinite_gradient(loss: torch.Tensor) -> torch.Tensor:
    """A finite loss whose gradient is infinite."""
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * math.inf)
    return loss


class Faulty:
    """A token loss with a fault in training: in batches that contain one of `rows`, or in any."""

    def __init__(self, fault: Callable[[torch.Tensor], torch.Tensor], rows: Sequence[list[int]] | None = None) -> None:
        self.fault, self.rows = fault, rows

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        loss, count = token_loss(model, batch)
        hit = model.training and torch.is_grad_enabled() and (self.rows is None or contains(batch, self.rows))
        return (self.fault(loss) if hit else loss), count


@pytest.mark.parametrize("fault", [nan_loss, infinite_gradient])
def test_offenders_are_isolated_and_left_out(tmp_path: Path, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Two examples that are not finite: each is found alone among its batch, left out, named; the third attempt finishes."""
    plan = recipe()
    steps = order(plan, SETTINGS)
    first, second = steps.batch(3)[5], steps.batch(6)[2]
    plan = changed(plan, token_loss=Faulty(fault, rows_of(plan, [first, second])))
    story = Story(tmp_path, SETTINGS)
    found = story.diverges(plan)
    assert (found.step, found.examples) == (4, ids([first]))
    assert bool(torch.isfinite(weights(plan.model)).all())
    found = story.diverges(changed(recipe(), token_loss=plan.token_loss))
    assert (found.step, found.examples) == (7, ids([second]))
    trained = story.attempt(changed(recipe(), token_loss=plan.token_loss))
    assert (trained.steps, trained.examples_seen, trained.metrics["ledger_exact"]) == (8, 58, 1.0)
    assert "2 left out after a divergence" in story.told
    ledger = (tmp_path / "stages" / "train_tiny" / "work" / "ledger.jsonl").read_text().splitlines()
    assert [f'"skipped":[{first}]' in line for line in ledger] == [number == 3 for number in range(8)]
    assert [f'"skipped":[{second}]' in line for line in ledger] == [number == 6 for number in range(8)]


def test_whole_batch_is_named_where_one_cannot_be_told(tmp_path: Path) -> None:
    """Every example of the batch fails alone: all are named, and the training goes on without them."""
    plan = recipe()
    batch = order(plan, SETTINGS).batch(4)
    story = Story(tmp_path, SETTINGS)
    assert set(story.diverges(changed(plan, token_loss=Faulty(nan_loss, rows_of(plan, batch)))).examples) == set(ids(batch))
    assert story.attempt(changed(recipe(), token_loss=Faulty(nan_loss, rows_of(plan, batch)))).examples_seen == 52


class At:
    """An `after_backward` that acts once, at the training's step `step`; the probe is call 0."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self.left, self.act = step + 1, act

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            self.act()


def manifests(ctx: StageContext) -> dict[int, bool]:
    """Whether each checkpoint is healthy, by step."""
    files = sorted(ctx.checkpoints.folder.glob(f"step-*/{MANIFEST}"))
    found = [msgspec.json.decode(file.read_bytes(), type=Manifest) for file in files]
    return {manifest.step: manifest.healthy for manifest in found}


def test_broken_weights_blame_no_example(tmp_path: Path) -> None:
    """A weight becomes NaN at step 5: its checkpoint is not healthy, no example is named, the next attempt starts before it."""
    plan = recipe()
    story = Story(tmp_path, SETTINGS)
    found = story.diverges(changed(plan, after_backward=At(5, lambda: plan.model.out.bias.data[3].fill_(math.nan))))
    assert (found.step, found.examples) == (6, ())
    assert "the weights themselves are broken" in found.reason
    assert manifests(story.attempts[0]).get(5, False) is False
    again = recipe()
    trained = story.attempt(again)
    assert "Resumed from step 4" in story.told
    assert (trained.examples_seen, trained.metrics["ledger_exact"]) == (60, 1.0)
    assert bool(torch.isfinite(weights(again.model)).all())


def test_spike_names_its_batches_and_the_next_attempt_goes_on_without_them(tmp_path: Path) -> None:
    """The loss jumps at step 41 and stays: the batches of the ten steps since are named, skipped and in the ledger."""
    plan = wide()
    steps = order(plan, LONG)
    bad = [index for step in range(40, 50) for index in steps.batch(step)]
    loss = Faulty(lambda loss: loss * 6, rows_of(plan, bad))
    story = Story(tmp_path, LONG)
    found = story.diverges(changed(plan, token_loss=loss))
    assert (found.step, set(found.examples)) == (50, set(ids(bad)))
    trained = story.attempt(changed(wide(), token_loss=loss))
    assert "Resumed from step 30" in story.told
    assert (trained.steps, trained.metrics["ledger_exact"]) == (150, 1.0)
    assert "80 left out after a divergence" in story.told
    assert trained.examples_seen == 3 * 320
    told = [event for event in events(story.attempts[-1]) if isinstance(event, Metric)]
    assert told[0].step == 31
    assert told[0].values["learning_rate"] == pytest.approx(
        0.5 * LONG.learning_rate * rules.learning_rate_factor(30, 150, LONG.warmup_share)
    )


def test_step_without_examples_is_no_step_of_the_optimizer(tmp_path: Path) -> None:
    """All of a batch is skipped: weights, moments and their step count stay as they are, weight decay included."""
    settings = msgspec.structs.replace(SETTINGS, weight_decay=0.1, evaluations=1)
    plan = recipe()
    batch = order(plan, settings).batch(4)
    ctx = context(tmp_path, skip_examples=ids(batch))
    stop = Faulty(lambda loss: ctx.request_stop() or loss, rows_of(plan, order(plan, settings).batch(5)))
    with pytest.raises(StopRequested):
        train(ctx, settings, changed(plan, token_loss=stop))
    before, after = (verify(ctx.checkpoints.folder / f"step-{step:08d}") for step in (4, 5))
    assert before.manifest.files[WEIGHTS] == after.manifest.files[WEIGHTS]
    kept, left = (torch.load(one.path / OPTIMIZER, weights_only=True)["state"] for one in (before, after))
    assert {float(moments["step"]) for moments in kept.values()} == {4.0}
    assert all(torch.equal(kept[number][name], left[number][name]) for number in kept for name in kept[number])
    assert train(context(tmp_path, attempt=2, skip_examples=ids(batch)), settings, recipe()).metrics["ledger_exact"] == 1.0


def test_all_steps_between_two_metrics_may_be_skipped(tmp_path: Path) -> None:
    """A training whose every example is left out ends with the weights that it began with, and tells no loss."""
    plan, ctx = recipe(dev=False), context(tmp_path, skip_examples=ids(range(60)))
    start = weights(plan.model)
    trained = train(ctx, SETTINGS, plan)
    assert (trained.steps, trained.examples_seen, trained.metrics["ledger_exact"]) == (8, 0, 1.0)
    assert torch.equal(weights(plan.model), start)
    assert not any("loss" in event.values for event in events(ctx) if isinstance(event, Metric))


def test_healthy_checkpoint_that_holds_the_fault_is_not_resumed(tmp_path: Path) -> None:
    """Step 40 ruins the weights after its sane loss was taken, and is saved as healthy: the next attempt starts at step 30."""
    plan = wide()
    story = Story(tmp_path, LONG)
    ruin = At(40, lambda: plan.model.out.weight.data.mul_(-30))
    found = story.diverges(changed(plan, after_backward=ruin))
    assert found.step == 50
    assert manifests(story.attempts[0]) == {30: True}
    assert "may hold the fault" in notes(story.attempts[0])
    again = wide()
    assert story.attempt(again, skip_examples=()).metrics["ledger_exact"] == 1.0
    assert "Resumed from step 30" in story.told


def dev_loss(plan: Recipe) -> float:
    """The dev loss of the model as it is, taken anew."""
    plan.model.eval()
    with torch.no_grad():
        loss, count = token_loss(plan.model, plan.dev.collate(range(len(plan.dev.examples))))
    return float(loss) / count


def curve(ctx: StageContext) -> dict[int | None, float]:
    """The dev loss at each step that was scored."""
    found = [event for event in events(ctx) if isinstance(event, Metric)]
    return {event.step: event.values["dev_loss"] for event in found if "dev_loss" in event.values}


def test_too_many_divergences_deliver_the_best(tmp_path: Path) -> None:
    """Every batch fails from step 36 on, whatever is skipped: told to, the last attempt delivers the best weights and the story."""
    story = Story(tmp_path, LONG)
    for _attempt in range(3):
        plan = wide()
        steps = order(plan, LONG)
        rows = rows_of(plan, [index for step in range(35, 50) for index in steps.batch(step)])
        found = story.diverges(changed(plan, token_loss=Faulty(nan_loss, rows)), skip_examples=())
        assert found.step == 36
    with story.attempts[1].attempt.events.open("ab") as file:
        file.write(b'{"type":"divergence","at":1.0,"st')  # torn
    plan = wide()
    trained = story.attempt(plan, deliver_best=True)
    assert trained.ended_early
    assert trained.metrics["diverged"] == 1.0
    assert trained.metrics["ledger_exact"] == 1.0
    assert "diverged 3 times (at the steps 36, 36, 36) and goes no further: the weights of step 30" in story.told
    assert dev_loss(plan) == pytest.approx(min(curve(story.attempts[0]).values()), rel=1e-5)
    assert "loss" not in {name for event in events(story.attempts[-1]) if isinstance(event, Metric) for name in event.values}


def test_without_a_dev_set_the_healthy_weights_are_delivered(tmp_path: Path) -> None:
    """What `deliver_best` leaves in the model are the weights of the newest healthy checkpoint."""
    plan, story = recipe(dev=False), Story(tmp_path, SETTINGS)
    rows = rows_of(plan, order(plan, SETTINGS).batch(5))
    story.diverges(changed(plan, token_loss=Faulty(nan_loss, rows)))
    newest = story.attempts[0].checkpoints.newest_valid(healthy_only=True)
    assert newest is not None
    plan = recipe(dev=False)
    assert story.attempt(plan, deliver_best=True).steps == newest.step == 4
    other = tiny_model()
    from stages.training_state import load_weights

    load_weights(other, newest.path / WEIGHTS)
    assert torch.equal(weights(plan.model), weights(other))


def test_nothing_to_deliver(tmp_path: Path) -> None:
    """It diverged before its first checkpoint, each time: there is nothing to deliver, and it says so."""
    story = Story(tmp_path, SETTINGS)
    story.diverges(changed(recipe(), token_loss=Faulty(nan_loss)), skip_examples=())
    with pytest.raises(DivergedError, match=r"diverged 1 times \(at the steps 1\).*nothing|no healthy checkpoint"):
        story.attempt(recipe(), deliver_best=True)


class Forgetting:
    """A token loss that teaches the truth for `steps` steps, and from then on something else about every other word."""

    def __init__(self, steps: int) -> None:
        self.left = steps + 1  # and the probe

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if not model.training:
            return token_loss(model, batch)
        self.left -= 1
        labels = batch["labels"]
        if self.left < 0:
            labels = torch.where((labels < 0) | (labels % 2 == 0), labels, (labels + 7) % 40)
        return token_loss(model, {**batch, "labels": labels})


def test_training_that_forgets_delivers_its_best(tmp_path: Path) -> None:
    """It learns, then learns something else: it ends early, and the weights delivered have the best dev loss of the whole curve."""
    ctx, plan = context(tmp_path), wide()
    trained = train(ctx, LONG, changed(plan, token_loss=Forgetting(60)))
    scores = curve(ctx)
    best = min(scores, key=lambda step: scores[step])
    assert trained.ended_early
    assert trained.steps < 150
    assert trained.best_step == best
    assert 60 <= best < trained.steps
    assert dev_loss(plan) == pytest.approx(scores[best], rel=1e-5)
    assert scores[trained.steps] > 1.1 * scores[best]
    assert trained.metrics["dev_loss_after"] == scores[best]
    assert trained.metrics["ledger_exact"] == 1.0

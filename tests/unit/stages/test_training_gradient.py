"""Micro-batches: every cut gives the same gradient, and memory that runs out costs no step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stages.recipe import Recipe
from stages.runtime import StageContext
from stages.training_gradient import Gradients, drop_gradients, optimizer_ballast, recoverable
from state.contract import OutOfMemoryError, StopRequested
from tests.process.tiny_training import context, recipe, tiny_model, token_loss

CPU = torch.device("cpu")
BATCH = tuple(range(8))


def gradients(ctx: StageContext, plan: Recipe, micro_batch: int) -> Gradients:
    return Gradients(ctx, plan, CPU, micro_batch, micro_batch)


def gradient_of(ctx: StageContext, plan: Recipe, micro_batch: int, step: int = 0) -> torch.Tensor:
    """The whole gradient of BATCH as one vector."""
    drop_gradients(plan.model)
    gradients(ctx, plan, micro_batch).compute(plan.model, BATCH, step, lambda _done: None)
    return torch.cat([parameter.grad.reshape(-1) for parameter in plan.model.parameters() if parameter.grad is not None])


class Scarce:
    """A token loss on a device that holds `examples` at once: beyond that the true error is raised, inside backward or forward."""

    def __init__(self, examples: int, error: Callable[[], BaseException] | None = None) -> None:
        self.examples = examples
        self.error = error or (lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
        self.raised = 0

    def __call__(self, model: nn.Module, batch: dict[str, Any]) -> tuple[torch.Tensor, int]:
        loss, count = token_loss(model, batch)
        if len(batch["tokens"]) > self.examples:
            self.raised += 1
            raise self.error()
        return loss, count


def with_loss(plan: Recipe, loss: Any) -> Recipe:
    return Recipe(**{**vars(plan), "token_loss": loss})


@pytest.mark.parametrize("micro_batch", [4, 3, 2, 1])
def test_every_cut_gives_the_same_gradient(tmp_path: Path, micro_batch: int) -> None:
    """Without dropout the gradient of 8 examples is that of 4+4, 3+3+2, 2x4 and 1x8, to 1e-5 of its size."""
    ctx, plan = context(tmp_path), recipe(tiny_model(dropout=0.0))
    whole, cut = gradient_of(ctx, plan, 8), gradient_of(ctx, plan, micro_batch)
    assert float((whole - cut).norm() / whole.norm()) < 1e-5


def test_gradient_is_that_of_the_mean_token_loss(tmp_path: Path) -> None:
    """The gradient is that of the cross-entropy averaged over the effective batch's target tokens, taken in one piece."""
    ctx, plan = context(tmp_path), recipe(tiny_model(dropout=0.0))
    ours = gradient_of(ctx, plan, 2)
    drop_gradients(plan.model)
    batch = plan.train.collate(BATCH)
    loss = nn.functional.cross_entropy(plan.model(batch["tokens"]).reshape(-1, 40), batch["labels"].reshape(-1), ignore_index=-100)
    loss.backward()
    theirs = torch.cat([parameter.grad.reshape(-1) for parameter in plan.model.parameters() if parameter.grad is not None])
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_step_can_be_done_again(tmp_path: Path) -> None:
    """With dropout on, the same step gives the same gradient bit by bit, whatever ran before; another step another one."""
    ctx, plan = context(tmp_path), recipe(tiny_model(dropout=0.3))
    first = gradient_of(ctx, plan, 4, step=5)
    torch.rand(17)
    assert torch.equal(gradient_of(ctx, plan, 4, step=5), first)
    assert not torch.equal(gradient_of(ctx, plan, 4, step=6), first)


@pytest.mark.parametrize("fits", [4, 2, 1])
def test_out_of_memory_halves_and_redoes_the_step(tmp_path: Path, fits: int) -> None:
    """Memory for fewer examples: the micro-batch is halved until it fits, the gradient is that of this cut, the fit is told."""
    ctx, plan = context(tmp_path), recipe(tiny_model(dropout=0.3))
    expected = gradient_of(ctx, plan, fits)
    drop_gradients(plan.model)
    scarce = Scarce(fits)
    ours = gradients(ctx, with_loss(plan, scarce), 8)
    ours.compute(plan.model, BATCH, 0, lambda _done: None)
    got = torch.cat([parameter.grad.reshape(-1) for parameter in plan.model.parameters() if parameter.grad is not None])
    assert ours.micro_batch == fits
    assert scarce.raised == {4: 1, 2: 2, 1: 3}[fits]
    assert torch.equal(got, expected)
    assert f'"micro_batch":{fits}' in ctx.attempt.events.read_text().splitlines()[-2]


def test_below_one_example_is_out_of_memory(tmp_path: Path) -> None:
    """When one example alone does not fit, the stage says so; the fit told last is 1, so that the ladder goes on from there."""
    ctx, plan = context(tmp_path), recipe()
    with pytest.raises(OutOfMemoryError, match="one example alone"):
        gradients(ctx, with_loss(plan, Scarce(0)), 8).compute(plan.model, BATCH, 0, lambda _done: None)
    assert '"micro_batch":1' in ctx.attempt.events.read_text()
    assert all(parameter.grad is None for parameter in plan.model.parameters())


def test_other_errors_pass(tmp_path: Path) -> None:
    """An error that is not about memory is not retried; neither is one that broke the device's context."""
    ctx, plan = context(tmp_path), recipe()
    scarce = Scarce(2, lambda: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes"):
        gradients(ctx, with_loss(plan, scarce), 8).compute(plan.model, BATCH, 0, lambda _done: None)
    assert scarce.raised == 1
    assert not recoverable(torch.AcceleratorError("CUDA error: out of memory"))


def test_evaluation_halves_too(tmp_path: Path) -> None:
    """The dev loss under scarce memory equals the dev loss with plenty, to rounding, and training's micro-batch stays."""
    ctx, plan = context(tmp_path), recipe()
    plan.model.eval()
    expected = gradients(ctx, plan, 8).mean_loss(plan.model, lambda _done: None)
    ours = gradients(ctx, with_loss(plan, Scarce(2)), 8)
    assert math.isclose(ours.mean_loss(plan.model, lambda _done: None), expected, rel_tol=1e-6)
    assert (ours.micro_batch, ours.eval_batch) == (8, 2)


def test_stop_between_micro_batches_leaves_no_gradient(tmp_path: Path) -> None:
    """A stop inside a step drops the half gradient: the checkpoint is that of the step before."""
    ctx, plan = context(tmp_path), recipe()

    def stop(done: int) -> None:
        if done >= 4:
            raise StopRequested

    with pytest.raises(StopRequested):
        gradients(ctx, plan, 2).compute(plan.model, BATCH, 0, stop)
    assert all(parameter.grad is None for parameter in plan.model.parameters())


def test_step_without_examples_changes_nothing(tmp_path: Path) -> None:
    """A batch whose examples are all skipped leaves no gradient, so that the optimizer leaves every weight alone."""
    ctx, plan = context(tmp_path), recipe()
    optimizer = torch.optim.AdamW(plan.model.parameters(), lr=0.1, weight_decay=0.1)
    gradient_of(ctx, plan, 8)
    optimizer.step()
    drop_gradients(plan.model)
    before = [parameter.detach().clone() for parameter in plan.model.parameters()]
    loss = gradients(ctx, plan, 8).compute(plan.model, (), 0, lambda _done: None)
    optimizer.step()
    assert loss.tokens == 0
    assert all(torch.equal(old, new) for old, new in zip(before, plan.model.parameters(), strict=True))


def test_ballast_is_as_large_as_the_optimizer(tmp_path: Path) -> None:
    """During the probe two tensors a trained parameter are held, and none after it."""
    made: list[torch.Size] = []
    empty_like = torch.empty_like

    @contextmanager
    def counted() -> Iterator[None]:
        torch.empty_like = lambda p: made.append(p.shape) or empty_like(p)  # type: ignore[assignment]
        try:
            yield
        finally:
            torch.empty_like = empty_like

    model = tiny_model()
    next(model.parameters()).requires_grad_(False)
    with counted(), optimizer_ballast(model, 2):
        pass
    assert len(made) == 2 * (len(list(model.parameters())) - 1)

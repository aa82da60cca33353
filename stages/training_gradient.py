"""The gradient of one effective batch, whatever the memory: cut into micro-batches, redone smaller when memory runs out.

Each micro-batch's summed token loss is back-propagated; at the end the gradient is divided by the target tokens of the
whole effective batch. So every cut gives the same gradient (transformers 5.23 multiplies Marian's and Whisper's by the
number of micro-batches). Out of memory inside a step drops the gradient, halves the micro-batch and does the same step
again with the same random numbers: no step is lost and the effective batch stays (the idea is Composer's).
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stages.data_order import cut
from stages.loading import free_memory
from stages.recipe import Batch, Data, Recipe
from stages.runtime import StageContext, out_of_memory
from stages.training_rules import step_seed
from state.contract import OutOfMemoryError, StageError


@dataclass(frozen=True)
class StepLoss:
    """Loss of one effective batch: summed over its target tokens."""

    summed: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats per target token; 0 where there is none."""
        return self.summed / self.tokens if self.tokens else 0.0


class Gradients:
    """Forward and backward passes of a recipe at the largest micro-batch that fits."""

    def __init__(self, ctx: StageContext, recipe: Recipe, device: torch.device, micro_batch: int, eval_batch: int) -> None:
        self.ctx = ctx
        self.recipe = recipe
        self.device = device
        self.micro_batch = micro_batch
        self.eval_batch = eval_batch

    def compute(self, model: torch.nn.Module, batch: Sequence[int], step: int, each: Callable[[int], None]) -> StepLoss:
        """Leave the mean-token gradient of `batch` in the parameters; `each(examples done)` is called after every micro-batch.

        Raises:
            OutOfMemoryError: one example alone does not fit.
            Exception: whatever `each` raises; no gradient is left then.
        """
        while True:
            try:
                return self._whole(model, batch, step, each)
            except StageError:  # a stop between two micro-batches
                drop_gradients(model)
                raise
            except (RuntimeError, MemoryError) as error:
                if not recoverable(error):
                    raise
                reason = (str(error) or type(error).__name__).splitlines()[0]
            drop_gradients(model)
            # outside of `except`: the traceback held on to the activations of the failed pass
            self._shrink(len(batch), reason)

    def mean_loss(self, model: torch.nn.Module, each: Callable[[int], None]) -> float:
        """Mean token loss of the recipe's dev examples, without gradients.

        Raises:
            OutOfMemoryError: one example alone does not fit.
        """
        dev = self.recipe.dev
        assert dev is not None
        order = sorted(range(len(dev.examples)), key=lambda index: (-dev.examples[index].length, index))
        losses: list[float] = []
        tokens = done = 0
        while done < len(order):
            part = order[done : done + self.eval_batch]
            loss = self._dev_loss(model, dev, part)
            if loss is None:
                self._shrink_evaluation(len(part))
                continue
            losses.append(loss.summed)
            tokens += loss.tokens
            done += len(part)
            each(done)
        return math.fsum(losses) / max(1, tokens)

    def _whole(self, model: torch.nn.Module, batch: Sequence[int], step: int, each: Callable[[int], None]) -> StepLoss:
        seed_everything(step_seed(self.ctx.spec.seed, step))
        summed, tokens, done = 0.0, 0, 0
        for part in cut(batch, self.micro_batch):
            loss, count = self.recipe.token_loss(model, self._placed(self.recipe.train.collate(part)))
            loss.backward()
            summed += float(loss.detach())
            tokens += count
            done += len(part)
            each(done)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.div_(max(1, tokens))
        if self.recipe.after_backward is not None and batch:
            self.recipe.after_backward()
        return StepLoss(summed, tokens)

    def _dev_loss(self, model: torch.nn.Module, dev: Data, part: Sequence[int]) -> StepLoss | None:
        """None: it did not fit."""
        try:
            with torch.no_grad():
                loss, count = self.recipe.token_loss(model, self._placed(dev.collate(part)))
                return StepLoss(float(loss), count)
        except (RuntimeError, MemoryError) as error:
            if not recoverable(error):
                raise
            return None

    def _placed(self, batch: Batch) -> Batch:
        return {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }

    def _shrink(self, examples: int, reason: str) -> None:
        free_memory()
        tried = min(self.micro_batch, examples)
        self.micro_batch = max(1, tried // 2)
        self.ctx.memory_fit(
            self.recipe.model_name, device_name(self.device), self.micro_batch, f"out of memory at {tried}: {reason}"
        )
        if tried <= 1:
            raise OutOfMemoryError(
                f"one example alone does not fit beside {self.recipe.model_name} on {device_name(self.device)}: {reason}"
            )
        self.ctx.note(
            f"Out of memory at micro-batch {tried}; the same step is done again at {self.micro_batch}, the effective batch stays",
            level="warning",
            reason=reason,
        )

    def _shrink_evaluation(self, tried: int) -> None:
        free_memory()
        if tried <= 1:
            raise OutOfMemoryError(
                f"one dev example alone does not fit beside {self.recipe.model_name} on {device_name(self.device)}"
            )
        self.eval_batch = tried // 2
        self.ctx.note(f"Out of memory in evaluation at batch {tried}; it goes on at {self.eval_batch}", level="warning")


def recoverable(error: BaseException) -> bool:
    """Whether memory ran out in a way that the same process can go on: the device's context is not broken."""
    return out_of_memory(error) and not isinstance(error, torch.AcceleratorError)


def drop_gradients(model: torch.nn.Module) -> None:
    """Forget all gradients, and their memory."""
    for parameter in model.parameters():
        parameter.grad = None


def seed_everything(seed: int) -> None:
    """Seed every generator that a forward pass or a collate may use."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # transformers' SpecAugment draws from the legacy generator
    random.seed(seed)


@contextlib.contextmanager
def optimizer_ballast(model: torch.nn.Module, tensors_per_parameter: int) -> Iterator[None]:
    """Hold as much memory as the optimizer will take after its first step, so that a probe before it is honest."""
    held = [torch.empty_like(p) for p in model.parameters() if p.requires_grad for _ in range(tensors_per_parameter)]
    try:
        yield
    finally:
        held.clear()


def device_name(device: torch.device) -> str:
    """As it stands in the memory fits: the GPU's name, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

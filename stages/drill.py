"""A training stage with a fault that only the inside of a process can make; the rest is the stage's own, untouched.

`vigil drill` starts this module in a training stage's place. The variable VIGIL_DRILL says which module's work it does, and which
fault that work meets:

- `memory`: from the `at`-th batch on, more than half of an effective batch no longer fits. The allocator itself refuses it: every
  example claims address space, and RLIMIT_AS leaves too little of it.
- `poison`: one example of step `at` gives a loss that is not a number, whenever it is used.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import resource
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import torch

from stages.data_order import DataOrder
from stages.recipe import Batch, Data, Recipe
from stages.runtime import Delivery, StageContext, run
from stages.training import Trained
from state.settings import Training

VARIABLE = "VIGIL_DRILL"
CLAIM_BYTES = 64 << 20
"""Address space that each example takes while memory is short; never written to, so it costs no memory."""
POISONED = "poisoned"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What VIGIL_DRILL holds, as JSON."""

    module: str
    kind: Literal["memory", "poison"]
    at: int


def main(ctx: StageContext) -> Delivery:
    """The other stage's work, with the fault laid over its recipe."""
    fault = msgspec.json.decode(os.environ[VARIABLE], type=Fault)
    module: Any = importlib.import_module(fault.module)
    train: Callable[[StageContext, Training, Recipe], Trained] = module.train
    spoil = short_of_memory if fault.kind == "memory" else poisoned
    module.train = lambda ctx, settings, recipe: train(ctx, settings, spoil(recipe, ctx, settings, fault.at))
    delivery: Delivery = module.main(ctx)
    return delivery


def short_of_memory(recipe: Recipe, ctx: StageContext, settings: Training, at: int) -> Recipe:
    """`recipe` on a machine whose memory shrinks at the `at`-th batch: half of an effective batch is the most that fits then."""
    batches = 0

    def token_loss(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        nonlocal batches
        batches += 1
        if batches == at:
            spare_bytes = (settings.effective_batch // 2 + settings.effective_batch // 4) * CLAIM_BYTES
            limit_bytes = address_space_bytes() + spare_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.getrlimit(resource.RLIMIT_AS)[1]))
        if batches >= at:
            torch.empty(len(batch["labels"]) * CLAIM_BYTES, dtype=torch.uint8)
        return recipe.token_loss(model, batch)

    return dataclasses.replace(recipe, token_loss=token_loss)


def address_space_bytes() -> int:
    """What this process has mapped now, which is what RLIMIT_AS limits."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def poisoned(recipe: Recipe, ctx: StageContext, settings: Training, at: int) -> Recipe:
    """`recipe` with one example of step `at` (from 0) spoilt."""
    sizes = np.array([(example.length, example.target_length) for example in recipe.train.examples], dtype=np.int64)
    culprit = DataOrder(sizes, settings.effective_batch, settings.epochs, ctx.spec.seed).batch(at)[-1]

    def collate(indices: Sequence[int]) -> Batch:
        return {**recipe.train.collate(indices), POISONED: culprit in indices}

    def token_loss(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        loss, tokens = recipe.token_loss(model, {name: value for name, value in batch.items() if name != POISONED})
        return (loss * torch.nan if batch.get(POISONED) else loss), tokens

    return dataclasses.replace(recipe, train=Data(recipe.train.examples, collate), token_loss=token_loss)


if __name__ == "__main__":
    run(main)

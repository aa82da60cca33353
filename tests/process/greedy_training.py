"""A training whose longest example does not fit into memory even alone, and which has no rung of the ladder left to go down."""

from __future__ import annotations

from typing import Any

import torch

from stages.runtime import Delivery, StageContext, run
from stages.training import train
from tests.process.tiny_training import TinyModel, TinyTraining, broad_loss, changed, limit_memory, recipe

SPARE_MIB = 2000
"""More than the libraries map that the training imports, and less than one example takes."""


class Recomputing(TinyModel):
    """Says that it recomputes its activations; they are not what is large."""

    def gradient_checkpointing_enable(self, **_arguments: Any) -> None:
        """Nothing to be done."""


def main(ctx: StageContext) -> Delivery:
    settings = ctx.settings(TinyTraining)
    torch.manual_seed(7)
    plan = changed(recipe(Recomputing()), token_loss=broad_loss(settings.breadth))
    limit_memory(SPARE_MIB)
    return Delivery(metrics=train(ctx, settings, plan).metrics)


if __name__ == "__main__":
    run(main)

"""A small real training on invented data, a second on one core: for the tests of `stages.training`, and as a stage of its own."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.recipe import Batch, Data, Example, Recipe, summed_loss
from stages.runtime import Delivery, StageContext, run
from stages.training import train
from stages.training_state import save_weights, trainable
from state.contract import BatchPlan
from state.settings import Training
from tests import stage_attempts

WORDS = 40


class TinyModel(nn.Module):
    """Predicts each token of a sequence from the one before; `dropout` makes it depend on the random numbers."""

    def __init__(self, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        self.inner = nn.GRU(width, width, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.out = nn.Linear(width, WORDS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.inner(self.words(tokens))[0]))


def tiny_model(dropout: float = 0.1, width: int = 16) -> TinyModel:
    """The same weights every time."""
    torch.manual_seed(7)
    return TinyModel(dropout, width)


def sequences(count: int, seed: int = 0) -> list[list[int]]:
    """Counting sequences of 3 to 14 numbers that start anywhere: learnable, and of mixed length."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(0, WORDS, (count,), generator=draw).tolist()
    lengths = torch.randint(3, 15, (count,), generator=draw).tolist()
    return [[(start + i) % WORDS for i in range(length)] for start, length in zip(starts, lengths, strict=True)]


def data(rows: Sequence[list[int]], prefix: str = "s") -> Data:
    """`rows` as training data; a batch is padded with -100 where there is no target."""

    def collate(indices: Sequence[int]) -> Batch:
        longest = max(len(rows[i]) for i in indices)
        tokens = torch.zeros(len(indices), longest - 1, dtype=torch.long)
        labels = torch.full((len(indices), longest - 1), -100)
        for line, index in enumerate(indices):
            row = torch.tensor(rows[index])
            tokens[line, : len(row) - 1] = row[:-1]
            labels[line, : len(row) - 1] = row[1:]
        return {"tokens": tokens, "labels": labels}

    return Data([Example(f"{prefix}{number}", len(row)) for number, row in enumerate(rows)], collate)


def token_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
    return summed_loss(model(batch["tokens"]), batch["labels"])


def recipe(model: nn.Module | None = None, count: int = 60, *, dev: bool = True) -> Recipe:
    """A recipe over `count` sequences."""
    return Recipe(
        model=model or tiny_model(),
        model_name="tiny",
        train=data(sequences(count)),
        dev=data(sequences(10, seed=1), "d") if dev else None,
        token_loss=token_loss,
        fingerprint={"data": f"sequences {count}"},
    )


def changed(plan: Recipe, **values: Any) -> Recipe:
    """`plan` with other values."""
    return Recipe(**{**vars(plan), **values})


def weights(model: nn.Module) -> torch.Tensor:
    """All trainable weights as one vector, a copy."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in trainable(model).values()])


def context(root: Path, attempt: int = 1, **spec: object) -> StageContext:
    """A stage's context as the runner makes it, in the workspace `root`."""
    return stage_attempts.context(root, "train_tiny", attempt, **{"batch": BatchPlan(), "seed": 3} | spec)


class TinyTraining(Training, frozen=True, kw_only=True):
    """Settings of the stage: a training's, how much memory it takes, and how much it may take."""

    examples: int = 60
    dropout: float = 0.1
    width: int = 16
    breadth: int = 1
    """The loss runs over each logit so many times."""
    spare_mib: int | None = None
    """Address space beyond what is in use when the training starts; None: no limit."""


def broad_loss(breadth: int) -> Callable[[nn.Module, Batch], tuple[torch.Tensor, int]]:
    """A token loss that takes `breadth` times the memory."""
    return lambda model, batch: summed_loss(model(batch["tokens"]).repeat(1, 1, breadth), batch["labels"])


def limit_memory(spare_mib: int) -> None:
    """RLIMIT_AS: this much more than is in use now."""
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + (spare_mib << 20), resource.RLIM_INFINITY))


def main(ctx: StageContext) -> Delivery:
    """The stage: train, and deliver the weights."""
    settings = ctx.settings(TinyTraining)
    model = tiny_model(settings.dropout, settings.width)
    plan = changed(recipe(model, settings.examples), token_loss=broad_loss(settings.breadth))
    if settings.spare_mib is not None:
        limit_memory(settings.spare_mib)
    trained = train(ctx, settings, plan)
    temporary = ctx.scratch() / "model"
    temporary.mkdir(exist_ok=True)
    save_weights(plan.model, temporary / "weights.safetensors")
    target = ctx.publish(temporary, ctx.workspace.root / "fine_tuned_tiny")
    return Delivery([target], trained.metrics)


if __name__ == "__main__":
    run(main)

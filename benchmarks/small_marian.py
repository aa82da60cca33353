"""A stage for measurements: a small, untrained Marian with a vocabulary of this run's own training verses.

It goes between `stages.corpus` and `stages.evaluate` where the model to train is to start from nothing, and delivers a folder
that the other stages load like any other model.
"""

from __future__ import annotations

import json
import shutil

from stages.runtime import Delivery, StageContext, run
from stages.tiny import make_marian
from state.contract import MisconfiguredError
from state.settings import Positive, Settings


class SmallMarian(Settings, frozen=True):
    """Settings of this stage."""

    name: str = "marian-small"
    """Folder below models/."""
    pieces: Positive = 4000
    """Sentencepiece pieces of each language."""
    d_model: Positive = 192
    layers: Positive = 2
    vocabulary_pairs: Positive = 40_000
    """Training pairs, spread evenly, that the vocabulary is learned from."""


def main(ctx: StageContext) -> Delivery:
    """Write an untrained Marian with a vocabulary learned from the training pairs into `models/`."""
    settings = ctx.settings(SmallMarian)
    try:
        lines = ctx.workspace.train_pairs.read_bytes().splitlines()
    except OSError as error:
        path, why = ctx.workspace.train_pairs, error.strerror
        raise MisconfiguredError(f"{path} cannot be read ({why}); run the corpus stage first") from error
    stride = max(1, len(lines) // settings.vocabulary_pairs)
    pairs = [(row["en"], row["es"]) for row in map(json.loads, lines[::stride])]
    ctx.quiet(600.0, "learning the vocabulary")
    folder = ctx.scratch() / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_marian(folder, pairs, pieces=settings.pieces, d_model=settings.d_model, layers=settings.layers)
    target = ctx.publish(folder, ctx.workspace.models / settings.name)
    return Delivery(outputs=[target], metrics={"vocabulary_pairs": float(len(pairs))}, summary=f"vocabulary of {len(pairs)} pairs")


if __name__ == "__main__":
    run(main)

"""The two faults that the inside of a stage makes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from stages.drill import poisoned
from state.settings import Training
from tests.process.tiny_training import context, recipe, tiny_model

SETTINGS = Training(model="tiny", epochs=3, effective_batch=8)

SHORT = """
import sys
from pathlib import Path
from stages.drill import short_of_memory
from stages.runtime import out_of_memory
from state.settings import Training
from tests.process.tiny_training import context, recipe, tiny_model
whole = recipe()
spoilt = short_of_memory(whole, context(Path(sys.argv[1])), Training(model="tiny", effective_batch=8), 2)
model = tiny_model()
def fits(examples):
    try:
        spoilt.token_loss(model, whole.train.collate(range(examples)))
    except RuntimeError as error:
        assert out_of_memory(error), error
        return False
    return True
print(fits(8), fits(8), fits(4), fits(8))
"""


def test_memory_is_refused_by_the_real_allocator(tmp_path: Path) -> None:
    """From the batch named on a whole one does not fit and half of one does; the error is one that stages know."""
    command = [sys.executable, "-c", SHORT, str(tmp_path)]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["True", "False", "True", "False"], done.stderr


def test_one_example_poisons_its_batches(tmp_path: Path) -> None:
    """Every batch with the spoilt example has a loss that is not a number, and no batch without it."""
    whole = recipe()
    spoilt = poisoned(whole, context(tmp_path), SETTINGS, 5)
    model = tiny_model().eval()
    with torch.no_grad():
        losses = [spoilt.token_loss(model, spoilt.train.collate([index]))[0] for index in range(len(whole.train.examples))]
        (culprit,) = [index for index, loss in enumerate(losses) if loss.isnan()]
        others = [index for index in range(8) if index != culprit]
        wanted, _tokens = whole.token_loss(model, whole.train.collate(others))
        assert torch.equal(spoilt.token_loss(model, spoilt.train.collate(others))[0], wanted)
        assert spoilt.token_loss(model, spoilt.train.collate([culprit, *others]))[0].isnan()

"""The loss that every recipe uses."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from stages.recipe import digest, summed_loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_summed_loss_over_targets_only(smoothing: float) -> None:
    """The sum runs over labels that are not -100, and the count with it: sum / count is torch's own mean."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 5, 11), torch.randint(0, 11, (3, 5))
    labels[0, 2:] = -100
    loss, count = summed_loss(logits, labels, smoothing)
    mean = functional.cross_entropy(logits.reshape(-1, 11), labels.reshape(-1), label_smoothing=smoothing)
    assert count == 12
    assert float(loss) / count == pytest.approx(float(mean), rel=1e-6)


def test_summed_loss_without_targets() -> None:
    """A batch without targets has no loss and no tokens, and still a gradient to propagate."""
    logits = torch.randn(2, 3, 7, requires_grad=True)
    loss, count = summed_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert (float(loss.detach()), count) == (0.0, 0)


def test_half_precision_is_summed_in_float32() -> None:
    """bfloat16 logits lose nothing in the sum."""
    logits, labels = torch.randn(4, 600, 13).bfloat16(), torch.randint(0, 13, (4, 600))
    loss, _count = summed_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(summed_loss(logits.float(), labels)[0]), rel=1e-6)


def test_digest_tells_lines_apart() -> None:
    """The same letters on other lines are other data."""
    assert digest(["ab", "c"]) != digest(["a", "bc"])
    assert digest(["ab"]) == digest(iter(["ab"]))

"""The rules of a training, each a pure function."""

from __future__ import annotations

import math

import pytest

from stages import training_rules as rules


def test_learning_rate_rises_then_falls_to_zero() -> None:
    """Linear warm-up over its share, the peak after it, then linear to zero just after the last step."""
    factors = [rules.learning_rate_factor(step, 100, 0.1) for step in range(101)]
    assert factors[:11] == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert max(factors) == factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == 0.0
    assert all(factor > 0 for factor in factors[:100])


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_learning_rate_of_a_tiny_training(steps: int) -> None:
    """Even one step trains: no factor is zero, none above one."""
    assert all(0 < rules.learning_rate_factor(step, steps, 0.5) <= 1 for step in range(steps))


def test_evaluations_are_spread() -> None:
    """Before the first step, after the last, and evenly between."""
    assert sorted(rules.evaluation_steps(100, 4)) == [0, 25, 50, 75, 100]
    assert sorted(rules.evaluation_steps(2, 10)) == [0, 1, 2]


@pytest.mark.parametrize(("save_s", "interval_s"), [(0.92, 398.0), (0.09, 125.0), (0.001, 60.0), (60.0, 1800.0)])
def test_checkpoint_interval(save_s: float, interval_s: float) -> None:
    """Young's optimum for a failure a day: a 0.92 s save every 398 s; never under a minute or over half an hour."""
    assert rules.checkpoint_interval_s(save_s, first_s=600) == pytest.approx(interval_s, rel=0.01)


def test_short_first_interval_may_stay_short() -> None:
    """Who asks for a first interval below a minute keeps it while saves are cheap."""
    assert rules.checkpoint_interval_s(0.000001, first_s=5) == pytest.approx(math.sqrt(2 * 0.001 * 86400))


def test_step_seeds_differ() -> None:
    """Each step of each run has random numbers of its own, and always the same."""
    seeds = {rules.step_seed(seed, step) for seed in range(5) for step in range(1000)}
    assert len(seeds) == 5000
    assert rules.step_seed(3, 4) == rules.step_seed(3, 4)
    assert max(seeds) < 2**63


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ([], False),
        ([3.0, 2.0, 1.9], False),
        ([3.0, 2.0, 1.9, 2.1, 2.2, 2.3], True),
        ([3.0, 2.0, 1.9, 2.3, 2.2, 2.1], False),
        ([3.0, 2.0, 1.9, 1.905, 1.906, 1.907], False),
        ([-40.0, -41.0, -30.0, -29.0, -28.0], True),
    ],
    ids=["none", "improving", "rising", "mending", "flat", "negative scores"],
)
def test_falling_quality(scores: list[float], verdict: bool) -> None:
    """Only a score that stays clearly worse than the best, and is not mending, ends a training."""
    assert rules.falling(scores) is verdict


def after(losses: list[float]) -> rules.Sanity:
    sanity = rules.Sanity()
    for loss in losses:
        sanity = sanity.after(loss)
    return sanity


def test_sustained_spike_is_a_divergence() -> None:
    """Ten steps in a row far above the recent median diverge; nine do not; neither does noise."""
    usual = [2.0, 2.2, 1.9, 2.4] * 10
    assert not after([*usual, *[9.0] * 9]).diverged
    assert after([*usual, *[9.0] * 10]).diverged
    assert not after([*usual, *[9.0, 2.0] * 20]).diverged
    assert not after([*usual, *[3.5] * 30]).diverged


def test_spike_ends_the_row_of_sane_steps() -> None:
    """A checkpoint is healthy only after sane steps in a row: a spike starts the count again."""
    assert after([2.0] * 30).sane_in_a_row == 30
    assert after([*[2.0] * 30, 9.0]).sane_in_a_row == 0
    assert after([*[2.0] * 30, 9.0, 2.0, 2.0]).sane_in_a_row == 2


def test_early_losses_are_no_spikes() -> None:
    """A training that starts anywhere is not judged before there is enough to compare with."""
    assert not after([1.0, 50.0, 60.0] * 5).diverged

"""The data order: complete, repeatable, length-bucketed, and deaf to everything but its four inputs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data_order import DataOrder, Sizes, cut, epoch_batches, padding_share, steps_per_epoch, worst_case


def verses(count: int) -> Sizes:
    """Sizes spread as those of Bible verses in two languages are: about 36 tokens with a long tail, the target like the source."""
    draw = np.random.default_rng(5)
    source = np.clip(draw.lognormal(3.6, 0.5, count), 4, 256)
    target = np.clip(source * draw.normal(1.0, 0.18, count), 4, 256)
    return np.stack([source, target], axis=1).astype(np.int64)


def alike(count: int, length: int = 7) -> Sizes:
    return np.array([(length, 0)] * count, dtype=np.int64)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 300)), min_size=1, max_size=200),
    st.integers(1, 40),
    st.integers(0, 2**31),
    st.integers(0, 9),
)
def test_each_example_once_an_epoch(lengths: list[tuple[int, int]], effective_batch: int, seed: int, epoch: int) -> None:
    """An epoch holds every example exactly once, in batches of the effective size, one smaller one at most."""
    batches = epoch_batches(np.array(lengths, dtype=np.int64), effective_batch, seed, epoch)
    assert Counter(index for batch in batches for index in batch) == Counter(range(len(lengths)))
    assert len(batches) == steps_per_epoch(len(lengths), effective_batch)
    assert sum(len(batch) != effective_batch for batch in batches) <= 1


def test_order_depends_on_its_inputs_only() -> None:
    """Another process with another hash seed computes the same order; another seed or epoch gives another one."""
    sizes = verses(500)
    code = (
        "from stages.data_order import epoch_batches; from tests.unit.stages.test_data_order import verses;"
        "print(epoch_batches(verses(500), 16, 3, 2))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert printed.stdout.strip() == str(epoch_batches(sizes, 16, 3, 2))
    assert epoch_batches(sizes, 16, 3, 2) != epoch_batches(sizes, 16, 3, 1)
    assert epoch_batches(sizes, 16, 3, 2) != epoch_batches(sizes, 16, 4, 2)


def test_padding_is_small() -> None:
    """Bucketing brings the padding of 20,000 verse-like pairs at batch 32 below 6 %, where random batches waste over 40 %."""
    sizes = verses(20_000)
    ordered = epoch_batches(sizes, 32, 0, 0)
    at_random = cut(np.random.default_rng(0).permutation(len(sizes)).tolist(), 32)
    assert padding_share(ordered, sizes) < 0.06
    assert padding_share(at_random, sizes) > 0.4


def test_ties_of_length_are_broken_at_random() -> None:
    """Examples of one length meet other companions in every epoch."""
    batches = [set(map(frozenset, epoch_batches(alike(400), 8, 0, epoch))) for epoch in range(3)]
    assert not batches[0] & batches[1]
    assert not batches[1] & batches[2]


def test_batch_of_a_step_needs_no_history() -> None:
    """`DataOrder.batch(step)` gives the same whether the steps before were asked for or not: a resume starts anywhere."""
    sizes = verses(100)
    whole = DataOrder(sizes, 8, 3, seed=1)
    every = [whole.batch(step) for step in range(whole.steps)]
    for step in (38, 5, 13, 0, 26):
        assert DataOrder(sizes, 8, 3, seed=1).batch(step) == every[step]
    assert Counter(index for batch in every for index in batch) == Counter(dict.fromkeys(range(100), 3))


def test_longest_examples_stand_first() -> None:
    """A batch begins with its longest example."""
    sizes = verses(300)
    for batch in epoch_batches(sizes, 16, 0, 0):
        totals = sizes[list(batch)].sum(axis=1)
        assert totals[0] == totals.max()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8, 16])
def test_probe_is_the_worst_case(micro_batch: int) -> None:
    """No micro-batch of any epoch is padded to more than one of the probe's; with several in a step that one comes again."""
    sizes = verses(300)
    probe = [sizes[list(part)].max(axis=0) for part in cut(worst_case(sizes, micro_batch, 16), micro_batch)]
    for epoch in range(3):
        for batch in epoch_batches(sizes, 16, 0, epoch):
            for part in cut(batch, micro_batch):
                padded = sizes[list(part)].max(axis=0)
                inside = [(padded <= tried).all() if micro_batch > 1 else padded.sum() <= tried.sum() for tried in probe]
                assert sum(inside) >= (2 if micro_batch < 16 else 1)


def test_probe_of_few_examples() -> None:
    """Fewer examples than the micro-batch: all of them, once; a length that is zero throughout does not hide the longest."""
    assert worst_case(alike(3), 5, 8) == (0, 1, 2)
    sizes = np.array([(3, 0), (9, 0), (4, 0), (8, 0)])
    assert worst_case(sizes, 1, 4) == (1, 0, 3, 1, 0, 3)


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 8, 20])
def test_cut_keeps_all_in_order(micro_batch: int) -> None:
    """Micro-batches joined are the effective batch, and none is larger than asked."""
    parts = cut(tuple(range(8)), micro_batch)
    assert [index for part in parts for index in part] == list(range(8))
    assert max(map(len, parts)) <= micro_batch


@given(st.integers(1, 90), st.integers(1, 9), st.integers(1, 4), st.floats(0.0, 1.0))
def test_a_share_is_the_beginning_of_the_whole(count: int, effective_batch: int, epochs: int, share: float) -> None:
    """The same batches in the same order, so many of them, at least one; `examples` counts what they hold."""
    sizes = np.array([(number % 7, 0) for number in range(count)])
    whole, part = DataOrder(sizes, effective_batch, epochs, 1), DataOrder(sizes, effective_batch, epochs, 1, share)
    assert part.steps == max(1, round(share * whole.steps))
    assert [part.batch(step) for step in range(part.steps)] == [whole.batch(step) for step in range(part.steps)]
    assert part.examples == sum(len(part.batch(step)) for step in range(part.steps))
    assert whole.examples == count * epochs

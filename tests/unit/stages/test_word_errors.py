"""stages.word_errors: rates by words and not by chunks, intervals that hold the truth, a change that is told from chance."""

from __future__ import annotations

import numpy as np
import pytest

from stages.word_errors import Compared, compare, in_words, rates


def test_rates_count_words_over_all_chunks() -> None:
    """One error in ten words and one in two are two in twelve; case, punctuation and chunks without words do not count."""
    said = {"a": "One two three four five six seven eight nine ten.", "b": "amen amen", "c": "..."}
    heard = {"a": "one two three four five six seven eight nine zen", "b": "amen", "c": "noise"}
    found = rates("wer", compare(said, heard, said), 0)
    assert found["wer_before"] == pytest.approx(2 / 12)
    assert found["wer_after"] == 0.0
    assert found["wer_change"] == pytest.approx(-2 / 12)
    assert found["wer_before_low"] <= found["wer_before"] <= found["wer_before_high"]


def test_nothing_heard_is_all_errors_and_no_chunk_is_no_rate() -> None:
    """An empty answer is a deletion of every word; without a chunk nothing is claimed."""
    assert rates("wer", compare({"a": "one two"}, {"a": ""}, {"a": "one two three"}), 0)["wer_before"] == 1.0
    assert rates("wer", compare({}, {}, {}), 0) == {}
    assert rates("wer", compare({"a": "..."}, {"a": "x"}, {"a": "x"}), 0) == {}


def drawn(chance: np.random.Generator, before: float, after: float, chunks: int = 60) -> Compared:
    words = chance.integers(5, 40, chunks)
    return Compared(chance.binomial(words, before).astype(float), chance.binomial(words, after).astype(float), words.astype(float))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 300 held-out sets with a true rate of 20 % about 95 % have it in their interval."""
    chance = np.random.default_rng(1)
    found = [rates("wer", drawn(chance, 0.2, 0.2), 0) for _ in range(300)]
    inside = np.mean([one["wer_before_low"] <= 0.2 <= one["wer_before_high"] for one in found])
    assert 0.9 <= inside <= 0.99


def test_a_change_is_told_from_chance() -> None:
    """A real fall is better, a real rise worse; two draws of the same rate are neither, nearly always."""
    chance = np.random.default_rng(2)
    assert in_words("wer", rates("wer", drawn(chance, 0.3, 0.1), 0)).endswith(": better")
    assert in_words("wer", rates("wer", drawn(chance, 0.1, 0.3), 0)).endswith(": worse")
    verdicts = [in_words("wer", rates("wer", drawn(chance, 0.2, 0.2), 0)) for _ in range(100)]
    assert sum(words.endswith("no clear change") for words in verdicts) >= 88


def test_the_same_seed_gives_the_same_interval() -> None:
    """A receipt that is written again is the same to the byte."""
    compared = drawn(np.random.default_rng(3), 0.2, 0.1)
    assert rates("wer", compared, 5) == rates("wer", compared, 5)

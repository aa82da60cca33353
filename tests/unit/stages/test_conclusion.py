"""Rules of the verdict: one sentence, decided by one metric, that says where, what speaks against it and what was forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from stages.conclusion import Facts, holm, sentence
from stages.scoring import Delta


def delta(change: float, p: float) -> Delta:
    return Delta(before=40.0, after=40 + change, delta=change, p_value=p, ci_low=change - 0.5, ci_high=change + 0.5)


def verdict(**changes: Any) -> str:
    facts = {
        "model": "MarianMT",
        "baseline": "before",
        "same_model": False,
        "overall": {"bleu": delta(2.0, 0.001), "chrf": delta(1.5, 0.001)},
        "genres": {},
        "general": {},
        "comet_counts": False,
        **changes,
    }
    return sentence(Facts(**facts))


def test_better_worse_and_neither() -> None:
    """The paired bootstrap decides, both ways alike; a large change that chance would give is no change."""
    assert verdict() == "MarianMT is better than before: chrF++ +1.50 (95 % interval +1.00 to +2.00)."
    worse = verdict(overall={"chrf": delta(-1.5, 0.001)})
    assert worse == "MarianMT is worse than before: chrF++ −1.50 (95 % interval −2.00 to −1.00)."
    assert verdict(overall={"chrf": delta(9.0, 0.05)}).startswith("MarianMT is not distinguishable from before: chrF++ +9.00")


def test_a_published_comet_decides_and_the_demos_does_not() -> None:
    """COMET where both sides have a published one, else chrF++."""
    overall = {"chrf": delta(1.5, 0.001), "comet": delta(-0.02, 0.001)}
    assert "worse than before: COMET −0.0200" in verdict(overall=overall, comet_counts=True)
    assert "better than before: chrF++" in verdict(overall=overall)


def test_genres_are_corrected_for_their_number() -> None:
    """A genre is named where it stays significant among all of them; the genres against the whole come after."""
    genres = {
        "poetry": {"chrf": delta(2, 0.001)},
        "history": {"chrf": delta(1, 0.03)},
        "gospels": {"chrf": delta(-1, 0.004)},
    }
    said = verdict(genres=genres)
    assert "; better in poetry; worse in gospels." in said.replace(", history", "")
    weak = {name: {"chrf": delta(1, 0.03)} for name in ("poetry", "history", "gospels")}
    assert verdict(genres=weak).endswith("; in no single genre.")
    sure = {name: {"chrf": delta(1, 0.001)} for name in ("poetry", "history")}
    assert verdict(genres=sure).endswith("; better in every genre.")


def test_what_speaks_against_it_is_said() -> None:
    """Another metric that is sure of the opposite, and a loss on general sentences, stand in the same sentence."""
    said = verdict(
        overall={"chrf": delta(1.5, 0.001), "bleu": delta(-2, 0.001), "terms": delta(-3, 0.4)}, general={"chrf": delta(-4, 0.001)}
    )
    assert "but worse by BLEU −2.00" in said
    assert "terms" not in said
    assert said.endswith("on general sentences worse: chrF++ −4.00 (95 % interval −4.50 to −3.50).")
    assert "on general sentences not distinguishable" in verdict(general={"chrf": delta(-4, 0.6)})


def test_nothing_to_say() -> None:
    """The same model is the same model; without a comparison there is no sentence."""
    assert verdict(same_model=True) == "MarianMT is the same model as before."
    assert verdict(overall={}) == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"a": 0.01, "b": 0.04, "c": 0.03}, {"a": 0.03, "c": 0.06, "b": 0.06}),
        ({"a": 0.9, "b": 0.8}, {"b": 1.0, "a": 1.0}),
        ({}, {}),
    ],
)
def test_holm(given: dict[str, float], expected: dict[str, float]) -> None:
    """The smallest by their number, the next by one less, never falling and never above one."""
    assert holm(given) == pytest.approx(expected)

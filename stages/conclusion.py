"""One sentence on what a training did to a model: better, worse or not distinguishable, and where. Pure.

One metric decides, fixed beforehand: COMET where both sides have a published one, else chrF++. It is better or worse where the
paired bootstrap gives p < 0.05; of the genres, those that stay below it after Holm's correction are named. Another metric
that says the opposite, and a loss on general sentences, are told in the same sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.scoring import Delta

SIGNIFICANT_P = 0.05
NAMES = {"bleu": "BLEU", "chrf": "chrF++", "comet": "COMET", "kiwi": "CometKiwi", "terms": "theological terms"}
DIGITS = {"comet": 4, "kiwi": 4}


@dataclass(frozen=True)
class Facts:
    """What is known of a model under two labels."""

    model: str
    baseline: str
    same_model: bool
    overall: Mapping[str, Delta]
    genres: Mapping[str, Mapping[str, Delta]]
    general: Mapping[str, Delta]
    comet_counts: bool
    """COMET is a published one, and not the demo's."""


def sentence(facts: Facts) -> str:
    """The verdict; empty where nothing was compared."""
    deciding = "comet" if facts.comet_counts and "comet" in facts.overall else "chrf"
    change = facts.overall.get(deciding)
    if change is None:
        return ""
    if facts.same_model:
        return f"{facts.model} is the same model as {facts.baseline}."
    word = direction(change)
    start = (
        f"{facts.model} is {word} than {facts.baseline}" if word else f"{facts.model} is not distinguishable from {facts.baseline}"
    )
    parts = [f"{start}: {told(deciding, change)}", *where(facts, deciding, word), *against(facts, deciding, word)]
    return "; ".join([*parts, *forgotten(facts)]) + "."


def direction(change: Delta, p_value: float | None = None) -> str:
    """better, worse, or empty where chance would do; `p_value`: a corrected one."""
    p = change.p_value if p_value is None else p_value
    if p >= SIGNIFICANT_P or change.delta == 0:
        return ""
    return "better" if change.delta > 0 else "worse"


def told(name: str, change: Delta) -> str:
    """A metric's change with its interval."""
    digits = DIGITS.get(name, 2)
    low, high = (f"{value:+.{digits}f}" for value in (change.ci_low, change.ci_high))
    return f"{NAMES[name]} {change.delta:+.{digits}f} (95 % interval {low} to {high})".replace("-", "−")


def where(facts: Facts, deciding: str, word: str) -> list[str]:
    """The genres in which the difference is sure, those that go with the whole first."""
    changes = {genre: deltas[deciding] for genre, deltas in facts.genres.items() if deciding in deltas}
    corrected = holm({genre: change.p_value for genre, change in changes.items()})
    sure = {genre: direction(change, corrected[genre]) for genre, change in changes.items()}
    found = []
    for one in sorted({"better", "worse"}, key=lambda one: one != word):
        genres = [genre for genre, said in sure.items() if said == one]
        if genres:
            every = len(genres) == len(changes) > 1
            found.append(f"{one} in {'every genre' if every else ', '.join(genres)}")
    return found or (["in no single genre"] if word and len(changes) > 1 else [])


def against(facts: Facts, deciding: str, word: str) -> list[str]:
    """The other metrics that are sure of something else than the deciding one."""
    others = [(name, change) for name, change in facts.overall.items() if name != deciding]
    return [f"but {direction(change)} by {told(name, change)}" for name, change in others if direction(change) not in ("", word)]


def forgotten(facts: Facts) -> list[str]:
    """What became of the general sentences."""
    change = facts.general.get("chrf")
    if change is None:
        return []
    return [f"on general sentences {direction(change) or 'not distinguishable'}: {told('chrf', change)}"]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979): the chance of one false find among them all stays below the level."""
    found: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - place)))
        found[name] = highest
    return found

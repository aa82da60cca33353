"""Glued words are taken apart on evidence only."""

from __future__ import annotations

from bible_data.books import Reference
from bible_data.glue import best_way, damaged, repair, ways_apart


def verses(*texts: str) -> dict[Reference, str]:
    return {Reference("Mark", 1, number): text for number, text in enumerate(texts, start=1)}


GOOD = verses(*["the gate of the city and for he that came with the stone of olives be gone away upon the road show bread"] * 50)
JOINS = "gate ofOlives " * 10


def test_a_damaged_text_is_mended_with_the_help_of_the_others() -> None:
    """Joins at a small word come apart, in the case they had; the other text is not touched."""
    bad = verses(f"{JOINS}and forhe that came withthe stone. Forhe came")
    changed = repair({"bad": bad, "good": GOOD})
    assert changed["good"] == {}
    text = changed["bad"][Reference("Mark", 1, 1)]
    assert "and for he that came with the stone. For he came" in text
    assert "gate of Olives" in text


def test_words_of_its_own_stay() -> None:
    """Compounds of two full words, and words that begin like a small one, may be right."""
    bad = verses(f"{JOINS} showbread begone awayupon romamti")
    text = repair({"bad": bad, "good": GOOD})["bad"][Reference("Mark", 1, 1)]
    assert "showbread" in text
    assert "a way" not in text
    assert "romamti" in text


def test_a_sound_text_is_left_alone() -> None:
    """Without capitals inside words there is no evidence of damage, and nothing is taken apart."""
    sound = verses("and forhe that came")
    assert not damaged(sound)
    assert repair({"sound": sound, "good": GOOD}) == {"sound": {}, "good": {}}


def test_one_text_alone_is_no_evidence() -> None:
    """With nothing to compare, a strange word may be a word."""
    assert repair({"bad": verses(f"{JOINS} forhe")}) == {"bad": {}}


def test_a_possessive_keeps_its_s() -> None:
    """ "God'smouth" is "God's mouth"; an s that would stand alone anywhere else is not made."""
    good = verses(*["the king's mouth and the marshal's sons"] * 50)
    bad = verses(f"{JOINS} of the king'smouth and marshals")
    text = repair({"bad": bad, "good": good | GOOD})["bad"].get(Reference("Mark", 1, 1), "")
    assert "marshals" in text


def test_ways_apart_are_plausible() -> None:
    """Only common words, no single letters but a, i, o and s, at least one small word, no part of a longer common word."""
    common = frozenset({"in", "one", "i", "none", "the", "a", "way", "away", "upon"})
    assert sorted(ways_apart("inone", common)) == [("i", "none"), ("in", "one")]
    assert ways_apart("awayupon", common) == [("away", "upon")]
    assert ways_apart("oneway", common) == []


def test_the_clear_winner_or_none() -> None:
    """Two ways that are nearly as good leave the word as it is."""
    clear = {("i", "none"): 3, ("the", "one"): 50}
    assert best_way([("i", "none"), ("the", "one")], clear) == ["the", "one"]
    assert best_way([("i", "none"), ("the", "one")], clear | {("i", "none"): 40}) is None
    assert best_way([("i", "none")], {}) is None

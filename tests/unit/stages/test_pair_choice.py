"""stages.pair_choice: one vote for each verse, modern translations first, the same every time; sermons that leak nothing."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.pair_choice import choose, read_sermons
from stages.verse_pairs import TrainingPair, fold
from state.contract import MisconfiguredError

ENGLISH, SPANISH = ("KJV", "ASV", "BBE", "YLT", "NHEB"), ("SpaRV1865", "SpaRV")


def pair(number: int, english: str = "KJV", spanish: str = "SpaRV", *also: str) -> TrainingPair:
    """Verse `number` in these texts."""
    reference, edition = f"Genesis 1:{number}", f"{english}>{spanish}"
    return TrainingPair(f"{reference} {edition}", f"{number} {english}", f"{number} {spanish}", reference, (edition, *also))


def whole(count: int) -> list[TrainingPair]:
    """Every verse in all ten ways."""
    return [pair(number, english, spanish) for number in range(count) for english in ENGLISH for spanish in SPANISH]


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 3))
def test_each_verse_has_one_vote(count: int, most: int, seed: int) -> None:
    """Of each reference one pair at most, as many as are wanted and there are, each the most modern that there is."""
    chosen = choose(whole(count), most, seed)
    assert max(Counter(one.reference for one in chosen).values()) == 1
    assert len(chosen) == min(count, most)
    assert {one.editions for one in chosen} == {("NHEB>SpaRV",)}


def test_the_choice_does_not_depend_on_the_order_of_the_file() -> None:
    """The same pairs from a shuffled corpus; other ones for another seed."""
    pairs = whole(30)
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert {one.id for one in choose(shuffled, 10, 0)} == {one.id for one in choose(pairs, 10, 0)}
    assert {one.id for one in choose(pairs, 10, 1)} != {one.id for one in choose(pairs, 10, 0)}


def test_a_verse_without_a_modern_text_votes_by_its_next_one() -> None:
    """A modern edition that says the same as an older one counts; a text that nobody knows is newer than the public domain's."""
    pairs = [pair(1, "KJV"), pair(1, "ASV"), pair(2, "ASV", "SpaRV", "NHEB>SpaRV"), pair(2, "BBE"), pair(3, "BBE"), pair(3, "Mine")]
    assert [one.editions[0] for one in choose(pairs, 9, 0)] == ["ASV>SpaRV", "ASV>SpaRV", "Mine>SpaRV"]


def test_without_a_limit_all_pairs_are_kept() -> None:
    """In their order, every edition."""
    assert choose(whole(3), None, 0) == whole(3)


def test_sermon_pairs_leak_no_text_that_is_kept_out(tmp_path: Path) -> None:
    """A sermon that quotes a dev or test verse, in either language, is left out, whatever its case and accents."""
    path = tmp_path / "sermons.jsonl"
    path.write_text('{"en": "God is love!", "es": "x"}\n{"en": "a", "es": "Dios es amor"}\n{"en": "Good day", "es": "Buen día"}\n')
    found = read_sermons(path, {fold("god is love"), fold("DIOS ES AMOR.")})
    assert [(one.id, one.en, one.reference) for one in found] == [("sermon 3", "Good day", None)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ('{"en": "a"}\n', "line 1: not a pair"),
        ('{"en": "a", "es": " "}', "side is empty"),
    ],
)
def test_bad_sermon_pairs_are_named(tmp_path: Path, content: str | None, words: str) -> None:
    """The file, the line and what to do."""
    path = tmp_path / "sermons.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MisconfiguredError, match=words) as raised:
        read_sermons(path, set())
    assert "sermons.jsonl" in str(raised.value)
    assert "correct" in str(raised.value)

"""The versification map and the check that stops on a shift."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bible_data.alignment import (
    WINDOW,
    bare,
    check_alignment,
    find_shifts,
    fold,
    renumber,
    telling_words,
    versification,
)
from bible_data.books import Reference
from bible_data.errors import CorpusError
from bible_data.sample import texts

HEAD = "translation,book,chapter,verse,kjv_chapter,kjv_verse_first,kjv_verse_last,note"


def mark(chapter: int, verse: int) -> Reference:
    return Reference("Mark", chapter, verse)


def test_the_map_that_ships() -> None:
    """212 rows, of three texts; the rows that stay are shifts of one verse to one verse."""
    found = versification()
    kinds = {name: Counter(change.kind for change in changes.values()) for name, changes in found.items()}
    assert kinds == {
        "SpaRV": {"shift": 174, "overflow": 8, "merged": 5, "half": 4},
        "SpaRV1865": {"shift": 15, "merged": 4},
        "NHEB": {"extra": 2},
    }
    assert sum(map(len, found.values())) == 212
    assert all(change.first == change.last for changes in found.values() for change in changes.values() if change.kind == "shift")


def test_rows_are_moved_dropped_and_counted() -> None:
    """A shift moves a verse, a merged or overflowing row goes; what is not in the map keeps its number."""
    changes = versification(
        [
            HEAD,
            "Foo,Mark,1,2,1,3,3,shift",
            "Foo,Mark,1,3,1,4,5,merged",
            "Foo,Mark,1,4,1,6,8,overflow: two verses",
            "Foo,Mark,2,1,1,2,2,shift",
        ]
    )["Foo"]
    verses = {mark(1, 1): "a", mark(1, 2): "b", mark(1, 3): "c", mark(1, 4): "d", mark(2, 1): "e", mark(2, 2): "f"}
    result = renumber(verses, changes)
    assert result.verses == {mark(1, 1): "a", mark(1, 3): "b", mark(1, 2): "e", mark(2, 2): "f"}
    assert result.moved == 2
    assert result.dropped == {"merged": 1, "overflow": 1}


def test_a_map_that_does_not_fit_is_refused() -> None:
    """Two rows at one reference: this edition is not the one that the map was made for."""
    changes = versification([HEAD, "Foo,Mark,1,2,1,3,3,shift"])["Foo"]
    with pytest.raises(CorpusError, match="both become Mark 1:3"):
        renumber({mark(1, 2): "b", mark(1, 3): "c"}, changes)


@pytest.mark.parametrize(
    "row", ["Foo,Tobit,1,2,1,3,3,shift", "Foo,Mark,1,2,1,3,3,guess", "Foo,Mark,1,2,1,3,4,shift", "Foo,Mark,1,2,1,3,3,merged"]
)
def test_rows_that_make_no_sense_are_refused(row: str) -> None:
    """The line is named."""
    with pytest.raises(CorpusError, match="line 2"):
        versification([HEAD, row])


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=50))
def test_folding_is_idempotent_and_ignores_case(text: str) -> None:
    """A folded text is folded, has single spaces, and does not depend on the case of ASCII letters."""
    folded = fold(text)
    assert fold(folded) == folded
    assert folded == " ".join(folded.split())
    if text.isascii():
        assert fold(text.upper()) == folded


@pytest.mark.parametrize(
    ("one", "other"),
    [("Y fué á mí, palabra", "y fue a mi palabra"), ("to-day", "to day"), ("King’s", "kings"), ("Ñandú", "nandu")],
)
def test_bare_texts_differ_in_nothing_heard(one: str, other: str) -> None:
    """Accents, spaces, hyphens and apostrophes do not make two texts of one."""
    assert bare(fold(one)) == bare(fold(other))


@pytest.fixture(scope="module")
def sample() -> dict[str, tuple[str, dict[Reference, str]]]:
    """The sample's texts, folded, with their languages."""
    return {
        name: ("en" if name.startswith("Sample") else "es", {reference: fold(text) for reference, text in verses.items()})
        for name, verses in texts().items()
    }


Texts = dict[str, tuple[str, dict[Reference, str]]]


def shifted(sample: Texts, name: str, book: str, chapter: int, first: int, last: int, places: int) -> dict[Reference, str]:
    """The text with verses first..last each standing `places` further on than they belong."""
    verses = dict(sample[name][1])
    for number in range(first, last + 1):
        verses[Reference(book, chapter, number)] = sample[name][1][Reference(book, chapter, number - places)]
    return verses


def test_sound_texts_pass(sample: Texts) -> None:
    """All four of the sample, in both languages and with their different wordings."""
    check_alignment(sample)


@pytest.mark.parametrize("name", ["SampleB", "MuestraA", "MuestraB"])
@pytest.mark.parametrize("places", [1, -1, 3])
def test_a_shifted_run_stops_the_build(sample: Texts, name: str, places: int) -> None:
    """A run of ten verses under wrong numbers is found, in either language and direction; the text and the chapter are named."""
    language = sample[name][0]
    bad = sample | {name: (language, shifted(sample, name, "Luke", 5, 6, 17, places))}
    with pytest.raises(CorpusError, match=rf"{name} is not aligned .*Luke 5:"):
        check_alignment(bad)


def test_single_verses_do_not_alarm(sample: Texts) -> None:
    """Two verses out of place are fewer than a window: one that tells is not made of so little."""
    bad = shifted(sample, "MuestraA", "Luke", 5, 8, 9, 1)
    assert WINDOW > 2
    assert find_shifts(telling_words(sample["SampleA"][1]), telling_words(bad), "MuestraA", False) == []


def test_a_join_by_row_number_would_be_found(sample: Texts) -> None:
    """One row too many at the start of a book moves everything after it, as in NHEB's Jude and Revelation."""
    verses = sample["MuestraA"][1]
    book = [reference for reference in verses if reference.book == "Revelation of John"]
    moved = dict(verses) | {reference: verses[earlier] for earlier, reference in pairwise(book)}
    shifts = find_shifts(telling_words(sample["SampleA"][1]), telling_words(moved), "MuestraA", False)
    assert {shift.first.chapter for shift in shifts if shift.places == 1} == {1, 2, 3, 4}


def test_the_table_is_the_published_one() -> None:
    """The table that ships is a copy of the facts beside the repository, but for a pointer to their README."""
    original = Path(__file__).parents[4] / "shared" / "data" / "versification_map.csv"
    if not original.exists():
        pytest.skip("the versification map of ../shared is not there")
    ours = Path(__file__).parents[3] / "bible_data" / "data" / "versification.csv"
    assert original.read_text().replace(" (see README)", "") == ours.read_text()

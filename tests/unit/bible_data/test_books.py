"""Book names, order and genres."""

from __future__ import annotations

import pytest

from bible_data.books import BOOKS, GENRE, GENRES, Reference, canonical_book


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("I Samuel", "I Samuel"),
        ("1 Samuel", "I Samuel"),
        ("First  samuel", "I Samuel"),
        ("2nd Kings", "II Kings"),
        ("3 John", "III John"),
        ("Revelation", "Revelation of John"),
        ("REVELATION OF JOHN", "Revelation of John"),
        ("Psalm", "Psalms"),
        ("Song of Songs", "Song of Solomon"),
        ("Tobit", None),
        ("", None),
        ("IV Kings", None),
    ],
)
def test_names_are_understood_or_refused(written: str, meant: str | None) -> None:
    """The usual ways to write a name mean one book; anything else means none."""
    assert canonical_book(written) == meant


def test_the_canon() -> None:
    """66 books, each of exactly one of seven genres, each its own canonical name."""
    assert len(BOOKS) == len(set(BOOKS)) == len(GENRE) == 66
    assert len(GENRES) == 7
    assert all(canonical_book(book) == book for book in BOOKS)


def test_references_sort_by_the_canon() -> None:
    """Exodus 2 comes before Exodus 10, and Genesis before Exodus, whatever the alphabet says."""
    references = [Reference("Exodus", 10, 1), Reference("Exodus", 2, 9), Reference("Genesis", 50, 1), Reference("Acts", 1, 1)]
    ordered = sorted(references, key=lambda reference: reference.place)
    assert [str(reference) for reference in ordered] == ["Genesis 50:1", "Exodus 2:9", "Exodus 10:1", "Acts 1:1"]
    assert ordered[-1].genre == "acts_and_epistles"

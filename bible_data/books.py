"""The canon: book names, their order, their genres, and how a reference is written.

Names are those of scrollmapper/bible_databases ("I Samuel", "Revelation of John"); other common ways to write them are
accepted on input and never appear on output.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

DATA = Path(__file__).parent / "data"
"""The tables that ship. (importlib.resources would double the time that importing the corpus takes.)"""

PENTATEUCH = ("Genesis", "Exodus", "Leviticus", "Numbers", "Deuteronomy")
HISTORY = (
    *("Joshua", "Judges", "Ruth", "I Samuel", "II Samuel", "I Kings", "II Kings", "I Chronicles", "II Chronicles"),
    *("Ezra", "Nehemiah", "Esther"),
)
POETRY = ("Job", "Psalms", "Proverbs", "Ecclesiastes", "Song of Solomon")
PROPHECY = (
    *("Isaiah", "Jeremiah", "Lamentations", "Ezekiel", "Daniel", "Hosea", "Joel", "Amos", "Obadiah", "Jonah", "Micah"),
    *("Nahum", "Habakkuk", "Zephaniah", "Haggai", "Zechariah", "Malachi"),
)
GOSPELS = ("Matthew", "Mark", "Luke", "John")
EPISTLES = (
    *("Romans", "I Corinthians", "II Corinthians", "Galatians", "Ephesians", "Philippians", "Colossians"),
    *("I Thessalonians", "II Thessalonians", "I Timothy", "II Timothy", "Titus", "Philemon", "Hebrews", "James"),
    *("I Peter", "II Peter", "I John", "II John", "III John", "Jude"),
)
APOCALYPTIC = ("Revelation of John",)

GENRES: dict[str, tuple[str, ...]] = {
    "pentateuch": PENTATEUCH,
    "history": HISTORY,
    "poetry": POETRY,
    "prophecy": PROPHECY,
    "gospels": GOSPELS,
    "acts_and_epistles": ("Acts", *EPISTLES),
    "apocalyptic": APOCALYPTIC,
}
"""Genre -> its books, both in the canon's order."""

BOOKS: tuple[str, ...] = tuple(book for books in GENRES.values() for book in books)
ORDER: dict[str, int] = {book: place for place, book in enumerate(BOOKS)}
GENRE: dict[str, str] = {book: genre for genre, books in GENRES.items() for book in books}

_OTHER_NAMES = {
    "psalm": "Psalms",
    "song of songs": "Song of Solomon",
    "canticles": "Song of Solomon",
    "acts of the apostles": "Acts",
    "revelation": "Revelation of John",
    "apocalypse": "Revelation of John",
}
_ORDINALS = dict(
    pair.split("=") for pair in ("1=i", "1st=i", "first=i", "2=ii", "2nd=ii", "second=ii", "3=iii", "3rd=iii", "third=iii")
)
_NAMES = {book.lower(): book for book in BOOKS} | _OTHER_NAMES


class Reference(NamedTuple):
    """One verse of the canon, numbered as in the King James Version; sorts within one book only (see `place`)."""

    book: str
    chapter: int
    verse: int

    def __str__(self) -> str:
        return f"{self.book} {self.chapter}:{self.verse}"

    @property
    def genre(self) -> str:
        """The genre of its book, as results are grouped by."""
        return GENRE[self.book]

    @property
    def place(self) -> tuple[int, int, int]:
        """The sort key that follows the canon's order."""
        return ORDER[self.book], self.chapter, self.verse


def canonical_book(name: str) -> str | None:
    """The canonical name of the book that `name` means, or None for a book outside the canon of 66.

    Case, a full stop and extra spaces do not matter; "1 Samuel", "First Samuel" and "I Samuel" are one book.
    """
    words = name.replace(".", " ").lower().split()
    if words and words[0] in _ORDINALS:
        words[0] = _ORDINALS[words[0]]
    return _NAMES.get(" ".join(words))

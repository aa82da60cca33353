"""Verse pairs: which there are, which are the same, and the line of each in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring as quoted
from typing import NamedTuple

from bible_data.books import GENRE, Reference
from bible_data.cleaning import Cleaned
from bible_data.sources import Text


@dataclass
class Prepared:
    """A text, cleaned and under canonical numbers."""

    text: Text
    cleaned: Cleaned
    verses: dict[Reference, str]
    folded: dict[Reference, str]
    moved: int
    dropped: Counter[str]


def paired(english: Iterable[Collection[Reference]], spanish: Iterable[Collection[Reference]]) -> list[Reference]:
    """References that have a verse in both languages, in the canon's order."""
    both = set().union(*english) & set().union(*spanish)
    return sorted(both, key=lambda reference: reference.place)


def pair_count(english: Iterable[Collection[Reference]], spanish: Iterable[Collection[Reference]]) -> int:
    """Pairs of one English and one Spanish verse, over all texts."""
    left = Counter(reference for verses in english for reference in verses)
    right = Counter(reference for verses in spanish for reference in verses)
    return sum(count * right[reference] for reference, count in left.items())


class Pair(NamedTuple):
    """One verse in one English and one Spanish text."""

    reference: Reference
    english: Prepared
    spanish: Prepared

    @property
    def folded(self) -> tuple[str, str]:
        """Both sides, folded."""
        return self.english.folded[self.reference], self.spanish.folded[self.reference]

    @property
    def sides(self) -> tuple[str, str]:
        """Both sides, cleaned."""
        return self.english.verses[self.reference], self.spanish.verses[self.reference]

    def place(self) -> str:
        """Where it stands, as the members of a JSON object."""
        book, chapter, verse = self.reference
        names = f'"en_source": "{self.english.text.name}", "es_source": "{self.spanish.text.name}"'
        return f'"book": "{book}", "chapter": {chapter}, "verse": {verse}, {names}'

    def line(self, also: Sequence[Pair]) -> bytes:
        """Its line in a file of pairs: the members of `place` and both sides, genre, and `also` the places of its duplicates.

        Put together by hand, since `json` takes 2.7 times as long; names of books, genres and texts need no escapes.
        """
        book, chapter, verse = self.reference
        others = f', "also": [{", ".join(f"{{{pair.place()}}}" for pair in also)}]' if also else ""
        english, spanish = map(quoted, self.sides)
        where = f'"book": "{book}", "chapter": {chapter}, "verse": {verse}, "genre": "{GENRE[book]}"'
        names = f'"en_source": "{self.english.text.name}", "es_source": "{self.spanish.text.name}"'
        return f'{{"en": {english}, "es": {spanish}, {where}, {names}{others}}}\n'.encode()


def pairs_of(references: Iterable[Reference], english: Sequence[Prepared], spanish: Sequence[Prepared]) -> Iterator[Pair]:
    """Every pair, in the order of the references and of the options."""
    for reference in references:
        for left in english:
            if reference in left.verses:
                for right in spanish:
                    if reference in right.verses:
                        yield Pair(reference, left, right)


FoldPairs = Callable[[Iterable[Pair]], list[list[Pair]]]


def fold_train(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Groups of pairs that are the same but for case and punctuation; the first of a group is the one to keep."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.folded, []).append(pair)
    return list(groups.values())


def fold_test(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """As `fold_train`, but only within a reference and a Spanish text: every English text keeps all its Spanish references."""
    groups: dict[tuple[Reference, str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.reference, pair.folded[0], pair.spanish.text.name), []).append(pair)
    return list(groups.values())

"""The project's own glossary of English-Spanish theological terms, and where its terms occur.

Terms match whole words ("Eve" is not in "evening") whatever their case and, in Spanish, their accents, since older
editions write them otherwise; ñ stays a letter of its own. A pair bears a term out only where its Spanish side really has one of
the equivalents: whoever asks for "alianza" where the reference says "pacto" teaches a lie.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from bible_data.books import DATA
from bible_data.errors import CorpusError
from bible_data.words import lower_words


@dataclass(frozen=True)
class Term:
    """One entry. The first form is the one that is taught; the others (plurals, spellings) are for finding it."""

    category: str
    english: tuple[str, ...]
    spanish: tuple[tuple[str, ...], ...]
    """Equivalents, the usual one first, each with its forms; several where the Bible itself has several."""


def load(text: str | None = None) -> tuple[Term, ...]:
    """The glossary that ships, or the one in `text`.

    Raises:
        CorpusError: not a list of entries {category, en: [forms], es: [[forms], ...]}.
    """
    if text is None:
        text = (DATA / "glossary.json").read_text(encoding="utf-8")
    try:
        return tuple(
            Term(entry["category"], tuple(entry["en"]), tuple(tuple(forms) for forms in entry["es"])) for entry in json.loads(text)
        )
    except (ValueError, TypeError, KeyError) as error:
        raise CorpusError(f"glossary.json: not a list of entries with category, en and es ({error}); restore the file") from error


def words(text: str, *, accents: bool = False) -> list[str]:
    """The words of a sentence in lower case; accents go (but ñ stays) unless asked for."""
    found = lower_words(text)
    if accents or text.isascii():
        return found
    return [word if word.isascii() else _without_accents(word) for word in found]


@lru_cache(maxsize=100_000)
def _without_accents(word: str) -> str:
    kept = unicodedata.normalize("NFD", word).replace("n\u0303", "ñ")
    return "".join(sign for sign in kept if not unicodedata.combining(sign))


class Finder:
    """Finds phrases in a sentence by whole words; built once, asked often."""

    def __init__(self, phrases: Iterable[tuple[str, int]]) -> None:
        """`phrases`: (phrase, the number to report for it)."""
        self._single: dict[str, set[int]] = {}
        self._longer: dict[str, list[tuple[list[str], int]]] = {}
        for phrase, number in phrases:
            first, *rest = parts = words(phrase)
            if rest:
                self._longer.setdefault(first, []).append((parts, number))
            else:
                self._single.setdefault(first, set()).add(number)
        self._firsts = frozenset(self._single.keys() | self._longer.keys())

    def find(self, sentence: Sequence[str]) -> set[int]:
        """The numbers of the phrases that a sentence, given as `words`, contains."""
        found: set[int] = set()
        for word in self._firsts.intersection(sentence):
            found |= self._single.get(word, set())
            for parts, number in self._longer.get(word, ()):
                if any(sentence[place : place + len(parts)] == parts for place, other in enumerate(sentence) if other == word):
                    found.add(number)
        return found


class Glossary:
    """The terms with their finders."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        self.pairs = tuple((number, forms) for number, term in enumerate(self.terms) for forms in term.spanish)
        self._english = Finder((form, number) for number, term in enumerate(self.terms) for form in term.english)
        self._spanish = Finder((form, place) for place, (_, forms) in enumerate(self.pairs) for form in forms)
        self._places: dict[int, list[int]] = {}
        for place, (number, _) in enumerate(self.pairs):
            self._places.setdefault(number, []).append(place)

    def english(self, sentence: str) -> set[int]:
        """Numbers of the terms that an English sentence contains."""
        return self._english.find(words(sentence))

    def spanish(self, sentence: str) -> set[int]:
        """Places in `pairs` of the equivalents that a Spanish sentence contains."""
        return self._spanish.find(words(sentence))

    def together(self, verses: Iterable[tuple[set[int], set[int]]]) -> Counter[int]:
        """Place in `pairs` -> verses that have both the term and the equivalent, from (`english`, `spanish`) of each verse."""
        counts: Counter[int] = Counter()
        for terms, places in verses:
            counts.update(place for place in places if self.pairs[place][0] in terms)
        return counts

    def rows(self, together: Mapping[int, int]) -> list[dict[str, object]]:
        """One line of glossary_pairs.jsonl for each equivalent; `rank` 1 is the usual one."""
        rows: list[dict[str, object]] = []
        for number, term in enumerate(self.terms):
            for rank, place in enumerate(self._places[number], start=1):
                rows.append(
                    {
                        "en": term.english[0],
                        "es": self.pairs[place][1][0],
                        "category": term.category,
                        "rank": rank,
                        "equivalents": len(self._places[number]),
                        "train_verses": together.get(place, 0),
                    }
                )
        return rows

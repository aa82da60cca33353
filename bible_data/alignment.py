"""Same verse beside same verse: the versification map, the self-check that stops on a shift, folded texts.

The key of a verse is its canonical reference, never a row number: NHEB has two rows more than the others, and a join by
row mispairs everything after the first of them. Where a text's own number differs from the King James Version's,
`data/versification.csv` says so.
"""

from __future__ import annotations

import csv
import heapq
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, groupby
from statistics import median

from bible_data.books import DATA, ORDER, Reference, canonical_book
from bible_data.errors import CorpusError

Verses = Mapping[Reference, str]

_NOT_WORDS = re.compile(r"[^\w\s]|_")
_ASCII_FOLD = {code: _NOT_WORDS.sub("", chr(code).lower()) for code in range(128)}
_ACCENTS = re.compile("[\u0300-\u036f]")


@dataclass(frozen=True)
class Renumbering:
    """One row of the map: what a text calls `published` is the canonical `first` to `last`."""

    published: Reference
    first: Reference
    last: Reference
    kind: str
    """`shift` (one verse, another number), `merged`, `overflow`, `half` or `extra`: all but the first are dropped."""


@dataclass
class Renumbered:
    """A text under canonical numbers, with the counts of what the map did."""

    verses: dict[Reference, str]
    moved: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def versification(lines: Iterable[str] | None = None) -> dict[str, dict[Reference, Renumbering]]:
    """The map, by text name and published reference; by default the table that ships.

    Raises:
        CorpusError: a row that is not understood.
    """
    if lines is None:
        lines = (DATA / "versification.csv").read_text(encoding="utf-8").splitlines()
    result: dict[str, dict[Reference, Renumbering]] = defaultdict(dict)
    for number, row in enumerate(csv.DictReader(lines), start=2):
        book = canonical_book(row["book"] or "")
        kind = _kind(row["note"] or "")
        if book is None or kind is None:
            raise CorpusError(
                f"versification.csv, line {number}: book {row['book']!r}, note {row['note']!r} not understood; correct the row"
            )
        published = Reference(book, int(row["chapter"]), int(row["verse"]))
        first, last = (
            Reference(book, int(row["kjv_chapter"]), int(row[column])) for column in ("kjv_verse_first", "kjv_verse_last")
        )
        if (kind == "shift") != (first == last) and kind in {"shift", "merged"}:
            raise CorpusError(f"versification.csv, line {number}: a {kind} cannot go from {first} to {last}; correct the row")
        result[row["translation"]][published] = Renumbering(published, first, last, kind)
    return dict(result)


def _kind(note: str) -> str | None:
    starts = {
        "shift": "shift",
        "merged": "merged",
        "overflow": "overflow",
        "first half": "half",
        "second half": "half",
        "NRSV": "extra",
    }
    return next((kind for start, kind in starts.items() if note.startswith(start)), None)


def renumber(verses: Verses, changes: Mapping[Reference, Renumbering]) -> Renumbered:
    """Put verses under their canonical numbers; what holds less or more than one canonical verse is dropped and counted.

    Raises:
        CorpusError: two rows end at one reference, so that the map does not fit this text.
    """
    result = Renumbered({})
    for published, text in verses.items():
        change = changes.get(published)
        if change and change.kind != "shift":
            result.dropped[change.kind] += 1
            continue
        reference = change.first if change else published
        if reference in result.verses:
            raise CorpusError(
                f"versification.csv: {published} and another row both become {reference}; the map does not fit this text, "
                f"correct it or use the edition it was made for"
            )
        result.verses[reference] = text
        result.moved += reference != published
    return result


def fold(text: str) -> str:
    """Lower case, no punctuation, single spaces: two texts that differ in nothing a reader hears are one."""
    plain = text.translate(_ASCII_FOLD) if text.isascii() else _NOT_WORDS.sub("", text.lower())
    return " ".join(plain.split())


def bare(folded: str) -> str:
    """A folded text without accents and spaces: the strictest sameness, for finding leaks."""
    if not folded.isascii():
        folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", folded))
    return folded.replace(" ", "")


# -- the self-check

WINDOW = 6
"""Neighbouring verses that are judged together: a shift runs on, a free rendering does not."""
MARGIN = 1.3
"""How many times better a window must fit some places away than in place. Measured on the seven texts of the facts page: with the
map no window reaches it; without the map every shifted chapter of six verses or more does."""
MIN_GAIN = 0.5
"""And by how much, in likeness summed over the window."""
NEAR = (1, -1)
FAR = (2, -2, 3, -3, 4, -4, 5, -5)
"""Places that are tried only in a chapter that fits badly, under POOR of what is usual."""
POOR = 0.6
RARE = (2, 400)
"""Verses that a word may occur in to say anything about which verse it is."""


@dataclass(frozen=True)
class Shift:
    """Verses `first` to `last` of a text fit their neighbours' places better than their own."""

    text: str
    first: Reference
    last: Reference
    places: int
    """+1: the text of one verse stands under the number before it."""


Telling = Mapping[Reference, frozenset[str]]
"""Verse -> its words that are rare enough to say which verse it is."""


class Likeness:
    """How alike two verses are: their telling words, or those words' commonest companions in the other text.

    Two texts of one language share words; for two languages the companions are learnt from the texts themselves (Dice's
    coefficient of occurring in the same verse), which a few shifted chapters do not spoil. Needs no dictionary.
    """

    def __init__(self, pivot: Telling, other: Telling, same_language: bool) -> None:
        self.pivot = pivot
        self.other = other
        self.companions = None if same_language else companions(self.pivot, self.other)

    def __call__(self, reference: Reference, other: Reference) -> float:
        """0 to about 1."""
        words, there = self.pivot.get(reference), self.other.get(other)
        if not words or not there:
            return 0.0
        if self.companions is None:
            return 2 * len(words & there) / (len(words) + len(there))
        total = 0.0
        for word in words:
            for dice, companion in self.companions.get(word, ()):
                if companion in there:
                    total += dice
                    break
        return total / math.sqrt(len(words) * len(there))


def telling_words(verses: Verses) -> dict[Reference, frozenset[str]]:
    """The telling words of folded verses."""
    stem = _Stems().__getitem__
    words = {reference: frozenset(map(stem, text.split())) for reference, text in verses.items()}
    counts = Counter(chain.from_iterable(words.values()))
    low, high = RARE
    telling = {word for word, count in counts.items() if low <= count <= high}
    return {reference: group & telling for reference, group in words.items()}


class _Stems(dict[str, str]):
    """Folded word -> its first six letters without accents; each word is worked out once."""

    def __missing__(self, word: str) -> str:
        stem = self[word] = bare(word)[:6]
        return stem


def companions(pivot: Telling, other: Telling) -> dict[str, list[tuple[float, str]]]:
    """Word of the pivot -> its five commonest companions in the other text, each with Dice's coefficient, best first."""
    left: Counter[str] = Counter()
    right: Counter[str] = Counter()
    beside: dict[str, list[frozenset[str]]] = defaultdict(list)
    for reference, words in pivot.items():
        there = other.get(reference)
        if there:
            left.update(words)
            right.update(there)
            for word in words:
                beside[word].append(there)
    result = {}
    for word, groups in beside.items():
        counts = Counter(chain.from_iterable(groups))
        scored = ((2 * times / (left[word] + right[companion]), companion) for companion, times in counts.items() if times > 1)
        result[word] = heapq.nsmallest(5, scored, key=lambda item: (-item[0], item[1]))
    return result


def find_shifts(pivot: Telling, other: Telling, name: str, same_language: bool) -> list[Shift]:
    """Runs of verses in `other` that fit the pivot better some places before or after; empty for a sound alignment."""
    likeness = Likeness(pivot, other, same_language)
    chapters = [(references, [likeness(reference, reference) for reference in references]) for references in _chapters(pivot)]
    usual = median(sum(here) / len(here) for _, here in chapters) if chapters else 0.0
    shifts: list[Shift] = []
    for references, here in chapters:
        poor = sum(here) < POOR * usual * len(here)
        for places in (*NEAR, *FAR) if poor else NEAR:
            shifts += _runs(references, here, likeness, name, places)
    return shifts


def _chapters(verses: Iterable[Reference]) -> Iterator[list[Reference]]:
    ordered = sorted(verses, key=lambda reference: reference.place)
    for _, group in groupby(ordered, key=lambda reference: (ORDER[reference.book], reference.chapter)):
        yield list(group)


def _runs(references: list[Reference], here: list[float], likeness: Likeness, name: str, places: int) -> list[Shift]:
    there = [likeness(one, Reference(one.book, one.chapter, one.verse + places)) for one in references]
    if sum(away - in_place for away, in_place in zip(there, here, strict=True) if away > in_place) < MIN_GAIN / 2:
        return []  # no window can gain enough
    hits = [
        start
        for start in range(len(references) - WINDOW + 1)
        if _fits_better(sum(there[start : start + WINDOW]), sum(here[start : start + WINDOW]))
    ]
    if not hits:
        return []
    return [Shift(name, references[hits[0]], references[hits[-1] + WINDOW - 1], places)]


def _fits_better(away: float, in_place: float) -> bool:
    return away > MARGIN * in_place and away - in_place > MIN_GAIN


def check_alignment(texts: Mapping[str, tuple[str, Verses]], between: Callable[[str], None] = lambda name: None) -> None:
    """Stop when any text is shifted against the first one, which is the pivot.

    Args:
        texts: name -> (language, folded verses under canonical numbers), in the order of the options.
        between: called with each text's name before it is compared.

    Raises:
        CorpusError: naming the text and the verses.
    """
    (pivot_name, (pivot_language, verses)), *others = texts.items()
    pivot = telling_words(verses)
    for name, (language, verses) in others:
        between(name)
        shifts = find_shifts(pivot, telling_words(verses), name, language == pivot_language)
        if shifts:
            runs = "; ".join(f"{shift.first} to {shift.last}" for shift in shifts[:3])
            raise CorpusError(
                f"{name} is not aligned with {pivot_name}: {len(shifts)} runs of verses fit a neighbour's number better ({runs}); "
                f"correct bible_data/data/versification.csv for this edition, or leave {name} out"
            )

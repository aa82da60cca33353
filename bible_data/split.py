"""Train and test references: decided by sha256 of the reference, before anything is paired.

What belongs together stays together. Two references are one cluster when any two of their verses, in whichever texts of
one language, are the same when bare (no case, punctuation, accents or spaces), or when one shares NEAR_SHARE of its
5-grams with the other: formulas and parallel passages then cannot stand on both sides.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from itertools import chain

from bible_data.alignment import bare
from bible_data.books import GENRES, Reference
from bible_data.errors import CorpusError

GRAM = 5
"""Words in a gram."""
NEAR_SHARE = 0.6
"""Of a verse's grams, found in the verses of one other reference: near enough to be one passage."""
LARGEST_TEST_CLUSTER = 8
"""References. A larger cluster is a formula ("And the LORD spake unto Moses, saying"); testing it often would measure little."""

Verses = Mapping[Reference, str]
Gram = tuple[str, ...]


class Clusters:
    """Union-find over references; the representative of a cluster is its first reference in the canon's order."""

    def __init__(self, references: Iterable[Reference]) -> None:
        self._order = sorted(references, key=lambda reference: reference.place)
        self._place = {reference: place for place, reference in enumerate(self._order)}
        self._parent = list(range(len(self._order)))

    def place(self, reference: Reference) -> int | None:
        """The number of a reference, None for one that takes no part."""
        return self._place.get(reference)

    def root(self, place: int) -> int:
        """The place of the cluster's representative, with the way to it shortened."""
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place

    def join(self, one: int, other: int) -> None:
        """Put two references, by number, into one cluster."""
        low, high = sorted((self.root(one), self.root(other)))
        self._parent[high] = low

    def groups(self) -> list[list[Reference]]:
        """Every cluster, members and clusters in the canon's order."""
        members: dict[int, list[Reference]] = defaultdict(list)
        for place, reference in enumerate(self._order):
            members[self.root(place)].append(reference)
        return list(members.values())


@dataclass(frozen=True)
class Split:
    """The test references, and what it took to keep the two sides apart."""

    test: frozenset[Reference]
    references: dict[str, int]
    """By genre."""
    wanted: dict[str, int]
    """Test references by genre, as asked for and as delivered."""
    clusters: int
    """Of two or more references."""
    clustered: int
    """References in such clusters."""
    kept_in_train: int
    """References in clusters too large for the test."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Cluster size -> how many clusters."""


def split(references: Collection[Reference], languages: Sequence[Sequence[Verses]], share: float) -> Split:
    """Choose the test references: exactly `round(share * references)` of each genre, halves up.

    Args:
        references: those that have at least one pair.
        languages: for each language, its texts' folded verses.
        share: of the references of each genre that go to the test, 0 to 1.

    Raises:
        CorpusError: a genre has too few free references for its share.
    """
    clusters = Clusters(references)
    for texts in languages:
        join_same(clusters, texts)
        join_near(clusters, texts)
    groups = clusters.groups()
    counts = Counter(reference.genre for reference in references)
    wanted = {genre: rounded_share(counts[genre], share) for genre in GENRES if counts[genre]}
    test = fill(groups, wanted)
    sizes = Counter(len(group) for group in groups)
    return Split(
        test=test,
        references={genre: counts[genre] for genre in wanted},
        wanted=wanted,
        clusters=sum(times for size, times in sizes.items() if size > 1),
        clustered=sum(size * times for size, times in sizes.items() if size > 1),
        kept_in_train=sum(size * times for size, times in sizes.items() if size > LARGEST_TEST_CLUSTER),
        sizes=dict(sorted(sizes.items())),
    )


def rounded_share(count: int, share: float) -> int:
    """`share` of `count`, halves rounded up, in decimal: 10 % of 4,785 is 479 on every machine."""
    return int((Decimal(count) * Decimal(str(share))).to_integral_value(ROUND_HALF_UP))


def join_same(clusters: Clusters, texts: Sequence[Verses]) -> None:
    """Join references of which any two verses are the same when bare."""
    first: dict[str, int] = {}
    for verses in texts:
        for reference, text in verses.items():
            place = clusters.place(reference)
            if place is not None:
                other = first.setdefault(bare(text), place)
                if other != place:
                    clusters.join(place, other)


def join_near(clusters: Clusters, texts: Sequence[Verses]) -> None:
    """Join references of which one verse shares NEAR_SHARE of its grams with the verses of the other, in all texts together.

    Grams are made twice for the few verses that come near it, and kept for none: all of them would take a gigabyte.
    """
    everything = [(clusters.place(reference), text) for verses in texts for reference, text in verses.items()]
    verses = [(place, text) for place, text in everything if place is not None]
    by_place: dict[int, set[Gram]] = defaultdict(set)
    counts = []
    for place, text in verses:
        here = grams(text)
        by_place[place] |= here
        counts.append(len(here))
    shared = shared_grams(by_place)
    where: dict[Gram, list[int]] = defaultdict(list)
    for place, here in shared.items():
        for gram in here:
            where[gram].append(place)
    for (place, text), count in zip(verses, counts, strict=True):
        if count and len(shared[place]) >= NEAR_SHARE * count:
            for other in _near(grams(text), shared[place], where):
                clusters.join(place, other)


def _near(here: set[Gram], shared: set[Gram], where: Mapping[Gram, list[int]]) -> list[int]:
    """The references that have NEAR_SHARE of a verse's grams; it itself may be among them."""
    found, need = here & shared, NEAR_SHARE * len(here)
    if len(found) < need:
        return []
    return [other for other, times in Counter(chain.from_iterable(where[gram] for gram in found)).items() if times >= need]


def grams(text: str) -> set[Gram]:
    """The distinct 5-grams of a folded verse."""
    words = text.split()
    return set(zip(*(words[start:] for start in range(GRAM)), strict=False))


def shared_grams(by_place: Mapping[int, set[Gram]]) -> dict[int, set[Gram]]:
    """Of the grams of each reference those that another one has too."""
    seen: set[Gram] = set()
    twice: set[Gram] = set()
    for here in by_place.values():
        twice |= seen & here
        seen |= here
    return {place: here & twice for place, here in by_place.items()}


def hash_order(reference: Reference) -> str:
    """Where a reference stands in the draw: the same on every machine, and for every set of texts."""
    return hashlib.sha256(str(reference).encode()).hexdigest()


def fill(groups: Iterable[Sequence[Reference]], wanted: Mapping[str, int]) -> frozenset[Reference]:
    """Take clusters in hash order, each only if it fits into what its genres still want, until every genre is exactly full.

    Raises:
        CorpusError: some genre cannot be filled.
    """
    left = dict(wanted)
    test: list[Reference] = []
    for group in sorted(groups, key=lambda group: hash_order(group[0])):
        need = Counter(reference.genre for reference in group)
        if len(group) <= LARGEST_TEST_CLUSTER and all(left[genre] >= count for genre, count in need.items()):
            test += group
            for genre, count in need.items():
                left[genre] -= count
    short = {genre: count for genre, count in left.items() if count}
    if short:
        raise CorpusError(
            f"the test set lacks {short} references after every cluster that fits was taken: too many verses of those genres "
            f"repeat one another; use a smaller test_share or more texts"
        )
    return frozenset(test)


def check_no_leak(test: frozenset[Reference], references: Collection[Reference], languages: Sequence[Sequence[Verses]]) -> None:
    """Prove it on the finished sets: no test verse, folded and bare, is in train.

    Raises:
        CorpusError: naming the two references; the split is wrong and must not be used.
    """
    train = [reference for reference in references if reference not in test]
    for texts in languages:
        seen = {bare(verses[reference]): reference for verses in texts for reference in train if reference in verses}
        for verses in texts:
            for reference in test:
                twin = seen.get(bare(verses[reference])) if reference in verses else None
                if twin is not None:
                    raise CorpusError(
                        f"{reference} (test) and {twin} (train) hold the same text; the split is wrong, please report it"
                    )

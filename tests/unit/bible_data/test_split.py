"""Exactly the share, decided by sha256, and nothing that belongs together on both sides."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bible_data.alignment import fold
from bible_data.books import GENRE, Reference
from bible_data.errors import CorpusError
from bible_data.split import (
    GRAM,
    LARGEST_TEST_CLUSTER,
    NEAR_SHARE,
    Clusters,
    check_no_leak,
    fill,
    grams,
    hash_order,
    join_near,
    join_same,
    rounded_share,
    split,
)

NUMBERS = [f"word{number}" for number in range(28)]


def distinct(reference: Reference) -> str:
    """A sentence that shares no gram with any other reference's."""
    digest = hashlib.sha256(str(reference).encode()).hexdigest()
    return " ".join(f"w{digest[start : start + 4]}" for start in range(0, 48, 4))


def references(book: str, count: int) -> list[Reference]:
    return [Reference(book, 1 + number // 20, 1 + number % 20) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(5852, 585), (7017, 702), (7016, 702), (4785, 479), (5490, 549), (3779, 378), (3774, 377), (404, 40), (5, 1), (4, 0)],
)
def test_ten_per_cent_is_defined(count: int, wanted: int) -> None:
    """The nearest whole number, halves up, worked out in decimal: the seven genres' counts."""
    assert rounded_share(count, 0.1) == wanted


@given(st.integers(10, 60), st.integers(10, 60), st.sampled_from([0.1, 0.2, 0.5]))
def test_each_genre_gets_exactly_its_share(gospels: int, poems: int, share: float) -> None:
    """Whatever the counts; every reference is on one side."""
    chosen = references("Mark", gospels) + references("Job", poems)
    english = {reference: distinct(reference) for reference in chosen}
    result = split(chosen, [[english]], share)
    counts = Counter(GENRE[reference.book] for reference in result.test)
    assert counts["gospels"] == rounded_share(gospels, share)
    assert counts["poetry"] == rounded_share(poems, share)
    assert result.wanted == {"poetry": rounded_share(poems, share), "gospels": rounded_share(gospels, share)}


def test_the_draw_is_sha256_of_the_reference() -> None:
    """The first references in the order of their digests are the test; input order plays no part."""
    chosen = references("Mark", 60)
    english = {reference: distinct(reference) for reference in chosen}
    expected = set(sorted(chosen, key=lambda reference: hashlib.sha256(str(reference).encode()).hexdigest())[:6])
    assert split(chosen, [[english]], 0.1).test == expected
    assert split(chosen[::-1], [[dict(reversed(english.items()))]], 0.1).test == expected
    assert hash_order(Reference("Mark", 1, 1)) == hashlib.sha256(b"Mark 1:1").hexdigest()


def test_equal_texts_stay_together() -> None:
    """Two references with one text in any edition of a language are one cluster, across genres, accents and spaces."""
    one, two, three = Reference("Mark", 1, 1), Reference("Job", 1, 1), Reference("Ruth", 1, 1)
    clusters = Clusters([one, two, three])
    join_same(clusters, [{one: fold("Y fué á mí"), three: "otra cosa"}, {two: fold("y fue a mi")}])
    assert clusters.groups() == [[three], [two, one]]


def test_parallel_passages_fall_on_one_side() -> None:
    """Fifty pairs of verses that share most of their words: the split takes both of a pair or neither, in either language."""
    chosen = references("Mark", 100)
    verses = {}
    for one, other in zip(chosen[::2], chosen[1::2], strict=True):
        verses |= {one: distinct(one), other: distinct(one).rpartition(" ")[0] + " otherwise"}
    apart = {reference: distinct(reference) for reference in chosen}
    for languages in ([[verses], [apart]], [[apart], [verses]]):
        test = split(chosen, languages, 0.1).test
        assert len(test) == 10
        assert all((one in test) == (other in test) for one, other in zip(chosen[::2], chosen[1::2], strict=True))


def sentence(*parts: tuple[int, int]) -> str:
    return " ".join(" ".join(NUMBERS[start:end]) for start, end in parts)


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (sentence((0, 12)), sentence((0, 10), (20, 28)), True),  # 6 of 8 grams
        (sentence((0, 14)), sentence((0, 10), (20, 28)), True),  # 6 of 10 grams
        (sentence((0, 15)), sentence((0, 10), (20, 28)), False),  # 6 of 11 grams
        (sentence((0, 4)), sentence((0, 4), (20, 28)), False),  # no gram at all
        (sentence((0, 5)), sentence((10, 20), (0, 5), (20, 28)), True),  # a short verse inside a long one
    ],
)
def test_parallel_passages_stay_together(one: str, other: str, together: bool) -> None:
    """From NEAR_SHARE of one verse's 5-grams on, in either direction and across the editions of a language."""
    assert (GRAM, NEAR_SHARE) == (5, 0.6)
    first, second = Reference("Mark", 1, 1), Reference("Luke", 1, 1)
    for texts in ([{first: one, second: other}], [{first: one}, {second: other}], [{first: other, second: one}]):
        clusters = Clusters([first, second])
        join_near(clusters, texts)
        assert (len(clusters.groups()) == 1) == together


@given(st.lists(st.sampled_from(NUMBERS[:6]), max_size=12))
def test_grams_are_the_distinct_runs_of_five(words: list[str]) -> None:
    """Each run once; a verse of fewer words has none."""
    assert grams(" ".join(words)) == {tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)}


def test_large_clusters_stay_in_train() -> None:
    """A formula that stands at many references is not tested many times, nor once."""
    chosen = references("Mark", 100)
    formula = chosen[: LARGEST_TEST_CLUSTER + 1]
    english = {reference: "the same words" if reference in formula else distinct(reference) for reference in chosen}
    result = split(chosen, [[english]], 0.1)
    assert result.test.isdisjoint(formula)
    assert len(result.test) == 10
    assert (result.clusters, result.clustered, result.kept_in_train) == (1, len(formula), len(formula))


def test_a_share_that_cannot_be_filled_is_refused() -> None:
    """All verses the same: no test set can be kept apart."""
    chosen = references("Mark", 100)
    with pytest.raises(CorpusError, match="test_share"):
        split(chosen, [[dict.fromkeys(chosen, "the same words")]], 0.1)


def test_a_cluster_across_genres_fits_both_or_neither() -> None:
    """It is taken only while every genre in it still wants references."""
    gospel, poem = references("Mark", 2), references("Job", 2)
    wanted = {"gospels": 1, "poetry": 0}
    assert fill([[gospel[0], poem[0]], [gospel[1]], [poem[1]]], wanted) == {gospel[1]}


def test_the_proof_finds_a_leak() -> None:
    """A test verse that stands in train in another edition, whichever comes first, with other accents, is named."""
    one, two = Reference("Mark", 1, 1), Reference("Luke", 1, 1)
    editions = [{one: fold("Y fué así")}, {two: fold("y fue asi")}]
    for leaking in ([editions], [editions[::-1]], [[{one: "so it was"}], editions]):
        with pytest.raises(CorpusError, match=r"Mark 1:1 \(test\) and Luke 1:1 \(train\)"):
            check_no_leak(frozenset({one}), [one, two], leaking)
        check_no_leak(frozenset({one, two}), [one, two], leaking)

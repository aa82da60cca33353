"""Rules of the scores: they are sacrebleu's, over every reference, and a difference is called real only when it is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.significance import PairedTest

from stages import scoring
from stages.scoring import Pair, Sentence, Statistics

WORDS = ("el", "pastor", "vio", "la", "luz", "sobre", "agua", "y", "oveja", "en", "su", "casa", "de", "paz", "con", "gozo", "pan")


def pair(verse: int, en: str, es: str, *, genre: str = "gospels", en_source: str = "E1", es_source: str = "S1") -> Pair:
    return Pair(en=en, es=es, book="Tales", chapter=1, verse=verse, genre=genre, en_source=en_source, es_source=es_source)


def sentences_of(count: int, *, references: int = 2, seed: int = 1) -> list[Sentence]:
    """Sentences of which every third has one reference less than the others."""
    chance = random.Random(seed)
    pairs = [
        pair(verse, f"source {verse}", " ".join(chance.choices(WORDS, k=12)), es_source=f"S{number}")
        for verse in range(count)
        for number in range(references - (verse % 3 == 0))
    ]
    return scoring.group(pairs)


def damaged(sentences: list[Sentence], share: float, seed: int = 2) -> list[str]:
    """The first reference of each sentence with a share of its words exchanged."""
    chance = random.Random(seed)
    return [
        " ".join(chance.choice(WORDS) if chance.random() < share else word for word in sentence.references[0].split())
        for sentence in sentences
    ]


@pytest.mark.parametrize(("name", "reference"), [("bleu", BLEU()), ("chrf", CHRF(word_order=2))])
def test_scores_are_sacrebleus_with_fewer_references_for_some(name: str, reference: BLEU | CHRF) -> None:
    """The sum over sentences gives sacrebleu's corpus score, also where sentences have different numbers of references."""
    sentences = sentences_of(40)
    hypotheses = damaged(sentences, 0.3)
    streams = [[s.references[0] for s in sentences], [s.references[1] if len(s.references) > 1 else None for s in sentences]]
    expected = reference.corpus_score(hypotheses, streams).score  # type: ignore[arg-type]  # None is how sacrebleu takes a gap
    assert scoring.corpus_score(name, scoring.statistics(sentences, hypotheses)) == pytest.approx(expected, abs=1e-9)
    assert 5 < expected < 95


def test_every_reference_counts() -> None:
    """A translation that equals the second reference is as right as one that equals the first."""
    sentences = [s for s in sentences_of(30) if len(s.references) == 2]
    for which in (0, 1):
        measured = scoring.statistics(sentences, [s.references[which] for s in sentences])
        assert scoring.corpus_score("bleu", measured) == pytest.approx(100)
        assert scoring.corpus_score("chrf", measured) == pytest.approx(100)


def test_empty_translation_scores_zero() -> None:
    """A model that says nothing gets nothing, not an error."""
    sentences = sentences_of(5)
    measured = scoring.statistics(sentences, [""] * 5)
    assert [scoring.corpus_score(name, measured) for name in scoring.METRICS] == [0.0, 0.0, None, None, None]
    assert scoring.sentence_scores("bleu", measured) == [0.0] * 5


def test_sentence_scores_are_sacrebleus() -> None:
    """The score of one sentence is sacrebleu's sentence score with the effective order."""
    sentences = sentences_of(6)
    hypotheses = damaged(sentences, 0.5)
    found = scoring.sentence_scores("bleu", scoring.statistics(sentences, hypotheses))
    expected = [
        BLEU(effective_order=True).sentence_score(h, s.references).score for h, s in zip(hypotheses, sentences, strict=True)
    ]
    assert found == pytest.approx(expected)


def test_signature_says_how_many_references() -> None:
    """The signature names the number of references, or `var` where they differ."""
    assert "nrefs:var|" in scoring.signature("bleu", sentences_of(6))
    one = scoring.signature("chrf", sentences_of(6, references=2)[1:3])
    assert "nrefs:2|" in one
    assert "nw:2|" in one


def test_texts_of_a_verse_become_references_once_each() -> None:
    """One sentence an English text; equal Spanish texts count once, in the order of their editions."""
    pairs = [
        pair(1, "Peace.", "Paz.", es_source="S2"),
        pair(1, "Peace.", "La paz.", es_source="S1"),
        pair(1, "Peace.", "Paz.", es_source="S3"),
        pair(1, "Peace to you.", "La paz.", en_source="E2"),
        pair(2, "Peace.", "Paz."),
    ]
    found = scoring.group(pairs)
    assert [(s.verse, s.source, s.references) for s in found] == [
        (1, "Peace.", ("La paz.", "Paz.")),
        (1, "Peace to you.", ("La paz.",)),
        (2, "Peace.", ("Paz.",)),
    ]
    assert len({s.id for s in found}) == 3


@given(st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_order_of_the_file_changes_nothing(order: list[int]) -> None:
    """The same pairs in another order are the same test set."""
    pairs = [pair(n // 3, f"source {n // 2}", f"texto {n}", es_source=f"S{n % 2}") for n in range(12)]
    assert scoring.group([pairs[n] for n in order]) == scoring.group(pairs)


def test_sample_is_balanced_and_fixed() -> None:
    """Genres take turns until the small ones are used up; a smaller sample is part of a larger one."""
    genres = ["gospels"] * 50 + ["poetry"] * 30 + ["apocalyptic"] * 3
    everything = scoring.group([pair(n, f"source {n}", f"texto {n}", genre=genre) for n, genre in enumerate(genres)])
    small, large = scoring.sample(everything, 12), scoring.sample(everything, 33)
    count = [sum(s.genre == genre for s in large) for genre in ("gospels", "poetry", "apocalyptic")]
    assert count == [15, 15, 3]
    assert set(small) <= set(large)
    assert scoring.sample(everything[::-1], 12) == small[::-1]
    assert scoring.sample(everything, None) == everything


def test_sample_takes_whole_verses() -> None:
    """A verse reference comes with all its English editions or not at all."""
    everything = scoring.group([pair(n, f"{e} {n}", f"t {n}", en_source=e) for n in range(20) for e in ("E1", "E2", "E3")])
    found = scoring.sample(everything, 7)
    assert len(found) == 21
    assert len({s.verse for s in found}) == 7


def test_better_translations_are_found_better() -> None:
    """A clear gain has a small p-value and an interval that leaves zero out, in every metric measured."""
    sentences = sentences_of(60)
    before, after = (scoring.statistics(sentences, damaged(sentences, share)) for share in (0.6, 0.3))
    comet, gain = np.random.default_rng(0).normal([[0.5], [0.1]], 0.1, (2, 60))
    found = scoring.compare(
        Statistics(before.bleu, before.chrf, comet), Statistics(after.bleu, after.chrf, comet + gain), [s.verse for s in sentences]
    )
    assert set(found) == {"bleu", "chrf", "comet"}
    for delta in found.values():
        assert delta.p_value < 0.05
        assert 0 < delta.ci_low < delta.delta < delta.ci_high
    assert found["comet"].delta == pytest.approx(float(gain.mean()))
    assert found["comet"].before == pytest.approx(float(comet.mean()))


def test_chance_is_not_called_a_gain() -> None:
    """Two equally bad translations differ by chance, and the p-value says so."""
    sentences = sentences_of(60)
    sides = [scoring.statistics(sentences, damaged(sentences, 0.5, seed)) for seed in (5, 6)]
    found = scoring.compare(sides[0], sides[1], [s.verse for s in sentences])
    assert found["bleu"].p_value > 0.05
    assert found["bleu"].ci_low < 0 < found["bleu"].ci_high


def test_equal_translations_have_p_one() -> None:
    """The same translations on both sides: no difference, and never a significant one."""
    sentences = sentences_of(10)
    side = scoring.statistics(sentences, damaged(sentences, 0.5))
    for delta in scoring.compare(side, side, [s.verse for s in sentences]).values():
        assert (delta.delta, delta.p_value, delta.ci_low, delta.ci_high) == (0, 1, 0, 0)


def test_more_editions_of_the_same_verses_are_no_more_evidence() -> None:
    """Sentences of one verse are drawn together: repeating each of them five times leaves the p-value as it was."""
    sentences = sentences_of(40)
    sides = [scoring.statistics(sentences, damaged(sentences, share)) for share in (0.5, 0.45)]
    once = scoring.compare(sides[0], sides[1], [s.verse for s in sentences])
    five = np.repeat(np.arange(40), 5)
    repeated = scoring.compare(sides[0].select(five), sides[1].select(five), [sentences[n].verse for n in five])
    assert repeated["chrf"].p_value == once["chrf"].p_value
    assert repeated["chrf"].ci_low == pytest.approx(once["chrf"].ci_low)


def test_terms_are_a_ratio_of_sums() -> None:
    """The share of right terms is over all terms and not a mean of sentences; with none there is no share."""
    sentences = sentences_of(3)
    side = scoring.statistics(sentences, [""] * 3)
    terms = np.asarray([[1.0, 1.0], [0.0, 3.0], [0.0, 0.0]])
    assert scoring.corpus_score("terms", Statistics(side.bleu, side.chrf, terms=terms)) == 25
    assert scoring.corpus_score("terms", Statistics(side.bleu, side.chrf, terms=terms * 0)) is None
    assert Statistics(side.bleu, side.chrf, terms=terms).select(np.asarray([0])).terms is not None


def test_interval_holds_its_score_and_narrows_with_more_verses() -> None:
    """The 95 % interval lies around the score; four times the verses give about half of it."""
    widths = []
    for count in (40, 160):
        sentences = sentences_of(count)
        measured = scoring.statistics(sentences, damaged(sentences, 0.4))
        low, high = scoring.intervals(measured, [s.verse for s in sentences])["chrf"]
        score = scoring.corpus_score("chrf", measured)
        assert score is not None
        assert low < score < high
        widths.append(high - low)
    assert 0.3 < widths[1] / widths[0] < 0.75


def test_same_seed_same_numbers() -> None:
    """A comparison can be repeated to the last digit."""
    sentences = sentences_of(20)
    sides = [scoring.statistics(sentences, damaged(sentences, share)) for share in (0.5, 0.4)]
    verses = [s.verse for s in sentences]
    assert scoring.compare(*sides, verses) == scoring.compare(*sides, verses)
    assert scoring.compare(*sides, verses, seed=7) != scoring.compare(*sides, verses)


@pytest.mark.parametrize(("share", "seed"), [(0.46, 5), (0.5, 7), (0.48, 3)])
def test_p_value_agrees_with_sacrebleus_randomization(share: float, seed: int) -> None:
    """With one sentence a cluster, another two-sided test (sacrebleu's approximate randomization) finds about the same."""
    sentences = sentences_of(50)
    systems = {"one": damaged(sentences, 0.5, seed), "two": damaged(sentences, share, seed + 1)}
    streams = scoring.reference_streams(sentences)
    ours = scoring.compare(*(scoring.statistics(sentences, h) for h in systems.values()), range(50))
    _signatures, theirs = PairedTest(list(systems.items()), {"BLEU": BLEU()}, streams, test_type="ar", n_samples=1000)()
    assert ours["bleu"].after == pytest.approx(theirs["BLEU"][1].score)
    assert ours["bleu"].p_value == pytest.approx(theirs["BLEU"][1].p_value, abs=0.06)
    assert 0.005 < ours["bleu"].p_value < 0.8, "a p-value at either end would agree too easily"

"""Scores of translations, and whether one set of them is better than another: arrays and strings in, numbers out; no files.

A **sentence** is one English text of one verse with every distinct Spanish text of that verse as its references. BLEU and
chrF++ are sacrebleu's (Post 2018, https://aclanthology.org/W18-6319; Popović 2017, https://aclanthology.org/W17-4770),
computed from the statistics of single sentences, so that a resample costs a sum and not a second reading of the texts.
COMET (Rei et al. 2022, https://aclanthology.org/2022.wmt-1.52) comes from a process of its own (`stages.comet_scores`);
here it is one number a sentence.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

Floats = NDArray[np.float64]

BOOTSTRAP_SAMPLES = 1000
BOOTSTRAP_SEED = 12345
BLOCK = 100
"""Resamples drawn at once: bounds the memory at BLOCK x clusters counts."""

STATISTICS = ("bleu", "chrf")
MEANS = ("comet", "kiwi")
METRICS = (*STATISTICS, *MEANS, "terms")


class Pair(msgspec.Struct, frozen=True):
    """One line of the test file; further fields are the corpus builder's own."""

    en: str
    es: str
    book: str
    chapter: int
    verse: int
    genre: str
    en_source: str
    es_source: str


class Sentence(msgspec.Struct, frozen=True):
    """What is translated once and scored against all its references."""

    id: str
    """First 16 hexadecimal digits of the sha256 of verse reference, English edition and English text."""
    book: str
    chapter: int
    verse: int
    genre: str
    en_source: str
    source: str
    references: tuple[str, ...]
    """Distinct Spanish texts, in the order of their editions' names."""

    @property
    def verse_reference(self) -> tuple[str, int, int]:
        return self.book, self.chapter, self.verse


def digest(text: str) -> str:
    """SHA-256 of `text` as UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def group(pairs: Iterable[Pair]) -> list[Sentence]:
    """Sentences in canonical order: sorted by book name, chapter, verse, edition and text, whatever the order of `pairs`."""
    references: dict[tuple[str, int, int, str, str], list[tuple[str, str]]] = defaultdict(list)
    genres: dict[tuple[str, int, int], str] = {}
    for pair in pairs:
        references[pair.book, pair.chapter, pair.verse, pair.en_source, pair.en].append((pair.es_source, pair.es))
        genres[pair.book, pair.chapter, pair.verse] = pair.genre
    sentences = []
    for key in sorted(references):
        book, chapter, verse, edition, text = key
        distinct = tuple(dict.fromkeys(spanish for _edition, spanish in sorted(references[key])))
        name = digest("\x1f".join(map(str, key)))[:16]
        sentences.append(Sentence(name, book, chapter, verse, genres[book, chapter, verse], edition, text, distinct))
    return sentences


def verse_references(sentences: Iterable[Sentence]) -> dict[tuple[str, int, int], str]:
    """The genre of each verse reference."""
    return {sentence.verse_reference: sentence.genre for sentence in sentences}


def sample(sentences: Sequence[Sentence], most: int | None) -> list[Sentence]:
    """The sentences of at most `most` verse references, the same ones every time, balanced between the genres.

    Within a genre the order is that of the sha256 of the verse reference; the genres take turns, so that a small genre is
    used up and the others share the rest.
    """
    genre_of = verse_references(sentences)
    if most is None or len(genre_of) <= most:
        return list(sentences)
    by_genre: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for reference in sorted(genre_of, key=lambda r: digest(f"{r[0]} {r[1]}:{r[2]}")):
        by_genre[genre_of[reference]].append(reference)
    turns = zip_longest(*(by_genre[genre] for genre in sorted(by_genre)))
    in_turn = [reference for turn in turns for reference in turn if reference is not None]
    chosen = set(in_turn[:most])
    return [sentence for sentence in sentences if sentence.verse_reference in chosen]


def metric(name: str, *, sentence: bool = False) -> Any:
    """sacrebleu's BLEU (13a, exponential smoothing) or chrF++; `sentence`: BLEU with the effective order, for one sentence."""
    if name == "bleu":
        return BLEU(effective_order=sentence)
    return CHRF(word_order=2)


def reference_streams(sentences: Sequence[Sentence]) -> list[list[str | None]]:
    """The references as sacrebleu takes them: stream k holds everyone's k-th reference, None where there is none."""
    return [list(stream) for stream in zip_longest(*(sentence.references for sentence in sentences))]


@dataclass(frozen=True)
class Statistics:
    """What corpus scores are sums of, by sentence: `bleu` (n, 10), `chrf` (n, 24); `comet`, `kiwi` (n,), `terms` (n, 2) or None."""

    bleu: Floats
    chrf: Floats
    comet: Floats | None = None
    kiwi: Floats | None = None
    """The COMET that needs no reference."""
    terms: Floats | None = None
    """Terms right, terms wanted (see `stages.terms`)."""

    def select(self, rows: NDArray[np.intp]) -> Statistics:
        """The statistics of some sentences."""
        parts = (self.bleu, self.chrf, self.comet, self.kiwi, self.terms)
        return Statistics(*(None if part is None else part[rows] for part in parts))  # type: ignore[arg-type]  # the first two stay

    def of(self, name: str) -> Floats | None:
        """The columns of a metric, (n, k): a mean's are its sum and the count, so that it is a function of sums too.

        None where it was not measured, or nothing was there to be counted.
        """
        found: Floats | None = getattr(self, name)
        if found is None or (name == "terms" and not found[:, 1].any()):
            return None
        return np.stack([found, np.ones_like(found)], axis=1) if name in MEANS else found


def statistics(sentences: Sequence[Sentence], hypotheses: Sequence[str]) -> Statistics:
    """Statistics of BLEU and chrF++ by sentence, against every reference a sentence has.

    Uses the methods that sacrebleu's own significance tests are built on; the unit tests hold their sums to
    `corpus_score`.
    """
    streams = reference_streams(sentences)
    rows = {name: metric(name)._extract_corpus_statistics(hypotheses, streams) for name in STATISTICS}
    return Statistics(np.asarray(rows["bleu"], dtype=np.float64), np.asarray(rows["chrf"], dtype=np.float64))


def concatenate(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of consecutive runs of sentences as one, without COMET."""
    return Statistics(np.concatenate([part.bleu for part in parts]), np.concatenate([part.chrf for part in parts]))


def score_of_sums(name: str, sums: Floats, scorer: Any) -> float:
    """The corpus score of a metric from the column sums of its statistics."""
    if name in MEANS:
        return float(sums[0] / sums[1])
    if name == "terms":
        return 100.0 * float(sums[0]) / max(1.0, float(sums[1]))
    return float(scorer._compute_score_from_stats([round(value) for value in sums.tolist()]).score)


def corpus_score(name: str, measured: Statistics) -> float | None:
    """BLEU, chrF++ and the share of right terms in [0, 100], COMET as its mean; None where there is none."""
    columns = measured.of(name)
    return None if columns is None else score_of_sums(name, columns.sum(axis=0), metric(name))


def sentence_scores(name: str, measured: Statistics) -> list[float]:
    """BLEU (effective order) or chrF++ of each sentence."""
    columns, scorer = measured.of(name), metric(name, sentence=True)
    return [] if columns is None else [score_of_sums(name, row, scorer) for row in columns]


def signature(name: str, sentences: Sequence[Sentence]) -> str:
    """sacrebleu's signature: what to know in order to reproduce the score.

    It depends on the texts only by their numbers of references, so the sentences with the fewest and the most will do.
    """
    few, many = (choose(sentences, key=lambda sentence: len(sentence.references)) for choose in (min, max))
    scorer = metric(name)
    scorer.corpus_score([few.source, many.source], reference_streams([few, many]))
    return str(scorer.get_signature())


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    """One metric before and after, with what chance says about the difference."""

    before: float
    after: float
    delta: float
    p_value: float
    """Two-sided, paired bootstrap; at best 1 / (samples + 1)."""
    ci_low: float
    ci_high: float
    """95 % interval of the difference (percentiles)."""


def compare(
    before: Statistics,
    after: Statistics,
    clusters: Sequence[object],
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, Delta]:
    """Paired bootstrap (Koehn 2004, https://aclanthology.org/W04-3250) of every metric that both sides have.

    Row i of both sides is the same sentence. What is drawn are `clusters` (one label a sentence), not sentences: the
    English editions of a verse share their references, so they rise and fall together, and drawing them one by one
    would find significance too easily. The p-value is two-sided: how often the resampled difference, centred, is at least
    as far from zero as the one measured, with one added to both counts. (sacrebleu's own bootstrap centres the
    absolute differences and so finds about half of it; its approximate randomization agrees with ours.)
    """
    _names, codes = np.unique(np.asarray([repr(label) for label in clusters]), return_inverse=True)
    found = {}
    for name in METRICS:
        one, two = before.of(name), after.of(name)
        if one is not None and two is not None and len(codes):
            found[name] = _compare_one(name, _by_cluster(one, codes), _by_cluster(two, codes), samples, seed)
    return found


def intervals(
    measured: Statistics, clusters: Sequence[object], *, samples: int = BOOTSTRAP_SAMPLES, seed: int = BOOTSTRAP_SEED
) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each metric measured, by the bootstrap of `compare` (percentiles, whole clusters drawn)."""
    _names, codes = np.unique(np.asarray([repr(label) for label in clusters]), return_inverse=True)
    found = {}
    for name in METRICS:
        columns = measured.of(name)
        if columns is not None and len(codes):
            summed, scorer = _by_cluster(columns, codes), metric(name)
            drawn = [score_of_sums(name, counts @ summed, scorer) for counts in _resamples(len(summed), samples, seed)]
            low, high = np.percentile(drawn, [2.5, 97.5])
            found[name] = (float(low), float(high))
    return found


def _by_cluster(columns: Floats, codes: NDArray[np.intp]) -> Floats:
    summed = np.zeros((int(codes.max()) + 1, columns.shape[1]))
    np.add.at(summed, codes, columns)
    return summed


def _compare_one(name: str, before: Floats, after: Floats, samples: int, seed: int) -> Delta:
    scorer = metric(name)
    measured = [score_of_sums(name, side.sum(axis=0), scorer) for side in (before, after)]
    delta = measured[1] - measured[0]
    drawn = np.asarray(
        [
            score_of_sums(name, counts @ after, scorer) - score_of_sums(name, counts @ before, scorer)
            for counts in _resamples(len(before), samples, seed)
        ]
    )
    farther = int((np.abs(drawn - drawn.mean()) >= abs(delta)).sum())  # >=: equal translations get p = 1, not the least p
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Delta(
        before=measured[0],
        after=measured[1],
        delta=delta,
        p_value=(farther + 1) / (samples + 1),
        ci_low=float(low),
        ci_high=float(high),
    )


def _resamples(clusters: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each cluster was drawn, `samples` times; the same draws for the same arguments."""
    random = np.random.default_rng(seed)
    even = np.full(clusters, 1.0 / clusters)
    for start in range(0, samples, BLOCK):
        yield from random.multinomial(clusters, even, size=min(BLOCK, samples - start)).astype(np.float64)

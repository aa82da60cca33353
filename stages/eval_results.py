"""metrics/eval_results.json: what was measured, by label and model, and what changed between two labels.

The file as its readers (the report, scripts) find it::

    {"schema": 1,
     "labels": {LABEL: {"label", "stage", "attempt", "at",
        "test_set": {"path", "sha256", "pairs", "verse_references", "sentences", "scored_verse_references", "scored_sentences",
                     "unique_sources", "references_per_sentence", "genres": {GENRE: scored sentences}},
        "signatures": {"bleu": "nrefs:...", "chrf": "nrefs:..."},
        "comet": {"name", "model", "sha256", "demo", "version"} or null, "kiwi": likewise, of the one without references,
        "comet_left_out", "kiwi_left_out": "" or why there is no such score,
        "models": {MODEL: {"kind", "model", "adapter", "trained_by", "identity", "device", "decoding", "engine",
            "scores": SCORES, "genres": {GENRE: SCORES},
            "faults": {"length_ratio", "empty", "copied", "untranslated", "english_share"} (see `stages.faults`),
            "general": {"scores": SCORES, "translations": {"path", "sha256"}} or null (see `stages.forgetting`),
            "speed": {"seconds", "tokens", "sentences", "tokens_per_s", "sentences_per_s"},
            "empty_hypotheses", "cut_sources", "reused_from": "" or LABEL,
            "translations": {"path", "sha256"}}},
        "left_out": {MODEL: why its row is missing}}},
     "comparisons": {LABEL: {"baseline", "samples", "seed", "unit",
        "models": {MODEL: {"same_model", "verdict": one sentence, "overall": {METRIC: DELTA}, "genres": {GENRE: {METRIC: DELTA}},
            "general": {METRIC: DELTA}, "terms_gained", "terms_lost": {TERM: sentences}}},
        "left_out": {MODEL: why it is not compared}}}}

METRIC is `bleu`, `chrf`, `terms` (the share of right theological terms, see `stages.terms`; all in [0, 100]), `comet` or `kiwi`
(means; null or missing where not measured). SCORES is `{"sentences", METRIC: score or null, "intervals": {METRIC: [low, high]}}`
(95 %, by bootstrap); DELTA is `{"before", "after", "delta", "p_value", "ci_low", "ci_high"}` (see `stages.scoring.compare`).
`comet` knows one reference at a time: it is scored against each Spanish text of a verse, and the mean of those is the sentence's
score. The best of them would favour the edition whose style a model has taken on, and sentences with more references.
`comet.demo` is true for the demo's own tiny metric, whose `name` says so. metrics/LABEL.json is one entry of `labels`.

The file at `translations.path` (relative to the workspace) has one sentence a line, in the order of the test set: `{"id", "book",
"chapter", "verse", "genre", "en_source", "source", "references", "hypothesis", "scores": {METRIC: of this sentence alone}}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from stages import conclusion, scoring, terms
from stages.faults import Faults
from stages.scoring import Delta, Sentence
from state.contract import MisconfiguredError
from state.durable import file_digest, write_atomically
from state.workspace import Workspace

BASELINE = "before"
UNIT = "verse reference"
DIGITS = 4
DIGITS_OF_ONE = 6
"""Of a single sentence: means over them should not differ from the corpus score by rounding."""


class TestSet(msgspec.Struct, frozen=True, kw_only=True):
    """What was scored."""

    __test__ = False  # pytest: not a test class

    path: str
    sha256: str
    pairs: int
    verse_references: int
    sentences: int
    scored_verse_references: int
    scored_sentences: int
    unique_sources: int
    references_per_sentence: float
    genres: dict[str, int]


class Comet(msgspec.Struct, frozen=True, kw_only=True):
    """The metric that gave the COMET scores."""

    name: str
    model: str
    sha256: str
    demo: bool
    version: str


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Corpus scores of some sentences."""

    sentences: int
    bleu: float
    chrf: float
    comet: float | None = None
    kiwi: float | None = None
    terms: float | None = None
    intervals: dict[str, tuple[float, float]] = {}
    """95 % by bootstrap over verse references."""


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """How fast the translations came, model loading and scoring left out."""

    seconds: float
    tokens: int
    sentences: int
    tokens_per_s: float
    sentences_per_s: float


class File(msgspec.Struct, frozen=True, kw_only=True):
    """A file below the workspace."""

    path: str
    sha256: str


class General(msgspec.Struct, frozen=True, kw_only=True):
    """One model on the general sentences."""

    scores: Scores
    translations: File


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model's results under one label."""

    kind: str
    model: str
    adapter: str | None
    trained_by: str | None
    identity: str
    """Equal only if weights, adapter and search are."""
    device: str
    decoding: str
    engine: str = ""
    """The library that decoded, with its version and precision."""
    scores: Scores
    genres: dict[str, Scores]
    faults: Faults = Faults()
    general: General | None = None
    speed: Speed
    empty_hypotheses: int
    cut_sources: int
    reused_from: str = ""
    """The label whose translations were taken over, the model being identical."""
    translations: File


class LabelResults(msgspec.Struct, frozen=True, kw_only=True):
    """One evaluation: a column of the report."""

    label: str
    stage: str
    attempt: int
    at: float
    test_set: TestSet
    signatures: dict[str, str]
    comet: Comet | None = None
    comet_left_out: str = ""
    kiwi: Comet | None = None
    kiwi_left_out: str = ""
    models: dict[str, ModelRow] = {}
    left_out: dict[str, str] = {}


class ModelComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One model under two labels."""

    same_model: bool
    verdict: str = ""
    overall: dict[str, Delta]
    genres: dict[str, dict[str, Delta]]
    general: dict[str, Delta] = {}
    terms_gained: dict[str, int] = {}
    """English term -> sentences in which it was wrong before and is right now."""
    terms_lost: dict[str, int] = {}


class LabelComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One label against the baseline, by paired bootstrap."""

    baseline: str
    samples: int = scoring.BOOTSTRAP_SAMPLES
    seed: int = scoring.BOOTSTRAP_SEED
    unit: str = UNIT
    models: dict[str, ModelComparison] = {}
    left_out: dict[str, str] = {}


class EvalResults(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file."""

    schema: int = 1
    labels: dict[str, LabelResults] = {}
    comparisons: dict[str, LabelComparison] = {}


class KeptTranslation(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a translations file."""

    id: str
    book: str
    chapter: int
    verse: int
    genre: str
    en_source: str
    source: str
    references: tuple[str, ...]
    hypothesis: str
    scores: dict[str, float]

    @property
    def sentence(self) -> Sentence:
        """The sentence that was translated, as the test set has it."""
        return Sentence(self.id, self.book, self.chapter, self.verse, self.genre, self.en_source, self.source, self.references)


def translations_path(workspace: Workspace, label: str, model: str) -> Path:
    """Where the translations of `model` under `label` are kept."""
    return workspace.metrics / "translations" / label / f"{model}.jsonl"


def general_path(workspace: Workspace, label: str, model: str) -> Path:
    """Where its translations of the general sentences are kept."""
    return workspace.metrics / "translations_general" / label / f"{model}.jsonl"


def load(workspace: Workspace) -> EvalResults:
    """The results so far.

    Raises:
        MisconfiguredError: the file is there and is not what this version writes.
    """
    path = workspace.eval_results
    try:
        return msgspec.json.decode(path.read_bytes(), type=EvalResults)
    except FileNotFoundError:
        return EvalResults()
    except msgspec.DecodeError as error:
        raise MisconfiguredError(f"{path} is not readable ({error}); move it away, and evaluate again") from error


def save(workspace: Workspace, results: EvalResults, label: str) -> None:
    """Write metrics/LABEL.json, then the whole file, each by rename."""
    write_atomically(workspace.metrics / f"{label}.json", _readable(results.labels[label]))
    write_atomically(workspace.eval_results, _readable(results))


def _readable(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


# -- translations


def write_translations(path: Path, sentences: Sequence[Sentence], hypotheses: Sequence[str], measured: scoring.Statistics) -> None:
    """Keep the translations with the scores of each sentence."""
    columns = {name: scoring.sentence_scores(name, measured) for name in (*scoring.STATISTICS, *scoring.MEANS)}
    lines = []
    for index, (sentence, hypothesis) in enumerate(zip(sentences, hypotheses, strict=True)):
        scores = {name: round(values[index], DIGITS_OF_ONE) for name, values in columns.items() if values}
        fields = {name: getattr(sentence, name) for name in Sentence.__struct_fields__}
        lines.append(msgspec.json.encode(KeptTranslation(**fields, hypothesis=hypothesis, scores=scores)) + b"\n")
    write_atomically(path, b"".join(lines))


def read_translations(workspace: Workspace, row: ModelRow | General) -> list[KeptTranslation] | None:
    """Those of a row, or of its general sentences; None when the file is gone or is not the one that the results speak of."""
    path = workspace.inside(row.translations.path)
    if not path.is_file() or file_digest(path) != row.translations.sha256:
        return None
    return [msgspec.json.decode(line, type=KeptTranslation) for line in path.read_bytes().splitlines()]


# -- scores


def scores_of(measured: scoring.Statistics, sentences: Sequence[Sentence] = ()) -> Scores:
    """Corpus scores from the statistics of some sentences, and their intervals where the sentences are given."""
    found = {name: scoring.corpus_score(name, measured) for name in scoring.METRICS}
    rounded = {name: None if value is None else round(value, DIGITS) for name, value in found.items()}
    between = scoring.intervals(measured, [sentence.verse_reference for sentence in sentences]) if sentences else {}
    sure = {name: (round(low, DIGITS), round(high, DIGITS)) for name, (low, high) in between.items()}
    return Scores(sentences=len(measured.bleu), intervals=sure, **rounded)  # type: ignore[arg-type]  # BLEU and chrF++ are never None


def by_genre(sentences: Sequence[Sentence], measured: scoring.Statistics, breathe: Callable[[], None]) -> dict[str, Scores]:
    """The scores of each genre's sentences."""
    found = {}
    for genre, rows in _places(sentences).items():
        breathe()
        found[genre] = scores_of(measured.select(rows), [sentences[row] for row in rows])
    return found


def _places(sentences: Sequence[Sentence]) -> dict[str, NDArray[np.intp]]:
    """Where each genre's sentences are."""
    labels = np.asarray([sentence.genre for sentence in sentences])
    return {str(genre): np.flatnonzero(labels == genre) for genre in np.unique(labels)}


# -- comparisons


def baseline_of(labels: Iterable[str]) -> str | None:
    """The label that others are compared with: `before`, or the first one written."""
    names = list(labels)
    return BASELINE if BASELINE in names else next(iter(names), None)


def with_label(workspace: Workspace, results: EvalResults, new: LabelResults, breathe: Callable[[], None]) -> EvalResults:
    """`results` with `new` in it and every comparison that it takes part in done again; `breathe` is called now and then."""
    labels = {**results.labels, new.label: new}
    baseline = baseline_of(labels)
    comparisons = {}
    for label in labels:
        if label == baseline or baseline is None:
            continue
        known = results.comparisons.get(label)
        if known is not None and known.baseline == baseline and new.label not in (label, baseline):
            comparisons[label] = known
        else:
            comparisons[label] = compare_labels(workspace, labels[baseline], labels[label], breathe)
    return EvalResults(labels=labels, comparisons=comparisons)


def compare_labels(workspace: Workspace, before: LabelResults, after: LabelResults, breathe: Callable[[], None]) -> LabelComparison:
    """Compare each model that both labels have; the others are named with the reason."""
    models: dict[str, ModelComparison] = {}
    left_out: dict[str, str] = {}
    means = {
        name for name, one, two in (("comet", before.comet, after.comet), ("kiwi", before.kiwi, after.kiwi)) if _same(one, two)
    }
    trusted = before.comet is not None and not before.comet.demo
    for name, row in after.models.items():
        breathe()
        if name not in before.models:
            left_out[name] = f"not scored under {before.label}"
            continue
        compared = _compare_rows(workspace, before.models[name], row, means, breathe)
        if isinstance(compared, str):
            left_out[name] = compared
        else:
            facts = conclusion.Facts(
                name, before.label, compared.same_model, compared.overall, compared.genres, compared.general, trusted
            )
            models[name] = msgspec.structs.replace(compared, verdict=conclusion.sentence(facts))
    return LabelComparison(baseline=before.label, models=models, left_out=left_out)


def _same(one: Comet | None, two: Comet | None) -> bool:
    return one is not None and two is not None and one.sha256 == two.sha256


def _compare_rows(
    workspace: Workspace, before: ModelRow, after: ModelRow, means: set[str], breathe: Callable[[], None]
) -> ModelComparison | str:
    sides = [read_translations(workspace, row) for row in (before, after)]
    if sides[0] is None or sides[1] is None:
        missing = before if sides[0] is None else after
        return f"{missing.translations.path} is missing or was changed"
    sentences = [kept.sentence for kept in sides[0]]
    if sentences != [kept.sentence for kept in sides[1]]:
        return "the two were scored on different test sentences"
    one, two = (measured(side, means, breathe) for side in (sides[0], sides[1]))
    verses = [sentence.verse_reference for sentence in sentences]
    found = {}
    for genre, rows in _places(sentences).items():
        breathe()
        found[genre] = scoring.compare(one.select(rows), two.select(rows), [verses[row] for row in rows])
    gained, lost = terms.terms().changed(sentences, *([kept.hypothesis for kept in side] for side in (sides[0], sides[1])))
    return ModelComparison(
        same_model=before.identity == after.identity,
        overall=scoring.compare(one, two, verses),
        genres=found,
        general=_compare_general(workspace, before.general, after.general, breathe),
        terms_gained=gained,
        terms_lost=lost,
    )


def _compare_general(
    workspace: Workspace, before: General | None, after: General | None, breathe: Callable[[], None]
) -> dict[str, Delta]:
    """The change on the general sentences; nothing where a side has none, or other ones."""
    sides = [read_translations(workspace, side) for side in (before, after) if side is not None]
    if len(sides) < 2 or sides[0] is None or sides[1] is None or [k.sentence for k in sides[0]] != [k.sentence for k in sides[1]]:
        return {}
    one, two = (in_blocks([k.sentence for k in side], [k.hypothesis for k in side], breathe) for side in (sides[0], sides[1]))
    return scoring.compare(one, two, [kept.id for kept in sides[0]])


def measured(kept: Sequence[KeptTranslation], means: set[str], breathe: Callable[[], None]) -> scoring.Statistics:
    """The statistics of kept translations; of `comet` and `kiwi` those in `means`, if they are there for every sentence."""
    sentences, hypotheses = [one.sentence for one in kept], [one.hypothesis for one in kept]
    there = {name: [one.scores[name] for one in kept] for name in sorted(means) if all(name in one.scores for one in kept)}
    return replace(
        in_blocks(sentences, hypotheses, breathe),
        terms=terms.terms().statistics(sentences, hypotheses),
        **{name: np.asarray(values) for name, values in there.items()},
    )


def in_blocks(
    sentences: Sequence[Sentence], hypotheses: Sequence[str], breathe: Callable[[], None], size: int = 500
) -> scoring.Statistics:
    """`scoring.statistics`, `size` sentences at a time: chrF++ takes about a millisecond a reference."""
    parts = []
    for start in range(0, len(sentences), size):
        breathe()
        parts.append(scoring.statistics(sentences[start : start + size], hypotheses[start : start + size]))
    return scoring.concatenate(parts)


def relative(workspace: Workspace, path: Path) -> File:
    """`path` as the results name it."""
    return File(path=os.path.relpath(path, workspace.root), sha256=file_digest(path))

"""metrics/eval_results.json: what was measured, by label and model, and what changed between two labels.

The file as its readers (the report, scripts) find it::

    {"schema": 1,
     "labels": {LABEL: {"label", "stage", "attempt", "at",
        "test_set": {"path", "sha256", "pairs", "verse_references", "sentences", "scored_verse_references", "scored_sentences",
                     "unique_sources", "references_per_sentence", "genres": {GENRE: scored sentences}},
        "signatures": {"bleu": "nrefs:...", "chrf": "nrefs:..."},
        "comet": {"name", "model", "sha256", "demo", "version"} or null,
        "comet_left_out": "" or why there is no COMET score,
        "models": {MODEL: {"kind", "model", "adapter", "trained_by", "identity", "device", "decoding",
            "scores": {"sentences", "bleu", "chrf", "comet"}, "genres": {GENRE: {"sentences", "bleu", "chrf", "comet"}},
            "speed": {"seconds", "tokens", "sentences", "tokens_per_s", "sentences_per_s"},
            "empty_hypotheses", "cut_sources", "reused_from": "" or LABEL,
            "translations": {"path", "sha256"}}},
        "left_out": {MODEL: why its row is missing}}},
     "comparisons": {LABEL: {"baseline", "samples", "seed", "unit",
        "models": {MODEL: {"same_model", "overall": {METRIC: DELTA}, "genres": {GENRE: {METRIC: DELTA}}}},
        "left_out": {MODEL: why it is not compared}}}}

METRIC is `bleu`, `chrf` (both in [0, 100]) or `comet` (a mean, null or missing where not measured); DELTA is
`{"before", "after", "delta", "p_value", "ci_low", "ci_high"}` (see `stages.scoring.compare`). `comet.demo` is true for the demo's
own tiny metric, whose `name` says so. metrics/LABEL.json is one entry of `labels`.

The file at `translations.path` (relative to the workspace) has one sentence a line, in the order of the test set: `{"id", "book",
"chapter", "verse", "genre", "en_source", "source", "references", "hypothesis", "scores": {METRIC: of this sentence alone}}`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from stages import scoring
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
    scores: Scores
    genres: dict[str, Scores]
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
    models: dict[str, ModelRow] = {}
    left_out: dict[str, str] = {}


class ModelComparison(msgspec.Struct, frozen=True, kw_only=True):
    """One model under two labels."""

    same_model: bool
    overall: dict[str, Delta]
    genres: dict[str, dict[str, Delta]]


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
        return Sentence(self.id, self.book, self.chapter, self.verse, self.genre, self.en_source, self.source, self.references)


def translations_path(workspace: Workspace, label: str, model: str) -> Path:
    """Where the translations of `model` under `label` are kept."""
    return workspace.metrics / "translations" / label / f"{model}.jsonl"


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
    columns = {name: scoring.sentence_scores(name, measured) for name in scoring.METRICS}
    lines = []
    for index, (sentence, hypothesis) in enumerate(zip(sentences, hypotheses, strict=True)):
        scores = {name: round(values[index], DIGITS_OF_ONE) for name, values in columns.items() if values}
        fields = {name: getattr(sentence, name) for name in Sentence.__struct_fields__}
        lines.append(msgspec.json.encode(KeptTranslation(**fields, hypothesis=hypothesis, scores=scores)) + b"\n")
    write_atomically(path, b"".join(lines))


def read_translations(workspace: Workspace, row: ModelRow) -> list[KeptTranslation] | None:
    """The translations of a row; None when the file is gone or is not the one that the results speak of."""
    path = workspace.inside(row.translations.path)
    if not path.is_file() or file_digest(path) != row.translations.sha256:
        return None
    return [msgspec.json.decode(line, type=KeptTranslation) for line in path.read_bytes().splitlines()]


# -- scores


def scores_of(measured: scoring.Statistics) -> Scores:
    """Corpus scores from the statistics of some sentences."""
    found = {name: scoring.corpus_score(name, measured) for name in scoring.METRICS}
    rounded = {name: None if value is None else round(value, DIGITS) for name, value in found.items()}
    return Scores(sentences=len(measured.bleu), **rounded)  # type: ignore[arg-type]  # BLEU and chrF++ are never None


def by_genre(genres: Sequence[str], measured: scoring.Statistics) -> dict[str, scoring.Statistics]:
    """The statistics of each genre's sentences."""
    labels = np.asarray(genres)
    return {genre: measured.select(np.flatnonzero(labels == genre)) for genre in sorted(set(genres))}


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
    same_comet = before.comet is not None and after.comet is not None and before.comet.sha256 == after.comet.sha256
    for name, row in after.models.items():
        breathe()
        if name not in before.models:
            left_out[name] = f"not scored under {before.label}"
            continue
        compared = _compare_rows(workspace, before.models[name], row, same_comet, breathe)
        if isinstance(compared, str):
            left_out[name] = compared
        else:
            models[name] = compared
    return LabelComparison(baseline=before.label, models=models, left_out=left_out)


def _compare_rows(
    workspace: Workspace, before: ModelRow, after: ModelRow, comet: bool, breathe: Callable[[], None]
) -> ModelComparison | str:
    sides = [read_translations(workspace, row) for row in (before, after)]
    if sides[0] is None or sides[1] is None:
        lost = before if sides[0] is None else after
        return f"{lost.translations.path} is missing or was changed"
    sentences = [kept.sentence for kept in sides[0]]
    if sentences != [kept.sentence for kept in sides[1]]:
        return "the two were scored on different test sentences"
    one, two = (measured(side, comet, breathe) for side in (sides[0], sides[1]))
    verses = [sentence.verse_reference for sentence in sentences]
    genres = [sentence.genre for sentence in sentences]
    found = {}
    for genre in sorted(set(genres)):
        breathe()
        rows = np.flatnonzero(np.asarray(genres) == genre)
        found[genre] = scoring.compare(one.select(rows), two.select(rows), [verses[row] for row in rows])
    return ModelComparison(same_model=before.identity == after.identity, overall=scoring.compare(one, two, verses), genres=found)


def measured(kept: Sequence[KeptTranslation], comet: bool, breathe: Callable[[], None]) -> scoring.Statistics:
    """The statistics of kept translations; COMET's only if asked for and there for every sentence."""
    found = in_blocks([one.sentence for one in kept], [one.hypothesis for one in kept], breathe)
    if not comet or any("comet" not in one.scores for one in kept):
        return found
    return scoring.Statistics(found.bleu, found.chrf, np.asarray([one.scores["comet"] for one in kept]))


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

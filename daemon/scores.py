"""PURE but for `read` and `read_samples`: metrics/eval_results.json as the tables before/after that people look at.

`stages.evaluate` writes the file and says what stands in it. What is missing there is shown as not measured; whether a
difference is better, worse or not clear follows from the paired bootstrap that the file carries, never from the difference alone.
"""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemon import words
from state.workspace import Workspace

METRICS = {"bleu": "BLEU", "chrf": "chrF++", "comet": "COMET", "kiwi": "CometKiwi"}
TERMS = "theological terms"
DIGITS = {"bleu": 2, "chrf": 2, "comet": 4, "kiwi": 4, "terms": 1}
MOST_TERMS = 12
"""Named in a line of gained or lost ones."""
ALL_GENRES = "all"
SIGNIFICANT_P = 0.05
BASELINE = "before"


class Scores(msgspec.Struct, frozen=True):
    """Corpus scores of some sentences; None where not measured."""

    sentences: int = 0
    bleu: float | None = None
    chrf: float | None = None
    comet: float | None = None
    kiwi: float | None = None
    terms: float | None = None
    """Share of the theological terms that are right, in percent."""
    intervals: dict[str, tuple[float, float]] = {}


class Faults(msgspec.Struct, frozen=True):
    """What went wrong whatever the score."""

    length_ratio: float | None = None
    empty: int = 0
    copied: int = 0
    untranslated: int = 0
    english_share: float = 0.0


class General(msgspec.Struct, frozen=True):
    """One model on general sentences."""

    scores: Scores = Scores()


class File(msgspec.Struct, frozen=True):
    """A file below the workspace."""

    path: str = ""


class ModelRow(msgspec.Struct, frozen=True):
    """One model under one label."""

    model: str = ""
    adapter: str | None = None
    scores: Scores = Scores()
    genres: dict[str, Scores] = {}
    translations: File = File()
    empty_hypotheses: int = 0
    engine: str = ""
    faults: Faults | None = None
    general: General | None = None


class Comet(msgspec.Struct, frozen=True):
    """Which COMET gave the scores."""

    name: str = ""
    demo: bool = False


class TestSet(msgspec.Struct, frozen=True):
    """What was scored."""

    __test__ = False  # pytest: not a test class

    scored_verse_references: int = 0
    scored_sentences: int = 0


class Label(msgspec.Struct, frozen=True):
    """One evaluation."""

    label: str = ""
    test_set: TestSet = TestSet()
    signatures: dict[str, str] = {}
    comet: Comet | None = None
    comet_left_out: str = ""
    kiwi_left_out: str = ""
    models: dict[str, ModelRow] = {}
    left_out: dict[str, str] = {}


class Delta(msgspec.Struct, frozen=True):
    """One metric before and after."""

    before: float | None = None
    after: float | None = None
    delta: float | None = None
    p_value: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None


class ModelComparison(msgspec.Struct, frozen=True):
    """One model under two labels."""

    same_model: bool = False
    verdict: str = ""
    """One sentence: better, worse or not distinguishable, and where."""
    overall: dict[str, Delta] = {}
    genres: dict[str, dict[str, Delta]] = {}
    general: dict[str, Delta] = {}
    terms_gained: dict[str, int] = {}
    terms_lost: dict[str, int] = {}


class Comparison(msgspec.Struct, frozen=True):
    """One label against the baseline."""

    baseline: str = BASELINE
    samples: int = 0
    unit: str = ""
    models: dict[str, ModelComparison] = {}
    left_out: dict[str, str] = {}


class Results(msgspec.Struct, frozen=True):
    """The whole file."""

    labels: dict[str, Label] = {}
    comparisons: dict[str, Comparison] = {}

    @property
    def baseline(self) -> str | None:
        """The label that the others are compared with."""
        return BASELINE if BASELINE in self.labels else next(iter(self.labels), None)


@dataclass(frozen=True)
class Row:
    """One line of the table before/after."""

    model: str
    genre: str
    """`all`, or one genre."""
    metric: str
    """BLEU, chrF++ or COMET."""
    before: str
    after: str
    change: str
    interval: str
    """95 % interval of the difference."""
    p: str
    verdict: str
    """better, worse, not clear, unchanged, or empty when there is nothing to compare."""


@dataclass(frozen=True)
class Sample:
    """One test sentence and what every model made of it."""

    genre: str
    reference: str
    """The verse, as book chapter:verse."""
    source: str
    wanted: tuple[str, ...]
    translations: tuple[tuple[str, str, str], ...]
    """(model, label, text)."""


def read(path: Path) -> Results | None:
    """The results in the file; None when there are none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError):
        return None


def rows(results: Results | None) -> list[Row]:
    """Every model, overall and by genre, every metric that was measured on either side; models in the file's order."""
    if results is None or results.baseline is None:
        return []
    found: list[Row] = []
    for model in _models(results):
        before = results.labels[results.baseline].models.get(model)
        for label, after in _afters(results, model) or [("", None)]:
            compared = results.comparisons.get(label, Comparison()).models.get(model, ModelComparison())
            found += _rows_of(model, before, after, compared)
    return found


def overall(results: Results | None) -> list[Row]:
    """The rows that are not of one genre."""
    return [row for row in rows(results) if row.genre == ALL_GENRES]


def verdicts(results: Results | None) -> list[str]:
    """One sentence for each model that was compared: better, worse or not distinguishable, and where."""
    compared = results.comparisons.values() if results else ()
    return [found.verdict for comparison in compared for found in comparison.models.values() if found.verdict]


def term_table(results: Results | None) -> list[list[str]]:
    """Model, label, share of right terms with its interval, terms gained and lost since the baseline; empty: not measured."""
    lines = []
    for label, model, row in _cells(results):
        if row.scores.terms is not None and results is not None:
            found = results.comparisons.get(label, Comparison()).models.get(model, ModelComparison())
            share = f"{with_interval(row.scores, 'terms')} %"
            lines.append([model, label, share, _named(found.terms_gained), _named(found.terms_lost)])
    return [["model", "", TERMS, "gained", "lost"], *lines] if lines else []


def fault_table(results: Results | None) -> list[list[str]]:
    """Model, label, length against the references, empty, copied and untranslated sentences, share of English words."""
    lines = [
        [
            model,
            label,
            "" if row.faults.length_ratio is None else f"{row.faults.length_ratio:.2f}",
            *(f"{count:,}" for count in (row.faults.empty, row.faults.copied, row.faults.untranslated)),
            f"{row.faults.english_share:.1%}",
        ]
        for label, model, row in _cells(results)
        if row.faults is not None
    ]
    return [["model", "", "length", "empty", "copied", "untranslated", "English words"], *lines] if lines else []


def genre_table(results: Results | None) -> list[list[str]]:
    """Model, label, genre, its sentences, and each metric with its 95 % interval."""
    cells = list(_cells(results))
    names = [name for name in METRICS if any(getattr(row.scores, name) is not None for _label, _model, row in cells)]
    lines = [
        [model, label, genre, f"{scores.sentences:,}", *(with_interval(scores, name) for name in names)]
        for label, model, row in cells
        for genre, scores in {ALL_GENRES: row.scores, **row.genres}.items()
    ]
    return [["model", "", "genre", "n", *(METRICS[name] for name in names)], *lines] if lines else []


def general_rows(results: Results | None) -> list[Row]:
    """What was forgotten: BLEU and chrF++ on general sentences, before and after; `genre` is `general`."""
    if results is None or results.baseline is None:
        return []
    found = []
    for model in _models(results):
        before = results.labels[results.baseline].models.get(model)
        for label, after in _afters(results, model):
            if before is not None and before.general is not None and after is not None and after.general is not None:
                compared = results.comparisons.get(label, Comparison()).models.get(model, ModelComparison())
                for metric in ("bleu", "chrf"):
                    sides = getattr(before.general.scores, metric), getattr(after.general.scores, metric)
                    found.append(_row(model, "general", metric, sides, compared.general.get(metric), compared.same_model))
    return found


def with_interval(scores: Scores, metric: str) -> str:
    """A score and, where there is one, its 95 % interval."""
    value = fixed(getattr(scores, metric), metric)
    if metric not in scores.intervals:
        return value
    low, high = scores.intervals[metric]
    return f"{value} ({fixed(low, metric)} to {fixed(high, metric)})"


def _named(terms: Mapping[str, int]) -> str:
    """Terms with the number of their sentences, the most frequent ones, and how many more there are."""
    named = [f"{term} {count}" for term, count in list(terms.items())[:MOST_TERMS]]
    more = [f"{len(terms) - MOST_TERMS} more"] if len(terms) > MOST_TERMS else []
    return ", ".join([*named, *more])


def _cells(results: Results | None) -> Iterator[tuple[str, str, ModelRow]]:
    """(label, model, row), by model."""
    for model in _models(results) if results is not None else ():
        for name, label in results.labels.items() if results is not None else ():
            if model in label.models:
                yield name, model, label.models[model]


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(name for label in results.labels.values() for name in (*label.models, *label.left_out)))


def _afters(results: Results, model: str) -> list[tuple[str, ModelRow | None]]:
    others = [(name, label) for name, label in results.labels.items() if name != results.baseline]
    return [(name, label.models[model]) for name, label in others if model in label.models]


def _rows_of(model: str, before: ModelRow | None, after: ModelRow | None, compared: ModelComparison) -> Iterator[Row]:
    genres = dict.fromkeys([*(before.genres if before else ()), *(after.genres if after else ())])
    for genre in (ALL_GENRES, *genres):
        one, two = _side(before, genre), _side(after, genre)
        deltas = compared.overall if genre == ALL_GENRES else compared.genres.get(genre, {})
        for metric in METRICS:
            sides = getattr(one, metric, None), getattr(two, metric, None)
            if sides != (None, None):
                yield _row(model, genre, metric, sides, deltas.get(metric), compared.same_model)


def _side(row: ModelRow | None, genre: str) -> Scores | None:
    if row is None:
        return None
    return row.scores if genre == ALL_GENRES else row.genres.get(genre)


def _row(
    model: str, genre: str, metric: str, sides: tuple[float | None, float | None], delta: Delta | None, same_model: bool
) -> Row:
    one, two = sides
    change = two - one if one is not None and two is not None else None
    p = delta.p_value if delta else None
    low, high = (delta.ci_low, delta.ci_high) if delta else (None, None)
    between = f"{signed(low, metric)} to {signed(high, metric)}" if low is not None and high is not None else ""
    return Row(
        model=model,
        genre=genre,
        metric=METRICS[metric],
        before=fixed(one, metric),
        after=fixed(two, metric),
        change=signed(change, metric),
        interval=between,
        p="" if p is None else f"{p:.3f}",
        verdict=verdict(change, p, same_model),
    )


def verdict(change: float | None, p: float | None, same_model: bool = False) -> str:
    """What a difference is worth, in words."""
    if change is None:
        return ""
    if same_model:
        return "same model"
    if change == 0:
        return "unchanged"
    if p is None:
        return "not tested"
    if p >= SIGNIFICANT_P:
        return "not clear"
    return "better" if change > 0 else "worse"


def fixed(value: float | None, metric: str) -> str:
    """A score with the metric's usual digits."""
    return words.NOT_MEASURED if value is None else f"{value:.{DIGITS[metric]}f}"


def signed(value: float | None, metric: str) -> str:
    """A difference, with its sign."""
    if value is None:
        return ""
    text = f"{value:+.{DIGITS[metric]}f}".replace("-", "−")
    return text if any(char in "123456789" for char in text) else text[1:]


def notes(results: Results | None) -> list[str]:
    """What one must know to read the table: the test set, which COMET, what is missing and why, how differences were tested."""
    if results is None:
        return []
    found = []
    for name, label in results.labels.items():
        test = label.test_set
        verses = words.plural(test.scored_verse_references, "verse reference")
        found.append(f"{name}: {verses}, {words.plural(test.scored_sentences, 'sentence')} scored.")
        if label.comet is not None:
            found.append(f"COMET of {name}: {label.comet.name}{' (the demo’s own)' if label.comet.demo else ''}.")
        elif label.comet_left_out:
            found.append(f"{name}: no COMET score: {label.comet_left_out}.")
        if label.kiwi_left_out:
            found.append(f"{name}: no CometKiwi score: {label.kiwi_left_out}.")
        found += [f"{name}: {model} is not scored: {why}." for model, why in label.left_out.items()]
    for name, comparison in results.comparisons.items():
        if comparison.samples:
            found.append(
                f"{name} against {comparison.baseline}: paired bootstrap, {comparison.samples:,} resamples"
                f"{' by ' + comparison.unit if comparison.unit else ''}; better or worse means p < {SIGNIFICANT_P}."
            )
        found += [f"{name}: {model} is not compared: {why}." for model, why in comparison.left_out.items()]
    return list(dict.fromkeys(text.replace("..", ".") for text in found))


def signatures(results: Results | None) -> list[str]:
    """The sacrebleu signatures, each once."""
    labels = results.labels.values() if results else ()
    return list(dict.fromkeys(f"{METRICS.get(name, name)}: {text}" for label in labels for name, text in label.signatures.items()))


def demo_comet(results: Results | None) -> str:
    """The name of the demo's own metric where it gave the scores; else empty."""
    labels = results.labels.values() if results else ()
    return next((label.comet.name for label in labels if label.comet is not None and label.comet.demo), "")


def text_table(results: Results | None, columns: int = 80) -> list[str]:
    """The overall scores for a terminal; empty when nothing was measured. By genre: see the report."""
    found = overall(results)
    if not found:
        return []
    lines, last = [["model", "metric", "before", "after", "change", "", "p"]], ""
    for row in found:
        lines.append([row.model if row.model != last else "", row.metric, row.before, row.after, row.change, row.verdict, row.p])
        last = row.model
    name = demo_comet(results)
    tail = textwrap.wrap(f"COMET here is the {name}.", columns) if name else []
    return [*words.table(lines, right=(2, 3, 4, 6)), *tail]


def read_samples(workspace: Workspace, results: Results | None, most: int = 7) -> list[Sample]:
    """Some test sentences with every model's translation of them: by smallest id, one a genre first; never chosen by quality."""
    if results is None:
        return []
    texts: dict[str, dict[tuple[str, str], str]] = {}
    sentences: dict[str, _Kept] = {}
    for name, label in results.labels.items():
        for model, row in label.models.items():
            for kept in _kept(workspace, row.translations.path):
                sentences[kept.id] = kept
                texts.setdefault(kept.id, {})[model, name] = kept.hypothesis
    chosen = _one_a_genre(sorted(sentences.values(), key=lambda kept: kept.id), most)
    order = {model: place for place, model in enumerate(_models(results))}
    return [
        Sample(
            genre=kept.genre,
            reference=f"{kept.book} {kept.chapter}:{kept.verse}",
            source=kept.source,
            wanted=kept.references,
            translations=tuple(
                (model, label, text) for (model, label), text in sorted(texts[kept.id].items(), key=lambda item: order[item[0][0]])
            ),
        )
        for kept in chosen
    ]


class _Kept(msgspec.Struct, frozen=True):
    """One line of a translations file."""

    id: str
    source: str
    hypothesis: str
    book: str = ""
    chapter: int = 0
    verse: int = 0
    genre: str = ""
    references: tuple[str, ...] = ()


def _kept(workspace: Workspace, path: str) -> list[_Kept]:
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in workspace.inside(path).read_bytes().splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                found.append(msgspec.json.decode(line, type=_Kept))
    return found


def _one_a_genre(kept: Sequence[_Kept], most: int) -> list[_Kept]:
    first: Mapping[str, _Kept] = {one.genre: one for one in reversed(kept)}
    chosen = list(first.values())
    chosen += [one for one in kept if one not in chosen]
    return sorted(chosen[:most], key=lambda one: (one.genre, one.id))

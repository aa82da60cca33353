"""PURE but for `read` and `read_samples`: metrics/eval_results.json as the tables before/after that people look at.

`stages.evaluate` writes the file and says what stands in it. What is missing there is shown as not measured; whether a
difference is better, worse or not clear follows from the paired bootstrap that the file carries, never from the difference alone.
"""

from __future__ import annotations

import contextlib
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemon import words
from state.workspace import Workspace

METRICS = {"bleu": "BLEU", "chrf": "chrF++", "comet": "COMET", "kiwi": "CometKiwi"}
TERMS = "terms"
NAMES = {**METRICS, TERMS: "theological terms, % right"}
DIGITS = {"bleu": 2, "chrf": 2, "comet": 4, "kiwi": 4, TERMS: 1}
MOST_TERMS = 40
"""Named in a line of gained or lost ones."""
ALL_GENRES = "all"
GENERAL = "general"
"""In a genre's place: sentences of everyday life, of no training's domain."""
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
    """`all`, one genre, or `general`."""
    metric: str
    """As people call it: BLEU, chrF++, COMET."""
    before: str
    after: str
    change: str
    interval: str
    """95 % interval of the difference."""
    p: str
    verdict: str
    """better, worse, not clear, unchanged, or empty when there is nothing to compare."""
    sentences: int = 0
    before_between: str = ""
    """95 % interval of the score before."""
    after_between: str = ""

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(score, its interval) before and after."""
        return (self.before, self.before_between), (self.after, self.after_between)


@dataclass(frozen=True)
class FaultRow:
    """What went wrong in one model's translations under one label."""

    model: str
    label: str
    sentences: str
    length: str
    """Words against the references'."""
    empty: str
    copied: str
    untranslated: str
    english: str
    """Share of English words."""


@dataclass(frozen=True)
class Terms:
    """The theological terms that one training changed, with the number of their sentences, the most frequent ones first."""

    model: str
    gained: str
    lost: str


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


Scored = Callable[[ModelRow], Mapping[str, Scores]]
"""The scores of one row, by genre."""
Changed = Callable[[ModelComparison], Mapping[str, Mapping[str, Delta]]]
"""What changed, by genre."""


def read(path: Path) -> Results | None:
    """The results in the file; None when there are none, or none that can be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError):
        return None


def rows(results: Results | None) -> list[Row]:
    """Every model, overall and by genre, every metric that was measured on either side; models in the file's order."""
    return list(
        _rows(
            results,
            lambda row: {ALL_GENRES: row.scores, **row.genres},
            lambda found: {ALL_GENRES: found.overall, **found.genres},
            tuple(METRICS),
        )
    )


def overall(results: Results | None) -> list[Row]:
    """The rows that are not of one genre."""
    return [row for row in rows(results) if row.genre == ALL_GENRES]


def verdicts(results: Results | None) -> list[tuple[str, str]]:
    """(model, one sentence) for each model that was compared: better, worse or not distinguishable, and where.

    No line is broken between a metric and its number.
    """
    return [(model, re.sub(" (?=[+−%])", "\u00a0", found.verdict)) for model, _label, found in _compared(results) if found.verdict]


def briefly(sentence: str) -> str:
    """A verdict without its intervals, for where there is little room."""
    return re.sub(r" \(95\s% interval[^)]*\)", "", sentence)


def term_rows(results: Results | None) -> list[Row]:
    """The share of theological terms that are right, before and after."""
    return list(_rows(results, lambda row: {ALL_GENRES: row.scores}, lambda found: {ALL_GENRES: found.overall}, (TERMS,)))


def term_changes(results: Results | None) -> list[Terms]:
    """The terms that each model has gained and lost; models without any are left out."""
    found = [Terms(model, _named(one.terms_gained), _named(one.terms_lost)) for model, _label, one in _compared(results)]
    return [one for one in found if one.gained or one.lost]


def general_rows(results: Results | None) -> list[Row]:
    """What was forgotten: BLEU and chrF++ on general sentences, before and after."""

    def sides(row: ModelRow) -> dict[str, Scores]:
        return {GENERAL: row.general.scores} if row.general else {}

    return list(_rows(results, sides, lambda found: {GENERAL: found.general}, ("bleu", "chrf")))


def fault_rows(results: Results | None) -> list[FaultRow]:
    """The faults of each model under each label, where they were counted."""
    if results is None:
        return []
    return [
        FaultRow(
            model=model,
            label=label,
            sentences=f"{row.scores.sentences:,}",
            length=words.NOT_MEASURED if row.faults.length_ratio is None else f"{100 * row.faults.length_ratio:.0f} %",
            empty=f"{row.faults.empty:,}",
            copied=f"{row.faults.copied:,}",
            untranslated=f"{row.faults.untranslated:,}",
            english=f"{100 * row.faults.english_share:.1f} %",
        )
        for model in _models(results)
        for label, row in _labelled(results, model)
        if row.faults is not None
    ]


def _named(terms: Mapping[str, int]) -> str:
    """Terms with the number of their sentences, and how many more there are."""
    named = [f"{term}\u00a0{count}" for term, count in list(terms.items())[:MOST_TERMS]]
    more = [f"{len(terms) - MOST_TERMS} more"] if len(terms) > MOST_TERMS else []
    return ", ".join([*named, *more])


def _models(results: Results) -> list[str]:
    return list(dict.fromkeys(name for label in results.labels.values() for name in (*label.models, *label.left_out)))


def _labelled(results: Results, model: str) -> list[tuple[str, ModelRow]]:
    return [(name, label.models[model]) for name, label in results.labels.items() if model in label.models]


def _compared(results: Results | None) -> Iterator[tuple[str, str, ModelComparison]]:
    """(model, label, what changed since the baseline), by model."""
    if results is not None:
        for model in _models(results):
            for label, comparison in results.comparisons.items():
                if model in comparison.models:
                    yield model, label, comparison.models[model]


def _rows(results: Results | None, scored: Scored, changed: Changed, metrics: Sequence[str]) -> Iterator[Row]:
    """A row for each model, genre and metric that was measured on either side."""
    if results is None or results.baseline is None:
        return
    compared = {(model, label): found for model, label, found in _compared(results)}
    for model in _models(results):
        labelled = dict(_labelled(results, model))
        before = labelled.pop(results.baseline, None)
        for label, after in labelled.items() or [("", None)]:
            found = compared.get((model, label), ModelComparison())
            one, two = (scored(row) if row else {} for row in (before, after))
            for genre in dict.fromkeys([*one, *two]):
                sides, deltas = (one.get(genre, Scores()), two.get(genre, Scores())), changed(found).get(genre, {})
                for metric in metrics:
                    if any(getattr(side, metric) is not None for side in sides):
                        yield _row(model, genre, metric, *sides, deltas.get(metric), found.same_model)


def _row(model: str, genre: str, metric: str, before: Scores, after: Scores, delta: Delta | None, same_model: bool) -> Row:
    one, two = getattr(before, metric), getattr(after, metric)
    change = two - one if one is not None and two is not None else None
    p = delta.p_value if delta else None
    low, high = (delta.ci_low, delta.ci_high) if delta else (None, None)
    return Row(
        model=model,
        genre=genre,
        metric=NAMES[metric],
        before=fixed(one, metric),
        after=fixed(two, metric),
        change=signed(change, metric),
        interval=f"{signed(low, metric)} to {signed(high, metric)}" if low is not None and high is not None else "",
        p="" if p is None else f"{p:.3f}",
        verdict=verdict(change, p, same_model),
        sentences=after.sentences or before.sentences,
        before_between=_between(before, metric),
        after_between=_between(after, metric),
    )


def _between(scores: Scores, metric: str) -> str:
    """The 95 % interval of a score; empty where there is none."""
    return " to ".join(fixed(end, metric) for end in scores.intervals.get(metric, ()))


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
    """The verdicts and the overall scores for a terminal; empty when nothing was measured. By genre: see the report."""
    found = overall(results)
    if not found:
        return []
    said = [line for _model, sentence in verdicts(results) for line in textwrap.wrap(sentence, columns, subsequent_indent="  ")]
    lines, last = [["model", "metric", "before", "after", "change", "", "p"]], ""
    for row in found:
        lines.append([row.model if row.model != last else "", row.metric, row.before, row.after, row.change, row.verdict, row.p])
        last = row.model
    name = demo_comet(results)
    tail = textwrap.wrap(f"COMET here is the {name}.", columns) if name else []
    return [*said, *([""] if said else []), *words.table(lines, right=(2, 3, 4, 6)), *tail]


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

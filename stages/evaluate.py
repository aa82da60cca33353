"""Evaluation: BLEU, chrF++, COMET and terms of every model on the held-out verses, by genre, and what changed since before.

Each distinct English sentence is translated once and scored against every Spanish text of its verse. Translations are kept
as they come, so that an attempt that was killed translates nothing twice but the batch in flight; a model whose
weights are byte for byte those of an earlier label takes that label's translations over. If asked for, each model also
translates general sentences (`stages.forgetting`). What is written is described in
`stages.eval_results`; `metrics/LABEL.json` and the translations are the stage's outputs.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np

from stages import comet_scores, eval_results, faults, forgetting, quick_marian, scoring, terms
from stages.comet_scores import CometScores, LeftOut, comet_python
from stages.eval_results import Comet, EvalResults, General, LabelResults, ModelRow, Scores, Speed, TestSet
from stages.loading import free_memory
from stages.runtime import Delivery, StageContext, out_of_memory, run
from stages.scoring import Pair, Sentence, digest
from stages.translation import (
    LOAD_QUIET_S,
    Decoding,
    Kept,
    Marian,
    check_row,
    identity,
    load,
    locate,
    translate,
)
from state.contract import MisconfiguredError, StageError, StopRequested
from state.durable import file_digest
from state.settings import Evaluate, TranslationModel

MANY_EMPTY = 0.05
BATCH_QUIET_S = 300.0
"""CTranslate2 says nothing while it decodes some sentences."""


@dataclass(frozen=True)
class Translated:
    """One model's translations of the whole test set, in its order, and of the general sentences."""

    row: TranslationModel
    identity: str
    hypotheses: list[str]
    speed: Speed
    device: str
    decoding: str
    cut: int
    reused_from: str = ""
    engine: str = ""
    general: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """What every model translates."""

    sentences: list[Sentence]
    general: list[Sentence]
    many: bool
    """Enough for a conversion to pay, by the whole test set: a rehearsal's few sentences are decoded as the run's will be."""

    @property
    def sources(self) -> list[str]:
        """The distinct English texts: each occurs once for every Spanish one in the test file."""
        return list(dict.fromkeys(sentence.source for sentence in (*self.sentences, *self.general)))


class Meter:
    """One progress for all phases: sentences translated by each model, then rows scored by COMET."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self.ctx, self.total, self.base, self.done = ctx, total, 0, 0
        self.phase = ""

    def start(self, phase: str, quiet_s: float | None = None) -> None:
        """A new phase; with `quiet_s` it is told for certain, so that its pace can be read from the events."""
        self.base, self.phase = self.done, phase
        self.ctx.progress(self.done, self.total, "sentences", message=phase, quiet_s=quiet_s)

    def beat(self, done: int, quiet_s: float | None = None) -> None:
        """`done` sentences of the present phase are done; `quiet_s` as in `StageContext.progress`."""
        self.done = min(self.base + done, self.total)
        self.ctx.progress(self.done, self.total, "sentences", message=self.phase, quiet_s=quiet_s)

    def breathe(self) -> None:
        """Between two units that count for nothing: still a heartbeat, and a place to stop."""
        self.ctx.check_stop()
        self.ctx.progress(self.done, self.total, "sentences", message=self.phase)


def main(ctx: StageContext) -> Delivery:
    """Translate and score the test set with every model, and compare with the baseline's label."""
    settings = ctx.settings(Evaluate)
    workspace = ctx.workspace
    check_models(settings.models)
    test_set, sentences = read_test_set(ctx, settings)
    rows, left_out = rows_to_score(ctx, settings)
    known = eval_results.load(workspace)
    general = forgetting.sentences() if settings.forgetting else []
    work = Work(sentences, general, test_set.unique_sources + len(general) >= quick_marian.WORTH_IT)
    meter = Meter(ctx, len(rows) * (len(work.sources) + comet_rows(settings, sentences)))
    translated, failed = translate_rows(ctx, settings, rows, work, known, meter)
    left_out |= failed
    if not translated:
        raise MisconfiguredError(f"no model could be scored: {left_out}")
    meter.start("scoring by COMET")
    comet = score_by_comet(ctx, settings.comet_model or "", sentences, translated, meter)
    kiwi = score_by_kiwi(ctx, settings.kiwi_model, sentences, translated, meter)
    meter.start("scoring")
    models = {one.row.name: write_row(ctx, settings.label, work, one, comet, kiwi, meter) for one in translated}
    meter.start("comparing")
    results = LabelResults(
        label=settings.label,
        stage=ctx.spec.stage,
        attempt=ctx.spec.attempt,
        at=time.time(),
        test_set=test_set,
        signatures={name: scoring.signature(name, sentences) for name in scoring.STATISTICS},
        comet=described(comet, settings.comet_model or "") if isinstance(comet, CometScores) else None,
        comet_left_out=comet.reason if isinstance(comet, LeftOut) else "",
        kiwi=described(kiwi, settings.kiwi_model) if isinstance(kiwi, CometScores) else None,
        kiwi_left_out=kiwi.reason if isinstance(kiwi, LeftOut) and settings.kiwi_model else "",
        models=models,
        left_out=left_out,
    )
    everything = eval_results.with_label(workspace, known, results, meter.breathe)
    eval_results.save(workspace, everything, settings.label)
    folder = eval_results.translations_path(workspace, settings.label, "x").parent
    other_folder = eval_results.general_path(workspace, settings.label, "x").parent
    remove_strangers(folder, models)
    remove_strangers(other_folder, [name for name, row in models.items() if row.general is not None])
    meter.beat(meter.total)
    metrics = delivered_metrics(models)
    ctx.metric(metrics)
    outputs = [workspace.metrics / f"{settings.label}.json", folder, *([other_folder] if general else [])]
    return Delivery(outputs=outputs, metrics=metrics, summary=summary(everything, settings.label))


def translate_rows(
    ctx: StageContext, settings: Evaluate, rows: Sequence[TranslationModel], work: Work, known: EvalResults, meter: Meter
) -> tuple[list[Translated], dict[str, str]]:
    """The translations of every row, one model after the other, and why those that may be missing are."""
    translated, left_out = [], {}
    for row in rows:
        meter.start(f"preparing {row.name}")
        try:
            translated.append(translate_row(ctx, settings, row, work, known, meter))
        except Exception as error:
            if not may_be_left_out(row, error):
                raise
            left_out[row.name] = f"row left out: {error}"
            ctx.note(f"{row.name}: {left_out[row.name]}", level="warning", model=row.name)
        free_memory()
        meter.beat(len(work.sources))
    quick_marian.forget(ctx)
    return translated, left_out


# -- what is asked for


def check_models(rows: Sequence[TranslationModel]) -> None:
    """Refuse what no run can score.

    Raises:
        MisconfiguredError: two rows of one name, none at all, or an adapter where there can be none.
    """
    twice = [name for name, count in Counter(row.name for row in rows).items() if count > 1]
    if twice or not rows:
        raise MisconfiguredError(
            f"models: {', '.join(twice)} stand there twice" if twice else "models: none is named; name at least one"
        )
    for row in rows:
        check_row(row)


def comet_rows(settings: Evaluate, sentences: Sequence[Sentence]) -> int:
    """How many rows of each model COMET and its sister without references will score."""
    if not comet_python():
        return 0
    references = sum(len(sentence.references) for sentence in sentences) if settings.comet_model else 0
    return references + (len(sentences) if settings.kiwi_model else 0)


def rows_to_score(ctx: StageContext, settings: Evaluate) -> tuple[list[TranslationModel], dict[str, str]]:
    """The rows whose models were made, and why each other one is left out.

    Raises:
        MisconfiguredError: none is left; a table without a row would look like a result.
    """
    left_out = {}
    for row in settings.models:
        if row.trained_by is not None and not ctx.workspace.result(row.trained_by).exists():
            left_out[row.name] = f"row left out because stage {row.trained_by} did not succeed"
            ctx.note(f"{row.name}: {left_out[row.name]}", level="warning", model=row.name)
    rows = [row for row in settings.models if row.name not in left_out]
    if not rows:
        raise MisconfiguredError(f"no model is left to score: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    return rows, left_out


def read_test_set(ctx: StageContext, settings: Evaluate) -> tuple[TestSet, list[Sentence]]:
    """The test sentences to score, and how they relate to the file.

    Raises:
        MisconfiguredError: no file, a line that is no pair, or fewer verse references than `min_references`.
    """
    path = ctx.workspace.test_pairs
    pairs = read_pairs(path)
    everything = scoring.group(pairs)
    verses = len(scoring.verse_references(everything))
    if verses < settings.min_references:
        raise MisconfiguredError(
            f"test set {path} holds {verses} verse references in {len(pairs)} pairs, fewer than min_references = "
            f"{settings.min_references}: a score on so few would mean little; build the corpus again, or lower min_references"
        )
    sentences = scoring.sample(everything, settings.max_references)
    references = sum(len(sentence.references) for sentence in sentences)
    return TestSet(
        path=path.relative_to(ctx.workspace.root).as_posix(),
        sha256=file_digest(path),
        pairs=len(pairs),
        verse_references=verses,
        sentences=len(everything),
        scored_verse_references=len(scoring.verse_references(sentences)),
        scored_sentences=len(sentences),
        unique_sources=len({sentence.source for sentence in sentences}),
        references_per_sentence=round(references / len(sentences), eval_results.DIGITS),
        genres=dict(sorted(Counter(sentence.genre for sentence in sentences).items())),
    ), sentences


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a test file.

    Raises:
        MisconfiguredError: naming the file and, where there is one, the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise MisconfiguredError(f"test set {path} cannot be read ({error.strerror}); the corpus stage writes it") from error
    pairs = []
    for number, line in enumerate(lines, start=1):
        try:
            pair = msgspec.json.decode(line, type=Pair)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MisconfiguredError(
                f"test set {path}, line {number}: not a verse pair ({error}); build the corpus again"
            ) from error
        if not pair.en.strip() or not pair.es.strip():
            raise MisconfiguredError(f"test set {path}, line {number}: a text is empty; build the corpus again")
        pairs.append(pair)
    if not pairs:
        raise MisconfiguredError(f"test set {path} is empty; build the corpus again")
    return pairs


# -- translating


def may_be_left_out(row: TranslationModel, error: Exception) -> bool:
    """Whether the others' scores go on without this row: a bonus that cannot be had or does not fit."""
    expected = isinstance(error, StageError) or out_of_memory(error)
    return row.optional and expected and not isinstance(error, StopRequested)


def translate_row(
    ctx: StageContext,
    settings: Evaluate,
    row: TranslationModel,
    work: Work,
    known: EvalResults,
    meter: Meter,
) -> Translated:
    """The translations of every sentence by one model: taken over, kept from an earlier attempt, or made now."""
    model = locate(ctx, row.model, row.kind)
    adapter = None if row.adapter is None else locate(ctx, row.adapter, "adapter")
    decoding = Decoding(settings.num_beams, settings.max_new_tokens, row.int8)
    name = identity(model, adapter, row.kind, decoding)
    taken = take_over(ctx, settings.label, row, name, work, known)
    if taken is not None:
        return taken
    kept = Kept(ctx.scratch() / "translations" / f"{name[:16]}.jsonl")
    if any(digest(source) not in kept.by_id for source in work.sources):
        ctx.quiet(LOAD_QUIET_S, f"loading {row.name}")
        backend = load(row.kind, model, adapter, decoding)
        if isinstance(backend, Marian) and work.many:
            backend = quick_marian.quicken(ctx, backend, model, name, work.sentences, meter.breathe)
        batch = min(settings.batch_size, ctx.spec.batch.eval_batch or settings.batch_size)
        meter.start(f"translating by {row.name}", quiet_s=BATCH_QUIET_S)
        translate(ctx, backend, work.sources, batch, kept, meter.beat, settings.batch_tokens)
        meter.beat(len(work.sources), quiet_s=BATCH_QUIET_S)
    found = [kept.by_id[digest(sentence.source)] for sentence in work.sentences]
    return Translated(
        row=row,
        identity=name,
        hypotheses=[hypothesis.text for hypothesis in found],
        speed=speed_of(kept),
        device=kept.device,
        decoding=decoding.described(row.kind),
        engine=kept.engine,
        general=[kept.by_id[digest(sentence.source)].text for sentence in work.general],
        cut=len({hypothesis.id for hypothesis in found if hypothesis.cut}),
    )


def speed_of(kept: Kept) -> Speed:
    """Tokens and sentences a second over all attempts' finished batches."""
    seconds, tokens, sentences = kept.seconds, kept.tokens, len(kept.by_id)
    pace = 1 / seconds if seconds > 0 else 0.0
    return Speed(
        seconds=round(seconds, 3),
        tokens=tokens,
        sentences=sentences,
        tokens_per_s=round(tokens * pace, 2),
        sentences_per_s=round(sentences * pace, 2),
    )


def take_over(ctx: StageContext, label: str, row: TranslationModel, name: str, work: Work, known: EvalResults) -> Translated | None:
    """The translations of another label whose model is identical in every byte, if they cover all sentences."""
    for other, results in known.labels.items():
        for earlier in results.models.values():
            if other == label or earlier.identity != name:
                continue
            parts: list[ModelRow | General] = [earlier] if earlier.general is None else [earlier, earlier.general]
            kept = [one for part in parts for one in eval_results.read_translations(ctx.workspace, part) or []]
            by_source = {one.source: one.hypothesis for one in kept}
            if all(source in by_source for source in work.sources):
                ctx.note(f"{row.name} is identical to the model scored {other}; its translations are taken over", model=row.name)
                hypotheses, general = ([by_source[one.source] for one in part] for part in (work.sentences, work.general))
                facts = earlier.speed, earlier.device, earlier.decoding, earlier.cut_sources, other, earlier.engine
                return Translated(row, name, hypotheses, *facts, general)
    return None


# -- scoring


def score_by_comet(
    ctx: StageContext, model: str, sentences: Sequence[Sentence], translated: Sequence[Translated], meter: Meter
) -> CometScores | LeftOut:
    """COMET of every translation against each of its references, or why there is none; the owner is told."""
    rows = [
        comet_scores.row(sentence.source, hypothesis, reference)
        for one in translated
        for sentence, hypothesis in zip(sentences, one.hypotheses, strict=True)
        for reference in sentence.references
    ]

    return by_process(ctx, model, rows, meter, "COMET")


def score_by_kiwi(
    ctx: StageContext, model: str, sentences: Sequence[Sentence], translated: Sequence[Translated], meter: Meter
) -> CometScores | LeftOut:
    """The score of every translation by a COMET that looks at the source alone, or why there is none."""
    meter.start("scoring by CometKiwi")
    rows = [
        comet_scores.row(sentence.source, hypothesis, "")
        for one in translated
        for sentence, hypothesis in zip(sentences, one.hypotheses, strict=True)
    ]
    return by_process(ctx, model, rows, meter, "CometKiwi")


def by_process(
    ctx: StageContext, model: str, rows: Sequence[comet_scores.CometRow], meter: Meter, name: str
) -> CometScores | LeftOut:
    """The scores of these rows by COMET's process; the owner is told if there are none."""

    def beat(done: int) -> None:
        meter.beat(done, quiet_s=comet_scores.CHUNK_QUIET_S)

    scores = comet_scores.score(ctx, rows, model, comet_python(), beat)
    if isinstance(scores, LeftOut) and model:
        ctx.note(f"no {name} score: {scores.reason}", level="warning")
    return scores


def described(comet: CometScores, model: str) -> Comet:
    """The metric for the results, named as the settings name it and not by a path of this machine."""
    return Comet(name=comet.name if comet.demo else model, model=model, sha256=comet.sha256, demo=comet.demo, version=comet.version)


def with_comet(
    measured: scoring.Statistics, sentences: Sequence[Sentence], one: Translated, comet: CometScores | LeftOut
) -> scoring.Statistics:
    """The statistics with COMET's column: of several references the mean, since COMET knows one reference at a time."""
    if isinstance(comet, LeftOut):
        return measured
    means = [
        float(
            np.mean(
                [comet.scores[comet_scores.row(sentence.source, hypothesis, reference).id] for reference in sentence.references]
            )
        )
        for sentence, hypothesis in zip(sentences, one.hypotheses, strict=True)
    ]
    return replace(measured, comet=np.asarray(means))


def with_kiwi(
    measured: scoring.Statistics, sentences: Sequence[Sentence], one: Translated, kiwi: CometScores | LeftOut
) -> scoring.Statistics:
    """The statistics with the column of the COMET that needs no reference."""
    if isinstance(kiwi, LeftOut):
        return measured
    texts = zip(sentences, one.hypotheses, strict=True)
    return replace(measured, kiwi=np.asarray([kiwi.scores[comet_scores.row(s.source, text, "").id] for s, text in texts]))


def write_row(
    ctx: StageContext,
    label: str,
    work: Work,
    one: Translated,
    comet: CometScores | LeftOut,
    kiwi: CometScores | LeftOut,
    meter: Meter,
) -> ModelRow:
    """Keep a model's translations with their scores, and sum them up."""
    sentences = work.sentences
    measured = eval_results.in_blocks(sentences, one.hypotheses, meter.breathe)
    measured = with_kiwi(with_comet(measured, sentences, one, comet), sentences, one, kiwi)
    measured = replace(measured, terms=terms.terms().statistics(sentences, one.hypotheses))
    meter.breathe()
    path = eval_results.translations_path(ctx.workspace, label, one.row.name)
    eval_results.write_translations(path, sentences, one.hypotheses, measured)
    empty = sum(not hypothesis for hypothesis in one.hypotheses)
    if empty > MANY_EMPTY * len(sentences):
        ctx.note(f"{one.row.name}: {empty} of {len(sentences)} translations are empty", level="warning", model=one.row.name)
    return ModelRow(
        kind=one.row.kind,
        model=one.row.model,
        adapter=one.row.adapter,
        trained_by=one.row.trained_by,
        identity=one.identity,
        device=one.device,
        decoding=one.decoding,
        engine=one.engine,
        scores=eval_results.scores_of(measured, sentences),
        genres=eval_results.by_genre(sentences, measured, meter.breathe),
        faults=faults.count(sentences, one.hypotheses),
        general=write_general(ctx, label, work.general, one, meter) if work.general else None,
        speed=one.speed,
        empty_hypotheses=empty,
        cut_sources=one.cut,
        reused_from=one.reused_from,
        translations=eval_results.relative(ctx.workspace, path),
    )


def write_general(ctx: StageContext, label: str, sentences: Sequence[Sentence], one: Translated, meter: Meter) -> General:
    """Keep the translations of the general sentences, and score them."""
    measured = eval_results.in_blocks(sentences, one.general, meter.breathe)
    path = eval_results.general_path(ctx.workspace, label, one.row.name)
    eval_results.write_translations(path, sentences, one.general, measured)
    scores = eval_results.scores_of(measured, sentences)
    return General(scores=scores, translations=eval_results.relative(ctx.workspace, path))


# -- handing over


def remove_strangers(folder: Path, models: Container[str]) -> None:
    """Remove translations of models that an earlier evaluation of this label had and this one has not."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.removesuffix(".jsonl") not in models:
            path.unlink()


def delivered_metrics(models: dict[str, ModelRow]) -> dict[str, float]:
    """`MODEL.bleu`, `MODEL.chrf` and, where measured, `MODEL.comet`, `MODEL.kiwi` and `MODEL.terms`."""
    named = {f"{name}.{metric}": getattr(row.scores, metric) for name, row in models.items() for metric in scoring.METRICS}
    return {name: value for name, value in named.items() if value is not None}


def summary(results: EvalResults, label: str) -> str:
    """One line for the receipt: each model's scores, and the change where there is one."""
    compared = results.comparisons.get(label)
    parts = []
    for name, row in results.labels[label].models.items():
        text = f"{name} {scores_text(row.scores)}"
        if compared is not None and name in compared.models:
            bleu = compared.models[name].overall["bleu"]
            text += f" ({bleu.delta:+.2f} BLEU against {compared.baseline}, p = {bleu.p_value:.3f})"
        parts.append(text)
    return "; ".join(parts)


def scores_text(scores: Scores) -> str:
    """BLEU and chrF++ (0 to 100) and COMET where there is one, for a line of text."""
    text = f"BLEU {scores.bleu:.2f} chrF++ {scores.chrf:.2f}"
    return text if scores.comet is None else f"{text} COMET {scores.comet:.4f}"


if __name__ == "__main__":
    run(main)

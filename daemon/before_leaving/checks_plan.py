"""PURE: what a pipeline needs from outside: models and speech that its stages name, memory to ask about, the disk it will fill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from state.needs import Kind, MemoryAsked, MemoryPredicted, Model, ModelSeen, Where
from state.pipeline import Pipeline, StageConfig
from state.settings import MODULES, Corpus, Download, Evaluate, Preprocess, Settings, Training, TrainWhisper, TranslationModel

KINDS: dict[str, Kind] = {
    "stages.transcribe": "ctranslate2",
    "stages.train_whisper": "whisper",
    "stages.train_marian": "marian",
    "stages.train_gemma": "gemma",
}
ACCOUNTED = frozenset(KINDS.values())
"""Models whose memory is predicted; those of the audio passes and COMET are smaller, and alone."""
RECORDING_BYTES = 60_000_000
"""An hour as sites send it: thirty sermons were 1.7 GB."""
CHUNKS = 240
"""Of the same hour, fifteen seconds each."""
RECORDINGS = 30
"""Where no stage downloads them."""
CHUNKS_BYTES = 70_000_000
"""The same hour as clean FLAC chunks, 16 kHz mono."""
CORPUS_BYTES = 400_000_000
"""310,834 pairs, their token ids, and the build's own units."""
EVALUATION_BYTES = 50_000_000
LOGS_BYTES = 300_000_000
CHECKPOINTS = 4
"""Three that are kept, and the one being written."""
BEST_WEIGHTS = 3
DELIVERIES = 2
"""The output, and what it is made from until it is published: a merged Whisper is written twice."""
TINY_COMET = "tiny"


class Need(msgspec.Struct, frozen=True):
    """Bytes that the plan will write, and what for."""

    what: str
    size_bytes: int
    in_cache: bool = False
    """In the models' cache, else in the workspace."""


def settings_of(stage: StageConfig) -> Settings | None:
    """The stage's settings; None for a module that is not Vigil's."""
    return msgspec.convert(stage.settings, MODULES[stage.module]) if stage.module in MODULES else None


def models(pipeline: Pipeline) -> dict[Model, tuple[str, ...]]:
    """Every model that the run needs and does not make itself, and the stages that name it, in their order; speech last."""
    found: dict[Model, tuple[str, ...]] = {}
    for stage in pipeline.stages:
        for model in _models_of(stage):
            found[model] = tuple(dict.fromkeys((*found.get(model, ()), stage.name)))
    return found | {one: (stage.name,) for stage in pipeline.stages if (one := speech(pipeline, settings_of(stage)))}


def speech(pipeline: Pipeline, settings: Settings | None) -> Model | None:
    """The general speech that a training of Whisper mixes in, and about how many clips of it."""
    if not isinstance(settings, TrainWhisper) or not settings.replay_source or settings.replay_share == 0:
        return None
    newest = next((one.newest for one in map(settings_of, pipeline.stages) if isinstance(one, Download)), RECORDINGS)
    chunks = min(CHUNKS * newest, settings.max_examples or CHUNKS * newest)
    return Model(settings.replay_source, "speech", max(1, round(chunks * settings.replay_share / (1 - settings.replay_share))))


def required(pipeline: Pipeline) -> set[Model]:
    """Those without which a stage that is no bonus fails."""
    return {model for stage in pipeline.stages if not stage.optional for model in _models_of(stage, bonus_rows=False)}


def _models_of(stage: StageConfig, *, bonus_rows: bool = True) -> list[Model]:
    settings = settings_of(stage)
    if isinstance(settings, Evaluate):
        rows = [one for row in settings.models if bonus_rows or not row.optional for one in _models_of_row(row)]
        comets = [name for name in (settings.comet_model, settings.kiwi_model) if name and name != TINY_COMET]
        return [*rows, *(Model(name, "comet") for name in comets if bonus_rows)]  # without it there is no such score
    if isinstance(settings, Preprocess):
        return _models_of_passes(settings)
    kind, name = KINDS.get(stage.module), getattr(settings, "model", None)
    return [Model(name, kind)] if kind and isinstance(name, str) else []


def _models_of_row(row: TranslationModel) -> list[Model]:
    if row.trained_by is None:
        return [Model(row.model, row.kind), *([Model(row.adapter, "adapter")] if row.adapter else [])]
    return [Model(row.model, row.kind)] if row.adapter else []


def _models_of_passes(settings: Preprocess) -> list[Model]:
    sounds = Model(settings.kinds_model if settings.kinds else "", "sounds")
    named = (sounds, Model(settings.separation_model, "demucs"), Model(settings.speaker_model, "voices"))
    return [one for one in named if one.name]


def wants_comet(pipeline: Pipeline) -> bool:
    """Whether a stage scores by COMET."""
    evaluations = [one for one in map(settings_of, pipeline.stages) if isinstance(one, Evaluate)]
    return any(one.comet_model or one.kiwi_model for one in evaluations)


def wants_gpu(pipeline: Pipeline) -> bool:
    """Whether a training asks for what only a GPU has."""
    trainings = [one for one in map(settings_of, pipeline.stages) if isinstance(one, Training)]
    return any(one.bf16 or one.paged_optimizer for one in trainings)


def memory_asked(pipeline: Pipeline, seen: Mapping[Model, ModelSeen]) -> tuple[MemoryAsked, ...]:
    """One question for each stage and each model that it loads."""
    return tuple(
        MemoryAsked(
            stage=stage.name,
            module=stage.module,
            settings=stage.settings,
            model=model.name,
            config=seen[model].config if model in seen else None,
        )
        for stage in pipeline.stages
        for model in _models_of(stage)
        if model.kind in ACCOUNTED and (model not in seen or seen[model].where is not Where.MADE)
    )


def needs(pipeline: Pipeline, seen: Sequence[ModelSeen], memory: Sequence[MemoryPredicted]) -> tuple[Need, ...]:
    """What the whole plan will write, counted from an empty workspace."""
    missing = sum(one.missing_bytes or (0 if one.where is Where.HERE else one.size_bytes) for one in seen)
    found = [Need("models and speech to fetch", missing, in_cache=True)]
    accounts = {one.stage: one.account for one in memory if one.account}
    for stage in pipeline.stages:
        settings = settings_of(stage)
        title = stage.title or stage.name
        if isinstance(settings, Download):
            found.append(Need(f"{title}: {settings.newest} recordings", settings.newest * RECORDING_BYTES))
            found.append(Need(f"{title}: their chunks", settings.newest * CHUNKS_BYTES))
        elif isinstance(settings, Corpus):
            found.append(Need(f"{title}: pairs and token ids", CORPUS_BYTES))
        elif isinstance(settings, Evaluate):
            converted = sum(one.account.output_bytes for one in memory if one.account and one.stage == stage.name)
            found.append(Need(f"{title}: translations", EVALUATION_BYTES + converted))
        elif isinstance(settings, Training) and (account := accounts.get(stage.name)):
            found.append(Need(f"{title}: {CHECKPOINTS} checkpoints", CHECKPOINTS * account.checkpoint_bytes))
            kept = BEST_WEIGHTS * account.weights_bytes + DELIVERIES * account.output_bytes
            found.append(Need(f"{title}: best weights, output", kept))
    return tuple(one for one in (*found, Need("logs and the report", LOGS_BYTES)) if one.size_bytes)

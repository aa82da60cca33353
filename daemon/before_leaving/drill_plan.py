"""What the drill breaks: Vigil's own small pipeline, or a training stage of the owner's, cut down to tiny steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from daemon import config
from state.pipeline import Pipeline, Resource, StageConfig

PIPELINE = Path(__file__).resolve().parents[2] / "pipelines" / "drill.toml"
STAGE, DOWNLOAD = "train_marian", "download"
TRAINING = "stages.train_"
TINY = {
    "max_examples": 600,
    "epochs": 3,
    "effective_batch": 16,
    "micro_batch": None,
    "dev_examples": 16,
    "evaluations": 4,
    "checkpoint_every_steps": 8,
    "bf16": False,
    "paged_optimizer": False,
}
"""Settings of every training stage under the drill: a hundred steps, on the CPU, where equal means bit by bit."""
SILENCE_S = 60.0


def plan(path: Path | None, stage: str | None, overrides: Sequence[str]) -> tuple[Pipeline, str]:
    """The pipeline to break and its training stage: Vigil's own, or one stage of the pipeline file `path` and what that needs.

    Raises:
        ConfigError: the file is wrong.
        BadCallError: it has no such training stage, or the stage needs the network, which a drill cannot wait for.
    """
    own = config.load(PIPELINE, [f"{DOWNLOAD}.url=none"])
    if path is None:
        return own, STAGE
    theirs = config.load(path, overrides)
    chosen = _training_stage(theirs, stage)
    needed = _needed(theirs, chosen)
    _refuse_network(needed, chosen)
    tiny = replace(chosen, settings={**chosen.settings, **TINY}, after=(), silence_s=SILENCE_S)
    before = (replace(one, after=()) for one in needed)
    return replace(own, stages=(own.stage(DOWNLOAD), *before, tiny)), chosen.name


def _training_stage(pipeline: Pipeline, name: str | None) -> StageConfig:
    from daemon.cli import BadCallError

    trainings = [stage for stage in pipeline.stages if stage.module.startswith(TRAINING)]
    offline = [stage for stage in trainings if not any(one.resource is Resource.NETWORK for one in _needed(pipeline, stage))]
    for stage in trainings if name is not None else offline:
        if name in (None, stage.name):
            return stage
    raise BadCallError(
        f"{name!r} is no training stage of {pipeline.name}; there are {', '.join(stage.name for stage in trainings) or 'none'}"
        if name is not None
        else f"{pipeline.name} has no training stage that does without the network"
    )


def _needed(pipeline: Pipeline, stage: StageConfig) -> list[StageConfig]:
    """The stages that `stage` needs, and what those need, in the pipeline's order."""
    names: set[str] = set()
    waiting = list(stage.needs)
    while waiting:
        names.add(name := waiting.pop())
        waiting += pipeline.stage(name).needs
    return [one for one in pipeline.stages if one.name in names]


def _refuse_network(needed: Sequence[StageConfig], stage: StageConfig) -> None:
    from daemon.cli import BadCallError

    for one in needed:
        if one.resource is Resource.NETWORK:
            raise BadCallError(f"{stage.name} needs {one.name}, and a drill cannot wait for the network; choose another --stage")

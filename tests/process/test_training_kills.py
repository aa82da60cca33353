"""Promise 4 on the real stages: Marian, Whisper LoRA and Gemma QLoRA, killed at random instants, end as if nothing had happened."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from safetensors.torch import load_file

from bible_data.build import Options, build
from bible_data.sample import ENGLISH, SPANISH, write_sample
from stages import tiny
from stages.data_order import Sizes, padding_share
from stages.ledger import Entry
from stages.marian_tokens import load_rows
from state.contract import BatchPlan, Result, Spec
from state.durable import tree_digest
from state.workspace import Workspace
from tests.process.forks import Forks, harry, result_of, told

CLIPS = Path(__file__).resolve().parents[2] / "pipelines" / "demo_audio"
COMMON = {
    "effective_batch": 8,
    "learning_rate": 2e-3,
    "bf16": False,
    "evaluations": 2,
    "checkpoint_every_steps": 3,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "train_marian": {"model": "models/marian-en-es", "max_examples": 96, "epochs": 2, "dev_examples": 8, "max_tokens": 64},
    "train_whisper": {
        "model": "models/whisper-tiny",
        "effective_batch": 4,
        "epochs": 4,
        "dev_examples": 2,
        "lora_dropout": 0.1,
        "replay_source": str(CLIPS / "replay"),
        "replay_share": 0.2,
    },
    "train_gemma": {
        "model": "models/gemma-tiny-a",
        "learning_rate": 2e-2,
        "max_examples": 96,
        "epochs": 2,
        "dev_examples": 6,
        "gate_examples": 4,
        "lora_dropout": 0.1,
        "max_tokens": 64,
    },
}
WITHOUT_DROPOUT: dict[str, dict[str, Any]] = {
    "train_whisper": {"lora_dropout": 0.0},
    "train_gemma": {"lora_dropout": 0.0, "learning_rate": 2e-3},
}
OUTPUTS = {"train_marian": "fine_tuned_marian_mi", "train_whisper": "fine_tuned_whisper_mi", "train_gemma": "fine_tuned_gemma_mi_A"}
PHASES = [("loading", 0.3), ("saving the checkpoint", 0.03), ("scoring the dev set", 0.1), ("writing the", 0.02)]
FEW = 5
"""Kills, in the quick tests."""
TIMES = {"seconds", "tokens_per_s"}


class Ran(NamedTuple):
    """An undisturbed run, and how long it took to its first step and in all."""

    spec: Spec
    lasts_s: tuple[float, float]


Undisturbed = Callable[..., Ran]
"""(stage, kills to compare it with, dropout): the run that nothing disturbed."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    names = [*SETTINGS, "training_adapter", "evaluate"]
    libraries = ["trl", "jiwer", "transformers.models.whisper.english_normalizer", "datasets"]
    with Forks(*(f"stages.{name}" for name in names), *libraries) as started:
        yield started


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with what the stages before leave: the sample's corpus, labelled chunks, and the demo's models."""
    folder = tmp_path_factory.mktemp("inputs")
    workspace = Workspace.at(folder / "workspace")
    build(write_sample(folder / "sample"), workspace.corpus, Options(ENGLISH, SPANISH, min_verses=1000))
    workspace.glossary_pairs.unlink()  # its 400 pairs would come on top of max_examples
    pairs = tiny.sample_pairs()
    for name, make in {
        "marian-en-es": lambda path: tiny.make_marian(path, pairs, pieces=400, d_model=64),
        "whisper-tiny": lambda path: tiny.make_whisper(path, [pair[0] for pair in pairs], d_model=32, layers=1),
        "gemma-tiny-a": lambda path: tiny.make_gemma(path, pairs, "a"),
    }.items():
        (workspace.models / name).mkdir(parents=True)
        make(workspace.models / name)
    listing = json.loads((CLIPS / "clips.json").read_text())["recordings"]
    clips = [(CLIPS / one["file"], one["text"][: 20 + 30 * number], Path(one["file"]).stem) for number, one in enumerate(listing)]
    workspace.cleaned_audio.mkdir(parents=True)
    workspace.transcripts.mkdir(parents=True)
    rows = []
    for copy in range(3):
        for path, text, source in clips:
            name = f"{source}-{copy}.flac"
            shutil.copy(path, workspace.cleaned_audio / name)
            rows.append({"file_name": name, "text": text[copy:], "source": source, "verdict": "kept"})
    (workspace.transcripts / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workspace.root


def prepared(inputs: Path, root: Path, stage: str, kills: int, *, dropout: bool = True) -> Spec:
    """A workspace of its own with the inputs, and the spec of the stage's first attempt; more work where there are more kills."""
    shutil.copytree(inputs, root, dirs_exist_ok=True)
    settings = COMMON | SETTINGS[stage]
    settings["epochs"] *= 4 if kills > FEW else 1
    if not dropout:
        config = root / "models" / "marian-en-es" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"dropout": 0.0}))
        settings |= WITHOUT_DROPOUT.get(stage, {})
    return Spec(run_id="r", stage=stage, module=f"stages.{stage}", attempt=1, workspace=str(root), settings=settings, seed=3)


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Each is made on first use."""

    @cache
    def run_whole(stage: str, kills: int, dropout: bool = True) -> Ran:
        spec = prepared(inputs, tmp_path_factory.mktemp("whole"), stage, kills, dropout=dropout)
        ended = forks.run(spec)
        assert ended.code == 0
        first_step_at = next(event["at"] for event in told(spec) if event["type"] == "metric")
        return Ran(spec, (ended.seconds - (result_of(spec).at - first_step_at), ended.seconds))

    return run_whole


def metrics(result: Result) -> dict[str, float]:
    """Without times."""
    return {name: value for name, value in result.metrics.items() if name not in TIMES}


def ledger(spec: Spec) -> bytes:
    return (Workspace.at(spec.workspace).scratch(spec.stage) / "ledger.jsonl").read_bytes()


def delivered(spec: Spec) -> str:
    """Digest of the delivered folder, as it is now; the receipt says the same."""
    digest, _size = tree_digest(Path(spec.workspace) / OUTPUTS[spec.stage])
    assert digest == result_of(spec).outputs[0].sha256
    return digest


def translations(forks: Forks, spec: Spec) -> tuple[bytes, dict[str, float]]:
    """What the delivered Marian makes of the test verses, and its scores."""
    rows = [{"name": "marian", "kind": "marian", "model": OUTPUTS["train_marian"]}]
    settings = {"label": "after", "comet_model": "", "min_references": 20, "max_references": 20, "num_beams": 2}
    settings |= {"max_new_tokens": 30, "models": rows}
    evaluation = msgspec.structs.replace(spec, stage="evaluate", module="stages.evaluate", settings=settings)
    assert forks.run(evaluation).code == 0
    path = Path(spec.workspace) / "metrics" / "translations" / "after" / "marian.jsonl"
    return path.read_bytes(), result_of(evaluation).metrics


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize(
    ("stage", "kills"),
    [("train_marian", 2), ("train_whisper", 1), ("train_gemma", 1), *(pytest.param(stage, 20, marks=SLOW) for stage in SETTINGS)],
)
def test_killed_training_delivers_the_same_bytes(
    stage: str, kills: int, inputs: Path, undisturbed: Undisturbed, forks: Forks, tmp_path: Path
) -> None:
    """SIGKILLs at random instants, and in load, save, evaluation and delivery: same weights, metrics and ledger, proved exact.

    And what the delivered Marian translates, and how that is scored, is the same too.
    """
    whole = undisturbed(stage, kills)
    spec = prepared(inputs, tmp_path, stage, kills)
    harry(
        forks,
        spec,
        random.Random(f"{stage} {kills}"),
        kills,
        whole.lasts_s,
        "examples",
        phases=PHASES if kills > FEW else PHASES[-kills:],
    )
    assert result_of(whole.spec).metrics["best_step"] > 0
    assert delivered(spec) == delivered(whole.spec)
    assert metrics(result_of(spec)) == metrics(result_of(whole.spec))
    assert ledger(spec) == ledger(whole.spec)
    assert result_of(spec).metrics["ledger_exact"] == 1.0
    if stage == "train_marian":
        assert translations(forks, spec) == translations(forks, whole.spec)


@pytest.mark.parametrize(("stage", "kills"), [("train_marian", 2), *(pytest.param(stage, 20, marks=SLOW) for stage in SETTINGS)])
def test_other_micro_batches_between_kills_change_no_example(
    stage: str, kills: int, inputs: Path, undisturbed: Undisturbed, forks: Forks, tmp_path: Path
) -> None:
    """Later attempts cut the batch smaller and smaller: the ledger stays to the byte, the weights but for rounding (no dropout)."""
    whole = undisturbed(stage, kills, dropout=False)
    spec = prepared(inputs, tmp_path, stage, kills, dropout=False)

    def vary(number: int) -> dict[str, Any]:
        return {"batch": BatchPlan(micro_batch=(8, 4, 3, 2, 1)[min(4, number * 5 // (kills + 3))])}

    harry(forks, spec, random.Random(f"{stage} {kills}"), kills, whole.lasts_s, "examples", phases=PHASES[-1:], vary=vary)
    assert ledger(spec) == ledger(whole.spec)
    assert result_of(spec).metrics["ledger_exact"] == 1.0
    assert result_of(whole.spec).metrics["best_step"] > 0
    assert result_of(spec).metrics["best_step"] == result_of(whole.spec).metrics["best_step"]
    assert distance(spec, whole.spec) < 2e-5


def distance(one: Spec, other: Spec) -> float:
    """The largest difference between two delivered weights.

    Biases of keys are left out: softmax does not see them, so their gradient is nothing but rounding, which Adam makes steps of.
    """
    sides = [load_file(next((Path(spec.workspace) / OUTPUTS[spec.stage]).glob("*.safetensors"))) for spec in (one, other)]
    return max(float((sides[0][n] - sides[1][n]).abs().max()) for n in sides[0] if not n.endswith("k_proj.bias"))


def test_batches_hold_examples_of_like_length(undisturbed: Undisturbed) -> None:
    """The order that all this is proved for is the bucketed one: less than half of the padding that a random order has."""
    spec = undisturbed("train_marian", 2).spec
    (folder,) = Workspace.at(spec.workspace).scratch(spec.stage).glob("rows-*")
    entries = [msgspec.json.decode(line, type=Entry) for line in ledger(spec).splitlines()]
    used = sorted({index for entry in entries for index in entry.examples})
    lengths = [(one.length, one.target_length) for one in load_rows(folder).examples()]
    sizes: Sizes = np.array(lengths, dtype=np.int64)
    shuffled = np.random.default_rng(1).permutation(used).tolist()
    by_chance = [shuffled[start : start + 8] for start in range(0, len(shuffled), 8)]
    assert padding_share([entry.examples for entry in entries], sizes) < 0.5 * padding_share(by_chance, sizes)

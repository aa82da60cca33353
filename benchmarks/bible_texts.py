"""What the corpus and MarianMT benchmarks work on: the real texts if they lie beside the repository, else the sample that ships."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.real_marian import ROOT, unpack
from bible_data.build import TEST, TRAIN, Options, build
from bible_data.sample import ENGLISH, SPANISH, write_sample
from stages.runtime import StageContext
from stages.tiny import make_marian
from stages.verse_pairs import TrainingPair
from state.contract import Spec
from state.workspace import Workspace

REAL = ROOT.parent / "shared" / "data" / "bible_databases"


def texts(folder: Path, *, quick: bool) -> tuple[Path, Options, str]:
    """(source folder, its options, what they are called in the result)."""
    if quick or not REAL.is_dir():
        return write_sample(folder / "sample"), Options(ENGLISH, SPANISH, min_verses=1000), "the sample"
    unpack(REAL, folder / "texts")
    return folder / "texts", Options(), "the seven real texts"


def pairs(folder: Path, *, quick: bool) -> tuple[list[TrainingPair], str]:
    """Every line of the corpus built from `texts`, and what they are called."""
    source, options, name = texts(folder, quick=quick)
    build(source, folder / "corpus", options)
    lines = [json.loads(line) for part in (TRAIN, TEST) for line in (folder / "corpus" / part).read_bytes().splitlines()]
    return [TrainingPair(str(number), line["en"], line["es"], None) for number, line in enumerate(lines)], name


def marian(folder: Path, verses: list[TrainingPair], *, pieces: int) -> Path:
    """A small untrained Marian whose vocabulary is learned from some of the verses."""
    target = folder / "marian"
    target.mkdir()
    make_marian(target, [(one.en, one.es) for one in verses[:: max(1, len(verses) // 20_000)]], pieces=pieces)
    return target


def context(folder: Path) -> StageContext:
    """A stage's context in a workspace below `folder`."""
    workspace = Workspace.at(folder / "run")
    attempt = workspace.attempt("train_marian", 1)
    attempt.root.mkdir(parents=True)
    spec = Spec(
        run_id="r",
        stage="train_marian",
        module="stages.train_marian",
        attempt=1,
        workspace=str(workspace.root),
        settings={},
    )
    return StageContext(spec, attempt)

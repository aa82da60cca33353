"""The corpus stage: from its settings to delivered files, and from a bad input to the exit code that says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bible_data.build import Options
from bible_data.manifest import read_manifest
from bible_data.sample import ENGLISH, SPANISH, write_sample
from stages import corpus
from stages.runtime import StageContext
from state.contract import ExitCode, ExitRecord, MisconfiguredError, Progress, Result, StopRequested
from state.durable import tree_digest
from state.settings import Corpus
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import events

ROOT = Path(__file__).parents[3]


def context(root: Path, settings: dict[str, Any], number: int = 1) -> StageContext:
    return stage_attempts.context(root, "corpus", number, settings=settings)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """A finished attempt on the sample."""
    ctx = context(tmp_path_factory.mktemp("run"), {"source": "sample", "min_verses": 1000})
    corpus.main(ctx)
    return ctx


def test_the_files_stand_where_the_other_stages_look(done: StageContext) -> None:
    """The workspace's own names; a second attempt writes the same bytes."""
    workspace = done.workspace
    assert all(path.stat().st_size for path in (workspace.train_pairs, workspace.test_pairs, workspace.glossary_pairs))
    before = tree_digest(workspace.corpus)
    delivery = corpus.main(context(workspace.root, done.spec.settings, 2))
    assert tree_digest(workspace.corpus) == before
    assert [path.relative_to(workspace.corpus).as_posix() for path in delivery.outputs] == [
        "aligned/verse_pairs_train.jsonl",
        "holdout/verse_pairs_test.jsonl",
        "glossary/glossary_pairs.jsonl",
        "manifest.json",
    ]
    manifest = read_manifest(workspace.corpus / "manifest.json")
    assert delivery.metrics["train_pairs"] == manifest.pairs.train
    assert f"{manifest.pairs.train:,} pairs to train" in delivery.summary


def test_progress_reaches_its_end(done: StageContext) -> None:
    """Each step is an event that announces how long it may be silent; the last one says that all is done."""
    progress = [event for event in events(done) if isinstance(event, Progress)]
    assert len(progress) > 10
    assert all(event.quiet_s for event in progress[:-1])
    assert progress[-1].done == progress[-1].total


def test_texts_that_are_not_named_are_the_usual_ones() -> None:
    """The sample's four for the sample, the project's seven for anything else; named texts are taken as named."""
    assert corpus.options_of(Corpus(source="sample")) == Options(english=ENGLISH, spanish=SPANISH)
    assert corpus.options_of(Corpus(source="/bibles")) == Options()
    named = corpus.options_of(Corpus(source="sample", english=("SampleB",), spanish=("MuestraA",), min_verses=7, test_share=0.2))
    assert named == Options(english=("SampleB",), spanish=("MuestraA",), min_verses=7, test_share=0.2)


def test_a_source_inside_the_workspace(tmp_path: Path) -> None:
    """A relative source counts from the workspace."""
    write_sample(tmp_path / "texts")
    settings = {"source": "texts", "english": ["SampleA"], "spanish": ["MuestraA"], "min_verses": 1000}
    corpus.main(context(tmp_path, settings))
    assert Workspace.at(tmp_path).train_pairs.exists()


def empty(folder: Path) -> None:
    (folder / "formats" / "csv" / "MuestraB.csv").write_bytes(b"")


def pointer(folder: Path) -> None:
    (folder / "formats" / "sqlite" / "SampleA.db").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )


def unfree(folder: Path) -> None:
    (folder / "sources" / "en" / "SampleA" / "README.md").write_text("# SampleA\n\n**License:** All rights reserved\n")


@pytest.mark.parametrize(("damage", "said"), [(empty, "0 bytes"), (pointer, "git lfs pull"), (unfree, "All rights reserved")])
def test_a_bad_text_is_misconfigured(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    """What no retry can mend ends as such, in one sentence."""
    damage(write_sample(tmp_path / "texts"))
    settings = {"source": "texts", "english": list(ENGLISH), "spanish": list(SPANISH), "min_verses": 1000}
    with pytest.raises(MisconfiguredError, match=said):
        corpus.main(context(tmp_path, settings))


def test_a_stop_is_obeyed(tmp_path: Path) -> None:
    """Between two steps, with nothing delivered."""
    ctx = context(tmp_path, {"source": "sample", "min_verses": 1000})
    ctx.request_stop()
    with pytest.raises(StopRequested):
        corpus.main(ctx)
    assert not ctx.workspace.corpus.exists()


@pytest.mark.parametrize(("source", "code"), [("sample", ExitCode.SUCCEEDED), ("nowhere", ExitCode.MISCONFIGURED)])
def test_as_a_process(tmp_path: Path, source: str, code: ExitCode) -> None:
    """`python -m stages.corpus ATTEMPT` leaves with the code, exit.json says the same, and success has its receipt."""
    ctx = context(tmp_path, {"source": source, "min_verses": 1000})
    ctx.attempt.spec.write_bytes(msgspec.json.encode(ctx.spec))
    command = [sys.executable, "-m", "stages.corpus", str(ctx.attempt.root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == code, done.stderr
    assert msgspec.json.decode(ctx.attempt.exit.read_bytes(), type=ExitRecord).code == code
    receipt = Workspace.at(tmp_path).result("corpus")
    assert receipt.exists() == (code == ExitCode.SUCCEEDED)
    if receipt.exists():
        assert len(msgspec.json.decode(receipt.read_bytes(), type=Result).outputs) == 4
        assert "after the versification map" in done.stdout

"""What is rehearsed, and what the rehearsal's folder is lent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from daemon import config, locks
from daemon.before_leaving.rehearse_plan import MODULE, chosen, clear, cut_down, few_recordings, lend, plan, tidy
from daemon.cli import BadCallError
from daemon.supervisor import WorkspaceBusyError
from state.pipeline import Pipeline, StageConfig
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parents[4]


def pipeline(name: str = "seattle") -> Pipeline:
    return config.load(ROOT / "pipelines" / f"{name}.toml", ["download.url=http://127.0.0.1:1/", "corpus.source=texts"])


def test_the_owner_s_settings_stay_but_for_the_number_of_items() -> None:
    """Only settings that are listed change, and only downwards; the module that does the work is named beside."""
    owner = pipeline()
    few = cut_down(replace(owner, deadline="Tue 08:00"), chosen(owner, ()))
    assert few.deadline is None, "the rehearsal's bonus may not be left out for want of time"
    for stage, real in zip(few.stages, owner.stages, strict=True):
        changed = {key: value for key, value in stage.settings.items() if real.settings.get(key) != value}
        assert changed == {"download": {"newest": 3}}.get(real.name, {"gate_examples": 16} if "gemma" in real.name else {}), (
            real.name
        )
        assert (stage.module, stage.seed, stage.resource) == (MODULE, real.seed, real.resource)
        assert plan(owner).modules[stage.name] == real.module
    assert plan(owner).bases["train_marian"] == "Helsinki-NLP/opus-mt-en-es"
    small = StageConfig(name="download", module="stages.download", settings={"url": "x", "newest": 2})
    assert cut_down(replace(owner, stages=(small,)), frozenset({"download"})).stages[0].settings["newest"] == 2


def test_a_need_is_an_order_and_no_more() -> None:
    """A stage whose need fails is tried all the same: the workspace may have what it needs."""
    owner = pipeline()
    few = cut_down(owner, chosen(owner, ()))
    assert all(stage.needs == () for stage in few.stages)
    assert set(few.stage("train_whisper").after) == {"transcribe", "evaluate_before"}


def test_one_stage_brings_what_it_needs() -> None:
    """Named stages and their needs are rehearsed, nothing else; an unknown name is refused with those that there are."""
    owner = pipeline()
    names = chosen(owner, ["train_gemma_12b"])
    assert names == {"train_gemma_12b", "corpus"}
    assert [(stage.name, stage.after) for stage in cut_down(owner, names).stages] == [
        ("corpus", ()),
        ("train_gemma_12b", ("corpus",)),
    ]
    with pytest.raises(BadCallError, match="no stage is called 'train_13b'; there are download, preprocess"):
        chosen(owner, ["train_13b"])


def test_a_module_of_the_owner_s_own_is_cut_only_if_it_trains() -> None:
    """What Vigil does not know runs as it is."""
    own = StageConfig(name="make_model", module="benchmarks.small_marian", settings={"pieces": 600})
    trainer = StageConfig(name="train", module="mine.train", settings={"epochs": 2, "model": "m"})
    whole = replace(pipeline(), stages=(own, trainer))
    assert [stage.module for stage in cut_down(whole, frozenset({"make_model", "train"})).stages] == [own.module, MODULE]
    assert plan(whole).modules == {"train": "mine.train"}


def digests(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def furnished(tmp_path: Path) -> Workspace:
    """A workspace with models, sources and five recordings."""
    for name, size in (("001_a", 10), ("002_b", 20), ("003_c", 30), ("004_[d]", 90), ("005_e", 40)):
        path = tmp_path / "stark_data" / "raw" / f"{name}.m4a"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        path.with_suffix(".info.json").write_text("{}")
    for name in ("models/tiny/weights", "models/other/weights", "texts/KJV.csv", "fine_tuned_marian_mi/weights"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(name)
    return Workspace(tmp_path)


def test_what_is_there_is_lent_and_stays_as_it_is(furnished: Workspace) -> None:
    """Models and sources that settings name, and three recordings with what lies beside them; never what a run delivers."""
    before = digests(furnished.root)
    made = {"name": "m", "kind": "marian", "model": "fine_tuned_marian_mi", "trained_by": "train_marian"}
    one = StageConfig(
        name="one", module="m.one", settings={"model": "models/tiny", "source": "texts", "models": [made], "x": "../a"}
    )
    rehearsal = Workspace(furnished.rehearsal / "run")
    clear(rehearsal)
    assert lend(furnished, rehearsal, replace(pipeline(), stages=(one,))) == 3
    lent = sorted(str(path.relative_to(rehearsal.root)) for path in rehearsal.root.rglob("*") if path.is_file())
    stems = ("001_a", "002_b", "004_[d]")
    beside = (f"stark_data/raw/{stem}.{end}" for stem in stems for end in ("info.json", "m4a"))
    assert lent == sorted(["models/tiny/weights", "texts/KJV.csv", *beside])
    (rehearsal.root / "models" / "tiny" / "weights").unlink()
    tidy(rehearsal)
    clear(rehearsal)
    assert digests(furnished.root) == before


def test_the_longest_recording_is_among_the_few(furnished: Workspace) -> None:
    """The two newest and the longest; of fewer, all; of none, none."""
    assert [path.stem for path in few_recordings(furnished.raw_audio)] == ["001_a", "002_b", "004_[d]"]
    for path in list(furnished.raw_audio.glob("00[1235]*")):
        path.unlink()
    assert [path.stem for path in few_recordings(furnished.raw_audio)] == ["004_[d]"]
    assert few_recordings(furnished.root / "nowhere") == []


def test_a_rehearsal_at_work_is_not_swept_away(tmp_path: Path) -> None:
    """Its lock is looked at before anything is removed."""
    rehearsal = Workspace(tmp_path / "run")
    clear(rehearsal)
    (rehearsal.root / "kept").touch()
    held = locks.take(rehearsal.lock)
    try:
        with pytest.raises(WorkspaceBusyError, match="a rehearsal is at work"):
            clear(rehearsal)
    finally:
        os.close(held)
    assert (rehearsal.root / "kept").exists()
    clear(rehearsal)
    assert list(rehearsal.root.iterdir()) == []


def test_what_a_killed_rehearsal_left_at_work_is_ended(tmp_path: Path) -> None:
    """An attempt outlives its daemon; the next rehearsal ends it before it takes the folder away."""
    rehearsal = Workspace(tmp_path / "run")
    lock = rehearsal.attempt("train", 1).lock
    lock.parent.mkdir(parents=True)
    program = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-I", "-c", program, str(lock)], stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout is not None
        assert left.stdout.readline() == "held\n"
        clear(rehearsal)
        assert left.wait(10) == -9
    assert list(rehearsal.root.iterdir()) == []


def test_the_disk_gets_back_what_the_rehearsal_made(tmp_path: Path) -> None:
    """Checkpoints, scratch and outputs go; the state, the journal, the logs and what the attempts said stay."""
    for name in (
        *("state.json", "journal.jsonl", "logs/a.log", "stages/a/attempts/001/events.jsonl", "stages/a/checkpoints/step-1/w"),
        *("stages/a/work/x", "stages/a/result.json", "fine_tuned_marian_mi/w", "models/m/w", "stark_data/raw/r"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    tidy(Workspace(tmp_path))
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["journal.jsonl", "logs/a.log", "stages/a/attempts/001/events.jsonl", "stages/a/result.json", "state.json"]

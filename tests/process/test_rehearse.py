"""`vigil rehearse` by the real command: real daemon, real training, a real kill, real want of memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import config, locks
from state.contract import Outcome
from state.forecast import digest_of, estimates
from state.snapshot import StageState
from state.store import Store, read_journal
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent

SMALL = """
name = "Small"
keep_free_gb = 0.0
keep_free_windows_gb = 0.0

[[stage]]
name = "download"
module = "stages.download"
resource = "network"
[stage.settings]
url = "http://127.0.0.1:1/feed.xml"
tries = 1

[[stage]]
name = "preprocess"
module = "stages.preprocess"
needs = ["download"]

[[stage]]
name = "train_tiny"
module = "tests.process.tiny_training"
resource = "gpu"
[stage.settings]
model = "models/tiny"
examples = 400
epochs = 20
effective_batch = 8

[[stage]]
name = "train_huge"
module = "tests.process.greedy_training"
resource = "gpu"
optional = true
[stage.settings]
model = "models/tiny"
epochs = 2
effective_batch = 4
gradient_checkpointing = true
paged_optimizer = true
breadth = 2000000
"""
MARIAN = """
name = "Marian"
keep_free_gb = 0.0
keep_free_windows_gb = 0.0

[[stage]]
name = "corpus"
module = "stages.corpus"
[stage.settings]
source = "sample"
min_verses = 2000

[[stage]]
name = "make_model"
module = "benchmarks.small_marian"
needs = ["corpus"]
[stage.settings]
name = "marian-small"
pieces = 600
d_model = 64

[[stage]]
name = "train_marian"
module = "stages.train_marian"
needs = ["make_model"]
resource = "gpu"
[stage.settings]
model = "models/marian-small"
max_examples = 3000
epochs = 6
effective_batch = 16
learning_rate = 2e-3
bf16 = false
dev_examples = 64
evaluations = 6

[[stage]]
name = "evaluate"
module = "stages.evaluate"
needs = ["corpus"]
after = ["train_marian"]
resource = "gpu"
[stage.settings]
label = "after"
comet_model = ""
min_references = 20
batch_size = 8
num_beams = 2
max_new_tokens = 40
models = [{ name = "Marian", kind = "marian", model = "fine_tuned_marian_mi", trained_by = "train_marian" }]
"""


def vigil(*arguments: str, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    """The command line, on the CPU."""
    command = [sys.executable, "-P", "-m", "daemon.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1", "XDG_STATE_HOME": os.devnull + "/none"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds, check=False)


def rehearse(folder: Path, text: str, *more: str, seconds: float = 280) -> tuple[int, dict[str, Any]]:
    """Exit code and answer of a rehearsal of the pipeline `text` in `folder`/run."""
    (folder / "small.toml").write_text(text)
    command = ("rehearse", str(folder / "small.toml"), "--workspace", str(folder / "run"), "--json", *more)
    done = vigil(*command, seconds=seconds)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, dict[str, Any], dict[str, Any]]:
    """One rehearsal of SMALL in a workspace with an earlier run's files: (folder, exit code, answer, the files before)."""
    folder = tmp_path_factory.mktemp("rehearsal")
    for name in (
        "models/tiny/weights",
        "fine_tuned_tiny/weights.safetensors",
        "stages/train_tiny/result.json",
        "metrics/before.json",
    ):
        (folder / "run" / name).parent.mkdir(parents=True)
        (folder / "run" / name).write_text(name)
    before = everything(folder / "run")
    return folder, *rehearse(folder, SMALL), before


def stage_of(answer: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(stage for stage in answer["stages"] if stage["stage"] == name)
    return found


def test_a_stage_is_killed_and_resumes(small: tuple[Path, int, dict[str, Any], dict[str, Any]]) -> None:
    """The state shows the attempt that SIGKILL ended and the one that went on from its checkpoint; so does the answer."""
    folder, _code, answer, _before = small
    run = Store(folder / "run" / "rehearsal" / "run" / "state.json").peek()
    attempts = run.stage("train_tiny").attempts
    assert attempts[0].outcome in (Outcome.CRASHED, Outcome.OUT_OF_MEMORY), "the latter where the kernel ended somebody else then"
    assert [one.outcome for one in attempts[1:]] == [Outcome.SUCCEEDED]
    facts = read_journal(folder / "run" / "rehearsal" / "run" / "journal.jsonl")
    assert [fact.attempt for fact in facts if "killed here by SIGKILL" in fact.text] == [1]
    told = stage_of(answer, "train_tiny")
    assert (told["state"], told["resumed"], told["measured"]["resumed_step"]) == ("rehearsed", True, 3)
    assert (told["measured"]["cut"]["here"], told["measured"]["cut"]["whole"]) == (6, 1000)
    assert told["measured"]["memory_bytes"] > 100e6
    assert 0 < told["measured"]["pause_s"] < told["measured"]["save_s"], "the real run's saves are written beside the training"


def test_the_estimate_is_kept_for_the_owner_s_own_stage(small: tuple[Path, int, dict[str, Any], dict[str, Any]]) -> None:
    """It stands in the plan under the digest of the stage as the real run will have it, and only for stages that held."""
    folder, _code, _answer, _before = small
    kept = estimates(Workspace(folder / "run"))
    owner = config.load(folder / "small.toml").stage("train_tiny")
    assert set(kept) == {"train_tiny"}
    assert (kept["train_tiny"].digest, kept["train_tiny"].source) == (digest_of(owner), "rehearsal")
    assert kept["train_tiny"].seconds > kept["train_tiny"].fixed_s > 0


def test_what_fails_is_told_and_stops_nobody_else(small: tuple[Path, int, dict[str, Any], dict[str, Any]]) -> None:
    """No network is red, what needs it was not rehearsed, and a bonus that does not fit into memory is a warning."""
    _folder, code, answer, _before = small
    assert (code, answer["good"], answer["verdict"]) == (1, False, "Not ready: 1 thing to mend.")
    assert stage_of(answer, "download")["outcome"] == "TRANSIENT"
    assert (stage_of(answer, "preprocess")["state"], stage_of(answer, "preprocess")["reason"]) == (
        "not rehearsed",
        "needs download",
    )
    huge = stage_of(answer, "train_huge")
    assert (huge["state"], huge["outcome"]) == ("failed", "OUT_OF_MEMORY")
    assert "one example alone does not fit" in huge["reason"]
    assert [advice["level"] for advice in answer["advice"]] == ["red", "yellow"]
    assert any("--stage train_huge" in command for command in answer["advice"][1]["commands"])
    assert Path(answer["page"]).read_text().count("train_tiny") >= 1


def test_the_workspace_stays_as_it_was(small: tuple[Path, int, dict[str, Any], dict[str, Any]]) -> None:
    """Byte for byte: beside the plan's estimates and the rehearsal's own folder nothing is written, and no process is left."""
    folder, _code, _answer, before = small
    after = {
        name: value for name, value in everything(folder / "run").items() if not name.startswith(("rehearsal/", "plan/estimates"))
    }
    assert after == before
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not any(str(folder).encode() in command for command in commands)


def test_a_run_at_work_is_not_disturbed(tmp_path: Path) -> None:
    """While a daemon holds the workspace the rehearsal is refused, with the next step."""
    (tmp_path / "small.toml").write_text(SMALL)
    held = locks.take(Workspace(tmp_path / "run").lock)
    try:
        done = vigil("rehearse", str(tmp_path / "small.toml"), "--workspace", str(tmp_path / "run"))
    finally:
        os.close(held)
    assert done.returncode == 2
    assert "a run is at work" in done.stderr
    assert "vigil stop" in done.stderr


PROBES = """
name = "Probes"
keep_free_gb = 0.0
keep_free_windows_gb = 0.0

[[stage]]
name = "first"
module = "tests.process.probe"

[[stage]]
name = "second"
module = "tests.process.probe"
"""


def test_one_stage_alone(tmp_path: Path) -> None:
    """`--stage` rehearses that stage, says so, and fits a terminal of 80 columns; a module of one's own runs as it is."""
    (tmp_path / "probes.toml").write_text(PROBES)
    done = vigil("rehearse", str(tmp_path / "probes.toml"), "--workspace", str(tmp_path / "run"), "--stage", "second")
    assert done.returncode == 0, done.stderr
    _live, verdict, table = done.stdout.partition("\nReady, as far as it was rehearsed.\n")
    assert verdict
    assert [line.split("  ")[0] for line in table.splitlines() if line.startswith(("first", "second"))] == ["first", "second"]
    assert "not asked for" in table
    assert max(map(len, table[: table.index("The page:")].splitlines())) <= 80
    assert set(estimates(Workspace(tmp_path / "run"))) == {"second"}


def test_ctrl_c_ends_it(tmp_path: Path) -> None:
    """SIGINT in the middle of a stage: the stage leaves, code 83, nothing is claimed and nothing kept."""
    (tmp_path / "slow.toml").write_text(f"{PROBES}[stage.settings]\nsteps = 5000\n")
    command = ("rehearse", str(tmp_path / "slow.toml"), "--workspace", str(tmp_path / "run"), "--json")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "daemon.cli", *command], env=environment, stderr=subprocess.PIPE, text=True
    )
    events = Workspace(tmp_path / "run" / "rehearsal" / "run").attempt("second", 1).events
    deadline = time.monotonic() + 60
    while not events.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _out, said = process.communicate(timeout=60)
    assert process.returncode == 83, said
    assert "interrupted" in said
    assert not Workspace(tmp_path / "run").estimates.exists()
    assert not locks.held(Workspace(tmp_path / "run" / "rehearsal" / "run").attempt("second", 1).lock)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_real_run_takes_about_as_long(tmp_path: Path) -> None:
    """Every stage of a real pipeline that takes some seconds lasts between half and twice of what its rehearsal foresaw."""
    code, answer = rehearse(tmp_path, MARIAN, seconds=600)
    assert (code, answer["verdict"]) == (0, "Ready to leave."), answer["advice"]
    assert all(stage["resumed"] is not False for stage in answer["stages"])
    done = vigil("run", str(tmp_path / "small.toml"), "--workspace", str(tmp_path / "run"), seconds=900)
    assert done.returncode == 0, done.stderr
    run = Store(tmp_path / "run" / "state.json").peek()
    kept = estimates(Workspace(tmp_path / "run"))
    ratios = {stage.name: round(kept[stage.name].seconds / lasted(stage), 2) for stage in run.stages}
    print({name: (kept[name].detail, ratio) for name, ratio in ratios.items()})
    assert all(0.5 < ratio < 2 for name, ratio in ratios.items() if lasted(run.stage(name)) > 5), ratios


def lasted(stage: StageState) -> float:
    return sum((one.ended_at or one.started_at) - one.started_at for one in stage.attempts)

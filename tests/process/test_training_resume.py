"""Promise 4: a training killed at random instants ends bit by bit as one that nothing disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from state.contract import Event, ExitCode, ExitRecord, Metric, Progress, Result, Spec
from state.durable import tree_digest
from state.workspace import Attempt, Workspace
from tests.process.forks import KILLED, Forks, attempt_of

STAGE = "train_tiny"
SETTINGS = {
    "model": "tiny",
    "epochs": 24,
    "effective_batch": 8,
    "learning_rate": 1e-2,
    "checkpoint_every_steps": 8,
    "evaluations": 8,
}


def spec(workspace: Workspace, number: int) -> Spec:
    """What an attempt is told."""
    return Spec(
        run_id="r",
        stage=STAGE,
        module="tests.process.tiny_training",
        attempt=number,
        workspace=str(workspace.root),
        settings=SETTINGS,
        seed=3,
    )


def attempt(workspace: Workspace, number: int) -> Attempt:
    """The folder of an attempt, its spec written as the daemon writes it."""
    folder = attempt_of(spec(workspace, number))
    folder.root.mkdir(parents=True)
    folder.spec.write_bytes(msgspec.json.encode(spec(workspace, number)))
    return folder


def outcome(workspace: Workspace) -> tuple[dict[str, float], str, bytes]:
    """Metrics without times, digest of the delivered weights, the ledger's bytes."""
    result = msgspec.json.decode(workspace.result(STAGE).read_bytes(), type=Result)
    metrics = {name: value for name, value in result.metrics.items() if name not in ("seconds", "tokens_per_s")}
    assert tree_digest(workspace.root / "fine_tuned_tiny")[0] == result.outputs[0].sha256
    return metrics, result.outputs[0].sha256, (workspace.scratch(STAGE) / "ledger.jsonl").read_bytes()


def steps_kept(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.checkpoints(STAGE).glob("step-*"))


def lasted_s(workspace: Workspace) -> float:
    """Seconds from the first attempt's first event to its end."""
    folder = workspace.attempt(STAGE, 1)
    first = msgspec.json.decode(folder.events.read_bytes().splitlines()[0])["at"]
    return float(msgspec.json.decode(folder.exit.read_bytes(), type=ExitRecord).at - first)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("tests.process.tiny_training", "transformers", "stages.training_adapter") as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Workspace:
    """The workspace of a training that nothing disturbed."""
    workspace = Workspace.at(tmp_path_factory.mktemp("whole"))
    forks.run(spec(workspace, 1))
    return workspace


@pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_training_equals_an_undisturbed_one(tmp_path: Path, forks: Forks, undisturbed: Workspace, kills: int) -> None:
    """SIGKILL at random instants, each followed by a fresh attempt: same weights, same scores, same ledger, all proved."""
    cut = Workspace.at(tmp_path)
    draw = random.Random(kills)
    latest_s = lasted_s(undisturbed) * min(0.5, 2.5 / kills)
    codes = [forks.run(spec(cut, number), draw.uniform(0.02, latest_s)).code for number in range(1, kills + 1)]
    assert codes.count(KILLED) >= kills // 2
    assert forks.run(spec(cut, kills + 1)).code == 0
    assert outcome(cut) == outcome(undisturbed)
    assert outcome(cut)[0]["ledger_exact"] == 1.0


def test_sigterm_checkpoints_and_leaves(tmp_path: Path, undisturbed: Workspace) -> None:
    """SIGTERM ends a training as STOPPED with a checkpoint of the very step; the next attempt goes on to the same end."""
    cut = Workspace.at(tmp_path)
    folder = attempt(cut, 1)
    command = [sys.executable, "-m", "tests.process.tiny_training", str(folder.root)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not steps_kept(cut):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == ExitCode.STOPPED
    told = [msgspec.json.decode(line, type=Event) for line in folder.events.read_bytes().splitlines()]
    last_step = max(event.step or 0 for event in told if isinstance(event, Progress | Metric))
    assert steps_kept(cut)[-1] == f"step-{last_step:08d}"
    command[-1] = str(attempt(cut, 2).root)
    assert subprocess.run(command, stdout=subprocess.DEVNULL, timeout=120).returncode == 0
    assert outcome(cut) == outcome(undisturbed)

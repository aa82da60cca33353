"""The demo as a person starts it, shortened; and killed in its middle."""

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

from daemon import locks
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
SHORT = (
    "train_whisper.epochs=1",
    "train_marian.epochs=1",
    "train_marian.max_examples=256",
    "train_gemma_4b.epochs=1",
    "train_gemma_4b.max_examples=48",
    "train_gemma_12b.epochs=1",
    "train_gemma_12b.max_examples=32",
    *(f"{stage}.max_references=20" for stage in ("evaluate_before", "evaluate_after", "evaluate_12b")),
    *(f"{stage}.max_new_tokens=12" for stage in ("evaluate_before", "evaluate_after", "evaluate_12b")),
    *(f"{stage}.comet_model=" for stage in ("evaluate_before", "evaluate_after", "evaluate_12b")),
)
KILL_AFTER = "evaluate_before"
TRAINED = ("fine_tuned_whisper_mi", "fine_tuned_marian_mi", "fine_tuned_gemma_mi_A", "fine_tuned_gemma_mi_B")


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The demo without COMET, whose environment the machine may lack."""
    stand_in = Path(sys.executable)  # any interpreter: COMET itself is switched off above
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VIGIL_COMET_PYTHON": str(stand_in)}
    command = [sys.executable, "-P", "-m", "daemon.cli", "demo", "--workspace", str(folder)]
    command += [part for override in SHORT for part in ("--set", override)]
    with open(folder.with_suffix(".txt"), "ab") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)


def status(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "daemon.cli", "status", "--json", "--workspace", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return json.loads(done.stdout) if done.returncode == 0 else {"stages": []}


@pytest.mark.timeout(900)  # makes its models, then starts some twenty processes that import torch
def test_the_demo_is_killed_and_finishes(tmp_path: Path) -> None:
    """SIGKILL of everything in mid-stage; the same command then ends with 0, eleven stages SUCCEEDED, scores and page written."""
    folder = tmp_path / "demo"
    demo = start(folder)
    deadline = time.monotonic() + 300
    while not any(stage["name"] == KILL_AFTER and stage["status"] == "RUNNING" for stage in status(folder)["stages"]):
        assert demo.poll() is None, folder.with_suffix(".txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.5)
    os.killpg(demo.pid, signal.SIGKILL)
    demo.wait()
    for lock in folder.glob("stages/*/attempts/*/attempt.lock"):
        for pid in locks.holders(lock):
            os.kill(pid, signal.SIGKILL)

    assert start(folder).wait(timeout=600) == 0, folder.with_suffix(".txt").read_text()
    found = status(folder)
    assert [stage["status"] for stage in found["stages"]] == ["SUCCEEDED"] * 11
    assert {stage["name"]: stage["attempts"] for stage in found["stages"]}[KILL_AFTER] == 2
    workspace = Workspace.at(folder)
    labels = json.loads(workspace.eval_results.read_text())["labels"]
    assert {name: set(label["models"]) for name, label in labels.items()} == {
        "before": {"MarianMT", "TranslateGemma-4B", "TranslateGemma-12B"},
        "after": {"MarianMT", "TranslateGemma-4B"},
        "after_12b": {"TranslateGemma-12B"},
    }
    assert all((folder / name).is_dir() for name in TRAINED)
    assert "MarianMT" in (workspace.report / "index.html").read_text()
    assert "ALL STAGES COMPLETE" in workspace.progress_log.read_text()

"""Rule of the evaluation as a process: a SIGKILL at any moment costs the batch in flight, and the next attempt ends the same."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stages.tiny import make_marian
from state.contract import ExitCode, ExitRecord, Result, Spec
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def lines() -> list[dict[str, Any]]:
    """Forty verses in one edition a language; written by this function."""
    animals = (("lamb", "cordero"), ("ox", "buey"), ("dove", "paloma"), ("camel", "camello"))
    return [
        {
            "en": f"Lo, the {en} drank at well {n}.",
            "es": f"Bebió {es} en el pozo {n}.",
            "book": "Tales",
            "chapter": 1,
            "verse": n,
            "genre": "gospels" if n % 2 else "poetry",
            "en_source": "E1",
            "es_source": "S1",
        }
        for n in range(1, 41)
        for en, es in [animals[n % 4]]
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    make_marian(folder, [(line["en"], line["es"]) for line in lines()], pieces=90, d_model=32, layers=1)
    return folder


def start(workspace: Workspace, number: int) -> subprocess.Popen[bytes]:
    settings = {
        "label": "before",
        "comet_model": "",
        "min_references": 20,
        "batch_size": 2,
        "num_beams": 2,
        "max_new_tokens": 20,
        "models": [{"name": "marian", "kind": "marian", "model": "models/tiny"}],
    }
    attempt = workspace.attempt("evaluate_before", number)
    attempt.root.mkdir(parents=True)
    root = str(workspace.root)
    spec = Spec(run_id="r", stage="evaluate_before", module="stages.evaluate", attempt=number, workspace=root, settings=settings)
    attempt.spec.write_bytes(msgspec.json.encode(spec))
    with open(attempt.output, "wb") as output:
        command = [sys.executable, "-P", "-m", "stages.evaluate", str(attempt.root)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=workspace.root, env=environment, stdout=output, stderr=subprocess.STDOUT)


def prepared(folder: Path, model: Path) -> Workspace:
    workspace = Workspace.at(folder)
    shutil.copytree(model, workspace.models / "tiny")
    workspace.test_pairs.parent.mkdir(parents=True)
    workspace.test_pairs.write_text("".join(json.dumps(line) + "\n" for line in lines()))
    return workspace


def kept(workspace: Workspace) -> list[bytes]:
    """The whole lines of the kept translations; a torn one ends in the middle of its JSON."""
    files = list((workspace.scratch("evaluate_before") / "translations").glob("*.jsonl"))
    return [line for line in files[0].read_bytes().splitlines() if whole(line)] if files else []


def whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def outcome(workspace: Workspace, number: int) -> ExitRecord:
    return msgspec.json.decode(workspace.attempt("evaluate_before", number).exit.read_bytes(), type=ExitRecord)


def translations(workspace: Workspace) -> bytes:
    return (workspace.metrics / "translations" / "before" / "marian.jsonl").read_bytes()


def wait_for_batches(workspace: Workspace, process: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + 120
    while len(kept(workspace)) < count:
        assert process.poll() is None, workspace.attempt("evaluate_before", 1).output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_killed_and_stopped_attempts_end_as_a_quiet_one(tmp_path: Path, model: Path) -> None:
    """SIGKILL, then SIGTERM, then a third attempt: nothing kept is translated again, and the files equal a quiet run's."""
    workspace = prepared(tmp_path / "harried", model)
    first = start(workspace, 1)
    wait_for_batches(workspace, first, 3)
    first.send_signal(signal.SIGKILL)
    first.wait()
    after_kill = kept(workspace)
    assert not workspace.attempt("evaluate_before", 1).exit.exists()

    second = start(workspace, 2)
    wait_for_batches(workspace, second, len(after_kill) + 3)
    second.send_signal(signal.SIGTERM)
    assert second.wait() == ExitCode.STOPPED
    assert outcome(workspace, 2).code == ExitCode.STOPPED
    after_stop = kept(workspace)
    assert after_stop[: len(after_kill)] == after_kill
    assert not workspace.result("evaluate_before").exists()

    assert start(workspace, 3).wait() == ExitCode.SUCCEEDED
    everything = [one["id"] for line in kept(workspace) for one in json.loads(line)["hypotheses"]]
    assert kept(workspace)[: len(after_stop)] == after_stop
    assert len(everything) == len(set(everything)) == 40
    receipt = msgspec.json.decode(workspace.result("evaluate_before").read_bytes(), type=Result)
    assert set(receipt.metrics) == {"marian.bleu", "marian.chrf", "marian.terms"}

    quiet = prepared(tmp_path / "quiet", model)
    assert start(quiet, 1).wait() == ExitCode.SUCCEEDED
    assert translations(quiet) == translations(workspace)

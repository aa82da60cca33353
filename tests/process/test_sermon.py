"""A sermon-like recording goes through download, preprocess and transcribe: real processes, a real server, SIGKILLs between."""

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

from daemon.demo_server import Clip, serve
from stages import tiny
from state.contract import ExitCode, Result, Spec
from state.durable import tree_digest
from state.workspace import Workspace

ROOT = Path(__file__).parents[2]
SECONDS = 60.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng speaks the sermon"),
]


def start(workspace: Workspace, stage: str, number: int, **settings: Any) -> subprocess.Popen[bytes]:
    attempt = workspace.attempt(stage, number)
    attempt.root.mkdir(parents=True)
    spec = Spec(run_id="r", stage=stage, module=f"stages.{stage}", attempt=number, workspace=str(workspace.root), settings=settings)
    attempt.spec.write_bytes(msgspec.json.encode(spec))
    command = [sys.executable, "-m", spec.module, str(attempt.root)]
    with open(attempt.output, "wb") as output:
        return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen[bytes], workspace: Workspace, stage: str, number: int) -> Result:
    code = process.wait(timeout=240)
    assert code == ExitCode.SUCCEEDED, workspace.attempt(stage, number).output.read_text()
    return msgspec.json.decode(workspace.result(stage).read_bytes(), type=Result)


def kill_when(process: subprocess.Popen[bytes], workspace: Workspace, stage: str, words: bytes) -> None:
    """SIGKILL as soon as the first attempt's events contain `words`."""
    events = workspace.attempt(stage, 1).events
    until = time.monotonic() + 120
    while words not in (events.read_bytes() if events.exists() else b""):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.fixture(scope="module")
def sermon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute of speech in a hall, with noise and a music bed at the start, and beside it what is said when."""
    path = tmp_path_factory.mktemp("sermon") / "sermon.flac"
    command = [sys.executable, "-m", "benchmarks.make_sermon", str(path), "--minutes", str(SECONDS / 60), "--seed", "3"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    return path


def test_a_sermon_becomes_labelled_chunks(sermon: Path, tmp_path: Path) -> None:
    """Fetched whole, cut so that each sentence lies in one chunk, every chunk labelled; kills change nothing in the result."""
    truth = json.loads(sermon.with_suffix(".json").read_text())
    tiny.make_whisper(tmp_path / "hf", [one["text"] for one in truth["said"]])
    tiny.convert_whisper(tmp_path / "hf", tmp_path / "ct2")
    workspace = Workspace.at(tmp_path / "run")
    with serve(sermon.parent, clips=[Clip("sermon", "A sermon", sermon, SECONDS)]) as server:
        download = start(workspace, "download", 1, url=server.feed_url, newest=1, min_duration_s=10.0)
        assert finish(download, workspace, "download", 1).metrics["recordings"] == 1
    assert (workspace.raw_audio / "001_sermon.flac").read_bytes() == sermon.read_bytes()

    kill_when(start(workspace, "preprocess", 1), workspace, "preprocess", b'"progress"')
    assert not (workspace.cleaned_audio / "metadata.jsonl").exists()
    cleaned = finish(start(workspace, "preprocess", 2), workspace, "preprocess", 2)
    assert cleaned.metrics["recordings_good"] == 1
    lines = [json.loads(line) for line in (workspace.cleaned_audio / "metadata.jsonl").read_text().splitlines()]
    assert 3 <= len(lines) <= len(truth["said"])
    for one in truth["said"]:
        inside = [line for line in lines if line["start_s"] <= one["start_s"] + 0.15 and one["end_s"] - 0.15 <= line["end_s"]]
        assert len(inside) == 1, one

    settings = {
        "model": str(tmp_path / "ct2"),
        "beam_size": 1,
        "batch_size": 2,
        "min_avg_logprob": -50.0,
        "max_compression_ratio": 1e3,
    }
    settings |= {"max_repeats": 1000, "max_chars_per_s": 1e4}
    kill_when(start(workspace, "transcribe", 1, **settings), workspace, "transcribe", b'"message":"001_sermon"')
    labels = finish(start(workspace, "transcribe", 2, **settings), workspace, "transcribe", 2)
    assert labels.metrics["segments"] == len(lines)
    digest = tree_digest(workspace.transcripts)
    shutil.rmtree(workspace.transcripts)
    finish(start(workspace, "transcribe", 3, **settings), workspace, "transcribe", 3)
    assert tree_digest(workspace.transcripts) == digest

"""Sermon-like recordings go through download, preprocess, transcribe and train_whisper: real processes and SIGKILLs between."""

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
from safetensors.torch import load_file, save_file

from daemon.before_leaving.demo_server import Clip, serve
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
def sermons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By id, a minute each of speech in a hall, with noise and a music bed at the start, and beside it what is said when."""
    folder = tmp_path_factory.mktemp("sermons")
    for name, seed in (("sermon", "3"), ("other", "4")):
        command = [sys.executable, "-m", "benchmarks.make_sermon", str(folder / f"{name}.flac"), "--minutes", str(SECONDS / 60)]
        subprocess.run([*command, "--seed", seed], cwd=ROOT, check=True, timeout=120)
    return {name: folder / f"{name}.flac" for name in ("sermon", "other")}


def make_mumbling_whisper(folder: Path, texts: list[str]) -> None:
    """An untrained model that says something about any sound, as transformers' folder `hf` and CTranslate2's `ct2`."""
    tiny.make_whisper(folder / "hf", texts, d_model=96)
    weights = load_file(folder / "hf" / "model.safetensors")
    halved = {name: weight / 2 if weight.ndim > 1 else weight for name, weight in weights.items()}
    save_file(halved, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    tiny.convert_whisper(folder / "hf", folder / "ct2")


def test_sermons_become_chunks_labels_and_an_adapter(sermons: dict[str, Path], tmp_path: Path) -> None:
    """Fetched whole, cut so that each sentence lies in one chunk, every chunk labelled, trained on; kills change nothing."""
    sermon = sermons["sermon"]
    truth = json.loads(sermon.with_suffix(".json").read_text())
    make_mumbling_whisper(tmp_path, [one["text"] for one in truth["said"]])
    workspace = Workspace.at(tmp_path / "run")
    with serve(sermon.parent, clips=[Clip(name, f"A {name}", path, SECONDS) for name, path in sermons.items()]) as server:
        download = start(workspace, "download", 1, url=server.feed_url, newest=2, min_duration_s=10.0)
        assert finish(download, workspace, "download", 1).metrics["recordings"] == 2
    (raw,) = workspace.raw_audio.glob("*_sermon.flac")
    assert raw.read_bytes() == sermon.read_bytes()

    kill_when(start(workspace, "preprocess", 1), workspace, "preprocess", b'"progress"')
    assert not (workspace.cleaned_audio / "metadata.jsonl").exists()
    cleaned = finish(start(workspace, "preprocess", 2), workspace, "preprocess", 2)
    assert cleaned.metrics["recordings_good"] == 2
    everything = [json.loads(line) for line in (workspace.cleaned_audio / "metadata.jsonl").read_text().splitlines()]
    lines = [line for line in everything if line["source"] == raw.stem]
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
    kill_when(start(workspace, "transcribe", 1, **settings), workspace, "transcribe", b'"message":"001_')
    labels = finish(start(workspace, "transcribe", 2, **settings), workspace, "transcribe", 2)
    assert labels.metrics["segments"] == len(everything)
    digest = tree_digest(workspace.transcripts)
    shutil.rmtree(workspace.transcripts)
    finish(start(workspace, "transcribe", 3, **settings), workspace, "transcribe", 3)
    assert tree_digest(workspace.transcripts) == digest

    training = {
        "model": str(tmp_path / "hf"),
        "epochs": 1,
        "effective_batch": 4,
        "bf16": False,
        "dev_examples": 3,
        "evaluations": 1,
        "replay_source": str(ROOT / "pipelines" / "demo_audio" / "replay"),
    }
    trained = finish(start(workspace, "train_whisper", 1, **training), workspace, "train_whisper", 1)
    assert trained.metrics["ledger_exact"] == 1.0
    assert (workspace.fine_tuned_whisper / "adapter_model.safetensors").exists()

"""`vigil run` and the commands beside it, with real short stages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def pipeline(folder: Path, *stages: str) -> Path:
    """A pipeline file of probes; each stage is its TOML lines behind the name."""
    parts = ['name = "probes"']
    for number, stage in enumerate(stages, start=1):
        parts.append(f'[[stage]]\nname = "s{number}"\ntitle = "Probe {number}"\nmodule = "tests.process.probe"\n{stage}')
    path = folder / "p.toml"
    path.write_text("\n".join(parts))
    return path


def command(*argv: str) -> list[str]:
    return [sys.executable, "-P", "-m", "daemon.cli", *argv]


def vigil(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    whole = command(argv[0], "--workspace", str(folder / "w"), *argv[1:])
    return subprocess.run(whole, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)


def status(folder: Path) -> dict[str, dict[str, object]]:
    done = vigil(folder, "status", "--json")
    return {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]} if done.returncode == 0 else {}


def wait_for(folder: Path, name: str, word: str, seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if status(folder).get(name, {}).get("status") == word:
            return
        time.sleep(0.2)
    raise AssertionError(f"{name} was not {word} within {seconds} s: {status(folder)}")


def test_a_good_run_leaves_with_0_and_says_what_it_made(tmp_path: Path) -> None:
    """Summary, outputs, the report's path; progress.log in the original's words; the page is there."""
    done = vigil(tmp_path, "run", str(pipeline(tmp_path, "", 'needs = ["s1"]')))
    assert done.returncode == 0, done.stderr
    assert "Finished: all 2 stages succeeded." in done.stdout
    assert "out/s1" in done.stdout
    page = tmp_path / "w" / "report" / "index.html"
    assert done.stdout.rstrip().endswith(f"The report: {page}")
    assert page.exists()
    log = (tmp_path / "w" / "logs" / "progress.log").read_text().splitlines()
    assert log[1].startswith("probes — ")
    assert [line[8:] for line in log if line.startswith("[")] == [
        *("Stage 1: Probe 1...", "Stage 1 complete.", "Stage 2: Probe 2...", "Stage 2 complete."),
    ]
    assert log[-2].startswith("ALL STAGES COMPLETE — ")
    assert (tmp_path / "w" / "logs" / "02_s2.log").exists()


@pytest.mark.parametrize(("optional", "code", "words"), [(False, 1, "Failed: s1."), (True, 0, "1 bonus failed")])
def test_only_a_required_stage_fails_the_run(optional: bool, code: int, words: str, tmp_path: Path) -> None:
    """The other stage runs all the same."""
    fault = f'optional = {str(optional).lower()}\n[stage.settings]\nfault = "MisconfiguredError"\nfaulty_attempts = 9'
    done = vigil(tmp_path, "run", str(pipeline(tmp_path, fault, "")))
    assert done.returncode == code, done.stderr
    assert words in done.stdout
    assert [stage["status"] for stage in status(tmp_path).values()] == ["FAILED", "SUCCEEDED"]


def test_a_stopped_run_leaves_with_83_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM: the stage checkpoints and leaves. The same command again: no step is done twice, exit 0."""
    path = pipeline(tmp_path, "[stage.settings]\nsteps = 60\nstep_s = 0.05\nat_step = 999")
    with open(tmp_path / "console.txt", "w") as console:
        run = subprocess.Popen(
            command("run", str(path), "--workspace", str(tmp_path / "w")), env=ENVIRONMENT, stdout=console, stderr=console
        )
        wait_for(tmp_path, "s1", "RUNNING")
        time.sleep(0.5)
        run.send_signal(signal.SIGTERM)
        assert run.wait(60) == 83
    assert "The same command goes on from here." in (tmp_path / "console.txt").read_text()
    assert "Vigil is not running" in vigil(tmp_path, "status").stdout
    done = vigil(tmp_path, "run", str(path))
    assert done.returncode == 0, done.stderr
    trail = (tmp_path / "w" / "stages" / "s1" / "work" / "trail.txt").read_text().split()
    assert trail == [str(step) for step in range(1, 61)]


def test_commands_reach_a_running_daemon(tmp_path: Path) -> None:
    """Pause, resume, skip, retry, stop: each is answered in words and does what it says."""
    path = pipeline(
        tmp_path,
        "[stage.settings]\nsteps = 2000\nstep_s = 0.05\nat_step = 9999",
        'resource = "gpu"\nneeds = ["s1"]\noptional = true',
    )
    with open(tmp_path / "console.txt", "w") as console:
        run = subprocess.Popen(
            command("run", str(path), "--workspace", str(tmp_path / "w")), env=ENVIRONMENT, stdout=console, stderr=console
        )
        wait_for(tmp_path, "s1", "RUNNING")
        asked = vigil(tmp_path, "skip", "nobody")
        assert (asked.returncode, asked.stdout) == (1, "Refused: no stage is called 'nobody'; there are s1, s2\n")
        assert vigil(tmp_path, "pause").returncode == 0
        wait_for(tmp_path, "s1", "BACKING_OFF")
        assert "paused" in vigil(tmp_path, "status").stdout
        assert vigil(tmp_path, "resume").returncode == 0
        wait_for(tmp_path, "s1", "RUNNING")
        assert json.loads(vigil(tmp_path, "skip", "s2", "--json").stdout)["ok"] is True
        assert vigil(tmp_path, "stop").returncode == 0
        assert run.wait(60) == 83
    assert [stage["status"] for stage in status(tmp_path).values()] == ["BACKING_OFF", "SKIPPED"]
    journal = vigil(tmp_path, "log", "-n", "100").stdout
    assert "skip s2" in journal


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_disk_is_said_before_anything_starts(tmp_path: Path) -> None:
    """A file system without a free page: exit 82 and one sentence that names the folder."""
    full = tmp_path / "w"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(full)], check=True)
    try:
        (full / "filler").write_bytes(b"x" * 4096)
        done = vigil(tmp_path, "run", str(pipeline(tmp_path, "")))
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)
    assert done.returncode == 82, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(full) in done.stderr

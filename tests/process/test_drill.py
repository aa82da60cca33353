"""`vigil drill` by the real command: real daemons, real training, real faults."""

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


def drill(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-P", "-m", "daemon.cli", "drill", "--quick", "--workspace", str(folder), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def processes(folder: Path) -> list[str]:
    """Command lines of all processes that were started on something in `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_a_power_cut_costs_at_most_a_checkpoint_interval(tmp_path: Path) -> None:
    """One fault end to end: equal to the undisturbed run, the owner's words in it, the scratch folder gone, exit 0."""
    done = subprocess.run(
        drill(tmp_path, "--seed", "5", "--only", "power-cut", "--json"),
        env=environment(), capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    (finding,) = found["findings"]
    assert (found["seed"], found["held"], finding["result"]) == (5, True, "equal, bit by bit")
    assert 0 <= finding["repeated_steps"] <= 9
    assert finding["recovered_s"] > 0
    assert any("interrupted together with the daemon" in words for words in finding["answers"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_drill_leaves_nothing_at_work(tmp_path: Path) -> None:
    """A terminal that is closed (SIGHUP) ends every process that the drill started, and the folder is named."""
    process = subprocess.Popen(drill(tmp_path), env=environment(), stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("vigil-drill-*/undisturbed/stages/*/attempts/001/output.log")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGHUP)
    said, _errors = process.communicate(timeout=60)
    assert "kept for you to look at" in said
    assert processes(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_quick_drill_holds(tmp_path: Path) -> None:
    """All eleven faults once: each held, none was left out."""
    done = subprocess.run(
        drill(tmp_path, "--seed", "1", "--json"), env=environment(), capture_output=True, text=True, timeout=880, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert len(findings) == 11
    assert all(finding["recovered_s"] is not None for finding in findings)

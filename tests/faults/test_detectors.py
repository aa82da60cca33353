"""The detectors find what is broken: without that, their silence about the store would prove nothing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.broken_program import FAULTS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def detect(detector: str, fault: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.faults.{detector}", "tests.faults.broken_program"]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"FAULT": fault}, capture_output=True, text=True, timeout=200)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_power_cut_finds_every_broken_store(fault):
    """Each of the four faults loses or tears what was promised in some image."""
    done = detect("powerloss", fault)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "acked" in done.stdout or "torn" in done.stdout


@pytest.mark.parametrize("detector", ["powerloss", "crashpoint"])
def test_a_good_store_passes(detector):
    """The same program without a fault has no violation, so a violation means the fault."""
    done = detect(detector, "")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kill_finds_a_file_written_in_place():
    """A state that is overwritten where it lies is torn by a kill between two calls."""
    done = detect("crashpoint", "in_place")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "torn" in done.stdout

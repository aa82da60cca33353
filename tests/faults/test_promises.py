"""Promises 1 to 3 under fault: nothing acknowledged is lost, nothing half done is taken for whole, the last good one stays.

Each test runs the documented command of a detector on the real store or the real checkpoints and takes its exit code, which is 0
only when every point fired and no promise was broken.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ERRNOS = ("EIO", "ENOSPC", "EINTR", "EDQUOT", "EROFS")
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


def prove(detector: str, program: str, *options: str) -> None:
    command = [sys.executable, "-m", f"tests.faults.{detector}", f"tests.faults.{program}_program", *options]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1500, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    print(done.stdout)  # the figures, with -s
    assert done.returncode == 0, done.stdout + done.stderr


@needs_strace
def test_a_kill_at_every_call_of_a_save():
    """State and journal are old or new at every kill, and a rerun goes on from there."""
    prove("crashpoint", "store", "--fault", "kill")


@needs_strace
@pytest.mark.parametrize("program", ["store", "checkpoint", "drop"])
def test_an_error_at_some_calls(program):
    """A disk that refuses one call loses nothing; the slow test refuses each call with each errno."""
    every = {"store": "3", "checkpoint": "29", "drop": "11"}[program]
    prove("crashpoint", program, "--fault", "EIO", "--fault", "ENOSPC", "--every", every)


@needs_strace
def test_a_kill_at_some_calls_of_publishing_and_retiring():
    """No kill leaves half a checkpoint under the name of a whole one, and none takes the last good one."""
    prove("crashpoint", "checkpoint", "--every", "13")
    prove("crashpoint", "drop", "--every", "5")


@needs_strace
def test_a_kill_where_names_cannot_be_exchanged(monkeypatch):
    """A replacement by two renames is healed by the next look, so that the checkpoint is never gone."""
    monkeypatch.setenv("NO_EXCHANGE", "1")
    prove("crashpoint", "checkpoint", "--every", "13", "--seed", "3")


@needs_strace
@pytest.mark.parametrize("model", ["posix", "ext4"])
def test_a_power_cut_after_every_change_of_the_store(model):
    """Whatever the storage kept of what was not fsynced, every acknowledged state and fact is there."""
    prove("powerloss", "store", "--model", model)


@needs_strace
@pytest.mark.parametrize("model", ["posix", "ext4"])
def test_every_fsync_of_the_store_fails_once(model):
    """Pages that the kernel dropped after a failed fsync are never counted as kept."""
    prove("powerloss", "store", "--eio", "--model", model)


@needs_strace
def test_a_power_cut_while_checkpoints_are_dropped():
    """The healthy checkpoint is on disk in every image, and those dropped do not come back."""
    prove("powerloss", "drop", "--model", "ext4")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a loop device")
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
@pytest.mark.parametrize("program", ["store"])
def test_power_cuts_on_a_true_file_system(fs, program):
    """After a cut and a replay of the file system's journal every acknowledged state and fact is there."""
    if shutil.which(f"mkfs.{fs}") is None:
        pytest.skip(f"needs mkfs.{fs}")
    prove("realfs", program, "--fs", fs, "--cuts", "6")


@pytest.mark.slow
@pytest.mark.timeout(1600)
@needs_strace
@pytest.mark.parametrize("fault", ["kill", *ERRNOS])
@pytest.mark.parametrize("program", ["store", "checkpoint", "drop"])
def test_a_fault_at_every_call(program, fault):
    """Every call of a save, of a retirement and of going back, killed or refused."""
    prove("crashpoint", program, "--fault", fault)


@pytest.mark.slow
@pytest.mark.timeout(1600)
@needs_strace
@pytest.mark.parametrize("options", [("--model", "posix"), ("--model", "ext4"), ("--eio",)], ids=["posix", "ext4", "eio"])
@pytest.mark.parametrize("program", ["checkpoint", "drop"])
def test_a_power_cut_after_every_change_of_the_checkpoints(program, options):
    """The newest acknowledged checkpoint and the newest healthy one are whole in every image."""
    prove("powerloss", program, *options)


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.timeout(1600)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a loop device")
@pytest.mark.parametrize("fs", ["ext4", "xfs"])
@pytest.mark.parametrize("program", ["store", "checkpoint"])
def test_two_hundred_power_cuts_on_a_true_file_system(fs, program):
    """As above, 200 times on each."""
    if shutil.which(f"mkfs.{fs}") is None:
        pytest.skip(f"needs mkfs.{fs}")
    prove("realfs", program, "--fs", fs, "--cuts", "200")

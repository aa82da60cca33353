"""The machine, as far as it tells."""

import threading
import time

import psutil
import pytest

from daemon import host
from state.workspace import Workspace


def test_the_host_of_a_workspace_that_is_not_there_yet(tmp_path):
    """Disk figures are those of the nearest folder that exists; memory figures are sane."""
    found = host.read_host(Workspace.at(tmp_path / "not" / "yet"))
    assert found.disks[0].free_bytes <= found.disks[0].total_bytes
    assert 0 < found.memory_used_bytes < found.memory_total_bytes


def test_a_gpu_line_is_read_with_its_gaps():
    """Mebibytes become bytes; what the driver does not tell is None, not zero."""
    gpu = host.parse_gpu("NVIDIA RTX A2000 Ada, 97, 14820, 16380, [N/A], 68.25")
    assert gpu.memory_used_bytes == 14820 * 1024 * 1024
    assert gpu.load_percent == 97
    assert gpu.temperature_c is None
    assert gpu.power_w == 68.25


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("sleep 30", None),
        ("exit 9", None),
        ("echo 'X, 1, 2, 3, 4, [N/A]'", "X"),
        ("echo nonsense", ()),
    ],
)
def test_nvidia_smi_may_hang_fail_or_babble(tmp_path, monkeypatch, script, expected):
    """A hanging query is given up in time and counts as unknown."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    started = time.monotonic()
    gpus = host.read_gpus(timeout_s=0.5)
    assert time.monotonic() - started < 10
    assert (gpus[0].name if gpus else gpus) == expected


def test_a_gpu_query_whose_children_hold_on_costs_no_more_than_its_time_out(tmp_path, monkeypatch):
    """A wrapper that ignores SIGTERM and leaves a child with the pipe open: given up all the same, its whole group killed."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ntrap '' TERM\nsleep 60 &\necho $! > {tmp_path}/child\nwait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    started = time.monotonic()
    assert host.read_gpus(timeout_s=1.0) is None
    assert time.monotonic() - started < 5
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_drive_that_stops_answering_becomes_unknown(tmp_path, monkeypatch):
    """The tick gets the last reading while it is fresh and nothing afterwards; it never waits."""
    monkeypatch.setattr(host, "DISK_EVERY_S", 0.01)
    monkeypatch.setattr(host, "DISK_STALE_S", 0.3)
    stuck, answers = threading.Event(), []

    def read(workspace):
        if len(answers) >= 3:
            stuck.wait(30)
        answers.append(1)
        return host.read_disks(workspace)

    watch = host.DiskWatch(Workspace.at(tmp_path), read)
    assert watch.latest()[0].free_bytes > 0
    deadline = time.monotonic() + 10
    while watch.latest() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    watch.close()
    stuck.set()

"""The machine: disk, memory, GPUs. Every GPU query has a time-out, since nvidia-smi itself can hang for ever under WSL."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil

from state.workspace import Workspace

GPU_TIMEOUT_S = 3.0
GPU_FIELDS = "name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw"
WINDOWS_DRIVE = Path("/mnt/c")
DISK_EVERY_S = 2.0
DISK_STALE_S = 30.0
DISK_FIRST_S = 1.0
"""The first tick waits so long for the first reading."""


class Disk(msgspec.Struct, frozen=True, kw_only=True):
    """A file system."""

    path: str
    free_bytes: int
    total_bytes: int


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, as nvidia-smi tells; None where it does not say."""

    name: str
    load_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    power_w: float | None = None


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of the machine. `gpus` is None when it could not be told, empty when there is none."""

    cpu_count: int
    load_1min: float
    memory_used_bytes: int
    memory_total_bytes: int
    disks: tuple[Disk, ...]
    gpus: tuple[Gpu, ...] | None


def read_host(workspace: Workspace) -> Host:
    """Read the machine now; takes at most GPU_TIMEOUT_S."""
    memory = psutil.virtual_memory()
    return Host(
        cpu_count=psutil.cpu_count() or 1,
        load_1min=psutil.getloadavg()[0],
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
        disks=read_disks(workspace),
        gpus=read_gpus(),
    )


def read_disks(workspace: Workspace) -> tuple[Disk, ...]:
    """The workspace's disk and, under WSL, the Windows drive that its virtual disk lies on."""
    disks = []
    for path in (_existing(workspace.root), WINDOWS_DRIVE):
        if path.exists():
            usage = shutil.disk_usage(path)
            disks.append(Disk(path=str(path), free_bytes=usage.free, total_bytes=usage.total))
    return tuple(disks)


class DiskWatch:
    """Reads the disks again and again in a thread of its own: a Windows drive may not answer, and the tick cannot wait for it."""

    def __init__(self, workspace: Workspace, read: Callable[[Workspace], tuple[Disk, ...]] = read_disks) -> None:
        self._workspace = workspace
        self._read = read
        self._latest: tuple[float, tuple[Disk, ...]] | None = None
        self._first = threading.Event()
        self._closed = threading.Event()
        threading.Thread(target=self._go_on, daemon=True, name="disk-watch").start()
        self._first.wait(DISK_FIRST_S)

    def latest(self) -> tuple[Disk, ...] | None:
        """The last reading; None when there is none that is fresh enough to act on."""
        if self._latest is None or time.monotonic() - self._latest[0] > DISK_STALE_S:
            return None
        return self._latest[1]

    def close(self) -> None:
        """Read no more."""
        self._closed.set()

    def _go_on(self) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(OSError):
                self._latest = (time.monotonic(), self._read(self._workspace))
            self._first.set()
            self._closed.wait(DISK_EVERY_S)


def read_gpus(timeout_s: float = GPU_TIMEOUT_S) -> tuple[Gpu, ...] | None:
    """The GPUs; None when nvidia-smi is there and gives no answer."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program is None:
        return ()
    answer = _ask([program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"], timeout_s)
    if answer is None:
        return None
    return tuple(parse_gpu(line) for line in answer.splitlines() if line.count(",") == GPU_FIELDS.count(","))


def _ask(command: list[str], timeout_s: float) -> str | None:
    """What `command` prints; None when it fails or is late. A late one is killed and not waited for: it may hang in the driver."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
    except OSError:
        return None
    try:
        answer, _ = process.communicate(timeout=timeout_s)
    except (subprocess.TimeoutExpired, UnicodeDecodeError):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        threading.Thread(target=process.wait, daemon=True).start()  # reaped if it ever ends
        if process.stdout is not None:
            process.stdout.close()
        return None
    return answer if process.returncode == 0 else None


def parse_gpu(line: str) -> Gpu:
    """One line of nvidia-smi's CSV; "[N/A]" and the like become None."""
    name, load, used, total, temperature, power = (part.strip() for part in line.split(","))
    mebibyte = 1 << 20
    used_mib, total_mib = _number(used), _number(total)
    return Gpu(
        name=name,
        load_percent=_number(load),
        memory_used_bytes=None if used_mib is None else int(used_mib * mebibyte),
        memory_total_bytes=None if total_mib is None else int(total_mib * mebibyte),
        temperature_c=_number(temperature),
        power_w=_number(power),
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

"""The machine: disk, memory, GPUs. Every GPU query has a time-out, since nvidia-smi itself can hang for ever under WSL."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec
import psutil

from state.workspace import Workspace

GPU_TIMEOUT_S = 3.0
GPU_FIELDS = "name,utilization.gpu,memory.used,memory.total,temperature.gpu"
WINDOWS_DRIVE = Path("/mnt/c")


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


def read_gpus(timeout_s: float = GPU_TIMEOUT_S) -> tuple[Gpu, ...] | None:
    """The GPUs; None when nvidia-smi is there and gives no answer."""
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program is None:
        return ()
    try:
        answer = subprocess.run(
            [program, f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(parse_gpu(line) for line in answer.stdout.splitlines() if line.count(",") == GPU_FIELDS.count(","))


def parse_gpu(line: str) -> Gpu:
    """One line of nvidia-smi's CSV; "[N/A]" and the like become None."""
    name, load, used, total, temperature = (part.strip() for part in line.split(","))
    mebibyte = 1 << 20
    used_mib, total_mib = _number(used), _number(total)
    return Gpu(
        name=name,
        load_percent=_number(load),
        memory_used_bytes=None if used_mib is None else int(used_mib * mebibyte),
        memory_total_bytes=None if total_mib is None else int(total_mib * mebibyte),
        temperature_c=_number(temperature),
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

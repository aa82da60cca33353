"""Saves on a real file system that is too small: whole or not at all, and the same save goes through once there is space."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from state.checkpoints import Checkpoints, verify
from state.contract import DiskFullError
from state.store import Store
from tests.faults.store_program import generation

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root for a tmpfs of its own"),
]
KIB = 1024
WEIGHTS_BYTES = 60 * KIB


class SmallDisk:
    """A tmpfs that can grow."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mount("size=1m", "-t", "tmpfs", "tmpfs", str(path))

    def resize(self, kib: int) -> None:
        self._mount(f"remount,size={kib}k", str(self.path))

    def clear(self) -> None:
        self.resize(1024)
        for path in self.path.iterdir():
            shutil.rmtree(path)

    @staticmethod
    def _mount(options: str, *arguments: str) -> None:
        subprocess.run(["mount", "-o", options, *arguments], check=True, timeout=60)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    yield SmallDisk(tmp_path)
    subprocess.run(["umount", str(tmp_path)], check=True, timeout=60)


def fill(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"w" * WEIGHTS_BYTES)
    (folder / "optimizer.bin").write_bytes(b"o" * (WEIGHTS_BYTES // 2))


@pytest.mark.parametrize("predicted", [True, False])
def test_checkpoints_on_a_disk_of_every_size(disk, predicted):
    """A save is whole or a full disk; the last good one verifies either way, and the save goes through when there is space."""
    full = whole = tries = 0
    for kib in range(*((108, 340, 8) if predicted else (12, 236, 8))):
        disk.clear()
        tries += 1
        checkpoints = Checkpoints(disk.path / "checkpoints")
        good = checkpoints.publish(1, fill if predicted else lambda folder: (folder / "weights.bin").write_bytes(b"w"))
        disk.resize(kib)
        try:
            checkpoints.publish(2, fill)
            whole += 1
        except (DiskFullError, OSError) as error:
            full += isinstance(error, DiskFullError) or error.errno == errno.ENOSPC
            assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000001"]
            assert verify(good.path) == good
            disk.resize(1024)
            checkpoints.publish(2, fill)
        newest = checkpoints.newest_valid()
        assert newest is not None
        assert newest.step == 2
    assert full + whole == tries
    assert min(full, whole) > 2


def test_the_state_on_a_disk_of_every_size(disk):
    """A refused save leaves both generations as they were."""
    full = whole = tries = 0
    for kib in range(24, 60, 4):
        disk.clear()
        tries += 1
        store = Store(disk.path / "run" / "state.json")
        for number in (1, 2):
            store.save(generation(number))
        disk.resize(kib)
        large = msgspec.structs.replace(generation(3), pipeline_path="p" * 12 * KIB)
        try:
            store.save(large)
            whole += 1
        except OSError as error:
            full += error.errno == errno.ENOSPC
            assert store.load().run == generation(2)
            assert Store(store.previous).load().run == generation(1)
            disk.resize(1024)
            store.save(large)
        assert store.load().run == large
    assert full + whole == tries
    assert min(full, whole) > 1


def test_a_limit_of_file_size_comes_through_unchanged(tmp_path):
    """EFBIG reaches the caller as it is, and what was there stays."""
    checkpoints = Checkpoints(tmp_path)
    good = checkpoints.publish(1, lambda folder: (folder / "weights.bin").write_bytes(b"w"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * KIB, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoints.publish(2, fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert checkpoints.newest_valid() == good

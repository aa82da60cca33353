"""Checkpoints of a stage: published whole, verified before use, retired only when two newer ones are good.

A checkpoint is a folder `step-NNNNNNNN`. Its `manifest.json` (sizes and sha256 of every file, written last) is what makes it one;
a folder without it, or one that differs from it, is set aside and never resumed from. The order is that of the step
number, never of a file time: a clock that jumps changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from state.contract import DiskFullError
from state.durable import (
    bring_back,
    check_seal,
    file_digest,
    make_folder,
    read_again,
    replace_folder,
    sealed,
    sync_folder,
    sync_tree,
    tree_files,
    write_new,
)

MANIFEST = "manifest.json"
MARGIN = 0.05
LEFTOVERS = (".step-*.tmp", ".step-*.old", "damaged-step-*", "replaced-step-*")
DAMAGE_ERRNOS = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class FileRecord(msgspec.Struct, frozen=True):
    """Size and digest of one file of a checkpoint."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkpoint is made of, and what it belongs to."""

    schema: int = 1
    step: int
    healthy: bool = True
    """False while too few sane steps lie behind it: skipped after a divergence."""
    info: dict[str, Any] = {}
    """The stage's own small facts: the data's fingerprint, the position in examples."""
    files: dict[str, FileRecord]


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint."""

    path: Path
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def info(self) -> dict[str, Any]:
        return self.manifest.info


class DamagedCheckpointError(Exception):
    """The folder is not a whole checkpoint; it names what is missing or differs."""


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every byte of it read.

    Raises:
        DamagedCheckpointError: no manifest, a file missing, too many, unreadable, of another size or digest.
        OSError: a permission or a limit refuses, which says nothing about the checkpoint.
    """
    try:
        return read_again(lambda: _verify(folder))
    except OSError as error:
        if error.errno not in DAMAGE_ERRNOS:
            raise
        raise DamagedCheckpointError(f"{folder}: {error}") from error


def _verify(folder: Path) -> Checkpoint:
    try:
        data = (folder / MANIFEST).read_bytes()
        check_seal(data)  # it holds the position in the data, not only the digests of the files
        manifest = msgspec.json.decode(data, type=Manifest)
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder}: no readable {MANIFEST} ({error})") from error
    if folder.name != folder_name(manifest.step):
        raise DamagedCheckpointError(f"{folder}: its manifest says step {manifest.step}")
    present = {file.relative_to(folder).as_posix() for file in tree_files(folder)} - {MANIFEST}
    if present != set(manifest.files):
        raise DamagedCheckpointError(f"{folder}: files differ from the manifest: {sorted(present ^ set(manifest.files))}")
    for name, record in manifest.files.items():
        path = folder / name
        if path.stat().st_size != record.size_bytes or file_digest(path) != record.sha256:
            raise DamagedCheckpointError(f"{folder}: {name} differs from the manifest")
    return Checkpoint(folder, manifest)


def folder_name(step: int) -> str:
    return f"step-{step:08d}"


class Checkpoints:
    """The checkpoints of one stage, in `folder`."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def publish(
        self,
        step: int,
        fill: Callable[[Path], None],
        *,
        healthy: bool = True,
        info: dict[str, Any] | None = None,
        expected_bytes: int = 0,
    ) -> Checkpoint:
        """Let `fill` write files into a temporary folder, then make them checkpoint `step`, durable and whole.

        Room is made first, as `make_room` does, for `expected_bytes` or the size of the newest checkpoint.

        Raises:
            DiskFullError: the save would not fit; nothing was written.
            OSError: from the disk; older checkpoints are untouched and the partial one is removed.
        """
        make_folder(self.folder)
        self.make_room(max(expected_bytes, self._newest_bytes()))
        temporary = self.folder / _temporary_name(step)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            files = {
                path.relative_to(temporary).as_posix(): FileRecord(path.stat().st_size, file_digest(path))
                for path in tree_files(temporary)
            }
            manifest = Manifest(step=step, healthy=healthy, info=info or {}, files=files)
            write_new(temporary / MANIFEST, sealed(msgspec.json.format(msgspec.json.encode(manifest), indent=1)))
            sync_tree(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # the same step again takes the old one's place: a resume that replays up to it, or a score that came after the save
        replace_folder(temporary, self.folder / folder_name(step))
        return Checkpoint(self.folder / folder_name(step), manifest)

    def make_room(self, expected_bytes: int) -> None:
        """See that a save of `expected_bytes` fits, with a margin; free what may go by rule while it does not.

        First go leftovers and what was set aside, then all checkpoints but the newest valid and the newest valid healthy one.

        Raises:
            DiskFullError: it still does not fit.
        """
        needed_bytes = math.ceil(expected_bytes * (1 + MARGIN))
        for free_more in (self.sweep, Checkpoints(self.folder, keep=1).retire):
            if _free_bytes(self.folder) >= needed_bytes:
                return
            free_more()
        if (free_bytes := _free_bytes(self.folder)) < needed_bytes:
            raise DiskFullError(
                f"the next checkpoint needs {needed_bytes} bytes and {free_bytes} are free at {self.folder}; free some",
                needed_bytes,
            )

    def newest_valid(self, *, healthy_only: bool = False) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged newer ones are set aside under a name that is never resumed from."""
        self._heal()
        for folder in self._newest_first():
            try:
                checkpoint = verify(folder)
            except DamagedCheckpointError:
                self._set_aside(folder)
                continue
            if checkpoint.manifest.healthy or not healthy_only:
                return checkpoint
        return None

    def newest_step(self) -> int | None:
        """Step of the newest folder that has a manifest, without reading the rest: cheap, for display only."""
        return next((int(f.name.removeprefix("step-")) for f in self._newest_first() if (f / MANIFEST).exists()), None)

    def retire(self) -> list[Path]:
        """Remove what is older than the newest `keep` verified checkpoints, and return what was removed.

        Nothing is removed unless that many verify now. The newest healthy one stays, however old: a divergence goes back to it.
        """
        good: list[Checkpoint] = []
        removed: list[Path] = []
        for folder in list(self._newest_first()):
            enough = len(good) >= self.keep
            if enough and any(checkpoint.manifest.healthy for checkpoint in good):
                removed.append(_remove(folder))
                continue
            try:
                checkpoint = verify(folder)
            except DamagedCheckpointError:
                self._set_aside(folder)
                continue
            if enough and not checkpoint.manifest.healthy:
                removed.append(_remove(folder))
            else:
                good.append(checkpoint)
        return removed

    def drop_after(self, step: int) -> list[Path]:
        """Remove every checkpoint of a later step and return what was removed: a divergence made them worthless."""
        return [_remove(folder) for folder in list(self._newest_first()) if int(folder.name.removeprefix("step-")) > step]

    def _newest_bytes(self) -> int:
        """Size of the newest checkpoint by its manifest; 0 when there is none to be read."""
        for folder in self._newest_first():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
                return sum(record.size_bytes for record in manifest.files.values())
        return 0

    def sweep(self) -> None:
        """Remove what is no checkpoint: leftovers of a kill, and what was set aside."""
        self._heal()
        for pattern in LEFTOVERS:
            for path in self.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)

    def _heal(self) -> None:
        for path in self.folder.glob(".step-*.old"):
            bring_back(self.folder / path.name[1 : -len(".old")])

    def _newest_first(self) -> Iterator[Path]:
        if not self.folder.is_dir():
            return iter(())
        named = [p for p in self.folder.iterdir() if p.is_dir() and p.name.startswith("step-") and p.name[5:].isdecimal()]
        return iter(sorted(named, key=lambda p: int(p.name[5:]), reverse=True))

    def _set_aside(self, folder: Path) -> None:
        number = 0
        while (aside := self.folder / f"damaged-{folder.name}-{number}").exists():
            number += 1
        os.replace(folder, aside)
        sync_folder(self.folder)


def _temporary_name(step: int) -> str:
    return f".{folder_name(step)}.tmp"


def _free_bytes(folder: Path) -> int:
    """What an ordinary user may still write."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _remove(folder: Path) -> Path:
    """Remove a checkpoint: it loses its name first, durably, so that a kill or a power cut never leaves half of one."""
    gone = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    sync_folder(folder.parent)
    shutil.rmtree(gone)
    return folder

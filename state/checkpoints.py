"""Checkpoints of a stage: published whole, verified before use, retired only when two newer ones are good.

A checkpoint is a folder `step-NNNNNNNN`. Its `manifest.json` (sizes and sha256 of every file, written last) is what makes it one;
a folder without it, or one that differs from it, is set aside and never resumed from. The order is that of the step
number, never of a file time: a clock that jumps changes nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from state.durable import file_digest, sync_folder, sync_tree, tree_files, write_atomically

MANIFEST = "manifest.json"


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
        DamagedCheckpointError: no manifest, a file missing, too many, of another size or digest.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError) as error:
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
        self, step: int, fill: Callable[[Path], None], *, healthy: bool = True, info: dict[str, Any] | None = None
    ) -> Checkpoint:
        """Let `fill` write files into a temporary folder, then make them checkpoint `step`, durable and whole.

        Raises:
            OSError: from the disk; older checkpoints are untouched and the partial one is removed.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{folder_name(step)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            fill(temporary)
            files = {
                path.relative_to(temporary).as_posix(): FileRecord(path.stat().st_size, file_digest(path))
                for path in tree_files(temporary)
            }
            sync_tree(temporary)
            manifest = Manifest(step=step, healthy=healthy, info=info or {}, files=files)
            write_atomically(temporary / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            target = self.folder / folder_name(step)
            # the same step again: a resume that replays up to it, or a score that came after the save
            replaced = self._set_aside(target, "replaced") if target.exists() else None
            os.replace(temporary, target)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if replaced is not None:
            shutil.rmtree(replaced, ignore_errors=True)
        return Checkpoint(target, manifest)

    def newest_valid(self, *, healthy_only: bool = False) -> Checkpoint | None:
        """The newest checkpoint that verifies; damaged newer ones are set aside under a name that is never resumed from."""
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

    def _newest_first(self) -> Iterator[Path]:
        if not self.folder.is_dir():
            return iter(())
        named = [p for p in self.folder.iterdir() if p.is_dir() and p.name.startswith("step-") and p.name[5:].isdigit()]
        return iter(sorted(named, key=lambda p: int(p.name[5:]), reverse=True))

    def _set_aside(self, folder: Path, why: str = "damaged") -> Path:
        number = 0
        while (aside := self.folder / f"{why}-{folder.name}-{number}").exists():
            number += 1
        os.replace(folder, aside)
        sync_folder(self.folder)
        return aside


def _remove(folder: Path) -> Path:
    (folder / MANIFEST).unlink(missing_ok=True)  # first: a kill half-way leaves no half checkpoint that looks whole
    shutil.rmtree(folder)
    return folder

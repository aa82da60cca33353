"""Writes files so that every byte can be given back, whatever moment the power fails.

Before a file is touched, its content goes to the backup and a note of it, with the sums before and after, to the manifest; both are
on the disk first. So the sums tell what a killed installation left: not written yet, written, or changed by the owner since.
What the owner changed is never overwritten and never removed; it is told.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

SUFFIX = ".vigil-new"


class ManifestError(Exception):
    """The manifest cannot be used; the message names it and the next step."""


class Sight(Enum):
    """What is found of a file."""

    MISSING = "not there"
    BEFORE = "as it was before"
    OURS = "as Vigil wrote it"
    CHANGED = "changed since Vigil wrote it"
    FOREIGN = "not Vigil's"
    UNREADABLE = "readable for root only"


@dataclass(frozen=True)
class Wanted:
    """A file, or a link, as it should be."""

    path: Path
    content: bytes
    why: str
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    drive: bool = False
    """It lies on a Windows drive, which may know neither mode nor owner."""
    link: bool = False
    """`content` is the target."""
    secret: bool = False
    merged: bool = False
    """`content` was made from what is there now, so that nothing of it is lost by writing."""


@dataclass(frozen=True)
class Before:
    """What a file was when Vigil first touched it."""

    sha256: str
    link: bool
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    backup: str


@dataclass(frozen=True)
class Entry:
    """What the manifest knows of one file. `ours` are the sums of all that Vigil has written, or was about to write."""

    path: str
    before: Before | None
    ours: tuple[str, ...] = ()
    drive: bool = False
    mixed: bool = False
    """Written over an owner's later change, so that the backup alone is not all that must come back."""


@dataclass
class Manifest:
    """All that uninstall must know; `answers` are what the owner was asked, `windows` what Windows' settings were."""

    answers: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Entry] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    windows: dict[str, Any] = field(default_factory=dict)


class Changes:
    """The files of one installation. `folder` is where manifest and backups lie; `as_root` whether owners can be set."""

    def __init__(self, folder: Path, *, as_root: bool) -> None:
        self._folder = folder
        self._as_root = as_root
        self.manifest = self._load()

    # -- reading

    def _load(self) -> Manifest:
        path = self._folder / "manifest.json"
        try:
            raw = json.loads(path.read_text())
            files = {name: _entry(value) for name, value in raw["files"].items()}
            return Manifest(raw["answers"], files, raw["folders"], raw["windows"])
        except FileNotFoundError:
            return Manifest()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(f"{path}: damaged ({error}); the files as they were lie in {self._folder / 'backup'}") from error

    @property
    def installed(self) -> bool:
        """Whether an installation was begun and not yet taken back."""
        return (self._folder / "manifest.json").exists()

    def sight(self, path: Path) -> Sight:
        """What is found at `path`."""
        entry = self.manifest.files.get(str(path))
        try:
            content = content_of(path)
        except PermissionError:
            return Sight.UNREADABLE
        if content is None:
            return Sight.MISSING
        found = _sum(content, link=path.is_symlink())
        if entry is None:
            return Sight.FOREIGN
        if found in entry.ours:
            return Sight.OURS
        return Sight.BEFORE if entry.before and found == entry.before.sha256 else Sight.CHANGED

    def is_done(self, wanted: Wanted) -> bool:
        """Whether nothing is left to write."""
        try:
            content = content_of(wanted.path)
        except PermissionError:
            return self.sight(wanted.path) is Sight.UNREADABLE and str(wanted.path) in self.manifest.files
        if content != wanted.content or wanted.path.is_symlink() != wanted.link:
            return False
        if wanted.drive or wanted.link:
            return True
        found = wanted.path.stat()
        return found.st_mode & 0o7777 == wanted.mode and (not self._as_root or (found.st_uid, found.st_gid) == wanted.owner)

    def is_owners(self, wanted: Wanted) -> bool:
        """Whether the owner changed it since, so that it must be left alone."""
        return not wanted.merged and self.sight(wanted.path) is Sight.CHANGED

    # -- writing

    def save(self) -> None:
        """Put the manifest on the disk."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        content = json.dumps(asdict(self.manifest), indent=1, ensure_ascii=False) + "\n"
        _write(self._folder / "manifest.json", content.encode(), 0o644)

    def write(self, wanted: Wanted) -> None:
        """Write one file; it is on the disk when this returns."""
        self._note(wanted)
        self.make_folder(wanted.path.parent, 0o755)
        if wanted.link:
            _link(wanted.path, wanted.content)
        else:
            _write(wanted.path, wanted.content, wanted.mode, wanted.owner if self._as_root else None, lax=wanted.drive)

    def _note(self, wanted: Wanted) -> None:
        name, ours = str(wanted.path), _sum(wanted.content, link=wanted.link)
        entry = self.manifest.files.get(name)
        sight = self.sight(wanted.path)
        if entry is None:
            entry = Entry(name, self._back_up(wanted.path), drive=wanted.drive)
        elif sight is Sight.CHANGED:
            entry = replace(entry, mixed=True)
        if ours not in entry.ours:
            entry = replace(entry, ours=(*entry.ours, ours))
        self.manifest.files[name] = entry
        self.save()

    def _back_up(self, path: Path) -> Before | None:
        content = content_of(path)
        if content is None:
            return None
        link, found = path.is_symlink(), path.lstat()
        sha256 = _sum(content, link=link)
        backup = self._folder / "backup" / f"{sha256[:12]}-{path.name}"
        backup.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(backup, content, 0o600)
        return Before(sha256, link, found.st_mode & 0o7777, (found.st_uid, found.st_gid), found.st_mtime_ns, backup.name)

    def make_folder(self, folder: Path, mode: int, owner: tuple[int, int] = (0, 0)) -> None:
        """Make a folder and those above it; uninstall removes them if they are empty then."""
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        for one in reversed(missing):
            if str(one) not in self.manifest.folders:
                self.manifest.folders.append(str(one))
                self.save()
            one.mkdir(mode=mode)
            if self._as_root:
                os.chown(one, *owner)

    # -- giving back

    def restore(self) -> Iterator[tuple[Path, str]]:
        """Give every file back, last one first; yields each path that was touched or had to stay, with what came of it."""
        for entry in reversed(self.manifest.files.values()):
            path = Path(entry.path)
            _new(path).unlink(missing_ok=True)
            told = self._give_back(path, entry)
            if told:
                yield path, told

    def _give_back(self, path: Path, entry: Entry) -> str:
        sight = self.sight(path)
        if sight is Sight.BEFORE or (sight is Sight.MISSING and entry.before is None):
            return ""
        if entry.before is None:
            if sight is not Sight.OURS:
                return "LEFT: you changed it; remove it yourself if you do not want it"
            path.unlink()
            _sync_folder(path.parent)
            return "removed"
        backup = self._folder / "backup" / entry.before.backup
        if sight is not Sight.OURS or entry.mixed:
            return f"LEFT: you changed it; as it was: {backup}"
        self._put_back(path, entry.before, backup.read_bytes(), lax=entry.drive)
        return "as it was"

    def _put_back(self, path: Path, before: Before, content: bytes, *, lax: bool) -> None:
        if before.link:
            _link(path, content)
            return
        _write(path, content, before.mode, before.owner if self._as_root else None, lax=lax)
        os.utime(path, ns=(before.mtime_ns, before.mtime_ns))

    def forget(self) -> None:
        """Remove the folders that are empty now, the backups and the manifest."""
        for folder in reversed(self.manifest.folders):
            if Path(folder).is_dir() and not any(Path(folder).iterdir()):
                Path(folder).rmdir()
        shutil.rmtree(self._folder, ignore_errors=True)


def content_of(path: Path) -> bytes | None:
    """The bytes of a file or the target of a link; None where there is neither.

    Raises:
        PermissionError: nobody but root may know.
    """
    try:
        return os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _entry(raw: dict[str, Any]) -> Entry:
    before = raw["before"]
    if before is not None:
        before = Before(**{**before, "owner": tuple(before["owner"])})
    return Entry(**{**raw, "before": before, "ours": tuple(raw["ours"])})


def _sum(content: bytes, *, link: bool) -> str:
    return hashlib.sha256(b"link to " + content if link else content).hexdigest()


def _new(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}")


def _link(path: Path, target: bytes) -> None:
    new = _new(path)
    new.unlink(missing_ok=True)
    new.symlink_to(os.fsdecode(target))
    os.replace(new, path)
    _sync_folder(path.parent)


def _write(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None, *, lax: bool = False) -> None:
    """Replace a file whole. `lax`: a drive that refuses owner and mode is no error."""
    new = _new(path)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
        with contextlib.suppress(*((OSError,) if lax else ())):
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
        file.flush()
        os.fsync(descriptor)
    os.replace(new, path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a Windows drive cannot
        os.fsync(descriptor)
    os.close(descriptor)

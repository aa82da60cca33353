"""Writes that survive a power loss, and the digests that prove what was written.

Every write goes to a temporary file in the same folder, is fsynced, renamed over the target, and the folder is fsynced.
A failed fsync is never retried on the same file: the kernel may already have dropped the pages
(https://lwn.net/Articles/752063/); the caller sees the OSError and the old file stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from pathlib import Path

BLOCK_BYTES = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8): after a crash the file is the old one or the new one, never torn.

    Raises:
        OSError: the old file is unchanged and no temporary file is left.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def append_durably(path: Path, line: bytes) -> None:
    """Append one line (without its newline) and fsync; a torn last line of an earlier crash is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line + b"\n"
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, and `folder` itself."""
    for root, _folders, files in os.walk(folder):
        for name in files:
            handle = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def publish_folder(temporary: Path, target: Path) -> None:
    """Make the finished folder `temporary` appear as `target`, replacing an older one; both on one file system.

    A crash leaves the old folder, the new one, or (between two renames) the old one under `.NAME.old`; the next call
    then publishes and removes it.
    """
    sync_tree(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    retired = target.with_name(f".{target.name}.old")
    if target.exists():
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(target, retired)
    os.replace(temporary, target)
    sync_folder(target.parent)
    shutil.rmtree(retired, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_files(folder: Path) -> list[Path]:
    """Every regular file below `folder`, sorted by relative path."""
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def tree_digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file, or of a folder (over its sorted `sha256  relative/path` lines)."""
    if path.is_file():
        return file_digest(path), path.stat().st_size
    whole, size_bytes = hashlib.sha256(), 0
    for file in tree_files(path):
        whole.update(f"{file_digest(file)}  {file.relative_to(path).as_posix()}\n".encode())
        size_bytes += file.stat().st_size
    return whole.hexdigest(), size_bytes

"""Writes that survive a power loss, and the digests that prove what was written.

Every write goes to a new file in the same folder, is fsynced, renamed over the target, and the folder is fsynced.
A failed fsync is never retried on the same file: the kernel may already have dropped the pages
(https://lwn.net/Articles/752063/); the caller sees the OSError and the old file stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

BLOCK_BYTES = 1 << 20
READS = 3
_SEAL = b',"vigil_sum":"'
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # 9p, NFS, some FUSE, an old kernel

T = TypeVar("T")


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make `folder` and what is missing above it, each name durable."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_new(path: Path, data: bytes) -> None:
    """Write `data` to a new file at `path`, in place of any that is there, and fsync it; its name is not durable yet.

    Raises:
        OSError: no file is left.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` (text as UTF-8): after a crash the file is the old one or the new one, never torn.

    Raises:
        OSError: the old file is unchanged and no temporary file is left; or the new file is there and not known to be durable.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    write_new(temporary, content.encode() if isinstance(content, str) else content)
    try:
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def clear_unwritten(folder: Path) -> None:
    """Remove below `folder` what `write_atomically` left when it was killed before its rename; nobody may be writing there."""
    for path in folder.rglob(".*.tmp"):
        if path.suffixes[-2:-1] and path.suffixes[-2][1:].isdigit() and path.is_file():
            path.unlink()


def append_durably(path: Path, line: bytes) -> None:
    """Append one line (without its newline) and fsync; a torn last line of an earlier crash is ended first.

    Raises:
        OSError: the line may be there, whole or torn, and must not be counted on, not even after another fsync.
    """
    make_folder(path.parent)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size == 0:
            sync_folder(path.parent)  # before the first byte, so that a file with bytes has a durable name
        torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
        data = (b"\n" if torn else b"") + line + b"\n"
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def read_again(read: Callable[[], T]) -> T:
    """What `read` returns; a disk that refuses once is asked again, since a passing fault is no damage."""
    for _ in range(READS - 1):
        with contextlib.suppress(OSError):
            return read()
    return read()


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, and `folder` itself."""
    for root, _folders, files in os.walk(folder, onerror=_refuse):
        for name in files:
            handle = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def publish_folder(temporary: Path, target: Path) -> None:
    """fsync the finished folder `temporary`, then `replace_folder`."""
    sync_tree(temporary)
    replace_folder(temporary, target)


def replace_folder(temporary: Path, target: Path) -> None:
    """Make the synced folder `temporary` appear as `target`, in place of an older one; both on one file system.

    A crash leaves the old folder or the new one under the name; the other may be left under `temporary`. Where the file
    system cannot exchange two names there is an instant at which the old one stands as `.NAME.old`; `bring_back` heals that.

    Raises:
        OSError: the old folder or the new one stands under the name.
    """
    make_folder(target.parent)
    bring_back(target)
    old = _swap(temporary, target) if target.exists() else None
    if old is None:
        os.replace(temporary, target)
    for parent in {target.parent, temporary.parent}:
        sync_folder(parent)  # before the old one goes: a power cut must find one of them
    shutil.rmtree(old or _aside(target), ignore_errors=True)


def bring_back(target: Path) -> None:
    """Undo a replacement by `replace_folder` that a crash cut in two: the old folder gets its name again."""
    if not target.exists() and _aside(target).exists():
        os.replace(_aside(target), target)
        sync_folder(target.parent)


def sealed(body: bytes) -> bytes:
    """`body`, a JSON object, with one more member that vouches for the bytes before it."""
    head = body.rstrip()[:-1].rstrip()
    return head + _SEAL + _sum(head) + b'"}'


def check_seal(data: bytes) -> None:
    """Nothing, for what `sealed` returned and for what has no seal, as older Vigils wrote it.

    Raises:
        ValueError: torn or changed.
    """
    head, seal, rest = data.rpartition(_SEAL)
    if seal and rest != _sum(head) + b'"}':
        raise ValueError("its checksum does not match")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_files(folder: Path) -> list[Path]:
    """Every regular file below `folder`, sorted by relative path; none when there is no such folder.

    Raises:
        OSError: a folder cannot be listed, which does not mean that it is empty.
    """
    walked = os.walk(folder, onerror=_refuse) if folder.is_dir() else ()
    found = [Path(root) / name for root, _folders, names in walked for name in names]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def tree_digest(path: Path) -> tuple[str, int]:
    """SHA-256 and size in bytes of a file, or of a folder (over its sorted `sha256  relative/path` lines)."""
    if path.is_file():
        return file_digest(path), path.stat().st_size
    whole, size_bytes = hashlib.sha256(), 0
    for file in tree_files(path):
        whole.update(f"{file_digest(file)}  {file.relative_to(path).as_posix()}\n".encode())
        size_bytes += file.stat().st_size
    return whole.hexdigest(), size_bytes


def _sum(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest()[:16].encode()


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _swap(new: Path, target: Path) -> Path:
    """Put `new` in the place of `target` and return where the old one is now."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return new
    code = ctypes.get_errno()
    if code not in _CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code), str(target))
    old = _aside(target)
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        bring_back(target)
        raise
    return old


def _refuse(error: OSError) -> None:
    raise error

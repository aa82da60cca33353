"""The bundle: what a run has brought, in one folder that vouches for itself; docs/bundle.md describes it.

`assemble` makes the folder: large delivered files by hard link or reflink where the disk can, the rest copied, each read back.
It may be cut at any moment and given again: what is right stays, what is wrong is mended. `carrier` takes the folder to
another machine. Never taken: checkpoints, the bot's files, and any file in which something looks like a secret.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from daemon import report, words
from daemon.phone import telegram_settings
from daemon.view import View, results
from state.contract import Output
from state.durable import BLOCK_BYTES, sync_folder, tree_files, write_atomically
from state.machine import Status
from state.workspace import Workspace

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
FOLDER = "bundle"
LINK_FROM_BYTES = 1 << 20
"""What is smaller is copied: it may be a file that the run goes on writing to."""
SPARE_BYTES = 64 << 20
FICLONE = 0x40049409  # linux/fs.h
PACKAGES = (
    "vigil-train",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "ctranslate2",
    "faster-whisper",
    "tokenizers",
    "sacrebleu",
)
WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".wav", ".flac", ".mp3", ".opus", ".m4a", ".webm", ".png"})
"""Not searched for secrets: nothing writes text into them."""
SECRETS = re.compile(rb"(?<![0-9])[0-9]{8,12}:[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])|hf_[A-Za-z0-9]{30,}")
"""Telegram's tokens and Hugging Face's."""
LONGEST_SECRET_BYTES = 512

Say = Callable[[int, int, str], None]
"""Told of bytes done, bytes in all, and what is at hand."""


class BundleError(Exception):
    """The bundle cannot be made or sent; the message says why and what to do. The same command goes on."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One file of the bundle."""

    path: str
    size_bytes: int
    sha256: str


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """What is not in the bundle though one might look for it."""

    path: str
    why: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """manifest.json."""

    vigil_bundle: int = 1
    run: str
    pipeline: str
    started_at: str | None
    finished_at: str | None
    made_at: str | None
    complete: bool = False
    """Everything listed is there; False while it is being made."""
    versions: dict[str, str] = {}
    total_bytes: int = 0
    files: tuple[Entry, ...] = ()
    left_out: tuple[Left, ...] = ()


@dataclass(frozen=True)
class Item:
    """A file to be taken."""

    path: str
    """In the bundle; the same as in the workspace."""
    source: Path
    size_bytes: int
    steady: bool
    """Delivered by a stage and large: never written to again."""


# -- what is taken


def collect(workspace: Workspace, view: View, *, with_audio: bool) -> tuple[list[Item], list[Left]]:
    """The files of the bundle, by path, and what is missing."""
    receipts = results(workspace, view.run)
    audio = (workspace.raw_audio, workspace.cleaned_audio)
    outputs = [workspace.inside(output.path) for receipt in receipts.values() for output in receipt.outputs]
    adapters = [workspace.fine_tuned_whisper, workspace.fine_tuned_marian, *map(workspace.fine_tuned_gemma, "AB")]
    wanted = [*outputs, *adapters, *(audio if with_audio else ())]
    steady = [path for path in wanted if with_audio or not any(path.is_relative_to(folder) for folder in audio)]
    books = [workspace.metrics, workspace.report, workspace.logs, workspace.energy.parent, workspace.state, workspace.journal]
    items: dict[str, Item] = {}
    left = _absent(workspace, view, outputs if with_audio else [p for p in outputs if p in steady])
    for path in _files([*books, *_attempts(workspace, view), *steady]):
        relative, real = path.relative_to(workspace.root).as_posix(), path.resolve()
        if not real.is_relative_to(workspace.root):
            left.append(Left(path=relative, why="a link that leads outside the run's folder"))
            continue
        size_bytes = real.stat().st_size
        is_steady = size_bytes >= LINK_FROM_BYTES and any(path.is_relative_to(folder) for folder in steady)
        items[relative] = Item(relative, real, size_bytes, is_steady)
    if not with_audio:
        left += [
            Left(path=folder.relative_to(workspace.root).as_posix(), why="recordings: add --with-audio")
            for folder in audio
            if folder.exists()
        ]
    return [items[path] for path in sorted(items)], left


def _files(places: Iterable[Path]) -> Iterator[Path]:
    for place in places:
        found = [place] if place.is_file() else tree_files(place)
        yield from (path for path in found if not (path.name.startswith(".") and path.name.endswith(".tmp")))


def _attempts(workspace: Workspace, view: View) -> Iterator[Path]:
    """Receipts, and what each attempt was told, said and printed: enough to make the report again."""
    for stage in view.run.stages:
        if stage.attempts:
            yield workspace.result(stage.name)
        for attempt in stage.attempts:
            folder = workspace.attempt(stage.name, attempt.number)
            yield from (folder.spec, folder.events, folder.output, folder.exit)


def _absent(workspace: Workspace, view: View, outputs: Sequence[Path]) -> list[Left]:
    left = []
    for stage in view.run.stages:
        if stage.state is not Status.SUCCEEDED:
            why = report.reason(stage)
            left.append(Left(path=f"results of {stage.name}", why=f"it is {stage.state}{f': {why}' if why else ''}"))
    for path in outputs:
        if not path.exists():
            left.append(Left(path=path.relative_to(workspace.root).as_posix(), why="was delivered and is gone"))
    if not (workspace.report / "index.html").exists():
        left.append(Left(path="report/index.html", why="not written yet: `vigil report` writes it"))
    return left


# -- how it is taken


def assemble(workspace: Workspace, view: View, folder: Path, now: float, *, with_audio: bool, say: Say) -> Manifest:
    """Make or mend the bundle in `folder`.

    Raises:
        BundleError: the folder is something else, or the disk has too little room; nothing was changed.
        OSError: the disk refused; the same call goes on.
    """
    if folder.is_relative_to(workspace.root) and folder != workspace.inside(FOLDER):
        raise BundleError(
            f"{folder} lies inside the run's own folder; leave --out away for {workspace.inside(FOLDER)}, or name another"
        )
    items, left = collect(workspace, view, with_audio=with_audio)
    before = _earlier(folder, view.run.id)
    _mind_the_space(items, folder)
    run = view.run
    manifest = Manifest(
        run=run.id,
        pipeline=run.pipeline.name,
        started_at=words.iso(run.started_at),
        finished_at=words.iso(run.finished_at),
        made_at=words.iso(now),
        versions=_versions(),
    )
    write_atomically(folder / MANIFEST, msgspec.json.encode(manifest))
    secrets = _secrets(workspace)
    entries: list[Entry] = []
    done_bytes, total_bytes = 0, sum(item.size_bytes for item in items)
    for item in items:
        say(done_bytes, total_bytes, item.path)
        found = _take(item, folder / item.path, secrets)
        if isinstance(found, Left):
            left.append(found)
            (folder / item.path).unlink(missing_ok=True)
        else:
            entries.append(found)
        done_bytes += item.size_bytes
    say(total_bytes, total_bytes, "")
    left += _unlike_receipts(view, workspace, entries)
    for path in {entry.path for entry in before.files} - {entry.path for entry in entries} if before else ():
        (folder / path).unlink(missing_ok=True)
    manifest = msgspec.structs.replace(
        manifest,
        complete=True,
        total_bytes=sum(entry.size_bytes for entry in entries),
        files=tuple(entries),
        left_out=tuple(left),
    )
    write_atomically(folder / SUMS, "".join(map(sum_line, entries)))
    write_atomically(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return manifest


def _earlier(folder: Path, run: str) -> Manifest | None:
    """The manifest of an earlier bundle of the same run; None for a new or empty folder."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        earlier = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.DecodeError):
        raise BundleError(f"{folder} holds something else than a bundle; name an empty folder, or one that is not there") from None
    if earlier.run != run:
        raise BundleError(f"{folder} holds the bundle of run {earlier.run}, not of {run}; name another folder")
    return earlier


def _mind_the_space(items: Sequence[Item], folder: Path) -> None:
    need_bytes = sum(item.size_bytes for item in items if not _linked(item, folder) and not (folder / item.path).exists())
    free_bytes = shutil.disk_usage(_existing(folder)).free
    if need_bytes + SPARE_BYTES > free_bytes:
        raise BundleError(
            f"{words.size(need_bytes)} must be copied to {folder} and its disk has {words.size(free_bytes)} free; "
            "name a folder on another disk with --out, or one on the run's own disk, where large files are linked"
        )


def _linked(item: Item, folder: Path) -> bool:
    return item.steady and item.source.stat().st_dev == _existing(folder).stat().st_dev


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _take(item: Item, target: Path, secrets: re.Pattern[bytes]) -> Entry | Left:
    """Make `target` what the item is, and prove it by reading."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not item.steady:
            _copy(item.source, target)
            digest, secret = _examine(target, secrets)
        else:
            digest, secret = _examine(item.source, secrets)
            if not (target.exists() and (target.samefile(item.source) or _examine(target, secrets)[0] == digest)):
                _clone(item.source, target)
                if not target.samefile(item.source) and _examine(target, secrets)[0] != digest:
                    raise BundleError(f"{target} does not read back as it was written: its disk fails; name another with --out")
    except FileNotFoundError:
        return Left(path=item.path, why="it went away meanwhile")
    if secret:
        return Left(path=item.path, why="something in it looks like a secret (a token)")
    return Entry(path=item.path, size_bytes=target.stat().st_size, sha256=digest)


def _clone(source: Path, target: Path) -> None:
    """A second name or a reflink of `source`; a copy where the disk can do neither."""
    fresh = _fresh(target)
    with open(source, "rb") as read, open(fresh, "xb") as write, contextlib.suppress(OSError):
        fcntl.ioctl(write, FICLONE, read.fileno())
        os.replace(fresh, target)
        return
    fresh.unlink()
    try:
        os.link(source, fresh)
    except OSError:
        _copy(source, target)
    else:
        os.replace(fresh, target)


def _copy(source: Path, target: Path) -> None:
    fresh = _fresh(target)
    with open(source, "rb") as read, open(fresh, "xb") as write:
        shutil.copyfileobj(read, write, BLOCK_BYTES)
        write.flush()
        os.fsync(write.fileno())
    shutil.copystat(source, fresh)
    os.replace(fresh, target)
    sync_folder(target.parent)


def _fresh(target: Path) -> Path:
    fresh = target.with_name(f".{target.name}.part")
    fresh.unlink(missing_ok=True)
    return fresh


def _examine(path: Path, secrets: re.Pattern[bytes]) -> tuple[str, bool]:
    """SHA-256 of a file, and whether it holds a secret."""
    digest, found, tail = hashlib.sha256(), False, b""
    searched = path.suffix.lower() not in WEIGHTS
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            if searched and not found:
                found = secrets.search(tail + block) is not None
                tail = block[-LONGEST_SECRET_BYTES:]
    return digest.hexdigest(), found


def _secrets(workspace: Workspace) -> re.Pattern[bytes]:
    """What the owner has told Vigil in confidence, and whatever has the form of a token."""
    known: list[str] = []
    with contextlib.suppress(telegram_settings.SettingsError):
        if (settings := telegram_settings.load(workspace, os.environ)) is not None:
            secrets = [settings.token, *settings.mirror, *([settings.heartbeat] if settings.heartbeat else [])]
            known = [secret.reveal() for secret in secrets]
    return re.compile(b"|".join([SECRETS.pattern, *(re.escape(text.encode()) for text in known)]))


def _unlike_receipts(view: View, workspace: Workspace, entries: Sequence[Entry]) -> list[Left]:
    """Delivered folders that are not what their stage delivered."""
    by_path = {entry.path: entry for entry in entries}
    latest = {o.path.rstrip("/"): (stage, o) for stage, receipt in results(workspace, view.run).items() for o in receipt.outputs}
    return [
        Left(path=path, why=f"taken, but it is not what {stage} delivered: its files were changed since")
        for path, (stage, output) in latest.items()
        if not _as_delivered(path, output, by_path)
    ]


def _as_delivered(path: str, output: Output, entries: Mapping[str, Entry]) -> bool:
    if path in entries:
        return entries[path].sha256 == output.sha256
    inside = sorted((name.removeprefix(f"{path}/"), entry.sha256) for name, entry in entries.items() if name.startswith(f"{path}/"))
    digest = hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in inside).encode()).hexdigest()
    return not inside or digest == output.sha256


def _versions() -> dict[str, str]:
    """Of what made the results, as installed here."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def sum_line(entry: Entry) -> str:
    """A line of SHA256SUMS, in the form of sha256sum, which marks a name that it had to escape."""
    escaped = entry.path.replace("\\", "\\\\").replace("\n", "\\n")
    mark = "\\" if escaped != entry.path else ""
    return f"{mark}{entry.sha256}  {escaped}\n"


def check(folder: Path, entries: Sequence[Entry], say: Say) -> list[str]:
    """Read everything again; the paths that are not as listed."""
    done_bytes, total_bytes, wrong = 0, sum(entry.size_bytes for entry in entries), []
    nothing = re.compile(rb"(?!)")
    for entry in entries:
        say(done_bytes, total_bytes, entry.path)
        try:
            same = _examine(folder / entry.path, nothing)[0] == entry.sha256
        except OSError:
            same = False
        wrong += [] if same else [entry.path]
        done_bytes += entry.size_bytes
    say(total_bytes, total_bytes, "")
    return wrong


def progress_line(done_bytes: int, total_bytes: int, what: str, columns: int = 80) -> str:
    """One line that fits, with a bar."""
    share = min(1.0, done_bytes / total_bytes) if total_bytes else 1.0
    head = f"{words.bar(share, 16)} {words.percent(share):>5}  {words.size(done_bytes)} of {words.size(total_bytes)}"
    return f"{head}  {words.clip(what, max(0, columns - words.cells(head) - 3))}".rstrip()


def summary_lines(manifest: Manifest, columns: int = 80) -> list[str]:
    """What was taken and what was not, for a terminal."""
    lines = [
        f"Run {manifest.run} ({manifest.pipeline}): {words.plural(len(manifest.files), 'file')}, {words.size(manifest.total_bytes)}"
    ]
    if manifest.left_out:
        width = max(min(30, words.cells(one.path)) for one in manifest.left_out)
        rows = [[words.clip(one.path, 30), words.clip(one.why, max(20, columns - width - 4))] for one in manifest.left_out]
        lines += ["Not in it, or in doubt:", *("  " + line for line in words.table(rows))]
    return lines

"""General speech from outside, to be mixed in against forgetting: an audiofolder, an unpacked Common Voice, a hub data set."""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from stages.loading import loading
from stages.recordings import AUDIO_EXTENSIONS
from stages.runtime import StageContext
from stages.speech_rows import Row, read_rows, sample
from state.durable import publish_folder

HUB = "hub:"
METADATA = "metadata.jsonl"
TABLES = ("validated.tsv", "train.tsv")
"""Of Common Voice, in the order of preference: validated clips were listened to by two people."""
SPARE = 4
"""Clips looked at for each one wanted, so that accents can be balanced."""
TEXTS = ("text", "sentence", "transcription", "normalized_text")
ACCENTS = ("accent", "accents")
SPEAKERS = ("client_id", "speaker_id", "source")
FETCH_QUIET_S = 600.0


def find(ctx: StageContext, source: str, wanted: int) -> tuple[list[Row], str]:
    """The clips of `source`, at most SPARE x `wanted` where they are many, and why there are none.

    Raises:
        MisconfiguredError: it is there and cannot be used.
        TransientError: the hub does not answer.
    """
    if source.startswith(HUB):
        folder = fetched(ctx, source.removeprefix(HUB), SPARE * wanted)
        return read_rows(folder / METADATA, (folder,)), f"{source} holds no clip with a text"
    folder = ctx.resolve(source)
    if (folder / METADATA).is_file():
        return read_rows(folder / METADATA, (folder,)), f"{folder / METADATA} names no clip"
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        rows = [row for row in sample(list(_common_voice(table)), SPARE * wanted, ctx.spec.seed) if row.path.is_file()]
        return rows, f"none of the clips that {table} lists is in {folder / 'clips'}"
    return [], f"there is no {METADATA} and no Common Voice in {folder}"


def _common_voice(table: Path) -> Iterator[Row]:
    """The rows of one of Common Voice's tables; what is not a plain file name is passed over."""
    clips = table.parent / "clips"
    with open(table, encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            name, text = Path(line.get("path") or "").name, (line.get("sentence") or "").strip()
            if name and text:
                yield Row(name, clips / name, text, line.get("client_id") or name, accent=(line.get("accents") or "").strip())


def fetched(ctx: StageContext, name: str, most: int) -> Path:
    """A folder with the first `most` clips of a hub data set, kept across attempts."""
    folder = ctx.scratch() / f"replay-{hashlib.sha256(f'{name} {most}'.encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    work = folder.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    lines = []
    with loading(name):
        for number, row in enumerate(islice(_streamed(name), most)):
            ctx.check_stop()
            if number % 100 == 0:
                ctx.quiet(FETCH_QUIET_S, f"general speech: {number} of {most} clips of {name}")
            if (line := _kept(work, number, row)) is not None:
                lines.append(msgspec.json.encode(line) + b"\n")
    (work / METADATA).write_bytes(b"".join(lines))
    publish_folder(work, folder)
    return folder


def _streamed(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set as they come, their sound as the bytes of its file."""
    import datasets

    path, configuration, split = (*name.split(":"), "", "")[:3]
    found = datasets.load_dataset(path, configuration or None, split=split or "train", streaming=True)
    yield from found.cast_column("audio", datasets.Audio(decode=False))


def _kept(folder: Path, number: int, row: dict[str, Any]) -> dict[str, str] | None:
    """Write the sound of one row; its line of metadata, or None where it has no sound or no text."""
    sound = row.get("audio") or {}
    text = _first(row, TEXTS)
    if not sound.get("bytes") or not text:
        return None
    extension = Path(sound.get("path") or "").suffix[1:].lower()
    file_name = f"{number:06d}.{extension if extension in AUDIO_EXTENSIONS else 'wav'}"
    (folder / file_name).write_bytes(sound["bytes"])
    return {"file_name": file_name, "text": text, "source": _first(row, SPEAKERS) or file_name, "accent": _first(row, ACCENTS)}


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((str(row[name]).strip() for name in names if row.get(name) not in (None, "")), "")

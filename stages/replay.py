"""General speech from outside, to be mixed in against forgetting: an audiofolder, an unpacked Common Voice, a hub data set."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from stages.loading import loading
from stages.recordings import AUDIO_EXTENSIONS
from stages.runtime import StageContext
from stages.speech_rows import Row, read_rows, sample
from state.contract import MisconfiguredError
from state.durable import append_durably, make_folder, publish_folder, write_atomically, write_new

HUB = "hub:"
METADATA = "metadata.jsonl"
TABLES = ("validated.tsv", "train.tsv")
"""Of Common Voice, in the order of preference: validated clips were listened to by two people."""
COLUMNS = ("path", "sentence")
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
    return unpacked(ctx.resolve(source), SPARE * wanted, ctx.spec.seed)


def unpacked(folder: Path, most: int, seed: int) -> tuple[list[Row], str]:
    """The clips of an audiofolder, or of Common Voice at most `most`, and why there are none.

    Raises:
        MisconfiguredError: it is there and cannot be used.
    """
    if (folder / METADATA).is_file():
        return read_rows(folder / METADATA, (folder,)), f"{folder / METADATA} names no clip"
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    if table is not None:
        rows = [row for row in sample(_common_voice(table), most, seed) if row.path.is_file()]
        return rows, f"none of the clips that {table} lists is in {folder / 'clips'}: unpack them too"
    below = next((path.parent for path in sorted(folder.glob("*/*.tsv")) if path.name in TABLES), None)
    hint = f"; there is one in {below}: name that folder" if below else ""
    return [], f"there is no {METADATA} and no Common Voice in {folder}{hint}"


def _common_voice(table: Path) -> Iterator[Row]:
    """The rows of one of Common Voice's tables; what is not a plain file name is passed over."""
    clips, again = table.parent / "clips", "unpack Common Voice's archive again, or name another folder"
    with open(table, encoding="utf-8", newline="") as file:
        lines = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        try:
            columns = lines.fieldnames or []
            if missing := [column for column in COLUMNS if column not in columns]:
                found = ", ".join(columns)[:80] or "nothing"
                raise MisconfiguredError(
                    f"{table} has no column {' and none '.join(missing)}; its first line holds {found}: {again}"
                )
            for line in lines:
                name, text = (line["path"] or "").rpartition("/")[2], (line["sentence"] or "").strip()
                if name and text:
                    yield Row(name, clips / name, text, line.get("client_id") or name, accent=_first(line, ACCENTS))
        except (UnicodeDecodeError, csv.Error) as error:
            raise MisconfiguredError(f"{table} cannot be read after line {lines.line_num} ({error}); {again}") from error


def brought(name: str) -> Path:
    """Where `vigil fetch` puts the clips of a hub data set: beside the models that it brings."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / "vigil-speech" / re.sub(r"[^\w.-]+", "--", name)


def fetched(ctx: StageContext, name: str, most: int) -> Path:
    """A folder with the first `most` clips of a hub data set, kept across attempts; or those that `vigil fetch` brought."""
    folder = ctx.scratch() / f"replay-{hashlib.sha256(f'{name} {most}'.encode()).hexdigest()[:12]}"
    for there in (folder, brought(name)):
        if there.is_dir():
            return there

    def beat(number: int) -> None:
        ctx.check_stop()
        if number % 100 == 0:
            ctx.quiet(FETCH_QUIET_S, f"general speech: {number} of {most} clips of {name}")

    ctx.quiet(FETCH_QUIET_S, f"general speech: asking for {name}")
    collect(name, folder, most, beat)
    return folder


def collect(name: str, folder: Path, most: int, beat: Callable[[int], None]) -> None:
    """Make `folder` of the first `most` clips of a hub data set, from where a killed call stopped; `beat` gets each one's number.

    Raises:
        TransientError, MisconfiguredError: as `stages.loading` says; what came so far is kept.
    """
    work = folder.with_name(f"{folder.name}.part")
    make_folder(work)
    first = _collected(work)
    with loading(name):
        for number, row in enumerate(_streamed(name, first, most - first), start=first):
            beat(number)
            if (line := _kept(work, number, row)) is not None:
                append_durably(work / METADATA, msgspec.json.encode(line))
    publish_folder(work, folder)


def _collected(work: Path) -> int:
    """How many rows of the data set are done with; what a kill tore off is forgotten."""
    metadata = work / METADATA
    lines = metadata.read_bytes().splitlines(keepends=True) if metadata.exists() else []
    names = [msgspec.json.decode(line)["file_name"] for line in takewhile(lambda line: line.endswith(b"\n"), lines)]
    whole = list(takewhile(lambda name: (work / name).is_file(), names))
    write_atomically(metadata, b"".join(lines[: len(whole)]))
    return int(Path(whole[-1]).stem) + 1 if whole else 0


def _streamed(name: str, first: int, count: int) -> Iterator[dict[str, Any]]:
    """The rows of a data set from `first` on as they come, `count` at most, their sound as the bytes of its file."""
    if count <= 0:
        return
    import datasets

    path, configuration, split = (*name.split(":"), "", "")[:3]
    found = datasets.load_dataset(path, configuration or None, split=split or "train", streaming=True)
    yield from found.cast_column("audio", datasets.Audio(decode=False)).skip(first).take(count)


def _kept(folder: Path, number: int, row: dict[str, Any]) -> dict[str, str] | None:
    """Write the sound of one row; its line of metadata, or None where it has no sound or no text."""
    sound = row.get("audio") or {}
    text = _first(row, TEXTS)
    if not sound.get("bytes") or not text:
        return None
    extension = Path(sound.get("path") or "").suffix[1:].lower()
    file_name = f"{number:06d}.{extension if extension in AUDIO_EXTENSIONS else 'wav'}"
    write_new(folder / file_name, sound["bytes"])
    return {"file_name": file_name, "text": text, "source": _first(row, SPEAKERS) or file_name, "accent": _first(row, ACCENTS)}


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str:
    return next((str(row[name]).strip() for name in names if row.get(name) not in (None, "")), "")

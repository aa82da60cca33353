"""Speech with its text, as rows of a metadata.jsonl: which rows count, which are held out, which are mixed in.

Only `read_rows` and `row_lines` look at files.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from stages.recordings import within
from state.contract import MisconfiguredError

KEPT = "kept"
MAX_HELD_OUT_SHARE = 0.2
"""Of the recordings."""


class SpeechLine(msgspec.Struct, frozen=True):
    """One line of metadata.jsonl; an audiofolder from elsewhere has `file_name` and `text` only."""

    file_name: str
    text: str
    verdict: str = KEPT
    source: str | None = None
    """The recording that the chunk was cut from, or who spoke."""
    accent: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One clip and its text."""

    id: str
    path: Path
    text: str
    source: str
    replay: bool = False
    accent: str = ""
    """Of the speaker, where it is known."""


def read_rows(metadata: Path, folders: Sequence[Path]) -> list[Row]:
    """The kept rows of `metadata` that have a text; `file_name` is looked for in each of `folders` in turn.

    Raises:
        MisconfiguredError: the file is missing or malformed, or a row names a file that is not there or lies elsewhere.
    """
    rows = []
    for number, line in _lines(metadata):
        if line.verdict == KEPT and line.text.strip():
            path = _located(metadata, number, line.file_name, folders)
            rows.append(Row(line.file_name, path, line.text.strip(), line.source or line.file_name, accent=line.accent or ""))
    return rows


def split_by_source(rows: Sequence[Row], dev_examples: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to train on and rows held out, no recording on both sides.

    Recordings are held out in the order of a hash until they give `dev_examples` rows or a fifth of them is out; at least one
    where there are two, and no more rows than asked for.
    """
    by_source: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_source[row.source].append(row)
    most = max(1, int(len(by_source) * MAX_HELD_OUT_SHARE)) if len(by_source) > 1 and dev_examples else 0
    held: set[str] = set()
    count = 0
    for source in sorted(by_source, key=lambda name: _order(seed, name))[:most]:
        if count >= dev_examples:
            break
        held.add(source)
        count += len(by_source[source])
    dev = sorted((row for row in rows if row.source in held), key=lambda row: _order(seed, row.id))[:dev_examples]
    return [row for row in rows if row.source not in held], dev


def sample(rows: Iterable[Row], most: int | None, seed: int) -> list[Row]:
    """At most `most` of the rows, the same ones every time, in their own order; no more than so many are held."""
    if most is None:
        return list(rows)
    chosen = heapq.nsmallest(most, enumerate(rows), key=lambda one: _order(seed, one[1].id))
    return [row for _index, row in sorted(chosen, key=lambda one: one[0])]


def choose_replay(
    train: Sequence[Row], dev: Sequence[Row], replay: Sequence[Row], share: float, seed: int
) -> tuple[list[Row], list[Row]]:
    """Replay clips that make `share` of the training rows, and others for the dev rows (at most a tenth of all clips).

    Accents take turns, so that each has the same part as far as its clips go. Who is held out is not trained on, unless that
    left less than half of the clips.
    """
    named = (replace(row, id=f"replay/{row.id}", replay=True) for row in replay)
    ordered = by_turns(sorted(named, key=lambda row: _order(seed, row.id)))
    held_out = ordered[: min(replay_count(len(dev), share), len(ordered) // 10)]
    speakers = {row.source for row in held_out}
    rest = ordered[len(held_out) :]
    apart = [row for row in rest if row.source not in speakers]
    return (apart if len(apart) >= len(ordered) // 2 else rest)[: replay_count(len(train), share)], held_out


def by_turns(rows: Sequence[Row]) -> list[Row]:
    """The rows in another order: the first of each accent, the second of each, and so on; as they are where none is known."""
    count: dict[str, int] = defaultdict(int)
    turns = []
    for row in rows:
        turns.append(count[row.accent])
        count[row.accent] += 1
    return [rows[index] for index in sorted(range(len(rows)), key=lambda index: (turns[index], index))]


def replay_count(own: int, share: float) -> int:
    """Clips that make `share` of the whole when added to `own` rows; `share` is below 1."""
    return round(own * share / (1 - share))


def row_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line a row, for the data's fingerprint: name, size of the file and text."""
    return (f"{row.id}\t{row.path.stat().st_size}\t{row.text}" for row in rows)


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def _located(metadata: Path, number: int, name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        try:
            path = within(folder, name)
        except ValueError as error:
            raise MisconfiguredError(f"{metadata}, line {number}: {error}; correct file_name") from error
        if path.is_file():
            return path
    raise MisconfiguredError(f"{metadata}, line {number}: there is no {name} in {' or '.join(map(str, folders))}; make it again")


def _lines(metadata: Path) -> Iterator[tuple[int, SpeechLine]]:
    decoder = msgspec.json.Decoder(SpeechLine)
    try:
        lines = metadata.read_bytes().splitlines()
    except OSError as error:
        raise MisconfiguredError(f"{metadata} cannot be read ({error.strerror}); run the stage that writes it first") from error
    for number, line in enumerate(lines, start=1):
        try:
            yield number, decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MisconfiguredError(f"{metadata}, line {number}: not a row with file_name and text ({error})") from error

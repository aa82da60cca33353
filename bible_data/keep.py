"""Finished units of a build, kept on disk, so that a build which was killed goes on with the unit that was in flight.

A unit is one file: the digest of its value, then the value as JSON; one whose digest is wrong does not count. Every unit is a
function of the same inputs (texts, licence notes, options, tables, this package's code), so one digest over all of them names
the folder, and what belongs to other inputs is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bible_data.books import Reference
from bible_data.sources import find_file, read_bytes

PACKAGE = Path(__file__).parent

Rows = list[list[Any]]
"""Verses as JSON has them: book, chapter, verse, text."""


class Keep:
    """The units of one build below `folder`."""

    def __init__(self, folder: Path, inputs: str) -> None:
        """`inputs`: the digest of all that the units depend on."""
        self._folder = folder / inputs[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != self._folder:
                shutil.rmtree(other)

    def read(self, unit: str) -> Any:
        """The unit's value, or None if it is not there whole."""
        with contextlib.suppress(FileNotFoundError):
            head, _, body = self._path(unit).read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() == head:
                return json.loads(body)
        return None

    def write(self, unit: str, value: Any) -> None:
        """Keep a value (not None), durably and whole."""
        path = self._path(unit)
        temporary = path.with_name(f".{path.name}.tmp")
        body = json.dumps(value, ensure_ascii=False).encode()
        with open(temporary, "wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)

    def _path(self, unit: str) -> Path:
        return self._folder / f"{re.sub('[^A-Za-z0-9_-]', '_', unit)}.json"


def inputs_digest(source: Path, names: Iterable[tuple[str, str]], options: Any) -> str:
    """What the units of a build depend on, as one digest; `names`: (language, text).

    Raises:
        CorpusError: a text is not there or cannot be read.
    """
    whole = hashlib.sha256(json.dumps([sys.version, dataclasses.asdict(options)]).encode())
    for language, name in names:
        readme = source / "sources" / language / name / "README.md"
        whole.update(hashlib.sha256(read_bytes(find_file(source, name)[0])).digest())
        with contextlib.suppress(OSError):  # the reader says what is wrong with it
            whole.update(hashlib.sha256(readme.read_bytes()).digest())
    for path in sorted((*PACKAGE.glob("*.py"), *(PACKAGE / "data").glob("*.*"))):
        whole.update(hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()


def to_rows(verses: Mapping[Reference, str]) -> Rows:
    """Verses as JSON holds them: book, chapter, verse, text."""
    return [[*reference, text] for reference, text in verses.items()]


def to_verses(rows: Rows) -> dict[Reference, str]:
    """The verses that `to_rows` made these of."""
    return {Reference(book, chapter, verse): text for book, chapter, verse, text in rows}


def sync(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

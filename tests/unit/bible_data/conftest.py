"""Texts for the tests of the corpus: small invented ones, and the real ones where they lie beside the repository."""

from __future__ import annotations

import csv
import io
import json
import lzma
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from bible_data.books import BOOKS, ORDER, Reference
from bible_data.sample import write_sample

SHARED = Path(__file__).parents[4] / "shared" / "data"

Verses = dict[Reference, str]


def invented(verses: int = 12, word: str = "river") -> Verses:
    """A text of one chapter of each of two books."""
    return {
        Reference(book, 1, number): f"The {word} of {book} said that the watchman and the stone number {number} came."
        for book in ("Genesis", "Mark")
        for number in range(1, verses + 1)
    }


def database(path: Path, name: str, verses: Verses, licence: str = "Public Domain", *, drop: str = "") -> Path:
    """A database as scrollmapper publishes it; `drop` names a table to leave out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(
        "CREATE TABLE translations (translation TEXT PRIMARY KEY, title TEXT, license TEXT);"
        f"CREATE TABLE {name}_books (id INTEGER PRIMARY KEY, name TEXT);"
        f"CREATE TABLE {name}_verses (id INTEGER PRIMARY KEY, book_id INTEGER, chapter INTEGER, verse INTEGER, text TEXT);"
    )
    connection.execute("INSERT INTO translations VALUES (?, ?, ?)", (name, f"# {name}: invented", licence))
    connection.executemany(f"INSERT INTO {name}_books VALUES (?, ?)", [(ORDER[book] + 1, book) for book in BOOKS])
    rows = [(ORDER[ref.book] + 1, ref.chapter, ref.verse, text) for ref, text in verses.items()]
    connection.executemany(f"INSERT INTO {name}_verses (book_id, chapter, verse, text) VALUES (?, ?, ?, ?)", rows)
    if drop:
        connection.execute(f"DROP TABLE {drop}")
    connection.commit()
    connection.close()
    return path


def csv_bytes(verses: Verses) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Book", "Chapter", "Verse", "Text"])
    writer.writerows([*ref, text] for ref, text in verses.items())
    return file.getvalue().encode()


def json_bytes(verses: Verses) -> bytes:
    books: dict[str, dict[int, list[dict[str, object]]]] = {}
    for ref, text in verses.items():
        books.setdefault(ref.book, {}).setdefault(ref.chapter, []).append({"verse": ref.verse, "text": text})
    nested = [
        {"name": book, "chapters": [{"chapter": number, "verses": rows} for number, rows in chapters.items()]}
        for book, chapters in books.items()
    ]
    return json.dumps({"translation": "invented", "books": nested}, ensure_ascii=False).encode()


def readme(source: Path, language: str, name: str, licence: str = "Public Domain") -> None:
    path = source / "sources" / language / name / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {name}: invented\n\n**License:** {licence}\n", encoding="utf-8")


@pytest.fixture(scope="session")
def sample_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own sample, written out once."""
    return write_sample(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="session")
def real_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real texts, unpacked."""
    packed = SHARED / "bible_databases"
    if not packed.is_dir():
        pytest.skip("the real Bible texts (../shared/data) are not beside the repository")
    folder = tmp_path_factory.mktemp("bibles")
    for path in sorted(packed.rglob("*")):
        target = folder / path.relative_to(packed)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            target.with_suffix("" if path.suffix == ".xz" else path.suffix).write_bytes(
                lzma.decompress(content) if path.suffix == ".xz" else content
            )
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Writes one file of a source folder and returns that folder."""

    def write(name: str, content: bytes) -> Path:
        path = tmp_path / "source" / "formats" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return tmp_path / "source"

    return write

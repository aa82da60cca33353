"""Readers of Bible texts in scrollmapper/bible_databases' layout: `formats/{sqlite,csv,json}/NAME.{db,csv,json}`.

They refuse and never guess: whatever is not plainly the expected file becomes a CorpusError that names the file, the
value seen and the next step. Texts come out as published; cleaning and renumbering happen elsewhere.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bible_data.books import Reference, canonical_book
from bible_data.errors import CorpusError
from bible_data.licences import Licence, permit

FORMATS = {"sqlite": "db", "json": "json", "csv": "csv"}
"""Format -> file name ending, in the order of preference where a text comes in several."""

FETCH = "fetch it again from github.com/scrollmapper/bible_databases"
LFS_POINTER = b"version https://git-lfs"
SQLITE_MAGIC = b"SQLite format 3\x00"
HIGHEST_NUMBER = 200
"""No chapter or verse number exceeds Psalm 119's 176 verses; a larger one means a shifted column."""
MOJIBAKE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac|\ufffd")
"""UTF-8 read as Latin-1 and saved again, or a character already lost."""

COMMON_WORDS = {"en": frozenset({"the", "and", "of", "that"}), "es": frozenset({"de", "y", "la", "que"})}

Row = tuple[str, int, int, str]
"""Book as the file names it, chapter, verse, text."""


@dataclass(frozen=True)
class Text:
    """One translation as published."""

    name: str
    language: str
    file: str
    """Relative to the source folder."""
    size_bytes: int
    sha256: str
    licence: Licence
    verses: dict[Reference, str]
    """Every row, empty ones included."""
    rows: int
    repeated_rows: int
    """Rows that say again what an earlier row of the same reference said."""

    @property
    def filled(self) -> int:
        """Rows that hold any text."""
        return sum(1 for text in self.verses.values() if text.strip())


def read_text(source: Path, language: str, name: str, min_verses: int) -> Text:
    """Read and check text `name` from the folder `source`.

    Raises:
        CorpusError: no such text, not the expected kind of file, damaged, wrongly encoded, too few verses, or not free.
    """
    path, kind = find_file(source, name)
    content = read_bytes(path)
    table: tuple[str, str] | None = None
    if kind == "sqlite":
        table, rows = read_sqlite(path, content, name)
    elif kind == "json":
        rows = read_json(path, content)
    else:
        rows = read_csv(path, content)
    licence = permit(source, language, name, table)
    verses, count, repeated = collect(path, rows)
    text = Text(
        name=name,
        language=language,
        file=path.relative_to(source).as_posix(),
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        licence=licence,
        verses=verses,
        rows=count,
        repeated_rows=repeated,
    )
    check_filled(path, text, min_verses)
    check_language(path, text)
    return text


def find_file(source: Path, name: str) -> tuple[Path, str]:
    """The file of text `name` and its format, the preferred one where there are several.

    Raises:
        CorpusError: the folder or the text is not there; a packed copy beside it is named.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise CorpusError(f"{name!r} is not the name of a text; names are like KJV or SpaRV1865")
    if not (source / "formats").is_dir():
        seen = "no folder formats/ in it" if source.is_dir() else "no such folder"
        raise CorpusError(f"{source}: {seen}; give the folder of a checkout of scrollmapper/bible_databases")
    for kind, ending in FORMATS.items():
        path = source / "formats" / kind / f"{name}.{ending}"
        if path.is_file():
            return path, kind
    packed = sorted(path for path in (source / "formats").rglob(f"{name}.*") if path.suffix in {".xz", ".gz", ".zip", ".bz2"})
    if packed:
        raise CorpusError(f"{packed[0]}: text {name} is still packed; unpack it (xz -dk) and call again")
    there = sorted({path.stem for path in (source / "formats").glob("*/*") if path.suffix.lstrip(".") in FORMATS.values()})
    seen = ", ".join(there[:12]) or "none"
    raise CorpusError(f"{source}: no text {name} under formats/sqlite, formats/json or formats/csv (there: {seen}); {FETCH}")


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        CorpusError: unreadable, empty, or a Git LFS pointer in place of the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions") from error
    if not content:
        raise CorpusError(f"{path}: 0 bytes; {FETCH}")
    if content.startswith(LFS_POINTER):
        raise CorpusError(
            f"{path}: a Git LFS pointer of {len(content)} bytes in place of the file; run `git lfs pull`, then call again"
        )
    return content


def read_sqlite(path: Path, content: bytes, name: str) -> tuple[tuple[str, str], list[Row]]:
    """((title, licence), rows) of a database with tables translations, NAME_books and NAME_verses.

    Raises:
        CorpusError: not a database, truncated or damaged, another schema, text that is not UTF-8.
    """
    if not content.startswith(SQLITE_MAGIC):
        raise CorpusError(f"{path}: not an SQLite database (begins with {content[:16]!r}); {FETCH}")
    _check_size(path, content)
    try:
        connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1", uri=True)
        try:
            return _query(path, connection, name)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise CorpusError(f"{path}: damaged database ({error}); {FETCH}") from error


def _check_size(path: Path, content: bytes) -> None:
    """A database's header names its length in pages (https://www.sqlite.org/fileformat.html, offsets 16 and 28)."""
    if len(content) < 100:
        raise CorpusError(f"{path}: truncated, {len(content)} bytes are less than a database's header; {FETCH}")
    page_bytes = int.from_bytes(content[16:18], "big")
    expected = (65536 if page_bytes == 1 else page_bytes) * int.from_bytes(content[28:32], "big")
    if len(content) < expected:
        raise CorpusError(f"{path}: truncated, {len(content)} of {expected} bytes; {FETCH}")


def _query(path: Path, connection: sqlite3.Connection, name: str) -> tuple[tuple[str, str], list[Row]]:
    connection.text_factory = bytes
    problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if problem != b"ok":
        raise CorpusError(f"{path}: damaged database ({problem.decode(errors='replace')}); {FETCH}")
    wanted = {
        "translations": {"translation", "title", "license"},
        f"{name}_books": {"id", "name"},
        f"{name}_verses": {"book_id", "chapter", "verse", "text"},
    }
    for table, columns in wanted.items():
        found = {row[1].decode(errors="replace") for row in connection.execute(f'PRAGMA table_info("{table}")')}
        if not columns <= found:
            seen = f"has the columns {sorted(found)}" if found else "is missing"
            raise CorpusError(f"{path}: wrong schema, table {table} {seen}, expected {sorted(columns)}; {FETCH}")
    statements = connection.execute("SELECT translation, title, license FROM translations").fetchall()
    stated = {_utf8(path, "translations", row[0]): row for row in statements}
    if name not in stated:
        raise CorpusError(
            f"{path}: its translations table names {sorted(stated)}, not {name}; the file holds another text, {FETCH}"
        )
    title, licence = (_utf8(path, "translations", value) for value in stated[name][1:])
    query = (  # the name is checked against [A-Za-z0-9_-]+
        f'SELECT b.name, v.chapter, v.verse, v.text, v.book_id FROM "{name}_verses" v '
        f'LEFT JOIN "{name}_books" b ON b.id = v.book_id ORDER BY v.rowid'
    )
    return (title, licence), list(_sqlite_rows(path, connection.execute(query)))


def _sqlite_rows(path: Path, cursor: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
    for book, chapter, verse, text, book_id in cursor:
        if book is None:
            raise CorpusError(f"{path}: wrong schema, book id {book_id!r} of a verse is not in its table of books; {FETCH}")
        if not isinstance(chapter, int) or not isinstance(verse, int):
            raise CorpusError(f"{path}: wrong schema, chapter {chapter!r} and verse {verse!r} are not numbers; {FETCH}")
        where = f"{_utf8(path, 'a book name', book)} {chapter}:{verse}"
        yield _utf8(path, "a book name", book), chapter, verse, _utf8(path, where, text)


def _utf8(path: Path, where: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, bytes):
        raise CorpusError(f"{path}: wrong schema, {where} holds {value!r} where text belongs; {FETCH}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path}: wrong encoding, {where} is not UTF-8 (byte {value[error.start]:#04x}); {FETCH}") from error


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CorpusError(
            f"{path}: wrong encoding, line {line} is not UTF-8 (byte {content[error.start]:#04x}); {FETCH}"
        ) from error


def read_csv(path: Path, content: bytes) -> list[Row]:
    """Rows of a CSV file with the header Book,Chapter,Verse,Text.

    Raises:
        CorpusError: not UTF-8, another header, a row of another shape, a last line that breaks off.
    """
    text = _decode(path, content)
    if not text.endswith("\n"):
        raise CorpusError(f"{path}: truncated, the last line breaks off at {text[-40:]!r}; {FETCH}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        if header != ["book", "chapter", "verse", "text"]:
            raise CorpusError(
                f"{path}: wrong schema, the first line is {','.join(header)[:80]!r}, not Book,Chapter,Verse,Text; {FETCH}"
            )
        for cells in reader:
            if len(cells) != 4 or not (cells[1].isdecimal() and cells[2].isdecimal()):
                raise CorpusError(f"{path}: line {reader.line_num} is not Book,Chapter,Verse,Text but {cells[:4]!r:.120}; {FETCH}")
            rows.append((cells[0], int(cells[1]), int(cells[2]), cells[3]))
    except csv.Error as error:
        raise CorpusError(f"{path}: truncated or damaged near line {reader.line_num} ({error}); {FETCH}") from error
    return rows


def read_json(path: Path, content: bytes) -> list[Row]:
    """Rows of a JSON file {translation, books: [{name, chapters: [{chapter, verses: [{verse, text}]}]}]}.

    Raises:
        CorpusError: not UTF-8, not JSON (a truncated file is not), another shape; the path to the bad part is named.
    """
    try:
        data = json.loads(_decode(path, content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorpusError(f"{path}: truncated or not JSON ({error}); {FETCH}") from error
    rows: list[Row] = []
    for book_at, book in _items(path, data, "$", "books"):
        name = _member(path, book, book_at, "name", str)
        for chapter_at, chapter in _items(path, book, book_at, "chapters"):
            number = _member(path, chapter, chapter_at, "chapter", int)
            for verse_at, verse in _items(path, chapter, chapter_at, "verses"):
                text = _member(path, verse, verse_at, "text", str)
                rows.append((name, number, _member(path, verse, verse_at, "verse", int), text))
    return rows


def _items(path: Path, parent: Any, at: str, key: str) -> Iterator[tuple[str, Any]]:
    for place, item in enumerate(_member(path, parent, at, key, list)):
        yield f"{at}.{key}[{place}]", item


def _member(path: Path, parent: Any, at: str, key: str, kind: type) -> Any:
    value = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CorpusError(f"{path}: wrong schema, {at}.{key} is {value!r:.60}, expected {kind.__name__}; {FETCH}")
    return value


def collect(path: Path, rows: Iterable[Row]) -> tuple[dict[Reference, str], int, int]:
    """(verses by canonical reference, rows read, rows that only repeat an earlier one).

    Raises:
        CorpusError: an unknown book, an impossible number, two texts for one reference, or mojibake.
    """
    names: dict[str, str] = {}
    verses: dict[Reference, str] = {}
    count = repeated = 0
    for name, chapter, verse, text in rows:
        count += 1
        book = names.get(name) or _book(path, name)
        names[name] = book
        reference = Reference(book, chapter, verse)
        if not (1 <= chapter <= HIGHEST_NUMBER and 0 <= verse <= HIGHEST_NUMBER):
            raise CorpusError(
                f"{path}: row {count} is numbered {reference}, which no Bible has; the columns may be shifted, {FETCH}"
            )
        if reference not in verses:
            verses[reference] = text
        elif verses[reference] == text:
            repeated += 1
        else:
            raise CorpusError(f"{path}: two different texts for {reference}; {FETCH}")
    _check_letters(path, verses)
    return verses, count, repeated


def _check_letters(path: Path, verses: dict[Reference, str]) -> None:
    if MOJIBAKE.search("\n".join(verses.values())) is None:
        return
    reference, text = next((reference, text) for reference, text in verses.items() if MOJIBAKE.search(text))
    raise CorpusError(f"{path}: wrong encoding, {reference} reads {text[:40]!r}: UTF-8 that was once read as Latin-1; {FETCH}")


def _book(path: Path, name: str) -> str:
    book = canonical_book(name)
    if book is None:
        raise CorpusError(f"{path}: {name!r} is not one of the 66 books; use a text without further books")
    return book


def check_filled(path: Path, text: Text, min_verses: int) -> None:
    """Refuse a text that is all empty (as some are published) or too small to be what it says.

    Raises:
        CorpusError: naming the counts.
    """
    filled = text.filled
    if not filled:
        raise CorpusError(f"{path}: all {text.rows} verses of {text.name} are empty (it is published so); choose another text")
    if filled < min_verses:
        raise CorpusError(
            f"{path}: {text.name} has {filled} verses with text, fewer than min_verses = {min_verses}; "
            f"fetch it again, or lower min_verses"
        )


def check_language(path: Path, text: Text) -> None:
    """Refuse a file that holds the other language, told by the commonest words.

    Raises:
        CorpusError: naming both counts.
    """
    seen = Counter(word for verse in list(text.verses.values())[::10] for word in verse.lower().split())
    counts = {language: sum(seen[word] for word in words) for language, words in COMMON_WORDS.items()}
    likely = max(counts, key=lambda language: counts[language])
    if counts[likely] > counts[text.language]:
        raise CorpusError(
            f"{path}: asked for as {text.language}, but it reads like {likely} ({counts[likely]} of its commonest words against "
            f"{counts[text.language]}); correct the lists of texts"
        )


def check_complete(texts: Iterable[Text], max_missing_share: float = 0.01) -> None:
    """Refuse a text that lacks rows (empty ones count as rows) which every other text has: a file that was cut at a line's end.

    Raises:
        CorpusError: the canon's last common row is missing, or more than `max_missing_share` of the common rows are.
    """
    everything = list(texts)
    for text in everything:
        others = [other.verses.keys() for other in everything if other is not text]
        if not others:
            return
        common = set(others[0]).intersection(*others[1:])
        missing = sorted(common - text.verses.keys(), key=lambda reference: reference.place)
        if not missing:
            continue
        last = max(common, key=lambda reference: reference.place)
        if missing[-1] == last or len(missing) > max_missing_share * len(common):
            raise CorpusError(
                f"{text.file}: truncated, {len(missing)} rows that every other text has are missing, "
                f"the first is {missing[0]}; {FETCH}"
            )

"""The readers: three formats give one text, and whatever is not plainly such a file is refused with one sentence."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bible_data.books import Reference
from bible_data.errors import CorpusError
from bible_data.sources import check_complete, read_csv, read_json, read_text
from tests.unit.bible_data.conftest import csv_bytes, database, invented, json_bytes, readme

Place = Callable[[str, bytes], Path]


def database_bytes(folder: Path, verses: dict[Reference, str], name: str = "Foo", **more: str) -> bytes:
    return database(folder / "made" / f"{name}.db", name, verses, **more).read_bytes()


def test_three_formats_one_text(tmp_path: Path, place: Place) -> None:
    """SQLite, CSV and JSON of one text read the same; the licence of the last two comes from the README."""
    verses = invented()
    found = []
    for name, content in (
        ("sqlite/Foo.db", database_bytes(tmp_path, verses)),
        ("csv/Foo.csv", csv_bytes(verses)),
        ("json/Foo.json", json_bytes(verses)),
    ):
        source = place(name, content)
        readme(source, "en", "Foo")
        found.append(read_text(source, "en", "Foo", 10))
        (source / "formats" / name).unlink()
    assert all(text.verses == verses for text in found)
    assert [text.file for text in found] == ["formats/sqlite/Foo.db", "formats/csv/Foo.csv", "formats/json/Foo.json"]
    assert {text.rows for text in found} == {24}


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="ÂÃâ\ufffd"), max_size=40))
def test_any_text_survives_csv_and_json(text: str) -> None:
    """Quotes, commas and letters of any script come back as they were."""
    verses = {Reference("Mark", 1, 1): text}
    assert read_csv(Path("x.csv"), csv_bytes(verses))[0][3] == text
    assert read_json(Path("x.json"), json_bytes(verses))[0][3] == text


VERSES = invented()
CSV = csv_bytes(VERSES)
JSON = json_bytes(VERSES)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4751360\n"

BAD_FILES = {
    "csv empty": ("csv/Foo.csv", b"", "0 bytes"),
    "csv pointer": ("csv/Foo.csv", POINTER, "git lfs pull"),
    "csv truncated in a line": ("csv/Foo.csv", CSV[:-20], "truncated"),
    "csv truncated in a quoted field": ("csv/Foo.csv", CSV + b'Mark,2,1,"The gate\n', "truncated"),
    "csv without header": ("csv/Foo.csv", CSV.split(b"\n", 1)[1], "wrong schema"),
    "csv with other columns": ("csv/Foo.csv", CSV.replace(b"Chapter", b"Kapitel", 1), "wrong schema"),
    "csv with a short row": ("csv/Foo.csv", CSV + b"Mark,2\n", "line 26"),
    "csv with a number in words": ("csv/Foo.csv", CSV + b"Mark,two,1,The gate\n", "line 26"),
    "csv in Latin-1": ("csv/Foo.csv", CSV + "Mark,2,1,coraz\u00f3n\n".encode("latin-1"), "line 26 is not UTF-8"),
    "csv twice encoded": ("csv/Foo.csv", CSV + "Mark,2,1,coraz\u00c3\u00b3n\n".encode(), "wrong encoding"),
    "csv with lost letters": ("csv/Foo.csv", CSV + "Mark,2,1,coraz\ufffdn\n".encode(), "wrong encoding"),
    "csv with two texts for one verse": ("csv/Foo.csv", CSV + b"Mark,1,1,Another sentence of the day\n", "two different texts"),
    "csv with an unknown book": ("csv/Foo.csv", CSV + b"Tobit,1,1,The gate\n", "'Tobit' is not one of the 66"),
    "csv with shifted columns": ("csv/Foo.csv", CSV + b"Mark,1,4711,The gate\n", "which no Bible has"),
    "csv all empty": ("csv/Foo.csv", csv_bytes(dict.fromkeys(VERSES, " ")), "are empty"),
    "csv with few verses": ("csv/Foo.csv", csv_bytes(dict(list(VERSES.items())[:5])), "5 verses with text"),
    "csv in the other language": (
        "csv/Foo.csv",
        csv_bytes(dict.fromkeys(VERSES, "la casa de la luz y que de la")),
        "reads like es",
    ),
    "json empty": ("json/Foo.json", b"", "0 bytes"),
    "json pointer": ("json/Foo.json", POINTER, "git lfs pull"),
    "json truncated": ("json/Foo.json", JSON[: len(JSON) // 2], "truncated or not JSON"),
    "json in Latin-1": ("json/Foo.json", JSON.replace(b"river", "r\u00edo".encode("latin-1"), 1), "not UTF-8"),
    "json of another shape": ("json/Foo.json", b'{"verses": []}', r"\$\.books"),
    "json with a bad verse": ("json/Foo.json", JSON.replace(b'"verse": 3', b'"verse": "3"', 1), r"verses\[2\]\.verse"),
    "json that is a list": ("json/Foo.json", b"[]", r"\$\.books"),
    "json nested without end": ("json/Foo.json", b"[" * 200_000, "not JSON"),
    "sqlite empty": ("sqlite/Foo.db", b"", "0 bytes"),
    "sqlite pointer": ("sqlite/Foo.db", POINTER, "git lfs pull"),
    "sqlite that is text": ("sqlite/Foo.db", b"not a database at all, but long enough to be one", "not an SQLite database"),
    "sqlite header only": ("sqlite/Foo.db", b"SQLite format 3\x00" + b"\x10\x00", "truncated"),
}


@pytest.mark.parametrize(("name", "content", "said"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_files_are_refused(place: Place, name: str, content: bytes, said: str) -> None:
    """Empty, truncated, mis-encoded, wrong schema, pointer, all empty: one sentence with the file, the value and the next step."""
    source = place(name, content)
    readme(source, "en", "Foo")
    with pytest.raises(CorpusError, match=said) as raised:
        read_text(source, "en", "Foo", 10)
    assert str(source / "formats" / name) in str(raised.value)
    assert "\n" not in str(raised.value)


BAD_DATABASES = {
    "missing verses": ({"drop": "Foo_verses"}, "table Foo_verses is missing"),
    "missing translations": ({"drop": "translations"}, "table translations is missing"),
    "not free": ({"licence": "Copyright 1973"}, "Copyright 1973"),
}


@pytest.mark.parametrize(("change", "said"), BAD_DATABASES.values(), ids=BAD_DATABASES.keys())
def test_bad_databases_are_refused(tmp_path: Path, place: Place, change: dict[str, str], said: str) -> None:
    """A table that is not there, a licence that does not allow it."""
    source = place("sqlite/Foo.db", database_bytes(tmp_path, VERSES, **change))
    with pytest.raises(CorpusError, match=said):
        read_text(source, "en", "Foo", 10)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_truncated_database_is_refused(tmp_path: Path, place: Place, share: float) -> None:
    """The header names the length: a download that broke off does not pass."""
    content = database_bytes(tmp_path, VERSES)
    source = place("sqlite/Foo.db", content[: int(len(content) * share)])
    with pytest.raises(CorpusError, match="truncated"):
        read_text(source, "en", "Foo", 10)


def test_a_damaged_database_is_refused(tmp_path: Path, place: Place) -> None:
    """The right length with a page overwritten."""
    content = bytearray(database_bytes(tmp_path, invented(80)))
    content[-4096:] = b"\xa5" * 4096
    source = place("sqlite/Foo.db", bytes(content))
    with pytest.raises(CorpusError, match="damaged database"):
        read_text(source, "en", "Foo", 10)


def test_a_database_with_bytes_that_are_not_utf8_is_refused(tmp_path: Path, place: Place) -> None:
    """The reference of the verse is named."""
    path = database(tmp_path / "made" / "Foo.db", "Foo", VERSES)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE Foo_verses SET text = CAST(x'636f72617af36e' AS TEXT) WHERE verse = 3 AND book_id = 1")
    connection.commit()
    connection.close()
    source = place("sqlite/Foo.db", path.read_bytes())
    with pytest.raises(CorpusError, match="Genesis 1:3 is not UTF-8"):
        read_text(source, "en", "Foo", 10)


def test_a_database_of_another_text_is_refused(tmp_path: Path, place: Place) -> None:
    """A renamed file does not become another text."""
    source = place("sqlite/Bar.db", database_bytes(tmp_path, VERSES, "Foo"))
    with pytest.raises(CorpusError, match="Bar"):
        read_text(source, "en", "Bar", 10)


def test_duplicated_rows_are_counted(place: Place) -> None:
    """A row that says again what an earlier one said is folded, not an error."""
    source = place("csv/Foo.csv", CSV + CSV.split(b"\n", 1)[1])
    readme(source, "en", "Foo")
    text = read_text(source, "en", "Foo", 10)
    assert (text.rows, text.repeated_rows, len(text.verses)) == (48, 24, 24)


def test_a_missing_text_names_what_is_there(place: Place) -> None:
    """The folder, the text asked for, and those that could be had."""
    source = place("csv/Foo.csv", CSV)
    with pytest.raises(CorpusError, match=r"no text Bar .*there: Foo"):
        read_text(source, "en", "Bar", 10)


def test_a_packed_text_is_named(place: Place) -> None:
    """An .xz beside an empty place is told apart from a missing text."""
    source = place("sqlite/Foo.db.xz", b"\xfd7zXZ\x00")
    with pytest.raises(CorpusError, match="still packed"):
        read_text(source, "en", "Foo", 10)


@pytest.mark.parametrize("name", ["../Foo", "Foo bar", "", 'Foo"; DROP TABLE'])
def test_a_name_is_a_name(place: Place, name: str) -> None:
    """A text's name goes into a path and a query: nothing but a plain name is taken."""
    with pytest.raises(CorpusError, match="not the name of a text"):
        read_text(place("csv/Foo.csv", CSV), "en", name, 10)


def test_a_folder_name_with_odd_characters(tmp_path: Path) -> None:
    """A source folder may have a space, a question mark or a percent sign in its name."""
    source = tmp_path / "my bibles? 100%#1"
    database(source / "formats" / "sqlite" / "Foo.db", "Foo", VERSES)
    assert read_text(source, "en", "Foo", 10).filled == 24


def cut(place: Place, name: str, verses: dict[Reference, str]) -> None:
    readme(place(f"csv/{name}.csv", csv_bytes(verses)), "en", name)


@pytest.mark.parametrize("lost", [1, 9])
def test_a_file_cut_at_a_line_end_is_refused(place: Place, lost: int) -> None:
    """Rows at the end that every other text has: even one missing is a truncation."""
    cut(place, "Foo", VERSES)
    cut(place, "Bar", invented(word="garden"))
    cut(place, "Cut", dict(list(VERSES.items())[:-lost]))
    source = place("csv/Foo.csv", CSV)
    texts = [read_text(source, "en", name, 10) for name in ("Foo", "Bar", "Cut")]
    check_complete(texts[:2])
    with pytest.raises(CorpusError, match=rf"csv/Cut.csv: truncated, {lost} rows"):
        check_complete(texts)


def test_further_rows_are_no_truncation(place: Place) -> None:
    """NHEB has two rows more than the others; that does not make the others incomplete."""
    cut(place, "Foo", VERSES)
    cut(place, "Bar", VERSES)
    cut(place, "More", VERSES | {Reference("Mark", 1, 13): "The gate of the city."})
    source = place("csv/Foo.csv", CSV)
    check_complete([read_text(source, "en", name, 10) for name in ("Foo", "Bar", "More")])

"""The facade: what is written, that it adds up, that it is the same every time and never half there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

import bible_data.split
from bible_data import glossary
from bible_data.alignment import bare, fold, versification
from bible_data.books import GENRE, Reference
from bible_data.build import GLOSSARY, MANIFEST, TEST, TRAIN, Options, build
from bible_data.cleaning import Cleaned, clean_text
from bible_data.errors import CorpusError
from bible_data.licences import Licence
from bible_data.manifest import Manifest, explain, read_manifest
from bible_data.pairs import Prepared
from bible_data.sample import ENGLISH, SPANISH, texts
from bible_data.sources import Text
from bible_data.writing import glossary_rows
from tests.unit.bible_data.conftest import database, readme

ROOT = Path(__file__).parents[3]
OPTIONS = Options(english=ENGLISH, spanish=SPANISH, min_verses=1500)
NAMES = (TRAIN, TEST, GLOSSARY, MANIFEST)


@pytest.fixture(scope="module")
def built(sample_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """The sample's corpus and its manifest."""
    out = tmp_path_factory.mktemp("built")
    return out, build(sample_folder, out, OPTIONS)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def digest(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NAMES}


def test_a_pair_has_its_keys(built: tuple[Path, Manifest]) -> None:
    """The eight that the issue names, in both files, with clean text on both sides."""
    for name in (TRAIN, TEST):
        for row in rows(built[0] / name):
            assert set(row) - {"also"} == {"en", "es", "book", "chapter", "verse", "genre", "en_source", "es_source"}
            assert row["en"].strip() == row["en"] != ""
            assert row["es"].strip() == row["es"] != ""
            assert row["en_source"] in ENGLISH
            assert row["es_source"] in SPANISH


def test_a_line_says_what_its_texts_say(built: tuple[Path, Manifest]) -> None:
    """English under `en` and Spanish under `es`, both of the verse that the line names; so do the lines folded into it."""
    cleaned = {name: clean_text(verses).verses for name, verses in texts().items()}
    for row in (*rows(built[0] / TRAIN), *rows(built[0] / TEST)):
        for place in (row, *row.get("also", ())):
            reference = Reference(place["book"], place["chapter"], place["verse"])
            sides = [cleaned[place[f"{side}_source"]][reference] for side in ("en", "es")]
            assert [fold(row["en"]), fold(row["es"])] == [fold(text) for text in sides]
            if place is row:
                assert ([row["en"], row["es"]], row["genre"]) == (sides, GENRE[row["book"]])


def test_the_glossary_counts_the_verses_of_train(built: tuple[Path, Manifest]) -> None:
    """References of the train file that have the term in an English and the equivalent in a Spanish text; none of the test."""
    known = glossary.Glossary(glossary.load())
    english, spanish = defaultdict(set), defaultdict(set)
    for row in rows(built[0] / TRAIN):
        for place in (row, *row.get("also", ())):
            reference = place["book"], place["chapter"], place["verse"]
            english[reference] |= known.english(row["en"])
            spanish[reference] |= known.spanish(row["es"])
    counts = known.together((english[reference], spanish[reference]) for reference in english)
    assert rows(built[0] / GLOSSARY) == known.rows(counts)
    assert sum(counts.values()) > 1000


def test_no_reference_and_no_text_is_on_both_sides(built: tuple[Path, Manifest]) -> None:
    """By reference, by folded text of either language, and by any line that was folded into another."""
    train, test = rows(built[0] / TRAIN), rows(built[0] / TEST)
    for side in ("en", "es"):
        texts = [{bare(fold(row[side])) for row in part} for part in (train, test)]
        assert texts[0].isdisjoint(texts[1])
    places = [
        {(place["book"], place["chapter"], place["verse"]) for row in part for place in (row, *row.get("also", ()))}
        for part in (train, test)
    ]
    assert places[0].isdisjoint(places[1])
    assert len(places[1]) == sum(built[1].split.test_references.values())


def test_the_glossary_is_no_test_verse(built: tuple[Path, Manifest]) -> None:
    """Neither side of a glossary pair is a whole test verse."""
    glossary = {bare(fold(row[side])) for row in rows(built[0] / GLOSSARY) for side in ("en", "es")}
    assert glossary.isdisjoint({bare(fold(row[side])) for row in rows(built[0] / TEST) for side in ("en", "es")})


def test_test_verses_keep_all_their_spanish_texts(built: tuple[Path, Manifest]) -> None:
    """A reference and English text has a line for each Spanish text: both are references when it is scored."""
    spanish = defaultdict(set)
    for row in rows(built[0] / TEST):
        spanish[row["book"], row["chapter"], row["verse"], row["en_source"]].add(row["es_source"])
    assert {frozenset(sources) for sources in spanish.values()} == {frozenset(SPANISH)}


def test_duplicates_are_folded_with_their_provenance(built: tuple[Path, Manifest]) -> None:
    """No two train lines are the same when folded, and each pair that is not a line is named in one."""
    train = rows(built[0] / TRAIN)
    assert len({(fold(row["en"]), fold(row["es"])) for row in train}) == len(train)
    named = [(place["book"], place["chapter"], place["verse"], place["en_source"], place["es_source"])
             for row in train for place in (row, *row.get("also", ()))]  # fmt: skip
    assert len(named) == len(set(named)) == built[1].pairs.train + built[1].pairs.train_folded
    assert built[1].pairs.train_folded > 0


def test_the_counts_add_up(built: tuple[Path, Manifest]) -> None:
    """Rows in to verses, verses to pairs, pairs to lines: nothing is lost without a reason."""
    out, manifest = built
    pairs = manifest.pairs
    assert pairs.aligned == pairs.train + pairs.train_folded + pairs.test + pairs.test_folded
    for text in manifest.texts:
        assert text.verses == text.rows - text.repeated_rows - sum(text.dropped.values())
    assert pairs.aligned_references == sum(manifest.split.references.values())
    for genre, count in manifest.split.references.items():
        assert manifest.split.test_references[genre] == int(count * 0.1 + 0.5)
    lines = {name: len((out / name).read_bytes().splitlines()) for name in (TRAIN, TEST, GLOSSARY)}
    assert lines == {name: file.lines for name, file in manifest.outputs.items()}
    assert (lines[TRAIN], lines[TEST], lines[GLOSSARY]) == (pairs.train, pairs.test, manifest.glossary_pairs)


def test_the_manifest_vouches_for_the_files(built: tuple[Path, Manifest], sample_folder: Path) -> None:
    """Digests of what was read and of what was written; it reads back as what was returned."""
    out, manifest = built
    for name, file in manifest.outputs.items():
        content = (out / name).read_bytes()
        assert (file.sha256, file.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    for text in manifest.texts:
        assert text.sha256 == hashlib.sha256((sample_folder / text.file).read_bytes()).hexdigest()
    assert json.loads((out / MANIFEST).read_bytes()) == json.loads(manifest.encode())
    assert read_manifest(out / MANIFEST).encode() == manifest.encode()


def test_the_account_names_every_count(built: tuple[Path, Manifest]) -> None:
    """The table for the terminal: each text, each rule, each genre and each file."""
    table = explain(built[1])
    for name in (*ENGLISH, *SPANISH, "pilcrow", "placeholder", "apocalyptic", TRAIN, f"{built[1].pairs.train:,}", "kept together"):
        assert name in table


SCRIPT = """
import sys
from pathlib import Path
from bible_data.build import Options, build
from bible_data.sample import ENGLISH, SPANISH
build(Path(sys.argv[1]), Path(sys.argv[2]), Options(english=ENGLISH, spanish=SPANISH, min_verses=1500))
"""


@pytest.mark.parametrize(("seed", "locale", "encoding"), [("1", "C", "0"), ("4711", "tr_TR.UTF-8", "1")])
def test_the_same_bytes_everywhere(
    built: tuple[Path, Manifest], sample_folder: Path, tmp_path: Path, seed: str, locale: str, encoding: str
) -> None:
    """Hash seed, locale, UTF-8 mode, working directory and the place of the folders change nothing."""
    source = shutil.copytree(sample_folder, tmp_path / "elsewhere")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": seed,
        "LC_ALL": locale,
        "PYTHONUTF8": encoding,
        "PYTHONCOERCECLOCALE": "0",
    }
    command = [sys.executable, "-c", SCRIPT, os.path.relpath(source, tmp_path), "out"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "out") == digest(built[0])


def test_progress_goes_to_its_end(built: tuple[Path, Manifest], sample_folder: Path, tmp_path: Path) -> None:
    """Every step is announced, in order, up to all of them; and a path to formats/ means the folder around it."""
    calls: list[tuple[int, int, str]] = []
    build(sample_folder / "formats", tmp_path, OPTIONS, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == [*range(len(calls) - 1), calls[-1][1]]
    assert len({total for _, total, _ in calls}) == 1
    assert calls[-1][0] == calls[-1][1] == len(calls) - 1
    assert digest(tmp_path) == digest(built[0])


class StopAskedError(Exception):
    """What the caller of a build raises to end it."""


@pytest.mark.parametrize("after", [0, 5, 16, 18])
def test_a_stop_leaves_nothing_half_written(sample_folder: Path, tmp_path: Path, after: int) -> None:
    """At whatever look the stop comes: no output, no temporary file."""
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > after:
            raise StopAskedError

    with pytest.raises(StopAskedError):
        build(sample_folder, tmp_path / "out", OPTIONS, check_stop=look)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_failed_build_keeps_the_last_one(built: tuple[Path, Manifest], sample_folder: Path, tmp_path: Path) -> None:
    """Refused inputs change no file of an earlier build."""
    out = shutil.copytree(built[0], tmp_path / "out")
    source = shutil.copytree(sample_folder, tmp_path / "source")
    (source / "formats" / "csv" / "MuestraB.csv").write_bytes(b"")
    with pytest.raises(CorpusError, match="0 bytes"):
        build(source, out, OPTIONS)
    assert digest(out) == digest(built[0])


BAD_OPTIONS = {
    "no english": (Options(english=()), "at least one"),
    "twice": (Options(english=("KJV", "KJV")), "named twice"),
    "both languages": (Options(english=("KJV",), spanish=("KJV",)), "named twice"),
    "all to test": (Options(test_share=1.0), "test_share"),
    "none to test": (Options(test_share=0.0), "test_share"),
    "too few": (Options(english=ENGLISH, spanish=SPANISH), "fewer than min_verses"),
    "swapped": (Options(english=SPANISH, spanish=ENGLISH, min_verses=1500), "reads like|states no licence"),
    "unknown": (Options(english=("NOPE",), spanish=SPANISH, min_verses=1500), "no text NOPE"),
}


@pytest.mark.parametrize(("options", "said"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_options_that_make_no_sense_are_refused(sample_folder: Path, tmp_path: Path, options: Options, said: str) -> None:
    """Before anything is written."""
    with pytest.raises(CorpusError, match=said):
        build(sample_folder, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["missing", "a file", "empty"])
def test_a_source_that_is_no_corpus_is_refused(tmp_path: Path, kind: str) -> None:
    """The path is named."""
    source = tmp_path / "source"
    if kind == "a file":
        source.write_text("x")
    elif kind == "empty":
        source.mkdir()
    with pytest.raises(CorpusError, match=str(source)):
        build(source, tmp_path / "out", OPTIONS)


def test_an_output_folder_that_is_a_file_is_refused(sample_folder: Path, tmp_path: Path) -> None:
    """The path and what to do."""
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(CorpusError, match="cannot be written"):
        build(sample_folder, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"schema": 99}', b'{"schema": 1}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    """Of another schema, cut off, or not there."""
    path = tmp_path / MANIFEST
    with pytest.raises(CorpusError, match="build the corpus again"):
        read_manifest(path)
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="build the corpus again"):
        read_manifest(path)


def test_a_shifted_text_stops_the_build(sample_folder: Path, tmp_path: Path) -> None:
    """A chapter of the CSV file whose verses were renumbered by one is not paired."""
    source = shutil.copytree(sample_folder, tmp_path / "source")
    path = source / "formats" / "csv" / "MuestraB.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    place = lines.index(next(line for line in lines if line.startswith("Luke,5,1,")))
    chapter = [line.split(",", 3)[3] for line in lines[place : place + 20]]
    for number in range(20):
        lines[place + number] = f"Luke,5,{number + 1},{chapter[number - 1]}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"MuestraB is not aligned with SampleA.*Luke 5:"):
        build(source, tmp_path / "out", OPTIONS)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Three texts that are the sample's when they are mended: one counts as the Reina-Valera does, one has lost spaces."""
    spoken = texts()
    plain = {
        name: {ref: text for ref, text in spoken[name].items() if ref.book in ("Jonah", "Ruth")} for name in ("SampleA", "MuestraA")
    }
    numbers = versification()["SpaRV"]
    moved = {change.first for change in numbers.values()}
    counted = {ref: text for ref, text in plain["MuestraA"].items() if ref not in numbers and ref not in moved}
    counted |= {old: plain["MuestraA"][new.first] for old, new in numbers.items() if old.book == "Jonah"}
    glued = {ref: text.replace(" of the ", " ofThe ") for ref, text in plain["SampleA"].items()}
    for language, name, verses in (("en", "Sound", plain["SampleA"]), ("en", "Glued", glued), ("es", "SpaRV", counted)):
        database(tmp_path / "formats" / "sqlite" / f"{name}.db", name, verses)
        readme(tmp_path, language, name)
    return tmp_path


def test_pairs_are_of_mended_texts_under_canonical_numbers(published: Path, tmp_path: Path) -> None:
    """The map and the repair of glued words do not only exist: what is written went through them."""
    spoken = texts()
    options = Options(english=("Sound", "Glued"), spanish=("SpaRV",), min_verses=100)
    manifest = build(published, tmp_path / "out", options)
    written = [*rows(tmp_path / "out" / TRAIN), *rows(tmp_path / "out" / TEST)]
    for row in written:
        reference = Reference(row["book"], row["chapter"], row["verse"])
        assert fold(row["en"]) == fold(spoken["SampleA"][reference])
        assert row["es"] == spoken["MuestraA"][reference]
    found = {(row["book"], row["chapter"], row["verse"]) for row in written}
    assert {("Jonah", 1, 17), ("Jonah", 2, 8), ("Jonah", 2, 11)} <= found
    assert found.isdisjoint({("Jonah", 2, 9), ("Jonah", 2, 10)})  # these two are one verse there
    assert next(text for text in manifest.texts if text.name == "Glued").changed["glued_words"] >= 10


def test_a_split_that_leaks_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in the split: the finished sets are looked at once more, and two that share a text stop the build."""
    for language, name in (("en", "SampleA"), ("es", "MuestraA")):
        spoken = {ref: text for ref, text in texts()[name].items() if ref.book == "Ruth"}
        twice = {ref: spoken[ref._replace(verse=ref.verse - (ref.verse + 1) % 2)] for ref in spoken}
        database(tmp_path / "formats" / "sqlite" / f"{name}.db", name, twice)
        readme(tmp_path, language, name)
    options = Options(english=("SampleA",), spanish=("MuestraA",), min_verses=50)
    assert build(tmp_path, tmp_path / "sound", options).pairs.test == 8
    monkeypatch.setattr(bible_data.split, "join_same", lambda *_: None)
    monkeypatch.setattr(bible_data.split, "join_near", lambda *_: None)
    with pytest.raises(CorpusError, match="hold the same text"):
        build(tmp_path, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("english", "spanish"), [("Grace.", "Un río."), ("A river.", "¡Gracia!")])
def test_a_glossary_term_that_is_a_test_verse_is_refused(english: str, spanish: str) -> None:
    """The pair would give the verse's answer away, in either language; of a train verse it may be the whole."""
    reference = Reference("Mark", 1, 1)
    sides = []
    for verse in (english, spanish):
        text = Text("A", "en", "", 0, "", Licence("", "", ""), {}, 1, 0)
        sides.append([Prepared(text, Cleaned({}), {reference: verse}, {reference: fold(verse)}, 0, Counter())])
    known = glossary.Glossary(glossary.load())
    with pytest.raises(CorpusError, match="'grace' is a whole verse of the test set"):
        glossary_rows(known, (sides[0], sides[1]), [], [reference])
    assert len(glossary_rows(known, (sides[0], sides[1]), [reference], [])) == len(known.pairs)


def test_it_loads_fast_and_light() -> None:
    """The facade imports the standard library alone: the daemon's command line uses it."""
    code = "import sys, bible_data.build, bible_data.manifest, bible_data.sample; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    outside = {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) - {"bible_data", "__main__"}
    assert outside <= {"sitecustomize", "usercustomize"}

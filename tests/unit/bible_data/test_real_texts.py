"""Every count of the facts about the real texts, explained. Skipped where they do not lie beside the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from bible_data.alignment import bare, check_alignment, find_shifts, fold, telling_words, versification
from bible_data.books import Reference
from bible_data.build import MANIFEST, TEST, TRAIN, Options, pair_count, paired
from bible_data.cleaning import Cleaned, clean_text
from bible_data.errors import CorpusError
from bible_data.glossary import Glossary, load
from bible_data.manifest import Manifest, read_manifest
from bible_data.sources import Text, read_text

ROOT = Path(__file__).parents[3]
OPTIONS = Options()
pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def published(real_folder: Path) -> dict[str, Text]:
    """The seven texts as they are."""
    languages = [("en", OPTIONS.english), ("es", OPTIONS.spanish)]
    return {name: read_text(real_folder, language, name, OPTIONS.min_verses) for language, names in languages for name in names}


@pytest.fixture(scope="module")
def cleaned(published: dict[str, Text]) -> dict[str, Cleaned]:
    """The seven texts, cleaned."""
    return {name: clean_text(text.verses) for name, text in published.items()}


def filled(text: Text) -> set[Reference]:
    return {reference for reference, verse in text.verses.items() if verse.strip()}


def test_pairs_and_references_as_published(published: dict[str, Text]) -> None:
    """310,834 pairs over 31,101 references, 31,065 of them in all seven texts; the references of each genre."""
    english, spanish = ([filled(published[name]) for name in names] for names in (OPTIONS.english, OPTIONS.spanish))
    references = paired(english, spanish)
    assert pair_count(english, spanish) == 310_834
    assert len(references) == 31_101
    assert len(set.intersection(*english, *spanish)) == 31_065
    assert Counter(reference.genre for reference in references) == {
        "pentateuch": 5852,
        "history": 7017,
        "poetry": 4785,
        "prophecy": 5490,
        "gospels": 3779,
        "acts_and_epistles": 3774,
        "apocalyptic": 404,
    }


@pytest.mark.slow
def test_duplicates_as_published(published: dict[str, Text]) -> None:
    """16,386 exact duplicates once tags, pilcrows and spaces are gone; 279,710 unique pairs under our fold.

    The facts say 279,712; their fold keeps two pairs apart that ours does not.
    """

    def plain(verse: str) -> str:
        for mark in ("<FI>", "<Fi>", "¶"):
            verse = verse.replace(mark, "")
        return " ".join(verse.split())

    texts = {name: {reference: plain(text.verses[reference]) for reference in filled(text)} for name, text in published.items()}
    pairs = [
        (texts[left][reference], texts[right][reference])
        for left in OPTIONS.english
        for right in OPTIONS.spanish
        for reference in texts[left].keys() & texts[right].keys()
    ]
    assert len(pairs) - len(set(pairs)) == 16_386
    assert abs(len({(fold(english), fold(spanish)) for english, spanish in pairs}) - 279_712) <= 2


def test_residue_by_rule(cleaned: dict[str, Cleaned]) -> None:
    """Tags in 8,233 verses of YLT, pilcrows in 1,659 of SpaRV1865, 14 colophons, 116 psalm titles, 19 placeholders."""
    changed = {name: text.changed for name, text in cleaned.items()}
    assert changed["YLT"]["tags"] == 8_233
    assert changed["SpaRV1865"]["pilcrow"] == 1_659
    assert changed["SpaRV"]["psalm_title"] == changed["YLT"]["psalm_title"] == 116
    assert [changed[name]["colophon"] for name in ("KJV", "SpaRV", "SpaRV1865")] == [14, 14, 14]
    assert [changed[name]["acrostic_letter"] for name in ("SpaRV", "YLT", "ASV")] == [22, 22, 21]
    assert cleaned["BBE"].dropped == {"placeholder": 19, "gap": 65, "empty": 16}
    assert {name: text.dropped["empty"] for name, text in cleaned.items()} == {
        "KJV": 0,
        "ASV": 16,
        "BBE": 16,
        "YLT": 0,
        "NHEB": 7,
        "SpaRV": 18,
        "SpaRV1865": 4,
    }


@pytest.mark.slow
def test_the_spelling_of_1909_stays(published: dict[str, Text], cleaned: dict[str, Cleaned]) -> None:
    """Every circumflex of SpaRV is still there, but in the words of headings that went."""
    before, after = (
        Counter(sign for verse in verses.values() for sign in verse if sign in "âêîôûÂÊÎÔÛ")
        for verses in (published["SpaRV"].verses, cleaned["SpaRV"].verses)
    )
    assert sum(before.values()) - sum(after.values()) <= 10
    assert sum(after.values()) > 1_200


@pytest.mark.slow
def test_a_second_cleaning_changes_nothing(cleaned: dict[str, Cleaned]) -> None:
    """Every text is clean after one pass."""
    for text in cleaned.values():
        again = clean_text(text.verses)
        assert (again.verses, again.dropped) == (text.verses, {})


@pytest.mark.slow
def test_the_self_check_knows_the_shifts(cleaned: dict[str, Cleaned]) -> None:
    """Without the map it names every shifted chapter of a window's length or more, and stops; the map is what lets it pass."""
    folded = {name: {reference: fold(verse) for reference, verse in cleaned[name].verses.items()} for name in ("KJV", "SpaRV")}
    shifts = find_shifts(telling_words(folded["KJV"]), telling_words(folded["SpaRV"]), "SpaRV", False)
    found = {(shift.first.book, shift.first.chapter) for shift in shifts}
    counts = Counter(
        (change.published.book, change.published.chapter) for change in versification()["SpaRV"].values() if change.kind == "shift"
    )
    assert found == {chapter for chapter, count in counts.items() if count >= 6}
    with pytest.raises(CorpusError, match="SpaRV is not aligned with KJV"):
        check_alignment({"KJV": ("en", folded["KJV"]), "SpaRV": ("es", folded["SpaRV"])})


@pytest.mark.slow
def test_three_formats_are_one_text(real_folder: Path, published: dict[str, Text]) -> None:
    """BBE and SpaRV1865 come as SQLite, CSV and JSON: the same verses to the letter."""
    for language, name in (("en", "BBE"), ("es", "SpaRV1865")):
        for kind in ("csv", "json"):
            source = real_folder.parent / f"only {kind} {name}"
            (source / "formats" / kind).mkdir(parents=True)
            (source / "formats" / kind / f"{name}.{kind}").symlink_to(real_folder / "formats" / kind / f"{name}.{kind}")
            (source / "sources").symlink_to(real_folder / "sources")
            assert read_text(source, language, name, 20_000).verses == published[name].verses


@pytest.mark.slow
def test_the_glossary_speaks_as_these_texts_do(cleaned: dict[str, Cleaned]) -> None:
    """Five terms in six stand with an equivalent of theirs in some verse; of those that stand in ten verses or more, all but a few.

    The others are words of theology that no Bible has ("Trinity").
    """
    glossary = Glossary(load())
    found: dict[Reference, tuple[set[int], set[int]]] = defaultdict(lambda: (set(), set()))
    for name, text in cleaned.items():
        for reference, verse in text.verses.items():
            side, terms = (0, glossary.english(verse)) if name in OPTIONS.english else (1, glossary.spanish(verse))
            found[reference][side].update(terms)
    together = glossary.together(found.values())
    borne_out = {glossary.pairs[place][0] for place in together}
    assert len(borne_out) >= 5 * len(glossary.terms) // 6
    frequent = Counter(number for terms, _ in found.values() for number in terms)
    silent = {glossary.terms[number].english[0] for number, times in frequent.items() if times >= 10 and number not in borne_out}
    assert silent == {"intercession", "free will", "Reformation"}


# -- the whole build, as the owner runs it

SCRIPT = """
import resource, sys, time
from pathlib import Path
from bible_data.build import build
build(Path(sys.argv[1]), Path(sys.argv[2]))
print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def run(source: Path, out: Path, cwd: Path, **environment: str) -> tuple[float, int]:
    """(seconds of CPU, peak memory in bytes) of a build in a process of its own."""
    command = [sys.executable, "-c", SCRIPT, os.path.relpath(source, cwd), str(out)]
    settings = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    seconds, peak = done.stdout.split()
    return float(seconds), int(peak)


@pytest.fixture(scope="module")
def built(real_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, float, int]:
    """The corpus of the seven texts, with what it took."""
    out = tmp_path_factory.mktemp("corpus")
    seconds, peak = run(real_folder, out, out, PYTHONHASHSEED="1", LC_ALL="C")
    return out, read_manifest(out / MANIFEST), seconds, peak


def rows(path: Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.slow
def test_time_and_memory(built: tuple[Path, Manifest, float, int]) -> None:
    """Under 60 s of CPU and 1.5 GB."""
    assert built[2] < 60
    assert built[3] < 1_500_000_000


@pytest.mark.slow
def test_the_same_bytes_again(built: tuple[Path, Manifest, float, int], real_folder: Path, tmp_path: Path) -> None:
    """Another hash seed, locale and working directory."""
    run(real_folder, tmp_path / "out", tmp_path, PYTHONHASHSEED="4711", LC_ALL="tr_TR.UTF-8")
    for name in (*built[1].outputs, MANIFEST):
        assert (tmp_path / "out" / name).read_bytes() == (built[0] / name).read_bytes()


@pytest.mark.slow
def test_counts_of_the_build(built: tuple[Path, Manifest, float, int]) -> None:
    """From 310,834 pairs as published to the lines written, step by step; exactly a tenth of each genre is test."""
    manifest = built[1]
    pairs = manifest.pairs
    assert (pairs.published, pairs.published_references, pairs.published_in_all_texts) == (310_834, 31_101, 31_065)
    assert pairs.published - pairs.cleaned == 2 * (19 + 65) - 1  # BBE's placeholders and gaps; SpaRV has no Hosea 11:12
    assert pairs.aligned == pairs.train + pairs.train_folded + pairs.test + pairs.test_folded == 310_563
    assert pairs.aligned_references == 31_100  # II Chronicles 33:25 is back, 33:10 and 33:11 are merged in both Spanish texts
    moved = {text.name: text.moved for text in manifest.texts if text.moved}
    assert moved == {"SpaRV": 174, "SpaRV1865": 15}
    dropped = {text.name: {reason: text.dropped.get(reason, 0) for reason in ("merged", "overflow", "half", "extra")}
               for text in manifest.texts if text.name in {"SpaRV", "SpaRV1865", "NHEB"}}  # fmt: skip
    assert dropped["SpaRV"] == {"merged": 5, "overflow": 8, "half": 4, "extra": 0}
    assert dropped["SpaRV1865"] == {"merged": 4, "overflow": 0, "half": 0, "extra": 0}
    assert dropped["NHEB"] == {"merged": 0, "overflow": 0, "half": 0, "extra": 1}  # the other extra row is empty
    assert manifest.split.test_references == {
        "pentateuch": 585,
        "history": 702,
        "poetry": 479,
        "prophecy": 549,
        "gospels": 378,
        "acts_and_epistles": 377,
        "apocalyptic": 40,
    }
    glued = next(text.changed["glued_words"] for text in manifest.texts if text.name == "ASV")
    assert 450 <= glued <= 600


@pytest.mark.slow
def test_the_pairs_are_the_golden_ones(built: tuple[Path, Manifest, float, int]) -> None:
    """To the byte what they were in November 2026: another digest needs a reason, and every trained model its corpus again."""
    digests = {name: built[1].outputs[name].sha256 for name in (TRAIN, TEST)}
    assert digests == {
        TRAIN: "276bbf8f8e95b4702139d09ebfa45e3336f8839d343ad629453934bdfb8894fc",
        TEST: "521b467decc973771b728f954313bf2b6b60800f9559fed36a08c335309945fd",
    }


@pytest.mark.slow
def test_the_page_says_what_the_manifest_does(built: tuple[Path, Manifest, float, int]) -> None:
    """docs/corpus.md: each rule's row with the count of every text, each reason's, each genre's, and the pairs of each step."""
    page = (ROOT / "docs" / "corpus.md").read_text(encoding="utf-8")
    cells = {row[1].strip(): [cell.strip() for cell in row[2:-1]] for line in page.splitlines() if len(row := line.split("|")) > 3}
    manifest = built[1]
    texts = {text.name: text for text in manifest.texts}
    for rule in {rule for text in manifest.texts for rule in text.changed}:
        assert cells[rule][1:] == [f"{text.changed.get(rule, 0):,}" for text in manifest.texts], rule
    for reason in {reason for text in manifest.texts for reason in text.dropped}:
        names = ("ASV", "BBE", "NHEB", "SpaRV", "SpaRV1865")
        assert cells[reason][1:] == [f"{texts[name].dropped.get(reason, 0):,}" for name in names], reason
    for genre, count in manifest.split.references.items():
        assert cells[genre] == [f"{count:,}", f"{manifest.split.test_references[genre]:,}"]
    counts = [manifest.pairs.published, manifest.pairs.cleaned, manifest.pairs.aligned, manifest.pairs.train, manifest.pairs.test]
    counts += [manifest.pairs.train_folded, manifest.pairs.test_folded, manifest.pairs.exact_duplicates, manifest.glossary_attested]
    counts += [manifest.pairs.folded_duplicates, manifest.split.clusters, manifest.split.clustered_references]
    assert [count for count in counts if f"{count:,}" not in page] == []


@pytest.mark.slow
def test_no_leak(built: tuple[Path, Manifest, float, int]) -> None:
    """By reference, by text without case, punctuation, accents and spaces, and by 60 % of the 5-grams of any one train verse."""
    train, test = rows(built[0] / TRAIN), rows(built[0] / TEST)
    places = [
        {(place["book"], place["chapter"], place["verse"]) for row in part for place in (row, *row.get("also", ()))}
        for part in (train, test)
    ]
    assert places[0].isdisjoint(places[1])
    for side in ("en", "es"):
        texts = [{fold(row[side]) for row in part} for part in (train, test)]
        assert {bare(text) for text in texts[0]}.isdisjoint({bare(text) for text in texts[1]})
        assert near_duplicates(texts[0], texts[1]) == []


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[start : start + 5]) for start in range(len(words) - 4)}


def near_duplicates(train: set[str], test: set[str]) -> list[str]:
    """Test texts of which one train text has 60 % of the 5-grams; written apart from the split's own search."""
    wanted = {text: grams(text) for text in test}
    where: dict[tuple[str, ...], list[str]] = {gram: [] for found in wanted.values() for gram in found}
    for text in train:
        for gram in grams(text):
            if gram in where:
                where[gram].append(text)
    found = []
    for text, own in wanted.items():
        counts = Counter(other for gram in own for other in where[gram])
        if own and any(times >= 0.6 * len(own) for times in counts.values()):
            found.append(text)
    return found

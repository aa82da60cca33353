"""What a build did, in numbers: written last, as manifest.json, and told as a table."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bible_data.errors import CorpusError

SCHEMA = 1


@dataclass(frozen=True)
class TextReport:
    """One text on its way from the file to the pairs. Counts are of verses."""

    name: str
    language: str
    file: str
    """Relative to the source folder."""
    size_bytes: int
    sha256: str
    title: str
    licence: str
    licence_stated_in: str
    licence_note: str
    rows: int
    """In the file, empty ones included."""
    repeated_rows: int
    filled: int
    """References with any text, as published."""
    changed: dict[str, int] = field(default_factory=dict)
    """Cleaning rule -> verses that it changed."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason -> verses that were dropped: empty, placeholder, gap; merged, overflow, half, extra."""
    moved: int = 0
    """Verses that the versification map put under another number."""
    verses: int = 0
    """What is left."""


@dataclass(frozen=True)
class PairCounts:
    """Pairs: one English and one Spanish verse of one reference."""

    published: int
    """Both sides not empty, under the published numbers."""
    published_references: int
    published_in_all_texts: int
    """References that are not empty in any text."""
    cleaned: int
    """After verses of no use were dropped."""
    aligned: int
    """After the versification map."""
    aligned_references: int
    exact_duplicates: int
    """Of the aligned: the same two texts stand in an earlier pair already."""
    folded_duplicates: int
    """Of the aligned: the same but for case and punctuation."""
    train: int
    train_folded: int
    """Train pairs that became a line of `also` in an earlier one."""
    test: int
    test_folded: int
    """Test pairs whose English already stands under the same reference."""
    identical_sides: int
    """Pairs whose two sides are the same words: lists of names."""


@dataclass(frozen=True)
class SplitReport:
    """How the references were divided. By genre, in the canon's order."""

    references: dict[str, int]
    test_references: dict[str, int]
    clusters: int
    """Of two or more references whose texts repeat one another: they stay together."""
    clustered_references: int
    kept_in_train: int
    """References in clusters too large for the test."""


@dataclass(frozen=True)
class OutputFile:
    """One file, as written."""

    size_bytes: int
    sha256: str
    lines: int


@dataclass(frozen=True)
class Manifest:
    """The whole account. The same inputs and options give the same bytes."""

    settings: dict[str, Any]
    texts: tuple[TextReport, ...]
    tables: dict[str, str]
    """Tables that ship with the project -> sha256."""
    pairs: PairCounts
    split: SplitReport
    glossary_terms: int
    glossary_pairs: int
    glossary_attested: int
    """Pairs of which both sides occur in one train verse or more."""
    outputs: dict[str, OutputFile]
    """Path below the output folder -> file."""
    schema: int = SCHEMA

    def encode(self) -> bytes:
        """As JSON, keys in the order above."""
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n").encode()


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`.

    Raises:
        CorpusError: missing, unreadable, or of another schema.
    """
    try:
        data = json.loads(path.read_bytes())
        if data["schema"] != SCHEMA:
            raise CorpusError(f"{path}: schema {data['schema']}, this version reads {SCHEMA}; build the corpus again")
        return Manifest(
            settings=data["settings"],
            texts=tuple(TextReport(**text) for text in data["texts"]),
            tables=data["tables"],
            pairs=PairCounts(**data["pairs"]),
            split=SplitReport(**data["split"]),
            glossary_terms=data["glossary_terms"],
            glossary_pairs=data["glossary_pairs"],
            glossary_attested=data["glossary_attested"],
            outputs={name: OutputFile(**output) for name, output in data["outputs"].items()},
        )
    except CorpusError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path}: not a readable manifest ({error}); build the corpus again") from error


def explain(manifest: Manifest) -> str:
    """The account as text tables, every count of the way from rows to pairs."""
    parts = [
        _texts_table(manifest),
        _rules_table(manifest),
        _pairs_table(manifest),
        _split_table(manifest),
        _outputs_table(manifest),
    ]
    notes = [f"note: {text.name}: {text.licence_note}" for text in manifest.texts if text.licence_note]
    return "\n\n".join(parts + notes) + "\n"


def _texts_table(manifest: Manifest) -> str:
    rows = [["text", "language", "licence", "rows", "with text", "moved", "dropped", "verses"]]
    for text in manifest.texts:
        dropped = sum(text.dropped.values())
        rows.append(
            [text.name, text.language, text.licence, *map(_number, (text.rows, text.filled, text.moved, dropped, text.verses))]
        )
    return "texts\n" + table(rows)


def _rules_table(manifest: Manifest) -> str:
    rows = [["text", "verses changed by rule", "verses dropped by reason"]]
    for text in manifest.texts:
        rows.append([text.name, _counts(text.changed), _counts(text.dropped)])
    return "cleaning and numbering\n" + table(rows)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {_number(count)}" for name, count in counts.items()) or "-"


def _pairs_table(manifest: Manifest) -> str:
    pairs = manifest.pairs
    rows = [["pairs", "count", "of"]]
    rows += [
        ["as published", _number(pairs.published), f"{_number(pairs.published_references)} references, "
         f"{_number(pairs.published_in_all_texts)} of them in every text"],
        ["after cleaning", _number(pairs.cleaned), f"{_number(pairs.published - pairs.cleaned)} lost with dropped verses"],
        ["after the versification map", _number(pairs.aligned), f"{_number(pairs.aligned_references)} references"],
        ["duplicates among them", _number(pairs.folded_duplicates), f"{_number(pairs.exact_duplicates)} to the letter"],
        ["train", _number(pairs.train), f"{_number(pairs.train_folded)} more folded into them"],
        ["test", _number(pairs.test), f"{_number(pairs.test_folded)} more folded into them"],
    ]  # fmt: skip
    return "pairs\n" + table(rows)


def _split_table(manifest: Manifest) -> str:
    split = manifest.split
    rows = [["genre", "references", "test", "share"]]
    for genre, count in split.references.items():
        rows.append(
            [genre, _number(count), _number(split.test_references[genre]), f"{100 * split.test_references[genre] / count:.2f} %"]
        )
    total, test = sum(split.references.values()), sum(split.test_references.values())
    rows.append(["all", _number(total), _number(test), f"{100 * test / total:.2f} %"])
    together = (
        f"kept together: {_number(split.clustered_references)} references in {_number(split.clusters)} clusters of equal or "
        f"parallel texts; {_number(split.kept_in_train)} of them in large ones, which stay in train"
    )
    return "split\n" + table(rows) + "\n" + together


def _outputs_table(manifest: Manifest) -> str:
    rows = [["file", "lines", "bytes", "sha256"]]
    rows += [[name, _number(file.lines), _number(file.size_bytes), file.sha256[:16]] for name, file in manifest.outputs.items()]
    terms, pairs, attested = manifest.glossary_terms, manifest.glossary_pairs, manifest.glossary_attested
    glossary = f"glossary: {terms} terms, {pairs} pairs, {attested} of them attested in train"
    return "written\n" + table(rows) + "\n" + glossary


def _number(value: int) -> str:
    return f"{value:,}"


def table(rows: list[list[str]]) -> str:
    """Columns of text; a column of numbers is right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    numeric = [all(row[column][:1].isdigit() for row in rows[1:]) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        )  # fmt: skip
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)

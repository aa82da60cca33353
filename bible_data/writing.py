"""The files of a corpus: written beside their places, counted, and published together with the manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bible_data.alignment import fold
from bible_data.books import DATA, Reference
from bible_data.errors import CorpusError
from bible_data.glossary import Glossary
from bible_data.glossary import load as load_glossary
from bible_data.keep import sync
from bible_data.manifest import Manifest, OutputFile, PairCounts, SplitReport, TextReport
from bible_data.pairs import FoldPairs, Pair, Prepared, fold_test, fold_train, pair_count, paired, pairs_of
from bible_data.split import Split
from bible_data.steps import Steps

TRAIN = "aligned/verse_pairs_train.jsonl"
TEST = "holdout/verse_pairs_test.jsonl"
GLOSSARY = "glossary/glossary_pairs.jsonl"
MANIFEST = "manifest.json"
STOP_EVERY = 500
"""References between two looks at the stop callback while writing."""

Sides = tuple[Sequence[Prepared], Sequence[Prepared]]
"""The English texts and the Spanish ones."""


def write(
    out: Path, settings: dict[str, Any], sides: Sides, references: list[Reference], division: Split, steps: Steps
) -> Manifest:
    """Write and publish all files; the manifest, which is the last, is returned.

    Raises:
        CorpusError: the folder `out` cannot be written.
        OSError: the disk is full or failing.
    """
    train = [reference for reference in references if reference not in division.test]
    test = [reference for reference in references if reference in division.test]
    written = Files(out, keep=steps.keeping)
    try:
        glossary = Glossary(load_glossary())
        writer = Writer(written, sides, steps)
        rows = steps.ahead(writer.GLOSSARY_STEP, lambda: glossary_rows(glossary, sides, train, test))
        parts = (writer.pairs(TRAIN, "train", train, fold_train), writer.pairs(TEST, "test", test, fold_test))
        attested = writer.glossary(rows)
        manifest = Manifest(
            settings=settings,
            texts=tuple(_report(each) for side in sides for each in side),
            tables={name: _table_digest(name) for name in ("glossary.json", "versification.csv")},
            pairs=_count_pairs(sides, len(references), *parts),
            split=SplitReport(division.references, division.wanted, division.clusters, division.clustered, division.kept_in_train),
            glossary_terms=len(glossary.terms),
            glossary_pairs=len(glossary.pairs),
            glossary_attested=attested,
            outputs=dict(written.outputs),
        )
        written.write(MANIFEST, [manifest.encode()])
        written.publish()
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise CorpusError(f"{error.filename}: cannot be written ({error.strerror}); choose another output folder") from error
    finally:
        written.discard()
    return manifest


class Files:
    """The output files of one build: written beside their places, renamed together; on failure forgotten, unless they are kept."""

    def __init__(self, out: Path, *, keep: bool) -> None:
        self._out = out
        self._keep = keep
        self._waiting: dict[str, Path] = {}
        self.outputs: dict[str, OutputFile] = {}

    def write(self, name: str, rows: Iterable[bytes]) -> OutputFile:
        """Write rows (each with its newline) for file `name`, durably, under a temporary name."""
        temporary = self._temporary(name)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        self._waiting[name] = temporary
        digest, size_bytes, lines = hashlib.sha256(), 0, 0
        with open(temporary, "wb") as file:
            for row in rows:
                file.write(row)
                digest.update(row)
                size_bytes += len(row)
                lines += row.count(b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.outputs[name] = OutputFile(size_bytes, digest.hexdigest(), lines)
        return self.outputs[name]

    def there(self, name: str, output: OutputFile) -> bool:
        """Whether an earlier attempt wrote the file, to its place or beside it."""
        for path in (self._temporary(name), self._out / name):
            if path.is_file() and _file_digest(path) == output.sha256:
                self.outputs[name] = output
                if path != self._out / name:
                    self._waiting[name] = path
                return True
        return False

    def publish(self) -> None:
        """Rename everything into place. An older manifest goes first, so that it never vouches for newer files."""
        with contextlib.suppress(FileNotFoundError):
            (self._out / MANIFEST).unlink()
        for name in sorted(self._waiting, key=lambda name: name == MANIFEST):
            target = self._out / name
            os.replace(self._waiting[name], target)
            sync(target.parent)
        self._waiting.clear()

    def discard(self) -> None:
        """Remove what was not published; of kept files only the one in flight."""
        for name, temporary in self._waiting.items():
            if not (self._keep and name in self.outputs):
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def _temporary(self, name: str) -> Path:
        path = self._out / name
        return path.with_name(f".{path.name}.tmp")


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Part:
    """What became of the pairs on one side of the split."""

    output: OutputFile
    pairs: int
    distinct: int
    """Different ones; those of the other part differ from all of them, else it would be a leak."""
    distinct_folded: int
    identical: int
    """Pairs whose two sides are the same words."""

    @classmethod
    def of(cls, groups: Sequence[Sequence[Pair]], output: OutputFile) -> Part:
        """Count the pairs of `groups`, which `output` holds."""
        everything = [pair for group in groups for pair in group]
        folded = [pair.folded for pair in everything]
        sides = {pair.sides for pair in everything}
        return cls(output, len(everything), len(sides), len(set(folded)), sum(1 for left, right in folded if left == right))


class Writer:
    """Writes the three files of a corpus, each of them a unit."""

    GLOSSARY_STEP = "writing the glossary"

    def __init__(self, files: Files, sides: Sides, steps: Steps) -> None:
        self.files, self.sides, self.steps = files, sides, steps

    def pairs(self, name: str, what: str, references: Sequence[Reference], fold_pairs: FoldPairs) -> Part:
        """The file of one side of the split."""

        def make() -> Part:
            groups = fold_pairs(pairs_of(references, *self.sides))
            return Part.of(groups, self.files.write(name, _lines(groups, self.steps)))

        def load(kept: dict[str, Any]) -> Part | None:
            output = OutputFile(**kept["output"])
            return Part(**{**kept, "output": output}) if self.files.there(name, output) else None

        return self.steps.unit(f"writing the {what} pairs", make, dataclasses.asdict, load)

    def glossary(self, rows_of: Callable[[], list[dict[str, object]]]) -> int:
        """The glossary's file, of the rows that `rows_of` returns; returns how many of them occur in train."""

        def make() -> tuple[OutputFile, int]:
            rows = rows_of()
            attested = sum(1 for row in rows if row["train_verses"])
            return self.files.write(GLOSSARY, (_line(row) for row in rows)), attested

        def dump(made: tuple[OutputFile, int]) -> list[Any]:
            return [dataclasses.asdict(made[0]), made[1]]

        def load(kept: list[Any]) -> tuple[OutputFile, int] | None:
            output = OutputFile(**kept[0])
            return (output, kept[1]) if self.files.there(GLOSSARY, output) else None

        return self.steps.unit(self.GLOSSARY_STEP, make, dump, load)[1]


def glossary_rows(
    glossary: Glossary, sides: Sides, train: Sequence[Reference], test: Sequence[Reference]
) -> list[dict[str, object]]:
    """The lines of the glossary's file, counted over the train references.

    Raises:
        CorpusError: one of them would give a test verse away.
    """
    rows = glossary.rows(glossary.together(_terms_by_verse(glossary, train, *sides)))
    _check_glossary(rows, {each.folded.get(reference) for side in sides for each in side for reference in test})
    return rows


def _lines(groups: Iterable[list[Pair]], steps: Steps) -> Iterator[bytes]:
    for number, (pair, *also) in enumerate(groups):
        if number % STOP_EVERY == 0:
            steps.check_stop()
        yield pair.line(also)


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _terms_by_verse(
    glossary: Glossary, references: Iterable[Reference], english: Sequence[Prepared], spanish: Sequence[Prepared]
) -> Iterator[tuple[set[int], set[int]]]:
    for reference in references:
        terms = [glossary.english(each.verses[reference]) for each in english if reference in each.verses]
        places = [glossary.spanish(each.verses[reference]) for each in spanish if reference in each.verses]
        yield set().union(*terms), set().union(*places)


def _check_glossary(rows: Iterable[dict[str, object]], verses: Collection[str | None]) -> None:
    """A glossary pair that is a whole test verse (`verses` are these, folded) would give its answer away."""
    leaked = [row["en"] for row in rows if fold(str(row["en"])) in verses or fold(str(row["es"])) in verses]
    if leaked:
        raise CorpusError(f"glossary.json: {leaked[0]!r} is a whole verse of the test set; take the entry out")


def _count_pairs(sides: Sides, references: int, train: Part, test: Part) -> PairCounts:
    published = [[_filled(each) for each in side] for side in sides]
    aligned = train.pairs + test.pairs
    return PairCounts(
        published=pair_count(*published),
        published_references=len(paired(*published)),
        published_in_all_texts=len(set.intersection(*published[0], *published[1])),
        cleaned=pair_count(*([each.cleaned.verses for each in side] for side in sides)),
        aligned=aligned,
        aligned_references=references,
        exact_duplicates=aligned - train.distinct - test.distinct,
        folded_duplicates=aligned - train.distinct_folded - test.distinct_folded,
        train=train.output.lines,
        train_folded=train.pairs - train.output.lines,
        test=test.output.lines,
        test_folded=test.pairs - test.output.lines,
        identical_sides=train.identical + test.identical,
    )


def _filled(each: Prepared) -> set[Reference]:
    return {reference for reference, text in each.text.verses.items() if text.strip()}


def _report(each: Prepared) -> TextReport:
    text = each.text
    return TextReport(
        name=text.name,
        language=text.language,
        file=text.file,
        size_bytes=text.size_bytes,
        sha256=text.sha256,
        title=text.licence.title,
        licence=text.licence.licence,
        licence_stated_in=text.licence.stated_in,
        licence_note=text.licence.note,
        rows=text.rows,
        repeated_rows=text.repeated_rows,
        filled=text.filled,
        changed=dict(sorted(each.cleaned.changed.items())),
        dropped=dict(sorted(each.dropped.items())),
        moved=each.moved,
        verses=len(each.verses),
    )


def _table_digest(name: str) -> str:
    return hashlib.sha256((DATA / name).read_bytes()).hexdigest()

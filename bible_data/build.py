"""The facade: a folder of Bible texts in, verse pairs, test set, glossary pairs and a manifest out.

The steps stand in `build` in their order; each is a pure function of its module. Nothing depends on the clock, the hash
seed, the locale, the working directory or the order of a folder's files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bible_data import glue
from bible_data.alignment import check_alignment, fold, renumber, versification
from bible_data.books import DATA, Reference
from bible_data.cleaning import Cleaned, clean_text
from bible_data.errors import CorpusError
from bible_data.glossary import Glossary
from bible_data.glossary import load as load_glossary
from bible_data.manifest import Manifest, OutputFile, PairCounts, SplitReport, TextReport
from bible_data.sources import Text, check_complete, read_text
from bible_data.split import Split, check_no_leak, split

TRAIN = "aligned/verse_pairs_train.jsonl"
TEST = "holdout/verse_pairs_test.jsonl"
GLOSSARY = "glossary/glossary_pairs.jsonl"
MANIFEST = "manifest.json"
STOP_EVERY = 500
"""References between two looks at the stop callback while writing."""

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, message); one unit is one step of one text."""
CheckStop = Callable[[], None]
"""Called between units; raises whatever the caller wants to end the build with. Nothing is left half written."""


@dataclass(frozen=True)
class Options:
    """What to build from; the defaults are the seven texts of the project."""

    english: tuple[str, ...] = ("KJV", "ASV", "BBE", "YLT", "NHEB")
    spanish: tuple[str, ...] = ("SpaRV", "SpaRV1865")
    min_verses: int = 20_000
    """A text with fewer is refused."""
    test_share: float = 0.1
    """Of the references of each genre."""

    def check(self) -> None:
        """Refuse options that cannot mean anything.

        Raises:
            CorpusError: naming the option.
        """
        names = [*self.english, *self.spanish]
        if not self.english or not self.spanish:
            raise CorpusError("options: at least one English and one Spanish text are needed")
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        if repeated:
            raise CorpusError(f"options: text {repeated[0]} is named twice; name each once")
        if not 0 < self.test_share < 1:
            raise CorpusError(f"options: test_share is {self.test_share}, it must be between 0 and 1")


@dataclass
class Prepared:
    """A text, cleaned and under canonical numbers."""

    text: Text
    cleaned: Cleaned
    verses: dict[Reference, str]
    folded: dict[Reference, str]
    moved: int
    dropped: Counter[str]


class Steps:
    """Counts the steps of a build for the progress callback, and looks at the stop callback between them."""

    def __init__(self, total: int, progress: Progress | None, check_stop: CheckStop | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self.check_stop: CheckStop = check_stop or (lambda: None)

    def start(self, message: str) -> None:
        """A step begins: the ones before it are done."""
        self.check_stop()
        if self._progress:
            self._progress(self._done, self._total, message)
        self._done += 1

    def finish(self, message: str) -> None:
        if self._progress:
            self._progress(self._total, self._total, message)


def build(
    source: Path,
    out: Path,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    check_stop: CheckStop | None = None,
) -> Manifest:
    """Build the corpus from the folder `source` (or its formats/) into the folder `out`.

    Every file appears by rename, the manifest last: while it is missing, or its digests do not fit, the build is not
    finished. A second build of the same inputs writes the same bytes.

    Raises:
        CorpusError: an input or an option is wrong; nothing was written.
        OSError: the disk is full or failing.
    """
    options = options or Options()
    options.check()
    source = source.parent if source.name == "formats" and not (source / "formats").is_dir() else source
    names = [("en", name) for name in options.english] + [("es", name) for name in options.spanish]
    steps = Steps(3 * len(names) + 4, progress, check_stop)
    texts = []
    for language, name in names:
        steps.start(f"reading {name}")
        texts.append(read_text(source, language, name, options.min_verses))
    check_complete(texts)
    prepared = prepare(texts, steps)
    check_alignment(
        {name: (each.text.language, each.folded) for name, each in prepared.items()},
        lambda name: steps.start(f"checking that {name} is aligned"),
    )
    english, spanish = [prepared[name] for name in options.english], [prepared[name] for name in options.spanish]
    references = paired([each.verses for each in english], [each.verses for each in spanish])
    steps.start("splitting the references")
    languages = [[each.folded for each in english], [each.folded for each in spanish]]
    division = split(references, languages, options.test_share)
    check_no_leak(division.test, references, languages)
    return _write(out, options, prepared, references, division, steps)


def prepare(texts: Sequence[Text], steps: Steps) -> dict[str, Prepared]:
    """Clean, take apart glued words, renumber and fold every text."""
    cleaned: dict[str, Cleaned] = {}
    for text in texts:
        steps.start(f"cleaning {text.name}")
        cleaned[text.name] = clean_text(text.verses)
    steps.start("taking glued words apart")
    english = {text.name: cleaned[text.name].verses for text in texts if text.language == "en"}
    for name, changed in glue.repair(english).items():
        cleaned[name].verses.update(changed)
        if changed:
            cleaned[name].changed["glued_words"] = len(changed)
    changes = versification()
    result = {}
    for text in texts:
        numbered = renumber(cleaned[text.name].verses, changes.get(text.name, {}))
        folded = {reference: fold(verse) for reference, verse in numbered.verses.items()}
        dropped = cleaned[text.name].dropped + numbered.dropped
        result[text.name] = Prepared(text, cleaned[text.name], numbered.verses, folded, numbered.moved, dropped)
    return result


def paired(english: Iterable[Collection[Reference]], spanish: Iterable[Collection[Reference]]) -> list[Reference]:
    """References that have a verse in both languages, in the canon's order."""
    both = set().union(*english) & set().union(*spanish)
    return sorted(both, key=lambda reference: reference.place)


# -- counting


def pair_count(english: Iterable[Collection[Reference]], spanish: Iterable[Collection[Reference]]) -> int:
    """Pairs of one English and one Spanish verse, over all texts."""
    left = Counter(reference for verses in english for reference in verses)
    right = Counter(reference for verses in spanish for reference in verses)
    return sum(count * right[reference] for reference, count in left.items())


def _filled(each: Prepared) -> set[Reference]:
    return {reference for reference, text in each.text.verses.items() if text.strip()}


# -- pairs


class Pair(NamedTuple):
    """One verse in one English and one Spanish text."""

    reference: Reference
    english: Prepared
    spanish: Prepared

    @property
    def folded(self) -> tuple[str, str]:
        return self.english.folded[self.reference], self.spanish.folded[self.reference]

    @property
    def sides(self) -> tuple[str, str]:
        return self.english.verses[self.reference], self.spanish.verses[self.reference]

    def place(self) -> dict[str, Any]:
        """Where it stands, for `also`."""
        return {**_where(self.reference), "en_source": self.english.text.name, "es_source": self.spanish.text.name}

    def row(self, also: Sequence[Pair]) -> dict[str, Any]:
        """Its line in a file of pairs."""
        english, spanish = self.sides
        row = {
            "en": english,
            "es": spanish,
            **_where(self.reference),
            "genre": self.reference.genre,
            "en_source": self.english.text.name,
            "es_source": self.spanish.text.name,
        }
        return {**row, "also": [pair.place() for pair in also]} if also else row


def _where(reference: Reference) -> dict[str, Any]:
    return {"book": reference.book, "chapter": reference.chapter, "verse": reference.verse}


def pairs_of(references: Iterable[Reference], english: Sequence[Prepared], spanish: Sequence[Prepared]) -> Iterator[Pair]:
    """Every pair, in the order of the references and of the options."""
    for reference in references:
        for left in english:
            if reference in left.verses:
                for right in spanish:
                    if reference in right.verses:
                        yield Pair(reference, left, right)


def fold_train(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Groups of pairs that are the same but for case and punctuation; the first of a group is the one to keep."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.folded, []).append(pair)
    return list(groups.values())


def fold_test(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """As `fold_train`, but only within a reference and a Spanish text: every English text keeps all its Spanish references."""
    groups: dict[tuple[Reference, str, str], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault((pair.reference, pair.folded[0], pair.spanish.text.name), []).append(pair)
    return list(groups.values())


# -- writing


class Files:
    """The output files of one build: written beside their places, renamed together, forgotten on failure."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._waiting: dict[str, Path] = {}
        self.outputs: dict[str, OutputFile] = {}

    def write(self, name: str, rows: Iterable[bytes]) -> None:
        """Write rows (each with its newline) for file `name`, durably, under a temporary name."""
        path = self._out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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

    def publish(self) -> None:
        """Rename everything into place. An older manifest goes first, so that it never vouches for newer files."""
        with contextlib.suppress(FileNotFoundError):
            (self._out / MANIFEST).unlink()
        for name in sorted(self._waiting, key=lambda name: name == MANIFEST):
            target = self._out / name
            os.replace(self._waiting[name], target)
            _sync(target.parent)
        self._waiting.clear()

    def discard(self) -> None:
        """Remove what was not published."""
        for temporary in self._waiting.values():
            with contextlib.suppress(OSError):
                temporary.unlink()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(
    out: Path, options: Options, prepared: dict[str, Prepared], references: list[Reference], division: Split, steps: Steps
) -> Manifest:
    english, spanish = [prepared[name] for name in options.english], [prepared[name] for name in options.spanish]
    train = [reference for reference in references if reference not in division.test]
    test = [reference for reference in references if reference in division.test]
    steps.start("folding duplicates")
    train_groups = fold_train(pairs_of(train, english, spanish))
    test_groups = fold_test(pairs_of(test, english, spanish))
    written = Files(out)
    try:
        steps.start("writing the train pairs")
        written.write(TRAIN, _lines(train_groups, steps))
        steps.start("writing the test pairs and the glossary")
        written.write(TEST, _lines(test_groups, steps))
        glossary = Glossary(load_glossary())
        rows = glossary.rows(glossary.together(_terms_by_verse(glossary, train, english, spanish)))
        _check_glossary(rows, test_groups)
        written.write(GLOSSARY, (_line(row) for row in rows))
        manifest = Manifest(
            settings=dataclasses.asdict(options),
            texts=tuple(_report(each) for each in prepared.values()),
            tables={name: _table_digest(name) for name in ("glossary.json", "versification.csv")},
            pairs=_count_pairs(english, spanish, len(references), train_groups, test_groups),
            split=SplitReport(division.references, division.wanted, division.clusters, division.clustered, division.kept_in_train),
            glossary_terms=len(glossary.terms),
            glossary_pairs=len(rows),
            glossary_attested=sum(1 for row in rows if row["train_verses"]),
            outputs=dict(written.outputs),
        )
        written.write(MANIFEST, [manifest.encode()])
        written.publish()
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise CorpusError(f"{error.filename}: cannot be written ({error.strerror}); choose another output folder") from error
    finally:
        written.discard()
    steps.finish("done")
    return manifest


def _lines(groups: Iterable[list[Pair]], steps: Steps) -> Iterator[bytes]:
    for number, (pair, *also) in enumerate(groups):
        if number % STOP_EVERY == 0:
            steps.check_stop()
        yield _line(pair.row(also))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _terms_by_verse(
    glossary: Glossary, references: Iterable[Reference], english: Sequence[Prepared], spanish: Sequence[Prepared]
) -> Iterator[tuple[set[int], set[int]]]:
    for reference in references:
        terms = [glossary.english(each.verses[reference]) for each in english if reference in each.verses]
        places = [glossary.spanish(each.verses[reference]) for each in spanish if reference in each.verses]
        yield set().union(*terms), set().union(*places)


def _check_glossary(rows: Iterable[dict[str, object]], test_groups: Iterable[list[Pair]]) -> None:
    """A glossary pair that is a whole test verse would give its answer away."""
    verses = {side for pair, *_ in test_groups for side in pair.folded}
    leaked = [row["en"] for row in rows if fold(str(row["en"])) in verses or fold(str(row["es"])) in verses]
    if leaked:
        raise CorpusError(f"glossary.json: {leaked[0]!r} is a whole verse of the test set; take the entry out")


def _count_pairs(
    english: Sequence[Prepared],
    spanish: Sequence[Prepared],
    references: int,
    train_groups: Sequence[Sequence[Pair]],
    test_groups: Sequence[Sequence[Pair]],
) -> PairCounts:
    published = [[_filled(each) for each in side] for side in (english, spanish)]
    everything = [pair for groups in (train_groups, test_groups) for group in groups for pair in group]
    folded = [pair.folded for pair in everything]
    return PairCounts(
        published=pair_count(*published),
        published_references=len(paired(*published)),
        published_in_all_texts=len(set.intersection(*published[0], *published[1])),
        cleaned=pair_count([each.cleaned.verses for each in english], [each.cleaned.verses for each in spanish]),
        aligned=len(everything),
        aligned_references=references,
        exact_duplicates=len(everything) - len({pair.sides for pair in everything}),
        folded_duplicates=len(everything) - len(set(folded)),
        train=len(train_groups),
        train_folded=sum(len(group) - 1 for group in train_groups),
        test=len(test_groups),
        test_folded=sum(len(group) - 1 for group in test_groups),
        identical_sides=sum(1 for left, right in folded if left == right),
    )


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

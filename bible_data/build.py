"""The facade: a folder of Bible texts in, verse pairs, test set, glossary pairs and a manifest out.

The steps stand in `build` in their order; each is a pure function of its module. Nothing depends on the clock, the hash
seed, the locale, the working directory or the order of a folder's files. What takes longer to make than to read back is a unit:
made once, and kept for the next attempt where the caller names a folder for that (see `bible_data.keep`).
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
from typing import Any, NamedTuple, TypeVar

from bible_data import glue
from bible_data.alignment import check_alignment, fold, renumber, versification
from bible_data.books import DATA, Reference
from bible_data.cleaning import Cleaned, clean_text
from bible_data.errors import CorpusError
from bible_data.glossary import Glossary
from bible_data.glossary import load as load_glossary
from bible_data.keep import Keep, inputs_digest, sync, to_rows, to_verses
from bible_data.licences import Licence
from bible_data.manifest import Manifest, OutputFile, PairCounts, SplitReport, TextReport
from bible_data.sources import Text, check_complete, read_text
from bible_data.split import Split, check_no_leak, split

TRAIN = "aligned/verse_pairs_train.jsonl"
TEST = "holdout/verse_pairs_test.jsonl"
GLOSSARY = "glossary/glossary_pairs.jsonl"
MANIFEST = "manifest.json"
STOP_EVERY = 500
"""References between two looks at the stop callback while writing."""

T = TypeVar("T")
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
    """Counts the steps of a build for the progress callback, looks at the stop callback between them, and keeps what they made."""

    def __init__(self, total: int, progress: Progress | None, check_stop: CheckStop | None, keep: Keep | None) -> None:
        self._total = total
        self._done = 0
        self._progress = progress
        self._keep = keep
        self.check_stop: CheckStop = check_stop or (lambda: None)

    def start(self, message: str) -> None:
        """A step begins: the ones before it are done."""
        self.check_stop()
        if self._progress:
            self._progress(self._done, self._total, message)
        self._done += 1

    def unit(self, message: str, make: Callable[[], T], dump: Callable[[T], Any], load: Callable[[Any], T | None]) -> T:
        """One step: what an earlier attempt kept of it, else what `make` returns; `load` gives None for what is of no use."""
        kept = self.kept(message)
        value = None if kept is None else load(kept)
        if value is not None:
            self.start(f"{message}: kept from an earlier attempt")
            return value
        self.start(message)
        value = make()
        self.keep(message, dump(value))
        return value

    @property
    def keeping(self) -> bool:
        return self._keep is not None

    def kept(self, message: str) -> Any:
        return self._keep.read(message) if self._keep else None

    def keep(self, message: str, value: Any) -> None:
        if self._keep:
            self._keep.write(message, value)

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
    keep: Path | None = None,
) -> Manifest:
    """Build the corpus from the folder `source` (or its formats/) into the folder `out`.

    Every file appears by rename, the manifest last: while it is missing, or its digests do not fit, the build is not
    finished. A second build of the same inputs writes the same bytes; with a folder to `keep` units in, it takes over those of
    a build that was interrupted. Then the text files that are written already wait in `out` under temporary names.

    Raises:
        CorpusError: an input or an option is wrong; nothing was written.
        OSError: the disk is full or failing.
    """
    options = options or Options()
    options.check()
    source = source.parent if source.name == "formats" and not (source / "formats").is_dir() else source
    names = [("en", name) for name in options.english] + [("es", name) for name in options.spanish]
    units = Keep(keep, inputs_digest(source, names, options)) if keep else None
    steps = Steps(3 * len(names) + 4, progress, check_stop, units)
    texts = [_read(source, language, name, options, steps) for language, name in names]
    check_complete(texts)
    prepared = prepare(texts, steps)
    _check_aligned(prepared, steps)
    english, spanish = [prepared[name] for name in options.english], [prepared[name] for name in options.spanish]
    references = paired([each.verses for each in english], [each.verses for each in spanish])
    languages = [[each.folded for each in english], [each.folded for each in spanish]]

    def divide() -> Split:
        division = split(references, languages, options.test_share)
        check_no_leak(division.test, references, languages)
        return division

    division = steps.unit("splitting the references", divide, _split_to_json, _split_from_json)
    return _write(out, options, prepared, references, division, steps)


def _read(source: Path, language: str, name: str, options: Options, steps: Steps) -> Text:
    def dump(text: Text) -> dict[str, Any]:
        return {**dataclasses.asdict(dataclasses.replace(text, verses={})), "verses": to_rows(text.verses)}

    def load(kept: dict[str, Any]) -> Text:
        return Text(**{**kept, "licence": Licence(**kept["licence"]), "verses": to_verses(kept["verses"])})

    return steps.unit(f"reading {name}", lambda: read_text(source, language, name, options.min_verses), dump, load)


def prepare(texts: Sequence[Text], steps: Steps) -> dict[str, Prepared]:
    """Clean, take apart glued words, renumber and fold every text."""
    cleaned = {text.name: _clean(text, steps) for text in texts}
    english = {text.name: cleaned[text.name].verses for text in texts if text.language == "en"}
    repaired = steps.unit(
        "taking glued words apart",
        lambda: glue.repair(english),
        lambda changes: {name: to_rows(verses) for name, verses in changes.items()},
        lambda kept: {name: to_verses(rows) for name, rows in kept.items()},
    )
    for name, changed in repaired.items():
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


def _clean(text: Text, steps: Steps) -> Cleaned:
    return steps.unit(
        f"cleaning {text.name}",
        lambda: clean_text(text.verses),
        lambda made: {"verses": to_rows(made.verses), "changed": made.changed, "dropped": made.dropped},
        lambda kept: Cleaned(to_verses(kept["verses"]), Counter(kept["changed"]), Counter(kept["dropped"])),
    )


def _check_aligned(prepared: dict[str, Prepared], steps: Steps) -> None:
    """`check_alignment`; a text is a unit, kept when the next one begins."""
    messages = {name: f"checking that {name} is aligned" for name in [*prepared][1:]}
    waiting = [name for name, message in messages.items() if steps.kept(message) is None]
    for message in (messages[name] for name in messages if name not in waiting):
        steps.start(f"{message}: kept from an earlier attempt")
    begun: list[str] = []

    def next_one(name: str) -> None:
        if begun:
            steps.keep(messages[begun[-1]], True)
        begun.append(name)
        steps.start(messages[name])

    texts = {name: (prepared[name].text.language, prepared[name].folded) for name in [next(iter(prepared)), *waiting]}
    check_alignment(texts, next_one)
    if begun:
        steps.keep(messages[begun[-1]], True)


def _split_to_json(division: Split) -> dict[str, Any]:
    return {name: getattr(division, name) for name in Split.__dataclass_fields__} | {"test": sorted(division.test)}


def _split_from_json(kept: dict[str, Any]) -> Split:
    test = frozenset(Reference(*row) for row in kept["test"])
    return Split(**{**kept, "test": test, "sizes": {int(size): times for size, times in kept["sizes"].items()}})


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


FoldPairs = Callable[[Iterable[Pair]], list[list[Pair]]]


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
        everything = [pair for group in groups for pair in group]
        folded = [pair.folded for pair in everything]
        sides = {pair.sides for pair in everything}
        return cls(output, len(everything), len(sides), len(set(folded)), sum(1 for left, right in folded if left == right))


class Writer:
    """Writes the three files of a corpus, each of them a unit."""

    def __init__(self, files: Files, english: Sequence[Prepared], spanish: Sequence[Prepared], steps: Steps) -> None:
        self.files, self.english, self.spanish, self.steps = files, english, spanish, steps

    def pairs(self, name: str, what: str, references: Sequence[Reference], fold_pairs: FoldPairs) -> Part:
        """The file of one side of the split."""

        def make() -> Part:
            groups = fold_pairs(pairs_of(references, self.english, self.spanish))
            return Part.of(groups, self.files.write(name, _lines(groups, self.steps)))

        def load(kept: dict[str, Any]) -> Part | None:
            output = OutputFile(**kept["output"])
            return Part(**{**kept, "output": output}) if self.files.there(name, output) else None

        return self.steps.unit(f"writing the {what} pairs", make, dataclasses.asdict, load)

    def glossary(self, glossary: Glossary, train: Sequence[Reference], test: Sequence[Reference]) -> int:
        """The glossary's file; returns how many of its pairs occur in train."""

        def make() -> tuple[OutputFile, int]:
            rows = glossary.rows(glossary.together(_terms_by_verse(glossary, train, self.english, self.spanish)))
            verses = {each.folded.get(reference) for each in (*self.english, *self.spanish) for reference in test}
            _check_glossary(rows, verses)
            attested = sum(1 for row in rows if row["train_verses"])
            return self.files.write(GLOSSARY, (_line(row) for row in rows)), attested

        def dump(made: tuple[OutputFile, int]) -> list[Any]:
            return [dataclasses.asdict(made[0]), made[1]]

        def load(kept: list[Any]) -> tuple[OutputFile, int] | None:
            output = OutputFile(**kept[0])
            return (output, kept[1]) if self.files.there(GLOSSARY, output) else None

        return self.steps.unit("writing the glossary", make, dump, load)[1]


def _write(
    out: Path, options: Options, prepared: dict[str, Prepared], references: list[Reference], division: Split, steps: Steps
) -> Manifest:
    english, spanish = [prepared[name] for name in options.english], [prepared[name] for name in options.spanish]
    train = [reference for reference in references if reference not in division.test]
    test = [reference for reference in references if reference in division.test]
    written = Files(out, keep=steps.keeping)
    try:
        writer = Writer(written, english, spanish, steps)
        parts = (writer.pairs(TRAIN, "train", train, fold_train), writer.pairs(TEST, "test", test, fold_test))
        glossary = Glossary(load_glossary())
        attested = writer.glossary(glossary, train, test)
        manifest = Manifest(
            settings=dataclasses.asdict(options),
            texts=tuple(_report(each) for each in prepared.values()),
            tables={name: _table_digest(name) for name in ("glossary.json", "versification.csv")},
            pairs=_count_pairs(english, spanish, len(references), *parts),
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


def _check_glossary(rows: Iterable[dict[str, object]], verses: Collection[str | None]) -> None:
    """A glossary pair that is a whole test verse (`verses` are these, folded) would give its answer away."""
    leaked = [row["en"] for row in rows if fold(str(row["en"])) in verses or fold(str(row["es"])) in verses]
    if leaked:
        raise CorpusError(f"glossary.json: {leaked[0]!r} is a whole verse of the test set; take the entry out")


def _count_pairs(english: Sequence[Prepared], spanish: Sequence[Prepared], references: int, train: Part, test: Part) -> PairCounts:
    published = [[_filled(each) for each in side] for side in (english, spanish)]
    aligned = train.pairs + test.pairs
    return PairCounts(
        published=pair_count(*published),
        published_references=len(paired(*published)),
        published_in_all_texts=len(set.intersection(*published[0], *published[1])),
        cleaned=pair_count([each.cleaned.verses for each in english], [each.cleaned.verses for each in spanish]),
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

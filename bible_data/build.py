"""The facade: a folder of Bible texts in, verse pairs, test set, glossary pairs and a manifest out.

The steps stand in `build` in their order; each is a pure function of its module. Nothing depends on the clock, the hash
seed, the locale, the working directory or the order of a folder's files. What takes longer to make than to read back is a unit:
made once, and kept for the next attempt where the caller names a folder for that (see `bible_data.keep`). What is long and
waits for nothing is begun ahead on the other core (see `bible_data.beside`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bible_data import glue
from bible_data.alignment import check_alignment, fold, renumber, versification
from bible_data.books import Reference
from bible_data.cleaning import Cleaned, clean_text
from bible_data.errors import CorpusError
from bible_data.keep import Keep, inputs_digest, to_rows, to_verses
from bible_data.licences import Licence
from bible_data.manifest import Manifest
from bible_data.pairs import Prepared, pair_count, paired
from bible_data.sources import Text, check_complete, read_text
from bible_data.split import Split, check_no_leak, split
from bible_data.steps import CheckStop, Progress, Steps
from bible_data.writing import GLOSSARY, MANIFEST, TEST, TRAIN, write

__all__ = ["GLOSSARY", "MANIFEST", "TEST", "TRAIN", "Options", "build", "pair_count", "paired"]

SPLITTING = "splitting the references"


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
    with _without_collector(), contextlib.closing(steps):
        texts = [_read(source, language, name, options, steps) for language, name in names]
        check_complete(texts)
        prepared = prepare(texts, steps)
        english, spanish = [prepared[name] for name in options.english], [prepared[name] for name in options.spanish]
        references = paired([each.verses for each in english], [each.verses for each in spanish])
        divide = partial(_divide, references, [[each.folded for each in english], [each.folded for each in spanish]], options)
        divided = steps.ahead(SPLITTING, divide)
        _check_aligned(prepared, steps)
        division = steps.unit(SPLITTING, divided, _split_to_json, _split_from_json)
        manifest = write(out, dataclasses.asdict(options), (english, spanish), references, division, steps)
    steps.finish("done")
    return manifest


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Python's collector looks again and again at millions of values that are all in use and in no cycle: a sixth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(source: Path, language: str, name: str, options: Options, steps: Steps) -> Text:
    def dump(text: Text) -> dict[str, Any]:
        return {**dataclasses.asdict(dataclasses.replace(text, verses={})), "verses": to_rows(text.verses)}

    def load(kept: dict[str, Any]) -> Text:
        return Text(**{**kept, "licence": Licence(**kept["licence"]), "verses": to_verses(kept["verses"])})

    return steps.unit(f"reading {name}", lambda: read_text(source, language, name, options.min_verses), dump, load)


def prepare(texts: Sequence[Text], steps: Steps) -> dict[str, Prepared]:
    """Clean, take apart glued words, renumber and fold every text."""
    cleaned = _clean(texts, steps)
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


def _clean(texts: Sequence[Text], steps: Steps) -> dict[str, Cleaned]:
    """Every text cleaned, the second half of them in a second process."""
    half = (len(texts) + 1) // 2
    here, there = texts[:half], texts[half:]
    rest = cache(steps.ahead(_cleaning(texts[-1]), lambda: [clean_text(text.verses) for text in there]))
    makes = [partial(clean_text, text.verses) for text in here] + [lambda place=place: rest()[place] for place in range(len(there))]
    return {text.name: _cleaned(text, make, steps) for text, make in zip(texts, makes, strict=True)}


def _cleaning(text: Text) -> str:
    return f"cleaning {text.name}"


def _cleaned(text: Text, make: Callable[[], Cleaned], steps: Steps) -> Cleaned:
    return steps.unit(
        _cleaning(text),
        make,
        lambda made: {"verses": to_rows(made.verses), "changed": made.changed, "dropped": made.dropped},
        lambda kept: Cleaned(to_verses(kept["verses"]), Counter(kept["changed"]), Counter(kept["dropped"])),
    )


def _divide(references: Sequence[Reference], languages: Sequence[Sequence[Mapping[Reference, str]]], options: Options) -> Split:
    division = split(references, languages, options.test_share)
    check_no_leak(division.test, references, languages)
    return division


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

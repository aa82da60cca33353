"""What the translation models train on: verse pairs and glossary, with a dev set held out by verse reference.

The split is a function of the references and a seed alone, so every stage and every attempt holds out the same verses.
No text of a held-out verse stays in training: neither another edition of it nor the same words at another place.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from state.contract import MisconfiguredError
from state.workspace import Workspace

T = TypeVar("T")

MAX_DEV_SHARE = 0.1
"""Of the references: a small corpus gives a smaller dev set than asked for."""


class Place(msgspec.Struct, frozen=True):
    """Where else the pair of a line stands."""

    book: str
    chapter: int
    verse: int
    en_source: str
    es_source: str


class VerseLine(msgspec.Struct, frozen=True):
    """One line of verse_pairs_train.jsonl, as far as training needs it."""

    en: str
    es: str
    book: str
    chapter: int
    verse: int
    en_source: str
    es_source: str
    also: tuple[Place, ...] = ()


class GlossaryLine(msgspec.Struct, frozen=True):
    """One line of glossary_pairs.jsonl, as far as training needs it."""

    en: str
    es: str


@dataclass(frozen=True, slots=True)
class TrainingPair:
    """An English text and its Spanish one."""

    id: str
    en: str
    es: str
    reference: str | None
    """Book, chapter and verse; None for a glossary term."""
    editions: tuple[str, ...] = ()
    """Texts that say this at this verse, but for case and punctuation: `KJV>SpaRV`, ..."""


def read_verses(path: Path) -> list[TrainingPair]:
    """The verse pairs of `path`, in file order.

    Raises:
        MisconfiguredError: the file is missing or empty, or a line is not a verse pair.
    """
    pairs = []
    for line in _lines(path, VerseLine):
        reference = f"{line.book} {line.chapter}:{line.verse}"
        edition = f"{line.en_source}>{line.es_source}"
        here = (one for one in line.also if (one.book, one.chapter, one.verse) == (line.book, line.chapter, line.verse))
        editions = (edition, *(f"{one.en_source}>{one.es_source}" for one in here))
        pairs.append(TrainingPair(f"{reference} {edition}", line.en, line.es, reference, editions))
    if not pairs:
        raise MisconfiguredError(f"{path} holds no verse pair; run the corpus stage again")
    return pairs


def read_glossary(path: Path, repeats: int = 1) -> list[TrainingPair]:
    """The glossary's pairs, each `repeats` times under ids of its own; a missing file is an empty glossary.

    Raises:
        MisconfiguredError: a line is not a pair.
    """
    if repeats == 0 or not path.exists():
        return []
    lines = list(_lines(path, GlossaryLine))
    return [
        TrainingPair(f"glossary {number} #{copy}", line.en, line.es, None)
        for copy in range(repeats)
        for number, line in enumerate(lines)
    ]


def read_training(
    workspace: Workspace, *, dev_examples: int, max_examples: int | None, seed: int, glossary_repeats: int = 1
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Training and dev pairs of a workspace: `split_dev`, then at most `max_examples` verse pairs, then the glossary.

    Raises:
        MisconfiguredError: as the readers say, or nothing is left to train on.
    """
    train, dev = split_dev(read_verses(workspace.train_pairs), dev_examples, seed)
    train = [*sample(train, max_examples, seed), *read_glossary(workspace.glossary_pairs, glossary_repeats)]
    if not train:
        raise MisconfiguredError(f"{workspace.train_pairs}: no pair is left to train on; give a larger corpus")
    return train, dev


def split_dev(pairs: Sequence[TrainingPair], dev_examples: int, seed: int) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Split by reference: one pair of each held-out reference is dev, its other pairs are left out of both.

    At most `dev_examples` references and MAX_DEV_SHARE of all are held out, in the order of a hash.
    """
    first: dict[str, TrainingPair] = {}
    for pair in sorted(pairs, key=lambda pair: _order(seed, pair.id)):
        if pair.reference is not None:
            first.setdefault(pair.reference, pair)
    references = sorted(first, key=lambda reference: _order(seed, reference))
    held_out = references[: min(dev_examples, int(len(references) * MAX_DEV_SHARE))]
    dev = [first[reference] for reference in held_out]
    gone = set(held_out)
    folded = {text: fold(text) for text in {text for pair in pairs for text in (pair.en, pair.es)}} if gone else {}
    texts = {folded[text] for pair in pairs if pair.reference in gone for text in (pair.en, pair.es)}
    train = [pair for pair in pairs if not (gone and (pair.reference in gone or {folded[pair.en], folded[pair.es]} & texts))]
    return train, dev


def sample(pairs: Sequence[TrainingPair], most: int | None, seed: int) -> list[TrainingPair]:
    """At most `most` of the pairs, the same ones every time, in their own order."""
    if most is None or len(pairs) <= most:
        return list(pairs)
    chosen = sorted(range(len(pairs)), key=lambda index: _order(seed, pairs[index].id))[:most]
    return [pairs[index] for index in sorted(chosen)]


def fold(text: str) -> str:
    """Letters and digits only, without case or accents: what two texts are compared by when leaks are looked for."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(filter(str.isalnum, decomposed))


def data_lines(pairs: Iterable[TrainingPair]) -> Iterator[str]:
    """One line a pair, for the data's fingerprint."""
    return (f"{pair.id}\t{pair.en}\t{pair.es}" for pair in pairs)


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()


def _lines(path: Path, kind: type[T]) -> Iterator[T]:
    decoder = msgspec.json.Decoder(kind)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield _decoded(decoder, line, path, number)
    except OSError as error:
        raise MisconfiguredError(f"{path} cannot be read ({error.strerror}); run the corpus stage first") from error


def _decoded(decoder: msgspec.json.Decoder[T], line: bytes, path: Path, number: int) -> T:
    try:
        return decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MisconfiguredError(f"{path}, line {number}: not a pair ({error}); run the corpus stage again") from error

"""PURE but `read_sermons`: which pairs a TranslateGemma trains on, when it is not all of them.

Five English and two Spanish texts of a verse are ten pairs of one thought. All of them would take ten times as long and teach
mostly old English; so each verse has one vote, cast by its most modern translation, and a hash decides which verses come in.
The same pairs every time, whatever the order of the file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec

from stages.verse_pairs import TrainingPair, fold
from state.contract import MisconfiguredError

YEARS = {
    "OEB": 2010,
    "NHEB": 2008,
    "BBE": 1949,
    "ASV": 1901,
    "YLT": 1862,
    "KJV": 1769,
    "KJVPCE": 1769,
    "SpaRV": 1909,
    "SpaRV1865": 1865,
}
"""Of the texts that the corpus stage knows: what their language is like."""
UNKNOWN_YEAR = 2000
"""A text that somebody added is likely newer than what is in the public domain."""


class SermonLine(msgspec.Struct, frozen=True):
    """One line of a file of sermon pairs."""

    en: str
    es: str


def choose(pairs: Sequence[TrainingPair], most: int | None, seed: int) -> list[TrainingPair]:
    """At most `most` of the verse pairs, one of each reference, in their own order; all of them where `most` is None."""
    if most is None:
        return list(pairs)
    votes: dict[str, TrainingPair] = {}
    for pair in sorted(pairs, key=lambda pair: (_age(pair), _order(seed, pair.id))):
        votes.setdefault(pair.reference or pair.id, pair)
    chosen = {votes[reference].id for reference in sorted(votes, key=lambda reference: _order(seed, reference))[:most]}
    return [pair for pair in pairs if pair.id in chosen]


def _age(pair: TrainingPair) -> tuple[int, int]:
    """Small for modern texts: of the editions that say this, the newest English, then the newest Spanish."""
    years = [tuple(-YEARS.get(name, UNKNOWN_YEAR) for name in edition.split(">")) for edition in pair.editions]
    return min(((english, spanish) for english, spanish in years), default=(0, 0))


def read_sermons(path: Path, kept_out: Collection[str]) -> list[TrainingPair]:
    """The pairs of a JSON-lines file with `en` and `es`, but those with a text that is in `kept_out`, folded.

    Raises:
        MisconfiguredError: the file is missing or empty, or a line is not a pair.
    """
    decoder, found = msgspec.json.Decoder(SermonLine), []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise MisconfiguredError(f"sermon_pairs {path} cannot be read ({error.strerror}); correct the path") from error
    for number, line in enumerate(lines, start=1):
        try:
            pair = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise MisconfiguredError(
                f"sermon_pairs {path}, line {number}: not a pair of en and es ({error}); correct it"
            ) from error
        if not (pair.en.strip() and pair.es.strip()):
            raise MisconfiguredError(f"sermon_pairs {path}, line {number}: a side is empty; correct it")
        if not {fold(pair.en), fold(pair.es)} & set(kept_out):
            found.append(TrainingPair(f"sermon {number}", pair.en, pair.es, None))
    if not lines:
        raise MisconfiguredError(f"sermon_pairs {path} is empty; correct the path")
    return found


def _order(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{name}".encode()).digest()

"""Verse pairs as Marian's token ids: each text tokenized once, in large batches, and arrays that keep them for the next attempt.

MarianTokenizer is written in Python and takes minutes for a Bible's 269,000 pairs. Here sentencepiece encodes all texts in one
call and a table turns its ids into those of vocab.json. Pieces that sentencepiece does not know are looked up by their
letters, as the tokenizer does: vocab.json also holds the other language's pieces. A sample is compared with the
tokenizer itself every time, and if one id differs the tokenizer does it all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from stages.recipe import Example, digest
from stages.runtime import StageContext
from stages.verse_pairs import TrainingPair

BLOCK = 8192
COMPARED = 200
"""Texts of each language that are also tokenized by MarianTokenizer itself."""
QUIET_S = 600.0
ARRAYS = ("source_values", "source_offsets", "source_of", "target_values", "target_offsets", "target_of")


@dataclass(frozen=True)
class TokenTable:
    """Token ids of many texts: text i is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> TokenTable:
        """The table of these rows of ids."""
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        values = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    @classmethod
    def joined(cls, tables: Sequence[TokenTable]) -> TokenTable:
        """One table of them all, in order."""
        lengths = np.concatenate([np.diff(table.offsets) for table in tables])
        return cls(np.concatenate([table.values for table in tables]), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


@dataclass(frozen=True)
class Rows:
    """Pairs as token ids with end marks; equal texts are stored once: row i is `sources[source_of[i]]`, `targets[target_of[i]]`."""

    ids: tuple[str, ...]
    sources: TokenTable
    targets: TokenTable
    source_of: NDArray[np.int64]
    target_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Source and target tokens of each row."""
        return np.diff(self.sources.offsets)[self.source_of], np.diff(self.targets.offsets)[self.target_of]

    def examples(self) -> list[Example]:
        """For the training."""
        return [Example(*row) for row in zip(self.ids, *(lengths.tolist() for lengths in self.lengths()), strict=True)]

    def keep(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where `mask` is true."""
        kept = tuple(name for name, wanted in zip(self.ids, mask, strict=True) if wanted)
        return Rows(kept, self.sources, self.targets, self.source_of[mask], self.target_of[mask])

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Source and target ids of row `index`."""
        return self.sources[int(self.source_of[index])], self.targets[int(self.target_of[index])]


def tokenize(ctx: StageContext, tokenizer: Any, pairs: Sequence[TrainingPair]) -> Rows:
    """The pairs as token ids."""
    english, source_of = _unique(pair.en for pair in pairs)
    spanish, target_of = _unique(pair.es for pair in pairs)
    ctx.quiet(QUIET_S, f"tokenizing {len(english) + len(spanish)} texts")
    sources, targets = encode(ctx, tokenizer, english, target=False), encode(ctx, tokenizer, spanish, target=True)
    return Rows(tuple(pair.id for pair in pairs), sources, targets, source_of, target_of)


def save_rows(rows: Rows, folder: Path) -> None:
    """Write the rows into `folder`, as arrays that open at once."""
    (folder / "ids.json").write_bytes(msgspec.json.encode(rows.ids))
    for name, array in _arrays(rows).items():
        np.save(folder / f"{name}.npy", array)


def load_rows(folder: Path) -> Rows:
    """Open what `save_rows` wrote, by memory map: a row is read from disk when it is used."""
    ids = msgspec.json.decode((folder / "ids.json").read_bytes(), type=tuple[str, ...])
    arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
    sources, targets = (TokenTable(arrays[f"{side}_values"], arrays[f"{side}_offsets"]) for side in ("source", "target"))
    return Rows(ids, sources, targets, arrays["source_of"], arrays["target_of"])


def _arrays(rows: Rows) -> dict[str, NDArray[Any]]:
    sides = (rows.sources.values, rows.sources.offsets, rows.source_of, rows.targets.values, rows.targets.offsets, rows.target_of)
    return dict(zip(ARRAYS, sides, strict=True))


def encode(ctx: StageContext, tokenizer: Any, texts: Sequence[str], *, target: bool) -> TokenTable:
    """Ids of the texts, end mark included, equal to those of MarianTokenizer."""
    fast = FastMarian(tokenizer, target=target)
    parts = [TokenTable.of([])]
    for start in range(0, len(texts), BLOCK):
        ctx.check_stop()
        parts.append(fast.ids(texts[start : start + BLOCK]))
        ctx.progress(min(start + BLOCK, len(texts)), len(texts), "texts")
    table = TokenTable.joined(parts)
    spread = range(0, len(texts), max(1, len(texts) // COMPARED))
    if all(table[index].tolist() == slow_ids(tokenizer, texts[index], target=target) for index in spread):
        return table
    ctx.note("The fast tokenizer differs from MarianTokenizer on this vocabulary; the slow one is used", level="warning")
    return TokenTable.of([slow_ids(tokenizer, text, target=target) for text in texts])


def slow_ids(tokenizer: Any, text: str, *, target: bool) -> list[int]:
    """What MarianTokenizer makes of one text."""
    encoded = tokenizer(text_target=text) if target else tokenizer(text)
    return [int(token) for token in encoded["input_ids"]]


class FastMarian:
    """MarianTokenizer's ids by way of sentencepiece's own batch call."""

    def __init__(self, tokenizer: Any, *, target: bool) -> None:
        self.tokenizer = tokenizer
        self.target = target
        self.pieces = tokenizer.spm_target if target else tokenizer.spm_source
        self.vocabulary: dict[str, int] = tokenizer.target_encoder if target and tokenizer.separate_vocabs else tokenizer.encoder
        self.unknown = self.vocabulary[tokenizer.unk_token]
        names = [self.pieces.id_to_piece(index) for index in range(self.pieces.get_piece_size())]
        self.known = len(names)
        own = [self.vocabulary.get(name, self.unknown) for name in names]
        self.table = np.array([*own, *range(max(self.vocabulary.values()) + 1)], dtype=np.int32)
        """Sentencepiece's id -> Marian's; an id of Marian's own stands `known` places further."""
        self.specials = tuple({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab(), ">>"})

    def ids(self, texts: Sequence[str]) -> TokenTable:
        """Ids of each text, end mark included."""
        end, unknown_piece = self.known + self.tokenizer.eos_token_id, self.pieces.unk_id()
        rows: list[list[int]] = self.pieces.encode(list(texts), out_type=int)
        for number, row in enumerate(rows):
            if unknown_piece in row:
                named = self.pieces.encode(texts[number], out_type=str)
                rows[number] = [self.known + self.vocabulary.get(piece, self.unknown) for piece in named]
        for number in self._special(texts):
            rows[number] = [self.known + token for token in slow_ids(self.tokenizer, texts[number], target=self.target)[:-1]]
        for row in rows:
            row.append(end)
        table = TokenTable.of(rows)
        return TokenTable(self.table[table.values], table.offsets)

    def _special(self, texts: Sequence[str]) -> list[int]:
        """Which texts hold a mark that the tokenizer treats by itself; mostly none, and one look at all of them says so."""
        together = "\n".join(texts)
        marks = [mark for mark in self.specials if mark in together]
        return [number for number, text in enumerate(texts) if any(mark in text for mark in marks)] if marks else []


def _unique(texts: Iterable[str]) -> tuple[list[str], NDArray[np.int64]]:
    """The different texts in order of appearance, and for each text its place among them."""
    places: dict[str, int] = {}
    places_of = np.array([places.setdefault(text, len(places)) for text in texts], dtype=np.int64)
    return list(places), places_of


def identity(tokenizer: Any) -> list[str]:
    """What the ids depend on besides the texts."""
    models = (tokenizer.spm_source, tokenizer.spm_target)
    vocabulary = digest(f"{piece}\t{number}" for piece, number in tokenizer.get_vocab().items())
    return [vocabulary, *(digest([model.serialized_model_proto().hex()]) for model in models)]

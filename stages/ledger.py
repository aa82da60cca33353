"""The ledger of a training: which examples each optimizer step used, and the proof that none was lost or used twice.

One JSON line a step: `{"step": 17, "examples": [4, 9]}`, with `"skipped"` where examples were left out after a
divergence. Examples are named by their index; the checkpoint's fingerprint says into which data. The file is made durable with each
checkpoint, which records its length and digest; a resume cuts it back to there.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from state.durable import sync_folder


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one optimizer step (counted from 1) used."""

    step: int
    examples: tuple[int, ...]
    skipped: tuple[int, ...] = ()


class Mark(msgspec.Struct, frozen=True):
    """How much of the ledger belongs to a checkpoint."""

    size_bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class LedgerError(Exception):
    """The ledger does not hold what the checkpoint says it holds."""


class Ledger:
    """The ledger in `path`, open for appending after `mark`.

    Raises:
        LedgerError: the file is shorter than `mark` or its beginning differs; nothing is changed.
    """

    def __init__(self, path: Path, mark: Mark | None = None) -> None:
        self.path = path
        mark = mark or Mark()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._digest = _digest_of(path, mark)
        self._file = open(path, "ab")  # noqa: SIM115  held open for the whole training; close() ends it
        self._file.truncate(mark.size_bytes)
        self._size_bytes = mark.size_bytes

    def append(self, entry: Entry) -> None:
        """Record one step; durable with the next `mark`."""
        line = msgspec.json.encode(entry) + b"\n"
        self._file.write(line)
        self._digest.update(line)
        self._size_bytes += len(line)

    def mark(self) -> Mark:
        """Make everything so far durable, and say where it ends."""
        found = self.here()
        self.sync()
        return found

    def here(self) -> Mark:
        """Where everything so far ends; durable with the next `sync`."""
        self._file.flush()
        return Mark(self._size_bytes, self._digest.hexdigest())

    def sync(self) -> None:
        """Make durable what was flushed; another thread may append meanwhile."""
        os.fsync(self._file.fileno())
        sync_folder(self.path.parent)

    def entries(self) -> Iterator[Entry]:
        """Every step recorded so far, read back from the file."""
        if not self._file.closed:
            self._file.flush()
        with open(self.path, "rb") as file:
            for line in file:
                yield msgspec.json.decode(line, type=Entry)

    def close(self) -> None:
        self._file.close()


class Proof(msgspec.Struct, frozen=True):
    """What the ledger says about a training."""

    exact: bool
    """Every step used the examples that the data order names for it, and over all epochs each example `epochs` times."""
    used: int
    """Examples used, each as often as it was."""
    skipped: tuple[int, ...] = ()
    """Examples left out at least once."""
    first_fault: str = ""


def prove(entries: Iterator[Entry], planned: Callable[[int], Sequence[int]], steps: int, epochs: float | None) -> Proof:
    """Compare the ledger with the data order, computed anew by `planned(step)` (step from 0), and count every example.

    `epochs` is given for a training that ran to its end: then each example must have been used or named as skipped
    that many times; where the last epoch is not whole, once more or not.
    """
    counts: Counter[int] = Counter()
    skipped: Counter[int] = Counter()
    fault, done = "", 0
    for entry in entries:
        if entry.step != done + 1:
            return Proof(False, counts.total(), tuple(sorted(skipped)), f"step {entry.step} follows step {done}")
        left_out = set(entry.skipped)
        batch = planned(done)
        if tuple(index for index in batch if index not in left_out) != entry.examples or not left_out <= set(batch):
            fault = fault or f"step {entry.step} used other examples than planned"
        counts.update(entry.examples)
        skipped.update(entry.skipped)
        done += 1
    if done != steps:
        fault = fault or f"{done} steps are recorded, {steps} were done"
    return Proof(not (fault := fault or _miscount(counts + skipped, epochs)), counts.total(), tuple(sorted(skipped)), fault)


def _miscount(counts: Counter[int], epochs: float | None) -> str:
    wrong = next((index for index, times in sorted(counts.items()) if epochs is not None and abs(times - epochs) >= 1), None)
    return "" if wrong is None else f"example {wrong} stands {counts[wrong]} times in {epochs:g} epochs"


def _digest_of(path: Path, mark: Mark) -> hashlib._Hash:
    """A running digest over the marked part of the file."""
    digest = hashlib.sha256()
    if mark.size_bytes:
        try:
            with open(path, "rb") as file:
                digest.update(file.read(mark.size_bytes))
        except FileNotFoundError as error:
            raise LedgerError(f"{path} is missing") from error
    if digest.hexdigest() != mark.sha256:
        raise LedgerError(f"{path} differs from what the checkpoint recorded")
    return digest

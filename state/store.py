"""state.json with its previous generation, and journal.jsonl beside it.

A save writes a new file, fsyncs it, links the current one to `state.json.prev`, renames, and fsyncs the folder. The file is an
envelope: one line of JSON with the sha256 of the next, then the run. A damaged state.json is set aside and the
previous generation used, and the caller is told; with both damaged, loading fails: never a silent clean start.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from state.durable import append_durably, sync_folder, write_atomically
from state.snapshot import Fact, RunState, decode


class StateUnreadableError(Exception):
    """No generation of the state can be read; the message says what was found and what to do."""


class _Seal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    vigil_state: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Loaded:
    """A run from disk; `repair` tells what had to be mended, empty when nothing had."""

    run: RunState
    repair: str = ""


class Store:
    """The saved state of one workspace. One writer at a time: the holder of vigil.lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(path.name + ".prev")

    def exists(self) -> bool:
        return self.path.exists() or self.previous.exists()

    def save(self, run: RunState) -> None:
        """Make `run` durable.

        Raises:
            OSError: nothing was acknowledged; the older generations are still there.
        """
        if self.path.exists():
            spare = self.previous.with_name(self.previous.name + ".tmp")
            with contextlib.suppress(FileNotFoundError):
                spare.unlink()
            os.link(self.path, spare)
            os.replace(spare, self.previous)
        write_atomically(self.path, seal(run))

    def load(self) -> Loaded:
        """The newest generation that is whole.

        Raises:
            FileNotFoundError: there was never a run here.
            StateUnreadableError: files are there and none can be read.
        """
        if not self.exists():
            raise FileNotFoundError(self.path)
        faults = []
        for path in (self.path, self.previous):
            try:
                run = unseal(path.read_bytes())
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {error}")
                continue
            return Loaded(run, self._repair(faults))
        raise StateUnreadableError(
            f"neither {self.path} nor {self.previous.name} can be read ({'; '.join(faults)}); "
            "restore one from a copy, or move both away to begin a new run"
        )

    def peek(self) -> RunState:
        """Like `load`, but changes nothing on disk: for readers beside the daemon."""
        for path in (self.path, self.previous):
            with contextlib.suppress(OSError, ValueError):
                return unseal(path.read_bytes())
        return self.load().run

    def _repair(self, faults: list[str]) -> str:
        if not faults:
            return ""
        if self.path.exists():
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        os.link(self.previous, self.path)
        sync_folder(self.path.parent)
        return f"{faults[0]}; went on from the previous generation"


def seal(run: RunState) -> bytes:
    """The bytes of state.json: a line that vouches for the rest, then the run, readable."""
    body = msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n"
    head = _Seal(vigil_state=1, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    return msgspec.json.encode(head) + b"\n" + body


def unseal(data: bytes) -> RunState:
    """The run in the bytes of state.json.

    Raises:
        ValueError: cut, changed, or not a state file (msgspec's errors are ValueErrors too).
    """
    head, _newline, body = data.partition(b"\n")
    found = msgspec.json.decode(head, type=_Seal)
    if len(body) != found.size_bytes:
        raise ValueError(f"{len(body)} bytes where {found.size_bytes} were written")
    if hashlib.sha256(body).hexdigest() != found.sha256:
        raise ValueError("its checksum does not match")
    return decode(body)


class Journal:
    """journal.jsonl: one line per fact, each told once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._told = {fact.id for fact in read_journal(path)}

    def tell(self, fact: Fact) -> bool:
        """Append `fact` durably; False when it was told before."""
        if fact.id in self._told:
            return False
        append_durably(self.path, msgspec.json.encode(fact))
        self._told.add(fact.id)
        return True


def read_journal(path: Path) -> list[Fact]:
    """Every whole fact in the journal, in order; a torn line is passed over."""
    if not path.exists():
        return []
    facts = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            facts.append(msgspec.json.decode(line, type=Fact))
    return facts

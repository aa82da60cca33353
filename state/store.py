"""state.json with its previous generation, and journal.jsonl beside it.

A save writes a new file, fsyncs it, links the current one to `state.json.prev`, renames, and fsyncs the folder. The file is an
envelope: one line of JSON with the sha256 of the next, then the run. A damaged state.json is set aside and the
previous generation used, and the caller is told; with both damaged, loading fails: never a silent clean start.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from state.durable import append_durably, check_seal, make_folder, read_again, sealed, sync_folder, write_new
from state.snapshot import Fact, RunState, decode

ENVELOPE = 1
DAMAGE_ERRNOS = (errno.ENOENT, errno.EIO)


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
        """Whether a run was ever saved here.

        Raises:
            OSError: that cannot be seen, which is not a no.
        """
        return _there(self.path) or _there(self.previous)

    def save(self, run: RunState) -> None:
        """Make `run` durable. The previous generation is given up only when the new one is on disk beside it.

        Raises:
            OSError: nothing was acknowledged; the older generations are still there.
        """
        folder = self.path.parent
        make_folder(folder)
        fresh = self.path.with_name(f".{self.path.name}.tmp")
        write_new(fresh, seal(run))
        if _there(self.path):
            spare = self.previous.with_name(self.previous.name + ".tmp")
            with contextlib.suppress(FileNotFoundError):
                spare.unlink()
            os.link(self.path, spare)
            os.replace(spare, self.previous)
        else:
            with contextlib.suppress(PermissionError):
                sync_folder(folder.parent)  # whoever made the workspace may have been killed before its name was durable
        os.replace(fresh, self.path)
        sync_folder(folder)

    def load(self) -> Loaded:
        """The newest generation that is whole. It may be newer than what was acknowledged: save before acting on it.

        Raises:
            FileNotFoundError: there was never a run here.
            StateUnreadableError: files are there and none can be read.
            OSError: the disk, a permission or a limit refuses; no file was changed.
        """
        run, faults = self._newest()
        return Loaded(run, self._repair(faults))

    def peek(self) -> RunState:
        """Like `load`, but changes nothing on disk: for readers beside the daemon."""
        return self._newest()[0]

    def _newest(self) -> tuple[RunState, list[str]]:
        if not self.exists():
            raise FileNotFoundError(self.path)
        faults: list[str] = []
        for path in (self.path, self.previous):
            try:
                return unseal(read_again(path.read_bytes)), faults
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno not in DAMAGE_ERRNOS:
                    raise
                faults.append(f"{path.name}: {error}")
        raise StateUnreadableError(
            f"neither {self.path} nor {self.previous.name} can be read ({'; '.join(faults)}); "
            "restore one from a copy, or move both away to begin a new run"
        )

    def _repair(self, faults: list[str]) -> str:
        if not faults:
            return ""
        if _there(self.path):
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        os.link(self.previous, self.path)
        sync_folder(self.path.parent)
        return f"{faults[0]}; went on from the previous generation"


def seal(run: RunState) -> bytes:
    """The bytes of state.json: a line that vouches for the rest, then the run, readable."""
    body = msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n"
    head = _Seal(vigil_state=ENVELOPE, size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    return msgspec.json.encode(head) + b"\n" + body


def unseal(data: bytes) -> RunState:
    """The run in the bytes of state.json.

    Raises:
        ValueError: cut, changed, or not a state file (msgspec's errors are ValueErrors too).
    """
    head, _newline, body = data.partition(b"\n")
    found = msgspec.json.decode(head, type=_Seal)
    if found.vigil_state != ENVELOPE:
        raise ValueError(f"a state file of kind {found.vigil_state}, not {ENVELOPE}")
    if len(body) != found.size_bytes:
        raise ValueError(f"{len(body)} bytes where {found.size_bytes} were written")
    if hashlib.sha256(body).hexdigest() != found.sha256:
        raise ValueError("its checksum does not match")
    return decode(body)


class Journal:
    """journal.jsonl: one line per fact, each told once, each vouched for by a checksum of its own.

    The file as it was found is never appended to: an earlier process may have met a failed fsync, and what reads well may not
    be on disk (https://lwn.net/Articles/752063/). So the first telling, and the first after an error, writes all of it anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._durable = False
        self._read()

    def tell(self, fact: Fact) -> bool:
        """Append `fact` durably; False when it was told before.

        An id that stands for another fact (the run went back a generation and numbered anew) gets a `+`.

        Raises:
            OSError: it does not count as told; tell it again.
        """
        try:
            if not self._durable:
                self._rewrite()
            told = self._named(fact)
            if told.id in self._told:
                return False
            append_durably(self.path, sealed(msgspec.json.encode(told)))
        except OSError:
            self._durable = False
            raise
        self._told[told.id] = told
        return True

    def damage(self, run: RunState) -> str:
        """What `run` has told and the journal does not show, as a sentence; empty when it is all there. Notes are not counted."""
        known = {*self._told, *(fact.id for fact in run.untold)}
        lost = sum(f"{number:06d}" not in known for number in range(1, run.facts + 1))
        if not (self._unread or lost):
            return ""
        return f"{self.path.name}: {self._unread} of its lines cannot be read, {lost} of the facts told are missing"

    def _read(self) -> None:
        facts, self._unread = scan_journal(self.path)
        self._told = {fact.id: fact for fact in facts}

    def _rewrite(self) -> None:
        self._read()
        fresh = self.path.with_name(f".{self.path.name}.tmp")
        make_folder(self.path.parent)
        write_new(fresh, b"".join(sealed(msgspec.json.encode(fact)) + b"\n" for fact in self._told.values()))
        if self._unread:
            self._keep_damaged()
        os.replace(fresh, self.path)
        sync_folder(self.path.parent)
        self._durable = True

    def _keep_damaged(self) -> None:
        aside = self.path.with_name(self.path.name + ".damaged")
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        os.link(self.path, aside)

    def _named(self, fact: Fact) -> Fact:
        while (told := self._told.get(fact.id)) is not None and msgspec.json.encode(told) != msgspec.json.encode(fact):
            fact = msgspec.structs.replace(fact, id=fact.id + "+")
        return fact


def unseal_fact(line: bytes) -> Fact:
    """The fact in a line of the journal.

    Raises:
        ValueError: torn or changed (msgspec's errors are ValueErrors too).
    """
    check_seal(line)
    return msgspec.json.decode(line, type=Fact)


def scan_journal(path: Path) -> tuple[list[Fact], int]:
    """Every whole fact in the journal, in order, and the count of lines that cannot be read."""
    if not _there(path):
        return [], 0
    facts, unread = [], 0
    for line in filter(None, read_again(path.read_bytes).split(b"\n")):
        try:
            facts.append(unseal_fact(line))
        except ValueError:
            unread += 1
    return facts, unread


def read_journal(path: Path) -> list[Fact]:
    """Every whole fact in the journal, in order; a line that is torn or changed is passed over (`Journal.damage` tells)."""
    return scan_journal(path)[0]


def _there(path: Path) -> bool:
    """Unlike `exists`, sure of a no."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True

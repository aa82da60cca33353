"""What comes in: the events of attempts, and the owner's commands.

Commands are files renamed into control/, so they survive a restart and need no socket. The watchdog package wakes the tick when one
arrives; it watches that small folder only (an observer wakes whenever any process lists the watched folder).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import structlog
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from daemon.effects import Heard
from daemon.silence import Silence
from state.contract import Answer, Command, CommandKind, Event, Progress
from state.durable import write_atomically
from state.workspace import Workspace

MOST_BETWEEN_LOOKS_S = 10.0
"""A longer pause was the daemon's own, or the whole machine's: it counts for so much at most."""

log = structlog.get_logger()
_EVENTS = msgspec.json.Decoder(Event)


class _Tail:
    """The events of one attempt, read on from where the last reading ended."""

    def __init__(self, path: Path, now_s: float) -> None:
        self.path = path
        self.offset = 0
        self.silence = Silence()
        self._read_s = now_s

    def read(self, now_s: float) -> list[tuple[int, Event]]:
        """Whole lines that came since, each with its offset; a torn last line waits for its end."""
        found = self._lines()
        looked_s = min(now_s - self._read_s, MOST_BETWEEN_LOOKS_S)
        self._read_s = now_s
        self.silence = _heard(self.silence, looked_s, [event for _offset, event in found])
        return found

    def _lines(self) -> list[tuple[int, Event]]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        found: list[tuple[int, Event]] = []
        for line in data[: data.rfind(b"\n") + 1].splitlines(keepends=True):
            with contextlib.suppress(msgspec.DecodeError):
                found.append((self.offset, _EVENTS.decode(line)))
            self.offset += len(line)
        return found


def _heard(before: Silence, looked_s: float, events: list[Event]) -> Silence:
    """The silence after one more look, `looked_s` after the last, that found `events`."""
    silent_s = before.silent_s + looked_s
    if not events:
        return replace(before, silent_s=silent_s)
    last = events[-1]
    return Silence(
        quiet_s=(last.quiet_s or 0.0) if isinstance(last, Progress) else 0.0,
        longest_gap_s=before.longest_gap_s if before.quiet_s else max(before.longest_gap_s, silent_s),
        beats=before.beats + 1,
    )


class Inbox:
    """The daemon's ears on one workspace."""

    def __init__(self, workspace: Workspace, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.workspace = workspace
        self._monotonic = monotonic
        self._tails: dict[tuple[str, int], _Tail] = {}
        self._arrived = threading.Event()
        workspace.control.mkdir(parents=True, exist_ok=True)
        workspace.answers.mkdir(parents=True, exist_ok=True)
        self._observer = Observer()
        self._observer.schedule(_Waker(self._arrived), str(workspace.control))
        self._observer.start()

    def close(self) -> None:
        """Stop watching."""
        self._observer.stop()
        self._observer.join(timeout=2.0)

    def wake(self) -> None:
        """End the current wait: a signal arrived."""
        self._arrived.set()

    def wait(self, seconds: float) -> None:
        """Sleep until a command arrives, `wake` is called or the time is over."""
        self._arrived.wait(seconds)
        self._arrived.clear()

    def events(self, stage: str, attempt: int) -> tuple[Heard, ...]:
        """The events of an attempt since the last call."""
        tail = self._tail(stage, attempt)
        return tuple(Heard(stage, attempt, offset, event) for offset, event in tail.read(self._monotonic()))

    def silence(self, stage: str, attempt: int) -> Silence:
        """How long the attempt has been silent, as of the last call of `events`, and what is usual for it."""
        return self._tail(stage, attempt).silence

    def commands(self) -> tuple[Command, ...]:
        """The commands that wait, oldest first; one that cannot be read is set aside and logged."""
        found = []
        for path in sorted(self.workspace.control.glob("*.json")):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Command))
            except (OSError, msgspec.DecodeError) as error:
                log.warning("command.unreadable", file=path.name, error=str(error))
                with contextlib.suppress(OSError):
                    os.replace(path, path.with_suffix(".unreadable"))
        return tuple(sorted(found, key=lambda command: command.at))

    def reply(self, answer: Answer) -> None:
        """Answer a command durably, then take it out of control/."""
        write_atomically(self.workspace.answers / f"{answer.id}.json", msgspec.json.encode(answer))
        with contextlib.suppress(FileNotFoundError):
            (self.workspace.control / f"{answer.id}.json").unlink()

    def _tail(self, stage: str, attempt: int) -> _Tail:
        key = (stage, attempt)
        if key not in self._tails:
            self._tails[key] = _Tail(self.workspace.attempt(stage, attempt).events, self._monotonic())
        return self._tails[key]


class _Waker(FileSystemEventHandler):
    def __init__(self, arrived: threading.Event) -> None:
        self._arrived = arrived

    def on_moved(self, event: FileSystemEvent) -> None:
        self._arrived.set()

    def on_created(self, event: FileSystemEvent) -> None:
        self._arrived.set()


def new_command(kind: CommandKind, stage: str | None = None, *, now: bool = False, by: str = "cli") -> Command:
    """A command with an id of its own."""
    at = time.time()
    return Command(id=f"{int(at * 1000)}-{uuid.uuid4().hex[:8]}", kind=kind, at=at, stage=stage, now=now, by=by)


def submit(workspace: Workspace, command: Command, wait_s: float = 10.0) -> Answer | None:
    """Put `command` into control/ and wait for its answer; None when nobody answered in time (it stays and will be carried out).

    Raises:
        OSError: it could not be written, and is not queued.
    """
    write_atomically(workspace.control / f"{command.id}.json", msgspec.json.encode(command))
    path = workspace.answers / f"{command.id}.json"
    deadline = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(FileNotFoundError):
            return msgspec.json.decode(path.read_bytes(), type=Answer)
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.05)

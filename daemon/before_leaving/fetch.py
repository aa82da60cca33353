"""`vigil fetch`: brings every model and the speech that the plan will need into the cache: the trip needs no network for them.

Recordings are the download stage's own work. Silero's voice detector comes with faster-whisper. The talking to the hub is done by
`python -m stages.fetch`; what is brought goes on where it stopped, and is loaded once without the network at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec

from daemon import words
from daemon.before_leaving import checks_plan
from daemon.before_leaving.checks import DEMUCS, HUB, NEEDS_DEMUCS, TOKENS
from daemon.launcher import PROJECT, environment
from state.contract import ExitCode
from state.needs import Cache, Fetching, Model, ModelSeen, Said, Where
from state.pipeline import Pipeline
from state.workspace import Workspace

EX_TRY_AGAIN = 75
MARGIN_BYTES = 1_000_000_000
NAME_COLUMNS = 36

Say = Callable[[str], None]


class FetchError(Exception):
    """The hub's process ended before it had said all; the message holds its last words."""


def fetch(
    workspace: Workspace, pipeline: Pipeline, *, as_json: bool = False, say: Say = print, terminal: bool | None = None
) -> int:
    """Bring what is missing.

    Returns:
        0 everything is here; 1 something cannot be had as things are; 75 the network or the hub; 82 the disk.

    Raises:
        FetchError: the process that talks to the hub broke.
    """
    wanted = list(checks_plan.models(pipeline))
    tell: Say = (lambda _line: None) if as_json else say
    cache, seen = _look(workspace, wanted)
    for one in seen:
        tell(_line(one))
    missing = sum(one.missing_bytes for one in seen if one.where is Where.TO_FETCH)
    free = shutil.disk_usage(_existing(Path(cache.folder))).free
    full = missing + MARGIN_BYTES > free if missing else False
    if full:
        tell(f"{words.size(missing)} are missing, and {cache.folder} has {words.size(free)} free: free some space first")
    else:
        seen = _bring(workspace, seen, tell, sys.stderr.isatty() if terminal is None else terminal)
    code = ExitCode.DISK_FULL if full else _code(seen)
    if as_json:
        say(msgspec.json.format(msgspec.json.encode({"ok": code == 0, "cache": cache.folder, "models": seen}), indent=1).decode())
    else:
        tell(_end(seen, code))
    return int(code)


def _look(workspace: Workspace, wanted: Sequence[Model]) -> tuple[Cache, list[ModelSeen]]:
    said = list(_said(workspace, "look", wanted))
    cache = next(one for one in said if isinstance(one, Cache))
    return cache, [one for one in said if isinstance(one, ModelSeen)]


def _bring(workspace: Workspace, seen: Sequence[ModelSeen], tell: Say, terminal: bool) -> list[ModelSeen]:
    """What is missing, one model after the other; the findings, with the fresh ones in their places."""
    fresh = {one.model: one for one in seen}
    line = _Progress(terminal, tell)
    for one in _said(workspace, "bring", [one.model for one in seen if one.where is Where.TO_FETCH]):
        if isinstance(one, Fetching):
            line.show(one)
        elif isinstance(one, ModelSeen):
            line.end()
            tell(_line(one))
            fresh[one.model] = one
    return list(fresh.values())


class _Progress:
    """The line of the model on its way: rewritten on a terminal, a line for each tenth elsewhere."""

    def __init__(self, terminal: bool, tell: Say) -> None:
        self._terminal, self._tell, self._told = terminal, tell, (Model("", "marian"), -1)

    def show(self, one: Fetching) -> None:
        share = one.done_bytes / one.total_bytes if one.total_bytes else 1.0
        text = f"  {one.model.name}: {words.size(one.done_bytes)} of {words.size(one.total_bytes)} {words.bar(share, 10)}"
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{words.clip(text, shutil.get_terminal_size().columns - 1)}")
            sys.stderr.flush()
        elif (one.model, int(share * 10)) != self._told:
            self._tell(text)
        self._told = (one.model, int(share * 10))

    def end(self) -> None:
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _said(workspace: Workspace, verb: str, models: Sequence[Model]) -> Iterator[Said]:
    """The lines of the hub's process.

    Raises:
        FetchError: it ended in a fault.
    """
    if not models and verb == "bring":
        return
    command = [sys.executable, "-P", "-m", "stages.fetch", verb, str(workspace.root)]
    with tempfile.TemporaryFile() as errors, _running(command, models, errors) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield msgspec.json.decode(line, type=Said)
        if process.wait():
            errors.seek(0)
            last = (errors.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
            raise FetchError(f"the process that talks to the hub ended with code {process.returncode}: {last}")


@contextmanager
def _running(command: Sequence[str], models: Sequence[Model], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """The process with its question asked; it ends with this one."""
    env = {**environment(), "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env)
    try:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(list(models)))
        process.stdin.close()
        yield process
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGTERM)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _line(one: ModelSeen) -> str:
    """One model, in one line of a terminal."""
    name = one.model.name if len(one.model.name) <= NAME_COLUMNS else f"…{one.model.name[-NAME_COLUMNS + 1 :]}"
    said = {
        Where.HERE: f"here, {words.size(one.size_bytes)}" + (f", {one.clips:,} clips" if one.clips else ""),
        Where.TO_FETCH: f"to fetch, {words.size(one.missing_bytes)} of {words.size(one.size_bytes)}",
        Where.GATED: "its licence is not accepted",
        Where.DENIED: "not known to the hub, or private",
        Where.AWAY: "the hub does not answer",
        Where.BROKEN: "cannot be used",
        Where.MADE: "is made by the run",
    }[one.where]
    sign = {Where.HERE: "✓", Where.MADE: "✓", Where.TO_FETCH: "·"}.get(one.where, "✗")
    return f"{sign} {name:<{NAME_COLUMNS}} {said}"


def _code(seen: Sequence[ModelSeen]) -> int:
    wheres = {one.where for one in seen}
    if wheres & {Where.GATED, Where.DENIED, Where.BROKEN}:
        return 1
    return EX_TRY_AGAIN if wheres & {Where.AWAY, Where.TO_FETCH} else 0


def _end(seen: Sequence[ModelSeen], code: int) -> str:
    """What is to be done now."""
    gated = [one.model.page for one in seen if one.where is Where.GATED]
    lines = [f"Open {HUB}/{page}, accept its licence, and set HF_TOKEN ({TOKENS})." for page in gated]
    lines += [f"{one.model.name}: {one.text}" for one in seen if one.where in (Where.DENIED, Where.BROKEN, Where.AWAY) and one.text]
    lines += [f"For demucs: {DEMUCS}"] if any(NEEDS_DEMUCS in one.text for one in seen) else []
    if code == 0:
        return "Every model is here; HF_HUB_OFFLINE=1 works. The recordings come with the download stage."
    return "\n".join([*lines, "The same command goes on from here."])


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path

"""`vigil watch`: the run as it goes, redrawn once a second on a terminal, or one line per fact where there is none.

A reader like any other: it changes nothing, may be ended at any moment, and ends by itself with the run.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from daemon import report, words
from daemon.view import StageView, View, read
from state.machine import Status
from state.workspace import Workspace

REFRESH_S = 1.0
HOST_EVERY_S = 5.0
FACTS_SHOWN = 6
WIDE = 100
"""Columns from which a stage's line has room for its own title and a longer bar."""

STYLES = {
    Status.PENDING: "dim",
    Status.RUNNING: "bold cyan",
    Status.BACKING_OFF: "yellow",
    Status.SUCCEEDED: "green",
    Status.FAILED: "bold red",
    Status.SKIPPED: "dim yellow",
}
LEVELS = {"warning": "yellow", "error": "red"}


def watch(workspace: Workspace, *, wait_for_daemon_s: float = 0.0) -> int:
    """Show the run until it is finished, its daemon is gone, or the reader has seen enough (q, Ctrl-C).

    Args:
        wait_for_daemon_s: how long a run and its daemon may take to appear.

    Raises:
        FileNotFoundError: there is no run here.
        StateUnreadableError: its state cannot be read.
    """
    _await_run(workspace, wait_for_daemon_s)
    with contextlib.suppress(KeyboardInterrupt):
        if sys.stdout.isatty():
            _watch_live(workspace)
        else:
            _watch_plain(workspace)
    return 0


def _await_run(workspace: Workspace, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            view = read(workspace)
            if view.alive or view.run.finished:
                return
        time.sleep(0.1)


def _watch_live(workspace: Workspace) -> None:
    console = Console()
    host, host_at = _host(workspace), time.monotonic()
    with _keys() as pressed, Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            if time.monotonic() - host_at > HOST_EVERY_S:
                host, host_at = _host(workspace), time.monotonic()
            view = read(workspace)
            live.update(screen(view, host, time.time(), console.width, console.height), refresh=True)
            if view.run.finished or not view.alive or pressed(REFRESH_S) == "q":
                return


def _watch_plain(workspace: Workspace) -> None:
    told: set[str] = set()
    while True:
        view = read(workspace)
        for fact in view.facts:
            if fact.id not in told and fact.level != "debug":
                print(report.fact_line(fact), flush=True)
            told.add(fact.id)
        if view.run.finished or not view.alive:
            return
        time.sleep(REFRESH_S)


def screen(view: View, host: Mapping[str, Any], now: float, columns: int, lines: int) -> RenderableType:
    """The whole picture: headline, machine, one line a stage, the last facts; cut to the terminal's height."""
    head = [
        Text(words.clip(line, columns), style="bold" if number == 0 else "")
        for number, line in enumerate(report.headline(view, now))
    ]
    machine = Text(words.clip(report.host_line(host), columns), style="dim")
    room = lines - len(head) - len(view.stages) - 5
    shown = [fact for fact in view.facts if fact.level != "debug"][-max(0, min(FACTS_SHOWN, room)) :] if room > 0 else []
    foot = [Text(words.clip(report.fact_line(fact), columns), style=LEVELS.get(fact.level, "dim")) for fact in shown]
    keys = "  q leaves; the run goes on." if sys.stdin.isatty() else ""
    hint = Text(f"~ is the time left.{keys}" if view.alive and not view.run.finished else "", style="dim italic")
    return Group(*head, machine, Text(), _stages(view, now, columns), Text(), *foot, hint)


def _stages(view: View, now: float, columns: int) -> Table:
    wide = columns >= WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=False, width=columns, pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=20 if wide else 10)
    table.add_column(justify="right", no_wrap=True, min_width=5)
    table.add_column(justify="right", no_wrap=True, min_width=6)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for stage in view.stages:
        table.add_row(*_row(stage, view, now, 20 if wide else 10), style=STYLES[stage.state.state])
    return table


def _row(stage: StageView, view: View, now: float, width: int) -> list[str]:
    share, state = stage.share, stage.state.state
    moving = state in (Status.RUNNING, Status.BACKING_OFF)
    eta_s = stage.eta_s(now)
    left = "" if moving and eta_s is None else f"~{words.duration(eta_s)}" if moving else report.took(stage.state)
    shape = words.bar(share, width) if moving or state is Status.SUCCEEDED else str(state)
    note = report.stage_note(stage, view, now)
    return [
        str(stage.number),
        stage.config.name,
        shape,
        words.percent(share) if moving or state is Status.SUCCEEDED else "",
        left,
        f"{state}: {note}" if state is Status.BACKING_OFF else note,
    ]


def _host(workspace: Workspace) -> dict[str, Any]:
    import msgspec

    from daemon.host import read_host

    found: dict[str, Any] = msgspec.to_builtins(read_host(workspace))
    return found


@contextlib.contextmanager
def _keys() -> Iterator[Any]:
    """A function that waits up to some seconds for a key; the terminal is put back as it was."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        yield lambda seconds: _key(handle, seconds)
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _key(handle: int, seconds: float) -> str:
    ready, _, _ = select.select([handle], [], [], seconds)
    return os.read(handle, 1).decode("ascii", "replace").lower() if ready else ""

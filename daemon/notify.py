"""What the daemon tells systemd, in datagrams (sd_notify(3)): that it is up, what it does, that it ticks, that it leaves.

Without NOTIFY_SOCKET nothing is sent. A datagram that is not taken is no trouble: what it said is said again with the next tick.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass

from daemon import report, words
from daemon.effects import Heard
from daemon.view import StageView
from state.contract import Progress
from state.snapshot import BackingOff, Running, RunState

SOCKET = "NOTIFY_SOCKET"
FOR_THE_DAEMON = (SOCKET, "WATCHDOG_USEC", "WATCHDOG_PID")
STATUS_COLUMNS = 64
"""What is left of 80 columns in `systemctl status`."""
LEAVING_S = 15.0
"""What each tick asks for while stages save; a daemon that ticks no more has so long to live."""
ENDING_S = 400.0
"""What is asked for with the last tick: for a reclaim under way, the last page and the bot's last words."""


@dataclass(frozen=True)
class Way:
    """The first and the last progress of the phase of work that an attempt is in."""

    attempt: int
    first: Progress
    last: Progress

    def on(self, told: Progress) -> Way:
        """The way after one more word; another unit, another total or a step back begin a new phase."""
        before = self.last
        same = (told.unit, told.total) == (before.unit, before.total) and told.done >= before.done
        return Way(self.attempt, self.first if same else told, told)

    @property
    def rate(self) -> float | None:
        """Units per second; None while unknown."""
        seconds, done = self.last.at - self.first.at, self.last.done - self.first.done
        return done / seconds if seconds > 0 and done > 0 else None


def listen(ways: Mapping[str, Way], heard: Iterable[Heard]) -> dict[str, Way]:
    """`ways` by stage, after what was heard."""
    after = dict(ways)
    for word in heard:
        told = word.event
        if isinstance(told, Progress):
            way = after.get(word.stage)
            after[word.stage] = way.on(told) if way and way.attempt == word.attempt else Way(word.attempt, told, told)
    return after


def sentence(run: RunState, ways: Mapping[str, Way], now: float, *, leaving: bool = False) -> str:
    """The run in one line of at most STATUS_COLUMNS: `stage 4 of 11: train_marian 45 %, 5 h 12 min left`."""
    if run.finished:
        return words.clip(report.verdict(run), STATUS_COLUMNS)
    running = [s.name for s in run.stages if isinstance(s.status, Running)]
    at_work = [_stage(run, name, ways, now) for name in running]
    waiting = [s for s in run.stages if isinstance(s.status, BackingOff)]
    if leaving:
        said = f"saves {', '.join(running)}, then leaves" if running else "leaves: all is saved"
    elif run.disk_hold:
        said = f"waits for disk space: {run.disk_hold}"
    elif at_work:
        said = f"stage {'; '.join(at_work)}"
    elif run.paused:
        said = "paused until `vigil resume`"
    else:
        said = f"{waiting[0].name} waits: {report.reason(waiting[0])}" if waiting else "between two stages"
    return words.clip(said, STATUS_COLUMNS)


def _stage(run: RunState, name: str, ways: Mapping[str, Way], now: float) -> str:
    number, state, way = run.pipeline.number(name), run.stage(name), ways.get(name)
    said = f"{number} of {len(run.stages)}: {name}"
    if way is None or way.attempt != len(state.attempts):
        return said
    seen = StageView(number=number, config=run.pipeline.stage(name), state=state, progress=way.last, rate=way.rate)
    share, eta_s = seen.share, seen.eta_s(now)
    said += "" if share is None else f" {words.percent(share)}"
    return said + ("" if eta_s is None else f", {words.duration(eta_s)} left")


class Notifier:
    """The daemon's line to systemd; a stage does not inherit it."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.get(SOCKET, "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # in the abstract name space
        for name in FOR_THE_DAEMON:
            environ.pop(name, None)
        self._ready = False
        self._said = ""
        self._ways: dict[str, Way] = {}

    def hear(self, heard: Iterable[Heard]) -> None:
        """Remember how far the stages are."""
        if self._address:
            self._ways = listen(self._ways, heard)

    def ticked(self, run: RunState, now: float, *, leaving: bool) -> None:
        """A tick is finished: feed the watchdog, and tell what is new. With the first one the daemon is ready.

        A tick whose save the disk refused counts too: a restart would mend no disk.
        """
        if not self._address:
            return
        said = sentence(run, self._ways, now, leaving=leaving)
        fresh = [] if said == self._said else [f"STATUS={said}"]
        ready = [] if self._ready else ["READY=1"]
        if self._send(*ready, *fresh, "WATCHDOG=1", *(_leave(LEAVING_S) if leaving else [])):
            self._ready, self._said = True, said

    def ends(self) -> None:
        """No tick follows."""
        self._send(*_leave(ENDING_S))

    def _send(self, *lines: str) -> bool:
        """Whether it was taken; never waits."""
        if not self._address:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as line:
            line.setblocking(False)
            line.sendto("\n".join(lines).encode(), self._address)
            return True
        return False


def _leave(within_s: float) -> list[str]:
    return ["STOPPING=1", f"EXTEND_TIMEOUT_USEC={within_s * 1e6:.0f}"]

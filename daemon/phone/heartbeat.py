"""A sign of life to an outside service, such as healthchecks.io: a house without power can send no message, but it can fall silent.

A ping vouches that the daemon sees the run: it is sent only while the run can be read, ticks come to their end, and no stage has
been silent for longer than the daemon should have suffered. What is wrong then is Telegram's to tell; here there is only silence.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import msgspec
import structlog

from daemon import pulse, silence, view
from daemon.aside import aside
from daemon.consequences import hung_before
from daemon.phone.telegram_settings import Secret
from daemon.view import StageView, View
from state.contract import Progress
from state.snapshot import Running
from state.workspace import Workspace

TICK_LIMIT_S = 60.0
"""Within this time a tick ends."""
FRESH_S = 60.0
"""Beyond its limit: within this time a stage is ended that is silent for too long."""
LOOK_LIMIT_S = 10.0
PING_LIMIT_S = 30.0
ANSWER_S = 10.0

log = structlog.get_logger()


def progress(seen: View) -> dict[str, str | int | float]:
    """What a ping tells: stages settled, and of the stage at work its name and how far it is, in its own unit."""
    at_work = next((stage for stage in seen.stages if isinstance(stage.state.status, Running)), None)
    told: dict[str, str | int | float] = {"settled": sum(stage.state.settled for stage in seen.stages)}
    if at_work is not None:
        done = at_work.step if at_work.step is not None else at_work.progress.done if at_work.progress else 0
        told = {"done": done, "stage": at_work.config.name, **told}
    return told


def with_query(url: str, told: dict[str, str | int | float]) -> str:
    """`url` with `told` as its query, after one that it may have."""
    return f"{url}{'&' if '?' in url else '?'}{urlencode(told)}"


def too_silent(stage: StageView, events: Path, now: float) -> bool:
    """Whether a stage at work has said nothing for longer than it may, and the daemon has not ended it."""
    status = stage.state.status
    if not isinstance(status, Running) or status.intent is not None:
        return False
    try:
        last = max(events.stat().st_mtime, status.since)
    except FileNotFoundError:
        last = status.since
    heard = silence.Silence(quiet_s=_announced_s(events))
    return now - last > silence.limit_s(heard, stage.config.silence_s, hung_before(stage.state)) + FRESH_S


def _announced_s(events: Path) -> float:
    try:
        return msgspec.json.decode("".join(view.tail_lines(events, 1)), type=Progress).quiet_s or 0.0
    except msgspec.DecodeError:  # another kind of event, or none
        return 0.0


def look(workspace: Workspace, now: float) -> tuple[dict[str, str | int | float], str]:
    """What a ping is to tell, and why there may be none; empty when it may be sent.

    Raises:
        OSError, StateUnreadableError: the run cannot be read.
    """
    seen = view.read(workspace)
    if not seen.alive:
        return {}, "no daemon is known to hold the run"
    for stage in seen.stages:
        attempts = stage.state.attempts
        if attempts and too_silent(stage, workspace.attempt(stage.config.name, attempts[-1].number).events, now):
            return {}, f"{stage.config.name} is silent for too long"
    return progress(seen), ""


def ping(url: str) -> None:
    """One GET.

    Raises:
        OSError: no good answer.
    """
    from urllib.error import HTTPError  # late: who wants no heartbeat does not pay for it
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(url, headers={"User-Agent": "vigil"}), timeout=ANSWER_S) as answer:
            answer.read(1024)
    except HTTPError as error:
        error.close()  # it holds the connection
        raise


class Heart:
    """What pings, again and again."""

    def __init__(
        self,
        workspace: Workspace,
        url: Secret,
        every_s: float,
        clock: Callable[[], float],
        *,
        ticks: Callable[[], int] = pulse.ticks,
    ) -> None:
        self._workspace, self._url, self._every_s, self._clock = workspace, url, every_s, clock
        self._ticks = ticks
        self._trouble = ""

    async def beat(self) -> None:
        """Ping, or be silent, then wait; a change from one to the other is logged."""
        began_s = time.monotonic()
        trouble = await self._tried()
        if trouble and not self._trouble:
            log.warning("heartbeat.silent", reason=trouble)
        elif self._trouble and not trouble:
            log.info("heartbeat.heard")
        self._trouble = trouble
        await asyncio.sleep(max(0.0, began_s + self._every_s - time.monotonic()))

    async def _tried(self) -> str:
        """Why there was no ping; empty when it was heard."""
        if not await self._ticked():
            return "no tick comes to its end"
        try:
            told, doubt = await aside(lambda: look(self._workspace, self._clock()), limit_s=LOOK_LIMIT_S)
        except Exception as error:  # whatever is wrong with the files
            return f"the run cannot be read: {type(error).__name__}"
        if doubt:
            return doubt
        try:
            await aside(lambda: ping(with_query(self._url.reveal(), told)), limit_s=PING_LIMIT_S)
        except Exception as error:  # its text may hold the address
            return f"the ping was not heard: {type(error).__name__}"
        return ""

    async def _ticked(self) -> bool:
        """Whether one more tick ends: waited for, so that what comes after it vouches for this moment."""
        first, until_s = self._ticks(), time.monotonic() + TICK_LIMIT_S
        while time.monotonic() < until_s:
            await asyncio.sleep(min(1.0, TICK_LIMIT_S / 10))
            if self._ticks() > first:
                return True
        return False

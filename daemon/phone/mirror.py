"""A second way for red alarms, through Apprise (https://github.com/caronc/apprise) to any service that it knows, beside Telegram.

Each address has an outbox of its own in the bot's diary: what it holds is kept and marked like Telegram's and holds up nobody else.
Apprise tells yes or no and nothing more, so every try that failed is in doubt. It is no dependency: who wants a mirror installs it.
It runs in a short-lived process for each alarm (`daemon.phone.courier`).
"""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Callable
from datetime import tzinfo

import msgspec
import structlog
from msgspec.structs import replace

from daemon import words
from daemon.aside import aside
from daemon.launcher import environment
from daemon.phone import markup, outbox
from daemon.phone.courier import Errand
from daemon.phone.dialogue import Message, Ring
from daemon.phone.outbox import Deliver, Outbox
from daemon.phone.telegram_settings import Secret
from state.contract import ExitCode

LOOK_S = 0.5
SEND_LIMIT_S = 60.0
RETRY_S = 15.0
"""Doubled with every failure in a row."""
LONGEST_RETRY_S = 900.0
TOLD_AFTER = 3
"""Failures in a row: the owner is told that the service takes nothing."""

Line = Callable[[str], bool]
"""Sends a text; False: it may not have arrived."""

log = structlog.get_logger()


class UnusableError(Exception):
    """This address cannot be used; the message says why, without the address."""


def name_of(url: Secret) -> str:
    """What stands for an address in the diary: it stays the same when others are added, and tells nothing."""
    return hashlib.sha256(url.reveal().encode()).hexdigest()[:12]


def follow(before: Outbox, after: Outbox, mirrored: Outbox, now: float) -> Outbox:
    """`mirrored` with what is red among the messages that `after` holds and `before` did not, and with what solves such a one."""
    known = {entry.message.key for entry in before.waiting}
    for message in (entry.message for entry in after.waiting):
        if message.key not in known and (message.ring is Ring.RED or mirrored.has(message.replaces)):
            plain = replace(message, at=now, replaces="", buttons=(), photo="", document="")
            mirrored = outbox.put(mirrored, plain)
    return mirrored


def worded(step: Deliver, now: float, zone: tzinfo | None) -> str:
    """The bare text of a message; one that could not leave in time says when it was meant."""
    text, at = words.bare(step.message.html), step.message.at
    return f"({words.near(at, now, zone)}) {text}" if now - at > outbox.OLD_S else text


def open_line(url: Secret) -> Line:
    """What sends to `url`.

    Raises:
        UnusableError: Apprise is not installed, or knows no such address.
        OSError, SubprocessError: nobody knows.
    """
    _sent(url, "")
    return lambda text: _sent(url, text)


def _sent(url: Secret, text: str) -> bool:
    errand = msgspec.json.encode(Errand(url=url.reveal(), text=text, limit_s=round(SEND_LIMIT_S) + 1))
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "daemon.phone.courier"],
        input=errand,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # where 170 plug-ins may write the address
        env=environment(),
        timeout=SEND_LIMIT_S,
        check=False,
    )
    if ended.returncode == ExitCode.MISCONFIGURED:
        raise UnusableError(ended.stdout.decode("utf-8", "replace").strip())
    return ended.returncode == 0


def unusable(url: Secret, reason: str, now: float) -> Message:
    """What the owner is told, once, of an address that cannot be used."""
    html = f"🟠 The mirror {_service(url)}:// is of no use.\n{markup.escaped(reason)}\n\nRed alarms come here alone."
    return Message(key=f"mirror/{name_of(url)}/unusable", html=html, kind="mirror.unusable", at=now)


def stuck(url: Secret, alarm: Message, now: float) -> Message:
    """What he is told, once for each such outage, of a service that does not take `alarm`."""
    title = words.bare(alarm.html.removeprefix(outbox.AGAIN)).partition("\n")[0]
    html = f"🟠 The mirror {_service(url)}:// does not take\n{markup.escaped(title)}\nIs its address right? It is tried again."
    return Message(key=f"mirror/{name_of(url)}/{alarm.key}", html=html, kind="mirror.offline", at=now)


def _service(url: Secret) -> str:
    return url.reveal().partition("://")[0]


class Mirror:
    """What sends the outbox of one address. `box` and `keep` read and change it, durably; `tell` tells the owner, elsewhere."""

    def __init__(
        self,
        url: Secret,
        box: Callable[[], Outbox],
        keep: Callable[[Outbox], None],
        clock: Callable[[], float],
        zone: tzinfo | None = None,
        *,
        tell: Callable[[Message], None] = lambda _message: None,
        opened: Callable[[Secret], Line] = open_line,
        retry_s: float = RETRY_S,
    ) -> None:
        self.name = name_of(url)
        self._url, self._box, self._keep, self._clock, self._zone = url, box, keep, clock, zone
        self._tell, self._opened, self._retry_s = tell, opened, retry_s
        self._line: Line | None = None
        self._failures = 0

    @property
    def at_work(self) -> bool:
        """Whether it has yet to try something: worth a moment before the daemon ends."""
        return self._line is not None and any(entry.doubts == 0 for entry in self._box().waiting)

    async def pass_on(self) -> None:
        """Send the next message, or look for one again soon."""
        line = self._line = self._line or await self._opened_line()
        if line is None:
            return
        step = outbox.next_step(self._box(), self._clock(), fold=False)
        if isinstance(step, Deliver):
            await self._deliver(line, step)
        else:
            await asyncio.sleep(LOOK_S)

    async def _opened_line(self) -> Line | None:
        """Looks whether the address can be used; later again where it cannot, since Apprise may be installed meanwhile."""
        try:
            line = await aside(lambda: self._opened(self._url))
            self._succeeded()
            return line
        except UnusableError as error:
            self._tell(unusable(self._url, str(error), self._clock()))
            await self._failed("mirror.unusable", str(error))
        except (OSError, subprocess.SubprocessError) as error:
            await self._failed("mirror.offline", type(error).__name__)
        return None

    async def _deliver(self, line: Line, step: Deliver) -> None:
        key, text = step.message.key, worded(step, self._clock(), self._zone)
        self._keep(outbox.begun(self._box(), key))
        reason = await self._tried(line, text)
        if not reason:
            self._keep(outbox.arrived(self._box(), key, 0))
            self._succeeded()
            return
        self._keep(outbox.in_doubt(self._box(), key))
        if self._failures + 1 >= TOLD_AFTER:
            self._tell(stuck(self._url, step.message, self._clock()))
        await self._failed("mirror.offline", reason)

    async def _tried(self, line: Line, text: str) -> str:
        """Why it may not have arrived; empty when it has."""
        try:
            return "" if await aside(lambda: line(text), limit_s=SEND_LIMIT_S) else "the service did not take it"
        except Exception as error:  # whatever goes wrong with a process; its text may hold the address
            return type(error).__name__

    def _succeeded(self) -> None:
        if self._failures:
            log.info("mirror.online", service=_service(self._url))
        self._failures = 0

    async def _failed(self, event: str, reason: str) -> None:
        """Log the first failure in a row, and wait."""
        self._failures += 1
        if self._failures == 1:
            log.warning(event, service=_service(self._url), reason=reason)
        await asyncio.sleep(min(self._retry_s * 2.0 ** min(self._failures - 1, 10), LONGEST_RETRY_S))

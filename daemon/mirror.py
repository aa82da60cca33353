"""A second way for red alarms, through Apprise (https://github.com/caronc/apprise) to any service that it knows, beside Telegram.

Each address has an outbox of its own in the bot's diary: what it holds is kept and marked like Telegram's and holds up nobody else.
Apprise tells yes or no and nothing more, so every try that failed is in doubt. It is no dependency: who wants a mirror installs it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from datetime import tzinfo

import structlog
from msgspec.structs import replace

from daemon import outbox, words
from daemon.aside import aside
from daemon.dialogue import Ring
from daemon.outbox import Deliver, Outbox
from daemon.telegram_settings import Secret

TITLE = "Vigil"
INSTALL = ".venv/bin/python -m pip install --require-hashes --no-deps --only-binary :all: -r locks/mirror.lock"
LOOK_S = 0.5
SEND_LIMIT_S = 60.0
RETRY_S = 15.0
"""Doubled with every failure in a row."""
LONGEST_RETRY_S = 900.0
NOISY = ("apprise", "requests", "urllib3")
"""Write addresses, with what is secret in them, into their logs."""

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
    """Apprise, ready to send to `url`.

    Raises:
        UnusableError: it is not installed, or does not know such an address.
    """
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        import apprise
    except ImportError:
        raise UnusableError(f"Apprise is not installed; `{INSTALL}` does it, then start the run again") from None
    line = apprise.Apprise()
    if not line.add(url.reveal()):
        raise UnusableError("Apprise knows no such address; look at `mirror` in telegram.toml")
    return lambda text: bool(line.notify(title=TITLE, body=text))


class Mirror:
    """What sends the outbox of one address. `box` and `keep` read and change it, durably."""

    def __init__(
        self,
        url: Secret,
        box: Callable[[], Outbox],
        keep: Callable[[Outbox], None],
        clock: Callable[[], float],
        zone: tzinfo | None = None,
        *,
        opened: Callable[[Secret], Line] = open_line,
        retry_s: float = RETRY_S,
    ) -> None:
        self.name = name_of(url)
        self._url, self._box, self._keep, self._clock, self._zone = url, box, keep, clock, zone
        self._opened, self._retry_s = opened, retry_s
        self._line: Line | None = None
        self._failures = 0

    @property
    def at_work(self) -> bool:
        """Whether it has yet to try something: worth a moment before the daemon ends."""
        return self._line is not None and any(entry.doubts == 0 for entry in self._box().waiting)

    async def pass_on(self) -> None:
        """Send the next message, or look for one again soon. What cannot be used says so once and is silent for good."""
        if self._line is None:
            try:
                self._line = await aside(lambda: self._opened(self._url))
            except UnusableError as error:
                log.warning("mirror.unusable", service=self._service(), error=str(error))
                await asyncio.Event().wait()
                return
        step = outbox.next_step(self._box(), self._clock(), fold=False)
        if isinstance(step, Deliver):
            await self._deliver(self._line, step)
        else:
            await asyncio.sleep(LOOK_S)

    async def _deliver(self, line: Line, step: Deliver) -> None:
        key, text = step.message.key, worded(step, self._clock(), self._zone)
        self._keep(outbox.begun(self._box(), key))
        reason = await self._tried(line, text)
        if not reason:
            self._keep(outbox.arrived(self._box(), key, 0))
            if self._failures:
                log.info("mirror.online", service=self._service())
            self._failures = 0
            return
        self._keep(outbox.in_doubt(self._box(), key))
        self._failures += 1
        if self._failures == 1:
            log.warning("mirror.offline", service=self._service(), reason=reason)
        await asyncio.sleep(min(self._retry_s * 2.0 ** min(self._failures - 1, 10), LONGEST_RETRY_S))

    async def _tried(self, line: Line, text: str) -> str:
        """Why it may not have arrived; empty when it has."""
        try:
            return "" if await aside(lambda: line(text), limit_s=SEND_LIMIT_S) else "the service did not take it"
        except Exception as error:  # whatever one of 170 plug-ins does; its text may hold the address
            return type(error).__name__

    def _service(self) -> str:
        return self._url.reveal().partition("://")[0]

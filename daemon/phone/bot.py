"""The bot: a thread with an event loop of its own that reads the run from disk and acts by files in control/.

It shares nothing with the supervisor, so it can be late, dead or in a black hole and no tick notices. Three parts run side by side:
`hearing` takes updates, decides and keeps the decision before Telegram is told that they arrived; `looking` turns
what is new in the run into messages; `speaking` sends what waits in the outbox. All that must survive is one file,
telegram/bot.json (`mind`). A disk that refuses it does not silence the bot: it goes on from memory and confirms nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from daemon.aside import Loop, settle_types
from daemon.phone import outbox, telegram_settings
from daemon.phone.dialogue import Message
from daemon.phone.hearing import Hearing
from daemon.phone.heartbeat import Heart
from daemon.phone.looking import Looking, digest_day
from daemon.phone.mind import Diary, Mind, Pace, World
from daemon.phone.mirror import Mirror, name_of
from daemon.phone.outbox import Outbox
from daemon.phone.secrecy import keep_secret, prepare
from daemon.phone.speaking import Speaking
from daemon.phone.telegram_settings import Secret, SettingsError, Telegram
from state.workspace import Workspace

if TYPE_CHECKING:
    from daemon.phone.wire import Wire

FIRST_LOOK_BACK_S = 600.0
"""A bot that has never run here tells what happened so lately, and no older history."""
LEAVE_S = 1.0
"""What a stop waits for the last messages: a run that is not over goes on later, and they with it."""

USUAL, REAL = Pace(), World()

log = structlog.get_logger()


def attend(workspace: Workspace) -> Bot | None:
    """The bot of a run, started; None without a token, or with settings that cannot be used, which is said once."""
    try:
        settings = telegram_settings.load(workspace, os.environ)
    except (SettingsError, OSError) as error:
        log.warning("telegram.unusable", error=str(error))
        return None
    if settings is None:
        log.info("telegram.absent", hint="no bot token; `vigil pair` sets one up")
        return None
    bot = Bot(workspace, settings)
    bot.start()
    return bot


class Bot:
    """The thread."""

    def __init__(self, workspace: Workspace, settings: Telegram, pace: Pace = USUAL, world: World = REAL) -> None:
        self.workspace = workspace
        self.settings = settings
        self.pace = pace
        self.world = world
        self._thread = threading.Thread(target=self._run, daemon=True, name="telegram")
        self._leaving = threading.Event()
        self._leave: Callable[[], object] = lambda: None
        self._patience_s = 0.0

    def start(self) -> None:
        """Begin; returns at once."""
        settle_types()
        prepare(self.settings.token)
        for secret in (*self.settings.mirror, *filter(None, [self.settings.heartbeat])):
            keep_secret(secret)
        self._thread.start()

    def stop(self, patience_s: float = 1.0) -> None:
        """End, after at most `patience_s` for what still waits and a second more. What was not sent is kept for the next start."""
        self._patience_s = patience_s
        self._leaving.set()
        with contextlib.suppress(RuntimeError):  # its loop has ended
            self._leave()
        self._thread.join(timeout=patience_s + 1.0)

    def _run(self) -> None:
        try:
            from daemon.phone.wire import Wire  # the library costs memory and half a second: only who has a token pays

            with contextlib.closing(Loop()) as loop:
                loop.run_until_complete(self._live(Wire))
        except Exception:
            log.exception("telegram.died")

    async def _live(self, wire_of: type[Wire]) -> None:
        settings, loop, told = self.settings, asyncio.get_running_loop(), asyncio.Event()
        self._leave = lambda: loop.call_soon_threadsafe(told.set)
        wire = wire_of(settings.token, settings.base_url, settings.chat_id, self.world.clock)
        parts = _Parts(Mind(self.workspace, settings, self.pace, self.world), wire)
        await parts.open()
        at_work = [asyncio.create_task(_for_ever(name, part, self.pace)) for name, part in parts.all().items()]
        try:
            if not self._leaving.is_set():
                await told.wait()
            await parts.farewell(self._patience_s)
        finally:
            for part in at_work:
                part.cancel()
            await asyncio.wait(at_work, timeout=0.3)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await wire.close()


class _Parts:
    """What goes on side by side, from the first word to the last."""

    def __init__(self, mind: Mind, wire: Wire) -> None:
        self._mind = mind
        self._hearing, self._looking, self._speaking = Hearing(mind, wire), Looking(mind), Speaking(mind, wire)
        self._mirrors = [_mirror_of(mind, url) for url in mind.settings.mirror]

    def all(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """Each by its name, to be called again and again."""
        mind, hearing, settings = self._mind, self._hearing, self._mind.settings
        ours = {"hear": hearing.hear, "look": self._looking.look, "speak": self._speaking.speak, "host": mind.measure}
        beyond: dict[str, Callable[[], Awaitable[None]]] = {f"mirror {mirror.name}": mirror.pass_on for mirror in self._mirrors}
        if settings.heartbeat is not None:
            beyond["heartbeat"] = Heart(mind.workspace, settings.heartbeat, settings.heartbeat_every_s, mind.clock).beat
        return {**ours, "errands": hearing.run_errands, **beyond}

    async def open(self) -> None:
        """Take up what an earlier process left."""
        mind, found = self._mind, await self._mind.recall()
        now = mind.clock()
        if found is None:
            found = Diary(told_at=now - FIRST_LOOK_BACK_S, digest_day=digest_day(mind, now))
        mirrors = {mirror.name: outbox.after_crash(found.mirrors.get(mirror.name, Outbox())) for mirror in self._mirrors}
        mind.keep(replace(found, outbox=outbox.after_crash(found.outbox), mirrors=mirrors))
        mind.errands.set()

    async def farewell(self, patience_s: float) -> None:
        """Say what is new and send what waits, for so long."""
        mind = self._mind
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(patience_s, LEAVE_S)) as limit:
                self._speaking.hurry(patience_s)
                await self._looking.tell_news()
                seen = await mind.seen()
                if seen is not None and seen.run.finished:
                    limit.reschedule(asyncio.get_running_loop().time() + patience_s)
                    await self._looking.show_card(mind.clock(), last=True)
                while mind.diary.outbox.waiting or any(mirror.at_work for mirror in self._mirrors):
                    await asyncio.sleep(0.05)


def _mirror_of(mind: Mind, url: Secret) -> Mirror:
    name = name_of(url)

    def keep(box: Outbox) -> None:
        mind.keep(replace(mind.diary, mirrors={**mind.diary.mirrors, name: box}))

    def tell(message: Message) -> None:
        if mind.reach.is_up or message.kind == "mirror.unusable":  # else it is most likely the network's fault
            mind.keep_box(mind.rung(mind.diary.outbox, message))

    return Mirror(url, lambda: mind.diary.mirrors[name], keep, mind.clock, mind.settings.zone, tell=tell, opened=mind.world.line)


async def _for_ever(name: str, part: Callable[[], Awaitable[None]], pace: Pace) -> None:
    """The boundary of the bot: what nobody foresaw is logged once, and the part goes on after a while."""
    trouble = ""
    while True:
        try:
            await part()
        except Exception as error:
            if repr(error) != trouble:
                log.exception("telegram.stumbled", part=name)
            trouble = repr(error)
            await asyncio.sleep(pace.longest_retry_s)

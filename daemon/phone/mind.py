"""What the parts of the bot share: the diary that must survive, what was seen of the run, and whether Telegram answers.

All of it belongs to the bot's one event loop, so nothing here is locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from msgspec.structs import replace

from daemon import scores, view
from daemon.aside import aside
from daemon.host import Host, read_host
from daemon.phone import chat, outbox, standing
from daemon.phone.answers import MOST_LOG_LINES
from daemon.phone.dialogue import Message, Ring, Show, Submit
from daemon.phone.mirror import Line, follow, open_line
from daemon.phone.outbox import Keeper, Outbox
from daemon.phone.telegram_settings import Secret, Telegram
from state import forecast
from state.contract import CheckpointSaved, Event, Metric
from state.workspace import Workspace

LOOK_LIMIT_S = 3.0
HOST_STALE_S = 90.0
OFFLINE_AFTER = 3
"""Failed polls in a row."""
EVENT_LINES = 3000
LOSSES = 200

log = structlog.get_logger()
_EVENTS: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


class Diary(msgspec.Struct, frozen=True, kw_only=True):
    """All that must survive the process."""

    schema: int = 1
    offset: int = 0
    """Confirms the updates before it."""
    done: tuple[int, ...] = ()
    """Updates that were acted on, the newest last."""
    memory: chat.Memory = chat.Memory()
    outbox: Outbox = Outbox()
    mirrors: dict[str, Outbox] = {}
    """What goes to other services than Telegram, by `mirror.name_of`."""
    todo: tuple[Submit | Show, ...] = ()
    """Decided and not carried out yet."""
    told: str = ""
    """Id of the last fact of the journal that was looked at."""
    told_at: float = 0.0
    digest_day: str = ""
    card: Message | None = None
    """As it was last put into the outbox."""
    card_at: float = 0.0
    pinned: int = 0
    """Id of the pinned message."""


@dataclass(frozen=True)
class Pace:
    """How often, in seconds."""

    poll_s: int = 25
    look_s: float = 1.0
    gap_s: float = 1.0
    """Between two messages: Telegram's limit for one chat."""
    card_s: float = 60.0
    host_s: float = 15.0
    retry_s: float = 1.0
    """Doubled with every failure in a row."""
    longest_retry_s: float = 30.0

    def after_failures_s(self, in_a_row: int) -> float:
        """How long to wait after so many."""
        return min(self.retry_s * 2.0 ** min(in_a_row - 1, 10), self.longest_retry_s)


@dataclass(frozen=True)
class World:
    """What the bot learns from elsewhere than the run's files and Telegram."""

    clock: Callable[[], float] = time.time
    host: Callable[[Workspace], Host] = read_host
    line: Callable[[Secret], Line] = open_line
    """Opens a mirror's address."""


class Reach:
    """Whether Telegram answers; tells a change once."""

    def __init__(self) -> None:
        self.is_up = False
        self.failures = 0
        self._since = 0.0

    def down(self, reason: str) -> None:
        """One more poll has failed."""
        self.is_up = False
        self.failures += 1
        if self.failures == OFFLINE_AFTER:
            self._since = time.monotonic()
            log.warning("telegram.offline", reason=reason)

    def up(self) -> bool:
        """A poll was answered; whether the one before was not."""
        self.is_up = True
        failures, self.failures = self.failures, 0
        if failures >= OFFLINE_AFTER:
            log.info("telegram.online", after_s=round(time.monotonic() - self._since))
        return failures > 0


class Mind:
    """The diary, and what was seen last."""

    def __init__(self, workspace: Workspace, settings: Telegram, pace: Pace, world: World) -> None:
        self.workspace, self.settings, self.pace, self.world = workspace, settings, pace, world
        self.clock = world.clock
        self.diary = Diary()
        self.saved = self.diary
        """As it is on the disk."""
        self.reach = Reach()
        self.wake = asyncio.Event()
        """Something waits in the outbox."""
        self.heard = asyncio.Event()
        """Telegram can be reached."""
        self.errands = asyncio.Event()
        """Something was decided and is to be done."""
        self.measured = asyncio.Event()
        """The machine was read once."""
        self._keeper = Keeper(workspace.root / "telegram" / "bot.json", Diary)
        self._view: view.View | None = None
        self._host: tuple[float, dict[str, Any]] = (0.0, {})

    # -- the diary

    async def recall(self) -> Diary | None:
        """What an earlier process left; a disk that refuses is asked again, since to begin anew would be to repeat."""
        trouble = ""
        while True:
            try:
                found = self._keeper.load()
                break
            except OSError as error:
                if str(error) != trouble:
                    log.error("telegram.diary_unreadable", error=str(error))
                trouble = str(error)
                await asyncio.sleep(self.pace.longest_retry_s)
        self._keeper.sweep()
        return found

    def keep(self, diary: Diary) -> None:
        """Make `diary` the one that counts, durably where the disk allows."""
        if diary != self.diary:
            self.diary = self._mirrored(diary)
            self.wake.set()
            self.save()

    def keep_box(self, box: Outbox) -> None:
        """The same, of its outbox."""
        self.keep(replace(self.diary, outbox=box))

    def save(self) -> None:
        """Try to put it on the disk."""
        if self._keeper.save(self.diary):
            self.saved = self.diary

    def _mirrored(self, diary: Diary) -> Diary:
        """`diary`, with what is new and red in its outbox put into the mirrors' too: one file holds both or neither."""
        if not diary.mirrors or diary.outbox is self.diary.outbox:
            return diary
        before, now = self.diary.outbox, self.clock()
        return replace(diary, mirrors={name: follow(before, diary.outbox, box, now) for name, box in diary.mirrors.items()})

    def rung(self, box: Outbox, message: Message) -> Outbox:
        """`box` with `message` as loud as the owner wants it; what is red lasts until it is solved."""
        ringed = self.settings.ringed(message)
        if message.ring is ringed.ring is Ring.RED and not message.replaces and not box.has(message.key):
            box = outbox.lasts(box, ringed, self.clock())
        return outbox.put(box, ringed)

    # -- what is seen

    async def measure(self) -> None:
        """Read the machine; a GPU or a Windows drive that does not answer leaves what was read last."""
        with contextlib.suppress(TimeoutError):
            host = await aside(lambda: self.world.host(self.workspace), limit_s=HOST_STALE_S)
            self._host = (time.monotonic(), msgspec.to_builtins(host))
        self.measured.set()
        await asyncio.sleep(self.pace.host_s)

    def host_now(self) -> dict[str, Any]:
        """The last reading of the machine; nothing when it is too old to be called true."""
        at_s, host = self._host
        return host if time.monotonic() - at_s < HOST_STALE_S else {}

    async def seen(self) -> view.View | None:
        """The run now; as last seen where the disk is slow; None where nothing could ever be read."""
        try:
            self._view = await aside(lambda: view.read(self.workspace), limit_s=LOOK_LIMIT_S)
        except Exception as error:  # whatever is wrong with the files
            log.debug("telegram.run_unreadable", error=str(error))
        return self._view

    async def more(self, seen: view.View | None, *, output: bool = False) -> standing.More:
        """What is shown beside it."""
        if seen is None:
            return standing.NOTHING_MORE
        try:
            return await aside(lambda: gather(self.workspace, seen, output=output), limit_s=LOOK_LIMIT_S)
        except Exception as error:
            log.debug("telegram.run_unreadable", error=str(error))
            return standing.NOTHING_MORE


def gather(workspace: Workspace, seen: view.View, *, output: bool = False) -> standing.More:
    """What the texts show beside the view: losses and checkpoints told lately by the stages at work, the scores, the forecast."""
    losses: dict[str, list[float]] = {}
    saved_at: dict[str, float] = {}
    printed: dict[str, list[str]] = {}
    for stage in standing.at_work(seen):
        name, attempts = stage.config.name, stage.state.attempts
        for line in view.tail_lines(workspace.attempt(name, attempts[-1].number).events, EVENT_LINES) if attempts else ():
            with contextlib.suppress(msgspec.DecodeError):
                event = _EVENTS.decode(line)
                if isinstance(event, Metric) and "loss" in event.values:
                    losses.setdefault(name, []).append(event.values["loss"])
                elif isinstance(event, CheckpointSaved):
                    saved_at[name] = event.at
    for state in seen.run.stages if output else ():
        if state.attempts:
            path = workspace.attempt(state.name, state.attempts[-1].number).output
            printed[state.name] = view.tail_lines(path, MOST_LOG_LINES)
    return standing.More(
        losses={name: told[-LOSSES:] for name, told in losses.items()},
        saved_at=saved_at,
        output=printed,
        scores=scores.read(workspace.eval_results),
        forecast=forecast.latest(workspace),
    )


async def until(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for `event`, or for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

"""The part of the bot that speaks: sends what waits in the outbox (`daemon.phone.outbox`), as the line to Telegram allows."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import TYPE_CHECKING

import structlog
from msgspec.structs import replace

from daemon.aside import aside
from daemon.phone import messages, outbox
from daemon.phone.dialogue import Message
from daemon.phone.hearing import vigil
from daemon.phone.mind import Mind, until
from daemon.phone.outbox import Deliver, Fold, Outbox, Wait

if TYPE_CHECKING:
    from daemon.phone.wire import Ending, Wire

DRAW_LIMIT_S = 30.0
"""So long what follows waits for a picture, answers excepted."""

log = structlog.get_logger()


class Speaking:
    """What is sent."""

    def __init__(self, mind: Mind, wire: Wire) -> None:
        self._mind, self._wire = mind, wire
        self._hurry = False
        self._draw_limit_s = DRAW_LIMIT_S
        self._draw_by_s = 0.0
        self._drawing: asyncio.Task[None] | None = None
        self._picture = ("", "")
        """Key of the message whose picture was drawn last, and its path; empty: it could not be drawn."""
        self._sent_s = 0.0
        self._failures = 0
        self._barred = ""

    def hurry(self, patience_s: float) -> None:
        """From now on without a pause between two messages, and without a picture that takes more than half of that."""
        self._hurry, self._draw_limit_s = True, patience_s / 2
        self._draw_by_s = min(self._draw_by_s, time.monotonic() + self._draw_limit_s)
        self._mind.wake.set()

    async def speak(self) -> None:
        """Send the next message, or wait for one."""
        mind = self._mind
        mind.wake.clear()
        step = self._next_step()
        if isinstance(step, Fold) and not mind.reach.is_up:  # there may be more to fold before it can leave
            mind.heard.clear()
            await until(mind.heard, mind.pace.longest_retry_s)
            step = self._next_step(fold=mind.reach.is_up)
        pause_s = self._pause_s(step)
        if isinstance(step, Wait):
            await until(mind.wake, step.seconds)
        elif pause_s > 0:
            await until(mind.wake, pause_s)
        elif isinstance(step, Deliver) and step.message.draws and step.message.key != self._picture[0]:
            await self._draw(step.message)
        elif isinstance(step, Fold):
            into = messages.folded(step.messages, mind.clock(), mind.settings.zone)
            mind.keep_box(outbox.folded(mind.diary.outbox, step.messages, into))
        else:
            await self._deliver(step)

    def _pause_s(self, step: outbox.Step) -> float:
        """What is left of the time between two messages; an answer may come sooner, since the owner waits for it."""
        if self._hurry or not isinstance(step, Deliver) or not step.message.kind:
            return 0.0
        return self._sent_s + self._mind.pace.gap_s - time.monotonic()

    def _next_step(self, *, fold: bool = True) -> outbox.Step:
        mind, now = self._mind, self._mind.clock()
        hushed = mind.settings.is_quiet(now) or mind.diary.memory.mute_until > now
        return outbox.next_step(mind.diary.outbox, now, hushed=hushed, fold=fold)

    async def _deliver(self, step: Deliver) -> None:
        mind, key = self._mind, step.message.key
        if step.message.draws:
            step = dataclasses.replace(step, message=replace(step.message, photo=self._picture[1]))
        mind.keep_box(outbox.begun(mind.diary.outbox, key))
        ending = await self._wire.deliver(step)
        self._sent_s = time.monotonic()
        mind.keep_box(after(mind.diary.outbox, step, ending, mind.clock()))
        await self._mind_the_end(step, ending)

    async def _draw(self, message: Message) -> None:
        """Have its picture drawn; what the owner asks meanwhile need not wait for it. Without one where it takes too long."""
        if self._drawing is None:
            self._drawing = asyncio.create_task(self._drawn(message))
            self._draw_by_s = time.monotonic() + self._draw_limit_s
        left_s = self._draw_by_s - time.monotonic()
        if left_s > 0:
            await until(self._mind.wake, left_s)
        else:
            self._picture = (message.key, "")

    async def _drawn(self, message: Message) -> None:
        workspace = self._mind.workspace
        picture = workspace.root / "telegram" / f"{message.draws}.png"
        trouble = await aside(lambda: vigil(workspace, ["plot", f"--{message.draws}", "--out", str(picture)]))
        if trouble:
            log.warning("telegram.not_drawn", key=message.key, reason=trouble)
        self._picture = (message.key, "" if trouble else str(picture))
        self._drawing = None
        self._mind.wake.set()

    async def _mind_the_end(self, step: Deliver, ending: Ending) -> None:
        """Log what the owner should know of, keep the card pinned, and wait after a failure."""
        from daemon.phone.wire import Arrived, InDoubt, NotSent, Refused

        barred = ending.reason if isinstance(ending, NotSent) and ending.barred else ""
        if barred and barred != self._barred:
            log.warning("telegram.barred", reason=barred)
        self._barred = barred or ("" if isinstance(ending, Arrived) else self._barred)
        if isinstance(ending, Refused):
            log.warning("telegram.refused", key=step.message.key, reason=ending.reason, plain=step.plain)
        if isinstance(ending, NotSent | InDoubt):
            self._failures += 1
            self._mind.heard.clear()
            await until(self._mind.heard, self._mind.pace.after_failures_s(self._failures))
            return
        self._failures = 0
        if isinstance(ending, Arrived) and step.message.kind == "card":
            await self._pin(ending.message_id)

    async def _pin(self, message_id: int) -> None:
        from daemon.phone.wire import Arrived, Refused

        mind = self._mind
        mind.keep(replace(mind.diary, card_at=mind.clock()))
        if message_id != mind.diary.pinned and isinstance(await self._wire.pin(message_id), Arrived | Refused):
            mind.keep(replace(mind.diary, pinned=message_id))


def after(box: Outbox, step: Deliver, ending: Ending, now: float) -> Outbox:
    """The outbox after a delivery ended so."""
    from daemon.phone import wire

    key = step.message.key
    match ending:
        case wire.Arrived(message_id):
            return outbox.arrived(box, key, message_id)
        case wire.Flooded(retry_after_s):
            return outbox.flooded(box, key, now, retry_after_s)
        case wire.NotSent():
            return outbox.not_sent(box, key)
        case wire.InDoubt():
            return outbox.in_doubt(box, key)
        case wire.Vanished():
            return outbox.vanished(box, key)
        case wire.Refused():
            return outbox.refused(box, key)

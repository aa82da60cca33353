"""The part of the bot that looks: what is new in the run, the card, the digest and alarms go into the outbox."""

from __future__ import annotations

import asyncio
import contextlib
import time

import structlog
from msgspec.structs import replace

from daemon import words
from daemon.phone import messages, outbox
from daemon.phone.mind import LOOK_LIMIT_S, Mind, until
from state.snapshot import Fact
from state.store import read_journal

COOL_S = 300.0
"""The GPU must be cool for so long before that alarm is over."""
DIGEST_HOUR = 8

log = structlog.get_logger()


class Looking:
    """What is told unasked."""

    def __init__(self, mind: Mind) -> None:
        self._mind = mind
        self._journal: tuple[int, int] | None = None
        self._card_s = -1e9
        self._hot_at = 0.0

    async def look(self) -> None:
        """Put what is new in the run into the outbox."""
        mind = self._mind
        if mind.saved is not mind.diary:
            mind.save()  # the disk refused it before
        now = mind.clock()
        await self.tell_news()
        self._remind(now)
        await self.show_card(now)
        await self._digest(now)
        self._gpu(now)
        await asyncio.sleep(mind.pace.look_s)

    async def tell_news(self) -> None:
        """The facts that came since the last look."""
        mind, facts = self._mind, self._fresh_facts()
        if not facts:
            return
        seen = await mind.seen()
        if seen is None:
            self._journal = None
            return
        zone, more, box = mind.settings.zone, await mind.more(seen), mind.diary.outbox
        for fact in facts:
            try:
                message = messages.for_fact(fact, seen, zone, more)
                told = [*messages.solved_by(fact, seen, zone, more), *([message] if message else [])]
            except Exception:  # one that cannot be worded costs itself, not those behind it
                log.exception("telegram.fact_untold", fact=fact.id)
                continue
            for one in told:
                box = mind.rung(box, one)
        for one in messages.noticed(seen, zone):
            box = mind.rung(box, one)
        mind.keep(replace(mind.diary, outbox=box, told=facts[-1].id, told_at=max(mind.diary.told_at, facts[-1].at)))

    def _fresh_facts(self) -> list[Fact]:
        """The facts that nobody has looked at; the journal is read when it has changed."""
        mind = self._mind
        with contextlib.suppress(FileNotFoundError):
            found = mind.workspace.journal.stat()
            mark = (found.st_mtime_ns, found.st_size)
            if mark != self._journal:
                facts = read_journal(mind.workspace.journal)
                self._journal = mark
                places = [place for place, fact in enumerate(facts) if fact.id == mind.diary.told]
                if places:
                    return facts[places[-1] + 1 :]
                fresh = [fact for fact in facts if fact.at > mind.diary.told_at]
                if facts and not fresh:
                    mind.keep(replace(mind.diary, told=facts[-1].id))
                return fresh
        return []

    def _remind(self, now: float) -> None:
        box = self._mind.diary.outbox
        for alarm, hours in outbox.lasting(box, now):
            box = outbox.told_again(box, alarm, hours, messages.still(alarm.message, hours))
        self._mind.keep_box(box)

    async def show_card(self, now: float, *, last: bool = False) -> None:
        """Renew the card when a digit of it has changed, at most once a minute; the last one of a run at once."""
        mind, card_s = self._mind, self._mind.pace.card_s
        looked_s = time.monotonic() - self._card_s
        if not last and (looked_s < card_s / 6 or 0 <= now - mind.diary.card_at < card_s):
            return
        self._card_s = time.monotonic()
        await until(mind.measured, LOOK_LIMIT_S)  # the first card shall not lack the disk, and be edited at once
        seen = await mind.seen()
        if seen is None:
            return
        card, shown = messages.card(seen, mind.host_now(), now, mind.settings.zone, await mind.more(seen)), mind.diary.card
        if shown is None or shown.key != card.key or not messages.same_card(shown, card):
            box = outbox.put(mind.diary.outbox, card)
            if box is not mind.diary.outbox:  # else the one before is on its way just now
                mind.keep(replace(mind.diary, card=card, card_at=now, outbox=box))

    async def _digest(self, now: float) -> None:
        mind, zone = self._mind, self._mind.settings.zone
        day = digest_day(mind, now)
        if mind.diary.digest_day == day or words.local(now, zone).hour < DIGEST_HOUR:
            return
        seen = await mind.seen()
        if seen is not None:
            digest = messages.digest(seen, mind.host_now(), now, zone, await mind.more(seen))
            mind.keep(replace(mind.diary, digest_day=day, outbox=mind.rung(mind.diary.outbox, digest)))

    def _gpu(self, now: float) -> None:
        """Alarm of a GPU that is hot; over once it has been cool for a while. Nothing where it cannot be told."""
        mind, host = self._mind, self._mind.host_now()
        if not host.get("gpus"):
            return
        hot = messages.gpu_hot(host, now)
        alarm = next((a for a in mind.diary.outbox.alarms if a.message.kind == "gpu.hot"), None)
        if hot is not None:
            self._hot_at = now
            if alarm is None:
                mind.keep_box(mind.rung(mind.diary.outbox, hot))
        elif alarm is not None and now - self._hot_at > COOL_S:
            mind.keep_box(outbox.put(mind.diary.outbox, messages.solved(alarm.message, now, "", mind.settings.zone)))


def digest_day(mind: Mind, now: float) -> str:
    """The day of the last digest that was due."""
    local = words.local(now, mind.settings.zone)
    return f"{local:%Y-%m-%d}" if local.hour >= DIGEST_HOUR else "before"

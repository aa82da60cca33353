"""The bot: a thread with an event loop of its own that reads the run from disk and acts by files in control/.

It shares nothing with the supervisor, so it can be late, dead or in a black hole and no tick notices. Three parts run side by side:
*hear* takes updates, decides (`daemon.chat`) and keeps the decision before Telegram is told that they arrived; *look* turns what is
new in the run into messages (`daemon.messages`); *speak* sends what waits in the outbox (`daemon.outbox`). All that must survive
is one file, telegram/bot.json. A disk that refuses it does not silence the bot: it goes on from memory and confirms nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec.structs import replace

from daemon import chat, messages, outbox, scores, telegram_settings, view, words
from daemon.aside import Loop, aside
from daemon.dialogue import Act, Asked, Message, Ring, Say, Show, Submit, Toast
from daemon.heartbeat import Heart
from daemon.host import Host, read_host
from daemon.launcher import environment
from daemon.mirror import Line, Mirror, follow, name_of, open_line
from daemon.outbox import Deliver, Fold, Keeper, Outbox, Wait
from daemon.secrecy import keep_secret, prepare
from daemon.telegram_settings import Secret, SettingsError, Telegram
from state.contract import CheckpointSaved, Command, Event, Metric
from state.durable import write_atomically
from state.snapshot import Fact
from state.store import read_journal
from state.workspace import Workspace

if TYPE_CHECKING:
    from daemon.wire import Ending, Received, Wire

FIRST_LOOK_BACK_S = 600.0
"""A bot that has never run here tells what happened so lately, and no older history."""
LOOK_LIMIT_S = 3.0
SHOW_LIMIT_S = 120.0
HOST_STALE_S = 90.0
COOL_S = 300.0
"""The GPU must be cool for so long before that alarm is over."""
DIGEST_HOUR = 8
REMEMBERED_UPDATES = 200
MOST_STRANGERS = 20
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

    def __init__(self, workspace: Workspace, settings: Telegram, pace: Pace = Pace(), world: World = World()) -> None:
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
            from daemon.wire import Wire  # the library costs memory and half a second: only who has a token pays

            with contextlib.closing(Loop()) as loop:
                loop.run_until_complete(self._live(Wire))
        except Exception:
            log.exception("telegram.died")

    async def _live(self, wire_of: type[Wire]) -> None:
        settings, loop, told = self.settings, asyncio.get_running_loop(), asyncio.Event()
        self._leave = lambda: loop.call_soon_threadsafe(told.set)
        wire = wire_of(settings.token, settings.base_url, settings.chat_id, self.world.clock)
        mind = _Mind(self.workspace, settings, self.pace, self.world, wire)
        await mind.open()
        parts = [asyncio.create_task(_for_ever(name, part, self.pace)) for name, part in mind.parts().items()]
        try:
            if not self._leaving.is_set():
                await told.wait()
            await mind.farewell(self._patience_s)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.wait(parts, timeout=0.3)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    await wire.close()


class _Line:
    """Tells a change of state once."""

    def __init__(self) -> None:
        self.is_up = False
        self.failures = 0
        self._since = 0.0

    def down(self, reason: str) -> None:
        self.is_up = False
        self.failures += 1
        if self.failures == OFFLINE_AFTER:
            self._since = time.monotonic()
            log.warning("telegram.offline", reason=reason)

    def up(self) -> bool:
        """Whether it was down."""
        self.is_up = True
        failures, self.failures = self.failures, 0
        if failures >= OFFLINE_AFTER:
            log.info("telegram.online", after_s=round(time.monotonic() - self._since))
        return failures > 0


class _Mind:
    """What the loop's three parts share: the diary, and the line to Telegram."""

    def __init__(self, workspace: Workspace, settings: Telegram, pace: Pace, world: World, wire: Wire) -> None:
        self.workspace, self.settings, self.pace, self.world, self.wire = workspace, settings, pace, world, wire
        self.clock = world.clock
        self.diary = Diary()
        self.saved = self.diary
        self._keeper = Keeper(workspace.root / "telegram" / "bot.json", Diary)
        self._line = _Line()
        self._barred = ""
        self._strangers: set[int] = set()
        self._wake = asyncio.Event()
        """Something waits in the outbox."""
        self._heard = asyncio.Event()
        """Telegram can be reached."""
        self._errands = asyncio.Event()
        self._measured = asyncio.Event()
        self._hurry = False
        self._has_menu = False
        self._sent_s = 0.0
        self._card_s = -1e9
        self._delivery_failures = 0
        self._journal: tuple[int, int] | None = None
        self._view: view.View | None = None
        self._host: tuple[float, dict[str, Any]] = (0.0, {})
        self._hot_at = 0.0
        self._sideline: set[asyncio.Task[Any]] = set()
        self._mirrors = [self._mirror_of(url) for url in settings.mirror]

    def _mirror_of(self, url: Secret) -> Mirror:
        name = name_of(url)

        def keep(box: Outbox) -> None:
            self.keep(replace(self.diary, mirrors={**self.diary.mirrors, name: box}))

        return Mirror(url, lambda: self.diary.mirrors[name], keep, self.clock, self.settings.zone, opened=self.world.line)

    def parts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What goes on side by side, again and again."""
        settings = self.settings
        ours = {"hear": self.hear, "look": self.look, "speak": self.speak, "host": self.measure, "errands": self.run_errands}
        beyond: dict[str, Callable[[], Awaitable[None]]] = {f"mirror {mirror.name}": mirror.pass_on for mirror in self._mirrors}
        if settings.heartbeat is not None:
            beyond["heartbeat"] = Heart(self.workspace, settings.heartbeat, settings.heartbeat_every_s, self.clock).beat
        return ours | beyond

    async def open(self) -> None:
        """Take up what an earlier process left; a disk that refuses is asked again, since to begin anew would be to repeat."""
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
        now = self.clock()
        if found is None:
            found = Diary(told_at=now - FIRST_LOOK_BACK_S, digest_day=self._digest_day(now))
        mirrors = {mirror.name: outbox.after_crash(found.mirrors.get(mirror.name, Outbox())) for mirror in self._mirrors}
        self.keep(replace(found, outbox=outbox.after_crash(found.outbox), mirrors=mirrors))
        self._errands.set()

    def keep(self, diary: Diary) -> None:
        """Make `diary` the one that counts, durably where the disk allows."""
        if diary != self.diary:
            self.diary = self._mirrored(diary)
            self._wake.set()
            self._save()

    def _mirrored(self, diary: Diary) -> Diary:
        """`diary`, with what is new and red in its outbox put into the mirrors' too: one file holds both or neither."""
        if not diary.mirrors or diary.outbox is self.diary.outbox:
            return diary
        before, now = self.diary.outbox, self.clock()
        return replace(diary, mirrors={name: follow(before, diary.outbox, box, now) for name, box in diary.mirrors.items()})

    def _save(self) -> None:
        if self._keeper.save(self.diary):
            self.saved = self.diary

    def keep_box(self, box: Outbox) -> None:
        """The same, of its outbox."""
        self.keep(replace(self.diary, outbox=box))

    # -- hear

    async def hear(self) -> None:
        """One poll. What it brought is decided and kept before the next one confirms it."""
        from daemon.wire import UnreachableError

        try:
            wait_s = self.pace.poll_s if self._line.is_up else 0  # a short one shows at once that Telegram is back
            received = await self.wire.updates(self.saved.offset, wait_s)
        except UnreachableError as error:
            self._line.down(str(error))
            await asyncio.sleep(self.pace.after_failures_s(self._line.failures))
            return
        if self._line.up():
            self._heard.set()
        if not self._has_menu:
            self._has_menu = True
            self._on_the_side(self.wire.menu(list(messages.COMMANDS.items())))
        await self._take(received)

    async def _take(self, received: Received) -> None:
        fresh = tuple(number for number in received.poison if number not in self.diary.done)
        for number in fresh:
            log.warning("telegram.update_unreadable", update=number)
        for asked in received.asked:
            if asked.update_id not in self.diary.done:
                await self._attend_to(asked)
        if received.offset != self.diary.offset:
            self.keep(replace(self.diary, offset=received.offset, done=self._done(*fresh)))
        if self.saved.offset != received.offset:  # the disk refuses: these come again at once
            await asyncio.sleep(self.pace.retry_s)

    def _done(self, *updates: int) -> tuple[int, ...]:
        return (*self.diary.done, *updates)[-REMEMBERED_UPDATES:]

    async def _attend_to(self, asked: Asked) -> None:
        if not self._knows(asked):
            return
        acts: list[Act] = []
        memory = self.diary.memory
        try:
            seen = await self._seen()
            more = await self._more(seen, output=asked.text.startswith("/log"))
            now = self.clock()
            memory, acts = chat.decide(asked, memory, seen, self._host_now(), now, self.settings.zone, more)
        except Exception:  # one that cannot be answered must not come back for ever
            log.exception("telegram.update_failed", update=asked.update_id)
        box = self.diary.outbox
        for act in acts:
            if isinstance(act, Say):
                box = outbox.put(box, act.message)
        todo = tuple(act for act in acts if isinstance(act, Submit | Show))
        self.keep(replace(self.diary, memory=memory, outbox=box, todo=(*self.diary.todo, *todo), done=self._done(asked.update_id)))
        self._heard.set()
        self._submit()
        self._errands.set()
        for act in acts:
            if isinstance(act, Toast):
                self._on_the_side(self.wire.toast(act))

    def _knows(self, asked: Asked) -> bool:
        """Whether it is the owner, in private; others get silence, and one line each in the log."""
        settings = self.settings
        if asked.user_id == settings.owner_id and asked.private and asked.chat_id == settings.chat_id:
            return True
        if asked.user_id not in self._strangers and len(self._strangers) < MOST_STRANGERS:
            self._strangers.add(asked.user_id)
            log.warning("telegram.stranger", user=asked.user_id, private=asked.private)
        return False

    def _on_the_side(self, call: Any) -> None:
        """Do it without waiting; what becomes of it is of no matter."""
        begun = asyncio.ensure_future(call)
        self._sideline.add(begun)
        begun.add_done_callback(self._sideline.discard)

    # -- what was decided

    def _submit(self) -> None:
        """Put the commands into control/, each once: a command that was answered, or lies there, is done."""
        for act in self.diary.todo:
            if isinstance(act, Submit):
                try:
                    self._hand_in(act.command)
                except OSError as error:
                    log.error("telegram.command_not_queued", id=act.command.id, error=str(error))
                    continue
                self._strike(act)

    def _hand_in(self, command: Command) -> None:
        name = f"{command.id}.json"
        if (self.workspace.answers / name).exists():
            return
        if chat.fresh(command.at, self.clock()):
            write_atomically(self.workspace.control / name, msgspec.json.encode(command))
        else:
            html = f"/{command.kind} was not passed on in time:\nnothing was done."
            self.keep_box(outbox.put(self.diary.outbox, Message(key=f"late/{command.id}", html=html, at=command.at)))

    def _strike(self, act: Submit | Show) -> None:
        self.keep(replace(self.diary, todo=tuple(one for one in self.diary.todo if one != act)))

    async def run_errands(self) -> None:
        """Show what takes a process of its own, one after the other."""
        await self._errands.wait()
        self._errands.clear()
        self._submit()
        for act in self.diary.todo:
            if isinstance(act, Show):
                message = await self._shown(act)
                self.keep_box(outbox.put(self.diary.outbox, message))
                self._strike(act)
        if self.diary.todo:
            await asyncio.sleep(self.pace.longest_retry_s)
            self._errands.set()

    async def _shown(self, act: Show) -> Message:
        now, seen = self.clock(), await self._seen()
        picture = self.workspace.root / "telegram" / f"plot-{act.stage}.png"
        arguments = ["plot", act.stage, "--out", str(picture)] if act.what == "plot" else ["report", "--quiet"]
        trouble = await aside(lambda: vigil(self.workspace, arguments))
        if trouble:
            return Message(key=act.key, html=f"It could not be made:\n{messages.escaped(words.clip(trouble, 300))}", at=now)
        if act.what == "plot":
            stage = next((s for s in seen.stages if s.config.name == act.stage), None) if seen else None
            return Message(key=act.key, html=messages.plotted(stage) if stage else act.stage, at=now, photo=str(picture))
        html = messages.scored(scores.read(self.workspace.eval_results))
        return Message(key=act.key, html=html, at=now, document=str(self.workspace.report / "index.html"))

    # -- look

    async def look(self) -> None:
        """Put what is new in the run into the outbox."""
        if self.saved is not self.diary:
            self._save()  # the disk refused it before
        now = self.clock()
        fresh = self._fresh_facts()
        if fresh:
            await self._tell(fresh)
        self._remind(now)
        await self._card(now)
        await self._digest(now)
        self._gpu(now)
        await asyncio.sleep(self.pace.look_s)

    def _fresh_facts(self) -> list[Fact]:
        """The facts that came since the last look; the journal is read when it has changed."""
        with contextlib.suppress(FileNotFoundError):
            found = self.workspace.journal.stat()
            mark = (found.st_mtime_ns, found.st_size)
            if mark != self._journal:
                facts = read_journal(self.workspace.journal)
                self._journal = mark
                places = [place for place, fact in enumerate(facts) if fact.id == self.diary.told]
                if places:
                    return facts[places[-1] + 1 :]
                fresh = [fact for fact in facts if fact.at > self.diary.told_at]
                if facts and not fresh:
                    self.keep(replace(self.diary, told=facts[-1].id))
                return fresh
        return []

    async def _tell(self, facts: list[Fact]) -> None:
        seen = await self._seen()
        if seen is None:
            self._journal = None
            return
        more, box = await self._more(seen), self.diary.outbox
        for fact in facts:
            try:
                message = messages.for_fact(fact, seen, self.settings.zone, more)
                told = [*messages.solved_by(fact, seen, self.settings.zone, more), *([message] if message else [])]
            except Exception:  # one that cannot be worded costs itself, not those behind it
                log.exception("telegram.fact_untold", fact=fact.id)
                continue
            for one in told:
                box = self._rung(box, one)
        for one in messages.noticed(seen, self.settings.zone):
            box = self._rung(box, one)
        self.keep(replace(self.diary, outbox=box, told=facts[-1].id, told_at=max(self.diary.told_at, facts[-1].at)))

    def _rung(self, box: Outbox, message: Message) -> Outbox:
        """`box` with `message` as loud as the owner wants it; what is red lasts until it is solved."""
        rung = self.settings.ringed(message)
        if message.ring is rung.ring is Ring.RED and not message.replaces and not box.has(message.key):
            box = outbox.lasts(box, rung, self.clock())
        return outbox.put(box, rung)

    def _remind(self, now: float) -> None:
        box = self.diary.outbox
        for alarm, hours in outbox.lasting(box, now):
            box = outbox.told_again(box, alarm, hours, messages.still(alarm.message, hours))
        self.keep_box(box)

    async def _card(self, now: float, *, last: bool = False) -> None:
        """Renew the card when a digit of it has changed, at most once a minute; the last one of a run at once."""
        looked_s = time.monotonic() - self._card_s
        if not last and (looked_s < self.pace.card_s / 6 or 0 <= now - self.diary.card_at < self.pace.card_s):
            return
        self._card_s = time.monotonic()
        await _until(self._measured, LOOK_LIMIT_S)  # the first card shall not lack the disk, and be edited at once
        seen = await self._seen()
        if seen is None:
            return
        card = messages.card(seen, self._host_now(), now, self.settings.zone, await self._more(seen))
        key = f"{seen.run.id}/card"
        if self.diary.card is None or self.diary.card.key != key or not messages.same_card(self.diary.card, card):
            card = replace(card, key=key, replaces=key)
            box = outbox.put(self.diary.outbox, card)
            if box is not self.diary.outbox:  # else the one before is on its way just now
                self.keep(replace(self.diary, card=card, card_at=now, outbox=box))

    async def _digest(self, now: float) -> None:
        day = self._digest_day(now)
        if self.diary.digest_day == day or words.local(now, self.settings.zone).hour < DIGEST_HOUR:
            return
        seen = await self._seen()
        if seen is not None:
            digest = messages.digest(seen, self._host_now(), now, self.settings.zone, await self._more(seen))
            self.keep(replace(self.diary, digest_day=day, outbox=self._rung(self.diary.outbox, digest)))

    def _digest_day(self, now: float) -> str:
        """The day of the last digest that was due."""
        local = words.local(now, self.settings.zone)
        return f"{local:%Y-%m-%d}" if local.hour >= DIGEST_HOUR else "before"

    def _gpu(self, now: float) -> None:
        """Alarm of a GPU that is hot; over once it has been cool for a while. Nothing where it cannot be told."""
        host = self._host_now()
        if not host.get("gpus"):
            return
        hot = messages.gpu_hot(host, now)
        alarm = next((a for a in self.diary.outbox.alarms if a.message.kind == "gpu.hot"), None)
        if hot is not None:
            self._hot_at = now
            if alarm is None:
                self.keep_box(self._rung(self.diary.outbox, hot))
        elif alarm is not None and now - self._hot_at > COOL_S:
            self.keep_box(outbox.put(self.diary.outbox, messages.solved(alarm.message, now, "", self.settings.zone)))

    async def measure(self) -> None:
        """Read the machine; a GPU or a Windows drive that does not answer leaves what was read last."""
        with contextlib.suppress(TimeoutError):
            host = await aside(lambda: self.world.host(self.workspace), limit_s=HOST_STALE_S)
            self._host = (time.monotonic(), msgspec.to_builtins(host))
        self._measured.set()
        await asyncio.sleep(self.pace.host_s)

    def _host_now(self) -> dict[str, Any]:
        """The last reading of the machine; nothing when it is too old to be called true."""
        at_s, host = self._host
        return host if time.monotonic() - at_s < HOST_STALE_S else {}

    async def _seen(self) -> view.View | None:
        """The run now; as last seen where the disk is slow; None where nothing could ever be read."""
        try:
            self._view = await aside(lambda: view.read(self.workspace), limit_s=LOOK_LIMIT_S)
        except Exception as error:  # whatever is wrong with the files
            log.debug("telegram.run_unreadable", error=str(error))
        return self._view

    async def _more(self, seen: view.View | None, *, output: bool = False) -> messages.More:
        if seen is None:
            return messages.NOTHING_MORE
        try:
            return await aside(lambda: gather(self.workspace, seen, output=output), limit_s=LOOK_LIMIT_S)
        except Exception as error:
            log.debug("telegram.run_unreadable", error=str(error))
            return messages.NOTHING_MORE

    # -- speak

    async def speak(self) -> None:
        """Send the next message, or wait for one."""
        self._wake.clear()
        step = self._next_step()
        if isinstance(step, Fold) and not self._line.is_up:  # there may be more to fold before it can leave
            self._heard.clear()
            await _until(self._heard, self.pace.longest_retry_s)
            step = self._next_step(fold=self._line.is_up)
        pause_s = self._pause_s(step)
        if isinstance(step, Wait):
            await _until(self._wake, step.seconds)
        elif pause_s > 0:
            await _until(self._wake, pause_s)
        elif isinstance(step, Fold):
            into = messages.folded(step.messages, self.clock(), self.settings.zone)
            self.keep_box(outbox.folded(self.diary.outbox, step.messages, into))
        else:
            await self._deliver(step)

    def _pause_s(self, step: outbox.Step) -> float:
        """What is left of the time between two messages; an answer may come sooner, since the owner waits for it."""
        if self._hurry or not isinstance(step, Deliver) or not step.message.kind:
            return 0.0
        return self._sent_s + self.pace.gap_s - time.monotonic()

    def _next_step(self, *, fold: bool = True) -> outbox.Step:
        now = self.clock()
        hushed = self.settings.is_quiet(now) or self.diary.memory.mute_until > now
        return outbox.next_step(self.diary.outbox, now, hushed=hushed, fold=fold)

    async def _deliver(self, step: Deliver) -> None:
        key = step.message.key
        self.keep_box(outbox.begun(self.diary.outbox, key))
        ending = await self.wire.deliver(step)
        self._sent_s = time.monotonic()
        self.keep_box(after(self.diary.outbox, step, ending, self.clock()))
        await self._mind(step, ending)

    async def _mind(self, step: Deliver, ending: Ending) -> None:
        """Log what the owner should know of, keep the card pinned, and wait after a failure."""
        from daemon.wire import Arrived, InDoubt, NotSent, Refused

        barred = ending.reason if isinstance(ending, NotSent) and ending.barred else ""
        if barred and barred != self._barred:
            log.warning("telegram.barred", reason=barred)
        self._barred = barred or ("" if isinstance(ending, Arrived) else self._barred)
        if isinstance(ending, Refused):
            log.warning("telegram.refused", key=step.message.key, reason=ending.reason, plain=step.plain)
        if isinstance(ending, NotSent | InDoubt):
            self._delivery_failures += 1
            self._heard.clear()
            await _until(self._heard, self.pace.after_failures_s(self._delivery_failures))
            return
        self._delivery_failures = 0
        if isinstance(ending, Arrived) and step.message.kind == "card":
            await self._pin(ending.message_id)

    async def _pin(self, message_id: int) -> None:
        from daemon.wire import Arrived, Refused

        self.keep(replace(self.diary, card_at=self.clock()))
        if message_id != self.diary.pinned and isinstance(await self.wire.pin(message_id), Arrived | Refused):
            self.keep(replace(self.diary, pinned=message_id))

    async def farewell(self, patience_s: float) -> None:
        """Say what is new and send what waits, for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                self._hurry = True
                fresh = self._fresh_facts()
                if fresh:
                    await self._tell(fresh)
                seen = await self._seen()
                if seen is not None and seen.run.finished:
                    await self._card(self.clock(), last=True)
                while self.diary.outbox.waiting or any(mirror.at_work for mirror in self._mirrors):
                    await asyncio.sleep(0.05)


def after(box: Outbox, step: Deliver, ending: Ending, now: float) -> Outbox:
    """The outbox after a delivery ended so."""
    from daemon import wire

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


def gather(workspace: Workspace, seen: view.View, *, output: bool = False) -> messages.More:
    """What the texts show beside the view: lately told losses and checkpoints of the stages at work, and the scores."""
    losses: dict[str, list[float]] = {}
    saved_at: dict[str, float] = {}
    printed: dict[str, list[str]] = {}
    for stage in messages.at_work(seen):
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
            printed[state.name] = view.tail_lines(path, messages.MOST_LOG_LINES)
    lately = {name: told[-LOSSES:] for name, told in losses.items()}
    return messages.More(losses=lately, saved_at=saved_at, output=printed, scores=scores.read(workspace.eval_results))


def vigil(workspace: Workspace, arguments: list[str]) -> str:
    """Run a subcommand in a short-lived process; what it complained of, empty when it did what it should."""
    command = [sys.executable, "-P", "-m", "daemon.cli", *arguments, "--workspace", str(workspace.root)]
    try:
        ended = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SHOW_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]


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


async def _until(event: asyncio.Event, seconds: float | None) -> None:
    """Wait for `event`, or for so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

"""What is to be sent to the owner, in order, kept over crashes: nothing is lost, and a repeat says that it is one.

All but `Keeper` is PURE: an `Outbox` goes in, the next one comes out. The one who sends saves it before a message leaves
(`begun`) and after (`arrived`, `not_sent`, `in_doubt`, `refused`, `flooded`, `vanished`). Telegram knows no idempotency
(https://github.com/tdlib/telegram-bot-api/issues/482): a try whose end is unknown is repeated with a mark, an edit without.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog
from msgspec.structs import replace

from daemon import words
from daemon.phone.dialogue import Message, Ring
from state.durable import write_atomically

OLD_S = 600.0
"""An event that waits longer was not sent in time: more than `MOST_OLD` such are folded into one."""
MOST_OLD = 3
FOLDED = "folded"
"""Kind of the message that stands for others."""
STILL_AFTER_H = (1, 4, 12)
"""A red alarm that lasts is told again after so many hours."""
MOST_DOUBTS = 3
"""After so many tries a picture or a file is left out: on a slow network it would hold up all that waits behind it."""
KEPT_KEYS = 1000
MOST_ALARMS = 20
TEXT_UNITS = 4096
"""UTF-16 units that Telegram takes in a text."""
AGAIN = "(again) "

log = structlog.get_logger()


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits."""

    message: Message
    trying: bool = False
    """It is on its way: found so after a crash, it may have arrived."""
    doubts: int = 0
    """Earlier tries that may have arrived: the next one is marked."""
    plain: bool = False
    """Telegram refused it as it was: it goes as bare text."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message that arrived."""

    message_id: int = 0
    """0: it cannot be edited: a picture, a file, or a message that was given up."""


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """A red message whose cause lasts."""

    message: Message
    since: float
    told: int = 0
    """How many of `STILL_AFTER_H` are over."""


class Outbox(msgspec.Struct, frozen=True, kw_only=True):
    """All that waits and what must be remembered of what was sent."""

    waiting: tuple[Entry, ...] = ()
    sent: dict[str, Sent] = {}
    """By key, the newest last."""
    paused_until: float = 0.0
    """Wall time: Telegram asked for silence."""
    pause_s: float = 0.0
    """Its length, which bounds it where the clock has jumped."""
    alarms: tuple[Alarm, ...] = ()

    def has(self, key: str) -> bool:
        """Whether a message of this key waits or was sent."""
        return key in self.sent or any(entry.message.key == key for entry in self.waiting)


@dataclass(frozen=True)
class Wait:
    """There is nothing to send for so long; None: until something is put in."""

    seconds: float | None


@dataclass(frozen=True)
class Fold:
    """These have waited for too long: they go as one."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Deliver:
    """Send this now, or edit that message."""

    message: Message
    silent: bool
    edits: int = 0
    """The id of that message; 0: it is a new one."""
    plain: bool = False
    """`message.html` is bare text."""


Step = Wait | Fold | Deliver


# -- what comes in


def put(box: Outbox, message: Message) -> Outbox:
    """`box` with `message` at its end. Of one key the first stays, of edits of one message the last; what is off is dropped.

    One that replaces its own key may come again and again: it is edited when it was sent before. What replaces an alarm ends it.
    """
    if message.ring is Ring.OFF or (message.key != message.replaces and box.has(message.key)):
        return box
    waiting = tuple(e for e in box.waiting if not (message.replaces and e.message.replaces == message.replaces and _untried(e)))
    if any(entry.message.key == message.key for entry in waiting):
        return box
    clean = replace(message, html=message.html.encode("utf-8", "replace").decode())  # half a surrogate pair is not JSON
    alarms = tuple(alarm for alarm in box.alarms if alarm.message.key != message.replaces)
    return replace(box, waiting=(*waiting, Entry(message=clean)), alarms=alarms)


def lasts(box: Outbox, message: Message, now: float) -> Outbox:
    """`box` that tells the cause of `message` again while it lasts, until it is solved."""
    return replace(box, alarms=(*box.alarms, Alarm(message=message, since=message.at or now))[-MOST_ALARMS:])


def lasting(box: Outbox, now: float) -> list[tuple[Alarm, int]]:
    """The alarms that are to be told again, and for how many hours they have lasted; none of which a telling still waits."""
    waiting = [f"{entry.message.key}/" for entry in box.waiting]
    due = []
    for alarm in box.alarms:
        over = [hours for hours in STILL_AFTER_H if now - alarm.since >= hours * 3600]
        if len(over) > alarm.told and not any(key.startswith(f"{alarm.message.key}/") for key in waiting):
            due.append((alarm, over[-1]))
    return due


def told_again(box: Outbox, alarm: Alarm, hours: int, message: Message) -> Outbox:
    """`box` with `message`, which says that `alarm` has lasted for `hours`."""
    told = replace(alarm, told=STILL_AFTER_H.index(hours) + 1)
    alarms = tuple(told if a.message.key == alarm.message.key else a for a in box.alarms)
    return put(replace(box, alarms=alarms), message)


# -- what goes out


def next_step(box: Outbox, now: float, *, hushed: bool = False, fold: bool = True) -> Step:
    """What to do next. Answers go before events, which keep their order.

    `hushed` makes loud ones silent, never red ones. Without `fold` what is old goes one by one.
    """
    pause_s = min(box.paused_until - now, box.pause_s)
    if pause_s > 0:
        return Wait(pause_s)
    if not box.waiting:
        return Wait(None)
    old = tuple(e.message for e in box.waiting if _foldable(e) and now - e.message.at > OLD_S)
    if fold and len(old) > MOST_OLD:
        return Fold(old)
    entry = next((e for e in box.waiting if _is_answer(e.message, box)), box.waiting[0])
    message, edits = entry.message, box.sent.get(entry.message.replaces, Sent()).message_id
    silent = message.ring is Ring.SILENT or (message.ring is Ring.LOUD and hushed)
    text = words.bare(message.html) if entry.plain else message.html
    if entry.doubts and not edits:
        text = AGAIN + text
    message = replace(message, html=words.cut_utf16(text, TEXT_UNITS) if entry.plain else text)
    if entry.plain:
        message = replace(message, buttons=())
    if _is_light(entry):
        message = replace(message, photo="", draws="", document="")
    return Deliver(message, silent, edits, entry.plain)


def folded(box: Outbox, messages: Sequence[Message], into: Message) -> Outbox:
    """`box` with `into` in the place of `messages`."""
    keys = {message.key for message in messages}
    place = next(i for i, e in enumerate(box.waiting) if e.message.key in keys)
    rest = [(i, e) for i, e in enumerate(box.waiting) if e.message.key not in keys]
    before, after = ([e for i, e in rest if i < place], [e for i, e in rest if i > place])
    return replace(box, waiting=(*before, Entry(message=into), *after))


def begun(box: Outbox, key: str) -> Outbox:
    """The try begins: to be on disk before the first byte leaves."""
    return _change(box, key, trying=True)


def arrived(box: Outbox, key: str, message_id: int) -> Outbox:
    """Telegram has it, as `message_id`."""
    entry = _entry(box, key)
    media = (entry.message.photo or entry.message.draws or entry.message.document) and not _is_light(entry)
    sent = Sent() if media else Sent(message_id=message_id)
    names = filter(None, (entry.message.replaces, key))
    return replace(_without(box, key), sent=_newest(box, dict.fromkeys(names, sent)))


def not_sent(box: Outbox, key: str) -> Outbox:
    """It surely never left: the next try needs no mark."""
    return _change(box, key, trying=False)


def in_doubt(box: Outbox, key: str) -> Outbox:
    """Nobody knows whether it arrived."""
    return _change(box, key, trying=False, doubts=_entry(box, key).doubts + 1)


def flooded(box: Outbox, key: str, now: float, retry_after_s: float) -> Outbox:
    """Telegram wants silence in the whole chat."""
    return replace(not_sent(box, key), paused_until=now + retry_after_s, pause_s=retry_after_s)


def refused(box: Outbox, key: str) -> Outbox:
    """Telegram will never take it as it is: it goes as bare text, and is given up when that is refused too."""
    if not _entry(box, key).plain:
        return _change(box, key, trying=False, plain=True)
    return replace(_without(box, key), sent=_newest(box, {key: Sent()}))


def vanished(box: Outbox, key: str) -> Outbox:
    """What was to be edited is gone: the edit becomes a message."""
    target = _entry(box, key).message.replaces
    return replace(not_sent(box, key), sent={name: sent for name, sent in box.sent.items() if name != target})


def after_crash(box: Outbox) -> Outbox:
    """`box` as it is to be taken up by a new process: what was on its way is in doubt."""
    return replace(box, waiting=tuple(replace(e, trying=False, doubts=e.doubts + e.trying) for e in box.waiting))


# -- the file

Kept = TypeVar("Kept", bound=msgspec.Struct)


class Keeper(Generic[Kept]):
    """One value in one file, of which a crash leaves the old or the new."""

    def __init__(self, path: Path, kind: type[Kept]) -> None:
        self.path = path
        self._kind = kind
        self._trouble = ""

    def load(self) -> Kept | None:
        """What was kept; None when there is nothing, or nothing to read, which is set aside and logged.

        Raises:
            OSError: the disk refuses.
        """
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=self._kind)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            log.error("telegram.damaged", file=self.path.name, error=str(error))
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
            return None

    def save(self, kept: Kept) -> bool:
        """Make `kept` durable; False when the disk refuses, which is logged once."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(self.path, msgspec.json.encode(kept))
        except OSError as error:
            if str(error.errno) != self._trouble:
                log.error("telegram.not_saved", error=str(error))
            self._trouble = str(error.errno)
            return False
        self._trouble = ""
        return True

    def sweep(self) -> None:
        """Remove what a killed writer left beside the file."""
        for path in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()


# -- parts


def _untried(entry: Entry) -> bool:
    return not (entry.trying or entry.doubts or entry.plain)


def _is_light(entry: Entry) -> bool:
    """It goes without its picture or file."""
    return entry.plain or entry.doubts >= MOST_DOUBTS


def _foldable(entry: Entry) -> bool:
    message = entry.message
    told = message.kind not in ("", FOLDED) and message.ring in (Ring.LOUD, Ring.SILENT)
    return told and not message.replaces and _untried(entry)


def _is_answer(message: Message, box: Outbox) -> bool:
    """The owner waits for it, and what it edits is not itself waiting."""
    return not message.kind and not any(e.message.key == message.replaces for e in box.waiting)


def _entry(box: Outbox, key: str) -> Entry:
    return next(entry for entry in box.waiting if entry.message.key == key)


def _change(box: Outbox, key: str, **changes: int) -> Outbox:
    changed = replace(_entry(box, key), **changes)
    return replace(box, waiting=tuple(changed if e.message.key == key else e for e in box.waiting))


def _without(box: Outbox, key: str) -> Outbox:
    return replace(box, waiting=tuple(e for e in box.waiting if e.message.key != key))


def _newest(box: Outbox, fresh: dict[str, Sent]) -> dict[str, Sent]:
    """What was sent with what is fresh; old keys go, but those that an alarm or a waiting edit still needs."""
    sent = {**{name: one for name, one in box.sent.items() if name not in fresh}, **fresh}
    needed = {*(a.message.key for a in box.alarms), *(e.message.replaces for e in box.waiting)}
    spare = [name for name in sent if name not in needed]
    return _less(sent, spare[: max(0, len(spare) - KEPT_KEYS)])


def _less(sent: dict[str, Sent], names: Iterable[str]) -> dict[str, Sent]:
    gone = set(names)
    return {name: one for name, one in sent.items() if name not in gone}

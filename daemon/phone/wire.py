"""The one place that speaks to python-telegram-bot: updates in, messages out, every failure as a value.

Its `Bot` alone is used. Its polling ends for good on one 401 or 404, and its parser loses a whole batch of updates to one that it
cannot read, so the updates are taken out of the answer before it sees them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec
from telegram import Bot, BotCommand, InlineKeyboardButton, InlineKeyboardMarkup
from telegram.constants import ParseMode
from telegram.error import BadRequest, Conflict, Forbidden, InvalidToken, RetryAfter, TelegramError
from telegram.request import HTTPXRequest

from daemon.phone.dialogue import Asked, Button, Toast
from daemon.phone.outbox import Deliver
from daemon.phone.telegram_settings import Secret

KINDS = ("message", "callback_query")
CONNECT_S = 8.0
ANSWER_S = 15.0
UPLOAD_S = 60.0
POLL_MARGIN_S = 10.0
"""Beyond the time that Telegram was asked to wait."""

_NEVER_LEFT = ("ConnectError", "ConnectTimeout", "PoolTimeout")
"""Causes of the library's errors, by the names that its HTTP client gives them."""
_CANNOT_EDIT = ("message to edit not found", "message can't be edited", "no text in the message", "message_id_invalid")


@dataclass(frozen=True)
class Arrived:
    """Telegram has it."""

    message_id: int


@dataclass(frozen=True)
class NotSent:
    """It surely had no effect."""

    reason: str
    barred: bool = False
    """Telegram was reached, and lets nothing through to this chat."""


@dataclass(frozen=True)
class InDoubt:
    """It may have had its effect."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """It never will be taken as it is."""

    reason: str


@dataclass(frozen=True)
class Flooded:
    """Not taken: silence is asked for, in the whole chat."""

    retry_after_s: float


@dataclass(frozen=True)
class Vanished:
    """What was to be edited is not there."""


Ending = Arrived | NotSent | InDoubt | Refused | Flooded | Vanished


@dataclass(frozen=True)
class Received:
    """Updates, and the offset that confirms them."""

    asked: tuple[Asked, ...]
    offset: int
    poison: tuple[int, ...] = ()
    """Ids of those that cannot be read."""


class UnreachableError(Exception):
    """Telegram did not answer as it should; the message is without the token."""

    def __init__(self, text: str, *, token_refused: bool = False, taken: bool = False) -> None:
        super().__init__(text)
        self.token_refused = token_refused
        """Or a web page on the way says so: never final but for one who sits before it."""
        self.taken = taken
        """Somebody else receives this bot's messages: another program with its token, or a webhook."""


class Wire:
    """A bot's line to Telegram. To be used in one event loop."""

    def __init__(self, token: Secret, base_url: str, chat_id: int = 0, clock: Callable[[], float] = time.time) -> None:
        self.chat_id = chat_id
        self._clock = clock
        limits: dict[str, Any] = {"connect_timeout": CONNECT_S, "read_timeout": ANSWER_S, "write_timeout": ANSWER_S}
        self._intake = _Intake(connection_pool_size=1, **limits)
        self._request = HTTPXRequest(connection_pool_size=4, media_write_timeout=UPLOAD_S, pool_timeout=ANSWER_S, **limits)
        self._bot = Bot(
            token.reveal(), f"{base_url}/bot", f"{base_url}/file/bot", request=self._request, get_updates_request=self._intake
        )

    async def close(self) -> None:
        """Close the connections."""
        for request in (self._intake, self._request):
            with contextlib.suppress(Exception):  # what a broken connection says as it goes
                await request.shutdown()

    async def name(self) -> str:
        """The bot's user name.

        Raises:
            UnreachableError
        """
        return str((await _asked_of(self._bot.get_me())).username)

    async def updates(self, offset: int, wait_s: int) -> Received:
        """What came since `offset`, which confirms what came before; waits up to `wait_s` for the first.

        Raises:
            UnreachableError
        """
        self._intake.updates = ()
        await _asked_of(
            self._bot.get_updates(offset=offset or None, timeout=wait_s, allowed_updates=KINDS, read_timeout=POLL_MARGIN_S)
        )
        return received(self._intake.updates, offset, self._clock())

    async def deliver(self, step: Deliver) -> Ending:
        """Send or edit one message, and say what became of it."""
        try:
            return Arrived(await self._post(step))
        except Exception as error:  # whatever a proxy answers must not end the bot
            return ending_of(error, edits=step.edits)

    async def toast(self, toast: Toast) -> Ending:
        """Answer a tap."""
        try:
            await self._bot.answer_callback_query(toast.callback_id, toast.text or None)
            return Arrived(0)
        except Exception as error:
            return ending_of(error)

    async def pin(self, message_id: int) -> Ending:
        """Pin a message, without a sound."""
        try:
            await self._bot.pin_chat_message(self.chat_id, message_id, disable_notification=True)
            return Arrived(message_id)
        except Exception as error:
            return ending_of(error)

    async def menu(self, commands: Sequence[tuple[str, str]]) -> Ending:
        """What the app offers behind its menu button: (command, description)."""
        try:
            await self._bot.set_my_commands([BotCommand(name, text) for name, text in commands])
            return Arrived(0)
        except Exception as error:
            return ending_of(error)

    async def _post(self, step: Deliver) -> int:
        message, rows = step.message, _keyboard(step.message.buttons)
        mode = None if step.plain else ParseMode.HTML
        common: dict[str, Any] = {"parse_mode": mode, "reply_markup": rows}
        if step.edits:
            await self._bot.edit_message_text(message.html, self.chat_id, step.edits, **common)
            return step.edits
        common["disable_notification"] = step.silent
        if (photo := _content(message.photo)) is not None:
            return (await self._bot.send_photo(self.chat_id, photo, message.html, **common)).message_id
        if (document := _content(message.document)) is not None:
            name = Path(message.document).name
            return (await self._bot.send_document(self.chat_id, document, message.html, filename=name, **common)).message_id
        return (await self._bot.send_message(self.chat_id, message.html, **common)).message_id


def ending_of(error: Exception, *, edits: int = 0) -> Ending:
    """What an exception of the library says about the request. Only a connection that was never made, and an answer that
    refuses, prove that it had no effect."""
    text, cause = str(error) or type(error).__name__, error.__cause__
    if isinstance(error, RetryAfter):
        pause = error.retry_after  # a time span where PTB_TIMEDELTA is set
        return Flooded(pause.total_seconds() if isinstance(pause, timedelta) else pause)
    if isinstance(error, BadRequest) and not isinstance(cause, TelegramError):  # with that cause it is a web page with status 400
        if "not modified" in text.lower():
            return Arrived(edits)  # the repeat of an edit whose reply was lost
        if "chat not found" in text.lower():
            return NotSent(text, barred=True)
        return Vanished() if edits and any(word in text.lower() for word in _CANNOT_EDIT) else Refused(text)
    if isinstance(error, Forbidden):
        return NotSent(text, barred=True)
    if isinstance(error, BadRequest | InvalidToken | Conflict) or type(cause).__name__ in _NEVER_LEFT:
        return NotSent(text)
    return InDoubt(text)


def received(updates: Sequence[msgspec.Raw], offset: int, now: float) -> Received:
    """`updates` as they came, reduced to what matters; one that cannot be read costs nothing but itself.

    Raises:
        UnreachableError: none of them has an id: this is no answer of Telegram's.
    """
    asked, poison, ids = [], [], []
    for raw in updates:
        try:
            number = msgspec.json.decode(raw, type=_Numbered).update_id
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        ids.append(number)
        try:
            asked += _reduced(msgspec.json.decode(raw, type=_Update), now)
        except (msgspec.DecodeError, UnicodeDecodeError):
            poison.append(number)
    if updates and not ids:
        raise UnreachableError("the answer holds updates without ids")
    return Received(tuple(asked), max(ids, default=offset - 1) + 1, tuple(poison))  # after a quiet week the ids begin anywhere


# -- parts


class _User(msgspec.Struct, frozen=True):
    id: int


class _Chat(msgspec.Struct, frozen=True):
    id: int
    type: str


class _Text(msgspec.Struct, frozen=True):
    date: float
    chat: _Chat
    user: _User | None = msgspec.field(name="from", default=None)
    text: str = ""


class _Place(msgspec.Struct, frozen=True):
    chat: _Chat
    message_id: int = 0


class _Tap(msgspec.Struct, frozen=True):
    id: str
    user: _User = msgspec.field(name="from")
    data: str = ""
    message: _Place | None = None


class _Numbered(msgspec.Struct, frozen=True):
    update_id: int


class _Update(_Numbered, frozen=True):
    message: _Text | None = None
    callback_query: _Tap | None = None


class _Reply(msgspec.Struct, frozen=True):
    ok: bool
    result: tuple[msgspec.Raw, ...]


class _Intake(HTTPXRequest):
    """Keeps the updates for us and hands the library an empty list."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.updates: tuple[msgspec.Raw, ...] = ()

    async def do_request(self, *args: Any, **options: Any) -> tuple[int, bytes]:
        status, payload = await super().do_request(*args, **options)
        if status == HTTPStatus.OK:
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):  # the library says what is wrong with it
                self.updates = msgspec.json.decode(payload, type=_Reply).result
                payload = b'{"ok":true,"result":[]}'
        return status, payload


async def _asked_of(call: Any) -> Any:
    try:
        return await call
    except TelegramError as error:
        refused, taken = isinstance(error, InvalidToken), isinstance(error, Conflict)
        raise UnreachableError(f"{type(error).__name__}: {error}", token_refused=refused, taken=taken) from None
    except Exception as error:  # such as an answer without a result
        raise UnreachableError(f"no answer of Telegram's: {error!r}") from None


def _reduced(update: _Update, now: float) -> list[Asked]:
    text, tap = update.message, update.callback_query
    if text is not None and text.user is not None:
        return [_of(update, text.user, text.chat, at=text.date, text=text.text)]
    if tap is not None:
        place = tap.message or _Place(_Chat(0, ""))
        return [_of(update, tap.user, place.chat, at=now, data=tap.data, callback_id=tap.id, message_id=place.message_id)]
    return []


def _of(update: _Update, user: _User, chat: _Chat, **rest: Any) -> Asked:
    return Asked(update_id=update.update_id, user_id=user.id, chat_id=chat.id, private=chat.type == "private", **rest)


def _keyboard(rows: tuple[tuple[Button, ...], ...]) -> InlineKeyboardMarkup | None:
    if not rows:
        return None
    return InlineKeyboardMarkup([[InlineKeyboardButton(button.text, callback_data=button.data) for button in row] for row in rows])


def _content(path: str) -> bytes | None:
    """A file to upload; None when there is none: the words go without it."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes() if path else None
    return None

"""A strict Bot API server: it refuses what Telegram refuses, keeps what Telegram keeps, and shows what the owner sees.

    with FakeApi() as api:
        bot = telegram.Bot(api.token, base_url=f"{api.url}/bot")
        api.owner.says("/status")                      # the owner's side
        api.fail("sendMessage", LOST_REPLY)            # faults: tests.telegram.wire
        api.wait_for(lambda: api.transcript()[1:])     # what the phone shows, edits applied

Rules: https://core.telegram.org/bots/api, and where that is silent, the words of https://github.com/tdlib/telegram-bot-api. Lengths
are counted in UTF-16 units. Knows HTML and no other markup, inline keyboards and no others, polling and no webhook.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.telegram import markup
from tests.telegram.wire import TOKEN, Gone, Refused, Wire

BOT_ID = int(TOKEN.split(":")[0])
OWNER_ID = 777_000_111
TEXT_UNITS = 4096
CAPTION_UNITS = 1024
TOAST_UNITS = 200
DATA_BYTES = 64
PHOTO_BYTES = 10 * 1024 * 1024
DOCUMENT_BYTES = 50 * 1024 * 1024
MOST_BUTTONS = 100
KEPT_S = 24 * 3600
DELETABLE_S = 48 * 3600
QUERY_LIFE_S = 15
NOT_MODIFIED = (
    "message is not modified: specified new message content and reply markup are exactly the same as a current content"
    " and reply markup of the message"
)
ACTIONS = ("typing", "upload_photo", "upload_document")
UNASKED = ("chat_member", "message_reaction", "message_reaction_count")
"""Kinds of updates that come only when `allowed_updates` names them."""

Buttons = tuple[tuple[tuple[str, str], ...], ...]
Params = dict[str, Any]
Files = dict[str, tuple[str, bytes]]


@dataclass(frozen=True)
class Seen:
    """A message as it stands on the phone now."""

    message_id: int
    chat_id: int
    by: int
    """User id; `BOT_ID` for the bot's own."""
    at: int
    text: str = ""
    """Of a photo or document: the caption. Tags and escapes are gone; `entities` says what they were."""
    entities: tuple[dict[str, Any], ...] = ()
    buttons: Buttons = ()
    """Rows of (label, data)."""
    photo: bytes = b""
    document: bytes = b""
    document_name: str = ""
    edited_at: int | None = None
    silent: bool = False
    pinned: bool = False

    @property
    def media(self) -> bool:
        return bool(self.photo or self.document)


@dataclass(frozen=True)
class _Query:
    message_id: int
    at: float


@dataclass(frozen=True)
class Toast:
    """The answer to a tap."""

    callback_id: str
    text: str
    at: float


@dataclass(frozen=True)
class Person:
    """Somebody with a phone. Talks to the bot alone unless a `chat_id` is given."""

    api: FakeApi
    user_id: int
    name: str

    def says(self, text: str | None, chat_id: int | None = None, **fields: Any) -> int:
        """Send a message; `fields` are added to it as they are (a sticker, say). Its id."""
        return self.api.receive_message(self, chat_id or self.user_id, text, fields)

    def taps(self, message_id: int, data: str, *, stale: bool = False) -> str:
        """Press the button that holds `data`; `stale`: on a screen that still shows a keyboard which is gone. The callback's id.

        Raises:
            LookupError: the message has no such button.
        """
        return self.api.receive_tap(self, message_id, data, stale)


class FakeApi(Wire):
    """See the module's description."""

    def __init__(self, token: str = TOKEN) -> None:
        super().__init__(token)
        self.username = "vigil_test_bot"
        self.sent: list[Seen] = []
        """Every message of the bot as it was sent, `edited` every edit's result, `toasts` every answer to a tap."""
        self.edited: list[Seen] = []
        self.toasts: list[Toast] = []
        self.commands: list[dict[str, str]] = []
        self.webhook = ""
        """Left behind by another program that used the token: no polling before it is deleted."""
        self.gap_s = 0.0
        """The least time between two messages or edits in a chat; 0 switches the limit off. Telegram's is about 1."""
        self._chats: dict[int, dict[str, Any]] = {}
        self._messages: dict[int, Seen] = {}
        self._updates: list[tuple[float, dict[str, Any]]] = []
        self._queries: dict[str, _Query] = {}
        self._free_at: dict[int, float] = {}
        self._allowed: list[str] = []
        self._last_message = 100
        self._last_update = 500_000_000
        self._poll = 0
        self.owner = self.person(OWNER_ID, "Ada", started=True)
        self._methods: dict[str, Callable[[Params, Files], Any]] = {
            "getMe": self._get_me,
            "getUpdates": self._get_updates,
            "deleteWebhook": self._delete_webhook,
            "sendMessage": self._send_message,
            "sendPhoto": self._send_photo,
            "sendDocument": self._send_document,
            "editMessageText": self._edit_text,
            "editMessageReplyMarkup": self._edit_markup,
            "answerCallbackQuery": self._answer_query,
            "deleteMessage": self._delete,
            "pinChatMessage": self._pin,
            "unpinChatMessage": self._unpin,
            "setMyCommands": self._set_commands,
            "getChat": self._get_chat,
            "sendChatAction": self._chat_action,
        }

    # What people do

    def person(self, user_id: int, name: str = "Stranger", *, started: bool = False) -> Person:
        """Somebody; the bot can write to them once they wrote, or have `started` it before."""
        person = Person(self, user_id, name)
        if started:
            self._chats[user_id] = {"id": user_id, "type": "private", "first_name": name}
        return person

    def group(self, chat_id: int, title: str = "Family") -> int:
        """A group that the bot was added to; its id, which is negative."""
        self._chats[chat_id] = {"id": chat_id, "type": "group", "title": title}
        return chat_id

    def receive_message(self, sender: Person, chat_id: int, text: str | None, fields: dict[str, Any]) -> int:
        """See `Person.says`."""
        with self.changed:
            if chat_id == sender.user_id:
                self.person(sender.user_id, sender.name, started=True)
            message = Seen(self._next_message(), chat_id, sender.user_id, int(self.now()), text or "")
            self._messages[message.message_id] = message
            command = re.match(r"/\w+", message.text)
            entities = {"entities": [{"type": "bot_command", "offset": 0, "length": command.end()}]} if command else {}
            self._queue("message", self._as_json(message) | {"from": _user(sender)} | entities | fields)
            return message.message_id

    def receive_tap(self, sender: Person, message_id: int, data: str, stale: bool) -> str:
        """See `Person.taps`."""
        with self.changed:
            message = self._messages.get(message_id)
            if not stale and data not in [each for row in (message.buttons if message else ()) for _label, each in row]:
                raise LookupError(f"message {message_id} has no button {data!r}: {message}")
            callback_id = str(4_000_000_000 + len(self._queries))
            self._queries[callback_id] = _Query(message_id, self.now())
            gone = {"message_id": message_id, "chat": self._chats.get(sender.user_id), "date": 0}
            shown = self._as_json(message) if message else gone
            query = {"id": callback_id, "from": _user(sender), "chat_instance": "1", "data": data, "message": shown}
            self._queue("callback_query", query)
            return callback_id

    def poison(self) -> None:
        """An update that the library cannot parse: a kind of message from the future."""
        with self.changed:
            self._queue("message", {"message_id": self._next_message(), "hologram": {}})

    def transcript(self, chat_id: int = OWNER_ID) -> tuple[Seen, ...]:
        """What the chat shows, oldest first."""
        with self.changed:
            return tuple(message for message in self._messages.values() if message.chat_id == chat_id)

    def flood(self, seconds: float, chat_id: int = OWNER_ID) -> None:
        """The chat is paused: every message and edit in it gets 429 until the time is over, and makes it longer."""
        with self.changed:
            self._free_at[chat_id] = self.now() + seconds

    def unconfirmed(self) -> int:
        """How many updates the bot has not confirmed yet."""
        with self.changed:
            return len(self._updates)

    # What the bot asks

    def answer(self, method: str, params: Params, files: Files) -> Any:
        if method not in self._methods:
            raise Refused(404)
        return self._methods[method](params, files)

    def _get_me(self, _params: Params, _files: Files) -> Any:
        return {"id": BOT_ID, "is_bot": True, "first_name": "Vigil", "username": self.username, "can_join_groups": True}

    def _delete_webhook(self, _params: Params, _files: Files) -> Any:
        self.webhook = ""
        return True

    def _get_updates(self, params: Params, _files: Files) -> Any:
        if self.webhook:
            raise Refused(409, "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first")
        self._poll += 1
        poll = self._poll
        self.changed.notify_all()  # the poll before this one is over
        offset = _integer(params, "offset", 0)
        self._updates = self._updates[offset:] if offset < 0 else [it for it in self._updates if it[1]["update_id"] >= offset]
        if "allowed_updates" in params:
            self._allowed = _parsed(params["allowed_updates"])
        timeout_s = min(_integer(params, "timeout", 0), 50)
        self.changed.wait_for(lambda: self._kept() or poll != self._poll or not self.online, timeout_s)
        if not self.online:
            raise Gone
        if poll != self._poll:
            raise Refused(409, "terminated by other getUpdates request; make sure that only one bot instance is running")
        return self._kept()[: min(max(_integer(params, "limit", 100), 1), 100)]

    def _kept(self) -> list[dict[str, Any]]:
        self._updates = [(at, update) for at, update in self._updates if at > self.now() - KEPT_S]
        return [update for _at, update in self._updates]

    def _send_message(self, params: Params, _files: Files) -> Any:
        return self._send(params, self._formatted(params, "text", TEXT_UNITS))

    def _send_photo(self, params: Params, files: Files) -> Any:
        _name, photo = _upload(files, "photo", PHOTO_BYTES)
        _check_picture(photo)
        return self._send(params, self._formatted(params, "caption", CAPTION_UNITS), photo=photo)

    def _send_document(self, params: Params, files: Files) -> Any:
        name, document = _upload(files, "document", DOCUMENT_BYTES)
        caption = self._formatted(params, "caption", CAPTION_UNITS)
        return self._send(params, caption, document=document, document_name=name)

    def _edit_text(self, params: Params, _files: Files) -> Any:
        message = self._own(params, "message to edit not found")
        if message.media:
            raise Refused(400, "there is no text in the message to edit")
        return self._edit(message, self._formatted(params, "text", TEXT_UNITS), _buttons(params))

    def _edit_markup(self, params: Params, _files: Files) -> Any:
        message = self._own(params, "message to edit not found")
        return self._edit(message, (message.text, list(message.entities)), _buttons(params))

    def _answer_query(self, params: Params, _files: Files) -> Any:
        query = self._queries.get(str(params.get("callback_query_id")))
        if query is None or self.now() - query.at > QUERY_LIFE_S:
            raise Refused(400, "query is too old and response timeout expired or query ID is invalid")
        if markup.units(text := str(params.get("text", ""))) > TOAST_UNITS:
            raise Refused(400, "MESSAGE_TOO_LONG")
        self.toasts.append(Toast(str(params["callback_query_id"]), text, self.now()))
        return True

    def _delete(self, params: Params, _files: Files) -> Any:
        message = self._found(params, "message to delete not found")
        if self.now() - message.at > DELETABLE_S:
            raise Refused(400, "message can't be deleted for everyone")
        del self._messages[message.message_id]
        return True

    def _pin(self, params: Params, _files: Files) -> Any:
        message = self._found(params, "message to pin not found")
        self._messages[message.message_id] = replace(message, pinned=True)
        return True

    def _unpin(self, params: Params, _files: Files) -> Any:
        if "message_id" not in params:
            pinned = [it for it in self.transcript(self._chat(params)["id"]) if it.pinned]
            params = params | {"message_id": pinned[-1].message_id if pinned else 0}
        message = self._found(params, "message to unpin not found")
        self._messages[message.message_id] = replace(message, pinned=False)
        return True

    def _set_commands(self, params: Params, _files: Files) -> Any:
        commands = _parsed(params.get("commands", "[]"))
        for command in commands:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command["command"]):
                raise Refused(400, "BOT_COMMAND_INVALID")
            if not 1 <= markup.units(command["description"]) <= 256:
                raise Refused(400, "BOT_COMMAND_DESCRIPTION_INVALID")
        self.commands = commands
        return True

    def _get_chat(self, params: Params, _files: Files) -> Any:
        chat = self._chat(params)
        pinned = [it for it in self.transcript(chat["id"]) if it.pinned]
        gifts = dict.fromkeys(
            ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels"), False
        )
        more = {"pinned_message": self._as_json(pinned[-1])} if pinned else {}
        return chat | {"accent_color_id": 1, "max_reaction_count": 11, "accepted_gift_types": gifts} | more

    def _chat_action(self, params: Params, _files: Files) -> Any:
        self._chat(params)
        if params.get("action") not in ACTIONS:
            raise Refused(400, "wrong parameter action in request")
        return True

    # What they share

    def _send(self, params: Params, content: tuple[str, list[dict[str, Any]]], **media: Any) -> Any:
        chat_id = self._chat(params)["id"]
        self._pace(chat_id)
        message = Seen(
            self._next_message(),
            chat_id,
            BOT_ID,
            int(self.now()),
            content[0],
            tuple(content[1]),
            _buttons(params),
            silent=str(params.get("disable_notification")).lower() == "true",
            **media,
        )
        self._messages[message.message_id] = message
        self.sent.append(message)
        return self._as_json(message)

    def _edit(self, message: Seen, content: tuple[str, list[dict[str, Any]]], buttons: Buttons) -> Any:
        self._pace(message.chat_id)
        edited = replace(message, text=content[0], entities=tuple(content[1]), buttons=buttons)
        if edited == message:
            raise Refused(400, NOT_MODIFIED)
        self._messages[message.message_id] = replace(edited, edited_at=int(self.now()))
        self.edited.append(self._messages[message.message_id])
        return self._as_json(self._messages[message.message_id])

    def _pace(self, chat_id: int) -> None:
        """Refuse what comes too fast; who does not wait, waits twice as long."""
        left_s = self._free_at.get(chat_id, 0.0) - self.now()
        if left_s > 0:
            self._free_at[chat_id] += left_s
            wait_s = math.ceil(self._free_at[chat_id] - self.now())
            raise Refused(429, f"retry after {wait_s}", retry_after=wait_s)
        if self.gap_s:
            self._free_at[chat_id] = self.now() + self.gap_s

    def _formatted(self, params: Params, name: str, most_units: int) -> tuple[str, list[dict[str, Any]]]:
        raw = str(params.get(name, ""))
        if name == "text" and not raw:
            raise Refused(400, "message text is empty")
        mode = str(params.get("parse_mode", "")).lower()
        if mode not in ("", "html"):
            raise Refused(400, f"unsupported parse_mode {mode}")
        text, entities = markup.parse(raw) if mode else markup.plain(raw)
        if name == "text" and not text:
            raise Refused(400, "text must be non-empty")
        if markup.units(text) > most_units:
            raise Refused(400, "message is too long" if name == "text" else "message caption is too long")
        return text, entities

    def _chat(self, params: Params) -> dict[str, Any]:
        chat = self._chats.get(_integer(params, "chat_id"))
        if chat is None:
            raise Refused(400, "chat not found")
        return chat

    def _found(self, params: Params, otherwise: str) -> Seen:
        message = self._messages.get(_integer(params, "message_id"))
        if message is None or message.chat_id != self._chat(params)["id"]:
            raise Refused(400, otherwise)
        return message

    def _own(self, params: Params, otherwise: str) -> Seen:
        message = self._found(params, otherwise)
        if message.by != BOT_ID:
            raise Refused(400, "message can't be edited")
        return message

    def _next_message(self) -> int:
        self._last_message += 1
        return self._last_message

    def _queue(self, kind: str, content: dict[str, Any]) -> None:
        if kind in self._allowed or (not self._allowed and kind not in UNASKED):
            self._last_update += 1
            self._updates.append((self.now(), {"update_id": self._last_update, kind: content}))
            self.changed.notify_all()

    def _as_json(self, message: Seen) -> dict[str, Any]:
        sender = {"id": BOT_ID, "is_bot": True, "first_name": "Vigil", "username": self.username}
        shown: dict[str, Any] = {"message_id": message.message_id, "date": message.at, "chat": self._chats[message.chat_id]}
        if message.by == BOT_ID:
            shown["from"] = sender
        if message.edited_at:
            shown["edit_date"] = message.edited_at
        if message.buttons:
            rows = [[{"text": label, "callback_data": data} for label, data in row] for row in message.buttons]
            shown["reply_markup"] = {"inline_keyboard": rows}
        return shown | _content(message)


def _content(message: Seen) -> dict[str, Any]:
    entities = list(message.entities)
    if not message.media:
        return {"text": message.text} | ({"entities": entities} if entities else {}) if message.text else {}
    caption = ({"caption": message.text} if message.text else {}) | ({"caption_entities": entities} if entities else {})
    file = {"file_id": f"file-{message.message_id}", "file_unique_id": str(message.message_id)}
    if message.photo:
        return caption | {"photo": [file | {"width": 90, "height": 90, "file_size": len(message.photo)}]}
    return caption | {"document": file | {"file_name": message.document_name, "file_size": len(message.document)}}


def _user(person: Person) -> dict[str, Any]:
    return {"id": person.user_id, "is_bot": False, "first_name": person.name, "language_code": "en"}


def _integer(params: Params, name: str, default: int | None = None) -> int:
    value = params.get(name, default)
    try:
        return int(str(value))
    except ValueError:
        raise Refused(400, f"{name} must be an integer" if value is not None else f"{name} is empty") from None


def _parsed(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Refused(400, "can't parse the JSON in a parameter") from None


def _buttons(params: Params) -> Buttons:
    """The inline keyboard; none given means none shown, for an edit too."""
    rows = _parsed(params.get("reply_markup", "{}")).get("inline_keyboard", [])
    found = tuple(tuple((_label(button), _data(button)) for button in row) for row in rows if row)
    if sum(map(len, found)) > MOST_BUTTONS:
        raise Refused(400, "reply markup is too long")
    return found


def _label(button: dict[str, Any]) -> str:
    if not (label := str(button.get("text", "")).strip()):
        raise Refused(400, "can't parse inline keyboard button: Button text must be non-empty")
    return label


def _data(button: dict[str, Any]) -> str:
    if "url" in button:
        return str(button["url"])
    if "callback_data" not in button:
        raise Refused(400, "can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    if not 1 <= len(str(button["callback_data"]).encode()) <= DATA_BYTES:
        raise Refused(400, "BUTTON_DATA_INVALID")
    return str(button["callback_data"])


def _upload(files: Files, field: str, most_bytes: int) -> tuple[str, bytes]:
    if field not in files:
        raise Refused(400, f"there is no {field} in the request")
    name, content = files[field]
    if not content:
        raise Refused(400, "file must be non-empty")
    if len(content) > most_bytes:
        raise Refused(400, f"file is too big: {len(content)} bytes, at most {most_bytes}")
    return name, content


def _check_picture(photo: bytes) -> None:
    if photo.startswith(b"\xff\xd8\xff"):
        return
    if not photo.startswith(b"\x89PNG\r\n\x1a\n"):
        raise Refused(400, "IMAGE_PROCESS_FAILED")
    width, height = int.from_bytes(photo[16:20]), int.from_bytes(photo[20:24])
    if width + height > 10_000 or max(width, height) > 20 * min(width, height):
        raise Refused(400, "PHOTO_INVALID_DIMENSIONS")

"""The npm package `telegram-test-api` 4.2.1 as a second opinion, with what it lacks mended in front of it.

Theirs are the messages, their ids and edits, the taps and the queue of updates. It answers `null` where Telegram gives the message
or True, hands out each update once and at once, counts dates in milliseconds, forgets `is_bot` and `chat_instance`, puts the token
into updates, reads no HTML, keeps a keyboard that an edit takes away, has no pictures, documents, pins and menus, and refuses
nothing. All but the last is mended here; for refusals there is `tests.telegram.fake_api` alone.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.telegram import markup
from tests.telegram.fake_api import BOT_ID, OWNER_ID, Buttons, Files, Params, Person, Seen
from tests.telegram.wire import TOKEN, Gone, Refused, Wire

PACKAGE = "telegram-test-api"
VERSION = "4.2.1"
INSTALL_S = 120
CHAT = {"id": OWNER_ID, "type": "private", "first_name": "Ada"}
BOT = {"id": BOT_ID, "is_bot": True, "first_name": "Vigil", "username": "TestNameBot"}
START = """
const Server = require(process.argv[1]);
const server = new Server({port: Number(process.argv[2]), host: "127.0.0.1", storeTimeout: 86400});
server.start().then(() => console.log("listening"));
"""


class Missing(Exception):
    """Node, npm or the registry is not there; says which."""


def installed() -> Path:
    """The package's folder, in the user's cache; installed when it is not there yet.

    Raises:
        Missing: it cannot be.
    """
    for program in ("node", "npm"):
        if not shutil.which(program):
            raise Missing(f"{program} is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vigil-tests"
    target = cache / f"{PACKAGE}-{VERSION}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _install(Path(folder) / "new")
            with suppress(OSError):  # somebody else was faster
                (Path(folder) / "new").rename(target)
    return target / "node_modules" / PACKAGE


def _install(folder: Path) -> None:
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=0", "--fetch-timeout=10000"]
    command = ["npm", "install", "--prefix", str(folder), *options, f"{PACKAGE}@{VERSION}"]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as error:
        raise Missing(f"{PACKAGE} {VERSION} could not be installed: {type(error).__name__}") from None


@contextmanager
def emulator(package: Path) -> Iterator[str]:
    """The emulator as a process of its own; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(["node", "-e", START, str(package), str(port)], stdout=subprocess.PIPE) as node:
        try:
            if not node.stdout or node.stdout.readline() != b"listening\n":
                raise RuntimeError(f"{PACKAGE} did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            node.kill()


class NpmApi(Wire):
    """The bot's and the owner's way to the emulator, which keeps the runs of different tokens apart."""

    def __init__(self, upstream: str) -> None:
        super().__init__(f"{TOKEN}{secrets.token_hex(4)}")
        self._upstream = upstream
        self._waiting: dict[int, dict[str, Any]] = {}
        self._files: dict[int, dict[str, Any]] = {}
        self.owner = Person(self, OWNER_ID, "Ada")

    def receive_message(self, sender: Person, chat_id: int, text: str | None, fields: Params) -> int:
        """See `Person.says`."""
        said = {"chat": CHAT, "from": _user(sender), "date": int(self.now()), "text": text, "botToken": self.token}
        with self.changed:
            self._ask("sendMessage", said | fields)
            self.changed.notify_all()
            return int(self._history("message")[-1]["messageId"])

    def receive_tap(self, sender: Person, message_id: int, data: str, stale: bool) -> str:
        """See `Person.taps`."""
        with self.changed:
            under = self._as_json(self._sent(message_id))
            self._ask("sendCallback", {"from": _user(sender), "message": under, "data": data, "botToken": self.token})
            self.changed.notify_all()
            return str(self._history("callbackQuery")[-1]["callbackId"])

    def transcript(self) -> tuple[Seen, ...]:
        """What the chat shows, oldest first."""
        with self.changed:
            return tuple(self._seen(kept) for kept in self._history("message"))

    def answer(self, method: str, params: Params, files: Files) -> Any:
        if method == "getMe":
            return self._bot("getMe", {}) | {"is_bot": True}
        if method == "getUpdates":
            return self._updates(int(params.get("offset", 0)), float(params.get("timeout", 0)))
        if method in ("pinChatMessage", "unpinChatMessage", "setMyCommands", "sendChatAction"):
            return True
        if method in ("sendPhoto", "sendDocument"):
            return self._send_file(params, files)
        return self._forward(method, params)

    def _forward(self, method: str, params: Params) -> Any:
        result = self._bot(method, _read(params))
        if method == "sendMessage":
            return self._as_json(self._sent(result["message_id"]))
        if method.startswith("editMessage"):
            return self._as_json(self._sent(int(params["message_id"]))) | {"edit_date": int(self.now())}
        return True if result is None else result

    def _send_file(self, params: Params, files: Files) -> Any:
        [(kind, (name, content))] = files.items()
        result = self._bot("sendMessage", _read(params | {"text": params.get("caption", "")}))
        file = {"file_id": name, "file_unique_id": name, "file_size": len(content)}
        shown = {"photo": [file | {"width": 90, "height": 90}]} if kind == "photo" else {"document": file | {"file_name": name}}
        self._files[result["message_id"]] = shown
        return self._as_json(self._sent(result["message_id"]))

    def _updates(self, offset: int, timeout_s: float) -> list[dict[str, Any]]:
        self._waiting = {number: update for number, update in self._waiting.items() if number >= offset}
        self.changed.wait_for(lambda: self._fetched() or not self.online, timeout_s)
        if not self.online:
            raise Gone
        return list(self._waiting.values())

    def _fetched(self) -> dict[int, dict[str, Any]]:
        for update in self._bot("getUpdates", {}):
            for content in update.values():
                if isinstance(content, dict):
                    content.pop("botToken", None)
            if tap := update.get("callback_query"):
                tap["chat_instance"] = "1"
            self._waiting[update["update_id"]] = update
        return self._waiting

    def _history(self, kind: str) -> list[dict[str, Any]]:
        kept = self._ask("getUpdatesHistory", {"token": self.token})["result"]
        return sorted((each for each in kept if kind in each), key=lambda each: int(each["updateId"]))

    def _sent(self, message_id: int) -> Seen:
        [found] = [each for each in self._history("message") if each["messageId"] == message_id]
        return self._seen(found)

    def _seen(self, kept: dict[str, Any]) -> Seen:
        message = kept["message"]
        rows = message.get("reply_markup", {}).get("inline_keyboard", [])
        buttons: Buttons = tuple(tuple((button["text"], button["callback_data"]) for button in row) for row in rows)
        seen = Seen(kept["messageId"], OWNER_ID, message.get("from", BOT)["id"], kept["time"] // 1000, message.get("text") or "")
        return replace(seen, entities=tuple(message.get("entities", ())), buttons=buttons)

    def _as_json(self, seen: Seen) -> dict[str, Any]:
        shown: dict[str, Any] = {"message_id": seen.message_id, "date": seen.at, "chat": CHAT, "from": BOT}
        if seen.buttons:
            rows = [[{"text": label, "callback_data": data} for label, data in row] for row in seen.buttons]
            shown["reply_markup"] = {"inline_keyboard": rows}
        if file := self._files.get(seen.message_id):
            return shown | file | {"caption": seen.text}
        return shown | {"text": seen.text, "entities": list(seen.entities)}

    def _bot(self, method: str, params: Params) -> Any:
        reply = self._ask(f"bot{self.token}/{method}", params)
        if not reply["ok"]:
            raise Refused(reply["error_code"], reply["description"].removeprefix("Bad Request: "))
        return reply["result"]

    def _ask(self, path: str, params: Params) -> Any:
        request = urllib.request.Request(
            f"{self._upstream}/{path}", json.dumps(params).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:  # its way to say that it knows no such method
            with error:
                raise Refused(404) from None


def _read(params: Params) -> Params:
    """The parameters with HTML read, numbers as numbers, and no keyboard said aloud."""
    numbers = {name: int(params[name]) for name in ("chat_id", "message_id") if name in params}
    found: Params = {"reply_markup": '{"inline_keyboard": []}'} | params | numbers
    if "text" in params:
        text, entities = (markup.parse if params.get("parse_mode") else markup.plain)(str(params["text"]))
        found |= {"text": text, "entities": entities}
    return found


def _user(person: Person) -> dict[str, Any]:
    return {"id": person.user_id, "is_bot": False, "first_name": person.name}

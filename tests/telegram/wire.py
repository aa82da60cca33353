"""An HTTP server that speaks the Bot API's dialect on a free local port, keeps a log of what was asked, and fails as it is told to.

What the methods do is somebody else's: `tests.telegram.fake_api` answers as Telegram would, `tests.telegram.npm_api` asks another
emulator. Faults happen on the wire, below both. Everything runs in threads of the calling process, under one lock, so a test looks
at the server's state directly and waits for what it expects with `wait_for`.
"""

from __future__ import annotations

import json
import random
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

TOKEN = "123456789:AAtest-not-a-secret-of-anybody-00000"
LARGEST_REQUEST_BYTES = 52 * 1024 * 1024
PAGE = b"<html><head><title>Welcome</title></head><body>Accept the terms to go online.</body></html>"
WORDS = {400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict", 429: "Too Many Requests"}


@dataclass(frozen=True)
class Fault:
    """One way to fail. Those that answer with `status` say so in Telegram's JSON, unless they bring a body of their own."""

    name: str
    status: int = 0
    """0: no answer of its own."""
    carried_out: bool = False
    """Whether the request takes effect before it goes wrong; `dataclasses.replace` makes the other kind."""
    body: bytes = b""
    description: str = ""
    retry_after_s: int = 0
    seconds: float = 0.0


UNAUTHORIZED = Fault("unauthorized", 401)
FORBIDDEN = Fault("forbidden", 403, description="Forbidden: bot was blocked by the user")
NOT_FOUND = Fault("not found", 404)
CONFLICT = Fault(
    "conflict", 409, description="Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
)
SERVER_ERROR = Fault("server error", 500, description="Internal Server Error")
BAD_GATEWAY = Fault("bad gateway", 502, body=b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n</html>\r\n")
HOTEL_PAGE = Fault("hotel page", 200, body=PAGE)
HOTEL_404 = Fault("hotel 404", 404, body=PAGE)
GARBAGE = Fault("garbage", 200, carried_out=True, body=b'{"ok": true, "result": \x00\xff{[')
STRANGE_JSON = Fault("strange json", 200, body=b'{"status": "login required"}')
TRUNCATED = Fault("truncated", carried_out=True)
LOST_REPLY = Fault("lost reply", carried_out=True)
"""Carried out; then the connection is reset. Looks like RESET from outside."""
HANG_UP = Fault("hang up", carried_out=True)
"""Carried out; then the connection is closed in good order, without an answer."""
RESET = Fault("reset")
BLACK_HOLE = Fault("black hole")
"""Accepted and never answered; ends when it is lifted or the server goes."""


def flood(retry_after_s: int) -> Fault:
    """429 for one request; `FakeApi.flood` is the one that lasts."""
    return Fault("flood", 429, description=f"Too Many Requests: retry after {retry_after_s}", retry_after_s=retry_after_s)


def slow(seconds: float) -> Fault:
    """Carried out at once; the answer comes late."""
    return Fault("slow", carried_out=True, seconds=seconds)


class Refused(Exception):
    """The request gets an error for an answer: status, description and parameters as Telegram gives them."""

    def __init__(self, status: int, description: str = "", **parameters: int) -> None:
        super().__init__(f"{WORDS[status]}: {description}" if description else WORDS[status])
        self.status = status
        self.parameters = parameters


class Gone(Exception):
    """The connection ends without an answer: the server went away meanwhile."""


@dataclass
class Call:
    """A request as it came in."""

    at: float
    """By the server's clock."""
    method: str
    params: dict[str, Any]
    files: dict[str, tuple[str, bytes]]
    """By field: file name and content."""
    outcome: str = ""
    """`ok`, the error's text, or the name of the fault; empty while it is at work."""


@dataclass
class _Rule:
    method: str
    fault: Fault
    left: int | None


@dataclass
class _Chance:
    share: float
    faults: Sequence[Fault]
    dice: random.Random = field(default_factory=random.Random)


class Wire:
    """The server. A context manager: listens within, and raises at the end what went wrong inside itself."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.changed = threading.Condition()
        self.calls: list[Call] = []
        self.online = False
        self._moved_s = 0.0
        self._rules: list[_Rule] = []
        self._chance = _Chance(0.0, ())
        self.errors: list[BaseException] = []
        self._server: _Server | None = None
        self._port = 0

    def __enter__(self) -> Self:
        self.come_back()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.go_offline()
        if self.errors and error is None:
            raise self.errors[0]

    @property
    def url(self) -> str:
        """Of the API's root; the library's `base_url` is this and `/bot`."""
        return f"http://127.0.0.1:{self._port}"

    def answer(self, method: str, params: dict[str, Any], files: dict[str, tuple[str, bytes]]) -> Any:
        """The result of one call, under the lock. Raises `Refused` or `Gone`."""
        raise NotImplementedError

    def now(self) -> float:
        """Seconds since the epoch, by the server's own clock."""
        return time.time() + self._moved_s

    def advance(self, seconds: float) -> None:
        """Move the server's clock; back, too: to the bot both look like a clock that is wrong."""
        with self.changed:
            self._moved_s += seconds
            self.changed.notify_all()

    def go_offline(self) -> None:
        """The port is closed, and every connection with it."""
        with self.changed:
            server, self._server, self.online = self._server, None, False
            self.changed.notify_all()
        if server:
            server.shutdown()
            server.server_close()
            server.cut_all()

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        self.online = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def fail(self, method: str, fault: Fault, times: int | None = 1) -> None:
        """The next `times` calls of `method` (`*`: of any) fail so; None: until `heal`."""
        with self.changed:
            self._rules.append(_Rule(method, fault, times))

    def fail_at_random(self, share: float, faults: Sequence[Fault], seed: int = 0) -> None:
        """From now on this share of all calls fails in one of these ways."""
        with self.changed:
            self._chance = _Chance(share, faults, random.Random(seed))

    def heal(self) -> None:
        """Lift every fault; a black hole that holds a connection lets go of it, unanswered."""
        with self.changed:
            self._rules.clear()
            self._chance = _Chance(0.0, ())
            self.changed.notify_all()

    def called(self, *methods: str, outcome: str = "ok") -> list[Call]:
        """The calls of these methods that ended so, oldest first."""
        with self.changed:
            return [call for call in self.calls if call.method in methods and call.outcome == outcome]

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 10.0) -> Any:
        """Wait until `condition` is true, which is asked after every call; its value.

        Raises:
            TimeoutError: it did not come true in time.
        """
        with self.changed:
            if not (found := self.changed.wait_for(condition, timeout_s)):
                raise TimeoutError(f"not so after {timeout_s:g} s; the last calls: {self.calls[-5:]}")
            return found

    def serve(self, path: str, params: dict[str, Any], files: dict[str, tuple[str, bytes]]) -> tuple[Fault | None, int, bytes]:
        """Carry out one request; the fault that it meets, and status and body of the answer."""
        _, _, rest = path.partition("/bot")
        token, _, method = rest.partition("/")
        call = Call(self.now(), method, params, files)
        with self.changed:
            if not self.online:
                raise Gone
            self.calls.append(call)
            self.changed.notify_all()
            fault = self._fault(method)
            try:
                call.outcome, status, body = self._reply(fault, token, call)
                return fault, status, body
            except BaseException as error:
                call.outcome = type(error).__name__
                raise
            finally:
                self.changed.notify_all()

    def hold(self, fault: Fault) -> None:
        """Wait as the fault asks: for its seconds, or until it is lifted."""
        with self.changed:
            self.changed.wait_for(lambda: not self._lasts(fault), fault.seconds or None)

    def _lasts(self, fault: Fault) -> bool:
        return self.online and (bool(fault.seconds) or fault.name in self._holding())

    def _holding(self) -> set[str]:
        return {rule.fault.name for rule in self._rules} | {fault.name for fault in self._chance.faults}

    def _fault(self, method: str) -> Fault | None:
        for rule in self._rules:
            if rule.method in (method, "*") and rule.left != 0:
                rule.left = None if rule.left is None else rule.left - 1
                return rule.fault
        chance = self._chance
        return chance.dice.choice(chance.faults) if chance.dice.random() < chance.share else None

    def _reply(self, fault: Fault | None, token: str, call: Call) -> tuple[str, int, bytes]:
        if fault and not fault.carried_out:
            return fault.name, fault.status, fault.body or _failure(fault)
        try:
            if not token:
                raise Refused(404)
            if token != self.token:
                raise Refused(401)
            result = self.answer(call.method, call.params, call.files)
        except Refused as error:
            reply = {"ok": False, "error_code": error.status, "description": str(error)}
            parameters = {"parameters": error.parameters} if error.parameters else {}
            return str(error), error.status, json.dumps(reply | parameters).encode()
        if fault and fault.status:
            return fault.name, fault.status, fault.body or _failure(fault)
        return fault.name if fault else "ok", 200, json.dumps({"ok": True, "result": result}).encode()


def _failure(fault: Fault) -> bytes:
    reply: dict[str, Any] = {
        "ok": False,
        "error_code": fault.status,
        "description": fault.description or WORDS.get(fault.status, ""),
    }
    if fault.retry_after_s:
        reply["parameters"] = {"retry_after": fault.retry_after_s}
    return json.dumps(reply).encode()


class _Server(ThreadingHTTPServer):
    """The sockets. Keeps the open ones, so that going offline cuts them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], wire: Wire) -> None:
        super().__init__(address, _Handler)
        self.wire = wire
        self.open: set[socket.socket] = set()

    def cut_all(self) -> None:
        for connection in tuple(self.open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        """Close at once: the standard library says good-bye first, and a reset would not be one."""
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is its own affair; what goes wrong in the server itself is kept for `Wire.__exit__`."""
        if (error := sys.exception()) and not isinstance(error, OSError | Gone):
            self.wire.errors.append(error)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def log_message(self, *_args: Any) -> None:
        """The log of calls is enough."""

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_REQUEST_BYTES:
            self.close_connection = True
            return self._send(413, b'{"ok":false,"error_code":413,"description":"Request Entity Too Large"}')
        target = urlsplit(self.path)
        params, files = decoded(self.headers, self.rfile.read(length))
        try:
            fault, status, body = self.server.wire.serve(target.path, dict(parse_qsl(target.query)) | params, files)
        except BaseException:
            self.close_connection = True
            raise
        return self._send(status, body) if fault is None else self._fail(fault, status, body)

    do_POST = do_GET  # noqa: N815  the standard library's name

    def _send(self, status: int, body: bytes, *, whole: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if body.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if whole else body[: len(body) // 2])

    def _fail(self, fault: Fault, status: int, body: bytes) -> None:
        if fault.seconds or fault.name == BLACK_HOLE.name:
            self.server.wire.hold(fault)
        if fault.name == TRUNCATED.name:
            self._send(status, body, whole=False)
        elif fault.status or fault.seconds:
            return self._send(status, body)
        elif fault.name != HANG_UP.name:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close() sends a reset
        self.close_connection = True
        return None


def decoded(headers: Message, body: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    """The parameters and files in a request's body: a form, JSON or multipart."""
    if not body:
        return {}, {}
    kind = headers.get_content_type()
    if kind == "application/json":
        return json.loads(body), {}
    if kind == "multipart/form-data":
        return _parts(body, str(headers.get_param("boundary")).encode())
    return dict(parse_qsl(body.decode(), keep_blank_values=True)), {}


def _parts(body: bytes, boundary: bytes) -> tuple[dict[str, Any], dict[str, tuple[str, bytes]]]:
    params: dict[str, Any] = {}
    files: dict[str, tuple[str, bytes]] = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        headers = Message()
        for line in head.decode().strip().splitlines():
            name, _, value = line.partition(": ")
            headers[name] = value
        name = str(headers.get_param("name", header="content-disposition"))
        content = content.removesuffix(b"\r\n")
        if (filename := headers.get_filename()) is None:
            params[name] = content.decode()
        else:
            files[name] = (filename, content)
    return params, files


class Unreachable:
    """A port whose connections are never taken: on the way to it packets vanish, so connecting takes for ever."""

    def __enter__(self) -> str:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self._waiting = [socket.socket() for _ in range(3)]  # fill the queue of those that wait to be accepted
        for client in self._waiting:
            client.setblocking(False)
            client.connect_ex(self._listener.getsockname())
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_error: object) -> None:
        for each in (*self._waiting, self._listener):
            each.close()

"""A hub on a free local port that answers huggingface_hub as huggingface.co does, and refuses as it is told to.

    with FakeHub({"owner/name": folder, "datasets/owner/speech": other}) as hub:
        environment = hub.environment(tmp_path / "hub")     # for a process that shall talk to it

The API and the headers are those of https://huggingface.co/docs/hub/api, as far as huggingface_hub 0.36 and 2.4 ask for them.
Files of `LARGE_BYTES` and more are LFS files: their ETag is their SHA-256. Runs in threads of the calling process.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 20_000
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_a_token_of_nobody"
CODES = {401: "RepoNotFound", 403: "GatedRepo", 404: "EntryNotFound", 429: ""}


@dataclass
class FakeHub:
    """See the module's description."""

    folders: Mapping[str, Path]
    gated: set[str] = field(default_factory=set)
    """Described to everybody, given to `accepted` tokens."""
    private: set[str] = field(default_factory=set)
    busy: bool = False
    """Asks everybody to wait (429)."""
    accepted: set[str] = field(default_factory=set)
    cut_after_bytes: int | None = None
    """The next large answer breaks off there."""
    hold_after_bytes: int | None = None
    """The next large answer stops there, sets `holding`, and goes no further."""
    holding: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    damage: bool = False
    """The next large file arrives with one byte changed."""
    sent: list[tuple[str, int, int]] = field(default_factory=list)
    """(path, first byte, bytes) of every large file that was asked for."""

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            owner = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """This process's environment, with this hub, a cache of its own and no token but a given one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE", "TRANSFORMERS_"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **more}


class _Handler(BaseHTTPRequestHandler):
    owner: FakeHub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _answer(self) -> None:
        address = urlsplit(self.path)
        path, deep = unquote(address.path), "recursive=false" not in address.query.lower()
        asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        api = path.startswith("/api/")
        parts = path.removeprefix("/api").removeprefix("/models").strip("/").split("/")
        words = 3 if parts[0] == "datasets" else 2
        name, rest = "/".join(parts[:words]), parts[words:]
        hub, token = self.owner, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if hub.busy:
            self._refuse(429)
        elif name not in hub.folders or (name in hub.private and token not in hub.accepted):
            self._refuse(401)
        elif api:
            self._described(name, rest, parse_qs(asked).get("paths", []), deep)
        elif name in hub.gated and token not in hub.accepted:
            self._refuse(403)
        elif (file := hub.folders[name] / "/".join(rest[2:])).is_file():
            self._file(file)
        else:
            self._refuse(404)

    def _described(self, name: str, rest: list[str], paths: list[str], deep: bool) -> None:
        if rest[:1] == ["tree"]:
            under = "".join(f"{part}/" for part in rest[2:])
            inside = [entry for entry in self._tree(name) if entry["path"].startswith(under)]
            self._json(inside if deep else _first_level(inside, under))
        elif rest[:1] == ["paths-info"]:
            self._json([entry for entry in self._tree(name) if entry["path"] in paths])
        else:
            self._json(self._info(name))

    def _refuse(self, code: int) -> None:
        self.send_response(code)
        if CODES[code]:
            self.send_header("X-Error-Code", CODES[code])
        self.send_header("X-Error-Message", "refused by the fake hub")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _files(self, name: str) -> list[tuple[str, bytes]]:
        folder = self.owner.folders[name]
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths]

    def _info(self, name: str) -> dict[str, Any]:
        siblings = [{"rfilename": path, "size": len(data)} for path, data in self._files(name)]
        return {
            "id": name,
            "sha": COMMIT,
            "siblings": siblings,
            "gated": "manual" if name in self.owner.gated else False,
            "tags": [],
        }

    def _tree(self, name: str) -> list[dict[str, Any]]:
        found = []
        for path, data in self._files(name):
            entry = {"type": "file", "path": path, "size": len(data), "oid": etag(data)}
            if len(data) >= LARGE_BYTES:
                entry["lfs"] = {"oid": etag(data), "size": len(data), "pointerSize": 130}
            found.append(entry)
        return found

    def _file(self, file: Path) -> None:
        data = file.read_bytes()
        large, mark = len(data) >= LARGE_BYTES, etag(data)
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, end = int(first), min(int(last) + 1, len(data)) if last else len(data)
        body = data[first:end]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{mark}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if large:
            body = self._spoilt(body)
            self.owner.sent.append((file.name, first, len(body)))
        self.wfile.write(body)

    def _spoilt(self, body: bytes) -> bytes:
        hub = self.owner
        if hub.damage:
            hub.damage = False
            return body[:100] + bytes([body[100] ^ 1]) + body[101:]
        if hub.cut_after_bytes is not None:
            body, hub.cut_after_bytes = body[: hub.cut_after_bytes], None
            self.close_connection = True
        if hub.hold_after_bytes is not None:
            held, hub.hold_after_bytes = hub.hold_after_bytes, None
            self.wfile.write(body[:held])
            hub.holding.set()
            hub.released.wait()
            self.close_connection = True
            return b""
        return body


def _first_level(entries: list[dict[str, Any]], under: str) -> list[dict[str, Any]]:
    """The files of a folder, and the folders in it."""
    inside = [(entry, entry["path"].removeprefix(under)) for entry in entries]
    folders = dict.fromkeys(under + rest.split("/")[0] for _entry, rest in inside if "/" in rest)
    files = [entry for entry, rest in inside if "/" not in rest]
    return [*files, *({"type": "directory", "path": path, "oid": "0", "size": 0} for path in folders)]


def etag(data: bytes) -> str:
    """SHA-256 of a large file; git's own digest of a small one."""
    if len(data) >= LARGE_BYTES:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

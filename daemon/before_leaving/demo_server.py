"""The demo's recordings behind a real HTTP server on this machine: a feed as podcasts have it, and files with ranges.

The download stage of the demo fetches from it with the same code that fetches from the internet. `Faults` makes the server
misbehave in the ways a site does; the tests of the download stage use it. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from xml.sax.saxutils import escape, quoteattr

FEED = "/feed.xml"
CLIPS = "clips.json"
NEWEST_AT = 1_750_000_000  # a fixed date, so that the feed is the same at every start
DAY_S = 86_400
BLOCK_BYTES = 1 << 14
AUDIO = frozenset({".flac", ".m4a", ".mp3", ".ogg", ".opus", ".wav", ".webm"})


@dataclass(frozen=True)
class Clip:
    """One entry of the feed, newest first."""

    id: str
    title: str
    file: Path
    duration_s: float | None = None
    captions: Path | None = None
    """A WebVTT file: the entry then leads to a page with a player and a caption track, not straight to the file."""


@dataclass(frozen=True)
class Faults:
    """What the server does wrong; keys are file names, `feed.xml` among them, or `*` for all."""

    unavailable: Mapping[str, int] = field(default_factory=dict)
    """The first so many requests are answered with 503."""
    cut: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """(bytes, times): the connection ends after so many bytes, the first so many times."""
    shortened: Mapping[str, int] = field(default_factory=dict)
    """The file ends after so many bytes, and the server believes it is whole."""
    missing: frozenset[str] = frozenset()
    """Answered with 404."""
    seconds_per_block: float = 0.0
    """A slow line: the pause after every 16 KiB."""


class ClipServer(ThreadingHTTPServer):
    """Serves clips; `requests` counts the GETs per file name, and `ranges` those that asked to go on in mid-file."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, clips: list[Clip], port: int = 0, faults: Faults | None = None) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.clips = clips
        self.faults = faults or Faults()
        self.requests: Counter[str] = Counter()
        self.ranges: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._cuts: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def feed_url(self) -> str:
        return self.url + FEED

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is not worth a traceback."""

    def refuses(self, name: str) -> bool:
        """Whether this request for `name` is one of those to answer with 503."""
        with self._lock:
            for key in (name, "*"):
                if self._refused[key] < self.faults.unavailable.get(key, 0):
                    self._refused[key] += 1
                    return True
        return False

    def cut_at(self, name: str) -> int | None:
        """After how many bytes to cut this answer, or None."""
        size_bytes, times = self.faults.cut.get(name, (0, 0))
        with self._lock:
            if self._cuts[name] >= times:
                return None
            self._cuts[name] += 1
        return size_bytes

    def feed(self) -> str:
        """The RSS feed, newest first."""
        items = "".join(self._item(clip, index) for index, clip in enumerate(self.clips))
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<rss version="2.0" xmlns:itunes="http://www.itunes.com/dtds/podcast-1.0.dtd"><channel>'
            f"<title>Demo recordings</title><link>{self.url}</link>{items}</channel></rss>\n"
        )

    def _item(self, clip: Clip, index: int) -> str:
        address = f"{self.url}/files/{quote(clip.file.name)}"
        kind = mimetypes.guess_type(clip.file.name)[0] or "audio/flac"
        lead = f"<enclosure url={quoteattr(address)} length={quoteattr(str(clip.file.stat().st_size))} type={quoteattr(kind)}/>"
        if clip.captions is not None:
            lead = f"<link>{escape(f'{self.url}/pages/{quote(clip.id)}')}</link>"
        length = "" if clip.duration_s is None else f"<itunes:duration>{round(clip.duration_s)}</itunes:duration>"
        date = formatdate(NEWEST_AT - index * DAY_S, usegmt=True)
        guid = f"<guid isPermaLink='false'>{escape(clip.id)}</guid>"
        return f"<item><title>{escape(clip.title)}</title>{guid}<pubDate>{date}</pubDate>{length}{lead}</item>"

    def page(self, clip: Clip) -> str:
        """A page with a player, and captions where the clip has some."""
        source = f"<source src={quoteattr('/files/' + quote(clip.file.name))} type='audio/flac'>"
        track = ""
        if clip.captions is not None:
            track = f"<track kind='subtitles' srclang='en' src={quoteattr('/files/' + quote(clip.captions.name))}>"
        head = f"<!doctype html><html><head><title>{escape(clip.title)}</title></head>"
        return f"{head}<body><audio>{source}{track}</audio></body></html>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ClipServer

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Nothing is logged: the stage that downloads tells what happened."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        name = path.rpartition("/")[2]
        if body:
            self.server.requests[name] += 1
        if self.server.refuses(name):
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, b"try again later", "text/plain", body=body)
        elif name in self.server.faults.missing:
            self._send(HTTPStatus.NOT_FOUND, b"no such file", "text/plain", body=body)
        elif path == FEED:
            self._send(HTTPStatus.OK, self.server.feed().encode(), "application/rss+xml; charset=utf-8", body=body)
        elif path.startswith("/pages/"):
            self._page(name, body=body)
        else:
            self._file(name, body=body)

    def _page(self, name: str, *, body: bool) -> None:
        clip = next((clip for clip in self.server.clips if clip.id == name), None)
        if clip is None:
            self._send(HTTPStatus.NOT_FOUND, b"no such page", "text/plain", body=body)
        else:
            self._send(HTTPStatus.OK, self.server.page(clip).encode(), "text/html; charset=utf-8", body=body)

    def _file(self, name: str, *, body: bool) -> None:
        """Only files that a clip names are served: a path never leads anywhere else."""
        files = {file.name: file for clip in self.server.clips for file in (clip.file, clip.captions) if file is not None}
        if name not in files:
            self._send(HTTPStatus.NOT_FOUND, b"no such file", "text/plain", body=body)
            return
        data = files[name].read_bytes()[: self.server.faults.shortened.get(name)]
        kind = "text/vtt" if name.endswith(".vtt") else mimetypes.guess_type(name)[0] or "audio/flac"
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or asked.groups() == ("", ""):
            self._send(HTTPStatus.OK, data, kind, body=body, name=name)
            return
        first, last = _range(asked[1], asked[2], len(data))
        if first > last:
            headers = {"Content-Range": f"bytes */{len(data)}"}
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", kind, body=body, headers=headers)
            return
        if first > 0 and body:
            self.server.ranges[name] += 1
        headers = {"Content-Range": f"bytes {first}-{last}/{len(data)}"}
        self._send(HTTPStatus.PARTIAL_CONTENT, data[first : last + 1], kind, body=body, headers=headers, name=name)

    def _send(
        self, status: HTTPStatus, data: bytes, kind: str, *, body: bool, headers: dict[str, str] | None = None, name: str = ""
    ) -> None:
        self.send_response(status)
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        stop = self.server.cut_at(name) if name else None
        data = data if stop is None else data[:stop]
        for start in range(0, len(data), BLOCK_BYTES):
            self.wfile.write(data[start : start + BLOCK_BYTES])
            if self.server.faults.seconds_per_block:
                time.sleep(self.server.faults.seconds_per_block)
        if stop is not None:
            self.close_connection = True


def _range(first: str, last: str, size: int) -> tuple[int, int]:
    """First and last byte asked for, inclusive; first > last where the range cannot be had (RFC 9110, section 14)."""
    if not first:
        return max(0, size - int(last)), size - 1
    return int(first), min(int(last) if last else size - 1, size - 1)


def read_clips(folder: Path) -> list[Clip]:
    """The clips of `folder`: those of its clips.json, or every sound file in it, by name.

    Raises:
        ValueError: clips.json names a file that is not there.
    """
    listing = folder / CLIPS
    if not listing.is_file():
        return [Clip(path.stem, path.stem, path) for path in sorted(folder.iterdir()) if path.suffix.lower() in AUDIO]
    clips = []
    for entry in json.loads(listing.read_text(encoding="utf-8"))["recordings"]:
        file = folder / Path(entry["file"]).name
        captions = folder / Path(entry["captions"]).name if entry.get("captions") else None
        if not file.is_file():
            raise ValueError(f"{listing} names {file.name}, which is not there")
        clips.append(Clip(entry["id"], entry["title"], file, entry.get("duration_s"), captions))
    return clips


@contextlib.contextmanager
def serve(folder: Path, port: int = 0, faults: Faults | None = None, clips: list[Clip] | None = None) -> Iterator[ClipServer]:
    """Serve the clips of `folder` on 127.0.0.1 (`port` 0: any free one) as long as the block lasts."""
    server = ClipServer(read_clips(folder) if clips is None else clips, port, faults)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="demo-server", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)

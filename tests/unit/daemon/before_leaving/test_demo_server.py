"""The demo's server: a feed, ranges, nothing but its clips, and faults on demand."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from daemon.before_leaving.demo_server import Clip, ClipServer, Faults, read_clips, serve

DEMO = Path(__file__).parents[4] / "pipelines" / "demo_audio"


def get(server: ClipServer, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes, http.client.HTTPMessage]:
    request = urllib.request.Request(server.url + path, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.flac").write_bytes(bytes(range(256)) * 200)
    (tmp_path / "secret.txt").write_text("not served")
    return tmp_path


def test_the_feed_lists_the_demos_recordings() -> None:
    """Every clip of clips.json is an item with an id, a date, a length and an address that gives the file."""
    with serve(DEMO) as server:
        _status, body, _headers = get(server, "/feed.xml")
        items = ElementTree.fromstring(body).findall("./channel/item")
        assert len(items) == len(json.loads((DEMO / "clips.json").read_text())["recordings"]) >= 4
        address = next(enclosure.attrib["url"] for item in items for enclosure in item.findall("enclosure"))
        status, sound, _headers = get(server, address.removeprefix(server.url))
        assert (status, sound[:4]) == (200, b"fLaC")
        assert len({item.findtext("guid") for item in items}) == len(items)


def test_the_feed_is_the_same_at_every_start() -> None:
    """Dates are fixed: two servers on the same port number would answer alike."""
    with serve(DEMO) as first, serve(DEMO) as second:
        assert first.feed().replace(first.url, "") == second.feed().replace(second.url, "")


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=51190-", 206, 51190, 51199),
        ("bytes=-5", 206, 51195, 51199),
        ("bytes=10-99999999", 206, 10, 51199),
    ],
)
def test_ranges(folder: Path, asked: str, status: int, first: int, last: int) -> None:
    """A download that was cut goes on where it stopped."""
    with serve(folder) as server:
        got, body, headers = get(server, "/files/a.flac", {"Range": asked})
        assert got == status
        assert body == (folder / "a.flac").read_bytes()[first : last + 1]
        assert headers["Content-Range"] == f"bytes {first}-{last}/51200"


def test_a_range_past_the_end_is_refused(folder: Path) -> None:
    """416 with the true size, as RFC 9110 has it."""
    with serve(folder) as server:
        status, _body, headers = get(server, "/files/a.flac", {"Range": "bytes=51200-"})
        assert (status, headers["Content-Range"]) == (416, "bytes */51200")


@pytest.mark.parametrize(
    "path", ["/files/secret.txt", "/files/../secret.txt", "/files/%2e%2e/secret.txt", "/", "/pages/nobody", "/etc/passwd"]
)
def test_only_clips_are_served(folder: Path, path: str) -> None:
    """No path leads to a file that is not a clip."""
    with serve(folder) as server:
        assert get(server, path)[0] == 404


def test_faults(folder: Path) -> None:
    """503 so many times, then the file; a cut line ends early; a shortened file pretends to be whole; a missing one is 404."""
    faults = Faults(unavailable={"a.flac": 2}, cut={"a.flac": (100, 1)})
    with serve(folder, faults=faults) as server:
        assert [get(server, "/files/a.flac")[0] for _ in range(2)] == [503, 503]
        with pytest.raises(http.client.IncompleteRead):
            get(server, "/files/a.flac")
        assert len(get(server, "/files/a.flac")[1]) == 51200
        assert server.requests["a.flac"] == 4
    with serve(folder, faults=Faults(shortened={"a.flac": 50})) as server:
        assert len(get(server, "/files/a.flac")[1]) == 50
    with serve(folder, faults=Faults(missing=frozenset({"a.flac"}))) as server:
        assert get(server, "/files/a.flac")[0] == 404


def test_names_are_escaped(folder: Path) -> None:
    """A title or id with marks of XML, or a path in it, stays text."""
    clips = [Clip("../../x", "<b>&\"'", folder / "a.flac")]
    with serve(folder, clips=clips) as server:
        item = ElementTree.fromstring(server.feed()).find("./channel/item")
        assert item is not None
        assert (item.findtext("title"), item.findtext("guid")) == ("<b>&\"'", "../../x")


def test_a_listing_that_names_a_missing_file(tmp_path: Path) -> None:
    """Told at the start, with the name."""
    (tmp_path / "clips.json").write_text(json.dumps({"recordings": [{"id": "a", "title": "A", "file": "a.flac"}]}))
    with pytest.raises(ValueError, match=r"names a\.flac, which is not there"):
        read_clips(tmp_path)


def test_the_port_is_free_again(folder: Path) -> None:
    """After the block the same port can be served anew."""
    with serve(folder) as server:
        port = server.server_address[1]
    with serve(folder, port=port) as again:
        assert get(again, "/files/a.flac")[0] == 200

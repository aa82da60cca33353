"""What failures of yt-dlp mean, and how a listing becomes names of ours. The downloads themselves: tests/process."""

from __future__ import annotations

import email.message
import errno
import io
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yt_dlp
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError, IncompleteRead, TransportError
from yt_dlp.utils import DownloadError, ExtractorError, UnsupportedError

from stages import download
from stages.download import Info
from stages.listing import Entry, entries
from stages.site_errors import BrokenError, CaptionError, GoneError, OfflineError, RefusedError, site_error
from state.contract import DiskFullError, StopRequested


def status(code: int) -> HTTPError:
    return HTTPError(Response(io.BytesIO(b""), "http://x/", email.message.Message(), code, "because"))


def wrapped(error: BaseException) -> DownloadError:
    """As YoutubeDL raises it: the cause inside an ExtractorError inside `exc_info`."""
    inner = ExtractorError("Unable to download webpage", cause=error)
    return DownloadError(f"ERROR: [generic] x: Unable to download webpage: {error}", (type(inner), inner, None))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (wrapped(status(404)), GoneError),
        (wrapped(status(410)), GoneError),
        (wrapped(status(403)), RefusedError),
        (wrapped(status(429)), RefusedError),
        (wrapped(status(500)), RefusedError),
        (wrapped(status(503)), RefusedError),
        (wrapped(TransportError("[Errno -3] Temporary failure in name resolution")), OfflineError),
        (wrapped(IncompleteRead(5, 10)), OfflineError),
        (wrapped(ConnectionRefusedError()), OfflineError),
        (wrapped(TimeoutError()), OfflineError),
        (UnsupportedError("http://x/"), GoneError),
        (ExtractorError("Private video", expected=True), GoneError),
        (ExtractorError("This video has been removed by the uploader", expected=True), GoneError),
        (ExtractorError("Sign in to confirm you're not a bot", expected=True), RefusedError),
        (ExtractorError("The current session has been rate-limited by YouTube", expected=True), RefusedError),
        (DownloadError("ERROR: \r[download] Got error: Downloaded 5 bytes, expected 10 bytes"), RefusedError),
        (DownloadError("ERROR: Unable to download video subtitles for 'en': HTTP Error 429"), CaptionError),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), DiskFullError),
        (OSError(errno.EDQUOT, "Quota exceeded"), DiskFullError),
        (StopRequested(), StopRequested),
        (BrokenError("x is cut short"), BrokenError),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value)[:40],
)
def test_what_a_failure_means(error: Exception, kind: type[Exception]) -> None:
    """Gone for good, refused for now, no network, or not the site's matter at all: by cause first, by text last."""
    assert type(site_error(error)) is kind


def test_a_bug_stays_a_bug() -> None:
    """An exception that says nothing of the site is not called a network failure."""
    bug = KeyError("formats")
    assert site_error(bug) is bug


def test_messages_are_one_plain_line() -> None:
    """yt-dlp's prefix, colours and advice are taken off."""
    error = ExtractorError("\x1b[0;31mPrivate\nvideo\x1b[0m", expected=True)
    assert str(site_error(error)) == "Private video"


def test_newest_first_where_all_have_a_date() -> None:
    """By time stamp; without one for each, in the order of the site."""
    listed: list[dict[str, Any]] = [
        {"id": name, "url": f"http://x/{name}", "timestamp": at} for name, at in (("a", 1), ("b", 3), ("c", 2))
    ]
    assert [entry.title for entry in entries({"entries": listed})] == ["b", "c", "a"]
    assert [entry.stem for entry in entries({"entries": listed})] == ["001_b", "002_c", "003_a"]
    listed[1]["timestamp"] = None
    assert [entry.title for entry in entries({"entries": listed})] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("entry", "stem"),
    [
        ({"url": "http://x/a.mp3", "id": "../../x"}, "001_x-"),
        ({"url": "http://x/a.mp3", "id": "-rf"}, "001_rf-"),
        ({"url": "http://x/a.mp3", "id": 7}, "001_7"),
        ({"url": "http://x/sermons/a.mp3"}, "001_a.mp3"),
        ({"url": "http://x/", "id": "%(title)s"}, "001_title_s-"),
    ],
)
def test_names_are_ours(entry: dict[str, Any], stem: str) -> None:
    """Whatever the site sends as id: our index and a cleaned name that cannot be a path, an option or a template."""
    (one,) = entries({"entries": [entry]})
    assert one.stem.startswith(stem)
    assert "/" not in one.stem
    assert "%" not in one.stem


def test_odd_answers_are_survived() -> None:
    """Empty entries, entries without an address and a lone recording instead of a list."""
    assert entries({"entries": [None, {}, {"id": "no address"}]}) == ()
    (lone,) = entries({"webpage_url": "http://x/a.mp3", "id": "a", "duration": "12.5"})
    assert (lone.url, lone.duration_s) == ("http://x/a.mp3", 12.5)
    (vague,) = entries({"entries": [{"url": "http://x/a", "id": "a", "duration": "long", "timestamp": []}]})
    assert (vague.duration_s, vague.timestamp) == (None, None)


def test_the_version_is_one_without_the_link_file_hole() -> None:
    """CVE-2026-55404 is mended since 2026.7.4 (and no link files are written anyway)."""
    assert tuple(map(int, yt_dlp.version.__version__.split(".")[:3])) >= (2026, 7, 4)


def test_only_a_whole_recording_is_had(tmp_path: Path) -> None:
    """Its info is there, and its file beside it has the size that the info says; else it is fetched again."""
    entry = Entry(index=1, stem="001_a", url="http://127.0.0.1:1/a")
    info = Info(
        id="a", title="A", url="", extractor="Generic", file="001_a.m4a", size_bytes=10, sha256="", duration=1.0, decoded_s=1.0
    )
    sound, beside = tmp_path / info.file, tmp_path / "001_a.info.json"
    assert download._had(tmp_path, entry) is None
    beside.write_bytes(msgspec.json.encode(info))
    assert download._had(tmp_path, entry) is None
    sound.write_bytes(b"0123456789")
    assert download._had(tmp_path, entry) == info
    sound.write_bytes(b"01234")
    assert download._had(tmp_path, entry) is None
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / beside.name).write_bytes(
        msgspec.json.encode(msgspec.structs.replace(info, file="../001_a.m4a", size_bytes=5))
    )
    assert download._had(tmp_path / "raw", entry) is None

"""What a failed download means: gone for good, refused for now, no network, or broken on the way. No network, no files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from yt_dlp.networking.exceptions import HTTPError, RequestError
from yt_dlp.utils import ContentTooShortError, DownloadError, ExtractorError, UnsupportedError

from stages.runtime import disk_refuses
from state.contract import DiskFullError, StageError

GONE_STATUSES = frozenset({400, 401, 402, 404, 405, 410, 415, 451})
FOR_NOW = re.compile(
    r"not a bot|rate.?limit|try again|temporar|too many requests|timed? ?out|connection|network|unavailable for legal", re.I
)
CUT = re.compile(r"bytes, expected|got error|did not get any data|giving up after", re.I)
"""yt-dlp tells of a cut line by its text alone."""
CAPTIONS = re.compile(r"download video subtitles|automatic captions", re.I)


class SiteError(Exception):
    """A recording or listing could not be had."""


class GoneError(SiteError):
    """For good: not there, private, of no known kind. Trying again is of no use."""


class RefusedError(SiteError):
    """For now: the site answered, but not with what was asked for."""


class OfflineError(SiteError):
    """No answer at all: the network, a name server, a broken line."""


class BrokenError(SiteError):
    """What came is cut short or is no audio; the next try begins anew."""


class CaptionError(SiteError):
    """Only the captions failed."""


def site_error(error: BaseException) -> Exception:
    """`error`, as yt-dlp raised it, as one of the kinds above; errors of ours, a full disk and bugs stay what they are."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, SiteError | StageError):
            return cause
        if isinstance(cause, OSError) and disk_refuses(cause):
            return DiskFullError(f"no space left to download to: {cause}")
    text = _plain(str(error))
    if CAPTIONS.search(text):
        return CaptionError(text)
    status = next((cause.status for cause in causes if isinstance(cause, HTTPError)), None)
    if status is not None:
        return GoneError(text) if status in GONE_STATUSES else RefusedError(text)
    return _without_answer(error, causes, text)


def _without_answer(error: BaseException, causes: list[BaseException], text: str) -> Exception:
    if any(isinstance(cause, UnsupportedError) for cause in causes):
        return GoneError(text)
    if any(isinstance(cause, RequestError | ContentTooShortError | ConnectionError | TimeoutError) for cause in causes):
        return OfflineError(text)
    if isinstance(error, DownloadError | ExtractorError):
        return RefusedError(text) if FOR_NOW.search(text) or CUT.search(text) else GoneError(text)
    return error if isinstance(error, Exception) else RuntimeError(text)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """`error` and everything it wraps: yt-dlp keeps causes in `exc_info`, in `cause` and in the usual places."""
    waiting: list[object] = [error]
    met: set[int] = set()
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in met:
            continue
        met.add(id(one))
        yield one
        held = getattr(one, "exc_info", None)
        waiting += [held[1] if isinstance(held, tuple) and len(held) > 1 else None, getattr(one, "cause", None)]
        waiting += [one.__cause__, one.__context__]


def _plain(text: str) -> str:
    """yt-dlp's message in one line, without its prefix, colours and advice."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("ERROR: ", "", 1)
    text = re.split(r"; please report this issue|\. Confirm you are on the latest|; see +https?://", text)[0]
    return " ".join(text.split())[:300]

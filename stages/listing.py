"""What a site lists, as values: names of our own making, newest first. Pure."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
from yt_dlp.utils import unsmuggle_url

from stages.recordings import safe_stem


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the listing."""

    index: int
    """1 is the newest."""
    stem: str
    url: str
    ie_key: str | None = None
    title: str = ""
    duration_s: float | None = None
    timestamp: float | None = None


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What the site listed, taken once."""

    url: str
    newest: int
    entries: tuple[Entry, ...]


def entries(found: dict[str, Any]) -> tuple[Entry, ...]:
    """The entries of what yt-dlp listed, newest first where all have a date, else in the site's order; one for a lone file."""
    listed = [entry for entry in found.get("entries") or [found] if entry and (entry.get("url") or entry.get("webpage_url"))]
    if all(_timestamp(entry) is not None for entry in listed):
        listed.sort(key=lambda entry: -(_timestamp(entry) or 0.0))
    return tuple(_entry(index, entry) for index, entry in enumerate(listed, start=1))


def _entry(index: int, entry: dict[str, Any]) -> Entry:
    url = str(entry.get("url") or entry["webpage_url"])
    plain, smuggled = unsmuggle_url(url, {})
    name = str(entry.get("id") or smuggled.get("force_videoid") or plain.rpartition("/")[2])
    return Entry(
        index=index,
        stem=f"{index:03d}_{safe_stem(name)}",
        url=url,
        ie_key=entry.get("ie_key"),
        title=str(entry.get("title") or name),
        duration_s=number(entry.get("duration")),
        timestamp=_timestamp(entry),
    )


def _timestamp(entry: dict[str, Any]) -> float | None:
    return number(entry.get("timestamp")) or number(entry.get("release_timestamp")) or number(entry.get("upload_date"))


def number(value: object) -> float | None:
    """`value` as a number, None where it is none."""
    with contextlib.suppress(TypeError, ValueError):
        return float(value)  # type: ignore[arg-type]  # anything may stand in a site's answer
    return None

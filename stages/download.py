"""The newest recordings of a playlist, channel or feed, by yt-dlp, into `stark_data/raw`.

Names come from our own index and the cleaned id, never from the site; what a site sends is looked at before it is taken over.
A recording is finished when its `.info.json` is there, which is written last; unfinished ones live in the scratch folder and
go on where they stopped. The listing is taken once per run, so that later attempts speak of the same recordings.

Failures: the network or the site says no -> TRANSIENT after `tries`; a recording that is gone for good, or arrives broken
time after time, is noted and the next one taken instead; an address that leads nowhere -> MISCONFIGURED.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import tenacity
import yt_dlp
from yt_dlp.networking import Response
from yt_dlp.networking.exceptions import HTTPError
from yt_dlp.utils import unsmuggle_url

from stages.listing import Entry, Listing, entries, number
from stages.recordings import (
    AUDIO_EXTENSIONS,
    CAPTION_EXTENSIONS,
    INFO_SUFFIX,
    NotAudioError,
    decoded_duration,
    decoded_fault,
    within,
)
from stages.runtime import Delivery, StageContext, run
from stages.site_errors import BrokenError, CaptionError, GoneError, OfflineError, RefusedError, SiteError, site_error
from state.contract import MisconfiguredError, TransientError
from state.durable import append_durably, file_digest, sync_folder, sync_tree, write_atomically
from state.settings import Download

T = TypeVar("T")

SPARE = 2
"""Listed per wanted recording: some are too short, private or gone."""
SPARE_LEAST = 10
LONGEST_PAUSE_S = 60.0
SOCKET_TIMEOUT_S = 30.0
MAX_ROUNDS = 3
"""Attempts of the stage in which the site refused one recording while it served others: then it is left out."""
CAPTION_LANGUAGES = ["en", "en-orig", "en-US", "en-GB"]
FORMATS = "bestaudio[ext=m4a]/bestaudio/best"
CHECK_S = 300.0


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """The `.info.json` beside a recording: what the site said of it and what arrived."""

    id: str
    title: str
    url: str
    extractor: str
    file: str
    size_bytes: int
    sha256: str
    duration: float
    """Announced by the site where it did, else as decoded; seconds."""
    decoded_s: float
    uploader: str | None = None
    upload_date: str | None = None
    captions: tuple[str, ...] = ()


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """Why a recording is not there: for good, or after `rounds` attempts."""

    reason: str
    final: bool
    rounds: int = 1


@dataclass
class Fetch:
    """What fetching needs at hand; `refusals` is kept on disk by `_remember`."""

    ctx: StageContext
    settings: Download
    raw: Path
    scratch: Path
    refusals: dict[str, Refusal]
    done: int = 0

    @property
    def refusals_file(self) -> Path:
        return self.scratch / "refusals.json"


def main(ctx: StageContext) -> Delivery:
    """Have the newest recordings in the end, or say why not."""
    settings = ctx.settings(Download)
    raw, scratch = ctx.workspace.raw_audio, ctx.scratch()
    raw.mkdir(parents=True, exist_ok=True)
    fetch = Fetch(ctx, settings, raw, scratch, _read_refusals(scratch / "refusals.json"))
    listing = _listing(fetch)
    infos: list[Info] = []
    pending: list[str] = []
    for entry in listing.entries:
        ctx.check_stop()
        if len(infos) + len(pending) >= settings.newest:
            break
        fetch.done = len(infos)
        info = _had(raw, entry)
        if info is None:
            info = _obtained(fetch, entry, pending)
        if info is not None:
            infos.append(info)
            _archive(scratch / "archive.txt", info)
            ctx.progress(len(infos), settings.newest, "recordings", message=info.title)
    _conclude(fetch, infos, pending)
    hours = sum(info.decoded_s for info in infos) / 3600
    metrics = {
        "recordings": float(len(infos)),
        "recording_hours": hours,
        "recording_bytes": float(sum(info.size_bytes for info in infos)),
        "recordings_left_out": float(sum(refusal.final for refusal in fetch.refusals.values())),
        "captions": float(sum(bool(info.captions) for info in infos)),
    }
    ctx.metric(metrics)
    summary = f"{len(infos)} of {settings.newest} recordings, {hours:.2f} h"
    return Delivery(outputs=[raw], metrics=metrics, summary=summary)


def _conclude(fetch: Fetch, infos: list[Info], pending: list[str]) -> None:
    """Raise if the stage has not got what it can get; note what it goes without."""
    left_out = [refusal.reason for refusal in fetch.refusals.values() if refusal.final]
    if pending:
        raise TransientError(f"{len(infos)} recordings are here; the site refuses {len(pending)} for now: {pending[0]}")
    if not infos:
        reasons = "; ".join(left_out) or "it lists none"
        raise MisconfiguredError(f"{fetch.settings.url} gave no recording that can be used: {reasons}")
    if len(infos) < fetch.settings.newest or left_out:
        text = f"{len(infos)} of {fetch.settings.newest} wanted recordings are here; {len(left_out)} listed ones were left out"
        fetch.ctx.note(text, "warning" if len(infos) < fetch.settings.newest else "info", reasons=left_out)


# -- the listing
def _listing(fetch: Fetch) -> Listing:
    """The listing of this run: from disk, or from the site."""
    settings, path = fetch.settings, fetch.scratch / "listing.json"
    with contextlib.suppress(OSError, msgspec.DecodeError):
        listing = msgspec.json.decode(path.read_bytes(), type=Listing)
        if (listing.url, listing.newest) == (settings.url, settings.newest):
            return listing
    fetch.ctx.quiet(settings.tries * (SOCKET_TIMEOUT_S + LONGEST_PAUSE_S), "listing")
    try:
        found = _patiently(fetch, lambda: _listed(fetch))
    except GoneError as error:
        raise MisconfiguredError(f"{settings.url} cannot be listed: {error}") from error
    listing = Listing(url=settings.url, newest=settings.newest, entries=entries(found))
    write_atomically(path, msgspec.json.format(msgspec.json.encode(listing), indent=1))
    return listing


def _listed(fetch: Fetch) -> dict[str, Any]:
    most = max(fetch.settings.newest * SPARE, fetch.settings.newest + SPARE_LEAST)
    options = {"extract_flat": True, "playlistend": most, **_common(fetch.ctx)}
    with _Site(options) as site:
        try:
            return site.sanitize_info(site.extract_info(fetch.settings.url, download=False)) or {}
        except Exception as error:  # whatever yt-dlp raises becomes a SiteError, or is raised as it is
            raise site_error(error) from error


# -- one recording
def _had(raw: Path, entry: Entry) -> Info | None:
    """The recording, if an earlier attempt finished it: its info is there, and the file is as long as it says."""
    with contextlib.suppress(OSError, msgspec.DecodeError, ValueError):
        info = msgspec.json.decode((raw / f"{entry.stem}{INFO_SUFFIX}").read_bytes(), type=Info)
        if within(raw, info.file).stat().st_size == info.size_bytes:
            return info
    return None


def _obtained(fetch: Fetch, entry: Entry, pending: list[str]) -> Info | None:
    """Fetch one recording. None: it is left out, or (then `pending` says so) the site refuses it for now."""
    known = fetch.refusals.get(entry.stem)
    if known is not None and known.final:
        return None
    short = _too_short(entry.duration_s, fetch.settings)
    if short:
        _leave_out(fetch, entry, short)
        return None
    try:
        return _patiently(fetch, lambda: _fetched(fetch, entry))
    except (GoneError, BrokenError) as error:
        _leave_out(fetch, entry, str(error))
    except RefusedError as error:
        rounds = known.rounds + 1 if known else 1
        if rounds >= MAX_ROUNDS and fetch.done:
            _leave_out(fetch, entry, f"refused in {rounds} attempts: {error}")
        else:
            _remember(fetch, entry, Refusal(reason=str(error), final=False, rounds=rounds))
            pending.append(f"{entry.title}: {error}")
    return None


def _leave_out(fetch: Fetch, entry: Entry, reason: str) -> None:
    _remember(fetch, entry, Refusal(reason=f"{entry.title}: {reason}", final=True))
    shutil.rmtree(fetch.scratch / "partial" / entry.stem, ignore_errors=True)
    fetch.ctx.note(f"recording left out: {entry.title}: {reason}", "warning", stem=entry.stem)


def _patiently(fetch: Fetch, call: Callable[[], T]) -> T:
    """`call`, tried again with growing pauses.

    Raises:
        GoneError: no use trying.
        BrokenError, RefusedError: the last of `tries` failures.
        TransientError: the last of them was that the network does not answer.
    """
    settings = fetch.settings
    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(settings.tries),
        wait=tenacity.wait_exponential(multiplier=settings.first_delay_s, max=LONGEST_PAUSE_S),
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, SiteError) and not isinstance(error, GoneError)),
        sleep=lambda seconds: _pause(fetch.ctx, seconds),
        before_sleep=lambda state: _tell(fetch.ctx, state),
        reraise=True,
    )
    try:
        return retrying(call)
    except OfflineError as error:
        raise TransientError(f"the network does not answer after {settings.tries} tries: {error}") from error


def _pause(ctx: StageContext, seconds: float) -> None:
    """Wait, looking out for a stop."""
    ctx.quiet(seconds + SOCKET_TIMEOUT_S, f"waiting {seconds:.0f} s before the next try")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ctx.check_stop()
        time.sleep(min(left, 0.2))


def _tell(ctx: StageContext, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    ctx.log.warning("download.failed", attempt=state.attempt_number, reason=str(error))


def _fetched(fetch: Fetch, entry: Entry) -> Info:
    """One try: fetch into the scratch folder, look at what came, and move it to its place."""
    folder = fetch.scratch / "partial" / entry.stem
    folder.mkdir(parents=True, exist_ok=True)
    found = _downloaded(fetch, entry, folder)
    info, path, captions = _inspected(fetch, entry, folder, found)
    sync_tree(folder)
    for caption in captions:
        os.replace(caption, within(fetch.raw, caption.name))
    os.replace(path, within(fetch.raw, info.file))
    sync_folder(fetch.raw)
    write_atomically(within(fetch.raw, f"{entry.stem}{INFO_SUFFIX}"), msgspec.json.format(msgspec.json.encode(info), indent=1))
    shutil.rmtree(folder, ignore_errors=True)
    return info


def _downloaded(fetch: Fetch, entry: Entry, folder: Path) -> dict[str, Any]:
    """Have yt-dlp put the recording, and captions where there are some, into `folder`.

    Captions are worth one request: if the site refuses them, the recording is fetched without.
    """
    for captions in (True, False) if fetch.settings.captions else (False,):
        with _Site(_options(fetch, entry, folder, captions=captions)) as site:
            try:
                found = site.sanitize_info(site.extract_info(entry.url, download=True, ie_key=entry.ie_key)) or {}
                return found["entries"][0] if found.get("entries") else found
            except Exception as error:  # whatever yt-dlp raises becomes a SiteError, or is raised as it is
                fault = site_error(error)
                if not isinstance(fault, CaptionError):
                    raise fault from error
                fetch.ctx.note(f"captions of {entry.title} left out: {fault}", stem=entry.stem)
    raise GoneError("captions only")  # not reached: the try without captions cannot fail by captions


def _inspected(fetch: Fetch, entry: Entry, folder: Path, found: dict[str, Any]) -> tuple[Info, Path, list[Path]]:
    """What came, if it is whole and of an allowed kind."""
    short = _too_short(number(found.get("duration")) or entry.duration_s, fetch.settings)
    if short:
        raise GoneError(short)
    came = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix[1:] in AUDIO_EXTENSIONS | CAPTION_EXTENSIONS)
    sounds = [path for path in came if path.suffix[1:] in AUDIO_EXTENSIONS and within(folder, path.name)]
    if len(sounds) != 1:
        shutil.rmtree(folder)
        what = found.get("ext") or "nothing"
        raise GoneError(f"the site offers no sound file of a known kind (it sent {what!s:.20})")
    fetch.ctx.quiet(CHECK_S, "checking the length")
    decoded_s = _whole(sounds[0], number(found.get("duration")) or entry.duration_s)
    short = _too_short(decoded_s, fetch.settings)
    if short:
        raise GoneError(short)
    captions = [path for path in came if path.suffix[1:] in CAPTION_EXTENSIONS]
    return _info(entry, found, sounds[0], decoded_s, captions), sounds[0], captions


def _whole(path: Path, announced_s: float | None) -> float:
    """Seconds of sound in `path`; a file that is cut short or not audio is removed, so that the next try begins anew."""
    try:
        decoded_s = decoded_duration(path)
        fault = decoded_fault(path, decoded_s, announced_s)
    except NotAudioError as error:
        fault = str(error)
    if fault:
        path.unlink()
        raise BrokenError(fault)
    return decoded_s


def _info(entry: Entry, found: dict[str, Any], path: Path, decoded_s: float, captions: list[Path]) -> Info:
    return Info(
        id=str(found.get("id") or entry.stem),
        title=entry.title or str(found.get("title") or ""),
        url=unsmuggle_url(str(found.get("webpage_url") or entry.url), {})[0],
        extractor=str(found.get("extractor_key") or "Generic"),
        file=path.name,
        size_bytes=path.stat().st_size,
        sha256=file_digest(path),
        duration=round(number(found.get("duration")) or entry.duration_s or decoded_s, 3),
        decoded_s=round(decoded_s, 3),
        uploader=found.get("uploader"),
        upload_date=found.get("upload_date"),
        captions=tuple(caption.name for caption in captions),
    )


def _too_short(duration_s: float | None, settings: Download) -> str | None:
    if duration_s is not None and duration_s < settings.min_duration_s:
        return f"{duration_s:.0f} s long, recordings under {settings.min_duration_s:.0f} s are left out"
    return None


# -- yt-dlp
class _Site(yt_dlp.YoutubeDL):
    """Leaves no connection open: yt-dlp closes an answer only where it reads it to its end."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._answers: weakref.WeakSet[Response] = weakref.WeakSet()
        super().__init__(options)

    def urlopen(self, req: Any) -> Response:
        try:
            answer = super().urlopen(req)
        except HTTPError as error:
            self._answers.add(error.response)
            raise
        self._answers.add(answer)
        return answer

    def close(self) -> None:
        for answer in self._answers:
            answer.close()
        super().close()


def _common(ctx: StageContext) -> dict[str, Any]:
    return {
        "quiet": True,
        "noprogress": True,
        "no_color": True,
        "logger": _Log(ctx),
        "socket_timeout": SOCKET_TIMEOUT_S,
        "retries": 0,  # one authority on retries: `_patiently`
        "fragment_retries": 2,
        "extractor_retries": 0,
        "file_access_retries": 0,
        "ignoreerrors": False,
        "cachedir": False,
        "enable_file_urls": False,
        "js_runtimes": {"deno": {}, "node": {}},  # YouTube's formats need one; other sites need none
    }


def _options(fetch: Fetch, entry: Entry, folder: Path, *, captions: bool) -> dict[str, Any]:
    """No postprocessor, no fix-up, no link files: nothing needs an ffmpeg program, and only our own names are written."""

    def heard(status: dict[str, Any]) -> None:
        fetch.ctx.check_stop()
        size_bytes = status.get("total_bytes") or status.get("total_bytes_estimate")
        share = min(status.get("downloaded_bytes", 0) / size_bytes, 0.99) if size_bytes else 0.0
        fetch.ctx.progress(fetch.done + share, fetch.settings.newest, "recordings", message=entry.title)

    return {
        **_common(fetch.ctx),
        "format": FORMATS,
        "paths": {"home": str(folder)},
        "outtmpl": {"default": f"{entry.stem}.%(ext)s"},
        "noplaylist": True,
        "playlist_items": "1",
        "continuedl": True,
        "updatetime": False,
        "fixup": "never",
        "writesubtitles": captions,
        "writeautomaticsub": captions,
        "subtitleslangs": CAPTION_LANGUAGES,
        "subtitlesformat": "vtt/srt/best",
        "match_filter": _refuse_live,
        "progress_hooks": [heard],
    }


def _refuse_live(info: dict[str, Any], *, incomplete: bool = False) -> str | None:
    if info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
        raise GoneError("it is a live broadcast that has not ended")
    return None


class _Log:
    """yt-dlp's messages in the stage's log."""

    def __init__(self, ctx: StageContext) -> None:
        self._ctx = ctx

    def debug(self, message: str) -> None:
        """Not kept: yt-dlp calls every line of its chatter so."""

    def info(self, message: str) -> None:
        self._ctx.log.info("site.said", text=message)

    def warning(self, message: str) -> None:
        self._ctx.log.warning("site.warned", text=message)

    def error(self, message: str) -> None:
        """Not kept: the same comes as an exception, and is told once."""


# -- what is remembered
def _read_refusals(path: Path) -> dict[str, Refusal]:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Refusal])
    return {}


def _remember(fetch: Fetch, entry: Entry, refusal: Refusal) -> None:
    fetch.refusals[entry.stem] = refusal
    write_atomically(fetch.refusals_file, msgspec.json.format(msgspec.json.encode(fetch.refusals), indent=1))


def _archive(path: Path, info: Info) -> None:
    """Note the recording in yt-dlp's own archive format, so that yt-dlp used by hand knows what is here."""
    line = f"{info.extractor.lower()} {info.id}".encode()
    if line not in (path.read_bytes().splitlines() if path.is_file() else []):
        append_durably(path, line)


if __name__ == "__main__":
    run(main)

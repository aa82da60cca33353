"""Recordings as files: safe names, which files count, what their containers promise, and their sound in blocks.

Decoding is PyAV's (FFmpeg's libraries inside a wheel), so no `ffmpeg` program is needed. Measured on 10 minutes of stereo at
44.1 kHz, CPU seconds of PyAV in grouped frames against the `ffmpeg` program: mp3 1.2 / 1.2, m4a 0.7 / 1.2, wav 0.4 / 0.8; so
there is one way and not two.

A file that was cut short decodes without a word (PyAV, ffmpeg, soundfile alike). `decoded_fault` compares what came out with
what the container, the RIFF header, the last Ogg page and the site announced. An mp3 without a Xing header or a raw AAC
stream announces nothing itself: there only the site's word can show the loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import av.error
import msgspec
import numpy as np
from numpy.typing import NDArray

RATE = 16_000
GROUP_SAMPLES = 1 << 19  # of the file's own rate, decoded before one resampling call: fewer calls are faster
AUDIO_EXTENSIONS = frozenset({"aac", "flac", "m4a", "mka", "mkv", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm"})
CAPTION_EXTENSIONS = frozenset({"srt", "ttml", "vtt"})
INFO_SUFFIX = ".info.json"
CONTAINER_SLACK_S = 0.3
"""Encoder delay and padding: a container may promise this much more than it decodes to."""
ANNOUNCED_SLACK_S = 2.0
"""Sites round to whole seconds, and re-encode."""
MAX_STEM = 80
OGG_TAIL_BYTES = 1 << 17

Waves = NDArray[np.float32]


class NotAudioError(ValueError):
    """The file cannot be read as audio."""


@dataclass(frozen=True)
class Sound:
    """What a recording's container says."""

    path: Path
    duration_s: float | None
    """As the container promises; None where it does not."""
    rate: int
    channels: int
    codec: str


def safe_stem(name: str) -> str:
    """A file stem made of `[A-Za-z0-9._-]` that starts with a letter or a digit, at most 80 characters long.

    Different names give different stems: whatever had to be changed gets eight hexadecimal digits of its SHA-256.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")
    plain = plain if re.match(r"[A-Za-z0-9]", plain) else f"r{plain}"
    if plain == name and len(plain) <= MAX_STEM:
        return plain
    return f"{plain[: MAX_STEM - 9]}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:8]}"


def shown(path: Path) -> str:
    """The name of `path` as text that can be written anywhere: what is not UTF-8 in it is replaced."""
    return path.name.encode(errors="replace").decode()


def within(folder: Path, name: str) -> Path:
    """`folder / name`, if that lies inside `folder` after all links are followed.

    Raises:
        ValueError: it leads elsewhere.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise ValueError(f"{name!r} leads outside {folder}")
    return path


def recordings(folder: Path) -> list[Path]:
    """The audio files directly in `folder`, sorted by name; hidden and unfinished ones (`.part`) are not among them."""
    files = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return sorted(path for path in files if path.suffix[1:].lower() in AUDIO_EXTENSIONS)


def stems(paths: list[Path]) -> dict[Path, str]:
    """One safe, distinct stem for each recording; `a.mp3` beside `a.wav` keep their extensions in it."""
    plain = [path.stem for path in paths]
    return {path: safe_stem(path.stem if plain.count(path.stem) == 1 else path.name) for path in paths}


def announced_duration(path: Path) -> float | None:
    """Seconds that the site announced for `path`, from the `.info.json` beside it; None where there is no readable one."""
    try:
        info = msgspec.json.decode(path.with_name(path.stem + INFO_SUFFIX).read_bytes())
        duration_s = float(info["duration"])
    except (OSError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None
    return duration_s if duration_s > 0 else None


def probe(path: Path) -> Sound:
    """What the container of `path` says.

    Raises:
        NotAudioError: empty, unreadable, or without a sound track.
    """
    if path.stat().st_size == 0:
        raise NotAudioError(f"{shown(path)} is empty (0 bytes)")
    try:
        with av.open(str(path.resolve()), mode="r", metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise NotAudioError(f"{shown(path)} has no sound track")
            stream = container.streams.audio[0]
            duration_s = container.duration / av.time_base if container.duration else None
            return Sound(path, duration_s, int(stream.rate or 0), int(stream.channels or 0), stream.codec_context.name)
    except (av.error.FFmpegError, UnicodeError) as error:
        raise NotAudioError(f"{shown(path)} is not audio that can be read ({_short(error)})") from error


def decode(path: Path, seen: Callable[[NDArray[np.floating]], None] | None = None) -> Iterator[Waves]:
    """The sound of `path` at 16 kHz in blocks of shape (channels, samples), float32 in [-1, 1], all channels kept.

    `seen` gets every block before resampling, at the file's own rate: clipping shows only there. Frames that the decoder
    refuses are passed over; `decoded_fault` finds the gap by its length.

    Raises:
        NotAudioError: nothing in it can be decoded.
    """
    try:
        with av.open(str(path.resolve()), mode="r", metadata_errors="ignore") as container:
            yield from _resampled(_grouped(_frames(container)), seen)
    except (av.error.FFmpegError, UnicodeError, IndexError) as error:
        raise NotAudioError(f"{shown(path)} is not audio that can be read ({_short(error)})") from error


def decoded_duration(path: Path) -> float:
    """Seconds of sound that `path` really holds, by decoding all of it at its own rate.

    Raises:
        NotAudioError: as `probe`.
    """
    probe(path)
    duration_s = 0.0
    try:
        with av.open(str(path.resolve()), mode="r", metadata_errors="ignore") as container:
            for frame in _frames(container):
                duration_s += frame.samples / frame.sample_rate
    except (av.error.FFmpegError, UnicodeError) as error:
        raise NotAudioError(f"{shown(path)} is not audio that can be read ({_short(error)})") from error
    return duration_s


def decoded_fault(path: Path, decoded_s: float, announced_s: float | None = None) -> str | None:
    """Why the `decoded_s` seconds that came out of `path` are not the whole recording, in one clause; None if they are."""
    if decoded_s <= 0:
        return f"{shown(path)} holds no sound"
    promised_s = probe(path).duration_s
    if promised_s is not None and decoded_s < promised_s - CONTAINER_SLACK_S:
        return f"{shown(path)} is cut short: {decoded_s:.1f} s of the {promised_s:.1f} s that its container promises"
    if announced_s is not None and decoded_s < announced_s - max(ANNOUNCED_SLACK_S, 0.01 * announced_s):
        return f"{shown(path)} is cut short: {decoded_s:.1f} s of the {announced_s:.1f} s that the site announced"
    return _torn_container(path)


def _torn_container(path: Path) -> str | None:
    """FFmpeg believes the size of a cut wav or Ogg file: look at their own end marks."""
    size_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(8)
        if head[:4] == b"RIFF":
            promised = int.from_bytes(head[4:8], "little") + 8
            if 8 < promised < 0xFFFFFFFF and size_bytes < promised:
                return f"{shown(path)} is cut short: {size_bytes} bytes of the {promised} that its header promises"
        if head[:4] == b"OggS":
            file.seek(max(0, size_bytes - OGG_TAIL_BYTES))
            if not _ogg_ends(file.read()):
                return f"{shown(path)} is cut short: its last Ogg page is not marked as the end"
    return None


def _ogg_ends(tail: bytes) -> bool:
    """Whether the last page in `tail` is whole and bears the end-of-stream mark (RFC 3533, section 6)."""
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    table = tail[start + 27 : start + 27 + tail[start + 26]]
    whole = len(table) == tail[start + 26] and len(tail) >= start + 27 + len(table) + sum(table)
    return whole and bool(tail[start + 5] & 0x04)


def _frames(container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    """Decoded frames of the first sound track, passing over packets that the decoder refuses."""
    for packet in container.demux(container.streams.audio[0]):
        with contextlib.suppress(av.error.InvalidDataError):
            yield from packet.decode()


def _grouped(frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
    """Frames joined to about GROUP_SAMPLES; a change of rate or layout in mid-file starts a new group."""
    fifo, shape = av.AudioFifo(), None
    for frame in frames:
        frame.pts = None  # gaps in the time stamps would be refused
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if fifo.samples and (fifo.samples >= GROUP_SAMPLES or now != shape):
            yield fifo.read()
        if now != shape:
            fifo, shape = av.AudioFifo(), now
        fifo.write(frame)
    if fifo.samples:
        yield fifo.read()


def _resampled(frames: Iterator[av.AudioFrame], seen: Callable[[NDArray[np.floating]], None] | None) -> Iterator[Waves]:
    resampler, shape, layout = None, None, None
    for frame in frames:
        if seen is not None:
            seen(_as_float(frame))
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if now != shape:
            yield from _flushed(resampler)
            layout = layout or frame.layout  # the channel count of the first frame holds to the end
            resampler, shape = av.AudioResampler(format="fltp", layout=layout, rate=RATE), now
        for part in resampler.resample(frame):
            yield part.to_ndarray()
    yield from _flushed(resampler)


def _flushed(resampler: av.AudioResampler | None) -> Iterator[Waves]:
    if resampler is not None:
        for part in resampler.resample(None):
            yield part.to_ndarray()


def _as_float(frame: av.AudioFrame) -> NDArray[np.floating]:
    """A frame's samples in [-1, 1], in whatever channel order; integers keep their own full scale."""
    samples = frame.to_ndarray()
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    return samples


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0].split(":")[0][:120] if str(error) else type(error).__name__

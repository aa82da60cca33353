"""Recordings as files: safe names, which files count, what their containers promise, and their sound in blocks.

Decoding is PyAV's (FFmpeg's libraries inside a wheel), so no `ffmpeg` program is needed. Measured on 10 minutes of stereo at
44.1 kHz, CPU seconds of PyAV in grouped frames against the `ffmpeg` program: mp3 1.2 / 1.2, m4a 0.7 / 1.2, wav 0.4 / 0.8; so
there is one way and not two.

A file that was cut short decodes without a word (PyAV, ffmpeg, soundfile alike). `decoded_fault` compares what came out with
what the container and the site announced, and looks for the file's own end (`stages.file_ends`).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import av.error
import msgspec
import numpy as np
from numpy.typing import NDArray

from stages.file_ends import missing_end

RATE = 16_000
GROUP_SAMPLES = 1 << 19  # of the file's own rate, decoded before one resampling call: fewer calls are faster
AUDIO_EXTENSIONS = frozenset({"aac", "flac", "m4a", "mka", "mkv", "mp3", "mp4", "oga", "ogg", "opus", "wav", "webm"})
CAPTION_EXTENSIONS = frozenset({"srt", "ttml", "vtt"})
INFO_SUFFIX = ".info.json"
CONTAINER_SLACK_S = 0.3
"""Encoder delay and padding: a container may promise this much more than it decodes to."""
EXACT_SLACK_S = 0.005
"""Where a container counts samples: resampling moves the end by some."""
ANNOUNCED_SLACK_S = 2.0
"""Sites round to whole seconds, and re-encode."""
MAX_STEM = 80
MOST_PLANES = 7

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
    exact: bool = False
    """The container counts samples."""


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
        with _opened(path) as container:
            if not container.streams.audio:
                raise NotAudioError(f"{shown(path)} has no sound track")
            stream = container.streams.audio[0]
            if stream.codec_context is None:  # an MP4 whose index is cut
                raise NotAudioError(f"{shown(path)} is not audio that can be read (its sound track names no codec)")
            exact = container.format.name == "flac"
            facts = int(stream.rate or 0), int(stream.channels or 0), stream.codec_context.name
            return Sound(path, _promised_s(container), *facts, exact)
    except (av.error.FFmpegError, UnicodeError) as error:
        raise NotAudioError(f"{shown(path)} is not audio that can be read ({_short(error)})") from error


def _opened(path: Path) -> av.container.InputContainer:
    """Open for reading; title and artist in whatever encoding are no reason to refuse a recording."""
    return av.open(str(path.resolve()), mode="r", metadata_errors="ignore")


def _promised_s(container: av.container.InputContainer) -> float | None:
    """How long the sound track lasts by its container's word; the container itself lasts as long as its longest track."""
    stream = container.streams.audio[0]
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration and not container.streams.video else None


def decode(path: Path, seen: Callable[[NDArray[np.floating]], None] | None = None) -> Iterator[Waves]:
    """The sound of `path` at 16 kHz in blocks of shape (channels, samples), float32 in [-1, 1], all channels kept.

    `seen` gets every block before resampling, in the same shape at the file's own rate: clipping shows only there. Frames that the
    decoder refuses are passed over; `decoded_fault` finds the gap by its length.

    Raises:
        NotAudioError: nothing in it can be decoded.
    """
    try:
        with _opened(path) as container:
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
        with _opened(path) as container:
            for frame in _frames(container):
                duration_s += frame.samples / frame.sample_rate
    except (av.error.FFmpegError, UnicodeError) as error:
        raise NotAudioError(f"{shown(path)} is not audio that can be read ({_short(error)})") from error
    return duration_s


def decoded_fault(path: Path, decoded_s: float, announced_s: float | None = None) -> str | None:
    """Why the `decoded_s` seconds that came out of `path` are not the whole recording, in one clause; None if they are."""
    if decoded_s <= 0:
        return f"{shown(path)} holds no sound"
    sound = probe(path)
    promised_s, slack_s = sound.duration_s, EXACT_SLACK_S if sound.exact else CONTAINER_SLACK_S
    if promised_s is not None and decoded_s < promised_s - slack_s:
        return f"{shown(path)} is cut short: {decoded_s:.1f} s of the {promised_s:.1f} s that its container promises"
    if announced_s is not None and decoded_s < announced_s - max(ANNOUNCED_SLACK_S, 0.01 * announced_s):
        return f"{shown(path)} is cut short: {decoded_s:.1f} s of the {announced_s:.1f} s that the site announced"
    framed = sound.codec.startswith(("mp3", "aac")) and announced_s is None  # a site's word is better than a frame's
    torn = missing_end(path, frames=framed)
    return f"{shown(path)} is cut short: {torn}" if torn else None


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
        if fifo.samples >= GROUP_SAMPLES or now != shape:
            yield from _emptied(fifo)
        if now != shape:
            fifo, shape = av.AudioFifo(), now
        fifo.write(frame)
    yield from _emptied(fifo)


def _emptied(fifo: av.AudioFifo) -> Iterator[av.AudioFrame]:
    frame = fifo.read()
    if frame is not None:
        yield frame


def _resampled(frames: Iterator[av.AudioFrame], seen: Callable[[NDArray[np.floating]], None] | None) -> Iterator[Waves]:
    resampler: av.AudioResampler | None = None
    shape, layout = None, None
    for frame in frames:
        if seen is not None:
            seen(_as_float(_channels(frame)))
        now = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or now != shape:
            yield from _flushed(resampler)
            layout = layout or frame.layout  # the channel count of the first frame holds to the end
            resampler, shape = av.AudioResampler(format="fltp", layout=layout, rate=RATE), now
        for part in resampler.resample(frame):
            yield _channels(part)
    yield from _flushed(resampler)


def _flushed(resampler: av.AudioResampler | None) -> Iterator[Waves]:
    if resampler is not None:
        for part in resampler.resample(None):
            yield _channels(part)


def _channels(frame: av.AudioFrame) -> NDArray[Any]:
    """A frame's samples, (channels, samples), as they are stored."""
    if frame.format.is_planar and frame.layout.nb_channels > MOST_PLANES:  # PyAV 18 reads planes beyond its list: a crash
        packing = av.AudioResampler(format=frame.format.packed, layout=frame.layout, rate=frame.sample_rate)
        parts = [*packing.resample(frame), *packing.resample(None)]
        return np.concatenate([_channels(part) for part in parts], axis=1)
    samples = frame.to_ndarray()
    return samples if frame.format.is_planar else samples.reshape(-1, frame.layout.nb_channels).T


def _as_float(samples: NDArray[Any]) -> NDArray[np.floating]:
    """Samples in [-1, 1]; integers keep their own full scale."""
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128.0) / 128.0
    if np.issubdtype(samples.dtype, np.integer):
        return samples.astype(np.float32) / float(np.iinfo(samples.dtype).max)
    return samples


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0].split(":")[0][:120] if str(error) else type(error).__name__

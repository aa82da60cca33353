"""Recordings as files: names that are safe, any format in, and a file that was cut anywhere is found out."""

from __future__ import annotations

import functools
import json
import os
import struct
import tempfile
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import recordings
from stages.recordings import RATE, NotAudioError

FORMATS = {
    # extension: (container, codec, sample format, rates)
    "wav": ("wav", "pcm_s16le", "s16", (8000, 16000, 44100, 48000)),
    "flac": ("flac", "flac", "s16", (8000, 22050, 96000)),
    "mp3": ("mp3", "libmp3lame", "s16p", (16000, 44100)),
    "m4a": ("mp4", "aac", "fltp", (22050, 48000)),
    "opus": ("ogg", "libopus", "s16", (48000,)),
    "webm": ("webm", "libopus", "s16", (48000,)),
}


@functools.cache
def encoded(
    kind: str, rate: int, channels: int, seconds: float, codec: str | None = None, layout_format: str | None = None
) -> bytes:
    """Noise-like sound of `seconds` seconds in a container, as a program of the owner's might write it."""
    container, default, default_format, _rates = FORMATS[kind]
    sample_format = layout_format or default_format
    generator = np.random.default_rng(rate + channels)
    wave = generator.normal(0, 0.1, (channels, int(seconds * rate))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"x.{kind}")
        layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
        with av.open(str(path), "w", format=container) as file:
            stream = file.add_stream(codec or default, rate=rate, layout=layout)
            stream.format = sample_format
            resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate)
            for start in range(0, wave.shape[1], rate):
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(wave[:, start : start + rate]), format="fltp", layout=layout
                )
                frame.sample_rate = rate
                for part in resampler.resample(frame):
                    file.mux(stream.encode(part))
            for part in resampler.resample(None):
                file.mux(stream.encode(part))
            file.mux(stream.encode(None))
        return path.read_bytes()


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


CASES = [(kind, rate, channels) for kind, spec in FORMATS.items() for rate in spec[3] for channels in (1, 2)]


@pytest.mark.parametrize(("kind", "rate", "channels"), CASES)
def test_any_format_comes_out_at_16_khz(tmp_path: Path, kind: str, rate: int, channels: int) -> None:
    """Every container, rate and channel count gives float32 blocks of all channels at 16 kHz, as long as the recording."""
    path = written(tmp_path, f"a.{kind}", encoded(kind, rate, channels, 2.5))
    seen: list[int] = []
    blocks = list(recordings.decode(path, lambda block: seen.append(block.size)))
    assert all(block.dtype == np.float32 and block.shape[0] == channels for block in blocks)
    seconds = sum(block.shape[1] for block in blocks) / RATE
    assert seconds == pytest.approx(2.5, abs=0.1)
    assert 0.08 < float(np.std(np.concatenate(blocks, axis=1))) * max(1.0, np.sqrt(rate / RATE)) < 0.2
    assert sum(seen) == pytest.approx(2.5 * rate * channels, rel=0.04)
    assert recordings.decoded_duration(path) == pytest.approx(seconds, abs=0.1)
    assert recordings.decoded_fault(path, seconds) is None


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_f64le"])
def test_every_sample_format_has_the_same_full_scale(tmp_path: Path, codec: str) -> None:
    """Eight to sixty-four bits, integer or float: levels agree, also in what clipping is looked for in."""
    layout_format = {"pcm_u8": "u8", "pcm_s16le": "s16", "pcm_f32le": "flt", "pcm_f64le": "dbl"}.get(codec, "s32")
    path = written(tmp_path, "a.wav", encoded("wav", 16000, 1, 1.0, codec, layout_format))
    native: list[float] = []
    out = np.concatenate(list(recordings.decode(path, lambda block: native.append(float(np.std(block))))), axis=1)
    assert float(np.std(out)) == pytest.approx(0.1, rel=0.05)
    assert native[0] == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("kind", ["wav", "flac"])
@pytest.mark.parametrize("channels", [1, 2, 6, 8])
def test_surround_sound_keeps_its_channels(tmp_path: Path, kind: str, channels: int) -> None:
    """As many channels out as in, apart, at the file's own rate too: which holds the speech is for the next pass to see."""
    levels = 0.1 * (1 + np.arange(channels)) / channels
    sound = np.random.default_rng(0).normal(0, 1, (24_000, channels)) * levels
    soundfile.write(tmp_path / f"a.{kind}", sound, 24_000)
    native: list[np.ndarray] = []
    blocks = np.concatenate(list(recordings.decode(tmp_path / f"a.{kind}", native.append)), axis=1)
    for found in (blocks, np.concatenate(native, axis=1)):
        assert np.std(found, axis=1) / levels == pytest.approx(np.full(channels, np.std(found[-1]) / levels[-1]), rel=0.05)
    assert np.concatenate(native, axis=1) == pytest.approx(sound.T, abs=1e-3)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.floats(0.0, 1.0), st.integers(1, 2000))
def test_a_file_cut_anywhere_is_found_out(kind: str, share: float, last_bytes: int) -> None:
    """Whatever container, wherever the cut, near the end too: it cannot be read, or the loss is told.

    An mp3 without a header that ends between two of its frames is a whole shorter one; only the site's word could tell.
    """
    data = encoded(kind, FORMATS[kind][3][-1], 1, 4.0)
    with tempfile.TemporaryDirectory() as folder:
        for kept in (int(share * (len(data) - 1)), len(data) - last_bytes):
            if kind == "mp3" and data[kept] == 0xFF and data[kept + 1] >= 0xE0:
                continue
            path = written(Path(folder), f"a.{kind}", data[:kept])
            try:
                fault = recordings.decoded_fault(path, recordings.decoded_duration(path))
            except NotAudioError as error:
                fault = str(error)
            assert fault is not None
            assert path.name in fault


def test_a_title_in_any_encoding_is_no_fault(tmp_path: Path) -> None:
    """Tags of old programs are not UTF-8."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(RATE), RATE)
    title = b"Adi\xf3s\x00"
    chunk = b"INFOINAM" + struct.pack("<I", len(title)) + title
    whole = path.read_bytes() + b"LIST" + struct.pack("<I", len(chunk)) + chunk
    path.write_bytes(whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:])
    with pytest.raises(UnicodeError), av.open(str(path)) as strict:
        assert strict.metadata["title"].encode("utf-8")
    assert recordings.probe(path).duration_s == pytest.approx(1.0)
    assert recordings.decoded_duration(path) == pytest.approx(1.0)


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_picture_that_lasts_longer_is_no_cut(tmp_path: Path, extension: str) -> None:
    """A film's sound may end before its picture: what counts is the sound track; a cut film is found out all the same."""
    path = tmp_path / f"a.{extension}"
    with av.open(str(path), "w") as file:
        picture, sound = file.add_stream("mpeg4", rate=10), file.add_stream("aac", rate=48_000, layout="mono")
        picture.width = picture.height = 32
        for number in range(40):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, dtype=np.uint8))
            file.mux(picture.encode(frame))
        for start in range(0, 96_000, 1024):
            wave = np.random.default_rng(start).normal(0, 0.1, (1, 1024)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48_000, start
            file.mux(sound.encode(frame))
        file.mux(sound.encode(None))
        file.mux(picture.encode(None))
    assert recordings.decoded_duration(path) == pytest.approx(2.0, abs=0.1)
    assert recordings.decoded_fault(path, recordings.decoded_duration(path)) is None
    path.write_bytes(path.read_bytes()[:-50])
    try:
        fault = recordings.decoded_fault(path, recordings.decoded_duration(path))
    except NotAudioError as error:
        fault = str(error)
    assert fault is not None


@pytest.mark.parametrize("kind", ["flac", "wav", "opus", "m4a", "webm"])
def test_the_last_tenth_missing_is_told_in_seconds_or_bytes(tmp_path: Path, kind: str) -> None:
    """The sentence names the file and says what is missing."""
    data = encoded(kind, FORMATS[kind][3][-1], 1, 4.0)
    path = written(tmp_path, f"a.{kind}", data[: int(0.9 * len(data))])
    try:
        fault = recordings.decoded_fault(path, recordings.decoded_duration(path))
    except NotAudioError as error:
        fault = str(error)
    assert fault is not None
    assert f"a.{kind} is " in fault


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.mp3", b""),
        ("text.mp3", b"This is not a sound file, whatever its name says.\n" * 50),
        ("zeros.wav", bytes(5000)),
        ("page.m4a", b"<!doctype html><html><body>Sign in to continue</body></html>"),
        ("pointer.flac", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n"),
        ("header.wav", encoded("wav", 16000, 1, 1.0)[:44]),
    ],
)
def test_what_is_no_audio_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    """Empty files, text, web pages, pointers and bare headers: one sentence with the file's name, never a crash."""
    path = written(tmp_path, name, data)
    try:
        fault = recordings.decoded_fault(path, recordings.decoded_duration(path))
    except NotAudioError as error:
        fault = str(error)
    assert fault is not None
    assert fault.startswith(name)


def test_a_damaged_middle_is_passed_over_and_told(tmp_path: Path) -> None:
    """Bytes overwritten in mid-file do not stop the decoder, and the missing seconds are seen."""
    data = bytearray(encoded("flac", 22050, 1, 4.0))
    data[len(data) // 4 : len(data) // 2] = bytes(len(data) // 4)
    path = written(tmp_path, "a.flac", bytes(data))
    seconds = recordings.decoded_duration(path)
    assert 2.0 < seconds < 3.7
    assert "cut short" in str(recordings.decoded_fault(path, seconds))


@pytest.mark.parametrize("name", [b"-rf.wav", b"a b'\"$(x).wav", b"line\nbreak.wav", b"\xff\xfe.wav", "Ñandú %03d.wav".encode()])
def test_odd_names_are_read_and_shown(tmp_path: Path, name: bytes) -> None:
    """A name that looks like an option, a pattern or is not even text is only a name."""
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(encoded("wav", 16000, 1, 1.0))
    assert recordings.decoded_duration(path) == pytest.approx(1.0)
    recordings.shown(path).encode()
    assert recordings.recordings(tmp_path) == [path]


def test_only_finished_sound_files_count(tmp_path: Path) -> None:
    """Parts, captions, notes and hidden files are no recordings; upper-case extensions are."""
    for name in ("b.MP3", "a.flac", "a.flac.part", ".hidden.wav", "a.en.vtt", "a.info.json", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    assert [path.name for path in recordings.recordings(tmp_path)] == ["a.flac", "b.MP3"]


@given(st.text(max_size=120))
def test_stems_are_safe(name: str) -> None:
    """Any text becomes a short name that starts with a letter or digit and cannot leave its folder or look like an option."""
    stem = recordings.safe_stem(name)
    assert 1 <= len(stem) <= recordings.MAX_STEM
    assert stem[0].isascii()
    assert stem[0].isalnum()
    assert set(stem) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert recordings.within(Path("/somewhere"), stem) == Path("/somewhere") / stem


@given(st.lists(st.text(max_size=100), unique=True, max_size=8))
def test_different_names_stay_different(names: list[str]) -> None:
    """Cleaning never makes one name of two."""
    assert len({recordings.safe_stem(name) for name in names}) == len(names)


def test_examples_of_stems() -> None:
    """A plain id stays what it is."""
    assert recordings.safe_stem("dQw4w9WgXcQ") == "dQw4w9WgXcQ"
    assert recordings.safe_stem("../../x").startswith("x-")
    assert recordings.safe_stem("-rf").startswith("rf-")
    assert recordings.safe_stem("").startswith("r-")
    two = recordings.stems([Path("/r/a.mp3"), Path("/r/a.wav"), Path("/r/b.wav")])
    assert list(two.values()) == ["a.mp3", "a.wav", "b"]


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ".", ""])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: str) -> None:
    """A name from outside is joined to a folder only if it stays in there, links followed."""
    with pytest.raises(ValueError, match="leads outside"):
        recordings.within(tmp_path, name)
    (tmp_path / "link").symlink_to("/")
    with pytest.raises(ValueError, match="leads outside"):
        recordings.within(tmp_path, "link/etc")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"duration": 61.5}', 61.5),
        ('{"duration": null}', None),
        ("{}", None),
        ("not json", None),
        ('{"duration": -1}', None),
        ("[]", None),
    ],
)
def test_announced_duration(tmp_path: Path, content: str, expected: float | None) -> None:
    """The site's word, or None where it gave none that makes sense."""
    (tmp_path / "a.info.json").write_text(content)
    assert recordings.announced_duration(tmp_path / "a.mp3") == expected
    assert recordings.announced_duration(tmp_path / "b.mp3") is None


def test_a_shorter_recording_than_announced_is_told(tmp_path: Path) -> None:
    """A whole file that is not the whole recording: the site said an hour, a second came."""
    path = written(tmp_path, "a.wav", encoded("wav", 16000, 1, 1.0))
    (tmp_path / "a.info.json").write_text(json.dumps({"duration": 3600}))
    fault = recordings.decoded_fault(path, 1.0, recordings.announced_duration(path))
    assert fault == "a.wav is cut short: 1.0 s of the 3600.0 s that the site announced"

"""stages.file_ends: a whole file has its end, whatever follows it; a cut one shows it."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from stages.file_ends import missing_end


def frames(container: str, codec: str, rate: int) -> bytes:
    """A second and a half of noise in frames without any header that tells its length."""
    out = io.BytesIO()
    options = {"write_xing": "0", "id3v2_version": "0"} if container == "mp3" else {}
    with av.open(out, "w", format=container, options=options) as file:
        stream = file.add_stream(codec, rate=rate, layout="mono")
        wave = np.random.default_rng(rate).normal(0, 0.1, (1, int(1.5 * rate))).astype(np.float32)
        for start in range(0, wave.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start : start + 4096]), format="fltp", layout="mono")
            frame.sample_rate = rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return out.getvalue()


KINDS = [*(("mp3", "libmp3lame", rate) for rate in (8000, 22050, 32000, 44100, 48000)), ("adts", "aac", 44100)]


@pytest.mark.parametrize(("container", "codec", "rate"), KINDS)
def test_frames_without_a_header_show_a_cut(tmp_path: Path, container: str, codec: str, rate: int) -> None:
    """A whole stream ends with a frame, or with a tag after it; one byte less, or a cut in mid-frame anywhere, is seen."""
    data, path = frames(container, codec, rate), tmp_path / "a"
    for whole in (data, data + b"TAG" + bytes(125), data + b"APETAGEX" + bytes(64), data + bytes(300)):
        path.write_bytes(whole)
        assert missing_end(path, frames=True) is None
    for lost in (1, 2, 3, 5, 50, len(data) // 2 + 1):
        path.write_bytes(data[:-lost])
        assert missing_end(path, frames=True) == "its last frame is not whole"
        assert missing_end(path, frames=False) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\xff\xfb",
        bytes(64),
        b"\xff" * 4096,
        b"\x1a\x45\xdf\xa3",
    ],
)
def test_what_says_nothing_is_no_cut(tmp_path: Path, data: bytes) -> None:
    """Bare marks and junk promise nothing: the decoder has the word on them."""
    (tmp_path / "a").write_bytes(data)
    assert missing_end(tmp_path / "a", frames=True) is None


def test_a_live_stream_ends_with_an_element(tmp_path: Path) -> None:
    """Where the segment has no size (all ones) its elements have: a block that is cut shows. A box of size 0 goes to the end."""
    data = b"\x1a\x45\xdf\xa3\x84abcd\x18\x53\x80\x67\x01" + b"\xff" * 7  # then a cluster of unknown size, and a block
    data += b"\x1f\x43\xb6\x75\xff" + b"\xa3\x40\x64" + bytes(100)
    (tmp_path / "a").write_bytes(data)
    assert missing_end(tmp_path / "a", frames=False) is None
    (tmp_path / "a").write_bytes(data[:-1])
    assert missing_end(tmp_path / "a", frames=False) == f"{len(data) - 1} bytes of the {len(data)} that its header promises"
    (tmp_path / "b").write_bytes(b"\0\0\0\x10ftypM4A \0\0\0\0" + b"\0\0\0\0mdat" + bytes(50))
    assert missing_end(tmp_path / "b", frames=False) is None

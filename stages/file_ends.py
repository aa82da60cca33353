"""Whether a file of sound has its end, by its container's own word: decoders pass over a missing tail in silence.

RIFF, MP4 and Matroska/WebM promise their size; Ogg marks its last page; an mp3 or raw AAC without a header promises nothing, but
a cut one ends in the middle of a frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

TAIL_BYTES = 1 << 17
SURE_FRAMES = 4
"""Frames of one kind in a row that are no chance."""
EBML, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
TAGS = (b"TAG", b"APETAGEX", b"ID3", b"LYRICSBEGIN", b"\0")
"""What may stand after the last frame."""
RATES = (44100, 48000, 32000)
KILOBITS = (
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG 2 and 2.5, layer III
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
)


def missing_end(path: Path, *, frames: bool) -> str | None:
    """What shows that the end of `path` is missing, as a clause; None where nothing does. `frames`: look at frames, too."""
    size_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"OggS":
            return None if _ogg_ends(_tail(file, size_bytes)) else "its last Ogg page is not marked as the end"
        promised = _promised(file, head, size_bytes)
        if size_bytes < promised:
            return f"{size_bytes} bytes of the {promised} that its header promises"
        if frames and promised == 0 and _frame_torn(_tail(file, size_bytes)):
            return "its last frame is not whole"
    return None


def _promised(file: BinaryIO, head: bytes, size_bytes: int) -> int:
    """The size in bytes that the container promises; 0 where it promises none."""
    if head[:4] == b"RIFF":
        riff = int.from_bytes(head[4:8], "little")
        return riff + 8 if 0 < riff < 0xFFFFFFFF - 8 else 0
    if head[:4] in (b"RF64", b"BW64"):
        file.seek(20)
        return int.from_bytes(file.read(8), "little") + 8
    if head[4:8] == b"ftyp":
        return _boxes_end(file, size_bytes)
    return _segment_end(file, size_bytes) if head[:4] == EBML else 0


def _tail(file: BinaryIO, size_bytes: int) -> bytes:
    file.seek(max(0, size_bytes - TAIL_BYTES))
    return file.read()


def _boxes_end(file: BinaryIO, size_bytes: int) -> int:
    """Where the last box of an MP4 file ends (ISO/IEC 14496-12, 4.2)."""
    at = 0
    while at < size_bytes:
        file.seek(at)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: to the end of the file
            return size_bytes
        at += length
    return at


def _segment_end(file: BinaryIO, size_bytes: int) -> int:
    """Where the segment of a Matroska file ends (RFC 8794, RFC 9559), or, where it does not say, its last element; 0: not known."""
    file.seek(len(EBML))
    file.seek(max(_vint(file), 0), 1)
    if file.read(4) != SEGMENT:
        return 0
    length = _vint(file)
    if length >= 0:
        return file.tell() + length
    while file.tell() < size_bytes:  # written live: from element to element, and into those of unknown length
        marker = file.read(1)[0]
        if marker < 0x10:
            return 0
        file.seek(8 - marker.bit_length(), 1)
        file.seek(max(_vint(file), 0), 1)
    return file.tell()


def _vint(file: BinaryIO) -> int:
    """A number of variable length; -1: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    more = 8 - first[0].bit_length()
    value = int.from_bytes(bytes([first[0] & (0x7F >> more)]) + file.read(more), "big")
    return -1 if value == (1 << 7 * (more + 1)) - 1 else value


def _frame_torn(tail: bytes) -> bool:
    """Whether `tail` holds frames of mp3 or ADTS and ends in the middle of one."""
    for start in range(max(0, len(tail) - 4)):
        if tail[start] != 0xFF or not _length(tail, start):
            continue
        at, count = start, 0
        while (length := _length(tail, at)) and tail[at + 1] == tail[start + 1]:
            at, count = at + length, count + 1
        if count >= SURE_FRAMES:
            return at > len(tail) or (at < len(tail) < at + 4 and not tail.startswith(TAGS, at))
    return False


def _length(data: bytes, at: int) -> int:
    """Bytes of the frame that begins at `at`: ADTS (ISO/IEC 13818-7, 6.2) or layer III (11172-3, 2.4.1.3); 0: none begins there."""
    head = data[at : at + 6]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return 0
    if head[1] & 0xF6 == 0xF0:
        return (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5 if len(head) == 6 else 0
    version, rate, bits = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if head[1] & 6 != 2 or version == 1 or rate == 3 or bits in (0, 15):
        return 0
    kilobits, hertz = KILOBITS[version == 3][bits], RATES[rate] >> (2, 0, 1, 0)[version]
    return (144 if version == 3 else 72) * kilobits * 1000 // hertz + (head[2] >> 1 & 1)


def _ogg_ends(tail: bytes) -> bool:
    """Whether the last page in `tail` is whole and bears the end-of-stream mark (RFC 3533, section 6)."""
    start = tail.rfind(b"OggS")
    if start < 0 or len(tail) < start + 27:
        return False
    table = tail[start + 27 : start + 27 + tail[start + 26]]
    whole = len(table) == tail[start + 26] and len(tail) >= start + 27 + len(table) + sum(table)
    return whole and bool(tail[start + 5] & 0x04)

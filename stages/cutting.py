"""Where to cut: speech probabilities to spans, spans to chunks. Pure; positions are samples at 16 kHz.

What `chunks` promises, for any input: chunks come in order, never overlap, lie inside the recording, are never longer than
the longest allowed length, cover every span, and are never shorter than the shortest allowed length unless the recording is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from stages.audio import FRAME, RATE, VAD_WINDOW, Powers

SPEECH_ON, SPEECH_OFF = 0.5, 0.35  # Silero's own thresholds
QUIET_FRAMES = 10
"""The quietest point is that of the quietest 100 ms: a single quiet frame may be the closure of a consonant."""

Span = tuple[int, int]
"""First sample and the one after the last."""


@dataclass(frozen=True)
class CutRules:
    """Lengths in samples."""

    shortest: int
    longest: int
    merge_gap: int
    """Spans closer than this become one chunk where it fits."""

    def __post_init__(self) -> None:
        if not 0 < 2 * self.shortest <= self.longest:
            raise ValueError(f"the longest chunk ({self.longest} samples) must be at least twice the shortest ({self.shortest})")


def speech_spans(
    probabilities: NDArray[np.float32], samples: int, *, silence_s: float = 0.3, speech_s: float = 0.25, pad_s: float = 0.2
) -> list[Span]:
    """Spans of speech in a recording of `samples` samples, from one probability per 512 samples.

    Speech begins at 0.5 and ends when the probability stays under 0.35 for `silence_s`; shorter speech than `speech_s` is
    left out; each span is widened by `pad_s`, half-way to its neighbour at most.
    """
    found: list[Span] = []
    start = quiet_since = None
    for window, probability in enumerate(probabilities.tolist()):
        at = window * VAD_WINDOW
        if probability >= SPEECH_ON:
            start, quiet_since = (at if start is None else start), None
        elif start is not None and probability < SPEECH_OFF:
            quiet_since = at if quiet_since is None else quiet_since
            if at + VAD_WINDOW - quiet_since >= silence_s * RATE:
                found.append((start, quiet_since))
                start = quiet_since = None
    if start is not None:
        found.append((start, samples))  # as with Silero's own: silence that the end cuts short is none
    return _padded([(a, min(b, samples)) for a, b in found if min(b, samples) - a >= speech_s * RATE], samples, int(pad_s * RATE))


def chunks(spans: list[Span], powers: Powers, samples: int, rules: CutRules) -> list[Span]:
    """The chunks of a recording of `samples` samples with these speech spans and 10 ms frame powers."""
    quiet = ndimage.uniform_filter1d(powers, QUIET_FRAMES) if len(powers) else powers
    pieces = [piece for span in _merged(spans, rules) for piece in _split(span, quiet, rules)]
    return _grown(pieces, quiet, samples, rules)


def speech_frames(spans: list[Span], frames: int) -> NDArray[np.bool_]:
    """Which of the 10 ms frames lie inside a span."""
    inside = np.zeros(frames, dtype=bool)
    for start, end in spans:
        inside[start // FRAME : -(-end // FRAME)] = True
    return inside


def _padded(spans: list[Span], samples: int, pad: int) -> list[Span]:
    out = []
    for index, (start, end) in enumerate(spans):
        before = (spans[index - 1][1] + start + 1) // 2 if index else 0
        after = (end + spans[index + 1][0] + 1) // 2 if index + 1 < len(spans) else samples
        out.append((max(start - pad, before), min(end + pad, after)))
    return out


def _merged(spans: list[Span], rules: CutRules) -> list[Span]:
    out: list[Span] = []
    for start, end in spans:
        if out and start - out[-1][1] <= rules.merge_gap and end - out[-1][0] <= rules.longest:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def _split(span: Span, quiet: Powers, rules: CutRules) -> list[Span]:
    """`span` in pieces no longer than the longest, cut at the quietest point of the second half of what fits."""
    start, end = span
    pieces = []
    while end - start > rules.longest:
        last = min(start + rules.longest, end - rules.shortest)
        cut = _quietest(quiet, max(start + rules.longest // 2, start + rules.shortest), last)
        pieces.append((start, cut))
        start = cut
    return [*pieces, (start, end)]


def _quietest(quiet: Powers, first: int, last: int) -> int:
    """The sample in [first, last] in the middle of the quietest frame there."""
    low, high = -(-first // FRAME), min(last // FRAME, len(quiet))
    if first > last:
        return last
    if low >= high:
        return first
    return int(np.clip((low + int(quiet[low:high].argmin())) * FRAME + FRAME // 2, first, last))


def _grown(pieces: list[Span], quiet: Powers, samples: int, rules: CutRules) -> list[Span]:
    """Pieces shorter than the shortest take silence from around them, or are joined to a neighbour where there is too little."""
    out: list[Span] = []
    waiting = list(reversed(pieces))
    while waiting:
        start, end = waiting.pop()
        lowest, highest = (out[-1][1] if out else 0), (waiting[-1][0] if waiting else samples)
        missing = rules.shortest - (end - start)
        if missing <= 0:
            out.append((start, end))
            continue
        if highest - lowest >= rules.shortest:
            begin = max(lowest, min(start - missing // 2, highest - rules.shortest))
            out.append((begin, begin + rules.shortest))
        elif waiting:
            waiting[-1] = (start, waiting[-1][1])
            waiting.extend(reversed(_split(waiting.pop(), quiet, rules)))
        elif out:
            out.extend(_split((out.pop()[0], end), quiet, rules))
        else:
            out.append((lowest, highest))  # the whole recording is shorter than that
    return out

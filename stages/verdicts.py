"""Which pseudo-labels can be trusted: pure rules over a segment's text and the decoder's own confidence.

A wrong label teaches the model its teacher's mistakes, so the rules lean to leaving out. `rejected` is text that is not what
was said (loops, phantom phrases, text where there is no speech); `doubtful` may be right, and is for a person to look at.
The thresholds on log-probability, compression and no-speech are those of Whisper's own fallback (Radford et al. 2022, 4.5).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from state.settings import Transcribe

KEPT, DOUBTFUL, REJECTED = "kept", "doubtful", "rejected"

PHANTOMS = (
    "thank you for watching",
    "thanks for watching",
    "thank you so much for watching",
    "thanks for listening to this video",
    "see you in the next video",
    "see you next time on this channel",
    "like and subscribe",
    "please subscribe",
    "subscribe to my channel",
    "subscribe to our channel",
    "subscribe to the channel",
    "hit the bell",
    "link in the description",
    "subtitles by",
    "subtitled by",
    "captions by",
    "captioned by",
    "transcribed by",
    "transcription by",
    "translated by",
    "amara org",
    "all rights reserved",
)
"""What Whisper learned from the ends of videos and says into silence and music."""

LONE_PHANTOMS = frozenset(
    {"thank you", "thanks", "you", "bye", "bye bye", "okay", "so", "the", "oh", "hmm", "music", "applause", "silence"}
)
"""Said in truth too, but not alone in a long segment."""

LONG_SEGMENT_S = 4.0
SPARSE_CHARS_PER_S = 2.0
LONGEST_LOOP = 8
WINDOW_S = 0.032
SPEECH = 0.35
"""Silero's own threshold below which speech ends; its window is 512 samples."""
WORD_SLACK_S = 0.2
"""Word times come from attention and are that good."""


class Label(msgspec.Struct, frozen=True, kw_only=True):
    """A chunk of speech and the text that a model heard in it; one line of a transcript."""

    file_name: str
    """Relative to the folder of the cleaned audio."""
    text: str
    source: str
    start_s: float
    end_s: float
    verdict: str
    reason: str = ""
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    words: tuple[tuple[str, float, float, float], ...] = ()
    """(word, start_s, end_s, probability), times within the chunk; empty unless asked for."""
    silent_words: float | None = None
    """Share of the words under which there is no speech; None: words have no times."""
    caption_error: float | None = None
    """Word error rate against the site's captions; None: there are none here."""


@dataclass(frozen=True)
class Heard:
    """What the decoder said of one segment."""

    text: str
    seconds: float
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    silent_words: float | None = None
    caption_error: float | None = None


def judge(heard: Heard, settings: Transcribe) -> tuple[str, str]:
    """The verdict and, unless it is `kept`, the reason in one or two words (they are counted)."""
    reason = _why_rejected(heard, settings)
    if reason:
        return REJECTED, reason
    reason = _why_doubtful(heard, settings)
    return (DOUBTFUL, reason) if reason else (KEPT, "")


def longest_run(text: str) -> int:
    """How often the same group of one to eight words stands in a row at most."""
    words = normal(text).split()
    best = 1 if words else 0
    for size in range(1, LONGEST_LOOP + 1):
        same = 0  # words in a row that equal the one `size` places before: a group said k times gives (k - 1) * size
        for at in range(size, len(words)):
            same = same + 1 if words[at] == words[at - size] else 0
            best = max(best, 1 + same // size)
    return best


def silent_share(words: Sequence[tuple[str, float, float, float]], speech: Sequence[float]) -> float | None:
    """Share of `words` under which no window reaches SPEECH; `speech`: a probability for every WINDOW_S of the chunk."""
    if not words:
        return None
    silent = 0
    for _word, start_s, end_s, _probability in words:
        first, last = int(max(0.0, start_s - WORD_SLACK_S) / WINDOW_S), int((end_s + WORD_SLACK_S) / WINDOW_S)
        silent += max(speech[first : last + 1], default=0.0) < SPEECH
    return silent / len(words)


def normal(text: str) -> str:
    """Lower case, letters, digits and single spaces only."""
    return " ".join(re.sub(r"[^\w]+", " ", text.lower()).split())


def _why_rejected(heard: Heard, settings: Transcribe) -> str:
    plain = normal(heard.text)
    unsure = heard.avg_logprob < settings.min_avg_logprob
    rules = (
        (not plain, "no text"),
        (any(phrase in plain for phrase in PHANTOMS), "phantom phrase"),
        (heard.compression_ratio > settings.max_compression_ratio, "repetition"),
        (longest_run(heard.text) > settings.max_repeats, "repetition"),
        (len(plain) > settings.max_chars_per_s * heard.seconds, "too much text"),
        (heard.no_speech_prob > settings.max_no_speech_prob and unsure, "no speech"),
        ((heard.silent_words or 0.0) > settings.max_silent_words, "words without speech"),
    )
    return next((reason for broken, reason in rules if broken), "")


def _why_doubtful(heard: Heard, settings: Transcribe) -> str:
    plain = normal(heard.text)
    long = heard.seconds >= LONG_SEGMENT_S
    rules = (
        (heard.avg_logprob < settings.min_avg_logprob, "low confidence"),
        (heard.no_speech_prob > settings.max_no_speech_prob, "speech uncertain"),
        ((heard.caption_error or 0.0) > settings.max_caption_error, "captions differ"),
        (long and plain in LONE_PHANTOMS, "phantom phrase"),
        (long and len(plain) < SPARSE_CHARS_PER_S * heard.seconds, "little text"),
    )
    return next((reason for broken, reason in rules if broken), "")

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
    "see you in the next one",
    "see you next time on this channel",
    "stay tuned for more videos",
    "like and subscribe",
    "comment and subscribe",
    "please subscribe",
    "subscribe to my channel",
    "subscribe to our channel",
    "subscribe to the channel",
    "hit the bell",
    "bell icon",
    "hit the like button",
    "link in the description",
    "amara org",
)
"""What Whisper learned from the ends of videos and says into silence and music."""

CREDITS = (
    "subtitles by",
    "subtitled by",
    "captions by",
    "captioned by",
    "captioning by",
    "closed captioning",
    "transcribed by",
    "transcription by",
    "transcript by",
    "translated by",
    "all rights reserved",
)
"""The same, where a sentence begins so. Within one they are said in truth: "the word translated by the King James as charity"."""

LONE_PHANTOMS = frozenset(
    {"thank you very much", "thank you so much", "thank you", "thanks", "you", "goodbye", "bye", "okay", "so", "the end", "the"}
    | {"oh", "hmm", "music", "applause", "silence", "we ll be right back"}
)
"""Said in truth too, but hardly alone, once or again and again, for so long."""

LONE_SEGMENT_S = 2.0
LONG_SEGMENT_S = 4.0
SPARSE_CHARS_PER_S = 2.0
LONGEST_LOOP = 8
WINDOW_S = 0.032
SPEECH = 0.35
"""Silero's own threshold below which speech ends; its window is 512 samples."""
WORD_SLACK_S = 0.2
"""Word times come from attention and are that good."""
_SENTENCES = re.compile(r"[.!?\n]\s+")
_SOUND_NOTE = re.compile(r"\[[^\]]*\]|\([^)]*\)|\*[^*]+\*|[\u2669-\u266c]")
"""[Music], (upbeat music), *laughs*, notes: what subtitles say of sounds."""
_ADDRESS = re.compile(r"\bwww\.|https?:|[\w-]\.(com|org|net|gov|co\.uk)\b|\u00a9", re.IGNORECASE)
"""Credits name them often, and announcements at times: for a person to decide."""


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


def phantom(text: str) -> bool:
    """Whether a phrase of PHANTOMS stands in `text`, or one of CREDITS at the head of a sentence; whole words."""
    sentences = [f"{normal(sentence)} " for sentence in _SENTENCES.split(text)]
    words = f" {normal(text)} "
    return any(f" {phrase} " in words for phrase in PHANTOMS) or any(
        sentence.startswith(f"{credit} ") for sentence in sentences for credit in CREDITS
    )


def _lone(plain: str) -> bool:
    """Whether `plain` is one of LONE_PHANTOMS, said once or more."""
    return any(not f" {plain} ".replace(f" {phrase}", "").strip() for phrase in LONE_PHANTOMS)


def _why_rejected(heard: Heard, settings: Transcribe) -> str:
    plain = normal(heard.text)
    unsure = heard.avg_logprob < settings.min_avg_logprob
    rules = (
        (not plain, "no text"),
        (not normal(_SOUND_NOTE.sub(" ", heard.text)), "sound note"),
        (phantom(heard.text), "phantom phrase"),
        (heard.compression_ratio > settings.max_compression_ratio, "repetition"),
        (longest_run(heard.text) > settings.max_repeats, "repetition"),
        (len(plain) > settings.max_chars_per_s * heard.seconds, "too much text"),
        (heard.no_speech_prob > settings.max_no_speech_prob and unsure, "no speech"),
        ((heard.silent_words or 0.0) > settings.max_silent_words, "words without speech"),
    )
    return next((reason for broken, reason in rules if broken), "")


def _why_doubtful(heard: Heard, settings: Transcribe) -> str:
    plain, long = normal(heard.text), heard.seconds >= LONG_SEGMENT_S
    rules = (
        (heard.avg_logprob < settings.min_avg_logprob, "low confidence"),
        (heard.no_speech_prob > settings.max_no_speech_prob, "speech uncertain"),
        ((heard.caption_error or 0.0) > settings.max_caption_error, "captions differ"),
        (heard.seconds >= LONE_SEGMENT_S and _lone(plain), "phantom phrase"),
        (_SOUND_NOTE.search(heard.text) is not None, "sound note"),
        (_ADDRESS.search(heard.text) is not None, "web address"),
        (long and len(plain) < SPARSE_CHARS_PER_S * heard.seconds, "little text"),
    )
    return next((reason for broken, reason in rules if broken), "")

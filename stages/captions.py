"""A site's own captions of a recording, and how far a pseudo-label differs from them.

Reads WebVTT and SubRip. YouTube's automatic captions roll: each cue repeats the line before, and words have times of their own.
Where words have none they are spread evenly over their cue, so times are good to a second or two.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.verdicts import normal

EXTENSIONS = ("vtt", "srt")
EDGE_S = 2.0
"""A caption word so near to a chunk's edge may be the neighbour's."""

_CLOCK = r"(?:\d+:)?\d\d:\d\d[.,]\d{3}"
_CUE = re.compile(rf"\s*({_CLOCK})\s+-->\s+({_CLOCK})")
_WORD_TIME = re.compile(rf"<({_CLOCK})>")
_TAG = re.compile(r"<[^>]*>")
_NO_SPEECH = re.compile(r"\[[^\]]*\]|\u266a")  # [Music], notes
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Spoken:
    """One caption word, folded as `normal` folds, and when it begins."""

    word: str
    at_s: float


def find(folder: Path, source: str, language: str) -> Path | None:
    """The captions of recording `source` in `language`: `SOURCE.vtt`, `SOURCE.en.vtt`, `SOURCE.en-orig.vtt`, ... or .srt."""
    found = []
    for path in folder.glob(f"{source}.*"):
        tag, _dot, extension = path.name[len(source) + 1 :].rpartition(".")
        if extension in EXTENSIONS and (not tag or (_LANGUAGE.fullmatch(tag) and tag.split("-")[0] == language)):
            found.append((tag != language, len(tag), EXTENSIONS.index(extension), path.name, path))
    return min(found)[-1] if found else None


def read(path: Path) -> list[Spoken]:
    """The words of a caption file in order; empty where nothing in it can be understood."""
    shown: list[str] = []
    spoken: list[Spoken] = []
    content = path.read_text(encoding="utf-8-sig", errors="replace")
    rolling = _WORD_TIME.search(content) is not None
    for start_s, end_s, lines in _cues(content):
        plain = [_plain(line) for line in lines]
        repeated = _overlap(shown, plain) if rolling else 0
        new = list(_timed(lines[repeated:], start_s, end_s))
        spoken += new
        shown = plain
    return spoken


def disagreement(text: str, captions: Sequence[Spoken], start_s: float, end_s: float) -> float | None:
    """Word edits between `text` and what the captions say from `start_s` to `end_s`, as a share of the longer one (0 to 1).

    Words within EDGE_S of either end may be left out for nothing. None: the captions do not reach here, or there is no text.
    """
    words = normal(text).split()
    if not words or not captions or start_s > captions[-1].at_s + EDGE_S or end_s < captions[0].at_s - EDGE_S:
        return None
    near = [one for one in captions if start_s - EDGE_S <= one.at_s <= end_s + EDGE_S]
    costs = [int(min(abs(one.at_s - start_s), abs(one.at_s - end_s)) > EDGE_S) for one in near]
    edits = _edits(words, [one.word for one in near], costs)
    return edits / max(len(words), sum(costs))


def _edits(words: Sequence[str], others: Sequence[str], costs: Sequence[int]) -> int:
    """Levenshtein's distance where leaving out `others[j]` costs `costs[j]`."""
    row = [0]
    for cost in costs:
        row.append(row[-1] + cost)
    for word in words:
        before, row = row, [row[0] + 1]
        for j, (other, cost) in enumerate(zip(others, costs, strict=True)):
            row.append(min(before[j] + (word != other), before[j + 1] + 1, row[j] + cost))
    return row[-1]


def _cues(content: str) -> Iterator[tuple[float, float, list[str]]]:
    times: tuple[float, float] | None = None
    lines: list[str] = []
    for line in [*content.splitlines(), ""]:
        cue = _CUE.match(line)
        if cue:
            times, lines = (_seconds(cue[1]), _seconds(cue[2])), []
        elif line:
            lines.append(line)
        elif times is not None:
            yield *times, [one for one in lines if one.strip()]
            times, lines = None, []


def _timed(lines: Sequence[str], start_s: float, end_s: float) -> Iterator[Spoken]:
    """The words of one cue; those between two times are spread evenly."""
    parts = _WORD_TIME.split(" ".join(lines))
    times = [start_s, *map(_seconds, parts[1::2]), end_s]
    for text, begin_s, until_s in zip(parts[::2], times, times[1:], strict=False):
        words = normal(_plain(text)).split()
        for number, word in enumerate(words):
            yield Spoken(word, begin_s + max(0.0, until_s - begin_s) * number / len(words))


def _plain(line: str) -> str:
    return _NO_SPEECH.sub(" ", html.unescape(_TAG.sub("", line))).strip()


def _overlap(shown: Sequence[str], lines: Sequence[str]) -> int:
    """How many of `lines` were shown already: the longest end of `shown` that `lines` begin with."""
    sizes = range(min(len(shown), len(lines)), 0, -1)
    return next((size for size in sizes if list(shown[-size:]) == list(lines[:size])), 0)


def _seconds(clock: str) -> float:
    parts = [float(part) for part in clock.replace(",", ".").split(":")]
    return sum(part * 60.0**power for power, part in enumerate(reversed(parts)))

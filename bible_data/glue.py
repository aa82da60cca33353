"""Words that lost the space between them ("forhe", "ofOlives") in a text whose edition dropped it now and then.

A word is taken apart only on evidence: the edition shows unmistakable joins (a capital inside a word), the word is in no
other text of its language, every part is a common word, and the parts stand side by side elsewhere. What does not meet
this stays as it is. Measured on the ASV of scrollmapper's commit a228a19; the other English texts show no such damage.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain, pairwise

from bible_data.books import Reference
from bible_data.words import lower_words

MIN_JOINS = 10
"""Capitals inside words before a text counts as damaged."""
MIN_WORD = 5
"""Uses of a part, over all texts of the language, for it to be a common word."""
MIN_NEIGHBOURS = 3
"""Times that two parts stand side by side, over all texts of the language."""
MAX_PARTS = 4
CLEAR = 5
"""How many times better the best way to take a word apart must be than the next."""

_WORD = re.compile(r"[^\W\d_]+")
_JOIN = re.compile(r"[a-zæ][A-Z]")
_SHORT = frozenset({"a", "i", "o", "s"})
_FUNCTION_WORDS = frozenset(
    """
    a about after again against all also am among an and any are art as at be because before but by did do every
    even for from had has hast hath have he him his how i if in is it its like me my no nor not of on or our out
    over shall she so that the thee their them then there thereof these they this thou thy to unto up upon us was
    we were what when where which who will with ye yet you your
    """.split()  # noqa: SIM905 (a list of eighty strings reads worse)
)
"""One of the parts must be among these: two full words run together ("showbread") may be a compound of the edition."""
_PREFIXES = frozenset({"a", "be", "by", "for", "in", "on", "out", "over", "so", "to", "un", "under", "up", "with"})
"""A word that begins with one of these may be a word of its own ("bewail", "avail")."""
MIN_AFTER_PREFIX = 40
"""Times that such a first part stands beside the second, before a word is taken apart there."""

Verses = Mapping[Reference, str]


def damaged(verses: Verses) -> bool:
    """Whether the text shows joins that no spelling explains."""
    return len(_JOIN.findall("\n".join(verses.values()))) >= MIN_JOINS


def repair(texts: Mapping[str, Verses]) -> dict[str, dict[Reference, str]]:
    """The verses that change, by text, of texts in one language; nothing changes where there is only one text to go by."""
    broken = {name for name, verses in texts.items() if damaged(verses)}
    if not broken or len(texts) == 1:
        return {name: {} for name in texts}
    lists = {name: list(chain.from_iterable(map(lower_words, verses.values()))) for name, verses in texts.items()}
    words = {name: Counter(found) for name, found in lists.items()}
    everywhere: Counter[str] = Counter()
    for counts in words.values():
        everywhere.update(counts)
    unknown = {
        name: {word for word in words[name] if not any(word in words[other] for other in texts if other != name)} for name in broken
    }
    strange = frozenset().union(*unknown.values())
    common = frozenset(word for word, count in everywhere.items() if count >= MIN_WORD and word not in strange)
    ways = {word: ways_apart(word, common) for word in sorted(strange)}
    together = neighbours(lists.values(), {pair for options in ways.values() for way in options for pair in pairwise(way)})
    chosen = {word: best_way(options, together) for word, options in ways.items()}
    return {name: _changed(texts[name], chosen, unknown[name]) if name in broken else {} for name in texts}


def ways_apart(word: str, common: frozenset[str]) -> list[tuple[str, ...]]:
    """Every way to write `word` as 2 to MAX_PARTS common words; one-letter parts only where English has such a word."""
    found: list[tuple[str, ...]] = []

    def extend(parts: tuple[str, ...], rest: str) -> None:
        if not rest:
            found.append(parts)
        elif len(parts) < MAX_PARTS:
            for end in range(1, len(rest) + 1):
                part = rest[:end]
                if part in common and (end > 1 or part in _SHORT):
                    extend((*parts, part), rest[end:])

    extend((), word)
    return [parts for parts in found if _plausible(parts, common)]


def _plausible(parts: tuple[str, ...], common: frozenset[str]) -> bool:
    whole = any(left + right in common for left, right in pairwise(parts))
    return len(parts) > 1 and not whole and not _FUNCTION_WORDS.isdisjoint(parts)


def neighbours(lists: Iterable[list[str]], wanted: set[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """How often each wanted pair of words stands side by side in lists of words."""
    counts: Counter[tuple[str, str]] = Counter()
    for words in lists:
        counts.update(filter(wanted.__contains__, pairwise(words)))
    return counts


def best_way(options: Iterable[tuple[str, ...]], together: Mapping[tuple[str, str], int]) -> list[str] | None:
    """The one way that the evidence clearly favours, or None."""
    scored = [(min(together.get(pair, 0) for pair in pairwise(way)), way) for way in options]
    scored.sort(key=lambda item: (-item[0], len(item[1]), item[1]))
    scored = [(times, way) for times, way in scored if times >= (MIN_AFTER_PREFIX if way[0] in _PREFIXES else MIN_NEIGHBOURS)]
    if not scored or (len(scored) > 1 and scored[0][0] < CLEAR * scored[1][0] and len(scored[0][1]) >= len(scored[1][1])):
        return None
    return list(scored[0][1])


def _changed(verses: Verses, chosen: Mapping[str, list[str] | None], unknown: set[str]) -> dict[Reference, str]:
    def replace(match: re.Match[str]) -> str:
        return _apart(match, chosen) if match.group().lower() in unknown else match.group()

    mended = {word for word in unknown if chosen[word]}
    changed = {}
    for reference, text in verses.items():
        if mended.isdisjoint(lower_words(text)):
            continue
        after = _WORD.sub(replace, text)
        if after != text:
            changed[reference] = after
    return changed


def _apart(match: re.Match[str], chosen: Mapping[str, list[str] | None]) -> str:
    """The word in parts, each with the case it had; a part "s" only right after an apostrophe, to which it belongs."""
    word = match.group()
    parts = chosen.get(word.lower())
    if parts is None:
        return word
    after_apostrophe = match.string[: match.start()].endswith("'")
    if "s" in parts[1:] or (parts[0] == "s") != after_apostrophe:
        return word
    pieces, start = [], 0
    for part in parts:
        pieces.append(word[start : start + len(part)])
        start += len(part)
    return " ".join(pieces)

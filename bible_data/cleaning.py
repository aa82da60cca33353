"""Cleaning of verse texts: what a digital edition added goes, the words stay; every rule counts what it touched.

A verse is cleaned once, here, before anything compares or pairs it. Spelling is never touched: the circumflexes of the
Reina-Valera of 1909 are its own. Words that lost the space between them are the business of `bible_data.glue`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bible_data.books import EPISTLES, Reference

_ACROSTIC = (
    *("aleph", "alef", "beth", "bet", "gimel", "ghimel", "daleth", "dalet", "he", "vau", "vav", "waw", "zain", "zayin", "cheth"),
    *("heth", "het", "teth", "tet", "jod", "yod", "yodh", "caph", "kaph", "kaf", "lamed", "lamedh", "mem", "nun", "samech"),
    *("samekh", "ain", "ayin", "pe", "tzaddi", "tsade", "tzade", "tsadhe", "coph", "koph", "qoph", "resh", "schin", "shin"),
    *("tau", "tav", "taw"),
)
_LETTERS = "|".join(sorted(_ACROSTIC, key=lambda name: (-len(name), name)))
_ACROSTIC_HEAD = re.compile(rf"\s*(?:(?:{_LETTERS.title()})\.|(?:{_LETTERS.upper()})\.?|SIN\.)\s+")
_ACROSTIC_TAIL = re.compile(r"\s+[\u05d0-\u05ea](?:\s+[A-Z]+\.?)?\s*$")

_TITLE_START_EN = re.compile(
    "|".join(
        (
            r"[\s-]*(?:To the (?:Overseer|chief Musician|choirmaster)\b",
            r"A (?:Psalm|Song|Prayer|[Tt]estimony|[Ss]ecret [Tt]reasure|song)\b(?= of|[.,]|, by| for)",
            r"An [Ii]nstruction(?= of|[.,])",
            r"By (?:David|Solomon|Asaph|[Ss]ons of Korah|a servant of Jehovah)\b",
            r"Praise by David\b",
            r"(?:Maschil|Michtam|Shiggaion) of\b",
            r"`The Erring One,'",
            r"-+`[A-Z][^']*'",
            r"`[A-Z][^`']{0,40}\.' -+A ",
            r"-+A (?:Psalm|song)\b)",
        )
    )
)
"""How a heading, or its next part, begins."""
_SENTENCE_END = re.compile(r"(?<=[.?!])['’]?\s+|(?<=and he saith:)[\s-]+")
_TITLE_WORDS_ES = re.compile(
    r"\b(?:Salmo|M[úu]sico|C[áa]ntico|Canci[óo]n|Oraci[óo]n|Masquil|Michtha?m|Sigai[óo]n|Para Salom[óo]n|hijos de Cor[ée])\b"
)
_CAPITALS = "[A-ZÁÉÍÓÚÜÑ]"
_DROP_CAPITAL = re.compile(rf"[¿¡]?(?:{_CAPITALS}{{2,}}|{_CAPITALS} {_CAPITALS}{{2,}})(?!\w)")
_WORD = re.compile(r"[^\W\d_]+")

_COLOPHON = re.compile(r"(Am[eé]n\.)\s+(?=[A-Z])[^¶]{0,160}?\b(?:[Ww]ritten|escrita|[Ee]nviada|Escrita|carta)\b.*$", re.DOTALL)
_COLOPHON_BOOKS = frozenset(EPISTLES)

_SIGNS = str.maketrans({"’": "'", "‘": "'", "`": "'"})
_TYPOGRAPHIC = re.compile("[’‘`–]")
_MARK_SIGNS = re.compile(r"[\[\]{}+*]")
_MARKS = re.compile(r"[\[\]{}+]|(?<!\*)\*(?!\*)|^\s*\d+(?=[A-Z])")
_LOOSE_STOPS = (" .", " ,", " ;", " :", " ?", " !")
_BEFORE_STOP = re.compile(r"(?<=[^\W\d_]) +(?=[.,;:?!](?:\s|$|['\")]))")
_GAP = re.compile(r"(?:^|\s)(?:\.\.\.|…)|\*\*\*")


@dataclass
class Cleaned:
    """A text after cleaning, with the number of verses that each rule changed or dropped."""

    verses: dict[Reference, str]
    changed: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def _entities(text: str, _: Reference) -> str:
    return html.unescape(text) if "&" in text else text


def _colophon(text: str, reference: Reference) -> str:
    """A note after an epistle's last Amen that says whence and by whom it was sent."""
    if reference.book not in _COLOPHON_BOOKS or "m" not in text:
        return text
    return _COLOPHON.sub(r"\1", text)


def _tags(text: str, _: Reference) -> str:
    """Drop <tags>, keep what stands between them; the editions leave a stray space inside or after some."""
    if "<" not in text:
        return text
    text = re.sub(r"(?<=-)<[^<>]*> +", "", text)
    text = re.sub(r"<[^<>]*> +(?=[-.,;:?!)'])", "", text)
    return re.sub(r"<[^<>]*>", "", text)


def _pilcrow(text: str, _: Reference) -> str:
    return text.replace("¶", " ")


def _control(text: str, _: Reference) -> str:
    """Control and format characters (zero-width, soft hyphen, BOM); tabs and line ends become spaces."""
    if text.isprintable():
        return text
    text = re.sub(r"[\t\n\r\u00a0\u2028\u2029]", " ", text)
    return "".join(sign for sign in text if unicodedata.category(sign) not in {"Cc", "Cf"})


def _nfc(text: str, _: Reference) -> str:
    return unicodedata.normalize("NFC", text)


def _acrostic(text: str, reference: Reference) -> str:
    """The Hebrew letter that heads a part of an acrostic psalm or lament."""
    if reference.book not in {"Psalms", "Lamentations"}:
        return text
    head = _ACROSTIC_HEAD.match(text)
    return _ACROSTIC_TAIL.sub("", text[head.end() :] if head else text)


def _psalm_title(text: str, reference: Reference) -> str:
    """A psalm's heading, printed inside its verse 1; the other language mostly has none."""
    if reference.book != "Psalms" or reference.verse != 1:
        return text
    capital = _DROP_CAPITAL.search(text)
    if capital and capital.start() and _TITLE_WORDS_ES.search(text, 0, capital.start()):
        return text[capital.start() :]
    if capital and text[: capital.start()].strip() == "Salmo.":
        return text[capital.start() :]
    while _TITLE_START_EN.match(text):
        end = _SENTENCE_END.search(text)
        if end is None:
            break
        text = text[end.end() :]
    return text


def _signs(text: str, _: Reference) -> str:
    """Typographic apostrophes and the en dash inside a name, as speech recognition writes them."""
    if _TYPOGRAPHIC.search(text) is None:
        return text
    return re.sub(r"(?<=\w)–(?=\w)", "-", text.translate(_SIGNS))


def _marks(text: str, _: Reference) -> str:
    """Footnote marks, brackets around supplied words, a verse number left at the start."""
    if _MARK_SIGNS.search(text) is None and not text.lstrip()[:1].isdigit():
        return text
    return _MARKS.sub("", text)


def _spaces(text: str, _: Reference) -> str:
    text = " ".join(text.split())
    if text.endswith((". .", "! .", "? .")):
        text = text[:-2]
    return _BEFORE_STOP.sub("", text) if any(stop in text for stop in _LOOSE_STOPS) else text


RULES: dict[str, Callable[[str, Reference], str]] = {
    "entities": _entities,
    "tags": _tags,
    "pilcrow": _pilcrow,
    "colophon": _colophon,
    "control": _control,
    "nfc": _nfc,
    "acrostic_letter": _acrostic,
    "psalm_title": _psalm_title,
    "signs": _signs,
    "marks": _marks,
    "spaces": _spaces,
}
"""Name -> rule, in the order in which they run."""


def clean_verse(text: str, reference: Reference) -> tuple[str, list[str]]:
    """The cleaned verse and the names of the rules that changed it. Cleaning it again changes nothing."""
    touched = []
    for name, rule in RULES.items():
        after = rule(text, reference)
        if after != text:
            touched.append(name)
            text = after
    return text, touched


def reason_to_drop(text: str) -> str | None:
    """Why a cleaned verse is of no use: `empty`, `placeholder` (no letter in it), `gap` (words missing at "..."), or None."""
    if not text:
        return "empty"
    if not any(sign.isalpha() for sign in text):
        return "placeholder"
    return "gap" if any(sign in text for sign in ("...", "…", "***")) and _GAP.search(text) else None


def clean_text(verses: Mapping[Reference, str]) -> Cleaned:
    """Clean every verse of a text; verses of no use are dropped and counted by reason."""
    cleaned = Cleaned({})
    for reference, published in verses.items():
        text, touched = clean_verse(published, reference)
        reason = reason_to_drop(text)
        if reason:
            cleaned.dropped[reason] += 1
            continue
        cleaned.changed.update(touched)
        cleaned.verses[reference] = text
    _lower_drop_capitals(cleaned)
    return cleaned


def _lower_drop_capitals(cleaned: Cleaned) -> None:
    """Undo printers' capitals ("EN el principio") where most chapters of a text begin with them."""
    first = {reference: text for reference, text in cleaned.verses.items() if reference.verse == 1}
    printed = [reference for reference, text in first.items() if _DROP_CAPITAL.match(text, _praise(text))]
    if len(printed) * 2 < max(len(first), 1):
        return
    usual = usual_case(cleaned.verses)
    for reference in printed:
        text = first[reference]
        cleaned.verses[reference] = text[: _praise(text)] + lower_capitals(text[_praise(text) :], usual)
    cleaned.changed["drop_capitals"] += len(printed)


def _praise(text: str) -> int:
    """Where a psalm's first line begins after its "Aleluya.", which is no heading but is translated."""
    return len("Aleluya. ") if text.startswith("Aleluya. ") else 0


def usual_case(verses: Mapping[Reference, str]) -> dict[str, str]:
    """Lower-case word -> how the text mostly writes it away from a chapter's start; all-capital forms do not count."""
    counts: Counter[str] = Counter()
    for reference, text in verses.items():
        if reference.verse > 1:
            counts.update(_WORD.findall(text)[1:])
    usual: dict[str, str] = {}
    for word in sorted(counts, key=lambda word: (-counts[word], word)):
        if len(word) == 1 or not word.isupper():
            usual.setdefault(word.lower(), word)
    return usual


def lower_capitals(text: str, usual: Mapping[str, str]) -> str:
    """`text` with its leading all-capital words in their usual case, the first one capitalised as a sentence begins."""
    match = re.match(rf"([¿¡]?)((?:{_CAPITALS}+ )*{_CAPITALS}+)(?!\w)", text)
    if match is None or len(match.group(2)) < 2:
        return text
    words = [usual.get(word.lower(), word.lower()) for word in match.group(2).split(" ")]
    words[0] = words[0][:1].upper() + words[0][1:]
    return match.group(1) + " ".join(words) + text[match.end() :]

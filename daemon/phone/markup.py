"""PURE: Telegram's HTML: escaping, cutting to its limits, and the few forms that every text for the phone is made of."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from daemon import words
from daemon.view import StageView
from state.pipeline import StageConfig

AGAIN_UNITS = 8
TEXT_UNITS = 4096 - AGAIN_UNITS
CAPTION_UNITS = 1024 - AGAIN_UNITS
"""Telegram's limits, in UTF-16 units of what is shown, less the mark that the outbox puts before an unsure repeat."""
COLUMNS = 40
TITLE_COLUMNS = 24
REASON_COLUMNS = 300

_PIECE = re.compile(r"<(/?)(\w+)[^>]*>|&\w+;|.", re.DOTALL)


def escaped(text: str) -> str:
    """`text` so that Telegram shows it as typed; control characters and halves of pairs, which it refuses, are taken out."""
    sound = text.encode("utf-8", "replace").decode()
    return html.escape("".join(char for char in sound if char >= " " or char in "\n\t"), quote=False)


def cut_html(markup: str, units: int) -> str:
    """`markup` cut so that at most `units` UTF-16 units are shown, the last an ellipsis; tags are closed, entities whole."""
    if words.utf16_units(words.bare(markup)) <= units:
        return markup
    kept: list[str] = []
    opened: list[str] = []
    left = units - 1
    for piece in _PIECE.finditer(markup):
        if piece[2] is None:
            left -= words.utf16_units(html.unescape(piece[0]))
            if left < 0:
                break
        elif piece[1]:
            opened.pop()
        else:
            opened.append(piece[2])
        kept.append(piece[0])
    return "".join((*kept, "…", *(f"</{tag}>" for tag in reversed(opened))))


def text(*parts: Iterable[str], units: int = TEXT_UNITS) -> str:
    """Parts of lines as one text: a blank line between parts, none for what is empty."""
    return cut_html("\n\n".join(part for part in ("\n".join(filter(None, lines)) for lines in parts) if part), units)


def bold(words_of_ours: str) -> str:
    """Escaped and bold."""
    return f"<b>{escaped(words_of_ours)}</b>"


def title(stage: StageView | StageConfig) -> str:
    """A stage's title, short enough for a line; not escaped."""
    config = stage.config if isinstance(stage, StageView) else stage
    return words.clip(config.title or config.name, TITLE_COLUMNS)


def wraps(said: str) -> str:
    """What somebody else said: on one line that may wrap, not for ever."""
    return escaped(words.clip(said, REASON_COLUMNS))


def sentence(said: str) -> str:
    """As `_wraps`, with a capital."""
    return wraps(said[:1].upper() + said[1:])


def line(ours: str) -> str:
    """A line of our own that may hold what others said: 40 columns."""
    return escaped(words.clip(ours, COLUMNS))

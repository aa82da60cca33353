"""Telegram's HTML, read as strictly as Telegram reads it: https://core.telegram.org/bots/api#html-style.

Stricter in one thing: a named entity that Telegram does not know (`&nbsp;`) would arrive as typed; here it is refused, since nobody
means that. A bare `&` is fine there and here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.telegram.wire import Refused

MOST_ENTITIES = 100
TYPES = {
    "b": "bold", "strong": "bold", "i": "italic", "em": "italic", "u": "underline", "ins": "underline", "s": "strikethrough",
    "strike": "strikethrough", "del": "strikethrough", "tg-spoiler": "spoiler", "span": "spoiler", "a": "text_link", "code": "code",
    "pre": "pre", "blockquote": "blockquote",
}  # fmt: skip
NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}
_VALUE = r"""(?:"[^"]*"|'[^']*'|[\w.-]+)"""
_TOKEN = re.compile(
    rf"<(?P<end>/?)(?P<tag>[^\s<>/]*)(?P<rest>(?:\s+[\w-]+(?:\s*=\s*{_VALUE})?)*)\s*>"
    r"|&(?:#(?P<number>\d+|[xX][0-9a-fA-F]+)|(?P<name>[a-zA-Z]+));?"
    r"|(?P<stray><)"
)
_ATTRIBUTE = re.compile(rf"([\w-]+)\s*=\s*({_VALUE})")


@dataclass(frozen=True)
class _Open:
    tag: str
    offset: int
    attributes: dict[str, str]


def units(text: str) -> int:
    """Length as Telegram counts it: in UTF-16 code units."""
    return len(text.encode("utf-16-le")) // 2


def parse(html: str) -> tuple[str, list[dict[str, Any]]]:
    """The text that arrives and its entities.

    Raises:
        Refused: an unknown, unclosed or wrongly nested tag, or a named entity that Telegram does not know.
    """
    text, entities, stack, position = "", list[dict[str, Any]](), list[_Open](), 0
    for token in _TOKEN.finditer(html):
        text += html[position : token.start()]
        position = token.end()
        at = f"at byte offset {len(html[: token.start()].encode())}"
        if token["stray"]:
            raise _bad(f'Unsupported start tag "{html[position:].split(" ")[0].split(">")[0]}" {at}')
        if token["tag"] is None:
            text += _character(token, at)
        elif token["end"]:
            entities += _closed(stack, token["tag"].lower(), units(text), at)
        else:
            stack.append(_opened(token, units(text), at))
    if stack:
        raise _bad(f'Can\'t find end tag corresponding to start tag "{stack[-1].tag}"')
    return _trimmed(text + html[position:], sorted(entities, key=lambda entity: (entity["offset"], -entity["length"])))


def plain(text: str) -> tuple[str, list[dict[str, Any]]]:
    """A text without markup, as it arrives."""
    return _trimmed(text, [])


def _bad(why: str) -> Refused:
    return Refused(400, f"can't parse entities: {why}")


def _character(token: re.Match[str], at: str) -> str:
    if number := token["number"]:
        return chr(int(number[1:], 16) if number[0] in "xX" else int(number))
    if token["name"] in NAMED:
        return NAMED[token["name"]]
    if token[0].endswith(";"):
        raise _bad(f'Unknown entity "{token[0]}" {at} (Telegram would show it as typed)')
    return token[0]


def _opened(token: re.Match[str], offset: int, at: str) -> _Open:
    tag = token["tag"].lower()
    attributes = {name: value.strip("\"'") for name, value in _ATTRIBUTE.findall(token["rest"])}
    if tag not in TYPES:
        raise _bad(f'Unsupported start tag "{tag}" {at}')
    if tag == "span" and attributes.get("class") != "tg-spoiler":
        raise _bad(f'Tag "span" must have class "tg-spoiler" {at}')
    return _Open(tag, offset, attributes)


def _closed(stack: list[_Open], tag: str, end: int, at: str) -> list[dict[str, Any]]:
    if not stack:
        raise _bad(f"Unexpected end tag {at}")
    if stack[-1].tag != tag:
        raise _bad(f'Unmatched end tag {at}, expected "</{stack[-1].tag}>", found "</{tag}>"')
    opened = stack.pop()
    if end == opened.offset:
        return []
    entity = {"type": TYPES[tag], "offset": opened.offset, "length": end - opened.offset}
    return [entity | ({"url": opened.attributes.get("href", "")} if tag == "a" else {})]


def _trimmed(text: str, entities: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Without the white space at both ends, which Telegram cuts, and without what lies beyond the hundredth entity."""
    kept = text.strip()
    cut, length = units(text) - units(text.lstrip()), units(kept)
    moved = []
    for entity in entities:
        start = max(0, entity["offset"] - cut)
        end = min(length, entity["offset"] + entity["length"] - cut)
        if start < end:
            moved.append(entity | {"offset": start, "length": end - start})
    return kept, moved[:MOST_ENTITIES]

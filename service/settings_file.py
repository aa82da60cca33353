"""Lays settings over wsl.conf and .wslconfig, and leaves every other byte as it was: comments, order, line ends, encoding.

Both files are read by WSL's own parser, for which names of sections and keys have no case, `#` begins a comment and a backslash at
the end of a line continues it. Where a key stands twice, WSL's versions differ on which one counts; so all of them are set.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass

_SECTION = re.compile(r"\s*\[\s*([^\]]*?)\s*\]")
_KEY = re.compile(r"(?P<head>\s*(?P<key>[\w.]+)\s*=[ \t]*)(?P<value>[^#]*?)(?P<tail>\s*(?:#.*)?)")
_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_BYTE_ORDER_MARKS = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be", codecs.BOM_UTF8: "utf-8"}


class SettingsFileError(Exception):
    """The file is no text that WSL could read; the message says why, the caller names the file."""


@dataclass(frozen=True)
class Setting:
    """One wanted setting. `also` are values of the owner that are as good; with "*" any value is."""

    section: str
    key: str
    value: str
    also: tuple[str, ...] = ()

    def accepts(self, value: str) -> bool:
        """Whether `value` may stay."""
        plain = value.strip().strip('"').lower()
        return plain == self.value.lower() or plain in self.also or ("*" in self.also and plain != "")

    def __str__(self) -> str:
        return f"[{self.section}] {self.key}={self.value}"


def merge(data: bytes, settings: Sequence[Setting]) -> bytes:
    """`data` with `settings` in effect; `data` itself when they are already.

    Raises:
        SettingsFileError: `data` is no text.
    """
    mark, codec, text = _decode(data)
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    lines = _LINE.findall(text)
    for setting in settings:
        lines = _lay_over(lines, setting, newline)
    return mark + "".join(lines).encode(codec, "surrogateescape")


def text_of(data: bytes) -> str:
    """`data` as text, without the byte order mark.

    Raises:
        SettingsFileError: it is none.
    """
    return _decode(data)[2]


def _decode(data: bytes) -> tuple[bytes, str, str]:
    mark = next((mark for mark in _BYTE_ORDER_MARKS if data.startswith(mark)), b"")
    codec = _BYTE_ORDER_MARKS.get(mark, "utf-8")
    try:
        text = data[len(mark) :].decode(codec, "surrogateescape" if codec == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise SettingsFileError(f"it is not readable as {codec}: {error}") from error
    if "\0" in text:
        raise SettingsFileError("it holds zero bytes, so it is no text")
    return mark, codec, text


def _places(lines: Sequence[str], section: str) -> list[tuple[int, re.Match[str] | None]]:
    """The lines of `section` that say something, each with its match where it is a key (no header, no continuation)."""
    inside = continued = False
    found: list[tuple[int, re.Match[str] | None]] = []
    for number, line in enumerate(lines):
        body = line.rstrip("\r\n")
        header = None if continued else _SECTION.match(body)
        if header:
            inside = header[1].lower() == section.lower()
        says = body.strip() != "" and not body.lstrip().startswith("#")
        if inside and (says or continued):
            found.append((number, None if header or continued else _KEY.fullmatch(body)))
        continued = says and body.endswith("\\")
    return found


def _is(known: re.Match[str] | None, key: str) -> bool:
    return known is not None and known["key"].lower() == key.lower()


def _lay_over(lines: list[str], setting: Setting, newline: str) -> list[str]:
    places = _places(lines, setting.section)
    same = [(number, known) for number, known in places if known is not None and _is(known, setting.key)]
    lines = list(lines)
    for number, known in same:
        if not setting.accepts(known["value"]):
            body = lines[number].rstrip("\r\n")
            lines[number] = f"{known['head']}{setting.value}{known['tail']}{lines[number][len(body) :]}"
    if same:
        return lines
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += newline
    if lines and lines[-1].rstrip("\r\n").endswith("\\"):
        lines.append(newline)  # it goes on with nothing, not with our line
    places = _places(lines, setting.section)
    new = f"{setting.key}={setting.value}{newline}"
    if places:
        after = places[-1][0] + 1
        return [*lines[:after], new, *lines[after:]]
    gap = [newline] if lines and lines[-1].strip() else []
    return [*lines, *gap, f"[{setting.section}]{newline}", new]

"""Fills systemd/vigil.service: paths and arguments as quoted words of systemd.syntax(7), so that they arrive byte for byte."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_PLACE = re.compile(r"@([A-Z_]+)@")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class UnitError(Exception):
    """The unit cannot be filled; the message names the value and the next step."""


def escaped(text: str) -> str:
    """`text` for a place inside double quotes.

    Raises:
        UnitError: it holds a control character.
    """
    if _CONTROL.search(text):
        raise UnitError(f"{text!r} holds a line end or another control character, which no unit of systemd can: take it out")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


def word(text: str) -> str:
    """One quoted word."""
    return f'"{escaped(text)}"'


def argument(text: str) -> str:
    """One quoted word of ExecStart=, where a dollar sign would name a variable."""
    return word(text).replace("$", "$$")


def environment(assignment: str) -> str:
    """A line that sets one variable, `NAME=VALUE`.

    Raises:
        UnitError: that is not its form.
    """
    if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", assignment):
        raise UnitError(f"{assignment!r} is not NAME=VALUE, such as HF_HOME=/data/huggingface")
    return f"Environment={word(assignment)}"


def paths(texts: Sequence[str]) -> str:
    """Several paths, each of which may be missing when the service starts."""
    return " ".join(word(f"-{text}") for text in texts)


def fill(template: str, values: Mapping[str, str]) -> str:
    """The unit. A line that a placeholder leaves empty goes.

    Raises:
        UnitError: the template asks for something unknown.
    """
    lines = []
    for line in template.splitlines():
        unknown = [name for name in _PLACE.findall(line) if name not in values]
        if unknown and not line.startswith("#"):
            raise UnitError(
                f"the template asks for @{unknown[0]}@, which nobody knows: it and this installer are of different versions"
            )
        filled = _PLACE.sub(lambda found: values.get(found[1], found[0]), line).rstrip()
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"

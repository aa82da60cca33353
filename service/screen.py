"""What the owner sees: each step in a line before it is done, what came of it, and what is left to do."""

from __future__ import annotations

import difflib
import sys
from dataclasses import dataclass, field

from service.changes import Wanted, content_of
from service.settings_file import SettingsFileError, text_of


@dataclass
class Screen:
    """Prints as it goes. `left` are the steps that only the owner can take: why, and the command if there is one."""

    dry: bool
    changed: int = 0
    left: list[tuple[str, str]] = field(default_factory=list)

    def step(self, why: str) -> None:
        """What comes next, and what for."""
        print(f"* {why}", flush=True)

    def told(self, text: str) -> None:
        """What came of it."""
        print(f"    {text}", flush=True)

    def did(self, text: str) -> None:
        """Something was changed, or would be."""
        self.changed += 1
        self.told(f"would: {text}" if self.dry else text)

    def leave(self, why: str, command: str = "") -> None:
        """The owner has to do this."""
        self.left.append((why, command))

    def show(self, wanted: Wanted) -> None:
        """The write that a dry run leaves out: a difference where there is something, else the content."""
        if wanted.secret:
            self.told(f"({len(wanted.content)} bytes, not shown)")
        elif wanted.link:
            self.told(f"-> {wanted.content.decode()}")
        else:
            before = content_of(wanted.path)
            old, new = (_lines(content) for content in (before or b"", wanted.content))
            shown = new if before is None else [*difflib.unified_diff(old, new, "now", "then", lineterm="", n=2)]
            for line in shown:
                self.told(f"| {line}".rstrip())

    def close(self, text: str) -> None:
        """The last words."""
        print(text)
        if self.left:
            print("Left for you:")
        for number, (why, command) in enumerate(self.left, 1):
            print(f" {number}. {why}")
            if command:
                print(f"      {command}")


def _lines(content: bytes) -> list[str]:
    try:
        return text_of(content).splitlines()
    except SettingsFileError:
        return [f"({len(content)} bytes that are no text)"]


def complain(text: str) -> None:
    """Why it ends here."""
    print(f"vigil: {text}", file=sys.stderr, flush=True)

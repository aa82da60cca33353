"""Stores with one fault each, named by FAULT in the environment: a detector that finds none of them is blind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

LAST = 3
FAULTS = ("in_place", "no_fsync", "no_folder_fsync", "early_ack")
FAULT = os.environ.get("FAULT", "")


def work(folder: Path, last: int, ack: Callable[[int], None]) -> None:
    for number in range(_read(folder) + 1, last + 1):
        if FAULT == "early_ack":
            ack(number)
        _save(folder, f"{number}\n" * 3000)
        ack(number)


def found(folder: Path, acked: int) -> int:
    return _read(folder)


def _read(folder: Path) -> int:
    path = folder / "state"
    if not path.exists():
        return 0
    lines = path.read_text().split("\n")
    if len(lines) != 3001 or len(set(lines[:-1])) != 1:
        raise ValueError("torn")
    return int(lines[0])


def _save(folder: Path, text: str) -> None:
    path = folder / ("state" if FAULT == "in_place" else "new")
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        if FAULT != "no_fsync":
            os.fsync(file.fileno())
    os.replace(path, folder / "state")
    if FAULT not in ("no_folder_fsync", "no_fsync"):
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

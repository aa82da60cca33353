"""What a benchmark says at its end: its details, then a line for each claim that it measured."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One measured claim."""

    item: str
    unit: str
    """Of `original` and `ours`."""
    original: float | None = None
    """The way of the bash pipeline; None where it has none."""
    ours: float
    ratio: float | None = None
    """How much better ours is."""
    demanded: str
    met: bool
    wall: str = ""
    """The same by the clock on the wall, both ways, where `unit` is CPU time; or by CPU time where it is not."""
    note: str = ""


def tell(rows: Sequence[Row], **details: object) -> int:
    """Print the details as one JSON object and each row as one; the exit code: 1 when a demand was missed."""
    print(json.dumps({**details, "load": round(os.getloadavg()[0], 1)}))
    for row in rows:
        print(msgspec.json.encode(row, enc_hook=float).decode(), flush=True)
    return 0 if all(row.met for row in rows) else 1

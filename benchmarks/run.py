"""Every measured claim in one table: `python -m benchmarks.run [NAME ...] [--quick]`.

Each benchmark is a process of its own and makes all that it compares: Vigil's way, and the original's way, in rounds by turns; its
figures are medians, on one thread. Its last lines are JSON objects, one a row: item, original, ours, unit, ratio, floor, met.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec

from daemon import words

NAMES = ("audio", "translate", "tokenize_pairs", "padding", "corpus_build", "checkpoint", "restart", "gpu")


class Row(msgspec.Struct, frozen=True):
    """One measured claim; `ratio` is how much better ours is, `floor` what was demanded of it."""

    item: str
    original: float | None
    ours: float | None
    ratio: float | None
    floor: float | None
    unit: str = ""
    met: bool | None = None
    note: str = ""


def rows_of(name: str, options: Sequence[str]) -> list[Row]:
    """Run one benchmark; what it prints besides its rows is shown as it comes."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    print(f"== {name}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, env=os.environ | single, stdout=subprocess.PIPE, text=True, check=False)
    print(f"== {name}: {time.monotonic() - started:.0f} s, exit {ended.returncode}", file=sys.stderr, flush=True)
    found = []
    for line in ended.stdout.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Row))
        except msgspec.DecodeError:
            print(line, file=sys.stderr)
    return found or [Row(f"{name}: failed", None, None, None, None, met=False, note=f"exit {ended.returncode}")]


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a Markdown table."""
    head = ["item", "the original's way", "Vigil", "ratio", "demanded", ""]
    lines = [
        [
            row.item,
            _with_unit(row.original, row.unit),
            _with_unit(row.ours, row.unit),
            words.NONE if row.ratio is None else f"{row.ratio:.1f}",
            words.NONE if row.floor is None else f"{row.floor:g}",
            " ".join(filter(None, ("" if row.met is None else "met" if row.met else "MISSED", row.note))),
        ]
        for row in rows
    ]
    return words.markdown_table([head, *lines], right=(1, 2, 3, 4))


def _with_unit(value: float | None, unit: str) -> str:
    return words.NONE if value is None else f"{words.number(value, 3)} {unit}".strip()


def main() -> int:
    """Print the table; 1 when a demand was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without any")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller inputs")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    rows = [row for name in given.names or NAMES for row in rows_of(name, ["--quick"] if given.quick else [])]
    print("\n".join(table(rows)))
    return 0 if all(row.met is not False for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

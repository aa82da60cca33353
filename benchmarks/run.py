"""Every measured claim in one table: `python -m benchmarks.run [NAME ...] [--quick]`.

Each benchmark is a process of its own and makes all that it compares: Vigil's way, and the original's way, in rounds by turns; its
figures are medians, on one thread. Its last lines are its rows (`benchmarks.row`).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import msgspec
import torch

from benchmarks.row import Row
from daemon import words

NAMES = ("corpus_build", "restart", "audio", "translate", "tokenize_pairs", "padding", "checkpoint", "gpu")
SINGLE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def rows_of(name: str, options: Sequence[str]) -> list[Row]:
    """Run one benchmark; what it prints besides its rows is shown as it comes."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    started = time.monotonic()
    print(f"== {name}", file=sys.stderr, flush=True)
    ended = subprocess.run(command, env=os.environ | SINGLE, stdout=subprocess.PIPE, text=True, check=False)
    found = []
    for line in ended.stdout.splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Row))
        except msgspec.DecodeError:
            print(line, file=sys.stderr)
    print(f"== {name}: {time.monotonic() - started:.0f} s, exit {ended.returncode}", file=sys.stderr, flush=True)
    if ended.returncode and all(row.met for row in found):
        found.append(Row(item=f"{name}: failed", unit="exit code", ours=ended.returncode, demanded="0", met=False))
    return found


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as a Markdown table, and what is to be known of them below it."""
    head = ["item", "the original's way", "Vigil", "ratio", "demanded", "", "by the other clock"]
    lines = [
        [
            row.item,
            _with_unit(row.original, row.unit),
            _with_unit(row.ours, row.unit),
            words.NONE if row.ratio is None else f"{row.ratio:.1f}",
            row.demanded,
            "met" if row.met else "MISSED",
            row.wall,
        ]
        for row in rows
    ]
    notes = [f"- {row.item}: {row.note}" for row in rows if row.note]
    return [*words.markdown_table([head, *lines], right=(1, 2, 3, 4)), "", *notes]


def _with_unit(value: float | None, unit: str) -> str:
    return words.NONE if value is None else f"{words.number(value, 3)} {unit}".strip()


def main() -> int:
    """Print the table; 1 when a demand was missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all without any")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller inputs: to see that all runs")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]!r}; there are {', '.join(NAMES)}")
    quick = dict.fromkeys(NAMES, given.quick) | ({} if torch.cuda.is_available() else {"gpu": True})
    rows = [row for name in given.names or NAMES for row in rows_of(name, ["--quick"] if quick[name] else [])]
    print("\n".join(table(rows)))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

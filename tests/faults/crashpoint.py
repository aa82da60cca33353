"""A fault at every system call of a program: SIGKILL on entry, or an errno, through strace.

  python -m tests.faults.crashpoint tests.faults.store_program --fault kill

After each one, what is on disk must hold every promise and a clean rerun must reach the end. Exit 1 also where a point did not
fire, so that a silently dead injection cannot pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.program import MARKER, Program, fault_of, load, silent, traced

KINDS = (
    "openat,read,pread64,write,pwrite64,lseek,close,fsync,fdatasync,ftruncate,fallocate,getdents64,newfstatat,statfs,rename,renameat,"
    "renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
CALL = re.compile(r"^\d*\s*(\w+)\(")


@dataclass
class Tally:
    """What came of the points of one fault."""

    fault: str
    points: int = 0
    fired: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return 0 < self.points == self.fired and not self.violations

    def __str__(self) -> str:
        figures = f"points={self.points} fired={self.fired} violations={len(self.violations)}"
        return "\n  ".join([f"{self.fault:<7} {figures} {self.seconds:.1f} s", *self.violations[:5]])


def points(program: Program, root: Path) -> list[tuple[str, int]]:
    """Every (call, its number since the start of the trace) after the marker of an undisturbed run."""
    folder = fresh(root)
    status, promised = traced(program, folder, root / "trace", ["-e", f"trace={KINDS}"])
    if status or promised != program.LAST or (fault := fault_of(program, folder, promised)):
        raise SystemExit(f"the undisturbed run failed: status {status}, acked {promised}, {fault}")
    before, found = Counter[str](), list[tuple[str, int]]()
    marked = False
    for line in (root / "trace").read_text(errors="replace").splitlines():
        if (call := CALL.match(line)) is None:
            continue
        before[call[1]] += 1
        if marked:
            found.append((call[1], before[call[1]]))
        marked = marked or MARKER in line
    return found


def strike(program: Program, root: Path, fault: str, where: Sequence[tuple[str, int]]) -> Tally:
    """The program with `fault` at each of these calls."""
    tally, began = Tally(fault, len(where)), time.monotonic()
    action = "signal=SIGKILL" if fault == "kill" else f"error={fault}"
    for call, number in where:
        folder = fresh(root)
        # no --seccomp-bpf: with strace 6.1 it makes an injected signal silently not happen
        options = ["-e", f"trace={call}", "-e", f"inject={call}:{action}:when={number}"]
        status, promised = traced(program, folder, root / "trace", options)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        tally.fired += killed if fault == "kill" else "(INJECTED)" in (root / "trace").read_text(errors="replace")
        if why := fault_of(program, folder, promised):
            tally.violations.append(f"{call} {number}: {why}")
    tally.seconds = time.monotonic() - began
    return tally


def fresh(root: Path) -> Path:
    folder = root / "d"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--fault", action="append", help="kill (the default) or an errno's name; may be given again")
    parser.add_argument("--every", type=int, default=1, help="only every N-th point, from the seed's on")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    program, passed = load(args.program), True
    with tempfile.TemporaryDirectory(prefix="crashpoint.", dir="/dev/shm") as name:
        root = Path(name)
        program.work(fresh(root), program.LAST, silent)  # what is imported or opened once is not the program's
        where = points(program, root)[args.seed % args.every :: args.every]
        for fault in args.fault or ["kill"]:
            tally = strike(program, root, fault, where)
            print(tally, flush=True)
            passed = passed and tally.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A program under test and how the detectors start it: a fork of a warm process, so that a start costs no imports.

A program is a module with LAST, `work` and `found`. `work` goes on from what is on disk to state `last` and calls `ack(n)` when
state n is promised durable; `found` reads what is on disk, raises where a promise is broken, and acked <= found <= acked + 1 must
hold.
The child calls stat("/CRASHPOINT-START") before its work and writes `ACK n` to file descriptor 1.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

MARKER = "/CRASHPOINT-START"
ATTACH_S = 20.0


class Program(Protocol):
    """What a module under test offers."""

    LAST: int

    def work(self, folder: Path, last: int, ack: Callable[[int], None]) -> None: ...

    def found(self, folder: Path, acked: int) -> int: ...


def load(name: str) -> Program:
    return cast(Program, importlib.import_module(name))


def silent(_number: int) -> None:
    """For a run whose promises nobody counts."""


def fork(program: Program, folder: Path, last: int, out: int, *, stopped: bool = True) -> int:
    """Start the program in a child whose promises go to `out`; it stops itself before its first step if `stopped`."""
    pid = os.fork()
    if pid:
        if stopped:
            os.waitpid(pid, os.WUNTRACED)
        return pid
    code = 1
    with contextlib.suppress(BaseException):
        os.dup2(out, 1)
        if stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        Path(MARKER).exists()
        program.work(folder, last, lambda number: _say(number))
        code = 0
    os._exit(code)


def _say(number: int) -> None:
    os.write(1, b"ACK %d\n" % number)


def traced(program: Program, folder: Path, trace: Path, options: Sequence[str]) -> tuple[int, int]:
    """Run the program to its LAST under strace; its wait status and the last number that it promised."""
    out = trace.with_name("out")
    with open(out, "wb") as file:
        pid = fork(program, folder, program.LAST, file.fileno())
    command = ["strace", "-qq", "-o", str(trace), "-e", "signal=none", *options, "-p", str(pid)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
        try:
            _await_tracer(pid, strace)
            os.kill(pid, signal.SIGCONT)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            _, status = os.waitpid(pid, 0)
    return status, acked(out.read_bytes())


def _await_tracer(pid: int, strace: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + ATTACH_S
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if strace.poll() is not None or time.monotonic() > until:
            raise RuntimeError("strace did not attach; is ptrace allowed here?")
        time.sleep(0.001)


def acked(output: bytes) -> int:
    """The last number promised; 0: none."""
    return max(map(int, re.findall(rb"^ACK (\d+)$", output, re.M)), default=0)


def fault_of(program: Program, folder: Path, promised: int, *, rerun: bool = True) -> str:
    """What is wrong with what is on disk after `promised`; empty when nothing is, and a rerun reaches the end."""
    try:
        found = program.found(folder, promised)
        if not promised <= found <= promised + 1:
            return f"acked {promised}, found {found}"
        if rerun:
            program.work(folder, program.LAST, silent)
            if (found := program.found(folder, program.LAST)) != program.LAST:
                return f"the rerun reached {found} instead of {program.LAST}"
    except Exception as error:  # whatever the program's own checks raise is the finding
        return f"{type(error).__name__}: {error}"[:200]
    return ""

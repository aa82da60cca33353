"""Work in a second process: its result, and what happens when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bible_data.beside import Beside

ROOT = Path(__file__).parents[3]


def nothing() -> None:
    pass


def alone(code: str) -> str:
    """What a process of one thread prints: the test's own has others, and then nothing is forked."""
    before = "import os, sys, threading\nfrom bible_data import beside\nfrom bible_data.beside import Beside\nme = os.getpid()\n"
    done = subprocess.run([sys.executable, "-c", before + code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


needs_two_cores = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="this machine has one core")


@needs_two_cores
def test_the_result_comes_from_another_process() -> None:
    """The work runs in a fork, and its result is the same as here, however large."""
    code = "found = Beside(lambda: (os.getpid(), list(range(300_000)))).result(lambda: None)\nprint(found[0] != me, sum(found[1]))"
    assert alone(code) == f"True {sum(range(300_000))}"


@needs_two_cores
@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(3)", "1 / 0", "sys.exit(0)"])
def test_without_a_result_the_work_is_done_here(end: str) -> None:
    """Killed, out of memory, a bug: the parent does the work itself, and nothing is printed twice."""
    code = f"def work():\n    if os.getpid() != me:\n        {end}\n    return 7\nprint(Beside(work).result(lambda: None))"
    assert alone(code) == "7"


def test_an_error_in_the_work_is_raised_when_it_is_asked_for() -> None:
    """Not before, and as itself."""
    begun = Beside(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        begun.result(nothing)
    begun.end()


@needs_two_cores
def test_a_stop_does_not_wait_for_the_work() -> None:
    """What `between` raises leaves at once, and `end` ends the process."""
    code = """
def stop():
    raise InterruptedError
begun = Beside(lambda: os.getpid() == me or __import__("time").sleep(300))
try:
    begun.result(stop)
except InterruptedError:
    begun.end()
try:
    os.waitpid(-1, 0)
except ChildProcessError:
    print("no process left")
"""
    assert alone(code) == "no process left"


def test_beside_other_threads_nothing_is_forked() -> None:
    """A lock that another thread holds would stay locked in the fork."""
    code = """
going = threading.Event()
other = threading.Thread(target=going.wait)
other.start()
print(Beside(os.getpid).result(lambda: None) == me)
going.set()
"""
    assert alone(code) == "True"

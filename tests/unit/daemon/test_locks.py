"""Locks: held means alive."""

import os
import subprocess
import sys

import pytest

from daemon import locks
from tests.conftest import ROOT


def test_a_lock_is_held_until_closed(tmp_path):
    """Taken, it is seen as held and refused to others; given back, it is free; never made, it is free."""
    path = tmp_path / "folder" / "lock"
    assert locks.held(path) is False
    handle = locks.take(path)
    assert locks.held(path) is True
    with pytest.raises(locks.LockHeldError):
        locks.take(path)
    os.close(handle)
    assert locks.held(path) is False


def test_an_inherited_lock_outlives_the_one_who_took_it(tmp_path):
    """The child keeps it and is found by it; when the child ends, the lock is free."""
    path = tmp_path / "lock"
    handle = locks.take(path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[handle]) as child:
        os.close(handle)
        assert locks.held(path) is True
        assert list(locks.holders(path)) == [child.pid]
        child.communicate(b"\n")
    assert locks.held(path) is False
    assert list(locks.holders(path)) == []


def test_a_busy_holder_is_found(tmp_path):
    """Also while it opens and closes other files, at every look."""
    path = tmp_path / "lock"
    handle = locks.take(path)
    busy = "import os\nprint(flush=True)\nwhile True:\n for file in [os.open('/dev/null', 0) for _ in range(9)]: os.close(file)"
    with subprocess.Popen([sys.executable, "-c", busy], stdout=subprocess.PIPE, pass_fds=[handle]) as child:
        os.close(handle)
        child.stdout.readline()
        try:
            assert {tuple(locks.holders(path)) for _ in range(100)} == {(child.pid,)}
        finally:
            child.kill()


def test_what_cannot_be_opened_is_unknown(tmp_path):
    """Neither alive nor dead."""
    (tmp_path / "loop").symlink_to("loop")
    assert locks.held(tmp_path / "loop") is None


def test_a_look_is_no_holder(tmp_path):
    """However often another process looks whether a free lock is held, it can be taken."""
    path = tmp_path / "lock"
    os.close(locks.take(path))
    look = "import sys, pathlib\nfrom daemon import locks\nprint(flush=True)\nwhile True: locks.held(pathlib.Path(sys.argv[1]))"
    with subprocess.Popen([sys.executable, "-c", look, path], stdout=subprocess.PIPE, cwd=ROOT) as onlooker:
        onlooker.stdout.readline()
        try:
            for _ in range(20_000):
                os.close(locks.take(path))
        finally:
            onlooker.kill()

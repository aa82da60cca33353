"""What a reclaim removes, and what it never does."""

from __future__ import annotations

import os

from daemon import locks
from daemon.effects import Reclaim
from daemon.reclaim import reclaim
from state.checkpoints import Checkpoints
from state.workspace import Workspace


def stage_with_everything(workspace, name):
    """Three checkpoints of which the first alone is healthy, leftovers of all kinds, scratch with a ledger."""
    checkpoints = Checkpoints(workspace.checkpoints(name), keep=9)
    for step in (10, 20, 30):
        checkpoints.publish(step, lambda folder: (folder / "w").write_bytes(bytes(1000)), healthy=step == 10)
    for leftover in (".step-00000040.tmp", "damaged-step-00000005-0", "replaced-step-00000010-0"):
        (checkpoints.folder / leftover).mkdir()
        (checkpoints.folder / leftover / "w").write_bytes(bytes(500))
    scratch = workspace.scratch(name)
    (scratch / "best").mkdir(parents=True)
    (scratch / "best" / "w").write_bytes(bytes(700))
    (scratch / "tokens.bin").write_bytes(bytes(300))
    (scratch / "ledger.jsonl").write_bytes(b"{}")
    return checkpoints


def test_leftovers_go_and_the_last_good_checkpoints_stay(tmp_path):
    """Newest and newest healthy stay; a failed stage keeps its scratch for a retry, a finished one its ledger alone."""
    workspace = Workspace.at(tmp_path)
    failed, done = stage_with_everything(workspace, "failed"), stage_with_everything(workspace, "done")
    freed = reclaim(workspace, Reclaim(("failed", "done"), ("done",)))
    for checkpoints in (failed, done):
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000010", "step-00000030"]
        assert checkpoints.newest_valid().step == 30
        assert checkpoints.newest_valid(healthy_only=True).step == 10
    assert sorted(path.name for path in workspace.scratch("failed").iterdir()) == ["best", "ledger.jsonl", "tokens.bin"]
    assert [path.name for path in workspace.scratch("done").iterdir()] == ["ledger.jsonl"]
    assert freed >= 2 * (1000 + 1500) + 1000


def test_a_stage_at_work_is_left_alone(tmp_path):
    """A held attempt lock means that somebody writes there."""
    workspace = Workspace.at(tmp_path)
    checkpoints = stage_with_everything(workspace, "a")
    before = sorted(path.name for path in checkpoints.folder.iterdir())
    lock = workspace.attempt("a", 1).lock
    held = locks.take(lock)
    assert reclaim(workspace, Reclaim(("a",), ("a",))) == 0
    os.close(held)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == before

"""Frees disk space by rule: never the last good checkpoint, never a ledger, never anything of a stage that may be at work."""

from __future__ import annotations

import shutil
from pathlib import Path

from daemon import locks
from daemon.effects import Reclaim
from state.checkpoints import Checkpoints
from state.workspace import Workspace

LEDGERS = "ledger*"


def reclaim(workspace: Workspace, effect: Reclaim) -> int:
    """Remove what `effect` names and return the bytes that it brought. What cannot be removed stays."""
    freed = 0
    for stage in effect.settled:
        if any(locks.held(lock) is not False for lock in workspace.stage(stage).glob("attempts/*/attempt.lock")):
            continue  # tried again meanwhile, or it cannot be told
        folder = workspace.checkpoints(stage)
        before = _size(folder)
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.sweep()
        checkpoints.retire()
        freed += before - _size(folder)
        if stage in effect.succeeded:
            freed += _clear_scratch(workspace.scratch(stage))
    return freed


def _clear_scratch(scratch: Path) -> int:
    before = _size(scratch)
    for path in scratch.iterdir() if scratch.is_dir() else ():
        if path.match(LEDGERS):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return before - _size(scratch)


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())

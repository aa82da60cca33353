"""PURE: the disk: when everything waits for it, and what may be removed."""

from __future__ import annotations

from msgspec.structs import replace

from daemon.effects import Reclaim, Work
from daemon.words import size
from state.machine import Status

GB = 1e9
HOLD_MARGIN = 1.25
"""So much more than the limit must be free before a held run goes on, lest it be held again at once."""


def mind_the_disk(work: Work) -> None:
    """Hold everything while a disk is nearly full, before a save fails on it; go on once there is clearly more again."""
    run, seen = work.run, work.seen
    if seen.reclaimed_bytes:
        work.tell("disk.reclaimed", f"{size(seen.reclaimed_bytes)} freed: leftovers, and the scratch of finished stages")
    margin = HOLD_MARGIN if run.disk_hold else 1.0
    short = _shortage("the disk", seen.free_bytes, margin * run.pipeline.keep_free_gb) or _shortage(
        "the Windows drive", seen.free_windows_bytes, margin * run.pipeline.keep_free_windows_gb
    )
    if short and not run.disk_hold:
        work.run = replace(run, disk_hold=short)
        work.tell("disk.held", f"everything waits: {short}; free some, it then goes on by itself", level="error")
        reclaim(work)
    elif run.disk_hold and not short and seen.free_bytes is not None:
        work.run = replace(run, disk_hold="")
        work.tell("disk.freed", "there is disk space again: the run goes on")
    if work.run.disk_hold:
        work.hold_all(f"the disk is nearly full: {work.run.disk_hold}")


def _shortage(name: str, free_bytes: int | None, keep_gb: float) -> str:
    if free_bytes is None or free_bytes >= keep_gb * GB:
        return ""
    return f"{name} has {size(free_bytes)} free and {keep_gb:g} GB are to be kept"


def reclaim(work: Work) -> None:
    """Have freed what may go by rule. A stage that is not settled clears up for itself, when it saves."""
    settled = [stage for stage in work.run.stages if stage.settled and stage.attempts]
    succeeded = tuple(stage.name for stage in settled if stage.state is Status.SUCCEEDED)
    work.effects.append(Reclaim(tuple(stage.name for stage in settled), succeeded))

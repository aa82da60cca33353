"""A short real stage for the process tests: counts to `steps`, checkpointing each, and misbehaves as its settings ask."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import msgspec

from stages.runtime import Delivery, StageContext, run
from state import contract


class Probe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to do, and at which step of which attempt to misbehave."""

    steps: int = 5
    step_s: float = 0.01
    at_step: int = 2
    fault: str = ""
    """`crash`, `kill`, `hang`, `deadlock`, `freeze`, `deaf`, `no_receipt`, or the name of an error in state.contract."""
    faulty_attempts: int = 1
    checkpoint_bytes: int = 0


def main(ctx: StageContext) -> Delivery:
    settings = ctx.settings(Probe)
    newest = ctx.checkpoints.newest_valid()
    done = newest.step if newest else 0
    trail = ctx.scratch() / "trail.txt"
    for step in range(done + 1, settings.steps + 1):
        if ctx.stopping and settings.fault != "deaf":
            raise contract.StopRequested
        if step == settings.at_step and ctx.spec.attempt <= settings.faulty_attempts:
            _misbehave(settings.fault)
        time.sleep(settings.step_s)
        with trail.open("a") as file:
            file.write(f"{step}\n")
        ctx.save_checkpoint(step, lambda folder, step=step: _fill(folder, step, settings.checkpoint_bytes))
        ctx.progress(step, settings.steps, "steps", step=step, steps=settings.steps)
        ctx.metric({"loss": 1.0 / step}, step)
    out = ctx.workspace.root / "out" / ctx.spec.stage
    out.mkdir(parents=True, exist_ok=True)
    (out / "done.txt").write_text(str(settings.steps))
    return Delivery(outputs=[out], metrics={"steps": float(settings.steps)}, summary=f"{settings.steps} steps")


def _fill(folder: Path, step: int, size_bytes: int) -> None:
    (folder / "position.json").write_text(json.dumps({"step": step}))
    (folder / "ballast").write_bytes(bytes(size_bytes))


def _misbehave(fault: str) -> None:
    if fault == "crash":
        raise ValueError("asked to crash")
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(3600)
    if fault == "deadlock":  # a loader whose worker waits for its reader, and the reader for the worker
        lock = threading.Lock()
        with lock:
            lock.acquire()
    if fault == "freeze":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "no_receipt":
        os._exit(0)
    if fault.endswith("Error"):
        raise getattr(contract, fault)


if __name__ == "__main__":
    run(main)

"""A short real stage for the process tests: in a memory cgroup, it holds `mib_each` for every example of its micro-batch."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from stages.runtime import Delivery, StageContext, run


class Hungry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much to hold, and which cgroup forbids it."""

    effective_batch: int
    mib_each: int
    cgroup: str


def main(ctx: StageContext) -> Delivery:
    settings = ctx.settings(Hungry)
    micro_batch = ctx.spec.batch.micro_batch or settings.effective_batch
    if ctx.checkpoints.newest_valid() is None:
        ctx.save_checkpoint(1, lambda folder: (folder / "position.json").write_text("{}") and None)
    (Path(settings.cgroup) / "cgroup.procs").write_text(str(os.getpid()))
    held = [b"\x01" * (settings.mib_each << 20) for _ in range(micro_batch)]
    return Delivery(metrics={"held_mib": float(sum(map(len, held)) >> 20)}, summary=f"micro-batch {micro_batch}")


if __name__ == "__main__":
    run(main)

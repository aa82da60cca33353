"""A short real stage whose result depends on every step: a chain of hashes. One that was lost or made twice shows in the end."""

from __future__ import annotations

import hashlib
import time

import msgspec

from stages.runtime import Delivery, StageContext, run


class Chain(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the chain is, and what a link takes."""

    steps: int
    step_s: float


def main(ctx: StageContext) -> Delivery:
    settings = ctx.settings(Chain)
    newest = ctx.checkpoints.newest_valid()
    done, link = (newest.step, (newest.path / "link").read_bytes()) if newest else (0, b"")
    for step in range(done + 1, settings.steps + 1):
        time.sleep(settings.step_s)
        link = hashlib.sha256(link + step.to_bytes(8, "big")).digest()
        if step % 5 == 0:
            ctx.save_checkpoint(step, lambda folder, link=link: (folder / "link").write_bytes(link))
        ctx.progress(step, settings.steps, "links", step=step, steps=settings.steps)
    made = ctx.scratch() / "chain"
    made.mkdir(exist_ok=True)
    (made / "last").write_bytes(link)
    return Delivery([ctx.publish(made, ctx.workspace.root / "delivered")])


if __name__ == "__main__":
    run(main)

"""The daemon as the drill starts it: an ordinary one that writes no report at its end, and may run some of the stages only.

`--through MODULE` puts a module of the drill in the place of the training stages': it makes the faults that only the inside of a
process can make, and does the stage's own work otherwise (see `stages.drill`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from daemon import config, logs, supervisor
from daemon.before_leaving.drill_plan import TRAINING
from state.pipeline import Pipeline
from state.workspace import Workspace


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline to its end; exit codes as of `vigil run`."""
    parser = argparse.ArgumentParser(prog="python -m daemon.before_leaving.drill_daemon", description="a daemon for the drill")
    parser.add_argument("workspace", type=Path)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--stage", action="append", default=[])
    parser.add_argument("--through", default="")
    args = parser.parse_args(argv)
    pipeline = changed(config.load(args.pipeline, args.set), args.stage, args.through)
    workspace = Workspace(args.workspace)
    logs.set_up(workspace, console=None)
    return supervisor.watch_over(workspace, pipeline, args.pipeline, with_report=False)


def changed(pipeline: Pipeline, stages: Sequence[str] = (), through: str = "") -> Pipeline:
    """`pipeline` with these stages only (all, if none is named), its training stages run by the module `through`."""
    kept = [stage for stage in pipeline.stages if not stages or stage.name in stages]
    if through:
        kept = [replace(stage, module=through) if stage.module.startswith(TRAINING) else stage for stage in kept]
    return replace(pipeline, stages=tuple(kept))


if __name__ == "__main__":
    sys.exit(main())

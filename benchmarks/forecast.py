"""What a forecast costs the daemon, and how well its percentages hold.

    python -m benchmarks.forecast [--worlds N]

Speed: pipelines/seattle.toml with nothing known but the budgets, without a deadline, with one that holds, one that shortens
the bonus and one that cannot hold; the median CPU time of 15 forecasts each. Calibration: N simulated runs (tests' `plan_world`), a
forecast at the start and one on the way. Exit 0: no forecast takes LIMIT_S, and P50 and P80 hold within the bounds; else 1.
"""

from __future__ import annotations

import argparse
import statistics
import time

from msgspec.structs import replace

from benchmarks.goodput import ROOT
from daemon import config
from daemon.planning.expectation import Known
from daemon.planning.forecast import foresee
from state.snapshot import RunState, StageState
from tests.unit.daemon.plan_world import HOUR_S, T0, held

LIMIT_S = 0.1
BOUNDS = {"P50": (0.42, 0.58), "P80": (0.75, 0.85)}
DEADLINES_H = (None, 110.0, 40.0, 20.0)
FORECASTS = 15


def speed() -> bool:
    """Whether every forecast of the owner's pipeline is quick enough."""
    plan = config.load(ROOT / "pipelines" / "seattle.toml", ["download.url=x", "corpus.source=x"])
    stages = tuple(replace(stage, least_share=0.4 if stage.name == "train_gemma_12b" else 1.0) for stage in plan.stages)
    slowest_s = 0.0
    for deadline_h in DEADLINES_H:
        run = RunState(
            id="r",
            pipeline=replace(plan, stages=stages),
            pipeline_path="seattle.toml",
            started_at=T0,
            deadline_at=None if deadline_h is None else T0 + deadline_h * HOUR_S,
            stages=tuple(StageState(name=stage.name) for stage in stages),
        )
        taken_s = []
        for _ in range(FORECASTS):
            began_s = time.process_time()
            found = foresee(run, Known({}, {}), T0)
            taken_s.append(time.process_time() - began_s)
        slowest_s = max(slowest_s, statistics.median(taken_s))
        print(f"{statistics.median(taken_s) * 1e3:6.1f} ms CPU   deadline after {deadline_h or '-':>5} h   {found.text}")
    return slowest_s < LIMIT_S


def calibration(worlds: int) -> bool:
    """Whether so many of the simulated runs are over by their P50 and P80 as should be."""
    good = True
    for moment, found in held(range(worlds)).items():
        shares = dict(zip(BOUNDS, (sum(column) / len(found) for column in zip(*found, strict=True)), strict=True))
        good &= all(low <= shares[name] <= high for name, (low, high) in BOUNDS.items())
        print(
            f"{moment:>12}: {len(found)} forecasts, " + ", ".join(f"{name} holds in {share:.1%}" for name, share in shares.items())
        )
    return good


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    arguments = parser.parse_args()
    quick, true = speed(), calibration(arguments.worlds)
    raise SystemExit(0 if quick and true else 1)

"""PURE: what follows from a forecast. Whether a bonus begins, and with how much of its work; what the owner is told of the plan.

Only a bonus that has never begun is decided about here: a required stage always starts when it is its turn, and what has begun is
never cut.
"""

from __future__ import annotations

from msgspec.structs import replace

from daemon import words
from daemon.effects import Work
from state.forecast import Forecast
from state.pipeline import StageConfig
from state.snapshot import PlanTold

FRESH_S = 300.0
"""An older forecast decides nothing."""
SLIP_S = 2 * 3600.0
"""The plan slips when it ends so much later than was told last."""
RECOVERED_S = 1800.0
"""A deadline that was told as missed is told as holding when so much is to spare: it does not go to and fro."""


def admit(work: Work, config: StageConfig) -> bool:
    """Whether a stage whose turn it is may start. A bonus for which there is no time is left out for good, until the owner asks."""
    stage = work.stage(config.name)
    if not config.optional or stage.attempts or stage.insisted or work.run.deadline_at is None:
        return True
    share, why = _verdict(work, config.name, work.run.deadline_at)
    if share is None:
        return False
    if share <= 0.0:
        work.leave_out(stage, f"there is no time for it: {why}", by="policy")
        return False
    if share < 1.0:
        work.put(replace(stage, work_share=share))
        text = f"{config.name} gets {words.percent(share)} of its work: for all of it there is no time before the deadline"
        work.tell("plan.shortened", text, level="warning", stage=config.name, work_share=share)
    return True


def _verdict(work: Work, name: str, deadline_at: float) -> tuple[float | None, str]:
    """How much of a bonus the newest forecast has time for, and why no more; None: it must wait for one that says."""
    if work.now.at >= deadline_at:
        return 0.0, "the deadline has passed"
    forecast = _current(work)
    found = forecast.stage(name) if forecast is not None else None
    if found is None:
        return None, ""
    late_s = found.p80_at - deadline_at
    return (
        found.work_share,
        f"it may end {words.duration(late_s)} after the deadline" if late_s > 0 else "it would make others late",
    )


def _current(work: Work) -> Forecast | None:
    """The forecast, if it is fresh and made for the deadline that holds now."""
    forecast = work.seen.forecast
    if forecast is None or forecast.deadline_at != work.run.deadline_at or abs(work.now.at - forecast.at) > FRESH_S:
        return None
    return forecast


def mind_the_plan(work: Work) -> None:
    """Tell of the plan once a deadline is set: when it is made, when it slips, when it holds again."""
    forecast = _current(work)
    if forecast is None or forecast.deadline_at is None or work.run.finished:
        return
    told, late = work.run.plan, not forecast.fits
    if told is None:
        _tell(work, forecast, "plan.made", late=False)
        told = PlanTold(p80_at=forecast.p80_at, late=False)
    if (late and not told.late) or forecast.p80_at > told.p80_at + SLIP_S:
        _tell(work, forecast, "plan.slipped", late=late)
    elif told.late and forecast.p80_at <= forecast.deadline_at - RECOVERED_S:
        _tell(work, forecast, "plan.recovered", late=False)


def _tell(work: Work, forecast: Forecast, kind: str, *, late: bool) -> None:
    work.run = replace(work.run, plan=PlanTold(p80_at=forecast.p80_at, late=late))
    work.tell(
        kind,
        forecast.text,
        level="warning" if kind == "plan.slipped" else "info",
        p50_at=forecast.p50_at,
        p80_at=forecast.p80_at,
        deadline_at=forecast.deadline_at,
        leave_out=list(forecast.leave_out),
        choice=forecast.choice,
    )

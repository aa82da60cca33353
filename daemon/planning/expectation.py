"""PURE: how long each stage is expected to go on, as a distribution, from what is known of it; the best source there is counts.

In this order: the pace of the running stage, the rehearsal, earlier runs on this machine, the pipeline's `budget_h`, a guess. All
but the pace share one factor, the machine: what the stages so far took against what was expected tells of those to come.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import NormalDist, fmean

from state.contract import Outcome, Progress
from state.forecast import Duration, Estimate, digest_of
from state.machine import Status
from state.pipeline import StageConfig
from state.snapshot import BackingOff, Running, RunState, StageState

NORMAL = NormalDist()
HOUR_S = 3600.0
Z80 = 0.8416
"""A normal number is smaller than this in 80 of 100 cases."""

MACHINE_SPREAD = 0.2
"""Of the factor that slows or speeds all stages alike, before any has been seen."""
BUDGET_SPREAD, GUESS_SPREAD = 0.5, 1.0
GUESS_S = HOUR_S
HISTORY_SPREAD = 0.15
"""Of a stage from run to run; with few runs it counts more than what they say themselves."""
HISTORY_RUNS = 10
DISTURBED_SPREAD = 0.1
"""More for a stage that took several attempts: they did some of the work twice."""
PACE_SPREAD, EARLY_SPREAD = 0.12, 0.4
"""Of what is left of a stage against its pace so far; and how much more that misleads in its first minute."""
FIXED_SHARE, FIXED_SPREAD = 0.05, 0.3
"""Of a stage, where it was not measured: load, evaluation and delivery; and how far these are off."""
MOST_SPREADS = 2.0
"""A stage that lasts longer than so many spreads allow has an estimate that was wrong: it is moved."""

BREAKS = frozenset({Outcome.CRASHED, Outcome.HUNG, Outcome.INTERRUPTED, Outcome.DIVERGED, Outcome.DISK_FULL})
"""Endings that cost time and may come again, whatever is at work. Out of memory comes once, the network has its own stages."""
OUTAGE_HOURS = 48.0
"""One break in so many hours is assumed before any was seen."""
OUTAGE_S = 1800.0
"""What one costs before any was seen: the wait, the load and the work done again."""
REPEATED_S = 600.0
"""Of that the load and the repeated work, which attempts do not tell."""


@dataclass(frozen=True)
class Pace:
    """What a stage told last of its way: the first and the newest progress of its newest attempt, in one unit and total."""

    attempt: int
    began: Progress
    last: Progress

    @property
    def share(self) -> float:
        """Of the stage's work done."""
        return min(1.0, max(0.0, self.last.done / self.last.total)) if self.last.total else 0.0

    @property
    def seen_s(self) -> float:
        """Seconds between the two events."""
        return self.last.at - self.began.at

    @property
    def rate(self) -> float | None:
        """Units per second; None while unknown."""
        units = self.last.done - self.began.done
        return units / self.seen_s if units > 0 and self.seen_s > 0 else None


@dataclass(frozen=True)
class Known:
    """What a forecast rests on besides the run itself."""

    paces: Mapping[str, Pace]
    estimates: Mapping[str, Estimate]
    """The rehearsal's, by stage."""
    history: Sequence[Duration] = ()


@dataclass(frozen=True)
class Expectation:
    """The time that a stage is expected to take, from now on: lognormal, and a part that is sure."""

    source: str
    median_s: float
    spread: float
    """Standard deviation of the logarithm."""
    fixed_s: float = 0.0
    """Of the median: what does not shrink with less work."""
    spent_s: float = 0.0
    """It has lasted so long already, of which its end is not known otherwise."""
    wait_s: float = 0.0
    """Before it goes on."""
    common: bool = True
    """The machine's factor applies: it was not measured here and now."""

    def lessened(self, share: float) -> Expectation:
        """The same with `share` of its work."""
        fixed_s = min(self.fixed_s, self.median_s)
        return replace(self, median_s=fixed_s + (self.median_s - fixed_s) * share, fixed_s=fixed_s)

    def draw(self, normals: Sequence[float], machine: Sequence[float], share: float = 1.0) -> list[float]:
        """Seconds from now on, one for each pair of a standard normal number and a factor of the machine."""
        own = self.lessened(share) if share < 1.0 else self
        factors = machine if own.common else [1.0] * len(normals)
        return [own.wait_s + own._one(z, factor) for z, factor in zip(normals, factors, strict=True)]

    def _one(self, z: float, factor: float) -> float:
        median_s = self.median_s * factor
        if not self.spent_s:
            return median_s * math.exp(self.spread * z)
        median_s = max(median_s, self.spent_s * math.exp(-MOST_SPREADS * self.spread))
        passed = NORMAL.cdf(math.log(self.spent_s / median_s) / self.spread)
        later = NORMAL.inv_cdf(passed + (1.0 - passed) * NORMAL.cdf(z))
        return max(0.0, median_s * math.exp(self.spread * later) - self.spent_s)


@dataclass(frozen=True)
class Outages:
    """How often work breaks off, as a gamma distribution of the rate, and what that costs."""

    shape: float
    exposure_s: float
    cost_s: float
    """Mean; exponential."""


def expectations(run: RunState, known: Known, at: float) -> tuple[dict[str, Expectation], NormalDist]:
    """What is expected of each stage that is not settled, and the logarithm of the machine's factor."""
    whole = {config.name: estimated(run, config, known) for config in run.pipeline.stages}
    machine = _machine(run, known, whole)
    left = {s.name: _left(s, whole[s.name], known.paces.get(s.name), machine, at) for s in run.stages if not s.settled}
    return left, machine


def estimated(run: RunState, config: StageConfig, known: Known) -> Expectation:
    """The whole stage, undisturbed, as it was expected before it began."""
    digest = digest_of(config)
    estimate = known.estimates.get(config.name)
    earlier = [one.seconds for one in known.history if one.digest == digest and one.run != run.id and one.seconds > 0]
    if estimate is not None and estimate.digest == digest and estimate.seconds > 0:
        spread = max(0.02, estimate.spread)
        found = Expectation(estimate.source, estimate.seconds, spread, fixed_s=estimate.fixed_s)
    elif earlier:
        logs = [math.log(seconds) for seconds in earlier[-HISTORY_RUNS:]]
        mean = fmean(logs)
        variance = (2 * HISTORY_SPREAD**2 + sum((one - mean) ** 2 for one in logs)) / (len(logs) + 1)
        found = Expectation("history", math.exp(mean), math.sqrt(variance))
    elif config.budget_h is not None:
        median_s = config.budget_h * HOUR_S / math.exp(Z80 * BUDGET_SPREAD)  # people's budgets hold in four of five cases
        found = Expectation("budget", median_s, BUDGET_SPREAD)
    else:
        found = Expectation("guess", GUESS_S, GUESS_SPREAD)
    if found.source != "rehearsal":
        found = replace(found, fixed_s=FIXED_SHARE * found.median_s)
    return found.lessened(run.stage(config.name).work_share)


def worked_s(stage: StageState, at: float | None = None) -> float:
    """Seconds that its attempts have worked; one that has not ended counts up to `at`."""
    ends = ((one.ended_at if one.ended_at is not None else at, one.started_at) for one in stage.attempts)
    return sum(max(0.0, end - start) for end, start in ends if end is not None)


def outages(run: RunState, at: float) -> Outages:
    """The breaks of this run so far, over a cautious assumption."""
    exposure_s, cost_s, breaks = OUTAGE_HOURS * HOUR_S, OUTAGE_S, 0
    for stage in run.stages:
        exposure_s += worked_s(stage, at)
        for attempt, after in zip_longest(stage.attempts, stage.attempts[1:]):
            if attempt.ended_at is not None and attempt.outcome in BREAKS:
                again = after.started_at if after is not None else attempt.ended_at
                cost_s += REPEATED_S + max(0.0, again - attempt.ended_at)
                breaks += 1
    return Outages(shape=1.0 + breaks, exposure_s=exposure_s, cost_s=cost_s / (1 + breaks))


# -- the rest of a stage that has begun


def _left(stage: StageState, whole: Expectation, pace: Pace | None, machine: NormalDist, at: float) -> Expectation:
    if not stage.attempts:
        return whole
    status = stage.status
    wait_s = max(0.0, status.since + status.delay_s - at) if isinstance(status, BackingOff) else 0.0
    if pace is None:
        return replace(whole, spent_s=worked_s(stage, at), wait_s=wait_s)
    running = isinstance(status, Running) and pace.attempt == len(stage.attempts)
    if running and pace.rate is not None:
        return _by_pace(stage, whole, pace, machine, at)
    return replace(whole.lessened(1.0 - pace.share), wait_s=wait_s)  # it loads, and goes on where it was


def _by_pace(stage: StageState, whole: Expectation, pace: Pace, machine: NormalDist, at: float) -> Expectation:
    """What its own pace says, weighed with what was expected; and the part after the last unit, as slow or fast as the rest."""
    before_s = max(0.0, pace.began.at - stage.attempts[-1].started_at)
    own, other = _pace_variance(pace), whole.spread**2 + machine.variance
    weight = other / (own + other)
    slowness = math.exp(weight * math.log(_slowness(whole, pace)) + (1.0 - weight) * machine.mean)
    work_s = _work_s(whole) * slowness * (1.0 - pace.share)
    after_s = max(0.0, whole.fixed_s * slowness - before_s)
    off_s = math.hypot(work_s * math.sqrt(own * weight + pace.share * PACE_SPREAD**2), after_s * FIXED_SPREAD)
    left_s = max(1.0, work_s + after_s)
    silent_s = min(max(0.0, at - pace.last.at), 0.9 * left_s)
    return Expectation("pace", left_s - silent_s, max(0.02, off_s / left_s), common=False)


def _work_s(whole: Expectation) -> float:
    """Of the expected time, what its units take."""
    return max(1.0, whole.median_s - whole.fixed_s)


def _slowness(whole: Expectation, pace: Pace) -> float:
    """The time that the units take at this pace against what was expected."""
    return (pace.last.total or 0.0) / (pace.rate or 1.0) / _work_s(whole)


def _pace_variance(pace: Pace) -> float:
    """How far the pace so far may be from that of the whole stage, as a variance of the logarithm: less, the more was seen."""
    return (1.0 - pace.share) * PACE_SPREAD**2 + EARLY_SPREAD**2 / (1.0 + pace.seen_s / 60.0)


# -- the machine


def _machine(run: RunState, known: Known, whole: Mapping[str, Expectation]) -> NormalDist:
    """The logarithm of the factor common to all stages, from what they took against what was expected of them."""
    weights, weighted = 1.0 / MACHINE_SPREAD**2, 0.0
    for stage in run.stages:
        found = _ratio(stage, whole[stage.name], known.paces.get(stage.name))
        if found is not None:
            ratio, variance = found
            weights += 1.0 / variance
            weighted += math.log(ratio) / variance
    return NormalDist(weighted / weights, math.sqrt(1.0 / weights))


def _ratio(stage: StageState, whole: Expectation, pace: Pace | None) -> tuple[float, float] | None:
    """What the stage takes against what was expected, and the variance of the logarithm; None where it tells nothing."""
    if stage.state is Status.SUCCEEDED:
        actual_s = worked_s(stage)
        disturbed = DISTURBED_SPREAD if len(stage.attempts) > 1 else 0.0
        return (actual_s / whole.median_s, whole.spread**2 + disturbed**2) if actual_s > 0 else None
    if not isinstance(stage.status, Running) or pace is None or pace.rate is None:
        return None
    return _slowness(whole, pace), whole.spread**2 + _pace_variance(pace)

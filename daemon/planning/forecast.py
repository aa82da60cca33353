"""PURE: when the plan will be done, by playing it through some hundred times. docs/plan.md says how, and how well it holds.

Each stage that is not settled gets a distribution (`expectation`); a play draws one time for each and lets the launch rule
of the policy (`turns`) put them in order. The draws are the same in every forecast, so that it moves only when what is known
moves, and so that plans with and without a bonus are compared play by play.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from functools import cached_property, lru_cache
from graphlib import TopologicalSorter
from heapq import heapify, heappop, heappush
from statistics import NormalDist

from msgspec.structs import replace

from daemon import words
from daemon.planning.expectation import NORMAL, Expectation, Known, Outages, expectations, outages
from daemon.planning.turns import cleared, keeps_resource, next_in_line
from state.forecast import Forecast, StageForecast
from state.machine import Status
from state.pipeline import Resource, StageConfig
from state.snapshot import BackingOff, Running, RunState

PLAYS = 400
SHARES = 20
"""A bonus is shortened in so many steps."""
P50, P80 = 0.5, 0.8


def foresee(run: RunState, known: Known, at: float, zone: tzinfo | None = None) -> Forecast:
    """The forecast of a run that is not finished, at the moment `at`."""
    plan = _Plan(run, known, at)
    shares, verdicts, refused = _admit(plan)
    plays = plan.play(shares)
    leave_out, without = _leave_out(plan, shares, plays)
    forecast = Forecast(
        at=at,
        p50_at=plays.end(P50),
        p80_at=plays.end(P80),
        deadline_at=run.deadline_at,
        leave_out=leave_out,
        stages=tuple(
            StageForecast(
                stage=name,
                p50_at=refused.get(name, plays).of(name, P50),
                p80_at=refused.get(name, plays).of(name, P80),
                source=plan.expected[name].source,
                work_share=verdicts.get(name),
            )
            for name in plan.open
        ),
    )
    return _in_words(forecast, plan, without, zone)


# -- playing


class _Plays:
    """When the stages end in the plays, and the run: seconds from `at`."""

    def __init__(self, at: float, plays: Sequence[Sequence[float]], place: Mapping[str, int], counted: Sequence[int]) -> None:
        self.at = at
        self._plays, self._place, self._counted = plays, place, counted
        self._columns: dict[str, list[float]] = {}

    def of(self, name: str, share: float) -> float:
        """The instant by which the stage is done in so many of the plays."""
        if name not in self._columns:
            number = self._place[name]
            self._columns[name] = sorted(ends[number] for ends in self._plays)
        return self.at + _quantile(self._columns[name], share)

    def end(self, share: float) -> float:
        """The same of the run."""
        return self.at + _quantile(self._whole, share)

    @cached_property
    def _whole(self) -> list[float]:
        return sorted(max((ends[number] for number in self._counted), default=0.0) for ends in self._plays)


class _Plan:
    """What is left of a run, ready to be played with any bonus in it, without it, or with less of it."""

    def __init__(self, run: RunState, known: Known, at: float) -> None:
        self.run, self.at = run, at
        self.stages = [config for config in run.pipeline.stages if not run.stage(config.name).settled]
        self.expected: dict[str, Expectation]
        self.expected, machine = expectations(run, known, at)
        self._machine = [math.exp(machine.mean + machine.stdev * z) for z in _normals("machine")]
        self._outages: Outages = outages(run, at)
        self._seconds: dict[tuple[str, float], list[float]] = {}
        self._place = {config.name: number for number, config in enumerate(self.stages)}
        self._starts: dict[tuple[int, int], list[int]] = {}
        self._played: dict[tuple[float, ...], _Plays] = {}

    @cached_property
    def doomed(self) -> frozenset[str]:
        """Stages that the policy will leave out: something that they need did not succeed."""
        lost = {s.name for s in self.run.stages if s.settled and s.state is not Status.SUCCEEDED}
        for name in _in_order(self.stages):
            if any(need in lost for need in self.run.pipeline.stage(name).needs):
                lost.add(name)
        return frozenset(name for name in lost if name in self._place)

    @property
    def open(self) -> list[str]:
        """The stages that are to be forecast, in listed order."""
        return [config.name for config in self.stages if config.name not in self.doomed]

    def needed(self, name: str) -> set[str]:
        """What the stage needs, and what that needs."""
        direct = set(self.run.pipeline.stage(name).needs)
        return direct.union(*(self.needed(need) for need in direct))

    def undecided(self, config: StageConfig) -> bool:
        """Whether it is a bonus that may still be left out or shortened."""
        stage = self.run.stage(config.name)
        return config.optional and not stage.attempts and not stage.insisted

    def play(self, shares: Mapping[str, float]) -> _Plays:
        """Play with so much of each stage; 0: without it."""
        wanted = tuple(shares.get(config.name, 0.0) for config in self.stages)
        if wanted not in self._played:
            columns = [self._sampled(config.name, share) for config, share in zip(self.stages, wanted, strict=True)]
            plays = [self._one(seconds) for seconds in zip(*columns, strict=True)]
            counted = [number for number, share in enumerate(wanted) if share]
            self._played[wanted] = _Plays(self.at, plays, self._place, counted)
        return self._played[wanted]

    def _one(self, seconds: Sequence[float]) -> list[float]:
        """One play: when each stage ends if they take so long."""
        ends, starts = [0.0] * len(seconds), self._starts
        done = running = 0
        at_work = [(seconds[number], number) for number in self._begun]
        for number in self._begun:
            running |= 1 << number
        heapify(at_work)
        clock = 0.0
        while True:
            key = (done, running)
            for number in starts[key] if key in starts else self._starting(done, running):
                heappush(at_work, (clock + seconds[number], number))
                running |= 1 << number
            if not at_work:
                return ends
            clock, number = heappop(at_work)
            ends[number] = clock
            done |= 1 << number
            running &= ~(1 << number)

    @cached_property
    def _begun(self) -> list[int]:
        """The stages that hold their resource now: at work, or waiting for a moment."""
        taken: dict[Resource, int] = {}
        for wanted in (Running, BackingOff):
            for number, config in enumerate(self.stages):
                stage = self.run.stage(config.name)
                if isinstance(stage.status, wanted) and (wanted is Running or keeps_resource(stage)):
                    taken.setdefault(config.resource, number)
        return sorted(taken.values())

    def _starting(self, done: int, running: int) -> list[int]:
        """What the launch rule starts when these are done and those run; kept in `_starts`."""
        settled = {stage.name for stage in self.run.stages if stage.settled}
        settled |= {config.name for number, config in enumerate(self.stages) if done >> number & 1}
        taken = {config.resource: config.name for number, config in enumerate(self.stages) if running >> number & 1}
        waiting = [config for number, config in enumerate(self.stages) if not (done | running) >> number & 1]

        def ready(config: StageConfig) -> bool:
            begun = isinstance(self.run.stage(config.name).status, BackingOff)
            return begun or cleared(config, settled.__contains__, settled.__contains__)

        self._starts[done, running] = [self._place[config.name] for config in next_in_line(waiting, taken, ready)]
        return self._starts[done, running]

    def _sampled(self, name: str, share: float) -> list[float]:
        """How long the stage goes on in each play, outages included."""
        if share == 0.0 or name in self.doomed:
            return [0.0] * PLAYS
        if (name, share) not in self._seconds:
            alone = self.expected[name].draw(_normals(name), self._machine, share)
            self._seconds[name, share] = self._disturbed(name, alone)
        return self._seconds[name, share]

    def _disturbed(self, name: str, seconds: Sequence[float]) -> list[float]:
        rates = [rate / self._outages.exposure_s for rate in _rates(self._outages.shape)]
        draw = random.Random(f"outages of {name}")
        found = []
        for lasting, rate, first in zip(seconds, rates, _exponentials(name), strict=True):
            whole, next_s = lasting, first / rate
            while next_s < lasting:
                whole += draw.expovariate(1 / self._outages.cost_s)
                next_s += draw.expovariate(rate)
            found.append(whole)
        return found


# -- deciding about each bonus


def _admit(plan: _Plan) -> tuple[dict[str, float], dict[str, float], dict[str, _Plays]]:
    """How much of each stage is in the plan; of each bonus not begun the verdict; of each refused one the plays with it."""
    shares = {config.name: 0.0 if plan.undecided(config) else 1.0 for config in plan.stages if config.name not in plan.doomed}
    verdicts: dict[str, float] = {}
    refused: dict[str, _Plays] = {}
    before = plan.play(shares) if plan.run.deadline_at is not None else None
    for name in _in_order(plan.stages):
        config = plan.run.pipeline.stage(name)
        if name in plan.doomed or not plan.undecided(config):
            continue
        if before is None:
            shares, verdicts[name] = shares | {name: 1.0}, 1.0
            continue
        verdicts[name], in_full = _largest_share(plan, config, shares, before)
        if verdicts[name]:
            shares = shares | {name: verdicts[name]}
            before = plan.play(shares)
        else:
            refused[name] = in_full
    return shares, verdicts, refused


def _largest_share(plan: _Plan, config: StageConfig, shares: Mapping[str, float], before: _Plays) -> tuple[float, _Plays]:
    """The largest share of a bonus that fits, 0 where none does; and the plays with all of it."""
    name = config.name
    missing = {need: 1.0 for need in plan.needed(name) if shares.get(need) == 0.0}
    whole = plan.play({**shares, **missing, name: 1.0})
    if missing:
        return 0.0, whole
    company = tuple(_with_dependents(plan, (name,)) - {name} - plan.doomed)
    if company and config.least_share < 1.0:  # rather less of it, and its evaluation too
        share = _search(plan, config, shares, before, company)
        if share:
            return share, whole
    return _search(plan, config, shares, before, ()), whole


def _search(plan: _Plan, config: StageConfig, shares: Mapping[str, float], before: _Plays, company: tuple[str, ...]) -> float:
    """The largest share with which the bonus and its `company` fit."""

    def fits(count: int) -> bool:
        trial = {**shares, config.name: count / SHARES, **dict.fromkeys(company, 1.0)}
        return _fits(plan, plan.play(trial), before, shares, (config.name, *company))

    least = max(1, math.ceil(config.least_share * SHARES - 1e-9))
    if fits(SHARES):
        return 1.0
    if least == SHARES or not fits(least):
        return 0.0
    high = SHARES
    while high - least > 1:
        middle = (least + high) // 2
        least, high = (middle, high) if fits(middle) else (least, middle)
    return least / SHARES


def _fits(plan: _Plan, plays: _Plays, before: _Plays, shares: Mapping[str, float], names: Sequence[str]) -> bool:
    """Whether these bonuses end in time by their P80 and make nothing late that is in the plan already."""
    deadline = plan.run.deadline_at or math.inf
    others = (other for other, share in shares.items() if share and other not in names)
    return all(plays.of(name, P80) <= deadline for name in names) and all(
        plays.of(other, P80) <= deadline or plays.of(other, P80) <= before.of(other, P80) for other in others
    )


def _leave_out(plan: _Plan, shares: Mapping[str, float], plays: _Plays) -> tuple[tuple[str, ...], _Plays | None]:
    """Of the bonuses in the plan, those without which a deadline that does not hold would hold, and the plays without them."""
    deadline = plan.run.deadline_at
    bonuses = [config.name for config in plan.stages if config.optional and shares.get(config.name)]
    if deadline is None or plays.end(P80) <= deadline:
        return (), None
    for names in (*((name,) for name in reversed(bonuses)), tuple(bonuses)):
        without = plan.play({**shares, **dict.fromkeys(_with_dependents(plan, names), 0.0)})
        if names and without.end(P80) <= deadline:
            return names, without
    return (), None


def _with_dependents(plan: _Plan, names: Iterable[str]) -> set[str]:
    gone = set(names)
    for name in _in_order(plan.stages):
        if any(need in gone for need in plan.run.pipeline.stage(name).needs):
            gone.add(name)
    return gone


def _in_order(stages: Sequence[StageConfig]) -> list[str]:
    """Names, each after what it waits for, else as listed."""
    known = {config.name for config in stages}
    graph = {config.name: [name for name in (*config.needs, *config.after) if name in known] for config in stages}
    return list(TopologicalSorter(graph).static_order())


# -- in words


def _in_words(forecast: Forecast, plan: _Plan, without: _Plays | None, zone: tzinfo | None) -> Forecast:
    def when(at: float) -> str:
        return words.near(at, forecast.at, zone)

    done = f"done by {when(forecast.p80_at)} with 80 % certainty"
    if forecast.deadline_at is None:
        return replace(forecast, text=f"D{done[1:]}, as likely as not by {when(forecast.p50_at)}.")
    deadline = f"deadline {when(forecast.deadline_at)}"
    if forecast.fits:
        out = _titles(plan, (stage.stage for stage in forecast.stages if stage.work_share == 0.0))
        return replace(forecast, text=f"The {deadline} holds{f' without {out}' if out else ''}: {done}.")
    late = f"the {deadline} is missed by {words.duration(forecast.p80_at - forecast.deadline_at)}"
    if without is None:
        choice = "leaving out a bonus would not help" if _has_bonus(plan) else "there is no bonus left to leave out"
    else:
        choice = f"without {_titles(plan, forecast.leave_out)} it fits ({when(without.end(P80))})"
    return replace(forecast, choice=f"{choice[0].upper()}{choice[1:]}.", text=f"{late[0].upper()}{late[1:]}: {done}; {choice}.")


def _has_bonus(plan: _Plan) -> bool:
    return any(config.optional and config.name not in plan.doomed and not plan.undecided(config) for config in plan.stages)


def _titles(plan: _Plan, names: Iterable[str]) -> str:
    found = [plan.run.pipeline.stage(name).title or name for name in names]
    return f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else "".join(found)


# -- draws, the same in every forecast


@lru_cache(maxsize=64)
def _normals(name: str) -> tuple[float, ...]:
    """Standard normal numbers, one from each of PLAYS equally likely stretches, in an order that belongs to `name`."""
    draw = random.Random(name)
    found = [NORMAL.inv_cdf((number + 0.5) / PLAYS) for number in range(PLAYS)]
    draw.shuffle(found)
    return tuple(found)


@lru_cache(maxsize=64)
def _exponentials(name: str) -> tuple[float, ...]:
    """The same of the exponential distribution of mean 1."""
    return tuple(-math.log(NormalDist().cdf(z)) for z in _normals(f"first outage of {name}"))


@lru_cache(maxsize=4)
def _rates(shape: float) -> tuple[float, ...]:
    """Gamma-distributed numbers of this shape and scale 1."""
    draw = random.Random("rates")
    return tuple(max(1e-9, draw.gammavariate(shape, 1.0)) for _ in range(PLAYS))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

"""A simulated world for plans: random pipelines run by the real policy while stages take longer or shorter than anybody thought.

Nothing here is drawn as the forecast draws: machines differ by a uniform factor, budgets by a gamma distribution, estimates by a
mixture with wide tails; the pace wanders within a stage, the power fails for everything at once, and stages crash by themselves.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec.structs import replace

from daemon import policy
from daemon.clock import Now
from daemon.effects import Launch, Seen, Stop
from daemon.ending import Sight
from daemon.planning.expectation import Known, Pace
from daemon.planning.forecast import foresee
from daemon.planning.turns import cleared
from state.contract import ExitRecord, Progress, Result, Spec
from state.forecast import Estimate, Forecast, digest_of
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import BackingOff, RunState, StageState

T0 = 1_770_919_200.0
HOUR_S = 3600.0
UNITS = 1000.0
PIECES = 12


@dataclass
class Truth:
    """What a stage really takes, and how far it is."""

    load_s: float
    work_s: float
    deliver_s: float
    ends: list[float]
    """Share of `work_s` by which each twelfth of the units is done: the pace wanders."""
    share: float = 0.0
    began_s: float = 0.0
    began_share: float = 0.0
    crash_s: float = math.inf
    work_share: float = 1.0

    def worked(self, share: float) -> float:
        """Seconds of work until `share` of the units is done."""
        place = min(PIECES - 1, int(share * PIECES))
        low, high = (self.ends[place - 1] if place else 0.0), self.ends[place]
        return self.work_s * self.work_share * (low + (high - low) * (share * PIECES - place))

    def share_at(self, now_s: float) -> float:
        """Of the units, while the attempt is at work."""
        spent_s = now_s - self.began_s - self.load_s
        if spent_s <= 0:
            return self.began_share
        told = (self.worked(self.began_share) + spent_s) / (self.work_s * self.work_share)
        if told >= 1.0:
            return 1.0
        place = bisect_right(self.ends, told)
        low, high = (self.ends[place - 1] if place else 0.0), self.ends[place]
        return (place + (told - low) / (high - low)) / PIECES

    @property
    def end_s(self) -> float:
        """When the attempt at work succeeds."""
        return self.began_s + self.load_s + self.worked(1.0) - self.worked(self.began_share) + self.deliver_s


@dataclass
class World:
    """One run in its world; `now_s` counts from the run's start."""

    seed: int
    deadline_s: float | None = None
    now_s: float = 0.0
    launched: list[Spec] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.draw = random.Random(f"world {self.seed}")
        self.pipeline, self.estimates = _pipeline(self.draw)
        machine = self.draw.uniform(0.7, 1.3)
        self.truths = {config.name: self._truth(config, machine) for config in self.pipeline.stages}
        self.cuts_h = self.draw.uniform(24.0, 150.0)
        self.crashes_h = self.draw.uniform(50.0, 400.0)
        self.paces: dict[str, Pace] = {}
        self.boot = 1
        states = tuple(StageState(name=config.name) for config in self.pipeline.stages)
        self.run = RunState(
            id=f"w{self.seed}",
            pipeline=self.pipeline,
            pipeline_path="p.toml",
            started_at=T0,
            stages=states,
            deadline_at=None if self.deadline_s is None else T0 + self.deadline_s,
        )
        self.cut_s = self._next_cut()
        self._take(*policy.begin(self.run, self._now()))

    def known(self) -> Known:
        """What the daemon would know."""
        for name in self._running():
            truth, attempt = self.truths[name], len(self.run.stage(name).attempts)
            if self.now_s > truth.began_s + truth.load_s:
                began = Progress(at=T0 + truth.began_s + truth.load_s, done=truth.began_share * UNITS, total=UNITS)
                last = Progress(at=T0 + self.now_s, done=truth.share_at(self.now_s) * UNITS, total=UNITS)
                self.paces[name] = Pace(attempt, began, last)
        return Known(dict(self.paces), self.estimates)

    def foresee(self) -> Forecast:
        """The forecast that the daemon would have now."""
        return foresee(self.run, self.known(), T0 + self.now_s)

    def _in_question(self) -> bool:
        """A bonus could begin as far as what it waits for goes."""
        state = {stage.name: stage for stage in self.run.stages}
        return any(
            config.optional
            and state[config.name].state == "PENDING"
            and cleared(config, lambda name: state[name].state == "SUCCEEDED", lambda name: state[name].settled)
            for config in self.pipeline.stages
        )

    def go(self, until_s: float = math.inf) -> None:
        """Let time pass up to `until_s` or the end of the run."""
        self.step(())
        while not self.run.finished:
            due_s = self._next()
            if due_s > until_s or due_s == math.inf:
                self.now_s = max(self.now_s, until_s) if until_s < math.inf else self.now_s
                return
            self.now_s = max(self.now_s, due_s)
            if self.now_s >= self.cut_s:
                self._power_cut()
            else:
                self.step(self._dead())

    def step(self, sights: tuple[Sight, ...]) -> None:
        self._take(*policy.step(self.run, Seen(sights=sights), self._now()))
        if self.deadline_s is not None and self._in_question():
            self._take(*policy.step(self.run, Seen(forecast=self.foresee()), self._now()))

    def _now(self) -> Now:
        return Now(at=T0 + self.now_s, monotonic_s=self.now_s, boot=str(self.boot))

    def _take(self, run: RunState, effects: list[object]) -> None:
        self.run = replace(run, untold=())
        for effect in effects:
            if isinstance(effect, Launch):
                self.launched.append(effect.spec)
                truth = self.truths[effect.spec.stage]
                truth.began_s, truth.began_share, truth.work_share = self.now_s, truth.share, effect.spec.work_share
                truth.crash_s = self.now_s + self.draw.expovariate(1 / (self.crashes_h * HOUR_S))
            elif isinstance(effect, Stop):
                self.stopped.append(effect.stage)

    def _running(self) -> list[str]:
        return [stage.name for stage in self.run.stages if stage.state == "RUNNING"]

    def _next(self) -> float:
        """When something happens next."""
        ends = [min(self.truths[name].end_s, self.truths[name].crash_s) for name in self._running()]
        waits = [s.status.due_monotonic_s for s in self.run.stages if isinstance(s.status, BackingOff)]
        late = [due_s for due_s in waits if due_s > self.now_s]
        return min([*ends, *late, self.cut_s] if ends or late else [math.inf])

    def _dead(self) -> tuple[Sight, ...]:
        sights = []
        for name in self._running():
            truth, number = self.truths[name], len(self.run.stage(name).attempts)
            if self.now_s >= truth.end_s:
                receipt = Result(stage=name, attempt=number, at=T0 + self.now_s)
                record = ExitRecord(code=0, at=T0 + self.now_s)
                sights.append(Sight(name, number, alive=False, code=0, record=record, receipt=receipt, ended_at=T0 + self.now_s))
            elif self.now_s >= truth.crash_s:
                self._lose(truth)
                record = ExitRecord(code=1, at=T0 + self.now_s, error="E", message="why")
                sights.append(
                    Sight(name, number, alive=False, code=1, record=record, checkpoint_step=number, ended_at=T0 + self.now_s)
                )
        return tuple(sights)

    def _power_cut(self) -> None:
        """Everything goes down; after a while the daemon is back and finds what is left."""
        cut_at, running = T0 + self.now_s, self._running()
        self.known()
        for name in running:
            self._lose(self.truths[name])
        self.now_s += self.draw.uniform(120.0, 3000.0)
        self.boot += 1
        self.cut_s = self._next_cut()
        self._take(*policy.begin(self.run, self._now()))
        number = {name: len(self.run.stage(name).attempts) for name in running}
        sights = tuple(
            Sight(name, number[name], alive=False, adopted=True, checkpoint_step=number[name], ended_at=cut_at) for name in running
        )
        self.step(sights)

    def _lose(self, truth: Truth) -> None:
        """Back to the last checkpoint."""
        lost_s = self.draw.uniform(0.0, 1200.0)
        back = truth.share_at(self.now_s) - lost_s / (truth.work_s * truth.work_share)
        truth.share = max(truth.began_share, back)

    def _next_cut(self) -> float:
        return self.now_s + self.draw.weibullvariate(self.cuts_h * HOUR_S, 1.3)

    def _truth(self, config: StageConfig, machine: float) -> Truth:
        estimate = self.estimates.get(config.name)
        if estimate is not None:
            wide = self.draw.random() < 0.15
            total_s = estimate.seconds * math.exp(self.draw.gauss(0.0, (1.6 if wide else 0.87) * estimate.spread))
            fixed_s = total_s * estimate.fixed_s / estimate.seconds
        else:
            total_s = (config.budget_h or 1.0) * HOUR_S * self.draw.gammavariate(4.0, 1.0) / 5.515  # four of five keep to it
            fixed_s = total_s * 0.05
        total_s, fixed_s = max(60.0, total_s * machine), fixed_s * machine
        slow, slowness = 0.0, []
        for _ in range(PIECES):
            slow = 0.6 * slow + self.draw.gauss(0.0, 0.12)
            slowness.append(math.exp(slow))
        whole, ends = sum(slowness), [0.0]
        for one in slowness:
            ends.append(ends[-1] + one / whole)
        return Truth(fixed_s / 2, total_s - fixed_s, fixed_s / 2, [*ends[1:-1], 1.0])


def held(seeds: Iterable[int]) -> dict[str, list[tuple[bool, bool]]]:
    """For a forecast at the start of each world and one on the way: whether the run was over by its P50 and by its P80."""
    found: dict[str, list[tuple[bool, bool]]] = {"at the start": [], "on the way": []}
    for seed in seeds:
        world = World(seed)
        world.go(0.0)
        made = {"at the start": world.foresee()}
        world.go((0.2, 0.4, 0.6, 0.8)[seed % 4] * (made["at the start"].p50_at - T0))
        if not world.run.finished:
            made["on the way"] = world.foresee()
        world.go()
        end_at = world.run.finished_at or 0.0
        for moment, forecast in made.items():
            found[moment].append((end_at <= forecast.p50_at, end_at <= forecast.p80_at))
    return found


def _pipeline(draw: random.Random) -> tuple[Pipeline, dict[str, Estimate]]:
    """Four to eight stages, the GPU's mostly, that wait for each other as the real one's do; some rehearsed, all budgeted."""
    stages: list[StageConfig] = []
    estimates: dict[str, Estimate] = {}
    rehearsed = draw.random() < 0.6
    for number in range(draw.randint(4, 8)):
        before = [stage for stage in stages if draw.random() < 0.45]
        optional = number > 1 and draw.random() < 0.3
        needs = tuple(stage.name for stage in before if draw.random() < 0.6 and (optional or not stage.optional))
        config = StageConfig(
            name=f"s{number}",
            module="tests.process.probe",
            resource=draw.choice([Resource.GPU, Resource.GPU, Resource.GPU, Resource.CPU, Resource.NETWORK]),
            needs=needs,
            after=tuple(stage.name for stage in before if stage.name not in needs),
            optional=optional,
            least_share=draw.choice([1.0, 0.4]) if optional else 1.0,
            budget_h=math.exp(draw.uniform(math.log(0.3), math.log(25.0))),
        )
        stages.append(config)
        if rehearsed:
            seconds = (config.budget_h or 1.0) * HOUR_S * draw.uniform(0.4, 1.1)
            estimates[config.name] = Estimate(
                stage=config.name,
                digest=digest_of(config),
                at=T0,
                source="rehearsal",
                seconds=seconds,
                spread=draw.uniform(0.15, 0.35),
                fixed_s=seconds * draw.uniform(0.02, 0.15),
            )
    return Pipeline(name="w", stages=tuple(stages)), estimates

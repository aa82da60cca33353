"""What the policy makes of a forecast: bonuses begin, are shortened or left out, and the owner is told once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from daemon import policy
from daemon.clock import Now
from daemon.effects import Launch, Seen, Stop, Tell
from daemon.ending import Sight
from daemon.planning.plan import FRESH_S
from daemon.planning.turns import cleared
from state.contract import Command, CommandKind, ExitRecord, Result
from state.forecast import Forecast, StageForecast
from state.machine import Status
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import PlanTold, RunState, StageState
from tests.unit.daemon.plan_world import World

HOUR_S = 3600.0
DEADLINE_AT = 1000.0 + 30 * HOUR_S


def gpu(name, **more):
    return StageConfig(name=name, module="stages.train_x", resource=Resource.GPU, **more)


BONUS, REQUIRED = gpu("bonus", optional=True), gpu("required", needs=("first",))
FIRST = StageConfig(name="first", module="stages.corpus")


def make_run(*stages, deadline_at=DEADLINE_AT, plan=None):
    return RunState(
        id="r",
        pipeline=Pipeline(name="p", stages=stages),
        pipeline_path="p.toml",
        started_at=1000.0,
        deadline_at=deadline_at,
        plan=plan,
        stages=tuple(StageState(name=stage.name) for stage in stages),
    )


def at(seconds):
    return Now(at=1000.0 + seconds, monotonic_s=seconds, boot="b")


def forecast(seconds=0.0, late_h=-5.0, deadline_at=DEADLINE_AT, choice="", **shares):
    """Made at `seconds`; the run's P80 lies `late_h` after the deadline, and each bonus has its share."""
    p80_at = DEADLINE_AT + late_h * HOUR_S
    stages = tuple(
        StageForecast(stage=name, p50_at=p80_at, p80_at=p80_at, source="budget", work_share=share) for name, share in shares.items()
    )
    return Forecast(
        at=1000.0 + seconds,
        p50_at=p80_at,
        p80_at=p80_at,
        deadline_at=deadline_at,
        stages=stages,
        choice=choice,
        text=f"In words: {late_h:g}.",
    )


def step(run, seen, now):
    run, effects = policy.step(run, seen, now)
    return replace(run, untold=()), effects


def launched(effects):
    return {effect.spec.stage: effect.spec for effect in effects if isinstance(effect, Launch)}


def told(effects, prefix="plan."):
    return [effect.fact for effect in effects if isinstance(effect, Tell) and effect.fact.kind.startswith(prefix)]


def finished(run, name, seconds):
    number = len(run.stage(name).attempts)
    receipt = Result(stage=name, attempt=number, at=1000.0 + seconds)
    return Sight(name, number, alive=False, code=0, record=ExitRecord(code=0, at=1000.0 + seconds), receipt=receipt)


def test_a_bonus_waits_for_a_forecast_and_keeps_nobody_from_starting():
    """None, one that is old, of another deadline or without the stage: it waits. A required stage slips in before it."""
    run = make_run(BONUS, FIRST, REQUIRED)
    for seen in (None, forecast(-FRESH_S - 1, bonus=1.0), forecast(deadline_at=DEADLINE_AT - 1, bonus=1.0), forecast(other=1.0)):
        run, effects = step(run, Seen(forecast=seen), at(0))
        assert "bonus" not in launched(effects)
    run, effects = step(run, Seen(sights=(finished(run, "first", 1),)), at(1))
    assert list(launched(effects)) == ["required"]


def test_a_bonus_that_fits_begins():
    """With all of its work; without a deadline it asks no forecast."""
    _, effects = step(make_run(BONUS), Seen(forecast=forecast(bonus=1.0)), at(0))
    assert launched(effects)["bonus"].work_share == 1.0
    assert not told(effects, "plan.shortened")
    assert launched(step(make_run(BONUS, deadline_at=None), Seen(), at(0))[1])


def test_a_bonus_that_fits_in_part_is_shortened_for_good():
    """The share is settled when it begins, told, and every later attempt has the same, whatever forecasts say by then."""
    run, effects = step(make_run(BONUS), Seen(forecast=forecast(bonus=0.6)), at(0))
    assert launched(effects)["bonus"].work_share == 0.6
    (fact,) = told(effects, "plan.shortened")
    assert fact.text == "bonus gets 60 % of its work: for all of it there is no time before the deadline"
    crash = Sight("bonus", 1, alive=False, code=1, record=ExitRecord(code=1, at=1001.0, error="E", message="m"))
    run, _ = step(run, Seen(sights=(crash,), forecast=forecast(bonus=1.0)), at(1))
    run, effects = step(run, Seen(forecast=forecast(9, bonus=0.0)), at(10))
    assert launched(effects)["bonus"].work_share == 0.6
    assert launched(effects)["bonus"].attempt == 2
    assert not told(effects, "plan.shortened")


def test_a_bonus_for_which_there_is_no_time_is_left_out_until_the_owner_asks():
    """With the reason; `retry` brings it and what needs it back, and then no forecast is asked."""
    needy = gpu("needy", needs=("bonus",), optional=True)
    run, effects = step(make_run(BONUS, needy, FIRST), Seen(forecast=forecast(late_h=3.0, bonus=0.0, needy=0.0)), at(0))
    assert run.stage("bonus").status.reason == "there is no time for it: it may end 3 h after the deadline"
    assert run.stage("bonus").status.by == "policy"
    run, _ = step(run, Seen(), at(1))
    assert run.stage("needy").state is Status.SKIPPED
    asked = Command(id="c", kind=CommandKind.RETRY, at=1002.0, stage="bonus")
    run, effects = step(run, Seen(commands=(asked,), forecast=forecast(2, bonus=0.0, needy=0.0)), at(2))
    assert launched(effects)["bonus"].work_share == 1.0
    run, effects = step(run, Seen(sights=(finished(run, "bonus", 3),), forecast=forecast(3, needy=0.0)), at(3))
    assert "needy" in launched(effects)


def test_to_retry_a_required_stage_is_not_to_ask_for_its_bonuses():
    """What comes back with it begins only if there is time."""
    run, _ = step(make_run(FIRST, replace(BONUS, needs=("first",))), Seen(), at(0))
    wrong = Sight("first", 1, alive=False, code=78, record=ExitRecord(code=78, at=1001.0, error="E", message="m"))
    run, _ = step(run, Seen(sights=(wrong,)), at(1))
    assert run.stage("bonus").state is Status.SKIPPED
    run, _ = step(run, Seen(commands=(Command(id="c", kind=CommandKind.RETRY, at=1002.0, stage="first"),)), at(2))
    run, effects = step(run, Seen(sights=(finished(run, "first", 3),), forecast=forecast(3, late_h=2.0, bonus=0.0)), at(3))
    assert not launched(effects)
    assert run.stage("bonus").status.reason.startswith("there is no time for it")


def test_after_the_deadline_no_bonus_begins():
    """It needs no forecast for that, so that a run whose forecast fails ends all the same."""
    run, _ = step(make_run(BONUS), Seen(), at(31 * HOUR_S))
    assert run.stage("bonus").status.reason == "there is no time for it: the deadline has passed"
    assert run.finished


def test_a_required_stage_asks_no_forecast():
    """However late it will be."""
    assert launched(step(make_run(gpu("a")), Seen(forecast=forecast(late_h=99, a=0.0)), at(0))[1])
    assert launched(step(make_run(gpu("a")), Seen(), at(99 * HOUR_S))[1])


def test_a_bonus_at_work_is_told_about_and_not_ended():
    """The plan says that it will be late: the owner has the choice, nothing is signalled."""
    run, _ = step(make_run(BONUS), Seen(forecast=forecast(bonus=1.0)), at(0))
    seen = forecast(60, late_h=4.0, choice="Without bonus it fits (Mon 21:10).")
    run, effects = step(run, Seen(forecast=replace(seen, leave_out=("bonus",))), at(60))
    (fact,) = told(effects)
    assert (fact.kind, fact.level, fact.text) == ("plan.slipped", "warning", "In words: 4.")
    assert fact.fields["leave_out"] == ["bonus"]
    assert fact.fields["choice"] == "Without bonus it fits (Mon 21:10)."
    assert not [effect for effect in effects if isinstance(effect, Stop)]
    assert run.stage("bonus").state is Status.RUNNING


def test_the_plan_is_told_when_it_is_made_when_it_slips_and_when_it_holds_again():
    """Each once: a forecast that says nothing new tells nothing, and a deadline just kept is no news yet."""
    story = [
        (-5.0, ["plan.made"]),
        (-5.0, []),
        (-3.5, []),
        (-2.9, ["plan.slipped"]),
        (-1.0, []),
        (0.1, ["plan.slipped"]),
        (1.9, []),
        (2.2, ["plan.slipped"]),
        (-0.4, []),
        (0.5, []),
        (-0.6, ["plan.recovered"]),
        (-0.6, []),
        (0.1, ["plan.slipped"]),
    ]
    run = make_run(gpu("a"))
    for number, (late_h, kinds) in enumerate(story):
        run, effects = step(run, Seen(forecast=forecast(number, late_h=late_h)), at(number))
        assert [fact.kind for fact in told(effects)] == kinds, number
    assert run.plan == PlanTold(p80_at=DEADLINE_AT + 0.1 * HOUR_S, late=True)


def test_a_plan_that_is_late_from_the_start_is_told_as_such():
    """Made, and missed: two facts of one forecast."""
    _, effects = step(make_run(gpu("a")), Seen(forecast=forecast(late_h=1.0)), at(0))
    assert [fact.kind for fact in told(effects)] == ["plan.made", "plan.slipped"]


def test_without_a_deadline_nothing_is_told_of_the_plan():
    """Nobody waits for it."""
    _, effects = step(make_run(gpu("a"), deadline_at=None), Seen(forecast=forecast(deadline_at=None)), at(0))
    assert not told(effects)


class Whim(World):
    """A world whose forecasts are drawn at random: none, old ones, any share."""

    def step(self, sights):
        """Every step is checked against what the plan must never do."""
        before, moods = self.run, random.Random(f"{self.seed} {self.now_s}")
        shares = {config.name: moods.choice([1.0, 0.5, 0.0]) for config in self.pipeline.stages if config.optional}
        seen = forecast(self.now_s, deadline_at=self.run.deadline_at, **shares)
        seen = moods.choice([None, replace(seen, at=self._now().at - moods.choice([0.0, 200.0, 400.0]))])
        stops = len(self.stopped)
        begun = len(self.launched)
        self._take(*policy.step(before, Seen(sights=sights, forecast=seen), self._now()))
        assert len(self.stopped) == stops  # no attempt was signalled
        self._nobody_waits()
        for spec in self.launched[begun:]:
            self._begins_rightly(before, spec, seen)

    def _nobody_waits(self):
        """A required stage whose turn it is starts at once: its resource is held by one that has begun."""
        stages = {stage.name: stage for stage in self.run.stages}
        busy = {
            self.pipeline.stage(stage.name).resource
            for stage in self.run.stages
            if stage.state is Status.RUNNING or stage.state is Status.BACKING_OFF
        }
        for config in self.pipeline.stages:
            ready = cleared(config, lambda name: stages[name].state is Status.SUCCEEDED, lambda name: stages[name].settled)
            if not config.optional and stages[config.name].state is Status.PENDING and ready:
                assert config.resource in busy

    def _begins_rightly(self, before, spec, seen):
        config, stage = self.pipeline.stage(spec.stage), before.stage(spec.stage)
        if not config.optional:
            assert spec.work_share == 1.0
        elif stage.attempts:
            assert spec.work_share == stage.work_share
        else:
            assert seen is not None
            assert abs(self._now().at - seen.at) <= FRESH_S
            assert spec.work_share == seen.stage(spec.stage).work_share > 0


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), deadline_h=st.floats(1.0, 60.0))
def test_whatever_the_forecast_says_no_required_stage_waits_and_none_is_cut(seed, deadline_h):
    """Random pipelines, power cuts and crashes, and a forecast that is random at every step: the run still comes to its end."""
    world = Whim(seed, deadline_s=deadline_h * HOUR_S)
    for _ in range(2000):
        if world.run.finished:
            break
        world.go(world.now_s + HOUR_S)
    assert world.run.finished
    required = [stage for stage in world.run.stages if not world.pipeline.stage(stage.name).optional]
    assert {stage.state for stage in required} <= {Status.SUCCEEDED}


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_pause_decides_nothing(share):
    """While the run is paused no bonus is begun nor left out."""
    run = replace(make_run(BONUS), paused=True)
    run, effects = step(run, Seen(forecast=forecast(bonus=share)), at(0))
    assert run.stage("bonus").state is Status.PENDING
    assert not launched(effects)

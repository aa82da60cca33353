"""The verdict of a rehearsal, what is to be mended, and its words."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from daemon.before_leaving.rehearse_measure import Measured, Pace
from daemon.before_leaving.rehearse_result import Found, Machine, Ready, advise, as_object, expected, found, hopeless, text
from daemon.config import load
from state.contract import Outcome
from state.forecast import Estimate, Forecast
from state.pipeline import Pipeline
from state.snapshot import Attempt, Failed, Running, RunState, Skipped, StageState, Succeeded

ROOT = Path(__file__).resolve().parents[4]
MACHINE = Machine(memory_bytes=32_000_000_000, gpu="NVIDIA RTX 5080", gpu_bytes=16_000_000_000)
TOLD = Measured(took_s=60.0, useful_s=50.0, killed=True, memory_bytes=3_000_000_000, gpu_bytes=9_000_000_000)
LOOK, AGAIN = "./vigil log --workspace w", "./vigil rehearse p.toml --workspace w"
T0 = 1_770_919_200.0


def pipeline() -> Pipeline:
    return load(ROOT / "pipelines" / "seattle.toml", ["download.url=x", "corpus.source=x"])


def estimate(name: str, seconds: float) -> Estimate:
    return Estimate(stage=name, digest="d", at=T0, source="rehearsal", seconds=seconds, spread=0.15, detail="2.0 s a step")


def attempts(*outcomes: Outcome, reason: str = "it broke") -> tuple[Attempt, ...]:
    return tuple(
        Attempt(number=number, started_at=T0, ended_at=T0 + 9, outcome=outcome, reason=reason)
        for number, outcome in enumerate(outcomes, start=1)
    )


def ended(name: str, outcome: Outcome, reason: str) -> StageState:
    status = Succeeded(at=T0) if outcome is Outcome.SUCCEEDED else Failed(at=T0, reason=reason, outcome=outcome)
    return StageState(name=name, status=status, attempts=attempts(outcome, reason=reason))


def rehearsed(bad: dict[str, tuple[Outcome, str]], only: tuple[str, ...] = ()) -> tuple[Found, ...]:
    """What is found when these stages end badly and all others well."""
    owner = pipeline()
    names = [stage.name for stage in owner.stages if not only or stage.name in only]
    stages = tuple(ended(name, *bad.get(name, (Outcome.SUCCEEDED, ""))) for name in names)
    run = RunState(id="r", pipeline=owner, pipeline_path="p", started_at=T0, stages=stages, finished_at=T0)
    return found(owner, run, dict.fromkeys(names, TOLD), {name: estimate(name, 3600.0) for name in names if name not in bad})


def ready(stages: tuple[Found, ...], forecast: Forecast | None = None) -> Ready:
    advice = advise(stages, MACHINE, forecast, LOOK, AGAIN)
    return Ready(pipeline="P", at=T0, took_s=600.0, machine=MACHINE, stages=stages, advice=advice, forecast=forecast)


def test_all_well_is_ready_to_leave() -> None:
    """Every stage rehearsed: one short sentence, nothing to mend."""
    answer = ready(rehearsed({}))
    assert (answer.verdict, answer.good, answer.advice) == ("Ready to leave.", True, ())
    assert {one.state for one in answer.stages} == {"rehearsed"}


def test_a_required_stage_that_fails_is_red_and_names_its_commands() -> None:
    """The stage's own reason, the next step of its outcome, and how to look and to try again; what needs it follows from it."""
    answer = ready(
        rehearsed({"corpus": (Outcome.MISCONFIGURED, "KJV is not there; give its folder"), "train_marian": (Outcome.CRASHED, "x")})
    )
    assert (answer.verdict, answer.good) == ("Not ready: 1 thing to mend.", False)
    (advice,) = answer.advice
    assert advice.text == "Bible corpus failed: KJV is not there; give its folder. Correct that, then rehearse the stage again."
    assert advice.commands == (f"{LOOK} corpus", f"{AGAIN} --stage corpus")
    states = {one.stage: (one.state, one.reason) for one in answer.stages}
    assert states["train_marian"] == ("not rehearsed", "needs corpus")
    assert states["train_gemma_4b"][0] == "rehearsed", "it went on with what there was"


def test_a_bonus_that_fails_is_a_warning() -> None:
    """The 12B does not fit: told with its reason, and the owner may leave all the same."""
    answer = ready(rehearsed({"train_gemma_12b": (Outcome.OUT_OF_MEMORY, "one example alone does not fit")}))
    assert (answer.verdict, answer.good) == ("Ready to leave, with 1 warning.", True)
    assert answer.advice[0].level == "yellow"
    assert "a bonus: the run goes on without it" in answer.advice[0].text
    assert "smaller model" in answer.advice[0].text


def test_what_was_not_asked_for_is_not_called_ready() -> None:
    """After `--stage` the verdict says how far it holds."""
    answer = ready(rehearsed({}, only=("corpus",)))
    assert (answer.verdict, answer.good) == ("Ready, as far as it was rehearsed.", True)


def test_a_resume_that_began_anew_is_red() -> None:
    """A training that lost its checkpoint over the kill would lose days: that is a thing to mend."""
    step = Pace(unit="step", here=6, each_s=1.0)
    lost = tuple(
        replace(one, resumed=False, measured=replace(TOLD, step=step, resumed_step=0)) if one.stage == "train_marian" else one
        for one in rehearsed({})
    )
    answer = ready(lost)
    assert not answer.good
    assert "began anew after the kill" in answer.advice[0].text


@pytest.mark.parametrize(("step", "resumed"), [(None, None), (0, False), (3, True)])
def test_whether_it_resumed_is_read_from_its_steps(step: int | None, resumed: bool | None) -> None:
    """A training that was killed resumed if its next attempt began behind a checkpoint; one that was not killed says nothing."""
    pace = Pace(unit="step", here=6, each_s=1.0)
    told = replace(TOLD, step=pace, resumed_step=step, killed=step is not None)
    run = RunState(id="r", pipeline=pipeline(), pipeline_path="p", started_at=T0, stages=(ended("corpus", Outcome.SUCCEEDED, ""),))
    (one,) = (one for one in found(pipeline(), run, {"corpus": told}, {}) if one.stage == "corpus")
    assert one.resumed is resumed


def test_memory_nearly_used_up_is_a_warning() -> None:
    """15.2 of 16 GB of the GPU: it fits, and nothing may run beside it."""
    tight = tuple(replace(one, measured=replace(TOLD, gpu_bytes=15_200_000_000)) for one in rehearsed({})[:1])
    (advice,) = ready(tight).advice
    assert advice.text == "Sermon download took 15 GB of 16 GB GPU memory: nothing else may run beside it."


def test_what_a_stage_went_without_is_a_warning() -> None:
    """An evaluation that succeeds without the 12B, which has no licence yet, says so before the owner leaves."""
    words = "TranslateGemma-12B: row left out: model google/translategemma-12b-it: accept its licence on the hub"
    (advice,) = ready(tuple(replace(one, measured=replace(TOLD, warnings=(words,))) for one in rehearsed({})[4:5])).advice
    assert (advice.level, advice.text) == ("yellow", f"Baseline evaluation: {words}.")


def test_a_deadline_that_does_not_hold_is_told_with_the_choice() -> None:
    """The forecast's own words stand among the warnings, the plan says what is expected."""
    late = Forecast(at=T0, p50_at=T0 + 9e4, p80_at=T0 + 2e5, deadline_at=T0 + 1e5, choice="Without the 12B it fits.")
    answer = ready(rehearsed({}), late)
    assert answer.good
    assert answer.advice[0].text == "The deadline does not hold. Without the 12B it fits."
    assert "does NOT hold by that" in " ".join(text(answer, 80))


def test_a_stage_that_waits_for_disk_was_not_rehearsed() -> None:
    """What never began says why, and is to be mended."""
    owner = pipeline()
    run = RunState(
        id="r", pipeline=owner, pipeline_path="p", started_at=T0, stages=(StageState(name="corpus"),), disk_hold="0.2 GB are free"
    )
    answer = ready(found(owner, run, {}, {}))
    assert answer.verdict == "Not ready: 1 thing to mend."
    assert answer.advice[0].text == "Bible corpus was not rehearsed: 0.2 GB are free."


@pytest.mark.parametrize(
    ("outcomes", "gone"),
    [
        ((Outcome.CRASHED,), False),
        ((Outcome.CRASHED, Outcome.CRASHED), True),
        ((Outcome.TRANSIENT,), False),
        ((Outcome.TRANSIENT, Outcome.TRANSIENT), True),
        ((Outcome.OUT_OF_MEMORY,) * 6, False),
    ],
)
def test_what_fails_twice_is_given_up(outcomes: tuple[Outcome, ...], gone: bool) -> None:
    """The ladder of memory goes down to its end; a crash or a dead network is not waited for as on the trip."""
    assert hopeless(StageState(name="a", status=Running(since=T0), attempts=attempts(*outcomes))) is gone


def test_the_planned_kill_is_no_failure() -> None:
    """The one SIGKILL of the rehearsal itself does not count, a second one does."""
    kill = attempts(Outcome.CRASHED, reason="ended by SIGKILL")
    assert not hopeless(StageState(name="a", attempts=(*kill, *attempts(Outcome.CRASHED))))
    assert hopeless(StageState(name="a", attempts=kill * 3))


def test_what_was_given_up_tells_its_last_reason() -> None:
    """It is skipped by the rehearsal itself: the reason is that of the last attempt, not of the skip."""
    gone = StageState(
        name="download",
        status=Skipped(at=T0, reason="skipped by the owner (rehearsal)", by="owner"),
        attempts=attempts(Outcome.TRANSIENT, Outcome.TRANSIENT, reason="the site does not answer"),
    )
    run = RunState(id="r", pipeline=pipeline(), pipeline_path="p", started_at=T0, stages=(gone,))
    one = found(pipeline(), run, {"download": TOLD}, {})[0]
    assert (one.state, one.reason, one.outcome) == ("failed", "the site does not answer", Outcome.TRANSIENT)


def test_the_text_fits_a_terminal() -> None:
    """80 columns at most, commands apart; every stage has its line."""
    stages = rehearsed(
        {"train_gemma_12b": (Outcome.OUT_OF_MEMORY, "one example alone does not fit beside google/translategemma " * 4)}
    )
    lines = text(ready(stages), 80)
    assert max(len(line) for line in lines if "./vigil" not in line) <= 80
    assert sum(line.startswith(tuple(one.stage for one in stages)) for line in lines) >= len(stages)
    assert expected(estimate("x", 7200.0)) == "2 h ± 15 %"
    assert as_object(ready(stages))["verdict"] == "Ready to leave, with 1 warning."

"""From events to how long a stage will take."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from daemon.before_leaving.rehearse_measure import LEAST_SPREAD, Measured, Pace, Share, brief, estimate, load_s, measure
from state.contract import CheckpointSaved, Event, MemoryFit, Metric, Note, Progress
from state.forecast import digest_of
from state.pipeline import StageConfig
from state.snapshot import Attempt

KILLED = "Rehearsal: killed here by SIGKILL, to see that it resumes"
TRAINING = StageConfig(name="train", module="stages.train_marian", settings={"model": "m", "checkpoint_every_s": 600.0})
EVALUATION = StageConfig(name="evaluate", module="stages.evaluate", settings={})


def step(at: float, number: int) -> Metric:
    return Metric(at=at, values={"loss": 1.0}, step=number)


def saved(at: float, number: int, seconds: float = 0.5) -> CheckpointSaved:
    return CheckpointSaved(at=at, step=number, path="p", seconds=seconds, size_bytes=1000 * number)


def done(at: float, count: float, total: float, unit: str = "segments", message: str = "") -> Progress:
    return Progress(at=at, done=count, total=total, unit=unit, message=message)


def cut(at: float, here: int, whole: int, **more: object) -> Note:
    return Note(at=at, text="Rehearsal", fields={"here": here, "whole": whole, **more})


def attempt(number: int, started_at: float, ended_at: float) -> Attempt:
    return Attempt(number=number, started_at=started_at, ended_at=ended_at)


def training() -> Measured:
    """Load 10 s, a dev score of 4 s, steps of 2 s (the longest 6 s), saves, a kill in step 3, load again 8 s, the end 5 s later."""
    facts = {"sizes": [1.0, 1.0, 1.0, 1.0, 3.0, 1.0], "exact": 99.5, "evaluations": 11, "dev_examples": 50}
    first: list[Event] = [
        cut(105.0, 6, 100, **facts),
        Progress(at=106.0, done=0, total=None, quiet_s=600.0),
        MemoryFit(at=110.0, model="m", device="cpu", micro_batch=16),
        Metric(at=114.0, values={"dev_loss": 2.0}, step=0),
        step(119.0, 1),  # a warm-up: 5 s
        step(121.0, 2),
        saved(122.0, 2),
        Metric(at=122.5, values={"peak_memory_bytes": 5e8}),
        Note(at=123.0, text=KILLED),
    ]
    second: list[Event] = [
        cut(206.0, 6, 100, **facts),
        Note(at=207.0, text="Resumed from step 2, 32 examples seen"),
        Progress(at=207.5, done=0, total=None),
        Progress(at=208.0, done=40, total=96, unit="examples", step=2, steps=6),
        step(211.0, 3),
        step(213.0, 4),
        saved(214.0, 4),
        step(221.0, 5),  # right behind a save
        step(223.0, 6),
        Metric(at=227.0, values={"dev_loss": 1.5}, step=6),
        saved(228.0, 6),
        Metric(at=232.0, values={"peak_memory_bytes": 6e8, "peak_gpu_bytes": 7e9}),
    ]
    return measure([attempt(1, 100.0, 123.0), attempt(2, 200.0, 233.0)], [first, second])


def test_a_training_is_measured_without_warm_ups_and_saves() -> None:
    """Steps count only right behind another step; load, scores, saves, peaks and the resume are found in the events."""
    seen = training()
    assert seen.step is not None
    assert (seen.step.here, seen.step.each_s, seen.step.spread) == (6, 2.0, 0.0)
    assert (seen.load_s, seen.evaluation_s, seen.evaluations) == (10.0, 4.0, 2)
    assert (seen.save_s, seen.pause_s, seen.saves, seen.checkpoint_bytes) == (1.0, 1.0, 3, 6000)
    assert (seen.memory_bytes, seen.gpu_bytes, seen.micro_batch) == (600_000_000, 7_000_000_000, 16)
    assert (seen.killed, seen.resumed_step) == (True, 2)
    assert (seen.took_s, seen.useful_s) == (56.0, 48.0), "the second load is the kill's cost and no part of the stage"


def test_the_whole_training_is_what_was_measured_and_the_steps_left_out() -> None:
    """100 steps of 2 s and 11 scores of 4 s stand beside what happens once; the digest is that of the owner's stage."""
    found = estimate(TRAINING, training(), Share(), at=5.0)
    once_s = 48.0 - 6 * 2.0 - 2 * 4.0 - 3 * 1.0
    assert found.seconds == pytest.approx(once_s + 100 * 2.0 + 11 * 4.0 + 200.0 / 600.0, abs=0.01)
    assert found.fixed_s == pytest.approx(found.seconds - 200.0, abs=0.01)
    assert (found.source, found.spread, found.digest) == ("rehearsal", LEAST_SPREAD, digest_of(TRAINING))
    assert (found.peak_memory_bytes, found.peak_gpu_bytes) == (600_000_000, 7_000_000_000)
    assert found.detail == (
        "load 10 s, 2.0 s a step, 100 steps in all, 4.0 s an evaluation, 1.0 s a save of 6.0 kB, micro-batch 16"
    )


def test_a_save_in_the_background_costs_what_training_stood_still_for() -> None:
    """Here each save is waited for, so the hour that the measured steps took is freed of all of it; the whole training, whose saves
    are written beside it, pays the copy in memory only. The last save of an attempt is always waited for and counts for neither."""
    told: list[Event] = []
    for number, blocking_s in ((2, 0.1), (4, 0.2), (6, 10.0)):
        told += [step(20.0 * number, number - 1), step(20.0 * number + 2, number)]
        one = saved(20.0 * number + 12, number, seconds=5.0)
        told.append(replace(one, blocking_s=blocking_s))
    seen = measure([attempt(1, 0.0, 140.0)], [told])
    assert (seen.save_s, seen.pause_s) == (10.0, 0.1)
    stage = replace(TRAINING, settings={**TRAINING.settings, "checkpoint_every_steps": 1})
    waited = replace(seen, pause_s=seen.save_s)
    cheap, dear = (estimate(stage, one, Share(times=100.0), at=1.0).seconds for one in (seen, waited))
    assert dear - cheap == pytest.approx(600 * 9.9)


def test_more_data_to_come_means_more_steps() -> None:
    """Where the stage before gave a tenth of its items, ten times the exact steps are expected, and it is said what was assumed."""
    found = estimate(TRAINING, training(), Share(times=10.0, words="taking 30 recordings to be like the 3 here"), at=5.0)
    assert found.seconds - found.fixed_s == pytest.approx(10 * 99.5 * 2.0)
    assert found.spread == 0.3
    assert "995 steps in all" in found.detail
    assert "taking 30 recordings" in found.detail


def test_a_stage_without_a_resume_shows_it() -> None:
    """A training whose second attempt starts with step 1 resumed from step 0: it began anew."""
    told: list[list[Event]] = [[step(1.0, 1), saved(2.0, 1), Note(at=3.0, text=KILLED)], [step(5.0, 1), step(6.0, 2)]]
    assert measure([attempt(1, 0.0, 3.0), attempt(2, 4.0, 7.0)], told).resumed_step == 0


def test_attempts_that_got_nowhere_do_not_count() -> None:
    """Between the kill and the end lie attempts that ran out of memory: the whole stage is not expected to have them."""
    told: list[list[Event]] = [
        [done(2.0, 0, 40), done(4.0, 8, 40), Note(at=4.5, text=KILLED)],
        [done(12.0, 8, 40)],
        [done(22.0, 8, 40), done(24.0, 16, 40), done(28.0, 32, 40), done(30.0, 40, 40)],
    ]
    seen = measure([attempt(1, 0.0, 5.0), attempt(2, 10.0, 19.0), attempt(3, 20.0, 31.0)], told)
    assert (seen.took_s, seen.useful_s) == (25.0, 5.0 + 11.0 - 4.0)
    assert [(pace.unit, pace.here, pace.each_s) for pace in seen.paces] == [("segment", 40, 0.25)]


def test_each_phase_of_an_evaluation_has_its_own_pace() -> None:
    """Each model translates at its own speed, the first batch left out; only these grow with the number of sentences."""
    fast, slow = "translating by fast", "translating by slow"
    told: list[Event] = [
        cut(4.0, 96, 960),
        *(done(at, count, 192, "sentences", fast) for at, count in ((4.0, 0), (10.0, 32), (11.0, 64), (12.0, 96))),
        *(done(at, count, 192, "sentences", slow) for at, count in ((12.0, 96), (20.0, 128), (24.0, 160), (28.0, 192))),
        done(12.5, 96, 192, "sentences", "loading slow"),
        done(29.0, 192, 192, "sentences", "loading slow"),
        done(30.0, 192, 192, "sentences", "scoring"),
    ]
    seen = measure([attempt(1, 0.0, 31.0)], [told])
    assert [(pace.unit, pace.here, pace.each_s) for pace in seen.paces] == [
        (f"sentence ({fast})", 96, 1 / 32),
        (f"sentence ({slow})", 96, 4 / 32),
    ]
    found = estimate(EVALUATION, seen, Share(), at=1.0)
    assert found.seconds == pytest.approx(31.0 + 9 * (96 / 32 + 96 / 8))
    assert not seen.killed


def test_what_was_there_already_tells_nothing_of_the_line() -> None:
    """Two of three recordings were lent and took no time: the third alone gives the pace of the 27 left."""
    told: list[Event] = [done(1.0, 0, 3, "recordings"), done(1.0, 1, 3, "recordings"), done(1.1, 2, 3, "recordings")]
    seen = measure([attempt(1, 0.0, 62.0)], [[*told, done(61.1, 3, 3, "recordings")]], had=2)
    assert [(pace.here, pace.each_s) for pace in seen.paces] == [(1, pytest.approx(60.0, rel=0.01))]
    found = estimate(StageConfig(name="download", module="stages.download"), seen, Share(times=27.0), at=1.0)
    assert found.seconds == pytest.approx(27 * 60.0, rel=0.02)


def test_a_jump_and_a_crumb_are_no_pace() -> None:
    """Where almost all was done between two signs of life, the time of all of it counts and not that of the crumb behind it."""
    told: list[Event] = [done(10.0, 0, 3, "recordings"), done(16.0, 2.99, 3, "recordings"), done(16.3, 3, 3, "recordings")]
    (pace,) = measure([attempt(1, 0.0, 17.0)], [told]).paces
    assert (pace.here, pace.each_s) == (3, pytest.approx(2.1))


def test_a_stage_that_does_all_of_its_work_is_expected_to_take_as_long_again() -> None:
    """Without a cut and without a pace the estimate is the duration."""
    found = estimate(EVALUATION, measure([attempt(1, 0.0, 7.0)], [[]]), Share(), at=1.0)
    assert (found.seconds, found.spread) == (7.0, LEAST_SPREAD)


def test_the_load_ends_with_the_first_sign_of_work() -> None:
    """Notes and announcements of quiet are not yet work; progress that stands still is not either."""
    told: list[Event] = [done(1.0, 24, 40), Note(at=2.0, text="x"), done(3.0, 24, 40), done(9.0, 32, 40)]
    assert load_s(attempt(2, 0.5, 20.0), told) == 8.5
    assert load_s(attempt(2, 0.5, 20.0), told[:3]) == 0.0


def test_only_warnings_that_will_hold_are_taken_over() -> None:
    """What is left out will be left out of the whole stage too; empty translations come of six steps, an info is no warning."""
    told: list[Event] = [
        Note(at=1.0, text="12B: row left out: no licence", level="warning"),
        Note(at=1.0, text="no COMET score: its environment is not there", level="warning"),
        Note(at=1.0, text="24 of 24 translations are empty", level="warning"),
        Note(at=1.0, text="3 training pairs are longer than 128 tokens and were left out"),
    ]
    seen = measure([attempt(1, 0.0, 2.0), attempt(2, 3.0, 4.0)], [told, told])
    assert [text[:6] for text in seen.warnings] == ["12B: r", "no COM"]


@pytest.mark.parametrize(("dev_examples", "times"), [(500, 8.0), (32, 2.0), (10, 1.0)])
def test_the_gate_of_gemma_translates_more_in_the_whole_training(dev_examples: int, times: float) -> None:
    """Sixteen examples are translated here, in the real run as many as the gate and the dev set have."""
    seen = training()
    assert seen.cut is not None
    seen = replace(seen, cut=replace(seen.cut, dev_examples=dev_examples))
    gemma = StageConfig(name="g", module="stages.train_gemma", settings={"model": "m", "size": "A"})
    plain = StageConfig(name="g", module="stages.train_marian", settings={"model": "m"})
    more_s = estimate(gemma, seen, Share(), at=1.0).seconds - estimate(plain, seen, Share(), at=1.0).seconds
    assert more_s == pytest.approx((times - 1) * 11 * 4.0)


def test_an_uneven_pace_widens_the_range() -> None:
    """What the steps do not agree on is what the estimate is unsure of."""
    seen = Measured(took_s=10.0, useful_s=10.0, step=Pace(unit="step", here=5, each_s=1.0, spread=0.8))
    uneven = estimate(TRAINING, seen, Share(times=100.0, words="x"), at=1.0)
    assert uneven.spread == pytest.approx(0.8, rel=0.05)


def test_short_times_read_well() -> None:
    """Milliseconds, tenths of seconds, minutes."""
    assert [brief(0.0351), brief(1.94), brief(240.0)] == ["35 ms", "1.9 s", "4 min"]

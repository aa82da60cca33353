"""The drill's judgement and its words; the faults themselves are proved by tests/process/test_drill.py."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import msgspec
import pytest

from daemon import config
from daemon.before_leaving.drill import Finding, chosen, judged, table
from daemon.before_leaving.drill_daemon import changed
from daemon.before_leaving.drill_faults import FAULTS, Ground, flip, moment
from daemon.before_leaving.drill_plan import PIPELINE, STAGE, TINY, plan
from daemon.before_leaving.drill_scene import End, Scene
from daemon.cli import BadCallError
from state.contract import Metric, Outcome
from state.snapshot import Attempt, Fact, RunState, StageState
from state.store import Journal, Store
from state.workspace import Workspace

OVERRIDES = ("download.url=none",)
END = End(weights="a", metrics={"steps": 114.0, "dev_loss_after": 2.5}, ledger="b")


def ground(folder: Path) -> Ground:
    """What the drill stands on, without a run behind it."""
    return Ground(
        pipeline=PIPELINE,
        stage=STAGE,
        module="stages.train_marian",
        steps=114,
        examples=600,
        every_steps=8,
        snapshot=folder / "snapshot",
        undisturbed=END,
        recordings="",
        overrides=OVERRIDES,
        abandoned=threading.Event(),
    )


def scene(folder: Path, outcomes: list[Outcome], steps: list[list[int]]) -> Scene:
    """A scene whose training's attempts ended so and did these steps."""
    Workspace(folder / "run").attempt(STAGE, 1).root.mkdir(parents=True)  # the snapshot's own
    one = Scene(folder / "run", PIPELINE, STAGE, OVERRIDES, threading.Event())
    pipeline = config.load(PIPELINE, OVERRIDES)
    attempts = tuple(Attempt(number=number, started_at=1.0, outcome=outcome) for number, outcome in enumerate(outcomes, start=1))
    stages = tuple(StageState(name=s.name, attempts=attempts if s.name == STAGE else ()) for s in pipeline.stages)
    Store(one.workspace.state).save(RunState(id="r", pipeline=pipeline, pipeline_path="p", started_at=1.0, stages=stages))
    for number, done in enumerate(steps, start=1):
        folder = one.workspace.attempt(STAGE, number).root
        folder.mkdir(exist_ok=True)
        lines = [msgspec.json.encode(Metric(at=1.0, values={"loss": 1.0}, step=step)) for step in done]
        one.workspace.attempt(STAGE, number).events.write_bytes(b"".join(line + b"\n" for line in lines))
    return one


POWER_CUT = next(fault for fault in FAULTS if fault.name == "power-cut")


OWN = """
name = "Mine"
[[stage]]
name = "download"
module = "stages.download"
resource = "network"
settings = {url = "http://127.0.0.1:1/"}
[[stage]]
name = "corpus"
module = "stages.corpus"
settings = {source = "sample", min_verses = 2000}
[[stage]]
name = "train_whisper"
module = "stages.train_whisper"
needs = ["download"]
settings = {model = "a/b"}
[[stage]]
name = "train_mine"
module = "stages.train_marian"
needs = ["corpus"]
after = ["train_whisper"]
settings = {model = "a/b", epochs = 9, learning_rate = 3e-5}
"""


def test_a_pipeline_of_ones_own_is_cut_down_to_one_stage_and_what_it_needs(tmp_path: Path) -> None:
    """The first training that does without the network, with tiny steps and its own rate, beside the drill's own download."""
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    pipeline, stage = plan(path, None, ["train_mine.max_tokens=64"])
    assert stage == "train_mine"
    assert [one.name for one in pipeline.stages] == ["download", "corpus", "train_mine"]
    assert pipeline.stage(stage).settings == {"model": "a/b", "learning_rate": 3e-5, "max_tokens": 64, **TINY}
    config.check(pipeline)


@pytest.mark.parametrize(
    ("stage", "words"), [("train_whisper", "needs download"), ("corpus", "there are train_whisper, train_mine")]
)
def test_a_stage_that_cannot_be_drilled_is_refused(tmp_path: Path, stage: str, words: str) -> None:
    """With the stages that there are, or the one that stands in the way."""
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    with pytest.raises(BadCallError, match=words):
        plan(path, stage, [])


def test_what_a_fault_may_cost_holds(tmp_path: Path) -> None:
    """The expected endings and at most one checkpoint interval done twice: held. The snapshot's own attempt does not count."""
    one = scene(
        tmp_path, [Outcome.INTERRUPTED, Outcome.INTERRUPTED, Outcome.SUCCEEDED], [[15, 16, 17], [17, 18, 19], [17, 18, 19, 20]]
    )
    finding = judged(POWER_CUT, ground(tmp_path), one, [])
    assert finding.held
    assert finding.repeated_steps == 3


@pytest.mark.parametrize(
    ("outcomes", "steps", "words"),
    [
        ([Outcome.INTERRUPTED, Outcome.CRASHED, Outcome.SUCCEEDED], [[1]], "ended CRASHED, SUCCEEDED, not INTERRUPTED, SUCCEEDED"),
        ([Outcome.INTERRUPTED] * 2 + [Outcome.SUCCEEDED], [[1], [*range(1, 11)], [*range(1, 11)]], "10 steps done twice"),
    ],
)
def test_what_costs_more_does_not_hold(tmp_path: Path, outcomes: list[Outcome], steps: list[list[int]], words: str) -> None:
    """Another ending, or more work lost than a checkpoint interval and the step in flight, fails the fault and says which."""
    finding = judged(POWER_CUT, ground(tmp_path), scene(tmp_path, outcomes, steps), [])
    assert not finding.held
    assert words in finding.result


def test_what_did_not_hold_is_named(tmp_path: Path) -> None:
    """A fault's own finding stands in the result, and the folder to look at beside it."""
    one = scene(tmp_path, [Outcome.INTERRUPTED] * 2 + [Outcome.SUCCEEDED], [[1], [2], [3]])
    finding = judged(POWER_CUT, ground(tmp_path), one, ["weights differ"])
    assert (finding.held, finding.result, finding.folder) == (False, "weights differ", str(one.root))


def test_answers_are_the_facts_since_the_fault(tmp_path: Path) -> None:
    """What the journal told before the harm, and what every run tells, is no answer to it."""
    one = scene(tmp_path, [Outcome.INTERRUPTED] * 2 + [Outcome.SUCCEEDED], [[1], [2], [3]])
    journal = Journal(one.workspace.journal)
    journal.tell(Fact(id="1", at=1.0, kind="run.started", text="before"))
    one.strike("harm", lambda: journal.tell(Fact(id="2", at=2.0, kind="stage.backed_off", text="tried again")))
    journal.tell(Fact(id="3", at=3.0, kind="stage.started", text="as in every run"))
    assert judged(POWER_CUT, ground(tmp_path), one, []).answers == ("tried again",)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (END, []),
        (End(weights="x", metrics=END.metrics, ledger="b"), ["weights"]),
        (End(weights="a", metrics={"steps": 114.0, "dev_loss_after": 2.6}, ledger="x"), ["ledger", "dev_loss_after"]),
        (End(weights="a", metrics={"steps": 114.0}, ledger="b"), ["dev_loss_after"]),
    ],
)
def test_two_ends_are_equal_only_in_everything(other: End, named: list[str]) -> None:
    """Weights, ledger and every metric are compared; each that differs or is missing is named."""
    assert [words.split()[0] for words in other.differences(END)] == named


def test_a_seed_gives_the_same_moments(tmp_path: Path) -> None:
    """The same seed strikes at the same step; all are after the snapshot and leave a run to recover in."""
    drawn = [moment(ground(tmp_path), random.Random(f"{seed}")) for seed in range(200)]
    assert drawn == [moment(ground(tmp_path), random.Random(f"{seed}")) for seed in range(200)]
    assert min(drawn) > 16
    assert max(drawn) < 100
    assert len(set(drawn)) > 20


def test_flip_changes_one_bit(tmp_path: Path) -> None:
    """Exactly the bit asked for, and a second flip undoes it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4))
    flip(path, 17)
    assert path.read_bytes() == bytes([0, 0, 2, 0])
    flip(path, 17)
    assert path.read_bytes() == bytes(4)


def test_the_drills_daemon_changes_training_stages_only() -> None:
    """`--through` replaces the module of training stages, `--stage` leaves the others out; settings stay."""
    pipeline = config.load(PIPELINE, OVERRIDES)
    through = changed(pipeline, through="stages.drill")
    assert [one.module for one in through.stages if one.module == "stages.drill"] == ["stages.drill"]
    assert through.stage(STAGE).settings == pipeline.stage(STAGE).settings
    assert [one.name for one in changed(pipeline, ["download"]).stages] == ["download"]


def test_an_unknown_fault_is_refused() -> None:
    """With the names of those there are; without a name all are chosen."""
    with pytest.raises(BadCallError, match="no fault is called 'flood'; there are nan, "):
        chosen(["power-cut", "flood"])
    assert chosen([]) == list(FAULTS)


@pytest.mark.parametrize("columns", [80, 100, 160])
def test_the_table_fits_the_terminal(columns: int) -> None:
    """No line is wider than the terminal; what failed is marked, and the last line says how to do it again."""
    findings = [
        Finding(
            fault=fault.name,
            injected=("something long was broken " * 5,),
            answers=("it was mended " * 12,) * 6,
            recovered_s=None if number else 12.3,
            repeated_steps=number,
            result="weights differ" if number == 1 else fault.promise,
            faults=("weights differ",) if number == 1 else (),
        )
        for number, fault in enumerate(FAULTS)
    ]
    lines = table(findings, columns, seed=7, seconds=200)
    assert max(map(len, lines)) <= columns
    assert sum("FAILED: weights differ" in line for line in lines) == 1
    assert lines[-1] == f"{len(FAULTS)} faults in 200 s, 1 did NOT hold; --seed 7 does the same again"

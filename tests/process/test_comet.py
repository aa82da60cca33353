"""Rules of COMET's process: its number means something, a kill costs one chunk, and it never outlives its stage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stages import comet_scores
from stages.comet_scores import CometRow, CometScores, LeftOut, comet_python, row, score
from stages.runtime import StageContext
from state.contract import MisconfiguredError, StopRequested
from tests import stage_attempts

PYTHON = comet_python()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),  # imports of COMET's environment take many seconds on a busy machine
    pytest.mark.skipif(PYTHON is None, reason="COMET's environment is not there (./vigil setup --comet)"),
]

NOUNS = (("shepherd", "pastor"), ("king", "rey"), ("child", "niño"), ("servant", "siervo"), ("prophet", "profeta"))
VERBS = (("saw", "vio"), ("found", "halló"), ("called", "llamó"), ("blessed", "bendijo"))
PLACES = (("river", "río"), ("well", "pozo"), ("field", "campo"), ("road", "camino"))


def pairs() -> list[tuple[str, str]]:
    """Sentences written by this function, in an order that never changes."""
    found = [
        (f"The {a} {v} the {b} near the {c}.", f"El {x} {w} al {y} junto al {z}.")
        for a, x in NOUNS
        for v, w in VERBS
        for b, y in NOUNS
        for c, z in PLACES
    ]
    random.Random(4).shuffle(found)
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's own COMET, made as the demo makes it."""
    folder = tmp_path_factory.mktemp("comet")
    source = folder / "pairs.jsonl"
    source.write_text("".join(json.dumps({"en": en, "es": es}) + "\n" for en, es in pairs()), encoding="utf-8")
    subprocess.run([str(PYTHON), str(comet_scores.TINY), str(source), str(folder / "tiny")], check=True, capture_output=True)
    return folder / "tiny" / "checkpoints" / "model.ckpt"


def context(folder: Path) -> StageContext:
    return stage_attempts.context(folder / "run", "evaluate")


def scored(ctx: StageContext, rows: list[CometRow], model: str, beat: Callable[[int], None] = lambda done: None) -> CometScores:
    found = score(ctx, rows, model, PYTHON, beat)
    assert isinstance(found, CometScores), found
    return found


def mean(found: CometScores, rows: list[CometRow]) -> float:
    return sum(found.scores[one.id] for one in rows) / len(rows)


def test_the_demo_metric_tells_good_from_bad(tmp_path: Path, checkpoint: Path) -> None:
    """A right translation scores above half of one, and that above a loop of one word; its name says that it is the demo's own."""
    sentences = pairs()[:40]
    right = [row(en, es, es) for en, es in sentences]
    half = [row(en, " ".join(es.split()[::2]), es) for en, es in sentences]
    loop = [row(en, "rey rey rey rey rey rey", es) for en, es in sentences]
    beats: list[int] = []
    found = scored(context(tmp_path), [*right, *half, *loop], str(checkpoint), beats.append)
    assert mean(found, right) > mean(found, half) + 0.2 > mean(found, loop) + 0.3
    assert found.demo
    assert "not comparable" in found.name
    assert beats == sorted(beats)
    assert beats[-1] == len({one.id for one in [*right, *half, *loop]})


def test_scores_so_far_are_not_computed_again(tmp_path: Path, checkpoint: Path) -> None:
    """Rows that stand in the parts file are taken from it; a torn last line and another metric's scores are not."""
    ctx = context(tmp_path)
    rows = [row(en, es, es) for en, es in pairs()[:6]]
    scored(ctx, rows[:4], str(checkpoint))
    parts = ctx.scratch() / "comet" / "scores.json.parts.jsonl"
    line = json.loads(parts.read_text())
    known = dict.fromkeys(line["scores"], 0.125)
    foreign = {"model": "another", "scores": {rows[4].id: 7.0}}
    parts.write_text(json.dumps({**line, "scores": known}) + "\n" + json.dumps(foreign) + "\n" + '{"model": "x", "sco')
    found = scored(ctx, rows, str(checkpoint)).scores
    assert [found[one.id] for one in rows[:4]] == [0.125] * 4
    assert all(0.3 < found[one.id] < 1.5 for one in rows[4:])


def test_same_rows_same_scores(tmp_path: Path, checkpoint: Path) -> None:
    """The order of the rows changes no score, and neither does asking twice for the same one."""
    rows = [row(en, es[: len(es) // 2], es) for en, es in pairs()[:10]]
    one = scored(context(tmp_path / "one"), rows, str(checkpoint)).scores
    two = scored(context(tmp_path / "two"), [*rows[::-1], *rows], str(checkpoint)).scores
    assert one == pytest.approx(two, abs=2e-6)


def test_demo_metric_is_made_from_the_training_pairs(tmp_path: Path) -> None:
    """The model named `tiny` is made on first use and found again on the second."""
    ctx = context(tmp_path)
    ctx.workspace.train_pairs.parent.mkdir(parents=True)
    lines = [json.dumps({"en": en, "es": es}) + "\n" for en, es in pairs()]
    ctx.workspace.train_pairs.write_text("".join(lines), encoding="utf-8")
    rows = [row(en, es, es) for en, es in pairs()[:3]]
    first = scored(ctx, rows, "tiny")
    made = (ctx.workspace.models / "comet_tiny" / "checkpoints" / "model.ckpt").stat().st_mtime_ns
    second = scored(ctx, rows, "tiny")
    assert first == second
    assert (ctx.workspace.models / "comet_tiny" / "checkpoints" / "model.ckpt").stat().st_mtime_ns == made


def test_missing_checkpoint_is_misconfigured(tmp_path: Path) -> None:
    """A checkpoint file that is not there is named, not passed over: the owner asked for a score."""
    with pytest.raises(MisconfiguredError, match=r"nowhere\.ckpt"):
        score(context(tmp_path), [row("a", "b", "c")], "models/nowhere.ckpt", PYTHON, lambda done: None)


def test_broken_checkpoint_leaves_the_score_out(tmp_path: Path, checkpoint: Path) -> None:
    """A process that fails gives no number, and its last words as the reason."""
    folder = tmp_path / "broken" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "model.ckpt").write_bytes(checkpoint.read_bytes()[:1000])
    (folder.parent / "hparams.yaml").write_text((checkpoint.parents[1] / "hparams.yaml").read_text())
    found = score(context(tmp_path), [row("a", "b", "c")], str(folder / "model.ckpt"), PYTHON, lambda done: None)
    assert isinstance(found, LeftOut)
    assert "ended with code 1" in found.reason


def test_checkpoint_that_holds_code_is_not_run(tmp_path: Path, checkpoint: Path) -> None:
    """Nothing in a checkpoint is executed: a pickle that would write a file writes none."""
    mark = tmp_path / "executed"
    folder = tmp_path / "evil" / "checkpoints"
    folder.mkdir(parents=True)
    (folder.parent / "hparams.yaml").write_text((checkpoint.parents[1] / "hparams.yaml").read_text())
    program = (
        "import sys, torch, pathlib\n"
        "class Evil:\n"
        "    def __reduce__(self):\n"
        "        return (pathlib.Path.touch, (pathlib.Path(sys.argv[2]),))\n"
        "torch.save({'state_dict': {}, 'hyper_parameters': Evil()}, sys.argv[1])\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder / "model.ckpt"), str(mark)], check=True)
    found = score(context(tmp_path), [row("a", "b", "c")], str(folder / "model.ckpt"), PYTHON, lambda done: None)
    assert isinstance(found, LeftOut)
    assert not mark.exists()


def test_stop_ends_the_process(tmp_path: Path, checkpoint: Path) -> None:
    """A stop while COMET works ends its process before the stage leaves."""
    ctx = context(tmp_path)
    quiet: list[Any] = []
    started = time.monotonic()
    announce = ctx.quiet

    def stop_while_loading(seconds: float, message: str) -> None:
        announce(seconds, message)
        quiet.append(message)
        ctx.request_stop()

    ctx.quiet = stop_while_loading  # type: ignore[method-assign]  # the moment of the stop is what the test chooses
    with pytest.raises(StopRequested):
        score(ctx, [row("a", "b", "c")], str(checkpoint), PYTHON, lambda done: None)
    assert quiet == ["loading COMET"]
    assert time.monotonic() - started < 60
    assert children_named(str(ctx.workspace.root)) == []


def test_process_does_not_outlive_a_killed_stage(tmp_path: Path, checkpoint: Path) -> None:
    """SIGKILL to the stage alone takes COMET with it: no orphan keeps the GPU."""
    program = (
        "import sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import msgspec\n"
        "from stages.runtime import StageContext, read_spec\n"
        "from stages.comet_scores import row, score\n"
        "from state.workspace import Attempt\n"
        "attempt = Attempt(pathlib.Path(sys.argv[2]))\n"
        "ctx = StageContext(read_spec(attempt.spec), attempt)\n"
        "score(ctx, [row('a', 'b', str(n)) for n in range(100000)], sys.argv[3], pathlib.Path(sys.argv[4]), lambda done: None)\n"
    )
    ctx = context(tmp_path)
    ctx.attempt.spec.write_bytes(msgspec.json.encode(ctx.spec))
    command = [sys.executable, "-c", program, str(comet_scores.ROOT), str(ctx.attempt.root), str(checkpoint), str(PYTHON)]
    stage = subprocess.Popen(command)
    try:
        wait_for(lambda: children_named(str(ctx.workspace.root), but=stage.pid) != [])
    finally:
        stage.send_signal(signal.SIGKILL)
        stage.wait()
    wait_for(lambda: children_named(str(ctx.workspace.root)) == [])


def children_named(words: str, but: int = 0) -> list[int]:
    """Live processes with `words` in their command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) not in (but, os.getpid()):
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if words.encode() in line and b"comet_process" in line:
                found.append(int(folder.name))
    return found


def wait_for(true: Callable[[], bool], at_most_s: float = 60.0) -> None:
    deadline = time.monotonic() + at_most_s
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.1)

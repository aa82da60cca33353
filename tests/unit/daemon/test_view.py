"""What is read of a workspace, beside a daemon or without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import locks, view
from state.contract import CheckpointSaved, Metric, Note, Outcome, Progress
from state.store import StateUnreadableError
from state.workspace import Workspace


def stage_of(workspace: Workspace, name: str) -> view.StageView:
    return next(stage for stage in view.read(workspace).stages if stage.config.name == name)


def test_a_folder_without_a_run_is_told_apart_from_a_damaged_one(tmp_path: Path, mid_workspace: Workspace) -> None:
    """No run: FileNotFoundError. A run that cannot be read: StateUnreadableError; never an empty run."""
    with pytest.raises(FileNotFoundError):
        view.read(Workspace.at(tmp_path / "nothing"))
    mid_workspace.state.write_bytes(b"torn")
    with pytest.raises(StateUnreadableError):
        view.read(mid_workspace)


def test_reading_changes_nothing(mid_workspace: Workspace) -> None:
    """`status` of a damaged newest generation shows the one before and leaves both files as they are."""
    mid_workspace.state.rename(mid_workspace.state.with_name("state.json.prev"))
    mid_workspace.state.write_bytes(b"torn")
    before = {path: path.read_bytes() for path in mid_workspace.root.rglob("*") if path.is_file()}
    assert view.read(mid_workspace).run.id == "20260212-180000"
    assert {path: path.read_bytes() for path in mid_workspace.root.rglob("*") if path.is_file()} == before


def test_progress_pace_and_metrics_are_those_of_the_newest_attempt(mid_workspace: Workspace) -> None:
    """Steps 50 to 100 of the second attempt, one a second: 60 steps are left, whatever the first attempt did."""
    marian = stage_of(mid_workspace, "train_marian")
    assert (marian.step, marian.steps, marian.share) == (100, 160, 0.625)
    assert marian.step_s == pytest.approx(1.0)
    told = marian.progress
    assert told is not None
    live = msgspec.structs.replace(told)
    assert view.StageView(1, marian.config, marian.state, progress=live, rate=16.0).eta_s(told.at + 10) == pytest.approx(50.0)
    assert marian.metrics["loss"] == pytest.approx(0.3606, abs=1e-3)


def test_a_quiet_phase_does_not_hide_the_step(mid_workspace: Workspace) -> None:
    """An announcement carries no step; the last one told stays."""
    events = mid_workspace.attempt("train_marian", 2).events
    with open(events, "ab") as file:
        file.write(
            msgspec.json.encode(Progress(at=1.8e9, done=1600, total=2560, unit="examples", quiet_s=60, message="saving")) + b"\n"
        )
    marian = stage_of(mid_workspace, "train_marian")
    assert (marian.step, marian.steps) == (100, 160)
    assert marian.progress is not None
    assert marian.progress.message == "saving"


def test_no_time_left_is_told_of_a_dead_process(mid_workspace: Workspace) -> None:
    """Saved as RUNNING, its lock free: not working, and no guess when it will be done."""
    marian = stage_of(mid_workspace, "train_marian")
    assert marian.working is False
    assert marian.eta_s(0.0) is None
    handle = locks.take(mid_workspace.attempt("train_marian", 2).lock)
    try:
        alive = stage_of(mid_workspace, "train_marian")
        assert alive.working is True
        assert alive.progress is not None
        assert alive.eta_s(alive.progress.at) == pytest.approx(60.0)
    finally:
        os.close(handle)


def test_a_settled_stage_shows_its_receipt(mid_workspace: Workspace) -> None:
    """SUCCEEDED is 100 % with the receipt; a stage that has not begun has neither share nor metrics."""
    done, waiting = stage_of(mid_workspace, "corpus"), stage_of(mid_workspace, "train_gemma_4b")
    assert done.share == 1.0
    assert done.result is not None
    assert [output.path for output in done.result.outputs] == ["bible_data"]
    assert (waiting.share, waiting.metrics, waiting.checkpoint, waiting.step) == (None, {}, None, None)


def test_a_receipt_of_a_stage_that_did_not_succeed_does_not_count(mid_workspace: Workspace) -> None:
    """An old result.json beside a stage that is tried again is not shown."""
    old = mid_workspace.result("corpus").read_bytes()
    mid_workspace.result("train_whisper").write_bytes(old)
    assert stage_of(mid_workspace, "train_whisper").result is None
    assert "train_whisper" not in view.results(mid_workspace, view.read(mid_workspace).run)


def test_damaged_lines_are_passed_over(mid_workspace: Workspace) -> None:
    """Torn, foreign and binary lines cost nothing but themselves."""
    events = mid_workspace.attempt("train_marian", 2).events
    with open(events, "ab") as file:
        file.write(b'{"type":"unheard_of","at":1}\n\xff\xfe\n{"type":"progress","at":9e9,"do')
    assert stage_of(mid_workspace, "train_marian").step == 100


def test_long_event_files_are_read_from_both_ends(mid_workspace: Workspace) -> None:
    """The pace counts from the attempt's first words though only the end of a long file is read."""
    events = mid_workspace.attempt("train_marian", 2).events
    lines = [
        msgspec.json.encode(Progress(at=float(second), done=second, total=1e6, unit="examples", step=second))
        for second in range(40_000)
    ]
    events.write_bytes(b"\n".join(lines) + b"\n")
    assert events.stat().st_size > view.TAIL_BYTES + view.HEAD_BYTES
    marian = stage_of(mid_workspace, "train_marian")
    assert (marian.step, marian.rate, marian.step_s) == (39_999, pytest.approx(1.0), pytest.approx(1.0))


def test_the_checkpoint_shown_is_the_newest(mid_workspace: Workspace) -> None:
    """By step, and only one with a manifest."""
    for name, whole in (("step-00000090", True), ("step-00000096", True), ("step-00000100", False)):
        folder = mid_workspace.checkpoints("train_marian") / name
        folder.mkdir(parents=True)
        if whole:
            (folder / "manifest.json").write_text("{}")
    assert stage_of(mid_workspace, "train_marian").checkpoint == 96


def test_a_daemon_is_alive_as_long_as_it_holds_the_lock(mid_workspace: Workspace) -> None:
    """Whatever the state file says."""
    assert view.read(mid_workspace).alive is False
    handle = locks.take(mid_workspace.lock)
    assert view.read(mid_workspace).alive is True
    os.close(handle)
    assert view.read(mid_workspace).alive is False


def test_history_keeps_every_attempt(example: Any, mid_workspace: Workspace) -> None:
    """Metrics, checkpoints and notes of every attempt, in order, also of those that died."""
    saved = CheckpointSaved(at=example.now, step=100, path="stages/train_marian/checkpoints/step-00000100")
    example.events("train_marian", [saved, Note(at=example.now, text="kept")])
    history = [one for one in view.read_history(mid_workspace, view.read(mid_workspace).run) if one.stage == "train_marian"]
    assert [one.record.outcome for one in history] == [Outcome.INTERRUPTED, None]
    assert [metric.step for metric in history[0].metrics if "loss" in metric.values] == list(range(1, 61))
    assert all(isinstance(metric, Metric) for metric in history[1].metrics)
    assert (history[1].checkpoints, [note.text for note in history[1].notes]) == ((saved,), ["kept"])


def test_what_was_saved_and_not_yet_told_is_shown_once(example: Any) -> None:
    """Facts that wait in state.json stand behind the journal; one that is in both stands once."""
    example.tell("run.started", "begun")
    workspace = example.save()
    run = view.read(workspace).run
    waiting = msgspec.structs.replace(example.facts[0], id="000002", text="waits")
    shown = view.facts(workspace, msgspec.structs.replace(run, untold=(example.facts[0], waiting)))
    assert [fact.text for fact in shown] == ["begun", "waits"]


def test_tail_lines(tmp_path: Path) -> None:
    """The last lines of a log, odd bytes and all; none of a file that is not there."""
    log = tmp_path / "output.log"
    log.write_bytes(b"one\ntwo\xff\nthree")
    assert view.tail_lines(log, 2) == ["two\ufffd", "three"]
    assert view.tail_lines(tmp_path / "none", 5) == []


def test_a_line_that_rewrites_itself_is_one_line(tmp_path: Path) -> None:
    """A progress bar, which begins or ends each state with a carriage return, counts as its last state."""
    log = tmp_path / "output.log"
    log.write_bytes(b"begun\n\rload 0 %\rload 50 %\rload 100 %\nsteps 1\rsteps 2\r\nwindows\r\n\nbusy\rstill busy")
    assert view.tail_lines(log, 9) == ["begun", "load 100 %", "steps 2", "windows", "", "still busy"]

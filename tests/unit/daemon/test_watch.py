"""The live picture: what is on it, at which size."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
from rich.console import Console

from daemon import locks, report, view, watch
from state.workspace import Workspace

NOW = 1_770_923_000.0


def shown(seen: view.View, columns: int, lines: int = 40) -> list[str]:
    console = Console(file=io.StringIO(), width=columns, height=lines, color_system=None, force_terminal=False)
    console.print(watch.screen(seen, {"disks": [], "gpus": []}, NOW, columns, lines))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    return text.splitlines()


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_one_line_a_stage_whatever_the_width(columns: int, mid_workspace: Workspace) -> None:
    """Eleven stages, in order, none wrapped, none wider than the terminal."""
    lines = shown(view.read(mid_workspace), columns)
    assert max(len(line) for line in lines) <= columns
    assert sum(line.startswith("12 Feb ") for line in lines) == watch.FACTS_SHOWN
    stages = [line.split()[1] for line in lines if line[:2].strip().isdigit() and not line.startswith("12 Feb ")]
    assert stages == [stage.name for stage in view.read(mid_workspace).run.stages]


def test_a_training_stage_shows_position_pace_loss_and_time_left(mid_workspace: Workspace) -> None:
    """While its process lives."""
    handle = locks.take(mid_workspace.attempt("train_marian", 2).lock)
    try:
        lines = shown(view.read(mid_workspace), 120)
    finally:
        os.close(handle)
    line = next(line for line in lines if "train_marian" in line)
    assert "62 %" in line
    assert "step 100/160, 1.0 s/step, loss 0.36, attempt 2" in line
    waiting = next(line for line in lines if "train_whisper" in line)
    assert "BACKING_OFF: goes on next: killed by signal 9" in waiting


def test_a_low_terminal_loses_facts_not_stages(mid_workspace: Workspace) -> None:
    """24 lines: every stage, fewer facts."""
    lines = shown(view.read(mid_workspace), 80, 20)
    assert sum("evaluate_12b" in line for line in lines) == 1
    assert len(lines) <= 20


def test_the_time_a_finished_stage_took_is_that_of_all_its_attempts(finished_workspace: Workspace) -> None:
    """13 s lost in a crash and 8 s that led to the end."""
    seen = view.read(finished_workspace)
    whisper = next(stage for stage in seen.stages if stage.config.name == "train_whisper")
    assert report.took(whisper.state) == "21 s"


def test_a_run_that_has_not_begun_is_shown(example: Any) -> None:
    """All pending, each with what it waits for."""
    lines = shown(view.read(example.save()), 80)
    assert sum("PENDING" in line for line in lines) == 11

"""The page is kept current beside a run: rendered by real short processes, one at a time, and never waited for."""

from __future__ import annotations

import time
from typing import Any

import psutil

from daemon.results.rendering import Rendering
from state.snapshot import Fact
from state.workspace import Workspace
from tests.conftest import ExampleRun

PAGE_S = 60.0


def fact(kind: str) -> Fact:
    return Fact(id="000001", at=0.0, kind=kind, text="")


def until(rendering: Rendering, done: Any) -> None:
    deadline = time.monotonic() + PAGE_S
    while not done():
        assert time.monotonic() < deadline, "no page was written"
        rendering.go_on()
        time.sleep(0.02)


def written(workspace: Workspace) -> int:
    """When the page was written last, in nanoseconds; 0: never."""
    page = workspace.report / "index.html"
    return page.stat().st_mtime_ns if page.exists() else 0


def test_a_transition_is_on_the_page_soon(example: ExampleRun) -> None:
    """A transition asks for a page, which appears without being waited for; what is no transition asks for none."""
    workspace = example.save()
    rendering = Rendering(workspace, gap_s=0.0)
    rendering.hear(fact("attempt.noted"))
    rendering.go_on()
    assert not rendering.busy
    rendering.hear(fact("stage.started"))
    before = time.monotonic()
    rendering.go_on()
    assert time.monotonic() - before < 1.0
    assert rendering.busy
    until(rendering, lambda: written(workspace) and not rendering.busy)


def test_close_transitions_share_a_page(example: ExampleRun) -> None:
    """Within the gap nothing is rendered; after it one page for all that happened; the last one comes at once."""
    workspace = example.save()
    rendering = Rendering(workspace, gap_s=100.0)
    now_s = time.monotonic()
    for late_s in (0.0, 50.0, 99.0):
        rendering.hear(fact("stage.started"))
        rendering.go_on(now_s + late_s)
        assert not rendering.busy
    rendering.finish()
    first = written(workspace)
    assert first
    rendering.go_on(now_s + 101.0)
    until(rendering, lambda: not rendering.busy)
    assert written(workspace) > first
    rendering.go_on(now_s + 300.0)
    assert not rendering.busy


def test_no_process_is_left_behind(example: ExampleRun) -> None:
    """A daemon that leaves ends its renderer, and the page of before stays whole."""
    workspace = example.save()
    rendering = Rendering(workspace, gap_s=0.0)
    rendering.finish()
    before, children = (workspace.report / "index.html").read_bytes(), set(psutil.Process().children())
    rendering.hear(fact("run.stopped"))
    rendering.go_on()
    rendering.close()
    assert not rendering.busy
    assert set(psutil.Process().children()) == children
    assert (workspace.report / "index.html").read_bytes() == before

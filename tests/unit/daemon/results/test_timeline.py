"""When each attempt ran, as a picture."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest

from daemon import view
from daemon.results.timeline import timeline
from state.snapshot import RunState
from state.workspace import Workspace


def picture(run: RunState, **until: float) -> Any:
    return timeline(run, {}, until, UTC)


def test_every_attempt_is_drawn_inside_the_picture(finished_workspace: Workspace) -> None:
    """Twelve attempts, each with its outcome; none hangs over the edge; widths follow durations."""
    lanes = picture(view.read(finished_workspace).run).lanes
    segments = [segment for lane in lanes for segment in lane.segments]
    assert len(segments) == 12
    assert all(segment.left >= 0 and segment.left + segment.width <= 100.001 for segment in segments)
    assert [segment.outcome for segment in lanes[6].segments] == ["INTERRUPTED", "SUCCEEDED"]
    corpus, preprocess = lanes[3].segments[0], lanes[1].segments[0]
    assert preprocess.width / corpus.width == pytest.approx(31 / 8, rel=0.01)


def test_an_hour_without_power_is_cut_and_marked(finished_workspace: Workspace) -> None:
    """It takes a sliver of the picture, not nine tenths of it, and says how long it was."""
    cuts = picture(view.read(finished_workspace).run).cuts
    assert [text for _left, _width, text in cuts] == ["nothing ran for 1 h"]
    assert cuts[0][1] < 4


def test_an_attempt_that_has_not_ended_goes_as_far_as_is_known(mid_workspace: Workspace) -> None:
    """Up to the instant given, and it is called RUNNING."""
    run = view.read(mid_workspace).run
    last = run.stage("train_marian").attempts[-1]
    lane = picture(run, train_marian=last.started_at + 90).lanes[6]
    assert lane.segments[-1].outcome == "RUNNING"
    assert ", 1 min 30 s, RUNNING" in lane.segments[-1].title
    assert lane.took == "2 min 30 s"


def test_a_run_that_has_not_begun_is_an_empty_picture(example: Any) -> None:
    """Eleven lanes, nothing on them, no axis."""
    empty = picture(view.read(example.save()).run)
    assert (len(empty.lanes), empty.ticks, empty.cuts) == (11, (), ())
    assert not any(lane.segments for lane in empty.lanes)


def test_the_axis_keeps_few_marks_whatever_the_length(mid_workspace: Workspace) -> None:
    """From minutes to a year: at most six, in order, from 0."""
    run = view.read(mid_workspace).run
    start = run.stage("train_marian").attempts[-1].started_at
    for length_s in (5, 60, 3600, 86_400, 86_400 * 6, 86_400 * 365):
        ticks = picture(run, train_marian=start + length_s).ticks
        assert 2 <= len(ticks) <= 6
        assert ticks[0] == (0.0, "0")
        assert [left for left, _ in ticks] == sorted(left for left, _ in ticks)

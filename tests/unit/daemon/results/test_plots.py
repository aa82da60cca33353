"""The loss curves: what is drawn, and that it is fit for the middle of a page."""

from __future__ import annotations

import dataclasses
import struct
import xml.etree.ElementTree as ElementTree
from typing import Any

from daemon import scores, view, words
from daemon.results import plots
from state.contract import Metric
from state.workspace import Workspace


def of_stage(workspace: Workspace, name: str) -> plots.Training:
    history = view.read_history(workspace, view.read(workspace).run)
    shown = plots.training([attempt for attempt in history if attempt.stage == name])
    assert shown is not None
    return shown


def test_every_attempt_has_its_curve_and_its_resume(mid_workspace: Workspace) -> None:
    """Steps 50 to 60 were done twice: the second attempt's mark stands at 50, the dev set's points are one line."""
    shown = of_stage(mid_workspace, "train_marian")
    assert [(curve.attempt, curve.steps[0], curve.steps[-1]) for curve in shown.loss] == [(1, 1, 60), (2, 50, 100)]
    assert shown.resumes == ((2, 50.0),)
    assert plots.kept_until(shown.loss[0], shown.loss[1:]) == 50
    assert [step for step, _value in shown.dev] == [40, 80]


def test_a_stage_without_a_loss_has_no_plot(mid_workspace: Workspace) -> None:
    """An evaluation measures too, and draws nothing here."""
    history = view.read_history(mid_workspace, view.read(mid_workspace).run)
    assert plots.training([attempt for attempt in history if attempt.stage == "corpus"]) is None


def test_what_is_not_finite_is_not_drawn(example: Any, mid_workspace: Workspace) -> None:
    """A loss of infinity or nothing at all leaves a gap, not a broken page."""
    bad = [Metric(at=example.now, values=values, step=101) for values in ({"loss": float("inf")}, {"loss": float("nan")}, {})]
    example.events("train_marian", bad)
    assert of_stage(mid_workspace, "train_marian").loss[1].steps[-1] == 100


def test_long_curves_are_averaged_not_cut() -> None:
    """100,000 points become at most 600, over the same steps and with the same mean."""
    steps = tuple(float(step) for step in range(100_000))
    thin = plots.thinned(plots.Curve(1, steps, steps))
    assert len(thin.steps) <= plots.MOST_POINTS
    assert thin.steps[0] < 200
    assert thin.steps[-1] > 99_800
    assert abs(sum(thin.values) / len(thin.values) - 49_999.5) < 200


def test_a_later_attempt_says_which_dev_value_stands() -> None:
    """Measured twice, the step has the value that led on."""
    assert plots.joined([plots.Curve(1, (4.0, 8.0), (1.0, 2.0)), plots.Curve(2, (8.0, 12.0), (3.0, 4.0))]) == (
        (4, 1),
        (8, 3),
        (12, 4),
    )


def test_a_plot_is_inline_svg_in_the_pages_colours(mid_workspace: Workspace) -> None:
    """Well-formed, the same bytes every time, no links, no fixed size, no colour that dark mode could not change."""
    shown = of_stage(mid_workspace, "train_marian")
    text = plots.draw("train_marian", shown)
    assert plots.draw("train_marian", shown) == text
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg")
    assert "viewBox" in root.attrib
    assert "width" not in root.attrib
    assert "optimizer step" in text
    assert "attempt 2" in text
    assert "var(--accent)" in text
    assert "#0" not in text.replace("url(#", "").replace('href="#', "")
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")


def test_two_plots_on_a_page_share_no_id(mid_workspace: Workspace) -> None:
    """A clip path of one must not cut the other."""
    shown = of_stage(mid_workspace, "train_marian")
    ids = [
        {element.get("id") for element in ElementTree.fromstring(plots.draw(name, shown)).iter()} - {None}
        for name in ("one", "two")
    ]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_the_scores_are_a_picture_for_a_phone(finished_workspace: Workspace) -> None:
    """A PNG 1,040 pixels wide, higher for more models; also while only the baseline was measured."""
    rows = scores.overall(scores.read(finished_workspace.eval_results))
    assert {row.verdict for row in rows} == {"better", "worse", "not clear", ""}
    alone = [dataclasses.replace(row, after=words.NOT_MEASURED, verdict="") for row in rows if row.model == "MarianMT"]
    (wide, high), (narrow, low) = (size_of(plots.score_picture(some)) for some in (rows, alone))
    assert wide == narrow == 1040
    assert 2000 > high > low > 400


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG in pixels."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height

"""The plots: a loss as SVG text for the report, a loss or the scores as PNG for a phone.

matplotlib is imported when the first is drawn, in a short-lived process.

Colours in the SVG are CSS variables of the page, so that a plot follows light and dark; the same values give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from daemon.scores import Row
from daemon.view import AttemptHistory
from daemon.words import NOT_MEASURED

MOST_POINTS = 600
"""A longer curve is averaged in buckets: what cannot be seen need not be drawn."""

COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--accent)",
    "#050505": "var(--accent-2)",
    "#060606": "var(--warn)",
}
INK, MUTED, RULE, ACCENT, ACCENT_2, WARN = COLOURS
ON_PAPER = dict(zip(COLOURS, ("#1d2733", "#5b6773", "#d5dae0", "#1f6feb", "#0f8a5f", "#b3541e"), strict=True))
"""For a picture, which has no page around it."""
VERDICTS = {"better": "#0f8a5f", "worse": "#c62828", "not clear": "#8a6d00"}
"""Of `scores.verdict`; what was not compared is grey."""


@dataclass(frozen=True)
class Curve:
    """One measured value over optimizer steps, of one attempt."""

    attempt: int
    steps: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Training:
    """What is drawn of one stage."""

    loss: tuple[Curve, ...]
    dev: tuple[tuple[float, float], ...]
    """(step, value) of the dev set, over all attempts."""
    dev_name: str
    """`dev_loss`, `dev_score`, or empty."""
    resumes: tuple[tuple[int, float], ...]
    """(attempt, first step it told) of every attempt after the first."""


def training(attempts: Sequence[AttemptHistory]) -> Training | None:
    """The curves of a stage's attempts; None when no attempt told a loss at a step."""
    loss = curves(attempts, "loss")
    if not loss:
        return None
    dev_name = next((name for name in ("dev_loss", "dev_score") if curves(attempts, name)), "")
    return Training(
        loss=loss,
        dev=joined(curves(attempts, dev_name)) if dev_name else (),
        dev_name=dev_name,
        resumes=tuple((curve.attempt, curve.steps[0]) for curve in loss[1:]),
    )


def curves(attempts: Sequence[AttemptHistory], name: str) -> tuple[Curve, ...]:
    """The values called `name`, one curve an attempt; attempts without any are left out, and so is what is not finite."""
    found = []
    for attempt in attempts:
        points = [
            (float(metric.step), metric.values[name])
            for metric in attempt.metrics
            if metric.step is not None and abs(metric.values.get(name, float("inf"))) < float("inf")
        ]
        if points:
            steps, values = zip(*points, strict=True)
            found.append(Curve(attempt.record.number, steps, values))
    return tuple(found)


def joined(found: Sequence[Curve]) -> tuple[tuple[float, float], ...]:
    """The points of all attempts as one line; where a step was measured twice, the later attempt's value stands."""
    points = {step: value for curve in found for step, value in zip(curve.steps, curve.values, strict=True)}
    return tuple(sorted(points.items()))


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """`curve` with at most `most` points, each the mean of a bucket."""
    size = -(-len(curve.steps) // most)
    if size <= 1:
        return curve
    buckets = range(0, len(curve.steps), size)
    return Curve(
        curve.attempt,
        tuple(sum(part) / len(part) for part in (curve.steps[start : start + size] for start in buckets)),
        tuple(sum(part) / len(part) for part in (curve.values[start : start + size] for start in buckets)),
    )


def kept_until(curve: Curve, later: Sequence[Curve]) -> float:
    """The step from which a later attempt did the work again; infinity when none did."""
    return min((other.steps[0] for other in later), default=float("inf"))


def draw(stage: str, shown: Training) -> str:
    """The loss of one stage over its steps, the dev set's score, and where it was resumed: inline SVG."""
    with _drawn(stage, shown) as figure:
        return _inline(figure)


def picture(stage: str, shown: Training) -> bytes:
    """The same as a PNG with a heading."""
    with _drawn(stage, shown) as figure:
        figure.suptitle(stage, color=INK, fontsize=11)
        figure.draw_without_rendering()  # makes the ticks
        for artist in figure.findobj():
            _colour_for_paper(artist)
        return _png(figure)


def score_picture(rows: Sequence[Row]) -> bytes:
    """The overall scores as a PNG for a phone: a panel a metric, a line a model from before to after, in the verdict's colour."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    metrics = list(dict.fromkeys(row.metric for row in rows))
    panels = [[row for row in rows if row.metric == metric] for metric in metrics]
    style: Any = {**_style("scores"), "axes.grid": False, "font.size": 12}
    with mpl.rc_context({**style, **dict.fromkeys(("axes.edgecolor", "xtick.color", "text.color"), ON_PAPER[MUTED])}):
        figure = Figure(figsize=(5.2, 0.3 + sum(0.6 + 0.62 * len(panel) for panel in panels)), layout="constrained")
        heights = [1 + len(panel) for panel in panels]
        all_axes: Any = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
        for metric, panel, (axes,) in zip(metrics, panels, all_axes, strict=True):
            _draw_scores(axes, metric, panel)
        all_axes[0][0].set_title("○ before   ● after", loc="right", fontsize=11)
        return _png(figure)


def _draw_scores(axes: Any, metric: str, panel: Sequence[Row]) -> None:
    axes.set_title(metric, loc="left", fontweight="bold", color=ON_PAPER[INK])
    for place, row in enumerate(panel):
        colour = VERDICTS.get(row.verdict, ON_PAPER[MUTED])
        told = " → ".join(score for score in (row.before, row.after) if score != NOT_MEASURED)
        before, after = (None if score == NOT_MEASURED else float(score) for score in (row.before, row.after))
        if before is not None and after is not None:
            axes.plot([before, after], [place, place], color=colour, linewidth=4, alpha=0.35, solid_capstyle="round")
        if before is not None:
            hollow: Any = {"markerfacecolor": "white", "markeredgewidth": 2, "zorder": 3, "clip_on": False}
            axes.plot(before, place, "o", color=ON_PAPER[MUTED], markersize=9, **hollow)
        if after is not None:
            axes.plot(after, place, "o", color=colour, markersize=10)
        for x, side, text, ink in ((0, "left", row.model, ON_PAPER[INK]), (1, "right", f"{told}  {row.verdict}", colour)):
            axes.text(x, place - 0.3, text.rstrip(), transform=axes.get_yaxis_transform(), ha=side, va="bottom", color=ink)
    axes.set_ylim(len(panel) - 0.6, -0.85)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(x=0.05)
    if axes.get_xlim()[1] > 1:  # a share of the best that there can be; COMET would show no difference
        axes.set_xlim(left=0)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


@contextmanager
def _drawn(stage: str, shown: Training) -> Iterator[Any]:
    """The figure, for as long as its style holds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib.figure import Figure

    style: Any = _style(stage)  # matplotlib types its keys one by one
    with mpl.rc_context(style):
        apart = shown.dev_name == "dev_score"
        figure = Figure(figsize=(5.2, 3.6 if apart else 2.9), layout="constrained")
        axes: Any = figure.subplots(2 if apart else 1, 1, sharex=True, squeeze=False, height_ratios=[2, 1] if apart else [1])
        loss_axes, dev_axes = axes[0][0], axes[-1][0]
        _draw_loss(loss_axes, shown)
        _draw_dev(dev_axes, shown)
        dev_axes.set_xlabel("optimizer step")
        loss_axes.set_ylabel("loss")
        for attempt, step in shown.resumes:
            loss_axes.axvline(step, color=WARN, linewidth=1, linestyle=(0, (3, 3)))
            loss_axes.annotate(
                f"attempt {attempt}",
                (step, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -3),
                textcoords="offset points",
                va="top",
                color=WARN,
                fontsize=8,
            )
        if dev_axes is loss_axes and shown.dev:
            loss_axes.legend(frameon=False, labelcolor=INK, loc="best")
        yield figure


def _colour_for_paper(artist: Any) -> None:
    from matplotlib.colors import to_hex

    for name in ("color", "edgecolor", "markeredgecolor", "markerfacecolor"):
        if hasattr(artist, f"get_{name}") and (colour := to_hex(getattr(artist, f"get_{name}")())) in ON_PAPER:
            getattr(artist, f"set_{name}")(ON_PAPER[colour])


def _draw_loss(axes: Any, shown: Training) -> None:
    for number, whole in enumerate(shown.loss):
        curve, until = thinned(whole), kept_until(whole, shown.loss[number + 1 :])
        kept = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if step < until]
        again = [(step, value) for step, value in zip(curve.steps, curve.values, strict=True) if step >= until]
        marker = "o" if len(curve.steps) < 12 else ""
        if kept:
            axes.plot(
                *zip(*kept, strict=True),
                color=ACCENT,
                linewidth=1.5,
                marker=marker,
                markersize=3,
                label="training" if number == 0 else None,
            )
        if again:
            axes.plot(*zip(*again, strict=True), color=MUTED, linewidth=1, alpha=0.6, marker=marker, markersize=2)


def _draw_dev(axes: Any, shown: Training) -> None:
    if shown.dev:
        axes.plot(*zip(*shown.dev, strict=True), color=ACCENT_2, linewidth=1.5, marker="o", markersize=4, label="dev set")
    if shown.dev_name == "dev_score":
        axes.set_ylabel("dev score\n(lower is better)")


def _style(salt: str) -> dict[str, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.family": "sans-serif",
        "font.size": 10,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": RULE,
        "axes.labelcolor": MUTED,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": RULE,
        "grid.linewidth": 0.6,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }


def _inline(figure: Any) -> str:
    """SVG for the middle of an HTML page: no prologue, no metadata, page colours, scaled by CSS, no ids that nothing refers to."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", text, count=1)
    text = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", text, count=1)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))
    text = re.sub(r" id=\"([^\"]+)\"", lambda found: found[0] if found[1] in used else "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for sentinel, variable in COLOURS.items():
        text = text.replace(sentinel, variable)
    return text

"""PURE: where the run stands, in the parts that /status, the card, the digest and the news share.

Lines of our own are at most 40 columns wide; what stages say is escaped, clipped, and wraps.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from itertools import pairwise
from typing import Any

from daemon import report, scores, words
from daemon.phone.markup import COLUMNS, TITLE_COLUMNS, bold, escaped, line, sentence, title, wraps
from daemon.view import StageView, View
from state import symptoms
from state.contract import BatchPlan, CommandKind, Outcome
from state.forecast import Forecast
from state.machine import Status
from state.pipeline import Resource, StageConfig
from state.snapshot import BackingOff, Fact, Intent, Running, StageState, Start

SAVED = "Saved; it goes on with the run"
MARKS = {
    Status.PENDING: "⚪",
    Status.RUNNING: "🔵",
    Status.BACKING_OFF: "⏳",
    Status.SUCCEEDED: "✅",
    Status.FAILED: "❌",
    Status.SKIPPED: "⏩",
}
_OWNER = re.compile(r"by the owner( \([\w ]+\))?")
_COMMAND = re.compile(r"`(?:vigil )?(pause|resume|retry|skip|stop)`")


@dataclass(frozen=True)
class More:
    """What is shown beside the view and costs a look of its own; what nobody has looked up is left out."""

    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """The last losses told, by stage, oldest first."""
    saved_at: Mapping[str, float] = field(default_factory=dict)
    """When the newest checkpoint was saved, by stage."""
    output: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The last lines that a stage's newest attempt printed."""
    scores: scores.Results | None = None
    forecast: Forecast | None = None
    """The newest one of the plan."""


NOTHING_MORE = More()


def at_work(view: View) -> list[StageView]:
    """The stages that run or wait for their next attempt."""
    return [stage for stage in view.stages if stage.state.state in (Status.RUNNING, Status.BACKING_OFF)]


def said(fact: Fact, view: View) -> str:
    """A sentence of the journal as a phone reads it, not escaped: stages by title, the owner as `you`, commands to tap, no ids."""
    run, told = view.run, fact.text
    stage = next((stage for stage in view.stages if stage.config.name == fact.stage), None)
    if stage is not None:
        about = re.match(rf"{stage.config.name}\b", told)
        told = f"{title(stage)}{told[about.end() :]}" if about else f"{title(stage)}: {told}"
    told = told.replace(f"run {run.id}", "the run").replace(f" of pipeline {run.pipeline.name}", "")
    return to_you(told)


def to_you(told: str) -> str:
    """What the daemon says of the owner and of the command line, said to him on his phone."""
    return _COMMAND.sub(r"/\1", _OWNER.sub("by you", told)).replace("`", "")


def head(view: View) -> list[str]:
    """The pipeline's name, how much is done, and what is unusual about the whole run."""
    run = view.run
    done = report.count_states(run)[Status.SUCCEEDED]
    return [f"{bold(words.clip(run.pipeline.name, TITLE_COLUMNS))} · {done} of {len(run.stages)} done", mood(view)]


def mood(view: View) -> str:
    """What is unusual about the whole run; empty when it simply goes on."""
    run = view.run
    if run.finished:
        return f"🏁 {wraps(report.verdict(run))}"
    if run.disk_hold:
        return f"💾 Waits for disk space: {wraps(run.disk_hold)}"
    if run.paused:
        return "💤 Paused; /resume goes on"
    return "" if view.alive else wraps(report.liveness(view))


def stage_block(stage: StageView, view: View, now: float, zone: tzinfo | None, more: More, *, ages: bool) -> list[str]:
    """All about a stage at work or waiting. Without `ages` it changes only with the run, and not with every minute."""
    number = f"{stage.number}/{len(view.stages)}"
    top = f"{MARKS[stage.state.state]} {bold(f'{number} {title(stage)}')}"
    state = stage.state.status
    if was_stopped(stage.state):
        return [top, SAVED]
    if not isinstance(state, Running):
        return [top, *_waits(stage, view, now)] if ages else [top, "Waits to be tried again"]
    if isinstance(state.intent, Intent):
        return [top, f"Stopping: {wraps(to_you(state.intent.reason))}"]
    if stage.working is False:
        return [top, "Its process is gone; the next run goes on"]
    return [
        top,
        f"{words.bar(stage.share, 10)} {words.percent(stage.share)}" if stage.share is not None else "",
        _position(stage),
        _ends("Stage", stage.eta_s(now), now, zone, ages=ages),
        _loss(stage, more),
        line(batch_line(stage, view.facts)),
        _saved(stage, more, now, zone, ages=ages),
        _again(stage) if ages else "",
    ]


def _waits(stage: StageView, view: View, now: float) -> list[str]:
    """Why a stage waits for its next attempt, and how long."""
    status = stage.state.status
    if not isinstance(status, BackingOff) or status.needed_bytes:
        return [sentence(report.stage_note(stage, view, now))]
    wait_s = max(0.0, status.since + status.delay_s - now)
    return [sentence(status.reason), f"Tried again in {words.duration(wait_s)}" if wait_s else "Tried again as soon as it can"]


def _again(stage: StageView) -> str:
    """Which attempt it is, and how the one before ended; empty of the first."""
    attempts = stage.state.attempts
    if len(attempts) < 2:
        return ""
    before = attempts[-2]
    plain = {Outcome.STOPPED: "a stop", Outcome.INTERRUPTED: "an interruption"}
    how = plain.get(before.outcome, before.reason) if before.outcome else ""
    return wraps(f"Attempt {len(attempts)}{f'; before: {how}' if how else ''}")


def was_stopped(stage: StageState) -> bool:
    """Whether it waits for nothing but the owner, or for the next run."""
    return isinstance(stage.status, BackingOff) and stage.status.outcome is Outcome.STOPPED


def _position(stage: StageView) -> str:
    told = stage.progress
    if stage.step is not None:
        pace = f" · {report.pace(stage.step_s)}" if stage.step_s else ""
        return line(f"Step {stage.step:,}{f' of {stage.steps:,}' if stage.steps else ''}{pace}")
    if told is None:
        return "Starting"
    done = f"{words.number(told.done)} of {words.number(told.total)} {told.unit}" if told.total else ""
    return line(", ".join(filter(None, (done, told.message))) or "At work")


def _ends(what: str, left_s: float | None, now: float, zone: tzinfo | None, *, ages: bool = True) -> str:
    if left_s is None:
        return ""
    if left_s < 1:
        return f"{what}: due now"  # and not the time of day, which would change the card every minute
    end = words.near(now + left_s, now, zone)
    return f"{what}: {words.duration(left_s)} left, until {end}" if ages else f"{what}: until {end}"


def _loss(stage: StageView, more: More) -> str:
    loss = stage.metrics.get("loss")
    curve = words.sparkline(more.losses.get(stage.config.name, ()), 16)
    return f"Loss {words.number(loss, 3)} {curve}".rstrip() if loss is not None else ""


def batch_line(stage: StageView, facts: Sequence[Fact] = ()) -> str:
    """How many examples count as one step, how many fit at a time, and why it is so; empty for a stage without a batch."""
    settings, plan = stage.config.settings, stage.state.batch
    effective, asked = settings.get("effective_batch"), settings.get("micro_batch")
    if plan.eval_batch is not None:
        return f"Batch {plan.eval_batch}: more did not fit"
    if effective is None:
        return ""
    micro = min([batch for batch in (plan.micro_batch or asked, *stage.state.fits.values()) if batch], default=None)
    if micro is None or micro >= effective:
        return f"Batch {effective}, as set{_spared(plan)}"
    shrunk = plan.micro_batch is not None or _ran_short(stage.state, facts) or (asked or effective) > micro
    return f"Batch {effective}, {micro} at a time: {'more did not fit' if shrunk else 'as set'}{_spared(plan)}"


def _ran_short(stage: StageState, facts: Sequence[Fact]) -> bool:
    noted = (fact for fact in facts if fact.stage == stage.name and fact.kind == "attempt.noted")
    return any(symptoms.out_of_memory(fact.text) for fact in noted)


def _spared(plan: BatchPlan) -> str:
    return ", slower to save memory" if plan.gradient_checkpointing or plan.paged_optimizer else ""


def _saved(stage: StageView, more: More, now: float, zone: tzinfo | None, *, ages: bool) -> str:
    if stage.checkpoint is None:
        return "Saved: nothing yet" if stage.step is not None else ""
    at = more.saved_at.get(stage.config.name)
    when = "" if at is None else f", {words.duration(now - at)} ago" if ages else f", {words.near(at, now, zone)}"
    return f"Saved: step {stage.checkpoint:,}{when}"


def run_lines(
    view: View, now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE, *, ages: bool = True, unknown: str = ""
) -> list[str]:
    """When the whole run is expected to end, and whether that meets its deadline; the former not while it waits for the owner."""
    run, forecast = view.run, more.forecast
    if run.finished or not view.alive:
        return []
    founded = forecast is not None and all(stage.source != "guess" for stage in forecast.stages)
    left_s = forecast.p50_at - now if forecast and founded else run_left_s(view, now)
    end = "" if run.paused or run.disk_hold else _ends("Run", left_s, now, zone, ages=ages) or unknown
    return [end, *(deadline_lines(forecast, now, zone) if forecast else [])]


def deadline_lines(forecast: Forecast, now: float, zone: tzinfo | None = None) -> list[str]:
    """Whether the deadline holds, and what the owner can do when it does not; empty where there is none."""
    if forecast.deadline_at is None:
        return []
    due, sure = words.near(forecast.deadline_at, now, zone), words.near(forecast.p80_at, now, zone)
    return [f"Deadline {due}: {report.lateness(forecast)}", f"80 % sure by {sure}", sentence(forecast.choice)]


def run_left_s(view: View, now: float) -> float | None:
    """Seconds until the last stage ends, one stage a resource at a time, by each one's pace or else its `budget_h`.

    None where a stage has neither.
    """
    ends = {stage.config.name: 0.0 for stage in view.stages if stage.state.settled}
    free = dict.fromkeys(Resource, 0.0)
    left = [stage for stage in view.stages if not stage.state.settled]
    left.sort(key=lambda stage: stage.state.state is Status.PENDING)
    while left:
        starts = [(_start_s(stage.config, ends, free), place) for place, stage in enumerate(left)]
        start_s, place = min(((start, place) for start, place in starts if start is not None), default=(0.0, -1))
        needed_s = _needed_s(left[place], now) if place >= 0 else None
        if needed_s is None:
            return None
        config = left.pop(place).config
        ends[config.name] = free[config.resource] = start_s + needed_s
    return max(ends.values(), default=0.0)


def _start_s(config: StageConfig, ends: Mapping[str, float], free: Mapping[Resource, float]) -> float | None:
    """When it can start; None while that of another must be known first."""
    others = [ends.get(name) for name in (*config.needs, *config.after)]
    known = [end for end in others if end is not None]
    return max(free[config.resource], *known, 0.0) if len(known) == len(others) else None


def _needed_s(stage: StageView, now: float) -> float | None:
    pace_s, budget_h = stage.eta_s(now), stage.config.budget_h
    if pace_s is not None or budget_h is None:
        return pace_s
    return budget_h * 3600 * (1 - (stage.share or 0.0))


def coming(view: View) -> StageView | None:
    """The stage that is next."""
    return next((stage for stage in view.stages if stage.state.state is Status.PENDING), None)


def host_lines(host: Mapping[str, Any]) -> list[str]:
    """GPU, memory, and the disk on both sides of WSL, a line each; what was not measured is left out."""
    gpus = host.get("gpus", ())
    lines = ["GPU does not answer"] if gpus is None else [_gpu(gpu) for gpu in gpus]
    used, total = host.get("memory_used_bytes"), host.get("memory_total_bytes")
    if used is not None and total:
        lines.append(f"RAM {words.size(used)} of {words.size(total)}")
    disks = [f"{_side(disk['path'])} {words.size(disk['free_bytes'])} free" for disk in host.get("disks") or ()]
    return [line for line in (*lines, " · ".join(disks)) if line]


def _side(path: str) -> str:
    return "Windows" if path.startswith("/mnt/") else "Disk"


def _gpu(gpu: Mapping[str, Any]) -> str:
    """As `report.gpu_text`, with the short name that fits a phone."""
    told = report.gpu_text({**gpu, "name": "GPU"})
    return line(re.sub(r"(%|°C) (?=\d)", r"\1 · ", told))


def disk_line(host: Mapping[str, Any]) -> list[str]:
    """The disks alone."""
    return [line for line in host_lines(host)[-1:] if "free" in line]


def up_lines(view: View, now: float, zone: tzinfo | None) -> list[str]:
    """How long Vigil has run without a break, and its last restarts with their causes."""
    starts = view.run.starts
    if not starts or not view.alive:
        return []
    causes = [f"{words.near(start.at, now, zone)} {_cause(before, start, view.facts)}" for before, start in pairwise(starts)]
    times = f", {words.plural(len(causes), 'restart')}:" if causes else ""
    return [f"Up {words.duration(now - starts[-1].at)}{times}", *causes[-3:]]


def _cause(before: Start, start: Start, facts: Sequence[Fact]) -> str:
    """Why the daemon had to start again."""
    if start.boot != before.boot:
        return "the machine restarted"
    stops = (fact for fact in facts if fact.kind == "command.answered" and before.at <= fact.at <= start.at)
    asked = any(fact.text.startswith(f"{CommandKind.STOP}:") and fact.fields.get("ok") for fact in stops)
    return "started after your /stop" if asked else "Vigil restarted"


def verdict_lines(results: scores.Results | None) -> list[str]:
    """What the evaluation says of each model, in lines for a phone; empty where it said nothing."""
    lines = []
    for model, verdict in scores.verdicts(results):
        first, *others = textwrap.wrap(scores.briefly(verdict), COLUMNS)
        named = first.startswith(model)
        lines += [f"{bold(model)}{escaped(first.removeprefix(model))}" if named else escaped(first), *map(escaped, others)]
    return lines


def score_lines(results: scores.Results | None, models: int = 6) -> str:
    """The overall scores before and after as a block for a phone; empty when nothing was measured."""
    overall = scores.overall(results)
    alone = results is not None and len(results.labels) == 1
    lines: list[str] = []
    for model in list(dict.fromkeys(row.model for row in overall))[:models]:
        lines.append(model[:COLUMNS])
        for row in overall:
            if row.model == model:
                later = "" if alone else f" → {row.after:>6} {row.change} {row.verdict}"
                name = row.metric.replace("CometKiwi", "Kiwi")
                lines.append(f"{name:<6} {row.before:>6}{later}"[:COLUMNS].rstrip())
    return f"<pre>{escaped(chr(10).join(lines))}</pre>" if lines else ""


def demo_line(results: scores.Results | None) -> str:
    """That COMET is the demo's own, where it is."""
    demo = scores.demo_comet(results)
    return f"COMET: {escaped(demo)}" if demo else ""

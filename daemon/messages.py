"""PURE: every text that goes to the phone, in Telegram's HTML: answers, questions, the card, and what a fact of the journal tells.

Lines of our own are at most 40 characters wide; what stages say is escaped, clipped, and wraps. What is sent when, how loudly in
quiet hours, and what became of it is `daemon.outbox`; what an answer is given to is `daemon.chat`.
"""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from itertools import pairwise, takewhile
from typing import Any

from msgspec.structs import replace

from daemon import report, scores, words
from daemon.dialogue import Button, Message, Ring
from daemon.view import StageView, View
from state import symptoms
from state.contract import BatchPlan, CommandKind, Outcome
from state.machine import Status
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import BackingOff, Fact, Intent, Running, RunState, StageState

AGAIN_UNITS = 8
TEXT_UNITS = 4096 - AGAIN_UNITS
CAPTION_UNITS = 1024 - AGAIN_UNITS
"""Telegram's limits, in UTF-16 units of what is shown, less the mark that the outbox puts before an unsure repeat."""
COLUMNS = 40
TITLE_COLUMNS = 24
REASON_COLUMNS = 300
FACTS_SHOWN = 12
MOST_LOG_LINES = 50
DAY_S = 86_400.0
GPU_HOT_C = 90.0
COMMANDS = {
    "status": "where the run stands",
    "stages": "every stage in one line",
    "plot": "[stage] a picture of the loss",
    "report": "scores before and after",
    "log": "[n] [stage] its last lines",
    "events": "what happened lately",
    "skip": "[stage] leave a stage out",
    "retry": "[stage] try a stage again",
    "pause": "save, then wait",
    "resume": "go on after a pause",
    "stop": "save, then end Vigil",
    "mute": "8h no sound but for red",
    "ping": "is anybody there",
    "help": "this list",
}
"""What can be asked; also for Telegram's own menu."""
HELP_LINE = "/help lists what I know."
SAVED = "Saved; it goes on with the run"
INDENT = "   "
MARKS = {
    Status.PENDING: "⚪",
    Status.RUNNING: "🔵",
    Status.BACKING_OFF: "⏳",
    Status.SUCCEEDED: "✅",
    Status.FAILED: "❌",
    Status.SKIPPED: "⏩",
}


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


NOTHING_MORE = More()


# -- Telegram's HTML

_PIECE = re.compile(r"<(/?)(\w+)[^>]*>|&\w+;|.", re.DOTALL)


def escaped(text: str) -> str:
    """`text` so that Telegram shows it as typed; control characters and halves of pairs, which it refuses, are taken out."""
    sound = text.encode("utf-8", "replace").decode()
    return html.escape("".join(char for char in sound if char >= " " or char in "\n\t"), quote=False)


def cut_html(markup: str, units: int) -> str:
    """`markup` cut so that at most `units` UTF-16 units are shown, the last an ellipsis; tags are closed, entities whole."""
    if words.utf16_units(words.bare(markup)) <= units:
        return markup
    kept: list[str] = []
    opened: list[str] = []
    left = units - 1
    for piece in _PIECE.finditer(markup):
        if piece[2] is None:
            left -= words.utf16_units(html.unescape(piece[0]))
            if left < 0:
                break
        elif piece[1]:
            opened.pop()
        else:
            opened.append(piece[2])
        kept.append(piece[0])
    return "".join((*kept, "…", *(f"</{tag}>" for tag in reversed(opened))))


def text(*parts: Iterable[str], units: int = TEXT_UNITS) -> str:
    """Parts of lines as one text: a blank line between parts, none for what is empty."""
    return cut_html("\n\n".join(part for part in ("\n".join(filter(None, lines)) for lines in parts) if part), units)


def bold(words_of_ours: str) -> str:
    """Escaped and bold."""
    return f"<b>{escaped(words_of_ours)}</b>"


def title(stage: StageView | StageConfig) -> str:
    """A stage's title, short enough for a line; not escaped."""
    config = stage.config if isinstance(stage, StageView) else stage
    return words.clip(config.title or config.name, TITLE_COLUMNS)


def _wraps(said: str) -> str:
    """What somebody else said: on one line that may wrap, not for ever."""
    return escaped(words.clip(said, REASON_COLUMNS))


def _sentence(said: str) -> str:
    """As `_wraps`, with a capital."""
    return _wraps(said[:1].upper() + said[1:])


def _line(ours: str) -> str:
    """A line of our own that may hold what others said: 40 columns."""
    return escaped(words.clip(ours, COLUMNS))


# -- where the run stands


def status(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> str:
    """All that /status answers."""
    blocks = [_stage_block(stage, view, now, zone, more, ages=True) for stage in at_work(view)]
    coming = _coming(view)
    ahead = [run_line(view, now, zone, unknown="Run: its end is not known"), f"Next: {escaped(title(coming))}" if coming else ""]
    return text(_head(view), *blocks, ahead, host_lines(host), _up_lines(view, now, zone))


def card(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> Message:
    """The pinned card, each an edit of the last: times of day and no ages, so that it changes only with the run."""
    blocks = [_stage_block(stage, view, now, zone, more, ages=False) for stage in at_work(view)]
    foot = [f"<i>as of {words.day_and_clock(now, zone)}</i>"]
    markup = text(_head(view), *blocks, [run_line(view, now, zone, ages=False), *_disk_line(host)], foot)
    key = f"{view.run.id}/card"
    return Message(key=key, html=markup, at=now, kind="card", replaces=key)


def same_card(one: Message, other: Message) -> bool:
    """Whether two cards differ in nothing but their time: then no edit is due."""
    return one.html.rpartition("\n")[0] == other.html.rpartition("\n")[0]


def at_work(view: View) -> list[StageView]:
    """The stages that run or wait for their next attempt."""
    return [stage for stage in view.stages if stage.state.state in (Status.RUNNING, Status.BACKING_OFF)]


def _head(view: View) -> list[str]:
    run = view.run
    done = report.count_states(run)[Status.SUCCEEDED]
    return [f"{bold(words.clip(run.pipeline.name, TITLE_COLUMNS))} · {done} of {len(run.stages)} done", _mood(view)]


def _mood(view: View) -> str:
    """What is unusual about the whole run; empty when it simply goes on."""
    run = view.run
    if run.finished:
        return f"🏁 {_wraps(report.verdict(run))}"
    if run.disk_hold:
        return f"💾 Waits for disk space: {_wraps(run.disk_hold)}"
    if run.paused:
        return "💤 Paused; /resume goes on"
    return "" if view.alive else _wraps(report.liveness(view))


def _stage_block(stage: StageView, view: View, now: float, zone: tzinfo | None, more: More, *, ages: bool) -> list[str]:
    number = f"{stage.number}/{len(view.stages)}"
    head = f"{MARKS[stage.state.state]} {bold(f'{number} {title(stage)}')}"
    state = stage.state.status
    if _was_stopped(stage.state):
        return [head, SAVED]
    if not isinstance(state, Running):
        return [head, _sentence(report.stage_note(stage, view, now)) if ages else "Waits to be tried again"]
    if isinstance(state.intent, Intent):
        return [head, f"Stopping: {_wraps(state.intent.reason)}"]
    if stage.working is False:
        return [head, "Its process is gone; the next run goes on"]
    return [
        head,
        f"{words.bar(stage.share, 10)} {words.percent(stage.share)}" if stage.share is not None else "",
        _position(stage),
        _ends("Stage", stage.eta_s(now), now, zone, ages=ages),
        _loss(stage, more),
        _line(batch_line(stage, view.facts)),
        _saved(stage, more, now, zone, ages=ages),
    ]


def _was_stopped(stage: StageState) -> bool:
    """Whether it waits for nothing but the owner, or for the next run."""
    return isinstance(stage.status, BackingOff) and stage.status.outcome is Outcome.STOPPED


def _position(stage: StageView) -> str:
    told = stage.progress
    if stage.step is not None:
        pace = f" · {report.pace(stage.step_s)}" if stage.step_s else ""
        return _line(f"Step {stage.step:,}{f' of {stage.steps:,}' if stage.steps else ''}{pace}")
    if told is None:
        return "Starting"
    done = f"{words.number(told.done)} of {words.number(told.total)} {told.unit}" if told.total else ""
    return _line(", ".join(filter(None, (done, told.message))) or "At work")


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
        return f"Batch {effective}{_spared(plan)}"
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


def run_line(view: View, now: float, zone: tzinfo | None = None, *, ages: bool = True, unknown: str = "") -> str:
    """When the whole run is expected to end; empty while it waits for the owner or is over."""
    run = view.run
    if run.finished or run.paused or run.disk_hold or not view.alive:
        return ""
    return _ends("Run", run_left_s(view, now), now, zone, ages=ages) or unknown


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


def _coming(view: View) -> StageView | None:
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
    return _line(re.sub(r"(%|°C) (?=\d)", r"\1 · ", told))


def _disk_line(host: Mapping[str, Any]) -> list[str]:
    return [line for line in host_lines(host)[-1:] if "free" in line]


def _up_lines(view: View, now: float, zone: tzinfo | None) -> list[str]:
    """How long Vigil has run without a break, and its last restarts with their causes."""
    starts = view.run.starts
    if not starts or not view.alive:
        return []
    causes = [
        f"{words.near(start.at, now, zone)} {'Vigil' if start.boot == before.boot else 'the machine'} restarted"
        for before, start in pairwise(starts)
    ]
    times = f", {words.plural(len(causes), 'restart')}:" if causes else ""
    return [f"Up {words.duration(now - starts[-1].at)}{times}", *causes[-3:]]


def stages(view: View) -> str:
    """Every stage in a line; why, where one has failed or was left out."""
    lines = []
    for stage in view.stages:
        state = stage.state.state
        share = "" if stage.share is None else words.percent(stage.share)
        tail = report.took(stage.state) if state is Status.SUCCEEDED else share
        lines.append(f"{MARKS[state]} {stage.number} {escaped(title(stage))}{f' · {tail}' if tail else ''}")
        if state in (Status.FAILED, Status.SKIPPED, Status.BACKING_OFF):
            why = SAVED if _was_stopped(stage.state) else report.reason(stage.state)
            lines.append(INDENT + escaped(words.clip(why, COLUMNS - len(INDENT))))
    return text([bold(words.clip(view.run.pipeline.name, COLUMNS))], lines)


def events(view: View, zone: tzinfo | None = None, count: int = FACTS_SHOWN) -> str:
    """The newest facts under their days, marked as `vigil log` marks them."""
    parts: list[list[str]] = []
    day = None
    for fact in [fact for fact in view.facts if fact.level != "debug"][-count:]:
        moment = words.local(fact.at, zone)
        if moment.date() != day:
            day = moment.date()
            parts.append([f"<b>{moment:%a} {moment.day} {moment:%b}</b>"])
        mark = {"warning": "! ", "error": "!! "}.get(fact.level, "")
        parts[-1].append(f"{moment:%H:%M} {mark}{_wraps(fact.text)}")
    return text(*parts) or "Nothing has happened yet."


def log(stage: StageView, lines: Sequence[str] | None) -> str:
    """The last lines that a stage printed, as many as a message takes; of a line that rewrites itself, its last state."""
    if lines is None:
        return f"{bold(title(stage))}: what it printed cannot be read just now."
    last = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip("\r").rpartition("\r")[2][:200] for line in lines[-MOST_LOG_LINES:]]
    head = f"{bold(title(stage))}, last lines"
    room = TEXT_UNITS - words.utf16_units(words.bare(head)) - 1
    while last and sum(words.utf16_units(line) + 1 for line in last) > room:
        last.pop(0)
    return f"{head}\n<pre>{escaped(chr(10).join(last))}</pre>" if last else f"{bold(title(stage))} has printed nothing yet."


def ping(view: View | None, now: float, zone: tzinfo | None = None) -> str:
    """That somebody is there, and when the run last said something."""
    told = [stage.progress.at for stage in (view.stages if view else ()) if stage.progress is not None]
    spoke = f"The run spoke {words.duration(now - max(told))} ago." if told else "The run has said nothing yet."
    return f"Here, at {words.clock(now, zone)}.\n{spoke}"


def help_text() -> str:
    """Every command in a line."""
    return text([f"/{name} {escaped(what)}" for name, what in COMMANDS.items()], ["What acts asks first."])


def welcome(view: View | None = None) -> Message:
    """The first message to the owner."""
    name = bold(words.clip(view.run.pipeline.name, TITLE_COLUMNS)) if view else "your run"
    lines = ["Vigil watches over", f"{name}.", "It tells you what matters", "and asks before it acts."]
    return Message(key="welcome", html=text(lines, ["/status looks, /help lists the rest."]))


def unreadable() -> str:
    """Where there is no run to look at."""
    return "The run cannot be read just now.\nAsk again in a minute."


# -- scores


def score_lines(results: scores.Results | None, models: int = 6) -> str:
    """The overall scores before and after as a block for a phone; empty when nothing was measured."""
    overall = [row for row in scores.rows(results) if row.genre == scores.ALL_GENRES]
    alone = results is not None and len(results.labels) == 1
    lines: list[str] = []
    for model in list(dict.fromkeys(row.model for row in overall))[:models]:
        lines.append(model[:COLUMNS])
        for row in overall:
            if row.model == model:
                later = "" if alone else f" → {row.after:>6} {row.change} {row.verdict}"
                lines.append(f"{row.metric:<6} {row.before:>6}{later}"[:COLUMNS].rstrip())
    return f"<pre>{escaped(chr(10).join(lines))}</pre>" if lines else ""


def scored(results: scores.Results | None) -> str:
    """The caption of the report: the scores, and whether they are the demo's."""
    table = score_lines(results)
    demo = scores.demo_comet(results)
    lines = [bold("The scores") if table else "Nothing was measured yet.", table, f"COMET: {escaped(demo)}" if demo else ""]
    return text(lines, units=CAPTION_UNITS)


def plotted(stage: StageView) -> str:
    """The caption of a plot."""
    loss = stage.metrics.get("loss")
    where = f"at step {stage.step:,}" if stage.step is not None else ""
    told = f"Loss {words.number(loss, 3)} {where}".rstrip() if loss is not None else ""
    return text([bold(title(stage)), told], units=CAPTION_UNITS)


# -- questions and what became of them


def nonce(*of: object) -> str:
    """An id that the same `of` always give, and nothing else."""
    return hashlib.sha256("/".join(str(one) for one in of).encode("utf-8", "replace")).hexdigest()[:16]


def question_key(question: str) -> str:
    """Key of the message that asks the question with this nonce."""
    return f"ask/{question}"


def command_id(question: str) -> str:
    """Id of the command that a yes to the question gives: the same for every replay, so that it acts once."""
    return f"tg-{question}"


UNDO = {
    CommandKind.PAUSE: (CommandKind.RESUME, "Undo: go on"),
    CommandKind.RESUME: (CommandKind.PAUSE, "Undo: pause again"),
    CommandKind.SKIP: (CommandKind.RETRY, "Undo: take it up again"),
}
"""What takes a command back, and its button."""


def undo_nonce(question: str) -> str:
    """Of the question whose yes takes this one's yes back."""
    return nonce(question, "undo")


def undo_button(kind: CommandKind, question: str) -> tuple[tuple[Button, ...], ...]:
    """The button under what was done; none where nothing takes it back."""
    return ((Button(UNDO[kind][1], f"do:{undo_nonce(question)}"),),) if kind in UNDO else ()


def choices(kind: CommandKind, question: str, stage: StageView | None) -> tuple[tuple[Button, ...], ...]:
    """The buttons under a question; they name the stage."""
    name = title(stage) if stage else "the run"
    yes = [Button(f"{str(kind).capitalize()} {name}", f"do:{question}")]
    if kind is CommandKind.SKIP and stage and stage.state.state is Status.RUNNING:
        yes = [Button(f"Save and skip {name}", f"do:{question}"), Button(f"Skip {name} now", f"do:{question}:now")]
    if kind is CommandKind.STOP:
        yes = [Button("Stop Vigil and the run", f"do:{question}")]
    return (*((button,) for button in yes), (Button("No, leave it as it is", f"no:{question}"),))


def picks(kind: CommandKind, among: Sequence[StageView]) -> tuple[tuple[Button, ...], ...]:
    """A button for each stage that the command may mean."""
    return tuple((Button(f"{str(kind).capitalize()} {title(stage)}", f"pick:{kind}:{stage.config.name}"),) for stage in among)


def question(kind: CommandKind, stage: StageView | None, view: View) -> str:
    """What is asked before the command acts: what stands now, what is kept, what follows."""
    if kind is CommandKind.SKIP and stage:
        return _ask_skip(stage, view)
    if kind is CommandKind.RETRY and stage:
        return _ask_retry(stage, view)
    running = ", ".join(title(stage) for stage in view.stages if stage.state.state is Status.RUNNING)
    at = _wraps(f"At work: {running}") if running else "Nothing is at work."
    return text(*_ASK_RUN[kind](at))


_ASK_RUN: dict[CommandKind, Callable[[str], tuple[list[str], ...]]] = {
    CommandKind.PAUSE: lambda at: (
        [bold("Pause the run?"), at],
        ["Kept: all; it saves first.", "Then: nothing runs until /resume."],
    ),
    CommandKind.RESUME: lambda at: (
        [bold("Go on with the run?"), at],
        ["Kept: all that is done.", "Then: it goes on where it was saved."],
    ),
    CommandKind.STOP: lambda at: (
        [bold("Stop Vigil and the run?"), at],
        ["Kept: all; it saves first.", "Then: Vigil ends and is silent here.", "It cannot be started from the phone."],
    ),
}


def _ask_skip(stage: StageView, view: View) -> str:
    others = dependents(view.run.pipeline, stage.config.name)
    left_out = [title(other) for other in view.stages if other.config.name in others and not other.state.settled]
    out = {*others, stage.config.name}
    follows = next((o for o in view.stages if o.state.state is Status.PENDING and o.config.name not in out), None)
    kept = f"checkpoints up to step {stage.checkpoint:,}" if stage.checkpoint is not None else "what it wrote so far"
    return text(
        [bold(f"Skip {title(stage)}?"), _stands(stage)],
        [
            f"Kept: {kept}" if stage.state.attempts else "",
            _wraps(f"Left out too: {', '.join(left_out)}") if left_out else "",
            f"Then: {escaped(title(follows))}" if follows else "",
            "/retry takes it up again.",
        ],
    )


def _ask_retry(stage: StageView, view: View) -> str:
    others = dependents(view.run.pipeline, stage.config.name)
    back = [title(other) for other in view.stages if other.config.name in others and other.state.state is Status.SKIPPED]
    begins = f"goes on from step {stage.checkpoint:,}" if stage.checkpoint is not None else "begins again"
    return text(
        [bold(f"Try {title(stage)} again?"), _stands(stage), _sentence(report.reason(stage.state))],
        [f"It {begins}.", _wraps(f"Then also: {', '.join(back)}") if back else ""],
    )


def _stands(stage: StageView) -> str:
    state = stage.state.state
    name = {
        Status.PENDING: "has not started",
        Status.RUNNING: "is at work",
        Status.BACKING_OFF: "waits for its next attempt",
        Status.SUCCEEDED: "is done",
        Status.FAILED: "has failed",
        Status.SKIPPED: "is skipped",
    }[state]
    step = f",\nstep {stage.step:,}{f' of {stage.steps:,}' if stage.steps else ''}" if stage.step is not None else ""
    share = f" ({words.percent(stage.share)})" if stage.share is not None and state is Status.RUNNING else ""
    return f"It {name}{step}{share}."


def stands(view: View, stage: StageView | None) -> str:
    """What is true now, in a line: of a stage, or of the run."""
    if stage is not None:
        return escaped(f"{title(stage)}{_stands(stage).removeprefix('It')}")
    if _mood(view):
        return _mood(view)
    return "The run goes on."


def asked_for(kind: CommandKind, stage: StageView | None, now: float, zone: tzinfo | None, *, at_once: bool = False) -> str:
    """After the yes and before the daemon's answer, which is an edit of this."""
    what = f"{str(kind).capitalize()} {title(stage) if stage else 'the run'}{' now' if at_once else ''}"
    return text([f"<b>{escaped(what)}</b>", f"Asked for at {words.clock(now, zone)}."])


def dependents(pipeline: Pipeline, name: str) -> frozenset[str]:
    """The stages that need `name`, also by way of another."""
    found = {name}
    while more := {stage.name for stage in pipeline.stages if found & set(stage.needs)} - found:
        found |= more
    return frozenset(found - {name})


# -- what a fact tells


_SAID = re.compile(r"\S+( \w+)?( \(a bonus: the run goes on\))?: ")


@dataclass(frozen=True)
class _Told:
    """A fact and what is known beside it."""

    fact: Fact
    view: View
    zone: tzinfo | None
    more: More

    @property
    def stage(self) -> StageView | None:
        return next((stage for stage in self.view.stages if stage.config.name == self.fact.stage), None)

    @property
    def title(self) -> str:
        return title(self.stage) if self.stage else self.fact.stage or "the run"

    @property
    def reason(self) -> str:
        """The fact's text without what a message's first line says already; empty when that is all it says."""
        return self.fact.text[found.end() :] if (found := _SAID.match(self.fact.text)) else ""

    def before(self, kind: str) -> list[Fact]:
        """Earlier facts of this kind and stage, newest first."""
        earlier = takewhile(lambda fact: fact.id != self.fact.id, self.view.facts)
        return [fact for fact in reversed(list(earlier)) if (fact.kind, fact.stage) == (kind, self.fact.stage)]

    def message(self, ring: Ring, *parts: Iterable[str], replaces: str = "") -> Message:
        return Message(
            key=fact_key(self.view.run, self.fact),
            html=text(*parts),
            ring=ring,
            kind=self.fact.kind,
            at=self.fact.at,
            replaces=replaces,
        )


def fact_key(run: RunState, fact: Fact) -> str:
    """Key of the message that tells `fact`."""
    return f"{run.id}/{fact.id}"


def for_fact(fact: Fact, view: View, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> Message | None:
    """The message that tells `fact`; None for what is nobody's news.

    Ring OFF: by default it is not sent; a configuration may ask for it. A fact that ends a disk hold gives an edit of the message
    that told the hold; what else a fact puts an end to says `solved_by`.
    """
    if fact.level == "debug":
        return None
    told = _Told(fact, view, zone, more)
    tell = _TELL.get(fact.kind)
    return tell(told) if tell else _plain(told)


def _plain(told: _Told) -> Message:
    """What is nobody's news by default, as the journal has it."""
    return told.message(Ring.OFF, [_wraps(told.fact.text) or escaped(told.fact.kind)])


def _succeeded(told: _Told) -> Message:
    stage, now = told.stage, told.fact.at
    lines = [f"✅ <b>{escaped(told.title)} is done</b>", _sentence(told.reason)]
    if stage is None:
        return told.message(Ring.LOUD, lines)
    tries = f" in {len(stage.state.attempts)} attempts" if len(stage.state.attempts) > 1 else ""
    busy, coming = [title(other) for other in at_work(told.view)], _coming(told.view)
    ahead = [
        f"It took {report.took(stage.state)}{tries}." if report.took(stage.state) else "",
        f"{report.count_states(told.view.run)[Status.SUCCEEDED]} of {len(told.view.stages)} done",
        _line(f"Now: {', '.join(busy)}") if busy else f"Next: {escaped(title(coming))}" if coming else "",
        run_line(told.view, now, told.zone),
    ]
    scored = stage.config.module == "stages.evaluate"
    return told.message(Ring.LOUD, lines, [score_lines(told.more.scores, 3)] if scored else [], ahead)


def _failed(told: _Told) -> Message:
    stage = told.stage
    if stage is None or stage.config.optional:
        return told.message(
            Ring.SILENT, [f"❌ <b>{escaped(told.title)} has failed</b>", _sentence(told.reason)], ["A bonus: the run goes on."]
        )
    others = dependents(told.view.run.pipeline, stage.config.name)
    left_out = ", ".join(title(other) for other in told.view.stages if other.config.name in others)
    return told.message(
        Ring.RED,
        [f"🔴 <b>{escaped(told.title)} has failed</b>", _sentence(told.reason)],
        [
            _wraps(f"Left out too: {left_out}") if left_out else "",
            "What can go on goes on.",
            f"/retry {stage.config.name}",
        ],
    )


def _hung(told: _Told) -> Message:
    """The first time it is ended and tried again in silence; a second time in a row rings; later ones are covered by "still"."""
    attempts = [fact.attempt for fact in told.before("attempt.hung")]
    number = told.fact.attempt or 0
    in_a_row = len(list(takewhile(lambda pair: pair[1] == number - 1 - pair[0], enumerate(attempts))))
    ring = (Ring.SILENT, Ring.RED, Ring.OFF)[min(in_a_row, 2)]
    mark = "🔴" if ring is Ring.RED else "🔁"
    stalls = "stalls again" if in_a_row else "stalled"
    return told.message(
        ring, [f"{mark} <b>{escaped(told.title)} {stalls}</b>", _wraps(told.fact.text)], ["It is ended and tried again."]
    )


def _held(told: _Told) -> Message:
    why = told.reason.partition("; free some")[0]
    return told.message(Ring.RED, ["🔴 <b>The run waits for disk space</b>", _sentence(why)], ["Free some: it goes on by itself."])


def _freed(told: _Told) -> Message:
    first = next(iter(told.before("disk.held")), None)
    if first is None:
        return told.message(Ring.SILENT, ["✅ <b>There is disk space again</b>", "The run goes on."])
    held = _held(_Told(first, told.view, told.zone, told.more))
    edit = solved(held, told.fact.at, "there is space again", told.zone)
    return replace(edit, key=fact_key(told.view.run, told.fact), kind=told.fact.kind)


def _backed_off(told: _Told) -> Message:
    """Tried again: one message for a whole row of the same trouble, edited, so that a long outage does not nag."""
    outcome = str(told.fact.fields.get("outcome", ""))
    if outcome in (Outcome.STOPPED, Outcome.INTERRUPTED):
        return _plain(told)
    if outcome == Outcome.OUT_OF_MEMORY:
        return told.message(Ring.SILENT, [f"🔧 <b>{escaped(told.title)} adapts</b>", _sentence(told.reason)])
    number = told.fact.attempt or 0
    row = [told.fact]
    for place, fact in enumerate(told.before("stage.backed_off"), start=1):
        if fact.attempt != number - place or fact.fields.get("outcome") != outcome:
            break
        row.append(fact)
    times = f", {words.plural(len(row), 'time')} so far" if len(row) > 1 else ""
    since = f"Since {words.near(row[-1].at, told.fact.at, told.zone)}{times}" if len(row) > 1 else ""
    first = fact_key(told.view.run, row[-1]) if len(row) > 1 else ""
    return told.message(
        Ring.SILENT, [f"🔁 <b>{escaped(told.title)} tries again</b>", _sentence(told.reason), since], replaces=first
    )


def _skipped(told: _Told) -> Message:
    return told.message(Ring.SILENT, [f"⏩ <b>{escaped(told.title)} is skipped</b>", _sentence(told.reason)])


def _noted(told: _Told) -> Message:
    memory = symptoms.out_of_memory(told.fact.text)
    ring = Ring.SILENT if memory or told.fact.level == "error" else Ring.OFF
    mark = "🔧 " if memory else "! " if told.fact.level != "info" else ""
    return told.message(ring, [f"{mark}<b>{escaped(told.title)}</b>", _wraps(told.fact.text)])


def _resumed(told: _Told) -> Message:
    """Back after a reboot: how long away, what was lost, when it will be done."""
    fact, view = told.fact, told.view
    rebooted = bool(fact.fields.get("rebooted", "restart of the machine" in fact.text))
    last = _last_sign(view, fact.at)
    away = [f"Away for up to {words.duration(fact.at - last)},", f"since {words.near(last, fact.at, told.zone)}."] if last else []
    lost = [line for stage in view.stages for line in _lost(stage, last, fact.at)]
    head = "🔌 <b>Back after a restart</b>" if rebooted else "🔁 <b>Vigil was restarted</b>"
    return told.message(
        Ring.LOUD if rebooted else Ring.OFF, [head, *away], lost or ["Nothing was at work."], [run_line(view, fact.at, told.zone)]
    )


def _last_sign(view: View, before: float) -> float:
    """When anything was last heard of the run before that moment; 0: never."""
    signs = [fact.at for fact in view.facts]
    signs += [stage.progress.at for stage in view.stages if stage.progress is not None]
    signs += [start.at for start in view.run.starts]
    signs += [attempt.ended_at for stage in view.run.stages for attempt in stage.attempts if attempt.ended_at is not None]
    return max((at for at in signs if at < before), default=0.0)


def _lost(stage: StageView, last: float, at: float) -> list[str]:
    """What a stage that was at work when the lights went out does again because it had not been saved."""
    if not any(one.started_at < at and (one.ended_at is None or one.ended_at >= last) for one in stage.state.attempts):
        return []
    name, told = escaped(title(stage)), stage.progress
    if stage.step is None or told is None or told.at >= at:
        return [f"{name} goes on"]
    if stage.checkpoint is None:
        return [f"{name} begins again"]
    again = max(0, stage.step - stage.checkpoint)
    took = f", {words.duration(again * stage.step_s)}" if stage.step_s else ""
    return [f"{name}:", f"{words.plural(again, 'step')} again{took}"] if again else [f"{name}: nothing lost"]


def _finished(told: _Told) -> Message:
    run = told.view.run
    bad = [stage for stage in told.view.stages if stage.state.state in (Status.FAILED, Status.SKIPPED)]
    lines = [f"{MARKS[stage.state.state]} {escaped(title(stage))}" for stage in bad]
    return told.message(
        Ring.LOUD,
        [
            f"🏁 {bold(f'{words.clip(run.pipeline.name, TITLE_COLUMNS)} is finished')}",
            _wraps(report.verdict(run).removeprefix("Finished: ")),
            f"It took {words.duration(told.fact.at - run.started_at)}.",
        ],
        lines,
        [score_lines(told.more.scores)],
        ["/report has all of it."],
    )


def _answered(told: _Told) -> Message:
    """The daemon's answer, as an edit of the question, where it was asked here: an answer, and no event."""
    asked = str(told.fact.fields.get("id", ""))
    if not asked.startswith("tg-"):
        return _plain(told)
    what, _colon, became = told.fact.text.partition(": ")
    kind, number = what.partition(" ")[0], asked.removeprefix("tg-")
    ok = bool(told.fact.fields.get("ok"))
    lines = [f"{'✅' if ok else '❌'} <b>{escaped(what)}</b>", _wraps(became if ok else f"Refused: {became}")]
    message = replace(told.message(Ring.SILENT, lines, replaces=question_key(number)), kind="")
    undoable = ok and kind in list(CommandKind)
    return replace(message, buttons=undo_button(CommandKind(kind), number)) if undoable else message


_TELL: dict[str, Callable[[_Told], Message]] = {
    "stage.succeeded": _succeeded,
    "stage.failed": _failed,
    "stage.backed_off": _backed_off,
    "stage.skipped": _skipped,
    "attempt.hung": _hung,
    "attempt.noted": _noted,
    "disk.held": _held,
    "disk.freed": _freed,
    "run.resumed": _resumed,
    "run.finished": _finished,
    "command.answered": _answered,
}

_ENDS = {
    "stage.started": ("stage.failed", "🔁 Tried again"),
    "stage.succeeded": ("attempt.hung", "✅ Done"),
    "stage.skipped": ("attempt.hung", "⏩ Skipped"),
    "stage.failed": ("attempt.hung", "❌ Given up"),
}
"""Which alarm of the same stage a fact ends, and how that is said."""


def solved_by(fact: Fact, view: View, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> list[Message]:
    """Edits of the red messages about a stage that `fact` put an end to; that of a disk hold is `for_fact`'s."""
    if fact.kind not in _ENDS:
        return []
    alarm, how = _ENDS[fact.kind]
    told = _Told(fact, view, zone, more)
    others = [old for kind in _ENDS if _ENDS[kind][0] == alarm for old in told.before(kind)]
    since = max((old.at for old in others), default=0.0)
    red = [for_fact(old, view, zone, more) for old in told.before(alarm) if old.at >= since]
    return [_over(message, fact.at, how, "", zone) for message in red if message is not None and message.ring is Ring.RED]


def still(message: Message, hours: int) -> Message:
    """A red message that comes again, after so many hours."""
    markup = text([f"🔴 Still, after {hours} h:", message.html.replace("🔴 ", "", 1)])
    return replace(message, key=f"{message.key}/still/{hours}", html=markup, replaces="")


def solved(message: Message, at: float, how: str = "", zone: tzinfo | None = None) -> Message:
    """The edit of a red message once its trouble is over: what it was stays readable."""
    return _over(message, at, "✅ Solved", how, zone)


def _over(message: Message, at: float, what: str, how: str, zone: tzinfo | None) -> Message:
    head = [f"{what} at {words.near(at, message.at, zone)}, after {words.duration(at - message.at)}", escaped(how)]
    return replace(
        message,
        key=f"{message.key}/over",
        html=text(head, [message.html.replace("🔴 ", "", 1)]),
        ring=Ring.SILENT,
        at=at,
        buttons=(),
        replaces=message.key,
    )


# -- what no fact tells


def noticed(view: View, zone: tzinfo | None = None) -> list[Message]:
    """What the view shows and no fact tells: work that goes on after the world had said no. The same each time, by its key."""
    found = []
    for stage in view.stages:
        attempts, told = stage.state.attempts, stage.progress
        if stage.state.state is not Status.RUNNING or len(attempts) < 2 or told is None or not stage.rate:
            continue
        gap = list(takewhile(lambda attempt: attempt.outcome is Outcome.TRANSIENT, reversed(attempts[:-1])))
        if not gap or told.at <= attempts[-1].started_at:
            continue
        began = gap[-1].ended_at or gap[-1].started_at
        lines = [f"🔁 <b>{escaped(title(stage))} goes on</b>", f"It waited {words.duration(attempts[-1].started_at - began)},"]
        lines += [f"since {words.near(began, attempts[-1].started_at, zone)}:", _wraps(gap[0].reason)]
        key = f"{view.run.id}/gap/{stage.config.name}/{attempts[-1].number}"
        found.append(Message(key=key, html=text(lines), kind="network.back", at=attempts[-1].started_at))
    return found


def gpu_hot(host: Mapping[str, Any], at: float) -> Message | None:
    """The alarm of a GPU that is too hot now; whether it was told before, and when it is over, the caller knows."""
    heats = [gpu.get("temperature_c") for gpu in host.get("gpus") or ()]
    hottest = max((heat for heat in heats if heat is not None), default=0.0)
    if hottest < GPU_HOT_C:
        return None
    lines = [f"🔴 <b>The GPU has {hottest:.0f} °C</b>", "Look after its air; /pause lets it cool."]
    return Message(key=f"gpu.hot@{int(at)}", html=text(lines), ring=Ring.RED, kind="gpu.hot", at=at)


def digest(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> Message:
    """The morning's message: the last 24 hours and where it stands."""
    recent = [fact for fact in view.facts if fact.at > now - DAY_S]
    fresh = sum(fact.kind == "stage.succeeded" for fact in recent)
    troubles = [fact for fact in report.troubles(recent) if fact.kind not in ("disk.freed", "disk.reclaimed")]
    newest = [f"{words.near(fact.at, now, zone)} {escaped(words.clip(fact.text, 100))}" for fact in troubles[-3:]]
    day = [
        f"In 24 h: {words.plural(fresh, 'stage')} done,",
        f"{words.plural(len(troubles), 'trouble')}{':' if troubles else '.'}",
        *newest,
    ]
    blocks = [_stage_block(stage, view, now, zone, more, ages=True)[:4] for stage in at_work(view)]
    markup = text(_head(view), day, *blocks, [run_line(view, now, zone), *_disk_line(host)])
    return Message(key=f"{view.run.id}/digest/{words.local(now, zone):%Y-%m-%d}", html=markup, kind="digest", at=now)


def folded(messages: Sequence[Message], now: float, zone: tzinfo | None = None) -> Message:
    """Old messages as one, the first line of each; it rings if one of them would have."""
    lines = [f"{words.near(old.at, now, zone)} {escaped(words.bare(old.html).partition(chr(10))[0])}" for old in messages]
    head = f"📭 <b>While I was offline ({len(messages)})</b>"
    ring = Ring.LOUD if any(old.ring is Ring.LOUD for old in messages) else Ring.SILENT
    key = f"folded/{nonce(*(old.key for old in messages))}"
    return Message(key=key, html=text([head], lines), ring=ring, kind="folded", at=max((old.at for old in messages), default=now))

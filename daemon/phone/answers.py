"""PURE: what is answered to the owner who asks, from what is on the disk: /status, /stages, /log and the like.

What is asked before something acts is `daemon.phone.questions`; what comes unasked is `daemon.phone.messages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from daemon import report, scores, words
from daemon.phone.dialogue import Message
from daemon.phone.markup import CAPTION_UNITS, COLUMNS, TEXT_UNITS, TITLE_COLUMNS, bold, escaped, text, title, wraps
from daemon.phone.standing import (
    MARKS,
    NOTHING_MORE,
    SAVED,
    More,
    at_work,
    coming,
    demo_line,
    head,
    host_lines,
    run_lines,
    said,
    score_lines,
    stage_block,
    to_you,
    up_lines,
    verdict_lines,
    was_stopped,
)
from daemon.view import StageView, View
from state.contract import Command
from state.machine import Status

FACTS_SHOWN = 12
MOST_LOG_LINES = 50
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
INDENT = "   "


def status(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> str:
    """All that /status answers."""
    blocks = [stage_block(stage, view, now, zone, more, ages=True) for stage in at_work(view)]
    following = coming(view)
    ahead = run_lines(view, now, zone, more, unknown="Run: its end is not known")
    after = [f"Next: {escaped(title(following))}"] if following else []
    return text(head(view), *blocks, [*ahead, *after], host_lines(host), up_lines(view, now, zone))


def stages(view: View) -> str:
    """Every stage in a line; why, where one has failed or was left out."""
    lines = []
    for stage in view.stages:
        state = stage.state.state
        share = "" if stage.share is None else words.percent(stage.share)
        tail = report.took(stage.state) if state is Status.SUCCEEDED else share
        lines.append(f"{MARKS[state]} {stage.number} {escaped(title(stage))}{f' · {tail}' if tail else ''}")
        if state in (Status.FAILED, Status.SKIPPED, Status.BACKING_OFF):
            why = SAVED if was_stopped(stage.state) else report.reason(stage.state)
            lines.append(INDENT + escaped(words.clip(to_you(why), COLUMNS - len(INDENT))))
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
        parts[-1].append(f"{moment:%H:%M} {mark}{wraps(said(fact, view))}")
    return text(*parts) or "Nothing has happened yet."


def log(stage: StageView, lines: Sequence[str] | None) -> str:
    """The last lines that a stage printed, as many as a message takes; without colours."""
    if lines is None:
        return f"{bold(title(stage))}: what it printed cannot be read just now."
    last = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)[:200] for line in lines[-MOST_LOG_LINES:]]
    heading = f"{bold(title(stage))}, last lines"
    room = TEXT_UNITS - words.utf16_units(words.bare(heading)) - 1
    while last and sum(words.utf16_units(line) + 1 for line in last) > room:
        last.pop(0)
    return f"{heading}\n<pre>{escaped(chr(10).join(last))}</pre>" if last else f"{bold(title(stage))} has printed nothing yet."


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


def scored(results: scores.Results | None) -> str:
    """The caption of the report: the verdicts, whether COMET is the demo's, and as much of the scores as there is room for."""
    table, demo = score_lines(results), demo_line(results)
    heading = bold("The scores") if table else "Nothing was measured yet."
    if said := verdict_lines(results):
        return text([heading, *said], [demo], [table], units=CAPTION_UNITS)
    return text([heading, table, demo], units=CAPTION_UNITS)


def plotted(stage: StageView) -> str:
    """The caption of a plot."""
    loss = stage.metrics.get("loss")
    where = f"at step {stage.step:,}" if stage.step is not None else ""
    told = f"Loss {words.number(loss, 3)} {where}".rstrip() if loss is not None else ""
    return text([bold(title(stage)), told], units=CAPTION_UNITS)


def not_made(trouble: str) -> str:
    """Where a plot or the report was asked for, and the process that makes it complained."""
    return f"It could not be made:\n{wraps(trouble)}"


def not_passed_on(command: Command) -> str:
    """Where a command had been confirmed, and the bot was dead until it was too old to act."""
    return f"/{command.kind} was not passed on in time:\nnothing was done."

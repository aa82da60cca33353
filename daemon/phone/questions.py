"""PURE: what is asked before something acts: the question, its buttons, and what stands after the yes.

When a yes counts is `daemon.phone.chat`'s to say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import tzinfo

from daemon import report, words
from daemon.phone.dialogue import Button
from daemon.phone.markup import bold, escaped, sentence, text, title, wraps
from daemon.phone.standing import mood, to_you
from daemon.view import StageView, View
from state.contract import CommandKind
from state.machine import Status
from state.pipeline import Pipeline


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
    at = wraps(f"At work: {running}") if running else "Nothing is at work."
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
            wraps(f"Left out too: {', '.join(left_out)}") if left_out else "",
            f"Then: {escaped(title(follows))}" if follows else "",
            "/retry takes it up again.",
        ],
    )


def _ask_retry(stage: StageView, view: View) -> str:
    others = dependents(view.run.pipeline, stage.config.name)
    back = [title(other) for other in view.stages if other.config.name in others and other.state.state is Status.SKIPPED]
    begins = f"goes on from step {stage.checkpoint:,}" if stage.checkpoint is not None else "begins again"
    return text(
        [bold(f"Try {title(stage)} again?"), _stands(stage), sentence(to_you(report.reason(stage.state)))],
        [f"It {begins}.", wraps(f"Then also: {', '.join(back)}") if back else ""],
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
    if mood(view):
        return mood(view)
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

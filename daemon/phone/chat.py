"""PURE: what follows from a message or a tap of the owner: answers, questions, and commands that he has confirmed.

Looking is answered at once. Acting asks first, and a yes counts only while it is fresh, unused, and the stage stands where it stood
when it was asked for; otherwise nothing is done, what is true now is said, and it is asked anew. Who may ask is checked before, by
`bot`. Memory and acts are to be kept in one write; an update that is decided twice gives the same keys and command ids.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

import msgspec
from msgspec.structs import replace

from daemon import words
from daemon.phone import answers, markup, questions
from daemon.phone.dialogue import Act, Asked, Button, Message, Say, Show, Submit, Toast
from daemon.phone.standing import NOTHING_MORE, More
from daemon.view import StageView, View
from state.contract import Command, CommandKind
from state.machine import Status
from state.snapshot import Running

STALE_S = 15 * 60.0
JUST_NOW_S = 60.0
"""A second tap so soon after the first is impatience."""
QUESTIONS_KEPT = 20
USED_KEPT = 100
LONGEST_MUTE_S = 7 * 86_400.0
MOST_CHARS = 200
TOAST_UNITS = 200
DEFAULT_LOG_LINES = 15

_UNITS_S = {"m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"([0-9]{1,4})([mhd])")
_COUNT = re.compile(r"[0-9]{1,4}")
_RETRIABLE = (Status.FAILED, Status.SKIPPED, Status.BACKING_OFF)
_SKIPPABLE = (Status.RUNNING, Status.BACKING_OFF, Status.PENDING)
_OF_A_STAGE = {CommandKind.SKIP: _SKIPPABLE, CommandKind.RETRY: _RETRIABLE}


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """An act that waits for its yes."""

    nonce: str
    kind: CommandKind
    run: str
    at: float
    """When it was asked, by this machine's clock."""
    stage: str = ""
    attempt: int = 0
    """Of the stage, when it was asked."""
    key: str = ""
    """Of the message that holds the buttons."""


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """A question that was answered, and what the answer was."""

    question: Question
    at: float
    what: str


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """What the bot remembers between two updates; saved by it."""

    questions: tuple[Question, ...] = ()
    used: tuple[Used, ...] = ()
    mute_until: float = 0.0
    """Until then nothing rings but red."""


@dataclass(frozen=True)
class _Talk:
    """One update and all that is known when it is answered."""

    asked: Asked
    memory: Memory
    view: View
    host: Mapping[str, Any]
    now: float
    zone: tzinfo | None
    more: More

    @property
    def key(self) -> str:
        return f"answer/{self.asked.update_id}"

    @property
    def late(self) -> bool:
        return not fresh(self.asked.at, self.now)

    def stage(self, name: str) -> StageView | None:
        """The stage of that very name."""
        return next((stage for stage in self.view.stages if stage.config.name == name), None)

    def find(self, typed: str) -> StageView | None:
        """The stage that is meant: by name, by number, or by the only name or title that holds what was typed."""
        exact = [stage for stage in self.view.stages if typed in (stage.config.name, str(stage.number))]
        near = [stage for stage in self.view.stages if typed and typed in f"{stage.config.name} {stage.title.lower()}"]
        return next(iter(exact or (near if len(near) == 1 else ())), None)

    def say(self, html: str, buttons: tuple[tuple[Button, ...], ...] = (), *, key: str = "", replaces: str = "") -> Say:
        return Say(Message(key=key or self.key, html=html, at=self.asked.at, buttons=buttons, replaces=replaces))


Answer = tuple[Memory, list[Act]]


def fresh(at: float, now: float) -> bool:
    """Whether what was sent or asked at `at` may still act; a time that lies ahead is no better than one long ago."""
    return abs(now - at) <= STALE_S


def decide(
    asked: Asked,
    memory: Memory,
    view: View | None,
    host: Mapping[str, Any] | None,
    now: float,
    zone: tzinfo | None = None,
    more: More = NOTHING_MORE,
) -> Answer:
    """What is to be done about one update of the owner's, and what is to be remembered. `view` is None where no run can be read."""
    if view is None:
        return memory, _blind(asked, now, zone)
    talk = _Talk(asked, memory, view, host or {}, now, zone, more)
    return _tapped(talk) if asked.data else _typed(talk)


def _blind(asked: Asked, now: float, zone: tzinfo | None) -> list[Act]:
    """Without a run to look at nothing acts."""
    name = asked.text[:MOST_CHARS].partition("@")[0].strip().lower()
    known = {"/help": answers.help_text(), "/ping": answers.ping(None, now, zone)}
    say = Say(Message(key=f"answer/{asked.update_id}", html=known.get(name, answers.unreadable()), at=asked.at))
    return [Toast(asked.callback_id, "The run cannot be read."), say] if asked.callback_id else [say]


# -- what was typed


def _typed(talk: _Talk) -> Answer:
    typed = talk.asked.text[:MOST_CHARS].lower().split()
    name = typed[0].partition("@")[0] if typed else ""
    answer = _COMMANDS.get(name)
    if answer is None:
        return talk.memory, [talk.say(answers.HELP_LINE)]
    return answer(talk, typed[1:])


def _look(make: Callable[[_Talk, list[str]], str]) -> Callable[[_Talk, list[str]], Answer]:
    return lambda talk, arguments: (talk.memory, [talk.say(make(talk, arguments))])


def _status(talk: _Talk, _arguments: list[str]) -> Answer:
    return talk.memory, [talk.say(_status_text(talk), _refresh(talk.asked.update_id))]


def _status_text(talk: _Talk) -> str:
    return answers.status(talk.view, talk.host, talk.now, talk.zone, talk.more)


def _refresh(update_id: int) -> tuple[tuple[Button, ...], ...]:
    return ((Button("Refresh", f"see:{update_id}"),),)


def _start(talk: _Talk, _arguments: list[str]) -> Answer:
    return talk.memory, [Say(replace(answers.welcome(talk.view), key=talk.key, at=talk.asked.at))]


def _log_text(talk: _Talk, arguments: list[str]) -> str:
    """`/log 30 marian`, in any order; without a stage, the one at work, else the last one that ran."""
    counts = [int(word) for word in arguments if _COUNT.fullmatch(word)]
    named = " ".join(word for word in arguments if not _COUNT.fullmatch(word))
    stage = talk.find(named) if named else max((s for s in talk.view.stages if s.state.attempts), key=_worked_at, default=None)
    if stage is None:
        return _which(talk) if named else "No stage has started yet."
    count = min(max(1, counts[0] if counts else DEFAULT_LOG_LINES), answers.MOST_LOG_LINES)
    printed = talk.more.output.get(stage.config.name, None if stage.state.attempts else ())
    return answers.log(stage, None if printed is None else printed[-count:])


def _which(talk: _Talk) -> str:
    return markup.text(["Which stage? There are:"], [f"{stage.number} {stage.config.name}" for stage in talk.view.stages])


def _plot(talk: _Talk, arguments: list[str]) -> Answer:
    drawn = [stage for stage in talk.view.stages if "loss" in stage.metrics]
    stage = talk.find(" ".join(arguments)) if arguments else max(drawn, key=_worked_at, default=None)
    if stage is None:
        return talk.memory, [talk.say(_which(talk) if arguments else "No stage has told a loss yet.")]
    if stage not in drawn:
        return talk.memory, [talk.say(f"{markup.escaped(markup.title(stage))} has told no loss.")]
    return talk.memory, [Show("plot", stage.config.name, talk.key)]


def _worked_at(stage: StageView) -> tuple[bool, float]:
    """Orders stages: one at work is last, then by the newest attempt."""
    return stage.state.state is Status.RUNNING, stage.state.attempts[-1].started_at if stage.state.attempts else 0.0


def _report(talk: _Talk, _arguments: list[str]) -> Answer:
    return talk.memory, [Show("report", "", talk.key)]


def _mute(talk: _Talk, arguments: list[str]) -> Answer:
    """`/mute 8h`, counted from when it was sent; `/mute off`."""
    typed = arguments[0] if arguments else ""
    span = _DURATION.fullmatch(typed)
    if span is None and typed != "off":
        until = talk.memory.mute_until
        muted = f"Muted until {words.near(until, talk.now, talk.zone)}." if until > talk.now else "Nothing is muted."
        return talk.memory, [talk.say(f"{muted}\n/mute 30m, 8h, 2d or off")]
    span_s = min(int(span[1]) * _UNITS_S[span[2]], LONGEST_MUTE_S) if span else 0.0
    until = min(talk.asked.at, talk.now) + span_s
    memory = replace(talk.memory, mute_until=until if until > talk.now else 0.0)
    if not memory.mute_until:
        return memory, [talk.say("No longer muted." if not span else "That time is over already: not muted.")]
    return memory, [talk.say(f"Muted until {words.near(until, talk.now, talk.zone)}.\nRed alarms ring all the same.")]


def _act(kind: CommandKind) -> Callable[[_Talk, list[str]], Answer]:
    def answer(talk: _Talk, arguments: list[str]) -> Answer:
        if kind not in _OF_A_STAGE:
            return _ask(talk, kind, None)
        among = [stage for stage in talk.view.stages if stage.state.state in _OF_A_STAGE[kind]]
        if not arguments:
            likely = [stage for stage in among if stage.state.state is Status.RUNNING] if kind is CommandKind.SKIP else among
            return _ask(talk, kind, likely[0]) if len(likely) == 1 else _pick(talk, kind, among)
        stage = talk.find(" ".join(arguments))
        return _pick(talk, kind, among) if stage is None else _ask(talk, kind, stage)

    return answer


def _pick(talk: _Talk, kind: CommandKind, among: list[StageView]) -> Answer:
    if not among:
        return talk.memory, [talk.say(f"There is no stage to {kind}.\n/stages shows them.")]
    return talk.memory, [talk.say("Which stage?", questions.picks(kind, among))]


_COMMANDS: dict[str, Callable[[_Talk, list[str]], Answer]] = {
    "/start": _start,
    "/status": _status,
    "/stages": _look(lambda talk, _: answers.stages(talk.view)),
    "/events": _look(lambda talk, _: answers.events(talk.view, talk.zone)),
    "/log": _look(_log_text),
    "/help": _look(lambda _talk, _: answers.help_text()),
    "/ping": _look(lambda talk, _: answers.ping(talk.view, talk.now, talk.zone)),
    "/plot": _plot,
    "/report": _report,
    "/mute": _mute,
    **{f"/{kind}": _act(kind) for kind in CommandKind},
}


# -- asking before acting


def _ask(talk: _Talk, kind: CommandKind, stage: StageView | None, why: str = "") -> Answer:
    """Ask, unless there is nothing to be done; `why`: what kept an earlier yes from acting."""
    late = f"You wrote that {words.duration(talk.now - talk.asked.at)} ago." if talk.late and not why else ""
    refusal = _pointless(talk.view, kind, stage)
    if refusal:
        return talk.memory, [talk.say(markup.text([why or late, questions.stands(talk.view, stage), refusal]))]
    number = questions.nonce(talk.view.run.id, talk.asked.update_id)
    memory = _remember(talk, kind, number, stage.state.name if stage else "", questions.question_key(number))
    html = markup.text([why or late], [questions.question(kind, stage, talk.view)])
    return memory, [talk.say(html, questions.choices(kind, number, stage), key=questions.question_key(number))]


def _remember(talk: _Talk, kind: CommandKind, number: str, stage: str, key: str) -> Memory:
    """With one more question open. One that is open keeps its time, and one that was answered is never opened again."""
    memory = talk.memory
    if any(number == one.nonce for one in (*memory.questions, *(used.question for used in memory.used))):
        return memory
    found = talk.stage(stage)
    attempt = len(found.state.attempts) if found else 0
    question = Question(nonce=number, kind=kind, run=talk.view.run.id, at=talk.now, stage=stage, attempt=attempt, key=key)
    return replace(memory, questions=(*memory.questions, question)[-QUESTIONS_KEPT:])


def _pointless(view: View, kind: CommandKind, stage: StageView | None) -> str:
    """Why the command would do nothing now; empty when it would."""
    if kind is CommandKind.PAUSE and view.run.paused:
        return "There is nothing to pause."
    if kind is CommandKind.RESUME and not view.run.paused:
        return "There is nothing to resume."
    status = stage.state.status if stage else None
    leaving = isinstance(status, Running) and status.intent is not None and status.intent.skip
    if leaving:
        return "It is being skipped already." if kind is CommandKind.SKIP else "It is still stopping: ask again in a moment."
    if stage is not None and stage.state.state not in _OF_A_STAGE[kind]:
        return f"There is nothing to {kind}."
    return ""


# -- what was tapped


def _tapped(talk: _Talk) -> Answer:
    what, _colon, rest = talk.asked.data[:MOST_CHARS].partition(":")
    first, _colon, second = rest.partition(":")
    if what == "see" and first.isascii() and first.isdigit() and len(first) <= 15:
        refreshed = talk.say(_status_text(talk), _refresh(int(first)), replaces=f"answer/{first}")
        return talk.memory, [*_toast(talk, "Up to date."), refreshed]
    if what == "pick" and first in list(CommandKind) and CommandKind(first) in _OF_A_STAGE:
        stage = talk.stage(second)
        if stage is not None:
            memory, acts = _ask(talk, CommandKind(first), stage)
            return memory, [*_toast(talk, ""), *acts]
    if what in ("do", "no"):
        return _answered(talk, first, yes=what == "do", at_once=second == "now")
    return talk.memory, [*_toast(talk, "This button is no longer of use.")]


def _toast(talk: _Talk, text: str) -> list[Act]:
    return [Toast(talk.asked.callback_id, words.cut_utf16(text, TOAST_UNITS))] if talk.asked.callback_id else []


def _answered(talk: _Talk, number: str, *, yes: bool, at_once: bool) -> Answer:
    used = next((one for one in talk.memory.used if one.question.nonce == number), None)
    if used is not None:
        return _answered_before(talk, used, yes=yes)
    question = next((one for one in talk.memory.questions if one.nonce == number), None)
    if question is None:
        html = markup.text(["That button is too old: nothing was done.", questions.stands(talk.view, None), answers.HELP_LINE])
        return talk.memory, [*_toast(talk, "Too old: nothing was done."), talk.say(html)]
    if not yes:
        left = talk.say("Left as it is.", key=f"{question.key}/no", replaces=question.key)
        return _settle(talk, question, "left as it is"), [*_toast(talk, "Left as it is."), left]
    why = _stale(talk, question)
    if why:
        later = dataclasses.replace(talk, memory=_settle(talk, question, "too old, not done"))
        return _ask_anew(later, question, f"Nothing was done: {why}.")
    stage = talk.stage(question.stage)
    refusal = _pointless(talk.view, question.kind, stage)
    if refusal:
        return talk.memory, _toast(talk, f"{words.bare(questions.stands(talk.view, stage))}\n{refusal}")
    return _go(talk, question, stage, at_once=at_once and question.kind is CommandKind.SKIP)


def _answered_before(talk: _Talk, used: Used, *, yes: bool) -> Answer:
    """A second tap never acts; one soon after the first is no new wish."""
    told = f"Answered at {words.near(used.at, talk.now, talk.zone)}: {used.what}."
    if not yes or abs(talk.now - used.at) <= JUST_NOW_S:
        return talk.memory, _toast(talk, told)
    return _ask_anew(talk, used.question, told)


def _ask_anew(talk: _Talk, question: Question, why: str) -> Answer:
    stage = talk.stage(question.stage)
    if question.stage and stage is None:
        return talk.memory, [*_toast(talk, "Nothing was done."), talk.say(markup.escaped(why))]
    memory, acts = _ask(talk, question.kind, stage, markup.escaped(why))
    return memory, [*_toast(talk, "Nothing was done."), *acts]


def _stale(talk: _Talk, question: Question) -> str:
    """Why a yes to this question counts no more; empty when it does."""
    if question.run != talk.view.run.id:
        return "that was asked of an earlier run"
    if not (fresh(question.at, talk.now) and fresh(talk.asked.at, talk.now)):
        return "that was asked too long ago"
    stage = talk.stage(question.stage)
    if question.stage and (stage is None or len(stage.state.attempts) != question.attempt):
        return "the stage has gone on since"
    return ""


def _settle(talk: _Talk, question: Question, what: str) -> Memory:
    """With this question answered, for good."""
    memory = talk.memory
    left = tuple(one for one in memory.questions if one.nonce != question.nonce)
    return replace(memory, questions=left, used=(*memory.used, Used(question=question, at=talk.now, what=what))[-USED_KEPT:])


def _go(talk: _Talk, question: Question, stage: StageView | None, *, at_once: bool) -> Answer:
    """The yes counts: one command, and a button that takes it back where that is possible."""
    kind = question.kind
    command = Command(
        id=questions.command_id(question.nonce),
        kind=kind,
        at=talk.now,
        stage=question.stage or None,
        now=at_once,
        by="telegram",
    )
    memory = _settle(talk, question, f"{kind} {question.stage}".rstrip())
    if kind in questions.UNDO:
        later = dataclasses.replace(talk, memory=memory)
        memory = _remember(later, questions.UNDO[kind][0], questions.undo_nonce(question.nonce), question.stage, question.key)
    html = questions.asked_for(kind, stage, talk.now, talk.zone, at_once=at_once)
    button = questions.undo_button(kind, question.nonce)
    edit = talk.say(html, button, key=f"ask/{question.nonce}/yes", replaces=question.key)
    return memory, [*_toast(talk, "Asked for."), Submit(command), edit]

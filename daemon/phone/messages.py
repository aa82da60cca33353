"""PURE: what the phone is told unasked: what a fact of the journal says, alarms and their end, the card, the digest.

What is sent when, how loudly in quiet hours, and what became of it is `daemon.phone.outbox`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from itertools import takewhile
from typing import Any

import msgspec
from msgspec.structs import replace

from daemon import report, words
from daemon.phone.dialogue import Message, Ring
from daemon.phone.markup import CAPTION_UNITS, TEXT_UNITS, TITLE_COLUMNS, bold, escaped, line, sentence, text, title, wraps
from daemon.phone.questions import dependents, nonce, picks, question_key, undo_button
from daemon.phone.standing import (
    MARKS,
    NOTHING_MORE,
    More,
    at_work,
    coming,
    deadline_lines,
    demo_line,
    disk_line,
    head,
    run_lines,
    said,
    score_lines,
    stage_block,
    to_you,
    verdict_lines,
)
from daemon.view import StageView, View
from state import symptoms
from state.contract import CommandKind, Outcome
from state.forecast import Forecast
from state.machine import Status
from state.snapshot import Fact, RunState

DAY_S = 86_400.0
NO_TROUBLE = ("disk.freed", "disk.reclaimed", "run.resumed", "stage.skipped")
"""What `report.troubles` has and a digest does not count as one."""
SCORES = "scores"
"""What `Message.draws` says of the picture of the scores."""
GPU_HOT_C = 90.0

_SAID = re.compile(r"[^\s:]+( \w+)?( \(a bonus: the run goes on\))?: ")


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
        return to_you(self.fact.text[found.end() :]) if (found := _SAID.match(self.fact.text)) else ""

    def before(self, kind: str) -> list[Fact]:
        """Earlier facts of this kind and stage, newest first."""
        earlier = takewhile(lambda fact: fact.id != self.fact.id, self.view.facts)
        return [fact for fact in reversed(list(earlier)) if (fact.kind, fact.stage) == (kind, self.fact.stage)]

    def message(self, ring: Ring, *parts: Iterable[str], replaces: str = "", units: int = TEXT_UNITS) -> Message:
        return Message(
            key=fact_key(self.view.run, self.fact),
            html=text(*parts, units=units),
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
    return told.message(Ring.OFF, [sentence(said(told.fact, told.view)) or escaped(told.fact.kind)])


def _succeeded(told: _Told) -> Message:
    stage, now = told.stage, told.fact.at
    lines = [f"✅ <b>{escaped(told.title)} is done</b>", sentence(told.reason)]
    if stage is None:
        return told.message(Ring.LOUD, lines)
    tries = f" in {len(stage.state.attempts)} attempts" if len(stage.state.attempts) > 1 else ""
    busy, following = [title(other) for other in at_work(told.view)], coming(told.view)
    ahead = [
        f"It took {report.took(stage.state)}{tries}." if report.took(stage.state) else "",
        f"{report.count_states(told.view.run)[Status.SUCCEEDED]} of {len(told.view.stages)} done",
        line(f"Now: {', '.join(busy)}") if busy else f"Next: {escaped(title(following))}" if following else "",
        *run_lines(told.view, now, told.zone, told.more),
    ]
    found = told.more.scores if stage.config.module == "stages.evaluate" else None
    if not (table := score_lines(found, 3)):
        return told.message(Ring.LOUD, lines, ahead)
    said = verdict_lines(found) or [table]  # the picture has the scores
    return replace(told.message(Ring.LOUD, lines, [*said, demo_line(found)], ahead, units=CAPTION_UNITS), draws=SCORES)


def _failed(told: _Told) -> Message:
    stage = told.stage
    if stage is None or stage.config.optional:
        return told.message(
            Ring.SILENT, [f"❌ <b>{escaped(told.title)} has failed</b>", sentence(told.reason)], ["A bonus: the run goes on."]
        )
    others = dependents(told.view.run.pipeline, stage.config.name)
    left_out = ", ".join(title(other) for other in told.view.stages if other.config.name in others)
    return told.message(
        Ring.RED,
        [f"🔴 <b>{escaped(told.title)} has failed</b>", sentence(told.reason)],
        [
            wraps(f"Left out too: {left_out}") if left_out else "",
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
    silent = told.fact.text.partition(": ended")[0].removeprefix(f"{told.fact.stage} ")
    return told.message(ring, [f"{mark} <b>{escaped(told.title)} {stalls}</b>", sentence(silent)], ["It is ended and tried again."])


def _held(told: _Told) -> Message:
    why = told.reason.partition("; free some")[0]
    return told.message(Ring.RED, ["🔴 <b>The run waits for disk space</b>", sentence(why)], ["Free some: it goes on by itself."])


def _freed(told: _Told) -> Message:
    first = next(iter(told.before("disk.held")), None)
    if first is None:
        return told.message(Ring.SILENT, ["✅ <b>There is disk space again</b>", "The run goes on."])
    held = _held(_Told(first, told.view, told.zone, told.more))
    edit = solved(held, told.fact.at, "There is space again.", told.zone)
    return replace(edit, key=fact_key(told.view.run, told.fact), kind=told.fact.kind)


def _backed_off(told: _Told) -> Message:
    """Tried again: one message for a whole row of the same trouble, edited, so that a long outage does not nag."""
    outcome = str(told.fact.fields.get("outcome", ""))
    if outcome in (Outcome.STOPPED, Outcome.INTERRUPTED, Outcome.HUNG):  # each has a message of its own
        return _plain(told)
    if outcome == Outcome.OUT_OF_MEMORY:
        return told.message(Ring.SILENT, [f"🔧 <b>{escaped(told.title)} adapts</b>", sentence(told.reason)])
    number = told.fact.attempt or 0
    row = [told.fact]
    for place, fact in enumerate(told.before("stage.backed_off"), start=1):
        if fact.attempt != number - place or fact.fields.get("outcome") != outcome:
            break
        row.append(fact)
    times = f", {words.plural(len(row), 'time')} so far" if len(row) > 1 else ""
    since = f"Since {words.near(row[-1].at, told.fact.at, told.zone)}{times}" if len(row) > 1 else ""
    first = fact_key(told.view.run, row[-1]) if len(row) > 1 else ""
    return told.message(Ring.SILENT, [f"🔁 <b>{escaped(told.title)} tries again</b>", sentence(told.reason), since], replaces=first)


def _shortened(told: _Told) -> Message:
    less = told.fact.text.removeprefix(f"{told.fact.stage} ")
    return told.message(Ring.SILENT, [f"✂️ <b>{escaped(told.title)} is cut short</b>", sentence(less)])


def _slipped(told: _Told) -> Message:
    """With a button for each bonus stage without which the deadline holds; one that would be left out with another has none."""
    late = _forecast(told.fact)
    if late is None:
        return told.message(Ring.LOUD, ["⏰ <b>The plan slips</b>", sentence(told.fact.text)])
    what = "The plan slips" if late.fits else "The deadline is in danger"
    message = told.message(Ring.LOUD, [f"⏰ <b>{what}</b>", *deadline_lines(late, told.fact.at, told.zone)])
    along = {other for name in late.leave_out for other in dependents(told.view.run.pipeline, name)}
    bonus = [s for s in told.view.stages if s.config.name in late.leave_out and s.config.name not in along]
    return replace(message, buttons=picks(CommandKind.SKIP, bonus))


def _recovered(told: _Told) -> Message:
    good = _forecast(told.fact)
    lines = deadline_lines(good, told.fact.at, told.zone) if good else [sentence(told.fact.text)]
    return told.message(Ring.SILENT, ["✅ <b>The deadline holds again</b>", *lines])


def _forecast(fact: Fact) -> Forecast | None:
    """The forecast that a fact of the plan tells; None where it tells none with a deadline."""
    try:
        told = msgspec.convert({"at": fact.at, **fact.fields}, Forecast)
    except msgspec.ValidationError:
        return None
    return told if told.deadline_at is not None else None


def _skipped(told: _Told) -> Message:
    """What goes with another stage was named when that one failed, or when its skip was asked for."""
    if told.reason.startswith("it needs "):
        return _plain(told)
    return told.message(Ring.SILENT, [f"⏩ <b>{escaped(told.title)} is skipped</b>", sentence(told.reason)])


def _noted(told: _Told) -> Message:
    memory = symptoms.out_of_memory(told.fact.text)
    ring = Ring.SILENT if memory or told.fact.level == "error" else Ring.OFF
    mark = "🔧 " if memory else "! " if told.fact.level != "info" else ""
    return told.message(ring, [f"{mark}<b>{escaped(told.title)}</b>", wraps(told.fact.text)])


def _resumed(told: _Told) -> Message:
    """Back after a reboot: how long away, what was lost, when it will be done."""
    fact, view = told.fact, told.view
    rebooted = bool(fact.fields.get("rebooted", "restart of the machine" in fact.text))
    last = _last_sign(view, fact.at)
    away = [f"Away for up to {words.duration(fact.at - last)},", f"since {words.near(last, fact.at, told.zone)}."] if last else []
    lost = [line for stage in view.stages for line in _lost(stage, last, fact.at)]
    what = "🔌 <b>Back after a restart</b>" if rebooted else "🔁 <b>Vigil was restarted</b>"
    return told.message(
        Ring.LOUD if rebooted else Ring.OFF,
        [what, *away],
        lost or ["Nothing was at work."],
        run_lines(view, fact.at, told.zone, told.more),
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
    cut = [one for one in stage.state.attempts if one.outcome is not Outcome.SUCCEEDED]
    if not any(one.started_at < at and (one.ended_at is None or one.ended_at >= last) for one in cut):
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
            wraps(report.verdict(run).removeprefix("Finished: ")),
            f"It took {words.duration(told.fact.at - run.started_at)}.",
        ],
        lines,
        verdict_lines(told.more.scores),
        [score_lines(told.more.scores)],
        ["/report has all of it."],
    )


def _answered(told: _Told) -> Message:
    """The daemon's answer, as an edit of the question, where it was asked here: an answer, and no event."""
    asked = str(told.fact.fields.get("id", ""))
    if not asked.startswith("tg-"):
        return _plain(told)
    what, _colon, became = told.fact.text.partition(": ")
    kind, _space, name = what.partition(" ")
    stage = next((stage for stage in told.view.stages if stage.config.name == name), None)
    ok, number = bool(told.fact.fields.get("ok")), asked.removeprefix("tg-")
    done = to_you(f"it {became.removeprefix(f'{name} ')}" if stage and became.startswith(f"{name} ") else became)
    about = title(stage) if stage else name or "the run"
    lines = [
        f"{'✅' if ok else '❌'} <b>{escaped(f'{kind.capitalize()} {about}')}</b>",
        sentence(done) if ok else f"Refused: {wraps(done)}",
    ]
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
    "plan.shortened": _shortened,
    "plan.slipped": _slipped,
    "plan.recovered": _recovered,
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
    """The edit of a red message once its trouble is over: what it was stays readable, what was advised goes."""
    return _over(message, at, "✅ Solved", how, zone)


def _over(message: Message, at: float, what: str, how: str, zone: tzinfo | None) -> Message:
    when = [f"{what} at {words.near(at, message.at, zone)}, after {words.duration(at - message.at)}", escaped(how)]
    trouble = message.html.partition("\n\n")[0].replace("🔴 ", "", 1)
    return replace(
        message,
        key=f"{message.key}/over",
        html=text(when, [trouble]),
        ring=Ring.SILENT,
        at=at,
        buttons=(),
        replaces=message.key,
    )


# -- what no fact tells


def card(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> Message:
    """The pinned card, each an edit of the last: times of day and no ages, so that it changes only with the run."""
    blocks = [stage_block(stage, view, now, zone, more, ages=False) for stage in at_work(view)]
    foot = [f"<i>as of {words.day_and_clock(now, zone)}</i>"]
    ends = [*run_lines(view, now, zone, more, ages=False), *disk_line(host)]
    markup = text(head(view), *blocks, ends, foot)
    key = f"{view.run.id}/card"
    return Message(key=key, html=markup, at=now, kind="card", replaces=key)


def same_card(one: Message, other: Message) -> bool:
    """Whether two cards differ in nothing but their time: then no edit is due."""
    return one.html.rpartition("\n")[0] == other.html.rpartition("\n")[0]


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
        lines += [f"since {words.near(began, attempts[-1].started_at, zone)}:", wraps(gap[0].reason)]
        key = f"{view.run.id}/gap/{stage.config.name}/{attempts[-1].number}"
        found.append(Message(key=key, html=text(lines), kind="network.back", at=attempts[-1].started_at))
    return found


def gpu_hot(host: Mapping[str, Any], at: float) -> Message | None:
    """The alarm of a GPU that is too hot now; whether it was told before, and when it is over, the caller knows."""
    heats = [gpu.get("temperature_c") for gpu in host.get("gpus") or ()]
    hottest = max((heat for heat in heats if heat is not None), default=0.0)
    if hottest < GPU_HOT_C:
        return None
    html = text([f"🔴 <b>The GPU has {hottest:.0f} °C</b>"], ["Look after its air; /pause lets it cool."])
    return Message(key=f"gpu.hot@{int(at)}", html=html, ring=Ring.RED, kind="gpu.hot", at=at)


def digest(view: View, host: Mapping[str, Any], now: float, zone: tzinfo | None = None, more: More = NOTHING_MORE) -> Message:
    """The morning's message: the last 24 hours and where it stands."""
    recent = [fact for fact in view.facts if fact.at > now - DAY_S]
    fresh = sum(fact.kind == "stage.succeeded" for fact in recent)
    troubles = [fact for fact in report.troubles(recent) if fact.kind not in NO_TROUBLE]
    rows: dict[tuple[str, str | None], list[Fact]] = {}
    for fact in reversed(troubles):
        rows.setdefault((fact.kind, fact.stage), []).append(fact)
    newest = [_in_a_row(row, view, now, zone) for row in list(rows.values())[:3]]
    back = [words.near(fact.at, now, zone) for fact in recent if fact.kind == "run.resumed"]
    day = [
        f"In 24 h: {words.plural(fresh, 'stage')} done,",
        f"{words.plural(len(troubles), 'trouble')}{':' if troubles else '.'}",
        *reversed(newest),
        line(f"Restarts: {', '.join(back)}") if back else "",
    ]
    blocks = [stage_block(stage, view, now, zone, more, ages=True)[:4] for stage in at_work(view)]
    markup = text(head(view), day, *blocks, [*run_lines(view, now, zone, more), *disk_line(host)])
    return Message(key=f"{view.run.id}/digest/{words.local(now, zone):%Y-%m-%d}", html=markup, kind="digest", at=now)


def _in_a_row(row: Sequence[Fact], view: View, now: float, zone: tzinfo | None) -> str:
    """The newest of the same trouble, and how often it came."""
    times = f" ({words.plural(len(row), 'time')})" if len(row) > 1 else ""
    return f"{words.near(row[0].at, now, zone)} {escaped(words.clip(said(row[0], view), 100))}{times}"


def folded(messages: Sequence[Message], now: float, zone: tzinfo | None = None) -> Message:
    """Old messages as one, the first line of each; it rings if one of them would have."""
    lines = [f"{words.near(old.at, now, zone)} {escaped(words.bare(old.html).partition(chr(10))[0])}" for old in messages]
    what = f"📭 <b>While I was offline ({len(messages)})</b>"
    ring = Ring.LOUD if any(old.ring is Ring.LOUD for old in messages) else Ring.SILENT
    key = f"folded/{nonce(*(old.key for old in messages))}"
    return Message(key=key, html=text([what], lines), ring=ring, kind="folded", at=max((old.at for old in messages), default=now))

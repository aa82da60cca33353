"""What follows from what the owner writes and taps: he is answered at once, asked before anything acts, and obeyed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon import words
from daemon.phone import chat, messages, questions
from daemon.phone.chat import STALE_S, Memory
from daemon.phone.dialogue import Act, Asked, Button, Message, Say, Show, Submit, Toast
from daemon.phone.standing import NOTHING_MORE, More
from daemon.view import View
from state.contract import Command, CommandKind, Outcome
from state.snapshot import Attempt, Fact, Failed, Intent, Pending, Running, Skipped, Succeeded
from tests.conftest import T0

NOW = T0 + 4000


def with_stage(seen: View, name: str, status: Any, attempts: int | None = None) -> View:
    """`seen` with one stage in this status, perhaps in another attempt."""
    stages = []
    for stage in seen.stages:
        if stage.config.name == name:
            count = len(stage.state.attempts) if attempts is None else attempts
            tried = tuple(Attempt(number=number, started_at=T0) for number in range(1, count + 1))
            stage = dataclasses.replace(stage, state=msgspec.structs.replace(stage.state, status=status, attempts=tried))
        stages.append(stage)
    run = msgspec.structs.replace(seen.run, stages=tuple(stage.state for stage in stages))
    return dataclasses.replace(seen, run=run, stages=tuple(stages))


def with_run(seen: View, **changes: Any) -> View:
    return dataclasses.replace(seen, run=msgspec.structs.replace(seen.run, **changes))


class Owner:
    """Writes and taps, and keeps what came of it."""

    def __init__(self, seen: View, now: float = NOW) -> None:
        self.view: View | None = seen
        self.now = now
        self.memory = Memory()
        self.updates = 0
        self.acts: list[Act] = []

    def says(self, text: str, *, ago_s: float = 0.0, more: More = NOTHING_MORE) -> list[Act]:
        return self._update(more, text=text, at=self.now - ago_s)

    def taps(self, button: Button | str, *, ago_s: float = 0.0) -> list[Act]:
        data = button if isinstance(button, str) else button.data
        return self._update(NOTHING_MORE, data=data, callback_id="7", message_id=1, at=self.now - ago_s)

    def _update(self, more: More, **what: Any) -> list[Act]:
        self.updates += 1
        asked = Asked(update_id=self.updates, user_id=1, chat_id=1, private=True, **what)
        self.memory, self.acts = chat.decide(asked, self.memory, self.view, {}, self.now, UTC, more)
        return self.acts

    @property
    def message(self) -> Message:
        """The one that was said last."""
        return [act.message for act in self.acts if isinstance(act, Say)][-1]

    @property
    def text(self) -> str:
        return words.bare(self.message.html)

    @property
    def buttons(self) -> list[Button]:
        return [button for row in self.message.buttons for button in row]

    @property
    def toast(self) -> str:
        return next(act.text for act in self.acts if isinstance(act, Toast))

    @property
    def commands(self) -> list[Command]:
        return [act.command for act in self.acts if isinstance(act, Submit)]


@pytest.fixture
def owner(mid: View) -> Owner:
    return Owner(mid)


# -- looking


@pytest.mark.parametrize(
    ("asked", "begin"),
    [
        ("/status", "Vigil demo · 5 of 11 done"),
        ("/STATUS@vigil_bot now", "Vigil demo · 5 of 11 done"),
        ("  /stages ", "Vigil demo\n\n✅ 1 Sermon download"),
        ("/events", "Thu 12 Feb\n"),
        ("/help", "/status where the run stands"),
        ("/ping", "Here, at 19:06."),
        ("/start ABCDEF", "Vigil watches over\nVigil demo."),
        ("/dance", "/help lists what I know."),
        ("hello", "/help lists what I know."),
        ("", "/help lists what I know."),
        ("\ud800" * 5000, "/help lists what I know."),
    ],
)
def test_a_look_is_answered_at_once(owner: Owner, asked: str, begin: str) -> None:
    """By one message, whatever is typed and however; nothing acts and nothing is remembered."""
    (act,) = owner.says(asked)
    assert isinstance(act, Say)
    assert owner.text.startswith(begin)
    assert owner.message.key == "answer/1"
    assert owner.memory == Memory()


def test_an_old_question_to_look_is_answered_too(owner: Owner) -> None:
    """Looking does no harm, however late it comes."""
    owner.says("/status", ago_s=80_000)
    assert owner.text.startswith("Vigil demo")


def test_status_is_refreshed_in_place(owner: Owner) -> None:
    """A tap edits the message it was under, again and again."""
    owner.says("/status")
    for _ in range(2):
        owner.taps(owner.buttons[0])
        assert owner.message.replaces == "answer/1"
        assert owner.toast == "Up to date."


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ("/plot", Show("plot", "train_marian", "answer/1")),
        ("/plot whisper", Show("plot", "train_whisper", "answer/1")),
        ("/plot MarianMT Training", Show("plot", "train_marian", "answer/1")),
        ("/plot 7", Show("plot", "train_marian", "answer/1")),
        ("/report", Show("report", "", "answer/1")),
    ],
)
def test_pictures_are_made_elsewhere(owner: Owner, asked: str, shown: Show) -> None:
    """Of the stage at work, or the one that is named by its name, its number or a part of its title."""
    assert owner.says(asked) == [shown]


def test_a_plot_of_nothing_is_not_made(owner: Owner) -> None:
    """A stage without a loss, a name that no stage has, one that several have."""
    owner.says("/plot corpus")
    assert owner.text == "Parallel corpus has told no loss."
    for name in ("nothing", "train"):
        owner.says(f"/plot {name}")
        assert owner.text.startswith("Which stage? There are:\n\n1 download\n")


def test_the_log_of_the_stage_at_work(owner: Owner) -> None:
    """As many lines as were asked for, of the stage that was named; a stage whose output nobody could read is not called silent."""
    more = More(output={"train_marian": [f"line {number}" for number in range(40)], "train_whisper": ["whisper"]})
    owner.says("/log 2", more=more)
    assert owner.text == "MarianMT training, last lines\nline 38\nline 39"
    owner.says("/log", more=more)
    assert owner.text.count("\n") == chat.DEFAULT_LOG_LINES
    owner.says("/log whisper 3", more=more)
    assert owner.text == "Whisper LoRA training, last lines\nwhisper"
    owner.says("/log corpus", more=more)
    assert owner.text == "Parallel corpus: what it printed cannot be read just now."
    owner.says("/log gemma_12b", more=more)
    assert owner.text == "TranslateGemma 12B QLoRA has printed nothing yet."


def test_without_a_run_nothing_acts(owner: Owner, mid: View) -> None:
    """A state that cannot be read is said so; a yes in that moment does nothing, and counts once it can be read again."""
    owner.says("/pause")
    yes = owner.buttons[0]
    owner.view = None
    for text in ("/status", "/skip", "/mute 8h"):
        assert [type(act) for act in owner.says(text)] == [Say]
        assert owner.text.startswith("The run cannot be read just now.")
    owner.taps(yes)
    assert owner.commands == []
    owner.says("/ping")
    assert owner.text.startswith("Here, at ")
    owner.view = mid
    owner.taps(yes)
    assert len(owner.commands) == 1


@pytest.mark.parametrize(
    ("typed", "ago_s", "until", "text"),
    [
        ("/mute 8h", 0, NOW + 8 * 3600, "Muted until Fri 03:06.\nRed alarms ring all the same."),
        ("/mute 30m", 600, NOW + 1200, "Muted until 19:26.\nRed alarms ring all the same."),
        ("/mute 2D", 0, NOW + 2 * 86_400, "Muted until Sat 19:06.\nRed alarms ring all the same."),
        ("/mute 9999d", 0, NOW + 7 * 86_400, "Muted until Thu 19 Feb 19:06.\nRed alarms ring all the same."),
        ("/mute 30m", 7200, 0, "That time is over already: not muted."),
        ("/mute 8h", -90_000, NOW + 8 * 3600, "Muted until Fri 03:06.\nRed alarms ring all the same."),
        ("/mute off", 0, 0, "No longer muted."),
        ("/mute", 0, 0, "Nothing is muted.\n/mute 30m, 8h, 2d or off"),
        ("/mute ８h", 0, 0, "Nothing is muted.\n/mute 30m, 8h, 2d or off"),
    ],
)
def test_mute(owner: Owner, typed: str, ago_s: float, until: float, text: str) -> None:
    """Counted from when it was sent, bounded, and never of what is red."""
    owner.says(typed, ago_s=ago_s)
    assert (owner.memory.mute_until, owner.text) == (until, text)


# -- acting


@pytest.mark.parametrize(
    ("asked", "tap", "command"),
    [
        ("/skip", 0, {"kind": "skip", "stage": "train_marian", "now": False}),
        ("/skip", 1, {"kind": "skip", "stage": "train_marian", "now": True}),
        ("/skip gemma_12b", 0, {"kind": "skip", "stage": "train_gemma_12b", "now": False}),
        ("/retry", 0, {"kind": "retry", "stage": "train_whisper", "now": False}),
        ("/pause", 0, {"kind": "pause", "stage": None, "now": False}),
        ("/stop", 0, {"kind": "stop", "stage": None, "now": False}),
    ],
)
def test_acting_asks_first_and_acts_once(owner: Owner, asked: str, tap: int, command: dict[str, Any]) -> None:
    """The word alone does nothing; the yes gives one command, of this moment, and a second tap gives none."""
    assert [type(act) for act in owner.says(asked)] == [Say]
    question, yes = owner.message, owner.buttons[tap]
    owner.now += 20
    owner.taps(yes)
    (given,) = owner.commands
    assert msgspec.to_builtins(given).items() >= {**command, "at": owner.now, "by": "telegram"}.items()
    assert owner.message.replaces == question.key
    for later_s in (1, 100, 10_000):
        owner.now += later_s
        owner.taps(yes)
        assert owner.commands == []


def test_a_no_leaves_everything(owner: Owner) -> None:
    """It edits the question, and a yes after it does nothing."""
    owner.says("/stop")
    yes, no = owner.buttons
    question = owner.message.key
    owner.taps(no)
    assert (owner.commands, owner.text, owner.message.replaces) == ([], "Left as it is.", question)
    owner.taps(yes)
    assert owner.commands == []
    assert owner.toast == "Answered at 19:06: left as it is."


def later(owner: Owner) -> None:
    owner.now += STALE_S + 1


def earlier(owner: Owner) -> None:
    owner.now -= STALE_S + 1


def next_attempt(owner: Owner) -> None:
    assert owner.view is not None
    owner.view = with_stage(owner.view, "train_marian", Running(since=0), attempts=3)


def next_run(owner: Owner) -> None:
    assert owner.view is not None
    owner.view = with_run(owner.view, id="20270101-000000")


@pytest.mark.parametrize("change", [later, earlier, next_attempt, next_run])
def test_a_stale_yes_does_nothing_and_is_asked_anew(owner: Owner, change: Callable[[Owner], None]) -> None:
    """Too old (or the clock was set), another attempt, another run: what is true now is said, and a new question asked."""
    owner.says("/skip")
    yes = owner.buttons[0]
    change(owner)
    owner.taps(yes)
    assert owner.commands == []
    assert owner.text.startswith("Nothing was done: that was asked ") or owner.text.startswith(
        "Nothing was done: the stage has gone on"
    )
    assert "It is at work" in owner.text
    assert owner.buttons[0].data != yes.data
    owner.taps(owner.buttons[0])
    assert len(owner.commands) == 1


def test_a_tap_that_lay_about_is_stale(owner: Owner) -> None:
    """However fresh the question is by our clock: Telegram says when the tap came."""
    owner.says("/pause")
    owner.taps(owner.buttons[0], ago_s=STALE_S + 1)
    assert owner.commands == []


def test_an_old_word_is_asked_of_what_is_true_now(owner: Owner) -> None:
    """A /skip of yesterday names the stage of today and asks."""
    owner.says("/skip", ago_s=72_000)
    assert owner.text.startswith("You wrote that 20 h ago.\n\nSkip MarianMT training?")


def test_a_yes_that_has_lost_its_point_says_what_is_true(owner: Owner, mid: View) -> None:
    """The stage came to its end meanwhile, in the same attempt."""
    owner.says("/skip")
    yes = owner.buttons[0]
    owner.view = with_stage(mid, "train_marian", Succeeded(at=0))
    owner.taps(yes)
    assert (owner.commands, owner.toast) == ([], "MarianMT training is done,\nstep 100 of 160.\nThere is nothing to skip.")


@pytest.mark.parametrize(
    "data",
    [
        *("?", "do", "do:", "do:0123456789abcdef", "no:x", "do:x:now", "do:" + "x" * 500, "\ud800:x", ":::"),
        *("pick:skip:nothing", "pick:stop:train_marian", "pick:dance:corpus", "see:²", "see:-1", "see:" + "9" * 99),
    ],
)
def test_a_button_of_nobody_does_nothing(owner: Owner, data: str) -> None:
    """Also one of a forgotten question, an earlier Vigil, or no Vigil at all; each tap is answered."""
    acts = owner.taps(data)
    assert owner.commands == []
    assert isinstance(acts[0], Toast)
    assert len(owner.toast) <= 200
    assert owner.memory == Memory()


@pytest.mark.parametrize(
    ("asked", "change", "text"),
    [
        ("/skip corpus", {}, "Parallel corpus is done.\nThere is nothing to skip."),
        ("/retry marian", {}, "MarianMT training is at work,\nstep 100 of 160 (62 %).\nThere is nothing to retry."),
        ("/pause", {"paused": True}, "💤 Paused; /resume goes on\nThere is nothing to pause."),
        ("/resume", {}, "The run goes on.\nThere is nothing to resume."),
    ],
)
def test_what_would_do_nothing_is_not_asked(owner: Owner, mid: View, asked: str, change: dict[str, Any], text: str) -> None:
    """What is true now is the answer, and there is no button."""
    owner.view = with_run(mid, **change)
    owner.says(asked)
    assert (owner.text, owner.buttons) == (text, [])


def test_which_stage_is_meant_is_asked(owner: Owner, mid: View) -> None:
    """Where several may be meant, each has a button, which leads to the question."""
    owner.view = with_stage(mid, "corpus", Failed(at=0, reason="gone", outcome=Outcome.CRASHED))
    owner.says("/retry")
    assert [button.text for button in owner.buttons] == ["Retry Parallel corpus", "Retry Whisper LoRA training"]
    owner.taps(owner.buttons[0])
    assert owner.text.startswith("Try Parallel corpus again?\nIt has failed.\nGone\n\nIt begins again.")
    owner.taps(owner.buttons[0])
    assert [command.stage for command in owner.commands] == ["corpus"]


@pytest.mark.parametrize(
    ("kind", "undo", "changed"), [("pause", "resume", {"paused": True}), ("resume", "pause", {"paused": False})]
)
def test_a_pause_and_a_resume_are_taken_back_by_one_tap(
    owner: Owner, mid: View, kind: str, undo: str, changed: dict[str, Any]
) -> None:
    """The button is there at once, and again under the daemon's answer; like any yes it counts once and not for ever."""
    owner.view = with_run(mid, paused=not changed["paused"])
    owner.says(f"/{kind}")
    owner.taps(owner.buttons[0])
    (first,) = owner.commands
    (back,) = owner.buttons
    assert questions.undo_button(CommandKind(kind), first.id.removeprefix("tg-")) == ((back,),)
    owner.taps(back)  # too soon: the daemon has not acted yet
    assert (owner.commands, owner.toast.endswith(f"There is nothing to {undo}.")) == ([], True)
    owner.view = with_run(mid, **changed)
    owner.taps(back)
    assert [str(command.kind) for command in owner.commands] == [undo]
    assert owner.commands[0].id != first.id
    owner.taps(back)
    assert owner.commands == []


def test_where_there_is_nothing_to_choose_from(owner: Owner, mid: View) -> None:
    """No stage to retry, none that has begun: said, and nothing asked."""
    fresh = mid
    for stage in mid.run.stages:
        fresh = with_stage(fresh, stage.name, Pending(), attempts=0)
    owner.view = fresh
    owner.says("/retry")
    assert (owner.text, owner.buttons) == ("There is no stage to retry.\n/stages shows them.", [])
    owner.says("/log")
    assert owner.text == "No stage has started yet."


def test_a_yes_about_a_stage_that_is_gone_does_nothing(owner: Owner, mid: View) -> None:
    """The pipeline file was changed, and Vigil started anew."""
    owner.says("/skip gemma_12b")
    owner.view = dataclasses.replace(mid, stages=mid.stages[:9])
    owner.taps(owner.buttons[0])
    assert (owner.commands, owner.text) == ([], "Nothing was done: the stage has gone on since.")


def test_a_skip_is_taken_back_once_the_stage_has_stopped(owner: Owner, mid: View) -> None:
    """While it still stops the tap waits for another; then the stage is tried again."""
    owner.says("/skip")
    owner.taps(owner.buttons[0])
    (back,) = owner.buttons
    intent = Intent(skip=True, reason="skipped", at=0, due_monotonic_s=0, boot="")
    owner.view = with_stage(mid, "train_marian", Running(since=0, intent=intent))
    owner.taps(back)
    assert owner.commands == []
    assert owner.toast.endswith("It is still stopping: ask again in a moment.")
    owner.view = with_stage(mid, "train_marian", Skipped(at=0, reason="skipped", by="owner"))
    owner.taps(back)
    assert [(str(command.kind), command.stage) for command in owner.commands] == [("retry", "train_marian")]


def test_a_question_is_not_renewed_by_a_replay(owner: Owner, mid: View) -> None:
    """The same update decided again, later, gives the same question with its first time; an answered one stays answered."""
    asked = Asked(update_id=9, user_id=1, chat_id=1, private=True, at=NOW, text="/pause")
    once, acts = chat.decide(asked, Memory(), mid, {}, NOW, UTC)
    again, same = chat.decide(asked, once, mid, {}, NOW + 500, UTC)
    assert (again, [act.message.key for act in same if isinstance(act, Say)]) == (
        once,
        [act.message.key for act in acts if isinstance(act, Say)],
    )
    owner.memory, owner.acts = once, acts
    owner.taps(owner.buttons[0])
    settled = owner.memory
    assert chat.decide(asked, settled, mid, {}, NOW + 900, UTC)[0] == settled


def test_the_memory_is_bounded_and_kept(owner: Owner) -> None:
    """Hundreds of questions and answers leave a small value, which survives being written and read."""
    for _ in range(300):
        owner.says("/pause")
        owner.taps(owner.buttons[0])
    assert len(owner.memory.questions) <= chat.QUESTIONS_KEPT
    assert len(owner.memory.used) <= chat.USED_KEPT
    assert msgspec.json.decode(msgspec.json.encode(owner.memory), type=Memory) == owner.memory


# -- whatever happens

_ACTS = st.sampled_from(["/skip", "/skip marian", "/retry", "/retry whisper", "/pause", "/resume", "/stop", "/skip gemma_4b"])
_WAITS = st.sampled_from([1.0, 500.0, 950.0, 80_000.0, -30.0, -950.0])
_YES = st.tuples(st.just("yes"), st.integers(0, 2))
_MOVE = st.tuples(st.just("moves"), st.integers(0, 5))
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("says"), _ACTS),
        _YES,
        _YES,
        _MOVE,
        st.tuples(st.just("waits"), _WAITS),
        st.tuples(st.just("replays"), st.integers(0, 3)),
        st.tuples(st.just("taps"), st.integers(0, 20)),
        st.tuples(st.sampled_from(["says", "forges"]), st.text(max_size=70)),
    ),
    min_size=4,
    max_size=20,
)


class Checked(Owner):
    """An owner whose every yes is held against what was true when its button was shown, by books of his own."""

    def __init__(self, worlds: list[View]) -> None:
        super().__init__(worlds[0])
        self.worlds = worlds
        self.sent: list[Asked] = []
        self.shown: list[Button] = []
        self.since: dict[str, tuple[float, str, dict[str, int]]] = {}
        self.ids: list[str] = []

    def hear(self, asked: Asked) -> None:
        self.memory, self.acts = chat.decide(asked, self.memory, self.view, {}, self.now, UTC)
        for act in self.acts:
            if isinstance(act, Submit):
                self._check(asked, act.command)
            if isinstance(act, Say):
                assert len(act.message.html) <= 5000
                for button in (button for row in act.message.buttons for button in row):
                    assert 1 <= len(button.data.encode()) <= 64
                    self.shown.append(button)
                    self.since.setdefault(button.data, (self.now, self._run(), self._attempts()))

    def _check(self, asked: Asked, command: Command) -> None:
        assert asked.data, "a text acted"
        shown_at, run, attempts = self.since[asked.data]
        assert command.id not in self.ids
        assert abs(self.now - shown_at) <= STALE_S
        assert abs(self.now - asked.at) <= STALE_S
        assert run == self._run()
        assert command.stage is None or attempts[command.stage] == self._attempts()[command.stage]
        self.ids.append(command.id)

    def _run(self) -> str:
        return self.view.run.id if self.view else ""

    def _attempts(self) -> dict[str, int]:
        return {stage.name: len(stage.attempts) for stage in self.view.run.stages} if self.view else {}

    def step(self, what: str, value: Any) -> None:
        if what == "waits":
            self.now += value
        elif what == "moves":
            self.view = self.worlds[value]
        elif what == "replays":
            if self.sent:
                self.hear(self.sent[-1 - value % len(self.sent)])
        else:
            self.updates += 1
            offered = [button.data for button in self.shown if what == "taps" or button.data.startswith("do:")]
            data = value if what == "forges" else offered[-1 - value % len(offered)] if what != "says" and offered else ""
            text = value if what == "says" else ""
            asked = Asked(
                update_id=self.updates, user_id=1, chat_id=1, private=True, at=self.now, text=text, data=data, callback_id="1"
            )
            self.sent.append(asked)
            self.hear(asked)


@pytest.fixture(scope="module")
def worlds(mid: View) -> list[View]:
    """The run as it may stand at another moment, and another run."""
    return [
        mid,
        with_run(mid, paused=True),
        with_stage(mid, "train_marian", Running(since=0), attempts=3),
        with_stage(mid, "train_marian", Skipped(at=0, reason="skipped", by="owner")),
        with_stage(mid, "train_whisper", Pending()),
        with_run(mid, id="20270101-000000"),
    ]


@settings(max_examples=400, deadline=None)
@given(steps=_STEPS)
def test_whatever_happens_a_yes_acts_once_and_never_late(worlds: list[View], steps: list[tuple[str, Any]]) -> None:
    """In any order of words, taps, replays, forged buttons, clock jumps and changes of the run.

    A command follows from a tap alone, once, within 15 minutes of its question, in the same run and attempt.
    """
    owner = Checked(worlds)
    for what, value in steps:
        owner.step(what, value)


def test_the_check_itself_lets_commands_pass(worlds: list[View]) -> None:
    """The sequence that a reasonable owner makes gives commands: the rule above is not kept by doing nothing."""
    owner = Checked(worlds)
    for what, value in [("says", "/pause"), ("yes", 0), ("moves", 1), ("yes", 0), ("moves", 0), ("says", "/skip"), ("yes", 1)]:
        owner.step(what, value)
    assert len(owner.ids) == 3


def test_the_button_under_a_deadline_in_danger_asks(owner: Owner, mid: View) -> None:
    """It skips nothing by itself, however old the message is."""
    fields = {"p50_at": NOW + 9e5, "p80_at": NOW + 9e5, "deadline_at": NOW + 8e5, "leave_out": ["train_gemma_12b", "evaluate_12b"]}
    fact = Fact(id="1", at=T0, kind="plan.slipped", text="late", fields=fields)
    slipped = messages.for_fact(fact, mid)
    assert slipped is not None
    owner.taps(slipped.buttons[0][0])
    assert owner.commands == []
    assert owner.text.startswith("Skip TranslateGemma 12B QLoRA?\nIt has not started.\n\nLeft out too: Evaluation of the 12B")
    owner.taps(owner.buttons[0])
    assert [(one.kind, one.stage) for one in owner.commands] == [("skip", "train_gemma_12b")]

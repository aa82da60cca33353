"""What the phone is told unasked, to the letter."""

from __future__ import annotations

import dataclasses
import unicodedata
from datetime import UTC

import msgspec
import pytest

from daemon import view, words
from daemon.phone import answers, markup, messages, questions, standing
from daemon.phone.dialogue import Message, Ring
from daemon.phone.standing import More
from daemon.view import View
from state.contract import CommandKind, Outcome, Progress
from state.forecast import Forecast
from state.snapshot import Attempt, Fact, Pending, Running, Start
from state.workspace import Workspace
from tests.conftest import T0, ExampleRun
from tests.unit.daemon.full_scores import enriched
from tests.unit.daemon.phone_views import (
    HOST,
    assert_sendable,
    fact,
    fact_of,
    live,
    more_of,
    now_of,
    stage_of,
    with_run,
    with_stage,
)


def test_the_card_changes_only_with_the_run(mid: View) -> None:
    """It tells times of day and no ages: a minute in which nothing was told changes its "as of" alone, and needs no edit."""
    now = now_of(mid)
    card = messages.card(mid, HOST, now, UTC, more_of(mid))
    assert (
        words.bare(card.html)
        == """\
Vigil demo · 5 of 11 done

⏳ 6/11 Whisper LoRA training
Waits to be tried again

🔵 7/11 MarianMT training
██████░░░░ 62 %
Step 100 of 160 · 1.0 s/step
Stage: until 19:04
Loss 0.36 ██▇▇▆▆▅▅▄▄▃▃▂▂▁▁
Batch 32, as set
Saved: nothing yet

Disk 412 GB free · Windows 80 GB free

as of Thu 12 Feb 19:04"""
    )
    later = messages.card(mid, HOST, now + 40, UTC, more_of(mid))
    assert later.html != card.html or words.clock(now + 40, UTC) == words.clock(now, UTC)
    assert messages.same_card(card, later)
    moved = with_stage(mid, "train_marian", step=101)
    assert not messages.same_card(card, messages.card(moved, HOST, now, UTC, more_of(mid)))
    assert card.key == card.replaces == later.key
    overdue = [messages.card(mid, HOST, now + late_s, UTC, more_of(mid)) for late_s in (600, 6000)]
    assert "\nStage: due now\n" in overdue[0].html
    assert messages.same_card(*overdue)


def told(one: Fact, seen: View, more: More = standing.NOTHING_MORE) -> Message:
    message = messages.for_fact(one, seen, UTC, more)
    assert message is not None
    return message


def test_a_done_stage_rings(done: View, measured: More) -> None:
    """What it brought, how long it took; an evaluation shows its scores."""
    marian = told(fact_of(done, "stage.succeeded", "train_marian"), done)
    assert (marian.ring, marian.kind) == (Ring.LOUD, "stage.succeeded")
    assert (
        words.bare(marian.html)
        == """\
✅ MarianMT training is done
160 steps, best at step 160

It took 2 min 51 s in 2 attempts.
9 of 11 done"""
    )
    scored = told(fact_of(done, "stage.succeeded", "evaluate_after"), done, measured)
    assert "\n\n<pre>MarianMT\nBLEU     1.25 →  14.50 +13.25 better\n" in scored.html


def test_the_verdicts_are_told(done: View, finished_workspace: Workspace) -> None:
    """When an evaluation is done, in place of the table, since the picture has it; at the end before the table."""
    more = More(scores=enriched(finished_workspace))
    brief = "<b>MarianMT</b> is better than before:\nchrF++\u00a0+13.25; better in gospels,\npoetry; "
    scored = told(fact_of(done, "stage.succeeded", "evaluate_after"), done, more)
    assert f"\n\n{brief}" in scored.html
    assert "\u00a0−0.50.\nCOMET: demo metric" in scored.html
    assert "<pre>" not in scored.html
    end = told(fact_of(done, "run.finished"), done, more).html
    assert 0 < end.index(brief) < end.index("<pre>MarianMT\nBLEU")


def test_the_end_rings(done: View, measured: More) -> None:
    """How it ended, how long it took, what is missing, the scores."""
    end = told(fact_of(done, "run.finished"), done, measured)
    assert end.ring is Ring.LOUD
    assert words.bare(end.html).splitlines()[:7] == [
        "🏁 Vigil demo is finished",
        "9 of 11 stages succeeded, 1 bonus failed, 1 skipped.",
        "It took 1 h 6 min.",
        "",
        "❌ TranslateGemma 12B QLoRA",
        "⏩ Evaluation of the 12B",
        "",
    ]
    assert end.html.endswith("</pre>\n\n/report has all of it.")


def test_a_bonus_that_failed_is_silent_and_a_required_stage_is_red(done: View) -> None:
    """The latter names what is left out with it and how to try it again."""
    bonus = told(fact_of(done, "stage.failed"), done)
    assert bonus.ring is Ring.SILENT
    assert (
        words.bare(bonus.html)
        == """\
❌ TranslateGemma 12B QLoRA has failed
Out of memory at micro-batch 1 (the lowest rung of the memory ladder)

A bonus: the run goes on."""
    )
    red = told(fact(1, "stage.failed", "corpus failed: ValueError: <module> is loss<0.5", "corpus", level="error"), done)
    assert red.ring is Ring.RED
    assert (
        red.html
        == """\
🔴 <b>Parallel corpus has failed</b>
ValueError: &lt;module&gt; is loss&lt;0.5

Left out too: Baseline evaluation, MarianMT training, TranslateGemma 4B QLoRA, Post-training evaluation, \
TranslateGemma 12B QLoRA, Evaluation of the 12B
What can go on goes on.
/retry corpus"""
    )


def test_a_return_tells_how_long_what_was_lost_and_the_new_end(mid: View) -> None:
    """Of a reboot it rings; of a restart of the daemon alone it does not by itself."""
    last = T0 + 500
    at = last + 7800
    marian = stage_of(mid, "train_marian")
    progress = msgspec.structs.replace(marian.progress or Progress(at=0, done=0), at=last)
    attempts = (Attempt(number=1, started_at=T0),)
    seen = with_stage(mid, "train_marian", {"attempts": attempts}, progress=progress, checkpoint=70)
    seen = with_run(seen, starts=(Start(at=T0, boot="1"), Start(at=at, boot="2")))
    seen = dataclasses.replace(seen, facts=())
    back = told(Fact(id="9", at=at, kind="run.resumed", text="run x goes on", fields={"rebooted": True}), seen)
    assert back.ring is Ring.LOUD
    assert (
        words.bare(back.html)
        == """\
🔌 Back after a restart
Away for up to 2 h 10 min,
since 18:08.

MarianMT training:
30 steps again, 30 s"""
    )
    alone = told(Fact(id="9", at=at, kind="run.resumed", text="run x goes on", fields={"rebooted": False}), seen)
    assert alone.ring is Ring.OFF
    whole = told(back_fact(at), with_stage(seen, "train_marian", checkpoint=100))
    assert "MarianMT training: nothing lost" in whole.html
    assert "MarianMT training begins again" in told(back_fact(at), with_stage(seen, "train_marian", checkpoint=None)).html
    idle = with_stage(seen, "train_marian", {"attempts": (), "status": Pending()})
    assert "Nothing was at work." in told(back_fact(at), idle).html


def back_fact(at: float) -> Fact:
    return Fact(id="9", at=at, kind="run.resumed", text="run x goes on", fields={"rebooted": True})


def test_a_long_outage_is_one_message(mid: View) -> None:
    """A row of the same trouble edits its first message; another trouble begins a new one."""
    row = [
        fact(
            number,
            "stage.backed_off",
            f"download: the network does not answer; tried again in {number}0 s",
            "download",
            attempt=number,
            fields={"outcome": str(Outcome.TRANSIENT)},
        )
        for number in (1, 2, 3)
    ]
    crash = fact(
        4, "stage.backed_off", "download: killed; tried again", "download", attempt=4, fields={"outcome": str(Outcome.CRASHED)}
    )
    seen = dataclasses.replace(mid, facts=(*row, crash))
    first, _second, third, other = (told(one, seen) for one in seen.facts)
    assert {message.ring for message in (first, third, other)} == {Ring.SILENT}
    assert (first.replaces, third.replaces, other.replaces) == ("", first.key, "")
    assert (
        words.bare(third.html)
        == """\
🔁 Sermon download tries again
The network does not answer; tried again in 30 s
Since 18:01, 3 times so far"""
    )


@pytest.mark.parametrize("outcome", [Outcome.STOPPED, Outcome.INTERRUPTED, Outcome.HUNG])
def test_what_was_told_already_is_no_retry(mid: View, outcome: Outcome) -> None:
    """A pause, a power cut or a stall is told by its own message."""
    one = fact(1, "stage.backed_off", "x: y", "download", attempt=1, fields={"outcome": str(outcome)})
    assert told(one, mid).ring is Ring.OFF


def test_less_memory_is_told_in_silence(mid: View) -> None:
    """By the stage itself, or as the reason of another try; what else a stage notes is in the journal."""
    text = "Out of memory at micro-batch 8; the same step is done again at 4, the effective batch stays"
    noted = told(fact(1, "attempt.noted", text, "train_marian", level="warning"), mid)
    assert (noted.ring, noted.html) == (Ring.SILENT, f"🔧 <b>MarianMT training</b>\n{text}")
    fields = {"outcome": str(Outcome.OUT_OF_MEMORY)}
    retried = told(fact(2, "stage.backed_off", "train_marian: no room; tried again in 5 s", "train_marian", fields=fields), mid)
    assert words.bare(retried.html) == "🔧 MarianMT training adapts\nNo room; tried again in 5 s"
    assert told(fact(3, "attempt.noted", "counted", "train_marian"), mid).ring is Ring.OFF


def test_a_stall_rings_when_it_was_not_cured(mid: View) -> None:
    """Silent the first time, red the second time in a row, then covered by "still"; one with a good attempt between is a first."""
    text = "train_marian said nothing for 700 s (limit 600 s): ended, to be tried again"
    hung = [fact(n, "attempt.hung", text, "train_marian", attempt=n, level="warning") for n in (1, 2, 3, 5)]
    seen = dataclasses.replace(mid, facts=tuple(hung))
    assert [told(one, seen).ring for one in hung] == [Ring.SILENT, Ring.RED, Ring.OFF, Ring.SILENT]
    assert told(hung[1], seen).html.startswith("🔴 <b>MarianMT training stalls again</b>\n")


def test_a_disk_hold_is_red_until_it_is_solved(mid: View) -> None:
    """The fact that ends it is an edit of the message that told it, and what it was stays readable."""
    hold = "everything waits: the disk has 900 MB free and 1 GB are to be kept; free some, it then goes on by itself"
    held = fact(1, "disk.held", hold, level="error")
    freed = fact(43, "disk.freed", "there is disk space again: the run goes on")
    seen = dataclasses.replace(mid, facts=(held, freed))
    red, end = told(held, seen), told(freed, seen)
    assert (red.ring, end.ring, end.replaces) == (Ring.RED, Ring.SILENT, red.key)
    assert (
        words.bare(red.html)
        == """\
🔴 The run waits for disk space
The disk has 900 MB free and 1 GB are to be kept

Free some: it goes on by itself."""
    )
    assert (
        words.bare(end.html)
        == """\
✅ Solved at 18:43, after 42 min
There is space again.

The run waits for disk space
The disk has 900 MB free and 1 GB are to be kept"""
    )
    again = messages.still(red, 4)
    assert (again.ring, again.key) == (Ring.RED, f"{red.key}/still/4")
    assert again.html.splitlines()[:2] == ["🔴 Still, after 4 h:", "<b>The run waits for disk space</b>"]


def test_what_ends_a_red_alarm_of_a_stage(mid: View) -> None:
    """A failure: another try. A stall: success, a skip, or giving up. Only the alarm of that stage, and once."""
    text = "train_marian said nothing for 700 s (limit 600 s): ended, to be tried again"
    facts = (
        fact(1, "attempt.hung", text, "train_marian", attempt=1),
        fact(2, "attempt.hung", text, "train_marian", attempt=2),
        fact(3, "stage.failed", "train_marian failed: hung", "train_marian", level="error", attempt=2),
        fact(4, "stage.started", "corpus started", "corpus", attempt=1),
        fact(5, "stage.started", "train_marian started", "train_marian", attempt=3),
        fact(6, "stage.succeeded", "train_marian succeeded", "train_marian", attempt=3),
    )
    seen = dataclasses.replace(mid, facts=facts)
    keys = {one.id: messages.fact_key(seen.run, one) for one in facts}
    ended = {one.id: [edit.replaces for edit in messages.solved_by(one, seen, UTC)] for one in facts}
    assert ended == {
        "000001": [],
        "000002": [],
        "000003": [keys["000002"]],
        "000004": [],
        "000005": [keys["000003"]],
        "000006": [],
    }
    (given_up,) = messages.solved_by(facts[2], seen, UTC)
    assert given_up.html.splitlines()[0] == "❌ Given up at 18:03, after 1 min"


def test_the_answer_to_a_command_edits_its_question(mid: View) -> None:
    """What the daemon made of it, and the button that takes it back; none after a refusal; what was asked elsewhere is not told."""
    text = "skip train_marian: train_marian stops at its next save and is skipped; what is saved stays"
    fields = {"by": "telegram", "ok": True, "id": questions.command_id("abc")}
    done = told(fact(1, "command.answered", text, fields=fields), mid)
    assert (done.replaces, done.kind, done.buttons) == ("ask/abc", "", questions.undo_button(CommandKind.SKIP, "abc"))
    assert done.html.startswith("✅ <b>Skip MarianMT training</b>\nIt stops at its next save and is skipped")
    refused = told(fact(2, "command.answered", "pause: the run is paused already", fields=fields | {"ok": False}), mid)
    assert (refused.html, refused.buttons) == ("❌ <b>Pause the run</b>\nRefused: the run is paused already", ())
    assert told(fact(3, "command.answered", text, fields=fields | {"id": "1-a"}), mid).ring is Ring.OFF


@pytest.mark.parametrize("stage", [None, "preprocess", "gone"])
@pytest.mark.parametrize(
    "kind",
    ["stage.started", "stage.succeeded", "stage.failed", "stage.skipped", "stage.backed_off", "attempt.hung", "attempt.noted",
     "run.started", "run.resumed", "run.finished", "disk.held", "disk.freed", "command.answered", "of.tomorrow"],
)  # fmt: skip
def test_no_fact_breaks_the_bot(kind: str, stage: str | None, mid: View) -> None:
    """Also one of a stage that the pipeline no longer has, of a kind that a later Vigil tells, with any text; debug is not told."""
    for text in ("", "<b>", "a: b", "\ud800", "x" * 9000):
        for fields in ({}, {"outcome": "OF_TOMORROW", "id": "tg-" + "x" * 99, "ok": True}):
            one = fact(1, kind, text, stage, fields=fields)
            message = told(one, mid)
            assert_sendable(message.html)
            messages.solved_by(one, mid, UTC)
    assert messages.for_fact(fact(1, kind, "x", stage, level="debug"), mid) is None


def test_a_gap_that_is_over_is_told_when_the_work_moves(mid: View) -> None:
    """Not when the attempt starts: only progress proves that the world answers again. The same gap has the same key."""
    attempts = (
        Attempt(number=1, started_at=T0, ended_at=T0 + 60, outcome=Outcome.TRANSIENT, reason="the network does not answer"),
        Attempt(number=2, started_at=T0 + 75, ended_at=T0 + 135, outcome=Outcome.TRANSIENT, reason="the network does not answer"),
        Attempt(number=3, started_at=T0 + 7260),
    )
    moving = Progress(at=T0 + 7300, done=3, total=10)
    state = {"status": Running(since=T0), "attempts": attempts}
    seen = with_stage(mid, "download", state, progress=moving, rate=0.1)
    assert messages.noticed(with_stage(seen, "download", rate=None), UTC) == []
    assert messages.noticed(with_stage(seen, "download", progress=msgspec.structs.replace(moving, at=T0 + 90)), UTC) == []
    (over,) = messages.noticed(seen, UTC)
    assert (
        words.bare(over.html)
        == """\
🔁 Sermon download goes on
It waited 2 h,
since 18:01:
the network does not answer"""
    )
    assert over == messages.noticed(seen, UTC)[0]


def test_a_hot_gpu_is_red() -> None:
    """A GPU that does not answer is not hot, nor is one that is warm from work."""
    assert messages.gpu_hot({"gpus": None}, T0) is None
    assert messages.gpu_hot({"gpus": [{"temperature_c": None}, {"temperature_c": 84.0}]}, T0) is None
    red = messages.gpu_hot({"gpus": [{"temperature_c": 93.0}]}, T0)
    assert red is not None
    assert (red.ring, words.bare(red.html)) == (Ring.RED, "🔴 The GPU has 93 °C\n\nLook after its air; /pause lets it cool.")


def test_the_morning_digest(mid: View) -> None:
    """What was done and what went wrong in 24 hours, where it stands; one a day."""
    digest = messages.digest(mid, HOST, now_of(mid), UTC)
    assert digest.key == "20260212-180000/digest/2026-02-12"
    assert (
        words.bare(digest.html)
        == """\
Vigil demo · 5 of 11 done

In 24 h: 5 stages done,
2 troubles:
18:01 Whisper LoRA training: replay source is not set: trained without replay
18:02 Whisper LoRA training: killed by signal 9; tried again in 20 s
Restarts: 19:03

⏳ 6/11 Whisper LoRA training
Killed by signal 9
Tried again as soon as it can

🔵 7/11 MarianMT training
██████░░░░ 62 %
Step 100 of 160 · 1.0 s/step
Stage: 55 s left, until 19:04

Disk 412 GB free · Windows 80 GB free"""
    )
    quiet = messages.digest(mid, HOST, now_of(mid) + 2 * messages.DAY_S, UTC)
    assert "In 24 h: 0 stages done,\n0 troubles.\n" in quiet.html


def test_what_was_missed_comes_as_one(done: View) -> None:
    """The first line of each with its time; it rings if one of them would have, and the same ones make the same message."""
    missed = [told(one, done) for one in done.facts if one.kind in ("stage.succeeded", "stage.failed")][-3:]
    folded = messages.folded(missed, done.run.finished_at or 0, UTC)
    assert (
        words.bare(folded.html)
        == """\
📭 While I was offline (3)

19:05 ✅ TranslateGemma 4B QLoRA is done
19:06 ✅ Post-training evaluation is done
19:06 ❌ TranslateGemma 12B QLoRA has failed"""
    )
    assert folded.ring is Ring.LOUD
    assert folded.key == messages.folded(missed, 0.0).key
    assert folded.key != messages.folded(missed[1:], 0.0).key
    assert messages.folded(missed[2:], 0.0).ring is Ring.SILENT


def test_our_lines_fit_a_phone(mid: View, done: View, measured: More) -> None:
    """40 columns, one emoji a line at most, for all that is ours; what stages and the journal say may wrap."""
    now = now_of(mid)
    name = "A pipeline with a name of sixty characters, which is the most"
    long = with_run(mid, pipeline=msgspec.structs.replace(mid.run.pipeline, name=name), disk_hold="")
    long = with_stage(long, "train_marian", step=1_123_456, steps=2_123_456, step_s=12.3456, checkpoint=1_123_400)
    plan = Forecast(at=now, p50_at=T0 + 4e5, p80_at=T0 + 4e5 + 27_000, deadline_at=T0 + 4e5)
    texts = [
        *(answers.status(seen, HOST, now, UTC, more_of(mid)) for seen in (mid, long, with_run(mid, paused=True))),
        messages.card(long, HOST, now, UTC, dataclasses.replace(more_of(mid), forecast=plan)).html,
        answers.stages(mid),
        answers.stages(done),
        answers.help_text(),
        answers.ping(mid, now, UTC),
        answers.welcome(long).html,
        standing.score_lines(measured.scores),
        answers.unreadable(),
        *(questions.question(kind, None, mid) for kind in CommandKind if kind not in ("skip", "retry")),
        *(questions.question(CommandKind.SKIP, stage, long) for stage in long.stages[5:9]),
        *(told(one, seen).html for seen in (mid, done) for one in seen.facts if one.kind in ("stage.succeeded", "run.resumed")),
    ]
    kinds = ("stage.failed", "stage.backed_off", "stage.skipped", "attempt.hung", "disk.held", "run.finished")
    heads = [told(fact(2, kind, "a: b", "train_gemma_12b", attempt=2), done).html.partition("\n")[0] for kind in kinds]
    hung = fact(1, "attempt.hung", "a: b", "train_gemma_12b", attempt=1)
    again = fact(2, "attempt.hung", "a: b", "train_gemma_12b", attempt=2)
    red = told(again, dataclasses.replace(done, facts=(hung, again)))
    solved = messages.solved(red, T0 + 90_000, "it came to its end", UTC).html
    for text in (*texts, *heads, messages.still(red, 12).html, solved):
        assert_sendable(text)
        for line in words.bare(text).splitlines():
            assert words.cells(line) <= markup.COLUMNS, line
            assert sum(unicodedata.east_asian_width(char) == "W" for char in line) <= 1, line


def test_keys_are_of_the_run(example: ExampleRun) -> None:
    """The first fact of a new run in the same folder is not taken for that of the old one."""
    example.tell("run.started", "run started")
    seen = live(view.read(example.save()))
    other = with_run(seen, id="20270101-000000")
    assert told(seen.facts[0], seen).key != told(seen.facts[0], other).key


PLAN = {
    "p50_at": T0 + 4 * 86_400 + 3600,
    "p80_at": T0 + 4 * 86_400 + 3 * 3600,
    "deadline_at": T0 + 4 * 86_400,
    "leave_out": ["train_gemma_12b", "evaluate_12b"],
    "choice": "Without TranslateGemma 12B QLoRA it fits (Mon 15:00).",
}


def test_a_deadline_in_danger_rings_with_a_choice(mid: View) -> None:
    """One button for each bonus that can be skipped by itself; it asks, and what goes with another has none."""
    slipped = told(fact(1, "plan.slipped", "The deadline Mon 18:00 is missed by 3 h.", level="warning", fields=PLAN), mid)
    assert slipped.ring is Ring.LOUD
    assert (
        words.bare(slipped.html)
        == """\
⏰ The deadline is in danger
Deadline Mon 18:00: late by 3 h
80 % sure by Mon 21:00
Without TranslateGemma 12B QLoRA it fits (Mon 15:00)."""
    )
    assert [[button.text for button in row] for row in slipped.buttons] == [["Skip TranslateGemma 12B QLoRA"]]
    assert slipped.buttons[0][0].data == "pick:skip:train_gemma_12b"
    bare = told(fact(2, "plan.slipped", "the run ends later than thought"), mid)
    assert (words.bare(bare.html), bare.buttons) == ("⏰ The plan slips\nThe run ends later than thought", ())


def test_a_plan_that_slips_and_still_fits_says_so(mid: View) -> None:
    """Hours later than was told last, and no danger."""
    fits = fact(1, "plan.slipped", "x", fields=PLAN | {"p80_at": T0 + 3 * 86_400, "leave_out": [], "choice": ""})
    assert words.bare(told(fits, mid).html) == "⏰ The plan slips\nDeadline Mon 18:00: fits\n80 % sure by Sun 18:00"


def test_a_deadline_that_holds_again_is_silent(mid: View) -> None:
    """As is a bonus that gets less work; the first forecast is no news."""
    good = told(fact(1, "plan.recovered", "x", fields=PLAN | {"p80_at": T0 + 3 * 86_400, "choice": ""}), mid)
    assert (good.ring, good.buttons) == (Ring.SILENT, ())
    assert words.bare(good.html) == "✅ The deadline holds again\nDeadline Mon 18:00: fits\n80 % sure by Sun 18:00"
    text = "train_gemma_12b gets 40 % of its work: for all of it there is no time before the deadline"
    less = told(fact(2, "plan.shortened", text, "train_gemma_12b", level="warning"), mid)
    assert less.ring is Ring.SILENT
    assert less.html.splitlines() == [
        "✂️ <b>TranslateGemma 12B QLoRA is cut short</b>",
        "Gets 40 % of its work: for all of it there is no time before the deadline",
    ]
    assert told(fact(3, "plan.made", "The deadline holds.", fields=PLAN), mid).ring is Ring.OFF


def test_scores_come_as_a_picture(done: View, measured: More) -> None:
    """With the table as its caption, which fits one; other stages, and an evaluation without scores, as text."""
    one = fact_of(done, "stage.succeeded", "evaluate_after")
    scored = told(one, done, measured)
    assert (scored.draws, scored.ring) == ("scores", Ring.LOUD)
    assert "COMET: demo metric" in scored.html
    long = told(msgspec.structs.replace(one, text="evaluate_after succeeded: " + "x " * 900), done, measured)
    assert words.utf16_units(words.bare(long.html)) <= markup.CAPTION_UNITS
    assert told(one, done).draws == ""
    assert told(fact_of(done, "stage.succeeded", "train_marian"), done, measured).draws == ""


def test_what_goes_with_another_stage_is_not_told_twice(done: View) -> None:
    """Its failure, or the question about its skip, has named it; a bonus without time is news."""
    assert told(fact_of(done, "stage.skipped", "evaluate_12b"), done).ring is Ring.OFF
    late = fact(1, "stage.skipped", "evaluate_12b skipped: there is no time for it before the deadline", "evaluate_12b")
    assert told(late, done).ring is Ring.SILENT


def test_a_reason_keeps_the_name_of_its_error(mid: View) -> None:
    """What a message's first line says already is the stage and what became of it, and nothing else."""
    fields = {"outcome": str(Outcome.CRASHED)}
    crash = fact(
        1, "stage.backed_off", "corpus: ZeroDivisionError: by zero; tried again in 5 s", "corpus", attempt=1, fields=fields
    )
    assert told(crash, mid).html.splitlines()[1] == "ZeroDivisionError: by zero; tried again in 5 s"


def test_the_digest_tells_a_row_of_one_trouble_once(mid: View) -> None:
    """However often it was tried: the newest, and how often; a restart of the machine is no trouble."""
    tries = [fact(n, "stage.backed_off", f"download: HTTP 50{n}; tried again", "download", level="warning") for n in (1, 2, 3)]
    back = fact(4, "run.resumed", "run x goes on after a restart of the machine", fields={"rebooted": True})
    seen = dataclasses.replace(mid, facts=(*tries, back))
    digest = words.bare(messages.digest(seen, HOST, T0 + 900, UTC).html)
    assert "\n3 troubles:\n18:03 Sermon download: HTTP 503; tried again (3 times)\nRestarts: 18:04\n" in digest

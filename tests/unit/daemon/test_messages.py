"""Every text that goes to the phone, to the letter."""

from __future__ import annotations

import dataclasses
import unicodedata
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import messages, scores, view, words
from daemon.dialogue import Message, Ring
from daemon.messages import More
from daemon.view import StageView, View
from state.contract import BatchPlan, CommandKind, Outcome, Progress
from state.machine import Status
from state.snapshot import Attempt, BackingOff, Fact, Intent, Pending, Running, Start
from state.workspace import Workspace
from tests.conftest import T0, ExampleRun, finished_run, mid_run
from tests.telegram import markup

HOST: dict[str, Any] = {
    "memory_used_bytes": 12_000_000_000,
    "memory_total_bytes": 64_000_000_000,
    "disks": [
        {"path": "/home/run", "free_bytes": 412_000_000_000, "total_bytes": 1},
        {"path": "/mnt/c", "free_bytes": 80_000_000_000, "total_bytes": 1},
    ],
    "gpus": [
        {
            "name": "NVIDIA GeForce RTX 4070 Ti SUPER",
            "load_percent": 97.0,
            "temperature_c": 64.0,
            "memory_used_bytes": 14_200_000_000,
            "memory_total_bytes": 16_000_000_000,
        }
    ],
}


def live(seen: View, **changes: Any) -> View:
    """`seen` as it looks while its daemon and its stages are at work."""
    stages = tuple(dataclasses.replace(s, working=True) if s.working is not None else s for s in seen.stages)
    return dataclasses.replace(seen, alive=True, stages=stages, **changes)


def with_run(seen: View, **changes: Any) -> View:
    return dataclasses.replace(seen, run=msgspec.structs.replace(seen.run, **changes))


def with_stage(seen: View, name: str, state: dict[str, Any] | None = None, **changes: Any) -> View:
    """`seen` with one stage changed, in the view and in the run."""
    old = stage_of(seen, name)
    new = dataclasses.replace(old, state=msgspec.structs.replace(old.state, **(state or {})), **changes)
    run = msgspec.structs.replace(seen.run, stages=tuple(new.state if s.name == name else s for s in seen.run.stages))
    return dataclasses.replace(seen, run=run, stages=tuple(new if s is old else s for s in seen.stages))


def stage_of(seen: View, name: str) -> StageView:
    return next(stage for stage in seen.stages if stage.config.name == name)


def fact_of(seen: View, kind: str, stage: str | None = None) -> Fact:
    return next(fact for fact in reversed(seen.facts) if fact.kind == kind and stage in (None, fact.stage))


def fact(number: int, kind: str, text: str, stage: str | None = None, **more: Any) -> Fact:
    return Fact(id=f"{number:06d}", at=T0 + number * 60, kind=kind, text=text, stage=stage, **more)


@pytest.fixture(scope="module")
def mid(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Marian trains, Whisper waits, seen while the daemon is at work."""
    return live(view.read(mid_run(ExampleRun(tmp_path_factory.mktemp("mid") / "run"))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return finished_run(ExampleRun(tmp_path_factory.mktemp("done") / "run"))


@pytest.fixture(scope="module")
def done(finished: Workspace) -> View:
    """The finished run."""
    return live(view.read(finished))


@pytest.fixture(scope="module")
def measured(finished: Workspace) -> More:
    return More(scores=scores.read(finished.eval_results))


def now_of(seen: View) -> float:
    """Five seconds after the run last said something."""
    return max(stage.progress.at for stage in seen.stages if stage.progress) + 5


def more_of(seen: View) -> More:
    return More(
        losses={"train_marian": [5 - step / 20 for step in range(60)]},
        saved_at={"train_marian": now_of(seen) - 750},
        output={"train_marian": ["loss<0.5", "50 %\r100 % \x1b[1mdone\x1b[0m"]},
    )


# -- answers, to the letter


def test_status(mid: View) -> None:
    """Stage n of m, share, step, pace, both ends, loss, batch, checkpoint, machine, what is next, uptime and restarts."""
    seen = with_stage(mid, "train_marian", {"batch": BatchPlan(micro_batch=8), "fits": {"m on RTX": 16}}, checkpoint=96, steps=160)
    text = words.bare(messages.status(seen, HOST, now_of(mid), UTC, more_of(mid)))
    assert (
        text
        == """\
Vigil demo · 5 of 11 done

⏳ 6/11 Whisper LoRA training
Goes on next: killed by signal 9

🔵 7/11 MarianMT training
██████░░░░ 62 %
Step 100 of 160 · 1.0 s/step
Stage: 55 s left, until 19:04
Loss 0.36 ██▇▇▆▆▅▅▄▄▃▃▂▂▁▁
Batch 32, 8 at a time: more did not fit
Saved: step 96, 12 min ago

Run: its end is not known
Next: TranslateGemma 4B QLoRA

GPU 97 % · 64 °C · 14 GB of 16 GB
RAM 12 GB of 64 GB
Disk 412 GB free · Windows 80 GB free

Up 56 s, 1 restart:
19:03 the machine restarted"""
    )


def test_status_of_a_finished_run(done: View) -> None:
    """How it ended, in the words of `vigil status`; nothing is next, and nothing is guessed of a machine that was not read."""
    assert (
        words.bare(messages.status(done, {}, done.run.finished_at or 0, UTC))
        == """\
Vigil demo · 9 of 11 done
🏁 Finished: 9 of 11 stages succeeded, 1 bonus failed, 1 skipped.

Up 3 min 20 s, 1 restart:
19:03 the machine restarted"""
    )


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"paused": True}, "💤 Paused; /resume goes on"),
        ({"disk_hold": "the disk has 2 GB free"}, "💾 Waits for disk space: the disk has 2 GB free"),
    ],
)
def test_a_run_that_waits_says_so_and_promises_no_end(mid: View, changes: dict[str, Any], line: str) -> None:
    """What holds the whole run stands on top, and no time of its end is told."""
    text = words.bare(messages.status(with_run(mid, **changes), HOST, now_of(mid), UTC))
    assert text.splitlines()[1] == line
    assert "Run:" not in text


def test_a_stage_that_does_not_work_shows_no_pace(mid: View) -> None:
    """Stopping, or without a process: said, instead of a share that no longer moves."""
    intent = Intent(skip=True, reason="skipped by the owner (telegram)", at=0, due_monotonic_s=0, boot="")
    stopping = with_stage(mid, "train_marian", {"status": Running(since=0, intent=intent)})
    gone = with_stage(mid, "train_marian", working=False)
    for seen, line in (
        (stopping, "Stopping: skipped by the owner (telegram)"),
        (gone, "Its process is gone; the next run goes on"),
    ):
        text = words.bare(messages.status(seen, HOST, now_of(mid), UTC))
        assert f"🔵 7/11 MarianMT training\n{line}\n\n" in text


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
Batch 32
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


def test_stages(done: View) -> None:
    """Every stage in one line, with what it took; why, under one that failed or was left out."""
    assert (
        words.bare(messages.stages(done))
        == """\
Vigil demo

✅ 1 Sermon download · 20 s
✅ 2 Audio preprocessing · 31 s
✅ 3 Pseudo-labeling · 12 s
✅ 4 Parallel corpus · 8 s
✅ 5 Baseline evaluation · 40 s
✅ 6 Whisper LoRA training · 21 s
✅ 7 MarianMT training · 2 min 51 s
✅ 8 TranslateGemma 4B QLoRA · 40 s
✅ 9 Post-training evaluation · 35 s
❌ 10 TranslateGemma 12B QLoRA · 7 %
   out of memory at micro-batch 1 (the…
⏩ 11 Evaluation of the 12B
   it needs train_gemma_12b, which is F…"""
    )


def test_events(mid: View) -> None:
    """The newest facts under their day, marked as `vigil log` marks them; debug is nobody's news."""
    hidden = fact(999, "x", "hidden", level="debug")
    assert (
        messages.events(dataclasses.replace(mid, facts=(*mid.facts, hidden)), UTC, 5)
        == """\
<b>Thu 12 Feb</b>
18:01 ! replay source is not set: trained without replay
18:02 ! train_whisper: killed by signal 9; tried again in 20 s
18:02 train_marian started (attempt 1)
19:03 run 20260212-180000 goes on after a restart of the machine
19:03 train_marian started (attempt 2)"""
    )
    assert messages.events(dataclasses.replace(mid, facts=())) == "Nothing has happened yet."


def test_log(mid: View) -> None:
    """As typed; of a line that rewrites itself its last state, without colours; a long one ends with its newest lines."""
    marian = stage_of(mid, "train_marian")
    assert messages.log(marian, more_of(mid).output["train_marian"]) == (
        "<b>MarianMT training</b>, last lines\n<pre>loss&lt;0.5\n100 % done</pre>"
    )
    assert messages.log(marian, None) == "<b>MarianMT training</b>: what it printed cannot be read just now."
    assert messages.log(marian, []) == "<b>MarianMT training</b> has printed nothing yet."
    long = messages.log(marian, [f"{number} " + "🦜&" * 100 for number in range(60)])
    assert words.utf16_units(words.bare(long)) <= messages.TEXT_UNITS
    assert "\n59 🦜&amp;" in long


def test_ping_help_welcome(mid: View) -> None:
    """Alive, and since when the run is silent; every command once; a welcome that promises to ask."""
    assert messages.ping(mid, now_of(mid), UTC) == "Here, at 19:04.\nThe run spoke 5 s ago."
    assert messages.ping(None, T0, UTC) == "Here, at 18:00.\nThe run has said nothing yet."
    assert (
        messages.help_text()
        == """\
/status where the run stands
/stages every stage in one line
/plot [stage] a picture of the loss
/report scores before and after
/log [n] [stage] its last lines
/events what happened lately
/skip [stage] leave a stage out
/retry [stage] try a stage again
/pause save, then wait
/resume go on after a pause
/stop save, then end Vigil
/mute 8h no sound but for red
/ping is anybody there
/help this list

What acts asks first."""
    )
    assert (
        messages.welcome(mid).html
        == """\
Vigil watches over
<b>Vigil demo</b>.
It tells you what matters
and asks before it acts.

/status looks, /help lists the rest."""
    )


def test_the_scores_fit_a_phone(measured: More) -> None:
    """Before, after, the change and what it is worth, in 40 columns; the demo's own metric is named."""
    text = words.bare(messages.scored(measured.scores))
    assert text.splitlines()[:8] == [
        "The scores",
        "MarianMT",
        "BLEU     1.25 →  14.50 +13.25 better",
        "chrF++   9.75 →  23.00 +13.25 not clear",
        "COMET  0.4125 → 0.5450 +0.1325 better",
        "TranslateGemma-4B",
        "BLEU     1.25 →   0.75 −0.50 worse",
        "chrF++   9.75 →   9.25 −0.50 not clear",
    ]
    assert text.splitlines()[-1].startswith("COMET: demo metric")
    assert messages.scored(None) == "Nothing was measured yet."
    assert measured.scores is not None
    alone = msgspec.structs.replace(measured.scores, labels={"before": measured.scores.labels["before"]}, comparisons={})
    assert messages.score_lines(alone).splitlines()[:2] == ["<pre>MarianMT", "BLEU     1.25"]


def test_a_plot_is_named(mid: View) -> None:
    """The stage, its loss and the step."""
    assert words.bare(messages.plotted(stage_of(mid, "train_marian"))) == "MarianMT training\nLoss 0.36 at step 100"


# -- the end of the run


def test_the_end_of_the_run_follows_from_paces_and_budgets(mid: View) -> None:
    """One stage a resource at a time, each after what it waits for; without pace and budget no end is told."""
    assert messages.run_left_s(mid, now_of(mid)) is None
    stages = tuple(
        dataclasses.replace(s, config=msgspec.structs.replace(s.config, budget_h=hours), progress=None if hours else s.progress)
        for s, hours in zip(mid.stages, (None,) * 5 + (2.0, None, 3.0, 4.0, 5.0, 6.0), strict=True)
    )
    seen = dataclasses.replace(mid, stages=stages)
    marian_s = stage_of(seen, "train_marian").eta_s(now_of(mid))
    assert marian_s == pytest.approx(55)
    assert messages.run_left_s(seen, now_of(mid)) == pytest.approx(20 * 3600 + 55)
    assert messages.run_line(seen, now_of(mid), UTC) == "Run: 20 h left, until Fri 15:04"


def test_two_resources_work_side_by_side(mid: View) -> None:
    """A stage on the CPU does not lengthen a run that waits for the GPU anyway."""
    pending = [
        dataclasses.replace(s, state=msgspec.structs.replace(s.state, status=Pending()), progress=None) for s in mid.stages[:5]
    ]
    seen = dataclasses.replace(
        mid, stages=tuple(dataclasses.replace(s, config=msgspec.structs.replace(s.config, budget_h=1.0)) for s in pending)
    )
    # download, preprocess and transcribe follow each other: 3 h; corpus goes beside them, and evaluate_before before transcribe
    assert messages.run_left_s(seen, T0) == pytest.approx(3 * 3600)


# -- batches


@pytest.mark.parametrize(
    ("settings", "state", "line"),
    [
        ({}, {}, ""),
        ({"effective_batch": 32}, {}, "Batch 32"),
        ({"effective_batch": 32, "micro_batch": 4}, {}, "Batch 32, 4 at a time: as set"),
        ({"effective_batch": 32, "micro_batch": 8}, {"fits": {"m on G": 4}}, "Batch 32, 4 at a time: more did not fit"),
        ({"effective_batch": 32}, {"batch": BatchPlan(micro_batch=1)}, "Batch 32, 1 at a time: more did not fit"),
        ({"effective_batch": 32}, {"batch": BatchPlan(gradient_checkpointing=True)}, "Batch 32, slower to save memory"),
        ({}, {"batch": BatchPlan(eval_batch=8)}, "Batch 8: more did not fit"),
    ],
)
def test_the_batch_and_why_it_is_so(mid: View, settings: dict[str, Any], state: dict[str, Any], line: str) -> None:
    """How many count as one step, how many fit at a time, and what decided it; nothing for a stage without a batch."""
    stage = stage_of(mid, "train_gemma_4b")
    config = msgspec.structs.replace(stage.config, settings=settings)
    told = dataclasses.replace(stage, config=config, state=msgspec.structs.replace(stage.state, **state))
    assert messages.batch_line(told) == line


# -- questions


def test_a_question_says_what_stands_what_is_kept_and_what_follows(mid: View) -> None:
    """Also which stages are left out with it; the buttons name the stage."""
    seen = with_stage(mid, "train_marian", checkpoint=96)
    marian = stage_of(seen, "train_marian")
    assert (
        words.bare(messages.question(CommandKind.SKIP, marian, seen))
        == """\
Skip MarianMT training?
It is at work,
step 100 of 160 (62 %).

Kept: checkpoints up to step 96
Then: TranslateGemma 4B QLoRA
/retry takes it up again."""
    )
    assert [row[0].text for row in messages.choices(CommandKind.SKIP, "n", marian)] == [
        "Save and skip MarianMT training",
        "Skip MarianMT training now",
        "No, leave it as it is",
    ]
    bonus = stage_of(seen, "train_gemma_12b")
    assert "Left out too: Evaluation of the 12B\nThen: TranslateGemma 4B QLoRA" in messages.question(CommandKind.SKIP, bonus, seen)
    assert messages.choices(CommandKind.SKIP, "n", bonus)[0][0].text == "Skip TranslateGemma 12B QLoRA"
    assert "Kept:" not in messages.question(CommandKind.SKIP, bonus, seen), "it has not begun"


def test_the_other_questions(mid: View, done: View) -> None:
    """Retry names what comes back with it; stop says that the phone cannot start it again."""
    bonus = stage_of(done, "train_gemma_12b")
    assert (
        words.bare(messages.question(CommandKind.RETRY, bonus, done))
        == """\
Try TranslateGemma 12B QLoRA again?
It has failed,
step 6 of 80.
Out of memory at micro-batch 1 (the lowest rung of the memory ladder)

It begins again.
Then also: Evaluation of the 12B"""
    )
    assert (
        words.bare(messages.question(CommandKind.PAUSE, None, mid))
        == """\
Pause the run?
At work: MarianMT training

Kept: all; it saves first.
Then: nothing runs until /resume."""
    )
    assert (
        words.bare(messages.question(CommandKind.RESUME, None, done))
        == """\
Go on with the run?
Nothing is at work.

Kept: all that is done.
Then: it goes on where it was saved."""
    )
    assert (
        words.bare(messages.question(CommandKind.STOP, None, mid))
        == """\
Stop Vigil and the run?
At work: MarianMT training

Kept: all; it saves first.
Then: Vigil ends and is silent here.
It cannot be started from the phone."""
    )
    assert words.bare(messages.asked_for(CommandKind.SKIP, stage_of(mid, "train_marian"), T0, UTC, at_once=True)) == (
        "Skip MarianMT training now\nAsked for at 18:00."
    )


# -- what facts tell


def told(one: Fact, seen: View, more: More = messages.NOTHING_MORE) -> Message:
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


@pytest.mark.parametrize("outcome", [Outcome.STOPPED, Outcome.INTERRUPTED])
def test_a_stop_that_was_wanted_is_no_retry(mid: View, outcome: Outcome) -> None:
    """A pause or a power cut is told by its own message."""
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
there is space again

The run waits for disk space
The disk has 900 MB free and 1 GB are to be kept

Free some: it goes on by itself."""
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
    text = "skip train_marian: train_marian stops at its next safe point and is skipped; its checkpoints are kept"
    fields = {"by": "telegram", "ok": True, "id": messages.command_id("abc")}
    done = told(fact(1, "command.answered", text, fields=fields), mid)
    assert (done.replaces, done.kind, done.buttons) == ("ask/abc", "", messages.undo_button(CommandKind.SKIP, "abc"))
    assert done.html.startswith("✅ <b>skip train_marian</b>\ntrain_marian stops at its next safe point")
    refused = told(fact(2, "command.answered", "pause: the run is paused already", fields=fields | {"ok": False}), mid)
    assert (refused.html, refused.buttons) == ("❌ <b>pause</b>\nRefused: the run is paused already", ())
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
    assert (red.ring, words.bare(red.html)) == (Ring.RED, "🔴 The GPU has 93 °C\nLook after its air; /pause lets it cool.")


def test_the_morning_digest(mid: View) -> None:
    """What was done and what went wrong in 24 hours, where it stands; one a day."""
    digest = messages.digest(mid, HOST, now_of(mid), UTC)
    assert digest.key == "20260212-180000/digest/2026-02-12"
    assert (
        words.bare(digest.html)
        == """\
Vigil demo · 5 of 11 done

In 24 h: 5 stages done,
3 troubles:
18:01 replay source is not set: trained without replay
18:02 train_whisper: killed by signal 9; tried again in 20 s
19:03 run 20260212-180000 goes on after a restart of the machine

⏳ 6/11 Whisper LoRA training
Goes on next: killed by signal 9

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


# -- the form


def test_our_lines_fit_a_phone(mid: View, done: View, measured: More) -> None:
    """40 columns, one emoji a line at most, for all that is ours; what stages and the journal say may wrap."""
    now = now_of(mid)
    name = "A pipeline with a name of sixty characters, which is the most"
    long = with_run(mid, pipeline=msgspec.structs.replace(mid.run.pipeline, name=name), disk_hold="")
    long = with_stage(long, "train_marian", step=1_123_456, steps=2_123_456, step_s=12.3456, checkpoint=1_123_400)
    texts = [
        *(messages.status(seen, HOST, now, UTC, more_of(mid)) for seen in (mid, long, with_run(mid, paused=True))),
        messages.card(long, HOST, now, UTC, more_of(mid)).html,
        messages.stages(mid),
        messages.stages(done),
        messages.help_text(),
        messages.ping(mid, now, UTC),
        messages.welcome(long).html,
        messages.score_lines(measured.scores),
        messages.unreadable(),
        *(messages.question(kind, None, mid) for kind in CommandKind if kind not in ("skip", "retry")),
        *(messages.question(CommandKind.SKIP, stage, long) for stage in long.stages[5:9]),
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
            assert words.cells(line) <= messages.COLUMNS, line
            assert sum(unicodedata.east_asian_width(char) == "W" for char in line) <= 1, line


def test_buttons_fit_telegram(mid: View) -> None:
    """What a tap sends back has at most 64 bytes, for the longest name that a stage may have."""
    number = messages.nonce("run", 1)
    config = msgspec.structs.replace(mid.stages[6].config, name="a" * 41, title="")
    stage = dataclasses.replace(mid.stages[6], config=config)
    rows = [*messages.picks(CommandKind.RETRY, [stage])]
    rows += [row for kind in CommandKind for row in (*messages.choices(kind, number, stage), *messages.undo_button(kind, number))]
    assert all(1 <= len(button.data.encode()) <= 64 and len(button.text) <= 40 for row in rows for button in row)


def assert_sendable(text: str) -> None:
    """Telegram would take it: well-formed, neither empty nor too long, encodable."""
    shown, _entities = markup.parse(text)
    assert 0 < markup.units(shown) <= 4096
    text.encode()


@pytest.mark.parametrize("text", ["loss<0.5", "<module>", "a && b", "&lt;", "<b>", "</pre>", '"quoted"', "x\n\ty"])
def test_what_is_not_ours_arrives_as_typed(text: str) -> None:
    """Telegram's own rules read it back to the letter."""
    assert markup.parse(messages.escaped(text))[0] == text.strip()
    assert words.bare(messages.escaped(text)) == text


def test_what_telegram_refuses_is_taken_out() -> None:
    """Control characters, and halves of a surrogate pair, which cannot be sent at all."""
    assert messages.escaped("a\x00b\x1b[1mc\ud83d") == "ab[1mc?"


@pytest.mark.parametrize(
    ("units", "text"), [(9, "<b>🦜🦜</b>abcde"), (8, "<b>🦜🦜</b>abc…"), (4, "<b>🦜…</b>"), (3, "<b>🦜…</b>"), (2, "<b>…</b>")]
)
def test_a_cut_never_halves_an_emoji(units: int, text: str) -> None:
    """Counted in UTF-16, in which an emoji is two; the tags are closed."""
    assert messages.cut_html("<b>🦜🦜</b>abcde", units) == text
    plain = words.bare("<b>🦜🦜</b>abcde")
    assert words.cut_utf16(plain, units) == words.bare(text)


_PIECES = st.lists(st.tuples(st.sampled_from(["", "b", "pre", "i"]), st.text(max_size=30)), max_size=8)


@given(_PIECES, st.integers(1, 60))
def test_any_cut_is_well_formed_and_short_enough(pieces: list[tuple[str, str]], units: int) -> None:
    """Whatever is written in it: what is shown is a beginning of the whole, and an ellipsis says that it was cut."""
    whole = "".join(f"<{tag}>{messages.escaped(text)}</{tag}>" if tag else messages.escaped(text) for tag, text in pieces)
    cut = messages.cut_html(whole, units)
    shown, all_of_it = words.bare(cut), words.bare(whole)
    markup.parse(cut)
    assert words.utf16_units(shown) <= units
    assert shown == all_of_it or (shown.endswith("…") and all_of_it.startswith(shown[:-1]))


def test_a_waiting_stage_tells_what_for(mid: View) -> None:
    """Space that a full disk asked for is named with its size."""
    waiting = BackingOff(
        since=0, delay_s=300, due_monotonic_s=0, boot="", reason="disk full", outcome=Outcome.DISK_FULL, needed_bytes=12_000_000_000
    )
    seen = with_stage(mid, "train_whisper", {"status": waiting})
    assert stage_of(seen, "train_whisper").state.state is Status.BACKING_OFF
    assert "\nWaits for 12 GB of free space: disk full\n" in messages.status(seen, HOST, now_of(mid), UTC)


def test_a_stage_that_was_stopped_waits_for_nothing_but_the_run(mid: View) -> None:
    """A pause is no trouble: the card, /status and /stages say that it is saved, not that something is tried again."""
    stopped = BackingOff(since=0, delay_s=0, due_monotonic_s=0, boot="", reason="a stop was asked for", outcome=Outcome.STOPPED)
    seen = with_run(with_stage(mid, "train_whisper", {"status": stopped}), paused=True)
    shown = [messages.status(seen, HOST, now_of(mid), UTC), messages.card(seen, HOST, now_of(mid), UTC).html]
    assert all("Whisper LoRA training</b>\nSaved; it goes on with the run\n" in text for text in shown)
    assert "\n   Saved; it goes on with the run\n" in messages.stages(seen)


def test_keys_are_of_the_run(example: ExampleRun) -> None:
    """The first fact of a new run in the same folder is not taken for that of the old one."""
    example.tell("run.started", "run started")
    seen = live(view.read(example.save()))
    other = with_run(seen, id="20270101-000000")
    assert told(seen.facts[0], seen).key != told(seen.facts[0], other).key


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (None, "Starting"),
        (Progress(at=T0, done=12, total=30, unit="recordings"), "12 of 30 recordings"),
        (Progress(at=T0, done=1, message="loading the model"), "loading the model"),
        (Progress(at=T0, done=0), "At work"),
    ],
)
def test_a_stage_without_steps_tells_what_it_counts(mid: View, progress: Progress | None, line: str) -> None:
    """Its own unit, or what it is busy with; no line about a checkpoint that it does not make."""
    seen = with_stage(mid, "download", {"status": Running(since=0)}, progress=progress, rate=None)
    lines = words.bare(messages.status(seen, {}, T0, UTC)).splitlines()
    assert line in lines[lines.index("🔵 1/11 Sermon download") :][:3]
    assert "Saved: nothing yet" not in lines[: lines.index(line)]


@pytest.mark.parametrize(("alive", "begin"), [(None, "Whether Vigil is running cannot be told"), (False, "Vigil is not running;")])
def test_a_daemon_that_is_not_seen_promises_nothing(mid: View, alive: bool | None, begin: str) -> None:
    """Said in the words of `vigil status`; no end of the run, no uptime."""
    text = words.bare(messages.status(dataclasses.replace(mid, alive=alive), {}, now_of(mid), UTC))
    assert text.splitlines()[1].startswith(begin)
    assert not {"Run", "Up"} & {line.partition(" ")[0].rstrip(":") for line in text.splitlines()}

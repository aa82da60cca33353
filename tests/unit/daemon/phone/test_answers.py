"""What is answered, to the letter."""

from __future__ import annotations

import dataclasses
from datetime import UTC
from typing import Any

import msgspec
import pytest

from daemon import words
from daemon.phone import answers, markup, messages, standing
from daemon.phone.standing import More
from daemon.view import View
from state.contract import BatchPlan, Outcome, Progress
from state.machine import Status
from state.snapshot import BackingOff, Intent, Running
from state.workspace import Workspace
from tests.conftest import T0
from tests.unit.daemon.full_scores import enriched
from tests.unit.daemon.phone_views import HOST, fact, more_of, now_of, stage_of, with_run, with_stage


def test_status(mid: View) -> None:
    """Stage n of m, share, step, pace, both ends, loss, batch, checkpoint, machine, what is next, uptime and restarts."""
    seen = with_stage(mid, "train_marian", {"batch": BatchPlan(micro_batch=8), "fits": {"m on RTX": 16}}, checkpoint=96, steps=160)
    text = words.bare(answers.status(seen, HOST, now_of(mid), UTC, more_of(mid)))
    assert (
        text
        == """\
Vigil demo · 5 of 11 done

⏳ 6/11 Whisper LoRA training
Killed by signal 9
Tried again as soon as it can

🔵 7/11 MarianMT training
██████░░░░ 62 %
Step 100 of 160 · 1.0 s/step
Stage: 55 s left, until 19:04
Loss 0.36 ██▇▇▆▆▅▅▄▄▃▃▂▂▁▁
Batch 32, 8 at a time: more did not fit
Saved: step 96, 12 min ago
Attempt 2; before: an interruption

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
        words.bare(answers.status(done, {}, done.run.finished_at or 0, UTC))
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
    text = words.bare(answers.status(with_run(mid, **changes), HOST, now_of(mid), UTC))
    assert text.splitlines()[1] == line
    assert "Run:" not in text


def test_a_stage_that_does_not_work_shows_no_pace(mid: View) -> None:
    """Stopping, or without a process: said, instead of a share that no longer moves."""
    intent = Intent(skip=True, reason="skipped by the owner (telegram)", at=0, due_monotonic_s=0, boot="")
    stopping = with_stage(mid, "train_marian", {"status": Running(since=0, intent=intent)})
    gone = with_stage(mid, "train_marian", working=False)
    for seen, line in (
        (stopping, "Stopping: skipped by you"),
        (gone, "Its process is gone; the next run goes on"),
    ):
        text = words.bare(answers.status(seen, HOST, now_of(mid), UTC))
        assert f"🔵 7/11 MarianMT training\n{line}\n\n" in text


def test_stages(done: View) -> None:
    """Every stage in one line, with what it took; why, under one that failed or was left out."""
    assert (
        words.bare(answers.stages(done))
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
        answers.events(dataclasses.replace(mid, facts=(*mid.facts, hidden)), UTC, 5)
        == """\
<b>Thu 12 Feb</b>
18:01 ! Whisper LoRA training: replay source is not set: trained without replay
18:02 ! Whisper LoRA training: killed by signal 9; tried again in 20 s
18:02 MarianMT training started (attempt 1)
19:03 the run goes on after a restart of the machine
19:03 MarianMT training started (attempt 2)"""
    )
    assert answers.events(dataclasses.replace(mid, facts=())) == "Nothing has happened yet."


def test_log(mid: View) -> None:
    """As typed, without colours; a long one ends with its newest lines."""
    marian = stage_of(mid, "train_marian")
    assert answers.log(marian, more_of(mid).output["train_marian"]) == (
        "<b>MarianMT training</b>, last lines\n<pre>loss&lt;0.5\n100 % done</pre>"
    )
    assert answers.log(marian, None) == "<b>MarianMT training</b>: what it printed cannot be read just now."
    assert answers.log(marian, []) == "<b>MarianMT training</b> has printed nothing yet."
    long = answers.log(marian, [f"{number} " + "🦜&" * 100 for number in range(60)])
    assert words.utf16_units(words.bare(long)) <= markup.TEXT_UNITS
    assert "\n59 🦜&amp;" in long


def test_ping_help_welcome(mid: View) -> None:
    """Alive, and since when the run is silent; every command once; a welcome that promises to ask."""
    assert answers.ping(mid, now_of(mid), UTC) == "Here, at 19:04.\nThe run spoke 5 s ago."
    assert answers.ping(None, T0, UTC) == "Here, at 18:00.\nThe run has said nothing yet."
    assert (
        answers.help_text()
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
        answers.welcome(mid).html
        == """\
Vigil watches over
<b>Vigil demo</b>.
It tells you what matters
and asks before it acts.

/status looks, /help lists the rest."""
    )


def test_the_scores_fit_a_phone(measured: More) -> None:
    """Before, after, the change and what it is worth, in 40 columns; the demo's own metric is named."""
    text = words.bare(answers.scored(measured.scores))
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
    assert answers.scored(None) == "Nothing was measured yet."
    assert measured.scores is not None
    alone = msgspec.structs.replace(measured.scores, labels={"before": measured.scores.labels["before"]}, comparisons={})
    assert standing.score_lines(alone).splitlines()[:2] == ["<pre>MarianMT", "BLEU     1.25"]


def test_the_verdicts_fit_a_phone(finished_workspace: Workspace) -> None:
    """Each model's in short before the scores, in 40 columns, its name in bold; it fits a caption, and COMET's origin is said."""
    found = enriched(finished_workspace)
    assert standing.verdict_lines(found) == [
        "<b>MarianMT</b> is better than before:",
        "chrF++\u00a0+13.25; better in gospels,",
        "poetry; on general sentences worse:",
        "chrF++\u00a0−0.84.",
        "<b>TranslateGemma-4B</b> is not distinguishable",
        "from before: chrF++\u00a0−0.50.",
    ]
    assert all(words.cells(words.bare(line)) <= markup.COLUMNS for line in standing.verdict_lines(found))
    table = words.bare(standing.score_lines(found)).splitlines()
    assert table[4] == "Kiwi   0.7000 → 0.8125 +0.1125 not clear"
    assert max(map(words.cells, table)) <= markup.COLUMNS
    caption = answers.scored(found)
    assert words.utf16_units(words.bare(caption)) <= markup.CAPTION_UNITS
    places = [caption.index(part) for part in ("The scores", "is better than before", "COMET: demo metric", "<pre>MarianMT")]
    assert places == sorted(places)


def test_a_plot_is_named(mid: View) -> None:
    """The stage, its loss and the step."""
    assert words.bare(answers.plotted(stage_of(mid, "train_marian"))) == "MarianMT training\nLoss 0.36 at step 100"


def test_a_waiting_stage_tells_what_for(mid: View) -> None:
    """Space that a full disk asked for is named with its size."""
    waiting = BackingOff(
        since=0, delay_s=300, due_monotonic_s=0, boot="", reason="disk full", outcome=Outcome.DISK_FULL, needed_bytes=12_000_000_000
    )
    seen = with_stage(mid, "train_whisper", {"status": waiting})
    assert stage_of(seen, "train_whisper").state.state is Status.BACKING_OFF
    assert "\nWaits for 12 GB of free space: disk full\n" in answers.status(seen, HOST, now_of(mid), UTC)


def test_a_stage_that_was_stopped_waits_for_nothing_but_the_run(mid: View) -> None:
    """A pause is no trouble: the card, /status and /stages say that it is saved, not that something is tried again."""
    stopped = BackingOff(since=0, delay_s=0, due_monotonic_s=0, boot="", reason="a stop was asked for", outcome=Outcome.STOPPED)
    seen = with_run(with_stage(mid, "train_whisper", {"status": stopped}), paused=True)
    shown = [answers.status(seen, HOST, now_of(mid), UTC), messages.card(seen, HOST, now_of(mid), UTC).html]
    assert all("Whisper LoRA training</b>\nSaved; it goes on with the run\n" in text for text in shown)
    assert "\n   Saved; it goes on with the run\n" in answers.stages(seen)


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
    lines = words.bare(answers.status(seen, {}, T0, UTC)).splitlines()
    assert line in lines[lines.index("🔵 1/11 Sermon download") :][:3]
    assert "Saved: nothing yet" not in lines[: lines.index(line)]


@pytest.mark.parametrize(("alive", "begin"), [(None, "Whether Vigil is running cannot be told"), (False, "Vigil is not running;")])
def test_a_daemon_that_is_not_seen_promises_nothing(mid: View, alive: bool | None, begin: str) -> None:
    """Said in the words of `vigil status`; no end of the run, no uptime."""
    text = words.bare(answers.status(dataclasses.replace(mid, alive=alive), {}, now_of(mid), UTC))
    assert text.splitlines()[1].startswith(begin)
    assert not {"Run", "Up"} & {line.partition(" ")[0].rstrip(":") for line in text.splitlines()}

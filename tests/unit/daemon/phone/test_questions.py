"""What is asked before something acts: every word and button."""

from __future__ import annotations

import dataclasses
from datetime import UTC

import msgspec

from daemon import words
from daemon.phone import questions
from daemon.view import View
from state.contract import CommandKind
from tests.conftest import T0
from tests.unit.daemon.phone_views import stage_of, with_stage


def test_a_question_says_what_stands_what_is_kept_and_what_follows(mid: View) -> None:
    """Also which stages are left out with it; the buttons name the stage."""
    seen = with_stage(mid, "train_marian", checkpoint=96)
    marian = stage_of(seen, "train_marian")
    assert (
        words.bare(questions.question(CommandKind.SKIP, marian, seen))
        == """\
Skip MarianMT training?
It is at work,
step 100 of 160 (62 %).

Kept: checkpoints up to step 96
Then: TranslateGemma 4B QLoRA
/retry takes it up again."""
    )
    assert [row[0].text for row in questions.choices(CommandKind.SKIP, "n", marian)] == [
        "Save and skip MarianMT training",
        "Skip MarianMT training now",
        "No, leave it as it is",
    ]
    bonus = stage_of(seen, "train_gemma_12b")
    assert "Left out too: Evaluation of the 12B\nThen: TranslateGemma 4B QLoRA" in questions.question(CommandKind.SKIP, bonus, seen)
    assert questions.choices(CommandKind.SKIP, "n", bonus)[0][0].text == "Skip TranslateGemma 12B QLoRA"
    assert "Kept:" not in questions.question(CommandKind.SKIP, bonus, seen), "it has not begun"


def test_the_other_questions(mid: View, done: View) -> None:
    """Retry names what comes back with it; stop says that the phone cannot start it again."""
    bonus = stage_of(done, "train_gemma_12b")
    assert (
        words.bare(questions.question(CommandKind.RETRY, bonus, done))
        == """\
Try TranslateGemma 12B QLoRA again?
It has failed,
step 6 of 80.
Out of memory at micro-batch 1 (the lowest rung of the memory ladder)

It begins again.
Then also: Evaluation of the 12B"""
    )
    assert (
        words.bare(questions.question(CommandKind.PAUSE, None, mid))
        == """\
Pause the run?
At work: MarianMT training

Kept: all; it saves first.
Then: nothing runs until /resume."""
    )
    assert (
        words.bare(questions.question(CommandKind.RESUME, None, done))
        == """\
Go on with the run?
Nothing is at work.

Kept: all that is done.
Then: it goes on where it was saved."""
    )
    assert (
        words.bare(questions.question(CommandKind.STOP, None, mid))
        == """\
Stop Vigil and the run?
At work: MarianMT training

Kept: all; it saves first.
Then: Vigil ends and is silent here.
It cannot be started from the phone."""
    )
    assert words.bare(questions.asked_for(CommandKind.SKIP, stage_of(mid, "train_marian"), T0, UTC, at_once=True)) == (
        "Skip MarianMT training now\nAsked for at 18:00."
    )


def test_buttons_fit_telegram(mid: View) -> None:
    """What a tap sends back has at most 64 bytes, for the longest name that a stage may have."""
    number = questions.nonce("run", 1)
    config = msgspec.structs.replace(mid.stages[6].config, name="a" * 41, title="")
    stage = dataclasses.replace(mid.stages[6], config=config)
    rows = [*questions.picks(CommandKind.RETRY, [stage])]
    rows += [row for kind in CommandKind for row in (*questions.choices(kind, number, stage), *questions.undo_button(kind, number))]
    assert all(1 <= len(button.data.encode()) <= 64 and len(button.text) <= 40 for row in rows for button in row)

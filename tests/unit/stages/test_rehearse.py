"""A stage cut down to a few items: which ones, and when it is killed. Whole rehearsals: tests/process/test_rehearse.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest

from stages import evaluate, rehearse
from stages.data_order import DataOrder, worst_case
from stages.eval_results import TestSet
from stages.rehearse import STEPS, begun, few_examples, few_sentences, in_place_of, mean_padded, padded, saved
from stages.scoring import Sentence
from stages.training import train
from stages.training_loop import Loop
from state.contract import CheckpointSaved, Metric, Note, Progress
from state.settings import Evaluate, Training, TranslationModel
from tests.process.tiny_training import context, recipe
from tests.stage_attempts import events, notes

EFFECTIVE_BATCH = 16


def sizes(count: int) -> np.ndarray:
    """Lengths as verses have them: many middling ones, a few very long."""
    draw = np.random.default_rng(4)
    return np.minimum(np.exp(draw.normal(3.3, 0.5, (count, 2))), 250).astype(np.int64) + 1


def test_the_longest_examples_are_among_the_few() -> None:
    """The probe of the cut training meets the same worst case as that of the whole one, at every micro-batch."""
    whole = sizes(5000)
    chosen = few_examples(whole, EFFECTIVE_BATCH)
    assert len(chosen) == STEPS * EFFECTIVE_BATCH
    assert len(set(chosen)) == len(chosen)
    for micro_batch in (EFFECTIVE_BATCH, 4, 1):
        real = whole[list(worst_case(whole, micro_batch, EFFECTIVE_BATCH))].max(axis=0)
        here = whole[chosen][list(worst_case(whole[chosen], micro_batch, EFFECTIVE_BATCH))].max(axis=0)
        assert here.sum() >= 0.9 * real.sum(), micro_batch


def test_the_other_steps_are_like_the_mean_step() -> None:
    """Half of the batches are padded to what a mean batch of the whole training is, so their time tells of it; one is far longer.

    Of six steps four run clean of warm-up and save: at least one of those is a usual one, in whatever order they come.
    """
    whole = sizes(5000)
    few = DataOrder(whole[few_examples(whole, EFFECTIVE_BATCH)], EFFECTIVE_BATCH, 1, seed=0)
    mean = mean_padded(DataOrder(whole, EFFECTIVE_BATCH, 3, seed=0))
    found = sorted(padded(few, step) / mean for step in range(few.steps))
    assert found[-1] > 2
    assert sum(0.7 < share < 1.4 for share in found) >= STEPS // 2, found


def test_few_data_are_used_again() -> None:
    """With fewer examples than the steps need, as behind a stage that was cut down, batches are full all the same."""
    chosen = few_examples(sizes(5), EFFECTIVE_BATCH)
    assert len(chosen) == STEPS * EFFECTIVE_BATCH
    assert set(chosen) == set(range(5))


def sentence(text: str) -> Sentence:
    return Sentence(text[:16], "Ruth", 1, 1, "history", "KJV", text, ("x",))


def test_the_longest_sentences_make_the_first_batch() -> None:
    """A third of the few are the longest there are, the others near the mean; every edition's sentence of a text stays."""
    texts = [f"{number} " + "a" * number for number in range(1, 201)]
    kept = few_sentences([sentence(text) for text in texts for _edition in range(2)], batch_size=8)
    lengths = sorted({len(one.source) for one in kept}, reverse=True)
    assert len(kept) == 2 * 3 * 8
    assert lengths[:8] == sorted((len(text) for text in texts), reverse=True)[:8]
    assert all(80 < length < 125 for length in lengths[8:])


@pytest.mark.parametrize("count", [1, 5, 24])
def test_a_small_test_set_stays_whole(count: int) -> None:
    """What is few already is not cut."""
    everything = [sentence(f"text {number}") for number in range(count)]
    assert few_sentences(everything, batch_size=8) == everything


def test_the_general_sentences_are_cut_by_the_same_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the verses are left and a tenth of the general sentences: what is left out is the same number of times as much for
    each model and for COMET. Without `forgetting` none is translated and none counted."""
    verses = [sentence(f"{number} " + "a" * number) for number in range(240)]
    counts = dict.fromkeys(TestSet.__struct_fields__, 0) | {"path": "x", "sha256": "x", "genres": {}, "unique_sources": 240}
    whole, cuts = TestSet(**counts), []
    for forgetting in (True, False):
        ctx = context(tmp_path / str(forgetting))
        with monkeypatch.context() as patched:
            patched.setattr(evaluate, "read_test_set", lambda *_: (whole, verses))
            for owner, name in (
                (evaluate, "rows_to_score"),
                (evaluate, "take_over"),
                (evaluate.forgetting, "sentences"),
            ):
                patched.setattr(owner, name, getattr(owner, name))  # put back afterwards
            rehearse.cut_sentences(evaluate, {})
            told, kept = evaluate.read_test_set(ctx, Evaluate(label="x", models=(), batch_size=8, forgetting=forgetting))
            some = evaluate.forgetting.sentences()
        (note,) = [event for event in events(ctx) if isinstance(event, Note)]
        cuts.append((len(kept), len(some), note.fields["here"], note.fields["whole"], told.unique_sources + len(some)))
    assert cuts == [(24, 20, 44, 440, 440), (24, 0, 24, 240, 240)], "the last decides whether CTranslate2 pays: as in the whole run"
    assert rehearse.spread(verses, 0.0001) == verses[:1]
    assert rehearse.spread(verses, 1.0) == verses


def test_the_base_stands_in_for_what_was_not_made() -> None:
    """An adapter that is missing is left off, a model that is missing is the one its training starts from; what is made stays."""
    adapter = TranslationModel(name="4B", kind="gemma", model="base", adapter="fine_tuned", trained_by="train_gemma")
    whole = TranslationModel(name="Marian", kind="marian", model="fine_tuned_marian_mi", trained_by="train_marian")
    bases = {"train_marian": "opus", "train_gemma": "base"}
    assert in_place_of(adapter, bases, made=True) == adapter
    assert in_place_of(adapter, bases, made=False) == TranslationModel(name="4B", kind="gemma", model="base")
    assert in_place_of(whole, bases, made=False) == TranslationModel(name="Marian", kind="marian", model="opus")
    assert in_place_of(whole, {}, made=False) == whole


def test_the_kill_waits_for_something_to_resume_from() -> None:
    """A training dies after a checkpoint; another stage when some of its items are done and others are left."""
    checkpoint = CheckpointSaved(at=1.0, step=2, path="p")
    progress = [Progress(at=1.0, done=count, total=total) for count, total in ((0, 3), (0.5, 3), (1, 3), (3, 3), (2, None))]
    assert saved(checkpoint)
    assert not any(map(saved, progress))
    assert [begun(event) for event in progress] == [False, False, True, False, True]
    assert not begun(checkpoint)


def test_the_kill_comes_once_and_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL at the first event after the checkpoint, with the peaks told before; the next attempt is left alone."""
    killed: list[tuple[int, int]] = []
    monkeypatch.setattr(rehearse.os, "kill", lambda pid, number: killed.append((pid, number)))
    ctx = context(tmp_path)
    rehearse.kill_once(ctx, saved)
    ctx.metric({"loss": 1.0}, 1)
    ctx.emit(CheckpointSaved(at=1.0, step=1, path="p"))
    assert not killed
    ctx.metric({"loss": 1.0}, 2)
    assert killed == [(rehearse.os.getpid(), 9)]
    assert "killed here by SIGKILL" in notes(ctx)
    assert any(isinstance(event, Metric) and event.values.get("peak_memory_bytes", 0) > 1e6 for event in events(ctx))

    again = context(tmp_path, attempt=2)
    rehearse.kill_once(again, saved)
    again.emit(CheckpointSaved(at=1.0, step=2, path="p"))
    again.metric({"loss": 1.0}, 3)
    assert len(killed) == 1


def test_a_save_is_told_before_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kill at the next event finds a checkpoint; that training itself had to wait for the copy alone is told beside it."""
    monkeypatch.setattr(Loop, "save", Loop.save)  # put back afterwards
    rehearse.wait_for_saves()
    ctx = context(tmp_path)
    plan = Training(model="tiny", epochs=1, effective_batch=8, checkpoint_every_steps=3, evaluations=1)
    train(ctx, plan, recipe())
    told = [event for event in events(ctx) if isinstance(event, CheckpointSaved | Metric) and event.step]
    steps = [
        (type(event) is CheckpointSaved, event.step)
        for event in told
        if isinstance(event, CheckpointSaved) or "loss" in event.values
    ]
    assert [step for saved, step in steps if saved] == [3, 6, 8]
    assert all(steps[steps.index((True, step)) - 1] == (False, step) for step in (3, 6, 8))
    first = next(event for event in told if isinstance(event, CheckpointSaved))
    assert first.blocking_s is not None
    assert first.blocking_s < first.seconds


def test_the_peak_is_this_process_s_own() -> None:
    """Memory that was held and given back still counts."""
    rest = rehearse.own_peak_bytes() - psutil.Process().memory_info().rss
    held = np.ones((rest + (300 << 20)) // 8)
    del held
    assert rehearse.own_peak_bytes() - psutil.Process().memory_info().rss > 200 << 20

"""Saves in the background: training goes on, nothing but a whole checkpoint counts, and who leaves waits for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages import training_loop
from stages.recipe import Batch
from stages.training import train
from stages.training_state import Snapshot
from state.contract import CheckpointSaved, DiskFullError, StopRequested
from state.settings import Training
from tests.process.tiny_training import changed, context, recipe, token_loss, weights
from tests.stage_attempts import events

SETTINGS = Training(model="tiny", epochs=1, effective_batch=8, learning_rate=1e-2, checkpoint_every_steps=2, evaluations=1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """The weights that a training ends with."""
    plan = recipe()
    train(context(tmp_path_factory.mktemp("whole")), SETTINGS, plan)
    return weights(plan.model)


def saved(ctx: training_loop.StageContext) -> list[int]:
    """The steps of the checkpoints that were told of."""
    return [event.step for event in events(ctx) if isinstance(event, CheckpointSaved)]


class Slow:
    """A fill that waits for `gate` before the checkpoint of `step` is written, then acts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], None] = lambda: None) -> None:
        self.gate, self.began, self.calls = threading.Event(), threading.Event(), 0
        write = training_loop.Frozen.write

        def slow(frozen: training_loop.Frozen, folder: Path) -> None:
            if folder.name == f".step-{step:08d}.tmp":
                self.began.set()
                assert self.gate.wait(60)
                act()
            write(frozen, folder)

        monkeypatch.setattr(training_loop.Frozen, "write", slow)

    def in_step_3(self, model: torch.nn.Module) -> bool:
        """Called with each batch: whether it is that of step 3, after the probe's and two more; the write of step 2 has begun."""
        self.calls += model.training
        return model.training and self.calls == 4 and self.began.wait(60)


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, undisturbed: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of step 2 ends only after step 3 has begun; the save of step 4 waits for it; the bits are those of any training."""
    plan, ctx = recipe(), context(tmp_path)
    slow, seen = Slow(monkeypatch, 2), []

    def watching(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if slow.in_step_3(model):
            seen.append([path.name for path in ctx.checkpoints.folder.glob("step-*")])
            slow.gate.set()
        return token_loss(model, batch)

    trained = train(ctx, SETTINGS, changed(plan, token_loss=watching))
    assert seen == [[]]
    assert saved(ctx) == [2, 4, 6, 8]
    first = next(event for event in events(ctx) if isinstance(event, CheckpointSaved))
    assert first.blocking_s < first.seconds, "while step 3 ran, the write of step 2 blocked nobody"
    assert trained.metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(plan.model), undisturbed)
    assert [path.name for path in sorted(ctx.checkpoints.folder.iterdir())] == ["step-00000006", "step-00000008"]


def test_a_stop_waits_for_the_write_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop while step 2 is written: it is whole when the attempt ends, and nothing half written is left."""
    ctx, plan = context(tmp_path), recipe()
    slow = Slow(monkeypatch, 2)

    def stopping(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if slow.in_step_3(model):
            ctx.request_stop()
            slow.gate.set()
        return token_loss(model, batch)

    with pytest.raises(StopRequested):
        train(ctx, SETTINGS, changed(plan, token_loss=stopping))
    assert saved(ctx) == [2]
    assert ctx.checkpoints.newest_valid().step == 2
    assert not list(ctx.checkpoints.folder.glob(".step-*"))


def test_a_failed_write_is_raised_and_costs_no_older_checkpoint(
    tmp_path: Path, undisturbed: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the background: the attempt ends as DISK_FULL, and the next one goes on from the checkpoint before."""
    ctx = context(tmp_path)

    def full() -> None:
        raise DiskFullError("no space", 1000)

    slow = Slow(monkeypatch, 4, full)
    slow.gate.set()
    with pytest.raises(DiskFullError):
        train(ctx, SETTINGS, recipe())
    assert [path.name for path in ctx.checkpoints.folder.iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    plan = recipe()
    assert train(context(tmp_path, attempt=2), SETTINGS, plan).metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(plan.model), undisturbed)


def test_another_error_waits_for_the_write_and_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the training while step 2 is written leaves as itself, and the checkpoint is whole."""
    ctx, slow = context(tmp_path), Slow(monkeypatch, 2)

    def failing(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if slow.in_step_3(model):
            threading.Timer(0.05, slow.gate.set).start()
            raise KeyError("a fault of the training")
        return token_loss(model, batch)

    with pytest.raises(KeyError, match="a fault"):
        train(ctx, SETTINGS, changed(recipe(), token_loss=failing))
    assert saved(ctx) == [2]
    assert ctx.checkpoints.newest_valid().step == 2


def test_a_kill_in_the_middle_of_a_write_leaves_the_older_one(tmp_path: Path, undisturbed: torch.Tensor) -> None:
    """SIGKILL while step 4 is written in the background: step 2 is resumed from, and the end is the same to the bit."""
    child = os.fork()
    if child == 0:
        Slow(pytest.MonkeyPatch(), 4, lambda: os.kill(os.getpid(), 9)).gate.set()
        train(context(tmp_path), SETTINGS, recipe())
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -9
    ctx, plan = context(tmp_path, attempt=2), recipe()
    assert (ctx.checkpoints.folder / ".step-00000004.tmp").is_dir()
    assert ctx.checkpoints.newest_valid().step == 2
    assert train(ctx, SETTINGS, plan).metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(plan.model), undisturbed)


def test_without_memory_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoints are the same, each durable before the next step begins."""
    monkeypatch.setattr(training_loop, "Snapshot", lambda: Snapshot(lambda: 0))
    ctx, newest = context(tmp_path), []

    def looking(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if model.training:
            newest.append(ctx.checkpoints.newest_step())
        return token_loss(model, batch)

    train(ctx, SETTINGS, changed(recipe(), token_loss=looking))
    assert newest[-8:] == [None, None, 2, 2, 4, 4, 6, 6]
    assert saved(ctx) == [2, 4, 6, 8]

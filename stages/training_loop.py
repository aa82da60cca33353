"""Vigil's own loop variables around transformers' Trainer: what happens before, in and after each optimizer step.

Trainer (or trl's SFTTrainer) owns the optimizer, mixed precision, gradient checkpointing and placement. Ours are
the data order, the micro-batches, evaluation, checkpoints, the stop and the watch over the loss; its own saving,
evaluation and logging are off. Trainer counts the steps of one attempt, `Loop.step` those of the whole training.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import torch
from msgspec.structs import replace

from stages import training_rules as rules
from stages.data_order import DataOrder, worst_case
from stages.ledger import Entry, Ledger
from stages.recipe import Recipe
from stages.runtime import StageContext
from stages.training_gradient import Gradients, StepLoss, device_name, drop_gradients, optimizer_ballast
from stages.training_state import (
    OPTIMIZER,
    WEIGHTS,
    BestWeights,
    Frozen,
    Position,
    Scored,
    Snapshot,
    checkpoint_bytes,
    finite,
    newest_healthy,
    save_optimizer,
    save_weights,
    trainable,
)
from state.checkpoints import MANIFEST, Checkpoint, Manifest
from state.contract import DivergedError, StopRequested
from state.settings import Training

T = TypeVar("T")

QUIET_S = 900.0
"""Announced before a phase whose length is not known: the probe, a save, a score of the stage's own."""


class NothingLeft(Exception):
    """The training is at its end already: the way out of Trainer before its first step."""


class Loop:
    """One attempt's share of a training, from `position` on."""

    def __init__(
        self,
        ctx: StageContext,
        settings: Training,
        recipe: Recipe,
        order: DataOrder,
        position: Position,
        ledger: Ledger,
        best: BestWeights,
    ) -> None:
        self.ctx, self.settings, self.recipe, self.order = ctx, settings, recipe, order
        self.position = position
        self.ledger = ledger
        self.best = best
        self.skipped = {index for index, example in enumerate(recipe.train.examples) if example.id in set(ctx.spec.skip_examples)}
        self.evaluation_steps = rules.evaluation_steps(order.steps, settings.evaluations)
        self.metrics_every = rules.metric_steps(order.steps)
        self.interval_s = settings.checkpoint_every_s
        self.gradients: Gradients
        self.optimizer: torch.optim.Optimizer
        self._first_step = position.step
        self._saved = (position.step, position.scores) if position.step else None
        self._started = time.monotonic()
        self._seconds_before = position.seconds
        self._saved_at = time.monotonic()
        self._last: tuple[StepLoss, Entry] | None = None
        self._norm = 0.0
        self._told = (time.monotonic(), position.tokens_seen)
        self._losses: list[float] = []
        self._snapshot = Snapshot()
        self._writer = ThreadPoolExecutor(1, "save")
        self._writing: Future[tuple[Checkpoint, float]] | None = None
        self._blocked_s = 0.0

    @property
    def step(self) -> int:
        """Optimizer steps done, over all attempts."""
        return self.position.step

    @property
    def finished(self) -> bool:
        """Every step is done and scored, or the quality gate has closed."""
        return self.position.ended_early or (self.step >= self.order.steps and not self._evaluation_due())

    # -- in the order in which Trainer calls them
    def batches(self) -> Remaining:
        """The effective batches that are left."""
        return Remaining(self.order, self.step)

    def learning_rate_factor(self, steps_of_attempt: int) -> float:
        """The schedule is a function of the step alone, so there is no state of it to keep."""
        return rules.learning_rate_factor(self._first_step + steps_of_attempt, self.order.steps, self.settings.warmup_share)

    def attach(self, gradients: Gradients, optimizer: torch.optim.Optimizer) -> None:
        """Take over what Trainer made."""
        self.gradients, self.optimizer = gradients, optimizer

    def begin(self, model: torch.nn.Module, ballast: int) -> None:
        """Probe the longest batch, and score the dev set where that is due.

        Raises:
            NothingLeft: the score that was due on resume ended the training.
        """
        device = device_name(self.gradients.device)
        self._started = time.monotonic()
        self._saved_at = self._started
        self._told = (self._started, self.position.tokens_seen)
        model.train()
        if (self.position.micro_batch, self.position.device) != (self.gradients.micro_batch, device):
            self._probe(model, ballast)
        self.position = replace(self.position, micro_batch=self.gradients.micro_batch, device=device)
        self._evaluate_if_due(model)
        if self.finished:
            self.save(model, leaving=True)
            raise NothingLeft

    def gradient(self, model: torch.nn.Module, batch: tuple[int, ...]) -> float:
        """Leave the clipped gradient of one effective batch in the parameters; its mean token loss.

        Raises:
            StopRequested: between two micro-batches, after a checkpoint of the step before.
            DivergedError: the loss or the gradient is not finite; no weight was changed.
        """
        used = tuple(index for index in batch if index not in self.skipped)
        entry = Entry(self.step + 1, used, tuple(index for index in batch if index in self.skipped))
        try:
            loss = self.gradients.compute(model, used, self.step, self._beat)
            self._norm = clipped(model, self.settings.max_grad_norm or math.inf)
            if not (math.isfinite(loss.mean) and math.isfinite(self._norm)):
                drop_gradients(model)
                self._blame(model, used, f"loss {loss.mean:g} and gradient norm {self._norm:g}")
        except StopRequested:
            self.save(model, leaving=True)
            raise
        self._last = (loss, entry)
        return loss.mean

    @property
    def gradient_norm(self) -> float:
        """Of the last step, before clipping."""
        return self._norm

    def after_step(self, model: torch.nn.Module) -> bool:
        """Record the step, tell of it, score and save where due; whether to go on.

        Raises:
            StopRequested: after a checkpoint.
            DivergedError: the loss has stayed far above what it was.
        """
        assert self._last is not None
        loss, entry = self._last
        self._record(loss, entry)
        self._tell()
        if self.position.sanity.diverged:
            self._blame_spike(f"loss {loss.mean:g} after {rules.SPIKES_IN_A_ROW} steps far above the usual")
        try:
            self._evaluate_if_due(model)
            if self.ctx.stopping:
                raise StopRequested
        except StopRequested:
            self.save(model, leaving=True)
            raise
        if self._writing is not None and self._writing.done():
            self.settle()
        if self.finished or self._save_due():
            self.save(model, leaving=self.finished)
        return not self.finished

    # -- keeping
    def save(self, model: torch.nn.Module, *, leaving: bool = False) -> None:
        """Save the state after `step` steps unless that was done.

        Training waits for a copy in memory only; the copy is written in the background, after the save before it. Where memory is
        short, and when `leaving`, it waits until the checkpoint is durable.

        Raises:
            DiskFullError, OSError: from this save, or from the one before.
        """
        if self._saved == (self.step, self.position.scores):
            if leaving:
                self.settle()
            return
        started = time.monotonic()
        self.ctx.quiet(QUIET_S, f"saving the checkpoint of step {self.step}")
        self.settle()
        self.position = replace(self.position, ledger=self.ledger.here(), seconds=self._seconds())
        frozen = None if leaving else self._snapshot.take(model, self.optimizer)
        publish = self._publishing(model, frozen)
        self._writing = self._writer.submit(publish) if frozen is not None else _done(publish)
        self._saved = (self.step, self.position.scores)
        self._saved_at = time.monotonic()
        self._blocked_s = self._saved_at - started
        if frozen is None:
            self.settle()

    def settle(self) -> None:
        """Wait until the last save is durable, tell of it, and choose the next interval from what it took.

        Raises:
            DiskFullError, OSError: it is not durable; the checkpoints before it are untouched.
        """
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        checkpoint, seconds = writing.result()
        self.ctx.tell_saved(checkpoint, seconds, self._blocked_s)
        self._forget_bests()
        interval_s = rules.checkpoint_interval_s(self._blocked_s, self.settings.checkpoint_every_s)
        self.interval_s = min(max(interval_s, seconds / rules.WRITING_SHARE), rules.MAX_INTERVAL_S)

    def abandon(self) -> None:
        """Wait for a save that is under way, before the process leaves with an error that says more than the save's own."""
        with contextlib.suppress(Exception):
            self.settle()

    def _publishing(self, model: torch.nn.Module, frozen: Frozen | None) -> Callable[[], tuple[Checkpoint, float]]:
        """What makes the state durable, `frozen` or as it is in the model: the checkpoint, and the seconds that it took."""
        checkpoints, position, ledger = self.ctx.checkpoints, self.position, self.ledger
        sane = position.sanity.sane_in_a_row >= rules.sane_steps_for_health(self.order.steps)
        size_bytes = checkpoint_bytes(model, self.optimizer)

        def fill(folder: Path) -> None:
            save_weights(model, folder / WEIGHTS)
            save_optimizer(self.optimizer, folder / OPTIMIZER)

        def publish() -> tuple[Checkpoint, float]:
            started = time.monotonic()
            ledger.sync()
            healthy = sane and (finite(model) if frozen is None else frozen.finite())
            info = msgspec.to_builtins(position)
            write = fill if frozen is None else frozen.write
            saved = checkpoints.publish(position.step, write, healthy=healthy, info=info, expected_bytes=size_bytes)
            seconds = time.monotonic() - started
            checkpoints.retire()
            return saved, seconds

        return publish

    def _save_due(self) -> bool:
        every = self.settings.checkpoint_every_steps
        if every is not None:
            return self.step % every == 0
        return time.monotonic() - self._saved_at >= self.interval_s

    def _forget_bests(self) -> None:
        named = {self.position.best.step} if self.position.best else set()
        for path in self.ctx.checkpoints.folder.glob(f"step-*/{MANIFEST}"):
            best = msgspec.json.decode(path.read_bytes(), type=Manifest).info.get("best")
            named |= {best["step"]} if best else set()
        self.best.forget_all_but(named)

    # -- watching and telling
    def _record(self, loss: StepLoss, entry: Entry) -> None:
        self.ledger.append(entry)
        before = self.position
        self.position = replace(
            before,
            step=before.step + 1,
            examples_seen=before.examples_seen + len(entry.examples),
            tokens_seen=before.tokens_seen + loss.tokens,
            sanity=before.sanity.after(loss.mean) if entry.examples else before.sanity,
        )
        if entry.examples:
            self._losses.append(loss.mean)

    def _tell(self) -> None:
        self._beat(0)
        if self.step % self.metrics_every and self.step not in (1, self.order.steps):
            return
        now, (then, tokens) = time.monotonic(), self._told
        rate = self.settings.learning_rate * self.ctx.spec.learning_rate_scale
        loss = {"loss": math.fsum(self._losses) / len(self._losses)} if self._losses else {}
        values = {
            **loss,
            "learning_rate": rate * rules.learning_rate_factor(self.step - 1, self.order.steps, self.settings.warmup_share),
            "grad_norm": self._norm,
            "tokens_per_s": (self.position.tokens_seen - tokens) / max(now - then, 1e-6),
        }
        self.ctx.metric(values, self.step)
        self._losses, self._told = [], (now, self.position.tokens_seen)

    def _beat(self, done: int) -> None:
        """Tell the progress, `done` examples into a step; a stop asked for takes effect here."""
        self.ctx.progress(
            self.position.examples_seen + done, self.order.examples, "examples", step=self.step, steps=self.order.steps
        )
        if done:
            self.ctx.check_stop()

    def _beat_evaluation(self, _done: int) -> None:
        self._beat(0)
        self.ctx.check_stop()

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._started

    # -- divergence
    def _blame(self, model: torch.nn.Module, used: Sequence[int], what: str) -> NoReturn:
        """The coming step is not finite: name the examples that are not, each tried alone at the same weights.

        Where that does not tell one from another all of them are named and the weights are doubted too; where the weights
        themselves are broken, no example is at fault.
        """
        step = self.step + 1
        if not finite(model):
            self._diverged(step, f"{what}; the weights themselves are broken", (), sane_until=self.step)
        alone = [index for index in used if not self._finite_alone(model, index)]
        if alone and len(alone) < len(used):
            self._diverged(step, what, alone)
        self._diverged(step, what, used, sane_until=self.step)

    def _finite_alone(self, model: torch.nn.Module, index: int) -> bool:
        loss = self.gradients.compute(model, (index,), self.step, self._beat_evaluation)
        norm = clipped(model, math.inf)
        drop_gradients(model)
        return math.isfinite(loss.mean) and math.isfinite(norm)

    def _blame_spike(self, what: str) -> NoReturn:
        """The loss has jumped and stays: the batches since then are at fault, or the weights are."""
        sane_until = self.step - self.position.sanity.spikes_in_a_row
        since = [index for entry in self.ledger.entries() if entry.step > sane_until for index in entry.examples]
        self._diverged(self.step, what, since, sane_until=sane_until)

    def _diverged(self, step: int, what: str, examples: Sequence[int], sane_until: int | None = None) -> NoReturn:
        """End the attempt. `sane_until`: the last step whose loss was sane, where the weights are in doubt."""
        self.abandon()
        ids = [self.recipe.train.examples[index].id for index in examples]
        self.ctx.divergence(step, what, ids)
        text = f"Training diverged at step {step}: {what}"
        blamed = f"{len(ids)} example{'' if len(ids) == 1 else 's'} left out from now on" if ids else "no example is to blame"
        self.ctx.note(f"{text}; {blamed}", level="error", step=step, examples=ids)
        if sane_until is not None:
            self._doubt(sane_until)
        raise DivergedError(text)

    def _doubt(self, sane_until: int) -> None:
        """Drop checkpoints with fewer sane steps after them than health takes, if a healthy older one is whole.

        The loss of step N was taken before N changed the weights: what a checkpoint holds shows only in the steps after it.
        """
        older = newest_healthy(self.ctx.checkpoints, sane_until - rules.sane_steps_for_health(self.order.steps))
        if older is not None and (dropped := self.ctx.checkpoints.drop_after(older.step)):
            self.ctx.note(
                f"{len(dropped)} checkpoints after step {older.step} may hold the fault and were dropped", level="warning"
            )

    def _probe(self, model: torch.nn.Module, ballast: int) -> None:
        """Run the longest examples without a step, beside the optimizer's state to come, until they fit.

        So memory is found short now and not after eleven hours.
        """
        self.ctx.quiet(QUIET_S, "probing the longest batch")
        tried = 0
        with optimizer_ballast(model, ballast):
            while tried != self.gradients.micro_batch:
                tried = self.gradients.micro_batch
                batch = worst_case(self.order.sizes, tried, self.order.effective_batch)
                self.gradients.compute(model, batch, self.step, lambda _done: self.ctx.check_stop())
                drop_gradients(model)
        self.ctx.memory_fit(
            self.recipe.model_name, device_name(self.gradients.device), self.gradients.micro_batch, "the longest batch fits"
        )

    # -- the quality gate
    def _evaluate_if_due(self, model: torch.nn.Module) -> None:
        if not self._evaluation_due():
            return
        scored = Scored(self.step, self._score(model))
        best = self.position.best
        if best is None or scored.score < best.score:
            best = self.best.keep(model, scored)
        scores = (*self.position.scores, scored)
        early = rules.falling([one.score for one in scores]) and self.step < self.order.steps
        self.position = replace(self.position, scores=scores, best=best, ended_early=early)
        self.ctx.metric({self.score_name: scored.score}, self.step)
        if early:
            self.ctx.note(
                f"Training ended early at step {self.step} of {self.order.steps}: {self.score_name} has risen to "
                f"{scored.score:.4f} from {best.score:.4f} at step {best.step}, whose weights are delivered",
                level="warning",
            )

    def _evaluation_due(self) -> bool:
        gated = self.recipe.dev is not None or self.recipe.dev_score is not None
        return gated and self.step in self.evaluation_steps and all(scored.step != self.step for scored in self.position.scores)

    @property
    def score_name(self) -> str:
        return "dev_score" if self.recipe.dev_score is not None else "dev_loss"

    def _score(self, model: torch.nn.Module) -> float:
        self.ctx.quiet(QUIET_S, f"scoring the dev set at step {self.step}")
        model.eval()
        try:
            with torch.no_grad():
                own = self.recipe.dev_score
                score = self.gradients.mean_loss(model, self._beat_evaluation) if own is None else own()
        finally:
            model.train()
        if not math.isfinite(score):
            self._diverged(self.step, f"{self.score_name} {score:g}", (), sane_until=self.step)
        return score


def _done(work: Callable[[], T]) -> Future[T]:
    """What `work` returns, as a future that is done."""
    future: Future[T] = Future()
    future.set_result(work())
    return future


def clipped(model: torch.nn.Module, limit: float) -> float:
    """Clip the gradient to the norm `limit`; the norm that it had."""
    return float(torch.nn.utils.clip_grad_norm_(trainable(model).values(), limit))


class Remaining:
    """The effective batches from step `first` on, for Trainer: an iterable with a length."""

    def __init__(self, order: DataOrder, first: int) -> None:
        self.order = order
        self.first = first

    def __len__(self) -> int:
        return max(1, self.order.steps - self.first)  # Trainer wants one, also where only a score is left to do

    def __iter__(self) -> Iterator[Any]:
        return (self.order.batch(step) for step in range(self.first, self.order.steps))

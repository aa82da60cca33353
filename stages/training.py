"""Training, the same for Whisper, Marian and Gemma: a stage writes a `Recipe`, `train` runs it on Trainer or SFTTrainer.

A stage does::

    recipe = Recipe(
        model=model,
        model_name=settings.model,
        train=Data(examples, collate),     # examples[i] has an id and a length; collate([i, j, ...]) -> one padded batch
        dev=Data(dev_examples, dev_collate),
        token_loss=token_loss,             # (model, batch) -> (summed loss, target tokens)
        fingerprint={"data": digest(lines), "model": settings.model},
    )
    trained = train(ctx, settings, recipe)             # afterwards `model` holds the best weights, in place
    model.save_pretrained(ctx.scratch() / "model")     # delivery is the stage's own

What `train` keeps: the effective batch is the setting whatever the memory allows; data order and random numbers of each step are
pure functions of (seed, step), so a run that was killed and resumed equals one that was not; the gradient does not depend
on how the batch is cut; checkpoints are whole and verified; each example is used exactly `epochs` times, which the
ledger proves at the end; the weights with the best dev score are what is left in the model.

The parts: `recipe` (values), `data_order` and `training_rules` (pure), `ledger`, `training_state` (files), `training_gradient`
(micro-batches, out of memory), `training_loop` (around each step), `training_adapter` (Trainer). torch is imported by `train`.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from msgspec.structs import replace

from stages.data_order import DataOrder, padding_share
from stages.ledger import Ledger, LedgerError, Proof, prove
from stages.recipe import Batch, Data, Example, Recipe, Trained, digest, summed_loss
from stages.runtime import StageContext
from state.contract import DivergedError, Divergence, MisconfiguredError
from state.settings import Training

if TYPE_CHECKING:
    from stages.training_loop import Loop
    from stages.training_state import BestWeights, Position
    from state.checkpoints import Checkpoint

__all__ = ["Batch", "Data", "Example", "Recipe", "Trained", "digest", "summed_loss", "train"]


def train(ctx: StageContext, settings: Training, recipe: Recipe) -> Trained:
    """Train `recipe.model` to the end, from the newest valid checkpoint if there is one; it then holds the best weights.

    Raises:
        StopRequested: after a checkpoint, soon after ctx.stopping turned true.
        OutOfMemoryError: one example alone does not fit.
        DivergedError: the loss or the gradient is not finite, or the loss stays far above what it was; or the spec says to
            deliver the best weights and there are none.
        MisconfiguredError: no examples, or the checkpoint belongs to other data, another model or another effective batch.
    """
    from stages.training_loop import Loop
    from stages.training_state import BestWeights

    if not recipe.train.examples:
        raise MisconfiguredError("there is no training example; check what the stage before wrote")
    sizes = np.array([(example.length, example.target_length) for example in recipe.train.examples], dtype=np.int64)
    order = DataOrder(sizes, settings.effective_batch, settings.epochs, ctx.spec.seed, ctx.spec.work_share)
    best = BestWeights(ctx.scratch() / "best")
    checkpoint, position = _resume(ctx, settings, recipe, best)
    if ctx.spec.deliver_best:
        position = _give_up(ctx, checkpoint, position)
    ledger = _open_ledger(ctx, position)
    loop = Loop(ctx, settings, recipe, order, position, ledger, best)
    if not loop.finished:
        _drive(ctx, settings, recipe, loop, checkpoint)
    return _finish(ctx, recipe, loop)


def _drive(ctx: StageContext, settings: Training, recipe: Recipe, loop: Loop, checkpoint: Checkpoint | None) -> None:
    from stages.training_adapter import build
    from stages.training_loop import NothingLeft

    ctx.quiet(600, "preparing the training")
    try:
        trainer = build(ctx, settings, recipe, loop, checkpoint)
        try:
            trainer.train()
        finally:  # else what is done with the model later would compute in bfloat16, but not in an attempt that only delivers
            trainer.accelerator.unwrap_model(recipe.model, keep_fp32_wrapper=False)
    except NothingLeft:
        return
    except BaseException:
        loop.abandon()
        raise
    finally:
        loop.ledger.close()


def _resume(ctx: StageContext, settings: Training, recipe: Recipe, best: BestWeights) -> tuple[Checkpoint | None, Position]:
    """The checkpoint to go on from with its weights loaded, and its position; without one, the beginning."""
    from stages.training_state import WEIGHTS, Position, load_weights

    fingerprint, course = _fingerprint(ctx, settings, recipe), _course(ctx)
    checkpoint = _choose(ctx, course)
    if checkpoint is None:
        return None, Position(fingerprint=fingerprint, course=course)
    position = msgspec.convert(checkpoint.info, Position)
    differing = sorted(
        name for name in {**position.fingerprint, **fingerprint} if position.fingerprint.get(name) != fingerprint.get(name)
    )
    if differing:
        changes = ", ".join(_change(position.fingerprint, fingerprint, name) for name in differing)
        raise MisconfiguredError(
            f"{checkpoint.path} belongs to another training: {changes}; "
            f"restore what changed, or remove {ctx.checkpoints.folder} to start again"
        )
    if position.best is not None and not best.whole(position.best):
        ctx.note(f"The best weights so far (step {position.best.step}) are damaged; the next evaluation starts anew", level="error")
        position = replace(position, best=None, scores=())
    load_weights(recipe.model, checkpoint.path / WEIGHTS)
    ctx.note(f"Resumed from step {position.step}, {position.examples_seen} examples seen")
    return checkpoint, replace(position, course=course)


def _choose(ctx: StageContext, course: str) -> Checkpoint | None:
    """The newest valid checkpoint; after a divergence (another course) the newest healthy one, and what lies after it goes."""
    damaged = {path.name for path in ctx.checkpoints.folder.glob("damaged-*")}
    checkpoint = ctx.checkpoints.newest_valid(healthy_only=ctx.spec.deliver_best)
    if checkpoint is not None and not checkpoint.manifest.healthy and checkpoint.info.get("course") != course:
        checkpoint = ctx.checkpoints.newest_valid(healthy_only=True)
        step = checkpoint.step if checkpoint else 0
        dropped = ctx.checkpoints.drop_after(step)
        ctx.note(f"Went back to the healthy checkpoint of step {step}; {len(dropped)} later ones were dropped", level="warning")
    for path in ctx.checkpoints.folder.glob("damaged-*"):
        if path.name not in damaged:
            ctx.note(f"A damaged checkpoint was set aside as {path.name}", level="warning")
    return checkpoint


def _give_up(ctx: StageContext, checkpoint: Checkpoint | None, position: Position) -> Position:
    """`position` as the end of a training that has diverged too often, and the story told."""
    steps = [event.step for event in _divergences(ctx)]
    story = f"Training diverged {len(steps)} times (at the steps {', '.join(map(str, steps))}) and goes no further"
    if checkpoint is None:
        raise DivergedError(f"{story}; there is no healthy checkpoint to deliver")
    best = position.best
    what = f"healthy step {position.step}" if best is None else f"step {best.step}, whose dev score {best.score:.4f} is the best"
    ctx.note(f"{story}: the weights of {what} are delivered", level="warning", steps=steps)
    return replace(position, ended_early=True)


def _divergences(ctx: StageContext) -> list[Divergence]:
    """What the earlier attempts said of their divergences, in order."""
    found: list[Divergence] = []
    for number in range(1, ctx.spec.attempt):
        path = ctx.workspace.attempt(ctx.spec.stage, number).events
        for line in path.read_bytes().splitlines() if path.exists() else ():
            with contextlib.suppress(msgspec.DecodeError):  # of another kind, or torn
                found.append(msgspec.json.decode(line, type=Divergence))
    return found


def _course(ctx: StageContext) -> str:
    return f"{ctx.spec.learning_rate_scale:g} {digest(sorted(ctx.spec.skip_examples))[:16]}"


def _fingerprint(ctx: StageContext, settings: Training, recipe: Recipe) -> dict[str, str]:
    return {
        **recipe.fingerprint,
        "examples": digest(f"{one.id}\t{one.length}\t{one.target_length}" for one in recipe.train.examples),
        "effective_batch": str(settings.effective_batch),
        "epochs": str(settings.epochs),
        "seed": str(ctx.spec.seed),
        **({"work_share": f"{ctx.spec.work_share:g}"} if ctx.spec.work_share < 1.0 else {}),
    }


def _change(was: dict[str, str], now: dict[str, str], name: str) -> str:
    return f"{name} was {was.get(name, 'none')[:20]} and is {now.get(name, 'none')[:20]}"


def _open_ledger(ctx: StageContext, position: Position) -> Ledger:
    path = ctx.scratch() / "ledger.jsonl"
    try:
        return Ledger(path, position.ledger)
    except LedgerError as error:
        aside = path.with_name("ledger.damaged.jsonl")
        if path.exists():
            path.replace(aside)
        ctx.note(f"{error}; it was set aside as {aside.name}, so this training cannot prove its use of the data", level="error")
        return Ledger(path)


def _finish(ctx: StageContext, recipe: Recipe, loop: Loop) -> Trained:
    """Restore the best weights, prove the ledger, and put the figures together."""
    position, order = loop.position, loop.order
    best = position.best
    if best is not None and best.step != position.step:
        loop.best.restore(recipe.model, best)
    epochs = None if position.ended_early else order.steps / order.per_epoch
    proof = prove(loop.ledger.entries(), order.batch, position.step, epochs)
    loop.ledger.close()
    _tell_proof(ctx, recipe, loop, proof)
    recent = position.sanity.recent
    metrics = {
        "steps": float(position.step),
        "examples": float(position.examples_seen),
        "tokens": float(position.tokens_seen),
        "seconds": round(position.seconds, 3),
        "tokens_per_s": round(position.tokens_seen / max(position.seconds, 1e-9), 3),
        "train_loss": math.fsum(recent) / max(1, len(recent)),
        "padding_share": round(
            padding_share([order.batch(step) for step in range(min(order.steps, order.per_epoch))], order.sizes), 6
        ),
        "ledger_exact": float(proof.exact),
    }
    if ctx.spec.deliver_best:
        metrics["diverged"] = 1.0
    if ctx.spec.work_share < 1.0:
        metrics["work_share"] = ctx.spec.work_share
    if best is not None:
        name = loop.score_name
        metrics |= {f"{name}_before": position.scores[0].score, f"{name}_after": best.score, "best_step": float(best.step)}
        if best.step == 0:
            ctx.note("Training brought no better dev score; the weights are those it started with", level="warning")
    return Trained(
        steps=position.step,
        examples_seen=position.examples_seen,
        best_step=best.step if best else position.step,
        metrics=metrics,
        ended_early=position.ended_early,
    )


def _tell_proof(ctx: StageContext, recipe: Recipe, loop: Loop, proof: Proof) -> None:
    if not proof.exact:
        ctx.note(f"The ledger does not prove the use of the data: {proof.first_fault}", level="error")
        return
    names = [recipe.train.examples[index].id for index in proof.skipped]
    extent = "as planned until the early end" if loop.position.ended_early else _extent(loop.order)
    skipped = f"; {len(names)} left out after a divergence" if names else ""
    ctx.note(f"The ledger proves {len(loop.order.sizes)} examples used {extent}{skipped}", used=proof.used, skipped=names)


def _extent(order: DataOrder) -> str:
    epochs, rest = divmod(order.steps, order.per_epoch)
    if rest:
        return f"each {epochs} or {epochs + 1} times, {order.examples} in all"
    return "each exactly once" if epochs == 1 else f"each exactly {epochs} times"

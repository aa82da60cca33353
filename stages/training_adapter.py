"""The one place that touches transformers' Trainer and trl's SFTTrainer (transformers 5.23, trl 1.16)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from stages.recipe import Recipe
from stages.runtime import StageContext
from stages.training_gradient import Gradients, device_name
from stages.training_loop import Loop
from stages.training_state import OPTIMIZER, load_optimizer, trainable
from state.contract import fit_key
from state.settings import Training

if TYPE_CHECKING:
    from state.checkpoints import Checkpoint

ADAM_MOMENTS = 2


def build(ctx: StageContext, settings: Training, recipe: Recipe, loop: Loop, resumed: Checkpoint | None) -> Trainer:
    """A Trainer (or SFTTrainer) driven by `loop`, with the optimizer's state of `resumed`; its `train()` does the rest."""
    sft = recipe.trainer == "trl.SFTTrainer"
    arguments = _arguments(ctx, settings, ctx.scratch() / "trainer")
    base, extra = _sft(arguments, recipe) if sft else (Trainer, {"args": TrainingArguments(**arguments)})
    own = {parameter: parameter.data for parameter in trainable(recipe.model).values()}
    trainer: Any = _adapted(base)(model=recipe.model, data_collator=_untouched, callbacks=[_Steps(loop)], **extra)
    for parameter, values in own.items():
        parameter.data = values  # trl 1.16 makes an adapter on a 4-bit base bfloat16, in which a step of 1e-5 rounds to none
    trainer.remove_callback(PrinterCallback)
    trainer.loop, trainer.recipe, trainer.resumed = loop, recipe, resumed
    trainer.sizes = _batch_sizes(ctx, settings, loop, device_name(trainer.args.device))
    return trainer


def bf16(settings: Training) -> bool:
    """bfloat16 only where the GPU has it."""
    return settings.bf16 and torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def _arguments(ctx: StageContext, settings: Training, folder: Path) -> dict[str, Any]:
    planned = ctx.spec.batch.gradient_checkpointing
    recompute = settings.gradient_checkpointing if planned is None else planned
    return {
        "output_dir": str(folder),
        "num_train_epochs": 1,  # of what is left: Loop.batches
        "per_device_train_batch_size": settings.effective_batch,
        "gradient_accumulation_steps": 1,
        "learning_rate": settings.learning_rate * ctx.spec.learning_rate_scale,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": 0.0,  # Loop.gradient clips, and looks at the norm before any weight changes
        "optim": "paged_adamw_8bit" if _paged(ctx, settings) else "adamw_torch_fused",
        "bf16": bf16(settings),
        "activation_checkpointing": recompute,
        "activation_checkpointing_kwargs": {"use_reentrant": False} if recompute else None,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": ctx.spec.seed,
    }


def _paged(ctx: StageContext, settings: Training) -> bool:
    planned = ctx.spec.batch.paged_optimizer
    return (settings.paged_optimizer if planned is None else planned) and torch.cuda.is_available()


def _batch_sizes(ctx: StageContext, settings: Training, loop: Loop, device: str) -> tuple[int, int]:
    """The micro-batch to start with and evaluation's: no limit that is known (setting, rung, what fitted here) is exceeded."""
    position, batch = loop.position, ctx.spec.batch
    fitted = ctx.spec.fits.get(fit_key(loop.recipe.model_name, device))
    reached = position.micro_batch if position.device == device else None
    limits = (settings.effective_batch, settings.micro_batch, batch.micro_batch, fitted, reached)
    micro_batch = min(limit for limit in limits if limit)
    return micro_batch, batch.eval_batch or micro_batch


def _sft(arguments: dict[str, Any], recipe: Recipe) -> tuple[type[Trainer], dict[str, Any]]:
    """SFTTrainer wants a data set and a processor at its making; the data that it sees in training are the loop's."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(**arguments, max_length=None, packing=False, dataset_kwargs={"skip_prepare_dataset": True})
    seen = Dataset.from_dict({"input_ids": [[0]], "labels": [[0]]})
    return SFTTrainer, {"args": config, "train_dataset": seen, "processing_class": recipe.processing}


def _adapted(base: type[Trainer]) -> type[Trainer]:
    class Adapted(base):
        loop: Loop
        recipe: Recipe
        resumed: Checkpoint | None
        sizes: tuple[int, int]

        def get_train_dataloader(self) -> Any:
            return self.loop.batches()

        def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
            """The last thing made before the first step: the optimizer gets its state back, then the schedule is laid over it."""
            inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
            if self.resumed is not None:
                load_optimizer(inner, self.resumed.path / OPTIMIZER)
            for group in inner.param_groups:
                group["lr"] = self.args.learning_rate  # the spec's, also where the checkpoint had another
                group.pop("initial_lr", None)
            self.loop.attach(Gradients(self.loop.ctx, self.recipe, self.args.device, *self.sizes), inner)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.loop.learning_rate_factor)
            return self.lr_scheduler

        def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            return torch.tensor(self.loop.gradient(model, inputs), device=self.args.device)

        def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float:
            return self.loop.gradient_norm  # measured already

    return Adapted


class _Steps(TrainerCallback):
    """Calls the loop before the first and after each optimizer step."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_rest: Any) -> None:
        moments = 0 if self.loop.optimizer.state or "paged" in str(args.optim) else ADAM_MOMENTS
        self.loop.begin(model, moments)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_rest: Any) -> None:
        control.should_training_stop = not self.loop.after_step(model)


def _untouched(features: Any) -> Any:
    return features

"""What a training stage hands to `stages.training.train`, and what it gets back. Values only."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Batch = dict[str, Any]
"""Tensors on the CPU by the names that `token_loss` knows, padded to the longest example of this batch only."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: a stable id (it stands in notes and skip lists) and its size, by which batches are made."""

    id: str
    length: int
    """In units that are padded: tokens, frames."""
    target_length: int = 0
    """Of what is padded on its own beside it: the target of an encoder-decoder."""


@dataclass(frozen=True)
class Data:
    """Examples and the function that makes one padded batch of some of them, given by index, in that order."""

    examples: Sequence[Example]
    collate: Callable[[Sequence[int]], Batch]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that is particular to one stage's training."""

    model: torch.nn.Module
    """Parameters with `requires_grad` are trained, checkpointed and delivered; the others are left alone. Random starting weights
    (a new adapter) must come from a fixed seed: an attempt that finds no checkpoint makes them again."""
    model_name: str
    train: Data
    token_loss: Callable[[torch.nn.Module, Batch], tuple[torch.Tensor, int]]
    """(model, batch on the model's device) -> (loss SUMMED over the target tokens, a float32 scalar; how many target tokens).
    In eval mode for `dev`: smooth labels only when `model.training`. `summed_loss` computes it from logits. Never take the
    loss that Marian's or Whisper's own forward returns: it is a mean, and Trainer scales it wrongly under accumulation."""
    fingerprint: Mapping[str, str]
    """What must be unchanged for a resume: a digest of the data's content, the name of the model. Ids, lengths, effective
    batch, epochs and seed are added by `train`."""
    dev: Data | None = None
    """Fixed examples for the quality gate: their mean token loss, lower is better. Without it the last weights are delivered."""
    dev_score: Callable[[], float] | None = None
    """A score of its own instead of the dev loss, LOWER is better (return -chrF). The model is in eval mode, gradients are
    off; call ctx.check_stop() and ctx.progress() between batches."""
    trainer: Literal["transformers.Trainer", "trl.SFTTrainer"] = "transformers.Trainer"
    processing: Any = None
    """The tokenizer or processor, which SFTTrainer wants; Trainer goes without."""
    after_backward: Callable[[], None] | None = None
    """Called with the whole gradient, before it is clipped: Marian masks its `<pad>` row here."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a training ended; the model itself holds the weights to deliver."""

    steps: int
    """Optimizer steps done, over all attempts."""
    examples_seen: int
    best_step: int
    """The step whose weights are delivered; 0: none were better than the ones it started with."""
    metrics: dict[str, float]
    """For the receipt: steps, examples, tokens, seconds, tokens_per_s, train_loss, padding_share, ledger_exact (1.0 or 0.0),
    and with a dev set dev_loss_before, dev_loss_after (dev_score_... with a score of its own), best_step."""
    ended_early: bool = False


def summed_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> tuple[torch.Tensor, int]:
    """Cross-entropy summed over the labels that are not -100, in float32, and how many these are.

    logits (batch, length, vocabulary) and labels (batch, length) are aligned already: a causal model's caller shifts them.
    """
    from torch.nn import functional

    flat = labels.reshape(-1)
    loss = functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]).float(), flat, ignore_index=-100, reduction="sum", label_smoothing=smoothing
    )
    return loss, int((flat != -100).sum())


def digest(lines: Iterable[str]) -> str:
    """SHA-256 over the lines, in hexadecimal: a fingerprint of data."""
    whole = hashlib.sha256()
    for line in lines:
        whole.update(line.encode())
        whole.update(b"\n")
    return whole.hexdigest()

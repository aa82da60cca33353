"""MarianMT, all of its weights, on the verse pairs and the glossary.

The embedding of `<pad>` is held at zero: it is tied to the output layer, so training would move it, while CTranslate2 starts its
decoder from a zero vector there (measured: 0 of 12 translations equal without this, 12 of 12 with it). Delivers the weights
with the best dev loss and the tokenizer into `fine_tuned_marian_mi`, and in `ct2` below it the same model for CTranslate2, if
that proves equal (`stages.marian_ct2`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig, MarianMTModel, MarianTokenizer

from stages import footprint, marian_ct2
from stages.loading import claim_device, is_folder, loading, resolve_model
from stages.marian_tokens import Rows, identity, load_rows, save_rows, tokenize
from stages.runtime import Delivery, StageContext, run
from stages.training import Batch, Data, Recipe, digest, summed_loss, train
from stages.verse_pairs import data_lines, read_training
from state.contract import MisconfiguredError
from state.durable import file_digest, publish_folder, tree_digest
from state.settings import TrainMarian

LOAD_QUIET_S = 1800.0
"""A model may come over the network first."""
IGNORED = -100
UNUSED = ("bitsandbytes", "datasets", "scipy")
"""transformers imports them on sight, two CPU seconds of every restart; bitsandbytes is used where the optimizer is paged."""


def main(ctx: StageContext) -> Delivery:
    """Train the model and deliver it."""
    settings = ctx.settings(TrainMarian)
    if __name__ == "__main__" and not (settings.paged_optimizer or ctx.spec.batch.paged_optimizer):
        sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None: counts as not installed
    source = resolve_model(ctx.workspace, settings.model, "marian")
    ctx.quiet(LOAD_QUIET_S, f"loading {settings.model}")
    with loading(settings.model):
        tokenizer, shape = MarianTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source).to_dict()
    ready = prepare(ctx, settings, tokenizer)
    ctx.check_stop()
    longest = footprint.Longest(*(int(side.max()) for side in ready.train.lengths()))
    predicted = footprint.announce(ctx, shape, settings, longest)
    ctx.quiet(LOAD_QUIET_S, f"loading {settings.model}")
    model = load_model(source, settings).to(claim_device())
    pads = PadRows(model)
    if moved := pads.clear():
        ctx.note(
            f"The <pad> embedding of {settings.model} was not zero (largest value {moved:.3g}); it is zero now", level="warning"
        )
    marks, caches = Marks(model.config), model.config.use_cache
    trained = train(
        ctx,
        settings,
        Recipe(
            model=model,
            model_name=settings.model,
            train=data(ready.train, marks),
            dev=data(ready.dev, marks) if len(ready.dev) else None,
            token_loss=translation_loss(settings.label_smoothing),
            fingerprint={"data": ready.facts.data, "dev": ready.facts.dev, "model": base_identity(source, settings, model)},
            after_backward=pads.mask,
        ),
    )
    if moved := pads.clear():
        raise RuntimeError(f"training moved the <pad> embedding to {moved:.3g}: its gradient was not masked")
    model.config.use_cache = caches  # Trainer switches it off: what is delivered may not depend on which attempt trained
    ctx.quiet(600.0, "writing the model")
    folder = ctx.scratch() / "model"
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    different = marian_ct2.deliver(ctx, model, tokenizer, folder, sample(ready))
    if different:
        ctx.note(f"CTranslate2 is not used for this model, transformers decodes it: {different}", level="warning")
    target = ctx.publish(folder, ctx.workspace.fine_tuned_marian)
    counts = {
        "training_pairs": float(len(ready.train)),
        "glossary_pairs": float(ready.facts.glossary),
        "dev_pairs": float(len(ready.dev)),
        "ctranslate2_equal": float(different is None),
    }
    gate = (
        f"dev loss {trained.metrics['dev_loss_before']:.3f} -> {trained.metrics['dev_loss_after']:.3f}, "
        f"best weights at step {trained.best_step}"
        if len(ready.dev)
        else "no dev set, the last weights"
    )
    summary = f"{trained.steps} steps on {len(ready.train)} pairs; {gate}"
    footprint.tell_peak(ctx, predicted)
    return Delivery(outputs=[target], metrics={**trained.metrics, **counts}, summary=summary)


# -- data


class Facts(msgspec.Struct, frozen=True):
    """What is known of the prepared rows besides themselves."""

    training: int
    """The first so many rows; the others are the dev set."""
    glossary: int
    data: str
    """Digest of the training pairs, as text."""
    dev: str


@dataclass(frozen=True)
class Prepared:
    """Training and dev set as token ids."""

    train: Rows
    dev: Rows
    facts: Facts


def prepare(ctx: StageContext, settings: TrainMarian, tokenizer: Any) -> Prepared:
    """Read, split and tokenize the corpus; a later attempt with the same inputs opens the arrays that the first one kept."""
    paths = (ctx.workspace.train_pairs, ctx.workspace.glossary_pairs)
    files = [file_digest(path) if path.is_file() else "none" for path in paths]
    limits = (settings.dev_examples, settings.max_examples, settings.glossary_repeats, settings.max_tokens, ctx.spec.seed)
    folder = ctx.scratch() / f"rows-{digest([*files, *map(str, limits), *identity(tokenizer)])[:24]}"
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        rows, facts = make_rows(ctx, settings, tokenizer)
        save_rows(rows, temporary)
        (temporary / "facts.json").write_bytes(msgspec.json.encode(facts))
        publish_folder(temporary, folder)
    rows = load_rows(folder)
    facts = msgspec.json.decode((folder / "facts.json").read_bytes(), type=Facts)
    train_mask = np.arange(len(rows)) < facts.training
    return Prepared(rows.keep(train_mask), rows.keep(~train_mask), facts)


def sample(ready: Prepared) -> list[list[int]]:
    """Source ids of some pairs, held out ones where there are any, spread evenly."""
    rows = ready.dev if len(ready.dev) else ready.train
    step = max(1, len(rows) // marian_ct2.SAMPLES)
    return [rows.row(index)[0].tolist() for index in range(0, len(rows), step)][: marian_ct2.SAMPLES]


def make_rows(ctx: StageContext, settings: TrainMarian, tokenizer: Any) -> tuple[Rows, Facts]:
    """Training rows, then dev rows, those that fit into `max_tokens`.

    Raises:
        MisconfiguredError: the corpus is missing or wrong, or no pair fits.
    """
    ctx.quiet(LOAD_QUIET_S, "reading the verse pairs")
    pairs, dev_pairs = read_training(
        ctx.workspace,
        dev_examples=settings.dev_examples,
        max_examples=settings.max_examples,
        seed=ctx.spec.seed,
        glossary_repeats=settings.glossary_repeats,
    )
    rows = tokenize(ctx, tokenizer, [*pairs, *dev_pairs])
    is_train = np.arange(len(rows)) < len(pairs)
    train_fits = fitting(ctx, rows, is_train, settings.max_tokens, "training")
    dev_fits = fitting(ctx, rows, ~is_train, settings.max_tokens, "dev")
    glossary = sum(pair.reference is None for pair in pairs)
    facts = Facts(int(train_fits.sum()), glossary, digest(data_lines(pairs)), digest(data_lines(dev_pairs)))
    return rows.keep(train_fits | dev_fits), facts


def fitting(ctx: StageContext, rows: Rows, among: NDArray[np.bool_], max_tokens: int, what: str) -> NDArray[np.bool_]:
    """Which rows `among` these have texts of at most `max_tokens` each; others are left out: a cut text teaches to stop too soon.

    Raises:
        MisconfiguredError: none fits.
    """
    sources, targets = rows.lengths()
    fits = among & (np.maximum(sources, targets) <= max_tokens)
    if left_out := int(among.sum() - fits.sum()):
        ctx.note(
            f"{left_out} of {among.sum()} {what} pairs are longer than {max_tokens} tokens and were left out", left_out=left_out
        )
    if among.any() and not fits.any():
        raise MisconfiguredError(f"every {what} pair is longer than max_tokens = {max_tokens}; raise it")
    return fits


class Marks:
    """The ids that a batch is filled with."""

    def __init__(self, config: Any) -> None:
        self.pad = int(config.pad_token_id)
        self.start = int(config.decoder_start_token_id)


def data(rows: Rows, marks: Marks) -> Data:
    """The rows as `stages.training` takes them."""
    return Data(rows.examples(), lambda indices: collate(rows, indices, marks))


def collate(rows: Rows, indices: Sequence[int], marks: Marks) -> Batch:
    """One batch, padded on the right: source ids and their mask; what the decoder sees is the labels one place later.

    `input_ids`, `attention_mask`: (batch, longest source); `decoder_input_ids`, `labels`: (batch, longest target).
    """
    parts = [rows.row(index) for index in indices]
    width, height = (max(len(part[side]) for part in parts) for side in (0, 1))
    input_ids = np.full((len(parts), width), marks.pad, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    decoder_input_ids = np.full((len(parts), height), marks.pad, dtype=np.int64)
    labels = np.full((len(parts), height), IGNORED, dtype=np.int64)
    for number, (source, target) in enumerate(parts):
        input_ids[number, : len(source)] = source
        attention_mask[number, : len(source)] = 1
        decoder_input_ids[number, 0] = marks.start
        decoder_input_ids[number, 1 : len(target)] = target[:-1]
        labels[number, : len(target)] = target
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def translation_loss(smoothing: float) -> Any:
    """The recipe's `token_loss`."""

    def token_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs, use_cache=False).logits
        return summed_loss(logits, batch["labels"], smoothing if model.training else 0.0)

    return token_loss


# -- the model


def load_model(source: str, settings: TrainMarian) -> MarianMTModel:
    """The model in float32, whatever its file has."""
    with loading(settings.model):
        return MarianMTModel.from_pretrained(source, dtype=torch.float32)


def base_identity(source: str, settings: TrainMarian, model: MarianMTModel) -> str:
    """What tells this base model from another one of the same name: a digest of the folder, or the hub's commit."""
    if is_folder(source):
        return tree_digest(Path(source))[0]
    return f"{settings.model}@{getattr(model.config, '_commit_hash', None)}"


class PadRows:
    """The rows of `<pad>` in the embeddings of encoder and decoder, which may be one tensor."""

    def __init__(self, model: MarianMTModel) -> None:
        embeddings = (model.get_encoder().embed_tokens.weight, model.get_decoder().embed_tokens.weight)
        self.weights = list({id(weight): weight for weight in embeddings}.values())
        self.row = int(model.config.pad_token_id)

    def clear(self) -> float:
        """Set them to zero, and return the largest value that was there."""
        with torch.no_grad():
            largest = max(float(weight[self.row].abs().max()) for weight in self.weights)
            for weight in self.weights:
                weight[self.row].zero_()
        return largest

    def mask(self) -> None:
        """Set their gradient to zero."""
        for weight in self.weights:
            if weight.grad is not None:
                weight.grad[self.row].zero_()


if __name__ == "__main__":
    run(main)

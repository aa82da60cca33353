"""TranslateGemma by QLoRA: NF4 weights that stay frozen, small adapters on the language model, loss on the translation only.

Follows QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314): 4-bit NormalFloat, double quantization, bfloat16
computation. TranslateGemma is `Gemma3ForConditionalGeneration`; its vision tower and its embeddings are left alone. Delivers the
adapter with the best dev score and the tokenizer into `fine_tuned_gemma_mi_A` (4B) or `_B` (12B).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from sacrebleu.metrics.chrf import CHRF
from torch import nn
from transformers import AutoConfig, AutoTokenizer, Gemma3ForConditionalGeneration

from stages import footprint
from stages.four_bit import keep_layout, nf4
from stages.gemma_template import Template, read_template
from stages.loading import claim_device, loading, resolve_model
from stages.pair_choice import choose, read_sermons
from stages.runtime import Delivery, StageContext, run
from stages.shrinking import Shrinking
from stages.training import Batch, Data, Example, Recipe, digest, summed_loss, train
from stages.verse_pairs import TrainingPair, data_lines, fold, read_glossary, read_verses, split_dev
from state.contract import MisconfiguredError
from state.settings import TrainGemma

LANGUAGE_MODEL_LAYERS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
"""`all-linear` would adapt the vision tower too."""
LOAD_QUIET_S = 1800.0
"""A model may come over the network first."""
GATE_BATCH = 16
GATE_QUIET_S = 300.0
IGNORED = -100
MOST_ADAPTER_BYTES = 400_000_000
"""Checked before the training, and when it is delivered."""


@dataclass(frozen=True)
class Tokens:
    """Token ids of many texts: text i is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text."""
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Rows:
    """Pairs as token ids; equal texts are stored once. Row i is `prompts[prompt_of[i]]` then `completions[completion_of[i]]`."""

    ids: tuple[str, ...]
    prompts: Tokens
    completions: Tokens
    prompt_of: NDArray[np.int64]
    completion_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.prompts.lengths()[self.prompt_of] + self.completions.lengths()[self.completion_of]

    def longest(self) -> footprint.Longest:
        """Tokens of the longest row, and of the longest completion."""
        return footprint.Longest(int(self.lengths().max()), int(self.completions.lengths()[self.completion_of].max()))

    def keep(self, mask: NDArray[np.bool_]) -> Rows:
        """The rows where `mask` is true."""
        chosen = tuple(name for name, kept in zip(self.ids, mask, strict=True) if kept)
        return Rows(chosen, self.prompts, self.completions, self.prompt_of[mask], self.completion_of[mask])

    def row(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Prompt and completion of row `index`."""
        return self.prompts[int(self.prompt_of[index])], self.completions[int(self.completion_of[index])]


def main(ctx: StageContext) -> Delivery:
    """Train the adapter and deliver it."""
    settings = ctx.settings(TrainGemma)
    source = resolve_model(ctx.workspace, settings.model, "gemma")
    pairs, dev_pairs = read_pairs(ctx, settings)
    ctx.quiet(LOAD_QUIET_S, f"loading {settings.model}")
    with loading(settings.model):
        tokenizer, shape = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source).to_dict()
    template = read_template(tokenizer)
    rows = fitting(ctx, tokenize(tokenizer, template, pairs), settings.max_tokens, "training")
    dev_rows = fitting(ctx, tokenize(tokenizer, template, dev_pairs), settings.max_tokens, "dev")
    ctx.check_stop()
    predicted = footprint.announce(ctx, shape, settings, rows.longest())
    ctx.quiet(LOAD_QUIET_S, f"loading {settings.model}")
    base = load_model(source, settings, claim_device())
    quantized, layers = count_quantized(base), quantizable(base)
    if settings.load_in_4bit and not quantized:
        raise MisconfiguredError(
            f"model {settings.model}: no layer came out quantized; set load_in_4bit = false to train it as it is"
        )
    model = add_adapter(base, settings)
    check_size(sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad))
    trained = train(
        ctx,
        settings,
        Recipe(
            model=model,
            model_name=settings.model,
            train=data(rows, tokenizer.pad_token_id),
            dev=data(dev_rows, tokenizer.pad_token_id) if len(dev_rows) else None,
            token_loss=completion_loss(settings.label_smoothing),
            fingerprint=fingerprint(settings, pairs, dev_pairs, template),
            dev_score=gate(ctx, model, tokenizer, template, dev_pairs[: settings.gate_examples], settings),
            trainer="trl.SFTTrainer",
            processing=tokenizer,
        ),
    )
    ctx.quiet(300.0, "writing the adapter")
    folder = ctx.scratch() / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    save_adapter(model, tokenizer, folder, settings.model)
    check_size((folder / "adapter_model.safetensors").stat().st_size)
    target = ctx.publish(folder, ctx.workspace.fine_tuned_gemma(settings.size))
    scores = {
        name.replace("dev_score", "dev_chrf"): -value for name, value in trained.metrics.items() if name.startswith("dev_score")
    }
    counts = {
        "linear_4bit": float(quantized),
        "linear_layers": float(layers),
        "trainable_parameters": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        "training_pairs": float(len(rows)),
    }
    words = f"{quantized} of {layers} linear layers in NF4 with double quantization" if quantized else "not quantized"
    summary = f"{trained.steps} steps on {len(rows)} pairs; {words}; best adapter at step {trained.best_step}"
    footprint.tell_peak(ctx, predicted)
    return Delivery(outputs=[target], metrics={**trained.metrics, **scores, **counts}, summary=summary)


# -- data


def read_pairs(ctx: StageContext, settings: TrainGemma) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """What is trained on (chosen verses, glossary, sermons), and the dev pairs.

    Raises:
        MisconfiguredError: a file is missing or wrong, or nothing is left to train on.
    """
    verses, dev = split_dev(read_verses(ctx.workspace.train_pairs), settings.dev_examples, ctx.spec.seed)
    chosen, glossary = choose(verses, settings.max_examples, ctx.spec.seed), read_glossary(ctx.workspace.glossary_pairs)
    sermons: list[TrainingPair] = []
    if settings.sermon_pairs is not None:
        tests = read_verses(ctx.workspace.test_pairs) if ctx.workspace.test_pairs.exists() else []
        kept_out = {fold(text) for pair in (*dev, *tests) for text in (pair.en, pair.es)}
        sermons = read_sermons(ctx.resolve(settings.sermon_pairs), kept_out)
    if not (pairs := [*chosen, *glossary, *sermons]):
        raise MisconfiguredError(f"{ctx.workspace.train_pairs}: no pair is left to train on; give a larger corpus")
    ctx.note(
        f"Training on {len(chosen)} of {len(verses)} verse pairs, {len(glossary)} glossary terms and {len(sermons)} sermon pairs",
        verses=len(chosen),
        glossary=len(glossary),
        sermons=len(sermons),
    )
    return pairs, dev


# -- text to rows


def tokenize(tokenizer: Any, template: Template, pairs: Sequence[TrainingPair]) -> Rows:
    """Token ids of the pairs; each distinct text is tokenized once, in batches.

    Prompt and completion are tokenized apart, since generation too starts at that boundary.
    """
    prompts, prompt_of = np.unique(np.array([pair.en for pair in pairs], dtype=object), return_inverse=True)
    completions, completion_of = np.unique(np.array([pair.es for pair in pairs], dtype=object), return_inverse=True)
    return Rows(
        tuple(pair.id for pair in pairs),
        _tokens(tokenizer, [template.prompt(text) for text in prompts]),
        _tokens(tokenizer, [template.completion(text) for text in completions]),
        prompt_of.astype(np.int64),
        completion_of.astype(np.int64),
    )


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Tokens:
    parts: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), 4096):
        encoded = tokenizer(texts[start : start + 4096], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        parts.extend(np.asarray(ids, dtype=np.int32) for ids in encoded)
    lengths = np.array([0, *(len(part) for part in parts)], dtype=np.int64)
    return Tokens(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32), np.cumsum(lengths))


def fitting(ctx: StageContext, rows: Rows, max_tokens: int, what: str) -> Rows:
    """The rows of at most `max_tokens`; a longer one is left out, since a cut translation teaches to stop too soon."""
    mask = rows.lengths() <= max_tokens
    if left_out := int((~mask).sum()):
        ctx.note(f"{left_out} of {len(rows)} {what} pairs are longer than {max_tokens} tokens and were left out", left_out=left_out)
    if len(rows) and not mask.any():
        raise MisconfiguredError(f"every {what} pair is longer than max_tokens = {max_tokens}; raise it")
    return rows.keep(mask)


def data(rows: Rows, pad_id: int) -> Data:
    """The rows as `stages.training` takes them."""
    lengths = rows.lengths()
    examples = [Example(name, int(length)) for name, length in zip(rows.ids, lengths, strict=True)]
    return Data(examples, lambda indices: collate(rows, indices, pad_id))


def collate(rows: Rows, indices: Sequence[int], pad_id: int) -> Batch:
    """One batch, padded on the left so that the completions lie together at the end.

    `input_ids`, `attention_mask`: (batch, longest row); `labels`: (batch, longest completion), the ids of the last columns or -100.
    """
    parts = [rows.row(index) for index in indices]
    width = max(len(prompt) + len(completion) for prompt, completion in parts)
    kept = max(len(completion) for _prompt, completion in parts)
    input_ids = np.full((len(parts), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    labels = np.full((len(parts), kept), IGNORED, dtype=np.int64)
    for number, (prompt, completion) in enumerate(parts):
        length = len(prompt) + len(completion)
        input_ids[number, width - length :] = np.concatenate([prompt, completion])
        attention_mask[number, width - length :] = 1
        labels[number, kept - len(completion) :] = completion
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def completion_loss(smoothing: float) -> Any:
    """The recipe's `token_loss`: logits are made for the completions only, which are half of the memory of 262,144-wide rows."""

    def token_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        labels = batch["labels"]
        kept = labels.shape[1] + 1  # the position before the first completion token predicts it
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=kept, use_cache=False)
        return summed_loss(output.logits[:, :-1], labels, smoothing if model.training else 0.0)

    return token_loss


# -- the model


def load_model(source: str, settings: TrainGemma, device: torch.device) -> Any:
    """The base model on `device`, in NF4 unless the settings say otherwise, with every parameter frozen."""
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    with loading(settings.model):
        model = Gemma3ForConditionalGeneration.from_pretrained(
            source,
            dtype=dtype,
            device_map={"": device.index or 0 if device.type == "cuda" else "cpu"},
            quantization_config=nf4(dtype) if settings.load_in_4bit else None,
        )
    freeze(model)
    return model


def freeze(model: Any) -> None:
    """Nothing of the base is trained, and its vectors compute in float32.

    As peft's `prepare_model_for_kbit_training`, but only vectors (norms, biases) go to float32: the embeddings alone
    would take 2 GB more of a 16 GB card.
    """
    keep_layout(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if parameter.ndim == 1 and parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32)
    model.config.use_cache = False


def quantizable(model: nn.Module) -> int:
    """Linear layers of the model, without the head, which shares the embeddings and stays as it is."""
    return sum(isinstance(module, nn.Linear) and not name.endswith("lm_head") for name, module in model.named_modules())


def count_quantized(model: nn.Module) -> int:
    """Layers whose weights really are packed NF4 with double quantization, by what bitsandbytes keeps beside them."""
    states = [getattr(getattr(module, "weight", None), "quant_state", None) for module in model.modules()]
    return sum(state is not None and state.quant_type == "nf4" and bool(state.nested) for state in states)


def add_adapter(model: Any, settings: TrainGemma) -> PeftModel:
    """LoRA on the language model's linear layers.

    Raises:
        MisconfiguredError: nothing was adapted, or something outside the language model was.
    """
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=LANGUAGE_MODEL_LAYERS,
        task_type="CAUSAL_LM",
        bias="none",
    )
    torch.manual_seed(0)  # the adapter's first weights: the same in every attempt
    adapted = get_peft_model(model, config)
    names = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    strays = [name for name in names if "language_model" not in name or "lora_" not in name or "vision" in name]
    if strays or not names:
        raise MisconfiguredError(f"LoRA reached {len(names)} parameters, {len(strays)} outside the language model ({strays[:1]})")
    return adapted


def check_size(size_bytes: int) -> None:
    """Refuse an adapter that is no longer small: embeddings in it, say, would be gigabytes.

    Raises:
        MisconfiguredError: it is larger than MOST_ADAPTER_BYTES.
    """
    if size_bytes > MOST_ADAPTER_BYTES:
        raise MisconfiguredError(
            f"the adapter takes {size_bytes / 1e6:.0f} MB, and {MOST_ADAPTER_BYTES / 1e6:.0f} are the most; lower lora_rank"
        )


def gate(
    ctx: StageContext, model: PeftModel, tokenizer: Any, template: Template, pairs: Sequence[TrainingPair], settings: TrainGemma
) -> Callable[[], float] | None:
    """The quality gate: minus the chrF++ of the model's own translations of `pairs`; None without pairs.

    Fine-tuning can ruin a translation model while its loss on the verses goes on falling; its translations show it.
    """
    if not pairs:
        return None
    ordered = sorted(pairs, key=lambda pair: (len(pair.en), pair.id))
    batches = Shrinking(ctx, ctx.spec.batch.eval_batch or GATE_BATCH, "dev example")

    def translated(batch: Sequence[TrainingPair]) -> list[str]:
        ctx.check_stop()
        ctx.quiet(GATE_QUIET_S, f"translating {len(ordered)} dev examples")
        return translate(model, tokenizer, template, [pair.en for pair in batch], settings.max_tokens)

    def score() -> float:
        found = [text for _pair, text in batches.run(ordered, translated)]
        return -float(CHRF(word_order=2).corpus_score(found, [[pair.es for pair in ordered]]).score)

    return score


@torch.no_grad()
def translate(model: PeftModel, tokenizer: Any, template: Template, sources: Sequence[str], max_tokens: int) -> list[str]:
    """Greedy translations, of at most twice the longest prompt's tokens."""
    prompts = [tokenizer(template.prompt(source), add_special_tokens=False)["input_ids"] for source in sources]
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    device = next(model.parameters()).device
    ends = tokenizer(template.after, add_special_tokens=False)["input_ids"][:1]
    generated = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=min(2 * width, max_tokens),
        max_length=None,
        do_sample=False,
        top_k=None,
        top_p=None,
        num_beams=1,
        use_cache=True,
        eos_token_id=[*ends, tokenizer.eos_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return [text.strip() for text in tokenizer.batch_decode(generated[:, width:], skip_special_tokens=True)]


def save_adapter(model: PeftModel, tokenizer: Any, folder: Path, base: str) -> None:
    """Write adapter and tokenizer; the adapter names its base model as the settings do, not by a path of this machine.

    peft's README is an empty form that names such a path, and trl writes into it if this attempt has trained: it goes.
    """
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" looks the base up on the hub
    (folder / "README.md").unlink()
    tokenizer.save_pretrained(str(folder))


def fingerprint(
    settings: TrainGemma, pairs: Sequence[TrainingPair], dev_pairs: Sequence[TrainingPair], template: Template
) -> dict[str, str]:
    """What must be unchanged for a resume."""
    return {
        "model": settings.model,
        "data": digest(data_lines(pairs)),
        "dev": digest(data_lines(dev_pairs)),
        "template": digest([template.before, template.between, template.after]),
        "adapter": f"rank {settings.lora_rank} alpha {settings.lora_alpha} 4bit {settings.load_in_4bit}",
        "max_tokens": str(settings.max_tokens),
        "gate": str(settings.gate_examples),
    }


if __name__ == "__main__":
    run(main)

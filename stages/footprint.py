"""How much memory a stage will need, by component, from its settings and the model's config.json alone.

Counted for the longest batch that can come: the weights as they are loaded (NF4 with double quantization: 4.127 bits), adapter,
gradient, optimizer, what a step keeps for its backward pass, the logits (Gemma's vocabulary has 262,208 entries), CUDA's own
share, and the machine's memory while loading. All of it is PURE but `announce` and `measured`, with which a training stage
tells the account before it loads the model, and the measured peak at its end. How far it is right: docs/preflight.md.

    python -m stages.footprint < ASKED.json      # see `Asked`; what comes out is a list of `MemoryPredicted`

The bytes per token below are those of the tensors that PyTorch's autograd keeps for the modules as the stages build them
(transformers 5.23, peft 0.21): `e` is the size of an activation, 2 bytes under bf16 autocast; a cast for the float32 adapter or
norm is a copy under autocast and none without.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from state.needs import Account, MemoryAsked, MemoryPredicted, Part, Place
from state.settings import MODULES, Evaluate, LoRA, Settings, TrainGemma, Training, TrainMarian, TrainWhisper, Transcribe

if TYPE_CHECKING:
    from stages.runtime import StageContext

GPU_SHARE = 0.92
"""What `stages.loading.claim_device` lets a process take of the GPU; the rest is the CUDA context's and the desktop's."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of one weight: 4 bits, an 8-bit scale for each 64, a float32 for each 256 scales (Dettmers et al. 2023, section 3)."""
CONTEXT_BYTES = 500 << 20
"""CUDA's context and the libraries' code; outside of what PyTorch counts."""
WORKSPACE_BYTES = 150 << 20
"""cuBLAS' and cuDNN's workspaces, inside."""
CPU_PROCESS_BYTES, CUDA_PROCESS_BYTES = 900 << 20, 2500 << 20
"""Of the machine's memory: Python with torch, transformers and trl; with CUDA's libraries loaded too."""
ROUNDING = 0.1
"""Of activations and logits: what PyTorch's allocator cannot use again."""
LORA_GEMMA, LORA_WHISPER = 7, 4
PROMPT_TOKENS = 128
"""Of a verse in TranslateGemma's chat template, in evaluation."""
LABEL_TOKENS = 225
"""Of the longest pseudo-label in 30 s: 30 characters a second at four characters a token."""
NEW_TOKENS = 224
GATE_ROWS = 16


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What of a config.json decides memory. Without a decoder: a causal model whose `layers` are all there is."""

    family: str
    """gemma, whisper or marian."""
    hidden: int
    inner: int
    layers: int
    vocabulary: int
    query: int
    """Width of all query heads together; `key` of all key heads."""
    key: int
    decoder_layers: int = 0
    decoder_inner: int = 0
    source_positions: int = 0
    """Whisper: states of the encoder for 30 s."""
    positions: int = 0
    mel_bins: int = 0
    vision_hidden: int = 0
    vision_inner: int = 0
    vision_layers: int = 0
    vision_other: int = 0
    """Parameters of the vision tower and projector that are not linear layers."""


class Longest(msgspec.Struct, frozen=True):
    """The longest example: tokens that go in (Whisper: none, its 30 s are fixed), tokens that are learned."""

    source: int
    target: int


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the process reads."""

    wants: tuple[MemoryAsked, ...]
    place: Place


# -- shapes


GEMMA_VISION = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14, "image_size": 896}
_GEMMA = {"model_type": "gemma3", "vision_config": GEMMA_VISION}
_LARGE = {"model_type": "whisper", "d_model": 1280, "encoder_layers": 32, "encoder_ffn_dim": 5120, "decoder_ffn_dim": 5120}
_LARGE |= {"num_mel_bins": 128, "vocab_size": 51866}
PUBLISHED: dict[str, dict[str, Any]] = {
    "google/translategemma-4b-it": {
        **_GEMMA,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
        },
    },
    "google/translategemma-12b-it": {
        **_GEMMA,
        "text_config": {
            "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
        },
    },
    "openai/whisper-large-v3-turbo": {**_LARGE, "decoder_layers": 4},
    "large-v3-turbo": {**_LARGE, "decoder_layers": 4},
    "openai/whisper-large-v3": {**_LARGE, "decoder_layers": 32},
    "large-v3": {**_LARGE, "decoder_layers": 32},
    "Helsinki-NLP/opus-mt-en-es": {
        "model_type": "marian", "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048, "vocab_size": 65001, "max_position_embeddings": 512,
    },
}  # fmt: skip
"""config.json of models whose own one cannot be read before their licence is accepted. Sources: transformers' converter of Gemma 3
(src/transformers/models/gemma3/convert_gemma3_weights_orbax_to_hf.py, 4.50; TranslateGemma is a fine-tuned Gemma 3), MaxText's
configs/models/gemma3-12b.yml, the model cards of openai/whisper-large-v3(-turbo) and Helsinki-NLP/opus-mt-en-es."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes.

    Raises:
        ValueError: it is of no family that a stage trains, or lacks a number.
    """
    family = str(config.get("model_type", "nothing"))
    try:
        if family.startswith("gemma3"):
            return _gemma(config.get("text_config", config), config.get("vision_config") or {})
        if family in ("marian", "whisper"):
            return _encoder_decoder(family, config)
    except KeyError as error:
        raise ValueError(f"the model's config.json has no {error}") from error
    raise ValueError(f"config.json is of a {family} model; accounts are made for gemma3, whisper and marian")


def _gemma(text: Mapping[str, Any], vision: Mapping[str, Any]) -> Shape:
    head = text.get("head_dim", 256)
    hidden, wide = text["hidden_size"], vision.get("hidden_size", 0)
    patches = (vision.get("image_size", 896) // vision.get("patch_size", 14)) ** 2 if wide else 0
    return Shape(
        family="gemma",
        hidden=hidden,
        inner=text["intermediate_size"],
        layers=text["num_hidden_layers"],
        vocabulary=text.get("vocab_size", 262208),
        query=text.get("num_attention_heads", 8) * head,
        key=text.get("num_key_value_heads", 4) * head,
        vision_hidden=wide,
        vision_inner=vision.get("intermediate_size", 0),
        vision_layers=vision.get("num_hidden_layers", 0),
        vision_other=wide * (3 * vision.get("patch_size", 14) ** 2 + patches + hidden) if wide else 0,
    )


def _encoder_decoder(family: str, config: Mapping[str, Any]) -> Shape:
    width = config["d_model"]
    return Shape(
        family=family,
        hidden=width,
        inner=config["encoder_ffn_dim"],
        layers=config["encoder_layers"],
        vocabulary=config["vocab_size"],
        query=width,
        key=width,
        decoder_layers=config["decoder_layers"],
        decoder_inner=config["decoder_ffn_dim"],
        source_positions=config.get("max_source_positions", 1500) if family == "whisper" else 0,
        positions=config.get("max_target_positions", config.get("max_position_embeddings", 448)),
        mel_bins=config.get("num_mel_bins", 80) if family == "whisper" else 0,
    )


# -- parameters


def linear_weights(shape: Shape) -> int:
    """Weights of all linear layers, without the head, which shares the embeddings."""
    if shape.family == "gemma":
        layer = shape.hidden * (2 * shape.query + 2 * shape.key + 3 * shape.inner)
        vision = shape.vision_hidden * (4 * shape.vision_hidden + 2 * shape.vision_inner)
        return shape.layers * layer + shape.vision_layers * vision
    encoder = shape.hidden * (4 * shape.hidden + 2 * shape.inner)
    decoder = shape.hidden * (8 * shape.hidden + 2 * shape.decoder_inner)
    return shape.layers * encoder + shape.decoder_layers * decoder


def other_weights(shape: Shape) -> int:
    """Embeddings, positions, convolutions; norms and biases are too few to count."""
    embeddings = shape.vocabulary * shape.hidden
    if shape.family == "gemma":
        return embeddings + shape.vision_other
    if shape.family == "whisper":
        convolutions = 3 * shape.hidden * (shape.mel_bins + shape.hidden)
        return embeddings + convolutions + (shape.source_positions + shape.positions) * shape.hidden
    return embeddings + 2 * shape.positions * shape.hidden


def adapter_weights(shape: Shape, rank: int) -> int:
    """LoRA on the language model's seven linear layers, or on Whisper's attention."""
    if shape.family == "gemma":
        across = 3 * (shape.hidden + shape.inner) + 2 * (shape.hidden + shape.query) + 2 * (shape.hidden + shape.key)
        return rank * shape.layers * across
    return rank * 2 * shape.hidden * LORA_WHISPER * (shape.layers + 2 * shape.decoder_layers)


# -- a training


def training(shape: Shape, settings: Training, place: Place, micro_batch: int, longest: Longest | None = None) -> Account:
    """The account of a training step at `micro_batch`, of examples as long as `longest` (None: as long as may be)."""
    long = longest or longest_of(shape, settings)
    trained = (
        adapter_weights(shape, settings.lora_rank) if isinstance(settings, LoRA) else linear_weights(shape) + other_weights(shape)
    )
    parts = {
        "weights": _weights(shape, settings, place),
        "adapter": 4 * trained if isinstance(settings, LoRA) else 0,
        "gradient": 4 * trained,
        "optimizer": (2 if settings.paged_optimizer and place.cuda else 8) * trained,
        **_step(shape, settings, place, micro_batch, long),
        **_cuda(place),
    }
    process = CUDA_PROCESS_BYTES if place.cuda else CPU_PROCESS_BYTES
    saved = trained * (4 + (2 if settings.paged_optimizer and place.cuda else 8))
    account = Account(
        parts=tuple(Part(name, round(size_bytes)) for name, size_bytes in parts.items() if size_bytes),
        micro_batch=micro_batch,
        host_bytes=process + max(_loading(shape, settings, place), saved, _merging(shape, settings)),  # one after the other
        checkpoint_bytes=saved,
        weights_bytes=4 * trained,
        output_bytes=4 * trained + _converted(shape, settings),
    )
    return account if place.cuda else replace(account, host_bytes=max(account.host_bytes, process + account.total_bytes))


def _merging(shape: Shape, settings: Training) -> int:
    """Of the machine, once the training is over: Whisper in float32, then its halves here, in the converter and on their way out.

    Measured: 5.97 bytes a weight (142 million weights, 2026-11-22).
    """
    whole = linear_weights(shape) + other_weights(shape)
    return 6 * whole if isinstance(settings, TrainWhisper) and settings.merge else 0


def _converted(shape: Shape, settings: Training) -> int:
    """The form for CTranslate2 beside it: a merged Whisper in float16, MarianMT as it is."""
    whole = linear_weights(shape) + other_weights(shape)
    if isinstance(settings, TrainMarian):
        return 4 * whole
    return 2 * whole if isinstance(settings, TrainWhisper) and settings.merge else 0


def longest_of(shape: Shape, settings: Training) -> Longest:
    """The longest example that the settings let in. A Gemma's prompt and translation have `max_tokens` together: half each."""
    if isinstance(settings, TrainGemma):
        return Longest(settings.max_tokens, settings.max_tokens // 2)
    if isinstance(settings, TrainMarian):
        return Longest(settings.max_tokens, settings.max_tokens)
    return Longest(0, min(LABEL_TOKENS, shape.positions))


def _weights(shape: Shape, settings: Training, place: Place) -> float:
    half = 2 if settings.bf16 and (place.casts or isinstance(settings, TrainGemma)) else 4
    if isinstance(settings, TrainGemma) and settings.load_in_4bit:
        return NF4_BYTES * linear_weights(shape) + half * other_weights(shape)
    whole = linear_weights(shape) + other_weights(shape)
    return (4 if isinstance(settings, TrainMarian) else half) * whole


def _loading(shape: Shape, settings: Training, place: Place) -> int:
    """Of the machine, beside the process: on its way to the GPU the largest tensor; Marian is read whole."""
    whole = 4 * (linear_weights(shape) + other_weights(shape))
    return whole if isinstance(settings, TrainMarian) else 2 * shape.vocabulary * shape.hidden


def _cuda(place: Place) -> dict[str, float]:
    return {"CUDA libraries": WORKSPACE_BYTES, "CUDA context": CONTEXT_BYTES} if place.cuda else {}


def _step(shape: Shape, settings: Training, place: Place, rows: int, long: Longest) -> dict[str, float]:
    """Activations and logits of one forward and backward pass; or of translating for the quality gate, if that is more."""
    width = Widths(
        e=2 if settings.bf16 and (place.casts or isinstance(settings, TrainGemma)) else 4,
        cast=settings.bf16 and place.casts,
        mask=1 if place.cuda else 4,
    )
    layers = _layers(shape, settings, width, rows, long)
    backward = _transient(shape, settings, rows, long)
    kept = sum(layers)
    if settings.gradient_checkpointing:
        kept = _inputs(shape, rows, long) * width.e
        backward += max(layers)
    learned = rows * long.target * shape.vocabulary
    logits = learned * (12 if settings.label_smoothing == 0 else 16)
    extra = max(0.0, backward - logits)  # the logits' gradient is gone before the last layer's backward pass begins
    slack = 1 + (ROUNDING if place.cuda else 0)
    found = {"activations": (kept + extra) * slack, "logits": logits * slack}
    gate = _gate(shape, settings)
    return found if gate < sum(found.values()) else {"keys and values of the quality gate": gate}


class Widths(msgspec.Struct, frozen=True):
    """Bytes of an activation, whether autocast copies it for float32 parameters, and bytes of a dropout mask's entry."""

    e: int
    cast: bool
    mask: int

    @property
    def adapted(self) -> int:
        """Kept for the input of an adapted linear layer, per entry: the mask, and what came through it."""
        return self.mask + (2 if self.cast else 4)


def _layers(shape: Shape, settings: Training, width: Widths, rows: int, long: Longest) -> list[float]:
    """What each layer keeps for its backward pass."""
    if shape.family == "gemma":
        return [rows * long.source * _gemma_token(shape, settings, width)] * shape.layers
    source = shape.source_positions or long.source
    encoder = rows * source * _encoder_token(shape, width)
    decoder = rows * (long.target * _decoder_token(shape, width) + source * _crossed(shape, width))
    return [encoder] * shape.layers + [decoder] * shape.decoder_layers


def _inputs(shape: Shape, rows: int, long: Longest) -> int:
    """Entries of all layers' inputs: what gradient checkpointing keeps."""
    source = shape.source_positions or long.source
    return rows * shape.hidden * (shape.layers * source + shape.decoder_layers * (source + long.target))


def _gemma_token(shape: Shape, settings: Training, width: Widths) -> float:
    """Four norms, seven adapted linear layers, rotated and normed queries and keys, and the gated product."""
    h, i, q, k = shape.hidden, shape.inner, shape.query, shape.key
    norms = 4 * (4 * h + q + k)
    adapted = width.adapted * (5 * h + q + i) + LORA_GEMMA * width.e * (settings.lora_rank if isinstance(settings, LoRA) else 0)
    attention = width.e * (4 * q + 3 * k)
    return norms + adapted + attention + 3 * width.e * i


def _encoder_token(shape: Shape, width: Widths) -> float:
    if shape.family == "whisper":  # frozen: what only a weight's gradient needs is not kept
        return 8 * shape.hidden + width.adapted * 4 * shape.hidden + width.e * (5 * shape.hidden + shape.inner)
    return _marian_attention(shape, width) + _marian_inner(shape, shape.inner, width)


def _decoder_token(shape: Shape, width: Widths) -> float:
    if shape.family == "whisper":
        return 12 * shape.hidden + width.adapted * 6 * shape.hidden + width.e * (8 * shape.hidden + shape.decoder_inner)
    return 2 * _marian_attention(shape, width) + _marian_inner(shape, shape.decoder_inner, width)


def _crossed(shape: Shape, width: Widths) -> float:
    """Per token of the source, in each layer of the decoder: keys and values, and what their projections keep."""
    if shape.family == "whisper":
        return shape.hidden * (2 * width.adapted + 2 * width.e)
    return shape.hidden * width.e * (4 if width.cast else 2)


def _marian_attention(shape: Shape, width: Widths) -> float:
    """Inputs of the projections, queries, keys, values, what comes out, the dropout, the norm's input and output."""
    copies = 3 * width.e if width.cast else 0
    return shape.hidden * (copies + 5 * width.e + width.mask + 8)


def _marian_inner(shape: Shape, inner: int, width: Widths) -> float:
    return shape.hidden * ((width.e if width.cast else 0) + width.mask + 8) + 2 * width.e * inner


def _transient(shape: Shape, settings: Training, rows: int, long: Longest) -> float:
    """Gradients on their way through the largest layer, and one matrix unpacked."""
    source = shape.source_positions or long.source
    through = rows * source * (6 * shape.inner + 12 * shape.hidden)
    packed = isinstance(settings, TrainGemma) and settings.load_in_4bit
    return through + (2 * shape.hidden * shape.inner if packed else 0)


def _gate(shape: Shape, settings: Training) -> float:
    """Translating dev examples by a Gemma: the keys and values of a batch."""
    if not isinstance(settings, TrainGemma) or not settings.gate_examples:
        return 0.0
    return _cache(shape, GATE_ROWS, 2 * settings.max_tokens, 2)


# -- a translation or a transcription


def _cache(shape: Shape, rows: int, tokens: int, e: int) -> float:
    """Keys and values of all layers that generate, of `tokens` each."""
    return 2.0 * e * (shape.decoder_layers or shape.layers) * shape.key * rows * tokens


def generation(shape: Shape, settings: Evaluate | Transcribe, place: Place) -> Account:
    """The account of translating or transcribing in batches; COMET's process comes after it, and needs less."""
    e = 2 if place.cuda else 4
    linear, other = linear_weights(shape), other_weights(shape)
    rows, source = settings.batch_size, shape.source_positions or PROMPT_TOKENS
    if isinstance(settings, Transcribe):  # CTranslate2: beams share the encoder's keys and values
        weights, searched = 2.0 * (linear + other), rows * settings.beam_size
        cache = _cache(shape, searched, NEW_TOKENS, e) + _cache(shape, rows, source, e)
    elif shape.family == "gemma":
        weights, searched = NF4_BYTES * linear + e * other, rows
        cache = _cache(shape, searched, PROMPT_TOKENS + settings.max_new_tokens, e)
    else:
        weights, searched, e = 4.0 * (linear + other), rows * settings.num_beams, 4
        cache = _cache(shape, searched, PROMPT_TOKENS + settings.max_new_tokens, e)
    states = rows * source * (4 * shape.hidden + 2 * shape.inner) * e
    scores = searched * shape.vocabulary * 12.0
    parts = {"weights": weights, "keys and values": cache, "activations": states + scores, **_cuda(place)}
    process = CUDA_PROCESS_BYTES if place.cuda else CPU_PROCESS_BYTES
    loaded = 0 if place.cuda else round(sum(parts.values()))
    return Account(
        parts=tuple(Part(name, round(size_bytes)) for name, size_bytes in parts.items()),
        micro_batch=settings.batch_size,
        host_bytes=process + max(loaded, 2 * shape.vocabulary * shape.hidden),
        output_bytes=4 * (linear + other) if shape.family == "marian" else 0,  # its form for CTranslate2, while it translates
    )


# -- what fits


def fitting(shape: Shape, settings: Training, place: Place, longest: Longest | None = None) -> Account:
    """The account at the largest micro-batch that fits, as the stage finds it by halving; at 1 where none does, or nobody knows."""
    micro_batch = min(settings.micro_batch or settings.effective_batch, settings.effective_batch) if place.limit_bytes else 1
    while True:
        account = training(shape, settings, place, micro_batch, longest)
        if micro_batch == 1 or fits(account, place) is not False:
            return account
        micro_batch //= 2


def fits(account: Account, place: Place) -> bool | None:
    """Whether there is room; None where nobody knows how much there is."""
    if place.limit_bytes is None:
        return None
    if not place.cuda:
        return account.host_bytes <= place.limit_bytes
    return account.torch_bytes <= GPU_SHARE * place.limit_bytes and account.total_bytes <= place.limit_bytes


def advice(shape: Shape, settings: Training, place: Place) -> str:
    """The first of the settings that save memory, in the order of what they cost, with which one example fits; in words."""
    tried: list[str] = []
    for name, value in _savings(settings):
        settings = replace(settings, **{name: value})
        tried.append(f"{name} = {str(value).lower()}")
        if fits(training(shape, settings, place, 1), place):
            return "set " + ", ".join(tried)
    return "no setting makes it fit: choose a smaller model"


def _savings(settings: Training) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    if not settings.gradient_checkpointing:
        found.append(("gradient_checkpointing", True))
    if not settings.paged_optimizer:
        found.append(("paged_optimizer", True))
    if isinstance(settings, TrainGemma | TrainMarian):
        found += [("max_tokens", tokens) for tokens in (192, 128, 96) if tokens < settings.max_tokens]
    return found


def described(account: Account) -> str:
    """`13.2 GB at micro-batch 4: weights 6.4, ...`, in GB."""
    parts = ", ".join(f"{part.name} {part.size_bytes / 1e9:.2f}" for part in account.parts)
    return f"{account.total_bytes / 1e9:.2f} GB at micro-batch {account.micro_batch}: {parts}"


# -- in a training stage


def announce(ctx: StageContext, config: Mapping[str, Any], settings: Training, longest: Longest | None = None) -> Account | None:
    """Tell what the training will need, before it loads the model that `config` describes; None where there is no account."""
    import torch  # late: the account itself needs none of it

    batch, cuda = ctx.spec.batch, torch.cuda.is_available()
    rung = {
        "micro_batch": batch.micro_batch,
        "paged_optimizer": batch.paged_optimizer,
        "gradient_checkpointing": batch.gradient_checkpointing,
    }
    settings = replace(settings, **{name: value for name, value in rung.items() if value is not None})
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = torch.cuda.get_device_properties(0).total_memory if cuda else machine
    place = Place(cuda, limit)
    try:
        account = fitting(shape_of(config), settings, place, longest)
    except ValueError as error:
        ctx.note(f"Memory cannot be predicted: {error}")
        return None
    text = f"Predicted memory {described(account)}"
    if fits(account, place) is False:
        ctx.note(f"{text}; that is more than there is ({limit / 1e9:.1f} GB)", level="warning")
    else:
        ctx.note(text)
    return account


def tell_peak(ctx: StageContext, account: Account | None) -> None:
    """Tell the peak that was measured, as metrics beside what was predicted, and in a sentence where it can be compared.

    No part of the receipt: that is the same whatever attempt delivers it.
    """
    import resource

    import torch

    found = {"peak_memory_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}
    if account is None:
        ctx.metric(found)
        return
    predicted, peak, what = account.host_bytes, found["peak_memory_bytes"], "of the machine's memory"
    if torch.cuda.is_available():
        found["peak_gpu_bytes"] = peak = float(torch.cuda.max_memory_reserved())
        predicted, what = account.torch_bytes, "of the GPU"
    found["predicted_bytes"] = float(predicted)
    ctx.metric(found)
    ctx.note(f"Peak {what} {peak / 1e9:.2f} GB; {predicted / 1e9:.2f} GB were predicted for micro-batch {account.micro_batch}")


# -- the process


def predict(want: MemoryAsked, place: Place) -> MemoryPredicted:
    """The account of one want, or why there is none."""
    config = want.config or PUBLISHED.get(want.model)
    if config is None:
        return MemoryPredicted(stage=want.stage, model=want.model, why_not="its config.json is not here yet")
    try:
        shape = shape_of(config)
        settings: Settings = msgspec.convert(want.settings, MODULES[want.module])
    except (ValueError, KeyError) as error:
        return MemoryPredicted(stage=want.stage, model=want.model, why_not=str(error))
    found = MemoryPredicted(stage=want.stage, model=want.model)
    if isinstance(settings, Training):
        account = fitting(shape, settings, place)
        room = fits(account, place)
        return replace(found, account=account, fits=room, advice=advice(shape, settings, place) if room is False else "")
    if isinstance(settings, Evaluate | Transcribe):
        account = generation(shape, settings, place)
        room = fits(account, place)
        words = f"set batch_size = {max(1, settings.batch_size // 4)}" if room is False else ""
        return replace(found, account=account, fits=room, advice=words)
    return replace(found, why_not="it loads no model")


def main() -> int:
    """Answer what stands on standard input."""
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Asked)
    sys.stdout.buffer.write(msgspec.json.encode([predict(want, asked.place) for want in asked.wants]) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

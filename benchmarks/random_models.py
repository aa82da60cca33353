"""Models of the published shapes with random weights, for measurements on a GPU without a download.

Tokenizers are the demo's, trained on the sample's sentences; their ids lie within the published vocabularies. Marian and Whisper
are whole folders that the stages load as any other. A Gemma's folder has the shape, and the stage's `load_model` is
replaced by `quantized_gemma`, which makes and quantizes one matrix at a time: a 12B never takes 24 GB anywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import (
    AutoConfig,
    Gemma3ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers import AutoHfQuantizer

from stages import four_bit, tiny, train_gemma
from stages.footprint import PUBLISHED
from state.settings import TrainGemma

INIT_STD = 0.02


def marian(folder: Path, *, real: bool) -> None:
    """A Marian of opus-mt-en-es's shape, or the demo's."""
    tiny.make_marian(folder, tiny.sample_pairs())
    if real:
        config = MarianConfig.from_pretrained(folder)
        published = PUBLISHED["Helsinki-NLP/opus-mt-en-es"]
        heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
        config.update({**published, **heads, "decoder_vocab_size": published["vocab_size"], "init_std": INIT_STD})
        MarianMTModel(config).save_pretrained(folder)


def whisper(folder: Path, *, real: bool) -> None:
    """A Whisper of large-v3-turbo's shape, or the demo's, in the precision that it is published in."""
    tiny.make_whisper(folder, [english for english, _spanish in tiny.sample_pairs()])
    if real:
        config = WhisperConfig.from_pretrained(folder)
        heads = {"encoder_attention_heads": 20, "decoder_attention_heads": 20, "init_std": INIT_STD}
        config.update({**PUBLISHED["large-v3-turbo"], **heads})
        WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
        WhisperForConditionalGeneration(config).to(torch.float16).save_pretrained(folder)


def gemma(folder: Path, name: str, *, real: bool) -> None:
    """Tokenizer and shape of the published model `name`; its weights file holds nothing that is used."""
    tiny.make_gemma(folder, tiny.sample_pairs(), "a")
    if real:
        path = folder / "config.json"
        config, published = json.loads(path.read_text()), PUBLISHED[name]
        config["text_config"].update({**published["text_config"], "query_pre_attn_scalar": 256, "sliding_window": 1024})
        config["text_config"].pop("layer_types", None)  # of as many layers as the demo's has
        config["vision_config"].update(published["vision_config"])
        path.write_text(json.dumps(config))


def quantized_gemma(source: str, settings: TrainGemma, device: torch.device) -> Any:
    """As `train_gemma.load_model`, with random weights in the shape that `source` describes."""
    dtype = torch.bfloat16 if settings.bf16 else torch.float32
    quantization = four_bit.nf4(dtype)
    with init_empty_weights(include_buffers=False):
        model = Gemma3ForConditionalGeneration(AutoConfig.from_pretrained(source))
    model = replace_with_bnb_linear(model, modules_to_not_convert=["lm_head"], quantization_config=quantization)
    torch.manual_seed(0)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            module.register_parameter(name, _filled(module, name, parameter, dtype, device))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
    model.lm_head.weight = model.get_input_embeddings().weight
    model.is_loaded_in_4bit = model.is_quantized = True
    model.config.quantization_config = quantization
    model.hf_quantizer = AutoHfQuantizer.from_config(quantization)
    train_gemma.freeze(model)
    return model


def _filled(
    module: torch.nn.Module, name: str, parameter: torch.nn.Parameter, dtype: torch.dtype, device: torch.device
) -> torch.nn.Parameter:
    """Random values for a parameter that has none; packed where its layer is in 4 bits."""
    if isinstance(module, torch.nn.Linear) and not isinstance(module, Linear4bit) and name == "weight":
        return torch.nn.Parameter(torch.empty(0, dtype=dtype, device=device), requires_grad=False)  # the head: it is the embeddings
    values = torch.zeros(parameter.shape, dtype=dtype, device=device)
    if values.ndim > 1:
        values.normal_(0, INIT_STD)
    if isinstance(module, Linear4bit) and name == "weight":
        packed = Params4bit(values, requires_grad=False, quant_type="nf4", compress_statistics=True, module=module)
        return packed.to(device)
    return torch.nn.Parameter(values, requires_grad=False)

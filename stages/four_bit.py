"""Gemma's weights in 4 bits, the same in training and in evaluation."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BitsAndBytesConfig


def nf4(dtype: torch.dtype) -> BitsAndBytesConfig:
    """NF4 with double quantization, computing in `dtype`."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def keep_layout(model: nn.Module) -> None:
    """Forbid bitsandbytes to repack 4-bit weights at the first evaluation on a CPU with AVX512-BF16.

    Measured with bitsandbytes 0.50.2: repacked layers lose their double quantization and round the scales to bfloat16, so that
    results depend on the CPU; in later training steps they pass no gradient on to the layers below, without an error; and
    layers whose width is no multiple of 64 fail.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # torch takes any attribute for a tensor

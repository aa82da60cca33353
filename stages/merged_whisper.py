"""The adapter merged into its Whisper and converted for faster-whisper (CTranslate2), checked against base and adapter.

The check needs no second decoder: CTranslate2 says greedily what it hears in some chunks, and base and adapter, never merged and
in float32, score the same words. Every one of them must be their own choice too, or as good as it within TIE, and the score of
the whole must be theirs. A merge that lost the adapter, mixed-up weights or a wrong log-mel setting all show there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from stages.runtime import StageContext, disk_refuses
from state.contract import StageError

FOLDER = "merged-ct2"
SAMPLES = 2
MOST_TOKENS = 48
"""Of each sample: enough for a dozen words and cheap enough for a CPU."""
TIE = 0.05
"""Natural log: float16 weights move a score by some thousandths."""
SCORE_TOLERANCE = 0.02
"""Of the mean log-probability of a token."""
QUIET_S = 1800.0
BYTES_A_WEIGHT = 2  # float16
COPIES = 2.2
"""The merged model as transformers writes it, and CTranslate2's form."""


@dataclass(frozen=True)
class Sample:
    """What CTranslate2 heard in one chunk."""

    tokens: list[int]
    """With the end mark, if it came to one."""
    score: float
    """Sum of the tokens' natural log-probabilities."""


@dataclass(frozen=True)
class Prompt:
    """What the decoder is given and how it ends."""

    prefix: list[int]
    end: int


def deliver(
    ctx: StageContext, source: str, adapter: Path, processor: WhisperProcessor, prompt: Prompt, features: NDArray[np.float32]
) -> str | None:
    """Put `merged-ct2` into the folder of the adapter; why not, where it cannot be made or is not equal.

    Hours of training lie behind the adapter, so nothing that goes wrong here costs it, but a stop and a disk that fails.
    """
    work = ctx.scratch() / "merging"
    shutil.rmtree(work, ignore_errors=True)
    try:
        fault = _make(ctx, source, adapter, processor, prompt, features, work)
        if fault is None:
            os.replace(work / FOLDER, adapter / FOLDER)
    except Exception as error:  # a loader's and a converter's failures have no common base
        if isinstance(error, StageError) or disk_refuses(error):
            raise
        fault = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return fault


def _make(
    ctx: StageContext,
    source: str,
    adapter: Path,
    processor: WhisperProcessor,
    prompt: Prompt,
    features: NDArray[np.float32],
    work: Path,
) -> str | None:
    ctx.quiet(QUIET_S, "merging the adapter")
    model = adapted(source, adapter)
    needed_bytes = int(COPIES * BYTES_A_WEIGHT * model.base_model.num_parameters())
    if (free_bytes := shutil.disk_usage(ctx.scratch()).free) < needed_bytes:
        return f"it needs {needed_bytes / 1e9:.1f} GB and the disk has {free_bytes / 1e9:.1f}"
    convert(model.merge_and_unload(), processor, work)
    del model
    ctx.check_stop()
    ctx.quiet(QUIET_S, "checking the merged model")
    heard = listen(work / FOLDER, prompt, features)
    ctx.check_stop()
    return differing(adapted(source, adapter), prompt, features, heard)


def adapted(source: str, adapter: Path) -> PeftModel:
    """Base and adapter side by side, in float32 on the CPU."""
    base = WhisperForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    return PeftModel.from_pretrained(base, str(adapter), torch_device="cpu").eval()


def convert(merged: Any, processor: WhisperProcessor, work: Path) -> None:
    """Write the model in transformers' form into `work / "hf"` and in CTranslate2's into `work / FOLDER`, float16 both."""
    from ctranslate2.converters import TransformersConverter

    merged.half().save_pretrained(work / "hf")
    processor.save_pretrained(work / "hf")
    processor.feature_extractor.save_pretrained(work / "hf")  # preprocessor_config.json: faster-whisper's mel bins
    converter = TransformersConverter(str(work / "hf"), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.convert(str(work / FOLDER), quantization="float16")


def listen(folder: Path, prompt: Prompt, features: NDArray[np.float32]) -> list[Sample]:
    """What the model of CTranslate2 hears in `features` (samples, mel bins, frames), computed in float32 on the CPU."""
    import ctranslate2

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    model = ctranslate2.models.Whisper(str(folder), device="cpu", compute_type="float32", intra_threads=threads)
    heard = []
    for one in features:
        (found,) = model.generate(
            ctranslate2.StorageView.from_array(np.ascontiguousarray(one[None])),
            [prompt.prefix],
            beam_size=1,
            length_penalty=0.0,
            max_length=2 * MOST_TOKENS,  # of prompt and text; the text gets half of it at most
            return_scores=True,
            suppress_blank=False,
            suppress_tokens=[],
        )
        tokens = list(found.sequences_ids[0])
        ended = len(tokens) < MOST_TOKENS
        heard.append(Sample([*tokens, prompt.end] if ended else tokens, float(found.scores[0])))
    return heard


@torch.no_grad()
def differing(model: Any, prompt: Prompt, features: NDArray[np.float32], heard: Sequence[Sample]) -> str | None:
    """Where `model` would not have said what was heard, or not so surely; None if it would."""
    for number, (one, sample) in enumerate(zip(features, heard, strict=True), start=1):
        given = torch.tensor([[*prompt.prefix, *sample.tokens[:-1]]])
        logits = model(input_features=torch.from_numpy(one[None]), decoder_input_ids=given, use_cache=False).logits
        scores = logits[0, len(prompt.prefix) - 1 :].double().log_softmax(-1)
        own = scores.gather(1, torch.tensor(sample.tokens)[:, None])[:, 0]
        behind = float((scores.max(dim=1).values - own).max())
        apart = abs(float(own.sum()) - sample.score) / len(sample.tokens)
        if behind > TIE or apart > SCORE_TOLERANCE:
            return f"sample {number} of {len(heard)}: a word is {behind:.3f} behind the adapter's own, the score {apart:.3f} apart"
    return None

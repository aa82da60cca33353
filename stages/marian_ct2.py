"""The trained MarianMT in CTranslate2's form (float32), which translates several times as fast, checked against the model itself.

CTranslate2 translates some held-out sources word by word, and the model, given the same beginnings, must choose every one of those
words too, or one as good within TIE, and give the whole the same probability. Mixed-up weights, another start of the decoder and
another vocabulary all show there. What is in the folder was equal; where it was not there is no folder, and evaluation decodes
with transformers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from stages.runtime import StageContext, disk_refuses
from state.contract import StageError
from state.durable import file_digest

FOLDER = "ct2"
"""Below the folder of the model."""
CHECKED = "checked.json"
"""In it: what it was compared with and how."""
SAMPLES = 32
MOST_TOKENS = 64
"""Of each sample."""
TIE = 1e-3
"""Natural log, of a word and of the mean word of a translation: float32 on both sides."""
QUIET_S = 600.0

Ids = Sequence[int]


class Checked(msgspec.Struct, frozen=True):
    """The comparison that a folder has passed."""

    weights: str
    """SHA-256 of the model.safetensors that it was made from."""
    samples: int
    words: int
    behind: float
    """By how much a word of CTranslate2 was behind the model's own choice at most, in natural log."""
    apart: float
    """How far the mean score of a word was from the model's at most, in natural log."""


class Said(msgspec.Struct, frozen=True):
    """CTranslate2's translation of one source."""

    ids: list[int]
    """With the end mark, if it came to one."""
    score: float
    """Sum of their natural log-probabilities."""


def deliver(ctx: StageContext, model: Any, tokenizer: Any, folder: Path, sources: Sequence[Ids]) -> str | None:
    """Put `ct2` into the folder that `model` and `tokenizer` were saved to; why not, where it cannot be made or is not equal.

    Hours of training lie behind the model, so nothing that goes wrong here costs it, but a stop and a disk that fails.

    Args:
        sources: token ids with the end mark.
    """
    target = folder / FOLDER
    ctx.quiet(QUIET_S, "converting the model to CTranslate2")
    try:
        convert(folder, target)
        ctx.check_stop()
        said = translate(target, tokenizer, sources)
        words = sum(len(one.ids) for one in said)
        behind, apart = compare(model, sources, said)
    except Exception as error:  # a converter's failures have no common base
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, StageError) or disk_refuses(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not max(behind, apart) <= TIE:
        shutil.rmtree(target)
        return f"of {words} words one is {behind:.3f} behind the model's own choice, and a mean score is {apart:.3f} apart"
    checked = Checked(file_digest(folder / "model.safetensors"), len(sources), words, behind, apart)
    (target / CHECKED).write_bytes(msgspec.json.encode(checked))
    return None


def convert(folder: Path, target: Path) -> None:
    """Write CTranslate2's form of the model in `folder`."""
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(target), force=True)


def translate(folder: Path, tokenizer: Any, sources: Sequence[Ids]) -> list[Said]:
    """CTranslate2's greedy translations, computed in float32 on the CPU."""
    import ctranslate2

    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    model = ctranslate2.Translator(str(folder), device="cpu", compute_type="float32", intra_threads=threads)
    pieces = [tokenizer.convert_ids_to_tokens([int(token) for token in source]) for source in sources]
    settings: dict[str, Any] = {"beam_size": 1, "length_penalty": 0.0, "return_scores": True, "max_decoding_length": MOST_TOKENS}
    said = []
    for found in model.translate_batch(pieces, **settings):
        ids = tokenizer.convert_tokens_to_ids(found.hypotheses[0])
        said.append(Said(ids if len(ids) >= MOST_TOKENS else [*ids, tokenizer.eos_token_id], found.scores[0]))
    return said


@torch.no_grad()
def compare(model: Any, sources: Sequence[Ids], said: Sequence[Said]) -> tuple[float, float]:
    """By how much `model` would rather have said another word, and how far its mean score of a word is from the one in `said`."""
    model.eval()
    pad, start = model.config.pad_token_id, model.config.decoder_start_token_id
    words = [one.ids for one in said]
    (inputs, mask), (seen, _), (labels, real) = (
        (part.to(model.device) for part in _padded(rows, pad)) for rows in (sources, [[start, *ids[:-1]] for ids in words], words)
    )
    logits = model(input_ids=inputs, attention_mask=mask.long(), decoder_input_ids=seen, use_cache=False).logits.double()
    logits[..., pad] = -torch.inf  # no decoder says it
    scores = logits.log_softmax(-1)
    own = scores.gather(-1, labels[..., None])[..., 0]
    behind = (scores.max(dim=-1).values - own)[real].max()
    sums = own.masked_fill(~real, 0.0).sum(dim=1).cpu()
    theirs = torch.tensor([one.score for one in said], dtype=torch.float64)
    lengths = torch.tensor([len(ids) for ids in words])
    return float(behind), float(((sums - theirs).abs() / lengths).max())


def _padded(rows: Sequence[Ids], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, longest row): the ids filled up with `pad`, and where they are real."""
    lengths = np.array([len(row) for row in rows])
    table = np.full((len(rows), lengths.max()), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return torch.from_numpy(table), torch.from_numpy(np.arange(lengths.max()) < lengths[:, None])

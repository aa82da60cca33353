"""Teaching the demo's Whisper the demo's own sentences, so that its pseudo-labels are words and not noise.

It learns a handful of clips by heart in well under a minute and knows nothing else. Most steps see the sound without the
silence that fills Whisper's 30 seconds, which makes them cheap; a few at the end see all of it, filled as transformers fills
it (silence) and as faster-whisper does (zeros).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from stages import audio

Wave = NDArray[np.float32]

RATE = 16_000
HOP = 160
FRAMES = 3000
VERSIONS = 4
"""Of each clip: another cut, another noise, cleaned or not."""
SHORT_STEPS, SHORT_BATCH, SHORT_RATE = 200, 8, 3e-3
LONG_STEPS, LONG_BATCH, LONG_RATE = 24, 4, 1e-3
EARLY_STEP = 100
"""The weights of this step are kept too: a pupil that still has something to learn."""
NOT_LEARNED = frozenset({"model.encoder.embed_positions.weight", "proj_out.weight"})
"""Fixed sines, and what is tied to the embeddings."""
PAUSE_PADDING_S = (0.1, 0.5)


@dataclass(frozen=True)
class Clip:
    """One sentence as spoken, (samples,) float32 at 16 kHz, with the pauses around it."""

    wave: Wave
    text: str


def read_clips(folder: Path) -> list[Clip]:
    """The sentences of the recordings that `clips.json` lists, and the clips of `replay/metadata.jsonl`."""
    clips = []
    for entry in json.loads((folder / "clips.json").read_text(encoding="utf-8"))["recordings"]:
        clips += sentences(_wave(folder / entry["file"]), entry["text"])
    replay = folder / "replay" / "metadata.jsonl"
    for line in replay.read_text(encoding="utf-8").splitlines() if replay.exists() else []:
        entry = json.loads(line)
        clips.append(Clip(_wave(folder / "replay" / entry["file_name"]), entry["text"]))
    return clips


def sentences(wave: Wave, text: str) -> list[Clip]:
    """A recording cut in the middle of its longest pauses, one clip a sentence of `text`."""
    parts = [part.strip() for part in re.findall(r"[^.?!]+[.?!]", text)]
    pauses = sorted(_pauses(wave), key=lambda pause: pause[0] - pause[1])[: len(parts) - 1]
    cuts = [0, *sorted((start + end) // 2 for start, end in pauses), len(wave)]
    return [Clip(wave[start:end], part) for start, end, part in zip(cuts, cuts[1:], parts, strict=False)]


def teach(folder: Path, clips: Sequence[Clip], seed: int) -> dict[str, torch.Tensor]:
    """Train the Whisper in `folder` on the clips and save it there; returns its weights as they were at EARLY_STEP."""
    processor = WhisperProcessor.from_pretrained(folder)
    model = WhisperForConditionalGeneration.from_pretrained(folder)
    chance = np.random.default_rng(seed)
    rows = [(torch.from_numpy(sound), text) for sound, text in _versions(processor, clips, chance)]
    early: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in _steps(model, processor, rows, chance):
            if step == EARLY_STEP:
                early = {name: value.detach().clone() for name, value in model.state_dict().items() if name not in NOT_LEARNED}
    model.save_pretrained(folder)
    return early


def _steps(
    model: Any, processor: WhisperProcessor, rows: Sequence[tuple[torch.Tensor, list[int]]], chance: np.random.Generator
) -> Iterator[int]:
    """Optimizer steps, yielding the number of each one done: short ones first, then long ones."""
    positions = model.model.encoder.embed_positions.weight.detach().clone()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.0, betas=(0.9, 0.98))
    longest = max(int((sound != sound[:, -1:]).any(0).nonzero().max()) for sound, _text in rows) + 1
    short = min(FRAMES, -(-(longest + 50) // 100) * 100)
    model.train()
    model.config.dropout = 0.0
    for step in range(SHORT_STEPS + LONG_STEPS):
        late = step >= SHORT_STEPS
        frames, size = (FRAMES, LONG_BATCH) if late else (short, SHORT_BATCH)
        left = 1 - (step - SHORT_STEPS) / LONG_STEPS if late else min(1.0, (step + 1) / 20) * (1 - 0.7 * step / SHORT_STEPS)
        for group in optimizer.param_groups:
            group["lr"] = left * (LONG_RATE if late else SHORT_RATE)
        _fit_encoder(model, positions, frames // 2)
        chosen = chance.choice(len(rows), size=min(size, len(rows)), replace=False)
        _loss(model, processor, [rows[index] for index in chosen], frames).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1
    _fit_encoder(model, positions, len(positions))


def _fit_encoder(model: Any, positions: torch.Tensor, length: int) -> None:
    """Let the encoder take 2 x `length` frames; its positions are fixed sines, so the first ones stay what they are."""
    encoder = model.model.encoder
    if encoder.embed_positions.num_embeddings == length:
        return
    encoder.embed_positions = torch.nn.Embedding.from_pretrained(positions[:length].clone(), freeze=True)
    encoder.max_source_positions = encoder.config.max_source_positions = length


def _loss(model: Any, processor: WhisperProcessor, rows: Sequence[tuple[torch.Tensor, list[int]]], frames: int) -> torch.Tensor:
    prefix, end = list(processor.tokenizer.prefix_tokens), processor.tokenizer.eos_token_id
    width = max(len(text) for _sound, text in rows) + len(prefix) - 1
    inputs = torch.full((len(rows), width), end)
    targets = torch.full((len(rows), width), -100)
    for number, (_sound, text) in enumerate(rows):
        inputs[number, : len(prefix) + len(text) - 1] = torch.tensor([*prefix, *text[:-1]])
        targets[number, len(prefix) - 1 : len(prefix) + len(text) - 1] = torch.tensor(text)
    sounds = torch.stack([sound[:, :frames] for sound, _text in rows])
    logits = model(input_features=sounds, decoder_input_ids=inputs, use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _versions(
    processor: WhisperProcessor, clips: Sequence[Clip], chance: np.random.Generator
) -> Iterator[tuple[NDArray[np.float32], list[int]]]:
    """Log-mel features (80, 3000) and text ids of every clip, in the versions that passes and cutting may make of it."""
    tokenizer = processor.tokenizer
    tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    for clip in clips:
        ids = [*tokenizer.encode(f" {clip.text}", add_special_tokens=False), tokenizer.eos_token_id]
        cleaned = _cleaned(clip.wave)
        for version in range(VERSIONS):
            wave = _trimmed(clip.wave if version < VERSIONS // 2 else cleaned, chance)
            wave = wave + chance.normal(0, 10 ** chance.uniform(-5, -3.5), len(wave)).astype(np.float32)
            found = processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="np")["input_features"][0]
            if version % 2:
                found[:, len(wave) // HOP + 1 :] = 0.0
            yield found, ids


def _cleaned(wave: Wave) -> Wave:
    """The wave after the demo's own audio passes."""
    passed = audio.band_pass(80.0, 7600.0)(wave).astype(np.float32)
    return np.concatenate(list(audio.denoise([passed], 0.7)))


def _trimmed(wave: Wave, chance: np.random.Generator) -> Wave:
    """The speech with some of the pause on either side."""
    loud = np.flatnonzero(_envelope(wave) > _threshold(wave)) * HOP
    before, after = (int(chance.uniform(*PAUSE_PADDING_S) * RATE) for _side in range(2))
    return wave[max(0, int(loud[0]) - before) : int(loud[-1]) + after]


def _pauses(wave: Wave) -> list[tuple[int, int]]:
    """First and last sample of each quiet stretch inside the recording."""
    loud = np.flatnonzero(_envelope(wave) > _threshold(wave)) * HOP
    return [(int(a), int(b)) for a, b in pairwise(loud) if b - a > HOP]


def _envelope(wave: Wave) -> NDArray[np.float64]:
    """Mean level over 100 ms around each 10 ms."""
    smooth = np.convolve(np.abs(wave), np.ones(RATE // 10) / (RATE // 10), "same")
    return smooth[::HOP]


def _threshold(wave: Wave) -> float:
    return 0.12 * float(np.percentile(_envelope(wave), 90))


def _wave(path: Path) -> Wave:
    samples, rate = soundfile.read(path, dtype="float32")
    if rate != RATE or samples.ndim != 1:
        raise ValueError(f"{path} is not 16 kHz mono")
    return np.asarray(samples, dtype=np.float32)

"""Takes the music out of the stretches that have some: a demucs-like model, in place on a raw file, a block at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import gcd
from pathlib import Path
from typing import BinaryIO

import numpy as np
from scipy import signal

from stages.audio import RATE, Wave
from stages.loading import loading
from state.contract import MisconfiguredError

BLOCK = 30 * RATE
FADE = RATE // 2
"""Neighbouring blocks, and the stretch with what is around it, go over into each other for half a second."""

Voice = Callable[[Wave], Wave]
"""The voice in some samples; as many come out as went in."""


def separate(path: Path, spans: Sequence[tuple[int, int]], voice: Voice, beat: Callable[[int], None]) -> float:
    """Put the voice alone into `spans` of the raw float32 file `path`; returns how many dB they lost by it.

    Outside of the spans no sample changes. `beat` gets the samples that were done.
    """
    before = after = 0.0
    samples = path.stat().st_size // 4
    with open(path, "r+b") as file:
        for start, end in spans:
            tail = _read(file, start, min(start + FADE, end) if start else start)
            at, last = start, False
            while not last:
                sound = _read(file, at, min(at + BLOCK, end))
                last = at + len(sound) >= end
                clean = voice(sound).astype(np.float32)
                _fade(clean[: len(tail)], tail[: len(clean)])
                if last and end < samples:
                    _fade(clean[::-1][:FADE], sound[::-1][:FADE])
                keep = len(clean) if last else len(clean) - FADE
                before += float((sound[:keep] ** 2).sum())
                after += float((clean[:keep] ** 2).sum())
                file.seek(at * 4)
                file.write(np.ascontiguousarray(clean[:keep]).data)
                tail, at = clean[keep:].copy(), at + keep
                beat(keep)
    return float(10 * np.log10(max(before, 1e-12) / max(after, 1e-12)))


def _read(file: BinaryIO, start: int, end: int) -> Wave:
    file.seek(start * 4)
    return np.fromfile(file, np.float32, end - start)


def _fade(into: Wave, source: Wave) -> None:
    """`into` begins as `source` and ends as itself."""
    rise = np.linspace(0, 1, len(into), dtype=np.float32)
    into *= rise
    into += source * (1 - rise)


@functools.lru_cache(maxsize=1)
def voice_of(name: str) -> Voice:
    """The voice by demucs, on the CPU: the GPU is another stage's. Loaded once a process.

    `name` is one of demucs's own (`htdemucs`), which it fetches from its hub, or a .safetensors file in its layout.

    Raises:
        MisconfiguredError: demucs is not installed, or the model has no voice among its sources.
    """
    check(name)
    import torch
    from demucs.apply import apply_model
    from demucs.hf import get_hf_model, load_safetensors_model

    with loading(name):
        model = (load_safetensors_model(name) if name.endswith(".safetensors") else get_hf_model(name)).eval()
    if "vocals" not in model.sources:
        raise MisconfiguredError(f"separation_model {name} knows {', '.join(model.sources)} and no vocals: name another")
    index, rate, channels = model.sources.index("vocals"), int(model.samplerate), int(model.audio_channels)
    common = gcd(rate, RATE)

    def voice(sound: Wave) -> Wave:
        loud = max(float(sound.std()), 1e-5)  # demucs was trained on sound of unit spread
        fine = signal.resample_poly(sound / loud, rate // common, RATE // common).astype(np.float32)
        with torch.inference_mode():
            sources = apply_model(model, torch.from_numpy(fine).expand(1, channels, -1), shifts=0, device="cpu")
        vocals = sources[0, index].mean(dim=0).numpy() * loud
        back = signal.resample_poly(vocals, RATE // common, rate // common)[: len(sound)]
        return np.pad(back, (0, len(sound) - len(back))).astype(np.float32)

    return voice


def check(name: str) -> None:
    """Find out before the first recording whether the model can be had.

    Raises:
        MisconfiguredError: demucs is not installed, or the file that `name` says is not there.
    """
    from importlib.util import find_spec

    if find_spec("demucs") is None:
        raise MisconfiguredError(f"separation_model {name} needs demucs, which is not installed: pip install demucs, or name none")
    if name.endswith(".safetensors") and not Path(name).is_file():
        raise MisconfiguredError(f"separation_model {name} is not there: correct the path, or name none")

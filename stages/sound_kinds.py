"""Which parts of a recording hold speech, music or noise: by measure, and by a trained model where one is named.

The measure needs no weights. Music holds its notes: lines that stand still in the spectrum for most of a second, also
under speech and between its words; the harmonics of a voice glide and break off. A voice comes and goes by many decibels
within seconds, noise does not. A trained model is asked about the doubtful and musical stretches alone, since on a CPU it
costs about as much as the sound is long. Arrays in, arrays out; only `Listener` keeps something between blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from stages.audio import RATE, Powers, Wave
from stages.loading import loading

FRAME = 1024
CELL_FRAMES = 16
CELL = CELL_FRAMES * FRAME
"""1.024 s: what is said to be one kind of sound."""
BAND_HZ = (80.0, 7600.0)
LINES_HZ = (150.0, 4000.0)
NEIGHBOURS = 25  # bins, 390 Hz: what a line stands out from
LINE_DB = 8.0
HELD_SHARE = 0.75  # of a cell's time a line is there
MUSIC_LINES, MAYBE_LINES = 6, 3
AROUND = 5  # cells that vote on the middle one
HUM_SHARE, HUM_CELLS = 0.9, 60  # a line in nine of ten cells of a minute or more is the mains and no tune
VOICE_SWING_DB = 10.0
AUDIBLE_DB = -60.0
MODEL_CELLS = 10  # 10.24 s, the length that AudioSet's clips have
MODEL_SURE = 0.5
MUSICAL = ("music", "singing", "song", "choir", "organ", "piano", "guitar", "drum", "violin", "orchestra")
"""Parts of the labels of AudioSet, and of smaller sets, that mean music."""

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Survey:
    """What was measured of a recording."""

    powers: Powers
    """Mean square inside the speech band of each 64 ms; shape (frames,)."""
    lines: Flags
    """Where a line stands still; shape (cells, bins between LINES_HZ)."""


@dataclass(frozen=True)
class Kinds:
    """By cell of 1.024 s; a cell may hold voice and music, or neither: then it is noise where it is audible."""

    voice: Flags
    music: Flags
    audible: Flags

    def seconds(self) -> dict[str, float]:
        """How long each kind sounds."""
        shares = {
            "speech": self.voice & ~self.music,
            "speech_over_music": self.voice & self.music,
            "music": ~self.voice & self.music,
            "noise": self.audible & ~self.voice & ~self.music,
        }
        return {f"{name}_s": float(where.sum()) * CELL / RATE for name, where in shares.items()}


class Listener:
    """Takes a recording in blocks of any length and measures it; memory grows by a kilobyte a second."""

    def __init__(self) -> None:
        window = np.hanning(FRAME).astype(np.float32)
        self._window = window * np.float32(np.sqrt(2 / FRAME / (window**2).sum()))  # sums over bins are mean squares
        self._rest = np.zeros(0, dtype=np.float32)
        self._powers: list[Powers] = []
        self._lines: list[Flags] = []

    def add(self, block: Wave) -> None:
        """Hear the next block."""
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // CELL * CELL
        self._rest = samples[whole:].copy()
        if whole:
            power = self._measured(samples[:whole])
            self._lines.append(_standing_lines(power))

    def survey(self) -> Survey:
        """What was heard in all; the last, incomplete cell counts for the powers only."""
        rest = self._rest[: len(self._rest) // FRAME * FRAME]
        self._rest = self._rest[len(rest) :]
        if len(rest):
            self._measured(rest)
        none = np.zeros((0, _bins(LINES_HZ).stop - _bins(LINES_HZ).start), dtype=bool)
        return Survey(np.concatenate([*self._powers, np.zeros(0)]), np.concatenate([*self._lines, none]))

    def _measured(self, samples: Wave) -> Wave:
        spectrum = fft.rfft(samples.reshape(-1, FRAME) * self._window, axis=1, overwrite_x=True)
        power = spectrum.real**2 + spectrum.imag**2
        self._powers.append(power[:, _bins(BAND_HZ)].sum(axis=1).astype(np.float64))
        return power


def _bins(band_hz: tuple[float, float]) -> slice:
    return slice(round(band_hz[0] * FRAME / RATE), round(band_hz[1] * FRAME / RATE))


def _standing_lines(power: Wave) -> Flags:
    """By cell and bin, whether a line holds: a level kept for most of the cell that stands out of its neighbourhood's."""
    wide = _bins((0.0, LINES_HZ[1] + NEIGHBOURS * RATE / FRAME))
    cells = 10 * np.log10(power[:, wide] + np.float32(1e-12)).reshape(-1, CELL_FRAMES, wide.stop)
    rank = int((1 - HELD_SHARE) * CELL_FRAMES)
    held = np.partition(cells, rank, axis=1)[:, rank]
    return ((held - ndimage.uniform_filter1d(held, NEIGHBOURS, axis=1)) > LINE_DB)[:, _bins(LINES_HZ)]


def kinds(survey: Survey, least_lines: int = MUSIC_LINES) -> Kinds:
    """The kinds of sound by the measure alone; `least_lines` lower than the default finds what may be music, too."""
    lines = survey.lines
    if len(lines) >= HUM_CELLS:
        lines = lines & ~(lines.mean(axis=0) >= HUM_SHARE)
    music = ndimage.median_filter((lines.sum(axis=1) >= least_lines).astype(np.uint8), AROUND, mode="nearest").astype(bool)
    levels = 10 * np.log10(survey.powers[: len(lines) * CELL_FRAMES] + 1e-12).reshape(-1, CELL_FRAMES)
    around = np.concatenate([levels[_shifted(len(levels), by)] for by in (-1, 0, 1)], axis=1)
    low, high = np.percentile(around, [10, 90], axis=1) if len(levels) else (np.zeros(0), np.zeros(0))
    audible = high > AUDIBLE_DB
    return Kinds(voice=audible & (high - low >= VOICE_SWING_DB), music=music, audible=audible)


def _shifted(count: int, by: int) -> NDArray[np.int64]:
    return np.clip(np.arange(count) + by, 0, max(count - 1, 0))


def confirmed(survey: Survey, musical: Callable[[int, int], float]) -> Kinds:
    """The kinds with a model's word on music: `musical(first, end)` hears some cells, ten at most, and says how sure it is."""
    maybe = kinds(survey, MAYBE_LINES)
    music = maybe.music.copy()
    for first in range(0, len(music), MODEL_CELLS):
        window = slice(first, min(first + MODEL_CELLS, len(music)))
        if music[window].any():
            music[window] &= musical(window.start, window.stop) >= MODEL_SURE
    return Kinds(maybe.voice, music, maybe.audible)


def spans(music: Flags, samples: int, gap: int = 2, least: int = 3) -> list[tuple[int, int]]:
    """Stretches of music in samples: gaps of `gap` cells are bridged, less than `least` cells left out."""
    found: list[tuple[int, int]] = []
    for cell in np.flatnonzero(music).tolist():
        if found and cell - found[-1][1] <= gap:
            found[-1] = (found[-1][0], cell + 1)
        else:
            found.append((cell, cell + 1))
    last = len(music)
    return [(a * CELL, samples if b == last else b * CELL) for a, b in found if b - a >= least]


def music_share(music: Flags, start: int, end: int) -> float:
    """How much of the samples from `start` to `end` lies in cells with music; what follows the last cell is like it."""
    if not len(music):
        return 0.0
    cells = np.arange(start // CELL, -(-end // CELL))
    inside = np.minimum(end, (cells + 1) * CELL) - np.maximum(start, cells * CELL)
    return float(inside @ music[np.minimum(cells, len(music) - 1)]) / max(end - start, 1)


class MusicModel:
    """An audio classifier of transformers, such as the Audio Spectrogram Transformer (MIT/ast-finetuned-audioset-10-10-0.4593)."""

    def __init__(self, name: str) -> None:
        from transformers import AutoFeatureExtractor, AutoModelForAudioClassification  # torch: only where a model is named

        with loading(name):
            self._extract = AutoFeatureExtractor.from_pretrained(name)
            self._model = AutoModelForAudioClassification.from_pretrained(name).eval()
        labels: dict[int, str] = self._model.config.id2label
        self.musical = [number for number, label in labels.items() if any(word in label.lower() for word in MUSICAL)]
        # a large set of labels is AudioSet, where several hold at once
        self._several = self._model.config.problem_type == "multi_label_classification" or len(labels) > 10

    def __call__(self, samples: Wave) -> float:
        """How sure the model is that there is music in `samples`."""
        import torch

        with torch.inference_mode():
            logits: Any = self._model(**self._extract(samples, sampling_rate=RATE, return_tensors="pt")).logits[0]
            shares = logits.sigmoid() if self._several else logits.softmax(-1)
        heard = shares[self.musical]
        return float((heard.max() if self._several else heard.sum()) if len(heard) else 0.0)


@functools.lru_cache(maxsize=1)
def music_model(name: str) -> MusicModel:
    """The model, loaded once a process."""
    return MusicModel(name)

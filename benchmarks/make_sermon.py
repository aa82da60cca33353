"""Makes sermon-like recordings of any length: espeak-ng speech, a hall, noise, and a music bed, all by synthesis.

    python -m benchmarks.make_sermon sermon.flac --minutes 10 --seed 1

Speech is said by espeak-ng (it must be installed), sentence by sentence with pauses; everything else is numpy. The same
arguments give the same samples with the same espeak-ng. A file beside the sound, `sermon.json`, tells when which sentence
is said, so that chunks and labels can be checked against the truth.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

RATE = 16_000
VOICES = ("en-us", "en-gb", "en-us+f3", "en-gb+m3", "en-us+m7", "en-gb-scotland")
SENTENCES = (
    "Good morning, friends, and welcome to this house of prayer.",
    "Today we want to speak about hope, and about the patience that hope asks of us.",
    "Some of you came here tired this week, and some of you came here thankful.",
    "Grace is not a wage for the strong; it is bread for the hungry.",
    "We do not earn mercy, we receive it with open hands.",
    "When the night is long, keep one small lamp burning at the window.",
    "Faith grows slowly, like a tree beside the river, one ring for every winter.",
    "Let us remember those who are ill, and those who sit beside them.",
    "Forgiveness is hard work, and nobody should have to do it alone.",
    "A church is more than its walls; it is a people who learn to carry each other.",
    "So lift up your heads, and look at what the Lord is doing among you.",
    "He calls the shepherd and the sheep by name, and he counts them every evening.",
    "Be gentle with the one who doubts, for you too were once unsure.",
    "The covenant holds, even on the days when our hands let go.",
    "Sing with us now, quietly at first, and then with a full heart.",
    "Give thanks for the table, for the neighbour, and for the road that brought you here.",
)

Wave = NDArray[np.float64]


@dataclass(frozen=True)
class Said:
    """One sentence and when it is heard, seconds."""

    text: str
    start_s: float
    end_s: float


def speak(text: str, voice: str = "en-us", words_per_minute: int = 150, pitch: int = 45) -> Wave:
    """`text` said by espeak-ng, 16 kHz, shape (samples,), peak 0.5.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute), "-p", str(pitch), "-w", str(path), text]
        subprocess.run(command, check=True, capture_output=True)
        samples, rate = soundfile.read(path)
    samples = signal.resample_poly(samples, RATE, rate)
    return 0.5 * samples / np.abs(samples).max()


def hall(samples: Wave, generator: np.random.Generator, seconds: float = 0.5, share: float = 0.25) -> Wave:
    """`samples` as heard in a hall: convolved with noise that falls by 60 dB in `seconds`; the length stays."""
    count = int(seconds * RATE)
    tail = generator.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    tail /= np.sqrt((tail**2).sum())
    return samples + share * signal.fftconvolve(samples, tail)[: len(samples)]


def hiss(count: int, generator: np.random.Generator, level_db: float) -> Wave:
    """Pink-like noise at `level_db` of full scale: a fan, a mixing desk, a street far away."""
    white = generator.standard_normal(count)
    pink = signal.lfilter([0.05, 0.0], [1, -0.95], white) + 0.1 * white
    return pink * 10 ** (level_db / 20) / np.sqrt((pink**2).mean())


def music(count: int, level_db: float) -> Wave:
    """A slow organ: four chords of four seconds, each of five partials, at `level_db` of full scale."""
    at = np.arange(count) / RATE
    roots = np.array([196.0, 220.0, 174.6, 196.0])[(at // 4).astype(int) % 4]
    phase = 2 * np.pi * np.cumsum(roots) / RATE
    chord = sum(np.sin(phase * ratio * partial) / partial for ratio in (1, 1.25, 1.5) for partial in range(1, 6))
    swell = 0.75 + 0.25 * np.sin(2 * np.pi * 0.25 * at)
    bed = chord * swell
    return bed * 10 ** (level_db / 20) / np.sqrt((bed**2).mean())


def sentences(generator: np.random.Generator, texts: tuple[str, ...] = SENTENCES) -> Iterator[tuple[str, float]]:
    """Sentences in a random order without end, each with the pause after it in seconds."""
    while True:
        for index in generator.permutation(len(texts)):
            yield texts[index], float(generator.uniform(0.5, 1.6))


def sermon(seconds: float, seed: int, *, music_share: float = 0.15, noise_db: float = -55.0) -> tuple[Wave, list[Said]]:
    """A recording of `seconds` seconds, 16 kHz mono, peak under 0.9, and what is said in it.

    One voice speaks throughout; the first `music_share` of the time has a music bed under the speech.
    """
    generator = np.random.default_rng(seed)
    voice = VOICES[seed % len(VOICES)]
    said: dict[str, Wave] = {}
    whole = np.zeros(int(seconds * RATE))
    heard, at = [], int(0.8 * RATE)
    for text, pause_s in sentences(generator):
        if text not in said:
            said[text] = speak(text, voice, 140 + 5 * (seed % 5), 35 + 5 * (seed % 4))
        end = at + len(said[text])
        if end >= len(whole):
            break
        whole[at:end] += said[text]
        heard.append(Said(text, at / RATE, end / RATE))
        at = end + int(pause_s * RATE)
    whole = hall(whole, generator) + hiss(len(whole), generator, noise_db)
    bed = int(music_share * len(whole))
    if bed:
        fade = np.minimum(1.0, (bed - np.arange(bed)) / (2 * RATE))
        whole[:bed] += fade * music(bed, -38.0)
    return whole * min(1.0, 0.9 / np.abs(whole).max()), heard


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="make a sermon-like recording")
    parser.add_argument("out", type=Path, help="the sound file; its extension chooses the format (.flac, .wav, .ogg, .mp3)")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    samples, heard = sermon(arguments.minutes * 60, arguments.seed)
    soundfile.write(arguments.out, samples.astype(np.float32), RATE)
    truth = {"duration_s": len(samples) / RATE, "said": [asdict(one) for one in heard]}
    arguments.out.with_suffix(".json").write_text(json.dumps(truth, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

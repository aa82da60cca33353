"""The original's way with a recording: ffmpeg, scipy, noisereduce, pyloudnorm and Silero one after the other on the whole file.

    python -m benchmarks.audio_original RECORDING FOLDER [SILERO]

Every pass works on one array of the whole recording; Silero hears one window at a time, as its streaming model does; speech
longer than 30 s is cut at fixed points. SILERO is torch's own model, a TorchScript file; without it the ONNX one is used.
Thresholds and lengths are Vigil's, so that the chunks can be compared. The last line it prints is what it cost: CPU seconds
without imports, children included.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import noisereduce
import numpy as np
import pyloudnorm
import soundfile
from faster_whisper.vad import get_vad_model
from numpy.typing import NDArray
from scipy import signal

from benchmarks.audio import peak_mb, used_s

RATE = 16_000
WINDOW, CONTEXT = 512, 64
SHORTEST_S, LONGEST_S, MERGE_S, PAD_S, SILENCE_S, SPEECH_S = 1.0, 30.0, 0.5, 0.2, 0.3, 0.25

Wave = NDArray[np.float32]


def cleaned(recording: Path, folder: Path) -> Wave:
    """Converted, band-passed, denoised, at -16 LUFS."""
    converted = folder / "converted.wav"
    command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", "-i", str(recording), "-ac", "1", "-ar", str(RATE), str(converted)]
    subprocess.run(command, check=True)
    sound, _rate = soundfile.read(converted)
    sound = signal.sosfiltfilt(signal.butter(4, [80, 7600], "bandpass", fs=RATE, output="sos"), sound)
    sound = noisereduce.reduce_noise(y=sound, sr=RATE, stationary=False, prop_decrease=0.7)
    loudness = pyloudnorm.Meter(RATE).integrated_loudness(sound)
    sound = pyloudnorm.normalize.loudness(sound, loudness, -16.0)
    peak = np.abs(sound).max()
    return (sound * min(1.0, 0.89 / peak)).astype(np.float32)


def detector(silero: Path | None) -> Callable[[Wave], float]:
    """Hears one window of 32 ms after the other and says how surely it is speech."""
    if silero is not None:
        import torch

        torch.set_num_threads(1)
        model = torch.jit.load(str(silero))
        return lambda window: float(model(torch.from_numpy(window), RATE))
    session = get_vad_model().session
    kept = [np.zeros(CONTEXT, np.float32), np.zeros((1, 1, 128), np.float32), np.zeros((1, 1, 128), np.float32)]

    def hear(window: Wave) -> float:
        before, h, c = kept
        out, *state = session.run(None, {"input": np.concatenate([before, window])[None], "h": h, "c": c})
        kept[:] = [window[-CONTEXT:], *state]
        return float(out[0])

    return hear


def speech(probability: list[float], samples: int) -> list[list[float]]:
    """Silero's `get_speech_timestamps` with its own thresholds: [start, end] in seconds, widened."""
    spans: list[list[float]] = []
    start = quiet = None
    for index, value in enumerate(probability):
        at = index * WINDOW / RATE
        if value >= 0.5:
            start, quiet = (at if start is None else start), None
        elif start is not None and value < 0.35:
            quiet = at if quiet is None else quiet
            if at + WINDOW / RATE - quiet >= SILENCE_S:
                spans.append([start, quiet])
                start = quiet = None
    if start is not None:
        spans.append([start, samples / RATE])
    spans = [span for span in spans if span[1] - span[0] >= SPEECH_S]
    return [[max(0.0, a - PAD_S), min(samples / RATE, b + PAD_S)] for a, b in spans]


def cut(spans: list[list[float]]) -> list[list[float]]:
    """Spans joined over short gaps, what is longer than 30 s cut every 30 s, what is too short dropped."""
    joined: list[list[float]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= MERGE_S and end - joined[-1][0] <= LONGEST_S:
            joined[-1][1] = end
        else:
            joined.append([start, end])
    pieces = []
    for start, end in joined:
        marks = [*np.arange(start, end, LONGEST_S), end]
        pieces += [[a, b] for a, b in itertools.pairwise(marks) if b - a >= SHORTEST_S]
    return pieces


def main() -> None:
    """The command line."""
    recording, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    hear = detector(Path(sys.argv[3]) if len(sys.argv) > 3 else None)
    cpu_s, wall_s = used_s(), time.perf_counter()
    sound = cleaned(recording, folder)
    heard = [hear(sound[start : start + WINDOW]) for start in range(0, len(sound) - WINDOW + 1, WINDOW)]
    pieces = cut(speech(heard, len(sound)))
    for index, (start, end) in enumerate(pieces):
        soundfile.write(folder / f"chunk_{index:04d}.wav", sound[int(start * RATE) : int(end * RATE)], RATE, subtype="PCM_16")
    print(json.dumps({"cpu_s": used_s() - cpu_s, "wall_s": time.perf_counter() - wall_s, "peak_mb": peak_mb(), "chunks": pieces}))


if __name__ == "__main__":
    main()

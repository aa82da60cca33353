"""The audio passes against the original's way (`benchmarks.audio_original`), on generated sermons of 10 and 60 minutes.

    python -m benchmarks.audio [--quick] [--silero FILE]

CPU seconds without imports, one thread, one process after the other in turns, medians. The same recording, as YouTube gives
it (AAC, stereo, 44.1 kHz). The original's Silero runs here by ONNX, window by window; `--silero` names torch's own model
(`silero_vad.jit` of the package silero-vad), which is what the original used and costs four times as much. The chunk lists are
compared, and where speech never pauses, how loud it is where each cuts: a cut at the level of speech goes through a word.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benchmarks.row import Row, tell

RATE = 16_000
FLOOR = 3.0
MOST_MB = 600
WITHIN_S = 0.05
SILERO = "silero-vad==6.2.3"
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description="the audio passes against the original's way")
    parser.add_argument("--quick", action="store_true", help="two minutes of sound, one round")
    parser.add_argument("--silero", type=Path, help="torch's Silero for the original")
    parser.add_argument("--onnx", action="store_true", help="the ONNX Silero for the original, too")
    parser.add_argument("--ours", nargs=2, type=Path, metavar=("RECORDING", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ours:
        ours(*arguments.ours)
        return 0
    silero = None if arguments.onnx else arguments.silero or torch_silero()
    lengths = {2.0: 1} if arguments.quick else {10.0: 3, 60.0: 1}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        by_length = {minutes: compared(Path(folder), minutes, rounds, silero) for minutes, rounds in lengths.items()}
        cuts = without_pauses(Path(folder), 90.0)
    rows = [row(minutes, found) for minutes, found in by_length.items()]
    return tell(rows, silero_of_the_original="torch" if silero else "onnx", cuts=cuts, lengths=by_length)


def row(minutes: float, found: dict[str, Any]) -> Row:
    """The claim of one length."""
    alike, chunks, whole = found["chunks_alike"], found["chunks"], found["sentences_whole"]
    return Row(
        item=f"audio passes, {minutes:g} min of sermon",
        unit="CPU s",
        original=found["original"],
        ours=found["ours"],
        ratio=found["ratio"],
        demanded=f"{FLOOR:g}, chunks as good, {MOST_MB} MB",
        met=found["ratio"] >= FLOOR and found["as_good"] and found["ours_peak_mb"] <= MOST_MB,
        wall=f"{found['original_wall_s']:.1f} and {found['ours_wall_s']:.1f} s",
        note=f"{alike:.0%} of the original's {chunks[0]} chunks are in ours, to 50 ms; of {found['sentences']} sentences {whole[0]}"
        f" and {whole[1]} lie whole in a chunk; peak memory {found['original_peak_mb']:.0f} and {found['ours_peak_mb']:.0f} MB",
    )


def torch_silero() -> Path | None:
    """torch's Silero model, from an installed silero-vad or fetched into a folder that is kept; None where it is not to be had."""
    spec = importlib.util.find_spec("silero_vad")
    folder = Path(spec.origin).parent if spec and spec.origin else Path(tempfile.gettempdir(), "vigil-silero", "silero_vad")
    model = folder / "data" / "silero_vad.jit"
    if not model.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder.parent), SILERO]
        subprocess.run(command, check=False, capture_output=True, timeout=120)
    return model if model.exists() else None


def compared(folder: Path, minutes: float, rounds: int, silero: Path | None) -> dict[str, Any]:
    """Both ways in turns over one recording of `minutes`."""
    recording, said = made(folder, minutes)
    ways = {"onnx": [str(recording), str(folder / "onnx")]}
    if silero:
        ways["torch"] = [str(recording), str(folder / "torch"), str(silero)]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in (*ways, "ours")}
    for number in range(rounds):
        for name, arguments in ways.items():
            runs[name].append(told("benchmarks.audio_original", *arguments))
        runs["ours"].append(told("benchmarks.audio", "--ours", str(recording), str(folder / f"ours{minutes:g}{number}")))
    original = runs["torch" if silero else "onnx"]
    cost = {name: statistics.median(one["cpu_s"] for one in some) for name, some in (("original", original), *runs.items())}
    return {
        "original": cost["original"],
        "ours": cost["ours"],
        "ratio": cost["original"] / cost["ours"],
        "ratio_with_onnx": cost["onnx"] / cost["ours"],
        "original_wall_s": statistics.median(one["wall_s"] for one in original),
        "ours_wall_s": statistics.median(one["wall_s"] for one in runs["ours"]),
        "original_peak_mb": max(one["peak_mb"] for one in original),
        "ours_peak_mb": max(one["peak_mb"] for one in runs["ours"]),
        **alike(runs["onnx"][0]["chunks"], runs["ours"][0]["chunks"], said),  # by one Silero: torch's is of another version
    }


def made(folder: Path, minutes: float) -> tuple[Path, list[list[float]]]:
    """A generated sermon as AAC, and when its sentences are said."""
    flac, recording = folder / f"{minutes:g}.flac", folder / f"{minutes:g}.m4a"
    command = [sys.executable, "-m", "benchmarks.make_sermon", str(flac), "--minutes", str(minutes)]
    subprocess.run(command, check=True, env=ALONE)
    encode = ["ffmpeg", "-v", "error", "-y", "-i", str(flac), "-ac", "2", "-ar", "44100", "-b:a", "128k", str(recording)]
    subprocess.run(encode, check=True)
    flac.unlink()
    truth = json.loads(flac.with_suffix(".json").read_text())["said"]
    return recording, [[one["start_s"], one["end_s"]] for one in truth]


def told(*module_and_arguments: str) -> dict[str, Any]:
    """What a module's process says in its last line."""
    command = [sys.executable, "-W", "ignore", "-m", *module_and_arguments]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=ALONE)
    said: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return said


def ours(recording: Path, folder: Path) -> None:
    """Vigil's passes over one recording, in this process; prints what `audio_original` prints."""
    from stages import sound_passes
    from state.settings import Preprocess

    (folder / "out").mkdir(parents=True)
    sound_passes.load_detector()
    cpu_s, wall_s = used_s(), time.perf_counter()
    work = sound_passes.Work(recording, "x", Preprocess(), folder, lambda _share: None)
    chunks = [(chunk.start_s, chunk.end_s) for chunk in sound_passes.passes(work)]
    print(json.dumps({"cpu_s": used_s() - cpu_s, "wall_s": time.perf_counter() - wall_s, "peak_mb": peak_mb(), "chunks": chunks}))


def used_s() -> float:
    """CPU seconds of this process and of the children that ended."""
    uses = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(use.ru_utime + use.ru_stime for use in uses)


def peak_mb() -> float:
    """The most memory that this process held, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alike(theirs: list[list[float]], own: list[list[float]], said: list[list[float]]) -> dict[str, Any]:
    """How far two chunk lists agree, and how many of the sentences that are said lie whole in one chunk, to 150 ms, by each.

    Where they differ, a pause is within two windows of the VAD (64 ms) of the length at which chunks are joined, or an edge is.
    """
    a, b = np.array(theirs), np.array(own)
    same = [float(np.abs(b - one).max(axis=1).min()) <= WITHIN_S for one in a]
    whole = [sum(any(c <= start + 0.15 and end - 0.15 <= d for c, d in some) for start, end in said) for some in (theirs, own)]
    edges = [float(np.abs(a.ravel() - mark).min()) for mark in b.ravel()]
    return {
        "chunks": [len(a), len(b)],
        "chunks_alike": float(np.mean(same)),
        "edges_alike": float(np.mean([edge <= WITHIN_S for edge in edges])),
        "farthest_edge_s": max(edges),
        "sentences": len(said),
        "sentences_whole": whole,
        "as_good": (all(same) and len(a) == len(b)) or whole[1] >= whole[0],
    }


def without_pauses(folder: Path, seconds: float) -> dict[str, Any]:
    """Speech that the VAD hears as one: how loud it is within 20 ms of each inner cut, in dB under its mean."""
    from benchmarks import make_sermon

    generator = np.random.default_rng(3)
    parts: list[NDArray[np.float64]] = []
    for text, _pause_s in make_sermon.sentences(generator):
        parts.append(trimmed(make_sermon.speak(text, words_per_minute=170)))
        if sum(map(len, parts)) >= seconds * RATE:
            break
    whole = 0.5 * np.concatenate(parts) + make_sermon.hiss(sum(map(len, parts)), generator, -60.0)
    path = folder / "without_pauses.wav"
    soundfile.write(path, whole, RATE)
    chunks = {
        "original": told("benchmarks.audio_original", str(path), str(folder / "o"))["chunks"],
        "ours": told("benchmarks.audio", "--ours", str(path), str(folder / "v"))["chunks"],
    }
    return {
        side: {"chunks": len(found), "cuts_db": [level_db(whole, end) for _start, end in found[:-1]]}
        for side, found in chunks.items()
    }


def trimmed(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the silence around it."""
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return samples[loud[0] : loud[-1]]


def level_db(samples: NDArray[np.float64], at_s: float) -> float:
    """The level within 20 ms of `at_s`, over the mean level."""
    around = samples[int((at_s - 0.02) * RATE) : int((at_s + 0.02) * RATE)]
    return round(float(10 * np.log10((around**2).mean() / (samples**2).mean())), 1)


if __name__ == "__main__":
    sys.exit(main())

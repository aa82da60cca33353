"""Makes the demo's recordings, once; what it made is kept in `pipelines/demo_audio` and the demo needs no espeak-ng.

    python -m pipelines.make_demo_audio

Four recordings by four voices stand for four sermons (a split by sermon needs several), served by the demo's HTTP server;
three short clips of plain speech stand for the general speech that is replayed during the training of Whisper.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.make_sermon import RATE, Wave, hall, hiss, speak

FOLDER = Path(__file__).with_name("demo_audio")
BITS = 12  # the lowest four of sixteen bits are noise that FLAC would have to keep
PAUSE_S = 0.8
RECORDINGS = (
    (
        "lamp",
        "A lamp at the window",
        "en-us",
        (
            "Good morning, friends, and welcome to this house of prayer.",
            "When the night is long, keep one small lamp burning at the window.",
            "Somebody on the road is looking for it.",
            "Hope is not loud, but it does not go out.",
        ),
    ),
    (
        "bread",
        "Bread for the hungry",
        "en-gb",
        (
            "Grace is not a wage for the strong; it is bread for the hungry.",
            "We do not earn mercy, we receive it with open hands.",
            "So come to the table as you are.",
            "There is a place for you, and there was always a place for you.",
        ),
    ),
    (
        "river",
        "A tree beside the river",
        "en-us+f3",
        (
            "Faith grows slowly, like a tree beside the river.",
            "It adds one ring for every winter, and nobody sees it happen.",
            "Be gentle with the one who doubts, for you too were once unsure.",
            "The covenant holds, even when our hands let go.",
        ),
    ),
    (
        "table",
        "More than its walls",
        "en-gb+m3",
        (
            "A church is more than its walls.",
            "It is a people who learn to carry each other.",
            "Let us remember those who are ill, and those who sit beside them.",
            "Give thanks for the neighbour, and for the road that brought you here.",
        ),
    ),
)
REPLAY = (
    ("train", "en-us+m7", "The train to the coast leaves at a quarter past nine."),
    ("rain", "en-gb", "It rained all afternoon, so we stayed in and read."),
    ("shop", "en-us+f3", "Could you buy some apples and a loaf of bread on the way home?"),
)


def recording(index: int, voice: str, texts: tuple[str, ...]) -> Wave:
    """The sentences with pauses between them, in a hall, with a little noise."""
    generator = np.random.default_rng(index)
    parts = [np.zeros(int(PAUSE_S * RATE))]
    for text in texts:
        parts += [speak(text, voice, 150 + 6 * index), np.zeros(int(PAUSE_S * RATE))]
    whole = np.concatenate(parts)
    whole = hall(whole, generator, share=0.15) + hiss(len(whole), generator, -62.0)
    return 0.45 * whole / np.abs(whole).max()


def write(path: Path, samples: Wave) -> float:
    """Write FLAC of 12 significant bits; returns the length in seconds."""
    step = 1 << (16 - BITS)
    whole = np.round(samples * 32767 / step).astype(np.int16) * np.int16(step)
    soundfile.write(path, whole, RATE, format="FLAC", subtype="PCM_16")
    return round(len(samples) / RATE, 2)


def captions(texts: tuple[str, ...], duration_s: float) -> str:
    """A WebVTT file as a site offers it: the sentences, evenly spread."""
    step = duration_s / len(texts)
    lines = [f"00:{i * step:06.3f} --> 00:{(i + 1) * step:06.3f}\n{text}\n" for i, text in enumerate(texts)]
    return "WEBVTT\n\n" + "\n".join(lines)


def main() -> None:
    """Make all files anew."""
    (FOLDER / "replay").mkdir(parents=True, exist_ok=True)
    listed = []
    for index, (name, title, voice, texts) in enumerate(RECORDINGS, start=1):
        duration_s = write(FOLDER / f"{name}.flac", recording(index, voice, texts))
        entry = {"id": name, "title": title, "file": f"{name}.flac", "duration_s": duration_s, "text": " ".join(texts)}
        if index == 1:
            (FOLDER / f"{name}.vtt").write_text(captions(texts, duration_s), encoding="utf-8")
            entry["captions"] = f"{name}.vtt"
        listed.append(entry)
    text = json.dumps({"recordings": listed}, indent=1, ensure_ascii=False)
    (FOLDER / "clips.json").write_text(text + "\n", encoding="utf-8")
    lines = []
    for name, voice, sentence in REPLAY:
        write(FOLDER / "replay" / f"{name}.flac", 0.4 * speak(sentence, voice, 160))
        lines.append(json.dumps({"file_name": f"{name}.flac", "text": sentence}))
    (FOLDER / "replay" / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Kinds of sound: the measure tells speech, music and noise apart on mixed test audio; a model's word is asked for and counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import make_sermon
from stages import sound_kinds
from stages.audio import RATE, Wave
from stages.sound_kinds import CELL, Listener

CLIPS = Path(__file__).parents[3] / "pipelines" / "demo_audio"
PART_S = 10


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def speech(seed: int) -> np.ndarray:
    """Ten seconds of the demo's espeak-ng voices, from anywhere in them."""
    clips = [soundfile.read(CLIPS / f"{name}.flac")[0] for name in ("lamp", "bread", "river", "table")]
    return np.roll(np.concatenate(clips), seed * 37_123)[: PART_S * RATE]


def organ(seed: int) -> np.ndarray:
    return make_sermon.music((PART_S + seed) * RATE, -20)[seed * RATE :]


def piano(seed: int) -> np.ndarray:
    """Notes that are struck three times a second and die away."""
    generator, out = rng(seed), np.zeros((PART_S + 2) * RATE)
    at = np.arange(2 * RATE) / RATE
    for start in range(0, PART_S * RATE, RATE // 3):
        hz = 196 * 2 ** (generator.choice([0, 2, 4, 5, 7, 9, 11, 12]) / 12)
        out[start : start + 2 * RATE] += sum(
            np.sin(2 * np.pi * hz * k * at) / k * np.exp(-at * (1.5 + 0.7 * k)) for k in range(1, 7)
        )
    return out[: PART_S * RATE]


def strings(seed: int) -> np.ndarray:
    """Three voices with vibrato."""
    at = np.arange(PART_S * RATE) / RATE
    step = np.array([1, 1.122, 0.89])[((at + seed) // 2.5).astype(int) % 3]
    phases = [2 * np.pi * np.cumsum(hz * step * (1 + 0.004 * np.sin(2 * np.pi * 5.5 * at + hz))) / RATE for hz in (196, 247, 294)]
    return np.sum([np.sin(phase * k) / k for phase in phases for k in range(1, 8)], axis=0)


def hiss(seed: int) -> np.ndarray:
    return make_sermon.hiss(PART_S * RATE, rng(seed), -20)


def fan(seed: int) -> np.ndarray:
    """Air and the hum of a motor."""
    at = np.arange(PART_S * RATE) / RATE
    return hiss(seed) + sum(0.1 / k * np.sin(2 * np.pi * 50 * k * at) for k in (1, 2, 3, 4))


def level(samples: np.ndarray, db: float) -> np.ndarray:
    return samples * 10 ** (db / 20) / np.sqrt((samples**2).mean())


KINDS: list[tuple[str, Callable[[int], np.ndarray]]] = [
    ("speech", lambda seed: level(speech(seed), -22)),
    ("music", lambda seed: level(organ(seed), -24)),
    ("noise", lambda seed: level(hiss(seed), -36)),
    ("music", lambda seed: level(piano(seed), -24)),
    ("speech", lambda seed: level(speech(seed + 3), -24)),
    ("both", lambda seed: level(speech(seed + 5), -22) + level(organ(seed), -38)),
    ("noise", lambda seed: level(fan(seed), -36)),
    ("music", lambda seed: level(strings(seed), -26)),
    ("both", lambda seed: level(speech(seed + 7), -22) + level(strings(seed), -36)),
    ("speech", lambda seed: level(speech(seed + 9), -20)),
]


def mixed(seed: int) -> tuple[Wave, np.ndarray]:
    """A hundred seconds of all kinds over a quiet room, and by cell which kind; -1 at the borders."""
    parts = [make(seed) for _name, make in KINDS]
    samples = np.concatenate(parts) + make_sermon.hiss(len(KINDS) * PART_S * RATE, rng(seed), -58)
    middle = (np.arange(len(samples) // CELL) + 0.5) * CELL / RATE
    inside = np.abs(middle % PART_S - PART_S / 2) < PART_S / 2 - 1.6
    return samples.astype(np.float32), np.where(inside, (middle // PART_S).astype(int), -1)


def heard(samples: Wave, cuts: list[float] | None = None) -> sound_kinds.Survey:
    listener = Listener()
    for block in np.split(samples, sorted(int(place * len(samples)) for place in cuts or [])):
        listener.add(block)
    return listener.survey()


def test_the_measure_tells_kinds_apart() -> None:
    """On 500 s of mixed sound: at least 95 % of the music is found, under speech too, and 2 % of the rest at most is called so.

    What is speech alone and what is steady noise is told apart in 95 % of the time.
    """
    right: dict[str, list[bool]] = {"music": [], "no music": [], "speech": [], "noise": []}
    for seed in range(5):
        samples, where = mixed(seed)
        found = sound_kinds.kinds(heard(samples))
        for cell in np.flatnonzero(where >= 0):
            kind = KINDS[where[cell]][0]
            musical = kind in ("music", "both")
            right["music" if musical else "no music"].append(bool(found.music[cell]) == musical)
            if kind in ("speech", "noise"):
                right[kind].append(bool(found.voice[cell]) == (kind == "speech"))
    shares = {name: np.mean(some) for name, some in right.items()}
    assert all(len(some) > 60 for some in right.values())
    assert shares["music"] >= 0.95
    assert shares["no music"] >= 0.98
    assert shares["speech"] >= 0.95
    assert shares["noise"] >= 0.95


def test_seconds_are_counted_once() -> None:
    """The kinds of a recording add up to its audible time."""
    samples, _where = mixed(1)
    seconds = sound_kinds.kinds(heard(samples)).seconds()
    assert list(seconds) == ["speech_s", "speech_over_music_s", "music_s", "noise_s"]
    assert sum(seconds.values()) == pytest.approx(len(samples) // CELL * CELL / RATE, abs=0.1)
    assert seconds["speech_over_music_s"] == pytest.approx(20, abs=9)  # and the borders, where both are near


def test_the_mains_are_no_music() -> None:
    """A buzz with many harmonics that stands through the whole recording is left out; a short one cannot be told from a tune."""
    at = np.arange(90 * RATE) / RATE
    buzz = sum(np.sin(2 * np.pi * 120 * k * at) / k for k in range(1, 20))
    samples = (level(buzz, -35) + make_sermon.hiss(len(at), rng(0), -50)).astype(np.float32)
    assert not sound_kinds.kinds(heard(samples)).music.any()
    assert sound_kinds.kinds(heard(samples[: 20 * RATE])).music.all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=5), st.integers(0, 4 * RATE))
def test_blocks_do_not_show(cuts: list[float], count: int) -> None:
    """The survey is the same however the sound is cut into blocks, for any length; powers are mean squares in the band."""
    samples = (0.1 * np.sin(2 * np.pi * 440 * np.arange(count) / RATE)).astype(np.float32)
    whole, parts = heard(samples), heard(samples, cuts)
    assert np.array_equal(whole.lines, parts.lines)
    assert np.allclose(whole.powers, parts.powers, rtol=1e-5)
    assert len(whole.powers) == count // sound_kinds.FRAME
    assert np.allclose(whole.powers, 0.005, rtol=0.02)
    assert len(sound_kinds.kinds(whole).music) == count // CELL


def test_a_model_confirms_or_denies() -> None:
    """Only doubtful and musical windows are heard by the model, ten cells at most; where it says no there is no music."""
    samples, where = mixed(2)
    survey = heard(samples)
    asked: list[tuple[int, int]] = []

    def musical(first: int, end: int) -> float:
        asked.append((first, end))
        return float(end * CELL / RATE < 50)

    found = sound_kinds.confirmed(survey, musical)
    assert all(0 < end - first <= 10 for first, end in asked)
    assert sum(end - first for first, end in asked) < 0.9 * len(where)
    assert found.music[np.isin(where, (1, 3))].all()
    assert not found.music[int(50 * RATE / CELL) :].any()
    assert not sound_kinds.confirmed(survey, lambda _first, _end: 0.0).music.any()


def test_spans_bridge_and_drop() -> None:
    """Two cells of gap are bridged, less than three cells of music left out, and the last span reaches the end."""
    music = np.array([0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1], dtype=bool)
    assert sound_kinds.spans(music, 17 * CELL + 5) == [(CELL, 6 * CELL), (14 * CELL, 17 * CELL + 5)]
    assert sound_kinds.spans(np.zeros(0, dtype=bool), 100) == []


def test_the_share_of_music_in_a_chunk() -> None:
    """By samples, not by cells; the rest of a second at the end is like the cell before it."""
    music = np.array([True, False])
    assert sound_kinds.music_share(music, 0, CELL) == 1.0
    assert sound_kinds.music_share(music, CELL // 2, 3 * CELL // 2) == pytest.approx(0.5)
    assert sound_kinds.music_share(music, CELL, 2 * CELL + 9) == 0.0
    assert sound_kinds.music_share(np.array([False, True]), CELL, 2 * CELL + 9) == 1.0
    assert sound_kinds.music_share(np.zeros(0, dtype=bool), 0, CELL) == 0.0


def test_a_real_classifier_is_loaded_and_heard(tmp_path: Path) -> None:
    """transformers' spectrogram transformer from a folder: labels that mean music count, the answer is a probability."""
    torch = pytest.importorskip("torch")
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

    torch.manual_seed(0)
    labels = {0: "Speech", 1: "Music", 2: "Noise"}
    config = ASTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_mel_bins=32,
        id2label=labels, label2id={name: number for number, name in labels.items()},
    )  # fmt: skip
    model = ASTForAudioClassification(config)
    with torch.no_grad():
        model.classifier.dense.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    model.save_pretrained(tmp_path)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(tmp_path)
    loaded = sound_kinds.MusicModel(str(tmp_path))
    assert loaded.musical == [1]
    assert 0.9 < loaded(speech(0).astype(np.float32)) <= 1.0
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"id2label": {"0": "Church organ", "1": "Speech", "2": "Choir"}}))
    assert sound_kinds.MusicModel(str(tmp_path)).musical == [0, 2]

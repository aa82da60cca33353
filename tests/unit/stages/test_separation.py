"""Separation: music is taken out where it is and nowhere else, and demucs itself is what gets loaded."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from stages import separation
from stages.audio import RATE, Wave
from stages.separation import FADE, separate
from state.contract import MisconfiguredError


def raw(path: Path, samples: Wave) -> Path:
    path.write_bytes(samples.tobytes())
    return path


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 70 * RATE), max_size=6, unique=True), st.integers(1, 70 * RATE))
def test_only_the_spans_change(tmp_path_factory: pytest.TempPathFactory, marks: list[int], samples: int) -> None:
    """Whatever the spans: outside nothing moves; inside, past the crossfades, is the voice alone; a block is 30 s at most."""
    sound = np.linspace(1, 2, samples, dtype=np.float32)
    edges = sorted(mark for mark in marks if mark <= samples)
    spans = list(zip(edges[::2], edges[1::2], strict=False))
    path = raw(tmp_path_factory.mktemp("raw") / "x.f32", sound)
    seen: list[int] = []
    done: list[int] = []

    def voice(block: Wave) -> Wave:
        seen.append(len(block))
        return block / 4

    separate(path, spans, voice, done.append)
    out = np.fromfile(path, np.float32)
    inside = np.zeros(samples, dtype=bool)
    for start, end in spans:
        inside[start:end] = True
        first, last = start + FADE if start else 0, end - FADE if end < samples else end
        pure = slice(first, max(first, last))
        assert np.allclose(out[pure], sound[pure] / 4, rtol=1e-5)
        assert np.all(out[start:end] <= sound[start:end] * (1 + 1e-6))
    assert np.array_equal(out[~inside], sound[~inside])
    assert all(length <= separation.BLOCK for length in seen)
    assert sum(done) == int(inside.sum())


def test_blocks_join_without_a_click(tmp_path: Path) -> None:
    """A voice that comes out a little different in each block goes over smoothly: no step between neighbouring samples."""
    path = raw(tmp_path / "x.f32", np.ones(100 * RATE, dtype=np.float32))
    gains = itertools.cycle([0.5, 0.3])
    lost_db = separate(path, [(5 * RATE, 95 * RATE)], lambda block: block * np.float32(next(gains)), lambda _done: None)
    out = np.fromfile(path, np.float32)
    assert np.abs(np.diff(out)).max() < 2 / FADE
    assert 5 < lost_db < 12


def test_a_small_torch_model_is_routed(tmp_path: Path) -> None:
    """A stand-in saved and loaded on the spot, a convolution that takes 100 Hz away: the hum goes inside the span alone."""
    torch = pytest.importorskip("torch")
    taps = 1601
    kernel = -np.ones((1, 1, taps), dtype=np.float32) / taps
    kernel[0, 0, taps // 2] += 1
    save_file({"weight": kernel}, tmp_path / "voice.safetensors")
    model = torch.nn.Conv1d(1, 1, taps, padding="same", bias=False).eval()
    model.load_state_dict({"weight": torch.from_numpy(load_file(tmp_path / "voice.safetensors")["weight"])})

    def voice(block: Wave) -> Wave:
        with torch.inference_mode():
            return model(torch.from_numpy(block)[None, None])[0, 0].numpy()

    at = np.arange(20 * RATE) / RATE
    path = raw(tmp_path / "x.f32", (1 + 0.1 * np.sin(2 * np.pi * 440 * at)).astype(np.float32))  # a level, and a tone on it
    separate(path, [(5 * RATE, 15 * RATE)], voice, lambda _done: None)
    out = np.fromfile(path, np.float32)
    assert out[: 5 * RATE].mean() == pytest.approx(1.0, abs=0.01)
    assert out[6 * RATE : 14 * RATE].mean() == pytest.approx(0.0, abs=0.01)
    assert out[6 * RATE : 14 * RATE].std() == pytest.approx(0.0707, rel=0.05)


def test_what_is_missing_is_said_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without demucs, or without the file, the sentence says what to install or correct."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MisconfiguredError, match="pip install demucs"):
        separation.check("htdemucs")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: sys)
    with pytest.raises(MisconfiguredError, match=r"none\.safetensors is not there"):
        separation.check(str(tmp_path / "none.safetensors"))


def tiny_demucs(path: Path, sources: list[str]) -> Path:
    """A real demucs network of a toy's size, with random weights, in demucs's own safetensors layout."""
    import torch
    from demucs.demucs import Demucs
    from safetensors.torch import save_file as save_tensors

    torch.manual_seed(0)
    kwargs: dict[str, Any] = {"sources": sources, "channels": 4, "depth": 2, "lstm_layers": 0, "audio_channels": 2, "segment": 5}
    model = Demucs(**kwargs)
    metadata = {"klass": "demucs.demucs.Demucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path, metadata=metadata)
    return path


def test_demucs_is_loaded_and_applied(tmp_path: Path) -> None:
    """The real loader on a real, tiny network: as many samples come out, all finite, the same each time."""
    pytest.importorskip("demucs", reason="demucs is installed only where separation is wanted")
    voice = separation.voice_of(str(tiny_demucs(tmp_path / "tiny.safetensors", ["drums", "vocals"])))
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * RATE + 123).astype(np.float32)
    out = voice(sound)
    assert out.shape == sound.shape
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert np.array_equal(out, voice(sound))
    assert np.abs(out).max() > 0


def test_a_model_without_a_voice_is_refused(tmp_path: Path) -> None:
    """A network that knows drums and bass only is named with what it knows."""
    pytest.importorskip("demucs", reason="demucs is installed only where separation is wanted")
    with pytest.raises(MisconfiguredError, match="knows drums, bass and no vocals"):
        separation.voice_of(str(tiny_demucs(tmp_path / "tiny.safetensors", ["drums", "bass"])))

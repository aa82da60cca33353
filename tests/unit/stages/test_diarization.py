"""Speakers: windows cover a chunk, vectors that are alike are one speaker, and a real speaker model is loaded."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import diarization
from stages.audio import RATE


@given(st.integers(1, 30 * RATE))
def test_windows_cover_a_chunk(length: int) -> None:
    """In order, without gap or overlap, about four seconds each."""
    found = diarization.windows(length)
    assert found[0][0] == 0
    assert found[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert all(end - start <= 1.5 * diarization.WINDOW + 1 for start, end in found)


def vectors(places: list[int], seed: int = 0) -> np.ndarray:
    """One vector per window, near the direction of its speaker."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(4, 64))
    return (directions[places] + 0.1 * generator.normal(size=(len(places), 64))).astype(np.float32)


def test_alike_is_one_speaker() -> None:
    """Two voices in turns are told apart; A is the one with the most windows; a mixed chunk goes to whom most of it belongs."""
    places = [2, 0, 0, 0, 2, 0, 0, 2]
    owners = [0, 1, 1, 2, 2, 3, 3, 3]
    assert diarization.speakers(vectors(places), owners)[:2] == ["B", "A"]
    assert diarization.speakers(vectors(places), owners)[3] == "A"
    assert diarization.speakers(vectors([1] * 5), range(5)) == ["A"] * 5
    assert diarization.speakers(vectors([3]), [0]) == ["A"]
    assert diarization.speakers(np.zeros((0, 64), dtype=np.float32), []) == []


def test_a_real_speaker_model_is_loaded(tmp_path: Path) -> None:
    """transformers' WavLM with its x-vector head, tiny and random, from a folder: one vector for any length, always the same."""
    torch = pytest.importorskip("torch")
    from transformers import Wav2Vec2FeatureExtractor, WavLMConfig, WavLMForXVector

    torch.manual_seed(0)
    config = WavLMConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8), conv_stride=(5, 64),
        conv_kernel=(10, 64), num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        tdnn_dim=(8, 8), tdnn_kernel=(3, 1), tdnn_dilation=(1, 1), xvector_output_dim=12, num_buckets=8,
    )  # fmt: skip
    WavLMForXVector(config).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    vector = diarization.vector_of(str(tmp_path))
    sound = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)
    assert vector(sound).shape == vector(sound[: RATE // 3]).shape == (12,)
    assert np.array_equal(vector(sound), vector(sound))
    assert not np.allclose(vector(sound), vector(sound[::-1].copy() ** 3))

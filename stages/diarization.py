"""Who speaks in which chunk: a speaker model's vectors, grouped by likeness.

The model is one of transformers' x-vector models, such as microsoft/wavlm-base-plus-sv: no account and no further package
is needed, as pyannote's would be. The finest answer is a window of some seconds; a chunk goes to whom most of it belongs.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.cluster import hierarchy

from stages.audio import RATE, Wave
from stages.loading import loading

WINDOW = 4 * RATE
LEAST = RATE
SAME_SPEAKER = 0.25
"""Cosine distance within which, on average, vectors are one speaker's."""

Vectors = NDArray[np.float32]


def windows(length: int) -> list[tuple[int, int]]:
    """The parts of a chunk of `length` samples that get a vector each: equal, about four seconds long."""
    count = max(1, round(length / WINDOW))
    marks = np.linspace(0, length, count + 1).astype(int).tolist()
    return list(itertools.pairwise(marks))


def speakers(vectors: Vectors, owners: Sequence[int], distance: float = SAME_SPEAKER) -> list[str]:
    """Per chunk, who speaks most of it: `A` has the most windows of the recording, then `B`, ...

    `vectors` has a row per window, `owners` says which chunk that is in, in order and without a gap.
    """
    if not len(vectors):
        return []
    groups = np.ones(len(vectors), dtype=int)
    if len(vectors) > 1:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        groups = hierarchy.fcluster(hierarchy.linkage(unit, "average", metric="cosine"), distance, "distance")
    ranked = {group: place for place, (group, _count) in enumerate(Counter(groups.tolist()).most_common())}
    by_chunk: dict[int, Counter[int]] = {}
    for owner, group in zip(owners, groups.tolist(), strict=True):
        by_chunk.setdefault(owner, Counter())[ranked[group]] += 1
    return [_letter(by_chunk[owner].most_common(1)[0][0]) for owner in sorted(by_chunk)]


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else f"Z{place - 25}"


@functools.lru_cache(maxsize=1)
def vector_of(name: str) -> Callable[[Wave], Vectors]:
    """The model's vector of some samples, shape (size,). Loaded once a process."""
    import torch
    from transformers import AutoFeatureExtractor, AutoModelForAudioXVector

    with loading(name):
        extract = AutoFeatureExtractor.from_pretrained(name)
        model = AutoModelForAudioXVector.from_pretrained(name).eval()

    def vector(samples: Wave) -> Vectors:
        padded = np.pad(samples, (0, max(0, LEAST - len(samples))))
        with torch.inference_mode():
            return model(**extract(padded, sampling_rate=RATE, return_tensors="pt")).embeddings[0].numpy()

    return vector

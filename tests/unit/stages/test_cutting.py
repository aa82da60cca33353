"""Cutting: what `chunks` promises holds for any spans, and cuts fall where it is quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import cutting
from stages.audio import FRAME, RATE, VAD_WINDOW
from stages.cutting import CutRules

RULES = CutRules(shortest=RATE, longest=30 * RATE, merge_gap=RATE // 2)


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[cutting.Span], int]:
    """Ordered spans that do not overlap, in a recording of 0 to 200 s; touching, tiny and huge ones among them."""
    samples = draw(st.integers(0, 200 * RATE))
    marks = sorted(draw(st.lists(st.integers(0, samples), max_size=40)))
    return [(a, b) for a, b in zip(marks[::2], marks[1::2], strict=False) if b > a], samples


@settings(max_examples=200, deadline=None)
@given(recordings(), st.floats(0.05, 2.0), st.floats(4.1, 30.0), st.integers(0, 2**31))
def test_chunks_keep_their_promise(recording: tuple[list[cutting.Span], int], shortest: float, longest: float, seed: int) -> None:
    """In order, no overlap, inside the recording, never too long, every span covered, too short only if the recording is."""
    spans, samples = recording
    rules = CutRules(int(shortest * RATE), int(longest * RATE), RATE // 2)
    powers = np.random.default_rng(seed).random(samples // FRAME)
    pieces = cutting.chunks(spans, powers, samples, rules)
    assert all(0 <= start < end <= samples for start, end in pieces)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(pieces))
    assert all(end - start <= rules.longest for start, end in pieces)
    assert all(end - start >= min(rules.shortest, samples) for start, end in pieces)
    for start, end in spans:
        covered = sum(max(0, min(end, b) - max(start, a)) for a, b in pieces)
        assert covered == end - start


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=400), st.integers(0, VAD_WINDOW - 1))
def test_spans_hold_all_lasting_speech(probabilities: list[float], missing: int) -> None:
    """Spans are ordered, apart, inside the recording; any 0.25 s of unbroken certain speech lies in one."""
    samples = max(0, len(probabilities) * VAD_WINDOW - missing)
    spans = cutting.speech_spans(np.array(probabilities, dtype=np.float32), samples)
    assert all(0 <= start < end <= samples for start, end in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    run = 0
    for window, probability in enumerate(np.array(probabilities, dtype=np.float32)):
        run = run + 1 if probability >= cutting.SPEECH_ON else 0
        middle = window * VAD_WINDOW
        if run * VAD_WINDOW >= 0.25 * RATE + VAD_WINDOW and middle < samples:
            assert any(start <= middle < end for start, end in spans)


def test_a_cut_falls_into_the_pause() -> None:
    """40 s of speech without a gap that the VAD sees are cut in the one quiet place in reach, not at a fixed length."""
    samples = 40 * RATE
    powers = np.ones(samples // FRAME)
    powers[2300:2320] = 0.01  # a breath at 23.0 to 23.2 s
    pieces = cutting.chunks([(0, samples)], powers, samples, RULES)
    assert len(pieces) == 2
    assert 23.0 <= pieces[0][1] / RATE <= 23.2
    assert pieces[1] == (pieces[0][1], samples)


@pytest.mark.parametrize(
    ("spans_s", "length_s", "expected_s"),
    [
        ([(1.0, 3.0), (3.4, 6.0)], 10, [(1.0, 6.0)]),
        ([(1.0, 3.0), (4.0, 6.0)], 10, [(1.0, 3.0), (4.0, 6.0)]),
        ([(1.0, 20.0), (20.2, 40.0)], 50, [(1.0, 20.0), (20.2, 40.0)]),
        ([(5.0, 5.4)], 10, [(4.7, 5.7)]),
        ([(0.0, 0.4)], 10, [(0.0, 1.0)]),
        ([(9.6, 10.0)], 10, [(9.0, 10.0)]),
        ([(0.1, 0.3)], 0.5, [(0.0, 0.5)]),
        ([], 10, []),
    ],
    ids=[
        "close ones join",
        "a gap parts",
        "no joining past the longest",
        "short grows",
        "at the start",
        "at the end",
        "tiny recording",
        "none",
    ],
)
def test_examples(spans_s: list[tuple[float, float]], length_s: float, expected_s: list[tuple[float, float]]) -> None:
    """The rules by example, in seconds."""
    spans = [(round(a * RATE), round(b * RATE)) for a, b in spans_s]
    pieces = cutting.chunks(spans, np.ones(int(length_s * RATE) // FRAME), int(length_s * RATE), RULES)
    assert [(round(a / RATE, 3), round(b / RATE, 3)) for a, b in pieces] == expected_s


def test_a_short_piece_between_neighbours_is_joined() -> None:
    """0.3 s of speech with no silence to grow into goes to its neighbour; if that is full, both are cut anew."""
    rules = CutRules(shortest=RATE, longest=4 * RATE, merge_gap=1)
    spans = [(0, 4 * RATE), (4 * RATE + 100, 4 * RATE + 5000), (4 * RATE + 5100, 8 * RATE)]
    pieces = cutting.chunks(spans, np.ones(8 * RATE // FRAME), 8 * RATE, rules)
    assert all(rules.shortest <= end - start <= rules.longest for start, end in pieces)
    assert sum(end - start for start, end in pieces) >= sum(end - start for start, end in spans)


def test_lengths_that_cannot_be_kept_are_refused() -> None:
    """A longest chunk under twice the shortest leaves no place to cut."""
    with pytest.raises(ValueError, match="at least twice the shortest"):
        CutRules(shortest=2 * RATE, longest=3 * RATE, merge_gap=0)


def test_speech_frames_mark_their_span() -> None:
    """A frame that a span touches counts as speech."""
    assert cutting.speech_frames([(FRAME + 1, 3 * FRAME)], 5).tolist() == [False, True, True, False, False]

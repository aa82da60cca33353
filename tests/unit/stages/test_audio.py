"""The audio passes: each against a reference, and free of the way in which the sound is cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from faster_whisper.vad import get_vad_model
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import audio

SECOND = audio.RATE


def tone(seconds: float, hz: float = 440.0, level: float = 0.1) -> audio.Wave:
    return (level * np.sin(2 * np.pi * hz * np.arange(int(seconds * SECOND)) / SECOND)).astype(np.float32)


def babble(seconds: float, seed: int = 0) -> audio.Wave:
    """Noise that comes and goes like speech, over a floor."""
    generator = np.random.default_rng(seed)
    count = int(seconds * SECOND)
    swell = np.clip(np.sin(2 * np.pi * np.arange(count) / SECOND / 1.7), 0, None)
    return (generator.normal(0, 0.1, count) * swell + generator.normal(0, 0.003, count)).astype(np.float32)


def cut(samples: audio.Wave, places: list[float]) -> list[audio.Wave]:
    marks = sorted(int(place * len(samples)) for place in places)
    return np.split(samples, marks)


@pytest.mark.parametrize(
    ("covariance", "expected"),
    [
        ([[4.0]], [1.0]),
        ([[4.0, 4.0], [4.0, 4.0]], [0.5, 0.5]),
        ([[4.0, 0.0], [0.0, 4.0]], [0.5, 0.5]),
        ([[4.0, -4.0], [-4.0, 4.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [0.0, 4.0]], [0.0, 1.0]),
        ([[0.01, 0.0, 0.0], [0.0, 0.01, 0.0], [0.0, 0.0, 4.0]], [0.0, 0.0, 1.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
    ],
    ids=["mono", "same", "unrelated", "opposite phase", "one dead", "centre only", "silence"],
)
def test_channels_are_averaged_unless_that_would_lose_the_loudest(covariance: list[list[float]], expected: list[float]) -> None:
    """A dead channel, opposite phases and empty surround channels never weaken or cancel the speech."""
    assert audio.channel_weights(np.array(covariance)).tolist() == expected


def test_clipping_is_a_run_at_full_scale() -> None:
    """Two or more neighbours at full scale count, a lone peak does not, and channels are not neighbours of each other."""
    assert audio.clipped_samples(np.array([0.0, 1.0, 0.5, 1.0, 1.0, -1.0, 0.0])) == 3
    assert audio.clipped_samples(np.array([[0.0, 1.0], [1.0, 0.0]])) == 0


def test_band_pass_keeps_speech_and_takes_hum() -> None:
    """1 kHz passes within 0.5 dB; 20 Hz rumble falls by 20 dB or more."""
    for hz, low, high in ((1000.0, -0.5, 0.5), (20.0, -99.0, -20.0)):
        samples = tone(2, hz)
        after = audio.band_pass(80, 7600)(samples)[SECOND:]
        change_db = float(10 * np.log10((after**2).mean() / (samples[SECOND:] ** 2).mean()))
        assert low <= change_db <= high


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_blocks_do_not_show(places: list[float]) -> None:
    """Filter, loudness, denoise, limiter: the same result however the sound is cut into blocks."""
    samples = babble(4) * 4
    parts = cut(samples, places)
    keep = audio.band_pass(80, 7600)
    assert np.array_equal(np.concatenate([keep(part) for part in parts]), audio.band_pass(80, 7600)(samples))
    meter = audio.LoudnessMeter()
    for part in parts:
        meter.add(part)
    assert meter.lufs() == pytest.approx(audio.loudness(samples), abs=1e-9)
    assert np.array_equal(np.concatenate(list(audio.denoise(parts, 0.7))), np.concatenate(list(audio.denoise([samples], 0.7))))
    assert np.array_equal(
        np.concatenate(list(audio.levelled(parts, 3.0, -1))), np.concatenate(list(audio.levelled([samples], 3.0, -1)))
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 400), st.integers(1, 90), st.integers(0, 40), st.lists(st.floats(0, 1), max_size=5))
def test_overlapped_blocks_join_to_the_whole(count: int, size: int, pad: int, places: list[float]) -> None:
    """Cores put together give the input; the context on both sides is the neighbours' samples, zeros at the ends."""
    samples = np.arange(1, count + 1, dtype=np.float32)
    framed = np.concatenate([np.zeros(pad, np.float32), samples, np.zeros(pad, np.float32)])
    at = 0
    for padded, length in audio.overlapped(cut(samples, places), size, pad):
        assert np.array_equal(padded, framed[at : at + length + 2 * pad])
        assert length == min(size, count - at)
        at += length
    assert at == count


@pytest.mark.parametrize("seconds", [0.05, 3.0, 45.0])
def test_denoise_agrees_with_noisereduce(seconds: float) -> None:
    """Our gate is noisereduce's non-stationary one: the difference lies 60 dB or more under the sound."""
    from noisereduce.spectralgate.nonstationary import SpectralGateNonStationary

    samples = babble(seconds)
    reference = SpectralGateNonStationary(
        samples, audio.RATE, 600_000, 30_000, 1024, None, None, 2.0, 500, 50, 2, 10, None, 0.7, False, 1
    ).get_traces()
    ours = np.concatenate(list(audio.denoise([samples], 0.7)))
    assert len(ours) == len(samples)
    assert ((ours - reference) ** 2).mean() <= 1e-6 * (reference**2).mean()


def test_denoise_survives_digital_silence() -> None:
    """Zeros in, zeros out, and no NaN around them (noisereduce divides by zero there)."""
    samples = np.concatenate([np.zeros(3 * SECOND, np.float32), babble(2), np.zeros(3 * SECOND, np.float32)])
    out = np.concatenate(list(audio.denoise([samples], 0.7)))
    assert np.isfinite(out).all()
    assert np.abs(out[: 2 * SECOND]).max() < 1e-6


def test_denoise_takes_noise_and_leaves_speech() -> None:
    """The floor between bursts falls by 6 dB or more, the bursts by 4 dB or less although they are noise themselves."""
    samples = babble(12)
    out = np.concatenate(list(audio.denoise([samples], 0.7)))
    loud = np.abs(np.sin(2 * np.pi * np.arange(len(samples)) / SECOND / 1.7)) > 0.7
    loud &= np.sin(2 * np.pi * np.arange(len(samples)) / SECOND / 1.7) > 0
    quiet = np.sin(2 * np.pi * np.arange(len(samples)) / SECOND / 1.7) < -0.5

    def change_db(where: np.ndarray) -> float:
        return float(10 * np.log10((out[where] ** 2).mean() / (samples[where] ** 2).mean()))

    assert change_db(quiet) < -6
    assert change_db(loud) > -4


@pytest.mark.parametrize("seconds", [0.5, 3.05, 20.0])
def test_loudness_agrees_with_pyloudnorm(seconds: float) -> None:
    """BS.1770-4's integrated loudness, within 0.05 LU of the reference implementation (whose last block may be cut short)."""
    import pyloudnorm

    samples = babble(seconds, 3)
    assert audio.loudness(samples) == pytest.approx(
        pyloudnorm.Meter(audio.RATE).integrated_loudness(samples.astype(float)), abs=0.05
    )


def test_loudness_of_a_sine() -> None:
    """A 997 Hz sine of 0 dB peak reads -3.01 LUFS (ITU-R BS.1770-4); silence reads minus infinity."""
    assert audio.loudness(tone(5, 997, 1.0)) == pytest.approx(-3.01, abs=0.1)
    assert audio.loudness(np.zeros(SECOND, np.float32)) == float("-inf")
    assert audio.loudness(np.zeros(0, np.float32)) == float("-inf")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.5, 30.0))
def test_true_peaks_stay_under_the_ceiling(seed: int, gain: float) -> None:
    """Whatever the gain, no true peak rises more than 0.2 dB above the ceiling, and what is quiet is only scaled."""
    samples = babble(1.5, seed)
    out = np.concatenate(list(audio.levelled([samples], gain, -1.0)))
    assert len(out) == len(samples)
    assert 20 * np.log10(audio.true_peaks(out).max()) <= -1.0 + 0.2
    assert np.all(np.abs(out) <= np.abs(samples * np.float32(gain)) + 1e-6)


def test_loudness_pass_reaches_its_target() -> None:
    """Gain from the measured loudness brings speech-like sound to -16 LUFS within 1 LU, peaks limited."""
    samples = babble(20) * 0.05
    gain = audio.gain_for(audio.loudness(samples), -16.0)
    assert audio.loudness(np.concatenate(list(audio.levelled([samples], gain, -1.0)))) == pytest.approx(-16.0, abs=1.0)
    assert audio.gain_for(float("-inf"), -16.0) == 1.0
    assert audio.gain_for(-90.0, -16.0) == pytest.approx(100.0)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=4), st.integers(1, 40_000))
def test_speech_probabilities_are_faster_whispers_own(places: list[float], count: int) -> None:
    """Block by block, the detector gives what faster-whisper computes from the whole; a cut window at the end is filled up."""
    samples = babble(3)[:count]
    detector = audio.SpeechDetector(get_vad_model().session)
    ours = np.concatenate([*(detector(part) for part in cut(samples, places)), detector.finish()])
    whole = np.pad(samples, (0, -len(samples) % audio.VAD_WINDOW + audio.VAD_WINDOW))
    reference = get_vad_model()(whole).reshape(-1)
    assert len(ours) == -(-len(samples) // audio.VAD_WINDOW)
    assert np.abs(ours - reference[: len(ours)]).max() < 1e-5


def test_spread_tells_noise_from_bursts() -> None:
    """Steady noise has next to no spread; sound that comes and goes over a floor has its signal-to-noise ratio."""
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * SECOND).astype(np.float32)
    assert audio.spread_db(audio.frame_powers(noise)) < 3
    assert audio.spread_db(audio.frame_powers(babble(5))) > 20
    assert audio.spread_db(audio.frame_powers(np.zeros(SECOND, np.float32))) == 0.0


def test_snr_of_a_known_mixture() -> None:
    """A tone of known power over noise of known power gives that ratio; without noise frames the spread stands in."""
    noise = np.random.default_rng(1).normal(0, 0.01, 4 * SECOND).astype(np.float32)
    powers = audio.frame_powers(noise + np.pad(tone(2, 440, 0.1 * np.sqrt(2)), (2 * SECOND, 0)))
    speech = np.arange(len(powers)) >= len(powers) // 2
    floor = audio.noise_power(powers, speech)
    assert audio.snr_db(powers[speech], floor) == pytest.approx(20.0, abs=0.5)
    assert audio.noise_power(powers, np.ones(len(powers), bool)) is None
    assert audio.snr_db(powers, None) == audio.spread_db(powers)

"""The audio passes as pure functions: arrays in, arrays out; no files, no globals, no settings.

All sound is mono float32 at 16 kHz, shape (samples,), unless a docstring says otherwise. Recordings of hours go through in
blocks: filters and meters carry their state from block to block, so the result does not depend on how the sound was cut.
Cutting a recording into chunks is `stages.cutting`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, signal

RATE = 16_000
FRAME = 160
"""10 ms: the grid of `frame_powers`."""
VAD_WINDOW = 512
"""32 ms: Silero's window at 16 kHz."""
VAD_CONTEXT = 64
VAD_BATCH = 512  # windows in one call: keeps the encoder's activations near 20 MB
FULL_SCALE = 0.999
SILENCE_DB = -90.0
LOUDEST = 1000.0  # 60 dB over full scale

DENOISE_BLOCK = 600_000  # noisereduce's own block and padding, so that the two can be compared sample by sample
DENOISE_PAD = 30_000
N_FFT, HOP = 1024, 256
TIME_CONSTANT_S, MASK_HZ, MASK_MS = 2.0, 500, 50
SIGMOID_SHIFT, SIGMOID_SLOPE = 2.0, 10.0
BIN_REACH, TIME_REACH = int(MASK_HZ / (RATE / (N_FFT / 2))), int(MASK_MS / (HOP / RATE * 1000))
TRAIL_FRAMES, CACHED_FRAMES = 32, 128
"""Frames at once: few enough to stay in the cache."""

LOUDNESS_STEP = RATE // 10  # 100 ms: a 400 ms gating block with 75 % overlap is four of these
ABSOLUTE_GATE_LUFS, RELATIVE_GATE_LU = -70.0, -10.0
OVERSAMPLING = 4  # ITU-R BS.1770-4, annex 2
LIMITER_FRAME = 16  # 1 ms
LIMITER_REACH = 5  # frames: the gain starts to fall 5 ms before a peak and is back 5 ms after it
LIMITER_PAD = LIMITER_FRAME * 4 * LIMITER_REACH
PEAK_REACH = 10
"""Samples on both sides that a finer sample between them depends on."""

Wave = NDArray[np.float32]
Powers = NDArray[np.float64]


# -- channels, clipping, levels
def channel_weights(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each channel goes into the mono mix, from their (channels, channels) sums of products.

    The mean of all channels, unless the mix would be much weaker than the loudest channel: then the loudest alone. That
    covers a dead channel, opposite phase (which would cancel), and five silent channels around a centre microphone.
    """
    channels = len(covariance)
    power = np.diag(covariance)
    if channels == 1 or covariance.sum() / channels**2 >= 0.3 * power.max():
        return np.full(channels, 1.0 / channels)
    return np.eye(channels)[int(power.argmax())]


def sane(samples: Wave) -> tuple[Wave, int]:
    """The samples with zeros for what is no number or beyond all measure, and how many these were: one would spoil all after it."""
    good = np.abs(samples) <= LOUDEST  # false for NaN too
    faulty = int(good.size - good.sum())
    return (np.where(good, samples, np.float32(0)) if faulty else samples), faulty


def clipped_samples(samples: NDArray[np.floating]) -> int:
    """Samples at full scale next to another one at full scale: a lone peak is no clipping. Any shape; time is last."""
    if not samples.size or (samples.max() < FULL_SCALE and samples.min() > -FULL_SCALE):
        return 0
    full = np.abs(samples) >= FULL_SCALE
    beside = np.zeros_like(full)
    beside[..., 1:] |= full[..., :-1]
    beside[..., :-1] |= full[..., 1:]
    return int((full & beside).sum())


def frame_powers(samples: Wave) -> Powers:
    """Mean square of each full 10 ms frame; shape (samples // 160,)."""
    frames = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / FRAME


def decibels(power: float | Powers) -> Any:
    """Power in dB of full scale, at least SILENCE_DB."""
    return 10.0 * np.log10(np.maximum(power, 10 ** (SILENCE_DB / 10)))


def spread_db(powers: Powers) -> float:
    """How far loud frames (90th percentile) stand above the floor (10th), in dB: a signal-to-noise ratio without a VAD.

    Frames of exact digital silence are left out: a recording padded with zeros is not thereby a clean one.
    """
    audible = powers[powers > 10 ** (SILENCE_DB / 10)]
    if len(audible) < 10:
        return 0.0
    floor, loud = np.percentile(audible, [10, 90])
    return float(decibels(loud) - decibels(floor))


def noise_power(powers: Powers, speech: NDArray[np.bool_]) -> float | None:
    """Median power of the frames without speech, digital silence left out; None where there is no such frame."""
    quiet = powers[~speech & (powers > 0)]
    return float(np.median(quiet)) if len(quiet) else None


def snr_db(powers: Powers, noise: float | None) -> float:
    """Signal-to-noise ratio in dB of a chunk over the recording's noise; the noise is taken off the chunk's power.

    Where the noise is not known the answer is `spread_db`.
    """
    if noise is None or not len(powers):
        return spread_db(powers)
    return float(decibels(max(float(powers.mean()) - noise, 0.0)) - decibels(noise))


# -- filters
class Filter:
    """Second-order sections that carry their state from block to block."""

    def __init__(self, sections: NDArray[np.float64]) -> None:
        self._sections = sections
        self._state = np.zeros((len(sections), 2))

    def __call__(self, block: Wave) -> NDArray[np.float64]:
        """`block` filtered, in continuation of the blocks before it."""
        if not len(block):
            return np.zeros(0)
        out, self._state = signal.sosfilt(self._sections, block, zi=self._state)
        return out


def band_pass(low_hz: float, high_hz: float) -> Filter:
    """A Butterworth band-pass of second order at each edge; an edge at or above Nyquist is left out.

    Causal on purpose: its delay inside the speech band is under 2 ms, and blocks need no look-ahead.
    """
    nyquist = RATE / 2
    if high_hz >= nyquist:
        return Filter(signal.butter(2, low_hz, "highpass", fs=RATE, output="sos"))
    return Filter(signal.butter(2, [low_hz, high_hz], "bandpass", fs=RATE, output="sos"))


# -- denoise
def denoise(blocks: Iterable[Wave], strength: float) -> Iterator[Wave]:
    """Spectral gating against a noise floor that follows the recording, `strength` of it taken away.

    The algorithm of noisereduce's non-stationary gate (Sainburg, https://github.com/timsainb/noisereduce) with its default
    parameters, in single precision and without torch, which noisereduce imports; the outputs agree to 60 dB or better.
    """
    for index, (padded, length) in enumerate(overlapped(blocks, DENOISE_BLOCK, DENOISE_PAD)):
        if index and length < DENOISE_BLOCK:  # noisereduce fills its last block, and the floor near the end depends on it
            padded = np.pad(padded, (0, DENOISE_BLOCK - length))
        yield _gated(padded, strength)[DENOISE_PAD : DENOISE_PAD + length]


def overlapped(blocks: Iterable[Wave], size: int, pad: int) -> Iterator[tuple[Wave, int]]:
    """Blocks of `size` samples with `pad` samples of their neighbours on both sides, and each one's own length.

    Zeros stand before the beginning and after the end. The last block may be shorter.
    """
    held = np.zeros(pad, dtype=np.float32)
    parts, waiting = [held], 0
    for block in blocks:
        parts.append(block)
        waiting += len(block)
        if waiting < size + pad:
            continue
        held = np.concatenate(parts)
        while len(held) - pad >= size + pad:
            yield held[: size + 2 * pad], size
            held = held[size:]
        parts, waiting = [held], len(held) - pad
    held = np.concatenate([*parts, np.zeros(pad, dtype=np.float32)])
    while (left := len(held) - 2 * pad) > 0:
        yield held[: size + 2 * pad], min(left, size)
        held = held[size:]


def _gated(samples: Wave, strength: float) -> Wave:
    spectrum = fft.rfft(_frames(samples) * _window(), axis=1, overwrite_x=True)  # (frames, bins) complex64
    magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2)
    floor = _followed(magnitude)
    mask = np.zeros((len(magnitude) + 2 * TIME_REACH, magnitude.shape[1]), dtype=np.float32)
    for at in range(0, len(magnitude), CACHED_FRAMES):
        part = slice(at, at + CACHED_FRAMES)
        mask[TIME_REACH:-TIME_REACH][part] = _masked(magnitude[part], floor[part])
    for at in range(0, len(magnitude), CACHED_FRAMES):
        smooth = _triangle(mask[at : at + CACHED_FRAMES + 2 * TIME_REACH].T, TIME_REACH).T
        smooth *= np.float32(strength)
        smooth += np.float32(1.0 - strength)
        spectrum[at : at + CACHED_FRAMES] *= smooth
    return _overlap_add(fft.irfft(spectrum, n=N_FFT, axis=1), len(samples))


def _masked(magnitude: Wave, floor: Wave) -> Wave:
    """The mask of some frames, smoothed over frequency: a sigmoid of how far they stand above the floor, in floors."""
    mask = magnitude / np.maximum(floor, np.float32(1e-12))
    mask -= np.float32(1 + SIGMOID_SHIFT)
    mask *= np.float32(-SIGMOID_SLOPE)
    np.exp(mask, out=mask)
    mask += 1
    np.reciprocal(mask, out=mask)
    return _triangle(np.pad(mask, ((0, 0), (BIN_REACH, BIN_REACH))), BIN_REACH)


def _window() -> Wave:
    return signal.get_window("hann", N_FFT).astype(np.float32)


def _frames(samples: Wave) -> Wave:
    """(frames, N_FFT) views, a quarter window apart; zeros of half a window stand on both sides, as scipy's stft has them."""
    count = len(samples) // HOP + 1
    padded = np.zeros((count - 1) * HOP + N_FFT, dtype=np.float32)
    padded[N_FFT // 2 : N_FFT // 2 + len(samples)] = samples[: len(padded) - N_FFT // 2]
    return np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]


def _overlap_add(frames: Wave, length: int) -> Wave:
    """The inverse of `_frames` after a windowed transform: least squares over the four windows that overlap."""
    window = _window()
    frames *= window
    quarters = frames.reshape(len(frames), N_FFT // HOP, HOP)
    weights = (window**2).reshape(-1, HOP)
    total = np.zeros((len(frames) + 3, HOP), dtype=np.float32)
    norm = np.zeros_like(total)
    for quarter in range(N_FFT // HOP):
        total[quarter : quarter + len(frames)] += quarters[:, quarter]
        norm[quarter : quarter + len(frames)] += weights[quarter]
    total /= np.maximum(norm, np.float32(1e-10), out=norm)
    whole = total.reshape(-1)[N_FFT // 2 :]
    out = np.zeros(length, dtype=np.float32)
    out[: min(length, len(whole))] = whole[:length]
    return out


def _followed(magnitude: Wave) -> Wave:
    """The magnitudes smoothed forward and backward in time by one pole, each way starting in its steady state."""
    frames = TIME_CONSTANT_S * RATE / HOP
    pole = (np.sqrt(1 + 4 * frames**2) - 1) / (2 * frames**2)
    out = np.empty_like(magnitude)
    _trail(magnitude, out, pole)
    _trail(out[::-1], out[::-1], pole)
    return out


def _trail(rows: Wave, out: Wave, pole: float) -> None:
    """Each row of `out`: the one before it, moved by `pole` of the way towards that of `rows`. They may be the same array.

    Some rows at once, as a product with the triangle of their weights: three times as fast as a filter down the columns.
    """
    at = np.arange(TRAIL_FRAMES)
    weights = np.tril(pole * (1 - pole) ** np.abs(at[:, None] - at)).astype(np.float32)
    faded = ((1 - pole) ** (at + 1)).astype(np.float32)[:, None]
    before = rows[0].copy()
    for start in range(0, len(rows), TRAIL_FRAMES):
        part = rows[start : start + TRAIL_FRAMES]
        count = len(part)
        out[start : start + count] = weights[:count, :count] @ part + faded[:count] * before
        before = out[start + count - 1].copy()


def _triangle(rows: Wave, reach: int) -> Wave:
    """Each row under a triangle that ends `reach` values away, zeros outside: a box seen through itself."""
    wide = _box(_box(rows, reach + 1), reach + 1)
    wide *= np.float32(1 / (reach + 1) ** 2)
    return wide


def _box(rows: Wave, width: int) -> Wave:
    """Sums of `width` neighbours in each row, by doubling; rows become shorter by `width` - 1."""
    left = rows.shape[1] - width + 1
    doubled, reach, taken, total = rows, 1, 0, None
    while True:
        if width & reach:
            part = doubled[:, taken : taken + left]
            total = part if total is None else total + part
            taken += reach
        if taken == width:
            break
        doubled = doubled[:, :-reach] + doubled[:, reach:]
        reach *= 2
    assert total is not None
    return total


# -- loudness
class LoudnessMeter:
    """Integrated loudness by ITU-R BS.1770-4 over blocks of any length; agrees with pyloudnorm to 0.01 LU."""

    def __init__(self) -> None:
        self._filter = Filter(k_weighting())
        self._rest = np.zeros(0)
        self._squares: list[Powers] = []

    def add(self, block: Wave) -> None:
        """Take in the next block."""
        weighted = np.concatenate([self._rest, self._filter(block)])
        whole = len(weighted) // LOUDNESS_STEP * LOUDNESS_STEP
        steps = weighted[:whole].reshape(-1, LOUDNESS_STEP)
        self._squares.append(np.einsum("ij,ij->i", steps, steps))
        self._rest = weighted[whole:].copy()

    def lufs(self) -> float:
        """Loudness so far; -inf where nothing reaches the absolute gate."""
        squares = np.concatenate([*self._squares, np.zeros(0)])
        if len(squares) < 4:  # shorter than one gating block: take it as one
            count = len(squares) * LOUDNESS_STEP + len(self._rest)
            powers = np.array([(squares.sum() + float(self._rest @ self._rest)) / max(count, 1)])
        else:
            powers = np.convolve(squares, np.ones(4), "valid") / (4 * LOUDNESS_STEP)
        for gate in (ABSOLUTE_GATE_LUFS, None):
            limit = gate if gate is not None else _lufs(powers.mean()) + RELATIVE_GATE_LU
            powers = powers[_lufs(powers) >= limit]
            if not len(powers):
                return float("-inf")
        return float(_lufs(powers.mean()))


def loudness(samples: Wave) -> float:
    """Integrated loudness of one array, LUFS."""
    meter = LoudnessMeter()
    meter.add(samples)
    return meter.lufs()


def k_weighting() -> NDArray[np.float64]:
    """BS.1770's K-weighting at 16 kHz: a high shelf (+4 dB, 1.5 kHz) and a high-pass (38 Hz), by Bristow-Johnson's formulas."""
    return np.array([_shelf(4.0, 1 / np.sqrt(2), 1500.0), _high_pass(0.5, 38.0)])


def _shelf(gain_db: float, q: float, hz: float) -> list[float]:
    a = 10 ** (gain_db / 40)
    w = 2 * np.pi * hz / RATE
    alpha, cos = np.sin(w) / (2 * q), np.cos(w)
    root = 2 * np.sqrt(a) * alpha
    b = [a * ((a + 1) + (a - 1) * cos + root), -2 * a * ((a - 1) + (a + 1) * cos), a * ((a + 1) + (a - 1) * cos - root)]
    c = [(a + 1) - (a - 1) * cos + root, 2 * ((a - 1) - (a + 1) * cos), (a + 1) - (a - 1) * cos - root]
    return [value / c[0] for value in b + c]


def _high_pass(q: float, hz: float) -> list[float]:
    w = 2 * np.pi * hz / RATE
    alpha, cos = np.sin(w) / (2 * q), np.cos(w)
    coefficients = [(1 + cos) / 2, -(1 + cos), (1 + cos) / 2, 1 + alpha, -2 * cos, 1 - alpha]
    return [value / (1 + alpha) for value in coefficients]


def _lufs(power: Any) -> Any:
    return -0.691 + 10.0 * np.log10(np.maximum(power, 1e-20))


def gain_for(lufs: float, target_lufs: float, max_gain_db: float = 40.0) -> float:
    """The factor that brings `lufs` to `target_lufs`; silence is left as it is, and hiss is not blown up without end."""
    if not np.isfinite(lufs):
        return 1.0
    return float(10 ** (min(target_lufs - lufs, max_gain_db) / 20))


def levelled(blocks: Iterable[Wave], gain: float, ceiling_dbtp: float) -> Iterator[Wave]:
    """Blocks times `gain`, with true peaks (BS.1770-4 annex 2, 4 x oversampled) held at `ceiling_dbtp` by a soft limiter."""
    ceiling = 10 ** (ceiling_dbtp / 20)
    for padded, length in overlapped(blocks, DENOISE_BLOCK, LIMITER_PAD):
        yield _limited(padded * np.float32(gain), ceiling)[LIMITER_PAD : LIMITER_PAD + length]


def true_peaks(samples: Wave) -> NDArray[np.float64]:
    """True peak of each 1 ms frame, the last one filled with zeros; shape (ceil(samples / 16),).

    scipy's `resample_poly` as one matrix product: ten samples of context on both sides of a frame to its 64 fine samples.
    """
    count = -(-len(samples) // LIMITER_FRAME)
    padded = np.zeros(count * LIMITER_FRAME + 2 * PEAK_REACH, dtype=np.float32)
    padded[PEAK_REACH : PEAK_REACH + len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, LIMITER_FRAME + 2 * PEAK_REACH)[::LIMITER_FRAME]
    fine = windows @ _interpolation()
    return np.maximum(fine.max(axis=1), -fine.min(axis=1)).astype(np.float64)


@functools.cache
def _interpolation() -> Wave:
    """(36, 64): the samples around a 1 ms frame to the four times finer samples in it."""
    half = PEAK_REACH * OVERSAMPLING
    taps = OVERSAMPLING * signal.firwin(2 * half + 1, 1 / OVERSAMPLING, window=("kaiser", 5.0))
    out = np.zeros((LIMITER_FRAME + 2 * PEAK_REACH, LIMITER_FRAME * OVERSAMPLING), dtype=np.float32)
    for fine in range(out.shape[1]):
        first = -(-fine // OVERSAMPLING) if fine % OVERSAMPLING else fine // OVERSAMPLING
        rows = np.arange(first, fine // OVERSAMPLING + 2 * PEAK_REACH + 1)
        out[rows, fine] = taps[fine - OVERSAMPLING * (rows - PEAK_REACH) + half]
    return out


def _limited(samples: Wave, ceiling: float) -> Wave:
    """Peaks brought under `ceiling`; a wave hardly rises over twice its samples between them, so quiet blocks pass."""
    if not len(samples) or float(np.abs(samples).max()) < ceiling / 2:
        return samples
    peaks = true_peaks(samples)
    if peaks.max() <= ceiling:
        return samples
    peaks = np.maximum(ndimage.maximum_filter1d(peaks, 2 * LIMITER_REACH + 3), 1e-9)
    wanted = np.minimum(1.0, ceiling / peaks)
    gains = ndimage.uniform_filter1d(wanted, 2 * LIMITER_REACH + 1)  # never above `wanted` of the frame itself
    at = (np.arange(len(samples)) - (LIMITER_FRAME - 1) / 2) / LIMITER_FRAME
    return (samples * np.interp(at, np.arange(len(gains)), gains)).astype(np.float32)


# -- speech
class SpeechDetector:
    """Silero's speech probability for every 32 ms, over blocks of any length.

    `session` is the ONNX session of the model that ships with faster-whisper; the probabilities are the same as its own.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._h = np.zeros((1, 1, 128), dtype=np.float32)
        self._c = np.zeros((1, 1, 128), dtype=np.float32)
        self._tail = np.zeros(VAD_CONTEXT, dtype=np.float32)
        self._rest = np.zeros(0, dtype=np.float32)

    def __call__(self, block: Wave) -> Wave:
        """Probabilities of the windows that this block completes."""
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // VAD_WINDOW * VAD_WINDOW
        self._rest = samples[whole:]
        windows = samples[:whole].reshape(-1, VAD_WINDOW)
        parts = [self._run(windows[at : at + VAD_BATCH]) for at in range(0, len(windows), VAD_BATCH)]
        return np.concatenate([*parts, np.zeros(0, dtype=np.float32)])

    def finish(self) -> Wave:
        """The probability of the last, incomplete window, filled with zeros; empty if there is none."""
        if not len(self._rest):
            return np.zeros(0, dtype=np.float32)
        return self(np.zeros(VAD_WINDOW - len(self._rest), dtype=np.float32))

    def _run(self, windows: Wave) -> Wave:
        before = np.concatenate([self._tail[None], windows[:-1, -VAD_CONTEXT:]])
        self._tail = windows[-1, -VAD_CONTEXT:].copy()
        feed = {"input": np.concatenate([before, windows], axis=1), "h": self._h, "c": self._c}
        out, self._h, self._c = self._session.run(None, feed)
        return np.asarray(out, dtype=np.float32).reshape(-1)

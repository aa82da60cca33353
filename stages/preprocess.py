"""The audio passes: recordings in `stark_data/raw` to clean chunks in `stark_data/cleaned`.

Per recording: convert to 16 kHz mono, gate, band-pass, denoise, loudness, find speech, cut, gate each chunk. A recording goes
through in blocks by way of raw float32 files in the scratch folder, so that memory does not grow with its length. Its chunks
and its `record.json` (what each pass did, in numbers) become visible by one rename: a recording is finished or it is not, and
a finished one is not done again unless the file or the settings changed. A bad recording is set aside with one sentence.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from stages import audio, cutting
from stages.recordings import (
    RATE,
    NotAudioError,
    Sound,
    announced_duration,
    decode,
    decoded_fault,
    probe,
    recordings,
    shown,
    stems,
)
from stages.runtime import Delivery, StageContext, run
from state.contract import MisconfiguredError
from state.durable import file_digest, write_atomically
from state.settings import Preprocess
from state.workspace import Workspace

PASSES = 1
"""Raised when the passes change: older records are then done again."""
READ_SAMPLES = 1600 * audio.FRAME
"""Read at once: a whole number of 10 ms frames."""
SILENT_DB = -60.0
RECORD = "record.json"
METADATA = "metadata.jsonl"


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One line of metadata.jsonl; `file_name` is relative to the folder of that file, as audiofolder wants it."""

    file_name: str
    source: str
    """Stem of the recording: a split by sermon goes by it."""
    start_s: float
    end_s: float
    snr_db: float
    lufs: float
    clipped_share: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one recording."""

    source: str
    file: str
    """Its name, with what is not UTF-8 replaced."""
    size_bytes: int
    sha256: str
    passes_version: int
    settings: Preprocess
    reason: str = ""
    """Why it was set aside, one clause; empty: it is good."""
    passes: dict[str, dict[str, Any]] = {}
    """Per pass, in order: what it found or did."""
    chunks: tuple[Chunk, ...] = ()

    @property
    def good(self) -> bool:
        return not self.reason


class SetAsideError(Exception):
    """The recording is not fit for training; the text says why."""


@dataclass
class Work:
    """One recording on its way through the passes; `folder` is its scratch."""

    path: Path
    stem: str
    settings: Preprocess
    folder: Path
    beat: Callable[[float], None]
    """Called with the share of the recording that is done: heartbeat and stop point."""
    passes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, name: str, **facts: Any) -> None:
        self.passes[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}


def main(ctx: StageContext) -> Delivery:
    """Clean every recording, keep those that are done, and write one metadata.jsonl over all chunks."""
    settings, workspace = ctx.settings(Preprocess), ctx.workspace
    _checked_rules(settings)
    paths = _inputs(workspace.raw_audio)
    named = stems(paths)
    _drop_strangers(ctx, workspace.cleaned_audio, set(named.values()))
    records = []
    for index, path in enumerate(paths):
        ctx.check_stop()
        record = _kept(workspace, path, named[path], settings)
        if record is None:
            record = _cleaned(ctx, path, named[path], settings, (index, len(paths)))
        shutil.rmtree(ctx.scratch() / named[path], ignore_errors=True)  # hundreds of megabytes an hour of sound
        records.append(record)
        ctx.progress(index + 1, len(paths), "recordings", message=shown(path))
    chunks = [chunk for record in records for chunk in record.chunks]
    good = sum(record.good for record in records)
    _check_enough(records, settings)
    lines = b"".join(msgspec.json.encode(chunk) + b"\n" for chunk in chunks)
    write_atomically(workspace.cleaned_audio / METADATA, lines)
    metrics = _metrics(records, chunks)
    ctx.metric(metrics)
    hours = metrics["chunk_hours"]
    summary = f"{len(chunks)} chunks ({hours:.2f} h) from {good} of {len(records)} recordings"
    return Delivery(outputs=[workspace.cleaned_audio], metrics=metrics, summary=summary)


def _checked_rules(settings: Preprocess) -> cutting.CutRules:
    try:
        if settings.low_hz >= settings.high_hz:
            raise ValueError(f"low_hz {settings.low_hz:g} must be below high_hz {settings.high_hz:g}")
        return cutting.CutRules(
            shortest=int(settings.min_chunk_s * RATE),
            longest=int(settings.max_chunk_s * RATE),
            merge_gap=int(settings.merge_gap_s * RATE),
        )
    except ValueError as error:
        raise MisconfiguredError(f"settings of the audio passes: {error}") from error


def _inputs(folder: Path) -> list[Path]:
    paths = recordings(folder) if folder.is_dir() else []
    if not paths:
        raise MisconfiguredError(f"{folder} holds no recording: run the download stage, or put audio files there, then retry")
    return paths


def _drop_strangers(ctx: StageContext, cleaned: Path, stems_now: set[str]) -> None:
    """Remove chunks of recordings that are no longer there: only folders that this stage made, known by their record."""
    for record in sorted(cleaned.glob(f"*/{RECORD}")):
        if record.parent.name not in stems_now:
            shutil.rmtree(record.parent)
            ctx.note(f"removed the chunks of {record.parent.name}: its recording is no longer in {ctx.workspace.raw_audio.name}/")


def _kept(workspace: Workspace, path: Path, stem: str, settings: Preprocess) -> Record | None:
    """The record of an earlier attempt, if it speaks of this very file, these settings and these passes."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        record = msgspec.json.decode((workspace.cleaned_audio / stem / RECORD).read_bytes(), type=Record)
        same = (record.file, record.size_bytes, record.settings, record.passes_version)
        if same == (shown(path), path.stat().st_size, settings, PASSES) and record.sha256 == file_digest(path):
            return record
    return None


def _cleaned(ctx: StageContext, path: Path, stem: str, settings: Preprocess, place: tuple[int, int]) -> Record:
    """Run one recording through the passes and publish its folder, chunks or none."""
    index, total = place

    def beat(share: float) -> None:
        ctx.check_stop()
        ctx.progress(index + min(share, 0.99), total, "recordings", message=shown(path))

    folder = ctx.scratch() / stem
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    work = Work(path, stem, settings, folder, beat)
    chunks: tuple[Chunk, ...] = ()
    reason = ""
    try:
        chunks = passes(work)
    except (SetAsideError, NotAudioError) as error:
        reason = str(error)
        ctx.note(f"recording set aside: {reason}", "warning", file=shown(path))
    record = Record(
        source=stem,
        file=shown(path),
        size_bytes=path.stat().st_size,
        sha256=file_digest(path),
        passes_version=PASSES,
        settings=settings,
        reason=reason,
        passes=work.passes,
        chunks=chunks,
    )
    (folder / "out" / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
    ctx.publish(folder / "out", ctx.workspace.cleaned_audio / stem)
    return record


def passes(work: Work) -> tuple[Chunk, ...]:
    """All passes over one recording; chunks are written to `work.folder / "out"`.

    Raises:
        SetAsideError: the recording, or all of its chunks, failed a gate.
        NotAudioError: it cannot be decoded.
    """
    settings = work.settings
    samples = _convert(work)
    powers = _mono(work, samples)
    if settings.gate:
        _gate(work, powers)
    lufs = _denoise(work, samples)
    spans, powers = _find_speech(work, samples, lufs)
    pieces = cutting.chunks(spans, powers, samples, _checked_rules(settings))
    speech = sum(end - start for start, end in spans) / RATE
    work.count("speech", spans=len(spans), seconds=speech)
    work.count("cut", chunks=len(pieces), seconds=sum(end - start for start, end in pieces) / RATE)
    if not pieces:
        raise SetAsideError(f"{shown(work.path)} holds no speech")
    return _write_chunks(work, pieces, spans, powers)


def _convert(work: Work) -> int:
    """Decode to 16 kHz, all channels, on disk; returns samples per channel. Settles the mix and counts clipping."""
    sound = probe(work.path)
    announced_s = announced_duration(work.path)
    heard = _Heard()
    expected = (sound.duration_s or announced_s or 3600.0) * RATE
    with open(work.folder / "decoded.f32", "wb") as file:
        for block in decode(work.path, heard.native):
            file.write(np.ascontiguousarray(block.T).data)
            heard.block(block)
            work.beat(0.25 * heard.samples / expected)
    decoded_s = heard.samples / RATE
    fault = decoded_fault(work.path, decoded_s, announced_s)
    if fault:
        raise SetAsideError(fault)
    weights = audio.channel_weights(heard.covariance)
    np.save(work.folder / "weights.npy", weights)
    mix = "mean" if np.ptp(weights) == 0 else f"channel {int(weights.argmax()) + 1} alone"
    work.count("convert", **_container(sound), seconds=decoded_s, announced_s=announced_s, mix=mix)
    work.count("clipping", samples=heard.clipped, share=heard.clipped / max(heard.native_samples, 1))
    return heard.samples


def _container(sound: Sound) -> dict[str, Any]:
    return {"codec": sound.codec, "rate": sound.rate, "channels": sound.channels, "container_s": sound.duration_s}


class _Heard:
    """What is summed up while a recording is decoded."""

    def __init__(self) -> None:
        self.samples = self.clipped = self.native_samples = 0
        self.covariance: NDArray[np.float64] = np.zeros((1, 1))

    def native(self, block: NDArray[np.floating]) -> None:
        self.clipped += audio.clipped_samples(block)
        self.native_samples += block.size

    def block(self, block: NDArray[np.float32]) -> None:
        self.samples += block.shape[1]
        self.covariance = self.covariance + (block @ block.T).astype(np.float64)


def _mono(work: Work, samples: int) -> audio.Powers:
    """Mix to mono and band-pass, disk to disk; returns the frame powers before denoising."""
    weights = np.load(work.folder / "weights.npy").astype(np.float32)
    settings, powers = work.settings, []
    keep = audio.band_pass(settings.low_hz, settings.high_hz) if settings.band_pass else None
    with open(work.folder / "mono.f32", "wb") as file:
        for block in _blocks(work.folder / "decoded.f32", len(weights)):
            mono = block @ weights
            mono = keep(mono).astype(np.float32) if keep else mono
            powers.append(audio.frame_powers(mono))
            file.write(mono.data)
    (work.folder / "decoded.f32").unlink()
    work.beat(0.3)
    work.count("band_pass", on=settings.band_pass, low_hz=settings.low_hz, high_hz=settings.high_hz, samples=samples)
    return np.concatenate(powers)


def _gate(work: Work, powers: audio.Powers) -> None:
    """The initial gate: silence, clipping, noise."""
    name, settings = shown(work.path), work.settings
    level_db = float(audio.decibels(np.percentile(powers, 95))) if len(powers) else audio.SILENCE_DB
    spread_db = audio.spread_db(powers)
    clipped = work.passes["clipping"]["share"]
    work.count("gate", level_db=level_db, spread_db=spread_db, clipped_share=clipped)
    if level_db < SILENT_DB:
        raise SetAsideError(f"{name} is silent: its loud parts reach {level_db:.0f} dB of full scale, {SILENT_DB:.0f} is the least")
    if clipped > settings.max_clipped_share:
        raise SetAsideError(f"{name} is clipped: {clipped:.1%} of its samples, {settings.max_clipped_share:.1%} are allowed")
    if spread_db < settings.min_snr_db:
        raise SetAsideError(f"{name} is noise: loud parts stand {spread_db:.1f} dB above its floor, {settings.min_snr_db:g} needed")


def _denoise(work: Work, samples: int) -> float:
    """Spectral gating, disk to disk; returns the loudness of the result in LUFS."""
    meter, done = audio.LoudnessMeter(), 0
    blocks = _mono_blocks(work.folder / "mono.f32")
    cleaned = audio.denoise(blocks, work.settings.denoise_strength) if work.settings.denoise else blocks
    with open(work.folder / "denoised.f32", "wb") as file:
        for block in cleaned:
            meter.add(block)
            file.write(np.ascontiguousarray(block).data)
            done += len(block)
            work.beat(0.3 + 0.3 * done / max(samples, 1))
    (work.folder / "mono.f32").unlink()
    work.count("denoise", on=work.settings.denoise, strength=work.settings.denoise_strength, lufs=meter.lufs())
    return meter.lufs()


def _find_speech(work: Work, samples: int, lufs: float) -> tuple[list[cutting.Span], audio.Powers]:
    """Bring to the target loudness, disk to disk, and find the speech in the result."""
    settings, done, powers, probabilities = work.settings, 0, [], []
    gain = audio.gain_for(lufs, settings.loudness_lufs) if settings.loudness else 1.0
    detector = _detector()
    blocks = _mono_blocks(work.folder / "denoised.f32")
    with open(work.folder / "final.f32", "wb") as file:
        for block in audio.levelled(blocks, gain, settings.true_peak_dbtp) if settings.loudness else blocks:
            file.write(np.ascontiguousarray(block).data)
            powers.append(audio.frame_powers(block))
            probabilities.append(detector(block))
            done += len(block)
            work.beat(0.6 + 0.3 * done / max(samples, 1))
    probabilities.append(detector.finish())
    (work.folder / "denoised.f32").unlink()
    work.count("loudness", on=settings.loudness, gain_db=float(20 * np.log10(gain)), target_lufs=settings.loudness_lufs)
    return cutting.speech_spans(np.concatenate(probabilities), samples), np.concatenate(powers)


def _detector() -> audio.SpeechDetector:
    from faster_whisper.vad import get_vad_model  # costs 0.4 s and 30 MB: only where a recording really is cleaned

    return audio.SpeechDetector(get_vad_model().session)


def _write_chunks(work: Work, pieces: list[cutting.Span], spans: list[cutting.Span], powers: audio.Powers) -> tuple[Chunk, ...]:
    """Write each piece that passes the final gate as FLAC; the others are counted by reason."""
    noise = audio.noise_power(powers, cutting.speech_frames(spans, len(powers)))
    chunks: list[Chunk] = []
    refused: dict[str, int] = {}
    with open(work.folder / "final.f32", "rb") as file:
        for start, end in pieces:
            file.seek(start * 4)
            samples = np.fromfile(file, np.float32, end - start)
            chunk = _measured(work, (start, end), samples, noise, len(chunks))
            fault = _chunk_fault(chunk, work.settings)
            if fault:
                refused[fault] = refused.get(fault, 0) + 1
                continue
            soundfile.write(work.folder / "out" / Path(chunk.file_name).name, samples, RATE, format="FLAC", subtype="PCM_16")
            chunks.append(chunk)
            work.beat(0.9 + 0.1 * end / max(pieces[-1][1], 1))
    work.count("final_gate", kept=len(chunks), refused=sum(refused.values()), **refused)
    if not chunks:
        raise SetAsideError(f"{shown(work.path)}: none of its {len(pieces)} chunks is fit for training ({refused})")
    return tuple(chunks)


def _measured(work: Work, span: cutting.Span, samples: audio.Wave, noise: float | None, index: int) -> Chunk:
    start, end = span
    lufs = audio.loudness(samples)
    return Chunk(
        file_name=f"{work.stem}/chunk_{index:04d}.flac",
        source=work.stem,
        start_s=round(start / RATE, 4),
        end_s=round(end / RATE, 4),
        snr_db=round(audio.snr_db(audio.frame_powers(samples), noise), 2),
        lufs=round(max(lufs, -99.0), 2),
        clipped_share=round(audio.clipped_samples(samples) / max(len(samples), 1), 6),
    )


def _chunk_fault(chunk: Chunk, settings: Preprocess) -> str | None:
    """The final gate: why a chunk is not kept, as the name of a count."""
    length_s = chunk.end_s - chunk.start_s
    if not settings.min_chunk_s - 0.001 <= length_s <= settings.max_chunk_s + 0.001:
        return "wrong_length"
    if not settings.gate:
        return None
    if chunk.snr_db < settings.min_snr_db:
        return "low_snr"
    return "clipped" if chunk.clipped_share > settings.max_clipped_share else None


def _blocks(path: Path, channels: int) -> Iterator[NDArray[np.float32]]:
    """A raw float32 file in blocks of shape (samples, channels)."""
    with open(path, "rb") as file:
        while len(flat := np.fromfile(file, np.float32, READ_SAMPLES * channels)):
            yield flat.reshape(-1, channels)


def _mono_blocks(path: Path) -> Iterator[audio.Wave]:
    """A raw float32 file of one channel in blocks of READ_SAMPLES."""
    with open(path, "rb") as file:
        while len(block := np.fromfile(file, np.float32, READ_SAMPLES)):
            yield block


def _check_enough(records: list[Record], settings: Preprocess) -> None:
    good = sum(record.good for record in records)
    if good == 0 or good / len(records) < settings.min_good_share:
        reasons = "; ".join(record.reason for record in records if not record.good)
        raise MisconfiguredError(
            f"only {good} of {len(records)} recordings are fit for training, {settings.min_good_share:.0%} are needed: {reasons}"
        )


def _metrics(records: list[Record], chunks: list[Chunk]) -> dict[str, float]:
    lengths = [chunk.end_s - chunk.start_s for chunk in chunks]
    return {
        "recordings": float(len(records)),
        "recordings_good": float(sum(record.good for record in records)),
        "recording_hours": sum(record.passes.get("convert", {}).get("seconds", 0.0) for record in records) / 3600,
        "chunks": float(len(chunks)),
        "chunk_hours": sum(lengths) / 3600,
        "chunk_mean_s": float(np.mean(lengths)) if lengths else 0.0,
        "chunks_refused": float(sum(record.passes.get("final_gate", {}).get("refused", 0) for record in records)),
    }


if __name__ == "__main__":
    run(main)

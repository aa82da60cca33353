"""The audio passes over one recording: from a file as it was found to clean chunks.

Ten passes: convert, gate, kinds of sound, separation, band-pass, denoise, loudness, speech, speakers, final gate. A recording
goes through in blocks by way of raw float32 files in a scratch folder, so that memory does not grow with its length.
What each pass did, in numbers, is kept for the record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from stages import audio, cutting, sound_kinds
from stages.recordings import RATE, NotAudioError, Sound, announced_duration, decode, decoded_fault, probe, shown
from state.durable import file_digest
from state.settings import Preprocess

PASSES = 3
"""Raised when the passes change: older records are then done again."""
READ_SAMPLES = 1600 * audio.FRAME
"""Read at once: a whole number of 10 ms frames."""
SILENT_DB = -60.0
RECORD = "record.json"


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
    music_share: float = 0.0
    speaker: str = ""
    """`A` speaks most in this recording; empty where speakers are not told apart."""


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
        """Whether the recording got through all passes."""
        return not self.reason

    @classmethod
    def of(cls, work: Work, reason: str, chunks: tuple[Chunk, ...]) -> Record:
        """The record of a recording whose passes are over."""
        return cls(
            source=work.stem,
            file=shown(work.path),
            size_bytes=work.path.stat().st_size,
            sha256=file_digest(work.path),
            passes_version=PASSES,
            settings=work.settings,
            reason=reason,
            passes=work.passes,
            chunks=chunks,
        )


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
    models: Path = Path()
    """Where the paths of models count from."""
    passes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def count(self, name: str, **facts: Any) -> None:
        """What the pass `name` did, with its facts rounded for the record."""
        self.passes[name] = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}

    def model(self, name: str) -> str:
        """The folder or file of a model where it is there, else its name on the hub."""
        path = self.models / Path(name).expanduser()
        return str(path) if path.exists() else name


@dataclass(frozen=True)
class Heard:
    """What is known of a recording after its first reading."""

    samples: int
    survey: sound_kinds.Survey
    clipped_share: float
    faulty_share: float
    """Of samples that were no numbers."""


def cut_rules(settings: Preprocess) -> cutting.CutRules:
    """The lengths in samples.

    Raises:
        ValueError: they contradict each other.
    """
    return cutting.CutRules(
        shortest=int(settings.min_chunk_s * RATE),
        longest=int(settings.max_chunk_s * RATE),
        merge_gap=int(settings.merge_gap_s * RATE),
    )


def cleaned(work: Work) -> Record:
    """Run a recording through the passes; its chunks and its record are then in `work.folder / "out"`."""
    (work.folder / "out").mkdir(parents=True)
    chunks: tuple[Chunk, ...] = ()
    reason = ""
    try:
        chunks = passes(work)
    except (SetAsideError, NotAudioError) as error:
        reason = str(error)
    record = Record.of(work, reason, chunks)
    (work.folder / "out" / RECORD).write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1))
    return record


def passes(work: Work) -> tuple[Chunk, ...]:
    """All passes over one recording; chunks are written to `work.folder / "out"`.

    Raises:
        SetAsideError: the recording, or all of its chunks, failed a gate.
        NotAudioError: it cannot be decoded.
    """
    heard = _convert(work)
    _gate(work, heard)
    music = _kinds(work, heard)
    _separate(work, heard, music)
    lufs = _denoise(work, heard.samples)
    spans, powers = _find_speech(work, heard.samples, lufs)
    pieces = cutting.chunks(spans, powers, heard.samples, cut_rules(work.settings))
    lasts_s = [sum(end - start for start, end in some) / RATE for some in (spans, pieces)]
    work.count("speech", on=work.settings.vad, spans=len(spans), seconds=lasts_s[0], chunks=len(pieces), chunk_seconds=lasts_s[1])
    if not pieces:
        raise SetAsideError(f"{shown(work.path)} holds no speech")
    speakers = _speakers(work, pieces)
    return _write_chunks(work, pieces, speakers, music, _noise(spans, powers, music))


def _convert(work: Work) -> Heard:
    """Decode to 16 kHz and mix to mono, on disk; counts clipping and measures the spectrum on the way."""
    sound, announced_s = probe(work.path), announced_duration(work.path)
    decoded = _Decoded()
    expected = (sound.duration_s or announced_s or 3600.0) * RATE
    with open(work.folder / "decoded.f32", "wb") as file:
        for block in decode(work.path, decoded.native):
            block, faulty = audio.sane(block)
            file.write(np.ascontiguousarray(block.T).data)
            decoded.block(block, faulty)
            work.beat(0.2 * decoded.samples / expected)
    fault = decoded_fault(work.path, decoded.samples / RATE, announced_s)
    if fault:
        raise SetAsideError(fault)
    channels = len(decoded.covariance)
    weights = audio.channel_weights(decoded.covariance) if work.settings.channel_check else np.full(channels, 1 / channels)
    listener = sound_kinds.Listener()
    with open(work.folder / "mono.f32", "wb") as file:
        for block in _blocks(work.folder / "decoded.f32", len(weights)):
            mono = np.ascontiguousarray(block @ weights.astype(np.float32))
            listener.add(mono)
            file.write(mono.data)
    (work.folder / "decoded.f32").unlink()
    work.beat(0.25)
    mix = "mean" if np.ptp(weights) == 0 else f"channel {int(weights.argmax()) + 1} alone"
    facts = {"seconds": decoded.samples / RATE, "announced_s": announced_s, "mix": mix, "no_numbers": decoded.faulty}
    work.count("convert", **_container(sound), **facts)
    shares = [
        count / max(total, 1)
        for count, total in ((decoded.clipped, decoded.native_samples), (decoded.faulty, channels * decoded.samples))
    ]
    return Heard(decoded.samples, listener.survey(), *shares)


def _container(sound: Sound) -> dict[str, Any]:
    return {"codec": sound.codec, "rate": sound.rate, "channels": sound.channels, "container_s": sound.duration_s}


class _Decoded:
    """What is summed up while a recording is decoded."""

    def __init__(self) -> None:
        self.samples = self.clipped = self.native_samples = self.faulty = 0
        self.covariance: NDArray[np.float64] = np.zeros((1, 1))

    def native(self, block: NDArray[np.floating]) -> None:
        self.clipped += audio.clipped_samples(block)
        self.native_samples += block.size

    def block(self, block: NDArray[np.float32], faulty: int) -> None:
        self.samples += block.shape[1]
        self.faulty += faulty
        self.covariance = self.covariance + (block @ block.T).astype(np.float64)


def _gate(work: Work, heard: Heard) -> None:
    """The initial gate: too short, silence, clipping, noise."""
    name, settings, powers = shown(work.path), work.settings, heard.survey.powers
    level_db = float(audio.decibels(np.percentile(powers, 95))) if len(powers) else audio.SILENCE_DB
    spread_db = audio.spread_db(powers)
    clipped = heard.clipped_share
    work.count("gate", on=settings.gate, level_db=level_db, spread_db=spread_db, clipped_share=clipped)
    if not settings.gate:
        return
    if heard.samples < settings.min_chunk_s * RATE:
        raise SetAsideError(f"{name} lasts {heard.samples / RATE:.2f} s, {settings.min_chunk_s:g} s is the shortest chunk")
    if heard.faulty_share > settings.max_clipped_share:
        raise SetAsideError(f"{name} is damaged: {heard.faulty_share:.1%} of its samples are no numbers, or far beyond full scale")
    if level_db < SILENT_DB:
        raise SetAsideError(f"{name} is silent: its loud parts reach {level_db:.0f} dB of full scale, {SILENT_DB:.0f} is the least")
    if clipped > settings.max_clipped_share:
        raise SetAsideError(f"{name} is clipped: {clipped:.1%} of its samples, {settings.max_clipped_share:.1%} are allowed")
    if spread_db < settings.min_snr_db:
        raise SetAsideError(f"{name} is noise: loud parts stand {spread_db:.1f} dB above its floor, {settings.min_snr_db:g} needed")


def _kinds(work: Work, heard: Heard) -> sound_kinds.Flags:
    """Tell speech, music and noise apart; returns the cells with music, none where the pass is off."""
    settings = work.settings
    if not settings.kinds:
        work.count("kinds", on=False)
        return np.zeros(0, dtype=bool)
    if settings.kinds_model:
        model = sound_kinds.music_model(work.model(settings.kinds_model))
        found = sound_kinds.confirmed(heard.survey, lambda first, end: model(_cells(work, first, end)))
    else:
        found = sound_kinds.kinds(heard.survey)
    work.count("kinds", on=True, by=settings.kinds_model or "measure", **found.seconds())
    return found.music


def _cells(work: Work, first: int, end: int) -> audio.Wave:
    work.beat(0.25)
    with open(work.folder / "mono.f32", "rb") as file:
        file.seek(first * sound_kinds.CELL * 4)
        return np.fromfile(file, np.float32, (end - first) * sound_kinds.CELL)


def _separate(work: Work, heard: Heard, music: sound_kinds.Flags) -> None:
    """Take the music from where it is, if a model for that is named."""
    name = work.settings.separation_model
    spans = sound_kinds.spans(music, heard.samples)
    facts = {"on": bool(name), "spans": len(spans), "seconds": sum(end - start for start, end in spans) / RATE}
    if name and spans:
        from stages import separation

        voice = separation.voice_of(work.model(name))
        facts["lost_db"] = separation.separate(work.folder / "mono.f32", spans, voice, lambda _samples: work.beat(0.28))
    work.count("separation", **facts)


def _denoise(work: Work, samples: int) -> float:
    """Band-pass and spectral gating, disk to disk; returns the loudness of the result in LUFS."""
    settings, meter, done = work.settings, audio.LoudnessMeter(), 0
    blocks = _mono_blocks(work.folder / "mono.f32")
    if settings.band_pass:
        keep = audio.band_pass(settings.low_hz, settings.high_hz)
        blocks = (keep(block).astype(np.float32) for block in blocks)
    if settings.denoise:
        blocks = audio.denoise(blocks, settings.denoise_strength)
    with open(work.folder / "denoised.f32", "wb") as file:
        for block in blocks:
            meter.add(block)
            file.write(np.ascontiguousarray(block).data)
            done += len(block)
            work.beat(0.3 + 0.3 * done / max(samples, 1))
    (work.folder / "mono.f32").unlink()
    work.count("band_pass", on=settings.band_pass, low_hz=settings.low_hz, high_hz=settings.high_hz)
    work.count("denoise", on=settings.denoise, strength=settings.denoise_strength)
    return meter.lufs()


def _find_speech(work: Work, samples: int, lufs: float) -> tuple[list[cutting.Span], audio.Powers]:
    """Bring to the target loudness, disk to disk, and find the speech in the result."""
    settings, done, powers, probabilities = work.settings, 0, [], []
    gain = audio.gain_for(lufs, settings.loudness_lufs) if settings.loudness else 1.0
    detector = load_detector() if settings.vad else None
    blocks = _mono_blocks(work.folder / "denoised.f32")
    with open(work.folder / "final.f32", "wb") as file:
        for block in audio.levelled(blocks, gain, settings.true_peak_dbtp) if settings.loudness else blocks:
            file.write(np.ascontiguousarray(block).data)
            powers.append(audio.frame_powers(block))
            probabilities += [detector(block)] if detector else []
            done += len(block)
            work.beat(0.6 + 0.3 * done / max(samples, 1))
    (work.folder / "denoised.f32").unlink()
    gain_db = float(20 * np.log10(gain))
    work.count("loudness", on=settings.loudness, lufs=lufs, gain_db=gain_db, target_lufs=settings.loudness_lufs)
    if detector is None:
        return [(0, samples)], np.concatenate(powers)
    return cutting.speech_spans(np.concatenate([*probabilities, detector.finish()]), samples), np.concatenate(powers)


def load_detector() -> audio.SpeechDetector:
    """Silero, as it ships with faster-whisper."""
    from faster_whisper.vad import get_vad_model  # costs 0.4 s and 30 MB: only where a recording really is cleaned

    return audio.SpeechDetector(get_vad_model().session)


def _noise(spans: list[cutting.Span], powers: audio.Powers, music: sound_kinds.Flags) -> float | None:
    """The power of the room between the words; a hymn between two readings is not taken for it."""
    taken = cutting.speech_frames(spans, len(powers))
    cells = np.arange(len(powers)) * audio.FRAME // sound_kinds.CELL
    taken[cells < len(music)] |= music[cells[cells < len(music)]]
    return audio.noise_power(powers, taken)


def _speakers(work: Work, pieces: list[cutting.Span]) -> list[str]:
    """Who speaks in each piece, if a model for that is named; else nobody's name."""
    name = work.settings.speaker_model
    if not name:
        work.count("speakers", on=False)
        return [""] * len(pieces)
    from stages import diarization

    vector, vectors, owners = diarization.vector_of(work.model(name)), [], []
    for owner, (start, end) in enumerate(pieces):
        samples = _piece(work, start, end)
        for first, last in diarization.windows(len(samples)):
            vectors.append(vector(samples[first:last]))
            owners.append(owner)
        work.beat(0.9)
    found = diarization.speakers(np.stack(vectors), owners)
    work.count("speakers", on=True, by=name, speakers=len(set(found)))
    return found


def _piece(work: Work, start: int, end: int) -> audio.Wave:
    with open(work.folder / "final.f32", "rb") as file:
        file.seek(start * 4)
        return np.fromfile(file, np.float32, end - start)


def _write_chunks(
    work: Work, pieces: list[cutting.Span], speakers: list[str], music: sound_kinds.Flags, noise: float | None
) -> tuple[Chunk, ...]:
    """Write each piece that passes the final gate as FLAC; the others are counted by reason."""
    chunks: list[Chunk] = []
    refused: dict[str, int] = {}
    for (start, end), speaker in zip(pieces, speakers, strict=True):
        samples = _piece(work, start, end)
        lufs = audio.loudness(samples)
        chunk = Chunk(
            file_name=f"{work.stem}/chunk_{len(chunks):04d}.flac",
            source=work.stem,
            start_s=round(start / RATE, 4),
            end_s=round(end / RATE, 4),
            snr_db=round(audio.snr_db(audio.frame_powers(samples), noise), 2),
            lufs=round(max(lufs, -99.0), 2),
            clipped_share=round(audio.clipped_samples(samples) / max(len(samples), 1), 6),
            music_share=round(sound_kinds.music_share(music, start, end), 3),
            speaker=speaker,
        )
        fault = _chunk_fault(chunk, work.settings)
        if fault:
            refused[fault] = refused.get(fault, 0) + 1
            continue
        soundfile.write(work.folder / "out" / Path(chunk.file_name).name, samples, RATE, format="FLAC", subtype="PCM_16")
        chunks.append(chunk)
        work.beat(0.9 + 0.1 * end / max(pieces[-1][1], 1))
    work.count("final_gate", on=work.settings.final_gate, kept=len(chunks), refused=sum(refused.values()), **refused)
    if not chunks:
        raise SetAsideError(f"{shown(work.path)}: none of its {len(pieces)} chunks is fit for training ({refused})")
    return tuple(chunks)


def _chunk_fault(chunk: Chunk, settings: Preprocess) -> str | None:
    """The final gate: why a chunk is not kept, as the name of a count. Its length is looked at even where the gate is off."""
    length_s = chunk.end_s - chunk.start_s
    if not settings.min_chunk_s - 0.001 <= length_s <= settings.max_chunk_s + 0.001:
        return "wrong_length"
    if not settings.final_gate:
        return None
    if chunk.snr_db < settings.min_snr_db:
        return "low_snr"
    if chunk.music_share > settings.max_music_share:
        return "music"
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

"""The passes over whole files: any sound file in, chunks that hold all the speech out; music and speakers on the way."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from faster_whisper.vad import VadOptions, get_speech_timestamps
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import signal

from benchmarks.make_sermon import hiss, music
from stages import diarization, separation, sound_passes
from stages.audio import RATE, Wave
from stages.recordings import NotAudioError
from stages.sound_passes import Chunk, SetAsideError, Work
from state.settings import Preprocess

CLIPS = Path(__file__).parents[3] / "pipelines" / "demo_audio"
FORMATS = [
    *(("wav", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")),
    *(("flac", subtype) for subtype in ("PCM_16", "PCM_24")),
    ("ogg", "VORBIS"),
]


def work_on(folder: Path, path: Path, **values: object) -> Work:
    (folder / "out").mkdir()
    return Work(path, "x", Preprocess(**values), folder, lambda _share: None)  # type: ignore[arg-type]


def talk(seconds: float, begin: float = 0.0) -> Wave:
    """The demo's voices for so long, from anywhere in them."""
    clips = np.concatenate([soundfile.read(CLIPS / f"{name}.flac", dtype="float32")[0] for name in ("lamp", "bread", "river")])
    return np.tile(np.roll(clips, -int(begin * len(clips))), 2)[: int(seconds * RATE)]


@settings(max_examples=12, deadline=None)
@example(("wav", "PCM_U8"), 8000, 1, 16.25, 0.25, 30.0, 0.0)  # it ends soon after a word
@given(
    st.sampled_from(FORMATS), st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]), st.integers(1, 3),
    st.floats(2.0, 45.0), st.floats(0, 1), st.sampled_from([30.0, 5.0]), st.floats(-20, 0),
)  # fmt: skip
def test_all_speech_is_in_the_chunks(
    kind: tuple[str, str], rate: int, channels: int, seconds: float, begin: float, longest_s: float, gain_db: float
) -> None:
    """Any length, rate, channel count and sample format: chunks in order, apart, 1 s to the longest, and they hold every
    second that faster-whisper's own VAD, on the whole cleaned sound, calls speech."""
    extension, subtype = kind
    sound = signal.resample_poly(talk(seconds, begin), rate, RATE) * 10 ** (gain_db / 20)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"a.{extension}")
        soundfile.write(path, np.stack([sound] * channels, axis=1), rate, subtype=subtype)
        work = work_on(Path(name), path, gate=False, final_gate=False, max_chunk_s=longest_s)
        chunks: tuple[Chunk, ...] = ()
        with contextlib.suppress(SetAsideError):  # no speech in it, or what there is does not fill a second
            chunks = sound_passes.passes(work)
        final = np.fromfile(work.folder / "final.f32", np.float32)
        assert len(final) / RATE == pytest.approx(len(sound) / rate, abs=0.1)
        assert work.passes.get("final_gate", {}).get("refused", 0) == 0
        for chunk in chunks:
            assert soundfile.info(work.folder / "out" / Path(chunk.file_name).name).frames / RATE == pytest.approx(
                chunk.end_s - chunk.start_s, abs=2e-4
            )
    options = VadOptions(threshold=0.5, min_speech_duration_ms=250, min_silence_duration_ms=250, speech_pad_ms=0)
    for span in get_speech_timestamps(final, options):
        start_s, end_s = span["start"] / RATE, min(span["end"], len(final)) / RATE
        covered = sum(max(0.0, min(end_s, chunk.end_s) - max(start_s, chunk.start_s)) for chunk in chunks)
        assert covered >= end_s - start_s - 0.001, (span, chunks)
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(chunks))
    assert all(1.0 - 1e-4 <= chunk.end_s - chunk.start_s <= longest_s + 1e-4 for chunk in chunks)
    assert all(chunk.start_s >= 0 and chunk.end_s <= len(final) / RATE + 1e-4 for chunk in chunks)


def made(folder: Path, sound: Wave, **values: object) -> tuple[Work, list[tuple[Chunk, Wave]]]:
    """The passes over a sound, and its chunks with what their files hold."""
    folder.mkdir()
    soundfile.write(folder / "a.wav", sound, RATE)
    work = work_on(folder, folder / "a.wav", **values)
    return work, [(one, soundfile.read(folder / "out" / Path(one.file_name).name)[0]) for one in sound_passes.passes(work)]


def test_a_chunk_holds_the_sound_of_its_times(tmp_path: Path) -> None:
    """Cleaned, but the very seconds that its row says: it goes along with the recording there, sample by sample."""
    sound = talk(18.0)
    _work, chunks = made(tmp_path / "a", sound)
    assert len(chunks) > 2
    for chunk, samples in chunks:
        start = round(chunk.start_s * RATE)
        assert np.corrcoef(samples, sound[start : start + len(samples)])[0, 1] > 0.8


def test_settings_reach_their_pass(tmp_path: Path) -> None:
    """Beside being written into the record, each of them is heard in the chunks."""
    sound = talk(8.0) + hiss(8 * RATE, np.random.default_rng(0), -50)

    def heard(name: str, **values: object) -> Wave:
        return np.concatenate([samples for _chunk, samples in made(tmp_path / name, sound, **values)[1]])

    def share(samples: Wave, low_hz: float, high_hz: float) -> float:
        power, hz = np.abs(np.fft.rfft(samples)) ** 2, np.fft.rfftfreq(len(samples), 1 / RATE)
        return float(power[(hz >= low_hz) & (hz < high_hz)].sum() / power.sum())

    usual = heard("usual")
    assert share(heard("low", low_hz=500.0), 0, 250) < 0.1 * share(usual, 0, 250)
    assert share(heard("high", high_hz=2000.0), 4000, 8000) < 0.1 * share(usual, 4000, 8000)
    assert np.abs(heard("peak", true_peak_dbtp=-9.0)).max() <= 10 ** (-9 / 20) < np.abs(usual).max()
    quieter = heard("quieter", loudness_lufs=-22.0)
    assert 20 * np.log10(usual.std() / quieter.std()) == pytest.approx(6, abs=1.5)  # loud peaks were held already
    assert not np.array_equal(heard("strength", denoise_strength=0.3), usual)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS")]), st.floats(0.0, 0.95))
def test_a_file_cut_anywhere_is_set_aside(kind: tuple[str, str], share: float) -> None:
    """Wherever a download broke off, no chunk is made and the file is named."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, f"a.{kind[0]}")
        soundfile.write(path, talk(6.0), RATE, subtype=kind[1])
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises((SetAsideError, NotAudioError), match=rf"a\.{kind[0]} "):
            sound_passes.passes(work_on(Path(name), path))


def service(path: Path) -> Path:
    """Speech, then the organ, then speech over the organ; 12 s each."""
    part = 12 * RATE
    organ = music(2 * part, -34)
    sound = np.concatenate([talk(24.0), talk(12.0, 0.5)]) * 0.5
    sound[part : 2 * part] = 4 * organ[:part]
    sound[2 * part :] += organ[part:]
    soundfile.write(path, sound + hiss(len(sound), np.random.default_rng(0), -58), RATE)
    return path


def test_music_is_counted_and_told_by_chunk(tmp_path: Path) -> None:
    """The record has the seconds of each kind; each chunk says how much of it has music; a limit keeps those out."""
    path = service(tmp_path / "a.wav")
    (tmp_path / "all").mkdir()
    work = work_on(tmp_path / "all", path)
    chunks = sound_passes.passes(work)
    heard = work.passes["kinds"]
    assert heard["music_s"] + heard["speech_over_music_s"] == pytest.approx(24, abs=4)
    assert heard["speech_s"] == pytest.approx(12, abs=3)
    assert work.passes["separation"] == {"on": False, "spans": 1, "seconds": pytest.approx(24, abs=4)}
    assert {chunk.music_share for chunk in chunks if chunk.end_s < 10} == {0.0}
    assert {chunk.music_share for chunk in chunks if chunk.start_s > 26} == {1.0}
    (tmp_path / "some").mkdir()
    work = work_on(tmp_path / "some", path, max_music_share=0.5)
    kept = sound_passes.passes(work)
    assert [(chunk.start_s, chunk.end_s) for chunk in kept] == [(c.start_s, c.end_s) for c in chunks if c.music_share <= 0.5]
    assert work.passes["final_gate"]["music"] == len(chunks) - len(kept) > 0


def test_separation_gets_the_music_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model named in the settings hears the stretch with music, and what it makes of it is what goes on."""
    heard: list[float] = []

    def voice_of(name: str) -> Callable[[Wave], Wave]:
        assert name == "htdemucs"

        def voice(sound: Wave) -> Wave:
            heard.append(len(sound) / RATE)
            return np.zeros_like(sound)

        return voice

    monkeypatch.setattr(separation, "voice_of", voice_of)
    work = work_on(tmp_path, service(tmp_path / "a.wav"), separation_model="htdemucs")
    chunks = sound_passes.passes(work)
    assert sum(heard) == pytest.approx(24, abs=4)
    assert work.passes["separation"]["lost_db"] > 20
    assert chunks[-1].end_s < 15


def test_speakers_are_told_by_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chunk gets its speaker from the vectors of its own sound: here a stand-in that hears the pitch's side."""
    low, high = talk(10.0), signal.resample_poly(talk(10.0), 2, 3).astype(np.float32)
    sound = np.concatenate([low, np.zeros(RATE, np.float32), high])
    soundfile.write(tmp_path / "a.wav", sound, RATE)

    def vector_of(_name: str) -> Callable[[Wave], Wave]:
        def vector(samples: Wave) -> Wave:
            spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
            hz = np.fft.rfftfreq(len(samples), 1 / RATE)
            middle_hz = (spectrum * hz).sum() / spectrum.sum()
            return np.array([1.0, 0.0] if middle_hz < 1250 else [0.0, 1.0], dtype=np.float32)

        return vector

    monkeypatch.setattr(diarization, "vector_of", vector_of)
    work = work_on(tmp_path, tmp_path / "a.wav", speaker_model="any/thing")
    chunks = sound_passes.passes(work)
    assert work.passes["speakers"]["on"] is True
    assert work.passes["speakers"]["speakers"] == len({chunk.speaker for chunk in chunks})
    assert [chunk.speaker for chunk in chunks] == ["A" if chunk.start_s < 10 else "B" for chunk in chunks]
    assert {chunk.speaker for chunk in chunks} == {"A", "B"}

"""The audio passes on files: bad recordings are set aside with one sentence, good ones become chunks, nothing is done twice."""

from __future__ import annotations

import os
import shutil
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile

from stages import audio, preprocess, sound_passes
from stages.runtime import StageContext
from state.contract import MisconfiguredError, Note, StopRequested
from state.durable import tree_digest, tree_files
from state.settings import Preprocess
from tests import stage_attempts
from tests.stage_attempts import notes

CLIPS = Path(__file__).parents[3] / "pipelines" / "demo_audio"
RATE = audio.RATE


def context(root: Path, settings: dict[str, Any] | None = None, number: int = 1) -> StageContext:
    made = stage_attempts.context(root, "preprocess", number, settings=settings or {})
    made.workspace.raw_audio.mkdir(parents=True, exist_ok=True)
    return made


def record(ctx: StageContext, stem: str) -> sound_passes.Record:
    return msgspec.json.decode((ctx.workspace.cleaned_audio / stem / "record.json").read_bytes(), type=sound_passes.Record)


def speech(name: str = "lamp") -> np.ndarray:
    return soundfile.read(CLIPS / f"{name}.flac", dtype="float32")[0]


def good(ctx: StageContext, name: str = "good.flac", clip: str = "lamp") -> Path:
    return Path(shutil.copy(CLIPS / f"{clip}.flac", ctx.workspace.raw_audio / name))


def clipped(path: Path) -> None:
    soundfile.write(path, np.clip(speech() * 40, -1, 1), RATE, subtype="PCM_16")


def silent(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).normal(0, 1e-4, 10 * RATE), RATE, subtype="PCM_16")


def zeros(path: Path) -> None:
    soundfile.write(path, np.zeros(10 * RATE), RATE, subtype="PCM_16")


def noise(path: Path) -> None:
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), RATE, subtype="PCM_16")


def organ(path: Path) -> None:
    at = np.arange(10 * RATE) / RATE
    swell = np.clip(np.sin(2 * np.pi * at / 3), 0.001, None)
    soundfile.write(path, 0.3 * swell * np.sin(2 * np.pi * 220 * at), RATE, subtype="PCM_16")


def no_numbers(path: Path) -> None:
    soundfile.write(path, np.where(np.arange(10 * RATE) % 2, np.nan, 0.1), RATE, subtype="FLOAT")


def truncated(path: Path) -> None:
    data = (CLIPS / "lamp.flac").read_bytes()
    path.write_bytes(data[: len(data) // 2])


BAD: list[tuple[str, Callable[[Path], Any], str]] = [
    ("empty.mp3", Path.touch, "is empty (0 bytes)"),
    ("text.mp3", lambda path: path.write_text("no sound here\n" * 100), "is not audio that can be read"),
    ("cut.flac", truncated, "is cut short"),
    ("clipped.wav", clipped, "is clipped"),
    ("silent.wav", silent, "is silent"),
    ("zeros.wav", zeros, "is silent"),
    ("noise.wav", noise, "is noise"),
    ("nan.wav", no_numbers, "is damaged: 50.0% of its samples are no numbers"),
    ("organ.wav", organ, "holds no speech"),
    ("-rf.wav", zeros, "-rf.wav is silent"),
    ("x..%2f..%2f.wav", zeros, "x..%2f..%2f.wav is silent"),
]


@pytest.mark.parametrize(("name", "make", "sentence"), BAD, ids=[name for name, _make, _sentence in BAD])
def test_a_bad_recording_is_set_aside(tmp_path: Path, name: str, make: Callable[[Path], Any], sentence: str) -> None:
    """One sentence with the name, no chunk, nothing outside the folder; the good recording beside it goes through."""
    ctx = context(tmp_path)
    good(ctx)
    make(ctx.workspace.raw_audio / name)
    delivery = preprocess.main(ctx)
    assert delivery.summary.endswith("from 1 of 2 recordings")
    told = [text for text in notes(ctx).splitlines() if text.startswith("recording set aside: ")]
    assert len(told) == 1
    assert sentence in told[0]
    assert name in told[0]
    lines = (ctx.workspace.cleaned_audio / "metadata.jsonl").read_text().splitlines()
    assert {msgspec.json.decode(line)["source"] for line in lines} == {"good"}
    assert {path.relative_to(tmp_path).parts[0] for path in tree_files(tmp_path)} == {"stages", "stark_data"}
    (bad,) = [folder for folder in ctx.workspace.cleaned_audio.iterdir() if folder.is_dir() and folder.name != "good"]
    assert [path.name for path in bad.iterdir()] == ["record.json"]
    assert sentence in record(ctx, bad.name).reason


def test_too_many_bad_recordings_fail_the_stage(tmp_path: Path) -> None:
    """Two of three set aside: the stage stops with all the reasons instead of training on what little is left."""
    ctx = context(tmp_path)
    good(ctx)
    zeros(ctx.workspace.raw_audio / "zeros.wav")
    (ctx.workspace.raw_audio / "empty.wav").touch()
    with pytest.raises(
        MisconfiguredError, match=r"only 1 of 3 recordings .* 50% are needed: empty.wav is empty .*; zeros.wav is silent"
    ):
        preprocess.main(ctx)


def test_no_recording_at_all(tmp_path: Path) -> None:
    """An empty or missing folder is named, with what to do."""
    with pytest.raises(MisconfiguredError, match=r"raw holds no recording: run the download stage"):
        preprocess.main(context(tmp_path))
    (tmp_path / "stark_data" / "raw").rmdir()
    ctx = context(tmp_path, number=2)
    ctx.workspace.raw_audio.rmdir()
    with pytest.raises(MisconfiguredError, match="holds no recording"):
        preprocess.main(ctx)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"min_chunk_s": 10.0, "max_chunk_s": 15.0}, "at least twice"),
        ({"low_hz": 4000.0, "high_hz": 300.0}, "must be below high_hz"),
        ({"separation_model": "models/none.safetensors"}, "separation_model"),
    ],
)
def test_settings_that_contradict_each_other(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    """Refused before the first recording is touched."""
    with pytest.raises(MisconfiguredError, match=words):
        preprocess.main(context(tmp_path, settings))


def test_good_speech_becomes_clean_chunks(tmp_path: Path) -> None:
    """Each sentence of the demo's recording is a chunk: 16 kHz mono, 1 to 30 s, near -16 LUFS, peaks under -1 dB, in order."""
    ctx = context(tmp_path)
    good(ctx)
    delivery = preprocess.main(ctx)
    chunks = record(ctx, "good").chunks
    assert len(chunks) == 4
    assert delivery.metrics["chunks"] == 4
    end_s = 0.0
    for chunk in chunks:
        samples, rate = soundfile.read(ctx.workspace.cleaned_audio / chunk.file_name)
        assert (rate, samples.ndim) == (RATE, 1)
        assert end_s <= chunk.start_s < chunk.end_s
        assert 1.0 <= chunk.end_s - chunk.start_s == pytest.approx(len(samples) / RATE, abs=1e-3)
        assert -20 < chunk.lufs < -13
        assert chunk.snr_db > 20
        assert 20 * np.log10(np.abs(samples).max()) < -0.9
        end_s = chunk.end_s
    lasts_s = sum(chunk.end_s - chunk.start_s for chunk in chunks)
    assert lasts_s > 10
    assert delivery.metrics["chunk_hours"] == pytest.approx(lasts_s / 3600)


def test_the_record_counts_every_pass(tmp_path: Path) -> None:
    """Per recording, in order: what each pass found or did."""
    ctx = context(tmp_path)
    good(ctx)
    preprocess.main(ctx)
    passes = record(ctx, "good").passes
    assert list(passes) == [
        *("convert", "gate", "kinds", "separation", "band_pass", "denoise", "loudness", "speech", "speakers", "final_gate")
    ]
    assert passes["convert"]["seconds"] == pytest.approx(18.01, abs=0.01)
    assert passes["convert"]["codec"] == "flac"
    assert passes["final_gate"] == {"on": True, "kept": 4, "refused": 0}
    assert passes["kinds"]["speech_s"] > 10
    assert passes["kinds"]["music_s"] == passes["kinds"]["speech_over_music_s"] == 0
    assert passes["speech"]["chunks"] == 4
    assert not list(ctx.scratch().iterdir())


@pytest.mark.parametrize("off", ["gate", "kinds", "band_pass", "denoise", "loudness", "final_gate"])
def test_every_pass_can_be_switched_off(tmp_path: Path, off: str) -> None:
    """Without it there are still chunks, and they sound different (but for those that only look or refuse)."""
    with_all, without = context(tmp_path / "with"), context(tmp_path / "without", {off: False})
    for ctx in (with_all, without):
        good(ctx)
        preprocess.main(ctx)
    assert record(without, "good").chunks
    first, second = (soundfile.read(ctx.workspace.cleaned_audio / "good" / "chunk_0000.flac")[0] for ctx in (with_all, without))
    assert np.array_equal(first, second) == (off in ("gate", "kinds", "final_gate"))
    assert record(without, "good").passes[off]["on"] is False


def test_without_the_detector_all_of_a_recording_is_cut(tmp_path: Path) -> None:
    """With `vad` off the chunks follow one another from the first sample to the last."""
    ctx = context(tmp_path, {"vad": False, "max_chunk_s": 6})
    good(ctx)
    preprocess.main(ctx)
    found = record(ctx, "good")
    ends = [0.0, *(chunk.end_s for chunk in found.chunks)]
    assert ends == [*(chunk.start_s for chunk in found.chunks), pytest.approx(found.passes["convert"]["seconds"], abs=1e-3)]
    assert found.passes["speech"]["on"] is False


def test_without_the_channel_check_channels_are_averaged(tmp_path: Path) -> None:
    """Opposite phase then cancels, as it does in any plain mix; the gate sees that."""
    ctx = context(tmp_path, {"channel_check": False})
    good(ctx)
    stereo(ctx.workspace.raw_audio / "phase.wav", speech(), -speech())
    preprocess.main(ctx)
    assert record(ctx, "phase").reason.startswith("phase.wav is silent")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_sample_that_is_no_number_costs_itself_alone(tmp_path: Path, value: float) -> None:
    """One of them in a float file would spoil every filter after it: the chunks are those of the recording without it."""
    ctx, wave = context(tmp_path), speech()
    hurt = wave.copy()
    hurt[len(wave) // 3] = value
    for name, samples in (("a", wave), ("b", hurt)):
        soundfile.write(ctx.workspace.raw_audio / f"{name}.wav", samples, RATE, subtype="FLOAT")
    preprocess.main(ctx)
    one, other = ([(chunk.start_s, chunk.end_s) for chunk in record(ctx, stem).chunks] for stem in "ab")
    assert one == other
    assert record(ctx, "b").passes["convert"]["no_numbers"] == 1


def test_switched_off_gates_let_everything_through_that_has_speech(tmp_path: Path) -> None:
    """With both gates off a clipped recording is used: the owner asked for it."""
    ctx = context(tmp_path, {"gate": False, "final_gate": False})
    clipped(ctx.workspace.raw_audio / "clipped.wav")
    assert preprocess.main(ctx).metrics["recordings_good"] == 1


def stereo(path: Path, left: np.ndarray, right: np.ndarray) -> None:
    soundfile.write(path, np.stack([left, right], axis=1), RATE)


def test_one_good_channel_is_enough(tmp_path: Path) -> None:
    """A dead channel, or the same in opposite phase, gives the same chunks as the good channel alone."""
    ctx = context(tmp_path)
    wave = speech()
    soundfile.write(ctx.workspace.raw_audio / "a_mono.wav", wave, RATE)
    stereo(ctx.workspace.raw_audio / "b_dead.wav", np.zeros_like(wave), wave)
    stereo(ctx.workspace.raw_audio / "c_phase.wav", wave, -wave)
    preprocess.main(ctx)
    mono, dead, phase = (record(ctx, stem) for stem in ("a_mono", "b_dead", "c_phase"))
    assert dead.passes["convert"]["mix"] == "channel 2 alone"
    assert phase.passes["convert"]["mix"] == "channel 1 alone"
    spans = [[(chunk.start_s, chunk.end_s) for chunk in one.chunks] for one in (mono, dead, phase)]
    assert spans[0] == spans[1] == spans[2]


def test_clipping_of_one_channel_is_seen(tmp_path: Path) -> None:
    """Samples at full scale stand next to each other in their own channel, whatever the file stores between them."""
    ctx = context(tmp_path)
    good(ctx)
    stereo(ctx.workspace.raw_audio / "left.wav", np.clip(speech() * 40, -1, 1), speech())
    preprocess.main(ctx)
    assert record(ctx, "left").reason.startswith("left.wav is clipped")


def test_a_finished_recording_is_not_done_again(tmp_path: Path) -> None:
    """The second attempt keeps the chunks of unchanged files and does changed ones anew; so do settings that change the sound."""
    ctx = context(tmp_path)
    good(ctx, "a.flac", "lamp")
    changed = good(ctx, "b.flac", "bread")
    preprocess.main(ctx)
    before = {
        path.name: path.stat().st_mtime_ns for path in ctx.workspace.cleaned_audio.glob("*/record.json") for path in [path.parent]
    }
    shutil.copy(CLIPS / "river.flac", changed)
    preprocess.main(context(tmp_path, number=2))
    after = {path.parent.name: path.parent.stat().st_mtime_ns for path in ctx.workspace.cleaned_audio.glob("*/record.json")}
    assert before["a"] == after["a"]
    assert before["b"] != after["b"]
    preprocess.main(context(tmp_path, {"denoise": False}, number=3))
    assert record(ctx, "a").settings == Preprocess(denoise=False)
    done = (ctx.workspace.cleaned_audio / "a").stat().st_mtime_ns
    preprocess.main(context(tmp_path, {"denoise": False, "workers": 1, "min_good_share": 0.1}, number=4))
    assert (ctx.workspace.cleaned_audio / "a").stat().st_mtime_ns == done


def test_a_copy_of_a_recording_is_left_out(tmp_path: Path) -> None:
    """A sermon that lies there twice is no second one: its chunks cannot stand on both sides of the split."""
    ctx = context(tmp_path)
    shutil.copy(good(ctx, "a.flac"), ctx.workspace.raw_audio / "a (1).flac")
    good(ctx, "b.flac", "river")
    assert preprocess.main(ctx).metrics["recordings"] == 2.0
    assert sorted(path.name for path in ctx.workspace.cleaned_audio.iterdir() if path.is_dir()) == ["a", "b"]
    assert notes(ctx) == "a (1).flac is left out: it is a copy of a.flac"


def test_chunks_of_a_removed_recording_go(tmp_path: Path) -> None:
    """What is no longer in raw/ is not in cleaned/ either; folders that the stage did not make are left alone."""
    ctx = context(tmp_path)
    good(ctx, "a.flac")
    gone = good(ctx, "b.flac", "bread")
    preprocess.main(ctx)
    own = ctx.workspace.cleaned_audio / "mine"
    own.mkdir()
    gone.unlink()
    second = context(tmp_path, number=2)
    preprocess.main(second)
    assert sorted(path.name for path in ctx.workspace.cleaned_audio.iterdir()) == ["a", "metadata.jsonl", "mine"]
    assert "removed the chunks of b" in notes(second)


def test_a_stop_keeps_what_is_finished_and_the_result_is_the_same(tmp_path: Path) -> None:
    """Stopped in the middle of the second recording; the next attempt ends with the bytes of an undisturbed run."""

    class Stopping(StageContext):
        def progress(self, done: float, *args: Any, **kwargs: Any) -> None:
            super().progress(done, *args, **kwargs)
            if 1.3 < done < 1.9:
                self.request_stop()

    whole = context(tmp_path / "whole")
    broken = context(tmp_path / "broken")
    for ctx in (whole, broken):
        good(ctx, "a.flac", "lamp")
        good(ctx, "b.flac", "bread")
    preprocess.main(whole)
    with pytest.raises(StopRequested):
        preprocess.main(Stopping(broken.spec, broken.attempt))
    assert [path.parent.name for path in broken.workspace.cleaned_audio.glob("*/record.json")] == ["a"]
    preprocess.main(context(tmp_path / "broken", number=2))
    assert tree_digest(whole.workspace.cleaned_audio) == tree_digest(broken.workspace.cleaned_audio)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    """Nothing in the chunks, the records or the metadata depends on time or place."""
    digests = set()
    for name in ("one", "two"):
        ctx = context(tmp_path / name)
        good(ctx)
        preprocess.main(ctx)
        digests.add(tree_digest(ctx.workspace.cleaned_audio))
    assert len(digests) == 1


def test_the_announced_length_is_held_against_the_file(tmp_path: Path) -> None:
    """A whole file that is much shorter than the site said is set aside."""
    ctx = context(tmp_path)
    good(ctx, "a.flac", "lamp")
    good(ctx, "b.flac", "bread")
    (ctx.workspace.raw_audio / "b.info.json").write_text('{"duration": 3600}')
    preprocess.main(ctx)
    assert "of the 3600.0 s that the site announced" in record(ctx, "b").reason


def test_a_name_that_is_not_text(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 in a file name reach neither JSON nor the chunk's path."""
    ctx = context(tmp_path)
    shutil.copy(CLIPS / "lamp.flac", ctx.workspace.raw_audio / os.fsdecode(b"pr\xe9dica.flac"))
    preprocess.main(ctx)
    (line, *_rest) = (ctx.workspace.cleaned_audio / "metadata.jsonl").read_text(encoding="ascii").splitlines()
    assert (ctx.workspace.cleaned_audio / msgspec.json.decode(line)["file_name"]).is_file()


def test_the_layout_is_audiofolders(tmp_path: Path) -> None:
    """One metadata.jsonl at the top lists every sound file below it by its relative path, once."""
    ctx = context(tmp_path)
    good(ctx, "a.flac", "lamp")
    good(ctx, "b.flac", "bread")
    preprocess.main(ctx)
    cleaned = ctx.workspace.cleaned_audio
    listed = [msgspec.json.decode(line)["file_name"] for line in (cleaned / "metadata.jsonl").read_bytes().splitlines()]
    assert listed == [path.relative_to(cleaned).as_posix() for path in tree_files(cleaned) if path.suffix == ".flac"]


def test_audiofolder_loads_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` reads the folder as it is: every chunk with its row and its sound.

    Without torchcodec an empty stand-in takes its place: `datasets` imports what writes sound, also where it only reads paths.
    """
    datasets = pytest.importorskip("datasets")
    if find_spec("torchcodec") is None:
        for name in ("torchcodec", "torchcodec.encoders"):
            monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(AudioEncoder=None))
    ctx = context(tmp_path)
    good(ctx)
    zeros(ctx.workspace.raw_audio / "zeros.wav")
    preprocess.main(ctx)
    folder, cache = str(ctx.workspace.cleaned_audio), str(tmp_path / "cache")
    loaded = datasets.load_dataset("audiofolder", data_dir=folder, split="train", cache_dir=cache)
    rows = loaded.cast_column("audio", datasets.Audio(decode=False)).to_list()
    assert [row["source"] for row in rows] == ["good"] * 4
    sounds = [soundfile.read(row["audio"]["path"])[0] for row in rows]
    assert [len(sound) / RATE for sound in sounds] == pytest.approx([row["end_s"] - row["start_s"] for row in rows], abs=1e-3)


def test_notes_are_events(tmp_path: Path) -> None:
    """A recording set aside is told as a warning that the report can show."""
    ctx = context(tmp_path)
    good(ctx)
    (ctx.workspace.raw_audio / "empty.wav").touch()
    preprocess.main(ctx)
    events = [msgspec.json.decode(line) for line in ctx.attempt.events.read_bytes().splitlines()]
    (note,) = [msgspec.convert(event, Note) for event in events if event["type"] == "note"]
    assert (note.level, note.fields) == ("warning", {"file": "empty.wav"})

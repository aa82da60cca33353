"""Pseudo-labels: which are trusted, and that every chunk gets exactly one, whatever happens in between."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from stages import cuda_libraries, tiny, transcribe, verdicts
from stages.runtime import StageContext
from stages.speech_rows import read_rows
from stages.verdicts import DOUBTFUL, KEPT, REJECTED, Heard, judge, longest_run
from state.contract import BatchPlan, MemoryFit, MisconfiguredError, Progress, StopRequested
from state.durable import tree_digest
from state.settings import Transcribe
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import events, notes

ROOT = Path(__file__).parents[3]
CLIPS = ROOT / "pipelines" / "demo_audio"
LENIENT: dict[str, Any] = {  # an untrained model says nothing that ordinary rules would keep
    "beam_size": 1,
    "batch_size": 2,
    "min_avg_logprob": -50.0,
    "max_compression_ratio": 1000.0,
    "max_repeats": 1000,
    "max_chars_per_s": 10_000.0,
}


def heard(text: str = "We do not earn mercy, we receive it with open hands.", **facts: float) -> Heard:
    values = {"seconds": 4.0, "avg_logprob": -0.2, "no_speech_prob": 0.01, "compression_ratio": 1.1, **facts}
    return Heard(text=text, **values)


@pytest.mark.parametrize(
    ("one", "verdict", "reason"),
    [
        (heard(), KEPT, ""),
        (heard(""), REJECTED, "no text"),
        (heard(" ... ! "), REJECTED, "no text"),
        (heard("Thanks for watching!"), REJECTED, "phantom phrase"),
        (heard("Please SUBSCRIBE to my channel, friends."), REJECTED, "phantom phrase"),
        (heard("Subtitles by the Amara.org community"), REJECTED, "phantom phrase"),
        (heard("It is finished. Translated by volunteers."), REJECTED, "phantom phrase"),
        (heard("The word translated by the King James as charity is love."), KEPT, ""),
        (heard("The letter was transcribed by Tertius. He hit the bellows."), KEPT, ""),
        (heard("[Music] (upbeat)"), REJECTED, "sound note"),
        (heard("\u266a O come, let us sing \u266a"), DOUBTFUL, "sound note"),
        (heard("For more videos visit www.example.org today."), DOUBTFUL, "web address"),
        (heard("Thank you. Thank you. Thank you.", seconds=2.5), DOUBTFUL, "phantom phrase"),
        (heard("Thank you, Lord.", seconds=2.5), KEPT, ""),
        (heard("amen " * 6), REJECTED, "repetition"),
        (heard("praise the lord, " * 7, seconds=12.0), REJECTED, "repetition"),
        (heard("holy, holy, holy", seconds=3.0), KEPT, ""),
        (heard(compression_ratio=2.5), REJECTED, "repetition"),
        (heard("word " * 4 + "other things said here", seconds=0.5), REJECTED, "too much text"),
        (heard(no_speech_prob=0.9, avg_logprob=-1.2), REJECTED, "no speech"),
        (heard(silent_words=0.6), REJECTED, "words without speech"),
        (heard(silent_words=0.5), KEPT, ""),
        (heard(caption_error=0.6), DOUBTFUL, "captions differ"),
        (heard(caption_error=0.6, silent_words=0.9), REJECTED, "words without speech"),
        (heard(no_speech_prob=0.9), DOUBTFUL, "speech uncertain"),
        (heard(avg_logprob=-1.2), DOUBTFUL, "low confidence"),
        (heard("Thank you.", seconds=8.0), DOUBTFUL, "phantom phrase"),
        (heard("Thank you.", seconds=1.0), KEPT, ""),
        (heard("Yes, of course.", seconds=20.0), DOUBTFUL, "little text"),
    ],
)
def test_verdicts(one: Heard, verdict: str, reason: str) -> None:
    """Loops, phantom phrases and text without speech are rejected; what may be right is doubtful; plain speech is kept."""
    assert judge(one, Transcribe()) == (verdict, reason)


@pytest.mark.parametrize(
    ("text", "run"),
    [
        ("", 0),
        ("one", 1),
        ("a b c d", 1),
        ("no no no", 3),
        ("Amen. Amen, amen!", 3),
        ("praise the lord praise the lord praise the lord", 3),
        ("x praise the lord praise the lord y", 2),
        ("a b a b a", 2),
    ],
)
def test_longest_run(text: str, run: int) -> None:
    """Groups of one to eight words, counted where they stand next to each other."""
    assert longest_run(text) == run


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers(1, 9))
def test_a_loop_is_always_counted(words: list[str], times: int) -> None:
    """A group said `times` times in a row is never counted as less."""
    assert longest_run(" ".join(words * times)) >= times


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Whisper of CTranslate2, tiny and untrained."""
    folder = tmp_path_factory.mktemp("models")
    texts = [recording["text"] for recording in json.loads((CLIPS / "clips.json").read_text())["recordings"]]
    tiny.make_whisper(folder / "hf", texts, d_model=96)
    weights = load_file(folder / "hf" / "model.safetensors")
    halved = {name: weight / 2 if weight.ndim > 1 else weight for name, weight in weights.items()}  # so that it mumbles on and on
    save_file(halved, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    tiny.convert_whisper(folder / "hf", folder / "ct2")
    return folder / "ct2"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Two recordings of two and three chunks, as the audio passes leave them (the clips themselves stand for chunks)."""
    made = Workspace.at(tmp_path / "run")
    lines = []
    for source, names in {"001_a": ("train", "rain"), "002_b": ("shop", "rain", "train")}.items():
        (made.cleaned_audio / source).mkdir(parents=True)
        for index, name in enumerate(names):
            file = f"{source}/chunk_{index:04d}.flac"
            shutil.copy(CLIPS / "replay" / f"{name}.flac", made.cleaned_audio / file)
            lines.append(
                {"file_name": file, "source": source, "start_s": index * 10.0, "end_s": index * 10.0 + 3.0, "snr_db": 40.0}
            )
    (made.cleaned_audio / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def context(workspace: Workspace, model: Path, number: int = 1, batch: BatchPlan | None = None, **settings: Any) -> StageContext:
    values = {**LENIENT, "model": str(model), **settings}
    return stage_attempts.context(workspace.root, "transcribe", number, settings=values, batch=batch or BatchPlan())


def rows(workspace: Workspace) -> list[verdicts.Label]:
    lines = (workspace.transcripts / "metadata.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(line, type=verdicts.Label) for line in lines]


def progress(ctx: StageContext) -> list[Progress]:
    return [event for event in events(ctx) if isinstance(event, Progress)]


def test_every_chunk_gets_one_label(workspace: Workspace, model: Path) -> None:
    """In order, with text and the decoder's numbers; the training's reader takes them; the shares add up."""
    ctx = context(workspace, model)
    delivery = transcribe.main(ctx)
    labels = rows(workspace)
    chunks = [json.loads(line) for line in (workspace.cleaned_audio / "metadata.jsonl").read_text().splitlines()]
    for name in ("file_name", "source", "start_s", "end_s"):
        assert [getattr(label, name) for label in labels] == [chunk[name] for chunk in chunks]
    assert all(label.text and label.avg_logprob < 0 and label.compression_ratio > 0 for label in labels)
    assert delivery.metrics["segments"] == 5
    assert sum(delivery.metrics[f"{verdict}_share"] for verdict in (KEPT, DOUBTFUL, REJECTED)) == pytest.approx(1)
    read = read_rows(workspace.transcripts / "metadata.jsonl", [workspace.cleaned_audio])
    assert [(row.id, row.source) for row in read] == [(label.file_name, label.source) for label in labels]
    assert not list(ctx.scratch().iterdir())


def test_the_same_sound_gets_the_same_text_at_any_place_of_a_batch(workspace: Workspace, model: Path) -> None:
    """Chunks of a batch do not leak into each other: the clips that stand twice are heard alike in other company."""
    transcribe.main(context(workspace, model, batch_size=8))
    texts: dict[int, set[str]] = {}
    for label in rows(workspace):
        size_bytes = (workspace.cleaned_audio / label.file_name).stat().st_size
        texts.setdefault(size_bytes, set()).add(label.text)
    assert len(texts) == 3
    assert all(len(heard_as) == 1 for heard_as in texts.values())


def test_word_timestamps_lie_inside_their_chunk(workspace: Workspace, model: Path) -> None:
    """Times count from the chunk's own start, also for the later chunks of a batch."""
    transcribe.main(context(workspace, model, word_timestamps=True, batch_size=3))
    for label in rows(workspace):
        assert label.words
        assert all(0 <= start_s <= end_s <= 4.0 for _word, start_s, end_s, _probability in label.words)


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 2)), min_size=1, max_size=20))
def test_words_are_silent_exactly_where_nothing_is_heard(spans: list[tuple[float, float]]) -> None:
    """All of them in silence, none in speech, whatever their times, also beyond the chunk's end."""
    words = [("w", start_s, start_s + length_s, 0.9) for start_s, length_s in spans]
    windows = int(33 / verdicts.WINDOW_S)
    assert verdicts.silent_share(words, [0.0] * windows) == 1.0
    assert verdicts.silent_share(words, [0.9] * windows) == 0.0
    assert verdicts.silent_share([("w", 40.0, 41.0, 0.9)], [0.9] * windows) == 1.0
    assert verdicts.silent_share([], [0.9]) is None


@pytest.mark.parametrize(
    ("start_s", "end_s", "silent"),
    [(1.65, 1.8, 0.0), (1.0, 1.35, 1.0), (1.0, 1.45, 0.0), (2.2, 2.4, 1.0), (2.05, 2.2, 0.0), (0.5, 3.0, 0.0)],
)
def test_a_word_is_silent_by_its_own_time(start_s: float, end_s: float, silent: float) -> None:
    """Speech elsewhere in the chunk (here it is from 1.6 to 1.92 s) does not vouch for a word, but for the slack of its times."""
    speech = [0.9 if 50 <= window < 60 else 0.1 for window in range(100)]
    assert verdicts.silent_share([("w", start_s, end_s, 0.9)], speech) == silent


def test_the_shares_are_of_all_segments() -> None:
    """Two kept, one doubtful, one rejected: halves and quarters, and the hours are those of the kept alone."""
    label = verdicts.Label(
        file_name="a", text="t", source="s", start_s=0.0, end_s=3.0, verdict=KEPT, avg_logprob=-1.0, no_speech_prob=0.0,
        compression_ratio=1.0,
    )  # fmt: skip
    others = (msgspec.structs.replace(label, verdict=verdict, end_s=9.0) for verdict in (DOUBTFUL, REJECTED))
    found = transcribe._metrics([label, *others, label])
    assert [found[f"{verdict}_share"] for verdict in (KEPT, DOUBTFUL, REJECTED)] == [0.5, 0.25, 0.25]
    assert (found["segments"], found["kept_hours"]) == (4.0, 6.0 / 3600)


def test_the_worst_part_of_a_chunk_counts(workspace: Workspace, model: Path) -> None:
    """Where the decoder made two segments of a chunk, neither vouches for the other, and both texts are the label's."""
    ctx = context(workspace, model)
    labeller = transcribe.Labeller(ctx, Transcribe(), None, None, "cpu", 1)  # type: ignore[arg-type]  # not called here
    line = transcribe.Line("a.flac", "a", 0.0, 4.0)
    names = ("text", "avg_logprob", "no_speech_prob", "compression_ratio", "words")
    parts = [
        SimpleNamespace(**dict(zip(names, part, strict=True)))
        for part in ((" We receive", -0.2, 0.9, 1.1, None), (" it now.", -1.2, 0.1, 1.9, None))
    ]
    label = transcribe._label(labeller, line, np.zeros(64_000, np.float32), parts, 0.0)
    assert (label.text, label.avg_logprob, label.no_speech_prob, label.compression_ratio) == ("We receive it now.", -1.2, 0.9, 1.9)
    assert (label.verdict, label.reason) == (REJECTED, "no speech")


def test_text_over_silence_is_rejected(workspace: Workspace, model: Path) -> None:
    """A chunk of faint hiss, about which the untrained model talks as about any other: the voice detector hears nobody.

    Where the doubtful are kept, it is not.
    """
    hiss = np.random.default_rng(0).normal(0, 1e-3, 48_000).astype(np.float32)
    soundfile.write(workspace.cleaned_audio / "002_b" / "chunk_0001.flac", hiss, 16_000)
    transcribe.main(context(workspace, model, word_timestamps=True, min_avg_logprob=-1.0, keep_doubtful=True))
    labels = {label.file_name: label for label in rows(workspace)}
    silent = labels.pop("002_b/chunk_0001.flac")
    assert silent.text
    assert (silent.verdict, silent.reason, silent.silent_words) == (REJECTED, "words without speech", 1.0)
    assert all((label.silent_words or 0.0) < 1.0 for label in labels.values())
    assert {label.verdict for label in labels.values()} == {KEPT}


def test_captions_that_say_something_else_raise_doubt(workspace: Workspace, model: Path) -> None:
    """Only for the recording that has captions; the doubtful go to Label Studio; new captions have it labelled again."""
    workspace.raw_audio.mkdir(parents=True)
    subtitle = workspace.raw_audio / "002_b.en.vtt"
    subtitle.write_text("WEBVTT\n\n00:00.000 --> 00:30.000\n" + "nothing of the kind was said here " * 9 + "\n")
    first = context(workspace, model)
    delivery = transcribe.main(first)
    found = {label.file_name: (label.verdict, label.reason) for label in rows(workspace)}
    doubtful = {name for name, verdict in found.items() if verdict == (DOUBTFUL, "captions differ")}
    assert doubtful == {name for name in found if name.startswith("002_b")}
    assert {verdict for name, verdict in found.items() if name not in doubtful} == {(KEPT, "")}
    assert delivery.metrics["captioned_recordings"] == 1.0
    assert "3 doubtful, captions differ" in notes(first)
    tasks = json.loads((workspace.transcripts / "label_studio.json").read_bytes())
    assert {task["data"]["file_name"] for task in tasks} == doubtful
    for task in tasks:
        assert (workspace.root / task["data"]["audio"].partition("?d=")[2]).is_file()
    said = " ".join(next(label.text for label in rows(workspace) if label.file_name == name) for name in sorted(doubtful))
    subtitle.write_text(f"WEBVTT\n\n00:00.000 --> 00:01.000\n{said}\n\n00:29.000 --> 00:30.000\nAmen.\n")
    transcribe.main(context(workspace, model, 2))
    assert any(label.caption_error == 0.0 for label in rows(workspace))


def test_captions_are_of_their_own_recording_and_time(workspace: Workspace, model: Path) -> None:
    """Each chunk is compared with what its recording's captions say while it sounds; the next recording has none to differ from."""
    lines = [json.loads(line) for line in (workspace.cleaned_audio / "metadata.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        line |= {"source": "001_a", "start_s": index * 10.0, "end_s": index * 10.0 + 3.0}
    lines[-1] |= {"source": "002_b", "start_s": 0.0, "end_s": 3.0}
    (workspace.cleaned_audio / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    transcribe.main(context(workspace, model))
    texts = [label.text for label in rows(workspace)]
    assert len(set(texts)) > 1
    cues = (f"00:{index}0.000 --> 00:{index}3.000\n{text}\n\n" for index, text in enumerate(texts[:-1]))
    workspace.raw_audio.mkdir(parents=True)
    (workspace.raw_audio / "001_a.en.vtt").write_text("WEBVTT\n\n" + "".join(cues))
    (workspace.transcripts / "002_b.jsonl").unlink()
    transcribe.main(context(workspace, model, 2))
    assert [label.text for label in rows(workspace)] == texts
    assert [label.caption_error for label in rows(workspace)] == [0.0, 0.0, 0.0, 0.0, None]


def test_corrections_replace_what_was_heard(workspace: Workspace, model: Path) -> None:
    """A person's text is trained on as written, without loading a model; what was heard stays on file; it is not asked again."""
    unsure = {"min_avg_logprob": -0.001, "keep_doubtful": True}  # all of them are doubtful
    transcribe.main(context(workspace, model, **unsure))
    tasks = json.loads((workspace.transcripts / "label_studio.json").read_bytes())
    assert len(tasks) == 5
    heard_first = (workspace.transcripts / "001_a.jsonl").read_bytes()
    result = [{"type": "textarea", "value": {"text": ["By rail to the coast."]}}]
    exported = [{"data": tasks[0]["data"], "annotations": [{"result": result}]}]
    (workspace.root / "export.json").write_text(json.dumps(exported))
    second = context(workspace, model, 2, corrections="export.json", **unsure)
    assert transcribe.main(second).metrics["corrected"] == 1.0
    assert (rows(workspace)[0].text, rows(workspace)[0].verdict) == ("By rail to the coast.", KEPT)
    assert rows(workspace)[1].text != rows(workspace)[0].text
    assert (workspace.transcripts / "001_a.jsonl").read_bytes() == heard_first
    assert json.loads((workspace.transcripts / "label_studio.json").read_bytes()) == tasks[1:]
    assert not [event for event in progress(second) if event.message.startswith("loading")]


def test_the_language_is_the_settings(workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is told it, and guesses none: a sermon's hymn in Latin is no reason to write Latin."""
    from faster_whisper import BatchedInferencePipeline

    used = []
    real = BatchedInferencePipeline.transcribe

    def watched(*args: Any, **kwargs: Any) -> Any:
        segments, info = real(*args, **kwargs)
        used.append((info.language, info.language_probability))
        return segments, info

    monkeypatch.setattr(BatchedInferencePipeline, "transcribe", watched)
    transcribe.main(context(workspace, model, language="es"))
    assert set(used) == {("es", 1)}


def test_finished_transcripts_are_kept(workspace: Workspace, model: Path) -> None:
    """A second attempt loads no model; a changed chunk or setting has its recording labelled again."""
    transcribe.main(context(workspace, model))
    second = context(workspace, model, 2)
    before = (workspace.transcripts / "001_a.jsonl").stat().st_mtime_ns
    transcribe.main(second)
    assert not [event for event in progress(second) if event.message.startswith("loading")]
    shutil.copy(CLIPS / "replay" / "shop.flac", workspace.cleaned_audio / "002_b" / "chunk_0002.flac")
    third = context(workspace, model, 3)
    transcribe.main(third)
    assert [event for event in progress(third) if event.message.startswith("loading")]
    assert (workspace.transcripts / "001_a.jsonl").stat().st_mtime_ns == before


def test_a_stopped_recording_goes_on_at_its_batch(workspace: Workspace, model: Path, tmp_path: Path) -> None:
    """Stopped after each batch, torn lines added: the result is that of an undisturbed run, and no batch is done twice."""

    class Stopping(StageContext):
        def progress(self, done: float, *args: Any, **kwargs: Any) -> None:
            super().progress(done, *args, **kwargs)
            if kwargs.get("message", "").startswith("00"):  # a batch is done
                self.request_stop()

    shutil.copytree(workspace.root, tmp_path / "whole")
    whole = Workspace.at(tmp_path / "whole")
    transcribe.main(context(whole, model))
    number = 0
    done: list[int] = []
    while number < 9:
        number += 1
        made = context(workspace, model, number)
        ctx = Stopping(made.spec, made.attempt)
        try:
            transcribe.main(ctx)
            break
        except StopRequested:
            files = [*ctx.scratch().iterdir(), *workspace.transcripts.glob("*")]
            done.append(sum(len(path.read_bytes().splitlines()) - 1 for path in files))
            for path in ctx.scratch().iterdir():
                path.write_bytes(path.read_bytes() + b'{"file_name":"torn')
    assert done == [2, 4]
    assert tree_digest(whole.transcripts) == tree_digest(workspace.transcripts)


def test_lines_of_an_incomplete_batch_are_done_again(tmp_path: Path) -> None:
    """What a crash left is cut back to whole batches of the same input (the last one may be small); the file then holds these."""
    label = verdicts.Label(
        file_name="a",
        text="t",
        source="s",
        start_s=0.0,
        end_s=1.0,
        verdict=KEPT,
        avg_logprob=-1.0,
        no_speech_prob=0.0,
        compression_ratio=1.0,
    )
    path = tmp_path / "a.jsonl"
    line = msgspec.json.encode(label) + b"\n"
    path.write_bytes(b'{"mark":"m"}\n' + line * 5 + b'{"torn')
    assert len(transcribe._begun(path, "m", 2, 5)) == 5
    assert len(transcribe._begun(path, "m", 2, 6)) == 4
    assert path.read_bytes() == b'{"mark":"m"}\n' + line * 4
    assert transcribe._begun(path, "other", 2, 6) == []
    assert path.read_bytes() == b'{"mark":"other"}\n'


def test_memory_running_out_halves_the_batch(workspace: Workspace, model: Path) -> None:
    """CTranslate2's own message is understood: the same chunks are done again in halves, and it is told."""
    ctx = context(workspace, model, batch_size=4)
    labeller = transcribe.Labeller(ctx, ctx.settings(Transcribe), None, None, "cuda", 4)  # type: ignore[arg-type]  # not called here
    transcribe._shrink(labeller, RuntimeError("CUDA failed with error out of memory"))
    assert labeller.batch == 2
    assert [event.micro_batch for event in events(ctx) if isinstance(event, MemoryFit)] == [2]
    with pytest.raises(RuntimeError, match="something else"):
        transcribe._shrink(labeller, RuntimeError("something else"))
    labeller.batch = 1
    with pytest.raises(RuntimeError, match="out of memory"):
        transcribe._shrink(labeller, RuntimeError("CUDA failed with error out of memory"))


def test_ordinary_rules_reject_an_untrained_model(workspace: Workspace, model: Path) -> None:
    """When nothing can be trained on the stage says so, with the counts by reason, instead of handing on noise."""
    strict = {"max_compression_ratio": 2.4, "max_repeats": 5, "min_avg_logprob": -1.0}
    with pytest.raises(MisconfiguredError, match=r"none of 5 segments can be trained on \(5 rejected: repetition\)"):
        transcribe.main(context(workspace, model, **strict))
    assert not (workspace.transcripts / "metadata.jsonl").exists()


def test_keep_doubtful_is_told_and_does_not_change_the_shares(workspace: Workspace, model: Path) -> None:
    """Doubtful ones count as kept for the training only: their reason, the note and the metrics still say what they are."""
    ctx = context(workspace, model, min_avg_logprob=-1.0, keep_doubtful=True)
    delivery = transcribe.main(ctx)
    assert (delivery.metrics["kept_share"], delivery.metrics["doubtful_share"]) == (0.0, 1.0)
    assert {(label.verdict, label.reason) for label in rows(workspace)} == {
        (KEPT, "doubtful (low confidence), kept by keep_doubtful")
    }
    assert "5 doubtful segments are kept" in notes(ctx)


def test_the_memory_ladders_batch_is_used(workspace: Workspace, model: Path) -> None:
    """After an out-of-memory attempt the daemon's batch plan overrules the setting."""
    ctx = context(workspace, model, batch=BatchPlan(eval_batch=1), batch_size=8)
    transcribe.main(ctx)
    assert [event.done for event in progress(ctx) if event.message.startswith("00")][-1] == 5


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda cleaned: (cleaned / "metadata.jsonl").unlink(), r"metadata.jsonl cannot be used"),
        (lambda cleaned: (cleaned / "metadata.jsonl").write_text(""), "lists no chunk"),
        (lambda cleaned: (cleaned / "metadata.jsonl").write_text("{}\n"), "cannot be used .*file_name"),
        (lambda cleaned: (cleaned / "metadata.jsonl").write_bytes(b"\xff\n"), "cannot be used"),
        (
            lambda cleaned: (cleaned / "001_a" / "chunk_0000.flac").unlink(),
            "1 chunks that are not there, 001_a/chunk_0000.flac first",
        ),
        (lambda cleaned: (cleaned / "001_a" / "chunk_0000.flac").write_bytes(b"no sound"), "chunk_0000.flac cannot be read"),
        (
            lambda cleaned: (cleaned / "metadata.jsonl").write_text(
                '{"file_name": "../../x.flac", "source": "x", "start_s": 0, "end_s": 1}\n'
            ),
            "leads outside",
        ),
    ],
    ids=["missing", "empty", "wrong schema", "not UTF-8", "chunk gone", "chunk no sound", "path outside"],
)
def test_bad_input(workspace: Workspace, model: Path, spoil: Any, words: str) -> None:
    """Each with one sentence that names the file and the stage to run again."""
    spoil(workspace.cleaned_audio)
    with pytest.raises(MisconfiguredError, match=words):
        transcribe.main(context(workspace, model))


@pytest.mark.parametrize("missing", ["model.bin", "config.json", None])
def test_a_model_folder_without_its_files(workspace: Workspace, model: Path, tmp_path: Path, missing: str | None) -> None:
    """Named before anything is loaded: the folder that is not there, or the file that it lacks."""
    folder = tmp_path / "spoilt"
    if missing is not None:
        shutil.copytree(model, folder)
        (folder / missing).unlink()
    with pytest.raises(MisconfiguredError, match=missing or "spoilt"):
        transcribe.main(context(workspace, folder))


def test_the_stage_never_imports_torch() -> None:
    """torch brings another CUDA than CTranslate2 wants; nothing that this stage loads may bring torch."""
    imports = "import sys, stages.transcribe, ctranslate2, faster_whisper, faster_whisper.vad as vad; vad.get_vad_model()"
    subprocess.run([sys.executable, "-c", f"{imports}; sys.exit('torch' in sys.modules)"], check=True, cwd=ROOT, timeout=120)


def test_cuda_libraries_are_looked_for_in_order(tmp_path: Path) -> None:
    """Nothing there: nothing loaded. A file that is no library is passed over, a real one is loaded by its path."""
    assert cuda_libraries.preload([str(tmp_path)]) == []
    folder = tmp_path / "nvidia" / "cublas" / "lib"
    folder.mkdir(parents=True)
    (folder / "libcublas.so.12").write_bytes(b"not a library")
    assert cuda_libraries.preload(["", str(tmp_path)]) == []
    import _ctypes

    library = Path(_ctypes.__file__)  # any shared object of this Python will do
    shutil.copy(library, folder / "libcublasLt.so.12")
    assert cuda_libraries.preload([str(tmp_path)]) == [str(folder / "libcublasLt.so.12")]
    assert not cuda_libraries.loads("libdoes-not-exist.so.9")


def test_where_the_cuda_library_came_from_is_said(tmp_path: Path) -> None:
    """Found beside the packages or left to the system: the note on a GPU names it either way."""
    path = str(tmp_path / "nvidia" / "cublas" / "lib" / "libcublas.so.12")
    assert transcribe._found([str(tmp_path / "libcublasLt.so.12"), path]) == f"libcublas.so.12 from {path}"
    assert transcribe._found([]) == "libcublas.so.12 from the system; no nvidia-cublas-cu12 here"

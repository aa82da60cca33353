"""stages.train_whisper: labels under a forced prefix, adapters on all attention, word error rates that are really measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from faster_whisper import WhisperModel
from peft import PeftModel
from transformers import WhisperForConditionalGeneration

from stages import tiny, train_whisper
from stages.runtime import StageContext
from stages.speech_rows import Row
from stages.training import Recipe
from state.contract import MisconfiguredError, StopRequested
from state.settings import TrainWhisper
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import notes

PEFT_WARNING = r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)  # peft 0.21 asks transformers 5.23 by the old name

TEXTS = [f"The servant saw the city on day {number}." for number in range(60)]
SMALL = {"model": "models/whisper-tiny", "lora_rank": 4, "bf16": False, "dev_examples": 2, "micro_batch": 2}


def settings(**changes: Any) -> TrainWhisper:
    """Small settings for the tiny model."""
    return msgspec.convert(SMALL | changes, TrainWhisper)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny Whisper."""
    path = tmp_path_factory.mktemp("whisper")
    tiny.make_whisper(path, TEXTS)
    return path


def speech(path: Path, seed: int, seconds: float = 1.0) -> Path:
    """A FLAC of noise that stands for speech."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, int(16_000 * seconds)).clip(-1, 1)
    soundfile.write(path, samples.astype(np.float32), 16_000)
    return path


def metadata(path: Path, rows: list[dict[str, str]]) -> None:
    """A metadata.jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


Context = Callable[..., StageContext]


@pytest.fixture
def context(tmp_path: Path, folder: Path) -> Context:
    """Contexts of attempts in one workspace with three recordings of two chunks, and a replay source."""
    workspace = Workspace.at(tmp_path / "run")
    workspace.models.mkdir(parents=True)
    (workspace.models / "whisper-tiny").symlink_to(folder)
    names = [(f"r{source}/chunk_{number}.flac", f"r{source}") for source in range(3) for number in range(2)]
    for seed, (name, _source) in enumerate(names):
        speech(workspace.cleaned_audio / name, seed)
    rows = [{"file_name": name, "text": TEXTS[i], "source": source, "verdict": "kept"} for i, (name, source) in enumerate(names)]
    metadata(workspace.transcripts / "metadata.jsonl", rows)
    for number in range(12):
        speech(workspace.root / "replay" / f"{number}.flac", 100 + number)
    clips = [{"file_name": f"{number}.flac", "text": TEXTS[20 + number]} for number in range(12)]
    metadata(workspace.root / "replay" / "metadata.jsonl", clips)

    def make(number: int = 1, **values: Any) -> StageContext:
        return stage_attempts.context(workspace.root, "train_whisper", number, settings=SMALL | values)

    return make


@pytest.fixture
def loaded(folder: Path) -> tuple[PeftModel, train_whisper.Labels]:
    """The model with a fresh adapter, and its labels."""
    processor, base = train_whisper.load_model(str(folder), settings(), torch.device("cpu"))
    labels = train_whisper.Labels(processor, base.config, "en")
    return train_whisper.add_adapter(base, settings()), labels


Loaded = tuple[PeftModel, train_whisper.Labels]


def test_the_prefix_is_given_and_not_learned(loaded: Loaded, tmp_path: Path) -> None:
    """The decoder sees start, language, task and no-timestamps; it learns the text, with the end mark, one place later."""
    _model, labels = loaded
    rows = [Row(str(n), speech(tmp_path / f"{n}.flac", n), TEXTS[n] * (n + 1), "s") for n in (0, 1)]
    batch = train_whisper.collate(rows, labels)
    assert batch["input_features"].shape == (2, 80, 3000)
    tokens = labels.tokenizer.convert_ids_to_tokens
    assert tokens(batch["decoder_input_ids"][0, :4]) == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    for number, row in enumerate(rows):
        learned = batch["labels"][number] != train_whisper.IGNORED
        text = batch["labels"][number][learned]
        assert labels.tokenizer.decode(text) == f" {row.text}<|endoftext|>"
        given = batch["decoder_input_ids"][number][1:][learned[:-1]]
        assert given.tolist() == text[: len(given)].tolist()
        assert not learned[:3].any()


def test_a_language_that_whisper_does_not_know_is_refused(folder: Path) -> None:
    """A typo in the settings is told as one."""
    processor, base = train_whisper.load_model(str(folder), settings(), torch.device("cpu"))
    with pytest.raises(MisconfiguredError, match="klingon"):
        train_whisper.Labels(processor, base.config, "klingon")


def test_all_attention_is_adapted_and_nothing_else(loaded: Loaded) -> None:
    """Self-attention of both sides and cross-attention: q, k, v and out, in two layers each."""
    model, _labels = loaded
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 4 * (2 + 2 + 2)
    assert all("attn" in name and "lora_" in name for name in trained)


def test_the_loss_does_not_depend_on_the_padding(loaded: Loaded, tmp_path: Path) -> None:
    """Two rows together cost what they cost apart."""
    model, labels = loaded
    model.eval()
    rows = [Row(str(n), speech(tmp_path / f"{n}.flac", n), TEXTS[n] * (n + 1), "s") for n in (0, 1)]
    token_loss = train_whisper.decoder_loss(0.0)
    with torch.no_grad():
        apart = [token_loss(model, train_whisper.collate([row], labels)) for row in rows]
        loss, count = token_loss(model, train_whisper.collate(rows, labels))
    assert count == apart[0][1] + apart[1][1]
    assert float(loss) == pytest.approx(float(apart[0][0] + apart[1][0]), rel=1e-4)


def test_sound_is_mono_16_khz_and_at_most_30_s(tmp_path: Path) -> None:
    """Replay clips come as they are: another rate, two channels, too long."""
    stereo = np.random.default_rng(0).normal(0, 0.1, (44_100 * 2, 2)).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", stereo, 44_100)
    assert len(train_whisper.samples(tmp_path / "stereo.wav")) == pytest.approx(32_000, abs=64)
    assert len(train_whisper.samples(speech(tmp_path / "long.flac", 1, 31.0))) == 30 * 16_000
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    with pytest.raises(MisconfiguredError, match=r"broken\.flac"):
        train_whisper.samples(tmp_path / "broken.flac")


def test_chunks_with_too_much_text_are_left_out_and_told(loaded: Loaded, context: Context, tmp_path: Path) -> None:
    """More text than the decoder has room for cannot be learned, and is not cut in silence."""
    _model, labels = loaded
    ctx = context()
    rows = [Row("a", tmp_path, TEXTS[0], "s"), Row("b", tmp_path, TEXTS[0] * 200, "s")]
    assert [row.id for row in train_whisper.fitting(ctx, rows, labels)] == ["a"]
    assert "1 chunks have more text" in notes(ctx)


REPLAY = {
    "not set": ({}, "no replay_source is set"),
    "not there": ({"replay_source": "nowhere"}, r"no metadata\.jsonl and no Common Voice in .*nowhere"),
    "all of it": ({"replay_source": "replay", "replay_share": 1.0}, r"< 1\.0 - at `\$\.replay_share`"),
}


@pytest.mark.parametrize("fault", REPLAY)
def test_required_replay_that_is_not_there_stops_the_stage_at_once(context: Context, fault: str) -> None:
    """Before the model is loaded, and with the way out in the message."""
    values, words = REPLAY[fault]
    with pytest.raises(MisconfiguredError, match=words):
        train_whisper.main(context(**values))


def test_replay_that_is_not_required_is_missed_aloud(context: Context) -> None:
    """The report says that the model was trained without general speech."""
    ctx = context(replay_required=False)
    assert train_whisper.replay_rows(ctx, settings(replay_required=False), 6) == []
    assert "trained without replay" in notes(ctx)
    assert train_whisper.replay_rows(ctx, settings(replay_share=0.0), 6) == []


def test_what_was_heard_is_kept_and_not_heard_again(loaded: Loaded, context: Context, tmp_path: Path) -> None:
    """A killed measurement goes on where it was, and the rate is that of the kept texts."""
    model, labels = loaded
    ctx = context()
    rows = [Row("a", tmp_path / "gone", "one two", "s"), Row("b", tmp_path / "gone", "three four", "s", replay=True)]
    kept = tmp_path / "heard.jsonl"
    kept.write_text('{"id": "a", "text": "One, two!"}\n{"id": "b", "text": "three"}\n{"id": "c')
    heard = train_whisper.hear(ctx, model, labels, rows, kept, settings())
    assert heard == {"a": "One, two!", "b": "three"}
    rates, words = train_whisper.word_error_rates(rows, heard, {"a": "one", "b": "three four"}, 0)
    assert (rates["wer_before"], rates["wer_after"], rates["replay_wer_before"], rates["replay_wer_after"]) == (0.0, 0.5, 0.5, 0.0)
    assert "agreement) 0.0% (0.0 to 0.0) -> 50.0% (50.0 to 50.0): worse; WER on general speech" in words


def test_each_chunk_has_what_was_heard_in_it(
    loaded: Loaded, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sorted and in batches, yet each text is that of its own sound; and the language is told, not guessed."""
    model, labels = loaded
    told = []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: told.append((given["language"], given["task"])) or generate(**given))
    with torch.no_grad():  # an untrained model says the same to all: this one listens
        for name, parameter in model.named_parameters():
            parameter.mul_(4.0 if "encoder_attn" in name else 1.0)
    rows = [Row(str(9 - n), speech(tmp_path / f"{n}.flac", n, 0.5 + n), "The city", "s") for n in range(4)]
    heard = train_whisper.hear(context(), model, labels, rows, tmp_path / "heard.jsonl", settings(micro_batch=4))
    assert heard == {row.id: text for row in rows for text in train_whisper._transcribe(model, labels, [row])}
    assert len(set(heard.values())) > 1
    assert set(told) == {("en", "transcribe")}


class Handed(Exception):
    """What the training was asked to do."""


def test_what_is_held_out_is_not_trained_on(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording and no clip on both sides; all else is there once, and both sides hold sermons and general speech."""

    def handed(_ctx: StageContext, _settings: TrainWhisper, recipe: Recipe) -> None:
        raise Handed(recipe)

    monkeypatch.setattr(train_whisper, "train", handed)
    with pytest.raises(Handed) as caught:
        train_whisper.main(context(replay_source="replay"))
    recipe = caught.value.args[0]
    train, dev = ([example.id for example in data.examples] for data in (recipe.train, recipe.dev))
    sides = [
        {name.partition("/")[0] if name.startswith("r") and not name.startswith("replay/") else name for name in ids}
        for ids in (train, dev)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert len(train) == len(set(train)) == 6
    assert len(dev) == len(set(dev)) == 3
    assert [sum(name.startswith("replay/") for name in ids) for ids in (train, dev)] == [2, 1]
    assert sum(name.startswith("r") and not name.startswith("replay/") for name in [*train, *dev]) == 6


def test_a_stop_during_the_measurement_leaves_it(loaded: Loaded, context: Context, tmp_path: Path) -> None:
    """SIGTERM is answered between two batches; what was heard stays."""
    model, labels = loaded
    ctx = context()
    rows = [Row(str(n), speech(tmp_path / f"{n}.flac", n), TEXTS[n], "s") for n in range(3)]
    kept = tmp_path / "heard.jsonl"
    train_whisper.hear(ctx, model, labels, rows[:2], kept, settings())
    before = kept.read_bytes()
    assert len(before.splitlines()) == 2
    ctx.request_stop()
    with pytest.raises(StopRequested):
        train_whisper.hear(ctx, model, labels, rows, kept, settings())
    assert kept.read_bytes() == before


def test_the_stage_delivers_an_adapter_that_loads_on_the_base(context: Context, folder: Path) -> None:
    """From metadata to `fine_tuned_whisper_mi`: trained with replay, one recording held out, rates before and after."""
    ctx = context(replay_source="replay", epochs=2, effective_batch=4, learning_rate=1e-2, evaluations=2)
    delivery = train_whisper.main(ctx)
    assert "general speech from replay: 2 clips to train on, 1 held out" in notes(ctx)
    assert list(delivery.outputs) == [ctx.workspace.fine_tuned_whisper]
    metrics = delivery.metrics
    assert metrics["ledger_exact"] == 1.0
    assert (metrics["sermon_chunks"], metrics["replay_clips"], metrics["held_out_chunks"]) == (4.0, 2.0, 3.0)
    for name in ("wer_before", "wer_after", "wer_change", "replay_wer_before", "replay_wer_after", "replay_wer_change"):
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert "dev_loss_after" in metrics
    heard = {path.name.split("-")[1]: len(path.read_bytes().splitlines()) for path in ctx.scratch().glob("heard-*")}
    assert heard == {"before": 3, "after": 3}
    config = json.loads((ctx.workspace.fine_tuned_whisper / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/whisper-tiny"
    assert (ctx.workspace.fine_tuned_whisper / "tokenizer.json").is_file()
    base = WhisperForConditionalGeneration.from_pretrained(folder)
    adapted = PeftModel.from_pretrained(base, str(ctx.workspace.fine_tuned_whisper))
    assert all(parameter.abs().max() > 0 for name, parameter in adapted.named_parameters() if "lora_B" in name)
    assert metrics["merged"] == 1.0
    whole = WhisperModel(str(ctx.workspace.fine_tuned_whisper / "merged-ct2"), device="cpu", compute_type="float32")
    (segment, *_rest), info = whole.transcribe(str(ctx.workspace.cleaned_audio / "r0" / "chunk_0.flac"), language="en", beam_size=1)
    assert segment.text
    assert info.duration == 1.0


def test_what_cannot_be_merged_costs_the_merged_form_only(loaded: Loaded, context: Context, tmp_path: Path) -> None:
    """The base is gone when the adapter is to be merged: the adapter's folder stays as it was, and the owner is told."""
    _model, labels = loaded
    ctx = context()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    rows = [Row("a", speech(tmp_path / "a.flac", 1), TEXTS[0], "s")]
    assert not train_whisper.merge(ctx, str(tmp_path / "gone"), adapter, labels, rows)
    assert "delivered alone, without its merged form for faster-whisper: " in notes(ctx)
    assert not list(adapter.iterdir())
    assert not list(ctx.scratch().iterdir())


def test_nothing_kept_to_train_on_is_refused(context: Context) -> None:
    """The message leads to the verdicts."""
    ctx = context(replay_source="replay")
    metadata(ctx.workspace.transcripts / "metadata.jsonl", [{"file_name": "x.flac", "text": "x", "verdict": "rejected"}])
    with pytest.raises(MisconfiguredError, match="verdicts"):
        train_whisper.main(ctx)

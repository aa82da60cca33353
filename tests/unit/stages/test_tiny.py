"""stages.tiny: small models that load, tokenize and generate by the code made for the real ones, the same every time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
import torch
from faster_whisper import WhisperModel
from jinja2.exceptions import TemplateError
from transformers import (
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
    MarianMTModel,
    MarianTokenizer,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

from stages import tiny
from stages.loading import Kind, check_model_folder
from stages.tiny_speech import Clip, read_clips, sentences
from state.contract import MisconfiguredError
from state.durable import tree_digest

PAIRS = [(f"the servant saw the city on day {number}", f"el siervo vio la ciudad el día {number}") for number in range(80)]
ENGLISH, SPANISH = PAIRS[3]
KINDS: dict[str, Kind] = {
    "marian-en-es": "marian",
    "whisper-tiny-teacher": "whisper",
    "whisper-tiny": "whisper",
    "whisper-tiny-ct2": "ctranslate2",
    "gemma-tiny-a": "gemma",
    "gemma-tiny-b": "gemma",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, untaught."""
    folder = tmp_path_factory.mktemp("models")
    assert dict(tiny.make_all(folder, PAIRS, [])) == dict.fromkeys(KINDS, True)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_every_model_is_whole_by_the_stages_own_check(models: Path, name: str) -> None:
    """What is made passes the check that real models have to pass."""
    check_model_folder(models / name, KINDS[name])


def test_marian_learns_nothing_by_itself_but_loads_and_speaks(models: Path) -> None:
    """Tokenizer and model have opus-mt's layout: the pad token is last, starts the decoder and is zero."""
    folder = models / "marian-en-es"
    tokenizer = MarianTokenizer.from_pretrained(folder)
    model = MarianMTModel.from_pretrained(folder)
    batch = tokenizer([ENGLISH], text_target=[SPANISH], return_tensors="pt")
    assert tokenizer.unk_token_id not in batch["input_ids"][0].tolist() + batch["labels"][0].tolist()
    assert tokenizer.decode(batch["labels"][0], skip_special_tokens=True) == SPANISH
    assert model.config.decoder_start_token_id == model.config.pad_token_id == len(tokenizer) - 1
    assert not model.get_input_embeddings().weight[model.config.pad_token_id].any()
    generated = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=4, max_length=None
    )
    assert generated.shape[1] <= 5


def test_whisper_has_the_special_tokens_of_the_published_ones(models: Path) -> None:
    """Language, task and timestamps are forced by the same names."""
    processor = WhisperProcessor.from_pretrained(models / "whisper-tiny")
    tokenizer = processor.tokenizer
    tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    prefix = ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert tokenizer.convert_ids_to_tokens(tokenizer.prefix_tokens) == prefix
    first = tokenizer.convert_tokens_to_ids("<|0.00|>")
    assert tokenizer.convert_tokens_to_ids("<|30.00|>") - first == 1500 == len(tokenizer) - 1 - first
    assert tokenizer.decode(tokenizer.encode(f" {ENGLISH}", add_special_tokens=False)) == f" {ENGLISH}"
    model = WhisperForConditionalGeneration.from_pretrained(models / "whisper-tiny")
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.lang_to_id["<|es|>"] == tokenizer.convert_tokens_to_ids("<|es|>")


def test_ctranslate2_takes_the_whisper_for_a_multilingual_one(models: Path) -> None:
    """Only then does faster-whisper force language and task, as it does for large-v3."""
    model = ctranslate2.models.Whisper(str(models / "whisper-tiny-ct2"), device="cpu")
    assert model.is_multilingual
    assert model.num_languages == 99
    assert model.n_mels == 80


def test_faster_whisper_and_transformers_say_the_same(models: Path) -> None:
    """The converted weights are those of the folder they came from, through faster-whisper's own features."""
    sound = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    fast = WhisperModel(str(models / "whisper-tiny-ct2"), device="cpu", compute_type="float32", cpu_threads=1)
    features = fast.feature_extractor(sound)[..., :3000]
    features = np.pad(features, [(0, 0), (0, 3000 - features.shape[1])]).astype(np.float32)[None]
    model = WhisperForConditionalGeneration.from_pretrained(models / "whisper-tiny-teacher")
    prompt = WhisperProcessor.from_pretrained(models / "whisper-tiny-teacher").tokenizer.prefix_tokens
    storage = ctranslate2.StorageView.from_array(features)
    found = fast.model.generate(storage, [list(prompt)], beam_size=1, max_length=8, return_logits_vocab=True)[0]
    with torch.no_grad():
        logits = model(input_features=torch.from_numpy(features), decoder_input_ids=torch.tensor([prompt])).logits[0, -1]
    theirs = np.asarray(found.logits[0][0], dtype=np.float32)
    finite = np.isfinite(theirs) & (theirs > -1e30)  # the others are suppressed at the beginning
    assert np.allclose(theirs[finite], logits.numpy()[finite], atol=1e-3)
    segments, _info = fast.transcribe(sound, language="en", beam_size=1, max_new_tokens=4, temperature=0.0, without_timestamps=True)
    assert len(list(segments)) <= 1


def message(source: str = ENGLISH, **changes: str) -> list[dict[str, object]]:
    """One user turn in TranslateGemma's shape."""
    item = {"type": "text", "source_lang_code": "en", "target_lang_code": "es", "text": source} | changes
    return [{"role": "user", "content": [item]}]


@pytest.mark.parametrize("size", ["a", "b"])
def test_gemma_has_translategemmas_parts(models: Path, size: str) -> None:
    """An image-text-to-text model with a vision tower; its tokenizer adds the <bos> that the template has too."""
    folder = models / f"gemma-tiny-{size}"
    model = Gemma3ForConditionalGeneration.from_pretrained(folder)
    assert any("vision_tower" in name for name, _ in model.named_parameters())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(message(), tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.unk_token_id not in ids
    assert tokenizer(prompt)["input_ids"].count(tokenizer.bos_token_id) == 2  # the trap that training has to avoid
    assert ENGLISH in tokenizer.decode(ids)
    generated = model.generate(torch.tensor([ids]), max_new_tokens=3, max_length=None)
    assert generated.shape[1] <= len(ids) + 3


BAD_MESSAGES = {
    "system role": [{"role": "system", "content": "x"}],
    "plain string": [{"role": "user", "content": "x"}],
    "two items": [{"role": "user", "content": message()[0]["content"] * 2}],  # type: ignore[operator]  # a list, by `message`
    "unknown language": message(target_lang_code="xx"),
    "not text": message(type="image"),
    "assistant first": [{"role": "assistant", "content": "x"}],
}


@pytest.mark.parametrize("fault", BAD_MESSAGES)
def test_the_chat_template_refuses_what_translategemmas_refuses(models: Path, fault: str) -> None:
    """User and assistant take turns; the user's content is a list of exactly one text with two known languages."""
    tokenizer = AutoTokenizer.from_pretrained(models / "gemma-tiny-a")
    with pytest.raises(TemplateError):
        tokenizer.apply_chat_template(BAD_MESSAGES[fault], tokenize=False)


def test_the_same_text_gives_the_same_bytes(models: Path, tmp_path: Path) -> None:
    """Seeds are fixed: two machines compare their demos."""
    dict(tiny.make_all(tmp_path, PAIRS, []))
    for name in KINDS:
        assert tree_digest(tmp_path / name) == tree_digest(models / name), name


def test_a_second_call_makes_nothing_and_a_lost_model_is_made_again(models: Path, tmp_path: Path) -> None:
    """A demo that was killed while its models were made goes on with those that are whole."""
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    assert not any(made for _name, made in tiny.make_all(folder, PAIRS, []))
    shutil.rmtree(folder / "gemma-tiny-a")
    (folder / ".gemma-tiny-a.tmp").mkdir()  # as a kill leaves it
    (folder / ".gemma-tiny-a.tmp" / "config.json").write_text("{")
    (folder / "marian-en-es" / tiny.MADE).write_text("{")
    made = dict(tiny.make_all(folder, PAIRS, []))
    assert [name for name, now in made.items() if now] == ["marian-en-es", "gemma-tiny-a"]
    assert tree_digest(folder / "gemma-tiny-a") == tree_digest(models / "gemma-tiny-a")


def test_another_text_makes_other_models(tmp_path: Path) -> None:
    """A tokenizer belongs to the sentences that it was trained on."""
    written: list[str] = []

    def fill(folder: Path) -> None:
        written.append(folder.name)

    assert tiny.build(tmp_path / "model", "one", fill)
    assert not tiny.build(tmp_path / "model", "one", fill)
    assert tiny.build(tmp_path / "model", "two", fill)
    assert len(written) == 2


def test_too_few_sentences_are_refused(tmp_path: Path) -> None:
    """A tokenizer of a handful of sentences would be a list of letters."""
    with pytest.raises(MisconfiguredError, match="too few"):
        list(tiny.make_all(tmp_path, PAIRS[:3], []))


def test_the_sample_has_enough_sentences() -> None:
    """The sentences come from the sample corpus that ships with the project."""
    pairs = tiny.sample_pairs()
    assert len(pairs) > 1000
    assert all(english and spanish for english, spanish in pairs)


def tone(seconds: float, level: float) -> np.ndarray:
    """Noise that stands for speech."""
    return np.random.default_rng(1).normal(0, level, int(seconds * 16_000)).astype(np.float32)


def test_a_recording_is_cut_in_its_longest_pauses() -> None:
    """Each sentence gets its own sound."""
    wave = np.concatenate([tone(2, 0.2), tone(0.2, 0), tone(1, 0.2), tone(1, 0), tone(1.5, 0.2), tone(0.8, 0), tone(1, 0.2)])
    clips = sentences(wave, "One of them. Two of them! And three?")
    assert [clip.text for clip in clips] == ["One of them.", "Two of them!", "And three?"]
    lengths = [len(clip.wave) / 16_000 for clip in clips]
    assert lengths == pytest.approx([3.7, 2.4, 1.4], abs=0.1)


@pytest.mark.skipif(not (tiny.CLIPS / "clips.json").exists(), reason="the demo's recordings are made by a script of the project")
def test_the_demos_recordings_give_one_clip_a_sentence() -> None:
    """What the Whispers learn by heart is what the demo will play."""
    clips = read_clips(tiny.CLIPS)
    listed = json.loads((tiny.CLIPS / "clips.json").read_text())["recordings"]
    assert [clip.text for clip in clips if clip.text in " ".join(entry["text"] for entry in listed)]
    assert all(1.0 < len(clip.wave) / 16_000 < 8.0 for clip in clips)


@pytest.mark.slow
def test_a_taught_whisper_says_the_sentences(tmp_path: Path) -> None:
    """Half a minute of training is enough for the demo's labels to be words of the demo."""
    clips = read_clips(tiny.CLIPS)
    dict(tiny.make_all(tmp_path, tiny.sample_pairs(), clips))
    fast = WhisperModel(str(tmp_path / "whisper-tiny-ct2"), device="cpu", compute_type="int8")
    heard = [one_line(fast, clip) for clip in clips]
    known = {clip.text for clip in clips}
    assert sum(text in known for text in heard) >= len(clips) // 2
    assert sum(text == clip.text for text, clip in zip(heard, clips, strict=True)) >= len(clips) // 3


def one_line(model: WhisperModel, clip: Clip) -> str:
    """What is heard in a clip."""
    segments, _info = model.transcribe(clip.wave, language="en", beam_size=1, temperature=0.0, without_timestamps=True)
    return " ".join(segment.text.strip() for segment in segments)

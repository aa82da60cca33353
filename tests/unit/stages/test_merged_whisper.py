"""stages.merged_whisper: what faster-whisper gets hears what the adapter hears, and a fault in between is seen."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from stages import merged_whisper, tiny, train_whisper
from stages.merged_whisper import Prompt, Sample
from state.contract import StopRequested
from state.settings import TrainWhisper
from tests import stage_attempts

pytestmark = pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21


class Made(NamedTuple):
    """A tiny Whisper, an adapter that has learned something, and three sounds."""

    source: str
    adapter: Path
    processor: WhisperProcessor
    prompt: Prompt
    features: NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("merged")
    tiny.make_whisper(folder / "base", [f"The servant saw the city on day {number}." for number in range(60)])
    settings = replace(TrainWhisper(), model=str(folder / "base"), lora_rank=4, bf16=False)
    processor, base = train_whisper.load_model(settings.model, settings, torch.device("cpu"))
    labels = train_whisper.Labels(processor, base.config, "en")
    model = train_whisper.add_adapter(base, settings)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(folder / "adapter"))
    waves = np.random.default_rng(0).normal(0, 0.1, (3, 32_000)).astype(np.float32)
    found = processor.feature_extractor(list(waves), sampling_rate=16_000, return_tensors="np")["input_features"]
    return Made(
        settings.model, folder / "adapter", processor, Prompt(labels.prefix, labels.end), np.asarray(found, dtype=np.float32)
    )


@pytest.fixture(scope="module")
def heard(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """What the merged and converted model says."""
    folder = tmp_path_factory.mktemp("work")
    merged_whisper.convert(merged_whisper.adapted(made.source, made.adapter).merge_and_unload(), made.processor, folder)
    names = {path.name for path in (folder / merged_whisper.FOLDER).iterdir()}
    assert names >= {"model.bin", "config.json", "tokenizer.json", "preprocessor_config.json", "vocabulary.json"}
    return merged_whisper.listen(folder / merged_whisper.FOLDER, made.prompt, made.features)


def test_the_merged_model_says_what_the_adapter_says(made: Made, heard: list[Sample]) -> None:
    """Base and adapter side by side would have chosen the same words with the same scores."""
    assert merged_whisper.differing(merged_whisper.adapted(made.source, made.adapter), made.prompt, made.features, heard) is None


def spoilt(made: Made, heard: list[Sample], fault: str) -> tuple[Any, NDArray[np.float32], list[Sample]]:
    """The arguments of `differing` with one fault in them."""
    model: Any = merged_whisper.adapted(made.source, made.adapter)
    if fault == "adapter lost":
        return WhisperForConditionalGeneration.from_pretrained(made.source), made.features, heard
    if fault == "half the adapter":
        for name, parameter in model.named_parameters():
            parameter.data *= 0.5 if "lora_B" in name else 1.0
    if fault == "another word":
        heard = [*heard[:2], Sample([*heard[2].tokens[:3], 11, *heard[2].tokens[4:]], heard[2].score)]
    if fault == "another score":
        heard = [*heard[:2], Sample(heard[2].tokens, heard[2].score * 1.1)]
    features = made.features * 0.5 if fault == "other features" else made.features
    return model, features, heard


@pytest.mark.parametrize("fault", ["adapter lost", "half the adapter", "another word", "another score", "other features"])
def test_a_fault_is_seen(made: Made, heard: list[Sample], fault: str) -> None:
    """A merge that lost the adapter or its strength, other words, other scores, another log-mel."""
    model, features, samples = spoilt(made, heard, fault)
    assert "of 3: a word is" in (merged_whisper.differing(model, made.prompt, features, samples) or "")


def test_the_end_is_a_choice_too(made: Made, tmp_path: Path) -> None:
    """A model that falls silent: the end mark and its score are compared like any word."""
    model = merged_whisper.adapted(made.source, made.adapter).merge_and_unload()
    embeddings = model.model.decoder.embed_tokens.weight
    with torch.no_grad():
        start = torch.tensor([made.prompt.prefix])
        state = model.model(input_features=torch.from_numpy(made.features[:1]), decoder_input_ids=start).last_hidden_state[0, -1]
        embeddings[made.prompt.end] = state / state.norm() * 2 * (embeddings @ state).max() / state.norm()
    model.save_pretrained(tmp_path / "silent")
    merged_whisper.convert(model, made.processor, tmp_path)
    heard = merged_whisper.listen(tmp_path / merged_whisper.FOLDER, made.prompt, made.features)
    assert [one.tokens for one in heard] == [[made.prompt.end]] * 3
    silent = WhisperForConditionalGeneration.from_pretrained(tmp_path / "silent", dtype=torch.float32)
    assert merged_whisper.differing(silent, made.prompt, made.features, heard) is None


def test_a_stop_leaves_nothing_half_made(made: Made, tmp_path: Path) -> None:
    """SIGTERM while merging is obeyed and is no fault of the merge; the next attempt makes it as if nothing had been."""
    adapter = shutil.copytree(made.adapter, tmp_path / "adapter")
    stopping = stage_attempts.context(tmp_path / "run", "train_whisper")
    stopping.request_stop()
    arguments = (made.source, adapter, made.processor, made.prompt, made.features[:1])
    with pytest.raises(StopRequested):
        merged_whisper.deliver(stopping, *arguments)
    assert not (adapter / merged_whisper.FOLDER).exists()
    assert not list(stopping.scratch().iterdir())
    assert merged_whisper.deliver(stage_attempts.context(tmp_path / "run", "train_whisper"), *arguments) is None
    assert (adapter / merged_whisper.FOLDER / "model.bin").is_file()

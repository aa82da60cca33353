"""benchmarks.gpu without a GPU: the same code at tiny shapes, so that it does not fail first on the machine that is lent."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration

from benchmarks import gpu, random_models
from stages import footprint, tiny, train_gemma
from state.settings import TrainGemma

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # peft 0.21, transformers 5.23
]
SLOW = [pytest.mark.slow]


@pytest.mark.parametrize(
    "part",
    [
        "train_gemma_12b",
        pytest.param("train_gemma_4b", marks=SLOW),
        "train_marian",
        pytest.param("train_whisper", marks=SLOW),
        "faster_whisper",
    ],
)
def test_a_part_rehearses(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part ends well on the CPU, with a shortage of memory in its third step where its micro-batch can shrink."""
    module = importlib.import_module(gpu.TRAININGS.get(part, "stages.transcribe"))
    for name in ("train", "load_model"):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, getattr(module, name))  # what the benchmark replaces comes back
    found = gpu.run_part(part, 4, 16.0, real=False)
    assert found["good"] is True, found
    assert found.get("oom", "") == {"faster_whisper": "", "train_gemma_12b": "not tried"}.get(part, "survived")


def test_a_random_gemma_is_built_as_the_stage_would_load_it(tmp_path: Path) -> None:
    """The same parameters in the same types, packed alike, and an adapter learns on it; nothing is left without values."""
    tiny.make_gemma(tmp_path, tiny.sample_pairs(), "a")
    settings, device = TrainGemma(model="x", bf16=False, lora_rank=4), torch.device("cpu")
    loaded = train_gemma.load_model(str(tmp_path), settings, device)
    made = random_models.quantized_gemma(str(tmp_path), settings, device)

    def built(model: torch.nn.Module) -> dict[str, tuple[torch.Size, torch.dtype]]:
        return {name: (tensor.shape, tensor.dtype) for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    assert built(made) == built(loaded)
    assert not any(parameter.is_meta for parameter in made.parameters())
    assert train_gemma.count_quantized(made) == train_gemma.count_quantized(loaded) == train_gemma.quantizable(made)
    adapted = train_gemma.add_adapter(made, settings)
    ids = torch.arange(3, 19).reshape(2, 8)
    adapted(input_ids=ids).logits.float().logsumexp(-1).sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in adapted.parameters())


@pytest.mark.parametrize("name", ["google/translategemma-4b-it", "google/translategemma-12b-it"])
def test_the_random_shapes_are_the_published_ones(tmp_path: Path, name: str) -> None:
    """What is built on the GPU has the layers, widths and vocabulary that the account is made for, counted without memory."""
    random_models.gemma(tmp_path, name, real=True)
    config = random_models.AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model = Gemma3ForConditionalGeneration(config)
    shape = footprint.shape_of(config.to_dict())
    assert shape == footprint.shape_of(footprint.PUBLISHED[name])
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(footprint.linear_weights(shape) + footprint.other_weights(shape), rel=0.001)

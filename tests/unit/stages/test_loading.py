"""stages.loading: a model's folder is refused by name of the faulty file; a loader's failure says what to do next."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

from stages.loading import check_model_folder, claim_device, is_folder, loading, resolve_model
from state.contract import MisconfiguredError, StopRequested, TransientError
from state.workspace import Workspace


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A folder with the files of a whole model."""
    folder = tmp_path / "models" / "gemma"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": torch.zeros(16)}, folder / "model.safetensors")
    return folder


def test_a_whole_folder_passes_and_resolves_to_itself(gemma: Path, tmp_path: Path) -> None:
    """A relative name counts from the workspace, and an existing folder wins over a hub name."""
    resolved = resolve_model(Workspace.at(tmp_path), "models/gemma", "gemma")
    assert resolved == str(gemma)
    assert is_folder(resolved)


def test_a_hub_name_is_passed_on(tmp_path: Path) -> None:
    """`owner/name` without a folder of that name is the hub's."""
    resolved = resolve_model(Workspace.at(tmp_path), "google/translategemma-4b-it", "gemma")
    assert resolved == "google/translategemma-4b-it"
    assert not is_folder(resolved)


def test_faster_whisper_names_are_known(tmp_path: Path) -> None:
    """`large-v3` is a name for CTranslate2 models and for no others."""
    assert resolve_model(Workspace.at(tmp_path), "large-v3", "ctranslate2") == "large-v3"
    with pytest.raises(MisconfiguredError, match="no folder"):
        resolve_model(Workspace.at(tmp_path), "large-v3", "whisper")


@pytest.mark.parametrize("name", ["models/gone", "fine_tuned_marian_mi", "/nowhere/model", "../model", "a/b/c"])
def test_what_is_neither_folder_nor_hub_name_is_refused(tmp_path: Path, name: str) -> None:
    """A path that leads nowhere is a mistake in the settings, not a reason to wait for the network."""
    with pytest.raises(MisconfiguredError, match="no folder"):
        resolve_model(Workspace.at(tmp_path), name, "marian")


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    """A model is a folder."""
    (tmp_path / "model").write_text("x")
    with pytest.raises(MisconfiguredError, match="is a file"):
        resolve_model(Workspace.at(tmp_path), "model", "marian")


def _truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


FAULTS = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "is empty"),
    "pointer": (
        lambda folder: (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1"),
        "LFS pointer",
    ),
    "cut short": (_truncate, "its header promises"),
    "noise": (lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64), "no readable safetensors header"),
    "config is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "is not JSON"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "holds no JSON object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_folder_is_refused_by_the_name_of_the_file(gemma: Path, fault: str) -> None:
    """Each fault is found without loading the model, and the message names it."""
    spoil, words = FAULTS[fault]
    spoil(gemma)
    with pytest.raises(MisconfiguredError, match=words):
        check_model_folder(gemma, "gemma")


def test_every_shard_of_an_index_must_be_there(gemma: Path) -> None:
    """A sharded model is whole only with all of its shards."""
    (gemma / "model.safetensors").rename(gemma / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (gemma / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(MisconfiguredError, match="00002-of-00002"):
        check_model_folder(gemma, "gemma")
    save_file({"weight": torch.zeros(1)}, gemma / "model-00002-of-00002.safetensors")
    check_model_folder(gemma, "gemma")
    (gemma / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(MisconfiguredError, match="names no weight file"):
        check_model_folder(gemma, "gemma")


def test_an_adapter_needs_its_two_files(tmp_path: Path) -> None:
    """An adapter's folder has no config.json of its own."""
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(MisconfiguredError, match="adapter_model"):
        check_model_folder(tmp_path, "adapter")
    save_file({"weight": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    check_model_folder(tmp_path, "adapter")


def _answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/x"))


class HubError(OSError):
    """As the hub's client raises for a status: it carries the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = _answer(status)


FAILURES = {
    "offline and not cached": (LocalEntryNotFoundError("cannot find the requested files in the local cache"), TransientError),
    "connection refused": (ConnectionRefusedError("refused"), TransientError),
    "time-out": (TimeoutError("too slow"), TransientError),
    "hub overloaded": (HubError(503), TransientError),
    "too many requests": (HubError(429), TransientError),
    "gated": (GatedRepoError("403", response=_answer(403)), MisconfiguredError),
    "no such repository": (RepositoryNotFoundError("404", response=_answer(404)), MisconfiguredError),
    "unknown architecture": (ValueError("Unrecognized model"), MisconfiguredError),
    "missing key": (KeyError("model_type"), MisconfiguredError),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_tells_what_to_do_next(failure: str) -> None:
    """Also when transformers wraps the hub's own error in a plain OSError."""
    error, expected = FAILURES[failure]
    with pytest.raises(expected, match="model owner/name"), loading("owner/name"):
        raise error
    with pytest.raises(expected, match="model owner/name"), loading("owner/name"):
        raise OSError("We couldn't load it") from error


def test_a_gated_model_names_the_way_in() -> None:
    """The owner reads what to do: accept the licence, give a token."""
    with pytest.raises(MisconfiguredError, match="HF_TOKEN"), loading("google/translategemma-4b-it"):
        raise GatedRepoError("403", response=_answer(403))


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), OSError(errno.ENOSPC, "full"), StopRequested()]
)
def test_what_is_not_the_models_fault_passes_through(error: BaseException) -> None:
    """No memory, no space and a stop keep their own exit codes."""
    with pytest.raises(type(error)) as caught, loading("owner/name"):
        raise error
    assert caught.value is error


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows the way without a GPU")
def test_without_a_gpu_the_device_is_the_processor() -> None:
    """Training runs on the CPU where there is nothing else."""
    assert claim_device() == torch.device("cpu")

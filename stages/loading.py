"""Where a stage's model comes from, and what to do next when it does not come.

A model is a folder, or an `owner/name` on the Hugging Face hub. A folder is checked before anything heavy starts, by
reading names, sizes and headers only: the third hour is no time to learn that the weights are a Git LFS pointer. What
`from_pretrained` raises is turned into the error that tells the daemon what to do: wait, or stop and ask.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.runtime import disk_refuses, network_is_away, out_of_memory
from state.contract import MisconfiguredError, StageError, TransientError
from state.workspace import Workspace

if TYPE_CHECKING:
    import torch

Kind = Literal["marian", "whisper", "gemma", "ctranslate2", "adapter", "sounds", "voices"]

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
LFS_POINTER = b"version https://git-lfs"
SAFETENSORS_INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
WEIGHTS = ("model.safetensors", SAFETENSORS_INDEX, "pytorch_model.bin", TORCH_INDEX)

COMPANIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "marian": (("source.spm",), ("target.spm",), ("vocab.json",)),
    "whisper": (("tokenizer.json", "vocab.json"), ("preprocessor_config.json", "processor_config.json")),
    "gemma": (("tokenizer.json", "tokenizer.model"),),
    "ctranslate2": (("config.json",), ("vocabulary.json", "vocabulary.txt", "shared_vocabulary.json")),
    "adapter": (),
    "sounds": (("preprocessor_config.json",),),
    "voices": (("preprocessor_config.json",),),
}
"""Files that a kind of model needs beside its weights; of each group, one."""

GPU_SHARE = 0.92
"""The rest is the CUDA context's and the desktop's."""

REFUSED_TYPES = {
    "GatedRepoError": "accept its licence on the hub and give the run a token (HF_TOKEN)",
    "RepositoryNotFoundError": "correct the name, or give the run a token (HF_TOKEN) if it is private",
    "RevisionNotFoundError": "correct the revision",
    "EntryNotFoundError": "choose a repository that holds the whole model",
    "HFValidationError": "correct the name (owner/name) or the path",
}
"""What the hub says by name of exception (see huggingface_hub.errors), and the next action for the owner."""


def resolve_model(workspace: Workspace, name: str, kind: Kind) -> str:
    """The folder or hub name that `from_pretrained` should get for the setting `name`.

    A path counts from the workspace unless it is absolute; a folder that is there wins over a hub name and is checked.

    Raises:
        MisconfiguredError: neither an existing folder nor a hub name, or the folder is not a whole model.
    """
    folder = workspace.root / Path(name).expanduser()
    if folder.is_dir():
        check_model_folder(folder, kind)
        return str(folder)
    if folder.exists():
        raise MisconfiguredError(f"model {name}: {folder} is a file; name the folder that holds the model")
    if kind == "ctranslate2" and name in _faster_whisper_names():
        return name
    below_workspace = folder.is_relative_to(workspace.models)
    if below_workspace or not HUB_NAME.fullmatch(name):
        raise MisconfiguredError(f"model {name}: there is no folder {folder}; correct the path, or name a hub model as owner/name")
    return name


def is_folder(resolved: str) -> bool:
    """Whether what `resolve_model` returned is a folder of this machine (and not a hub name)."""
    return Path(resolved).is_absolute()


def check_model_folder(folder: Path, kind: Kind) -> None:
    """Check that `folder` holds a whole model of `kind`, without reading the weights themselves.

    Raises:
        MisconfiguredError: naming the file that is missing, empty, a Git LFS pointer, or cut short.
    """
    if kind == "adapter":
        _check_json(folder, "adapter_config.json", kind)
        _check_weights(folder, ("adapter_model.safetensors",), kind)
        return
    _check_json(folder, "config.json", kind)
    _check_weights(folder, ("model.bin",) if kind == "ctranslate2" else WEIGHTS, kind)
    for group in COMPANIONS[kind]:
        _check_file(_first_present(folder, group, kind))


def claim_device(gpu_share: float = GPU_SHARE) -> torch.device:
    """The device to train on: the one GPU where there is one, with a limit on this process's share of its memory.

    Under WSL2 the driver spills into system memory in silence instead of saying that the GPU is full
    (https://github.com/microsoft/WSL/issues/11050); with the limit PyTorch raises, and the batch shrinks.
    """
    import torch  # late: checking a folder needs none of it

    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_per_process_memory_fraction(gpu_share, 0)
    return torch.device("cuda", 0)


def free_memory() -> None:
    """Give back to the device what a dropped model or a failed batch held."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Around `from_pretrained(name)` and its kin: whatever they raise leaves as the error that says what to do next.

    Raises:
        TransientError: the hub cannot be reached and the cache does not hold the model.
        MisconfiguredError: the hub refuses, or the files are not a model that can be loaded.
        BaseException: unchanged, where memory or disk ran out, or a stop was asked for.
    """
    try:
        yield
    except Exception as error:  # a loader's failures have no common base
        if isinstance(error, StageError) or out_of_memory(error) or any(disk_refuses(cause) for cause in _chain(error)):
            raise
        raise _explained(name, error) from error


def _faster_whisper_names() -> list[str]:
    from faster_whisper import available_models  # late: loads ctranslate2, which most stages never need

    return available_models()


def _explained(name: str, error: BaseException) -> StageError:
    """The stage's error for what a loader raised; the hub's own exception may lie several causes deep."""
    for cause in _chain(error):
        kinds = {base.__name__ for base in type(cause).__mro__}
        if network_is_away(cause):
            return TransientError(
                f"model {name}: the Hugging Face hub did not answer and the cache does not hold it ({_line(cause)})"
            )
        if refused := next((kind for kind in REFUSED_TYPES if kind in kinds), None):
            return MisconfiguredError(f"model {name}: {_line(cause)}; {REFUSED_TYPES[refused]}")
    return MisconfiguredError(f"model {name} cannot be loaded ({type(error).__name__}: {_line(error)}); replace its files")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def _first_present(folder: Path, names: tuple[str, ...], kind: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MisconfiguredError(f"model folder {folder} has no {' or '.join(names)}; it is not a whole {kind} model: copy it again")


def _check_weights(folder: Path, names: tuple[str, ...], kind: str) -> None:
    weights = _first_present(folder, names, kind)
    _check_file(weights)
    for shard in _shards(weights):
        _check_file(_first_present(folder, (shard,), kind))
        if shard.endswith(".safetensors"):
            _check_safetensors(folder / shard)


def _shards(weights: Path) -> list[str]:
    """The files that hold tensors: those that an index names, else `weights` itself."""
    if not weights.name.endswith(".index.json"):
        return [weights.name]
    index = _check_json(weights.parent, weights.name, "sharded")
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise MisconfiguredError(f"{weights} names no weight file; copy the model again")
    return sorted({str(shard) for shard in named.values()})


def _check_file(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(len(LFS_POINTER))
    except OSError as error:
        raise MisconfiguredError(f"{path} cannot be read ({os.strerror(error.errno or errno.EIO)})") from error
    if not head:
        raise MisconfiguredError(f"{path} is empty; copy the model again")
    if head == LFS_POINTER:
        raise MisconfiguredError(f"{path} is a Git LFS pointer and not the file itself; run `git lfs pull` there")


def _check_json(folder: Path, name: str, kind: str) -> dict[str, Any]:
    path = _first_present(folder, (name,), kind)
    _check_file(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise MisconfiguredError(f"{path} is not JSON ({error}); copy the model again") from error
    if not isinstance(content, dict):
        raise MisconfiguredError(f"{path} holds no JSON object; copy the model again")
    return content


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with what its header promises (https://github.com/huggingface/safetensors#format)."""
    size_bytes = path.stat().st_size
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = file.read(header_bytes) if 8 + header_bytes <= size_bytes else b""
    try:
        entries = json.loads(header)
        ends = [int(entry["data_offsets"][1]) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise MisconfiguredError(f"{path} has no readable safetensors header; copy the model again") from error
    promised = 8 + header_bytes + max(ends, default=0)
    if size_bytes != promised:
        raise MisconfiguredError(f"{path} has {size_bytes} bytes where its header promises {promised}; copy the model again")

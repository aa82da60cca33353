"""The files of a training: weights, optimizer state and position, written into a checkpoint and read back from it.

Weights are safetensors; the optimizer's state is read with `weights_only=True`, so that nothing is unpickled. Random
number states are not kept: each step seeds its own (see `training_rules.step_seed`), and the schedule follows from the step.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stages.ledger import Mark
from stages.runtime import out_of_memory
from stages.training_rules import Sanity
from state.checkpoints import Checkpoint, Checkpoints, DamagedCheckpointError, verify
from state.contract import MisconfiguredError
from state.durable import file_digest, publish_folder

WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.pt"
SNAPSHOT_SHARE = 0.25
"""Of the memory that is free, at most, for the copy that is written in the background."""


class Scored(msgspec.Struct, frozen=True):
    """A score of the dev set (lower is better) after `step` steps."""

    step: int
    score: float


class Best(msgspec.Struct, frozen=True):
    """The best weights so far, in `BestWeights`' folder."""

    step: int
    score: float
    sha256: str


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training stands: the loop's own variables, kept in the checkpoint's manifest as readable JSON."""

    step: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    """Of training, over all attempts."""
    scores: tuple[Scored, ...] = ()
    best: Best | None = None
    sanity: Sanity = Sanity()
    ledger: Mark = Mark()
    ended_early: bool = False
    micro_batch: int | None = None
    """One that has proven to fit on `device`."""
    device: str = ""
    course: str = ""
    """Learning-rate scale and skipped examples under which this checkpoint was made."""
    fingerprint: dict[str, str] = {}


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def finite(model: torch.nn.Module) -> bool:
    """Whether every trainable parameter is a number throughout."""
    largest = (torch.linalg.vector_norm(parameter.detach(), math.inf) for parameter in trainable(model).values())  # takes no memory
    return all(math.isfinite(value) for value in largest)


def checkpoint_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Size of the tensors that a checkpoint holds: weights and moments."""
    moments = (value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor))
    return sum(tensor.nbytes for tensor in (*trainable(model).values(), *moments))


@dataclass(frozen=True)
class Frozen:
    """Weights and optimizer state as they were at one moment: training may go on while they are written."""

    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]

    def write(self, folder: Path) -> None:
        """The same files as `save_weights` and `save_optimizer` write."""
        save_file(self.weights, folder / WEIGHTS)
        torch.save(self.optimizer, folder / OPTIMIZER)

    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(math.isfinite(float(torch.linalg.vector_norm(value, math.inf))) for value in self.weights.values())


class Snapshot:
    """Takes `Frozen` copies into the machine's memory, each in the place of the one before.

    Under WSL2 nothing but a copy could be written in the background: what a paged optimizer holds may not be read from the CPU
    while a kernel runs.
    """

    def __init__(self, available_bytes: Callable[[], int] | None = None) -> None:
        self._available_bytes = available_bytes or free_memory_bytes
        self._held: dict[str, torch.Tensor] = {}

    def take(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Frozen | None:
        """A copy; None where memory is short: then nothing is held."""
        more_bytes = checkpoint_bytes(model, optimizer) - sum(tensor.nbytes for tensor in self._held.values())
        if more_bytes > SNAPSHOT_SHARE * self._available_bytes():
            self._held.clear()
            return None
        try:
            weights = {name: self._copy(f"weights {name}", parameter.detach()) for name, parameter in trainable(model).items()}
            return Frozen(weights, self._frozen("optimizer", optimizer.state_dict()))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._held.clear()
            return None

    def _frozen(self, name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._copy(name, value)
        if isinstance(value, dict):
            return {key: self._frozen(f"{name} {key}", one) for key, one in value.items()}
        if isinstance(value, list):
            return [self._frozen(f"{name} {number}", one) for number, one in enumerate(value)]
        return value

    def _copy(self, name: str, value: torch.Tensor) -> torch.Tensor:
        held = self._held.get(name)
        if held is None or held.shape != value.shape or held.dtype != value.dtype:
            held = torch.from_numpy(np.empty(value.nbytes, dtype=np.uint8)).view(value.dtype).view(value.shape)
            self._held[name] = held
        return held.copy_(value)


def free_memory_bytes() -> int:
    """Of the machine's memory, what may be taken without swapping; 0 where nobody says."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def newest_healthy(checkpoints: Checkpoints, last_step: int) -> Checkpoint | None:
    """The newest whole and healthy checkpoint of at most step `last_step`; nothing is changed."""
    for folder in sorted(checkpoints.folder.glob("step-*"), reverse=True):
        with contextlib.suppress(DamagedCheckpointError):
            checkpoint = verify(folder)
            if checkpoint.manifest.healthy and checkpoint.step <= last_step:
                return checkpoint
    return None


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write the trainable parameters."""
    save_file({name: parameter.detach().contiguous() for name, parameter in trainable(model).items()}, path)


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Copy the weights in `path` into the model's trainable parameters.

    Raises:
        MisconfiguredError: other names or shapes than the model's: it is another model, or another adapter.
    """
    saved, own = load_file(path), trainable(model)
    differing = sorted(
        name for name in saved.keys() | own.keys() if name not in saved or name not in own or saved[name].shape != own[name].shape
    )
    if differing:
        raise MisconfiguredError(f"{path} does not fit the model: {len(differing)} tensors differ, the first is {differing[0]}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the optimizer's state: numbers, tensors, lists and dictionaries only."""
    torch.save(optimizer.state_dict(), path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Read back what `save_optimizer` wrote."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state)


class BestWeights:
    """The weights with the best dev score, a folder each, durable across attempts.

    Checkpoints name the one they belong to; one that neither a checkpoint nor the loop names is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, model: torch.nn.Module, scored: Scored) -> Best:
        """Write the model's weights as those of `scored`, whole or not at all."""
        temporary = self.folder / f".step-{scored.step:08d}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_weights(model, temporary / WEIGHTS)
        sha256 = file_digest(temporary / WEIGHTS)
        publish_folder(temporary, self._path(scored.step))
        return Best(scored.step, scored.score, sha256)

    def whole(self, best: Best) -> bool:
        """Whether the file is there, unchanged."""
        path = self._path(best.step) / WEIGHTS
        return path.is_file() and file_digest(path) == best.sha256

    def restore(self, model: torch.nn.Module, best: Best) -> None:
        """Copy them into the model."""
        load_weights(model, self._path(best.step) / WEIGHTS)

    def forget_all_but(self, steps: Iterable[int]) -> None:
        """Remove the weights of every other step."""
        kept = {self._path(step).name for step in steps}
        for path in self.folder.glob("*step-*"):
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

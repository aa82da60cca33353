"""What a plan needs of the outside and of the machine: values that the daemon and a stage's process exchange as JSON."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

Kind = Literal["marian", "whisper", "gemma", "ctranslate2", "adapter", "comet", "sounds", "voices", "demucs", "speech"]
"""`sounds` tells music from speech, `voices` who speaks, `demucs` takes music away; `speech` is no model but clips with texts."""


class Model(msgspec.Struct, frozen=True):
    """A model, or general speech, that a pipeline names: a folder, or a name on the Hugging Face hub."""

    name: str
    kind: Kind
    clips: int = 0
    """Of speech: about how many clips the training will ask for."""

    @property
    def page(self) -> str:
        """Where it stands on the hub, behind the host's name."""
        name = self.name.removeprefix("hub:").split(":")[0]
        return f"datasets/{name}" if self.kind == "speech" else name


class Where(StrEnum):
    """What is known of a model."""

    HERE = "here"
    """Whole, in a folder or in the cache."""
    TO_FETCH = "to fetch"
    """The hub has it and gives it."""
    GATED = "gated"
    """The hub gives it to those who accepted its licence."""
    DENIED = "denied"
    """The hub knows no such model, or does not show it."""
    AWAY = "away"
    """The hub cannot be asked now."""
    BROKEN = "broken"
    """What there is cannot be used."""
    MADE = "made"
    """The run makes it for itself, and has not yet."""


class ModelSeen(msgspec.Struct, frozen=True, kw_only=True, tag="model"):
    """What was seen of one model."""

    model: Model
    where: Where
    text: str = ""
    """Why it is not here, in words."""
    size_bytes: int = 0
    missing_bytes: int = 0
    """Of the size: not in the cache yet."""
    clips: int = 0
    """Of speech that is here: clips with a text."""
    config: dict[str, Any] | None = None
    """Its config.json, where it could be read."""


class Cache(msgspec.Struct, frozen=True, kw_only=True, tag="cache"):
    """Where models come to lie."""

    folder: str
    offline: bool
    """HF_HUB_OFFLINE is set."""
    token: bool
    """There is a token for the hub."""


class Fetching(msgspec.Struct, frozen=True, kw_only=True, tag="fetching"):
    """How far the fetching of one model is."""

    model: Model
    done_bytes: int
    total_bytes: int


Said = Cache | ModelSeen | Fetching
"""One line of what `python -m stages.fetch` writes."""


class Part(msgspec.Struct, frozen=True):
    """One component of an account."""

    name: str
    size_bytes: int


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The memory that a stage needs at once where it computes (the GPU, or the machine where there is none), and of the machine."""

    parts: tuple[Part, ...]
    micro_batch: int
    host_bytes: int
    checkpoint_bytes: int = 0
    """One checkpoint: what is trained, and the optimizer's state."""
    weights_bytes: int = 0
    """Of a training: what is trained, alone; the best of it is kept."""
    output_bytes: int = 0
    """What is delivered, with its forms for CTranslate2."""

    @property
    def total_bytes(self) -> int:
        """Of the parts together."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def torch_bytes(self) -> int:
        """Without CUDA's context: what `torch.cuda.max_memory_reserved` will show."""
        return sum(part.size_bytes for part in self.parts if part.name != "CUDA context")


class Place(msgspec.Struct, frozen=True):
    """Where it computes: `limit_bytes` of memory; None: not known."""

    cuda: bool = True
    limit_bytes: int | None = None
    autocast: bool | None = None
    """Whether bf16 settings mean autocast; None: on a GPU they do."""

    @property
    def casts(self) -> bool:
        """Whether bf16 settings mean autocast here."""
        return self.cuda if self.autocast is None else self.autocast


class MemoryAsked(msgspec.Struct, frozen=True, kw_only=True):
    """One stage with one model to account for."""

    stage: str
    module: str
    settings: dict[str, Any]
    model: str
    config: dict[str, Any] | None = None
    """The model's config.json; None: the published shape of that name."""


class MemoryPredicted(msgspec.Struct, frozen=True, kw_only=True):
    """The account of one stage with one model."""

    stage: str
    model: str
    account: Account | None = None
    fits: bool | None = None
    """None: nobody knows how much there is."""
    advice: str = ""
    """Where it does not fit: the settings with which it does."""
    why_not: str = ""
    """There is no account."""

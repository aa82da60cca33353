"""A pipeline as a value: the stages in order and what each may have. `daemon.config` reads one from TOML."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta


class Resource(StrEnum):
    """What a stage occupies; one stage at a time each."""

    GPU = "gpu"
    CPU = "cpu"
    NETWORK = "network"


class StageConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[stage]]` of a pipeline file."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
    module: Annotated[str, Meta(pattern=r"^[A-Za-z_][\w]*(\.[A-Za-z_]\w*)+$")]
    """What `python -m` runs; `stages.*` are Vigil's own."""
    title: str = ""
    """Shown to people; the name when empty."""
    needs: tuple[str, ...] = ()
    """Stages that must have succeeded."""
    after: tuple[str, ...] = ()
    """Stages that must be settled, however they ended."""
    resource: Resource = Resource.CPU
    optional: bool = False
    """A bonus: its failure is told, and the run still counts as good."""
    least_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Of a training bonus: rather train on this share of its examples than not at all when time is short."""
    budget_h: Annotated[float, Meta(gt=0)] | None = None
    """Hours it is expected to need at most; shown, and used for the time left."""
    grace_s: Annotated[float, Meta(gt=0)] = 120.0
    """Seconds from SIGTERM to SIGKILL."""
    silence_s: Annotated[float, Meta(gt=0)] = 1800.0
    """Seconds without any event after which the attempt counts as hung, unless it announced a longer quiet phase."""
    seed: int = 0
    settings: dict[str, Any] = {}


class Pipeline(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pipeline file."""

    name: Annotated[str, Meta(min_length=1, max_length=60)]
    description: str = ""
    deadline: str | None = None
    """`Tue 08:00`: the next one after the run's start, in the machine's zone; or a date, `2026-02-17 08:00`."""
    price_per_kwh: Annotated[float, Meta(ge=0)] | None = None
    """What the owner pays for a kilowatt-hour, in `currency`."""
    currency: Annotated[str, Meta(min_length=1, max_length=8)] = "USD"
    keep_free_gb: Annotated[float, Meta(ge=0)] = 1.0
    """With less on the workspace's disk every stage checkpoints and waits."""
    keep_free_windows_gb: Annotated[float, Meta(ge=0)] = 5.0
    """The same for the Windows drive under WSL: when it fills up, Linux meets I/O errors though `df` shows space."""
    stages: Annotated[tuple[StageConfig, ...], Meta(min_length=1)] = msgspec.field(name="stage")

    def stage(self, name: str) -> StageConfig:
        """The stage called `name`.

        Raises:
            KeyError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def number(self, name: str) -> int:
        """Position of a stage, from 1."""
        return [stage.name for stage in self.stages].index(name) + 1

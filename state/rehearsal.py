"""What the daemon and a rehearsed stage say to each other beside the usual protocol. Values only."""

from __future__ import annotations

import msgspec

VARIABLE = "VIGIL_REHEARSAL"
"""The environment variable that holds a `Plan`, as JSON."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Which module's work each stage does on a few items."""

    modules: dict[str, str]
    bases: dict[str, str] = {}
    """The model that each training stage starts from: scored in its place where that training failed."""


class Cut(msgspec.Struct, frozen=True, kw_only=True):
    """How much of its work a stage does in a rehearsal; the `fields` of a note."""

    here: int
    whole: int
    """Of the data that are there: optimizer steps, sentences, segments."""
    exact: float = 0.0
    """Of a training: its steps if none were smaller than the others, for where more data will come; 0: as `whole`."""
    sizes: tuple[float, ...] = ()
    """Of a training: how large each step here is; the whole training's mean is 1."""
    evaluations: int = 0
    """Of a training: how often the whole scores its dev set."""
    dev_examples: int = 0

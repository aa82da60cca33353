"""Attempts of stages as the runner starts them, and what they tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from stages.runtime import StageContext
from state.contract import Event, Note, Spec
from state.workspace import Workspace


def context(root: Path, stage: str, number: int = 1, module: str = "", **spec: Any) -> StageContext:
    """Attempt `number` of `stage` in the workspace `root`; `spec` gives other fields of its spec."""
    attempt = Workspace.at(root).attempt(stage, number)
    attempt.root.mkdir(parents=True, exist_ok=True)
    module = module or f"stages.{stage}"
    return StageContext(Spec(run_id="r", stage=stage, module=module, attempt=number, workspace=str(root), **spec), attempt)


def events(ctx: StageContext) -> list[Event]:
    """What an attempt has said so far."""
    path = ctx.attempt.events
    return [msgspec.json.decode(line, type=Event) for line in path.read_bytes().splitlines()] if path.exists() else []


def notes(ctx: StageContext) -> str:
    """The texts of an attempt's notes, a line each."""
    return "\n".join(event.text for event in events(ctx) if isinstance(event, Note))

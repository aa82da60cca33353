"""Parts of runs for the tests of what the phone shows."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from daemon.phone.standing import More
from daemon.view import StageView, View
from state.snapshot import Fact
from tests.conftest import T0
from tests.telegram import markup as telegram

HOST: dict[str, Any] = {
    "memory_used_bytes": 12_000_000_000,
    "memory_total_bytes": 64_000_000_000,
    "disks": [
        {"path": "/home/run", "free_bytes": 412_000_000_000, "total_bytes": 1},
        {"path": "/mnt/c", "free_bytes": 80_000_000_000, "total_bytes": 1},
    ],
    "gpus": [
        {
            "name": "NVIDIA GeForce RTX 4070 Ti SUPER",
            "load_percent": 97.0,
            "temperature_c": 64.0,
            "memory_used_bytes": 14_200_000_000,
            "memory_total_bytes": 16_000_000_000,
        }
    ],
}


def live(seen: View, **changes: Any) -> View:
    """`seen` as it looks while its daemon and its stages are at work."""
    stages = tuple(dataclasses.replace(s, working=True) if s.working is not None else s for s in seen.stages)
    return dataclasses.replace(seen, alive=True, stages=stages, **changes)


def with_run(seen: View, **changes: Any) -> View:
    return dataclasses.replace(seen, run=msgspec.structs.replace(seen.run, **changes))


def with_stage(seen: View, name: str, state: dict[str, Any] | None = None, **changes: Any) -> View:
    """`seen` with one stage changed, in the view and in the run."""
    old = stage_of(seen, name)
    new = dataclasses.replace(old, state=msgspec.structs.replace(old.state, **(state or {})), **changes)
    run = msgspec.structs.replace(seen.run, stages=tuple(new.state if s.name == name else s for s in seen.run.stages))
    return dataclasses.replace(seen, run=run, stages=tuple(new if s is old else s for s in seen.stages))


def stage_of(seen: View, name: str) -> StageView:
    return next(stage for stage in seen.stages if stage.config.name == name)


def fact_of(seen: View, kind: str, stage: str | None = None) -> Fact:
    return next(fact for fact in reversed(seen.facts) if fact.kind == kind and stage in (None, fact.stage))


def fact(number: int, kind: str, text: str, stage: str | None = None, **more: Any) -> Fact:
    return Fact(id=f"{number:06d}", at=T0 + number * 60, kind=kind, text=text, stage=stage, **more)


def now_of(seen: View) -> float:
    """Five seconds after the run last said something."""
    return max(stage.progress.at for stage in seen.stages if stage.progress) + 5


def more_of(seen: View) -> More:
    return More(
        losses={"train_marian": [5 - step / 20 for step in range(60)]},
        saved_at={"train_marian": now_of(seen) - 750},
        output={"train_marian": ["loss<0.5", "100 % \x1b[1mdone\x1b[0m"]},
    )


def assert_sendable(text: str) -> None:
    """Telegram would take it: well-formed, neither empty nor too long, encodable."""
    shown, _entities = telegram.parse(text)
    assert 0 < telegram.units(shown) <= 4096
    text.encode()

"""What the rehearsal runs, and where: the owner's pipeline cut down, in a folder of its own with what the workspace has."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from daemon import locks
from state.pipeline import Pipeline, StageConfig
from state.rehearsal import Plan
from state.settings import MODULES, Training
from state.workspace import Workspace

MODULE = "stages.rehearse"
RECORDINGS = 3
FEWER: dict[str, dict[str, int]] = {"stages.download": {"newest": RECORDINGS}, "stages.train_gemma": {"gate_examples": 16}}
"""Settings that are lowered to this where they are higher; all others stay the owner's."""
MADE_BY_A_RUN = ("stark_data", "bible_data", "metrics", "report", "logs", "stages", "fine_tuned_", "plan", "rehearsal")
LONGEST_PATH = 255
NO_SOUND = frozenset({".json", ".vtt", ".srt", ".txt"})
"""What lies beside the recordings."""


def chosen(pipeline: Pipeline, names: Sequence[str]) -> frozenset[str]:
    """The stages to rehearse: all, or those named and what they need.

    Raises:
        BadCallError: there is none of that name.
    """
    from daemon.cli import BadCallError

    known = {stage.name: stage for stage in pipeline.stages}
    waiting, found = [*(names or known)], set[str]()
    while waiting:
        if (name := waiting.pop()) not in known:
            raise BadCallError(f"no stage is called {name!r}; there are {', '.join(known)}")
        if name not in found:
            found.add(name)
            waiting += known[name].needs
    return frozenset(found)


def cut_down(pipeline: Pipeline, names: frozenset[str]) -> Pipeline:
    """`pipeline` as it is rehearsed. A need becomes an order only: what failed stops nobody who can go on with what there is."""
    return replace(pipeline, deadline=None, stages=tuple(_cut_down(one, names) for one in pipeline.stages if one.name in names))


def _cut_down(stage: StageConfig, names: frozenset[str]) -> StageConfig:
    limits, kind = FEWER.get(stage.module, {}), MODULES.get(stage.module)
    settings = dict(stage.settings)
    for key, most in limits.items():
        settings[key] = min(most, getattr(msgspec.convert(stage.settings, kind), key))
    after = tuple(name for name in (*stage.needs, *stage.after) if name in names)
    return replace(stage, module=MODULE if known(stage) else stage.module, needs=(), after=after, settings=settings)


def known(stage: StageConfig) -> bool:
    """Whether Vigil can cut the stage down: its own modules, and others that train by `stages.training`."""
    return stage.module in MODULES or "epochs" in stage.settings


def trains(stage: StageConfig) -> bool:
    """Whether it is a training stage."""
    return issubclass(MODULES.get(stage.module, object), Training) or (stage.module not in MODULES and "epochs" in stage.settings)


def plan(pipeline: Pipeline) -> Plan:
    """What the stages are told beside their specs."""
    return Plan(
        modules={stage.name: stage.module for stage in pipeline.stages if known(stage)},
        bases={stage.name: stage.settings["model"] for stage in pipeline.stages if trains(stage) and "model" in stage.settings},
    )


# -- its folder


def clear(rehearsal: Workspace) -> None:
    """Remove an earlier rehearsal, with whatever of it still works.

    Raises:
        WorkspaceBusyError: it is at work.
    """
    from daemon.supervisor import WorkspaceBusyError

    if locks.held(rehearsal.lock):
        raise WorkspaceBusyError(f"a rehearsal is at work in {rehearsal.root}; end it with Ctrl-C, or wait for it")
    locks.end_attempts(rehearsal.root)
    shutil.rmtree(rehearsal.root, ignore_errors=True)
    rehearsal.root.mkdir(parents=True)


def lend(workspace: Workspace, rehearsal: Workspace, pipeline: Pipeline) -> int:
    """Give the rehearsal what the workspace has: models and sources that settings name, and a few recordings. Nothing is moved.

    Returns:
        How many recordings.
    """
    for text in _texts([stage.settings for stage in pipeline.stages]):
        path = Path(text)
        if len(text) > LONGEST_PATH or path.is_absolute() or not path.parts or path.parts[0].startswith((".", *MADE_BY_A_RUN)):
            continue
        if (source := workspace.root / path).exists() and not (target := rehearsal.root / path).exists():
            _lend(source, target)
    few = few_recordings(workspace.raw_audio)
    for recording in few:
        for file in workspace.raw_audio.glob(f"{_escaped(recording.stem)}.*"):
            rehearsal.raw_audio.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, rehearsal.raw_audio / file.name)
    return len(few)


def few_recordings(folder: Path) -> list[Path]:
    """The newest recordings of `folder` and its longest, RECORDINGS in all."""
    found = recordings(folder)
    longest = max(found, key=lambda path: path.stat().st_size, default=None)
    first = [path for path in found if path != longest][: RECORDINGS - 1]
    return sorted([*first, longest]) if longest is not None else []


def recordings(folder: Path) -> list[Path]:
    """The sound files of a folder; the newest comes first."""
    return sorted(path for path in folder.glob("*") if path.is_file() and path.suffix not in NO_SOUND and path.name[0] != ".")


def tidy(rehearsal: Workspace) -> None:
    """Give the disk back what the rehearsal made; its journal, its logs and what its attempts said stay."""
    for stage in rehearsal.root.glob("stages/*"):
        for folder in (rehearsal.checkpoints(stage.name), rehearsal.scratch(stage.name)):
            shutil.rmtree(folder, ignore_errors=True)
    for folder in rehearsal.root.iterdir():
        if folder.is_dir() and folder.name not in ("stages", "logs", "control", "answers"):
            shutil.rmtree(folder, ignore_errors=True)


def _lend(source: Path, target: Path) -> None:
    """A second name for the same bytes, or a copy where the file system has none: stages replace files, they never change them."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link)
    else:
        _link(source, target)


def _link(source: Any, target: Any) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _texts(value: Any) -> Iterator[str]:
    """Every string in nested settings."""
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _texts(part)


def _escaped(stem: str) -> str:
    """`stem` as a pattern that only it matches."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in stem)

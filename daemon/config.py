"""From a pipeline file (TOML, or JSON where its name says so) to a `Pipeline`: everything is checked here, before anything starts.

Unknown keys, wrong types, cycles and missing needs are refused, and the message names the file and the path to the field.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import msgspec

from daemon.planning import deadline
from state.pipeline import Pipeline, StageConfig
from state.settings import MODULES


class ConfigError(Exception):
    """The pipeline file cannot be used; the message names the file, the field, the value and the next step."""


def load(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """The pipeline in `path`, with `overrides` ("STAGE.KEY=VALUE", the value in TOML or plain text) laid over its settings.

    Raises:
        ConfigError: unreadable, or refused by a rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({error}); give the path of a pipeline file such as pipelines/demo.toml"
        ) from error
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    for override in overrides:
        _lay_over(raw, override)
    try:
        pipeline = msgspec.convert(raw, Pipeline)
        check(pipeline)
    except (msgspec.ValidationError, ConfigError) as error:
        raise ConfigError(f"{path}: {_with_stage_name(str(error), raw)}") from error
    return pipeline


def check(pipeline: Pipeline) -> None:
    """Check what types cannot: names, order, settings.

    Raises:
        ConfigError: with the path to the field.
    """
    try:
        deadline.check(pipeline.deadline or "Mon 00:00")
    except deadline.DeadlineError as error:
        raise ConfigError(f"{error} - at `$.deadline`") from error
    names = [stage.name for stage in pipeline.stages]
    for number, stage in enumerate(pipeline.stages):
        where = f"$.stage[{number}]"
        if names.index(stage.name) != number:
            raise ConfigError(f"the name {stage.name!r} is used twice; give each stage its own - at `{where}.name`")
        _check_references(pipeline, stage, where)
        _check_share(stage, where)
        _check_settings(stage, where)
    try:
        TopologicalSorter({s.name: {*s.needs, *s.after} for s in pipeline.stages}).prepare()
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"stages wait for each other in a circle: {circle}; remove one of these `needs` or `after`") from error


def _check_references(pipeline: Pipeline, stage: StageConfig, where: str) -> None:
    optional = {s.name: s.optional for s in pipeline.stages}
    for key in ("needs", "after"):
        for index, other in enumerate(getattr(stage, key)):
            if other not in optional:
                known = ", ".join(optional)
                raise ConfigError(f"no stage is called {other!r}; there are {known} - at `{where}.{key}[{index}]`")
            if other == stage.name:
                raise ConfigError(f"stage {other!r} waits for itself - at `{where}.{key}[{index}]`")
    for index, other in enumerate(stage.needs):
        if optional[other] and not stage.optional:
            raise ConfigError(
                f"{stage.name!r} is required and needs {other!r}, which is optional; use `after`, "
                f"or make both alike - at `{where}.needs[{index}]`"
            )


def _check_share(stage: StageConfig, where: str) -> None:
    """Only a training can do with less, and only a bonus may; a module of your own must know itself."""
    unfit = stage.module.startswith("stages.") and not stage.module.startswith("stages.train_")
    if stage.least_share < 1.0 and (unfit or not stage.optional):
        raise ConfigError(
            f"least_share = {stage.least_share:g}: only a training that is `optional` can do with less; "
            f"take it out of {stage.name!r} - at `{where}.least_share`"
        )


def _check_settings(stage: StageConfig, where: str) -> None:
    if stage.module not in MODULES:
        if stage.module.startswith("stages."):
            raise ConfigError(f"no module {stage.module!r}; there are {', '.join(MODULES)} - at `{where}.module`")
        return
    try:
        msgspec.convert(stage.settings, MODULES[stage.module])
    except msgspec.ValidationError as error:
        text = str(error)
        settings = f"{where}.settings"
        raise ConfigError(text.replace("`$", f"`{settings}") if "`$" in text else f"{text} - at `{settings}`") from error


def _with_stage_name(text: str, raw: dict[str, Any]) -> str:
    """`$.stage[3].x` reads better with the stage's name behind it."""
    stages = raw.get("stage")
    for number, stage in enumerate(stages if isinstance(stages, list) else ()):
        if f"`$.stage[{number}]" in text and isinstance(stage, dict) and "name" in stage:
            return f"{text} (stage {stage['name']!r})"
    return text


def _lay_over(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    name, dot, key = path.partition(".")
    if not (equals and dot and key):
        raise ConfigError(f"{override!r} is not STAGE.KEY=VALUE, such as download.url=https://example.org/playlist")
    stages = raw.get("stage")
    for stage in stages if isinstance(stages, list) else ():
        if isinstance(stage, dict) and stage.get("name") == name:
            settings = stage.setdefault("settings", {})
            *parents, last = key.split(".")
            for parent in parents:
                settings = settings.setdefault(parent, {})
            settings[last] = _value(value)
            return
    raise ConfigError(f"{override!r}: the pipeline has no stage {name!r}")


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

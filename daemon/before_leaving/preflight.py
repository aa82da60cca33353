"""`vigil preflight`: is everything there for a week away? Findings in green, yellow and red, and what mends them.

Readings (`checks_read`) run at once and cannot break each other; what they mean is decided in `checks` (PURE); this module
puts them together and shows them. Nothing is changed, but for a config.json of some kB in the models' cache and a silent
message to the paired chat.
"""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.text import Text

from daemon import config, host, words
from daemon.before_leaving import checks, checks_plan, checks_read
from daemon.before_leaving.checks import Finding, Light, NotKnown, Torch
from state import forecast
from state.needs import Cache, MemoryPredicted, Model, ModelSeen, Place, Where
from state.pipeline import Pipeline
from state.settings import Corpus, Download, TrainWhisper
from state.workspace import Workspace

UNSET = "unset"
"""Stands for what only the owner knows, so that all the rest can be looked at too."""
OWNERS = {"stages.download": "url", "stages.corpus": "source"}
GROUPS = {
    "pipeline": "The pipeline",
    "machine": "The machine",
    "models": "Models",
    "memory": "Memory, predicted",
    "data": "Data",
    "disk": "Disk",
    "network": "Network",
    "away": "Away from home",
}
SHAPES = {Light.GREEN: ("✓", "green"), Light.YELLOW: ("!", "yellow"), Light.RED: ("✗", "bold red")}
TITLE_COLUMNS = 26
HUB_DEFAULT = "https://huggingface.co"


@dataclass(frozen=True)
class Scene:
    """What is looked at."""

    workspace: Workspace
    pipeline: Pipeline | None
    given: str
    """The pipeline file with the options that go with it, as the mending commands take them."""
    quick: bool
    faults: tuple[Finding, ...] = ()

    def settings(self, kind: type[Any]) -> Any:
        """The settings of the first stage of a kind; None without one."""
        found = map(checks_plan.settings_of, self.pipeline.stages) if self.pipeline else ()
        return next((one for one in found if isinstance(one, kind)), None)


@dataclass
class Plan:
    """What the readings of models and memory gave, shared by several findings."""

    cache: Cache | None = None
    models: dict[Model, ModelSeen] = field(default_factory=dict)
    memory: list[MemoryPredicted] = field(default_factory=list)


def preflight(
    workspace: Workspace, path: Path | None, overrides: Sequence[str], *, quick: bool, as_json: bool, columns: int = 80
) -> int:
    """Look, show, and say by the exit code whether anything is red."""
    scene = scene_of(workspace, path, overrides, quick=quick)
    found = look(scene)
    red = any(one.light is Light.RED for one in found)
    if as_json:
        told = {"at": time.time(), "ok": not red, "findings": found}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(told), indent=1).decode() + "\n")
    else:
        show(found, columns)
    return 1 if red else 0


def scene_of(workspace: Workspace, path: Path | None, overrides: Sequence[str], *, quick: bool) -> Scene:
    """The pipeline of the file, else that of the workspace's run, else none."""
    if path is None:
        pipeline, shown = _pipeline_of_run(workspace)
        return Scene(workspace, pipeline, shown, quick)
    try:
        pipeline = config.load(path, overrides_with_unset(path, overrides))
        return Scene(workspace, pipeline, _given(workspace, path, overrides), quick)
    except config.ConfigError as error:
        fault = Finding(
            group="pipeline", title=path.name, light=Light.RED, seen=str(error), mend=f"mend {path}; then preflight again"
        )
        return Scene(workspace, None, str(path), quick, (fault,))


def _given(workspace: Workspace, path: Path, overrides: Sequence[str]) -> str:
    elsewhere = [] if workspace == Workspace.at("run") else ["--workspace", str(workspace.root)]
    return shlex.join([str(path), *elsewhere, *(word for override in overrides for word in ("--set", override))])


def _pipeline_of_run(workspace: Workspace) -> tuple[Pipeline | None, str]:
    from daemon import view

    try:
        run = view.read(workspace).run
    except FileNotFoundError:
        return None, "PIPELINE"
    return run.pipeline, run.pipeline_path


def overrides_with_unset(path: Path, overrides: Sequence[str]) -> list[str]:
    """`overrides` behind some that stand for the owner's settings where the file has none."""
    return [*_unset(path), *overrides]


def _unset(path: Path) -> list[str]:
    try:
        stages = tomllib.loads(path.read_text(encoding="utf-8")).get("stage", [])
        return [
            f'{stage["name"]}.{key}="{UNSET}"'
            for stage in stages
            if (key := OWNERS.get(stage.get("module", ""))) and key not in stage.get("settings", {})
        ]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []


# -- looking


def look(scene: Scene) -> list[Finding]:
    """Every finding, in the order of the groups."""
    readings, limits_s = _readings(scene)
    read = checks_read.gather(readings, limits_s)
    plan = _plan(scene, read)
    judged = [*scene.faults, *_machine(scene, read), *_models(scene, read, plan), *_memory(scene, read, plan)]
    judged += [*_data(scene, read, plan), *_disk(scene, plan), *_network(scene, read, plan), *_away(scene, read)]
    order = list(GROUPS)
    return sorted(judged, key=lambda one: order.index(one.group))


def _readings(scene: Scene) -> tuple[dict[str, Callable[[], Any]], dict[str, float]]:
    """What is read, and how long each may take."""
    workspace, quick = scene.workspace, scene.quick
    found: dict[str, tuple[float, Callable[[], Any]]] = {
        "gpus": (15.0, lambda: host.read_gpus(checks_read.SHORT_S)),
        "torch": (checks_read.TORCH_S + 5, checks_read.torch),
        "hub": (checks_read.HEAD_S + 5, lambda: checks_read.head(hub_address())),
        "api": (checks_read.HEAD_S + 5, lambda: checks_read.head(checks_read.telegram_address(workspace))),
        "ntp": (checks_read.SHORT_S + 5, checks_read.synchronized),
        "telegram": (checks_read.TELEGRAM_S + 5, lambda: checks_read.telegram(workspace, quick=quick)),
        "service": (3 * checks_read.SHORT_S, checks_read.service),
        "windows": (checks_read.WINDOWS_S + 5, checks_read.windows),
    }
    if not quick:
        found["packages"] = (checks_read.ENVIRONMENT_S + 5, checks_read.packages)
    if scene.pipeline is not None:
        found |= _readings_of_plan(scene, scene.pipeline)
    return {name: read for name, (_limit, read) in found.items()}, {name: limit for name, (limit, _read) in found.items()}


def _readings_of_plan(scene: Scene, pipeline: Pipeline) -> dict[str, tuple[float, Callable[[], Any]]]:
    workspace, wanted = scene.workspace, list(checks_plan.models(pipeline))
    limit_s = checks_read.MODELS_S + checks_read.MODEL_S * len(wanted) + 5
    found: dict[str, tuple[float, Callable[[], Any]]] = {"models": (limit_s, lambda: checks_read.models(workspace, wanted))}
    if checks_plan.wants_comet(pipeline):
        found["comet"] = (checks_read.TORCH_S + 5, checks_read.comet)
    corpus, download = (scene.settings(kind) for kind in (Corpus, Download))
    if corpus is not None and corpus.source not in (UNSET, "sample"):
        found["texts"] = (120.0, lambda: checks_read.texts(workspace, corpus, quick=scene.quick))
    if download is not None and download.url != UNSET and not scene.quick:
        found["listed"] = (checks_read.LISTING_S + 5, lambda: checks_read.listed(download.url, download.newest))
    return found


def hub_address() -> str:
    """The hub that huggingface_hub will ask."""
    return os.environ.get("HF_ENDPOINT") or HUB_DEFAULT


def _plan(scene: Scene, read: Mapping[str, Any]) -> Plan:
    """Models, then the memory that they will need where this machine computes."""
    said = read.get("models")
    if scene.pipeline is None or said is None or isinstance(said, NotKnown):
        return Plan()
    plan = Plan(next((one for one in said if isinstance(one, Cache)), None))
    plan.models = checks.by_model([one for one in said if isinstance(one, ModelSeen)])
    asked = checks_plan.memory_asked(scene.pipeline, plan.models)
    place = place_of(read, wants_gpu=checks_plan.wants_gpu(scene.pipeline))
    answer = checks_read.gather({"memory": lambda: checks_read.memory(asked, place)}, {"memory": 40.0})["memory"]
    plan.memory = [] if isinstance(answer, NotKnown) else answer
    return plan


def place_of(read: Mapping[str, Any], *, wants_gpu: bool) -> Place:
    """Where the stages will compute, and how much memory is there; a plan for a GPU is told without one what the least is."""
    gpus, torch = read["gpus"], read["torch"]
    if isinstance(torch, Torch) and torch.cuda:
        return Place(True, torch.total_bytes)
    if not isinstance(gpus, NotKnown) and gpus:
        return Place(True, gpus[0].memory_total_bytes)
    if gpus == () and isinstance(torch, Torch) and not wants_gpu:
        return Place(False, psutil.virtual_memory().total)
    return Place(True, None)


def _machine(scene: Scene, read: Mapping[str, Any]) -> Iterable[Finding]:
    gpus, torch = read["gpus"], read["torch"]
    needed = scene.pipeline is not None and checks_plan.wants_gpu(scene.pipeline)
    yield from checks.gpu(None if isinstance(gpus, NotKnown) else gpus, torch, needed=needed)
    if "packages" in read:
        seen = read["packages"]
        title = "packages (.venv)"
        yield checks.not_known("machine", title, seen.why) if isinstance(seen, NotKnown) else checks.packages(*seen)
    if "comet" in read:
        yield checks.comet(read["comet"])
    drifts = [one[1] for one in (read["hub"], read["api"]) if not isinstance(one, NotKnown) and one[1] is not None]
    ntp = read["ntp"]
    yield checks.clock(drifts[0] if drifts else None, None if isinstance(ntp, NotKnown) else ntp)


def _models(scene: Scene, read: Mapping[str, Any], plan: Plan) -> Iterable[Finding]:
    if scene.pipeline is None:
        return
    required = checks_plan.required(scene.pipeline)
    for model, stages in checks_plan.models(scene.pipeline).items():
        seen = _seen(model, read, plan)
        if model.kind == "speech":
            continue  # among the data
        if isinstance(seen, NotKnown):
            yield checks.not_known("models", model.name, seen.why, f"./vigil fetch {scene.given}")
        else:
            yield checks.model(seen, stages, plan.cache, scene.given, needed=model in required)


def _seen(model: Model, read: Mapping[str, Any], plan: Plan) -> ModelSeen | NotKnown:
    said = read["models"]
    why = said.why if isinstance(said, NotKnown) else "the hub's process did not come to it"
    return plan.models.get(model) or NotKnown(why)


def _memory(scene: Scene, read: Mapping[str, Any], plan: Plan) -> Iterable[Finding]:
    if scene.pipeline is None:
        return
    bonus = {stage.name for stage in scene.pipeline.stages if stage.optional}
    yield from checks.memory(plan.memory, bonus, cuda=place_of(read, wants_gpu=checks_plan.wants_gpu(scene.pipeline)).cuda)
    yield from checks.host_memory(plan.memory, psutil.virtual_memory().total)


def _data(scene: Scene, read: Mapping[str, Any], plan: Plan) -> Iterable[Finding]:
    corpus, download = (scene.settings(kind) for kind in (Corpus, Download))
    if corpus is not None and corpus.source != "sample":
        unset = NotKnown("corpus.source is not set")
        yield checks.texts(corpus.source, read.get("texts", unset))
    if download is not None:
        here = checks_read.recordings_here(scene.workspace)
        url = "" if download.url == UNSET else download.url
        found = read.get("listed", download.newest if scene.quick else NotKnown("not asked"))
        yield checks.recordings(url, found, download.newest, here)
    yield from _speech(scene, read, plan)
    yield from checks.corpus(checks_read.built(scene.workspace))


def _speech(scene: Scene, read: Mapping[str, Any], plan: Plan) -> Iterable[Finding]:
    whisper = scene.settings(TrainWhisper)
    if scene.pipeline is None or whisper is None or whisper.replay_share == 0:
        return
    model = checks_plan.speech(scene.pipeline, whisper)
    if model is None:
        yield checks.no_speech(needed=whisper.replay_required)
    else:
        yield checks.speech(_seen(model, read, plan), plan.cache, scene.given, needed=whisper.replay_required)


def _disk(scene: Scene, plan: Plan) -> Iterable[Finding]:
    folder = Path(plan.cache.folder) if plan.cache is not None else scene.workspace.root
    answer = checks_read.gather({"disks": lambda: checks_read.disks(scene.workspace, folder)}, {"disks": 15.0})["disks"]
    if isinstance(answer, NotKnown):
        yield checks.not_known("disk", "the workspace's disk", answer.why)
        return
    own, cache, windows, same = answer
    needs = checks_plan.needs(scene.pipeline, list(plan.models.values()), plan.memory) if scene.pipeline else ()
    keep, keep_windows = (scene.pipeline.keep_free_gb, scene.pipeline.keep_free_windows_gb) if scene.pipeline else (1.0, 5.0)
    unsized = sum(not one.size_bytes and one.where not in (Where.HERE, Where.MADE) for one in plan.models.values())
    here = [one for one in needs if same or not one.in_cache]
    yield checks.disk("the workspace's disk", own, here, keep, unsized if same else 0)
    if not same:
        yield checks.disk("the models' disk", cache, [one for one in needs if one.in_cache], keep, unsized)
    if windows is not None:  # WSL's own disk is a file there, and grows
        yield checks.disk("the Windows drive", windows, needs, keep_windows, unsized)


def _network(scene: Scene, read: Mapping[str, Any], plan: Plan) -> Iterable[Finding]:
    missing = any(one.where not in (Where.HERE, Where.MADE) for one in plan.models.values())
    hub, api = ((one if isinstance(one, NotKnown) else one[0]) for one in (read["hub"], read["api"]))
    yield checks.reachable("Hugging Face hub", hub_address(), hub, needed=missing)
    yield checks.reachable("Telegram", checks_read.telegram_address(scene.workspace), api, needed=False)
    told = read["telegram"]
    name, sent = (told, False) if isinstance(told, NotKnown) else told
    yield checks.telegram(name, sent=sent, quick=scene.quick)


def _away(scene: Scene, read: Mapping[str, Any]) -> Iterable[Finding]:
    told = read["service"]
    yield checks.service(told, "") if isinstance(told, NotKnown) else checks.service(*told)
    yield from checks.windows(read["windows"])
    if scene.pipeline is not None:
        yield checks.rehearsal(scene.pipeline, forecast.estimates(scene.workspace), scene.given)
        yield from checks.deadline(scene.pipeline.deadline, forecast.latest(scene.workspace))


# -- showing


def show(found: Sequence[Finding], columns: int) -> None:
    """Print the findings by group, then what is to mend, red first."""
    width = max(40, min(columns, 100))
    console = Console(width=width, highlight=False, soft_wrap=True)
    for line in lines(found, width):
        console.print(line)


def lines(found: Sequence[Finding], width: int) -> list[Text]:
    """The whole text."""
    shown: list[Text] = []
    for group, title in GROUPS.items():
        own = [one for one in found if one.group == group]
        if own:
            shown += [Text(title, style="bold"), *(line for one in own for line in _finding(one, width)), Text()]
    return [*shown, *_summary(found, width)]


def _finding(one: Finding, width: int) -> list[Text]:
    sign, style = SHAPES[one.light]
    title = one.title if len(one.title) <= TITLE_COLUMNS else words.clip(one.title.rpartition("/")[2], TITLE_COLUMNS)
    room = width - TITLE_COLUMNS - 5
    first, *rest = textwrap.wrap(one.seen, max(20, room), break_on_hyphens=False) or [""]
    head = Text.assemble("  ", (sign, style), f" {title:<{TITLE_COLUMNS}} ", (first, "" if one.light is Light.GREEN else style))
    return [head, *(Text(" " * (TITLE_COLUMNS + 5) + line, style="" if one.light is Light.GREEN else style) for line in rest)]


def _summary(found: Sequence[Finding], width: int) -> list[Text]:
    counts = {light: sum(one.light is light for one in found) for light in Light}
    red, yellow = counts[Light.RED], counts[Light.YELLOW]
    verdict = f"Not ready: {red} to mend, {yellow} to look at." if red else f"Nothing is red; {yellow} to look at."
    style = "bold red" if red else "bold yellow" if yellow else "bold green"
    shown = [Text(verdict if red or yellow else "Everything is green.", style=style)]
    for light in (Light.RED, Light.YELLOW):
        sign, color = SHAPES[light]
        for mend, titles in _mends(found, light).items():
            named = textwrap.shorten(", ".join(titles), width - 4, placeholder=" ...")
            shown.append(Text.assemble("  ", (sign, color), f" {named}"))
            wrapped = textwrap.wrap(mend, width - 6, break_long_words=False, break_on_hyphens=False)
            shown += [Text(f"      {line}") for line in wrapped]
    return shown


def _mends(found: Sequence[Finding], light: Light) -> dict[str, list[str]]:
    """The titles of the findings of one light, by what mends them: one command often mends several."""
    by_mend: dict[str, list[str]] = {}
    for one in found:
        if one.light is light and one.mend:
            by_mend.setdefault(one.mend, []).append(one.title)
    return by_mend

"""PURE: what the events of a rehearsed stage tell of its speed and memory, and how long the whole stage will take by that."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import msgspec

from daemon.before_leaving.rehearse_plan import FEWER
from daemon.words import duration, plural, size
from state.contract import CheckpointSaved, Event, MemoryFit, Metric, Note, Progress
from state.forecast import Estimate, digest_of
from state.pipeline import StageConfig
from state.rehearsal import Cut
from state.snapshot import Attempt

LEAST_SPREAD = 0.15
ASSUMED_SPREAD = 0.3
"""Where the amount of work itself is assumed."""
USUAL_SIZE = 1.5
"""Steps larger than so many mean steps tell of the longest batch, not of the usual one."""
SAVE_COST = 2.0
"""Of the seconds that a save tells: the older checkpoints are read again after it."""
SAVE_EVERY_S = 600.0
SCORES = ("dev_loss", "dev_score")
TELLING = ("left out", "no COMET score")
"""Of a stage's own warnings, those that will be as true of the whole stage; others come of there being few items."""
PHASES = ("translating by ", "scoring by ")
"""How the messages of a stage begin that goes over its items several times: each such message is a phase with a pace of its own."""
WARM_SHARE = 0.3
"""Of the items: with fewer behind the first ones those count too."""


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast one phase of a stage went."""

    unit: str
    here: float
    """Units done."""
    each_s: float
    spread: float = 0.0
    """Of `each_s`, by how the measurements vary: standard deviation of its logarithm."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a stage's attempts tell."""

    took_s: float
    """Over all attempts."""
    useful_s: float
    """As if it had not been killed."""
    load_s: float = 0.0
    step: Pace | None = None
    """Of a training."""
    paces: tuple[Pace, ...] = ()
    """Of any other stage."""
    evaluation_s: float = 0.0
    evaluations: int = 0
    save_s: float = 0.0
    """What a save took here, where each is waited for."""
    pause_s: float = 0.0
    """How long the whole training stands still for one."""
    saves: int = 0
    checkpoint_bytes: int = 0
    memory_bytes: int | None = None
    gpu_bytes: int | None = None
    micro_batch: int | None = None
    cut: Cut | None = None
    killed: bool = False
    warnings: tuple[str, ...] = ()
    """What the stage went without, in its own words."""
    resumed_step: int | None = None
    """Step of the checkpoint that the attempt after the kill went on from."""


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """How much more the whole stage has to do than the data of the rehearsal show."""

    times: float = 1.0
    words: str = ""
    """What was assumed; empty where nothing was."""
    had: int = 0
    """Units that were there already and took no time."""


# -- measuring


def measure(attempts: Sequence[Attempt], told: Sequence[Sequence[Event]], had: int = 0) -> Measured:
    """What `told`, the events of each of the `attempts`, says; what lies between the killed attempt and the last got nowhere."""
    events = [event for one in told for event in one]
    killed = next((number for number, one in enumerate(told) if _was_killed(one)), None)
    parts = sorted({len(attempts) - 1 if killed is None else killed, len(attempts) - 1})
    lengths = [(one.ended_at or one.started_at) - one.started_at for one in attempts]
    again_s = load_s(attempts[-1], told[-1]) if len(parts) > 1 else 0.0
    saves = [event for event in events if isinstance(event, CheckpointSaved)]
    save_s = SAVE_COST * statistics.fmean(save.seconds for save in saves) if saves else 0.0
    scores = [seconds for one in told for event, seconds in _gaps(one) if _scores(event)]
    cut = _last_cut(events)
    return Measured(
        took_s=sum(lengths),
        useful_s=max(0.0, sum(lengths[number] for number in parts) - again_s),
        load_s=load_s(attempts[parts[0]], told[parts[0]]),
        step=(step := _step_pace(told, cut)),
        paces=() if step else tuple(_phases([told[number] for number in parts], had)),
        evaluation_s=statistics.fmean(scores) if scores else 0.0,
        evaluations=len(scores),
        save_s=save_s,
        pause_s=min((save.blocking_s for save in saves if save.blocking_s is not None), default=save_s),
        saves=len(saves),
        checkpoint_bytes=max((save.size_bytes for save in saves), default=0),
        memory_bytes=_most(events, "peak_memory_bytes"),
        gpu_bytes=_most(events, "peak_gpu_bytes"),
        micro_batch=next((event.micro_batch for event in reversed(events) if isinstance(event, MemoryFit)), None),
        cut=cut,
        warnings=tuple(dict.fromkeys(event.text for event in events if isinstance(event, Note) and _telling(event))),
        killed=killed is not None,
        resumed_step=_resumed(told[killed + 1 :]) if killed is not None else None,
    )


def load_s(attempt: Attempt, events: Sequence[Event]) -> float:
    """Seconds until the first sign of work."""
    first: float | None = None
    for event in events:
        if isinstance(event, Progress):
            first = event.done if first is None else first
            if event.done <= first:
                continue
        elif isinstance(event, Note):
            continue
        return max(0.0, event.at - attempt.started_at)
    return 0.0


def _gaps(events: Sequence[Event]) -> Iterator[tuple[Event, float]]:
    """Each event that is more than a heartbeat, and the seconds since the one before it."""
    marked = [event for event in events if not isinstance(event, Progress)]
    return ((event, event.at - before.at) for before, event in pairwise(marked))


def _steps(event: Event) -> bool:
    return isinstance(event, Metric) and "loss" in event.values


def _scores(event: Event) -> bool:
    return isinstance(event, Metric) and any(name in event.values for name in SCORES)


def _step_pace(told: Sequence[Sequence[Event]], cut: Cut | None) -> Pace | None:
    """The pace of a training, by steps right behind another step where there are some: no warm-up and no save is in those."""
    clean: dict[int, float] = {}
    other: dict[int, float] = {}
    done = {event.step for one in told for event in one if isinstance(event, Metric) and _steps(event)}
    for one in told:
        marked = [event for event in one if not isinstance(event, Progress)]
        for before, event in pairwise(marked):
            if isinstance(event, Metric) and event.step is not None and _steps(event):
                (clean if _steps(before) else other)[event.step] = event.at - before.at
    seconds = clean or other
    if not seconds:
        return None
    sizes = {step: cut.sizes[step - 1] if cut and step <= len(cut.sizes) else 1.0 for step in seconds}
    usual = [step for step in seconds if sizes[step] <= USUAL_SIZE] or list(seconds)
    each = [seconds[step] / math.sqrt(max(sizes[step], 0.01)) for step in usual]  # part of it grows with the size, part does not
    return Pace(unit="step", here=len(done), each_s=statistics.fmean(each), spread=_spread(each))


def _phases(told: Sequence[Sequence[Event]], had: int) -> list[Pace]:
    """The paces of stages without steps; the first items of every attempt are a warm-up where there are enough others."""
    progress = [[event for event in one if isinstance(event, Progress) and event.step is None] for one in told]
    names = {event.message: None for one in progress for event in one if event.message.startswith(PHASES)}
    phases = {name: [[event for event in one if event.message == name] for one in progress] for name in names}
    paces = (_phase(name, attempts, had) for name, attempts in (phases or {"": progress}).items())
    return [pace for pace in paces if pace is not None]


def _phase(name: str, attempts: Sequence[Sequence[Progress]], had: int) -> Pace | None:
    """The pace of one phase over the attempts; None where nothing was done in it."""
    events = [event for one in attempts for event in one]
    here = max((event.done for event in events), default=0) - min((event.done for event in events), default=0) - had
    if here <= 0:
        return None
    rates: list[float] = []
    seconds, warm = 0.0, -max(0.0, had - 1)
    for one in attempts:
        for before, event in pairwise([b for a, b in pairwise(one) if b.done > a.done]):
            rates.append((event.at - before.at) / (event.done - before.done))
            seconds += event.at - before.at
            warm += event.done - before.done
    if warm < WARM_SHARE * here:
        seconds, warm = sum(one[-1].at - one[0].at for one in attempts if one), here
    unit = events[-1].unit.rstrip("s")
    return Pace(unit=f"{unit} ({name})" if name else unit, here=here, each_s=seconds / warm, spread=_spread(rates))


def _spread(values: Sequence[float]) -> float:
    """How sure the mean of these values is: the standard error of the logarithms."""
    logs = [math.log(value) for value in values if value > 0]
    return statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0


def _most(events: Sequence[Event], name: str) -> int | None:
    values = [event.values[name] for event in events if isinstance(event, Metric) and name in event.values]
    return int(max(values)) if values else None


def _last_cut(events: Sequence[Event]) -> Cut | None:
    for event in reversed(events):
        if isinstance(event, Note) and {"here", "whole"} <= event.fields.keys():
            return msgspec.convert(event.fields, Cut)
    return None


def _telling(note: Note) -> bool:
    return note.level != "info" and any(words in note.text for words in TELLING)


def _was_killed(events: Sequence[Event]) -> bool:
    return any(isinstance(event, Note) and event.text.startswith("Rehearsal: killed") for event in events)


def _resumed(told: Sequence[Sequence[Event]]) -> int | None:
    """The checkpoint that the attempts after the kill went on from: the step before the first that they did."""
    first = next((event.step for one in told for event in one if isinstance(event, Metric) and _steps(event)), None)
    return None if first is None else first - 1


# -- predicting


def estimate(stage: StageConfig, measured: Measured, share: Share, at: float) -> Estimate:
    """How long the whole stage will take: what the rehearsal took, and what it left out at the pace that it went."""
    whole_s, fixed_s = _trained(stage, measured, measured.step, share) if measured.step else _went(measured, share)
    whole_s = max(whole_s, measured.load_s)
    spread = max((pace.spread for pace in _all_paces(measured)), default=0.0)
    not_seen = max(0.0, 1 - measured.useful_s / whole_s) if whole_s > 0 else 0.0
    least = ASSUMED_SPREAD if share.words else LEAST_SPREAD
    return Estimate(
        stage=stage.name,
        digest=digest_of(stage),
        at=at,
        source="rehearsal",
        seconds=round(whole_s, 3),
        spread=round(max(least, not_seen * spread), 3),
        fixed_s=round(min(fixed_s, whole_s), 3),
        peak_memory_bytes=measured.memory_bytes,
        peak_gpu_bytes=measured.gpu_bytes,
        detail=detail(measured, share),
    )


def _trained(stage: StageConfig, measured: Measured, pace: Pace, share: Share) -> tuple[float, float]:
    cut = measured.cut or Cut(here=int(pace.here), whole=int(pace.here))
    steps = whole_units(cut, share)
    work_s = steps * pace.each_s
    evaluations_s = (cut.evaluations * _dev_times(stage.settings, cut, share)) * measured.evaluation_s
    every = _number(stage.settings, "checkpoint_every_steps", 0)
    saves = steps / every if every else work_s / (_number(stage.settings, "checkpoint_every_s", 0) or SAVE_EVERY_S)
    once_s = measured.useful_s - pace.here * pace.each_s
    once_s -= measured.evaluations * measured.evaluation_s + measured.saves * measured.save_s
    fixed_s = max(measured.load_s, once_s) + evaluations_s + saves * measured.pause_s
    return fixed_s + work_s, fixed_s


def _number(settings: Mapping[str, object], name: str, default: float) -> float:
    """A setting; those of a module of the owner's own may be anything."""
    value = settings.get(name, default)
    return value if isinstance(value, int | float) else default


def whole_units(cut: Cut, share: Share) -> float:
    """Units of the whole stage, with the data that will come."""
    return cut.whole if share.times == 1 else (cut.exact or cut.whole) * share.times


def _dev_times(settings: Mapping[str, object], cut: Cut, share: Share) -> float:
    """How many times as long one score of the dev set takes in the whole training."""
    gate, dev = _number(settings, "gate_examples", 128), _number(settings, "dev_examples", 500)
    if "size" in settings and gate > 0:  # scored by translations, few of them here
        return max(1.0, min(gate, cut.dev_examples or dev) / FEWER["stages.train_gemma"]["gate_examples"])
    return max(1.0, min(share.times, dev / cut.dev_examples)) if cut.dev_examples else 1.0


def _went(measured: Measured, share: Share) -> tuple[float, float]:
    times = share.times * (measured.cut.whole / measured.cut.here if measured.cut and measured.cut.here else 1.0)
    done_s = sum(pace.here * pace.each_s for pace in measured.paces)
    whole_s = measured.useful_s + done_s * (times - 1)
    return whole_s, max(measured.load_s, whole_s - done_s * times)


def detail(measured: Measured, share: Share) -> str:
    """What was measured, in words."""
    parts = [f"load {duration(measured.load_s)}"] if measured.load_s else []
    paces = _all_paces(measured)
    parts += [f"{brief(pace.each_s)} a {pace.unit}" for pace in paces]
    if measured.cut is not None:
        unit = paces[0].unit.split(" (")[0] if paces else "item"
        parts.append(f"{plural(round(whole_units(measured.cut, share)), unit)} in all")
    if measured.evaluations:
        parts.append(f"{brief(measured.evaluation_s)} an evaluation")
    if measured.saves:
        parts.append(f"{brief(measured.pause_s)} a save of {size(measured.checkpoint_bytes)}")
    if measured.micro_batch is not None:
        parts.append(f"micro-batch {measured.micro_batch}")
    return ", ".join([*parts, *([share.words] if share.words else [])])


def _all_paces(measured: Measured) -> list[Pace]:
    return [measured.step] if measured.step else list(measured.paces)


def brief(seconds: float) -> str:
    """`1.9 s`, `35 ms`, `4 min`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 60 else duration(seconds)

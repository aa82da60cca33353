"""What the machine used while each stage ran: the GPU's own reading and, where the kernel tells it, the processor's (RAPL).

A thread reads twice a minute and appends a line of joules to WORKSPACE/plan/energy.jsonl every few minutes, so that a kill costs
those minutes and nothing else. Only stretches with a reading at both ends count; what cannot be read is not measured, never
estimated. The GPU's power goes to the stage that holds the resource `gpu`, the processor's in equal parts to the stages that run,
and to IDLE when none does. Of the rest of the machine (mainboard, fans, disks, the supply's loss) nothing is known.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from daemon import host, words
from state.durable import append_durably
from state.pipeline import Pipeline, Resource
from state.snapshot import Running, RunState
from state.workspace import Workspace

READ_EVERY_S = 30.0
KEEP_EVERY_S = 300.0
LONGEST_S = 120.0
"""Two readings further apart say nothing of the time between them: the machine slept, or the reading hung."""
MOST_CPU_W = 1000.0
"""Of one package: more than that was no work but a reset counter."""
LAST_LINE_S = 2.0
"""What the thread has for its last line when the daemon ends."""
RAPL = Path("/sys/class/powercap")
IDLE = "IDLE"
"""In the place of a stage's name, which is never in capitals."""
JOULES_PER_KWH = 3.6e6

log = structlog.get_logger()


class Joules(msgspec.Struct, frozen=True, kw_only=True):
    """Energy used; None: not measured."""

    gpu: float | None = None
    cpu: float | None = None

    def __add__(self, other: Joules) -> Joules:
        return Joules(gpu=_sum(self.gpu, other.gpu), cpu=_sum(self.cpu, other.cpu))


class Used(msgspec.Struct, frozen=True, kw_only=True):
    """A line of energy.jsonl: what was used since the line before, or since the daemon's start."""

    at: float
    joules: dict[str, Joules]


@dataclass(frozen=True)
class Counter:
    """A package of RAPL: microjoules since some start; after `range_uj` it begins anew."""

    energy_uj: int
    range_uj: int


@dataclass(frozen=True)
class Reading:
    """The machine at one moment."""

    monotonic_s: float
    gpu_w: float | None
    cpu: Mapping[str, Counter]


@dataclass(frozen=True)
class Energy:
    """What a stage has used over its whole life so far."""

    stage: str
    gpu_kwh: float | None
    cpu_kwh: float | None
    money: float | None
    """At the pipeline's price; None where there is none, or nothing was measured."""

    @property
    def kwh(self) -> float | None:
        """Both together."""
        return _sum(self.gpu_kwh, self.cpu_kwh)


# -- pure


def used_between(before: Reading, after: Reading, run: RunState) -> dict[str, Joules]:
    """What was used between two readings, by stage; `run` says who ran."""
    seconds = after.monotonic_s - before.monotonic_s
    if not 0 < seconds <= LONGEST_S:
        return {}
    found: dict[str, Joules] = {}
    running = [stage.name for stage in run.stages if isinstance(stage.status, Running)]
    if before.gpu_w is not None and after.gpu_w is not None:
        holder = next((name for name in running if run.pipeline.stage(name).resource is Resource.GPU), IDLE)
        found[holder] = Joules(gpu=(before.gpu_w + after.gpu_w) / 2 * seconds)
    cpu = _cpu_joules(before.cpu, after.cpu, seconds)
    for name in running or [IDLE]:
        if cpu is not None:
            found[name] = found.get(name, Joules()) + Joules(cpu=cpu / len(running or [IDLE]))
    return found


def _cpu_joules(before: Mapping[str, Counter], after: Mapping[str, Counter], seconds: float) -> float | None:
    """None unless every package was read both times. A counter that fell has begun anew, or the firmware has reset it."""
    if not after or before.keys() != after.keys():
        return None
    grown_uj = [counter.energy_uj - before[name].energy_uj for name, counter in after.items()]
    wrapped_uj = [
        grown if grown >= 0 else grown + counter.range_uj for grown, counter in zip(grown_uj, after.values(), strict=True)
    ]
    if min(grown_uj) < 0 and max(wrapped_uj) > MOST_CPU_W * seconds * 1e6:
        return None
    return sum(wrapped_uj) / 1e6


def totals(used: Sequence[Used], pipeline: Pipeline) -> list[Energy]:
    """What each stage has used, in the pipeline's order, IDLE last; empty when nothing was ever measured."""
    together: dict[str, Joules] = {}
    for one in used:
        together = add(together, one.joules)
    order = [*(stage.name for stage in pipeline.stages), IDLE]
    return [_energy(name, together[name], pipeline.price_per_kwh) for name in order if name in together]


def _energy(name: str, joules: Joules, price_per_kwh: float | None) -> Energy:
    both = _sum(joules.gpu, joules.cpu)
    money = None if both is None or price_per_kwh is None else both / JOULES_PER_KWH * price_per_kwh
    return Energy(name, _kwh(joules.gpu), _kwh(joules.cpu), money)


def whole(energies: Sequence[Energy]) -> Energy:
    """All of it together, idle included."""
    gpu, cpu, money = None, None, None
    for one in energies:
        gpu, cpu, money = _sum(gpu, one.gpu_kwh), _sum(cpu, one.cpu_kwh), _sum(money, one.money)
    return Energy("together", gpu, cpu, money)


def add(one: Mapping[str, Joules], other: Mapping[str, Joules]) -> dict[str, Joules]:
    """Both together, by stage."""
    return {name: one.get(name, Joules()) + other.get(name, Joules()) for name in {**one, **other}}


def _sum(one: float | None, other: float | None) -> float | None:
    return other if one is None else one if other is None else one + other


def _kwh(joules: float | None) -> float | None:
    return None if joules is None else joules / JOULES_PER_KWH


def lines(energies: Sequence[Energy], pipeline: Pipeline) -> list[str]:
    """The energies for a terminal."""
    if not energies:
        return [f"Energy: {words.NOT_MEASURED} (nvidia-smi and RAPL tell nothing here, or not yet)."]
    priced = pipeline.price_per_kwh is not None
    rows = [["energy in kWh", "GPU", "CPU", *([pipeline.currency] if priced else [])]]
    for one in (*energies, *([whole(energies)] if len(energies) > 1 else [])):
        name = "idle" if one.stage == IDLE else one.stage
        money = [] if not priced else [words.NONE if one.money is None else f"{one.money:.2f}"]
        rows.append([words.clip(name, 24), *(kwh(value) for value in (one.gpu_kwh, one.cpu_kwh)), *money])
    table, both = words.table(rows, right=(1, 2, 3)), whole(energies)
    missing = [part for part, value in (("GPU", both.gpu_kwh), ("CPU", both.cpu_kwh)) if value is None]
    return [*table, *(f"{part}: {words.NOT_MEASURED}." for part in missing)]


def kwh(value: float | None) -> str:
    """Three decimals: a watt-hour; `-` where it was not measured."""
    return words.NONE if value is None else f"{value:.3f}"


# -- the machine


def read_machine() -> Reading:
    """Read now; takes at most the time-out of a GPU query."""
    gpus = host.read_gpus() or ()
    powers = [gpu.power_w for gpu in gpus]
    told = [power for power in powers if power is not None]
    return Reading(time.monotonic(), sum(told) if told and len(told) == len(powers) else None, read_rapl(RAPL))


def read_rapl(folder: Path) -> dict[str, Counter]:
    """The processor packages that can be read; none where there are none, or they are the administrator's only."""
    found = {}
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's bear the same name
        with contextlib.suppress(OSError, ValueError):
            if (zone / "name").read_text().startswith("package"):  # cores and memory are parts of it
                found[zone.name] = Counter(int((zone / "energy_uj").read_text()), int((zone / "max_energy_range_uj").read_text()))
    return found


def used(workspace: Workspace) -> list[Used]:
    """Every line that was kept, oldest first; a torn one is passed over."""
    try:
        kept = workspace.energy.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in kept:
        with contextlib.suppress(msgspec.DecodeError):
            found.append(msgspec.json.decode(line, type=Used))
    return found


def read(workspace: Workspace, pipeline: Pipeline) -> list[Energy]:
    """What each stage of the run in `workspace` has used; empty when nothing was measured."""
    return totals(used(workspace), pipeline)


@dataclass
class Meter:
    """Reads in a thread of its own, which may hang in a driver or a disk without harm; `running` gives the run as it stands."""

    workspace: Workspace
    running: Callable[[], RunState]
    read_machine: Callable[[], Reading] = read_machine
    read_every_s: float = READ_EVERY_S
    keep_every_s: float = KEEP_EVERY_S
    _closed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._go_on, daemon=True, name="energy")
        self._thread.start()

    def close(self) -> None:
        """Keep what was read and read no more; waits LAST_LINE_S at most."""
        self._closed.set()
        self._thread.join(LAST_LINE_S)

    def _go_on(self) -> None:
        before = self.read_machine()
        gathered: dict[str, Joules] = {}
        kept_at = before.monotonic_s
        while not self._closed.is_set():
            self._closed.wait(self.read_every_s)
            after = self.read_machine()
            gathered = add(gathered, used_between(before, after, self.running()))
            before = after
            if gathered and (self._closed.is_set() or after.monotonic_s - kept_at >= self.keep_every_s):
                gathered, kept_at = self._keep(gathered), after.monotonic_s

    def _keep(self, gathered: dict[str, Joules]) -> dict[str, Joules]:
        """Append a line; what the disk refuses is tried again with the next."""
        try:
            append_durably(self.workspace.energy, msgspec.json.encode(Used(at=time.time(), joules=gathered)))
        except OSError as error:
            log.warning("energy.not_kept", error=str(error))
            return gathered
        return {}

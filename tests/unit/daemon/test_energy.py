"""What the machine used, from a folder like the kernel's and a program in the place of nvidia-smi."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from daemon import energy, host
from daemon.energy import IDLE, Counter, Joules, Meter, Reading, Used
from state.pipeline import Pipeline, Resource, StageConfig
from state.snapshot import Pending, Running, RunState, StageState
from state.workspace import Workspace

RANGE_UJ = 262_143_328_850


def run_of(*running: str) -> RunState:
    """`train` may hold the GPU, `corpus` the CPU, `get` the network."""
    resources = {"train": Resource.GPU, "corpus": Resource.CPU, "get": Resource.NETWORK}
    configs = tuple(StageConfig(name=name, module="stages.x", resource=resource) for name, resource in resources.items())
    stages = tuple(StageState(name=name, status=Running(since=0) if name in running else Pending()) for name in resources)
    pipeline = Pipeline(name="p", price_per_kwh=0.30, currency="EUR", stages=configs)
    return RunState(id="r", pipeline=pipeline, pipeline_path="p", started_at=0, stages=stages)


def reading(monotonic_s: float, gpu_w: float | None = None, *packages_uj: int) -> Reading:
    return Reading(monotonic_s, gpu_w, {f"intel-rapl:{n}": Counter(value, RANGE_UJ) for n, value in enumerate(packages_uj)})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_gpu_goes_to_its_holder_and_the_cpu_to_all_that_run() -> None:
    """Thirty seconds at 60 to 80 W and 900 J of the processor, two stages at work: 2,100 J to the one, 450 J to each."""
    used = energy.used_between(reading(0, 60, 0), reading(30, 80, 900_000_000), run_of("train", "corpus"))
    assert used == {"train": Joules(gpu=2100, cpu=450), "corpus": Joules(cpu=450)}


def test_what_nobody_uses_is_idle() -> None:
    """A GPU that no stage holds, and a processor that none uses, cost the owner all the same."""
    before, after = reading(0, 10, 0), reading(30, 10, 300_000_000)
    assert energy.used_between(before, after, run_of()) == {IDLE: Joules(gpu=300, cpu=300)}
    assert energy.used_between(before, after, run_of("get")) == {IDLE: Joules(gpu=300), "get": Joules(cpu=300)}


def test_a_counter_that_begins_anew_is_followed_and_a_reset_one_is_not() -> None:
    """RAPL wraps around after some hours; a fall that would mean more than a kilowatt is no work."""
    used = energy.used_between(reading(0, None, RANGE_UJ - 1_000_000), reading(30, None, 2_000_000), run_of("train"))
    assert used == {"train": Joules(cpu=3)}
    assert energy.used_between(reading(0, None, 9_000_000), reading(30, None, 2_000_000), run_of("train")) == {}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (reading(0, None), reading(30, 50)),
        (reading(0, 50), reading(30, None)),
        (reading(0, 50, 5), reading(energy.LONGEST_S + 1, 50, 9)),
        (reading(30, 50, 5), reading(30, 50, 9)),
        (reading(0, None, 5), reading(30, None, 9, 9)),
    ],
)
def test_what_was_not_read_at_both_ends_is_not_measured(before: Reading, after: Reading) -> None:
    """No number is made up for a silent GPU, a sleep, or a package that came or went."""
    assert energy.used_between(before, after, run_of("train")) == {}


def test_the_kernels_counters_are_those_of_the_packages(tmp_path: Path) -> None:
    """Cores and memory are parts of their package; a zone that may not be read is left out; no folder is no reading."""
    for zone, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "psys"), ("dtpm", "x")):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("123456789\n")
        (tmp_path / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    assert energy.read_rapl(tmp_path) == {"intel-rapl:0": Counter(123_456_789, RANGE_UJ)}
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    assert energy.read_rapl(tmp_path) == {}
    assert energy.read_rapl(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("printed", "power_w"),
    [
        ("RTX A2000, 97, 14820, 16380, 71, 68.25", 68.25),
        ("RTX A2000, 97, 14820, 16380, 71, [N/A]", None),
        ("A, 9, 1, 2, 7, 60\nB, 9, 1, 2, 7, 40", 100.0),
        ("A, 9, 1, 2, 7, 60\nB, 9, 1, 2, 7, [N/A]", None),
        ("", None),
    ],
)
def test_the_gpus_power_is_what_nvidia_smi_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, power_w: float | None
) -> None:
    """All cards together, or nothing where one of them does not tell."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    assert energy.read_machine().gpu_w == power_w


def test_the_sum_over_restarts_and_a_torn_line_is_right(tmp_path: Path) -> None:
    """Three daemons, 100 W each for as long as each lived, the second killed while it wrote: the whole lines add up."""
    workspace = Workspace.at(tmp_path)
    ticks = iter(range(0, 10_000, 30))
    expected = 0.0
    for lived in range(3):
        meter = Meter(workspace, lambda: run_of("train"), lambda: reading(next(ticks), 100), read_every_s=0.001, keep_every_s=90)
        until(lambda lived=lived: len(energy.used(workspace)) >= 2 * (lived + 1))
        meter.close()
        assert not meter._thread.is_alive()
        expected = sum(line.joules["train"].gpu or 0 for line in energy.used(workspace))
        with open(workspace.energy, "ab") as file:
            file.write(b'{"at":1.0,"joules":{"train":{"gpu":99999')
    (found,) = energy.read(workspace, run_of().pipeline)
    assert found.gpu_kwh == pytest.approx(expected / 3.6e6)
    assert (found.stage, found.cpu_kwh) == ("train", None)
    assert found.money == pytest.approx(expected / 3.6e6 * 0.30)
    assert expected % 3000 == 0  # 100 W for thirty seconds, some number of times


def test_a_reading_that_hangs_holds_up_nobody(tmp_path: Path) -> None:
    """The thread is stuck in the driver: the daemon ends all the same, in the time that the last line may take."""
    stuck = threading.Event()

    def hang() -> Reading:
        stuck.wait(60)
        return reading(0)

    meter = Meter(Workspace.at(tmp_path), run_of, hang)
    began = time.monotonic()
    meter.close()
    assert time.monotonic() - began < energy.LAST_LINE_S + 1
    stuck.set()
    meter._thread.join(10)
    assert not meter._thread.is_alive()


def test_a_disk_that_refuses_loses_nothing(tmp_path: Path) -> None:
    """What could not be written is in the next line that can."""
    workspace, ticks = Workspace.at(tmp_path), iter(range(0, 100_000, 30))
    workspace.energy.parent.write_text("in the way")
    refused = threading.Event()

    def read() -> Reading:
        at = next(ticks)
        if at >= 300:
            refused.set()
        return reading(at, 100)

    meter = Meter(workspace, lambda: run_of("train"), read, read_every_s=0.001, keep_every_s=0)
    assert refused.wait(20)
    workspace.energy.parent.unlink()
    until(lambda: energy.used(workspace))
    meter.close()
    assert (energy.used(workspace)[0].joules["train"].gpu or 0) >= 27_000


def test_without_any_meter_it_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no RAPL: no file, no number, and the words say so."""
    workspace = Workspace.at(tmp_path)
    monkeypatch.setattr(energy, "RAPL", tmp_path)
    monkeypatch.setattr(host, "read_gpus", lambda: None)
    Meter(workspace, lambda: run_of("train"), read_every_s=0.001).close()
    assert not workspace.energy.exists()
    assert energy.lines(energy.read(workspace, run_of().pipeline), run_of().pipeline)[0].startswith("Energy: not measured")


def test_a_terminal_shows_kilowatt_hours_and_money() -> None:
    """Idle named as such, the sum at the foot, a part that was never measured said so."""
    used = [
        Used(at=1, joules={"train": Joules(gpu=7.2e6), IDLE: Joules(gpu=3.6e5)}),
        Used(at=2, joules={"train": Joules(gpu=3.6e6)}),
    ]
    pipeline = run_of().pipeline
    shown = energy.lines(energy.totals(used, pipeline), pipeline)
    assert [line.split() for line in shown] == [
        ["energy", "in", "kWh", "GPU", "CPU", "EUR"],
        ["train", "3.000", "-", "0.90"],
        ["idle", "0.100", "-", "0.03"],
        ["together", "3.100", "-", "0.93"],
        ["CPU:", "not", "measured."],
    ]
    without = energy.lines(energy.totals(used, pipeline), msgspec.structs.replace(pipeline, price_per_kwh=None))
    assert without[1].split() == ["train", "3.000", "-"]

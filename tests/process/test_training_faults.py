"""Promise 6 in real processes: the machine's own refusals (RLIMIT_AS, a memory cgroup that kills) cost no step."""

from __future__ import annotations

import resource
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from daemon.effects import Launch
from daemon.ending import Sight, classify
from daemon.ladder import next_rung
from daemon.launcher import Launcher, oom_kills
from stages.runtime import exit_code
from stages.training import train
from stages.training_state import load_optimizer, save_optimizer
from state.contract import BatchPlan, ExitCode, MemoryFit, Outcome, Result, Spec, StopRequested
from state.settings import Training
from state.snapshot import Running
from state.workspace import Workspace
from tests.process.forks import Forks, attempt_of
from tests.process.tiny_training import changed, context, limit_memory, recipe, tiny_model, token_loss
from tests.stage_attempts import events, notes

STAGE = "train_tiny"
SETTINGS = {
    "model": "tiny",
    "epochs": 1,
    "effective_batch": 8,
    "learning_rate": 1e-2,
    "checkpoint_every_steps": 2,
    "evaluations": 1,
}


NO_RESERVES = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""What is freed goes back at once, so that a limit means what it says."""


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("tests.process.tiny_training", "transformers", "stages.training_adapter", environment=NO_RESERVES) as started:
        yield started


def attempt(forks: Forks, root: Path, number: int, **settings: object) -> tuple[int, str]:
    """How an attempt ended, and what it printed."""
    module = "tests.process.tiny_training"
    values = {**SETTINGS, **settings}
    spec = Spec(run_id="r", stage=STAGE, module=module, attempt=number, workspace=str(root), settings=values, seed=3)
    return forks.run(spec, codes=(0, ExitCode.OUT_OF_MEMORY)).code, attempt_of(spec).output.read_text()


def result_of(root: Path) -> Result:
    return msgspec.json.decode(Workspace.at(root).result(STAGE).read_bytes(), type=Result)


def delivered(root: Path) -> torch.Tensor:
    found = load_file(root / "fine_tuned_tiny" / "weights.safetensors")
    return torch.cat([found[name].reshape(-1) for name in sorted(found)])


@pytest.mark.slow
def test_address_space_of_every_size(tmp_path: Path, forks: Forks) -> None:
    """RLIMIT_AS from too little for one example to enough for all: OUT_OF_MEMORY, or bit by bit what fits, unlimited, gives."""
    roots = {spare_mib: tmp_path / str(spare_mib) for spare_mib in (1, 30, 90, 150, 500)}
    common = {"breadth": 4000, "examples": 16}
    whole = {micro_batch: tmp_path / f"micro-{micro_batch}" for micro_batch in (1, 2, 4, 8)}
    for micro_batch, root in whole.items():
        assert attempt(forks, root, 1, micro_batch=micro_batch, **common)[0] == 0
    limited = [attempt(forks, root, 1, spare_mib=spare_mib, **common) for spare_mib, root in roots.items()]
    assert [code for code, _ in limited] == [ExitCode.OUT_OF_MEMORY, 0, 0, 0, 0]
    assert "DefaultCPUAllocator: can't allocate memory" in limited[0][1]
    fits = []
    for root in list(roots.values())[1:]:
        metrics = result_of(root).metrics
        assert (metrics["steps"], metrics["ledger_exact"]) == (2.0, 1.0)
        fits.append([event.micro_batch for event in events(context(root)) if isinstance(event, MemoryFit)][-1])
        assert torch.equal(delivered(root), delivered(whole[fits[-1]]))
    assert fits == sorted(fits)
    assert len(set(fits)) >= 3


@pytest.mark.slow
def test_resume_under_a_limit(tmp_path: Path, forks: Forks) -> None:
    """Memory too short for the weights of a checkpoint: OUT_OF_MEMORY each time, the checkpoint stays, and so do the bits."""
    settings = {"width": 320, "examples": 16}
    first = context(tmp_path / "cut")
    calls = 0

    def stop_in_step_2(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        nonlocal calls
        calls += 1
        if calls == 5:  # after the probe, two batches of the dev set and a step
            first.request_stop()
        return token_loss(model, batch)

    with pytest.raises(StopRequested):
        train(first, msgspec.convert(SETTINGS, Training), changed(recipe(tiny_model(width=320), 16), token_loss=stop_in_step_2))
    assert first.checkpoints.newest_step() == 1
    assert attempt(forks, tmp_path / "whole", 1, **settings)[0] == 0
    limited = [
        attempt(forks, tmp_path / "cut", 2 + number, spare_mib=mib, **settings) for number, mib in enumerate((0, 2, 4, None))
    ]
    assert [code for code, _ in limited] == [*[ExitCode.OUT_OF_MEMORY] * 3, 0]
    assert "in load_weights" in limited[-2][1]
    assert "Resumed from step 1" in notes(context(tmp_path / "cut", 5))
    assert torch.equal(delivered(tmp_path / "cut"), delivered(tmp_path / "whole"))
    assert result_of(tmp_path / "cut").metrics["ledger_exact"] == 1.0


def test_moments_that_do_not_fit(tmp_path: Path) -> None:
    """Memory too short for the optimizer's state of a checkpoint is told as OUT_OF_MEMORY too."""
    weight = torch.nn.Parameter(torch.zeros(64 << 18))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    save_optimizer(optimizer, tmp_path / "moments")
    before = resource.getrlimit(resource.RLIMIT_AS)
    limit_memory(1)
    try:
        with pytest.raises(RuntimeError) as raised:
            load_optimizer(optimizer, tmp_path / "moments")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert exit_code(raised.value) == ExitCode.OUT_OF_MEMORY


@pytest.fixture
def small_cgroup() -> Iterator[Path]:
    """A memory cgroup (version 1) of 64 MiB."""
    own = next((line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line), None)
    folder = Path(f"/sys/fs/cgroup/memory{own}") / f"vigil-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(64 << 20))
    except OSError as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield folder
    folder.rmdir()


def ended(launcher: Launcher, number: int) -> Sight:
    """What is left of an attempt, once it has ended."""
    deadline = time.monotonic() + 60
    while (sight := launcher.sight("hungry", number)).alive is not False:
        assert time.monotonic() < deadline, "it did not end"
        time.sleep(0.02)
    return sight


def test_kernel_that_kills_is_told_and_answered(tmp_path: Path, small_cgroup: Path) -> None:
    """The kernel's OOM killer ends the attempt: SIGKILL with a counter that rose is OUT_OF_MEMORY, and a lower rung fits."""
    launcher = Launcher(Workspace.at(tmp_path))
    settings = {"effective_batch": 8, "mib_each": 16, "cgroup": str(small_cgroup)}
    plan, kills_before, outcomes = BatchPlan(), oom_kills(), []
    for number in range(1, 5):
        spec = Spec(
            run_id="r", stage="hungry", module="tests.process.hungry", attempt=number, workspace="", settings=settings, batch=plan
        )
        launcher.launch(Launch(spec, 1))
        sight = ended(launcher, number)
        outcomes.append(classify(sight, Running(since=0.0)).outcome)
        assert sight.checkpoint_step == 1
        if outcomes[-1] is Outcome.SUCCEEDED:
            break
        assert (sight.code, sight.oom_killed, sight.record) == (-9, True, None)
        rung = next_rung(plan, settings)
        assert rung is not None
        plan = rung
    assert outcomes == [*[Outcome.OUT_OF_MEMORY] * (len(outcomes) - 1), Outcome.SUCCEEDED]
    assert len(outcomes) >= 2
    assert oom_kills() - kills_before >= len(outcomes) - 1
    assert (plan.micro_batch or 8) < 8

"""Promise 6: out of memory costs a training no step and no bit, wherever the true error strikes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

from stages.data_order import DataOrder
from stages.recipe import Batch, Recipe
from stages.runtime import StageContext, exit_code, out_of_memory
from stages.training import train
from stages.training_gradient import Gradients, recoverable
from state.contract import BatchPlan, ExitCode, MemoryFit, Metric, OutOfMemoryError, StopRequested, fit_key
from state.settings import Training
from tests.faults.memory_budget import MemoryBudget
from tests.process.tiny_training import changed, context, data, recipe, tiny_model, token_loss, weights
from tests.stage_attempts import events

SETTINGS = Training(model="tiny", epochs=1, effective_batch=8, learning_rate=1e-2, checkpoint_every_steps=2, evaluations=2)
STEPS = 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> Iterator[None]:
    """Without the 400,000 objects of the imports each collection of garbage takes 0.3 s less."""
    import stages.training_adapter  # noqa: F401  the imports that are meant

    gc.freeze()
    yield
    gc.unfreeze()


def plain() -> Recipe:
    """Without dropout, so that the cut of a batch shows only in the rounding."""
    return recipe(tiny_model(0.0))


def gradient(ctx: StageContext, budget_bytes: int | None) -> tuple[torch.Tensor, int, MemoryBudget]:
    """The gradient of one effective batch under a budget, the micro-batch that fitted, and the budget's figures."""
    plan = plain()
    gradients = Gradients(ctx, plan, CPU, 8, 8)
    with MemoryBudget(budget_bytes) as budget:
        gradients.compute(plan.model, tuple(range(8)), 0, lambda _done: None)
    found = torch.cat([parameter.grad.reshape(-1) for parameter in plan.model.parameters()])
    return found, gradients.micro_batch, budget


def test_every_budget_gives_the_same_gradient(tmp_path: Path) -> None:
    """24 budgets from where one example does not fit to where all do: the unsplit gradient to 1e-5, or OUT_OF_MEMORY."""
    ctx = context(tmp_path)
    whole, _fits, plenty = gradient(ctx, None)
    fitted = []
    for share in range(24):
        budget_bytes = plenty.peak_bytes * (share + 2) // 24
        try:
            found, fits, scarce = gradient(ctx, budget_bytes)
        except OutOfMemoryError:
            fitted.append(0)
            continue
        assert scarce.peak_bytes <= budget_bytes
        assert (scarce.refused > 0) == (fits < 8)
        assert float((found - whole).norm() / whole.norm()) < 1e-5
        fitted.append(fits)
    assert fitted == sorted(fitted)
    assert set(fitted) == {0, 1, 2, 4, 8}


def trained_with(root: Path, micro_batch: int, budget_bytes: int | None) -> tuple[torch.Tensor, MemoryBudget, StageContext]:
    plan, ctx = recipe(), context(root)
    with MemoryBudget(budget_bytes) as budget:
        trained = train(ctx, msgspec.structs.replace(SETTINGS, micro_batch=micro_batch), plan)
    assert trained.steps == STEPS
    assert trained.metrics["ledger_exact"] == 1.0
    return weights(plan.model), budget, ctx


@pytest.mark.parametrize("fits", [4, 2, 1])
def test_budget_costs_no_bit(tmp_path: Path, fits: int) -> None:
    """Dropout on: with memory for `fits` examples the weights end as those of a training that used this micro-batch all along."""
    expected, enough, _ctx = trained_with(tmp_path / "small", fits, None)
    found, scarce, ctx = trained_with(tmp_path / "scarce", 8, enough.peak_bytes)
    assert scarce.refused > 0
    assert torch.equal(found, expected)
    assert [event.micro_batch for event in events(ctx) if isinstance(event, MemoryFit)][-1] == fits


class Tightening:
    """Leaves only `spare_bytes` of a budget at its `call`-th call; as `after_backward`, the probe's is the first."""

    def __init__(self, budget: MemoryBudget, call: int, spare_bytes: int) -> None:
        self.budget, self.call, self.spare_bytes = budget, call, spare_bytes

    def __call__(self) -> None:
        self.call -= 1
        if self.call == 0:
            self.budget.budget_bytes = self.budget.live_bytes + self.spare_bytes


def test_memory_that_shrinks_in_the_middle(tmp_path: Path) -> None:
    """Memory taken away at step 3 (another program on the GPU): the same step is redone smaller, none is lost or repeated."""
    whole, plan, ctx = plain(), plain(), context(tmp_path / "scarce")
    train(context(tmp_path / "whole"), SETTINGS, whole)
    with MemoryBudget() as budget:
        trained = train(ctx, SETTINGS, changed(plan, after_backward=Tightening(budget, 4, 20_000)))
    assert budget.refused > 0
    assert (trained.steps, trained.metrics["ledger_exact"]) == (STEPS, 1.0)
    assert torch.allclose(weights(plan.model), weights(whole.model), rtol=1e-5, atol=1e-5)
    told = [event.step for event in events(ctx) if isinstance(event, Metric) and "loss" in event.values]
    assert told == list(range(1, STEPS + 1))


def test_long_example_is_found_before_the_first_step(tmp_path: Path) -> None:
    """The one example that is too long stands in the last batch: the probe finds the micro-batch that it needs, no step does."""
    short, long = [[1, 2, 3, 4, 5]] * 60, [*[[1, 2, 3, 4, 5]] * 59, [1, 2, 3, 4, 5] * 6]
    sizes = torch.tensor([(len(row), 0) for row in long]).numpy()
    seed = next(seed for seed in itertools.count() if 59 in DataOrder(sizes, 8, 1, seed).batch(STEPS - 1))
    with MemoryBudget() as enough:
        train(context(tmp_path / "short"), SETTINGS, changed(plain(), train=data(short)))
    ctx = context(tmp_path / "long", seed=seed)
    with MemoryBudget(enough.peak_bytes + 4_000) as budget:
        trained = train(ctx, SETTINGS, changed(plain(), train=data(long)))
    assert budget.refused > 0
    assert trained.metrics["ledger_exact"] == 1.0
    told = events(ctx)
    first_step = next(place for place, event in enumerate(told) if isinstance(event, Metric) and event.step == 1)
    fits = [(place < first_step, event.micro_batch) for place, event in enumerate(told) if isinstance(event, MemoryFit)]
    assert all(before for before, _micro_batch in fits)
    assert fits[-1][1] < 8


class Seen:
    """A token loss that notes the size of the first micro-batch and asks for a stop."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        self.size = len(batch["tokens"])
        raise StopRequested


@pytest.mark.parametrize(
    ("rung", "fits", "setting", "first"),
    [
        (None, {}, None, 8),
        (None, {fit_key("tiny", "cpu"): 2}, None, 2),
        (4, {fit_key("tiny", "cpu"): 2}, None, 2),
        (1, {fit_key("tiny", "cpu"): 4}, None, 1),
        (None, {fit_key("tiny", "NVIDIA X"): 2, fit_key("other", "cpu"): 1}, None, 8),
        (4, {}, 2, 2),
        (64, {}, None, 8),
    ],
    ids=["nothing known", "fit", "fit below the rung", "rung below the fit", "fits of others", "setting", "rung above the batch"],
)
def test_no_known_limit_is_exceeded(
    tmp_path: Path, rung: int | None, fits: dict[str, int], setting: int | None, first: int
) -> None:
    """An attempt starts at the smallest of the setting, the ladder's rung and what was found to fit this model on this device."""
    seen = Seen()
    with pytest.raises(StopRequested):
        train(
            context(tmp_path, batch=BatchPlan(micro_batch=rung), fits=fits),
            msgspec.structs.replace(SETTINGS, micro_batch=setting),
            changed(recipe(), token_loss=seen),
        )
    assert seen.size == first


def test_optimizer_that_does_not_fit_changes_nothing_kept(tmp_path: Path) -> None:
    """Memory runs out inside the first optimizer step, some weights changed, others not: nothing of it is saved or resumed."""
    expected = recipe()
    train(context(tmp_path / "whole"), SETTINGS, expected)
    plan, ctx = recipe(), context(tmp_path / "cut")
    start = weights(plan.model)
    moments = sum(8 * parameter.numel() for parameter in plan.model.parameters() if parameter.ndim > 1)
    with MemoryBudget() as budget, pytest.raises(torch.OutOfMemoryError) as raised:
        train(ctx, SETTINGS, changed(plan, after_backward=Tightening(budget, 2, moments + 500)))
    assert any("optim" in Path(entry.path).parts for entry in raised.traceback)
    assert exit_code(raised.value) == ExitCode.OUT_OF_MEMORY
    assert not torch.equal(weights(plan.model), start)
    assert ctx.checkpoints.newest_step() is None
    again = recipe()
    assert train(context(tmp_path / "cut", attempt=2), SETTINGS, again).metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(again.model), weights(expected.model))


def uneven(*scores: float, tighten: Tightening | None = None) -> Recipe:
    """A model with one weight that is laid out so that saving it takes memory, as saving from a GPU does; its dev scores."""
    plan, given = recipe(), iter(scores)
    plan.model.out.weight = nn.Parameter(plan.model.out.weight.detach().t().contiguous().t())
    return changed(plan, dev_score=lambda: (tighten and tighten()) or next(given))


def test_out_of_memory_at_a_save(tmp_path: Path) -> None:
    """The last save, which is not a copy's, runs out of memory: those before it stay good, and the next attempt ends the same."""
    expected = uneven(4.0, 3.0, 5.0)
    train(context(tmp_path / "whole"), SETTINGS, expected)
    ctx = context(tmp_path / "cut")
    tighten = Tightening(budget := MemoryBudget(), 3, 1000)  # at the score of step 8, just before its checkpoint
    with budget, pytest.raises(torch.OutOfMemoryError) as raised:
        train(ctx, SETTINGS, uneven(4.0, 3.0, 5.0, tighten=tighten))
    assert any(entry.name == "save_weights" for entry in raised.traceback)
    assert exit_code(raised.value) == ExitCode.OUT_OF_MEMORY
    assert sorted(path.name for path in ctx.checkpoints.folder.iterdir()) == ["step-00000004", "step-00000006"]
    again = uneven(5.0)
    assert train(context(tmp_path / "cut", attempt=2), SETTINGS, again).metrics["ledger_exact"] == 1.0
    assert torch.equal(weights(again.model), weights(expected.model))


def test_evaluation_under_every_budget(tmp_path: Path) -> None:
    """The dev score is the same whatever fits; where one example alone does not, the attempt ends as OUT_OF_MEMORY."""
    plan = changed(recipe(), dev=data([[number] * 20 for number in range(30)]))
    plan.model.eval()

    def score(budget_bytes: int | None) -> tuple[float, int, MemoryBudget]:
        gradients = Gradients(context(tmp_path), plan, CPU, 8, 30)
        with MemoryBudget(budget_bytes) as budget:
            return gradients.mean_loss(plan.model, lambda _done: None), gradients.eval_batch, budget

    expected, _size, plenty = score(None)
    sizes = set()
    for share in (1, 2, 4, 8, 16, 32):
        found, size, scarce = score(plenty.peak_bytes // share)
        assert found == pytest.approx(expected, rel=1e-6)
        assert (scarce.refused > 0) == (size < 30)
        sizes.add(size)
    assert {30, 15, 7, 3, 1} <= sizes
    with pytest.raises(OutOfMemoryError, match="one dev example alone"):
        score(plenty.peak_bytes // 200)


@pytest.mark.parametrize(("text", "code"), [("CUDA error: out of memory", ExitCode.OUT_OF_MEMORY), ("device-side assert", 1)])
def test_broken_context_is_left_at_once(tmp_path: Path, text: str, code: int) -> None:
    """An error that the device's context keeps is not tried again in this process; its text says what the next attempt does."""
    calls = itertools.count(1)

    def sticky(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        if next(calls) >= 8:
            raise torch.AcceleratorError(text)
        return token_loss(model, batch)

    ctx = context(tmp_path)
    with pytest.raises(torch.AcceleratorError) as raised:
        train(ctx, SETTINGS, changed(recipe(dev=False), token_loss=sticky))
    assert exit_code(raised.value) == code
    assert next(calls) == 9
    newest = ctx.checkpoints.newest_valid()
    assert newest is not None
    assert newest.step == 6


@pytest.mark.parametrize(
    ("error", "again_here"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA driver error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Error: out of memory at line 380 in file pythonInterface.cpp"), True),
        (RuntimeError("CUDA failed with error out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 67108864 bytes"), True),
        (RuntimeError("unable to mmap 67108944 bytes from file </w>: Cannot allocate memory (12)"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: out of memory"), False),
        (torch.AcceleratorError("CUDA error: device not ready"), False),
    ],
    ids=lambda value: str(value)[:40] or type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_text_of_memory_is_known(error: Exception, again_here: bool) -> None:
    """What torch, CUDA, cuBLAS, bitsandbytes and the machine say when memory runs out, and whether this process can go on."""
    assert out_of_memory(error)
    assert recoverable(error) is again_here
    assert exit_code(error) == ExitCode.OUT_OF_MEMORY


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA error: an illegal memory access was encountered"), RuntimeError("size mismatch"), KeyError("memory")],
)
def test_other_errors_are_not_of_memory(error: Exception) -> None:
    """The word alone does not make it one."""
    assert not out_of_memory(error)

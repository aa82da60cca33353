"""A stage's own work on a few items: what `vigil rehearse` starts in the place of Vigil's stages and of every training stage.

The stage reads all of its data with the owner's settings, then does little of it: a few optimizer steps at the real effective
batch, the longest examples among them; a few batches of sentences, the longest first; a few segments of each recording. It
says how much the whole would be (`state.rehearsal.Cut`), and what memory it took at most. Once, after its first checkpoint or its
first finished items, it is killed by SIGKILL in the middle of the next ones, so that its next attempt has to resume.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from stages.runtime import Delivery, StageContext, run
from state.contract import CheckpointSaved, Event, Progress
from state.rehearsal import VARIABLE, Cut, Plan
from state.settings import Evaluate, Training, Transcribe, TranslationModel

if TYPE_CHECKING:
    from stages.data_order import Sizes
    from stages.recipe import Recipe
    from stages.scoring import Sentence
    from stages.training import Trained

STEPS = 6
SAVE_EVERY = 3
"""Steps: most run without a save before them, which is how long a step really takes."""
BATCHES = 3
"""Of an evaluation, for each model; the longest sentences make the first."""
SEGMENT_BATCHES = 2
"""Of each recording."""
GPU_TIMEOUT_S = 3.0


def main(ctx: StageContext) -> Delivery:
    """The other module's work, cut down, with one kill in it."""
    plan = msgspec.json.decode(os.environ[VARIABLE], type=Plan)
    name = plan.modules[ctx.spec.stage]
    module: Any = importlib.import_module(name)
    trains = hasattr(module, "train")
    if trains:
        cut_training(module)
    elif name == "stages.transcribe":
        cut_segments(module, ctx)
    elif name == "stages.evaluate":
        cut_sentences(module, plan.bases)
    kill_once(ctx, after=saved if trains else begun)
    try:
        delivery: Delivery = module.main(ctx)
        return delivery
    finally:
        ctx.metric(peaks())


def tell(ctx: StageContext, cut: Cut, unit: str) -> None:
    """Say how much of the work this is."""
    ctx.note(f"Rehearsal: {cut.here:,} of {cut.whole:,} {unit}", **msgspec.to_builtins(cut))


# -- less work


def cut_training(module: Any) -> None:
    """Have `module` train for STEPS steps only, at the owner's effective batch."""
    train: Callable[[StageContext, Training, Recipe], Trained] = module.train

    def few(ctx: StageContext, settings: Training, recipe: Recipe) -> Trained:
        import numpy as np

        from stages.data_order import DataOrder
        from stages.recipe import Data

        sizes = np.array([(one.length, one.target_length) for one in recipe.train.examples], dtype=np.int64).reshape(-1, 2)
        if not len(sizes):
            return train(ctx, settings, recipe)  # it says what is wrong
        whole = DataOrder(sizes, settings.effective_batch, settings.epochs, ctx.spec.seed)
        chosen = few_examples(sizes, settings.effective_batch)
        here = DataOrder(sizes[chosen], settings.effective_batch, 1, ctx.spec.seed)
        cut = Cut(
            here=here.steps,
            whole=whole.steps,
            exact=len(sizes) / settings.effective_batch * settings.epochs,
            sizes=tuple(round(padded(here, step) / mean_padded(whole), 4) for step in range(here.steps)),
            evaluations=settings.evaluations + 1 if recipe.dev is not None or recipe.dev_score is not None else 0,
            dev_examples=len(recipe.dev.examples) if recipe.dev is not None else 0,
        )
        tell(ctx, cut, "steps")
        data = Data(
            [recipe.train.examples[index] for index in chosen],
            lambda indices: recipe.train.collate([chosen[index] for index in indices]),
        )
        wait_for_saves()
        small = replace(settings, epochs=1, evaluations=1, checkpoint_every_steps=SAVE_EVERY)
        return train(ctx, small, dataclasses.replace(recipe, train=data))

    module.train = few


def wait_for_saves() -> None:
    """Have each save told when it is durable, not with the next one: the kill must find it. How long training stood still for the
    copy in memory is measured before that."""
    from stages.training_loop import Loop

    save = Loop.save

    def durable(loop: Loop, model: Any, *, leaving: bool = False) -> None:
        save(loop, model, leaving=leaving)
        loop.settle()

    Loop.save = durable  # type: ignore[assignment, method-assign]  # another name of the first argument


def few_examples(sizes: Sizes, effective_batch: int) -> list[int]:
    """Indices of STEPS effective batches: the longest examples make one, those nearest to the mean size the others.

    Where there are fewer examples some come again: a stage before may have delivered a few items only.
    """
    import numpy as np

    longest = np.argsort(-sizes.sum(axis=1), kind="stable")[:effective_batch]
    usual = np.argsort(np.abs(sizes - sizes.mean(axis=0)).sum(axis=1), kind="stable")
    usual = usual[~np.isin(usual, longest)]
    order = [*longest.tolist(), *usual.tolist()]
    return [order[index % len(order)] for index in range(STEPS * effective_batch)]


def padded(order: Any, step: int) -> int:
    """Tokens of a step's batch when all are padded to its longest."""
    batch = list(order.batch(step))
    return len(batch) * int(order.sizes[batch].max(axis=0).sum())


def mean_padded(order: Any) -> float:
    """The mean over one epoch, and never nothing."""
    return max(1.0, sum(padded(order, step) for step in range(order.per_epoch)) / order.per_epoch)


def cut_segments(module: Any, ctx: StageContext) -> None:
    """Have the transcription see some batches of each recording only, evenly spread over it."""
    inputs: Callable[[Path], list[Any]] = module._inputs
    most = SEGMENT_BATCHES * ctx.settings(Transcribe).batch_size

    def few(cleaned: Path) -> list[Any]:
        lines = inputs(cleaned)
        by_source = [list(group) for _source, group in groupby(lines, key=lambda line: line.source)]
        kept = [line for group in by_source for line in group[:: max(1, len(group) // most)][:most]]
        tell(ctx, Cut(here=len(kept), whole=len(lines)), "segments")
        return kept

    module._inputs = few


def cut_sentences(module: Any, bases: dict[str, str]) -> None:
    """Have the evaluation score some batches only, and the base in the place of a model that was not made.

    Of the general sentences the same share is left, so that one number tells how much more the whole is, for COMET too.
    """
    read, rows, general = module.read_test_set, module.rows_to_score, module.forgetting.sentences

    def few(ctx: StageContext, settings: Evaluate) -> tuple[Any, list[Sentence]]:
        test_set, sentences = read(ctx, settings)
        kept = few_sentences(sentences, settings.batch_size)
        others = general() if settings.forgetting else []
        some = spread(others, _sources(kept) / max(1, _sources(sentences)))
        module.forgetting.sentences = lambda: some
        tell(ctx, Cut(here=_sources([*kept, *some]), whole=_sources([*sentences, *others])), "sentences")
        missed = len(others) - len(some)  # by all that the run will translate it is decided how
        return replace(test_set, unique_sources=test_set.unique_sources + missed), kept

    def with_bases(ctx: StageContext, settings: Evaluate) -> Any:
        made = tuple(in_place_of(row, bases, ctx.workspace.result(row.trained_by or "").exists()) for row in settings.models)
        return rows(ctx, replace(settings, models=made))

    module.read_test_set, module.rows_to_score = few, with_bases
    module.take_over = lambda *_arguments: None  # equal weights or not: the work is what is rehearsed


def few_sentences(sentences: Sequence[Sentence], batch_size: int) -> list[Sentence]:
    """The sentences of BATCHES batches of sources: the longest make one, those nearest to the mean length the others."""
    longest = sorted({one.source for one in sentences}, key=lambda text: (-len(text), text))
    mean = sum(map(len, longest)) / max(1, len(longest))
    usual = sorted(longest[batch_size:], key=lambda text: (abs(len(text) - mean), text))
    kept = {*longest[:batch_size], *usual[: (BATCHES - 1) * batch_size]}
    return [one for one in sentences if one.source in kept]


def spread(sentences: Sequence[Sentence], share: float) -> list[Sentence]:
    """So many of them, evenly spread; one at least."""
    count = min(len(sentences), max(1, round(share * len(sentences))))
    return [sentences[number * len(sentences) // count] for number in range(count)]


def in_place_of(row: TranslationModel, bases: dict[str, str], made: bool) -> TranslationModel:
    """`row`, or its base model where the stage that trains it delivered nothing."""
    if row.trained_by is None or made or (row.adapter is None and row.trained_by not in bases):
        return row
    model = row.model if row.adapter is not None else bases[row.trained_by]
    return replace(row, model=model, adapter=None, trained_by=None)


def _sources(sentences: Sequence[Sentence]) -> int:
    return len({one.source for one in sentences})


# -- the kill


def saved(event: Event) -> bool:
    """A checkpoint is there."""
    return isinstance(event, CheckpointSaved)


def begun(event: Event) -> bool:
    """Some items are done, and others are left."""
    return isinstance(event, Progress) and event.done >= 1 and (event.total is None or event.done < event.total)


def kill_once(ctx: StageContext, after: Callable[[Event], bool]) -> None:
    """End this process by SIGKILL at the first event behind one that `after` is true of; no other attempt is killed again."""
    emit, mark = ctx.emit, ctx.scratch() / "killed"
    if mark.exists():
        return
    armed = False

    def watched(event: Event) -> None:
        nonlocal armed
        if armed:
            ctx.emit = emit  # type: ignore[method-assign]
            ctx.metric(peaks())
            ctx.note("Rehearsal: killed here by SIGKILL, to see that it resumes")
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        emit(event)
        armed = after(event)

    ctx.emit = watched  # type: ignore[method-assign]


# -- memory


def peaks() -> dict[str, float]:
    """The most memory that this process (and the largest one that it started) held so far, and the most of the GPU's."""
    children_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    found = {"peak_memory_bytes": float(own_peak_bytes() + children_bytes)}
    if gpu_bytes := gpu_peak_bytes():
        found["peak_gpu_bytes"] = float(gpu_bytes)
    return found


def own_peak_bytes() -> int:
    """VmHWM; unlike ru_maxrss it does not count what the process was before it became a Python."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def gpu_peak_bytes() -> int:
    """What torch reserved at most, or where torch had no part in it, what the GPU says is in use now."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_reserved())
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path="/usr/lib/wsl/lib")
    if program is None:
        return 0
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True).stdout
        return int(answer.splitlines()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


if __name__ == "__main__":
    run(main)

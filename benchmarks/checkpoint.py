"""How long a training waits for a checkpoint: Trainer's own save, which is not durable, and Vigil's, which is.

    python -m benchmarks.checkpoint [--quick]

A Marian of opus-mt-en-es's shape with random weights and both moments of AdamW: 934 MB. The original's way is what
`transformers.Trainer` does at each `save_steps`: it writes weights, moments and its state into the page cache. Ours is the training
loop's: a copy in memory, written, fsynced, digested and published by a thread. Rounds alternate; what one wrote is on the disk
before the other begins. Also told: the seconds until ours is durable, and those of the first save, which takes its memory from the
machine. Exit 0: Vigil blocks at most a fifth as long and every checkpoint verified; else 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from transformers import MarianConfig, MarianMTModel, Trainer, TrainingArguments

from benchmarks.row import Row, tell
from stages.data_order import DataOrder
from stages.ledger import Entry, Ledger
from stages.runtime import StageContext
from stages.training import Data, Example, Recipe
from stages.training_gradient import Gradients
from stages.training_loop import Loop
from stages.training_state import BestWeights, Position
from state.checkpoints import verify
from state.contract import Spec
from state.settings import TrainMarian
from state.workspace import Workspace

FLOOR = 5.0
SHAPE = {"vocab_size": 65001, "d_model": 512, "layers": 6, "ffn_dim": 2048}
QUICK = {"vocab_size": 16001, "d_model": 256, "layers": 3, "ffn_dim": 1024}
STAGE = "train_marian"


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer rounds")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    model = marian(**(QUICK if quick else SHAPE))
    with tempfile.TemporaryDirectory(prefix="vigil-checkpoint-") as folder:
        return tell([measure(model, Path(folder), rounds=3 if quick else 7)])


def marian(vocab_size: int, d_model: int, layers: int, ffn_dim: int) -> MarianMTModel:
    """An untrained Marian."""
    sides = {
        f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in (("layers", layers), ("ffn_dim", ffn_dim))
    }
    heads = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
    pad = vocab_size - 1
    config = MarianConfig(
        vocab_size=vocab_size,
        decoder_vocab_size=vocab_size,
        d_model=d_model,
        pad_token_id=pad,
        decoder_start_token_id=pad,
        eos_token_id=0,
        forced_eos_token_id=0,
        **sides,
        **heads,
    )
    return MarianMTModel(config)


def with_moments(model: torch.nn.Module) -> torch.optim.Optimizer:
    """An AdamW that has made a step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def measure(model: MarianMTModel, folder: Path, rounds: int) -> Row:
    """The figures of `rounds` rounds of each way."""
    optimizer = with_moments(model)
    plain, loop = original(model, optimizer, folder / "original"), ours(model, optimizer, folder / "ours")
    first_s = seconds(lambda: loop_save(loop, model))[0]
    loop.settle()
    plain()
    times: dict[str, list[tuple[float, float]]] = {"original": [], "ours": []}
    durable_s: list[float] = []
    whole = True
    for _ in range(rounds):
        os.sync()
        times["original"].append(seconds(plain))
        os.sync()
        began = time.perf_counter()
        times["ours"].append(seconds(lambda: loop_save(loop, model)))
        loop.settle()
        durable_s.append(time.perf_counter() - began)
        whole &= verify(loop.ctx.checkpoints.folder / f"step-{loop.step:08d}").step == loop.step
    wall = {name: statistics.median(one[0] for one in found) for name, found in times.items()}
    cpu = {name: statistics.median(one[1] for one in found) for name, found in times.items()}
    size_bytes = sum(file.stat().st_size for file in (loop.ctx.checkpoints.folder / f"step-{loop.step:08d}").iterdir())
    ratio = wall["original"] / wall["ours"]
    return Row(
        item=f"a checkpoint of {size_bytes / 1e6:.0f} MB: training stands still",
        unit="s by the wall clock",
        original=wall["original"],
        ours=wall["ours"],
        ratio=ratio,
        demanded=f"{FLOOR:g}, and durable",
        met=ratio >= FLOOR and whole,
        wall=f"{cpu['original']:.2f} and {cpu['ours']:.2f} CPU s",
        note=f"ours durable and verified after {statistics.median(durable_s):.1f} s, the original's never said to be; "
        f"our first save {first_s:.2f} s",
    )


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of this thread for one call."""
    gc.collect()
    began, began_cpu = time.perf_counter(), time.thread_time()
    work()
    return time.perf_counter() - began, time.thread_time() - began_cpu


# -- the two ways


def original(model: MarianMTModel, optimizer: torch.optim.Optimizer, folder: Path) -> Callable[[], None]:
    """A save as `transformers.Trainer` does it between two steps, the newest two kept."""
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", save_total_limit=2, use_cpu=True)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _step: 1.0)
    trainer = Trainer(model=model, args=arguments, optimizers=(optimizer, scheduler))

    def save() -> None:
        trainer.state.global_step += 1
        trainer._save_checkpoint(model, trial=None)

    return save


def ours(model: MarianMTModel, optimizer: torch.optim.Optimizer, folder: Path) -> Loop:
    """The training loop with a training at work."""
    workspace = Workspace.at(folder)
    spec = Spec(run_id="r", stage=STAGE, module=f"stages.{STAGE}", attempt=1, workspace=str(folder), settings={"model": "none"})
    attempt = workspace.attempt(STAGE, 1)
    attempt.root.mkdir(parents=True)
    ctx = StageContext(spec, attempt)
    settings = ctx.settings(TrainMarian)
    data = Data([Example(str(number), 1) for number in range(32_000)], lambda _indices: {})
    recipe = Recipe(
        model=model, model_name="random", train=data, token_loss=lambda _model, _batch: (torch.zeros(()), 0), fingerprint={}
    )
    order = DataOrder(np.ones((len(data.examples), 2), dtype=np.int64), settings.effective_batch, settings.epochs, 0)
    ledger = Ledger(ctx.scratch() / "ledger.jsonl")
    loop = Loop(ctx, settings, recipe, order, Position(), ledger, BestWeights(ctx.scratch() / "best"))
    loop.attach(Gradients(ctx, recipe, torch.device("cpu"), 1, 1), optimizer)
    return loop


def loop_save(loop: Loop, model: MarianMTModel) -> None:
    """One more step is recorded, and saved."""
    loop.ledger.append(Entry(loop.step + 1, loop.order.batch(loop.step)))
    loop.position = replace(loop.position, step=loop.step + 1)
    loop.save(model)


if __name__ == "__main__":
    sys.exit(main())

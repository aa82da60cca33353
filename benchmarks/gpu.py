"""Do the training stages fit into 16 GB, how fast are they, and do they survive running out? On any CUDA machine, with one command.

    python -m benchmarks.gpu [--only PART ...] [--steps N] [--cap-gib 16]
    python -m benchmarks.gpu --rehearse       # the same code at tiny shapes on the CPU, in a minute

Each part is a process of its own that runs the stage's real `main` with the settings of pipelines/seattle.toml, on a model of the
published shape with random weights (`benchmarks.random_models`) and verses of the sample joined to lengths up to the limit.
The memory of a larger card is cut to the cap. After the second step so much memory is taken away that the third runs out:
a real CUDA out-of-memory, which must cost no step (not the 12B: its micro-batch of 1 cannot shrink). The share of the peak is
the arithmetic that the mathematics needs, without what checkpointing does again, over what a large bf16 product reaches here.
Exit 0: every part fits, ends with all its steps and a proven ledger, and survived; else 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import random_models
from benchmarks.row import Row, tell
from daemon import config
from stages import footprint, tiny
from stages.data_order import DataOrder
from stages.runtime import StageContext
from state.contract import Spec
from state.needs import Place
from state.settings import MODULES, Training
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
CLIPS = ROOT / "pipelines" / "demo_audio"
TRAININGS = {
    "train_marian": "stages.train_marian",
    "train_whisper": "stages.train_whisper",
    "train_gemma_4b": "stages.train_gemma",
    "train_gemma_12b": "stages.train_gemma",
}
PARTS = (*TRAININGS, "faster_whisper")
OOM_AFTER = 2
ROOM_LEFT = 0.75
"""Of what a step has taken so far: less than it needs whole, more than in halves."""
TINY: dict[str, Any] = {"effective_batch": 4, "bf16": False, "paged_optimizer": False, "lora_rank": 4, "max_tokens": 192}
PART_S = 900


def main() -> int:
    """Every part in a process of its own; the table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", "--quick", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--cap-gib", type=float, default=16.0)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.rehearse or torch.cuda.is_available()):
        print("no CUDA here; --rehearse runs the same code at tiny shapes on the CPU", file=sys.stderr)
        return 1
    if args.part:
        print(json.dumps(run_part(args.part, args.steps, args.cap_gib, real=not args.rehearse)))
        return 0
    found = [in_a_process(part, args) for part in args.only]
    print(table(found))
    good = sum(bool(one.get("good")) for one in found)
    row = Row(
        item="training code rehearsed on the CPU, no GPU here" if args.rehearse else f"training in {args.cap_gib:g} GiB",
        unit="parts",
        ours=good,
        demanded=f"{len(found)}",
        met=good == len(found),
        note="on the CPU" if args.rehearse else torch.cuda.get_device_name(),
    )
    return tell([row], parts=found)


def in_a_process(part: str, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of one part, or why there are none."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--steps", str(args.steps), "--cap-gib", str(args.cap_gib)]
    done = subprocess.run(
        command + ["--rehearse"] * args.rehearse, cwd=ROOT, capture_output=True, text=True, timeout=PART_S, check=False
    )
    if done.returncode:
        sys.stderr.write(f"{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return {"part": part, "good": False, "error": (done.stderr.strip().splitlines() or ["no word"])[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """A line for each part, in at most 100 columns."""
    lines = [f"{'part':16}{'batch':>7}{'peak GB':>9}{'predicted':>11}{'tokens/s':>10}{'of peak':>9}{'OOM':>10}{'good':>6}"]
    for one in found:
        if "tokens_per_s" not in one:
            lines.append(f"{one['part']:16} {one.get('error') or one.get('libraries')}")
            continue
        lines.append(
            f"{one['part']:16}{one['micro_batch']:7}{one['peak_gb']:9.2f}{one['predicted_gb']:11.2f}{one['tokens_per_s']:10.0f}"
            f"{one['share_of_peak']:9.1%}{one['oom']:>10}{'yes' if one['good'] else 'NO':>6}"
        )
    return "\n".join(lines)


# -- one part


def run_part(part: str, steps: int, cap_gib: float, *, real: bool) -> dict[str, Any]:
    """Run the part in a folder of its own."""
    torch.set_num_threads(1 if not real else torch.get_num_threads())
    with tempfile.TemporaryDirectory(prefix="vigil-gpu-") as name:
        workspace = Workspace.at(Path(name).resolve())
        if part == "faster_whisper":
            return transcribed(workspace)
        return Trained(part, workspace, steps, cap_gib, real=real).run()


class Trained:
    """One training stage, watched."""

    def __init__(self, part: str, workspace: Workspace, steps: int, cap_gib: float, *, real: bool) -> None:
        self.part, self.workspace, self.steps, self.real = part, workspace, steps, real
        self.cap_bytes = int(cap_gib * 2**30)
        if real:
            self.cap_bytes = min(self.cap_bytes, torch.cuda.get_device_properties(0).total_memory)
        self.module: Any = importlib.import_module(TRAININGS[part])
        self.settings = self._settings()
        self.shrinks = min(self.settings.micro_batch or 2, self.settings.effective_batch) > 1
        self.sizes = np.zeros((0, 2), dtype=np.int64)
        self.stepped: list[float] = []
        self.peak_bytes = 0
        """Reserved for the longest batch, at the micro-batch that fits."""
        self._armed = False
        self._ballast: torch.Tensor | None = None

    def _settings(self) -> Training:
        pipeline = config.load(ROOT / "pipelines" / "seattle.toml", ["download.url=x", "corpus.source=x"])
        values = dict(pipeline.stage(self.part).settings)
        kind = MODULES[TRAININGS[self.part]]
        if not self.real:
            values |= {name: value for name, value in TINY.items() if name in kind.__struct_fields__}
        batch = int(values.get("effective_batch", 32))
        values |= {"model": "models/random", "epochs": 1, "max_examples": self.steps * batch, "evaluations": 1}
        values |= {"checkpoint_every_steps": 3, "dev_examples": 8}
        if "gate_examples" in kind.__struct_fields__:
            values |= {"gate_examples": 8 if self.real else 2}
        if "merge" in kind.__struct_fields__:
            values |= {"merge": False, "replay_source": None, "replay_required": False, "dev_examples": 1}
            values |= {"max_examples": 2 * self.steps * batch}  # one recording of four is held out
        self.values = values
        settings = _context(self.workspace, self.part, values).settings(kind)
        assert isinstance(settings, Training)
        return settings

    def run(self) -> dict[str, Any]:
        """Make the model and the data, train, and put the figures together."""
        self._prepare()
        began = time.perf_counter()
        ctx = _context(self.workspace, self.part, self.values)
        self._watch(ctx)
        delivery = self.module.main(ctx)
        if len(self.stepped) < OOM_AFTER + 2:
            raise RuntimeError(f"only {len(self.stepped)} steps were done, which shows nothing; give more --steps")
        return self._figures(ctx, delivery.metrics, time.perf_counter() - began)

    def _prepare(self) -> None:
        folder = self.workspace.models / "random"
        folder.mkdir(parents=True)
        count = self.steps * self.settings.effective_batch
        if self.part == "train_whisper":
            random_models.whisper(folder, real=self.real)
            write_chunks(self.workspace, 2 * count)
            return
        if self.part == "train_marian":
            random_models.marian(folder, real=self.real)
        else:
            size = self.part.rpartition("_")[2]
            random_models.gemma(folder, f"google/translategemma-{size}-it", real=self.real)
            self.module.load_model = random_models.quantized_gemma
        write_verses(self.workspace, 3 * count)

    def _watch(self, ctx: StageContext) -> None:
        """Cut the memory to the cap, look at each step, and let the third run out of memory."""
        train, metric, memory_fit = self.module.train, ctx.metric, ctx.memory_fit

        def watched(ctx: StageContext, settings: Training, recipe: Any) -> Any:
            self.sizes = np.array([(one.length, one.target_length) for one in recipe.train.examples], dtype=np.int64)
            return train(ctx, settings, dataclasses.replace(recipe, token_loss=self._scarce(recipe.token_loss)))

        def told(values: dict[str, float], step: int | None = None) -> None:
            metric(values, step)
            if "loss" in values:
                self.stepped.append(time.perf_counter())
                self._ballast = None
                self._armed = self.shrinks and step == OOM_AFTER

        def fitted(model: str, device: str, micro_batch: int, reason: str = "") -> None:
            memory_fit(model, device, micro_batch, reason)
            if self.real and "longest" in reason:
                self.peak_bytes = torch.cuda.max_memory_reserved()
            elif self.real:  # what did not fit is no part of the peak
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

        self.module.train, ctx.metric, ctx.memory_fit = watched, told, fitted  # type: ignore[method-assign]
        if self.real:
            self.module.claim_device = self._claim

    def _claim(self) -> torch.device:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(footprint.GPU_SHARE * self.cap_bytes / total, 0)
        return torch.device("cuda", 0)

    def _scarce(self, token_loss: Callable[..., Any]) -> Callable[..., Any]:
        def taking(model: torch.nn.Module, batch: Any) -> Any:
            if self._armed and model.training:
                self._armed = False
                if not self.real:
                    raise torch.OutOfMemoryError("CUDA out of memory. Said by the rehearsal, which has no GPU.")
                self._ballast = self._take_away()
            return token_loss(model, batch)

        return taking

    def _take_away(self) -> torch.Tensor:
        """Leave less of the capped memory than a step has taken so far."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held = torch.cuda.memory_allocated()
        left = int(ROOM_LEFT * (torch.cuda.max_memory_allocated() - held))
        room = int(footprint.GPU_SHARE * self.cap_bytes) - torch.cuda.memory_reserved()
        return torch.empty(max(1, room - left), dtype=torch.uint8, device="cuda")

    def _figures(self, ctx: StageContext, metrics: dict[str, float], seconds: float) -> dict[str, Any]:
        events = [json.loads(line) for line in ctx.attempt.events.read_bytes().splitlines()]
        fits = [event["micro_batch"] for event in events if event["type"] == "memory_fit"]
        before = next(
            (event["micro_batch"] for event in events if event["type"] == "memory_fit" and "longest" in event["reason"]), 1
        )
        survived = any(event["type"] == "note" and "same step is done again" in event["text"] for event in events[-400:])
        shape = footprint.shape_of(json.loads((self.workspace.models / "random" / "config.json").read_text()))
        account = footprint.training(shape, self.settings, Place(self.real, self.cap_bytes), before)
        order = DataOrder(self.sizes, self.settings.effective_batch, 1, ctx.spec.seed)
        step_s = statistics.median(b - a for a, b in zip(self.stepped[:-1], self.stepped[1:], strict=True))
        each = [self.sizes[list(order.batch(number))].sum(axis=0) for number in range(order.steps)]
        sources, targets = (float(statistics.fmean(one[side] for one in each)) for side in (0, 1))
        flops = arithmetic(shape, self.settings, sources, targets)
        most_bytes = torch.cuda.max_memory_reserved() if self.real else 0
        whole = metrics["ledger_exact"] == 1.0 and metrics["steps"] == order.steps
        return {
            "part": self.part,
            "micro_batch": before,
            "micro_batch_after": fits[-1] if fits else before,
            "steps": order.steps,
            "step_s": round(step_s, 3),
            "tokens_per_s": round((sources + targets) / step_s, 1),
            "examples_per_s": round(self.settings.effective_batch / step_s, 2),
            "share_of_peak": round(flops / step_s / peak_flops(self.real), 4),
            "peak_gb": round(self.peak_bytes / 1e9, 3),
            "predicted_gb": round(account.torch_bytes / 1e9, 3),
            "fits": most_bytes <= self.cap_bytes,
            "oom": "survived" if survived and self.shrinks else "not tried" if not self.shrinks else "NOT SEEN",
            "ledger_exact": metrics["ledger_exact"] == 1.0,
            "seconds": round(seconds, 1),
            "good": whole and most_bytes <= self.cap_bytes and (survived or not self.shrinks),
        }


def arithmetic(shape: footprint.Shape, settings: Training, sources: float, targets: float) -> float:
    """Floating-point operations of a step: for each token and weight two forward, two back, two more if it is trained."""
    each = 6.0 if type(settings).__name__ == "TrainMarian" else 4.0
    head = shape.vocabulary * shape.hidden
    if shape.family == "gemma":
        layers = shape.layers * shape.hidden * (2 * shape.query + 2 * shape.key + 3 * shape.inner)
        return each * (layers * sources + head * sources / 2)  # half of a row is learned
    encoder = shape.layers * shape.hidden * (4 * shape.hidden + 2 * shape.inner)
    decoder = shape.decoder_layers * shape.hidden * (8 * shape.hidden + 2 * shape.decoder_inner)
    heard = shape.source_positions * settings.effective_batch if shape.family == "whisper" else sources
    return each * (encoder * heard + (decoder + head) * (targets or sources))


def peak_flops(real: bool) -> float:
    """Operations a second of a large matrix product here."""
    side, kind, device = (8192, torch.bfloat16, "cuda") if real else (512, torch.float32, "cpu")
    left = torch.randn(side, side, dtype=kind, device=device)
    times = []
    for _ in range(12):
        began = time.perf_counter()
        left @ left
        if real:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / min(times)


def transcribed(workspace: Workspace) -> dict[str, Any]:
    """Whether faster-whisper finds its CUDA libraries and runs, in a process that has them from the stage's own code."""
    from stages import transcribe
    from state.settings import Transcribe

    source, model = workspace.root / "whisper", workspace.models / "random-ct2"
    source.mkdir(parents=True)
    tiny.make_whisper(source, [english for english, _spanish in tiny.sample_pairs()])
    tiny.convert_whisper(source, model)
    ctx = _context(workspace, "transcribe", {"model": str(model)})
    labeller = transcribe._load(ctx, str(model), ctx.settings(Transcribe))
    sound = np.random.default_rng(0).standard_normal(160_000).astype(np.float32) / 10
    clips = [{"start": 0.0, "end": 5.0}, {"start": 5.0, "end": 10.0}]
    segments, _info = labeller.pipeline.transcribe(sound, language="en", batch_size=2, clip_timestamps=clips, max_new_tokens=8)
    count = len(list(segments))
    events = [json.loads(line) for line in ctx.attempt.events.read_bytes().splitlines()]
    libraries = next((event["text"] for event in events if event["type"] == "note"), "on the CPU: no library is asked for")
    return {"part": "faster_whisper", "libraries": libraries, "segments": count, "good": labeller.device == "cuda" or not _cuda()}


def _cuda() -> bool:
    return torch.cuda.is_available()


# -- workspaces


def _context(workspace: Workspace, stage: str, values: dict[str, Any]) -> StageContext:
    attempt = workspace.attempt(stage, 1)
    attempt.root.mkdir(parents=True, exist_ok=True)
    module = TRAININGS.get(stage, "stages.transcribe")
    return StageContext(
        Spec(run_id="r", stage=stage, module=module, attempt=1, workspace=str(workspace.root), settings=values, seed=3), attempt
    )


def write_verses(workspace: Workspace, count: int) -> None:
    """Pairs of one to four of the sample's sentences, each pair at a place of its own; what is too long the stage leaves out."""
    pairs = tiny.sample_pairs()
    names = {"genre": "law", "en_source": "NHEB", "es_source": "SpaRV"}
    workspace.train_pairs.parent.mkdir(parents=True)
    with open(workspace.train_pairs, "w", encoding="utf-8") as file:
        for number in range(count):
            joined = [pairs[(number * 7 + step * 13) % len(pairs)] for step in range(1 + number % 4)]
            place = {"book": "Genesis", "chapter": 1 + number // 100, "verse": 1 + number % 100}
            texts = {
                "en": f"{number} " + " ".join(one[0] for one in joined),
                "es": f"{number} " + " ".join(one[1] for one in joined),
            }
            file.write(json.dumps({**texts, **place, **names}) + "\n")


def write_chunks(workspace: Workspace, count: int) -> None:
    """The demo's recordings, `count` chunks of them in all."""
    listing = json.loads((CLIPS / "clips.json").read_text())["recordings"]
    workspace.cleaned_audio.mkdir(parents=True)
    workspace.transcripts.mkdir(parents=True)
    rows = []
    for number in range(count):
        one = listing[number % len(listing)]
        name = f"{one['id']}-{number}.flac"
        shutil.copy(CLIPS / one["file"], workspace.cleaned_audio / name)
        rows.append({"file_name": name, "text": one["text"][number % 40 :], "source": one["id"], "verdict": "kept"})
    (workspace.transcripts / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    sys.exit(main())

"""Goodput: useful work over wall time of one training under the same seeded kills, done in three ways, in one run.

    python -m benchmarks.goodput [--seed N] [--kills N] [--every STEPS]

`bash` starts again from nothing after each kill, as the script did that Vigil replaces. `trainer` is transformers' own Trainer on
the same model and data, saving as often, with `resume_from_checkpoint`. `vigil` is the daemon and its stage; half of its kills are
power cuts that take the daemon too. Useful work is the seconds that the undisturbed steps take; each way's wall time counts from
its first start. The other two never score a dev set, verify what they load or prove what they used: their steps are cheaper.

Restarting is measured in CPU seconds, from a process's start to its first resumed step, less what importing torch and
transformers and loading the model cost by themselves. Exit 0: no kill cost Vigil more than one checkpoint interval and the step in
flight, and no restart more than RESTART_CPU_S; else 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from daemon.before_leaving.drill_plan import PIPELINE, STAGE
from daemon.before_leaving.drill_scene import POLL_S, Scene, surrounded
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
BEFORE = ("corpus", "make_model")
TRAINING = {"max_examples": 2400, "effective_batch": 128, "epochs": 14, "learning_rate": 2e-3}
"""266 steps: with more than 299 a stage no longer tells of each."""
GAP_SHARE = (0.25, 0.45)
"""From one kill to the next, in undisturbed trainings: so that every kill strikes."""
RESTART_CPU_S = 5.0
LOAD = """\
import resource, sys, torch, transformers
transformers.MarianTokenizer.from_pretrained(sys.argv[1])
transformers.MarianMTModel.from_pretrained(sys.argv[1])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime)
"""


@dataclass
class Tally:
    """What one way did."""

    wall_s: float = 0.0
    steps_done: int = 0
    lost: list[int] = field(default_factory=list)
    """Steps that were done before a restart and had to be done again."""
    restart_cpu_s: list[float] = field(default_factory=list)
    """Of each restarted process until its first step was over."""


class Way(Protocol):
    """One way to get a training done."""

    def start(self) -> None: ...
    def kill(self) -> None: ...
    def finished(self) -> bool:
        """Called all the time: a loop that restarts what died does it here."""

    def attempts(self) -> list[list[int]]:
        """The steps that each process has done so far, counted from 1."""

    def pid(self) -> int | None:
        """Of the process that trains now."""


def main() -> int:
    """Measure, print, judge."""
    if sys.argv[1:2] == ["--plain"]:
        return plain(Path(sys.argv[2]), Workspace(Path(sys.argv[3])), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--every", type=int, default=16, help="steps between checkpoints")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vigil-goodput-") as folder:
        return measure(Path(folder).resolve(), args.seed, args.kills, args.every)


def measure(folder: Path, seed: int, kills: int, every: int) -> int:
    """All ways, one after another, under the same schedule."""
    draw = random.Random(seed)
    base = folder / "base"
    with scene(base, every) as first:
        first.boot(*(part for name in BEFORE for part in ("--stage", name)))
        first.finish()
    calm = Vigil(base, folder / "calm", every, draw)
    alone = compete(calm, [])
    instants_s = list(itertools.accumulate(draw.uniform(*GAP_SHARE) * alone.wall_s for _kill in range(kills)))
    print(f"seed {seed}, a save every {every} steps; kills after {', '.join(f'{at:.0f}' for at in instants_s)} s", flush=True)
    seconds = training_seconds(calm.scene.workspace)
    tallies = {
        "vigil": compete(Vigil(base, folder / "vigil", every, draw), instants_s),
        "trainer": compete(Loop(folder / "trainer", calm.scene.workspace, every), instants_s),
        "bash": compete(Loop(folder / "bash", calm.scene.workspace, 0), instants_s),
    }
    print(
        f"{alone.steps_done} steps, {seconds:.1f} s of useful work; undisturbed, Vigil takes {alone.wall_s:.1f} s with its start\n"
    )
    print(f"{'way':10}{'wall':>9}{'goodput':>9}{'steps done':>12}{'lost a kill':>13}{'at most':>9}{'restart CPU':>13}")
    for name, one in tallies.items():
        lost, cpu_s = one.lost or [0], one.restart_cpu_s or [0.0]
        print(
            f"{name:10}{one.wall_s:7.1f} s{seconds / one.wall_s:9.2f}{one.steps_done:12}"
            f"{statistics.mean(lost):13.1f}{max(lost):9}{max(cpu_s):11.1f} s",
            flush=True,
        )
    return judge(tallies["vigil"], kills, every, load_cpu_s(base / "models" / "marian-drill"))


def judge(vigil: Tally, kills: int, every: int, load_s: float) -> int:
    """Whether Vigil's promises held, in words and as the exit code."""
    beyond_s = max(vigil.restart_cpu_s, default=0.0) - load_s
    print(
        f"\nimporting torch and transformers and loading the model: {load_s:.1f} CPU s; Vigil's restart beyond it: {beyond_s:.1f}"
    )
    if len(vigil.lost) != kills:
        print(f"only {len(vigil.lost)} of {kills} kills struck a training at work: nothing is shown, try another --seed")
        return 1
    held = max(vigil.lost, default=0) <= every + 1 and beyond_s <= RESTART_CPU_S
    print("held" if held else f"NOT held: at most {every + 1} steps a kill and {RESTART_CPU_S:g} CPU s a restart were promised")
    return 0 if held else 1


def compete(way: Way, instants_s: Sequence[float]) -> Tally:
    """Have `way` do the training, killed at these seconds after its start."""
    tally, left, told = Tally(), list(instants_s), 0
    began = time.monotonic()
    way.start()
    while not way.finished():
        begun = [steps for steps in way.attempts() if steps]
        if len(begun) > max(told, 1):
            furthest = max(step for steps in begun[:-1] for step in steps)
            tally.lost.append(furthest - begun[-1][0] + 1)
            tally.restart_cpu_s.append(cpu_seconds(way.pid()))
        told = len(begun)
        if left and time.monotonic() - began >= left[0]:
            left.pop(0)
            way.kill()
        time.sleep(POLL_S)
    tally.wall_s = time.monotonic() - began
    tally.steps_done = sum(len(steps) for steps in way.attempts())
    return tally


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process and all its threads so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load_cpu_s(model: Path) -> float:
    """What no restart can go without."""
    command = [sys.executable, "-c", LOAD, str(model)]
    done = subprocess.run(command, env=surrounded({}), capture_output=True, text=True, check=True, timeout=300)
    return float(done.stdout.split()[-1])


def training_seconds(workspace: Workspace) -> float:
    """Wall time of a finished training's steps, without its start."""
    return float(json.loads(workspace.result(STAGE).read_bytes())["metrics"]["seconds"])


# -- Vigil


def scene(root: Path, every: int) -> Scene:
    """The drill's pipeline with a longer training."""
    given = {**TRAINING, "checkpoint_every_steps": every}
    return Scene(root, PIPELINE, STAGE, ["download.url=none", *(f"{STAGE}.{k}={v}" for k, v in given.items())], threading.Event())


class Vigil:
    """The daemon and its stage. Half of the kills are power cuts: the daemon dies too, and the machine boots again at once."""

    def __init__(self, base: Path, root: Path, every: int, draw: random.Random) -> None:
        shutil.copytree(base, root, symlinks=True)
        self.scene, self.draw = scene(root, every), draw

    def start(self) -> None:
        self.scene.boot(*(part for name in (*BEFORE, STAGE) for part in ("--stage", name)))

    def kill(self) -> None:
        if self.draw.random() < 0.5:
            self.scene.power_cut()
            self.start()
        else:
            self.scene.signal_stage(signal.SIGKILL)

    def finished(self) -> bool:
        daemon = self.scene.daemon
        if daemon is None or daemon.poll() is None:
            return False
        if daemon.returncode != 0:
            raise RuntimeError(f"the daemon left with code {daemon.returncode}: see {self.scene.root}")
        return True

    def attempts(self) -> list[list[int]]:
        return [self.scene.steps(number) for number in range(1, self.scene.newest_attempt() + 1)]

    def pid(self) -> int | None:
        return next(iter(self.scene.attempt_pids()), None)


# -- the others


class Loop:
    """`until python train; do :; done`, from Trainer's newest checkpoint, or with `every` = 0 from nothing as bash did."""

    def __init__(self, root: Path, data: Workspace, every: int) -> None:
        root.mkdir()
        self.root, self.data, self.every = root, data, every
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        number = len(list(self.root.glob("steps-*")))
        (self.root / f"steps-{number:03d}").touch()
        command = [sys.executable, "-m", "benchmarks.goodput", "--plain", str(self.root), str(self.data.root), str(self.every)]
        with open(self.root / "output.log", "ab") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, env=surrounded({}), stdout=output, stderr=subprocess.STDOUT)

    def kill(self) -> None:
        self.process.kill()

    def finished(self) -> bool:
        code = self.process.poll()
        if code == -signal.SIGKILL:
            self.start()
        elif code:
            raise RuntimeError(f"it left with code {code}: {(self.root / 'output.log').read_text()[-2000:]}")
        return code == 0

    def attempts(self) -> list[list[int]]:
        return [[int(line) for line in path.read_text().splitlines()] for path in sorted(self.root.glob("steps-*"))]

    def pid(self) -> int | None:
        return self.process.pid


def plain(root: Path, data: Workspace, every: int) -> int:
    """One process of transformers' own Trainer on the model and the prepared rows of `data`."""
    from transformers import MarianMTModel, Trainer, TrainerCallback, TrainingArguments

    from stages.marian_tokens import load_rows
    from stages.train_marian import Marks, collate

    rows = load_rows(next(data.scratch(STAGE).glob("rows-*")))
    model = MarianMTModel.from_pretrained(data.models / "marian-drill")
    marks = Marks(model.config)
    steps = max(root.glob("steps-*"))

    class Told(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
            with open(steps, "a") as file:
                file.write(f"{state.global_step}\n")

    arguments = TrainingArguments(
        output_dir=str(root / "checkpoints"),
        num_train_epochs=TRAINING["epochs"],
        per_device_train_batch_size=int(TRAINING["effective_batch"]),
        learning_rate=TRAINING["learning_rate"],
        save_strategy="steps" if every else "no",
        save_steps=every or 1,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    examples = list(range(int(TRAINING["max_examples"])))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=lambda indices: collate(rows, indices, marks),
        callbacks=[Told()],
    )
    trainer.train(resume_from_checkpoint=True if list(root.glob("checkpoints/checkpoint-*")) else None)
    model.save_pretrained(root / "model")
    return 0


if __name__ == "__main__":
    sys.exit(main())

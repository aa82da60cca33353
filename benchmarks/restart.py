"""CPU seconds from the start of a training process to its first resumed step: transformers' own way, and Vigil's stage.

    python -m benchmarks.restart [--quick]

Both train a small Marian on the sample's verse pairs, are killed after a checkpoint, and are started again. The original's
way is the script that Vigil replaces, with the resume that it lacks: `load_dataset`, a cached `map`, Seq2SeqTrainer and
`resume_from_checkpoint`, nothing verified. Ours is `python -m stages.train_marian` on the spec that the daemon writes: checkpoint
and ledger are verified, the data compared. Also told: what importing torch and transformers and loading the model cost by
themselves, in the way everybody does. Exit 0: at least 1.3 times fewer CPU seconds, and at most 5; else 1.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.row import Row, tell
from bible_data.build import Options, build
from bible_data.sample import ENGLISH, SPANISH, write_sample
from state.checkpoints import Checkpoints
from state.contract import Event, Metric, Spec
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
FLOOR, MOST_S = 1.3, 5.0
STAGE, MODEL = "train_marian", "models/marian"
BATCH, SAVED_AT, WAIT_S = 8, 4, 300.0
SETTINGS: dict[str, Any] = {
    "model": MODEL,
    "max_examples": 400,
    "epochs": 2,
    "effective_batch": BATCH,
    "checkpoint_every_steps": SAVED_AT,
    "dev_examples": 8,
    "evaluations": 1,
    "bf16": False,
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
MAKE = "import sys; from pathlib import Path; from stages import tiny; tiny.make_marian(Path(sys.argv[1]), tiny.sample_pairs())"
LOAD = """\
import sys, torch, transformers
transformers.MarianTokenizer.from_pretrained(sys.argv[1])
transformers.MarianMTModel.from_pretrained(sys.argv[1])
"""


def main() -> int:
    """Measure, print, judge."""
    if sys.argv[1:2] == ["--plain"]:
        return plain(Workspace(Path(sys.argv[2])), int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    rounds = 2 if parser.parse_args().quick else 5
    with tempfile.TemporaryDirectory(prefix="vigil-restart-") as name:
        workspace = prepared(Path(name).resolve())
        original(workspace)
        vigil(workspace, 1)
        found: dict[str, list[tuple[float, float]]] = {"original": [], "ours": [], "load": []}
        for number in range(rounds):
            found["original"].append(original(workspace))
            found["ours"].append(vigil(workspace, 2 + number))
            found["load"].append(loaded(workspace))
    return tell([judged(found)], rounds=rounds)


def judged(found: dict[str, list[tuple[float, float]]]) -> Row:
    """The figures."""
    cpu_s = {name: statistics.median(cpu for cpu, _wall in values) for name, values in found.items()}
    wall_s = {name: statistics.median(wall for _cpu, wall in values) for name, values in found.items()}
    ratio = cpu_s["original"] / cpu_s["ours"]
    return Row(
        item="restart to the first resumed step",
        unit="CPU s",
        original=cpu_s["original"],
        ours=cpu_s["ours"],
        ratio=ratio,
        demanded=f"{FLOOR:g}, at most {MOST_S:g} s",
        met=ratio >= FLOOR and cpu_s["ours"] <= MOST_S,
        wall=f"{wall_s['original']:.1f} and {wall_s['ours']:.1f} s",
        note=f"importing torch and transformers and loading the model by themselves: {cpu_s['load']:.1f} CPU s",
    )


def prepared(root: Path) -> Workspace:
    """A workspace with the sample's corpus and an untrained Marian."""
    workspace = Workspace.at(root)
    build(write_sample(root / "sample"), workspace.corpus, Options(ENGLISH, SPANISH, min_verses=1000))
    (root / MODEL).mkdir(parents=True)
    command = [sys.executable, "-c", MAKE, str(root / MODEL)]
    subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, check=True, timeout=WAIT_S, stdout=subprocess.DEVNULL)
    return workspace


def loaded(workspace: Workspace) -> tuple[float, float]:
    """CPU and wall seconds of the imports and the model alone."""
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-c", LOAD, str(workspace.root / MODEL)], cwd=ROOT, env=os.environ | ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    _pid, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"loading the model left with {child.returncode}")
    return used.ru_utime + used.ru_stime, time.monotonic() - began


def until(command: list[str], log: Path, reached: Callable[[], bool]) -> tuple[float, float]:
    """CPU and wall seconds of `command` until `reached`, when it is killed."""
    began = time.monotonic()
    with open(log, "ab") as output:
        child = subprocess.Popen(command, cwd=ROOT, env=os.environ | ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + WAIT_S
    while not reached():
        if child.poll() is not None or time.monotonic() > deadline:
            child.kill()
            raise RuntimeError(f"{' '.join(command[1:4])} did not come to its step: {log.read_text()[-2000:]}")
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    _pid, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime, time.monotonic() - began


# -- Vigil


def vigil(workspace: Workspace, number: int) -> tuple[float, float]:
    """CPU and wall seconds of an attempt of the stage to its first step; the first attempt lives until its checkpoint is there."""
    attempt = workspace.attempt(STAGE, number)
    attempt.root.mkdir(parents=True)
    spec = Spec(
        run_id="r", stage=STAGE, module=f"stages.{STAGE}", attempt=number, workspace=str(workspace.root), settings=SETTINGS, seed=3
    )
    attempt.spec.write_bytes(msgspec.json.encode(spec))
    checkpoints = Checkpoints(workspace.checkpoints(STAGE))

    def stepped() -> bool:
        lines = attempt.events.read_bytes().splitlines() if attempt.events.exists() else []
        told = [event for line in lines for event in decoded(line) if isinstance(event, Metric) and "loss" in event.values]
        if told and number > 1 and (told[0].step or 0) <= SAVED_AT:
            raise RuntimeError("it did not resume")
        return bool(told) and (number > 1 or checkpoints.newest_step() is not None)

    return until([sys.executable, "-P", "-m", f"stages.{STAGE}", str(attempt.root)], attempt.output, stepped)


def decoded(line: bytes) -> list[Event]:
    """The event of a line; none of a torn one."""
    try:
        return [msgspec.json.decode(line, type=Event)]
    except msgspec.DecodeError:
        return []


# -- the original's way


def original(workspace: Workspace) -> tuple[float, float]:
    """CPU and wall seconds of the script to its first step; the first time it lives until its checkpoint is whole."""
    folder = workspace.root / "original"
    first = not folder.exists()
    folder.mkdir(exist_ok=True)
    mark = folder / "stepped"
    mark.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.restart", "--plain", str(workspace.root), str(SAVED_AT + 1)]
    used = until(command, folder / "output.log", mark.exists)
    resumed = list(folder.glob(f"checkpoints/checkpoint-{SAVED_AT}"))
    if not resumed or (not first and mark.read_text() != str(SAVED_AT + 1)):
        raise RuntimeError("the original's way did not resume")
    return used


def plain(workspace: Workspace, last: int) -> int:
    """One process of the script: it says that step `last` is done, and waits to be killed."""
    from datasets import load_dataset
    from transformers import (
        DataCollatorForSeq2Seq,
        MarianMTModel,
        MarianTokenizer,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        TrainerCallback,
    )

    folder = workspace.root / "original"
    tokenizer = MarianTokenizer.from_pretrained(workspace.root / MODEL)
    model = MarianMTModel.from_pretrained(workspace.root / MODEL)
    rows = load_dataset("json", data_files=str(workspace.train_pairs), split="train", cache_dir=str(folder / "cache"))
    rows = rows.select(range(SETTINGS["max_examples"]))
    rows = rows.map(
        lambda batch: tokenizer(batch["en"], text_target=batch["es"], max_length=128, truncation=True),
        batched=True,
        remove_columns=rows.column_names,
    )

    class Told(TrainerCallback):
        def on_step_end(self, args: object, state: object, control: object, **_rest: object) -> None:
            if state.global_step == last:  # type: ignore[attr-defined]
                (folder / "stepped.tmp").write_text(str(last))
                (folder / "stepped.tmp").rename(folder / "stepped")
                time.sleep(WAIT_S)

    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        save_strategy="steps",
        save_steps=SAVED_AT,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        callbacks=[Told()],
    )
    trainer.train(resume_from_checkpoint=True if list(folder.glob("checkpoints/checkpoint-*")) else None)
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""Fixtures that several packages' tests share."""
# ruff: noqa: E501  rows of test data read best as rows

from __future__ import annotations

import os
import tempfile

os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp(prefix="vigil-tests-")  # whoever runs the tests may have a bot: it stays out
os.environ["XDG_STATE_HOME"] = os.environ["XDG_CONFIG_HOME"]  # nor may a test's stages enter the owner's history
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: on shared cores two threads that wait for each other cost minutes

import atexit
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import config
from state.contract import Event, Metric, Note, Outcome, Output, Progress, Result
from state.pipeline import Pipeline
from state.snapshot import Attempt, BackingOff, Fact, Failed, Running, RunState, Skipped, StageState, Start, Succeeded
from state.store import Journal, Store
from state.workspace import Workspace

atexit.register(shutil.rmtree, os.environ["XDG_CONFIG_HOME"], ignore_errors=True)

ROOT = Path(__file__).resolve().parent.parent
T0 = 1_770_919_200.0  # 2026-02-12T18:00:00Z
GENRES = ("gospels", "poetry", "prophecy")
DIGEST = "0123456789abcdef" * 4


class ExampleRun:
    """Writes the files of a run as the daemon and the stages leave them: the demo's pipeline at any point of its way."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace.at(folder)
        self.pipeline: Pipeline = config.load(ROOT / "pipelines" / "demo.toml", ["download.url=http://127.0.0.1:1/feed.xml"])
        self.now = T0
        self.stages: dict[str, StageState] = {stage.name: StageState(name=stage.name) for stage in self.pipeline.stages}
        self.facts: list[Fact] = []
        self.starts: list[Start] = [Start(at=T0, boot="one")]
        self.finished_at: float | None = None
        self.paused = False

    def tell(self, kind: str, text: str, stage: str | None = None, level: str = "info", **fields: Any) -> None:
        number = len(self.stages[stage].attempts) if stage else None
        fact_id = f"{len(self.facts) + 1:06d}"
        self.facts.append(
            Fact(id=fact_id, at=self.now, kind=kind, text=text, stage=stage, level=level, attempt=number, fields=fields)
        )

    def start(self, stage: str) -> int:
        """A new attempt begins now."""
        state = self.stages[stage]
        number = len(state.attempts) + 1
        attempts = (*state.attempts, Attempt(number=number, started_at=self.now))
        self.stages[stage] = msgspec.structs.replace(state, status=Running(since=self.now), attempts=attempts)
        self.tell("stage.started", f"{stage} started (attempt {number})", stage)
        return number

    def events(self, stage: str, events: Sequence[Event]) -> None:
        """The running attempt says these; the time moves on to the last one."""
        path = self.workspace.attempt(stage, len(self.stages[stage].attempts)).events
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            for event in events:
                file.write(msgspec.json.encode(event) + b"\n")
                self.now = max(self.now, event.at)

    def end(self, stage: str, outcome: Outcome, reason: str = "") -> None:
        """The running attempt ends now."""
        state = self.stages[stage]
        last = msgspec.structs.replace(state.attempts[-1], ended_at=self.now, outcome=outcome, reason=reason)
        self.stages[stage] = msgspec.structs.replace(state, attempts=(*state.attempts[:-1], last))

    def status(self, stage: str, status: Any) -> None:
        self.stages[stage] = msgspec.structs.replace(self.stages[stage], status=status)

    def succeed(self, stage: str, summary: str, outputs: Sequence[str] = (), **metrics: float) -> None:
        """The running attempt delivers and ends."""
        self.end(stage, Outcome.SUCCEEDED)
        self.status(stage, Succeeded(at=self.now, summary=summary, metrics=metrics))
        receipt = Result(
            stage=stage,
            attempt=len(self.stages[stage].attempts),
            at=self.now,
            outputs=tuple(Output(path=path, size_bytes=1_234_567, sha256=DIGEST) for path in outputs),
            metrics=metrics,
            summary=summary,
        )
        path = self.workspace.result(stage)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(receipt))
        self.tell("stage.succeeded", f"{stage} succeeded: {summary}", stage)

    def simple(self, stage: str, seconds: float, summary: str, outputs: Sequence[str] = ()) -> None:
        self.start(stage)
        self.events(stage, [Progress(at=self.now + seconds, done=10, total=10, unit="files")])
        self.succeed(stage, summary, outputs)

    def train(self, stage: str, first: int, last: int, steps: int, step_s: float = 1.0) -> None:
        """Steps `first` to `last` of a training, with a falling loss and a dev loss at every quarter."""
        at, events = self.now, list[Event]()
        for step in range(first, last + 1):
            at += step_s
            events.append(Progress(at=at, done=step * 16, total=steps * 16, unit="examples", step=step, steps=steps))
            events.append(
                Metric(at=at, values={"loss": 5 * math.exp(-step / 40) + 0.1 * math.sin(step), "learning_rate": 1e-3}, step=step)
            )
            if step % (steps // 4) == 0:
                events.append(Metric(at=at, values={"dev_loss": 5 * math.exp(-step / 45) + 0.2}, step=step))
        self.events(stage, events)

    def save(self) -> Workspace:
        """Write state.json and the journal."""
        run = RunState(
            id="20260212-180000",
            pipeline=self.pipeline,
            pipeline_path="demo.toml",
            started_at=T0,
            stages=tuple(self.stages.values()),
            finished_at=self.finished_at,
            paused=self.paused,
            starts=tuple(self.starts),
            facts=len(self.facts),
        )
        self.workspace.root.mkdir(parents=True, exist_ok=True)
        Store(self.workspace.state).save(run)
        journal = Journal(self.workspace.journal)
        for fact in self.facts:
            journal.tell(fact)
        return self.workspace


def mid_run(example: ExampleRun) -> Workspace:
    """Marian trains in its second attempt after a power cut; Whisper waits for its next; the rest is done or to come."""
    example.tell("run.started", "run 20260212-180000 of pipeline Vigil demo started")
    example.simple("download", 20, "6 recordings, 74 s", ["stark_data/raw"])
    example.simple("corpus", 8, "1,840 pairs to train, 200 to test", ["bible_data"])
    example.simple("preprocess", 31, "14 chunks of 6 recordings", ["stark_data/cleaned"])
    example.simple("transcribe", 12, "14 chunks labelled", ["stark_data/transcripts"])
    example.simple("evaluate_before", 40, "3 models scored", ["metrics/before.json"])
    example.start("train_whisper")
    example.events(
        "train_whisper", [Note(at=example.now + 5, text="replay source is not set: trained without replay", level="warning")]
    )
    example.tell("attempt.noted", "replay source is not set: trained without replay", "train_whisper", "warning")
    example.train("train_whisper", 1, 8, 16)
    example.end("train_whisper", Outcome.CRASHED, "killed by signal 9")
    example.status(
        "train_whisper",
        BackingOff(
            since=example.now, delay_s=20, due_monotonic_s=0, boot="one", reason="killed by signal 9", outcome=Outcome.CRASHED
        ),
    )
    example.tell("stage.backed_off", "train_whisper: killed by signal 9; tried again in 20 s", "train_whisper", "warning")
    example.start("train_marian")
    example.train("train_marian", 1, 60, 160)
    example.end("train_marian", Outcome.INTERRUPTED, "gone together with the daemon")
    example.now += 3600
    example.starts.append(Start(at=example.now, boot="two"))
    example.tell("run.resumed", "run 20260212-180000 goes on after a restart of the machine")
    example.start("train_marian")
    example.train("train_marian", 50, 100, 160)
    return example.save()


def finished_run(example: ExampleRun, translate: Callable[[str], str] = str.upper) -> Workspace:
    """The same run at its end: all scored, the bonus failed of memory and what needs it was left out."""
    mid_run(example)
    example.train("train_marian", 101, 160, 160)
    example.succeed(
        "train_marian",
        "160 steps, best at step 160",
        ["fine_tuned_marian_mi"],
        dev_loss_before=5.2,
        dev_loss_after=0.4,
        ledger_exact=1.0,
    )
    example.start("train_whisper")
    example.train("train_whisper", 9, 16, 16)
    whisper = {"wer_before": 0.912, "wer_after": 0.731, "replay_wer_before": 0.5, "replay_wer_after": 0.55}
    whisper |= {"wer_change_low": -0.25, "wer_change_high": -0.1}
    example.succeed("train_whisper", "16 steps on 11 chunks", ["fine_tuned_whisper_mi"], **whisper)
    example.start("train_gemma_4b")
    example.train("train_gemma_4b", 1, 80, 80, 0.5)
    example.succeed("train_gemma_4b", "80 steps, best at step 60", ["fine_tuned_gemma_mi_A"], ledger_exact=1.0)
    example.simple("evaluate_after", 35, "2 models scored", ["metrics/after.json"])
    example.start("train_gemma_12b")
    example.train("train_gemma_12b", 1, 6, 80)
    example.end("train_gemma_12b", Outcome.OUT_OF_MEMORY, "out of memory at micro-batch 1 (the lowest rung of the memory ladder)")
    reason = example.stages["train_gemma_12b"].attempts[-1].reason
    example.status("train_gemma_12b", Failed(at=example.now, reason=reason, outcome=Outcome.OUT_OF_MEMORY))
    example.tell("stage.failed", f"train_gemma_12b failed (a bonus: the run goes on): {reason}", "train_gemma_12b", "warning")
    why = "it needs train_gemma_12b, which is FAILED"
    example.status("evaluate_12b", Skipped(at=example.now, reason=why, by="policy"))
    example.tell("stage.skipped", f"evaluate_12b skipped: {why}", "evaluate_12b", "warning")
    example.finished_at = example.now
    example.tell("run.finished", "run 20260212-180000 finished: 9 SUCCEEDED, 1 FAILED, 1 SKIPPED")
    write_scores(example.workspace, translate)
    return example.save()


def write_scores(workspace: Workspace, translate: Callable[[str], str]) -> None:
    """metrics/eval_results.json and the translations, in the form that `stages.evaluate` documents."""
    models = ("MarianMT", "TranslateGemma-4B", "TranslateGemma-12B")

    def scores(base: float) -> dict[str, Any]:
        return {"sentences": 40, "bleu": base, "chrf": base + 8.5, "comet": round(0.4 + base / 100, 4)}

    def row(label: str, model: str, base: float) -> dict[str, Any]:
        path = f"metrics/translations/{label}/{model}.jsonl"
        lines = [
            {
                "id": f"{number:04x}", "book": "Example", "chapter": 1, "verse": number, "genre": GENRES[number % 3], "en_source": "sample",
                "source": f"The <b>lamp</b> number {number} is lit | at night.", "references": [f"La lámpara número {number} está encendida."],
                "hypothesis": translate(f"lámpara {label} {number}") if label == "after" else "", "scores": {},
            }
            for number in range(1, 9)
        ]  # fmt: skip
        target = workspace.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {
            "kind": "marian", "model": "models/x", "adapter": None, "scores": scores(base), "empty_hypotheses": 8 if label == "before" else 0,
            "genres": {genre: scores(base + place) for place, genre in enumerate(GENRES)}, "translations": {"path": path, "sha256": DIGEST},
        }  # fmt: skip

    def delta(change: float, p: float) -> dict[str, float]:
        return {"before": 0, "after": change, "delta": change, "p_value": p, "ci_low": change - 1.2, "ci_high": change + 1.4}

    comet = {
        "name": "demo metric (tiny COMET; not comparable with a published COMET)",
        "model": "tiny",
        "sha256": DIGEST,
        "demo": True,
        "version": "2.2.7",
    }
    test_set = {"scored_verse_references": 40, "scored_sentences": 40}
    labels = {
        "before": {"label": "before", "test_set": test_set, "signatures": {"bleu": "nrefs:1|case:mixed"}, "comet": comet,
                   "models": {name: row("before", name, 1.25) for name in models}, "left_out": {}},
        "after": {"label": "after", "test_set": test_set, "signatures": {"bleu": "nrefs:1|case:mixed"}, "comet": comet,
                  "models": {"MarianMT": row("after", "MarianMT", 14.5), "TranslateGemma-4B": row("after", "TranslateGemma-4B", 0.75)}, "left_out": {}},
    }  # fmt: skip
    verdicts = {"MarianMT": (13.25, 0.001), "TranslateGemma-4B": (-0.5, 0.012)}
    compared = {
        name: {
            "same_model": False,
            "overall": {"bleu": delta(change, p), "chrf": delta(change, 0.31), "comet": delta(change / 100, p)},
            "genres": {genre: {"bleu": delta(change, p)} for genre in GENRES},
        }
        for name, (change, p) in verdicts.items()
    }
    comparisons = {
        "after": {"baseline": "before", "samples": 1000, "seed": 1, "unit": "verse reference", "models": compared, "left_out": {}}
    }
    workspace.metrics.mkdir(parents=True, exist_ok=True)
    workspace.eval_results.write_text(json.dumps({"schema": 1, "labels": labels, "comparisons": comparisons}))


@pytest.fixture
def example(tmp_path: Path) -> ExampleRun:
    """A run that has just begun: nothing is written before `save`."""
    return ExampleRun(tmp_path / "run")


@pytest.fixture
def mid_workspace(example: ExampleRun) -> Workspace:
    """See `mid_run`."""
    return mid_run(example)


@pytest.fixture
def finished_workspace(example: ExampleRun) -> Workspace:
    """See `finished_run`."""
    return finished_run(example)

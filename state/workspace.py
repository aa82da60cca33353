"""Every path of a run, in one place. Nothing else in Vigil joins path names of the run's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """The folder of one run. Its data, model and metric names are those of the bash pipeline that Vigil replaces."""

    root: Path

    @classmethod
    def at(cls, path: str | Path) -> Workspace:
        """The workspace at `path`, made absolute; creates nothing."""
        return cls(Path(path).expanduser().resolve())

    # -- the daemon's files
    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / "vigil.lock"

    @property
    def control(self) -> Path:
        """Commands are renamed into this folder; the daemon watches it and nothing else."""
        return self.root / "control"

    @property
    def answers(self) -> Path:
        return self.root / "answers"

    # -- a stage's files
    def stage(self, name: str) -> Path:
        return self.root / "stages" / name

    def attempt(self, name: str, number: int) -> Attempt:
        return Attempt(self.stage(name) / "attempts" / f"{number:03d}")

    def checkpoints(self, name: str) -> Path:
        return self.stage(name) / "checkpoints"

    def scratch(self, name: str) -> Path:
        """Unfinished work of a stage: kept across attempts, never read by another stage."""
        return self.stage(name) / "work"

    def result(self, name: str) -> Path:
        return self.stage(name) / "result.json"

    # -- data
    @property
    def raw_audio(self) -> Path:
        return self.root / "stark_data" / "raw"

    @property
    def cleaned_audio(self) -> Path:
        return self.root / "stark_data" / "cleaned"

    @property
    def transcripts(self) -> Path:
        return self.root / "stark_data" / "transcripts"

    @property
    def corpus(self) -> Path:
        return self.root / "bible_data"

    @property
    def train_pairs(self) -> Path:
        return self.corpus / "aligned" / "verse_pairs_train.jsonl"

    @property
    def test_pairs(self) -> Path:
        return self.corpus / "holdout" / "verse_pairs_test.jsonl"

    @property
    def glossary_pairs(self) -> Path:
        return self.corpus / "glossary" / "glossary_pairs.jsonl"

    # -- results
    @property
    def fine_tuned_whisper(self) -> Path:
        return self.root / "fine_tuned_whisper_mi"

    @property
    def fine_tuned_marian(self) -> Path:
        return self.root / "fine_tuned_marian_mi"

    def fine_tuned_gemma(self, size: str) -> Path:
        """`size` is A (4B) or B (12B)."""
        return self.root / f"fine_tuned_gemma_mi_{size}"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def eval_results(self) -> Path:
        return self.metrics / "eval_results.json"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def estimates(self) -> Path:
        """How long each stage is expected to take."""
        return self.root / "plan" / "estimates.json"

    @property
    def forecasts(self) -> Path:
        """What the daemon expected, and when: a line each time it changed."""
        return self.root / "plan" / "forecasts.jsonl"

    @property
    def rehearsal(self) -> Path:
        """The rehearsal's own runs, and what it found."""
        return self.root / "rehearsal"

    @property
    def energy(self) -> Path:
        """What the machine used while stages ran: a line each some minutes."""
        return self.root / "plan" / "energy.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def progress_log(self) -> Path:
        return self.logs / "progress.log"

    @property
    def daemon_log(self) -> Path:
        return self.logs / "daemon.jsonl"

    @property
    def models(self) -> Path:
        """Models that the run made for itself (the demo's tiny ones)."""
        return self.root / "models"

    def inside(self, relative: str) -> Path:
        """`relative` below the workspace.

        Raises:
            ValueError: the path is absolute or leads outside the workspace.
        """
        path = (self.root / relative).resolve()
        if not path.is_relative_to(self.root):
            raise ValueError(f"{relative!r} leads outside the workspace {self.root}")
        return path


@dataclass(frozen=True)
class Attempt:
    """The folder of one attempt: `stages/NAME/attempts/007`."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def output(self) -> Path:
        return self.root / "output.log"

    @property
    def exit(self) -> Path:
        return self.root / "exit.json"

    @property
    def lock(self) -> Path:
        """Held by every process of the attempt: locked means alive."""
        return self.root / "attempt.lock"

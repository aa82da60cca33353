"""What the report tells the owner to do next: commands that work when pasted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from daemon import view
from daemon.results import next_steps
from state.contract import Output, Result
from state.machine import Status
from state.snapshot import Succeeded
from state.workspace import Workspace
from tests.conftest import T0, ExampleRun

VIGIL = Path("/home/me/vigil/vigil")


def test_failed_stages_come_first(finished_workspace: Workspace) -> None:
    """What failed is named with its reason and its retry, then the run's own command; then the results."""
    run = view.read(finished_workspace).run
    found = next_steps.steps(run, view.results(finished_workspace, run), finished_workspace, VIGIL, Path(sys.executable))
    where = f"--workspace {finished_workspace.root}"
    assert [(step.what, step.command) for step in found[:3]] == [
        (
            "train_gemma_12b failed: out of memory at micro-batch 1 (the lowest rung of the memory ladder). Mend that, then",
            f"/home/me/vigil/vigil retry train_gemma_12b {where}",
        ),
        ("Go on with the run", f"/home/me/vigil/vigil run demo.toml {where}"),
        ("Take the results to another machine, verified", f"/home/me/vigil/vigil bundle {where} --to USER@HOST:FOLDER"),
    ]
    assert [step.what for step in found[3:]] == [
        "Translate a sentence with the new MarianMT",
        "Transcribe at most 30 s of speech (16 kHz) with the new Whisper",
        "Translate a sentence by TranslateGemma 4B QLoRA",
    ]


def test_what_is_quicker_is_offered_where_it_was_delivered(finished_workspace: Workspace) -> None:
    """faster-whisper for a merged Whisper, on a chunk of the run's own; CTranslate2 for MarianMT."""
    run = view.read(finished_workspace).run

    def commands() -> str:
        found = next_steps.steps(run, view.results(finished_workspace, run), finished_workspace, VIGIL, Path(sys.executable))
        return "\n".join(step.command for step in found)

    assert "WhisperModel(" not in commands()
    assert "Translator(" not in commands()
    merged, quick = finished_workspace.fine_tuned_whisper / "merged-ct2", finished_workspace.fine_tuned_marian / "ct2"
    chunks = [finished_workspace.cleaned_audio / "a" / f"chunk_000{number}.flac" for number in (2, 1)]
    for folder in (merged, quick, chunks[0].parent):
        folder.mkdir(parents=True)
    for chunk in chunks:
        chunk.write_bytes(b"")
    assert f"WhisperModel('{merged}', " in commands()
    assert f"model.transcribe('{chunks[1]}', " in commands()
    assert f"Translator('{quick}')" in commands()
    assert "WhisperForConditionalGeneration" not in commands()


def test_a_run_that_went_well_has_nothing_to_mend(finished_workspace: Workspace) -> None:
    """No retry and no second run where all succeeded; nothing to take along where nothing was delivered."""
    run = view.read(finished_workspace).run
    well = msgspec.structs.replace(
        run, stages=tuple(msgspec.structs.replace(stage, status=Succeeded(at=T0)) for stage in run.stages)
    )
    assert all(stage.state is Status.SUCCEEDED for stage in well.stages)
    assert next_steps.steps(well, {}, finished_workspace, VIGIL, Path(sys.executable)) == []


@pytest.fixture(scope="module")
def delivered(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with the demo's tiny base models and what training delivers, untrained."""
    from peft import LoraConfig, get_peft_model
    from transformers import Gemma3ForConditionalGeneration, WhisperForConditionalGeneration

    from stages import tiny

    example = ExampleRun(tmp_path_factory.mktemp("my run"))
    workspace, pairs = example.save(), tiny.sample_pairs()[:300]
    bases = {stage.name: workspace.root / str(stage.settings.get("model", "")) for stage in example.pipeline.stages}
    for folder in (workspace.fine_tuned_marian, bases["train_whisper"], bases["train_gemma_4b"]):
        folder.mkdir(parents=True)
    tiny.make_marian(workspace.fine_tuned_marian, pairs, pieces=300, d_model=16, layers=1)
    tiny.make_whisper(bases["train_whisper"], [source for source, _ in pairs[:50]], d_model=16, layers=1)
    tiny.make_gemma(bases["train_gemma_4b"], pairs, "a")
    whisper = WhisperForConditionalGeneration.from_pretrained(bases["train_whisper"])
    get_peft_model(whisper, LoraConfig(target_modules=["q_proj"])).save_pretrained(workspace.fine_tuned_whisper)
    gemma = Gemma3ForConditionalGeneration.from_pretrained(bases["train_gemma_4b"])
    lora = LoraConfig(target_modules=r".*language_model.*\.q_proj")
    get_peft_model(gemma, lora).save_pretrained(workspace.fine_tuned_gemma("A"))
    return workspace


def convert(workspace: Workspace, scratch: Path) -> None:
    """Both models for CTranslate2, as training delivers them."""
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    from stages import marian_ct2, merged_whisper

    base = workspace.root / next(s for s in ExampleRun(scratch).pipeline.stages if s.name == "train_whisper").settings["model"]
    model, processor = WhisperForConditionalGeneration.from_pretrained(base), WhisperProcessor.from_pretrained(base)
    merged_whisper.convert(model, processor, scratch)
    (scratch / merged_whisper.FOLDER).rename(workspace.fine_tuned_whisper / merged_whisper.FOLDER)
    marian_ct2.convert(workspace.fine_tuned_marian, workspace.fine_tuned_marian / marian_ct2.FOLDER)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft asks
def test_the_commands_run(delivered: Workspace, tmp_path: Path) -> None:
    """Each use of a delivered model, pasted into a shell, loads a real (tiny) model and prints what it made of it.

    Then the same with the forms for CTranslate2 beside them.
    """
    assert "WhisperModel(" not in prints(delivered, tmp_path)
    convert(delivered, tmp_path / "scratch")
    assert "WhisperModel(" in prints(delivered, tmp_path)


def prints(delivered: Workspace, folder: Path) -> str:
    """Run every use in `folder`; their commands."""
    run = view.read(delivered).run
    names = ("fine_tuned_marian_mi", "fine_tuned_whisper_mi", "fine_tuned_gemma_mi_A")
    outputs = tuple(Output(path=name, size_bytes=1, sha256="") for name in names)
    receipts = {"train_marian": Result(stage="train_marian", attempt=1, at=T0, outputs=outputs)}
    uses = [step for step in next_steps.steps(run, receipts, delivered, VIGIL, Path(sys.executable)) if " - <<" in step.command]
    assert len(uses) == 3
    soundfile.write(folder / "sermon.wav", np.zeros(16_000, np.float32), 16_000)
    for step in uses:
        ended = subprocess.run(["sh", "-c", step.command], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("["), ended.stdout
    return "\n".join(step.command for step in uses)

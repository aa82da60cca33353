"""PURE: what to do next with a finished run, as commands that can be pasted."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from daemon import report
from state.contract import Result
from state.machine import Status
from state.snapshot import RunState
from state.workspace import Workspace


@dataclass(frozen=True)
class Step:
    """One thing to do."""

    what: str
    command: str


def steps(run: RunState, receipts: dict[str, Result], workspace: Workspace, vigil: Path, python: Path) -> list[Step]:
    """The next steps for this run, most urgent first, by the launcher `vigil` and the environment's `python`."""
    front = shlex.quote(str(vigil))
    where = f"--workspace {shlex.quote(str(workspace.root))}"
    found = [
        Step(f"{stage.name} failed: {report.reason(stage)}. Mend that, then", f"{front} retry {stage.name} {where}")
        for stage in run.stages
        if stage.state is Status.FAILED
    ]
    if not run.finished or found:
        found.append(Step("Go on with the run", f"{front} run {shlex.quote(run.pipeline_path)} {where}"))
    delivered = {output.path.rstrip("/") for receipt in receipts.values() for output in receipt.outputs}
    if delivered:
        found.append(Step("Take the results to another machine, verified", f"{front} bundle {where} --to USER@HOST:FOLDER"))
    return [*found, *_uses(run, delivered, workspace, shlex.quote(str(python)))]


def _uses(run: RunState, delivered: set[str], workspace: Workspace, python: str) -> list[Step]:
    found = []
    if "fine_tuned_marian_mi" in delivered:
        model, quick = workspace.fine_tuned_marian, workspace.fine_tuned_marian / "ct2"
        script = MARIAN_CT2.format(model=str(model), quick=str(quick)) if quick.is_dir() else MARIAN.format(model=str(model))
        found.append(Step("Translate a sentence with the new MarianMT", _script(python, script)))
    for stage in run.pipeline.stages:
        base = _model(str(stage.settings.get("model", "")), workspace)
        gemma = workspace.fine_tuned_gemma(str(stage.settings.get("size", "A")))
        if stage.module == "stages.train_whisper" and "fine_tuned_whisper_mi" in delivered:
            found.append(_hearing(base, workspace, python))
        elif stage.module == "stages.train_gemma" and gemma.name in delivered:
            script = GEMMA.format(base=base, adapter=str(gemma))
            found.append(Step(f"Translate a sentence by {stage.title or stage.name}", _script(python, script)))
    return found


def _hearing(base: str, workspace: Workspace, python: str) -> Step:
    """By faster-whisper where the merged model was delivered, which takes any recording; else by base and adapter."""
    adapter, merged = workspace.fine_tuned_whisper, workspace.fine_tuned_whisper / "merged-ct2"
    speech = str(min(workspace.cleaned_audio.rglob("*.flac"), default="sermon.wav"))
    if merged.is_dir():
        what = "Transcribe a recording of any length with the new Whisper"
        script = FASTER_WHISPER.format(model=str(merged), speech=speech)
    else:
        what = "Transcribe at most 30 s of speech (16 kHz) with the new Whisper"
        script = WHISPER.format(base=base, adapter=str(adapter), speech=speech)
    return Step(what, _script(python, script))


def _model(name: str, workspace: Workspace) -> str:
    """A model's name on the hub, or the folder in the workspace that it names."""
    folder = workspace.root / name
    return str(folder) if folder.is_dir() else name


def _script(python: str, lines: str) -> str:
    return f"{python} - <<'END'\n{lines}END"


MARIAN_CT2 = """\
from ctranslate2 import Translator
from transformers import MarianTokenizer
tokenizer, model = MarianTokenizer.from_pretrained({model!r}), Translator({quick!r})
[found] = model.translate_batch([tokenizer.convert_ids_to_tokens(tokenizer("Let us pray for one another.").input_ids)])
print([tokenizer.decode(tokenizer.convert_tokens_to_ids(found.hypotheses[0]))])
"""
MARIAN = """\
from transformers import MarianMTModel, MarianTokenizer
tokenizer, model = MarianTokenizer.from_pretrained({model!r}), MarianMTModel.from_pretrained({model!r})
batch = tokenizer(["Let us pray for one another."], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True))
"""
FASTER_WHISPER = """\
from faster_whisper import WhisperModel
model = WhisperModel({model!r}, device="cpu", compute_type="float32")
segments, _ = model.transcribe({speech!r}, language="en", vad_filter=True)
print([segment.text for segment in segments])
"""
WHISPER = """\
from peft import PeftModel
from transformers import WhisperForConditionalGeneration, WhisperProcessor
import soundfile
processor = WhisperProcessor.from_pretrained({base!r})
model = PeftModel.from_pretrained(WhisperForConditionalGeneration.from_pretrained({base!r}), {adapter!r})
speech, rate = soundfile.read({speech!r}, dtype="float32")
heard = model.generate(**processor(speech, sampling_rate=rate, return_tensors="pt"), language="en", task="transcribe")
print(processor.batch_decode(heard, skip_special_tokens=True))
"""
GEMMA = """\
from peft import PeftModel
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration
tokenizer = AutoTokenizer.from_pretrained({base!r})
model = PeftModel.from_pretrained(Gemma3ForConditionalGeneration.from_pretrained({base!r}), {adapter!r})
text = dict(type="text", source_lang_code="en", target_lang_code="es", text="Let us pray for one another.")
asked = [dict(role="user", content=[text])]
batch = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.batch_decode(model.generate(**batch, max_new_tokens=60)[:, batch["input_ids"].shape[1]:], skip_special_tokens=True))
"""

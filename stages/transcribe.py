"""Pseudo-labels: the clean chunks of `stark_data/cleaned` to text in `stark_data/transcripts`, by faster-whisper.

Chunks go to the model in batches, one recording after another. Each finished batch is appended to a file in the scratch
folder and synced; a recording's file is renamed into place when it is complete, so that a kill costs one batch at most.
Every segment gets the decoder's confidence and a verdict (`stages.verdicts`); metadata.jsonl is what the training reads.
Doubtful segments also go into label_studio.json for people to look at; what they export comes back as `corrections`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import soundfile
from numpy.typing import NDArray

from stages import captions, cuda_libraries, label_studio
from stages.loading import loading, resolve_model
from stages.recordings import RATE, within
from stages.runtime import Delivery, StageContext, out_of_memory, run
from stages.verdicts import DOUBTFUL, KEPT, REJECTED, Heard, Label, judge, silent_share
from state.contract import MisconfiguredError
from state.durable import file_digest, sync_folder, write_atomically
from state.settings import Transcribe

if TYPE_CHECKING:
    from faster_whisper import BatchedInferencePipeline

Wave = NDArray[np.float32]

METADATA = "metadata.jsonl"
WINDOW = 512
LOAD_S = 1800.0
"""large-v3 is 3 GB: the first load may have to fetch it."""
TOKENS_PER_S = 12.0
"""Fast speech has 5: a decoder in a loop is stopped early."""
MAX_TOKENS = 224
FRAMES_PER_S = 100  # of the log-mel features
NO_SAMPLE = 0.25 / RATE
"""faster-whisper cuts seconds down to samples: a quarter sample more keeps that from losing one."""


class Line(msgspec.Struct, frozen=True):
    """What is read of a line of the cleaned audio's metadata.jsonl."""

    file_name: str
    source: str
    start_s: float
    end_s: float


@dataclass
class Labeller:
    """The loaded model with its settings; `batch` shrinks when memory runs out."""

    ctx: StageContext
    settings: Transcribe
    pipeline: BatchedInferencePipeline
    speech: Any
    """Silero's detector: (samples,) to one probability for every 512 samples."""
    device: str
    batch: int
    spoken: Sequence[captions.Spoken] = ()
    """The captions of the recording at hand."""


def main(ctx: StageContext) -> Delivery:
    """Label every chunk, keep what is labelled, and write one metadata.jsonl over all of them."""
    settings, workspace = ctx.settings(Transcribe), ctx.workspace
    lines = _inputs(workspace.cleaned_audio)
    model = resolve_model(workspace, settings.model, "ctranslate2")
    by_source = {source: list(group) for source, group in groupby(lines, key=lambda line: line.source)}
    corrections = label_studio.read(ctx.resolve(settings.corrections)) if settings.corrections else {}
    subtitles = {source: captions.find(workspace.raw_audio, source, settings.language) for source in by_source}
    marks = {source: _mark(workspace.cleaned_audio, group, subtitles[source], settings) for source, group in by_source.items()}
    labels: dict[str, list[Label]] = {}
    for source in by_source:
        kept = _finished(workspace.transcripts, source, marks[source])
        if kept is not None:
            labels[source] = kept
    done = sum(map(len, labels.values()))
    ctx.progress(done, len(lines), "segments")
    missing = [source for source in by_source if source not in labels]
    if missing:
        labeller = _load(ctx, model, settings)
        for source in missing:
            subtitle = subtitles[source]
            labeller.spoken = captions.read(subtitle) if subtitle is not None else ()
            labels[source] = _recording(labeller, source, by_source[source], marks[source], (done, len(lines)))
            done += len(labels[source])
    ordered = [label for source in by_source for label in labels[source]]
    metrics = {**_metrics(ordered), "captioned_recordings": float(sum(path is not None for path in subtitles.values()))}
    _tell_reasons(ctx, ordered)
    ordered, corrected = label_studio.apply(ordered, corrections)
    if corrections:
        ctx.note(f"{corrected} of {len(corrections)} corrections are used; the others are of chunks that were cut anew since")
        metrics["corrected"] = float(corrected)
    ctx.metric(metrics)
    _write_doubtful(ctx, ordered, settings)
    _write_metadata(ctx, ordered, settings)
    hours = metrics["kept_hours"]
    shares = ", ".join(f"{metrics[f'{verdict}_share']:.0%} {verdict}" for verdict in (KEPT, DOUBTFUL, REJECTED))
    return Delivery(
        outputs=[workspace.transcripts], metrics=metrics, summary=f"{len(ordered)} segments: {shares}; {hours:.2f} h kept"
    )


def _inputs(cleaned: Path) -> list[Line]:
    """The chunks that the audio passes made, those of one recording together."""
    path, decoder = cleaned / METADATA, msgspec.json.Decoder(Line)
    try:
        lines = [decoder.decode(line) for line in path.read_bytes().splitlines()]
        for line in lines:
            within(cleaned, line.file_name)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise MisconfiguredError(f"{path} cannot be used ({error}): run the preprocess stage again") from error
    if not lines:
        raise MisconfiguredError(f"{path} lists no chunk: run the preprocess stage again")
    missing = [line.file_name for line in lines if not (cleaned / line.file_name).is_file()]
    if missing:
        raise MisconfiguredError(f"{path} lists {len(missing)} chunks that are not there, {missing[0]} first: preprocess again")
    return sorted(lines, key=lambda line: (line.source, line.start_s))


def _mark(cleaned: Path, lines: Sequence[Line], subtitle: Path | None, settings: Transcribe) -> str:
    """The digest of what a recording's labels depend on: chunks, captions, settings. With another one it is labelled again."""
    sizes = [(line.file_name, (cleaned / line.file_name).stat().st_size, line.start_s, line.end_s) for line in lines]
    record = cleaned / Path(lines[0].file_name).parent / "record.json"
    digest = file_digest(record) if record.is_file() else ""
    spoken = file_digest(subtitle) if subtitle is not None else ""
    asked = msgspec.structs.replace(settings, corrections=None)
    return hashlib.sha256(msgspec.json.encode([sizes, digest, spoken, asked])).hexdigest()


# -- finished and unfinished transcripts
def _finished(transcripts: Path, source: str, mark: str) -> list[Label] | None:
    """The labels of an earlier attempt, if they were made from these chunks with these settings."""
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, IndexError):
        head, *rest = (transcripts / f"{source}.jsonl").read_bytes().splitlines()
        if msgspec.json.decode(head) == {"mark": mark}:
            return [msgspec.json.decode(line, type=Label) for line in rest]
    return None


def _begun(path: Path, mark: str, batch: int, total: int) -> list[Label]:
    """The whole batches that an interrupted attempt left in `path`, which is cut back to them; the header where none are.

    A torn last line, and lines of an incomplete batch, are dropped: a batch is labelled as a whole or again, so that what
    comes out does not depend on where the kill fell. All `total` labels are whole, also where the last batch is smaller.
    """
    labels: list[Label] = []
    with contextlib.suppress(OSError, msgspec.DecodeError, UnicodeDecodeError, IndexError):
        content = path.read_bytes()
        head, *rest = content[: content.rfind(b"\n") + 1].splitlines()
        if msgspec.json.decode(head) == {"mark": mark}:
            labels = [msgspec.json.decode(line, type=Label) for line in rest]
    labels = labels if len(labels) == total else labels[: len(labels) // batch * batch]
    write_atomically(path, b"".join(msgspec.json.encode(one) + b"\n" for one in [{"mark": mark}, *labels]))
    return labels


def _append(path: Path, labels: Sequence[Label]) -> None:
    with open(path, "ab") as file:
        file.write(b"".join(msgspec.json.encode(label) + b"\n" for label in labels))
        file.flush()
        os.fsync(file.fileno())


# -- labelling
def _recording(labeller: Labeller, source: str, lines: Sequence[Line], mark: str, place: tuple[int, int]) -> list[Label]:
    """Label one recording, going on where an interrupted attempt stopped, and publish its transcript."""
    ctx, (before, total) = labeller.ctx, place
    path = ctx.scratch() / f"{source}.jsonl"
    labels = _begun(path, mark, labeller.batch, len(lines))
    tokens = min(MAX_TOKENS, 16 + int(TOKENS_PER_S * max(line.end_s - line.start_s for line in lines)))
    while len(labels) < len(lines):
        ctx.check_stop()
        group = lines[len(labels) : len(labels) + labeller.batch]
        try:
            made = _labels(labeller, group, tokens)
        except RuntimeError as error:
            _shrink(labeller, error)
            continue
        _append(path, made)
        labels += made
        ctx.progress(before + len(labels), total, "segments", message=source)
    target = ctx.workspace.transcripts / f"{source}.jsonl"
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, target)
    sync_folder(target.parent)
    return labels


def _shrink(labeller: Labeller, error: RuntimeError) -> None:
    """Halve the batch if memory ran out; nothing is lost, the same batch is done again in two."""
    if not out_of_memory(error) or labeller.batch == 1:
        raise error
    labeller.batch //= 2
    labeller.ctx.memory_fit(labeller.settings.model, labeller.device, labeller.batch, str(error)[:200])
    labeller.ctx.note(f"out of memory while labelling: the batch is now {labeller.batch} segments", "warning")


def _labels(labeller: Labeller, group: Sequence[Line], tokens: int) -> list[Label]:
    """One batch through the model. The chunks stand one behind the other in one array; `clip_timestamps` keeps them apart."""
    settings = labeller.settings
    waves = [_read(labeller.ctx.workspace.cleaned_audio / line.file_name) for line in group]
    ends = np.cumsum([len(wave) for wave in waves]).tolist()
    starts = [0, *ends[:-1]]
    clips = [{"start": a / RATE + NO_SAMPLE, "end": b / RATE + NO_SAMPLE} for a, b in zip(starts, ends, strict=True)]
    segments, _info = labeller.pipeline.transcribe(
        np.concatenate(waves),
        language=settings.language,
        beam_size=settings.beam_size,
        batch_size=len(group),
        clip_timestamps=clips,
        word_timestamps=settings.word_timestamps,
        max_new_tokens=tokens,
        temperature=0.0,
    )
    found: dict[int, list[Any]] = {index: [] for index in range(len(group))}
    for segment in segments:  # whose it is says `seek`, its chunk's start; the times are the decoder's and may lie beyond the chunk
        offset = segment.seek / FRAMES_PER_S * RATE
        found[int(np.argmin([abs(start - offset) for start in starts]))].append(segment)
    return [_label(labeller, line, waves[index], found[index], starts[index] / RATE) for index, line in enumerate(group)]


def _read(path: Path) -> Wave:
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except soundfile.LibsndfileError as error:
        raise MisconfiguredError(f"{path} cannot be read ({error}): run the preprocess stage again") from error
    if rate != RATE or samples.ndim != 1:
        raise MisconfiguredError(f"{path} is not {RATE} Hz mono: run the preprocess stage again")
    return samples


def _label(labeller: Labeller, line: Line, wave: Wave, segments: Sequence[Any], offset_s: float) -> Label:
    """Join what the decoder found in one chunk (usually one segment) and judge it."""
    text = " ".join(part for part in (" ".join(segment.text.split()) for segment in segments) if part)
    words = tuple(_words(segments, offset_s))
    silent = silent_share(words, _speech(labeller, wave)) if words else None
    differing = captions.disagreement(text, labeller.spoken, line.start_s, line.end_s)
    heard = Heard(
        text=text,
        seconds=line.end_s - line.start_s,
        avg_logprob=min((float(segment.avg_logprob) for segment in segments), default=-99.0),
        no_speech_prob=max((float(segment.no_speech_prob) for segment in segments), default=1.0),
        compression_ratio=max((float(segment.compression_ratio) for segment in segments), default=0.0),
        silent_words=silent if silent is None else round(silent, 4),
        caption_error=differing if differing is None else round(differing, 4),
    )
    verdict, reason = judge(heard, labeller.settings)
    return Label(
        file_name=line.file_name,
        text=text,
        source=line.source,
        start_s=line.start_s,
        end_s=line.end_s,
        verdict=verdict,
        reason=reason,
        avg_logprob=round(heard.avg_logprob, 4),
        no_speech_prob=round(heard.no_speech_prob, 6),
        compression_ratio=round(heard.compression_ratio, 3),
        words=words,
        silent_words=heard.silent_words,
        caption_error=heard.caption_error,
    )


def _speech(labeller: Labeller, wave: Wave) -> list[float]:
    """How sure the voice detector is of speech, for every 512 samples; the last ones are filled up with silence."""
    found: list[float] = labeller.speech(np.pad(wave, (0, -len(wave) % WINDOW))).tolist()
    return found


def _words(segments: Sequence[Any], offset_s: float) -> Iterator[tuple[str, float, float, float]]:
    for segment in segments:
        for word in segment.words or ():
            start_s, end_s = max(0.0, float(word.start) - offset_s), max(0.0, float(word.end) - offset_s)
            yield word.word.strip(), round(start_s, 2), round(end_s, 2), round(float(word.probability), 4)


def _load(ctx: StageContext, model: str, settings: Transcribe) -> Labeller:
    """Load the model on the GPU where there is one.

    Raises:
        MisconfiguredError: not a model, or the GPU's libraries for it are missing.
        TransientError: the hub cannot be reached and the model is not in the cache.
    """
    ctx.quiet(LOAD_S, f"loading {settings.model}")
    libraries = cuda_libraries.preload()
    import ctranslate2  # after the libraries: it looks for them when it is first used
    from faster_whisper import BatchedInferencePipeline, WhisperModel
    from faster_whisper.vad import get_vad_model

    device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    if device == "cuda" and not cuda_libraries.loads(cuda_libraries.CUBLAS):
        raise MisconfiguredError(
            f"{cuda_libraries.CUBLAS} is not there, without it faster-whisper cannot use the GPU: pip install nvidia-cublas-cu12"
        )
    ctx.log.info("model.loading", model=settings.model, device=device, libraries=libraries)
    threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    with loading(settings.model):
        whisper = WhisperModel(model, device=device, compute_type=settings.compute_type, cpu_threads=threads)
    batch = ctx.spec.batch.eval_batch or ctx.spec.batch.micro_batch or settings.batch_size
    if device == "cuda":
        ctx.note(f"faster-whisper on the GPU: {_found(libraries)}")
    return Labeller(ctx, settings, BatchedInferencePipeline(whisper), get_vad_model(), device, batch)


def _found(libraries: Sequence[str]) -> str:
    """Where CTranslate2's CUDA libraries come from, in words."""
    ours = next((path for path in libraries if Path(path).name == cuda_libraries.CUBLAS), None)
    return (
        f"{cuda_libraries.CUBLAS} from {ours}" if ours else f"{cuda_libraries.CUBLAS} from the system; no nvidia-cublas-cu12 here"
    )


# -- results
def _tell_reasons(ctx: StageContext, labels: Sequence[Label]) -> None:
    """Why segments are not kept, with counts."""
    reasons = Counter(f"{label.verdict}, {label.reason}" for label in labels if label.verdict != KEPT)
    if reasons:
        told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        ctx.note(f"{sum(reasons.values())} of {len(labels)} segments are not kept: {told}", reasons=dict(reasons))


def _write_doubtful(ctx: StageContext, labels: Sequence[Label], settings: Transcribe) -> None:
    """What a person should look at, as an import file of Label Studio."""
    doubtful = [label for label in labels if label.verdict == DOUBTFUL]
    audio = ctx.workspace.cleaned_audio.relative_to(ctx.workspace.root).as_posix()
    write_atomically(ctx.workspace.transcripts / label_studio.FILE, label_studio.tasks(doubtful, audio, settings.model))


def _write_metadata(ctx: StageContext, labels: Sequence[Label], settings: Transcribe) -> None:
    """metadata.jsonl for the training: with `keep_doubtful` those count as kept, and their reason says so.

    Raises:
        MisconfiguredError: not one segment can be trained on.
    """
    doubtful = sum(label.verdict == DOUBTFUL for label in labels)
    if settings.keep_doubtful and doubtful:
        labels = [_pardoned(label) for label in labels]
        ctx.note(f"{doubtful} doubtful segments are kept for training, as keep_doubtful asks", segments=doubtful)
    if not any(label.verdict == KEPT for label in labels):
        reasons = Counter(f"{label.verdict}: {label.reason}" for label in labels)
        told = "; ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise MisconfiguredError(
            f"none of {len(labels)} segments can be trained on ({told}): check the model, the language and the audio"
        )
    lines = b"".join(msgspec.json.encode(label) + b"\n" for label in labels)
    write_atomically(ctx.workspace.transcripts / METADATA, lines)


def _pardoned(label: Label) -> Label:
    if label.verdict != DOUBTFUL:
        return label
    return msgspec.structs.replace(label, verdict=KEPT, reason=f"{DOUBTFUL} ({label.reason}), kept by keep_doubtful")


def _metrics(labels: Sequence[Label]) -> dict[str, float]:
    """Counts by what was judged, before keep_doubtful."""
    verdicts = Counter(label.verdict for label in labels)
    shares = {f"{verdict}_share": verdicts[verdict] / len(labels) for verdict in (KEPT, DOUBTFUL, REJECTED)}
    kept_s = sum(label.end_s - label.start_s for label in labels if label.verdict == KEPT)
    mean = float(np.mean([label.avg_logprob for label in labels]))
    return {"segments": float(len(labels)), **shares, "kept_hours": kept_s / 3600, "mean_avg_logprob": mean}


if __name__ == "__main__":
    run(main)

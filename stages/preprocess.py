"""The audio passes: recordings in `stark_data/raw` to clean chunks in `stark_data/cleaned`.

What happens to a recording is `stages.sound_passes`; here it is which, by whom, and what is kept. A recording's chunks and
its `record.json` (what each pass did, in numbers) become visible by one rename: a recording is finished or it is not, and
a finished one is not done again unless the file or the settings changed. A bad recording is set aside with one sentence.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import psutil

from stages import separation
from stages.recordings import recordings, shown, stems
from stages.runtime import Delivery, StageContext, run
from stages.sound_passes import PASSES, RECORD, Chunk, Record, Work, cleaned, cut_rules
from stages.sound_workers import Lost, side_by_side, worker_count
from state.contract import MisconfiguredError
from state.durable import file_digest, write_atomically
from state.settings import Preprocess
from state.workspace import Workspace

METADATA = "metadata.jsonl"
MAKES_NO_SOUND = ("min_good_share", "workers", "worker_mb")
"""Settings that change no chunk: with others of them nothing is done again."""


def main(ctx: StageContext) -> Delivery:
    """Clean every recording, keep those that are done, and write one metadata.jsonl over all chunks."""
    settings, workspace = ctx.settings(Preprocess), ctx.workspace
    _check(settings, workspace)
    paths = _inputs(ctx)
    named = stems(paths)
    _drop_strangers(ctx, workspace.cleaned_audio, set(named.values()))
    records = _records(ctx, settings, named)
    chunks = [chunk for record in records for chunk in record.chunks]
    good = sum(record.good for record in records)
    _check_enough(records, settings)
    lines = b"".join(msgspec.json.encode(chunk) + b"\n" for chunk in chunks)
    write_atomically(workspace.cleaned_audio / METADATA, lines)
    metrics = _metrics(records, chunks)
    ctx.metric(metrics)
    hours = metrics["chunk_hours"]
    summary = f"{len(chunks)} chunks ({hours:.2f} h) from {good} of {len(records)} recordings"
    return Delivery(outputs=[workspace.cleaned_audio], metrics=metrics, summary=summary)


def _check(settings: Preprocess, workspace: Workspace) -> None:
    """Find out what cannot work before the first recording is touched."""
    try:
        if settings.low_hz >= settings.high_hz:
            raise ValueError(f"low_hz {settings.low_hz:g} must be below high_hz {settings.high_hz:g}")
        cut_rules(settings)
    except ValueError as error:
        raise MisconfiguredError(f"settings of the audio passes: {error}") from error
    if settings.separation_model:
        path = workspace.root / Path(settings.separation_model).expanduser()
        separation.check(str(path) if path.exists() else settings.separation_model)
    if settings.separation_model and not settings.kinds:
        raise MisconfiguredError("separation_model is named, but kinds = false: music is not looked for; switch kinds on")


def _inputs(ctx: StageContext) -> list[Path]:
    """The recordings, each once: a copy might be trained on under one name and held out under the other."""
    folder = ctx.workspace.raw_audio
    paths = recordings(folder) if folder.is_dir() else []
    if not paths:
        raise MisconfiguredError(f"{folder} holds no recording: run the download stage, or put audio files there, then retry")
    lengths = Counter(path.stat().st_size for path in paths)
    first: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):  # a (1).mp3 is the copy of a.mp3
        kept = first.setdefault(file_digest(path) if lengths[path.stat().st_size] > 1 else str(path), path)
        if kept != path:
            ctx.note(f"{shown(path)} is left out: it is a copy of {shown(kept)}", "warning", file=shown(path))
    return sorted(first.values())


def _drop_strangers(ctx: StageContext, cleaned: Path, stems_now: set[str]) -> None:
    """Remove chunks of recordings that are no longer there: only folders that this stage made, known by their record."""
    for record in sorted(cleaned.glob(f"*/{RECORD}")):
        if record.parent.name not in stems_now:
            shutil.rmtree(record.parent)
            ctx.note(f"removed the chunks of {record.parent.name}: its recording is no longer in {ctx.workspace.raw_audio.name}/")


def _records(ctx: StageContext, settings: Preprocess, named: dict[Path, str]) -> list[Record]:
    """What became of each recording: kept from an earlier attempt, or cleaned now, several at a time where that pays."""
    made = msgspec.structs.replace(settings, **{name: getattr(Preprocess(), name) for name in MAKES_NO_SOUND})
    found: dict[str, Record] = {}
    total, waiting = len(named), list[Work]()
    for path, stem in named.items():
        ctx.check_stop()
        record = _kept(ctx.workspace, path, stem, made)
        shutil.rmtree(ctx.scratch() / stem, ignore_errors=True)  # hundreds of megabytes an hour of sound
        if record is None:
            waiting.append(Work(path, stem, made, ctx.scratch() / stem, lambda _share: None, ctx.workspace.root))
        else:
            found[stem] = record
            ctx.progress(len(found), total, "recordings", message=shown(path))

    def beat(shares: dict[str, float]) -> None:
        share = min(sum(shares.values()), 0.99 * max(len(shares), 1))
        ctx.progress(len(found) + share, total, "recordings", message=", ".join(shares))

    for work, record in _cleaned(ctx, settings, waiting, beat):
        found[work.stem] = record
        ctx.progress(len(found), total, "recordings", message=shown(work.path))
    return [found[stem] for stem in named.values()]


def _kept(workspace: Workspace, path: Path, stem: str, settings: Preprocess) -> Record | None:
    """The record of an earlier attempt, if it speaks of this very file, these settings and these passes."""
    with contextlib.suppress(OSError, msgspec.DecodeError):
        record = msgspec.json.decode((workspace.cleaned_audio / stem / RECORD).read_bytes(), type=Record)
        same = (record.file, record.size_bytes, record.settings, record.passes_version)
        if same == (shown(path), path.stat().st_size, settings, PASSES) and record.sha256 == file_digest(path):
            return record
    return None


def _cleaned(
    ctx: StageContext, settings: Preprocess, waiting: list[Work], beat: Callable[[dict[str, float]], None]
) -> Iterator[tuple[Work, Record]]:
    """Each waiting recording with its record, published: by this process, or by workers side by side."""
    sound_bytes = sum(work.path.stat().st_size for work in waiting)
    cores = len(os.sched_getaffinity(0))
    count = worker_count(settings, len(waiting), sound_bytes, psutil.virtual_memory().available, cores)
    ended: Iterator[tuple[Work, Record | Lost]] = _one_by_one(ctx, waiting, beat)
    if count > 1:
        ended = side_by_side(waiting, count, beat, ctx.check_stop)
    for work, found in ended:
        if isinstance(found, Lost):  # nothing is published: the next attempt tries again
            record = Record.of(work, f"{shown(work.path)}: its worker was killed twice (signal {found.signal})", ())
        else:
            record = found
            ctx.publish(work.folder / "out", ctx.workspace.cleaned_audio / work.stem)
        shutil.rmtree(work.folder, ignore_errors=True)
        if not record.good:
            ctx.note(f"recording set aside: {record.reason}", "warning", file=record.file)
        yield work, record


def _one_by_one(ctx: StageContext, waiting: list[Work], beat: Callable[[dict[str, float]], None]) -> Iterator[tuple[Work, Record]]:
    for work in waiting:

        def said(share: float, name: str = shown(work.path)) -> None:
            ctx.check_stop()
            beat({name: share})

        ctx.check_stop()
        yield work, cleaned(replace(work, beat=said))


def _check_enough(records: list[Record], settings: Preprocess) -> None:
    good = sum(record.good for record in records)
    if good == 0 or good / len(records) < settings.min_good_share:
        reasons = "; ".join(record.reason for record in records if not record.good)
        raise MisconfiguredError(
            f"only {good} of {len(records)} recordings are fit for training, {settings.min_good_share:.0%} are needed: {reasons}"
        )


def _metrics(records: list[Record], chunks: list[Chunk]) -> dict[str, float]:
    lengths = [chunk.end_s - chunk.start_s for chunk in chunks]
    heard = [record.passes.get("kinds", {}) for record in records]
    return {
        "recordings": float(len(records)),
        "recordings_good": float(sum(record.good for record in records)),
        "recording_hours": sum(record.passes.get("convert", {}).get("seconds", 0.0) for record in records) / 3600,
        "chunks": float(len(chunks)),
        "chunk_hours": sum(lengths) / 3600,
        "chunk_mean_s": float(np.mean(lengths)) if lengths else 0.0,
        "music_hours": sum(kinds.get("music_s", 0.0) + kinds.get("speech_over_music_s", 0.0) for kinds in heard) / 3600,
        "chunks_refused": float(sum(record.passes.get("final_gate", {}).get("refused", 0) for record in records)),
    }


if __name__ == "__main__":
    run(main)

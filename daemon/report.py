"""PURE: what Vigil says about a run, in words and tables; shared by the command line, the bot and the page.

Values in, text out. The status object is promised to scripts: docs/status-json.md describes it and a test holds it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from pathlib import Path
from typing import Any

from daemon import words
from daemon.view import StageView, View
from state.contract import Outcome, Result
from state.forecast import Forecast
from state.machine import Status
from state.pipeline import StageConfig
from state.snapshot import Attempt, BackingOff, Fact, Failed, Pending, Running, RunState, Skipped, StageState, Succeeded

RULE = "=" * 40

OUTPUTS = {
    "stark_data/raw": "recordings as downloaded",
    "stark_data/cleaned": "clean speech chunks",
    "stark_data/transcripts": "pseudo-labels",
    "bible_data": "verse pairs and glossary",
    "bible_data/aligned/verse_pairs_train.jsonl": "verse pairs to train on",
    "bible_data/holdout/verse_pairs_test.jsonl": "verse pairs held out",
    "bible_data/glossary/glossary_pairs.jsonl": "glossary pairs",
    "bible_data/manifest.json": "where the pairs come from",
    "fine_tuned_whisper_mi": "Whisper LoRA adapter",
    "fine_tuned_marian_mi": "MarianMT full model",
    "fine_tuned_gemma_mi_A": "TranslateGemma 4B LoRA",
    "fine_tuned_gemma_mi_B": "TranslateGemma 12B LoRA",
    "metrics": "scores and translations",
    "metrics/eval_results.json": "scores before and after",
    "metrics/translations": "translations scored",
    "metrics/translations_general": "general sentences scored",
    "metrics/before.json": "scores before",
    "metrics/after.json": "scores after",
    "metrics/after_12b.json": "12B: scores after",
    "metrics/translations/before": "translations before",
    "metrics/translations/after": "translations after",
    "metrics/translations/after_12b": "12B: translations after",
    "metrics/translations_general/before": "general sentences before",
    "metrics/translations_general/after": "general sentences after",
    "metrics/translations_general/after_12b": "12B: general sentences",
}
"""What the delivered folders hold; the names are the original's."""
COPIES = {
    "fine_tuned_whisper_mi/merged-ct2": "Whisper and adapter as one model, for faster-whisper",
    "fine_tuned_marian_mi/ct2": "the same MarianMT for CTranslate2, which is faster",
}
"""Other forms of a delivered model, in its folder where they proved equal to it."""

TROUBLE_KINDS = frozenset(
    {
        "run.resumed",
        "run.stopped",
        "state.repaired",
        "stage.backed_off",
        "attempt.hung",
        "disk.held",
        "disk.freed",
        "disk.reclaimed",
    }
)
"""Facts that belong to what went wrong, whatever their level."""


# -- status


def status_object(view: View, host: Mapping[str, Any], now: float, forecast: Forecast | None = None) -> dict[str, Any]:
    """The object that `status --json` prints: `run`, `stages`, `host`, `forecast`; see docs/status-json.md."""
    run = view.run
    return {
        "run": {
            "id": run.id,
            "pipeline": run.pipeline.name,
            "started_at": words.iso(run.started_at),
            "finished_at": words.iso(run.finished_at),
            "paused": run.paused,
            "disk_hold": run.disk_hold,
            "daemon_running": view.alive,
        },
        "stages": [_stage_object(stage, now) for stage in view.stages],
        "host": dict(host),
        "forecast": _forecast_object(forecast) if forecast is not None and not run.finished else None,
    }


def _forecast_object(forecast: Forecast) -> dict[str, Any]:
    return {
        "at": words.iso(forecast.at),
        "p50_at": words.iso(forecast.p50_at),
        "p80_at": words.iso(forecast.p80_at),
        "deadline_at": words.iso(forecast.deadline_at),
        "fits": forecast.fits,
    }


def _stage_object(stage: StageView, now: float) -> dict[str, Any]:
    share, eta_s = stage.share, stage.eta_s(now)
    return {
        "name": stage.config.name,
        "status": str(stage.state.state),
        "resource": str(stage.config.resource),
        "optional": stage.config.optional,
        "attempts": len(stage.state.attempts),
        "progress": None if share is None else round(share, 4),
        "step": stage.step,
        "steps": stage.steps,
        "metrics": stage.metrics,
        "checkpoint": stage.checkpoint,
        "eta_s": None if eta_s is None else round(eta_s, 1),
        "reason": reason(stage.state) or None,
    }


def reason(stage: StageState) -> str:
    """Why the stage stands where it stands; empty when there is nothing to explain."""
    status = stage.status
    if isinstance(status, BackingOff | Failed | Skipped):
        return status.reason
    if isinstance(status, Running) and status.intent is not None:
        return status.intent.reason
    return ""


def status_lines(
    view: View,
    host: Mapping[str, Any],
    now: float,
    *,
    columns: int = 80,
    zone: tzinfo | None = None,
    forecast: Forecast | None = None,
    verdicts: Sequence[str] = (),
) -> list[str]:
    """`status` for people: what runs, how far each stage is, what the models are worth, and what the machine has left."""
    rows = [["", "stage", "status", "done", "left", "note"]]
    for stage in view.stages:
        share = stage.share
        rows.append(
            [
                str(stage.number),
                stage.config.name,
                str(stage.state.state),
                "" if share is None else words.percent(share),
                "" if (eta_s := stage.eta_s(now)) is None else words.duration(eta_s),
                stage_note(stage, view, now),
            ]
        )
    width = max(16, columns - sum(max(words.cells(row[i]) for row in rows) for i in range(5)) - 2 * 5)
    rows = [[*row[:5], words.clip(row[5], width)] for row in rows]
    host_text = host_line(host)
    plan = deadline_lines(forecast, now, zone) if forecast and not view.run.finished else []
    head = [part for line in (*headline(view, now, zone), *plan) for part in textwrap.wrap(line, columns)]
    worth = [part for sentence in verdicts for part in textwrap.wrap(sentence, columns, subsequent_indent="  ")]
    below = [part for block in (worth, textwrap.wrap(host_text, columns)) if block for part in ("", *block)]
    return [*head, "", *words.table(rows, right=(0, 3, 4)), *below]


def headline(view: View, now: float, zone: tzinfo | None = None) -> list[str]:
    """Which run, since when, and whether anybody works on it."""
    run = view.run
    ended = run.finished_at
    since = f"started {words.day_and_clock(run.started_at, zone)}"
    took = f"finished after {words.duration(ended - run.started_at)}" if ended else f"{words.duration(now - run.started_at)} ago"
    return [f"{run.pipeline.name}: run {run.id}, {since}, {took}", liveness(view)]


def deadline_lines(forecast: Forecast, now: float, zone: tzinfo | None = None) -> list[str]:
    """Whether the deadline holds, and what the owner can do when it does not; empty where there is none."""
    if forecast.deadline_at is None:
        return []
    due, sure = words.near(forecast.deadline_at, now, zone), words.near(forecast.p80_at, now, zone)
    return [f"Deadline {due}: {lateness(forecast)} (80 %: {sure})", *filter(None, [forecast.choice])]


def lateness(forecast: Forecast) -> str:
    """`fits`, or by how much the deadline is missed by the P80; it only may be where the P50 still holds."""
    deadline_at = forecast.deadline_at
    if deadline_at is None or forecast.fits:
        return "fits"
    late_s = forecast.p80_at - deadline_at
    late = words.duration(late_s if late_s < 7200 else 3600 * round(late_s / 3600))  # no forecast is good to the minute
    return f"may be {late} late" if forecast.p50_at <= deadline_at else f"late by {late}"


def liveness(view: View) -> str:
    """One sentence: is a daemon there, and what that means."""
    run = view.run
    if run.finished:
        return verdict(run)
    if view.alive is None:
        return "Whether Vigil is running cannot be told: its lock cannot be read."
    if not view.alive:
        return "Vigil is not running; the command that began the run goes on from here."
    if run.disk_hold:
        return f"Vigil is running and waits for disk space: {run.disk_hold}."
    if run.paused:
        return "Vigil is running and paused: nothing new starts until `vigil resume`."
    return "Vigil is running."


def verdict(run: RunState) -> str:
    """How a finished run ended, in one sentence that counts every stage."""
    counts, required = count_states(run), run.failed_required
    if counts[Status.SUCCEEDED] == len(run.stages):
        return f"Finished: all {len(run.stages)} stages succeeded."
    parts = [f"Finished: {counts[Status.SUCCEEDED]} of {len(run.stages)} stages succeeded"]
    if bonus := counts[Status.FAILED] - len(required):
        parts.append(f"{bonus} bonus failed")
    if counts[Status.SKIPPED]:
        parts.append(f"{counts[Status.SKIPPED]} skipped")
    return ", ".join(parts) + "." + (f" Failed: {', '.join(required)}." if required else "")


def count_states(run: RunState) -> dict[Status, int]:
    """How many stages stand in each status."""
    return {status: sum(stage.state is status for stage in run.stages) for status in Status}


def stage_note(stage: StageView, view: View, now: float) -> str:
    """The few words behind a stage's line."""
    status = stage.state.status
    if isinstance(status, Succeeded):
        return status.summary
    if isinstance(status, Pending):
        return waits_for(stage.config, view.run)
    if isinstance(status, BackingOff) and status.needed_bytes:
        return f"waits for {words.size(status.needed_bytes)} of free space: {status.reason}"
    if isinstance(status, BackingOff):
        wait_s = max(0.0, status.since + status.delay_s - now)
        return f"{'again in ' + words.duration(wait_s) if wait_s else 'goes on next'}: {status.reason}"
    if isinstance(status, Running):
        return f"stopping: {status.intent.reason}" if status.intent else running_note(stage)
    return reason(stage.state)


def running_note(stage: StageView) -> str:
    """What a running stage last told: position, pace, loss."""
    told, parts = stage.progress, []
    if stage.working is False:
        parts.append("its process is gone; the next run goes on")
    if stage.step is not None:
        parts.append(f"step {stage.step:,}" + (f"/{stage.steps:,}" if stage.steps else ""))
    elif told is not None and told.total:
        parts.append(f"{words.number(told.done)} of {words.number(told.total)} {told.unit}")
    if stage.step_s is not None and stage.working is not False:
        parts.append(pace(stage.step_s))
    if (loss := stage.metrics.get("loss")) is not None:
        parts.append(f"loss {words.number(loss, 3)}")
    if told is not None and told.message:
        parts.append(told.message)
    if len(stage.state.attempts) > 1:
        parts.append(f"attempt {len(stage.state.attempts)}")
    return ", ".join(parts) or "starting"


def pace(step_s: float) -> str:
    """Seconds per step as people say it."""
    return f"{step_s:.1f} s/step" if step_s >= 1 else f"{1 / step_s:.1f} steps/s" if step_s > 0 else ""


def took(stage: StageState) -> str:
    """The time that a stage's attempts have taken together; empty when it had none."""
    spent = [attempt.ended_at - attempt.started_at for attempt in stage.attempts if attempt.ended_at is not None]
    return words.duration(sum(spent)) if spent else ""


def waits_for(config: StageConfig, run: RunState) -> str:
    """What a stage that has not started is still waiting for."""
    settled = {stage.name for stage in run.stages if stage.settled}
    others = [name for name in dict.fromkeys((*config.needs, *config.after)) if name not in settled]
    return f"after {', '.join(others)}" if others else f"waits for the {config.resource}"


def host_line(host: Mapping[str, Any]) -> str:
    """Disk, memory and GPU in one line; what was not measured is left out, a GPU that does not answer is said so."""
    parts = [f"disk {words.size(disk['free_bytes'])} free ({disk['path']})" for disk in host.get("disks") or ()]
    used, total = host.get("memory_used_bytes"), host.get("memory_total_bytes")
    if used is not None and total:
        parts.append(f"RAM {words.size(used)} of {words.size(total)}")
    gpus = host.get("gpus", ())
    parts.extend(["GPU does not answer"] if gpus is None else [gpu_text(gpu) for gpu in gpus])
    return " · ".join(parts)


def gpu_text(gpu: Mapping[str, Any]) -> str:
    """One graphics card: load, temperature, memory; only what it tells."""
    found = [str(gpu.get("name") or "GPU")]
    if (load := gpu.get("load_percent")) is not None:
        found.append(f"{load:.0f} %")
    if (heat := gpu.get("temperature_c")) is not None:
        found.append(f"{heat:.0f} °C")
    used, total = gpu.get("memory_used_bytes"), gpu.get("memory_total_bytes")
    if used is not None and total:
        found.append(f"{words.size(used)} of {words.size(total)}")
    return " ".join(found)


# -- the journal


def fact_line(fact: Fact, zone: tzinfo | None = None) -> str:
    """One fact as a line of `vigil log`."""
    mark = {"warning": "! ", "error": "!! "}.get(fact.level, "")
    moment = words.local(fact.at, zone)
    said_by = f"{fact.stage}: " if fact.stage and not fact.text.startswith(fact.stage) else ""
    return f"{moment:%d %b %H:%M:%S}  {mark}{said_by}{fact.text}"


def troubles(facts: Iterable[Fact]) -> list[Fact]:
    """What went wrong and what was done about it: warnings, errors, waits and resumes, in order of time."""
    return sorted((fact for fact in facts if fact.level != "info" or fact.kind in TROUBLE_KINDS), key=lambda fact: fact.at)


def remarks(facts: Iterable[Fact]) -> list[Fact]:
    """What the stages noted without alarm: decisions and counts."""
    return [fact for fact in facts if fact.level == "info" and fact.kind == "attempt.noted"]


def bad_attempts(run: RunState) -> list[tuple[str, Attempt]]:
    """Every attempt that ended other than well, by stage."""
    return [
        (stage.name, attempt)
        for stage in run.stages
        for attempt in stage.attempts
        if attempt.outcome not in (None, Outcome.SUCCEEDED)
    ]


# -- progress.log, as the original wrote it


def progress_lines(run: RunState, fact: Fact, zone: tzinfo | None = None) -> list[str]:
    """The lines that `fact` adds to logs/progress.log: the original's form, with what it never told besides."""
    if fact.kind == "run.finished":
        return _boxed(f"{_end_words(run)} — {words.date_line(fact.at, zone)}")
    if fact.kind == "run.started":
        return _boxed(f"{run.pipeline.name} — {words.date_line(fact.at, zone)}")
    say = _PROGRESS.get(fact.kind)
    if say is None and fact.level == "info":
        return []
    return [f"[{words.clock(fact.at, zone)}] {(say or _told)(run, fact)}"]


def _boxed(text: str) -> list[str]:
    return [RULE, text, RULE]


def _end_words(run: RunState) -> str:
    """The original's words only where they are true."""
    counts = count_states(run)
    if counts[Status.SUCCEEDED] == len(run.stages):
        return "ALL STAGES COMPLETE"
    ended = [f"{stage.name} {stage.state}" for stage in run.stages if stage.state is not Status.SUCCEEDED]
    if run.failed_required:
        return f"RUN ENDED WITH FAILURES ({', '.join(ended)})"
    return f"ALL OTHER STAGES COMPLETE ({', '.join(ended)})"


def stage_label(run: RunState, name: str | None) -> str:
    """`Stage 3: Pseudo-labelling` without the title: `Stage 3`; empty for a fact of no stage."""
    try:
        return f"Stage {run.pipeline.number(name)}" if name else ""
    except ValueError:
        return name or ""


def _started(run: RunState, fact: Fact) -> str:
    titles = {config.name: config.title for config in run.pipeline.stages}
    again = f" (attempt {fact.attempt})" if fact.attempt and fact.attempt > 1 else ""
    return f"{stage_label(run, fact.stage)}: {titles.get(fact.stage or '') or fact.stage}{again}..."


def _succeeded(run: RunState, fact: Fact) -> str:
    return f"{stage_label(run, fact.stage)} complete."


def _failed(run: RunState, fact: Fact) -> str:
    return f"{stage_label(run, fact.stage)} failed. See log. {fact.text}"


def _told(run: RunState, fact: Fact) -> str:
    label = stage_label(run, fact.stage)
    return f"{label}: {fact.text}" if label else fact.text


_PROGRESS: dict[str, Callable[[RunState, Fact], str]] = {
    "stage.started": _started,
    "stage.succeeded": _succeeded,
    "stage.failed": _failed,
    "stage.skipped": _told,
    "stage.backed_off": _told,
    "run.resumed": _told,
    "run.stopped": _told,
}


# -- the end


def summary(run: RunState, results: Mapping[str, Result]) -> str:
    """The last words of a run: how it ended and, as the original did, what it produced."""
    lines = [verdict(run) if run.finished else "Not finished yet."]
    for stage in run.stages:
        if stage.state in (Status.FAILED, Status.SKIPPED):
            lines.append(f"  {stage.name} {str(stage.state).lower()}: {reason(stage)}")
    rows = output_rows(results)
    if rows:
        lines += ["", "Outputs:", *("  " + line for line in words.table([[row[0], row[1], row[2]] for row in rows], right=(1,)))]
        lines += ["  logs/  all logs of the stages", "  report/index.html  the report"]
    return "\n".join(lines)


def page_lines(page: Path, environ: Mapping[str, str]) -> list[str]:
    """Where the report is; under WSL also by the path that Windows opens."""
    lines = [f"The report: {page}"]
    if distribution := environ.get("WSL_DISTRO_NAME"):
        lines.append("in Windows: " + f"//wsl.localhost/{distribution}{page}".replace("/", "\\"))
    return lines


def output_rows(results: Mapping[str, Result]) -> list[tuple[str, str, str, str]]:
    """(path, size, what it is, sha256) of everything delivered, in the order of the stages; the latest receipt of a path counts."""
    latest: dict[str, tuple[str, str, str, str]] = {}
    for stage, result in results.items():
        for output in result.outputs:
            what = OUTPUTS.get(output.path.rstrip("/"), f"by {stage}")
            latest[output.path] = (output.path, words.size(output.size_bytes), what, output.sha256)
    return list(latest.values())


def answer_lines(asked: str, ok: bool | None, text: str, alive: bool | None) -> Sequence[str]:
    """What became of a command, for the one who typed it; `ok` is None when nobody answered."""
    if ok is not None:
        return [text if ok else f"Refused: {text}"]
    if alive:
        return [f"`{asked}` is queued; Vigil has not answered yet. Look again with `vigil log`."]
    return [f"Vigil is not running here: `{asked}` is queued and carried out when the run goes on."]

"""The report: `report/index.html`, which needs nothing but itself, and its twin `report/report.md`. Whatever is there is shown.

A run that has just begun, lacks stages or lost files gets a page too; what is missing is named as not measured. Run as
`vigil report`, or `python -m daemon.results.page WORKSPACE`; matplotlib and jinja2 are imported only when a page is written.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import Any

from daemon import accounts, energy, report, scores, words
from daemon.results import next_steps, plots, story
from daemon.results.timeline import Timeline, timeline
from daemon.view import AttemptHistory, View, read, read_history, results
from state import forecast
from state.contract import Result
from state.durable import tree_files, write_atomically
from state.machine import Status
from state.pipeline import Pipeline
from state.workspace import Workspace

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
LAUNCHER = Path(__file__).resolve().parents[2] / "vigil"
MODELS_MADE_HERE = "models/"
EXPLAINED = {
    "scores": "BLEU and chrF++ run from 0 to 100; of every metric more is better. Small, below a number: its 95 % interval. "
    "“Better” and “worse” mean that the change is more than chance (p < 0.05); “not clear” means that chance would do.",
    "terms": "Of the glossary's terms in the English that a reference bears out, the share that stands in the translation, in any "
    "inflection. A term is gained in a sentence where it was wrong before and is right now; lost is the other way round.",
    "faults": "Length: words of the translations, by those of the references. Copied: the English came out again. In English: two "
    "or more English words such as “the” and “shall” were left in. English words: their share of all words.",
    "general": "Sentences on everyday topics that no training saw. Where they are translated worse than before, the training has "
    "cost something that the model could do.",
}
"""What the figures of each table are."""
WER = {"wer": "sermon chunks held out, against their pseudo-labels", "replay_wer": "general speech held out"}


@dataclass(frozen=True)
class Written:
    """What was written, and the scores for a terminal."""

    html: Path
    markdown: Path
    table: list[str]


@dataclass(frozen=True)
class LossPlot:
    """One training stage's curves."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Page:
    """All that the templates show; made of text, so that they decide nothing."""

    title: str
    verdict: tuple[str, str, str]
    """How it ended, what it is worth, what it cost."""
    mood: str
    """`good`, `bad`, or `going`: the colour of the verdict."""
    overview: list[tuple[str, str]]
    disclaimers: list[str]
    timeline: Timeline
    verdicts: list[tuple[str, str]]
    """(model, what follows its name in the evaluation's own sentence)."""
    score_rows: list[scores.Row]
    term_rows: list[scores.Row]
    term_changes: list[scores.Terms]
    fault_rows: list[scores.FaultRow]
    general_rows: list[scores.Row]
    score_notes: list[str]
    signatures: list[str]
    wer_rows: list[tuple[str, str, str, str, str]]
    """(what was heard, before, after, change, its 95 % interval)."""
    losses: list[LossPlot]
    training_rows: list[tuple[str, str]]
    samples: list[scores.Sample]
    story: list[story.Day]
    plan: list[tuple[str, str, str, str, str]]
    """(stage, expected, with 80 % by, ended, earlier or later)."""
    account_head: list[str]
    accounts: list[list[str]]
    energy_note: str
    steps: list[next_steps.Step]
    attempts: list[tuple[str, str, str, str]]
    """(stage, attempt, outcome, why)."""
    remarks: list[tuple[str, str, str]]
    outputs: list[tuple[str, str, str, str]]
    made: str

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(row.model for row in self.score_rows))

    @property
    def genres(self) -> list[str]:
        return [genre for genre in dict.fromkeys(row.genre for row in self.score_rows) if genre != scores.ALL_GENRES]

    @property
    def explained(self) -> dict[str, str]:
        return EXPLAINED

    def rows_of(self, model: str, genre: str) -> list[scores.Row]:
        """The rows of one model and genre."""
        return [row for row in self.score_rows if (row.model, row.genre) == (model, genre)]


def write(workspace: Workspace, now: float | None = None, zone: tzinfo | None = None) -> Written:
    """Write both files, each by rename, from what the workspace holds.

    Raises:
        FileNotFoundError: there is no run.
        StateUnreadableError: its state cannot be read.
        OSError: the report cannot be written.
    """
    import jinja2

    page = gather(workspace, time.time() if now is None else now, zone)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    options: dict[str, Any] = {"loader": loader, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    html = jinja2.Environment(autoescape=True, **options).get_template("report.html.j2").render(page=page)
    plain = jinja2.Environment(autoescape=False, **options)
    plain.filters["table"] = lambda rows, head, right=(): "\n".join(words.markdown_table([head, *rows], right))
    markdown = plain.get_template("report.md.j2").render(page=page, **markdown_rows(page))
    written = Written(
        workspace.report / "index.html", workspace.report / "report.md", scores.text_table(scores.read(workspace.eval_results))
    )
    write_atomically(written.html, html)
    write_atomically(written.markdown, markdown)
    return written


def gather(workspace: Workspace, now: float, zone: tzinfo | None = None) -> Page:
    """Read the workspace and put everything into words."""
    view = read(workspace)
    run = view.run
    history = read_history(workspace, run)
    receipts = results(workspace, run)
    measured = scores.read(workspace.eval_results)
    said = scores.verdicts(measured)
    kept, counted = forecast.forecasts(workspace), accounts.read(workspace, view, now)
    titles = {stage.config.name: stage.title for stage in view.stages}
    spent = energy.read(workspace, run.pipeline)
    head, *rows = account_table(view, counted, spent)
    return Page(
        title=run.pipeline.name,
        verdict=story.verdict(view, scores.rows(measured), counted, kept[-1] if kept else None, now, zone, said=said),
        mood=("bad" if run.failed_required else "good") if run.finished else "going",
        overview=overview(view, receipts, now, zone),
        disclaimers=disclaimers(view, measured),
        timeline=timeline(run, {stage.name: report.reason(stage) for stage in run.stages}, seen_until(view, now), zone),
        verdicts=[(model, sentence.removeprefix(model)) for model, sentence in said],
        score_rows=scores.rows(measured),
        term_rows=scores.term_rows(measured),
        term_changes=scores.term_changes(measured),
        fault_rows=scores.fault_rows(measured),
        general_rows=scores.general_rows(measured),
        score_notes=scores.notes(measured),
        signatures=scores.signatures(measured),
        wer_rows=wer_rows(view),
        losses=loss_plots(view, history),
        training_rows=training_rows(view),
        samples=scores.read_samples(workspace, measured),
        story=story.days(view.facts, counted.costs, titles, zone),
        plan=story.plan_rows(run, kept[0] if kept else None, zone),
        account_head=head,
        accounts=rows,
        energy_note=energy_note(spent, run.pipeline),
        steps=next_steps.steps(run, receipts, workspace, LAUNCHER, Path(sys.executable)),
        attempts=[(stage, str(a.number), str(a.outcome), a.reason) for stage, a in report.bad_attempts(run)],
        remarks=[(words.day_and_clock(fact.at, zone), fact.stage or "", fact.text) for fact in report.remarks(view.facts)],
        outputs=[row for told in report.output_rows(receipts) for row in (told, *copies(workspace, told[0]))],
        made=words.date_line(now, zone),
    )


def markdown_rows(page: Page) -> dict[str, list[list[str]]]:
    """The tables of the Markdown twin that the page draws otherwise."""
    stages = [
        [str(lane.number), lane.title, lane.status, lane.took, str(len(lane.segments)), lane.reason] for lane in page.timeline.lanes
    ]
    by_genre = [row for row in page.score_rows if row.genre != scores.ALL_GENRES]
    return {
        "stages": stages,
        "overall": [_cells(row) for row in page.score_rows if row.genre == scores.ALL_GENRES],
        "terms": [[row.model, *_cells(row)[2:]] for row in page.term_rows],
        "faults": [
            [r.model, r.label.replace("_", " "), r.sentences, r.length, r.empty, r.copied, r.untranslated, r.english]
            for r in page.fault_rows
        ],
        "general": [_cells(row) for row in page.general_rows],
        "genres": [[row.model, row.genre.replace("_", " "), f"{row.sentences:,}", *_cells(row)[1:]] for row in by_genre],
    }


def _cells(row: scores.Row) -> list[str]:
    before, after = (f"{score} ({between})" if between else score for score, between in row.sides)
    return [row.model, row.metric, before, after, row.change, row.interval, row.p, row.verdict]


def copies(workspace: Workspace, path: str) -> list[tuple[str, str, str, str]]:
    """The other forms of a delivered model that lie in its folder, whose digest is theirs too."""
    found = []
    for name, what in report.COPIES.items():
        if name.startswith(f"{path.rstrip('/')}/") and (files := tree_files(workspace.root / name)):
            found.append((name, words.size(sum(file.stat().st_size for file in files)), what, "see the folder"))
    return found


def account_table(view: View, counted: accounts.Accounts, spent: Sequence[energy.Energy]) -> list[list[str]]:
    """Where the hours and the energy went: a heading, a line a stage, and the sum; what never occurred has no column."""
    if not counted.stages:
        return [[]]
    kinds = [kind for kind in accounts.Kind if getattr(counted.total, f"{kind}_s") >= 1]
    titles = {stage.config.name: stage.title for stage in view.stages}
    whole, used = energy.whole(spent), {one.stage: one for one in spent}
    priced = whole.money is not None
    rows = [["", *kinds, "together", *(["kWh"] if spent else []), *([view.run.pipeline.currency] if priced else [])]]
    for one in (*counted.stages, counted.total):
        hours = [accounts.hours(getattr(one, f"{kind}_s")) for kind in kinds]
        drawn = whole if one is counted.total else used.get(one.stage)
        cells = [energy.kwh(drawn.kwh if drawn else None)] if spent else []
        money = [words.NONE if drawn is None or drawn.money is None else f"{drawn.money:.2f}"] if priced else []
        rows.append([titles.get(one.stage, one.stage), *hours, accounts.hours(one.wall_s), *cells, *money])
    return rows


def energy_note(spent: Sequence[energy.Energy], pipeline: Pipeline) -> str:
    """What the figures of energy hold and do not hold."""
    if not spent:
        return "Energy: not measured; neither nvidia-smi nor the processor tells it here, or the run was too short."
    whole = energy.whole(spent)
    parts = [part for part, value in (("the GPU", whole.gpu_kwh), ("the processor", whole.cpu_kwh)) if value is not None]
    idle = next((one.kwh for one in spent if one.stage == energy.IDLE), None)
    between = f", {energy.kwh(idle)} kWh of them while no stage ran" if idle else ""
    price = f" At {pipeline.price_per_kwh:g} {pipeline.currency} a kilowatt-hour." if pipeline.price_per_kwh is not None else ""
    return f"Energy is that of {' and '.join(parts)}{between}; the rest of the machine is not measured.{price}"


def seen_until(view: View, now: float) -> dict[str, float]:
    """How far each unended attempt is known to have run: till now, or till its last word if its process is gone."""
    last_words = {stage.config.name: stage.progress.at if stage.progress else 0.0 for stage in view.stages}
    return {stage.config.name: last_words[stage.config.name] if stage.working is False else now for stage in view.stages}


def overview(view: View, receipts: dict[str, Result], now: float, zone: tzinfo | None) -> list[tuple[str, str]]:
    """The figures at the top."""
    run = view.run
    counts = report.count_states(run)
    ended = run.finished_at
    attempts = sum(len(stage.attempts) for stage in run.stages)
    delivered = sum(output.size_bytes for receipt in receipts.values() for output in receipt.outputs)
    return [
        ("stages succeeded", f"{counts[Status.SUCCEEDED]} of {len(run.stages)}"),
        ("took" if ended else "so far", words.duration((ended or now) - run.started_at)),
        ("attempts", str(attempts)),
        ("restarts of Vigil", str(max(0, len(run.starts) - 1))),
        ("delivered", words.size(delivered) if receipts else "nothing yet"),
        ("started", words.day_and_clock(run.started_at, zone)),
        ("finished", words.day_and_clock(ended, zone) if ended else "not yet"),
        ("run", run.id),
    ]


def disclaimers(view: View, measured: scores.Results | None) -> list[str]:
    """What forbids to take these numbers for more than they are."""
    found = []
    if any(MODELS_MADE_HERE in text for stage in view.run.pipeline.stages for text in _texts(stage.settings)):
        found.append(
            "The models of this run are tiny ones that Vigil made on this machine to show that every stage works. "
            "Their scores were really measured, and say nothing about the real models."
        )
    if name := scores.demo_comet(measured):
        found.append(f"COMET here is the {name}.")
    return found


def _texts(value: Any) -> list[str]:
    """Every string in nested settings that starts like the workspace's own models folder."""
    if isinstance(value, str):
        return [value] if value.startswith(MODELS_MADE_HERE) else []
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [text for part in parts for text in _texts(part)]


def wer_rows(view: View) -> list[tuple[str, str, str, str, str]]:
    """Whisper's word error rates before and after, from its receipt; empty when no stage measured any."""
    rows = []
    for stage in view.stages:
        for key, what in WER.items():
            before, after = stage.metrics.get(f"{key}_before"), stage.metrics.get(f"{key}_after")
            if before is None and after is None:
                continue
            change = "" if before is None or after is None else f"{points(100 * (after - before))} points"
            rows.append((what, _rate(before), _rate(after), change, _interval(stage.metrics, f"{key}_change")))
    return rows


def _interval(metrics: Mapping[str, float], name: str) -> str:
    """The 95 % interval of a change, in points; empty when there is none."""
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    return "" if low is None or high is None else f"{points(100 * low)} to {points(100 * high)}"


def points(value: float) -> str:
    """A signed difference with one digit; a rounded nothing has no sign."""
    text = f"{value:+.1f}".replace("-", "−")
    return text if any(char in "123456789" for char in text) else text[1:]


def _rate(value: float | None) -> str:
    return words.NOT_MEASURED if value is None else f"{100 * value:.1f} %"


def loss_plots(view: View, history: Sequence[AttemptHistory]) -> list[LossPlot]:
    """A plot for every stage that told a loss."""
    found = []
    for stage in view.stages:
        shown = plots.training([attempt for attempt in history if attempt.stage == stage.config.name])
        if shown is None:
            continue
        measured = words.plural(sum(len(curve.steps) for curve in shown.loss), "measurement")
        caption = f"{measured} over {words.plural(len(shown.loss), 'attempt')}"
        if shown.resumes:
            caption += "; dashed: where a later attempt went on; grey: steps that were done again"
        found.append(LossPlot(stage.title, plots.draw(stage.config.name, shown), caption + "."))
    return found


def training_rows(view: View) -> list[tuple[str, str]]:
    """What every succeeded training stage says of itself, and whether its ledger holds."""
    rows = []
    for stage in view.stages:
        if stage.result is None or not stage.config.module.startswith("stages.train_"):
            continue
        exact = stage.metrics.get("ledger_exact")
        proof = {1.0: " Its ledger proves which examples it used.", 0.0: " Its ledger does not prove which examples it used."}
        rows.append(
            (
                stage.title,
                stage.result.summary + ("." if exact is not None else "") + proof.get(exact if exact is not None else -1.0, ""),
            )
        )
    return rows


if __name__ == "__main__":
    write(Workspace.at(sys.argv[1]))

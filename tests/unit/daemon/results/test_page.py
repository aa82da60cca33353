"""The report's two files, at any point of a run."""

from __future__ import annotations

import json
import re
from datetime import UTC
from html.parser import HTMLParser
from typing import Any

import pytest

from daemon import accounts, energy
from daemon.results import page
from state.snapshot import Fact
from state.workspace import Workspace
from tests.unit.daemon.full_scores import enriched

NOW = 1_770_923_000.0
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checker(HTMLParser):
    """Well-formed nesting, every reference to elsewhere, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action", "srcset", "data")
        ]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def checked(workspace: Workspace) -> tuple[str, str, Checker]:
    written = page.write(workspace, NOW, UTC)
    html, markdown = written.html.read_text(), written.markdown.read_text()
    found = Checker()
    found.feed(html)
    found.close()
    assert found.open == []
    return html, markdown, found


@pytest.mark.parametrize("which", ["mid_workspace", "finished_workspace"])
def test_the_page_needs_nothing_but_itself(which: str, request: pytest.FixtureRequest) -> None:
    """Every reference stays in the page; no import, no font, no script; ids are unique."""
    html, _markdown, found = checked(request.getfixturevalue(which))
    assert all(reference.startswith("#") or reference == "data:," for reference in found.references)
    assert not re.findall(r"@import|url\((?!#)|<script|<iframe|<img", html)
    assert len(found.ids) == len(set(found.ids))


def test_the_same_run_gives_the_same_bytes(finished_workspace: Workspace) -> None:
    """Nothing of the rendering shows but its time, which is given."""
    assert checked(finished_workspace)[:2] == checked(finished_workspace)[:2]


def test_a_finished_run_is_told_whole(finished_workspace: Workspace) -> None:
    """Scores both ways, word error rates, curves, samples, troubles, attempts, outputs with their digests, in both files."""
    _html, markdown, found = checked(finished_workspace)
    text = " ".join(" ".join(found.text).split())
    for wanted in (
        "Finished: 9 of 11 stages succeeded, 1 bonus failed, 1 skipped.",
        "+13.25",
        "better",
        "worse",
        "not clear",
        "91.2 %",
        "−18.1 points",
        "−25.0 to −10.0",
        "La lámpara número 1 está encendida.",
        "killed by signal 9; tried again in 20 s",
        "out of memory at micro-batch 1",
        "0123456789abcdef" * 4,
        "not comparable with a published COMET",
        "The models of this run are tiny ones",
    ):
        assert wanted in text, wanted
        assert wanted in markdown, wanted
    assert "optimizer step" in text


def test_what_the_evaluation_found_is_shown(finished_workspace: Workspace) -> None:
    """Verdicts first, then terms gained and lost, faults, what was forgotten, each genre with n and intervals, in both files."""
    enriched(finished_workspace)
    html, markdown, found = checked(finished_workspace)
    text = " ".join(" ".join(found.text).replace("\u00a0", " ").split())
    order = (
        "on general sentences worse: chrF++ −0.84. TranslateGemma-4B is not distinguishable",
        "is better than before: chrF++ +13.25 (95 % interval +12.05 to +14.65)",
        "Theological terms",
        "terms right, %",
        "gained: t0 50, t1 49",
        "altar 2",
        "Faults",
        "What was forgotten",
        "58.30",
        "By genre",
        "0.50 to 3.25",
    )
    for told in (text, " ".join(markdown.replace("\u00a0", " ").split())):
        places = [told.find(wanted) for wanted in order]
        assert -1 not in places, order[places.index(-1)]
        assert places == sorted(places)
    assert "before 98 % 1 2 3 1.2 %" in text
    assert "| MarianMT | before | 40 | 98 % | 1 | 2 | 3 | 1.2 % |" in markdown
    assert "| MarianMT | 70.0 (68.0 to 72.0) | 81.2 (79.2 to 83.2) | +11.2 | +3.1 to +18.0 | 0.004 | better |" in markdown
    assert "| MarianMT | poetry | 40 | BLEU | 2.25 (0.50 to 3.25) |" in markdown
    assert "40 sentences" in text
    assert html.count("<details") == html.count("</details>")
    assert "<details open" not in html


def test_forgetting_that_nobody_measured_is_said_so(finished_workspace: Workspace) -> None:
    """And how it is measured; the tables that older results lack are left out."""
    _html, markdown, found = checked(finished_workspace)
    text = " ".join("".join(found.text).split())
    assert "What was forgotten Not measured; forgetting = true in an evaluation’s settings measures it." in text
    assert "### What was forgotten\n\nNot measured; `forgetting = true`" in markdown
    assert "Theological terms" not in text + markdown
    assert "Faults" not in text + markdown


def test_other_forms_of_a_model_are_named(finished_workspace: Workspace) -> None:
    """The model for faster-whisper lies in the adapter's folder: the page says so, with its size, where it was delivered."""
    merged = finished_workspace.fine_tuned_whisper / "merged-ct2"
    merged.mkdir(parents=True)
    (merged / "model.bin").write_bytes(bytes(2_500_000))
    _html, markdown, _found = checked(finished_workspace)
    row = "| fine_tuned_whisper_mi/merged-ct2 | 2.5 MB | Whisper and adapter as one model, for faster-whisper | see the folder |"
    assert row in markdown
    assert "fine_tuned_marian_mi/ct2 |" not in markdown


def test_what_is_not_there_is_called_not_measured(example: Any) -> None:
    """A run that has not begun has a page with every section and no number made up."""
    _html, markdown, found = checked(example.save())
    text = " ".join(" ".join(found.text).split())
    for wanted in (
        "Translation: not measured yet.",
        "Not measured yet.",
        "No loss was told yet.",
        "Nothing happened yet.",
        "No forecast was made yet.",
        "Nothing has run yet.",
        "Nothing yet.",
    ):
        assert wanted in text, wanted
    assert "not measured yet" in markdown
    assert "nan" not in text.lower().split()


def test_lost_files_cost_their_part_only(finished_workspace: Workspace) -> None:
    """Scores, translations, events and a receipt gone or damaged: the rest still stands."""
    finished_workspace.eval_results.write_bytes(b"{")
    finished_workspace.result("train_marian").write_bytes(b"\x00")
    for events in finished_workspace.root.glob("stages/*/attempts/*/events.jsonl"):
        events.write_bytes(b"\xff\n{}\n")
    _html, markdown, found = checked(finished_workspace)
    text = " ".join(found.text)
    assert "Translation: not measured." in text
    assert "killed by signal 9" in text
    assert "fine_tuned_gemma_mi_A" in markdown


def test_words_from_outside_cannot_become_markup(example: Any) -> None:
    """A title of a recording, a model's output or an error text stands on the page as it was typed."""
    evil = "</td><script>alert(1)</script>|`x`"
    example.facts.append(Fact(id="000009", at=NOW, kind="stage.failed", text=evil, level="error", stage="download"))
    html, markdown, found = checked(example.save())
    assert "<script>" not in html
    assert evil in "".join(found.text)
    assert "<script>" not in markdown


def test_the_disclaimer_stands_only_where_it_is_true(finished_workspace: Workspace) -> None:
    """Real models, real COMET: no word of tiny ones."""
    from msgspec.structs import replace

    from daemon import scores, view

    seen = view.read(finished_workspace)
    stages = tuple(
        replace(stage, settings={"model": "Helsinki-NLP/opus-mt-en-es"} if stage.settings else {})
        for stage in seen.run.pipeline.stages
    )
    real = view.View(replace(seen.run, pipeline=replace(seen.run.pipeline, stages=stages)), seen.stages, seen.facts, seen.alive)
    saved = json.loads(finished_workspace.eval_results.read_text())
    for label in saved["labels"].values():
        label["comet"]["demo"] = False
    finished_workspace.eval_results.write_text(json.dumps(saved))
    assert page.disclaimers(real, scores.read(finished_workspace.eval_results)) == []
    assert len(page.disclaimers(seen, scores.read(finished_workspace.eval_results))) == 1


@pytest.mark.parametrize("share", [0.5, 0.0])
def test_a_higher_error_rate_is_shown_as_such(share: float, example: Any) -> None:
    """Whisper that got worse, or was measured on one side only, is shown so."""
    example.start("train_whisper")
    example.succeed("train_whisper", "trained", [], wer_before=share, wer_after=0.75, replay_wer_after=0.25)
    _html, markdown, _found = checked(example.save())
    assert f"| {100 * share:.1f} % | 75.0 % | +{75 - 100 * share:.1f} points |" in markdown
    assert "| general speech held out | not measured | 25.0 % |  |" in markdown


@pytest.mark.parametrize(("value", "text"), [(0.0, "0.0"), (-0.04, "0.0"), (-18.13, "−18.1"), (5.0, "+5.0")])
def test_points_that_round_to_nothing_have_no_sign(value: float, text: str) -> None:
    """No change must not look like one."""
    assert page.points(value) == text


def test_where_hours_and_energy_went(finished_workspace: Workspace) -> None:
    """Each stage's hours, kilowatt-hours and money stand in one line; what was not measured is said."""
    from msgspec.structs import replace

    from daemon import view

    seen = view.read(finished_workspace)
    counted = accounts.read(finished_workspace, seen, NOW)
    assert page.account_table(seen, counted, [])[-1] == ["all stages", "6 min", "13 s", "2.0 h", "3 min", "2.2 h"]
    spent = [
        energy.Energy("train_marian", 1.5, 0.25, 0.35),
        energy.Energy(energy.IDLE, 0.25, None, 0.05),
    ]
    head, *rows = page.account_table(seen, counted, spent)
    assert head == ["", "useful", "repeated", "lost", "queued", "together", "kWh", "USD"]
    assert next(row for row in rows if row[0] == "MarianMT training")[-2:] == ["1.750", "0.35"]
    assert next(row for row in rows if row[0] == "Sermon download")[-2:] == ["-", "-"]
    assert rows[-1][-2:] == ["2.000", "0.40"]
    assert page.energy_note(spent, replace(seen.run.pipeline, price_per_kwh=0.2)) == (
        "Energy is that of the GPU and the processor, 0.250 kWh of them while no stage ran; the rest of the machine is not "
        "measured. At 0.2 USD a kilowatt-hour."
    )
    assert page.energy_note([], seen.run.pipeline).startswith("Energy: not measured;")

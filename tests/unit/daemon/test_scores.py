"""The tables before and after, from what the evaluation wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import scores
from state.workspace import Workspace
from tests.unit.daemon.full_scores import BETTER, UNCLEAR, enriched


def test_every_model_metric_and_genre_has_its_row(finished_workspace: Workspace) -> None:
    """Overall first, then the genres; a model without an after is not measured there, and nothing is made up."""
    rows = scores.rows(scores.read(finished_workspace.eval_results))
    assert [(row.model, row.metric) for row in rows if row.genre == "all"] == [
        (model, metric)
        for model in ("MarianMT", "TranslateGemma-4B", "TranslateGemma-12B")
        for metric in ("BLEU", "chrF++", "COMET")
    ]
    assert {row.genre for row in rows} == {"all", "gospels", "poetry", "prophecy"}
    marian = next(row for row in rows if (row.model, row.metric, row.genre) == ("MarianMT", "BLEU", "all"))
    assert (marian.before, marian.after, marian.change, marian.p, marian.verdict) == ("1.25", "14.50", "+13.25", "0.001", "better")
    bonus = next(row for row in rows if row.model == "TranslateGemma-12B")
    assert (bonus.before, bonus.after, bonus.change, bonus.verdict) == ("1.25", "not measured", "", "")


@pytest.mark.parametrize(
    ("change", "p", "same", "words"),
    [
        (1.0, 0.01, False, "better"),
        (-1.0, 0.01, False, "worse"),
        (-1.0, 0.2, False, "not clear"),
        (9.0, 0.05, False, "not clear"),
        (0.0, 1.0, False, "unchanged"),
        (1.0, None, False, "not tested"),
        (None, None, False, ""),
        (0.0, 1.0, True, "same model"),
    ],
)
def test_better_and_worse_need_a_test(change: float | None, p: float | None, same: bool, words: str) -> None:
    """A difference alone is neither better nor worse; p < 0.05 decides, both ways alike."""
    assert scores.verdict(change, p, same) == words


@pytest.mark.parametrize(("value", "text"), [(0.004, "0.00"), (-0.004, "0.00"), (-1.5, "−1.50"), (2.0, "+2.00"), (None, "")])
def test_a_rounded_nothing_has_no_sign(value: float | None, text: str) -> None:
    """−0.00 would look like a loss."""
    assert scores.signed(value, "bleu") == text


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"labels": 3}', b"\xff\xfe"])
def test_unreadable_results_are_no_results(content: bytes | None, tmp_path: Path) -> None:
    """No table, rather than a wrong one."""
    path = tmp_path / "eval_results.json"
    if content is not None:
        path.write_bytes(content)
    assert scores.read(path) is None
    assert scores.rows(None) == []
    assert scores.text_table(None) == []
    assert scores.notes(None) == []


def test_a_later_schema_is_still_read(finished_workspace: Workspace) -> None:
    """Fields that are new there are passed over; those missing here are not measured."""
    saved: dict[str, Any] = json.loads(finished_workspace.eval_results.read_text())
    saved["new"] = {"x": 1}
    for row in saved["labels"]["before"]["models"].values():
        del row["scores"]["comet"]
    finished_workspace.eval_results.write_text(json.dumps(saved))
    rows = scores.rows(scores.read(finished_workspace.eval_results))
    comet = next(row for row in rows if (row.model, row.metric, row.genre) == ("MarianMT", "COMET", "all"))
    assert (comet.before, comet.after, comet.change) == ("not measured", "0.5450", "")


def test_the_notes_name_the_comet_and_what_is_left_out(finished_workspace: Workspace) -> None:
    """Which COMET, how many sentences, how differences were tested, and each model that has no row, with the reason."""
    saved: dict[str, Any] = json.loads(finished_workspace.eval_results.read_text())
    saved["labels"]["after"]["left_out"] = {"TranslateGemma-12B": "train_gemma_12b did not succeed"}
    saved["labels"]["after"]["comet"] = None
    saved["labels"]["after"]["comet_left_out"] = "its environment is not there"
    finished_workspace.eval_results.write_text(json.dumps(saved))
    text = "\n".join(scores.notes(scores.read(finished_workspace.eval_results)))
    assert "before: 40 verse references, 40 sentences scored." in text
    assert "COMET of before: demo metric (tiny COMET; not comparable with a published COMET) (the demo’s own)." in text
    assert "after: no COMET score: its environment is not there." in text
    assert "after: TranslateGemma-12B is not scored: train_gemma_12b did not succeed." in text
    assert "paired bootstrap, 1,000 resamples by verse reference" in text


def test_verdicts_are_the_evaluations_own(finished_workspace: Workspace) -> None:
    """One sentence a model, word by word, its numbers kept with what they are; the short form has all but the intervals."""
    found = scores.verdicts(enriched(finished_workspace))
    assert "chrF++\u00a0+13.25 (95\u00a0% interval\u00a0+12.05 to\u00a0+14.65)" in found[0][1]
    said = [(model, sentence.replace("\u00a0", " ")) for model, sentence in found]
    assert said == [("MarianMT", BETTER), ("TranslateGemma-4B", UNCLEAR)]
    assert scores.briefly(found[0][1]) == scores.briefly(BETTER).replace(" +", "\u00a0+").replace(" −", "\u00a0−")
    assert scores.briefly(BETTER) == (
        "MarianMT is better than before: chrF++ +13.25; better in gospels, poetry; on general sentences worse: chrF++ −0.84."
    )


def test_scores_carry_their_sentences_and_intervals(finished_workspace: Workspace) -> None:
    """Overall and by genre; a score without an interval has none."""
    rows = scores.rows(enriched(finished_workspace))
    poetry = next(row for row in rows if (row.model, row.genre, row.metric) == ("MarianMT", "poetry", "BLEU"))
    assert (poetry.sentences, poetry.sides) == (40, (("2.25", "0.50 to 3.25"), ("15.50", "0.50 to 3.25")))
    whole = [row for row in rows if (row.model, row.genre) == ("MarianMT", "all")]
    assert [row.after_between for row in whole] == ["", "1.00 to 2.00", "", ""]


def test_terms_faults_and_what_was_forgotten(finished_workspace: Workspace) -> None:
    """Each with its figures where it was measured; the most frequent terms are named, and how many more there are."""
    found = enriched(finished_workspace)
    [share] = scores.term_rows(found)
    assert (share.model, *share.sides) == ("MarianMT", ("70.0", "68.0 to 72.0"), ("81.2", "79.2 to 83.2"))
    assert (share.change, share.interval, share.verdict) == ("+11.2", "+3.1 to +18.0", "better")
    [terms] = scores.term_changes(found)
    assert terms.gained.replace("\u00a0", " ").startswith("t0 50, t1 49")
    assert terms.gained.endswith(", 2 more")
    assert (terms.model, terms.lost) == ("MarianMT", "altar\u00a02")
    before, after = scores.fault_rows(found)
    assert before == scores.FaultRow("MarianMT", "before", "40", "98 %", "1", "2", "3", "1.2 %")
    assert after.label == "after"
    assert [(row.metric, row.before, row.after, row.sentences, row.verdict) for row in scores.general_rows(found)] == [
        ("BLEU", "30.00", "30.00", 200, "unchanged"),
        ("chrF++", "58.30", "58.19", 200, "worse"),
    ]


def test_older_results_have_no_such_tables(finished_workspace: Workspace) -> None:
    """What was not measured has no table, rather than an empty one; nothing at all neither."""
    tables = (scores.verdicts, scores.term_rows, scores.term_changes, scores.fault_rows, scores.general_rows)
    for found in (scores.read(finished_workspace.eval_results), None):
        assert [table(found) for table in tables] == [[], [], [], [], []]


def test_the_terminal_table_fits(finished_workspace: Workspace) -> None:
    """80 columns, the verdicts first, and the demo's own metric is named below."""
    lines = scores.text_table(enriched(finished_workspace), columns=80)
    assert max(len(line) for line in lines) <= 80
    assert any("chrF++\u00a0+13.25 (" in line for line in lines)
    assert " ".join(" ".join(lines).split()).startswith(f"{BETTER} {UNCLEAR} model metric")
    assert " ".join(lines[-2:]).endswith("not comparable with a published COMET).")


def test_samples_are_chosen_by_id(finished_workspace: Workspace) -> None:
    """One a genre first, smallest ids; every model's text beside the source and the references."""
    found = scores.read_samples(finished_workspace, scores.read(finished_workspace.eval_results), most=3)
    assert [(one.genre, one.reference) for one in found] == [
        ("gospels", "Example 1:3"),
        ("poetry", "Example 1:1"),
        ("prophecy", "Example 1:2"),
    ]
    first = found[1]
    assert first.wanted == ("La lámpara número 1 está encendida.",)
    assert [(model, label) for model, label, _text in first.translations] == [
        ("MarianMT", "before"),
        ("MarianMT", "after"),
        ("TranslateGemma-4B", "before"),
        ("TranslateGemma-4B", "after"),
        ("TranslateGemma-12B", "before"),
    ]


def test_translations_outside_the_workspace_are_not_read(finished_workspace: Workspace, tmp_path: Path) -> None:
    """A results file cannot lead the report to other files of the machine."""
    (tmp_path / "secret.jsonl").write_text(json.dumps({"id": "1", "source": "s", "hypothesis": "secret"}) + "\n")
    saved: dict[str, Any] = json.loads(finished_workspace.eval_results.read_text())
    for label in saved["labels"].values():
        for row in label["models"].values():
            row["translations"]["path"] = "../secret.jsonl"
    finished_workspace.eval_results.write_text(json.dumps(saved))
    assert scores.read_samples(finished_workspace, scores.read(finished_workspace.eval_results)) == []

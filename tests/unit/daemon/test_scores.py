"""The tables before and after, from what the evaluation wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from daemon import scores
from state.workspace import Workspace


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


def enriched(workspace: Workspace) -> scores.Results:
    """The finished run's results with terms, faults, general sentences and a verdict for MarianMT."""
    saved: dict[str, Any] = json.loads(workspace.eval_results.read_text())
    for label, terms in (("before", 70.0), ("after", 81.25)):
        row = saved["labels"][label]["models"]["MarianMT"]
        row["scores"] |= {"terms": terms, "intervals": {"terms": [terms - 2, terms + 2], "chrf": [1.0, 2.0]}}
        row["faults"] = {"length_ratio": 0.976, "empty": 1, "copied": 2, "untranslated": 3, "english_share": 0.0123}
        row["general"] = {"scores": {"sentences": 200, "bleu": 30.0, "chrf": terms - 20}, "translations": {}}
    found = saved["comparisons"]["after"]["models"]["MarianMT"]
    found |= {
        "verdict": "MarianMT is better than before.",
        "terms_gained": {f"t{n}": 1 for n in range(14)},
        "terms_lost": {"altar": 2},
    }
    found["general"] = {"chrf": {"delta": 11.25, "p_value": 0.2, "ci_low": -1, "ci_high": 20}}
    workspace.eval_results.write_text(json.dumps(saved))
    read = scores.read(workspace.eval_results)
    assert read is not None
    return read


def test_verdicts_and_their_tables(finished_workspace: Workspace) -> None:
    """One sentence a model; terms with gained and lost ones; faults; every genre with n and intervals; what was forgotten."""
    found = enriched(finished_workspace)
    assert scores.verdicts(found) == ["MarianMT is better than before."]
    assert scores.term_table(found)[1] == ["MarianMT", "before", "70.0 (68.0 to 72.0) %", "", ""]
    last = scores.term_table(found)[2]
    assert last[2] == "81.2 (79.2 to 83.2) %"
    assert last[3].endswith("t11 1, 2 more")
    assert last[4] == "altar 2"
    assert scores.fault_table(found)[1] == ["MarianMT", "before", "0.98", "1", "2", "3", "1.2%"]
    table = scores.genre_table(found)
    assert table[0] == ["model", "", "genre", "n", "BLEU", "chrF++", "COMET"]
    assert table[1][:6] == ["MarianMT", "before", "all", "40", "1.25", "9.75 (1.00 to 2.00)"]
    assert {line[2] for line in table[1:]} == {"all", "gospels", "poetry", "prophecy"}
    assert [(row.metric, row.before, row.after, row.verdict) for row in scores.general_rows(found)] == [
        ("BLEU", "30.00", "30.00", "unchanged"),
        ("chrF++", "50.00", "61.25", "not clear"),
    ]


def test_older_results_have_no_such_tables(finished_workspace: Workspace) -> None:
    """What was not measured has no table, rather than an empty one; nothing at all neither."""
    old = scores.read(finished_workspace.eval_results)
    for found in (old, None):
        assert scores.verdicts(found) == scores.term_table(found) == scores.fault_table(found) == scores.general_rows(found) == []
    assert scores.genre_table(None) == []


def test_the_terminal_table_fits(finished_workspace: Workspace) -> None:
    """80 columns, and the demo's own metric is named below."""
    lines = scores.text_table(scores.read(finished_workspace.eval_results), columns=80)
    assert max(len(line) for line in lines) <= 80
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

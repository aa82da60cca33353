"""Rules of the evaluation: it scores what there is, says what it left out, and compares only what can be compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import eval_results, evaluate, scoring
from stages.comet_scores import SETUP, CometScores, LeftOut, comet_python
from stages.comet_scores import row as comet_row
from stages.eval_results import EvalResults
from stages.runtime import StageContext
from stages.tiny import make_marian
from stages.translation import Decoding, Marian, locate
from state.contract import MisconfiguredError, StopRequested
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import notes

NOUNS = (("shepherd", "pastor"), ("king", "rey"), ("child", "niño"), ("servant", "siervo"))
PLACES = (("river", "río"), ("well", "pozo"), ("city", "puerto"), ("field", "campo"), ("house", "techo"))
GENRES = ("gospels", "poetry", "history")


def verse_lines() -> list[dict[str, Any]]:
    """Sixty verses in two English and two Spanish editions, in three genres; written by this function."""
    lines = []
    for number in range(60):
        (a, x), (b, y), (c, z) = NOUNS[number % 4], NOUNS[number // 4 % 4], PLACES[number % 5]
        english = {"E1": f"The {a} saw the {b} near the {c} {number}.", "E2": f"Near the {c} {number} the {a} saw the {b}."}
        spanish = {"S1": f"El {x} vio al {y} junto al {z} {number}.", "S2": f"Vio el {x} al {y} cerca del {z} {number}."}
        place = {"book": "Tales", "chapter": 1 + number // 20, "verse": 1 + number % 20, "genre": GENRES[number % 3]}
        for en_source, en in english.items():
            for es_source, es in spanish.items():
                lines.append({"en": en, "es": es, **place, "en_source": en_source, "es_source": es_source, "provenance": []})
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian in two states: as made, and with other weights."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "base").mkdir()
    make_marian(folder / "base", [(line["en"], line["es"]) for line in verse_lines()], pieces=120, d_model=32, layers=1)
    shutil.copytree(folder / "base", folder / "tuned")
    weights = load_file(folder / "tuned" / "model.safetensors")
    torch.manual_seed(3)
    changed = {name: value + 0.3 * torch.randn_like(value) for name, value in weights.items()}
    changed["model.shared.weight"][-1] = 0  # <pad>, as the training leaves it
    save_file(changed, folder / "tuned" / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def workspace(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with test set and models, on a machine without COMET's environment."""
    monkeypatch.setenv("VIGIL_COMET_PYTHON", str(tmp_path / "none"))
    found = Workspace.at(tmp_path / "run")
    shutil.copytree(made, found.models)
    write_lines(found.test_pairs, verse_lines())
    return found


def context(workspace: Workspace, label: str = "before", attempt: int = 1, **changes: Any) -> StageContext:
    """A stage's context with settings for one Marian, small enough for seconds."""
    settings = {
        "label": label,
        "models": [{"name": "marian", "kind": "marian", "model": "models/base"}],
        "comet_model": "",
        "min_references": 20,
        "max_references": 24,
        "num_beams": 1,
        "max_new_tokens": 8,
        **changes,
    }
    return stage_attempts.context(workspace.root, f"evaluate_{label}", attempt, "stages.evaluate", settings=settings)


def tuned(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "marian", "kind": "marian", "model": "models/tuned", **changes}]


def results(workspace: Workspace) -> EvalResults:
    return msgspec.json.decode(workspace.eval_results.read_bytes(), type=EvalResults)


# -- one label


def test_scores_stand_in_the_results_and_in_the_receipt(workspace: Workspace) -> None:
    """BLEU and chrF++ by model and genre, with signatures and speed; each English text once, against both Spanish ones."""
    delivery = evaluate.main(context(workspace))
    label = results(workspace).labels["before"]
    row = label.models["marian"]
    assert label.test_set.scored_verse_references == 24
    assert label.test_set.scored_sentences == 48
    assert label.test_set.unique_sources == 48
    assert label.test_set.references_per_sentence == 2
    assert label.signatures["bleu"].startswith("nrefs:2|")
    assert set(row.genres) == set(GENRES)
    assert sum(genre.sentences for genre in row.genres.values()) == row.scores.sentences == 48
    assert row.speed.tokens_per_s > 0
    assert delivery.metrics == {f"marian.{name}": getattr(row.scores, name) for name in ("bleu", "chrf", "terms")}
    assert row.scores.chrf > 0
    alone = msgspec.json.decode((workspace.metrics / "before.json").read_bytes(), type=eval_results.LabelResults)
    assert alone == label
    outputs = [path.relative_to(workspace.root).as_posix() for path in delivery.outputs]
    assert outputs == ["metrics/before.json", "metrics/translations/before"]


def test_kept_translations_show_each_sentence(workspace: Workspace) -> None:
    """Source, both references, hypothesis and scores of each sentence are kept for the report's samples."""
    evaluate.main(context(workspace))
    kept = eval_results.read_translations(workspace, results(workspace).labels["before"].models["marian"])
    assert kept is not None
    assert len(kept) == 48
    for one in kept:
        alone = scoring.statistics([one.sentence], [one.hypothesis])
        own = {name: scoring.sentence_scores(name, alone)[0] for name in scoring.STATISTICS}
        assert (len(one.references), one.scores) == (2, pytest.approx(own, abs=1e-5))


def test_each_sentence_has_its_own_translation(workspace: Workspace) -> None:
    """Sorted, batched, decoded, merged back: what stands beside a source is what the model says to it alone, in both sets."""
    evaluate.main(context(workspace, forgetting=True, models=tuned(), max_references=12))
    row = results(workspace).labels["before"].models["marian"]
    assert row.general is not None
    alone = Marian(locate(context(workspace, attempt=2), "models/tuned", "marian"), Decoding(1, 8))
    verses, general = (eval_results.read_translations(workspace, part) for part in (row, row.general))
    assert len({one.hypothesis for one in verses or ()}) > 10
    for one in (*(verses or ()), *(general or ())[::20]):
        assert [one.hypothesis] == [text for text, _tokens in alone.translate([one.source], lambda: None)], one.source


def test_empty_translations_are_counted_and_told(workspace: Workspace) -> None:
    """Their number stands in the row, what was said stands beside its source, and many of them are a warning."""
    ctx = context(workspace)
    asked = ctx.settings(evaluate.Evaluate)
    _test_set, sentences = evaluate.read_test_set(ctx, asked)
    texts = ["" if 3 <= number < 6 else one.references[0] for number, one in enumerate(sentences)]
    speed = eval_results.Speed(seconds=0.0, tokens=0, sentences=0, tokens_per_s=0.0, sentences_per_s=0.0)
    one = evaluate.Translated(asked.models[0], "x", texts, speed, "cpu", "", 0)
    left_out = LeftOut("not asked for")
    row = evaluate.write_row(ctx, "before", evaluate.Work(sentences, [], False), one, left_out, left_out, evaluate.Meter(ctx, 1))
    assert (row.empty_hypotheses, row.faults.empty) == (3, 3)
    assert notes(ctx) == "marian: 3 of 48 translations are empty"
    kept = eval_results.read_translations(workspace, row)
    assert kept is not None
    assert [(one.source, one.hypothesis) for one in kept] == [
        (one.source, text) for one, text in zip(sentences, texts, strict=True)
    ]


def test_intervals_and_faults_stand_beside_the_scores(workspace: Workspace) -> None:
    """Overall and by genre with n and 95 % intervals; what the translations suffer from; who decoded."""
    evaluate.main(context(workspace))
    row = results(workspace).labels["before"].models["marian"]
    for scores in (row.scores, *row.genres.values()):
        assert set(scores.intervals) == {"bleu", "chrf", "terms"}
        assert all(low <= getattr(scores, name) <= high for name, (low, high) in scores.intervals.items())
    assert row.faults.length_ratio is not None
    assert row.engine.startswith("transformers")
    assert row.general is None


def test_general_sentences_show_forgetting(workspace: Workspace) -> None:
    """Scored beside the verses, never among them; before and after are compared; many sentences are decoded by CTranslate2."""
    evaluate.main(context(workspace, forgetting=True))
    delivery = evaluate.main(context(workspace, "after", models=tuned(), forgetting=True))
    found = results(workspace)
    row = found.labels["after"].models["marian"]
    assert row.scores.sentences == 48
    assert row.general is not None
    assert row.general.scores.sentences == 200
    assert set(found.comparisons["after"].models["marian"].general) == {"bleu", "chrf"}
    assert "on general sentences" in found.comparisons["after"].models["marian"].verdict
    assert row.engine.startswith("CTranslate2"), notes(context(workspace, "after"))
    assert workspace.metrics / "translations_general" / "after" in delivery.outputs
    kept = eval_results.read_translations(workspace, row.general)
    assert kept is not None
    assert {one.book for one in kept} == {"General"}
    assert not (workspace.scratch("evaluate_after") / "ct2").exists()


def test_identical_model_takes_general_sentences_over_too(workspace: Workspace) -> None:
    """All of a label's translations are taken over, or none: those of a label that had no general sentences are made."""
    evaluate.main(context(workspace, max_references=20))
    evaluate.main(context(workspace, "general", forgetting=True, max_references=20))
    evaluate.main(context(workspace, "again", forgetting=True, max_references=20))
    rows = {name: label.models["marian"] for name, label in results(workspace).labels.items()}
    assert (rows["general"].reused_from, rows["again"].reused_from) == ("", "general")
    assert rows["again"].general is not None
    assert rows["again"].general.scores == rows["general"].general.scores  # type: ignore[union-attr]  # it was asked for


def test_verdict_and_terms_stand_in_the_comparison(workspace: Workspace) -> None:
    """One sentence a model, and the terms gained and lost between the kept translations."""
    evaluate.main(context(workspace))
    evaluate.main(context(workspace, "after", models=tuned()))
    found = results(workspace).comparisons["after"].models["marian"]
    assert found.verdict.startswith("marian is ")
    assert found.verdict.count(".\n") == 0
    assert set(found.overall) == {"bleu", "chrf", "terms"}


def test_a_model_that_learned_all_is_better_everywhere(workspace: Workspace) -> None:
    """After a training that made every translation its reference: better in each metric and genre, terms gained and none lost.

    The way back is a loss of the same size. On general sentences it is the same.
    """
    evaluate.main(context(workspace, forgetting=True, max_references=20))
    before = results(workspace).labels["before"]
    row = before.models["marian"]
    assert row.general is not None
    changed = {}
    for name, part in (("verses", row), ("general", row.general)):
        sentences = [one.sentence for one in eval_results.read_translations(workspace, part) or ()]
        texts = [one.references[0] for one in sentences]
        path = workspace.metrics / "translations" / "after" / f"{name}.jsonl"
        eval_results.write_translations(path, sentences, texts, scoring.statistics(sentences, texts))
        changed[name] = eval_results.relative(workspace, path)
    general = msgspec.structs.replace(row.general, translations=changed["general"])
    learned = msgspec.structs.replace(row, identity="another", translations=changed["verses"], general=general)
    after = msgspec.structs.replace(before, label="after", models={"marian": learned})
    found = eval_results.compare_labels(workspace, before, after, lambda: None).models["marian"]
    for deltas in (found.overall, found.general, *found.genres.values()):
        assert all(change.delta > 0 and change.after == pytest.approx(100) for change in deltas.values())
    kept = eval_results.read_translations(workspace, row) or ()
    sides = ([one.hypothesis for one in kept], [one.references[0] for one in kept])
    by_verse = scoring.compare(
        *(scoring.statistics([one.sentence for one in kept], side) for side in sides),
        [one.sentence.verse_reference for one in kept],
    )
    assert found.overall["chrf"] == by_verse["chrf"]  # whole verses are drawn: editions of one rise and fall together
    for genre, deltas in found.genres.items():
        own = [one for one in kept if one.genre == genre]
        alone = scoring.statistics([one.sentence for one in own], [one.hypothesis for one in own])
        assert deltas["chrf"].before == pytest.approx(scoring.corpus_score("chrf", alone))
        assert deltas["chrf"].before == pytest.approx(row.genres[genre].chrf, abs=1e-4)
        assert row.genres[genre].sentences == before.test_set.genres[genre] < row.scores.sentences
    assert found.general["chrf"].before == pytest.approx(row.general.scores.chrf, abs=1e-4)
    assert "marian is better than before" in found.verdict
    assert sum(found.terms_gained.values()) > 20
    assert found.terms_lost == {}
    back = eval_results.compare_labels(workspace, after, before, lambda: None).models["marian"]
    assert (back.terms_gained, back.terms_lost) == ({}, found.terms_gained)
    assert back.overall["bleu"].delta == pytest.approx(-found.overall["bleu"].delta)


def test_progress_ends_at_its_total(workspace: Workspace) -> None:
    """The work counts its sentences, ends full, and never goes back."""
    ctx = context(workspace)
    evaluate.main(ctx)
    steps = [event for event in map(json.loads, ctx.attempt.events.read_text().splitlines()) if event["type"] == "progress"]
    done = [event["done"] for event in steps if event.get("total")]
    assert done == sorted(done)
    assert done[-1] == steps[-1]["total"]


# -- before and after


def test_second_label_is_compared_with_before(workspace: Workspace) -> None:
    """The label after is compared by paired bootstrap, overall and by genre, from the kept translations."""
    evaluate.main(context(workspace))
    delivery = evaluate.main(context(workspace, "after", models=tuned()))
    found = results(workspace)
    comparison = found.comparisons["after"]
    delta = comparison.models["marian"].overall["chrf"]
    assert comparison.baseline == "before"
    assert not comparison.models["marian"].same_model
    assert delta.before == pytest.approx(found.labels["before"].models["marian"].scores.chrf, abs=1e-4)
    assert delta.after == pytest.approx(found.labels["after"].models["marian"].scores.chrf, abs=1e-4)
    assert delta.delta == pytest.approx(delta.after - delta.before)
    assert delta.ci_low <= delta.delta <= delta.ci_high
    assert set(comparison.models["marian"].genres) == set(GENRES)
    assert "against before" in delivery.summary


def test_identical_model_is_not_translated_again(workspace: Workspace) -> None:
    """Weights equal in every byte give the translations of before, and a difference of nothing with p = 1."""
    evaluate.main(context(workspace))
    shutil.copytree(workspace.models / "base", workspace.models / "copy")
    ctx = context(workspace, "after", models=[{"name": "marian", "kind": "marian", "model": "models/copy"}])
    evaluate.main(ctx)
    found = results(workspace)
    assert found.labels["after"].models["marian"].reused_from == "before"
    assert found.comparisons["after"].models["marian"].same_model
    assert found.comparisons["after"].models["marian"].overall["bleu"].p_value == 1
    assert not list((ctx.scratch()).glob("translations/*"))
    assert "identical" in notes(ctx)


def test_other_weights_are_translated_again(workspace: Workspace) -> None:
    """A model that differs is never given another one's translations, whatever its name."""
    evaluate.main(context(workspace))
    evaluate.main(context(workspace, "after", models=tuned()))
    labels = results(workspace).labels
    texts = [
        [one.hypothesis for one in eval_results.read_translations(workspace, labels[name].models["marian"]) or []]
        for name in ("before", "after")
    ]
    assert labels["after"].models["marian"].reused_from == ""
    assert texts[0] != texts[1]


def test_evaluating_before_again_renews_the_comparisons(workspace: Workspace) -> None:
    """A comparison never speaks of a label's older results."""
    evaluate.main(context(workspace))
    evaluate.main(context(workspace, "after", models=tuned()))
    evaluate.main(context(workspace, attempt=2, models=tuned()))
    delta = results(workspace).comparisons["after"].models["marian"].overall["chrf"]
    assert (delta.delta, delta.p_value) == (0, 1)


def change_sample(workspace: Workspace) -> dict[str, Any]:
    return {"max_references": 30}


def change_kept(workspace: Workspace) -> dict[str, Any]:
    path = eval_results.translations_path(workspace, "before", "marian")
    path.write_text(path.read_text().replace('"hypothesis":"', '"hypothesis":"El ', 1))
    return {}


def remove_kept(workspace: Workspace) -> dict[str, Any]:
    eval_results.translations_path(workspace, "before", "marian").unlink()
    return {}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(change_sample, "different test sentences"), (change_kept, "missing or was changed"), (remove_kept, "missing or was changed")],
)
def test_what_cannot_be_compared_is_not(workspace: Workspace, spoil: Callable[[Workspace], dict[str, Any]], reason: str) -> None:
    """Other sentences, or translations that are not those scored: no comparison, and the reason instead."""
    evaluate.main(context(workspace))
    evaluate.main(context(workspace, "after", models=tuned(), **spoil(workspace)))
    comparison = results(workspace).comparisons["after"]
    assert comparison.models == {}
    assert reason in comparison.left_out["marian"]


def test_model_that_was_not_scored_before_is_named(workspace: Workspace) -> None:
    """A row without a partner is scored, and its missing comparison explained."""
    evaluate.main(context(workspace))
    evaluate.main(context(workspace, "after", models=tuned(name="other")))
    assert results(workspace).comparisons["after"].left_out == {"other": "not scored under before"}


# -- what is left out


def test_row_of_a_stage_that_did_not_succeed_is_left_out(workspace: Workspace) -> None:
    """No receipt, no row: the others are scored, and the table says why one is missing."""
    base = {"name": "base", "kind": "marian", "model": "models/base"}
    ctx = context(workspace, models=[base, *tuned(trained_by="train_marian")])
    evaluate.main(ctx)
    label = results(workspace).labels["before"]
    assert set(label.models) == {"base"}
    assert label.left_out == {"marian": "row left out because stage train_marian did not succeed"}
    assert "train_marian did not succeed" in notes(ctx)


def test_row_of_a_stage_that_succeeded_is_scored(workspace: Workspace) -> None:
    """The receipt of the training stage is what lets its model in."""
    workspace.result("train_marian").parent.mkdir(parents=True)
    workspace.result("train_marian").write_text("{}")
    evaluate.main(context(workspace, models=tuned(trained_by="train_marian")))
    assert set(results(workspace).labels["before"].models) == {"marian"}


@pytest.mark.parametrize("optional", [True, False])
def test_only_a_bonus_that_cannot_be_loaded_is_left_out(workspace: Workspace, optional: bool) -> None:
    """An optional row that is missing costs the others nothing and is told; a required one ends the stage."""
    base = {"name": "base", "kind": "marian", "model": "models/base"}
    ctx = context(workspace, models=[base, {**base, "name": "bonus", "model": "models/none", "optional": optional}])
    if not optional:
        with pytest.raises(MisconfiguredError, match="models/none"):
            evaluate.main(ctx)
        return
    evaluate.main(ctx)
    label = results(workspace).labels["before"]
    assert set(label.models) == {"base"}
    assert "models/none" in label.left_out["bonus"]
    assert "bonus: row left out" in notes(ctx)


def test_without_any_row_there_is_no_success(workspace: Workspace) -> None:
    """A table without rows would look like a result."""
    with pytest.raises(MisconfiguredError, match="no model is left to score: marian: row left out because stage train_marian"):
        evaluate.main(context(workspace, models=tuned(trained_by="train_marian")))
    assert not workspace.eval_results.exists()


def test_without_comets_environment_its_score_is_left_out(workspace: Workspace) -> None:
    """The evaluation goes on without COMET, invents no number, and names the command that brings it."""
    ctx = context(workspace, comet_model="Unbabel/wmt22-comet-da")
    delivery = evaluate.main(ctx)
    label = results(workspace).labels["before"]
    assert label.comet is None
    assert SETUP in label.comet_left_out
    assert label.models["marian"].scores.comet is None
    assert "marian.comet" not in delivery.metrics
    assert SETUP in notes(ctx)


def test_comets_environment_is_found_where_it_is(tmp_path: Path) -> None:
    """The variables win over the folder beside the code; a name that is no program counts as none."""
    program = tmp_path / ".venv-comet" / "bin" / "python"
    assert comet_python({}, tmp_path) is None
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    assert comet_python({}, tmp_path) is None
    program.chmod(0o755)
    assert comet_python({}, tmp_path) == program
    assert comet_python({"VIGIL_COMET_VENV": str(tmp_path / ".venv-comet")}, tmp_path / "elsewhere") == program
    assert comet_python({"VIGIL_COMET_PYTHON": str(tmp_path / "none")}, tmp_path) is None


def test_comet_of_two_references_is_their_mean(workspace: Workspace) -> None:
    """COMET knows one reference at a time: a sentence's score is the mean over its references."""
    ctx = context(workspace)
    _test_set, sentences = evaluate.read_test_set(ctx, ctx.settings(evaluate.Evaluate))
    hypotheses = ["Una traducción."] * len(sentences)
    ids = [[comet_row(s.source, "Una traducción.", reference).id for reference in s.references] for s in sentences]
    scores = {name: value for pair in ids for name, value in zip(pair, (0.2, 0.6), strict=True)}
    comet = CometScores(name="m", model="m", sha256="0", demo=False, version="0", scores=scores)
    measured = eval_results.in_blocks(sentences, hypotheses, lambda: None, size=7)
    translated = evaluate.Translated(ctx.settings(evaluate.Evaluate).models[0], "x", hypotheses, evaluate.Speed(
        seconds=1, tokens=1, sentences=1, tokens_per_s=1, sentences_per_s=1), "cpu", "greedy", 0)  # fmt: skip
    found = evaluate.with_comet(measured, sentences, translated, comet)
    assert eval_results.scores_of(found).comet == pytest.approx(0.4)


def test_the_comet_without_references_scores_each_sentence_once(workspace: Workspace) -> None:
    """Its row has no reference, so that a sentence with two of them is no more than one with one."""
    ctx = context(workspace)
    _test_set, sentences = evaluate.read_test_set(ctx, ctx.settings(evaluate.Evaluate))
    hypotheses = [f"Una traducción {number}." for number in range(len(sentences))]
    rows = [comet_row(s.source, text, "") for s, text in zip(sentences, hypotheses, strict=True)]
    scores = {one.id: number / 100 for number, one in enumerate(rows)}
    kiwi = CometScores(name="m", model="m", sha256="0", demo=False, version="0", scores=scores)
    measured = eval_results.in_blocks(sentences, hypotheses, lambda: None)
    translated = evaluate.Translated(ctx.settings(evaluate.Evaluate).models[0], "x", hypotheses, evaluate.Speed(
        seconds=1, tokens=1, sentences=1, tokens_per_s=1, sentences_per_s=1), "cpu", "greedy", 0)  # fmt: skip
    found = eval_results.scores_of(evaluate.with_kiwi(measured, sentences, translated, kiwi))
    assert found.kiwi == pytest.approx(sum(scores.values()) / len(sentences), abs=1e-4)
    assert found.comet is None


# -- bad input


def only_stub(path: Path) -> None:
    write_lines(path, verse_lines()[:2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def missing(path: Path) -> None:
    path.unlink()


def git_lfs_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def not_utf8(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace("niño".encode(), "niño".encode("latin-1")))


def blank_text(path: Path) -> None:
    lines = verse_lines()
    lines[6]["es"] = "  "
    write_lines(path, lines)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (only_stub, "holds 1 verse references in 2 pairs, fewer than min_references = 20"),
        (empty, "is empty"),
        (missing, "cannot be read"),
        (git_lfs_pointer, "line 1: not a verse pair"),
        (truncated, "line 240: not a verse pair"),
        (not_utf8, "not a verse pair"),
        (blank_text, "line 7: a text is empty"),
    ],
)
def test_test_set_that_would_give_a_void_score_is_refused(workspace: Workspace, spoil: Callable[[Path], None], words: str) -> None:
    """A stub, empty, torn or foreign test file stops the stage, naming the file and what was found; nothing is scored."""
    spoil(workspace.test_pairs)
    with pytest.raises(MisconfiguredError, match=words) as caught:
        evaluate.main(context(workspace))
    assert str(workspace.test_pairs) in str(caught.value)
    assert not workspace.eval_results.exists()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        ([], "none is named"),
        (tuned() * 2, "marian stand there twice"),
        (tuned(adapter="somewhere"), "Marian is trained whole"),
        (tuned(name="../x"), "models"),
        (tuned(model="models/nowhere"), "nowhere"),
    ],
)
def test_models_that_no_run_can_score_are_refused(workspace: Workspace, models: list[dict[str, Any]], words: str) -> None:
    """Rows that contradict themselves are refused in one sentence, before anything is translated."""
    with pytest.raises(MisconfiguredError, match=words):
        evaluate.main(context(workspace, models=models))


def test_foreign_results_file_is_refused(workspace: Workspace) -> None:
    """A results file that this version did not write is not overwritten."""
    workspace.metrics.mkdir()
    workspace.eval_results.write_text('{"schema": 1, "labels": []}')
    with pytest.raises(MisconfiguredError, match=r"eval_results\.json is not readable"):
        evaluate.main(context(workspace))
    assert workspace.eval_results.read_text() == '{"schema": 1, "labels": []}'


# -- interrupted


def test_stopped_attempt_goes_on_where_it_was(workspace: Workspace, tmp_path: Path) -> None:
    """A stop in the middle, then another attempt: the results are those of one quiet attempt."""
    ctx = context(workspace, batch_size=8)
    progress, beats = ctx.progress, []

    def stop_half_way(done: float, *arguments: Any, **named: Any) -> None:
        beats.append(done)
        progress(done, *arguments, **named)
        if done >= 16:
            ctx.request_stop()

    ctx.progress = stop_half_way  # type: ignore[method-assign]  # the moment of the stop is what the test chooses
    with pytest.raises(StopRequested):
        evaluate.main(ctx)
    assert not workspace.eval_results.exists()
    kept = list((ctx.scratch() / "translations").glob("*.jsonl"))
    lines = kept[0].read_bytes().splitlines()
    assert 2 <= len(lines) < 6

    evaluate.main(context(workspace, attempt=2, batch_size=8))
    after = kept[0].read_bytes().splitlines()
    assert after[: len(lines)] == lines, "what was kept was not translated again"
    assert len(after) == 6

    quiet = Workspace.at(tmp_path / "quiet")
    shutil.copytree(workspace.models, quiet.models)
    write_lines(quiet.test_pairs, verse_lines())
    evaluate.main(context(quiet, batch_size=8))
    paths = [eval_results.translations_path(one, "before", "marian") for one in (workspace, quiet)]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_delivery_names_every_metric_measured() -> None:
    """A COMET that was not measured has no entry; one that was has."""
    scores = eval_results.Scores(sentences=1, bleu=1.0, chrf=2.0, comet=0.5)
    row = eval_results.ModelRow(
        kind="marian",
        model="m",
        adapter=None,
        trained_by=None,
        identity="x",
        device="cpu",
        decoding="d",
        scores=scores,
        genres={},
        speed=evaluate.Speed(seconds=1, tokens=1, sentences=1, tokens_per_s=1, sentences_per_s=1),
        empty_hypotheses=0,
        cut_sources=0,
        translations=eval_results.File(path="p", sha256="s"),
    )
    assert evaluate.delivered_metrics({"m": row}) == {"m.bleu": 1.0, "m.chrf": 2.0, "m.comet": 0.5}

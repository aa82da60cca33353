"""Rules of the quick way: it says what Transformers says or is not used, and int8 loses nothing that shows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import marian_ct2, quick_marian
from stages.runtime import StageContext
from stages.scoring import Pair, Sentence, group
from stages.tiny import make_marian
from stages.translation import Decoding, Located, Marian
from tests import stage_attempts
from tests.stage_attempts import notes

NOUNS = (("shepherd", "pastor"), ("king", "rey"), ("child", "niño"), ("lamb", "cordero"), ("bread", "pan"), ("temple", "templo"))
PAIRS = [(f"The {a} saw the {b} near the {c}.", f"El {x} vio {y} y {z}.") for a, x in NOUNS for b, y in NOUNS for c, z in NOUNS]
DECODING = Decoding(2, 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Marian whose weights are far enough from nothing for its words to differ."""
    found = tmp_path_factory.mktemp("models") / "marian"
    found.mkdir()
    make_marian(found, PAIRS, pieces=150, d_model=32, layers=1)
    weights = load_file(found / "model.safetensors")
    torch.manual_seed(1)
    changed = {name: value + 0.5 * torch.randn_like(value) if value.dim() == 2 else value for name, value in weights.items()}
    pad = json.loads((found / "config.json").read_text())["pad_token_id"]
    changed["model.shared.weight"][pad] = 0
    save_file(changed, found / "model.safetensors", metadata={"format": "pt"})
    return found


@pytest.fixture
def ctx(tmp_path: Path) -> StageContext:
    return stage_attempts.context(tmp_path, "evaluate")


def sentences() -> list[Sentence]:
    return group(Pair(en, es, "Tales", 1, number, "poetry", "E", "S") for number, (en, es) in enumerate(PAIRS[:60]))


def quickened(ctx: StageContext, folder: Path, decoding: Decoding = DECODING) -> object:
    model = Located(str(folder), None, "x")
    return quick_marian.quicken(ctx, Marian(model, decoding), model, "identity", sentences(), lambda: None)


def test_it_says_what_transformers_says(ctx: StageContext, folder: Path) -> None:
    """Every sentence comes out with the same text and the same number of tokens, also those cut at the limit."""
    quick = quickened(ctx, folder)
    assert isinstance(quick, quick_marian.QuickMarian), notes(ctx)
    slow = Marian(Located(str(folder), None, "x"), DECODING)
    sources = [sentence.source for sentence in sentences()]
    ticks: list[int] = []
    found = quick.translate(sources, lambda: ticks.append(1))
    assert found == slow.translate(sources, lambda: None)
    assert len({text for text, _tokens in found}) > 5, "a model that always says the same would agree too easily"
    assert quick.lengths(sources) == slow.lengths(sources)
    assert len(ticks) >= len(sources) / quick_marian.ROWS
    assert "float32" in quick.engine


def test_a_stop_ends_between_two_slices(ctx: StageContext, folder: Path) -> None:
    """A long batch can be left before its end."""
    quick = quick_marian.QuickMarian(quick_marian.converted(ctx, Located(str(folder), None, "x"), "n"), *parts(folder))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        quick.translate(["The king."], stop)


def parts(folder: Path) -> tuple[object, str, Decoding, str, int]:
    return Marian(Located(str(folder), None, "x"), DECODING).tokenizer, "cpu", DECODING, "float32", 64


def test_a_pad_row_that_is_not_zero_is_found_out(ctx: StageContext, folder: Path, tmp_path: Path) -> None:
    """CTranslate2 starts from zero: a model that does not is left to Transformers, and the owner is told."""
    moved = shutil.copytree(folder, tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    pad = json.loads((moved / "config.json").read_text())["pad_token_id"]
    weights["model.shared.weight"][pad] = 2.0
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert isinstance(quickened(ctx, moved), Marian)
    assert "transformers translates" in notes(ctx)


def test_a_delivered_folder_of_other_weights_is_not_used(ctx: StageContext, folder: Path, tmp_path: Path) -> None:
    """What lies in `ct2` is used without a conversion, but not believed: it may be another training's."""
    model = shutil.copytree(folder, tmp_path / "model")
    marian_ct2.convert(folder, model / marian_ct2.FOLDER)
    assert isinstance(quickened(ctx, model), quick_marian.QuickMarian)
    assert not (ctx.scratch() / "ct2").exists()
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: value.flip(0) if value.dim() == 1 else value * 0.7 for name, value in weights.items()}, model / "model.safetensors"
    )
    assert isinstance(quickened(ctx, model), Marian)


def test_conversion_is_kept_for_the_next_attempt_and_then_removed(ctx: StageContext, folder: Path) -> None:
    """A second attempt converts nothing; after the translations nothing is left."""
    model = Located(str(folder), None, "x")
    made = (quick_marian.converted(ctx, model, "n") / "model.bin").stat().st_mtime_ns
    assert (quick_marian.converted(ctx, model, "n") / "model.bin").stat().st_mtime_ns == made
    quick_marian.forget(ctx)
    assert not (ctx.scratch() / "ct2").exists()


def test_int8_is_used_only_where_its_scores_hold() -> None:
    """Texts that score as well pass; a loss in one of the two metrics is named."""
    some = sentences()
    right = [sentence.references[0] for sentence in some]
    assert quick_marian.loses(some, right, right) == ""
    assert quick_marian.loses(some, right, [*right[:-1], "nada"]).startswith("bleu −".replace("−", "-"))
    assert quick_marian.loses(some, [*right[:-1], "nada"], right) == ""


def test_int8_is_tried_where_asked_for(ctx: StageContext, folder: Path) -> None:
    """With the setting, int8 translates or the owner learns why not; without it never."""
    quick = quickened(ctx, folder, Decoding(2, 12, int8=True))
    assert isinstance(quick, quick_marian.QuickMarian)
    assert ("int8" in quick.engine) == (not notes(ctx))


def test_the_sample_spreads_over_all_lengths() -> None:
    """First, last and even distances; a short list is taken whole."""
    some = sentences()
    assert quick_marian.spread(some, 5) == [some[round(place * (len(some) - 1) / 4)] for place in range(5)]
    assert quick_marian.spread(some[:3], 5) == some[:3]

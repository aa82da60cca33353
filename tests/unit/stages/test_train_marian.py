"""The Marian stage on a tiny model of the real architecture, made here from invented sentences."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from transformers import MarianMTModel, MarianTokenizer

from stages import marian_ct2, train_marian
from stages.marian_tokens import TokenTable, encode, slow_ids, tokenize
from stages.runtime import Delivery, StageContext
from stages.tiny import make_marian
from stages.training import Recipe
from stages.verse_pairs import TrainingPair
from state.contract import MisconfiguredError, StopRequested
from state.durable import file_digest
from state.settings import TrainMarian
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import notes

SETTINGS = {
    "model": "models/marian",
    "epochs": 20,
    "effective_batch": 16,
    "learning_rate": 1e-2,
    "dev_examples": 8,
    "evaluations": 2,
    "checkpoint_every_steps": 50,
}
WHO = {"shepherd": "pastor", "king": "rey", "farmer": "campesino", "widow": "viuda", "sailor": "marinero"}
DOES = {"sees": "ve", "finds": "halla", "sells": "vende", "carries": "lleva"}
WHAT = {"a lamp": "una lámpara", "the bread": "el pan", "a stone": "una piedra", "the gate": "la puerta", "salt": "sal"}
PAIRS = [
    (f"The {who} {does} {what}.", f"El {WHO[who]} {DOES[does]} {WHAT[what]}.")
    for who, does, what in itertools.product(WHO, DOES, WHAT)
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "marian"
    folder.mkdir()
    make_marian(folder, PAIRS, pieces=120, d_model=32, layers=1)
    return folder


def workspace(root: Path, model: Path, repeats: int = 1) -> Workspace:
    """A run's folder with the tiny model, 100 verse pairs in two editions, and a glossary of two terms."""
    made = Workspace.at(root)
    shutil.copytree(model, made.models / "marian")
    lines = [
        {"en": en, "es": es, "book": "Ezra", "chapter": 1 + number // 10, "verse": 1 + number % 10, "genre": "History"}
        | {"en_source": "A", "es_source": edition}
        for edition in ("X", "Y")
        for number, (en, es) in enumerate(PAIRS)
    ]
    for path, rows in (
        (made.train_pairs, lines),
        (made.glossary_pairs, [{"en": "grace", "es": "gracia"}, {"en": "faith", "es": "fe"}]),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return made


def context(made: Workspace, attempt: int = 1, **settings: Any) -> StageContext:
    return stage_attempts.context(made.root, "train_marian", attempt, settings=SETTINGS | settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> tuple[Workspace, Delivery]:
    made = workspace(tmp_path_factory.mktemp("run"), model_folder)
    return made, train_marian.main(context(made))


def test_training_delivers_a_model_that_learned(trained: tuple[Workspace, Delivery]) -> None:
    """The folder loads as any Marian does and has learned; of a held-out verse both editions are kept out of training."""
    made, delivery = trained
    assert list(delivery.outputs) == [made.root / "fine_tuned_marian_mi"]
    metrics = delivery.metrics
    assert metrics["dev_loss_after"] < metrics["dev_loss_before"] - 0.5
    assert metrics["ledger_exact"] == 1.0
    assert metrics["dev_pairs"] == 8
    assert metrics["training_pairs"] == 184 + 2
    assert metrics["examples"] == SETTINGS["epochs"] * 186
    model = MarianMTModel.from_pretrained(delivery.outputs[0])
    tokenizer = MarianTokenizer.from_pretrained(delivery.outputs[0])
    found = model.generate(**tokenizer(["The king sells salt."], return_tensors="pt"), max_new_tokens=20)
    assert tokenizer.batch_decode(found, skip_special_tokens=True)[0].startswith("El ")


def test_pad_row_stays_zero(trained: tuple[Workspace, Delivery]) -> None:
    """In the delivered model the `<pad>` embedding is exactly zero while every other row moved."""
    made, delivery = trained
    before = MarianMTModel.from_pretrained(made.models / "marian").get_input_embeddings().weight
    model = MarianMTModel.from_pretrained(delivery.outputs[0])
    after = model.get_input_embeddings().weight
    pad = model.config.pad_token_id
    assert torch.count_nonzero(after[pad]) == 0
    moved = (after - before).abs().amax(dim=1) > 0
    assert moved.sum() == len(moved) - 1


def test_ctranslate2_translates_alike(trained: tuple[Workspace, Delivery]) -> None:
    """What is delivered for CTranslate2 says the same words as the model in transformers: evaluation may use the fast one."""
    import ctranslate2

    _made, delivery = trained
    folder = delivery.outputs[0]
    assert delivery.metrics["ctranslate2_equal"] == 1.0
    tokenizer = MarianTokenizer.from_pretrained(folder)
    model = MarianMTModel.from_pretrained(folder).eval()
    translator = ctranslate2.Translator(str(folder / "ct2"), device="cpu", intra_threads=1)
    checked = msgspec.json.decode((folder / "ct2" / "checked.json").read_bytes(), type=marian_ct2.Checked)
    assert checked.weights == file_digest(folder / "model.safetensors")
    assert checked.samples == 8  # the dev set
    for english, _spanish in PAIRS[::9]:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(english)["input_ids"])
        fast = translator.translate_batch([pieces], beam_size=1, max_decoding_length=60)[0].hypotheses[0]
        slow = model.generate(**tokenizer([english], return_tensors="pt"), num_beams=1, max_new_tokens=60)
        assert tokenizer.convert_tokens_to_string(fast) == tokenizer.decode(slow[0], skip_special_tokens=True)


def spoil(model: MarianMTModel, how: str) -> None:
    """Make `model` another one than was converted."""
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        if how == "the pad row":
            weight[model.config.pad_token_id] = 0.5
        elif how == "two rows":
            weight[[5, 6]] = weight[[6, 5]]
        else:
            model.get_encoder().layers[0].fc2.weight *= 1.05


@pytest.mark.parametrize("how", ["the pad row", "two rows", "a layer"])
def test_a_model_that_differs_in_ctranslate2_is_not_delivered_there(
    tmp_path: Path, trained: tuple[Workspace, Delivery], how: str
) -> None:
    """A `<pad>` row that moved, mixed-up embeddings or another layer: the reason is told and no folder is left."""
    made, delivery = trained
    folder = shutil.copytree(delivery.outputs[0], tmp_path / "model")
    shutil.rmtree(folder / "ct2")
    tokenizer = MarianTokenizer.from_pretrained(folder)
    model = MarianMTModel.from_pretrained(folder)
    sources = [tokenizer(english)["input_ids"] for english, _ in PAIRS[::4]]
    assert marian_ct2.deliver(context(made), model, tokenizer, folder, sources) is None
    spoil(model, how)
    if how == "the pad row":
        model.save_pretrained(folder)  # CTranslate2 takes it for zero in the first step
    told = marian_ct2.deliver(context(made), model, tokenizer, folder, sources)
    assert told is not None
    assert "behind the model's own choice" in told
    assert not (folder / "ct2").exists()


def test_a_model_that_cannot_be_converted_stays(tmp_path: Path, trained: tuple[Workspace, Delivery]) -> None:
    """What goes wrong in a conversion is told; the model itself stays."""
    made, delivery = trained
    folder = shutil.copytree(delivery.outputs[0], tmp_path / "model")
    model, tokenizer = MarianMTModel.from_pretrained(folder), MarianTokenizer.from_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "marian", "d_model": 7}')
    assert marian_ct2.deliver(context(made), model, tokenizer, folder, [[5, 0]]) is not None
    assert not (folder / "ct2").exists()
    assert (folder / "model.safetensors").exists()


class StoppedAtStep20(StageContext):
    """A context to which SIGTERM comes at step 20."""

    def progress(self, *values: Any, **named: Any) -> None:
        if (named.get("step") or 0) >= 20:
            self.request_stop()
        super().progress(*values, **named)


def test_stopped_stage_delivers_the_same_bytes(tmp_path: Path, model_folder: Path, trained: tuple[Workspace, Delivery]) -> None:
    """Stopped in the middle and resumed, the stage delivers byte by byte what the undisturbed one did."""
    made = workspace(tmp_path, model_folder)
    plain = context(made)
    first = StoppedAtStep20(plain.spec, plain.attempt)
    with pytest.raises(StopRequested):
        train_marian.main(first)
    delivery = train_marian.main(context(made, attempt=2))
    for name in ("model.safetensors", "config.json", "vocab.json", "ct2/model.bin", "ct2/checked.json"):
        assert (delivery.outputs[0] / name).read_bytes() == (trained[1].outputs[0] / name).read_bytes()


@pytest.mark.parametrize("target", [False, True], ids=["source", "target"])
def test_fast_ids_equal_the_tokenizer(tmp_path: Path, model_folder: Path, target: bool) -> None:
    """Ids equal MarianTokenizer's on seen, unseen and odd texts: letters of the other language, symbols, marks, an empty text."""
    tokenizer = MarianTokenizer.from_pretrained(model_folder)
    texts = [pair[target] for pair in PAIRS]
    texts += [
        "",
        " ",
        "¿Qué?",
        "zebra ☃ quartz",
        ">>es<< The king",
        "a </s> b",
        "el niño",
        "LÁMPARA",
        "x" * 300,
        "two  spaces",
        "\u00a0",
        "<pad>",
    ]
    table = encode(context(Workspace.at(tmp_path)), tokenizer, texts, target=target)
    assert [table[index].tolist() for index in range(len(texts))] == [slow_ids(tokenizer, text, target=target) for text in texts]


def test_rows_are_kept(tmp_path: Path, model_folder: Path) -> None:
    """A second attempt opens the arrays and reads no text; another corpus or another setting gets arrays of its own."""
    made = workspace(tmp_path, model_folder)
    tokenizer = MarianTokenizer.from_pretrained(model_folder)
    settings = msgspec.convert(SETTINGS, TrainMarian)
    first = train_marian.prepare(context(made), settings, tokenizer)
    kept = {path: path.stat().st_mtime_ns for path in context(made).scratch().rglob("*.npy")}
    again = train_marian.prepare(context(made, attempt=2), settings, tokenizer)
    assert {path: path.stat().st_mtime_ns for path in context(made).scratch().rglob("*.npy")} == kept
    assert (again.train.ids, again.dev.ids, again.facts) == (first.train.ids, first.dev.ids, first.facts)
    assert [row.tolist() for row in again.train.row(9)] == [row.tolist() for row in first.train.row(9)]
    train_marian.prepare(context(made, attempt=3), msgspec.structs.replace(settings, max_tokens=60), tokenizer)
    made.glossary_pairs.write_bytes(b"")
    assert train_marian.prepare(context(made, attempt=4), settings, tokenizer).facts.glossary == 0
    assert len(list(context(made).scratch().glob("rows-*"))) == 3


class Handed(Exception):
    """What the training was asked to do."""


def test_the_training_gets_each_pair_and_the_dev_set_none_of_them(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """English in and Spanish out, of the pair that the example's name says; dev is of other verses, the glossary is learned."""
    made = workspace(tmp_path, model_folder)
    texts = {
        f"Ezra {1 + number // 10}:{1 + number % 10} A>{edition}": pair
        for edition in ("X", "Y")
        for number, pair in enumerate(PAIRS)
    } | {"glossary 0 #0": ("grace", "gracia"), "glossary 1 #0": ("faith", "fe")}

    def handed(_ctx: StageContext, _settings: TrainMarian, recipe: Recipe) -> None:
        raise Handed(recipe)

    monkeypatch.setattr(train_marian, "train", handed)
    with pytest.raises(Handed) as caught:
        train_marian.main(context(made))
    recipe = caught.value.args[0]
    tokenizer = MarianTokenizer.from_pretrained(model_folder)
    names = []
    for part in (recipe.train, recipe.dev):
        names.append([example.id for example in part.examples])
        batch = part.collate(range(len(part.examples)))
        for row, name in enumerate(names[-1]):
            english, spanish = texts[name]
            seen = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            learned = batch["labels"][row][batch["labels"][row] != train_marian.IGNORED]
            assert seen.tolist() == tokenizer(english)["input_ids"]
            assert learned.tolist() == tokenizer(text_target=spanish)["input_ids"]
    verses = [{name.split()[1] for name in side if not name.startswith("glossary")} for side in names]
    assert verses[0].isdisjoint(verses[1])
    assert (len(verses[1]), sum(name.startswith("glossary") for name in names[0])) == (8, 2)


def test_collate_shifts_and_pads() -> None:
    """The decoder sees the labels one place later; padding is masked in the source and ignored in the loss."""
    table = TokenTable.of([[5, 6, 0], [7, 0]])
    rows = train_marian.Rows(("a", "b"), table, TokenTable.of([[8, 0], [9, 9, 9, 0]]), np.array([0, 1]), np.array([0, 1]))

    class Config:
        pad_token_id = 99
        decoder_start_token_id = 98

    batch = train_marian.collate(rows, [0, 1], train_marian.Marks(Config()))
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 0], [7, 0, 99]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "decoder_input_ids": [[98, 8, 99, 99], [98, 9, 9, 9]],
        "labels": [[8, 0, -100, -100], [9, 9, 9, 0]],
    }


def test_labels_are_smoothed_in_training_alone(model_folder: Path) -> None:
    """The dev loss is that of the true labels whatever the setting; in training a smoothed label costs what its definition says."""
    model = MarianMTModel.from_pretrained(model_folder, dropout=0.0)
    table = TokenTable.of([[5, 6, 0], [7, 0]])
    rows = train_marian.Rows(("a", "b"), table, table, np.array([0, 1]), np.array([0, 1]))
    batch = train_marian.collate(rows, [0, 1], train_marian.Marks(model.config))
    plain, smoothed = train_marian.translation_loss(0.0), train_marian.translation_loss(0.1)
    with torch.no_grad():
        assert torch.equal(smoothed(model.eval(), batch)[0], plain(model, batch)[0])
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        everything = -logits.log_softmax(-1).mean(-1)[batch["labels"] != train_marian.IGNORED].sum()
        expected = 0.9 * plain(model, batch)[0] + 0.1 * everything
        assert smoothed(model.train(), batch)[0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert smoothed(model, batch)[1] == 5


def test_long_pairs_are_left_out_and_told(tmp_path: Path, model_folder: Path) -> None:
    """A pair longer than max_tokens is left out with a note; when none is left the settings are wrong."""
    made = workspace(tmp_path, model_folder)
    ctx = context(made)
    tokenizer = MarianTokenizer.from_pretrained(model_folder)
    texts = [("salt", "sal"), (PAIRS[0][0] * 9, "sal"), ("salt", PAIRS[0][1] * 9)]
    rows = tokenize(ctx, tokenizer, [TrainingPair(f"pair {number}", en, es, None) for number, (en, es) in enumerate(texts)])
    every = np.ones(3, dtype=bool)
    assert train_marian.fitting(ctx, rows, every, 20, "training").tolist() == [True, False, False]
    assert "2 of 3 training pairs are longer than 20 tokens" in notes(ctx)
    with pytest.raises(MisconfiguredError, match="every training pair is longer than max_tokens = 1"):
        train_marian.fitting(ctx, rows, every, 1, "training")


@pytest.mark.parametrize(
    ("missing", "told"), [("model.safetensors", "has no model.safetensors"), ("source.spm", "has no source.spm")]
)
def test_incomplete_model_is_refused(tmp_path: Path, model_folder: Path, missing: str, told: str) -> None:
    """A model folder without a file is a wrong configuration that names the file."""
    made = workspace(tmp_path, model_folder)
    (made.models / "marian" / missing).unlink()
    with pytest.raises(MisconfiguredError, match=told):
        train_marian.main(context(made))


def test_no_corpus(tmp_path: Path, model_folder: Path) -> None:
    """Without the corpus stage's file the message names it."""
    made = workspace(tmp_path, model_folder)
    made.train_pairs.unlink()
    with pytest.raises(MisconfiguredError, match=r"verse_pairs_train\.jsonl"):
        train_marian.main(context(made))


def test_pad_row_that_is_not_zero_is_cleared(tmp_path: Path, model_folder: Path) -> None:
    """A model whose `<pad>` row has moved starts with it at zero, and the owner is told."""
    made = workspace(tmp_path, model_folder)
    model = MarianMTModel.from_pretrained(made.models / "marian")
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.pad_token_id] = 0.5
    model.save_pretrained(made.models / "marian")
    ctx = context(made, epochs=1)
    delivery = train_marian.main(ctx)
    assert "was not zero (largest value 0.5)" in notes(ctx)
    delivered = MarianMTModel.from_pretrained(delivery.outputs[0])
    assert torch.count_nonzero(delivered.get_input_embeddings().weight[delivered.config.pad_token_id]) == 0

"""stages.train_gemma: rows through the chat template, NF4 that is really NF4, adapters on the language model only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer, Gemma3ForConditionalGeneration

from stages import tiny, train_gemma
from stages.gemma_template import read_template
from stages.runtime import StageContext
from stages.training import Recipe
from stages.verse_pairs import TrainingPair
from state.contract import MisconfiguredError
from state.settings import TrainGemma
from state.workspace import Workspace
from tests import stage_attempts
from tests.stage_attempts import notes

PEFT_WARNING = r"ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
pytestmark = pytest.mark.filterwarnings(PEFT_WARNING)  # peft 0.21 asks transformers 5.23 by the old name

PEOPLE = [("servant", "siervo"), ("king", "rey"), ("prophet", "profeta"), ("child", "niño"), ("shepherd", "pastor")]
THINGS = [("city", "la ciudad"), ("river", "el río"), ("lamp", "la lámpara"), ("table", "la mesa"), ("road", "el camino")]
PAIRS = [
    (f"the {who} saw the {what} on day {day}", f"el {quien} vio {que} el día {day}")
    for day in range(1, 5)
    for who, quien in PEOPLE
    for what, que in THINGS
]


def pair(number: int) -> TrainingPair:
    """Pair `number` as a training pair."""
    english, spanish = PAIRS[number]
    return TrainingPair(f"Genesis 1:{number} A>X", english, spanish, f"Genesis 1:{number}")


def two_lengths() -> list[TrainingPair]:
    """A pair and one three times as long: beside it the first is padded."""
    english, spanish = zip(*(PAIRS[number] for number in (7, 44, 99)), strict=True)
    return [pair(0), TrainingPair("Genesis 2:1 A>X", " and ".join(english), " y ".join(spanish), "Genesis 2:1")]


def settings(**changes: Any) -> TrainGemma:
    """Small settings for the tiny model."""
    return msgspec.structs.replace(TrainGemma(model="models/gemma-tiny-a", lora_rank=4, bf16=False, dev_examples=4), **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny Gemma."""
    path = tmp_path_factory.mktemp("gemma")
    tiny.make_gemma(path, PAIRS, "a")
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    """Its tokenizer."""
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def adapted(folder: Path) -> PeftModel:
    """The quantized model with a fresh adapter."""
    base = train_gemma.load_model(str(folder), settings(), torch.device("cpu"))
    return train_gemma.add_adapter(base, settings())


Context = Callable[..., StageContext]


@pytest.fixture
def context(tmp_path: Path, folder: Path) -> Context:
    """Contexts of attempts in one workspace that holds the model and a small corpus."""
    workspace = Workspace.at(tmp_path / "run")
    workspace.train_pairs.parent.mkdir(parents=True)
    workspace.models.mkdir()
    (workspace.models / "gemma-tiny-a").symlink_to(folder)
    names = {"book": "Genesis", "chapter": 1, "genre": "law", "en_source": "A", "es_source": "X"}
    rows = [{"en": english, "es": spanish, "verse": number, **names} for number, (english, spanish) in enumerate(PAIRS)]
    workspace.train_pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(number: int = 1, **values: Any) -> StageContext:
        return stage_attempts.context(workspace.root, "train_gemma", number, settings=values)

    return make


# -- rows


def test_a_row_is_what_the_template_renders(tokenizer: Any) -> None:
    """Prompt and completion together are the chat template's own rendering, with one <bos>, at the start."""
    template = read_template(tokenizer)
    rows = train_gemma.tokenize(tokenizer, template, [pair(0), pair(7)])
    prompt, completion = rows.row(1)
    english, spanish = PAIRS[7]
    content = [{"type": "text", "source_lang_code": "en", "target_lang_code": "es", "text": english}]
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": spanish}]
    assert tokenizer.decode([*prompt, *completion]) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert prompt[0] == tokenizer.bos_token_id
    assert [*prompt, *completion].count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(completion) == f"{spanish}<end_of_turn>\n"


def test_a_batch_is_padded_on_the_left_and_learns_the_completion_only(tokenizer: Any) -> None:
    """The completions end together, so that logits are needed for the last columns only; nothing of a prompt is a label."""
    rows = train_gemma.tokenize(tokenizer, read_template(tokenizer), two_lengths())
    batch = train_gemma.collate(rows, [0, 1], tokenizer.pad_token_id)
    assert not batch["attention_mask"].all()
    for number in (0, 1):
        prompt, completion = rows.row(number)
        shown = batch["input_ids"][number][batch["attention_mask"][number].bool()]
        assert shown.tolist() == [*prompt, *completion]
        labels = batch["labels"][number]
        assert labels[labels != train_gemma.IGNORED].tolist() == completion.tolist()
        assert batch["input_ids"][number, -len(completion) :].tolist() == completion.tolist()


def test_too_long_pairs_are_left_out_and_told(tokenizer: Any, context: Context) -> None:
    """A translation that is cut teaches to stop too soon."""
    ctx = context()
    rows = train_gemma.tokenize(tokenizer, read_template(tokenizer), [pair(0), pair(1)])
    longest = int(rows.lengths().max())
    long = TrainingPair("long", "word " * 200, "palabra " * 200, None)
    mixed = train_gemma.tokenize(tokenizer, read_template(tokenizer), [pair(0), long, pair(1)])
    assert train_gemma.fitting(ctx, mixed, longest, "training").ids == (pair(0).id, pair(1).id)
    assert "1 of 3 training pairs are longer" in notes(ctx)
    with pytest.raises(MisconfiguredError, match="raise it"):
        train_gemma.fitting(ctx, mixed, 5, "training")


# -- the model


def test_the_weights_are_really_in_nf4(folder: Path) -> None:
    """Every linear layer but the head holds packed 4-bit values with double quantization; embeddings stay as they are."""
    model = train_gemma.load_model(str(folder), settings(), torch.device("cpu"))
    assert train_gemma.count_quantized(model) == train_gemma.quantizable(model) > 20
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert layer.weight.dtype == torch.uint8
    assert layer.weight.numel() == layer.in_features * layer.out_features // 2
    assert not any(parameter.requires_grad for parameter in model.parameters())
    plain = train_gemma.load_model(str(folder), settings(load_in_4bit=False), torch.device("cpu"))
    assert train_gemma.count_quantized(plain) == 0


def test_only_the_language_model_is_adapted(adapted: PeftModel) -> None:
    """`all-linear` would have adapted the vision tower too."""
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 7 * 3  # A and B, seven projections, three layers
    assert all("language_model" in name and "lora_" in name for name in trained)
    assert any("vision_tower" in name for name, _ in adapted.named_parameters())


def test_an_adapter_that_reaches_the_vision_tower_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another release may name its layers so that the pattern takes in more: that is found before the training."""
    monkeypatch.setattr(train_gemma, "LANGUAGE_MODEL_LAYERS", r".*\.(q_proj|v_proj)")
    base = train_gemma.load_model(str(folder), settings(), torch.device("cpu"))
    with pytest.raises(MisconfiguredError, match=r"outside the language model .*vision"):
        train_gemma.add_adapter(base, settings())


def test_the_adapter_begins_the_same_in_every_attempt(folder: Path) -> None:
    """An attempt that finds no checkpoint makes the same first weights again."""
    torch.manual_seed(5)
    first = train_gemma.add_adapter(train_gemma.load_model(str(folder), settings(), torch.device("cpu")), settings())
    torch.manual_seed(6)
    second = train_gemma.add_adapter(train_gemma.load_model(str(folder), settings(), torch.device("cpu")), settings())
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs if one.requires_grad)


def test_a_model_without_a_language_model_is_refused() -> None:
    """LoRA that reaches nothing, or the wrong thing, does not train in silence."""
    with pytest.raises((MisconfiguredError, ValueError)):
        train_gemma.add_adapter(torch.nn.Sequential(torch.nn.Linear(4, 4)), settings())


def gradient(model: PeftModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The adapter's gradient on a batch, as one vector."""
    model.train()
    loss, _count = train_gemma.completion_loss(0.0)(model, batch)
    loss.backward()
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    model.zero_grad()
    return flat


def test_an_evaluation_does_not_change_the_gradient(folder: Path, tokenizer: Any) -> None:
    """bitsandbytes repacks 4-bit weights in evaluation on some processors and then loses the gradient; that is switched off."""
    quiet = settings(lora_dropout=0.0)
    model = train_gemma.add_adapter(train_gemma.load_model(str(folder), quiet, torch.device("cpu")), quiet)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)  # a fresh adapter's A has no gradient
    rows = train_gemma.tokenize(tokenizer, read_template(tokenizer), [pair(0), pair(1)])
    batch = train_gemma.collate(rows, [0, 1], tokenizer.pad_token_id)
    before = gradient(model, batch)
    model.eval()
    with torch.no_grad():
        train_gemma.completion_loss(0.0)(model, batch)
    assert torch.equal(gradient(model, batch), before)
    assert before.abs().sum() > 0
    assert train_gemma.count_quantized(model) > 20


def test_the_loss_is_that_of_the_completion_and_no_padding_changes_it(adapted: PeftModel, tokenizer: Any) -> None:
    """A row's loss alone equals its share in a padded batch, and equals a plain computation over the whole row."""
    adapted.eval()
    rows = train_gemma.tokenize(tokenizer, read_template(tokenizer), two_lengths())
    token_loss = train_gemma.completion_loss(0.0)
    with torch.no_grad():
        alone = [token_loss(adapted, train_gemma.collate(rows, [index], tokenizer.pad_token_id)) for index in (0, 1)]
        loss, count = token_loss(adapted, train_gemma.collate(rows, [0, 1], tokenizer.pad_token_id))
        prompt, completion = rows.row(0)
        logits = adapted(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1].float()
    plain = torch.nn.functional.cross_entropy(logits, torch.from_numpy(completion.astype(np.int64)), reduction="sum")
    assert count == alone[0][1] + alone[1][1] == len(rows.row(0)[1]) + len(rows.row(1)[1])
    assert float(loss) == pytest.approx(float(alone[0][0] + alone[1][0]), rel=1e-4)
    assert float(alone[0][0]) == pytest.approx(float(plain), rel=1e-4)


def test_labels_are_smoothed_in_training_only(adapted: PeftModel, tokenizer: Any) -> None:
    """The dev loss is that of the labels as they are."""
    rows = train_gemma.tokenize(tokenizer, read_template(tokenizer), [pair(0)])
    batch = train_gemma.collate(rows, [0], tokenizer.pad_token_id)
    adapted.eval()
    with torch.no_grad():
        plain, smooth = (float(train_gemma.completion_loss(value)(adapted, batch)[0]) for value in (0.0, 0.1))
    assert plain == smooth


def test_the_four_bit_layers_compute_in_bf16(folder: Path) -> None:
    """The settings' bf16 is what the layers multiply in."""
    model = train_gemma.load_model(str(folder), settings(bf16=True), torch.device("cpu"))
    layer = model.model.language_model.layers[0].mlp.up_proj
    assert (layer.compute_dtype, layer.weight.quant_state.dtype) == (torch.bfloat16, torch.bfloat16)


def test_an_adapter_that_is_no_longer_small_is_refused() -> None:
    """400 MB are the most, and the message says what to lower."""
    train_gemma.check_size(400_000_000)
    with pytest.raises(MisconfiguredError, match=r"takes 401 MB, and 400 are the most; lower lora_rank"):
        train_gemma.check_size(401_000_000)


# -- the whole stage


def test_the_stage_delivers_an_adapter_that_loads_on_the_base(context: Context, folder: Path, tokenizer: Any) -> None:
    """From corpus to `fine_tuned_gemma_mi_A`: trained, scored by its own translations, quantized, and usable."""
    values = {"model": "models/gemma-tiny-a", "epochs": 2, "effective_batch": 8, "learning_rate": 1e-2, "evaluations": 2}
    small = {"lora_rank": 4, "bf16": False, "dev_examples": 4, "gate_examples": 2, "max_tokens": 64}
    ctx = context(**values, **small)
    delivery = train_gemma.main(ctx)
    target = ctx.workspace.fine_tuned_gemma("A")
    assert list(delivery.outputs) == [target]
    assert delivery.metrics["ledger_exact"] == 1.0
    assert delivery.metrics["linear_4bit"] == delivery.metrics["linear_layers"] > 20
    assert delivery.metrics["dev_chrf_after"] >= delivery.metrics["dev_chrf_before"]
    assert json.loads((target / "adapter_config.json").read_text())["base_model_name_or_path"] == "models/gemma-tiny-a"
    assert AutoTokenizer.from_pretrained(target).chat_template == tokenizer.chat_template
    base = Gemma3ForConditionalGeneration.from_pretrained(folder)
    loaded = PeftModel.from_pretrained(base, str(target))
    deltas = [parameter.abs().max() for name, parameter in loaded.named_parameters() if "lora_B" in name]
    assert len(deltas) == 21
    assert all(value > 0 for value in deltas)


def test_the_gate_asks_as_the_training_does(
    adapted: PeftModel, tokenizer: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each prompt is the template's, with one beginning, padded on the left; the end of the turn ends a translation."""
    asked = {}
    generate = adapted.generate

    def watched(**given: Any) -> Any:
        asked.update(given)
        return generate(**given)

    monkeypatch.setattr(adapted, "generate", watched)
    template = read_template(tokenizer)
    sources = [PAIRS[0][0], f"{PAIRS[7][0]} and {PAIRS[9][0]}"]
    found = train_gemma.translate(adapted, tokenizer, template, sources, 8)
    assert len(found) == 2
    assert tokenizer.convert_tokens_to_ids("<end_of_turn>") in asked["eos_token_id"]
    for row, source in enumerate(sources):
        content = [{"type": "text", "source_lang_code": "en", "target_lang_code": "es", "text": source}]
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
        assert tokenizer.decode(asked["input_ids"][row][asked["attention_mask"][row].bool()]) == prompt


def test_the_gate_scores_each_translation_against_its_own_verse(
    adapted: PeftModel, tokenizer: Any, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says every reference has the best score there is, in whatever order the verses come; lower is better."""
    pairs = [TrainingPair(f"v {number}", f"{'so ' * (5 - number)}{en}", es, None) for number, (en, es) in enumerate(PAIRS[::20])]
    answers = {pair.en: pair.es for pair in pairs}
    template = read_template(tokenizer)
    score = train_gemma.gate(context(), adapted, tokenizer, template, pairs, settings())
    assert score is not None
    monkeypatch.setattr(
        train_gemma, "translate", lambda _model, _tokenizer, _template, sources, _most: [answers[s] for s in sources]
    )
    assert score() == pytest.approx(-100)
    answers |= {pairs[1].en: "otra cosa"}
    assert -100 < score() < 0


class Handed(Exception):
    """What the training was asked to do."""


def test_the_training_gets_each_pair_and_the_gate_other_verses(
    context: Context, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is the template's rendering of the pair that its name says; dev rows are of other verses, and there is a gate."""

    def handed(_ctx: StageContext, _settings: TrainGemma, recipe: Recipe) -> None:
        raise Handed(recipe)

    ctx = context(model="models/gemma-tiny-a", lora_rank=4, bf16=False, dev_examples=4, max_tokens=64)
    ctx.workspace.glossary_pairs.parent.mkdir(parents=True, exist_ok=True)
    ctx.workspace.glossary_pairs.write_text(json.dumps({"en": "grace", "es": "gracia"}) + "\n")
    monkeypatch.setattr(train_gemma, "train", handed)
    with pytest.raises(Handed) as caught:
        train_gemma.main(ctx)
    recipe = caught.value.args[0]
    texts = {f"Genesis 1:{number} A>X": one for number, one in enumerate(PAIRS)} | {"glossary 0 #0": ("grace", "gracia")}
    names = []
    for part in (recipe.train, recipe.dev):
        names.append([example.id for example in part.examples])
        batch = part.collate(range(len(part.examples)))
        for row, name in enumerate(names[-1]):
            english, spanish = texts[name]
            content = [{"type": "text", "source_lang_code": "en", "target_lang_code": "es", "text": english}]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": spanish}]
            seen = batch["input_ids"][row][batch["attention_mask"][row].bool()]
            learned = batch["labels"][row][batch["labels"][row] != train_gemma.IGNORED]
            assert tokenizer.decode(seen) == tokenizer.apply_chat_template(turns, tokenize=False)
            assert tokenizer.decode(learned) == f"{spanish}<end_of_turn>\n"
    assert set(names[0]).isdisjoint(names[1])
    assert len(names[0]) == len(set(names[0])) == len(PAIRS) - 4 + 1
    assert len(names[1]) == 4
    assert recipe.dev_score is not None


def test_what_it_trains_on(context: Context) -> None:
    """Chosen verses, glossary and sermons, none of a dev or test verse; what was chosen is told."""
    ctx = context(1, model="models/gemma-tiny-a")
    workspace = ctx.workspace
    line = {"en": "In tests", "es": "En pruebas", "book": "Exodus", "chapter": 1, "verse": 1, "en_source": "A", "es_source": "X"}
    for path in (workspace.test_pairs, workspace.glossary_pairs):
        path.parent.mkdir(parents=True, exist_ok=True)
    workspace.test_pairs.write_text(json.dumps(line) + "\n")
    workspace.glossary_pairs.write_text(json.dumps({"en": "grace", "es": "gracia"}) + "\n")
    sermons = [{"en": "Good day", "es": "Buen día"}, {"en": "in tests", "es": "x"}, {"en": "y", "es": "EN PRUEBAS"}]
    (workspace.root / "s.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sermons))
    found, dev = train_gemma.read_pairs(ctx, settings(max_examples=50, sermon_pairs="s.jsonl"))
    texts = [one.en for one in found]
    assert len({one.reference for one in found if one.reference}) == 50
    assert texts[-2:] == ["grace", "Good day"]
    assert not {one.en for one in dev} & set(texts)
    assert "Training on 50 of 96 verse pairs, 1 glossary terms and 1 sermon pairs" in notes(ctx)


def test_a_missing_corpus_or_model_stops_the_stage_at_once(context: Context) -> None:
    """Each is told by name, and before any model is loaded."""
    ctx = context(1, model="models/none")
    with pytest.raises(MisconfiguredError, match="models/none"):
        train_gemma.main(ctx)
    ctx = context(2, model="models/gemma-tiny-a")
    ctx.workspace.train_pairs.unlink()
    with pytest.raises(MisconfiguredError, match="verse_pairs_train"):
        train_gemma.main(ctx)

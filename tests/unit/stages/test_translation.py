"""Rules of translating: a batch changes no translation, memory shrinks the batch, and nothing finished is done twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.runtime import StageContext
from stages.scoring import digest
from stages.tiny import make_gemma, make_marian
from stages.translation import Backend, Decoding, Gemma, Kept, Located, Marian, Tick, identity, locate, plan, translate
from state.contract import MisconfiguredError, OutOfMemoryError, StopRequested
from tests import stage_attempts
from tests.stage_attempts import notes

PAIRS = [
    (f"The {a} saw the {b} near the {c}.", f"El {x} vio el {y} junto al {z}.")
    for a, x in (("shepherd", "pastor"), ("king", "rey"), ("child", "niño"))
    for b, y in (("lamb", "cordero"), ("bread", "pan"), ("temple", "templo"))
    for c, z in (("river", "río"), ("well", "pozo"), ("sea", "mar"))
] * 3
LONG = "The child saw the temple near the river near the well near the sea."
SOURCES = ["The king saw the bread.", LONG, "The well.", "Bread, bread."]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Marian and a tiny Gemma."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("marian", "gemma"):
        (folder / name).mkdir()
    make_marian(folder / "marian", PAIRS, pieces=150, d_model=32, layers=1)
    make_gemma(folder / "gemma", PAIRS, "a")
    return folder


@pytest.fixture
def ctx(tmp_path: Path) -> StageContext:
    """A stage in a workspace of its own."""
    return stage_attempts.context(tmp_path, "evaluate")


@pytest.fixture(scope="module", params=["marian", "gemma"])
def backend(request: pytest.FixtureRequest, models: Path) -> Backend:
    """Each kind of model, loaded."""
    located = Located(str(models / request.param), None, "x")
    decoding = Decoding(num_beams=2, max_new_tokens=12)
    return Marian(located, decoding) if request.param == "marian" else Gemma(located, None, decoding)


class Shouting:
    """A backend of the same interface: it says the text in capitals, and memory holds `room` sentences at a time."""

    device = "cpu"
    engine = "shouting"
    max_source_tokens = 6

    def __init__(self, room: int = 1000, error: Callable[[], Exception] = torch.OutOfMemoryError) -> None:
        self.room = room
        self.error = error
        self.batches: list[list[str]] = []

    def lengths(self, sources: Sequence[str]) -> list[int]:
        return [len(source.split()) for source in sources]

    def translate(self, sources: Sequence[str], tick: Tick) -> list[tuple[str, int]]:
        tick()
        if len(sources) > self.room:
            raise self.error()
        self.batches.append(list(sources))
        return [(source.upper(), len(source.split())) for source in sources]

    @property
    def done(self) -> list[str]:
        return [source for batch in self.batches for source in batch]


# -- the models


def test_batch_mates_change_no_translation(backend: Backend) -> None:
    """Padding is masked: a sentence translates alone as it does among longer ones."""
    together = backend.translate(SOURCES, lambda: None)
    alone = [backend.translate([source], lambda: None)[0] for source in SOURCES]
    assert together == alone


def test_tokens_are_counted_without_padding(backend: Backend) -> None:
    """The speed counts what was generated: at least one token a sentence, never more than allowed."""
    assert all(1 <= tokens <= 12 for _text, tokens in backend.translate(SOURCES, lambda: None))


def test_every_generated_token_is_a_heartbeat(backend: Backend) -> None:
    """A long batch beats while it runs, and a stop asked for meanwhile ends it at the next token."""
    beats: list[int] = []
    backend.translate(SOURCES, lambda: beats.append(1))
    longest = max(tokens for _text, tokens in backend.translate(SOURCES, lambda: None))
    assert len(beats) >= longest > 1

    def stop_at_third() -> None:
        beats.append(1)
        if len(beats) == 3:
            raise StopRequested

    beats.clear()
    with pytest.raises(StopRequested):
        backend.translate(SOURCES, stop_at_third)
    assert len(beats) == 3


def test_source_longer_than_the_model_is_cut_and_not_fatal(backend: Backend) -> None:
    """A monstrous source is translated from its beginning, and its length is told."""
    monster = "bread and water " * 1500
    assert backend.lengths([monster])[0] > backend.max_source_tokens
    assert len(backend.translate([monster, "The well."], lambda: None)) == 2


def test_gemma_keeps_the_end_of_its_prompt_when_a_source_is_cut(models: Path) -> None:
    """What is cut is the source's end, never the turn marks after it."""
    gemma = Gemma(Located(str(models / "gemma"), None, "x"), None, Decoding(1, 12))
    prompt = gemma.prompt(gemma._cut("bread and water " * 1500))
    assert prompt.endswith("<end_of_turn>\n<start_of_turn>model\n")
    assert abs(gemma.max_source_tokens - len(gemma.tokenizer(prompt, add_special_tokens=False)["input_ids"])) < 8


def test_gemma_is_quantized_and_stops_at_both_ends(models: Path) -> None:
    """The weights are NF4 as in training; a translation ends at the end of the text or of the turn."""
    gemma = Gemma(Located(str(models / "gemma"), None, "x"), None, Decoding(1, 12))
    states = [getattr(getattr(module, "weight", None), "quant_state", None) for module in gemma.model.modules()]
    assert {state.quant_type for state in states if state is not None} == {"nf4"}
    ends = gemma.tokenizer.convert_ids_to_tokens(gemma.end_ids)
    assert set(ends) == {"<eos>", "<end_of_turn>"}


def test_gemma_is_asked_in_its_own_words(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From English into Spanish, in the template's form with one beginning: what the training learned to answer."""
    gemma = Gemma(Located(str(models / "gemma"), None, "x"), None, Decoding(num_beams=1, max_new_tokens=4))
    asked = {}
    generate = gemma.model.generate
    monkeypatch.setattr(gemma.model, "generate", lambda **given: asked.update(given) or generate(**given))
    gemma.translate(SOURCES, lambda: None)
    for row, source in enumerate(SOURCES):
        content = [{"type": "text", "source_lang_code": "en", "target_lang_code": "es", "text": source}]
        turns = [{"role": "user", "content": content}]
        prompt = gemma.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert gemma.tokenizer.decode(asked["input_ids"][row][asked["attention_mask"][row].bool()]) == prompt


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft 0.21 still asks for it
def test_gemma_adapter_changes_translations(models: Path, tmp_path: Path) -> None:
    """With an adapter, the adapter translates and not the base below it."""
    from peft import LoraConfig, get_peft_model

    located = Located(str(models / "gemma"), None, "x")
    base = Gemma(located, None, Decoding(1, 12))
    before = base.translate(SOURCES, lambda: None)
    torch.manual_seed(0)
    adapted = get_peft_model(
        base.model, LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    )
    adapted.save_pretrained(str(tmp_path / "adapter"))
    after = Gemma(located, Located(str(tmp_path / "adapter"), None, "y"), Decoding(1, 12)).translate(SOURCES, lambda: None)
    assert after != before


def test_prompt_with_two_starts_is_refused(models: Path, tmp_path: Path) -> None:
    """A template that doubles <bos> silently spoils every score, so it is refused at once."""
    folder = shutil.copytree(models / "gemma", tmp_path / "gemma")
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    with pytest.raises(MisconfiguredError, match="puts 2 beginning-of-text"):
        Gemma(Located(str(folder), None, "x"), None, Decoding(1, 12))


# -- which model it is


def test_identity_follows_every_byte_that_decides_a_translation(models: Path, ctx: StageContext) -> None:
    """Equal files and search give an equal identity; other weights, adapter or search another one; a receipt changes nothing."""
    one = shutil.copytree(models / "marian", ctx.workspace.models / "one")
    two = shutil.copytree(models / "marian", ctx.workspace.models / "two")
    (two / "made.json").write_text("{}")
    search = Decoding(4, 64)
    names = [identity(locate(ctx, f"models/{name}", "marian"), None, "marian", search) for name in ("one", "two")]
    assert names[0] == names[1]
    weights = bytearray((one / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (one / "model.safetensors").write_bytes(bytes(weights))
    model = locate(ctx, "models/one", "marian")
    others = [
        identity(model, None, "marian", search),
        identity(model, None, "marian", Decoding(5, 64)),
        identity(model, None, "marian", Decoding(4, 64, int8=True)),
        identity(model, Located("a", None, "b"), "marian", search),
    ]
    assert len({names[0], *others}) == 5


def test_folder_without_weights_is_refused(models: Path, ctx: StageContext) -> None:
    """A model folder without weights stops the evaluation before anything is loaded, naming the folder."""
    folder = shutil.copytree(models / "marian", ctx.workspace.models / "bare")
    (folder / "model.safetensors").unlink()
    with pytest.raises(MisconfiguredError, match="bare"):
        locate(ctx, "models/bare", "marian")


# -- keeping


@given(st.lists(st.text(min_size=1), unique=True), st.integers(1, 7), st.integers(1, 40), st.randoms())
@settings(max_examples=50, deadline=None)
def test_plan_covers_every_source_once_whatever_their_order(sources: list[str], size: int, tokens: int, chance: object) -> None:
    """The plan is a partition, longest first, within both limits, as full as they allow, whatever the order of the sources."""
    batches = plan(sources, [len(text) for text in sources], size, tokens)
    flat = [text for batch in batches for text in batch]
    assert sorted(flat) == sorted(sources)
    assert [len(text) for text in flat] == sorted(map(len, sources), reverse=True)
    room = [max(1, min(size, tokens // len(batch[0]))) for batch in batches]
    assert all(len(batch) == most for batch, most in zip(batches[:-1], room, strict=False))
    assert all(len(batches[-1]) <= room[-1] for _last in batches[-1:])
    shuffled = list(sources)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]  # a random.Random of hypothesis
    assert plan(shuffled, [len(text) for text in shuffled], size, tokens) == batches


def test_killed_attempt_translates_nothing_twice(ctx: StageContext, tmp_path: Path) -> None:
    """After a stop and a torn last line, only what is missing is translated; the result is that of one quiet attempt."""
    sources = [f"word {'and ' * (n % 4)}number {n}" for n in range(23)]
    path = tmp_path / "kept.jsonl"
    first = Shouting()

    def stop_after_three(_done: int) -> None:
        if len(first.batches) == 3:
            ctx.request_stop()

    with pytest.raises(StopRequested):
        translate(ctx, first, sources, 4, Kept(path), stop_after_three)
    assert len(first.done) == 12
    path.write_bytes(path.read_bytes()[:-20])  # the third line is torn

    again, second = StageContext(ctx.spec, ctx.attempt), Shouting()
    translate(again, second, sources, 4, Kept(path), lambda done: None)
    assert sorted(second.done) == sorted(set(sources) - set(first.done[:8]))
    kept = Kept(path)
    assert {name: hypothesis.text for name, hypothesis in kept.by_id.items()} == {
        digest(source): source.upper() for source in sources
    }

    third = Shouting()
    translate(again, third, sources, 4, Kept(path), lambda done: None)
    assert third.batches == []


def test_kept_translations_carry_what_speed_and_report_need(ctx: StageContext, tmp_path: Path) -> None:
    """Tokens and seconds are sums over what is kept, and a source that was cut is marked."""
    long = "one two three four five six seven"
    kept = Kept(tmp_path / "kept.jsonl")
    translate(ctx, Shouting(), [long, "one two"], 4, kept, lambda done: None)
    assert kept.tokens == 9
    assert kept.seconds > 0
    assert [kept.by_id[digest(text)].cut for text in (long, "one two")] == [True, False]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, lambda: RuntimeError("CUDA error: out of memory")])
def test_out_of_memory_halves_the_batch(ctx: StageContext, tmp_path: Path, error: Callable[[], Exception]) -> None:
    """Memory that runs out costs the batch its size, not a sentence, and the owner is told."""
    backend = Shouting(room=5, error=error)
    sources = [f"sentence {n}" for n in range(30)]
    translate(ctx, backend, sources, 16, Kept(tmp_path / "kept.jsonl"), lambda done: None)
    assert sorted(backend.done) == sorted(sources)
    assert max(map(len, backend.batches)) == 4
    assert [note.split(";")[0] for note in notes(ctx).splitlines()] == [
        f"out of memory at an evaluation batch of {n}" for n in (16, 8)
    ]


def test_one_sentence_that_does_not_fit_is_out_of_memory(ctx: StageContext, tmp_path: Path) -> None:
    """Below one sentence there is nothing left to shrink here: the daemon must decide."""
    with pytest.raises(OutOfMemoryError):
        translate(ctx, Shouting(room=0), ["a", "b"], 2, Kept(tmp_path / "kept.jsonl"), lambda done: None)


def test_other_failures_are_not_taken_for_memory(ctx: StageContext, tmp_path: Path) -> None:
    """An error that is not about memory is raised as it is, and no batch is halved for it."""
    with pytest.raises(ValueError, match="shape"):
        translate(ctx, Shouting(room=0, error=lambda: ValueError("shape")), ["a"], 2, Kept(tmp_path / "k"), lambda done: None)
    assert notes(ctx) == ""

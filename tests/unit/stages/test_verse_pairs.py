"""stages.verse_pairs: reading the corpus, and a dev set that shares no verse and no words with training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.verse_pairs import TrainingPair, data_lines, fold, read_glossary, read_training, read_verses, sample, split_dev
from state.contract import MisconfiguredError
from state.workspace import Workspace


def verse(number: int, *, en: str | None = None, source: str = "A") -> TrainingPair:
    """Verse `number` in English edition `source`."""
    words = en or f"verse number {number} in edition {source}"
    return TrainingPair(f"Genesis 1:{number} {source}>X", words, f"versículo {number}", f"Genesis 1:{number}")


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """A JSON-lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def corpus_row(number: int) -> dict[str, object]:
    """One line as the corpus stage writes it, with a field that training does not need."""
    names = {"book": "Genesis", "chapter": 1, "verse": number, "genre": "law", "en_source": "KJV", "es_source": "SpaRV"}
    return {"en": f"verse {number}", "es": f"versículo {number}", **names}


@given(st.integers(0, 60), st.integers(1, 80), st.integers(0, 3))
def test_no_reference_is_on_both_sides(dev_examples: int, references: int, seed: int) -> None:
    """A held-out verse leaves training in every edition, and dev has one pair of it."""
    pairs = [verse(number, source=source) for number in range(references) for source in "ABC"]
    train, dev = split_dev(pairs, dev_examples, seed)
    held_out = {pair.reference for pair in dev}
    assert len(dev) == len(held_out) == min(dev_examples, references // 10)
    assert not held_out & {pair.reference for pair in train}
    assert len(train) == 3 * (references - len(held_out))


def test_the_split_does_not_depend_on_the_order_of_the_file() -> None:
    """Held-out verses are chosen by hash: the same for a corpus in another order."""
    pairs = [verse(number) for number in range(100)]
    assert split_dev(pairs, 8, 0)[1] == split_dev(pairs[::-1], 8, 0)[1]
    assert split_dev(pairs, 8, 0)[1] != split_dev(pairs, 8, 1)[1]


def test_the_same_words_at_another_place_leave_training() -> None:
    """A parallel passage would leak the held-out text; case, accents and punctuation do not hide it."""
    pairs = [verse(number) for number in range(40)]
    held_out = split_dev(pairs, 1, 0)[1][0]
    twin = TrainingPair("Exodus 1:1 A>X", held_out.en.upper() + "!", "otra cosa", "Exodus 1:1")
    train, dev = split_dev([*pairs, twin], 1, 0)
    if dev == [held_out]:
        assert twin not in train
    else:
        pytest.fail("one more verse changed the choice: the hash order must not depend on the others")


def test_folding_keeps_letters_and_digits_only() -> None:
    """What two texts are compared by."""
    assert fold("¡Así, «Dios» dijo 7!") == fold("asi dios dijo 7") == "asidiosdijo7"


def test_a_sample_keeps_the_order_and_is_the_same_every_time() -> None:
    """`max_examples` takes a fixed part of the corpus and not its first books."""
    pairs = [verse(number) for number in range(50)]
    chosen = sample(pairs, 10, 0)
    assert chosen == sample(pairs, 10, 0)
    assert chosen == [pair for pair in pairs if pair in chosen]
    assert len(chosen) == 10
    assert chosen != pairs[:10]
    assert sample(pairs, None, 0) == pairs


def test_a_workspace_gives_verses_and_glossary(tmp_path: Path) -> None:
    """The glossary is trained on as often as asked, under ids of its own, and is never held out."""
    workspace = Workspace.at(tmp_path)
    write(workspace.train_pairs, [corpus_row(number) for number in range(30)])
    write(workspace.glossary_pairs, [{"en": "grace", "es": "gracia", "note": "x"}])
    train, dev = read_training(workspace, dev_examples=2, max_examples=20, seed=0, glossary_repeats=2)
    assert len(dev) == 2
    assert [pair.en for pair in train].count("grace") == 2
    assert len(train) == 22
    assert len({pair.id for pair in train}) == 22
    assert len(set(data_lines(train))) == 22


def test_a_missing_glossary_is_an_empty_one(tmp_path: Path) -> None:
    """The verses alone are enough to train on."""
    assert read_glossary(tmp_path / "none.jsonl") == []


BAD = {
    "missing": (None, "cannot be read"),
    "empty": (b"", "holds no verse pair"),
    "not JSON": (b"{\n", "line 1: not a pair"),
    "field missing": (b'{"en": "a", "es": "b"}\n', "line 1: not a pair"),
    "not UTF-8": (b'{"en": "\xff"}\n', "line 1: not a pair"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_corpus_file_is_refused_with_its_line(tmp_path: Path, fault: str) -> None:
    """No training starts on half of a corpus."""
    content, words = BAD[fault]
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MisconfiguredError, match=words):
        read_verses(path)

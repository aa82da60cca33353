"""The demo's own corpus: invented, the same everywhere, in the real layout, over all genres."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from bible_data.books import GENRES
from bible_data.sample import ENGLISH, SPANISH, references, texts, write_sample
from bible_data.sources import check_complete, read_text


def test_all_genres_and_enough_references() -> None:
    """About 2,000 references, each genre with some."""
    counts = Counter(reference.genre for reference in references())
    assert set(counts) == set(GENRES)
    assert 1500 <= sum(counts.values()) <= 2500
    assert min(counts.values()) >= 40


def test_the_sentences_are_the_same_everywhere() -> None:
    """Their digest: a change here changes the demo's scores, so it must be meant."""
    every = json.dumps([[str(reference), text] for verses in texts().values() for reference, text in verses.items()])
    assert hashlib.sha256(every.encode()).hexdigest() == "142ea2c9c2473f61f98f0a9716b12384307958494d4ad3ddf97e28584d12ffb1"


def test_it_reads_as_the_real_thing_does(sample_folder: Path) -> None:
    """Three formats, licences, complete: the readers find nothing to refuse."""
    read = [read_text(sample_folder, "en", name, 1500) for name in ENGLISH]
    read += [read_text(sample_folder, "es", name, 1500) for name in SPANISH]
    check_complete(read)
    assert {Path(text.file).suffix for text in read} == {".db", ".csv", ".json"}
    assert {text.licence.licence for text in read} == {"Creative Commons: CC0"}


def test_it_carries_residue_to_clean() -> None:
    """The second text of each language has what published texts have, so that the demo's cleaning works for its living."""
    found = texts()
    assert any("<FI>" in text for text in found["SampleB"].values())
    assert any(text == "..." for text in found["SampleB"].values())
    assert any("¶" in text for text in found["MuestraB"].values())
    assert not any(sign in text for sign in "<¶[" for text in found["SampleA"].values())


def test_writing_it_twice_gives_the_same_files(tmp_path: Path) -> None:
    """Over its own files too."""
    first = write_sample(tmp_path / "one")
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    write_sample(first)
    assert {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert len(before) == 8


def test_few_words_so_that_a_small_model_can_learn_them() -> None:
    """A vocabulary of a few hundred words a language."""
    found = texts()
    for name in (*ENGLISH, *SPANISH):
        words = {word.strip(".,;:") for text in found[name].values() for word in text.lower().split()}
        assert 100 < len(words) < 500

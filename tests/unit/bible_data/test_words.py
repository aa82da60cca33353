"""The words of a text, by the fast way and by the definition."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from bible_data.alignment import fold
from bible_data.words import lower_words

TEXTS = st.text(st.one_of(st.characters(max_codepoint=127), st.sampled_from("áéíóúñÑÆæ’—·²٣İß\u00a0\u2028")), max_size=40)


@given(TEXTS)
def test_words_are_runs_of_letters(text: str) -> None:
    """ASCII or not: no digit, sign or underscore, in lower case, in order."""
    assert lower_words(text) == re.findall(r"[^\W\d_]+", text.lower())


@given(TEXTS)
def test_folding_is_the_same_for_ascii(text: str) -> None:
    """Lower case, no punctuation, single spaces, by whichever way."""
    assert fold(text) == " ".join(re.sub(r"[^\w\s]|_", "", text.lower()).split())

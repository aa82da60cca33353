"""What goes wrong in translations whatever their score: empty, copied, left in English, too short or too long. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bible_data.glossary import words
from stages.scoring import Sentence

_FUNCTION_WORDS = (
    "the and of to in that is was for with his her they be from which by not are were shall will unto but this have had when who "
    "what there their them him it you your my our we us she if or as at on an all out up into upon"
)
ENGLISH = frozenset(_FUNCTION_WORDS.split())
"""Function words of English that are no words of Spanish ("a", "he", "me", "no", "son" are both)."""
UNTRANSLATED_WORDS = 2
"""A translation with so many different words of ENGLISH is left untranslated, wholly or in part."""
DIGITS = 4


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over the scored sentences; `length_ratio`: words of the translations by words of the references (mean of several)."""

    length_ratio: float | None = None
    empty: int = 0
    copied: int = 0
    """The source again, where no reference says the same."""
    untranslated: int = 0
    """Sentences with two or more different English function words, copies included."""
    english_share: float = 0.0
    """Of all words of the translations, those that are English function words."""


def count(sentences: Sequence[Sentence], hypotheses: Sequence[str]) -> Faults:
    """The faults of a model's translations."""
    said = [words(hypothesis) for hypothesis in hypotheses]
    english = [[word for word in one if word in ENGLISH] for one in said]
    spoken = sum(map(len, said))
    expected = sum(sum(len(words(text)) for text in one.references) / len(one.references) for one in sentences)
    return Faults(
        length_ratio=round(spoken / expected, DIGITS) if expected else None,
        empty=sum(not hypothesis.strip() for hypothesis in hypotheses),
        copied=sum(copied(sentence, one) for sentence, one in zip(sentences, said, strict=True)),
        untranslated=sum(len(set(one)) >= UNTRANSLATED_WORDS for one in english),
        english_share=round(sum(map(len, english)) / spoken, DIGITS) if spoken else 0.0,
    )


def copied(sentence: Sentence, said: Sequence[str]) -> bool:
    """Whether the words of a translation are those of its source, and of no reference (a name is the same in both)."""
    return bool(said) and list(said) == words(sentence.source) and all(list(said) != words(text) for text in sentence.references)

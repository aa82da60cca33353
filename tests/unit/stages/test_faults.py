"""Rules of the faults, and of the general sentences that show forgetting."""

from __future__ import annotations

from bible_data.glossary import words
from stages import faults, forgetting
from stages.scoring import Sentence


def sentence(source: str, *references: str) -> Sentence:
    return Sentence("x", "Tales", 1, 1, "gospels", "E", source, references)


def test_each_fault_is_counted() -> None:
    """Empty, copied, left in English; the length is measured against the mean of the references."""
    some = [
        sentence("The king saw it.", "El rey lo vio.", "Lo vio el rey allí mismo hoy ya."),
        sentence("The child is in the house.", "El niño está en casa."),
        sentence("And the sea was calm.", "Y el mar estaba en calma."),
        sentence("Amen.", "Amén."),
    ]
    found = faults.count(some, ["The king saw it", "El niño está en the house of us", "  ", "Amen."])
    assert (found.copied, found.untranslated, found.empty) == (1, 2, 1)
    assert found.length_ratio == round((4 + 8 + 1) / ((4 + 8) / 2 + 5 + 6 + 1), 4)
    assert found.english_share == round(5 / 13, 4)


def test_a_right_translation_has_no_fault() -> None:
    """Spanish is never taken for English, in any reference or general sentence, and a name is no copy."""
    some = [*forgetting.sentences(), sentence("Jehu, Omri, Ahab.", "Jehu, Omri, Ahab.")]
    found = faults.count(some, [one.references[0] for one in some])
    assert (found.length_ratio, found.empty, found.copied, found.untranslated, found.english_share) == (1.0, 0, 0, 0, 0.0)


def test_nothing_at_all_is_no_error() -> None:
    """No sentence, no fault."""
    assert faults.count([], []) == faults.Faults()


def test_general_sentences_are_two_hundred_distinct_pairs_the_right_way_round() -> None:
    """Ten topics of twenty; every English text is English, every Spanish one is not, and none stands there twice."""
    some = forgetting.sentences()
    assert len({one.id for one in some}) == len({one.source for one in some}) == len({one.references for one in some}) == 200
    topics = [one.genre for one in some]
    assert {topics.count(topic) for topic in topics} == {20}
    english = [one for one in some if faults.ENGLISH.intersection(words(one.source))]
    assert len(english) > 190
    assert all(0.5 < len(one.source) / len(one.references[0]) < 2 for one in some)

"""Every cleaning rule: what it takes away, what it leaves, and that it is counted."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bible_data.books import Reference
from bible_data.cleaning import RULES, clean_text, clean_verse, lower_capitals, reason_to_drop

PLAIN = Reference("Mark", 3, 4)
PSALM = Reference("Psalms", 30, 1)
LETTER = Reference("Romans", 16, 27)

CASES = [
    ("tags", PLAIN, "the gate <FI>is<Fi> open", "the gate is open"),
    ("tags", PLAIN, "the first-<FI> fruits<Fi> ; and the door <FI>was<Fi> .", "the first-fruits; and the door was."),
    ("tags", PLAIN, "he said, '<FI>It is<Fi> late'", "he said, 'It is late'"),
    ("entities", PLAIN, "salt &amp; light &#8212; here", "salt & light — here"),
    ("pilcrow", PLAIN, "¶ The gate was open.", "The gate was open."),
    ("control", PLAIN, "the\u200b ga\u00adte\x07 was\topen", "the gate was open"),
    ("nfc", PLAIN, "corazo\u0301n", "coraz\u00f3n"),
    ("signs", PLAIN, "the widow’s son of Beth–el said, `Yes.’", "the widow's son of Beth-el said, 'Yes.'"),
    ("marks", PLAIN, "[he said] the gate * was open +", "he said the gate was open"),
    ("marks", PLAIN, "4I saw the gate", "I saw the gate"),
    ("spaces", PLAIN, "  the gate   was open . ", "the gate was open."),
    ("spaces", PLAIN, "the gate was open. .", "the gate was open."),
    ("colophon", LETTER, "For ever. Amen. Written to the Romans from Corinthus.", "For ever. Amen."),
    ("colophon", LETTER, "Por siempre. Amén. ¶ Fué escrita de Corinto á los Romanos.", "Por siempre. Amén."),
    ("colophon", LETTER, "Por siempre. Amén. Enviada de Roma.", "Por siempre. Amén."),
    ("psalm_title", PSALM, "Al Músico principal: Salmo de David. EN la casa hay luz.", "EN la casa hay luz."),
    ("psalm_title", PSALM, "Cántico gradual. ¡CUÁN bueno es el pan!", "¡CUÁN bueno es el pan!"),
    ("psalm_title", PSALM, "To the Overseer. --A Psalm of David. The house is full.", "The house is full."),
    ("psalm_title", PSALM, "By sons of Korah. `For the Virgins.' --A song. A lamp burneth.", "A lamp burneth."),
    ("acrostic_letter", Reference("Psalms", 119, 9), "BETH ¿Con qué se abre la puerta?", "¿Con qué se abre la puerta?"),
    ("acrostic_letter", Reference("Psalms", 119, 33), "He. Show me the gate.", "Show me the gate."),
    ("acrostic_letter", Reference("Psalms", 119, 8), "I will keep the gate. ב BETH.", "I will keep the gate."),
]


@pytest.mark.parametrize(("rule", "reference", "published", "cleaned"), CASES)
def test_what_an_edition_added_goes(rule: str, reference: Reference, published: str, cleaned: str) -> None:
    """One example a rule: the result, and the rule's name among those that did it."""
    text, touched = clean_verse(published, reference)
    assert text == cleaned
    assert rule in touched


KEPT = [
    (PLAIN, "Achâb oyó la trompêta y crió los montes; fué Ô y Û."),
    (PLAIN, "BETH was a house."),
    (PLAIN, "To the Overseer. A gate."),
    (PLAIN, "A Psalm of David. It is not one here."),
    (PSALM, "Aleluya. ALABAD la luz."),
    (PSALM, "He that keepeth the gate is awake."),
    (PSALM, "By rivers of the plain--there they sat."),
    (PSALM, "Praise ye the light! A house is built."),
    (Reference("Psalms", 30, 2), "Salmo de David. EN la casa hay luz."),
    (PLAIN, "For ever. Amen. It was written by the king."),
    (LETTER, "The letter was written in haste. Amen."),
    (PLAIN, 'He said, "Come," and left--at once; (so it was).'),
]


@pytest.mark.parametrize(("reference", "text"), KEPT)
def test_what_belongs_to_the_text_stays(reference: Reference, text: str) -> None:
    """Spelling of 1909, words that look like headings elsewhere, the verse's own punctuation."""
    assert clean_verse(text, reference) == (text, [])


@given(
    st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60),
    st.sampled_from([PLAIN, PSALM, LETTER, Reference("Psalms", 119, 9)]),
)
def test_the_result_is_normal(text: str, reference: Reference) -> None:
    """Whatever comes in: composed, on one line, without edge or double spaces, control characters, tags or pilcrows."""
    cleaned, touched = clean_verse(text, reference)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert not any(unicodedata.category(sign) in {"Cc", "Cf"} for sign in cleaned)
    assert "¶" not in cleaned
    assert set(touched) <= set(RULES)
    assert (cleaned == text) == (not touched)


@given(st.text("abcáâ ñ.,;'-¿?ABC", max_size=60))
def test_cleaning_twice_changes_nothing(text: str) -> None:
    """A cleaned verse of letters and punctuation is clean."""
    once, _ = clean_verse(text, PLAIN)
    assert clean_verse(once, PLAIN)[0] == once


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("...", "placeholder"),
        ("***", "placeholder"),
        ("- - 12", "placeholder"),
        ("The gate ... was open.", "gap"),
        ("*** and the gate was open", "gap"),
        ("The gate was open ...", "gap"),
        ("and live forever...", None),
        ("The gate was open.", None),
    ],
)
def test_verses_of_no_use_are_told_apart(text: str, reason: str | None) -> None:
    """Nothing there, no words there, or words missing; a sentence that trails off is a sentence."""
    assert reason_to_drop(text) == reason


def test_counts_by_rule_and_reason() -> None:
    """A text's account: how many verses each rule changed, how many were dropped and why; the rest is untouched."""
    verses = {
        Reference("Mark", 1, 1): " The gate. ",
        Reference("Mark", 1, 2): "The <FI>old<Fi> gate.",
        Reference("Mark", 1, 3): "...",
        Reference("Mark", 1, 4): " ",
        Reference("Mark", 1, 5): "The gate.",
    }
    cleaned = clean_text(verses)
    assert cleaned.changed == {"spaces": 1, "tags": 1}
    assert cleaned.dropped == {"placeholder": 1, "empty": 1}
    assert list(cleaned.verses.values()) == ["The gate.", "The old gate.", "The gate."]


def test_printed_capitals_are_undone() -> None:
    """Where most chapters begin in capitals, their first words get the case that the text gives them elsewhere."""
    verses = {Reference("Mark", chapter, 1): "EN la casa hay luz." for chapter in range(1, 5)}
    verses[Reference("Mark", 5, 1)] = "A SIÓN vino el rey."
    verses[Reference("Mark", 6, 1)] = "¡OH ciudad!"
    verses[Reference("Psalms", 111, 1)] = "Aleluya. ALABAD la luz."
    verses |= {Reference("Mark", 1, number): "Vino a Sión el rey REY." for number in range(2, 5)}
    cleaned = clean_text(verses)
    assert cleaned.verses[Reference("Mark", 1, 1)] == "En la casa hay luz."
    assert cleaned.verses[Reference("Mark", 5, 1)] == "A Sión vino el rey."
    assert cleaned.verses[Reference("Mark", 6, 1)] == "¡Oh ciudad!"
    assert cleaned.verses[Reference("Psalms", 111, 1)] == "Aleluya. Alabad la luz."
    assert cleaned.verses[Reference("Mark", 1, 2)] == "Vino a Sión el rey REY."
    assert cleaned.changed["drop_capitals"] == 6 + 1


def test_capitals_stay_where_they_are_the_exception() -> None:
    """One chapter that begins with a name in capitals is not a printer's habit."""
    verses = {Reference("Mark", chapter, 1): "En la casa hay luz." for chapter in range(1, 9)}
    verses[Reference("Mark", 9, 1)] = "REY de la casa."
    assert clean_text(verses).verses[Reference("Mark", 9, 1)] == "REY de la casa."


@pytest.mark.parametrize(
    ("text", "lowered"),
    [
        ("YO DIJE: Ven.", "Yo dije: Ven."),
        ("A TI, oh luz", "A ti, oh luz"),
        ("A la casa", "A la casa"),
        ("Y vino", "Y vino"),
        ("", ""),
    ],
)
def test_single_letters_are_words(text: str, lowered: str) -> None:
    """A capital "A" or "Y" alone is how a sentence begins; before another word in capitals it is part of the print."""
    assert lower_capitals(text, {}) == lowered

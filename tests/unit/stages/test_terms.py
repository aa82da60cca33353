"""Rules of the theological terms: whole words in any inflection, only where they are meant, and never a word that looks alike."""

from __future__ import annotations

import pytest

from bible_data.glossary import load, words
from stages.scoring import Sentence
from stages.terms import Terms, conjugated, inflected, plural, singular, spanish_forms, terms


def sentence(source: str, *references: str) -> Sentence:
    return Sentence("x", "Tales", 1, 1, "gospels", "E", source, references)


def names(source: str, *references: str) -> set[str]:
    return {terms().name(number) for number in terms().wanted(sentence(source, *references))}


def right(source: str, reference: str, hypothesis: str) -> tuple[float, float]:
    found = terms().statistics([sentence(source, reference)], [hypothesis])[0]
    return float(found[0]), float(found[1])


@pytest.mark.parametrize(
    ("source", "reference", "hypothesis", "expected"),
    [
        ("He built an altar.", "Edificó un altar.", "Hizo altares.", (1, 1)),
        ("The covenant stands.", "El pacto permanece.", "La alianza permanece.", (1, 1)),
        ("The covenant stands.", "El pacto permanece.", "El trato permanece.", (0, 1)),
        ("They were baptized.", "Fueron bautizados.", "Juan los bautizó.", (1, 1)),
        ("She was anointed.", "Fue el ungido.", "Era la ungida.", (1, 1)),
        ("We see the light of the world.", "Vemos la luz del mundo.", "Vemos las luces del mundo.", (1, 1)),
        ("The wrath remains.", "La ira permanece.", "Mañana irá a casa.", (0, 1)),
        ("God spoke.", "Dios habló.", "Él dio pan.", (0, 1)),
        ("By grace.", "Por la gracia.", "Muchas gracias.", (0, 1)),
        ("The bride came.", "Vino la esposa.", "Vino el esposo.", (0, 1)),
        ("Eternal life is here.", "La vida eterna está aquí.", "La vida es larga.", (0, 1)),
    ],
)
def test_a_term_is_right_in_any_inflection_and_no_other_word(
    source: str, reference: str, hypothesis: str, expected: tuple[float, float]
) -> None:
    """Plural, gender, verb form and the glossary's other equivalents count; look-alikes do not."""
    assert right(source, reference, hypothesis) == expected


def test_only_terms_that_a_reference_bears_out_are_asked_for() -> None:
    """A word that is no term in this sentence, or that no Spanish text has, is not asked for; any reference will do."""
    assert names("In the evening came Eve.", "En la tarde vino Eva.") == set()
    assert names("The word of God.", "Lo que dijo.", "La palabra de Dios.") == {"God", "word", "word of God"}
    assert names("The church prays.", "El templo ora.") == set()


def test_swapped_languages_have_no_term_right() -> None:
    """A model that answers in English gets nothing."""
    assert right("The covenant of God.", "El pacto de Dios.", "The covenant of God.") == (0, 2)


def test_every_glossary_form_is_found_as_its_own_term() -> None:
    """Inflecting adds forms and loses none: each term of the glossary that ships is found by each form that it lists."""
    for number, term in enumerate(load()):
        for forms in term.spanish:
            assert all(number in terms().found(form) for form in forms), term


def test_gained_and_lost_are_counted_by_sentence() -> None:
    """A term is gained where it was wrong and is right, lost where it was right and is wrong; what stays is neither."""
    some = [
        sentence("The covenant of God.", "El pacto de Dios."),
        sentence("A covenant.", "Un pacto."),
        sentence("The altar.", "El altar."),
    ]
    gained, lost = terms().changed(
        some, ["El trato de Dios.", "Un trato.", "El altar."], ["El pacto de Dios.", "Un pacto.", "La mesa."]
    )
    assert gained == {"covenant": 2}
    assert lost == {"altar": 1}


@pytest.mark.parametrize(("one", "many"), [("ley", "leyes"), ("cruz", "cruces"), ("gracia", "gracias"), ("voto", "votos")])
def test_number(one: str, many: str) -> None:
    """The regular plural and back, but for words that mean something else in it."""
    assert plural(one) == many
    assert singular(many) == ("gracias" if many == "gracias" else one)


def test_the_other_gender_is_left_to_a_term_of_its_own() -> None:
    """An adjective has both genders; nouns in -o have no feminine made up; a form that is another term is left to that."""
    assert set(inflected("bendito")) == {"bendito", "benditos", "bendita", "benditas"}
    saints = next(term for term in load() if term.english == ("saints",))
    assert "santo" in spanish_forms(saints)
    assert "santo" not in spanish_forms(saints, frozenset({"santo", "santos"}))
    assert set(inflected("velo")) == {"velo", "velos"}


def test_regular_verbs_change_their_spelling() -> None:
    """z becomes c before e."""
    assert {"bautizar", "bautice", "bautizo", "bautizaron", "bautizadas"} <= set(conjugated("bautizar"))
    assert {"nacio", "nacieren", "nacera", "nacido"} - set(conjugated("nacer")) == {"nacieren"}


def test_no_form_belongs_to_many_terms_by_accident() -> None:
    """Inflection makes no word of one term a word of another, but where the glossary itself says so."""
    every = load()
    listed = {
        (form, number)
        for number, term in enumerate(every)
        for forms in term.spanish
        for text in forms
        for form in [" ".join(words(text))]
    }
    alone = frozenset(form for form, _number in listed)
    owners: dict[str, set[int]] = {}
    for form, number in listed:
        owners.setdefault(form, set()).add(number)
    clashes = {
        (term.english[0], form)
        for number, term in enumerate(every)
        for form in spanish_forms(term, alone)
        if form in owners and number not in owners[form]
    }
    assert clashes == set()


def test_an_empty_glossary_asks_for_nothing() -> None:
    """No term, no score."""
    assert Terms(()).wanted(sentence("God is light.", "Dios es luz.")) == []

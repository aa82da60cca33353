"""Theological terms in translations: which were asked for, which are right, and which a training gained or lost.

A term counts in a sentence when the English text has it and one of the Spanish references has an equivalent: there it is meant as
a term. The translation has it right with any equivalent of the glossary, since "Señor" is no error where the reference says
"Jehová". Whole words decide, in any inflection. Instead of cutting endings off, which makes "Dios" and "dio" one word,
every glossary word is written out in its forms: singular and plural; masculine and feminine of adjectives and participles; and
the regular forms of a verb where the English term is a verb form ("baptized"). A form that is another term is left to
that one ("esposo", "esposa").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bible_data.glossary import Finder, Term, load, words
from stages.scoring import Sentence

CONFUSABLE = frozenset({"irá", "velará", "sellará"})
"""Verb forms that are another word than the term once their accent is gone; `words` takes accents off."""
UNCHANGING = frozenset({"dios", "gracia", "gracias", "jesus", "pentecostes"})
"""Words in -s that are no plural, and one whose plural says thanks."""
ADJECTIVAL = ("ado", "ido", "oso", "ico", "ino", "nto", "ito", "ivo", "evo", "rno", "ano", "uno", "ero", "smo")
CONSONANTS = frozenset("bcdfgjklmnprtvy")
AR = "o as a amos an aba abas abamos aban e aste asteis aron are aras ara aremos aran aria arias ariamos arian es emos en ar ando"
ER = "o es e emos en ia ias iamos ian i iste io imos ieron {0}e {0}as {0}a {0}emos {0}an {0}ia {0}ias {0}ian a as amos an {0} iendo"
FUNCTION_WORDS = frozenset({"de", "la", "el", "los", "las", "del", "por", "que", "y", "en", "otra", "vez"})

Floats = NDArray[np.float64]


class Terms:
    """The glossary, ready to be looked for in sentences of both languages."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = tuple(terms)
        alone = frozenset(" ".join(words(form)) for term in self.terms for forms in term.spanish for form in forms)
        self._english = Finder((form, number) for number, term in enumerate(self.terms) for form in english_forms(term))
        self._spanish = Finder((form, number) for number, term in enumerate(self.terms) for form in spanish_forms(term, alone))

    def name(self, number: int) -> str:
        """The English term."""
        return self.terms[number].english[0]

    def wanted(self, sentence: Sentence) -> list[int]:
        """Numbers of the terms that the sentence has as terms: the source names them and a reference bears them out."""
        there = self._english.find(words(sentence.source))
        borne_out = set().union(*(self.found(reference) for reference in sentence.references)) if there else set()
        return sorted(there & borne_out)

    def found(self, spanish: str) -> set[int]:
        """Numbers of the terms of which a Spanish text has an equivalent."""
        kept = " ".join(word for word in words(spanish, accents=True) if word not in CONFUSABLE)
        return self._spanish.find(words(kept))

    def statistics(self, sentences: Sequence[Sentence], hypotheses: Sequence[str]) -> Floats:
        """(n, 2): by sentence the terms that are right and the terms that are wanted, so that sums of them give the accuracy."""
        rows = []
        for sentence, hypothesis in zip(sentences, hypotheses, strict=True):
            wanted = self.wanted(sentence)
            right = self.found(hypothesis).intersection(wanted) if wanted else ()
            rows.append((len(right), len(wanted)))
        return np.asarray(rows, dtype=np.float64).reshape(-1, 2)

    def changed(
        self, sentences: Sequence[Sentence], before: Sequence[str], after: Sequence[str]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Terms gained and lost: sentences in which each was wrong before and right after, and the other way round; most first."""
        gained: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        for sentence, one, two in zip(sentences, before, after, strict=True):
            if one != two and (wanted := self.wanted(sentence)):
                had, has = self.found(one), self.found(two)
                gained.update(self.name(number) for number in wanted if number in has - had)
                lost.update(self.name(number) for number in wanted if number in had - has)
        return _most_first(gained), _most_first(lost)


@cache
def terms() -> Terms:
    """The glossary that ships."""
    return Terms(load())


def _most_first(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


# -- forms


def english_forms(term: Term) -> list[str]:
    """The term's forms and the regular plural of its last word."""
    plurals = [form + ("es" if form.endswith(("s", "x", "ch", "sh")) else "s") for form in term.english[:1]]
    return list(dict.fromkeys([*term.english, *plurals]))


def spanish_forms(term: Term, alone: frozenset[str] = frozenset()) -> list[str]:
    """Every equivalent of the term in every inflection; `alone`: all forms of the glossary, without accents."""
    others = alone.difference(" ".join(words(form)) for forms in term.spanish for form in forms)
    verbal = any(form.endswith("ed") for form in term.english)
    found: dict[str, None] = {}
    for forms in term.spanish:
        for form in forms:
            choices = [inflected(word) for word in words(form)]
            found |= dict.fromkeys(" ".join(choice) for choice in product(*choices))
            if len(choices) == 1 and verbal:
                found |= dict.fromkeys(verb_forms(words(form)[0]))
            if len(choices) > 1 and choices[0][0].endswith(("ar", "er", "ir")):
                found |= dict.fromkeys(" ".join(choice) for choice in product(conjugated(choices[0][0]), *choices[1:]))
    return [form for form in found if form not in others]


def inflected(word: str) -> list[str]:
    """A word without accents and its forms by number and, of adjectives and participles, by gender."""
    if word in FUNCTION_WORDS or word in UNCHANGING or len(word) < 3:
        return [word]
    found = dict.fromkeys([word, plural(word), singular(word)])
    for one in list(found):
        if one.endswith(ADJECTIVAL):
            found |= dict.fromkeys([f"{one[:-1]}a", plural(f"{one[:-1]}a")])
    return list(found)


def plural(word: str) -> str:
    """The regular plural; what ends in -s stays."""
    if word.endswith("z"):
        return f"{word[:-1]}ces"
    return word if word.endswith("s") else f"{word}{'s' if word[-1] in 'aeiou' else 'es'}"


def singular(word: str) -> str:
    """The regular singular of what looks like a plural."""
    if len(word) < 5 or not word.endswith("s") or word in UNCHANGING:
        return word
    if word.endswith("ces"):
        return f"{word[:-3]}z"
    return word[:-2] if word.endswith("es") and word[-3] in CONSONANTS else word[:-1]


def verb_forms(participle: str) -> list[str]:
    """The forms of the regular verb that a participle in -ado or -ido belongs to."""
    if participle.endswith("ado"):
        return conjugated(f"{participle[:-3]}ar")
    if participle.endswith("ido"):
        return [*conjugated(f"{participle[:-3]}er"), *conjugated(f"{participle[:-3]}ir")]
    return []


def conjugated(infinitive: str) -> list[str]:
    """The regular forms of a verb, without accents, its participle included; z becomes c before e."""
    stem, kind = infinitive[:-2], infinitive[-2:]
    endings: Iterable[str] = AR.split() if kind == "ar" else ER.format(kind).split()
    participles = [f"{stem}{'a' if kind == 'ar' else 'i'}d{ending}" for ending in ("o", "a", "os", "as")]
    soft = f"{stem[:-1]}c" if stem.endswith("z") else stem
    return [infinitive, *(f"{soft if ending[0] == 'e' else stem}{ending}" for ending in endings), *participles]

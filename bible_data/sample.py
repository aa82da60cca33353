"""A small parallel corpus of invented sentences in the layout of the real one, for the demo and the tests.

No Bible text: a grammar of a few hundred words makes two English and two Spanish "translations" of the same 2,200 verses,
spread over all seven genres. The second of each language words some things otherwise and carries the kinds of residue that
published texts carry, so that the readers and the cleaning have real work. Every choice follows from sha256 of the
reference: the same sentences on every machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bible_data.books import BOOKS, ORDER, Reference

ENGLISH = ("SampleA", "SampleB")
SPANISH = ("MuestraA", "MuestraB")
VERSES_IN_CHAPTER = 20
CHAPTERS = {
    "Genesis": 8,
    "Exodus": 8,
    "Deuteronomy": 6,
    "Ruth": 4,
    "I Samuel": 10,
    "II Kings": 10,
    "Psalms": 14,
    "Proverbs": 8,
    "Isaiah": 12,
    "Jonah": 4,
    "Matthew": 8,
    "Luke": 8,
    "Acts": 4,
    "Romans": 6,
    "Revelation of John": 4,
}
"""Book -> chapters of the sample; 114 chapters of 20 verses."""

T = TypeVar("T")


@dataclass(frozen=True)
class Noun:
    """A noun with its article: English, Spanish, and what agreement and the Spanish personal "a" need to know."""

    english: str
    spanish: str
    article: str = "el"

    @property
    def plural(self) -> bool:
        return self.article in {"los", "las"}

    @property
    def feminine(self) -> bool:
        return self.article in {"la", "las"}


@dataclass(frozen=True)
class Verb:
    """Base form and past in English; infinitive and past (singular, plural) in Spanish; the second wording of each, if any."""

    base: str
    past: str
    infinitive: str
    singular: str
    plural: str
    other_past: str = ""
    other_singular: str = ""
    other_plural: str = ""


def _nouns(text: str) -> tuple[Noun, ...]:
    found = []
    for line in text.strip().splitlines():
        english, spanish = line.split("=")
        article, noun = spanish.strip().split(" ", 1)
        found.append(Noun(english.strip(), noun, article))
    return tuple(found)


PEOPLE = _nouns(
    """
    shepherd = el pastor
    prophet = el profeta
    servant = el siervo
    king = el rey
    queen = la reina
    widow = la viuda
    priest = el sacerdote
    mother = la madre
    father = el padre
    farmer = el labrador
    fisherman = el pescador
    judge = el juez
    messenger = el mensajero
    traveller = el viajero
    teacher = el maestro
    sower = el sembrador
    pilgrim = el peregrino
    watchman = el centinela
    carpenter = el carpintero
    daughter = la hija
    sister = la hermana
    stranger = el extranjero
    merchant = el mercader
    disciples = los discípulos
    elders = los ancianos
    children = los niños
    brothers = los hermanos
    singers = los cantores
    builders = los constructores
    soldiers = los soldados
    neighbours = los vecinos
    saints = los santos
    apostles = los apóstoles
    angels = los ángeles
    women = las mujeres
    sinners = los pecadores
    """
)

THINGS = _nouns(
    """
    covenant = el pacto
    law = la ley
    lamp = la lámpara
    bread = el pan
    book = el libro
    altar = el altar
    temple = el templo
    seed = la semilla
    cup = la copa
    promise = la promesa
    song = el cántico
    word = la palabra
    commandment = el mandamiento
    offering = la ofrenda
    garment = el vestido
    gate = la puerta
    harvest = la cosecha
    tent = la tienda
    letter = la carta
    treasure = el tesoro
    gold = el oro
    oil = el aceite
    wine = el vino
    stone = la piedra
    sword = la espada
    crown = la corona
    boat = la barca
    net = la red
    vineyard = la viña
    field = el campo
    lambs = los corderos
    gifts = los dones
    psalms = los salmos
    prayers = las oraciones
    tithes = los diezmos
    keys = las llaves
    """
)

VERBS = (
    Verb("find", "found", "hallar", "halló", "hallaron", "did find", "encontró", "encontraron"),
    Verb("praise", "praised", "alabar", "alabó", "alabaron", "did praise"),
    Verb("remember", "remembered", "recordar", "recordó", "recordaron", "did remember"),
    Verb("love", "loved", "amar", "amó", "amaron", "did love"),
    Verb("keep", "kept", "guardar", "guardó", "guardaron", "did keep"),
    Verb("receive", "received", "recibir", "recibió", "recibieron", "did receive"),
    Verb("carry", "carried", "llevar", "llevó", "llevaron", "bore"),
    Verb("see", "saw", "ver", "vio", "vieron", "beheld", "miró", "miraron"),
    Verb("seek", "sought", "buscar", "buscó", "buscaron", "did seek"),
    Verb("prepare", "prepared", "preparar", "preparó", "prepararon", "made ready"),
    Verb("wash", "washed", "lavar", "lavó", "lavaron", "did wash"),
    Verb("count", "counted", "contar", "contó", "contaron", "numbered"),
    Verb("guard", "guarded", "proteger", "protegió", "protegieron", "did guard"),
    Verb("bless", "blessed", "bendecir", "bendijo", "bendijeron", "did bless"),
    Verb("forget", "forgot", "olvidar", "olvidó", "olvidaron", "did forget"),
    Verb("follow", "followed", "seguir", "siguió", "siguieron", "went after"),
    Verb("call", "called", "llamar", "llamó", "llamaron", "did call"),
    Verb("hide", "hid", "esconder", "escondió", "escondieron", "concealed", "ocultó", "ocultaron"),
    Verb("fear", "feared", "temer", "temió", "temieron", "did fear"),
    Verb("lose", "lost", "perder", "perdió", "perdieron", "did lose"),
    Verb("serve", "served", "servir", "sirvió", "sirvieron", "did serve"),
    Verb("leave", "left", "dejar", "dejó", "dejaron", "departed from"),
    Verb("gather", "gathered", "reunir", "reunió", "reunieron", "did gather"),
    Verb("honour", "honoured", "honrar", "honró", "honraron", "did honour"),
)

ADJECTIVES = (
    *(("old", "viejo", "vieja"), ("new", "nuevo", "nueva"), ("white", "blanco", "blanca"), ("holy", "santo", "santa")),
    *(("small", "pequeño", "pequeña"), ("poor", "pobre", "pobre"), ("faithful", "fiel", "fiel"), ("good", "bueno", "buena")),
    *(
        ("great", "grande", "grande"),
        ("first", "primero", "primera"),
        ("beloved", "amado", "amada"),
        ("lost", "perdido", "perdida"),
    ),
)

PLACES = (
    *(("in the temple", "en el templo"), ("beside the river", "junto al río"), ("on the mountain", "en el monte")),
    *(("at the gate of the city", "a la puerta de la ciudad"), ("under the fig tree", "debajo de la higuera")),
    *(
        ("in the house of prayer", "en la casa de oración"),
        ("near the well", "cerca del pozo"),
        ("before the altar", "delante del altar"),
    ),
    *(("in the desert", "en el desierto"), ("by the sea", "a la orilla del mar"), ("among the vineyards", "entre las viñas")),
    *(("in the village", "en la aldea"), ("on the road", "en el camino"), ("behind the wall", "detrás del muro")),
    *(("in the garden", "en el huerto"), ("above the valley", "sobre el valle"), ("in the upper room", "en el aposento alto")),
    *(
        ("outside the camp", "fuera del campamento"),
        ("across the lake", "al otro lado del lago"),
        ("in the synagogue", "en la sinagoga"),
    ),
)
TIMES = (
    *(("at dawn", "al alba"), ("at night", "de noche"), ("on the third day", "al tercer día"), ("in the morning", "por la mañana")),
    *(("after the rain", "después de la lluvia"), ("before the feast", "antes de la fiesta"), ("on the sabbath", "en el sábado")),
    *(("in the year of mercy", "en el año de la misericordia"), ("with great joy", "con gran gozo"), ("with faith", "con fe")),
    *(
        ("without fear", "sin temor"),
        ("in the days of peace", "en los días de paz"),
        ("with a sincere heart", "con corazón sincero"),
    ),
    *(("until the evening", "hasta la tarde"), ("according to the law", "según la ley"), ("for forty days", "por cuarenta días")),
)
OPENINGS = {
    "pentateuch": (("You shall hear that", "Oirás que"), ("It is written that", "Escrito está que"), ("", "")),
    "history": (("In those days", "En aquellos días"), ("After these things", "Después de estas cosas"), ("", "")),
    "poetry": (
        ("Sing, for", "Cantad, porque"),
        ("Blessed be God, for", "Bendito sea Dios, porque"),
        ("O my soul,", "Oh alma mía,"),
    ),
    "prophecy": (
        ("The day will come when", "Vendrá el día en que"),
        ("Behold,", "He aquí,"),
        ("In the last days", "En los postreros días"),
    ),
    "gospels": (("The teacher said that", "El maestro dijo que"), ("It was told that", "Se contó que"), ("", "")),
    "acts_and_epistles": (
        ("Brothers, you know that", "Hermanos, sabéis que"),
        ("We give thanks, for", "Damos gracias, porque"),
        ("", ""),
    ),
    "apocalyptic": (
        ("I heard a voice:", "Oí una voz:"),
        ("And it was given to me to know that", "Y me fue dado saber que"),
        ("", ""),
    ),
}
FUTURE = frozenset({"prophecy", "apocalyptic"})
LINKS = ((", and", ", y"), (", but", ", mas"), ("; therefore", "; por tanto"), (", because", ", porque"), (", while", ", mientras"))


FORMULA = ("Hear these words, all you people of the city.", "Oíd estas palabras, todo el pueblo de la ciudad.")
"""Begins every fourth chapter, in all wordings: repeated verses must be folded and must not stand on both sides of the split."""


class Draw:
    """Choices that follow from a reference alone."""

    def __init__(self, reference: Reference) -> None:
        self._key = str(reference)
        self._count = 0

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`, each as likely."""
        return choices[self.number() % len(choices)]

    def number(self) -> int:
        """A whole number of 48 bits, another one at every call."""
        self._count += 1
        return int.from_bytes(hashlib.sha256(f"{self._key}#{self._count}".encode()).digest()[:6], "big")


def references() -> list[Reference]:
    """The sample's references, in the canon's order."""
    return [
        Reference(book, chapter, verse)
        for book in sorted(CHAPTERS, key=lambda name: ORDER[name])
        for chapter in range(1, CHAPTERS[book] + 1)
        for verse in range(1, VERSES_IN_CHAPTER + 1)
    ]


def wordings(reference: Reference) -> tuple[str, str, str, str]:
    """The verse in both English and both Spanish wordings."""
    if reference.verse == 1 and reference.chapter % 4 == 0:
        return FORMULA[0], FORMULA[0], FORMULA[1], FORMULA[1]
    draw = Draw(reference)
    opening = draw.pick(OPENINGS[reference.genre])
    parts = [_clause(draw, reference.genre in FUTURE)]
    link = draw.pick(LINKS)
    if draw.number() % 2:
        parts.append(_clause(draw, reference.genre in FUTURE))
    return (
        _sentence(opening[0], link[0], [part[0] for part in parts]),
        _sentence(opening[0], link[0], [part[1] for part in parts]),
        _sentence(opening[1], link[1], [part[2] for part in parts]),
        _sentence(opening[1], link[1], [part[3] for part in parts]),
    )


def _clause(draw: Draw, future: bool) -> tuple[str, str, str, str]:
    subject, verb = draw.pick(PEOPLE), draw.pick(VERBS)
    person = draw.number() % 3 == 0
    target = draw.pick([noun for noun in PEOPLE if noun is not subject] if person else THINGS)
    adjective = draw.pick(ADJECTIVES) if draw.number() % 2 else ("", "", "")
    place, place_es = draw.pick(PLACES)
    time, time_es = draw.pick([(f" {english}", f" {spanish}") for english, spanish in TIMES] if draw.number() % 2 else [("", "")])
    described = f"the {adjective[0]} {target.english}".replace("  ", " ")
    described_es = _object(target, adjective, person)
    verbs = _conjugate(verb, subject.plural, future)
    english = [f"the {subject.english} {form} {described} {place}{time}" for form in verbs[:2]]
    plain = f"{subject.article} {subject.spanish} {verbs[2]} {described_es} {place_es}{time_es}"
    turned = f"{subject.article} {subject.spanish} {verbs[3]} {place_es} {described_es}{time_es}"
    return english[0], english[1], plain, turned


def _object(target: Noun, adjective: tuple[str, str, str], person: bool) -> str:
    described = f"{target.article} {target.spanish}"
    if adjective[0]:
        form = adjective[2] if target.feminine else adjective[1]
        if target.plural:
            form += "es" if form[-1] in "lr" else "s"
        described += f" {form}"
    if person:
        described = f"al {described[3:]}" if described.startswith("el ") else f"a {described}"
    return described


def _conjugate(verb: Verb, plural: bool, future: bool) -> tuple[str, str, str, str]:
    if future:
        spanish = verb.infinitive + ("án" if plural else "á")
        return f"will {verb.base}", f"shall {verb.base}", spanish, spanish
    past = verb.plural if plural else verb.singular
    other = (verb.other_plural if plural else verb.other_singular) or past
    return verb.past, verb.other_past or verb.past, past, other


def _sentence(opening: str, link: str, clauses: Sequence[str]) -> str:
    text = f"{opening} {f'{link} '.join(clauses)}.".strip()
    return text[0].upper() + text[1:]


def _residue(reference: Reference, text: str, spanish: bool) -> str:
    """What editions add: the second text of each language gets some, the cleaning takes it away again."""
    kind = Draw(reference).number() % 40
    if kind == 0:
        return f" ¶ {text}  " if spanish else text.replace(" the ", " <FI>the<Fi> ", 1)
    if kind == 1:
        return f"{text} "
    if kind == 2:
        return text.replace(" ", "  ", 1)
    if kind == 3 and not spanish:
        return f"[{text}]"
    return "..." if kind == 4 and reference.verse == 7 and not spanish else text


def texts() -> dict[str, dict[Reference, str]]:
    """The four texts by name, as "published"."""
    found: dict[str, dict[Reference, str]] = {name: {} for name in (*ENGLISH, *SPANISH)}
    for reference in references():
        plain, older, spanish, turned = wordings(reference)
        found["SampleA"][reference] = plain
        found["SampleB"][reference] = _residue(reference, older, False)
        found["MuestraA"][reference] = spanish
        found["MuestraB"][reference] = _residue(reference, turned, True)
    return found


def write_sample(folder: Path) -> Path:
    """Write the sample into `folder` (formats/ and sources/ as in the real thing; one CSV, one JSON, two SQLite) and return it.

    Files that are there are replaced; the sentences are the same on every machine.
    """
    writers = {"SampleA": _write_sqlite, "SampleB": _write_json, "MuestraA": _write_sqlite, "MuestraB": _write_csv}
    for name, verses in texts().items():
        language = "en" if name in ENGLISH else "es"
        title = f"{name}: invented sentences for trying out the pipeline"
        _save(folder / "sources" / language / name / "README.md", f"# {title}\n\n**License:** Creative Commons: CC0\n".encode())
        writers[name](folder / "formats", name, title, verses)
    return folder


def _save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_sqlite(formats: Path, name: str, title: str, verses: dict[Reference, str]) -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(
        "CREATE TABLE translations (translation TEXT PRIMARY KEY, title TEXT, license TEXT);"
        f"CREATE TABLE {name}_books (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT);"
        f"CREATE TABLE {name}_verses "
        "(id INTEGER PRIMARY KEY AUTOINCREMENT, book_id INTEGER, chapter INTEGER, verse INTEGER, text TEXT);"
    )
    connection.execute("INSERT INTO translations VALUES (?, ?, ?)", (name, title, "Creative Commons: CC0"))
    connection.executemany(f"INSERT INTO {name}_books VALUES (?, ?)", [(ORDER[book] + 1, book) for book in BOOKS])
    rows = [(ORDER[reference.book] + 1, reference.chapter, reference.verse, text) for reference, text in verses.items()]
    connection.executemany(f"INSERT INTO {name}_verses (book_id, chapter, verse, text) VALUES (?, ?, ?, ?)", rows)
    connection.commit()
    _save(formats / "sqlite" / f"{name}.db", connection.serialize())
    connection.close()


def _write_csv(formats: Path, name: str, _title: str, verses: dict[Reference, str]) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Book", "Chapter", "Verse", "Text"])
    writer.writerows([*reference, text] for reference, text in verses.items())
    _save(formats / "csv" / f"{name}.csv", file.getvalue().encode())


def _write_json(formats: Path, name: str, title: str, verses: dict[Reference, str]) -> None:
    books: dict[str, dict[int, list[dict[str, object]]]] = {}
    for reference, text in verses.items():
        books.setdefault(reference.book, {}).setdefault(reference.chapter, []).append({"verse": reference.verse, "text": text})
    data = {
        "translation": title,
        "books": [
            {"name": book, "chapters": [{"chapter": chapter, "verses": rows} for chapter, rows in chapters.items()]}
            for book, chapters in books.items()
        ],
    }
    _save(formats / "json" / f"{name}.json", json.dumps(data, ensure_ascii=False, indent=1).encode())

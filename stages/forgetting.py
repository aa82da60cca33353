"""General sentences of the project's own making: what a model could do before a training on one domain, and can do no more.

Two hundred pairs on everyday topics, written for Vigil in today's English and Spanish and in nobody's training data. They have the
form of test sentences, with the topic as genre, so that they are translated and scored like the others.
"""

from __future__ import annotations

import json

from bible_data.books import DATA
from stages.scoring import Sentence, digest

FILE = DATA / "general_sentences.tsv"
BOOK = "General"


def sentences(text: str | None = None) -> list[Sentence]:
    """The pairs that ship, or those in `text`, in their order: topic, English and Spanish on each line, between tabs."""
    lines = (FILE.read_text(encoding="utf-8") if text is None else text).splitlines()
    rows = [line.split("\t") for line in lines if line.strip()]
    return [
        Sentence(digest(json.dumps([BOOK, english]))[:16], BOOK, 1, number, topic, "vigil", english, (spanish,))
        for number, (topic, english, spanish) in enumerate(rows, start=1)
    ]

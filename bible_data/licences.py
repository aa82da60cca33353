"""Which texts may be used: an allow-list of licences, a never-list of texts, and where a text states its licence.

The files of scrollmapper/bible_databases state it twice: in the `translations` table of a database and in
`sources/LANGUAGE/NAME/README.md`. The README is the newer of the two and wins where both speak.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bible_data.errors import CorpusError

NEVER = frozenset(
    {
        *("ESV", "NASB", "NASB1995", "NASB2020", "NIV", "NIV2011", "NLT", "NKJV", "RSV", "NRSV", "CSB", "HCSB", "AMP"),
        *("NVI", "NVI2015", "LBLA", "NBLA", "RVR1960", "RVR60", "RVR1995", "RV1960", "RVA2015", "DHH", "NTV", "TLA", "PDT"),
    }
)
"""Texts under copyright that circulate with wrong or no licence notes: refused whatever their files say."""

_NEVER_TITLES = re.compile(
    r"english standard version|new american standard|new international version|new living translation"
    r"|nueva versi[oó]n internacional|biblia de las am[eé]ricas|reina[- ]valera 19(?:60|95)|dios habla hoy",
    re.IGNORECASE,
)
_ALLOWED = re.compile(r"public domain|creative commons:? *(?:cc ?0|zero)|cc ?0(?:[- ]1\.0)?|dominio p[uú]blico", re.IGNORECASE)
_UNKNOWN = frozenset({"", "unknown", "none", "?"})
_README_LICENCE = re.compile(r"^\*\*Licen[cs]e(?::\*\*|\*\*:)[ \t]*(.*?)[ \t]*$", re.IGNORECASE | re.MULTILINE)
_README_TITLE = re.compile(r"^#[ \t]+(.+?)[ \t]*$", re.MULTILINE)

TAGGED_BUT_FREE = {
    "KJV": (
        "the module is tagged GPL for its markup, which is not read; its words are the King James Version of 1769, in the public "
        "domain except for the Crown's printing right in the United Kingdom. For your own training; KJVPCE is the untagged twin"
    )
}
"""Texts whose module carries a GPL tag although the text itself is free: used, and said so in the manifest."""


@dataclass(frozen=True)
class Licence:
    """What a text's files say about it, and why that is good enough."""

    title: str
    licence: str
    stated_in: str
    note: str = ""


def read_readme(source: Path, language: str, name: str) -> tuple[str, str, str] | None:
    """(title, licence, path relative to `source`) of a text's README, or None where there is none; either may be empty."""
    path = source / "sources" / language / name / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: the licence note cannot be read ({error}); fetch the file again") from error
    title, licence = _README_TITLE.search(text), _README_LICENCE.search(text)
    relative = path.relative_to(source).as_posix()
    return (title.group(1) if title else ""), (licence.group(1) if licence else ""), relative


def permit(source: Path, language: str, name: str, table: tuple[str, str] | None) -> Licence:
    """The licence under which text `name` may be used.

    Args:
        source: the folder that holds `formats/` and `sources/`.
        language: `en` or `es`, the folder below `sources/`.
        name: the text's short name, "ASV".
        table: (title, licence) of the database's `translations` row, where the file has one.

    Raises:
        CorpusError: the text is on the never-list, states no licence, or states one that is not on the allow-list.
    """
    readme = read_readme(source, language, name)
    stated = [(*readme,)] if readme else []
    if table:
        stated.append((*table, "translations table"))
    title = next((title.lstrip("# ") for title, _, _ in stated if title.strip()), name)
    if name.upper() in NEVER or _NEVER_TITLES.search(title):
        raise CorpusError(f"text {name} ({title}) is under copyright and never used, whatever its files say; choose another text")
    known = [(licence, where) for _, licence, where in stated if licence.strip().lower() not in _UNKNOWN]
    if not known:
        raise CorpusError(
            f"text {name} states no licence, in its database or in sources/{language}/{name}/README.md; "
            f"fetch that file with the text, or choose another text"
        )
    licence, where = known[0]
    if _ALLOWED.fullmatch(licence.strip(" .")):
        return Licence(title, licence, where)
    if name in TAGGED_BUT_FREE and licence.upper().startswith("GPL"):
        return Licence(title, licence, where, TAGGED_BUT_FREE[name])
    raise CorpusError(
        f"text {name} has the licence {licence!r} ({where}), not on the allow-list (public domain, CC0); choose another text"
    )

"""Only texts that may be used are used, and the manifest can say why."""

from __future__ import annotations

from pathlib import Path

import pytest

from bible_data.errors import CorpusError
from bible_data.licences import permit
from tests.unit.bible_data.conftest import readme


@pytest.mark.parametrize("licence", ["Public Domain", "public domain.", "Creative Commons: CC0", "CC0 1.0"])
def test_free_texts_are_used(tmp_path: Path, licence: str) -> None:
    """The allow-list, in the spellings that upstream uses."""
    assert permit(tmp_path, "en", "OEB", ("# OEB: Open English Bible", licence)).licence == licence


@pytest.mark.parametrize(
    ("name", "title", "licence", "said"),
    [
        ("NIV", "# NIV: invented", "Public Domain", "under copyright"),
        ("nvi", "# nvi: invented", "Public Domain", "under copyright"),
        ("Foo", "# Foo: Reina-Valera 1960", "Public Domain", "under copyright"),
        ("AKJV", "# AKJV: American King James", "Free non-commercial distribution", "not on the allow-list"),
        ("SpaRVG", "# SpaRVG", "Creative Commons: BY-NC-ND", "not on the allow-list"),
        ("Foo", "# Foo: invented", "GPL", "not on the allow-list"),
        ("Foo", "# Foo: invented", "Not Public Domain", "not on the allow-list"),
        ("Foo", "# Foo: invented", "", "states no licence"),
        ("Foo", "# Foo: invented", "Unknown", "states no licence"),
    ],
)
def test_other_texts_are_refused(tmp_path: Path, name: str, title: str, licence: str, said: str) -> None:
    """Whatever is not plainly free, and the never-list whatever it claims; the sentence names the text."""
    with pytest.raises(CorpusError, match=said) as raised:
        permit(tmp_path, "en", name, (title, licence))
    assert name in str(raised.value)


def test_no_statement_at_all_is_refused(tmp_path: Path) -> None:
    """A CSV file without a README beside it says nothing: the path to look at is named."""
    with pytest.raises(CorpusError, match=r"sources/es/Foo/README\.md"):
        permit(tmp_path, "es", "Foo", None)


def test_the_readme_wins_over_the_table(tmp_path: Path) -> None:
    """NHEB's table says Unknown where its README says Public Domain; a README that forbids also wins."""
    readme(tmp_path, "en", "NHEB")
    found = permit(tmp_path, "en", "NHEB", ("# NHEB", "Unknown"))
    assert (found.licence, found.stated_in) == ("Public Domain", "sources/en/NHEB/README.md")
    readme(tmp_path, "en", "NHEB", "Copyrighted")
    with pytest.raises(CorpusError, match="Copyrighted"):
        permit(tmp_path, "en", "NHEB", ("# NHEB", "Public Domain"))


def test_the_gpl_tag_of_kjv_is_told(tmp_path: Path) -> None:
    """The KJV module's GPL tag is accepted for that text alone, with a note for the manifest."""
    found = permit(tmp_path, "en", "KJV", ("# KJV: King James Version (1769)", "GPL"))
    assert "KJVPCE" in found.note


def test_a_readme_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Damage to the licence note is not taken for freedom."""
    readme(tmp_path, "en", "Foo")
    (tmp_path / "sources/en/Foo/README.md").write_bytes(b"# Foo \xff\xfe")
    with pytest.raises(CorpusError, match="cannot be read"):
        permit(tmp_path, "en", "Foo", None)

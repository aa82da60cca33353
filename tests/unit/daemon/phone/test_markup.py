"""Telegram's HTML: nothing that is not ours is lost or read as a tag, and nothing is too long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon import words
from daemon.phone import markup
from tests.telegram import markup as telegram


@pytest.mark.parametrize("text", ["loss<0.5", "<module>", "a && b", "&lt;", "<b>", "</pre>", '"quoted"', "x\n\ty"])
def test_what_is_not_ours_arrives_as_typed(text: str) -> None:
    """Telegram's own rules read it back to the letter."""
    assert telegram.parse(markup.escaped(text))[0] == text.strip()
    assert words.bare(markup.escaped(text)) == text


def test_what_telegram_refuses_is_taken_out() -> None:
    """Control characters, and halves of a surrogate pair, which cannot be sent at all."""
    assert markup.escaped("a\x00b\x1b[1mc\ud83d") == "ab[1mc?"


@pytest.mark.parametrize(
    ("units", "text"), [(9, "<b>🦜🦜</b>abcde"), (8, "<b>🦜🦜</b>abc…"), (4, "<b>🦜…</b>"), (3, "<b>🦜…</b>"), (2, "<b>…</b>")]
)
def test_a_cut_never_halves_an_emoji(units: int, text: str) -> None:
    """Counted in UTF-16, in which an emoji is two; the tags are closed."""
    assert markup.cut_html("<b>🦜🦜</b>abcde", units) == text
    plain = words.bare("<b>🦜🦜</b>abcde")
    assert words.cut_utf16(plain, units) == words.bare(text)


_PIECES = st.lists(st.tuples(st.sampled_from(["", "b", "pre", "i"]), st.text(max_size=30)), max_size=8)


@given(_PIECES, st.integers(1, 60))
def test_any_cut_is_well_formed_and_short_enough(pieces: list[tuple[str, str]], units: int) -> None:
    """Whatever is written in it: what is shown is a beginning of the whole, and an ellipsis says that it was cut."""
    whole = "".join(f"<{tag}>{markup.escaped(text)}</{tag}>" if tag else markup.escaped(text) for tag, text in pieces)
    cut = markup.cut_html(whole, units)
    shown, all_of_it = words.bare(cut), words.bare(whole)
    telegram.parse(cut)
    assert words.utf16_units(shown) <= units
    assert shown == all_of_it or (shown.endswith("…") and all_of_it.startswith(shown[:-1]))

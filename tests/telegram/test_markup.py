"""Telegram's HTML: what is read, what is refused, and how lengths are counted."""

from __future__ import annotations

import html

import pytest

from tests.telegram.markup import parse, plain, units
from tests.telegram.wire import Refused


@pytest.mark.parametrize(
    ("source", "text", "entities"),
    [
        ("a <b>b</b> c", "a b c", [("bold", 2, 1)]),
        ("<b>x<i>y</i></b>", "xy", [("bold", 0, 2), ("italic", 1, 1)]),
        ("🌶<code>1</code>", "🌶1", [("code", 2, 1)]),
        ("<pre>a\nb</pre>", "a\nb", [("pre", 0, 3)]),
        ("<STRONG>x</strong >", "x", [("bold", 0, 1)]),
        ("<span class='tg-spoiler'>x</span>", "x", [("spoiler", 0, 1)]),
        ("<blockquote expandable>x</blockquote>", "x", [("blockquote", 0, 1)]),
        ("<b></b>x", "x", []),
        ("  <b> x </b>  ", "x", [("bold", 0, 1)]),
        ("&lt;module&gt; &amp; &quot;&#39;&#x27; & a&b", "<module> & \"'' & a&b", []),
    ],
)
def test_what_arrives(source, text, entities):
    """Tags become entities in UTF-16 units, escapes become characters, white space at the ends goes."""
    found, marks = parse(source)
    assert (found, [(mark["type"], mark["offset"], mark["length"]) for mark in marks]) == (text, entities)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("loss<0.5", 'Unsupported start tag "0.5" at byte offset 4'),
        ("ñ <module>", 'Unsupported start tag "module" at byte offset 3'),
        ("a < b", "Unsupported start tag"),
        ("<div>x</div>", 'Unsupported start tag "div"'),
        ("a<br/>b", "Unsupported start tag"),
        ("<b>x", 'Can\'t find end tag corresponding to start tag "b"'),
        ("<b><i>x</b></i>", 'Unmatched end tag at byte offset 7, expected "</i>", found "</b>"'),
        ("x</b>", "Unexpected end tag at byte offset 1"),
        ("<span>x</span>", 'Tag "span" must have class "tg-spoiler"'),
        ("a&nbsp;b", 'Unknown entity "&nbsp;" at byte offset 1'),
    ],
)
def test_what_is_refused(source, why):
    """Bad HTML is a 400 that says where."""
    with pytest.raises(Refused, match="Bad Request: can't parse entities") as refusal:
        parse(source)
    assert refusal.value.status == 400
    assert why in str(refusal.value)


def test_links_keep_their_address():
    """A link's address is read with its quotes off, even with a `>` in it."""
    text, entities = parse('<a href="http://x/?a>b">x</a>')
    assert (text, entities[0]["url"]) == ("x", "http://x/?a>b")


def test_whatever_is_escaped_arrives_as_typed():
    """`html.escape` is enough for any text."""
    typed = "\"loss<0.5\" in <module> & 'x' &amp; &nbsp; 🌶"
    assert parse(html.escape(typed)) == (typed, [])


def test_the_hundred_and_first_entity_is_lost():
    """Telegram keeps a hundred entities a message and drops the rest without a word."""
    assert len(parse("<b>x</b> " * 120)[1]) == 100


def test_plain_text_is_not_read():
    """Without a parse mode, tags are text."""
    assert plain(" <b>x ") == ("<b>x", [])


def test_units_are_those_of_utf_16():
    """An emoji beyond the basic plane counts two."""
    assert [units(text) for text in ("a", "ñ", "🌶", "🌶️")] == [1, 1, 2, 3]

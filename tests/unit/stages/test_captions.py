"""stages.captions: what a site's captions say when, and how far a label may differ before somebody looks at it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import captions
from stages.captions import Spoken, disagreement

ROLLING = """\
WEBVTT
Kind: captions
Language: en

00:00:00.000 --> 00:00:02.000 align:start position:0%
 
hope<00:00:00.500><c> is</c><00:00:01.000><c> not</c>

00:00:02.000 --> 00:00:02.010 align:start position:0%
hope is not
 

00:00:02.010 --> 00:00:04.000 align:start position:0%
hope is not
[Music] loud<00:00:03.000><c> amen</c>

00:00:04.000 --> 00:00:04.010 align:start position:0%
loud amen
 

00:00:04.010 --> 00:00:05.000 align:start position:0%
loud amen
amen
"""  # noqa: W293  # YouTube's own files hold such lines

PLAIN = """\
1
00:00:01,000 --> 00:00:03,000
Don&#39;t be <i>afraid</i>,
little flock.

2
00:00:03,000 --> 00:00:04,000
\u266a [Applause]
"""


def read(tmp_path: Path, name: str, content: str) -> list[Spoken]:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    return captions.read(path)


def test_rolling_captions_give_each_word_once(tmp_path: Path) -> None:
    """YouTube shows every line two or three times; a word that was said twice is still there twice."""
    spoken = read(tmp_path, "a.vtt", ROLLING)
    assert [one.word for one in spoken] == ["hope", "is", "not", "loud", "amen", "amen"]
    assert [one.at_s for one in spoken] == pytest.approx([0.0, 0.5, 1.0, 2.01, 3.0, 4.01])


def test_plain_captions_are_spread_over_their_cue(tmp_path: Path) -> None:
    """SubRip numbers, tags, entities and sounds are not words."""
    spoken = read(tmp_path, "a.srt", PLAIN)
    assert [one.word for one in spoken] == ["don", "t", "be", "afraid", "little", "flock"]
    assert [one.at_s for one in spoken] == pytest.approx([1 + number / 3 for number in range(6)])


@pytest.mark.parametrize("content", ["", "WEBVTT\n", "\x00\xff", "00:00:01.000 --> nowhere\nwords\n"])
def test_what_is_no_caption_file_has_no_words(tmp_path: Path, content: str) -> None:
    """A broken caption file is no reason to stop the labelling."""
    assert read(tmp_path, "a.vtt", content) == []


def test_the_captions_of_a_recording_are_found_by_name(tmp_path: Path) -> None:
    """The language asked for, the original before a variant; never another recording's or another language's."""
    for name in ("001_a.flac", "001_a.es.vtt", "001_a.part.vtt", "001_ab.en.vtt", "001_b.en.vtt", "001_a.en.ttml"):
        (tmp_path / name).touch()
    assert captions.find(tmp_path, "001_a", "en") is None
    for name in ("001_a.en-GB.vtt", "001_a.vtt", "001_a.en.srt"):
        (tmp_path / name).touch()
    assert captions.find(tmp_path, "001_a", "en") == tmp_path / "001_a.en.srt"
    assert captions.find(tmp_path / "gone", "001_a", "en") is None


SAID = [Spoken(word, float(second)) for second, word in enumerate("abcdefghijklmnopqrst")]


@pytest.mark.parametrize(
    ("text", "span", "error"),
    [
        ("F g h, I j k l m n o.", (5.0, 15.0), 0.0),
        ("d e f g h i j k l m n o p q", (5.0, 15.0), 0.0),  # the neighbours' words at either end
        ("h i j k l m", (5.0, 15.0), 0.0),  # and the ends left to the neighbours: only what lies 2 s inside is due
        ("f g h X j k l m n o", (5.0, 15.0), 0.1),
        ("f g h i j Y k l m n o", (5.0, 15.0), 1 / 11),
        ("thanks for watching", (5.0, 15.0), 1.0),
        ("h i j", (5.0, 15.0), 3 / 5),  # of i to m, which are due, three are missing
        ("", (5.0, 15.0), None),
        ("whatever", (40.0, 50.0), None),
    ],
)
def test_disagreement(text: str, span: tuple[float, float], error: float | None) -> None:
    """Word edits by the longer side; what lies within two seconds of an edge costs nothing to leave out."""
    found = disagreement(text, SAID, *span)
    assert found == (error if error is None else pytest.approx(error))


def test_words_where_the_captions_are_silent_disagree_wholly() -> None:
    """Between two captions a minute apart nothing was said: a text there is made up."""
    assert disagreement("thank you so much", [Spoken("amen", 0.0), Spoken("amen", 60.0)], 20.0, 30.0) == 1.0


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_disagreement_is_a_share(said: list[str], heard: list[str]) -> None:
    """Whatever the two say it lies between 0 and 1, and is 0 for the same words."""
    spoken = [Spoken(word, 10.0 + number) for number, word in enumerate(said)]
    span = (5.0, 30.0)
    found = disagreement(" ".join(heard), spoken, *span)
    assert found is None if not heard else 0.0 <= (found or 0.0) <= 1.0
    assert disagreement(" ".join(said), spoken, *span) == 0.0

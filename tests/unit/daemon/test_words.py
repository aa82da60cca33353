"""Numbers, times and tables for people."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone

import pytest

from daemon import words

T0 = 1_770_919_200.0  # 2026-02-12T18:00:00Z


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (750, "12 min"),
        (3600, "1 h"),
        (18_720, "5 h 12 min"),
        (86_400, "1 d"),
        (183_600, "2 d 3 h"),
        (-5, "0 s"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    """The two largest units that matter, never a negative time."""
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (3_420_000, "3.4 MB"),
        (412e9, "412 GB"),
        (999_600, "1.0 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_size(size_bytes: float, text: str) -> None:
    """Decimal units; no four-digit number where a larger unit exists."""
    assert words.size(size_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (3.0, "3"),
        (1840.0, "1,840"),
        (0.35482, "0.3548"),
        (12345.6, "12,346"),
        (float("nan"), "nan"),
        (0.00012, "0.00012"),
    ],
)
def test_number(value: float | None, text: str) -> None:
    """Four significant digits, thousands set apart, what is no number is said so."""
    assert words.number(value) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0.0, "0 %"), (0.999, "99 %"), (1.0, "100 %"), (1.2, "100 %")])
def test_percent(share: float | None, text: str) -> None:
    """100 % is only said of what is done."""
    assert words.percent(share) == text


def test_times_are_turned_local_at_the_edge() -> None:
    """The same instant reads differently in two zones, and as UTC in ISO form."""
    west = timezone(timedelta(hours=-8), "PST")
    assert words.iso(T0) == "2026-02-12T18:00:00Z"
    assert words.clock(T0, UTC) == "18:00"
    assert words.day_and_clock(T0, west) == "Thu 12 Feb 10:00"
    assert words.date_line(T0, west) == "Thu Feb 12 10:00:00 PST 2026"
    assert words.iso(None) is None


def test_a_table_counts_columns_as_terminals_do() -> None:
    """Wide and combining characters keep the columns aligned; no line ends in spaces."""
    lines = words.table([["a", "1"], ["漢字", "22"], ["e\u0301", "3"]], right=(1,))
    assert lines == ["a      1", "漢字  22", "e\u0301      3"]
    assert words.table([]) == []


def test_clip_and_bar() -> None:
    """What is cut says so; a bar has its width, and an unknown share shows no progress."""
    assert words.clip("one  two\nthree", 40) == "one two three"
    assert words.clip("abcdefghij", 5) == "abcd…"
    assert [words.bar(share, 4) for share in (None, 0.0, 0.5, 1.0, 7.0)] == ["····", "░░░░", "██░░", "████", "████"]


def test_markdown_cells_cannot_break_the_table() -> None:
    """A pipe or a line break in a cell stays in its cell."""
    assert words.markdown_table([["x"], ["a|b\nc"]]) == ["| x |", "| --- |", "| a\\|b c |"]


@pytest.mark.parametrize(
    ("days", "text"),
    [(0, "18:00"), (1, "Fri 18:00"), (5, "Tue 18:00"), (6, "Wed 18 Feb 18:00"), (-1, "Wed 18:00"), (-6, "Fri 6 Feb 18:00")],
)
def test_a_near_time_is_as_short_as_it_can_be_told_apart(days: int, text: str) -> None:
    """A weekday alone only while it names one day."""
    assert words.near(T0 + days * 86_400, T0, UTC) == text


def test_tomorrow_begins_at_local_midnight() -> None:
    """The same instant is today in one zone and tomorrow in another."""
    assert words.near(T0 + 6.5 * 3600, T0, UTC) == "Fri 00:30"
    assert words.near(T0 + 6.5 * 3600, T0, timezone(timedelta(hours=-8))) == "16:30"


def test_a_sparkline_shows_the_course() -> None:
    """From the lowest to the highest sign; a level course in the middle; what is no number is left out; of nothing nothing."""
    assert words.sparkline(range(8), 8) == "▁▂▃▄▅▆▇█"
    assert words.sparkline([9, 9, 1, 1], 2) == "█▁"
    assert words.sparkline([2.0, float("nan"), float("inf"), 1e200, 2.0], 8) == "▄▄"
    assert words.sparkline([], 8) == ""
    assert len(words.sparkline(range(1000), 16)) == 16


@pytest.mark.parametrize(("units", "text"), [(5, "a🦜🦜"), (4, "a🦜…"), (3, "a…"), (2, "a…"), (1, "…")])
def test_a_cut_in_utf16_keeps_characters_whole(units: int, text: str) -> None:
    """A parrot is two units; what was cut ends with an ellipsis."""
    assert words.utf16_units("a🦜🦜") == 5
    assert words.cut_utf16("a🦜🦜", units) == text
    assert words.utf16_units(text) <= units

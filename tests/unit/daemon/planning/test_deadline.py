"""From the owner's words to an instant, in any zone and over its changes of time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.planning.deadline import DAYS, DeadlineError, check, instant

SEATTLE = ZoneInfo("America/Los_Angeles")


def seattle(text):
    return datetime.fromisoformat(text).replace(tzinfo=SEATTLE).timestamp()


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("Tue 08:00", "2026-02-12T18:00", "2026-02-17T08:00"),
        ("tuesday 8:00", "2026-02-12T18:00", "2026-02-17T08:00"),
        ("Thu 19:00", "2026-02-12T18:00", "2026-02-12T19:00"),
        ("Thu 17:00", "2026-02-12T18:00", "2026-02-19T17:00"),
        ("Thu 18:00", "2026-02-12T18:00", "2026-02-19T18:00"),
        (" 2026-02-17  08:00 ", "2026-02-12T18:00", "2026-02-17T08:00"),
        ("2026-02-17T08:00", "2026-02-12T18:00", "2026-02-17T08:00"),
        ("Mon 08:00", "2026-03-05T18:00", "2026-03-09T08:00"),
        ("Mon 08:00", "2026-10-29T18:00", "2026-11-02T08:00"),
    ],
)
def test_the_deadline_is_the_next_one_after_the_start(text, start, end):
    """A weekday counts from the run's start, the start itself is not after it, and the clocks may change in between."""
    assert instant(text, seattle(start), SEATTLE) == seattle(end)


def test_times_that_the_clocks_skip_or_repeat():
    """02:30 does not exist on the day in spring: an hour later. 01:30 comes twice in autumn: the first."""
    start = seattle("2026-03-05T18:00")
    assert instant("Sun 02:30", start, SEATTLE) == datetime(2026, 3, 8, 10, 30, tzinfo=UTC).timestamp()
    assert instant("2026-11-01 01:30", start, SEATTLE) == datetime(2026, 11, 1, 8, 30, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text", ["", "soon", "Tue", "08:00", "Tue 8", "Tue 24:00", "Tue 08:60", "Die 08:00", "2026-02-30 08:00", "Tue 08:00 PST"]
)
def test_a_bad_text_is_refused_with_what_to_write(text):
    """The message holds what was written and two examples that work."""
    with pytest.raises(DeadlineError, match=r'"Tue 08:00".*"2026-02-17 08:00"') as refusal:
        check(text)
    assert repr(text) in str(refusal.value)


def test_a_date_before_the_start_is_refused():
    """It is a slip of the pen: nothing could be in time."""
    check("2026-02-01 08:00")
    with pytest.raises(DeadlineError, match=r"not after the run's start \(2026-02-12 18:00\)"):
        instant("2026-02-01 08:00", seattle("2026-02-12T18:00"), SEATTLE)


@given(
    began=st.floats(1.58e9, 2.05e9),
    day=st.sampled_from(DAYS),
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    zone=st.sampled_from(["America/Los_Angeles", "Europe/Berlin", "Australia/Lord_Howe", "UTC", "Asia/Kathmandu"]),
)
def test_any_weekday_is_found(began, day, hour, minute, zone):
    """It shows that day and time on the clocks there, within eight days after the start; only a skipped time is later."""
    place = ZoneInfo(zone)
    at = instant(f"{day[:3]} {hour:02d}:{minute:02d}", began, place)
    shown = datetime.fromtimestamp(at, place)
    assert 0 < at - began <= timedelta(days=7, hours=1).total_seconds()
    if (shown.hour, shown.minute) != (hour, minute):
        wall = shown.replace(tzinfo=None) - timedelta(hours=1), shown.replace(tzinfo=None) - timedelta(minutes=30)
        assert (hour, minute) in [(one.hour, one.minute) for one in wall]
    else:
        assert DAYS[shown.weekday()] == day

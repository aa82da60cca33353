"""PURE: the owner's deadline as an instant. `Tue 08:00` is the next one after the run's start; a date says itself which."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORM = re.compile(r"(?P<day>[A-Za-z]{3,9}|\d{4}-\d{2}-\d{2})[ T]+(?P<hour>\d{1,2}):(?P<minute>\d{2})")
_EXPECTED = 'write a weekday and a time such as "Tue 08:00", or a date such as "2026-02-17 08:00"'


class DeadlineError(ValueError):
    """The text names no instant; the message says what to write."""


def check(text: str) -> None:
    """Refuse a text that names no instant, whenever the run may start.

    Raises:
        DeadlineError: with the text and what to write.
    """
    day, _time = _parts(text)
    if not isinstance(day, int):
        _moment(text, day, _time, None)


def instant(text: str, start: float, zone: tzinfo | None = None) -> float:
    """The instant that `text` names on the clocks of `zone` (None: this machine's), counted from `start`; seconds since the epoch.

    A time that the clocks skip in spring is the one an hour later; of one that comes twice in autumn the first counts.

    Raises:
        DeadlineError: the text names none, or a date that is not after the start.
    """
    day, time = _parts(text)
    began = datetime.fromtimestamp(start, UTC).astimezone(zone)
    if not isinstance(day, int):
        at = _moment(text, day, time, zone)
        if at <= start:
            raise DeadlineError(
                f"the deadline {text!r} is not after the run's start ({began:%Y-%m-%d %H:%M}); {_EXPECTED}, or take it out"
            )
        return at
    today = began.replace(tzinfo=None, hour=0, minute=0, second=0, microsecond=0)
    nearest = today + timedelta(days=(day - began.weekday()) % 7)
    later = (_moment(text, f"{date:%Y-%m-%d}", time, zone) for date in (nearest, nearest + timedelta(days=7)))
    return next(at for at in later if at > start)


def _parts(text: str) -> tuple[int | str, tuple[int, int]]:
    """The day, as a weekday's number or a date's text, and the hour and minute."""
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise DeadlineError(f"the deadline {text!r} is neither a weekday nor a date with a time; {_EXPECTED}")
    hour, minute = int(found["hour"]), int(found["minute"])
    if hour > 23 or minute > 59:
        raise DeadlineError(f"the deadline {text!r} has a time that no clock shows; {_EXPECTED}")
    if found["day"][0].isdigit():
        return found["day"], (hour, minute)
    for number, name in enumerate(DAYS):
        if name.startswith(found["day"].lower()):
            return number, (hour, minute)
    raise DeadlineError(f"the deadline {text!r} names no day of the week; {_EXPECTED}")


def _moment(text: str, date: str, time: tuple[int, int], zone: tzinfo | None) -> float:
    try:  # without a zone these are the machine's clocks
        return datetime.fromisoformat(date).replace(hour=time[0], minute=time[1], tzinfo=zone).timestamp()
    except (ValueError, OverflowError) as error:
        raise DeadlineError(f"the deadline {text!r} names a date that is in no calendar; {_EXPECTED}") from error

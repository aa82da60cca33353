"""PURE: how Vigil writes numbers, times and tables for people. No files, no globals, nothing about runs.

Times come in as seconds since the epoch (UTC) and are turned local here, at the edge; a zone may be given, None is the machine's.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from itertools import accumulate
from statistics import fmean

NOT_MEASURED = "not measured"
NONE = "-"
SPARKS = "▁▂▃▄▅▆▇█"


def local(at: float, zone: tzinfo | None = None) -> datetime:
    """The wall time `at` in `zone`, or in this machine's."""
    return datetime.fromtimestamp(at, UTC).astimezone(zone)


def iso(at: float | None) -> str | None:
    """`at` as ISO 8601 in UTC, to the second: 2026-02-12T18:00:00Z."""
    return None if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def clock(at: float, zone: tzinfo | None = None) -> str:
    """18:00"""
    return local(at, zone).strftime("%H:%M")


def day_and_clock(at: float, zone: tzinfo | None = None) -> str:
    """Thu 12 Feb 18:00"""
    moment = local(at, zone)
    return f"{moment:%a} {moment.day} {moment:%b %H:%M}"


def near(at: float, now: float, zone: tzinfo | None = None) -> str:
    """As short as it can be told from other days: 18:00 of today, Thu 18:00 within six days, else Thu 12 Feb 18:00."""
    days = abs((local(at, zone).date() - local(now, zone).date()).days)
    return clock(at, zone) if not days else f"{local(at, zone):%a %H:%M}" if days < 6 else day_and_clock(at, zone)


def date_line(at: float, zone: tzinfo | None = None) -> str:
    """As `date` prints it, which the original's log carries: Thu Feb 12 18:00:00 PST 2026"""
    moment = local(at, zone)
    return f"{moment:%a %b} {moment.day:2d} {moment:%H:%M:%S} {moment.tzname()} {moment.year}"


def duration(seconds: float | None) -> str:
    """The two largest units that matter: `4 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`; `-` when unknown."""
    if seconds is None:
        return NONE
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, left_s = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min {left_s} s" if left_s and minutes < 10 else f"{minutes} min"


def size(size_bytes: float) -> str:
    """Decimal units, three digits at most: `812 B`, `3.4 MB`, `412 GB`."""
    value, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 10 or units[0] == "B" else f"{value:.1f} {units[0]}"


def number(value: float | None, digits: int = 4) -> str:
    """`value` with `digits` significant digits, never in powers of ten where a plain number reads well."""
    if value is None:
        return NONE
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    return text if "e" not in text or abs(value) < 1e-4 else f"{value:.6f}".rstrip("0")


def percent(share: float | None) -> str:
    """A share in [0, 1]; 100 % only when it is really done."""
    if share is None:
        return NONE
    return f"{min(99, int(share * 100)) if share < 1 else 100} %"


def bar(share: float | None, width: int) -> str:
    """A bar of `width` cells; empty dots when the share is unknown."""
    if share is None:
        return "·" * width
    filled = int(min(1.0, max(0.0, share)) * width)
    return "█" * filled + "░" * (width - filled)


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of `values` in at most `width` signs, each the mean of an equal part; what is not finite is left out."""
    told = [value for value in values if math.isfinite(value) and abs(value) < 1e100]
    parts = min(width, len(told))
    means = [fmean(told[part * len(told) // parts : (part + 1) * len(told) // parts]) for part in range(parts)]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(SPARKS[round((mean - low) / span * 7) if span else 3] for mean in means)


def plural(count: int, one: str, many: str = "") -> str:
    """`1 stage`, `2 stages`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def cells(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    return len(text) + wide - sum(unicodedata.combining(char) > 0 for char in text)


def bare(markup: str) -> str:
    """What is shown of Telegram's HTML."""
    return html.unescape(re.sub(r"</?[a-zA-Z][^<>]*>", "", markup))


def utf16_units(text: str) -> int:
    """How Telegram counts: a character beyond the 16-bit plane, such as most emoji, counts twice."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def cut_utf16(text: str, units: int) -> str:
    """`text` in at most `units` UTF-16 units, cut between two characters, with an ellipsis where it was cut."""
    if utf16_units(text) <= units:
        return text
    return text[: sum(size <= units - 1 for size in accumulate(utf16_units(char) for char in text))] + "…"


def clip(text: str, width: int) -> str:
    """`text` on one line, cut to `width` columns with an ellipsis."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)].rstrip() + "…"


def table(rows: Sequence[Sequence[str]], right: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """`rows` as aligned lines without trailing spaces; columns in `right` are aligned to the right. All rows are of one length."""
    if not rows:
        return []
    widths = [max(cells(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        padded = []
        for column, cell in enumerate(row):
            space = " " * (widths[column] - cells(cell))
            padded.append(space + cell if column in right else cell + space)
        lines.append(gap.join(padded).rstrip())
    return lines


def markdown_table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """`rows`, the first one the heading, as a Markdown table."""
    if not rows:
        return []
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    rule = ["---:" if column in right else "---" for column in range(len(head))]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]

"""PURE: when silence means a hang. The limit is learned from what an attempt was seen to do."""

from __future__ import annotations

from dataclasses import dataclass

ENOUGH_BEATS = 30
LEAST_S = 600.0
"""No learned limit is shorter: a stage that beats every second may still meet a slow disk."""
GAP_FACTOR = 20.0
CERTAIN_FACTOR = 3.0
QUIET_FACTOR = 2.0


@dataclass(frozen=True)
class Silence:
    """What was heard of an attempt, by the monotonic clock of this daemon and only while it looked.

    Wall clocks jump, and a daemon that was stopped itself has seen nothing: neither makes an attempt silent.
    """

    silent_s: float = 0.0
    """Since its last event."""
    quiet_s: float = 0.0
    """Announced by its last event."""
    longest_gap_s: float = 0.0
    """The longest silence that ended by itself and was not announced."""
    beats: int = 0
    """How often something new was heard."""


def limit_s(silence: Silence, longest_s: float, hung_before: int = 0) -> float:
    """Seconds of silence after which the attempt counts as hung.

    `longest_s` (the pipeline's `silence_s`) holds until enough was heard; then a stage that beats often is given less, and never
    less than three times what it was seen to need. A longer phase must be announced, and has twice its time. Each
    attempt in a row that was ended for silence doubles the limit of the next: it may have been no hang.
    """
    learned_s = max(LEAST_S, GAP_FACTOR * silence.longest_gap_s) if silence.beats >= ENOUGH_BEATS else longest_s
    usual_s = max(min(longest_s, learned_s), CERTAIN_FACTOR * silence.longest_gap_s)
    return float(max(usual_s, QUIET_FACTOR * silence.quiet_s) * 2**hung_before)

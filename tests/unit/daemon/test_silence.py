"""When silence means a hang, and when it does not."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from daemon.inbox import MOST_BETWEEN_LOOKS_S, Inbox
from daemon.silence import ENOUGH_BEATS, LEAST_S, Silence, limit_s
from state.contract import Progress
from state.workspace import Workspace

LONGEST_S = 1800.0


def test_the_configured_limit_holds_until_enough_was_heard():
    """A stage that has hardly spoken is not judged by its first words."""
    assert limit_s(Silence(longest_gap_s=1.0, beats=ENOUGH_BEATS - 1), LONGEST_S) == LONGEST_S
    assert limit_s(Silence(longest_gap_s=1.0, beats=ENOUGH_BEATS), LONGEST_S) == LEAST_S


@pytest.mark.parametrize(
    ("silence", "expected_s"),
    [
        (Silence(longest_gap_s=60.0, beats=500), 1200.0),
        (Silence(longest_gap_s=500.0, beats=500), 1800.0),
        (Silence(longest_gap_s=1700.0, beats=500), 5100.0),
        (Silence(longest_gap_s=1.0, beats=500, quiet_s=900.0), 1800.0),
        (Silence(quiet_s=7200.0), 14400.0),
    ],
)
def test_the_limit_follows_what_was_seen_and_what_was_announced(silence, expected_s):
    """Twenty times the longest gap up to the configured limit, never under three times it, twice what was announced."""
    assert limit_s(silence, LONGEST_S) == expected_s


def test_a_stage_that_was_ended_for_silence_gets_twice_as_long():
    """It may have been no hang: the next attempt must be able to get past the place."""
    silence = Silence(longest_gap_s=1.0, beats=99)
    assert [limit_s(silence, LONGEST_S, before) for before in range(3)] == [600.0, 1200.0, 2400.0]


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inbox(tmp_path, clock) -> Iterator[Inbox]:
    opened = Inbox(Workspace.at(tmp_path), clock)
    opened.workspace.attempt("a", 1).root.mkdir(parents=True)
    yield opened
    opened.close()


def say(inbox: Inbox, quiet_s: float | None = None) -> None:
    with open(inbox.workspace.attempt("a", 1).events, "ab") as file:
        file.write(msgspec.json.encode(Progress(at=0.0, done=1, quiet_s=quiet_s)) + b"\n")


def pass_time(inbox: Inbox, clock: Clock, seconds: float, tick_s: float = 1.0) -> float:
    """Let `seconds` pass in ticks; the largest share of its limit that the silence reached."""
    most, until_s = 0.0, clock.now_s + seconds
    while clock.now_s < until_s:
        clock.now_s = min(until_s, clock.now_s + tick_s)
        inbox.events("a", 1)
        silence = inbox.silence("a", 1)
        most = max(most, silence.silent_s / limit_s(silence, LONGEST_S))
    return most


def test_gaps_are_learned_and_announced_ones_are_not(inbox, clock):
    """A gap that ended by itself is usual; one that was announced says nothing about the others."""
    pass_time(inbox, clock, 12)
    say(inbox)
    pass_time(inbox, clock, 45)
    say(inbox, quiet_s=300.0)
    pass_time(inbox, clock, 250)
    assert inbox.silence("a", 1) == Silence(silent_s=249.0, quiet_s=300.0, longest_gap_s=45.0, beats=2)
    say(inbox)
    pass_time(inbox, clock, 1)
    assert inbox.silence("a", 1).longest_gap_s == 45.0


def test_a_daemon_that_was_stopped_itself_has_seen_no_silence(inbox, clock):
    """A suspended machine, a frozen daemon: an hour without a look counts for ten seconds."""
    say(inbox)
    pass_time(inbox, clock, 1)
    clock.now_s += 3600.0
    inbox.events("a", 1)
    assert inbox.silence("a", 1).silent_s == MOST_BETWEEN_LOOKS_S


def test_no_false_alarm_in_a_thousand_phases_and_every_hang_is_seen(inbox, clock):
    """Loads, steps of any pace with a heavy tail, throttled ones, announced saves that take up to 1.8 times what they said.

    After each hundred phases the stage is frozen where it is: the silence then reaches its limit within half an hour.
    """
    draw = random.Random(20261122)
    worst = 0.0
    for phase in range(1000):
        pace_s = draw.choice([0.2, 1.0, 4.0, 15.0, 60.0])
        if draw.random() < 0.3:
            announced_s = draw.uniform(60.0, 900.0)
            say(inbox, quiet_s=announced_s)
            worst = max(worst, pass_time(inbox, clock, announced_s * draw.uniform(0.0, 1.8), tick_s=5.0))
        for _ in range(draw.randint(5, 25)):
            say(inbox)
            slow = 4.0 if draw.random() < 0.05 else 1.0
            gap_s = min(pace_s * slow * draw.lognormvariate(0.0, 0.5), 400.0)
            worst = max(worst, pass_time(inbox, clock, gap_s, tick_s=max(1.0, gap_s / 5)))
        if phase % 100 == 99:
            say(inbox)
            before_s = clock.now_s
            assert pass_time(inbox, clock, LONGEST_S + 10, tick_s=10.0) > 1.0, f"a hang was not seen from {before_s:.0f} s on"
            inbox._tails.clear()  # the next attempt
            inbox.workspace.attempt("a", 1).events.unlink()
    assert 0.3 < worst < 1.0

"""How many ticks came to their end in this process: the sign of life that the tick gives and the heartbeat waits for.

The one value that the supervisor's thread and the bot's share. A tick that hangs, spins or fails gives none.
"""

from __future__ import annotations

_ended = 0


def beat() -> None:
    """A tick has ended; for the one thread that ticks."""
    global _ended
    _ended += 1


def ticks() -> int:
    """How many have ended."""
    return _ended

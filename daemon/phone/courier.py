"""Sends one text through Apprise and ends: `python -m daemon.phone.courier`, a process of its own, since Apprise costs 20 MB.

Standard input holds the errand as JSON, so that the address, which may be a secret, is in no argument. The exit code says how
it went: 0 delivered, 1 not taken, 78 the address cannot be used, and why on standard output, without the address.
"""

from __future__ import annotations

import signal
import sys

import msgspec

from state.contract import ExitCode

TITLE = "Vigil"
INSTALL = ".venv/bin/python -m pip install --require-hashes --no-deps --only-binary :all: -r locks/mirror.lock"


class Errand(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be sent, where to."""

    url: str
    limit_s: int
    """The process ends by then, also when the daemon is gone that would end it."""
    text: str = ""
    """Empty: only see whether the address can be used."""


def run(errand: Errand) -> int:
    """Do it; the exit code."""
    try:
        import apprise
    except ImportError:
        print(f"Apprise is not installed. At the machine: {INSTALL}")
        return ExitCode.MISCONFIGURED
    line = apprise.Apprise()
    if not line.add(errand.url):
        print("Apprise knows no such address. Mend `mirror` in telegram.toml and start the run again.")
        return ExitCode.MISCONFIGURED
    return 0 if not errand.text or line.notify(title=TITLE, body=errand.text) else 1


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.buffer.read(), type=Errand)
    signal.alarm(given.limit_s)
    raise SystemExit(run(given))

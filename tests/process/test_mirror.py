"""A mirror beside a real daemon's process."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from daemon.phone.courier import INSTALL
from tests.process.test_bot import process, scene, wait_until  # noqa: F401  a fixture among them
from tests.unit.daemon.phone.test_mirror import service

MIRRORED = """
import functools
import daemon.supervisor, daemon.config
Telegram = functools.partial(Telegram, mirror=(Secret("{url}"),))
"""


@pytest.mark.skipif(find_spec("apprise") is None, reason=f"Apprise is optional: {INSTALL}")
def test_the_daemon_stays_small_beside_a_mirror(scene) -> None:  # noqa: F811
    """A red alarm went out through the real Apprise: the daemon's process has at most 60 MB, as without it."""
    with service() as (url, came), process(scene, MIRRORED.replace("{url}", url.reveal())) as child:
        scene.tell("disk.held", "the run waits: 3 GB free", level="warning")
        scene.shows("waits for disk space")
        wait_until(lambda: came, 60)
        assert "🔴" in came[0]["message"]
        memory = Path(f"/proc/{child.pid}/status").read_text()
        resident_mb = int(memory.split("VmRSS:")[1].split()[0]) / 1024
        print(f"resident: {resident_mb:.1f} MB")
        assert resident_mb <= 60

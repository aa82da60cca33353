"""A machine that boots a real systemd in a second, and can lose its power: for the tests of the service.

It has this machine's programs, this checkout and its environment, all read-only, and a disk of its own in a folder that the test
sees too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
BOOT_SYSTEMD = CHECKOUT.parent / "shared" / "tools" / "boot-systemd"
ROOT = 0
LIMIT_S = 120.0

T = TypeVar("T")


def skip_without() -> None:
    """Skip the module where no machine can be made, and say why."""
    if os.geteuid() != ROOT:
        pytest.skip("needs to be run by root", allow_module_level=True)
    if not BOOT_SYSTEMD.exists():
        pytest.skip(f"needs {BOOT_SYSTEMD}, which is not beside this checkout", allow_module_level=True)


class Machine:
    """One machine; `wsl`: it looks like WSL2."""

    def __init__(self, folder: Path, *, wsl: bool = False) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        seen = {CHECKOUT, Path(sys.prefix), Path(sys.base_prefix)}
        read_only = [path for path in seen if not any(path.is_relative_to(other) for other in seen - {path})]
        self._environ = {**os.environ, "BS_ROBIND": " ".join(map(str, read_only)), "BS_WSL": "1" if wsl else ""}

    def create(self) -> None:
        """Make its disk, with a user `owner` (1234) who has a home."""
        self._do("create")
        for name, line in {"passwd": "owner:x:1234:1234::/home/owner:/bin/bash", "group": "owner:x:1234:"}.items():
            with open(self.disk / "etc" / name, "a") as file:
                file.write(f"{line}\n")
        self.make_folder("/home/owner/.cache")
        os.chown(self.path("/home/owner"), 1234, 1234)

    def boot(self) -> None:
        """Returns when everything that starts at boot was started."""
        self._do("boot")

    def halt(self) -> None:
        """Shut down in order."""
        self._do("halt")

    def powercut(self) -> None:
        """Everything dies at once; the disk stays."""
        self._do("powercut")

    def destroy(self) -> None:
        """Leave nothing behind."""
        self._do("destroy")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `command` inside, as root; `check`: it must succeed."""
        done = subprocess.run(
            [str(BOOT_SYSTEMD), "run", str(self.folder), *command],
            capture_output=True, text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL, env=self._environ,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command} left with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def path(self, inside: str) -> Path:
        """Where we see what the machine calls `inside` (below /etc, /var, /opt, /srv, /home, /root or /mnt)."""
        return self.disk / inside.lstrip("/")

    def make_folder(self, inside: str) -> Path:
        """A folder of the owner's."""
        path = self.path(inside)
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, 1234, 1234)
        return path

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.run("systemctl", "show", unit, "-P", name).stdout.strip()

    def journal(self, unit: str, *options: str) -> str:
        """What a unit and systemd have said of it."""
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit, *options).stdout

    def _do(self, verb: str) -> None:
        # its output goes to a file: what stays behind it, the machine itself, would hold a pipe open
        with open(self.folder.with_suffix(".log"), "ab+") as log:
            done = subprocess.run(
                [str(BOOT_SYSTEMD), verb, str(self.folder)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False, env=self._environ,
            )  # fmt: skip
            log.seek(0)
            assert done.returncode == 0, f"{verb}: {log.read().decode(errors='replace')}"


def wait_until(condition: Callable[[], T], what: str, limit_s: float = 60.0) -> T:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come to pass within {limit_s:.0f} s")

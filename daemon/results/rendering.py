"""Keeps report/index.html current: rendered anew after every transition, in short-lived processes beside the daemon.

The plot library costs more memory than the whole daemon, so nothing is rendered in it. One process at a time; transitions that
come close together share one page.
"""

from __future__ import annotations

import subprocess
import sys
import time

import structlog

from daemon.launcher import environment
from state.snapshot import Fact
from state.workspace import Workspace

TIMEOUT_S = 300.0
GAP_S = 60.0
"""Between two renderings."""
TRANSITIONS = ("stage.", "run.", "disk.", "plan.")

log = structlog.get_logger()


class Rendering:
    """The page of one run."""

    def __init__(self, workspace: Workspace, gap_s: float = GAP_S) -> None:
        self._command = [sys.executable, "-P", "-m", "daemon.cli", "report", "--workspace", str(workspace.root), "--quiet"]
        self._gap_s = gap_s
        self._wanted = False
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()  # a run that ends within the gap gets its last page only

    @property
    def busy(self) -> bool:
        """A page is being rendered."""
        return self._process is not None

    def hear(self, fact: Fact) -> None:
        """A transition asks for a new page."""
        self._wanted = self._wanted or fact.kind.startswith(TRANSITIONS)

    def go_on(self, now_s: float | None = None) -> None:
        """Reap what has ended, and start what is due; never waits. `now_s` is of the monotonic clock."""
        now_s = time.monotonic() if now_s is None else now_s
        if self._process is not None and not self._ended(now_s):
            return
        if self._wanted and now_s - self._started >= self._gap_s:
            self._wanted, self._started = False, now_s
            try:
                self._process = subprocess.Popen(self._command, env=environment(), stdin=subprocess.DEVNULL)
            except OSError as error:
                log.warning("report.failed", error=str(error))

    def finish(self) -> None:
        """Write the last page, and wait for it."""
        self.close()
        try:
            subprocess.run(self._command, env=environment(), timeout=TIMEOUT_S, check=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("report.failed", error=str(error))

    def close(self) -> None:
        """End what is being rendered: its page is written by rename, so the one before stays whole."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _ended(self, now_s: float) -> bool:
        assert self._process is not None
        if self._process.poll() is None:
            if now_s - self._started > TIMEOUT_S:
                self._process.kill()
            return False
        if self._process.returncode:
            log.warning("report.failed", error=f"exit code {self._process.returncode}")
        self._process = None
        return True

"""Starts, adopts, signals and reaps attempts. Knows processes; decides nothing.

An attempt is a session of its own, with its output in a file: no pipe to block or break, and the daemon's death costs it nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil
import structlog
from msgspec.structs import replace

from daemon import locks
from daemon.effects import Ask, Launch
from daemon.ending import Sight
from state import symptoms
from state.checkpoints import Checkpoints
from state.contract import ExitCode, ExitRecord, Result
from state.durable import write_atomically
from state.workspace import Attempt, Workspace

PROJECT = Path(__file__).resolve().parent.parent
OOM_COUNTER = Path("/proc/vmstat")
OOM_SCORE = 500
"""Of 1000: as if an attempt held half of the memory more than it does."""
LAST_OUTPUT_BYTES = 4096

T = TypeVar("T")

log = structlog.get_logger()


class Launcher:
    """The attempts of one run, as processes."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._children: dict[tuple[str, int], subprocess.Popen[bytes]] = {}
        self._oom_kills_before: dict[tuple[str, int], int] = {}
        """The kernel's count when this daemon first saw an attempt alive."""
        self._stillborn: dict[tuple[str, int], ExitRecord] = {}

    def launch(self, effect: Launch) -> None:
        """Start the attempt of a spec; one that cannot be started is seen as ended, with the reason."""
        try:
            self._start(effect)
        except locks.LockHeldError:  # alive: the state went back to a generation before this launch, and the attempt is adopted
            log.warning("attempt.adopted", stage=effect.spec.stage, attempt=effect.spec.attempt)
        except OSError as error:
            code = ExitCode.DISK_FULL if error.errno in symptoms.DISK_ERRNOS else ExitCode.TRANSIENT
            key = (effect.spec.stage, effect.spec.attempt)
            self._stillborn[key] = ExitRecord(
                code=code, at=time.time(), error=type(error).__name__, message=f"not started: {error}"
            )
            log.error("attempt.not_started", stage=effect.spec.stage, attempt=effect.spec.attempt, error=str(error))

    def _start(self, effect: Launch) -> None:
        spec = replace(effect.spec, workspace=str(self.workspace.root))
        attempt = self.workspace.attempt(spec.stage, spec.attempt)
        attempt.root.mkdir(parents=True, exist_ok=True)
        lock = locks.take(attempt.lock)
        try:
            write_atomically(attempt.spec, msgspec.json.format(msgspec.json.encode(spec), indent=1))
            self._link_log(effect.number, spec.stage, attempt)
            self._oom_kills_before[(spec.stage, spec.attempt)] = oom_kills()
            with open(attempt.output, "ab") as output:
                child = subprocess.Popen(
                    [sys.executable, "-P", "-m", spec.module, str(attempt.root)],
                    cwd=self.workspace.root,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
            _make_first_victim(child.pid)
        finally:
            os.close(lock)
        self._children[(spec.stage, spec.attempt)] = child
        log.info("attempt.launched", stage=spec.stage, attempt=spec.attempt, pid=child.pid)

    def sight(self, stage: str, number: int) -> Sight:
        """What can be seen of an attempt. Leftover processes of a dead one are killed first."""
        attempt = self.workspace.attempt(stage, number)
        child = self._children.get((stage, number))
        code = child.poll() if child else None
        alive = locks.held(attempt.lock)
        if alive and self._main_is_gone(attempt, child, code):
            self._signal(attempt, signal.SIGKILL, everyone=True)
            return Sight(stage, number, alive=None, code=code)
        if child is not None and code is None and alive is False:
            alive = True  # a child that closed its lock is still a child
        key = (stage, number)
        if alive:
            self._oom_kills_before.setdefault(key, oom_kills())
        if alive is not False:
            return Sight(stage, number, alive=alive, adopted=child is None)
        record = self._stillborn.get((stage, number)) or _read(attempt.exit, ExitRecord)
        receipt = _read(self.workspace.result(stage), Result)
        return Sight(
            stage,
            number,
            alive=False,
            code=code,
            record=record,
            receipt=receipt if receipt is not None and receipt.attempt == number else None,
            checkpoint_step=Checkpoints(self.workspace.checkpoints(stage)).newest_step(),
            last_words=last_line(attempt.output) if record is None else "",
            oom_killed=key in self._oom_kills_before and oom_kills() > self._oom_kills_before[key],
            adopted=child is None,
            ended_at=record.at if record is not None else None,
        )

    def stop(self, stage: str, number: int, ask: Ask) -> None:
        """Signal an attempt: SIGTERM to its main process, or SIGKILL to all of it."""
        kill = ask is Ask.KILL
        self._signal(self.workspace.attempt(stage, number), signal.SIGKILL if kill else signal.SIGTERM, everyone=kill)

    def _main_is_gone(self, attempt: Attempt, child: subprocess.Popen[bytes] | None, code: int | None) -> bool:
        if child is not None:
            return code is not None
        return not any(_leads_session(pid) for pid in locks.holders(attempt.lock))

    def _signal(self, attempt: Attempt, number: signal.Signals, *, everyone: bool) -> None:
        for pid in locks.holders(attempt.lock):
            if everyone or _leads_session(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def _link_log(self, number: int, stage: str, attempt: Attempt) -> None:
        """logs/04_train_whisper.log leads to the newest attempt's output, as the original's logs did."""
        logs = self.workspace.logs
        logs.mkdir(parents=True, exist_ok=True)
        link = logs / f"{number:02d}_{stage}.log"
        fresh = link.with_name(f".{link.name}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(attempt.output, logs))
        os.replace(fresh, link)


def environment() -> dict[str, str]:
    """The environment of an attempt: the daemon's, with this project importable, output unbuffered, and threads pinned.

    The number of threads changes the bits of a training on the CPU, so every attempt gets the same, however many cores are
    free; and threads that wait by spinning cost a busy machine most of its time (docs/LOG.md).
    """
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    pinned = {"OMP_NUM_THREADS": str(psutil.cpu_count(logical=False) or 1), "OMP_WAIT_POLICY": "PASSIVE"}
    ours = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**pinned, **os.environ, **ours}


def _make_first_victim(pid: int) -> None:
    """Let the kernel's OOM killer take an attempt, and all that it starts, before the daemon: it goes on from a checkpoint."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE))


def oom_kills() -> int:
    """The kernel's count of OOM kills on this machine; 0 where it is not told."""
    with contextlib.suppress(OSError, ValueError):
        for line in OOM_COUNTER.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def last_line(path: Path) -> str:
    """The last line in a file that is not empty; nothing when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_OUTPUT_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None

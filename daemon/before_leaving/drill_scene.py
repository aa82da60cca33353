"""Where the drill breaks things: a run in a scratch folder with a daemon of its own, watched from outside as its owner might.

A scene reads files and sends signals; it never talks to the daemon or the stage otherwise. It waits for what it observes, never
for a time, so that a seed gives the same faults at the same steps on a slow machine and a fast one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import msgspec

from daemon import locks
from daemon.launcher import environment
from state.contract import Event, Metric, Progress, Result
from state.durable import file_digest, tree_digest
from state.snapshot import Fact, RunState
from state.store import Store, read_journal
from state.workspace import Workspace

POLL_S = 0.03
WAIT_S = 900.0
"""For anything: a start on a busy machine takes long, and what never comes is a finding all the same."""
TIMES = frozenset({"seconds", "tokens_per_s"})
"""Metrics that no two runs share."""

T = TypeVar("T")
_EVENTS = msgspec.json.Decoder(Event)


class StuckError(Exception):
    """What should have happened did not; the message says what."""


class End(msgspec.Struct, frozen=True, kw_only=True):
    """What a training delivered, as far as two equal trainings deliver the same."""

    weights: str
    """Digest of the delivered folder, read back."""
    metrics: dict[str, float]
    ledger: str

    def differences(self, other: End) -> list[str]:
        """What is not the same, in words."""
        names = {"weights": self.weights == other.weights, "ledger": self.ledger == other.ledger}
        values = {
            name: self.metrics.get(name) == other.metrics.get(name) for name in sorted(self.metrics.keys() | other.metrics.keys())
        }
        return [f"{name} differs from the undisturbed run's" for name, same in {**names, **values}.items() if not same]


class Scene:
    """One run under observation. Leaving the block ends every process of it."""

    def __init__(self, root: Path, pipeline: Path, stage: str, overrides: Sequence[str], abandoned: threading.Event) -> None:
        self.root = root
        """Where the run lies for its daemon."""
        self.workspace = Workspace(root)
        """Where it lies for us: elsewhere, if the daemon has a file system of its own."""
        self.pipeline, self.stage, self.overrides = pipeline, stage, overrides
        self.within: tuple[str, ...] = ()
        """Command before the daemon's: to start it inside a namespace."""
        self.surroundings: dict[str, str] = {}
        """Environment variables for the daemon and all that it starts."""
        self.inherited = self.newest_attempt()
        """Attempts that the folder came with: what they did is not this scene's."""
        self.grounds = contextlib.ExitStack()
        """What must last until the scene's last look."""
        self.daemon: subprocess.Popen[bytes] | None = None
        self.injected: list[str] = []
        self.remarks: list[str] = []
        """What was seen of Vigil's answer that no fact tells."""
        self.recovered_s: float | None = None
        self.abandoned = abandoned
        """Set when the drill is interrupted: the next wait ends."""
        self._struck: tuple[float, float] | None = None
        self._told_before: frozenset[str] = frozenset()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.power_cut()
        finally:
            self.grounds.close()

    # -- processes
    def boot(self, *arguments: str) -> None:
        """Start the daemon."""
        given = [part for override in self.overrides for part in ("--set", override)]
        program = [
            sys.executable,
            "-P",
            "-m",
            "daemon.before_leaving.drill_daemon",
            str(self.root),
            str(self.pipeline),
            *given,
            *arguments,
        ]
        with open(self.root.with_name(f"{self.root.name}.daemon.log"), "ab") as output:
            self.daemon = subprocess.Popen(
                [*self.within, *program],
                env=surrounded(self.surroundings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def kill_daemon(self) -> None:
        """SIGKILL the daemon alone."""
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
        self.daemon = None

    def attempt_pids(self) -> list[int]:
        """Every process of every attempt at work, the one that leads first."""
        pids = {pid for lock in self.workspace.root.glob("stages/*/attempts/*/attempt.lock") for pid in locks.holders(lock)}
        pids -= {self.daemon.pid} if self.daemon is not None else set()
        return sorted(pids, key=lambda pid: (not _leads_session(pid), pid))

    def signal_stage(self, number: signal.Signals) -> None:
        """Send a signal to every process of the attempts at work."""
        for pid in self.attempt_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def power_cut(self) -> None:
        """SIGKILL everything: the daemon, and all processes of its attempts."""
        self.kill_daemon()
        while self.attempt_pids():
            self.signal_stage(signal.SIGKILL)
            time.sleep(POLL_S)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All of it stands still for as long as the block lasts: what lies on the disk then is what a power cut would leave."""
        assert self.daemon is not None
        os.kill(self.daemon.pid, signal.SIGSTOP)
        self.signal_stage(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal_stage(signal.SIGCONT)
            os.kill(self.daemon.pid, signal.SIGCONT)

    # -- what can be seen
    def run(self) -> RunState:
        """The saved state."""
        return Store(self.workspace.state).peek()

    def outcomes(self) -> list[str]:
        """How the scene's own attempts ended; `-` for one that has not."""
        return [str(attempt.outcome or "-") for attempt in self.run().stage(self.stage).attempts[self.inherited :]]

    def events(self, attempt: int) -> list[Event]:
        """What an attempt of the stage has said so far."""
        try:
            data = self.workspace.attempt(self.stage, attempt).events.read_bytes()
        except FileNotFoundError:
            return []
        events = []
        for line in data[: data.rfind(b"\n") + 1].splitlines():
            with contextlib.suppress(msgspec.DecodeError):
                events.append(_EVENTS.decode(line))
        return events

    def newest_attempt(self) -> int:
        """Number of the newest attempt's folder, 0 before the first."""
        folders = self.workspace.stage(self.stage).glob("attempts/[0-9]*")
        return max((int(folder.name) for folder in folders), default=0)

    def steps(self, attempt: int) -> list[int]:
        """The optimizer steps that an attempt has done."""
        told = (event for event in self.events(attempt) if isinstance(event, Metric) and "loss" in event.values)
        return [event.step for event in told if event.step is not None]

    def reached(self) -> float:
        """The furthest that any attempt has come: a step, or where there are none the work done."""
        attempts = range(1, self.newest_attempt() + 1)
        steps = [step for attempt in attempts for step in self.steps(attempt)]
        return max(steps, default=0) if steps else max((done for attempt in attempts for done in self.done(attempt)), default=0.0)

    def done(self, attempt: int) -> list[float]:
        """How much an attempt said was done."""
        return [event.done for event in self.events(attempt) if isinstance(event, Progress) and event.unit != "items"]

    def repeated(self) -> int:
        """Steps that the scene's own attempts did more than once."""
        steps = [step for attempt in range(self.inherited + 1, self.newest_attempt() + 1) for step in self.steps(attempt)]
        return len(steps) - len(set(steps))

    def facts(self) -> list[Fact]:
        """What the journal tells since the fault."""
        return [fact for fact in read_journal(self.workspace.journal) if fact.id not in self._told_before]

    def told(self, *words: str) -> bool:
        """Whether one of these facts has all of `words` in its kind or text."""
        return any(all(word in f"{fact.kind} {fact.text}" for word in words) for fact in self.facts())

    def end(self) -> End:
        """What was delivered.

        Raises:
            StuckError: the delivered folder is not what the receipt says.
        """
        receipt = msgspec.json.decode(self.workspace.result(self.stage).read_bytes(), type=Result)
        output = receipt.outputs[0]
        weights, _size = tree_digest(self.workspace.root / output.path)
        if weights != output.sha256:
            raise StuckError(f"{output.path} is not what its receipt says")
        metrics = {name: value for name, value in receipt.metrics.items() if name not in TIMES}
        ledger = self.workspace.scratch(self.stage) / "ledger.jsonl"
        return End(weights=weights, metrics=metrics, ledger=file_digest(ledger) if ledger.exists() else "")

    # -- what happens when
    def wait(self, what: str, condition: Callable[[], T], seconds: float = WAIT_S) -> T:
        """The first true value of `condition`.

        Raises:
            StuckError: none within `seconds`, or the daemon left.
        """
        deadline = time.monotonic() + seconds
        while True:
            self._look()
            left = self.daemon is not None and self.daemon.poll() is not None
            if found := condition():
                return found
            if self.abandoned.is_set():
                raise StuckError("the drill was interrupted")
            if left:
                raise StuckError(f"the daemon left with code {self.daemon.poll() if self.daemon else None} before {what}")
            if time.monotonic() > deadline:
                raise StuckError(f"no sign within {seconds:.0f} s of {what}")
            time.sleep(POLL_S)

    def reach(self, step: int) -> None:
        """Wait for an attempt of this scene to have done `step`."""

        def there() -> bool:
            newest = self.newest_attempt()
            return newest > self.inherited and max(self.steps(newest), default=0) >= step

        self.wait(f"step {step}", there)

    def strike(self, what: str, harm: Callable[[], object]) -> None:
        """Do the harm. What the journal tells from here on is the answer; recovery is measured from when `harm` returns."""
        self.injected.append(what)
        self._told_before = frozenset(fact.id for fact in read_journal(self.workspace.journal))
        harm()
        self._struck = (time.monotonic(), self.reached())

    def finish(self) -> None:
        """Wait until the daemon has brought the run to its end.

        Raises:
            StuckError: it did not, or a stage failed.
        """
        daemon = self.daemon
        assert daemon is not None
        self.wait("the end of the run", lambda: daemon.poll() is not None)
        if daemon.returncode != 0:
            failed = [fact.text for fact in self.facts() if fact.kind == "stage.failed"]
            raise StuckError("; ".join(failed) or f"the daemon left with code {daemon.returncode}")

    def _look(self) -> None:
        if self._struck is not None and self.recovered_s is None:
            struck_at, reached = self._struck
            if self.reached() > reached:
                self.recovered_s = time.monotonic() - struck_at


def surrounded(more: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment: this project importable, no GPU (the drill may run beside a real training), one thread."""
    ours = {**environment(), "CUDA_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join(filter(None, [more.get("PYTHONPATH", ""), ours["PYTHONPATH"]]))
    return {**ours, **more, "PYTHONPATH": path}


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False

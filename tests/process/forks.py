"""Attempts of real stages in forks of a process that has imported everything: a restart costs no imports, so many kills are cheap.

`python -m tests.process.forks MODULE ...` imports the modules and answers requests, a JSON line each; `Forks` is its other end.
Every attempt is a session of its own, and is killed as one: its workers die with it.
"""

from __future__ import annotations

import importlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from state.contract import Result, Spec
from state.workspace import Attempt, Workspace

ROOT = Path(__file__).resolve().parents[2]
KILLED = -signal.SIGKILL
ANSWER_S = 280.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """Run `attempt` of `module`, and SIGKILL it `kill_after_s` after its start, or after what is given; None: let it end."""

    module: str
    attempt: str
    kill_after_s: float | None = None
    words: str = ""
    """After its events hold these words."""
    unit: str = ""
    share: float = 0.0
    """After it said that this share of the work, counted in `unit`, is done."""


class Ended(msgspec.Struct, frozen=True):
    """How it ended, as `os.waitstatus_to_exitcode` has it, and after how long."""

    code: int
    seconds: float


class Forks:
    """The requesting end."""

    def __init__(self, *modules: str, environment: Mapping[str, str] | None = None) -> None:
        own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "tests.process.forks", *modules]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | own | (environment or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def run(self, spec: Spec, kill_after_s: float | None = None, codes: Collection[int] = (0, KILLED), **after: Any) -> Ended:
        """Write the spec as the daemon does and run the attempt to its end, with one of `codes`; `after`: see `Request`."""
        folder = attempt_of(spec)
        folder.root.mkdir(parents=True)
        folder.spec.write_bytes(msgspec.json.encode(spec))
        request = Request(module=spec.module, attempt=str(folder.root), kill_after_s=kill_after_s, **after)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(request) + b"\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
        line = self._process.stdout.readline() if ready else b""
        assert line, f"no answer about {folder.root}"
        ended = msgspec.json.decode(line, type=Ended)
        assert ended.code in codes, folder.output.read_text()
        return ended

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def attempt_of(spec: Spec) -> Attempt:
    return Workspace.at(spec.workspace).attempt(spec.stage, spec.attempt)


def result_of(spec: Spec) -> Result:
    """The receipt of the stage."""
    return msgspec.json.decode(Workspace.at(spec.workspace).result(spec.stage).read_bytes(), type=Result)


def numbered(spec: Spec, number: int, **changes: Any) -> Spec:
    """The spec of another attempt."""
    return msgspec.structs.replace(spec, attempt=number, **changes)


def harry(
    forks: Forks,
    spec: Spec,
    draw: random.Random,
    kills: int,
    lasts_s: tuple[float, float],
    unit: str,
    *,
    phases: Sequence[tuple[str, float]] = (),
    vary: Callable[[int], dict[str, Any]] = lambda number: {},
    killed: Callable[[int], None] = lambda number: None,
) -> int:
    """Kill attempts of a stage once in each phase and at `kills` random instants, then let one end; returns the attempts.

    `lasts_s`: seconds to the first unit of work, and to the end, undisturbed. A third of the instants lies before the work
    goes on; the others are drawn so that the attempts together get once through it, by the progress in `unit`. An attempt that
    ends before its instant does not count. A phase is (words of an event, at most so many seconds after them); the last one is
    that of delivery, and comes last. `vary(number)` changes the spec of an attempt; `killed(number)` looks at what a kill left.
    """
    first_s, all_s = lasts_s
    waiting: list[tuple[str, float] | None] = [*phases[:-1], *[None] * kills, *phases[-1:]]
    number, done = 0, 0.0
    while waiting:
        number += 1
        assert number <= 3 * (kills + len(phases)) + 5, f"attempts end before they are killed: {waiting}"
        step = (1 - done) / (len(waiting) + 1)
        if waiting[0]:
            words, within_s = waiting[0]
            after: dict[str, Any] = {"words": words}
        elif draw.random() < 1 / 3 or done == 1:
            within_s, after = first_s, {}
        else:
            within_s, after = (all_s - first_s) * step, {"unit": unit, "share": done + draw.uniform(0, 2 * step)}
        ended = forks.run(numbered(spec, number, **vary(number)), draw.uniform(0, within_s), **after)
        done = max(done, done_share(told(numbered(spec, number)), unit))
        if ended.code == KILLED:
            del waiting[0]
            killed(number)
        elif not waiting[0]:
            first_s, done = ended.seconds, 1.0  # only the delivery is left
    assert forks.run(numbered(spec, number + 1, **vary(number + 1))).code == 0
    return number + 1


def told(spec: Spec) -> list[dict[str, Any]]:
    """The events of an attempt."""
    return _events(attempt_of(spec).events)


def done_share(events: Sequence[dict[str, Any]], unit: str) -> float:
    """How far an attempt said that the work is."""
    return max((event["done"] / event["total"] for event in events if event.get("unit") == unit and event["total"]), default=0.0)


def _events(path: Path) -> list[dict[str, Any]]:
    """The whole lines of the file."""
    content = path.read_bytes() if path.exists() else b""
    return [msgspec.json.decode(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def main(modules: Sequence[str]) -> None:
    """Answer requests until the other end closes."""
    for name in modules:
        importlib.import_module(name)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_the_attempt(request)
        code = _ended(child, request, started)
        sys.stdout.buffer.write(msgspec.json.encode(Ended(code, time.monotonic() - started)) + b"\n")
        sys.stdout.buffer.flush()


def _be_the_attempt(request: Request) -> None:
    from stages import runtime

    os.setsid()
    runtime.PROGRESS_EVERY_S = 0.0  # every unit of work is told
    output = os.open(Attempt(Path(request.attempt)).output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    runtime.run(sys.modules[request.module].main, [request.attempt])


def _ended(child: int, request: Request, started: float) -> int:
    """The attempt's exit code; its session is killed when it is time."""
    events = Attempt(Path(request.attempt)).events
    begun = None if request.words or request.unit else started
    size_bytes = 0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if begun is None and events.exists() and size_bytes != (size_bytes := events.stat().st_size):
            begun = time.monotonic() if _is_there(events, request) else None
        if request.kill_after_s is not None and begun is not None and time.monotonic() >= begun + request.kill_after_s:
            os.killpg(child, signal.SIGKILL) if os.getpgid(child) == child else os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.001)


def _is_there(events: Path, request: Request) -> bool:
    """Whether the attempt is where the request waits for it."""
    if request.words:
        return request.words.encode() in events.read_bytes()
    return done_share(_events(events), request.unit) >= request.share


if __name__ == "__main__":
    main(sys.argv[1:])

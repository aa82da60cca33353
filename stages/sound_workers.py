"""Recordings cleaned side by side, each by a process of its own; heartbeats and the stop stay with the stage.

    python -m stages.sound_workers RECORDING STEM FOLDER MODELS PARENT

is such a process: FOLDER holds `settings.json`, gets `out/`, and standard output gets a line of JSON whenever some of the
recording is done. A worker that is killed (by the kernel, when memory runs out) costs its recording only: it is tried once
more when no other worker is at work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from stages.recordings import shown
from stages.runtime import exit_code
from stages.sound_passes import RECORD, Record, Work, cleaned
from state.contract import StageError
from state.settings import Preprocess

PROJECT = Path(__file__).resolve().parent.parent
WORKER_BYTES, MODEL_BYTES = 700_000_000, 2_500_000_000
"""What a worker may come to need, without and with trained models."""
LOOK_S = 0.5
PR_SET_PDEATHSIG = 1


class Said(msgspec.Struct, frozen=True):
    """One line of a worker."""

    share: float = 0.0
    code: int = 0
    """What the stage should leave with: not 0 if the worker failed."""
    message: str = ""


class Lost(msgspec.Struct, frozen=True):
    """A worker was killed twice over the same recording."""

    signal: int


class WorkerError(StageError):
    """A worker failed as the stage itself would have."""

    def __init__(self, said: Said) -> None:
        super().__init__(said.message)
        self.exit_code = said.code  # type: ignore[misc]  # as the worker's own error would leave


@dataclass
class Worker:
    """A process at work on one recording."""

    work: Work
    alone: bool
    """Its second try, with no other worker beside it."""
    process: subprocess.Popen[bytes]
    line: bytes = b""
    said: Said = field(default_factory=Said)


def worker_count(settings: Preprocess, recordings: int, sound_bytes: int, free_bytes: int, cores: int) -> int:
    """How many recordings are cleaned side by side; 1: by the stage itself."""
    if sound_bytes < settings.worker_mb * 1e6:
        return 1
    models = settings.kinds_model or settings.separation_model or settings.speaker_model
    fitting = free_bytes // (WORKER_BYTES + (MODEL_BYTES if models else 0))
    return max(1, min(settings.workers, recordings, cores, fitting))


def side_by_side(
    waiting: Iterable[Work], count: int, beat: Callable[[dict[str, float]], None], look: Callable[[], None]
) -> Iterator[tuple[Work, Record | Lost]]:
    """The recordings in the order in which they are finished, `count` at work at a time.

    `beat` gets how far the recordings at work are whenever a worker said so, and only then: a hang must not look alive.
    `look` is called at least every half second. What they raise ends all workers.

    Raises:
        WorkerError: a worker failed (and was not killed).
    """
    todo = deque((work, False) for work in waiting)
    at_work: dict[int, Worker] = {}
    with selectors.DefaultSelector() as selector:
        try:
            while todo or at_work:
                while todo and _may_start(todo[0][1], at_work, count):
                    _start(*todo.popleft(), at_work, selector)
                look()
                if _listen(at_work, selector):
                    beat({shown(worker.work.path): worker.said.share for worker in at_work.values()})
                for worker in _ended(at_work, selector):
                    found = _found(worker)
                    if isinstance(found, Lost) and not worker.alone:
                        todo.append((worker.work, True))
                    else:
                        yield worker.work, found
        finally:
            for worker in at_work.values():
                with worker.process:  # closes its pipe and waits
                    worker.process.kill()


def _may_start(alone: bool, at_work: dict[int, Worker], count: int) -> bool:
    if alone or any(worker.alone for worker in at_work.values()):
        return not at_work
    return len(at_work) < count


def _start(work: Work, alone: bool, at_work: dict[int, Worker], selector: selectors.BaseSelector) -> None:
    shutil.rmtree(work.folder, ignore_errors=True)
    work.folder.mkdir(parents=True)
    (work.folder / "settings.json").write_bytes(msgspec.json.encode(work.settings))
    arguments: list[str | Path] = [work.path, work.stem, work.folder, work.models, str(os.getpid())]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "stages.sound_workers", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        close_fds=False,  # the attempt's lock is inherited, so that the daemon sees this process as part of the attempt
    )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    at_work[process.stdout.fileno()] = Worker(work, alone, process)
    selector.register(process.stdout, selectors.EVENT_READ)


def _listen(at_work: dict[int, Worker], selector: selectors.BaseSelector) -> bool:
    """Take in what workers say within half a second; whether one said anything."""
    said = False
    for key, _events in selector.select(LOOK_S):
        worker = at_work[key.fd]
        *lines, worker.line = (worker.line + os.read(key.fd, 1 << 16)).split(b"\n")
        for line in lines:
            worker.said, said = msgspec.json.decode(line, type=Said), True
    return said


def _ended(at_work: dict[int, Worker], selector: selectors.BaseSelector) -> Iterator[Worker]:
    for number, worker in list(at_work.items()):
        if worker.process.poll() is not None:
            with contextlib.suppress(BlockingIOError):  # its last words
                *lines, _rest = (worker.line + os.read(number, 1 << 16)).split(b"\n")
                worker.said = msgspec.json.decode(lines[-1], type=Said) if lines else worker.said
            selector.unregister(number)
            del at_work[number]
            assert worker.process.stdout is not None
            worker.process.stdout.close()
            yield worker


def _found(worker: Worker) -> Record | Lost:
    code = worker.process.returncode
    if code < 0:
        return Lost(-code)
    if code:
        raise WorkerError(worker.said if worker.said.code else Said(code=1, message=f"a worker left with code {code}"))
    return msgspec.json.decode((worker.work.folder / "out" / RECORD).read_bytes(), type=Record)


# -- the worker
def main(arguments: list[str]) -> int:
    """Clean one recording; what goes wrong becomes the exit code that the stage itself would leave with."""
    path, stem, folder, models, parent = arguments
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no orphan works on after its stage was killed
    if os.getppid() != int(parent):
        return 1
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the stage is told to stop, and ends its workers
    settings = msgspec.json.decode(Path(folder, "settings.json").read_bytes(), type=Preprocess)
    try:
        cleaned(Work(Path(path), stem, settings, Path(folder), lambda share: _say(Said(share=share)), Path(models)))
    except Exception as error:  # the worker's boundary: the stage raises it again
        traceback.print_exc()
        _say(Said(code=exit_code(error), message=str(error) or type(error).__name__))
        return exit_code(error)
    return 0


def _say(said: Said) -> None:
    os.write(1, msgspec.json.encode(said) + b"\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

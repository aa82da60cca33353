"""A stage's side of the protocol: `run(main)` turns a spec into a context, and whatever happens into an exit code.

A stage module reads top to bottom::

    def main(ctx: StageContext) -> Delivery:
        settings = ctx.settings(TrainMarian)
        ...
        return Delivery(outputs=[folder], metrics={"loss": 1.2}, summary="5 epochs")

    if __name__ == "__main__":
        run(main)

`python -m stages.NAME WORKSPACE/stages/NAME/attempts/007` reproduces any attempt by hand.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import msgspec
import structlog

from stages import COLLECTOR_PACE
from state import symptoms
from state.checkpoints import Checkpoint, Checkpoints
from state.contract import (
    CheckpointSaved,
    DiskFullError,
    Divergence,
    Event,
    ExitCode,
    ExitRecord,
    MemoryFit,
    Metric,
    MisconfiguredError,
    Note,
    Output,
    Progress,
    Result,
    Spec,
    StageError,
    StopRequested,
)
from state.durable import clear_unwritten, publish_folder, tree_digest, write_atomically
from state.workspace import Attempt, Workspace

PROGRESS_EVERY_S = 0.5
MAX_CAUSES = 20

S = TypeVar("S", bound=msgspec.Struct)

NETWORK_TYPES = frozenset(
    {
        *("ConnectionError", "TimeoutError", "gaierror", "SSLError", "HTTPException", "URLError"),  # the standard library, requests
        *("Timeout", "ChunkedEncodingError", "MaxRetryError", "ProtocolError"),  # requests, urllib3
        *("TransportError", "TimeoutException"),  # httpx
        *("LocalEntryNotFoundError", "OfflineModeIsEnabled", "XetDownloadError"),  # huggingface_hub
    }
)
"""Exceptions of the network by the names of their classes and bases: no library is imported to recognise its errors."""


@dataclass(frozen=True)
class Delivery:
    """What a stage hands over: the runtime digests the outputs and writes the receipt."""

    outputs: Sequence[Path] = ()
    """Files or folders inside the workspace, already in place."""
    metrics: dict[str, float] = field(default_factory=dict)
    summary: str = ""


class StageContext:
    """What a stage may use: its spec, the workspace, its voice, its checkpoints, and whether it should stop."""

    def __init__(self, spec: Spec, attempt: Attempt) -> None:
        self.spec = spec
        self.attempt = attempt
        self.workspace = Workspace.at(spec.workspace)
        self.checkpoints = Checkpoints(self.workspace.checkpoints(spec.stage))
        self.log: structlog.stdlib.BoundLogger = structlog.get_logger().bind(stage=spec.stage)
        self._stopping = False
        self._last_progress = float("-inf")
        self._position: tuple[float, float | None, str] = (0.0, None, "items")

    # -- being told
    @property
    def stopping(self) -> bool:
        """A stop was asked for: reach the next safe point, checkpoint, and raise StopRequested."""
        return self._stopping

    def request_stop(self, *_signal: object) -> None:
        """The SIGTERM handler; a test may call it."""
        self._stopping = True

    def check_stop(self) -> None:
        """Raise StopRequested if a stop was asked for: for places where nothing is in flight."""
        if self._stopping:
            raise StopRequested

    def settings(self, kind: type[S]) -> S:
        """The spec's settings as `kind`.

        Raises:
            MisconfiguredError: naming the path to the field.
        """
        try:
            return msgspec.convert(self.spec.settings, kind)
        except msgspec.ValidationError as error:
            raise MisconfiguredError(f"settings of stage {self.spec.stage}: {error}") from error

    def scratch(self) -> Path:
        """The stage's folder for unfinished work, kept across attempts."""
        folder = self.workspace.scratch(self.spec.stage)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def resolve(self, path: str) -> Path:
        """A setting's path: absolute as it is, else below the workspace."""
        return self.workspace.root / Path(path).expanduser()

    # -- telling
    def emit(self, event: Event) -> None:
        """Append one event: a heartbeat, whatever it says. Called by the work itself, never by a thread."""
        with open(self.attempt.events, "ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")

    def progress(
        self,
        done: float,
        total: float | None = None,
        unit: str = "items",
        *,
        step: int | None = None,
        steps: int | None = None,
        message: str = "",
        quiet_s: float | None = None,
    ) -> None:
        """Say how far the work is; calls closer than PROGRESS_EVERY_S are dropped unless they end or announce something."""
        self._position = (done, total, unit)
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_EVERY_S and done != total and quiet_s is None:
            return
        self._last_progress = now
        self.emit(
            Progress(at=time.time(), done=done, total=total, unit=unit, step=step, steps=steps, message=message, quiet_s=quiet_s)
        )

    def quiet(self, seconds: float, message: str) -> None:
        """Announce a phase that emits nothing for up to `seconds`: a model load, a large save."""
        done, total, unit = self._position
        self.emit(Progress(at=time.time(), done=done, total=total, unit=unit, message=message, quiet_s=seconds))

    def metric(self, values: dict[str, float], step: int | None = None) -> None:
        """Record named numbers, at an optimizer step where there is one."""
        self.emit(Metric(at=time.time(), values=values, step=step))

    def note(self, text: str, level: str = "info", **fields: Any) -> None:
        """Tell the owner a fact: it stands in the report and in the log."""
        getattr(self.log, level)(text, **fields)
        self.emit(Note(at=time.time(), text=text, level=level, fields=fields))

    def memory_fit(self, model: str, device: str, micro_batch: int, reason: str = "") -> None:
        """Record the micro-batch that fits, for the next attempt."""
        self.emit(MemoryFit(at=time.time(), model=model, device=device, micro_batch=micro_batch, reason=reason))

    def divergence(self, step: int, reason: str, examples: Sequence[str]) -> None:
        """Say that training diverged at `step`, and which examples the next attempt shall skip; raise DivergedError afterwards."""
        self.emit(Divergence(at=time.time(), step=step, reason=reason, examples=tuple(examples)))

    # -- keeping
    def save_checkpoint(
        self,
        step: int,
        fill: Callable[[Path], None],
        *,
        healthy: bool = True,
        info: dict[str, Any] | None = None,
        expected_bytes: int = 0,
    ) -> Checkpoint:
        """Publish checkpoint `step`, retire older ones, and say so; `expected_bytes` as in `Checkpoints.publish`."""
        started = time.monotonic()
        checkpoint = self.checkpoints.publish(step, fill, healthy=healthy, info=info, expected_bytes=expected_bytes)
        self.tell_saved(checkpoint, time.monotonic() - started)
        self.checkpoints.retire()
        return checkpoint

    def tell_saved(self, checkpoint: Checkpoint, seconds: float, blocking_s: float | None = None) -> None:
        """Say that `checkpoint` is durable, `seconds` after its save began, of which the work stood still for `blocking_s`."""
        size_bytes = sum(record.size_bytes for record in checkpoint.manifest.files.values())
        relative = checkpoint.path.relative_to(self.workspace.root).as_posix()
        saved = CheckpointSaved(
            at=time.time(), step=checkpoint.step, path=relative, seconds=seconds, blocking_s=blocking_s, size_bytes=size_bytes
        )
        self.emit(saved)

    def publish(self, temporary: Path, target: Path) -> Path:
        """Rename the finished folder `temporary` (in `scratch()`) to `target`, durably."""
        publish_folder(temporary, target)
        return target


def run(main: Callable[[StageContext], Delivery], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a stage as this process and leave with its exit code; never returns.

    The exit code is settled and exit.json written before anything is printed, since printing fails too on a full disk.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) != 1:
        print("usage: python -m stages.NAME WORKSPACE/stages/NAME/attempts/NNN", file=sys.stderr)
        os._exit(2)
    attempt = Attempt(Path(arguments[0]).resolve())
    gc.freeze()  # what was imported stays: no collection has to look at it
    gc.set_threshold(*COLLECTOR_PACE)
    _log_readably()
    context: StageContext | None = None
    try:
        context = StageContext(read_spec(attempt.spec), attempt)
        _listen(context)
        _write_receipt(context, main(context))
        record = ExitRecord(code=ExitCode.SUCCEEDED, at=time.time())
        trace = ""
    except BaseException as error:  # the stage's boundary: whatever happened becomes a value
        record = _record(error)
        trace = "" if isinstance(error, StopRequested) else traceback.format_exc()
    _leave(attempt, record, trace)


def _record(error: BaseException) -> ExitRecord:
    code, message = exit_code(error), str(error)
    if code == ExitCode.DISK_FULL and not isinstance(error, StageError):
        message = f"the disk is full or fails ({message})"  # some libraries say less than that
    needed_bytes = error.needed_bytes if isinstance(error, DiskFullError) else 0
    return ExitRecord(code=code, at=time.time(), error=type(error).__name__, message=message, needed_bytes=needed_bytes)


def read_spec(path: Path) -> Spec:
    """The spec at `path`.

    Raises:
        MisconfiguredError: unreadable, or not a spec of this schema.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Spec)
    except (OSError, msgspec.DecodeError) as error:
        raise MisconfiguredError(f"{path}: not a readable spec ({error})") from error


def exit_code(error: BaseException) -> int:
    """The exit code that tells the daemon what to do about `error`, by what it is and not by where it arose.

    A cause counts like the error itself. What was merely being handled when it arose counts only where it explains
    the rest: memory and disk.
    """
    one: BaseException | None = error
    named = True
    for _ in range(MAX_CAUSES):
        if one is None:
            break
        code = _code_of(one)
        if code is not None and (named or code in (ExitCode.OUT_OF_MEMORY, ExitCode.DISK_FULL)):
            return code
        named = named and one.__cause__ is not None
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return 1


def _code_of(error: BaseException) -> int | None:
    if isinstance(error, StageError):
        return int(error.exit_code)
    if out_of_memory(error):
        return ExitCode.OUT_OF_MEMORY
    if disk_refuses(error):
        return ExitCode.DISK_FULL
    if network_is_away(error):
        return ExitCode.TRANSIENT
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory, of the GPU or the machine, ran out; accelerate's own test misses most texts."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and symptoms.out_of_memory(str(error))


def disk_refuses(error: BaseException) -> bool:
    """Whether `error` says that the disk is full, failing or read-only."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in symptoms.DISK_ERRNOS
    return isinstance(error, Exception) and symptoms.disk_refuses(str(error))


def network_is_away(error: BaseException) -> bool:
    """Whether `error` came from a network or a site that may answer later."""
    if isinstance(error, BrokenPipeError):  # a ConnectionError by class; here it is a worker that died
        return False
    if isinstance(error, OSError) and error.errno in symptoms.NETWORK_ERRNOS:
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status == 429 or status >= 500
    return not NETWORK_TYPES.isdisjoint(base.__name__ for base in type(error).__mro__)


def _listen(context: StageContext) -> None:
    def stop(_number: int, _frame: FrameType | None) -> None:
        context.request_stop()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle; it sends SIGTERM


def _write_receipt(context: StageContext, delivery: Delivery) -> None:
    root = context.workspace.root
    outputs = []
    for path in delivery.outputs:
        clear_unwritten(path)  # of attempts that were killed: no part of what is delivered
        digest, size_bytes = tree_digest(path)
        outputs.append(Output(path=path.relative_to(root).as_posix(), size_bytes=size_bytes, sha256=digest))
    result = Result(
        stage=context.spec.stage,
        attempt=context.spec.attempt,
        at=time.time(),
        outputs=tuple(outputs),
        metrics=delivery.metrics,
        summary=delivery.summary,
    )
    write_atomically(context.workspace.result(context.spec.stage), msgspec.json.format(msgspec.json.encode(result), indent=1))


def _leave(attempt: Attempt, record: ExitRecord, trace: str) -> NoReturn:
    with contextlib.suppress(OSError):
        write_atomically(attempt.exit, msgspec.json.encode(record))
    with contextlib.suppress(OSError, ValueError):
        if trace:
            sys.stderr.write(trace)
        if record.message:
            sys.stderr.write(f"{record.error}: {record.message}\n")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(record.code)  # a lingering thread may not keep the process


def _log_readably() -> None:
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(),
    )

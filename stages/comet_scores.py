"""COMET from the outside: where its environment is, and a run of `comet_process.py` watched, stopped and read.

Without the environment, or when the process fails, there is no COMET score and the caller is told why: an evaluation
does not die of it, and no number is made up.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import msgspec

from stages.runtime import StageContext
from stages.scoring import digest
from state.contract import MisconfiguredError
from state.durable import write_atomically

ROOT = Path(__file__).resolve().parent.parent
PROCESS = ROOT / "stages" / "comet_process.py"
TINY = ROOT / "stages" / "tiny_comet.py"
ALONE = ("-I",)
"""No PYTHONPATH and no user packages: they are the main environment's, and COMET cannot stand beside them."""
SETUP = "./vigil setup --comet"
TINY_MODEL = "tiny"
TINY_FOLDER = "comet_tiny"

POLL_S = 0.2
LOAD_QUIET_S = 3600.0
"""The first use fetches 2 GB and more."""
CHUNK_QUIET_S = 1800.0
"""128 rows of XLM-R large on a slow CPU."""
MAKE_QUIET_S = 600.0
STOP_GRACE_S = 5.0
MISCONFIGURED = 78


class CometRow(msgspec.Struct, frozen=True):
    """One translation against one reference, or against none (empty) for a metric that needs none."""

    id: str
    src: str
    mt: str
    ref: str


class CometScores(msgspec.Struct, frozen=True):
    """What the process wrote: scores by row id, and by which metric."""

    name: str
    model: str
    sha256: str
    demo: bool
    version: str
    scores: dict[str, float]


@dataclass(frozen=True)
class LeftOut:
    """There is no COMET score, and why."""

    reason: str


def comet_python(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> Path | None:
    """COMET's interpreter: VIGIL_COMET_PYTHON, that of VIGIL_COMET_VENV, or of `.venv-comet` beside the code; None without one."""
    folder = Path(environment.get("VIGIL_COMET_VENV") or root / ".venv-comet")
    path = Path(environment.get("VIGIL_COMET_PYTHON") or folder / "bin" / "python")
    return path if os.access(path, os.X_OK) else None


def row(source: str, hypothesis: str, reference: str) -> CometRow:
    """The row of one comparison; equal texts give equal ids, and are scored once."""
    return CometRow(digest("\x1f".join([source, hypothesis, reference]))[:32], source, hypothesis, reference)


def score(
    ctx: StageContext, rows: Sequence[CometRow], model: str, python: Path | None, beat: Callable[[int], None]
) -> CometScores | LeftOut:
    """Score `rows` by the COMET that the setting `model` names; `beat(n)` hears how many rows are done.

    The scores so far stay in the stage's scratch folder: a later attempt goes on from them.

    Raises:
        MisconfiguredError: the checkpoint file named does not exist.
        StopRequested: the process was ended.
    """
    if not model:
        return LeftOut("the pipeline goes without COMET")
    if python is None:
        return LeftOut(f"COMET's environment is not there; `{SETUP}` makes it")
    folder = ctx.scratch() / "comet"
    folder.mkdir(exist_ok=True)
    checkpoint = _checkpoint(ctx, model, python, folder)
    if isinstance(checkpoint, LeftOut):
        return checkpoint
    unique = {one.id: one for one in rows}
    incoming, outgoing = folder / "rows.jsonl", folder / "scores.json"
    write_atomically(incoming, b"".join(msgspec.json.encode(one) + b"\n" for one in unique.values()))
    outgoing.unlink(missing_ok=True)
    watch = _Parts(folder / "scores.json.parts.jsonl", unique.keys(), beat)
    ctx.quiet(LOAD_QUIET_S, "loading COMET")
    command = [str(PROCESS), str(incoming), str(outgoing), "--model", checkpoint, "--gpus", _gpus(), "--parent", str(os.getpid())]
    code, said = _run(ctx, [str(python), *ALONE, *command], folder / "comet.log", watch.look)
    if code == 0 and outgoing.exists():
        return msgspec.json.decode(outgoing.read_bytes(), type=CometScores)
    if code == MISCONFIGURED:
        raise MisconfiguredError(f'comet_model {model}: {said}; correct the path, or set it to "" to go without COMET')
    return LeftOut(f"COMET's process ended with code {code}: {said}")


def _checkpoint(ctx: StageContext, model: str, python: Path, folder: Path) -> str | LeftOut:
    """What the process gets as its model: a path where the setting means one, else the hub name; makes the demo's own."""
    if model != TINY_MODEL:
        path = ctx.resolve(model)
        return str(path) if path.exists() else model
    target = ctx.workspace.models / TINY_FOLDER
    ctx.workspace.models.mkdir(parents=True, exist_ok=True)
    ctx.quiet(MAKE_QUIET_S, "training the demo's own COMET")
    code, said = _run(
        ctx,
        [str(python), *ALONE, str(TINY), str(ctx.workspace.train_pairs), str(target), "--parent", str(os.getpid())],
        folder / "tiny.log",
        lambda: None,
    )
    if code != 0:
        return LeftOut(f"the demo's COMET could not be made (code {code}): {said}")
    return str(target / "checkpoints" / "model.ckpt")


def _gpus() -> str:
    """`1` where the stage itself runs on a GPU; asks torch only if the stage has loaded it."""
    torch = sys.modules.get("torch")
    return "1" if torch is not None and torch.cuda.is_available() else "0"


def _run(ctx: StageContext, command: Sequence[str], log: Path, look: Callable[[], None]) -> tuple[int, str]:
    """Run `command` to its end, calling `look` meanwhile; its exit code and the last line it said.

    Raises:
        StopRequested: after the process ended; what it had finished is on disk.
    """
    with open(log, "wb") as output:
        # close_fds=False: the attempt's lock is inherited, so that the daemon sees this process as part of the attempt
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, close_fds=False)
        try:
            while _running(process):
                look()
                ctx.check_stop()
        finally:
            _end(process)
    look()
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return process.returncode, lines[-1].strip()[:300] if lines else "it said nothing"


def _running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the process is gone."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Part(msgspec.Struct, frozen=True):
    """One line of the parts file."""

    scores: dict[str, float]


class _Parts:
    """Counts the rows of this evaluation that have landed in the parts file, and beats when there are more."""

    def __init__(self, path: Path, ids: Set[str], beat: Callable[[int], None]) -> None:
        self.path = path
        self.missing = set(ids)
        self.total = len(self.missing)
        self.beat = beat
        self.offset = 0

    def look(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        self.offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # torn by a kill
                self.missing -= msgspec.json.decode(line, type=_Part).scores.keys()
        if whole:
            self.beat(self.total - len(self.missing))

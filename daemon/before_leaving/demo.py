"""`vigil demo`: the eleven stages with tiny models on this machine, watched live, told honestly at the end.

Prepares what a real run finds on the hub and on the net (models, COMET's environment, recordings behind a local server), then it is
an ordinary run: killed at any moment, the same command goes on with what is left.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from daemon import locks
from daemon.launcher import environment
from daemon.phone import telegram_settings
from state.workspace import Workspace

PROJECT = Path(__file__).resolve().parents[2]
PIPELINE = PROJECT / "pipelines" / "demo.toml"
CLIPS = PROJECT / "pipelines" / "demo_audio"
SETUP = PROJECT / "vigil"
WATCH_WAIT_S = 60.0
WATCH_ENDS_S = 10.0

OURS = {
    *("state.json", "state.json.prev", "state.json.damaged", "journal.jsonl", "vigil.lock", "control", "answers", "stages"),
    *("stark_data", "bible_data", "metrics", "report", "logs", "models"),
    *("fine_tuned_whisper_mi", "fine_tuned_marian_mi", "fine_tuned_gemma_mi_A", "fine_tuned_gemma_mi_B"),
    *("plan", "rehearsal", "bundle", "telegram"),
}
"""What a run puts into its folder: `--fresh` removes a folder of nothing else."""
PAIRED = {telegram_settings.FILE, telegram_settings.TOKEN_FILE}
"""What `vigil pair` puts there: it stays."""


def demo(workspace: Workspace, *, fresh: bool = False, overrides: Sequence[str] = (), with_telegram: bool = False) -> int:
    """Prepare, run to the end, and say what came of it. Exit codes as of `run`.

    Without `with_telegram` nothing is said to a bot that is paired.

    Raises:
        BadCallError: the folder is somebody else's, or no bot is paired and one was wanted.
        SettingsError: the bot's settings cannot be used.
        OSError: the workspace cannot be written.
        WorkspaceBusyError: another daemon is at work in it.
    """
    from daemon import cli, config, logs, supervisor
    from daemon.before_leaving.demo_server import serve

    if with_telegram:
        _check_pairing(workspace)
    print("Vigil demo: all eleven stages, with tiny models that are really trained.")
    print(f"The run lives in {workspace.root}. Ctrl-C stops it; the same command goes on.")
    print("Your phone shows it too: ask the bot /status.\n" if with_telegram else "")
    cli.prepare_workspace(_cleared(workspace) if fresh else _usable(workspace))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for models this small a second thread only waits for the first
    without_comet = comet_overrides()
    make_models(workspace)
    with serve(CLIPS) as server:
        say(f"serving {len(server.clips)} recordings on {server.url}")
        given = [f"download.url={server.feed_url}", f"train_whisper.replay_source={CLIPS / 'replay'}", *without_comet, *overrides]
        pipeline = config.load(PIPELINE, given)
        logs.set_up(workspace, console=None)
        print(flush=True)
        with watched(workspace):
            code = supervisor.watch_over(workspace, pipeline, PIPELINE, with_bot=with_telegram)
    cli.say_end(workspace, code)
    return code


def say(text: str) -> None:
    """One line of the preparation, at once."""
    print(f"  {text}", flush=True)


def _check_pairing(workspace: Workspace) -> None:
    from daemon.cli import BadCallError

    if telegram_settings.load(workspace, os.environ) is None:
        raise BadCallError("no Telegram bot is paired: `./vigil pair` sets one up in two minutes, then give the same command again")


# -- the folder


def _usable(workspace: Workspace) -> Workspace:
    """Refuse a folder that is somebody else's."""
    from daemon.cli import BadCallError

    strangers = sorted(entry.name for entry in workspace.root.iterdir() if not _is_ours(entry)) if workspace.root.is_dir() else []
    if strangers:
        raise BadCallError(f"{workspace.root} holds {strangers[0]!r}, which no run put there; name another folder with --workspace")
    return workspace


def _cleared(workspace: Workspace) -> Workspace:
    """Remove the demo's earlier run, with whatever of it still works."""
    from daemon.supervisor import WorkspaceBusyError

    _usable(workspace)
    if locks.held(workspace.lock):
        raise WorkspaceBusyError(f"a daemon is at work in {workspace.root}: `vigil stop --workspace {workspace.root}` ends it")
    locks.end_attempts(workspace.root)
    if workspace.root.exists():
        say(f"removing the earlier run in {workspace.root}")
        _remove_all_but(PAIRED, workspace.root)
    return workspace


def _remove_all_but(kept: Collection[str], folder: Path) -> None:
    """Remove what lies in `folder`, and `folder` itself when nothing is left."""
    for entry in folder.iterdir():
        if entry.name in kept:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _is_ours(entry: Path) -> bool:
    return entry.name in OURS | PAIRED or (entry.name.startswith(".") and entry.name.endswith((".tmp", ".old")))


# -- what a real run finds elsewhere


def make_models(workspace: Workspace) -> None:
    """Make the tiny models that are missing, in a process of its own: the daemon never imports torch.

    Raises:
        PreparationError: they could not be made.
    """
    say("making the tiny models")
    log = workspace.logs / "models.log"
    command = [sys.executable, "-P", "-m", "stages.tiny", str(workspace.models), "--clips", str(CLIPS)]
    with (
        open(log, "wb") as output,
        subprocess.Popen(
            command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=output, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            say(f"  {line.rstrip()}")
    if process.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        raise PreparationError(f"the tiny models could not be made (code {process.returncode}): {last}; more stands in {log}")


def comet_overrides() -> list[str]:
    """Make COMET's environment if it is missing; the overrides that go without it when it cannot be had."""
    if comet_python().exists():
        return []
    say("setting up COMET's own environment (once)")
    if SETUP.exists():
        code = subprocess.run(["sh", str(SETUP), "setup", "--comet"], stdin=subprocess.DEVNULL, check=False).returncode
        if code == 0 and comet_python().exists():
            return []
    say("warning: COMET's environment could not be made, so the demo goes without COMET scores;")
    say("`./vigil setup --comet` tries again, and `./vigil demo --fresh` then has them")
    return [f"{stage}.comet_model=" for stage in ("evaluate_before", "evaluate_after", "evaluate_12b")]


def comet_python() -> Path:
    """COMET's interpreter, where the stages look for it; VIGIL_COMET_VENV is the launcher's name for another place."""
    if "VIGIL_COMET_PYTHON" not in os.environ and "VIGIL_COMET_VENV" in os.environ:
        os.environ["VIGIL_COMET_PYTHON"] = str(Path(os.environ["VIGIL_COMET_VENV"]).resolve() / "bin" / "python")
    return Path(os.environ.get("VIGIL_COMET_PYTHON") or PROJECT / ".venv-comet" / "bin" / "python")


class PreparationError(Exception):
    """Something that the demo needs could not be made; the message names the command."""


# -- the live view


@contextlib.contextmanager
def watched(workspace: Workspace) -> Iterator[None]:
    """Show the run by `vigil watch` in a process of its own for as long as the block lasts.

    It ignores Ctrl-C, which is the daemon's to handle, and so shows the stages leave too.
    """
    command = [sys.executable, "-P", "-m", "daemon.cli", "watch", "--workspace", str(workspace.root), "--wait", str(WATCH_WAIT_S)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    try:
        viewer = subprocess.Popen(command, env=environment(), stdin=subprocess.DEVNULL)
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        yield
    finally:
        try:
            viewer.wait(WATCH_ENDS_S)
        except subprocess.TimeoutExpired:
            viewer.terminate()
            viewer.wait()

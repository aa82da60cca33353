"""Makes one of Vigil's environments, step by step, and may be killed at any moment.

Called by `./vigil`, never by hand, with whatever Python was found. Three kinds: `main` (what the daemon and the stages need), `dev`
(what `./check` needs besides, in the same folder) and `comet` (a folder of its own, because COMET's pins contradict the rest).

What makes an interruption harmless: `vigil/record.json` in the environment says which steps are done and which one was begun; it
is written before and after each step. A step begun and not finished has its product thrown away and is done again. The stamp
that `./vigil` looks for is written last.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from locks.folder import Environment, discard_torch, only_one, share_torch, users_of, write_durably
from locks.plan import EXIT_TRY_AGAIN, LOCKS, ROOT, Plan, Record, SetupError, make_plan, title_of, wanted_steps

# Settings that would install to another place. Where packages come from stays the owner's choice.
FOREIGN_SETTINGS = frozenset(
    ["PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES", "PIP_NO_BINARY", "VIRTUAL_ENV", "CONDA_PREFIX"]
)


def tell(text: str) -> None:
    """One line on stderr; stdout belongs to the command that comes after."""
    print(f"vigil: {text}", file=sys.stderr, flush=True)


@dataclass
class Progress:
    """The line of the step under way: rewritten each second on a terminal, repeated twice a minute elsewhere."""

    title: str
    began_s: float = field(default_factory=time.monotonic)
    told_s: float = 0.0
    terminal: bool = field(default_factory=sys.stderr.isatty)

    def start(self) -> None:
        """Says what begins."""
        if not self.terminal:
            tell(f"{self.title} ...")

    def tick(self, now: str) -> None:
        """Says that it goes on; `now` is the installer's latest line."""
        elapsed_s = time.monotonic() - self.began_s
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{f'vigil: {self.title}  {elapsed_s:.0f} s  {now}'[:width]}", end="", file=sys.stderr, flush=True)
        elif elapsed_s - self.told_s >= 30:
            self.told_s = elapsed_s
            tell(f"{self.title}: at work for {elapsed_s:.0f} s: {now[:100]}")

    def end(self, found: str) -> None:
        """Says how long it took and what came of it."""
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr)
        tell(f"{self.title}: {time.monotonic() - self.began_s:.1f} s{f' ({found})' if found else ''}")


@dataclass
class Setup:
    """The steps of a set-up, each a method named as in the record; it returns what is worth telling."""

    env: Environment
    main: Environment
    uv: str
    lock: int
    interrupted: str | None
    progress: Progress = field(default_factory=lambda: Progress("setting up"))

    def environment(self) -> str:
        """An empty environment with pip in it."""
        self.env.clear()
        base = os.path.realpath(
            getattr(sys, "_base_executable", sys.executable)
        )  # with its version: python3 may become a newer one
        if self.uv:
            self.run([self.uv, "venv", "--no-project", "--seed", "--allow-existing", "--python", base, str(self.env.folder)])
        else:
            self.run([base, "-I", "-m", "venv", str(self.env.folder)])
        return f"Python {self.env.version}"

    def packages(self) -> str:
        """The packages of main.lock, by hash."""
        return self._locked("main")

    def dev(self) -> str:
        """The tools of dev.lock, by hash."""
        return self._locked("dev")

    def comet(self) -> str:
        """The packages of comet.lock, by hash."""
        return self._locked("comet")

    def _locked(self, name: str) -> str:
        """Installs exactly one lock file: every archive must have a hash that stands in it, and none may need a compiler."""
        what = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(LOCKS / f"{name}.lock")]
        if self.uv:
            try:
                self.run([self.uv, "pip", "install", "--compile-bytecode", "--python", str(self.env.python), *what])
                return "by uv"
            except SetupError as error:  # uv does not read pip's settings: a mirror or a certificate may be known to pip alone
                tell(f"uv could not do it, so pip has to: {error}")
                self.uv = ""
                if name != "dev":
                    self.environment()
        self._pip(*what)
        return "by pip"

    def torch(self) -> str:
        """The pinned torch, by pip, so that a local wheel that pip knows of and the registry's CUDA build are both fine."""
        shared = self.env != self.main
        if shared or self.interrupted == "torch":
            discard_torch(self.env)
        if shared and share_torch(self.main, self.env):
            return f"shared with {self.main.folder}"
        self._pip("-r", str(LOCKS / "torch.txt"))
        seen = "torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'"
        return self._ask(f"import torch; print('torch', torch.__version__, 'sees', {seen})")

    def project(self) -> str:
        """The project itself, as a link to this checkout, and the console script."""
        self._pip("--no-index", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
        return ""

    def check(self) -> str:
        """COMET and torch can be imported together."""
        return self._ask("import comet, torch; print('COMET imports beside torch', torch.__version__)")

    def _pip(self, *what: str) -> None:
        self.run([str(self.env.python), "-I", "-m", "pip", "install", "--no-input", "--progress-bar", "off", *what])

    def _ask(self, code: str) -> str:
        """The last line that a piece of Python prints inside the environment."""
        self.run([str(self.env.python), "-I", "-c", code])
        return _last_line(self.log)

    @property
    def log(self) -> Path:
        """What the installers said."""
        return self.env.own / "setup.log"

    def run(self, command: list[str]) -> None:
        """Runs one command with its output in the log; raises SetupError, with its last words, when it fails."""
        settings = {name: value for name, value in os.environ.items() if name not in FOREIGN_SETTINGS}
        settings["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
        with self.log.open("a") as log:
            print("$", *command, file=log, flush=True)
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=settings, pass_fds=(self.lock,)
            )
        try:
            while process.poll() is None:
                self.progress.tick(_last_line(self.log))
                _wait(process, 1.0)
        except BaseException:
            process.terminate()
            _wait(process, 10.0)
            raise
        if process.returncode:
            raise SetupError(EXIT_TRY_AGAIN, self._failure(command, process.returncode))

    def _failure(self, command: list[str], status: int) -> str:
        said = self.log.read_text(errors="replace").rpartition("\n$ ")[2].splitlines()[1:]
        words = "\n  ".join(said[-12:])
        free_gb = shutil.disk_usage(self.env.folder).free / 1e9
        return (
            f"{Path(command[0]).name} ended with status {status}; its last words:\n  {words}\n"
            f"vigil: {free_gb:.0f} GB of disk are free; the whole story is in {self.log}. To try again, give the same command again"
        )


def _wait(process: subprocess.Popen[bytes], longest_s: float) -> None:
    try:
        process.wait(longest_s)
    except subprocess.TimeoutExpired:
        return


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def perform(setup: Setup, plan: Plan, record: Record, wanted: Mapping[str, str]) -> None:
    """Takes the planned steps; the record names each before it begins and after it ends."""
    env = setup.env
    if plan.clear:
        record = Record(root=str(ROOT), begun="environment")
        env.write_record(record)
        env.clear()
    for number, step in enumerate(plan.steps, 1):
        record = replace(record, begun=step)
        env.write_record(record)
        setup.progress = Progress(f"[{number}/{len(plan.steps)}] {title_of(step)}")
        setup.progress.start()
        take: Callable[[], str] = getattr(setup, step)
        setup.progress.end(take())
        done = env.version if step == "environment" else wanted[step]
        record = replace(record, begun=None, done={**record.done, step: done})
        env.write_record(record)


def build(kind: str, env: Environment, main: Environment, *, uv: str, stamp: str, python: str, lock: int) -> None:
    """Brings one environment up to date and stamps it; one that is out of date but runs a daemon or a stage is left as it is."""
    stamp_file = env.own / f"{kind}.stamp"
    if env.usable and stamp_file.is_file() and stamp_file.read_text().rstrip("\n") == stamp:
        return  # another set-up did it while this one waited
    record = env.read_record()
    wanted = wanted_steps(kind, main.folder, python=python)
    plan = make_plan(record, wanted, usable=env.usable)
    users = users_of(env.folder) if plan.replaces else []
    if users:
        tell(f"{env.folder} is out of date but process {users[0]} runs from it, so it stays as it is until that has ended")
        return
    env.own.mkdir(parents=True, exist_ok=True)
    if plan.steps:
        began_s = time.monotonic()
        if record.begun and (env.own / "setup.log").exists():
            again = "it is made anew" if plan.clear else "that is done again"
            tell(f"the last set-up of {env.folder} was cut short while it did: {title_of(record.begun)}; {again}")
        tell(f"setting up {env.folder}, {len(plan.steps)} of {len(wanted)} steps; the first time takes minutes")
        stamp_file.unlink(missing_ok=True)
        perform(Setup(env, main, uv, lock, record.begun), plan, record, wanted)
        os.sync()  # the stamp must not outlive the files it vouches for
        tell(f"{env.folder} is ready after {time.monotonic() - began_s:.0f} s")
    write_durably(stamp_file, stamp + "\n")


def _terminated(signal_number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signal_number)


def main() -> int:
    """The process's exit status: 0, 75 try again, 78 a setting is wrong, 130 interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["main", "dev", "comet"])
    parser.add_argument("--venv", type=Path, required=True)
    parser.add_argument("--main-venv", type=Path, required=True)
    parser.add_argument("--stamp", required=True)
    parser.add_argument("--uv", default="")
    parser.add_argument("--python-was-asked-for", action="store_true")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _terminated)
    python = "{}.{}".format(*sys.version_info[:2]) if given.python_was_asked_for else "any"
    try:
        with only_one(given.venv, tell) as lock:
            env, main_env = Environment(given.venv), Environment(given.main_venv)
            build(given.kind, env, main_env, uv=given.uv, stamp=given.stamp, python=python, lock=lock)
    except SetupError as error:
        tell(str(error))
        return error.code
    except OSError as error:
        tell(f"the environment could not be made: {error}")
        return EXIT_TRY_AGAIN
    except KeyboardInterrupt:
        tell("interrupted; the same command goes on later")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

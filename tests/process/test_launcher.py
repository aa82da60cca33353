"""`./vigil` makes, keeps and repairs its environment: real processes and pip, a small checkout, small packages, no network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.process.small_wheels import MANY_FILES, Wheels, lock_of, make_wheels

ROOT = Path(__file__).resolve().parents[2]
CLI = """\
import json, os, sys
import alpha
def entry():
    print(json.dumps({"argv": sys.argv[1:], "path": sys.path, "cwd": os.getcwd(), "prefix": sys.prefix, "file": __file__,
                      "alpha": alpha.VERSION, "pythonpath": os.environ.get("PYTHONPATH")}))
if __name__ == "__main__":
    entry()
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """Wheels made on the spot."""
    return make_wheels(tmp_path_factory.mktemp("wheels"))


@dataclass(frozen=True)
class Checkout:
    """A small clone: the real launcher, installer and pyproject.toml; small locks and a small command line."""

    root: Path
    wheels: Wheels

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def log(self) -> str:
        return (self.venv / "vigil" / "setup.log").read_text()

    def settings(self, **more: str) -> dict[str, str]:
        """The process environment: packages come from the small registry alone."""
        kept = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root),
            "VIGIL_UV": "no",
            "VIGIL_PYTHON": sys.executable,
            "LC_ALL": "C.UTF-8",
        }
        return {
            **kept,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels.folder),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_COMPILE": "1",
            **more,
        }

    def vigil(
        self, *words: str, cwd: Path | None = None, front: Path | None = None, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs the launcher to its end."""
        command = [str(front or self.root / "vigil"), *words]
        return subprocess.run(
            command, cwd=cwd or self.root, env=self.settings(**more), capture_output=True, text=True, timeout=280, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Starts the launcher in a process group of its own."""
        return subprocess.Popen(
            [str(self.root / "vigil"), *words],
            cwd=self.root,
            env=self.settings(),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def record(self) -> dict[str, object]:
        """What the set-up wrote down; empty before it wrote anything."""
        path = self.venv / "vigil" / "record.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}


def make_checkout(root: Path, wheels: Wheels) -> Checkout:
    """A small clone without an environment."""
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]:
        folder = root / package.replace(".", "/")
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (root / "daemon" / "cli.py").write_text(CLI)
    (root / "locks").mkdir()
    for name in ("vigil", "pyproject.toml", *(f"locks/{path.name}" for path in (ROOT / "locks").glob("*.py")), "locks/torch.txt"):
        shutil.copy2(ROOT / name, root / name)
    (root / "README.md").write_text("small\n")
    (root / "LICENSE").write_text("small\n")
    (root / "locks" / "main.lock").write_text(lock_of(wheels.alpha, wheels.setuptools))
    (root / "locks" / "dev.lock").write_text(lock_of(wheels.tool))
    (root / "locks" / "comet.lock").write_text(lock_of(wheels.comet))
    return Checkout(root, wheels)


@pytest.fixture
def fresh(tmp_path: Path, wheels: Wheels) -> Iterator[Checkout]:
    """A clone of this test's own, nothing set up; no process of it may be left at the end."""
    clone = make_checkout(tmp_path / "a clone", wheels)
    yield clone
    assert running_from(clone.venv) == []


def running_from(venv: Path) -> list[int]:
    """Ids of the processes that an environment's interpreter runs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(os.fsencode(venv) + b"/"):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, wheels: Wheels) -> Checkout:
    """A clone with its environment, shared by the tests that leave it as it is. Its folder's name has a space in it."""
    clone = make_checkout(tmp_path_factory.mktemp("ready") / "a clone", wheels)
    done = clone.vigil("setup")
    assert done.returncode == 0, done.stderr
    for number, step in enumerate(("an empty environment", "the packages of locks/main.lock", "torch==2.13.0", "Vigil itself"), 1):
        assert f"[{number}/4] {step}: " in done.stderr
    assert "torch 2.13.0+small sees no GPU" in done.stderr
    assert done.stdout == ""
    return clone


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH that holds what the launcher calls and no Python."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("cat", "cksum", "readlink"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def said(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """What the small command line printed."""
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def wait_for(happened: Callable[[], bool], deadline_s: float = 200) -> None:
    """Waits until something is true."""
    end = time.monotonic() + deadline_s
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_second_start_does_nothing(ready: Checkout) -> None:
    """A ready environment is used at once: nothing is said, nothing is installed, Python starts within a fraction of a second."""
    before = ready.log
    times_s = []
    for _ in range(5):
        began = time.monotonic()
        done = ready.vigil("status", "--json")
        times_s.append(time.monotonic() - began)
        assert said(done)["argv"] == ["status", "--json"]
        assert done.stderr == ""
    assert ready.log == before
    assert min(times_s) < 1.0, times_s  # 0.3 s for the launcher, the rest for Python on a busy machine


def test_works_through_a_link_from_anywhere(ready: Checkout, tmp_path: Path) -> None:
    """A link to the launcher works from any folder, also from one with a `daemon` of its own, and PYTHONPATH is kept out."""
    (tmp_path / "bin").mkdir()
    link = tmp_path / "bin" / "vigil"
    link.symlink_to(ready.root / "vigil")
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "__init__.py").write_text("raise SystemExit('the wrong daemon')")
    for front in (link, Path("bin/vigil")):
        found = said(ready.vigil("a b", cwd=tmp_path, front=front, PYTHONPATH=str(tmp_path)))
        assert found["file"] == str(ready.root / "daemon" / "cli.py")
        assert found["cwd"] == str(tmp_path)
        assert found["argv"] == ["a b"]
        assert found["prefix"] == str(ready.venv)
        assert found["pythonpath"] is None
        assert str(tmp_path) not in list(found["path"])  # type: ignore[call-overload]  # JSON list


def test_console_script_and_metadata(ready: Checkout, tmp_path: Path) -> None:
    """The environment has the command `vigil` and knows the project by name and version."""
    done = subprocess.run(
        [ready.venv / "bin" / "vigil", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert said(done)["argv"] == ["x"]
    ask = "import importlib.metadata as m; print(m.version('vigil-train'))"
    version = subprocess.run(
        [ready.venv / "bin" / "python", "-c", ask], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert f'version = "{version.strip()}"' in (ready.root / "pyproject.toml").read_text()


def test_a_running_process_keeps_its_packages(ready: Checkout) -> None:
    """A changed lock does not replace packages under a process that runs from them; the command goes on with what is there."""
    lock = ready.root / "locks" / "main.lock"
    before = lock.read_text()
    running = subprocess.Popen(
        [ready.venv / "bin" / "python", "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1
    )
    try:
        assert running.stdout is not None
        running.stdout.readline()
        lock.write_text(lock_of(ready.wheels.alpha_2, ready.wheels.setuptools))
        done = ready.vigil("status")
        assert f"process {running.pid} runs from it" in done.stderr
        assert said(done)["alpha"] == "1.0"
    finally:
        running.communicate()
        lock.write_text(before)
    assert ready.vigil("status").stderr == ""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="COMET needs Python 3.11 or 3.12")
def test_comet_borrows_torch(ready: Checkout, tmp_path: Path) -> None:
    """COMET's environment is made when asked, its torch is the main one's, and the second time is a no-op."""
    folder = tmp_path / "comet"
    first = ready.vigil("setup", "--comet", VIGIL_COMET_VENV=str(folder))
    assert first.returncode == 0, first.stderr
    assert "COMET imports beside torch 2.13.0+small" in first.stderr
    (site,) = folder.glob("lib/python3.*/site-packages")
    assert (site / "torch").is_symlink()
    assert (site / "torch").resolve().is_relative_to(ready.venv.resolve())
    assert not (site / "alpha").exists()
    second = ready.vigil("setup", "--comet", VIGIL_COMET_VENV=str(folder))
    assert second.stderr == "vigil: the environment is ready\n"


def test_comet_says_when_no_python_fits(ready: Checkout, tmp_path: Path) -> None:
    """COMET cannot live on Python 3.13: exit 69 and the versions that would do. Vigil itself can."""
    pretend = f'[ "$2" = -c ] && exec "{sys.executable}" -I -c "import sys; sys.version_info = (3, 13, 0); $3" "$4"'
    newer = script(tmp_path / "python3.13", f'{pretend}\nexec "{sys.executable}" "$@"')
    done = ready.vigil("setup", "--comet", VIGIL_PYTHON=str(newer), VIGIL_COMET_VENV=str(tmp_path / "comet"))
    assert done.returncode == 69
    assert "3.11 or 3.12, which COMET needs" in done.stderr


def test_dev_tools_come_on_request(ready: Checkout) -> None:
    """`setup --dev` adds the tools to the same environment; a later plain start is still a no-op."""
    done = ready.vigil("setup", "--dev")
    assert done.returncode == 0, done.stderr
    assert "[1/1] the tools of locks/dev.lock" in done.stderr
    assert list(ready.venv.glob("lib/python3.*/site-packages/tool.py"))
    assert ready.vigil("status").stderr == ""


def test_pip_is_told_to_check_hashes(fresh: Checkout) -> None:
    """An archive whose bytes are not the locked ones is refused, with pip's words and the way on; nothing counts as done."""
    lock = fresh.root / "locks" / "main.lock"
    lock.write_text(re.sub(r"sha256:[0-9a-f]{8}", "sha256:00000000", lock.read_text()))
    done = fresh.vigil("status")
    assert done.returncode == 75
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in done.stderr
    assert "give the same command again" in done.stderr
    assert not list(fresh.venv.glob("vigil/*.stamp"))
    assert done.stdout == ""


@pytest.mark.parametrize("everything", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["power-loss", "launcher-alone"])
def test_repairs_what_a_kill_left(fresh: Checkout, everything: bool) -> None:
    """SIGKILL while pip unpacks, of all processes or of the set-up alone: the next start ends with whole packages."""
    (fresh.root / "locks" / "main.lock").write_text(lock_of(fresh.wheels.alpha, fresh.wheels.setuptools, fresh.wheels.big))
    started = fresh.start("status")
    wait_for(lambda: any(fresh.venv.glob("lib/python3.*/site-packages/big/part_00100.txt")))
    if everything:
        os.killpg(started.pid, signal.SIGKILL)
    else:
        for child in children_of(started.pid):
            os.kill(child, signal.SIGKILL)
        started.kill()
    started.communicate()
    assert fresh.record()["begun"] == "packages"
    done = fresh.vigil("status")
    assert said(done)["alpha"] == "1.0"
    assert len(list(fresh.venv.glob("lib/python3.*/site-packages/big/part_*.txt"))) == MANY_FILES
    assert ("waiting for it to end" in done.stderr) is not everything
    assert "was cut short while it did: the packages of locks/main.lock; it is made anew" in done.stderr
    assert fresh.record()["begun"] is None
    assert fresh.log.count("-m venv") == 2
    assert fresh.vigil("status").stderr == ""


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_two_at_once_make_one_environment(fresh: Checkout) -> None:
    """Set-ups that meet take turns, and the second finds everything done."""
    both = [fresh.start("setup"), fresh.start("setup")]
    words = [one.communicate(timeout=280)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], words
    assert sum("waiting for it to end" in word for word in words) == 1
    assert fresh.log.count("-m venv") == 1


@pytest.mark.slow
def test_follows_a_new_lock_and_a_removed_python(fresh: Checkout) -> None:
    """A changed lock is installed over what is there; an environment whose Python is gone is made anew."""
    assert said(fresh.vigil("x"))["alpha"] == "1.0"
    (fresh.root / "locks" / "main.lock").write_text(lock_of(fresh.wheels.alpha_2, fresh.wheels.setuptools))
    assert said(fresh.vigil("x"))["alpha"] == "2.0"
    assert fresh.log.count("-m venv") == 1
    python = fresh.venv / "bin" / "python"
    python.unlink()
    python.symlink_to("/nowhere/python3.11")
    assert said(fresh.vigil("x"))["alpha"] == "2.0"


@pytest.mark.slow
def test_adopts_an_environment_made_by_hand(fresh: Checkout) -> None:
    """An environment without a record is completed, not thrown away."""
    subprocess.run([sys.executable, "-m", "venv", fresh.venv], check=True, timeout=100)
    (fresh.venv / "mine").write_text("kept")
    assert said(fresh.vigil("x"))["alpha"] == "1.0"
    assert (fresh.venv / "mine").read_text() == "kept"


def test_uv_is_used_where_it_is(fresh: Checkout, tmp_path: Path) -> None:
    """With uv on the PATH it makes the environment and installs the locks; torch still comes by pip."""
    calls = tmp_path / "calls"
    (tmp_path / "bin").mkdir()
    shim = f"""echo "$*" >> "{calls}"
case "$1 $2" in
  --version*) exit 0 ;;
  venv*) for last; do :; done; exec "{sys.executable}" -m venv "$last" ;;
  "pip install") shift 4; python=$1; shift; exec "$python" -m pip install "$@" ;;
esac
exit 9"""
    script(tmp_path / "bin" / "uv", shim)
    done = fresh.vigil("x", VIGIL_UV="", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert said(done)["alpha"] == "1.0"
    used = calls.read_text()
    assert "venv --no-project --seed" in used
    assert "--require-hashes --no-deps" in used
    assert "torch" not in used
    assert re.search(r"-m pip install .*torch\.txt", fresh.log)


@pytest.mark.slow
def test_pip_takes_over_from_a_failing_uv(fresh: Checkout, tmp_path: Path) -> None:
    """uv knows nothing of pip's settings, so where it fails pip tries, in an environment made anew."""
    (tmp_path / "bin").mkdir()
    shim = f"""case $1 in
  --version) exit 0 ;;
  venv) for last; do :; done; exec "{sys.executable}" -m venv "$last" ;;
esac
echo 'error: no route to the registry' >&2; exit 2"""
    script(tmp_path / "bin" / "uv", shim)
    done = fresh.vigil("x", VIGIL_UV="", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert said(done)["alpha"] == "1.0"
    assert "no route to the registry" in done.stderr


def test_names_the_missing_package(fresh: Checkout, tools: Path) -> None:
    """A Python without ensurepip, as Debian ships it, is named together with the package that completes it."""
    ours = "{}.{}".format(*sys.version_info[:2])
    blocked = f"""exec "{sys.executable}" -I -c "import sys; sys.modules['ensurepip'] = None
$3" "$4\""""
    script(tools / "python3.12", blocked)
    done = fresh.vigil("status", PATH=str(tools), VIGIL_PYTHON="")
    assert done.returncode == 69
    assert f"sudo apt-get install python{ours}-venv" in done.stderr


def test_says_that_there_is_no_python(fresh: Checkout, tools: Path) -> None:
    """Without a fitting Python: exit 69, what was found, and what to install. Shims that fail and old ones do not count."""
    script(tools / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    script(tools / "python3", '[ "$1" = --version ] && echo Python 3.9.2 && exit; exit 1')
    done = fresh.vigil("status", PATH=str(tools), VIGIL_PYTHON="")
    assert done.returncode == 69
    assert "Vigil needs Python 3.11, 3.12 or 3.13 and found only: Python 3.9.2" in done.stderr
    assert re.search(r"sudo apt-get install (python3\.1[123]) \1-venv", done.stderr)
    assert not fresh.venv.exists()


def test_refuses_a_folder_that_is_no_environment(fresh: Checkout, tmp_path: Path) -> None:
    """VIGIL_VENV set to a folder with other things in it: exit 78, and the things stay."""
    precious = tmp_path / "home" / "thesis.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    done = fresh.vigil("status", VIGIL_VENV=str(precious.parent))
    assert done.returncode == 78
    assert str(precious.parent) in done.stderr
    assert precious.read_text() == "years of work"


def test_bad_calls_of_setup(fresh: Checkout) -> None:
    """`setup` with anything but its own flags is a bad call: exit 2, before anything is made."""
    for words in (["--cuda"], ["--dev", "--comet"]):
        done = fresh.vigil("setup", *words)
        assert done.returncode == 2
        assert "--comet" in done.stderr
    assert not fresh.venv.exists()

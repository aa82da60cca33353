"""An installation, or its removal, that is killed at any moment can be repeated and taken back."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.service.scene import Scene, snapshot

CALLS = "/^(rename|mkdir|rmdir|symlink|unlink)(at2?|at)?$"
WSLCONFIG = b"[wsl2]\r\nmemory=24GB\r\n"
SOME = 9
"""Without --slow every ninth moment is tried."""

if shutil.which("strace") is None:
    pytest.skip("needs strace", allow_module_level=True)


def make(folder: Path) -> Scene:
    """A computer whose owner has settings already, on both sides."""
    scene = Scene(folder)
    (scene.root / "etc/wsl.conf").write_bytes(b"[user]\ndefault=jm\n")
    (scene.profile / ".wslconfig").write_bytes(WSLCONFIG)
    return scene


def moments(scene: Scene, call: Callable[[list[str]], subprocess.CompletedProcess[str]]) -> list[tuple[str, int]]:
    """Each change of a name in an undisturbed call, since that is how a write becomes visible: the system call and its number."""
    trace = scene.windows / "trace"
    done = call(["strace", "-o", str(trace), "-e", f"trace={CALLS}"])
    assert done.returncode == 0, done.stderr
    seen, found = Counter[str](), list[tuple[str, int]]()
    for line in trace.read_text().splitlines():
        name = line.partition("(")[0]
        if name.isalnum():
            seen[name] += 1
            found.append((name, seen[name]))
    return found


def killed_at(moment: tuple[str, int]) -> list[str]:
    """Die on entry of that one."""
    name, number = moment
    return ["strace", "-o", "/dev/null", "-e", f"trace={name}", "-e", f"inject={name}:signal=KILL:when={number}"]


def written(scene: Scene) -> dict[str, object]:
    """What an installation leaves, without its own notes and without times."""
    kept = {**snapshot(scene.root / "etc"), **snapshot(scene.root / "mnt")}
    return {path.removeprefix(str(scene.root)): seen[:4] for path, seen in kept.items() if "vigil.service" not in path}


def windows_is_as_before(scene: Scene) -> bool:
    return not scene.task.exists() and (scene.setting("standby_s"), scene.setting("hibernate")) == (1800, 1)


def try_installations(tmp_path: Path, share: int) -> None:
    whole = make(tmp_path / "whole")
    found = moments(whole, lambda strace: whole.install(before=strace))
    assert len(found) > 20
    for number, moment in enumerate(found[::share]):
        scene = make(tmp_path / str(number))
        before = scene.files()
        assert scene.install(before=killed_at(moment)).returncode in (-9, 137), moment
        if number % 2:
            again = scene.install()
            assert again.returncode == 0, again.stderr
            assert written(scene) == written(whole), moment
            assert scene.task.exists()
        back = scene.call("uninstall", "--yes")
        assert back.returncode == 0, back.stdout + back.stderr
        assert scene.files() == before, moment
        assert windows_is_as_before(scene)


def try_removals(tmp_path: Path, share: int) -> None:
    whole = make(tmp_path / "whole")
    before = whole.files()
    whole.install()
    found = moments(whole, lambda strace: whole.call("uninstall", "--yes", before=strace))
    assert whole.files() == before
    assert len(found) > 15
    for number, moment in enumerate(found[share // 2 :: share]):
        scene = make(tmp_path / str(number))
        first = scene.files()
        scene.install()
        assert scene.call("uninstall", "--yes", before=killed_at(moment)).returncode in (-9, 137), moment
        back = scene.call("uninstall", "--yes")
        assert back.returncode == 0, back.stdout + back.stderr
        assert scene.files() == first, moment
        assert windows_is_as_before(scene)


def test_a_killed_installation_can_be_repeated_or_taken_back(tmp_path: Path) -> None:
    """SIGKILL between two writes: the same call finishes it, and uninstall gives back every byte; some moments."""
    try_installations(tmp_path, SOME)


@pytest.mark.slow
def test_a_killed_removal_can_be_repeated(tmp_path: Path) -> None:
    """SIGKILL between two writes of uninstall: a second one ends with every byte as it was; some moments."""
    try_removals(tmp_path, SOME)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_installation_at_every_moment(tmp_path: Path) -> None:
    """The same at every moment that changes a name."""
    try_installations(tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_removal_at_every_moment(tmp_path: Path) -> None:
    """The same for uninstall."""
    try_removals(tmp_path, 1)

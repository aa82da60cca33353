"""An environment's folder: what is read from it, removed from it and linked into it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from locks.folder import Environment, discard_torch, only_one, share_torch, users_of
from locks.plan import EXIT_MISCONFIGURED, ROOT, Record, SetupError

UNFINISHED = Record(root=str(ROOT), begun="environment")


def make_environment(folder: Path, *packages: str, version: str = "3.11") -> Environment:
    """A folder that looks like an environment; names that end in `/` become folders with a file in them."""
    site = folder / "lib" / f"python{version}" / "site-packages"
    site.mkdir(parents=True)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "vigil").mkdir()
    for name in packages:
        (site / name).mkdir()
        (site / name / "file").write_text(name)
    return Environment(folder)


def names(env: Environment) -> set[str]:
    return {path.name for path in env.site_packages.iterdir()}


def test_record_survives(tmp_path: Path) -> None:
    """What was written is read back, and emptying the folder leaves the record and removes the stamps."""
    env = make_environment(tmp_path / "e", "numpy")
    record = Record(root=str(ROOT), begun="torch", done={"environment": "3.11"})
    env.write_record(record)
    (env.own / "main.stamp").write_text("x")
    env.clear()
    assert env.read_record() == record
    assert [path.name for path in env.folder.rglob("*")] == ["vigil", "record.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"root": "/x"}', '{"root": "/x", "begun": null, "done": 3}'])
def test_unreadable_record_vouches_for_nothing(tmp_path: Path, text: str) -> None:
    """A torn or foreign record means that everything is done again."""
    env = make_environment(tmp_path / "e")
    (env.own / "record.json").write_text(text)
    assert env.read_record() == UNFINISHED


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    """A folder that is not there, or is empty, is one to start in."""
    assert Environment(tmp_path / "none").read_record() == UNFINISHED
    assert Environment(tmp_path).read_record() == UNFINISHED


def test_half_made_folder_is_not_adopted(tmp_path: Path) -> None:
    """An environment of other make without `activate`, which comes after pip, was cut short."""
    folder = tmp_path / "e"
    make_environment(folder)
    (folder / "vigil").rmdir()
    (folder / "pyvenv.cfg").write_text("")
    assert Environment(folder).read_record() == UNFINISHED


def test_foreign_folder_is_refused(tmp_path: Path) -> None:
    """A folder with other things in it is never taken for an environment."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SetupError, match="is not an environment") as caught:
        Environment(tmp_path).read_record()
    assert caught.value.code == EXIT_MISCONFIGURED


def test_torch_is_shared_by_links(tmp_path: Path) -> None:
    """torch and its CUDA libraries are linked, nothing else is, and discarding the links leaves the originals."""
    theirs = ["torch", "torch-2.13.0.dist-info", "torchgen", "functorch", "nvidia", "nvidia_cublas-13.dist-info", "triton", "cuda"]
    main = make_environment(tmp_path / "main", *theirs, "torchmetrics", "numpy")
    env = make_environment(tmp_path / "comet", "torchmetrics")
    assert share_torch(main, env)
    assert names(env) == {*theirs, "torchmetrics"}
    assert (env.site_packages / "torch" / "file").read_text() == "torch"
    discard_torch(env)
    assert names(env) == {"torchmetrics"}
    assert (main.site_packages / "torch" / "file").exists()


def test_torch_is_not_shared_across_versions(tmp_path: Path) -> None:
    """Compiled modules fit one version of Python; without a torch there is nothing to share."""
    env = make_environment(tmp_path / "comet")
    assert not share_torch(make_environment(tmp_path / "other", "torch", version="3.12"), env)
    assert not share_torch(make_environment(tmp_path / "bare"), env)
    assert names(env) == set()


def test_site_packages_must_be_one(tmp_path: Path) -> None:
    """Two Pythons in one folder are refused, not guessed about."""
    env = make_environment(tmp_path / "e")
    (env.folder / "lib" / "python3.12" / "site-packages").mkdir(parents=True)
    with pytest.raises(SetupError, match="2 site-packages"):
        _ = env.site_packages


def test_users_are_found(tmp_path: Path) -> None:
    """A process started by the environment's interpreter is seen, and no longer once it has ended."""
    env = make_environment(tmp_path / "e")
    running = subprocess.Popen([env.python, "-S", "-c", "import sys; print(flush=True); sys.stdin.read()"], stdin=-1, stdout=-1)
    assert running.stdout is not None
    running.stdout.readline()
    assert users_of(env.folder) == [running.pid]
    running.communicate()
    assert users_of(env.folder) == []


def test_lock_is_inherited(tmp_path: Path) -> None:
    """A child that was given the descriptor holds the lock after its parent let go, so a second set-up waits for it."""
    told: list[str] = []
    with only_one(tmp_path / "e", told.append) as lock:
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(0.5)"], pass_fds=(lock,))
    with only_one(tmp_path / "e", told.append) as lock:
        assert child.wait(10) == 0
        assert os.fstat(lock).st_ino == tmp_path.stat().st_ino
    assert len(told) == 1
    assert "waiting" in told[0]

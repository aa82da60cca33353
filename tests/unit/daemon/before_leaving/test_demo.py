"""What the demo may remove, and how it does without COMET. The demo itself: tests/acceptance."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from daemon import config, locks
from daemon.before_leaving import demo
from daemon.cli import BadCallError, main
from daemon.supervisor import WorkspaceBusyError
from state.workspace import Workspace

HOLDER = """
import os, sys, time
from pathlib import Path
from daemon import locks
locks.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_of_somebody_elses_is_neither_used_nor_removed(tmp_path: Path) -> None:
    """One strange name is enough."""
    (tmp_path / "state.json").write_text("x")
    (tmp_path / "thesis.odt").write_text("years of work")
    for act in (demo._usable, demo._cleared):
        with pytest.raises(BadCallError, match=r"thesis\.odt"):
            act(Workspace.at(tmp_path))
    assert (tmp_path / "thesis.odt").read_text() == "years of work"


def test_fresh_removes_an_earlier_run(finished_workspace: Workspace) -> None:
    """All that a run writes is known as a run's own."""
    assert demo._usable(finished_workspace) == finished_workspace
    assert demo._cleared(finished_workspace) == finished_workspace
    assert not finished_workspace.root.exists()
    assert demo._cleared(finished_workspace) == finished_workspace


def test_fresh_keeps_the_pairing(finished_workspace: Workspace) -> None:
    """What `vigil pair` wrote into the folder is no part of the run; what the bot kept of the run is."""
    root = finished_workspace.root
    for name in ("telegram.toml", "telegram_token", "telegram/bot.json"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    (root / "models").symlink_to(root)
    assert demo._usable(finished_workspace) == demo._cleared(finished_workspace) == finished_workspace
    assert sorted(path.name for path in root.iterdir()) == ["telegram.toml", "telegram_token"]


def test_telegram_without_a_pairing_is_a_bad_call(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    """Before anything is made, and it says how to pair."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert main(["demo", "--telegram", "--workspace", str(tmp_path / "demo")]) == 2
    assert "./vigil pair" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_fresh_leaves_a_run_that_is_being_worked_on(mid_workspace: Workspace) -> None:
    """The daemon is to be stopped by its owner first."""
    handle = locks.take(mid_workspace.lock)
    try:
        with pytest.raises(WorkspaceBusyError, match="vigil stop"):
            demo._cleared(mid_workspace)
    finally:
        os.close(handle)
    assert mid_workspace.state.exists()


def test_fresh_ends_attempts_that_outlived_their_daemon(mid_workspace: Workspace) -> None:
    """A stage of the old run must not write into the new one."""
    lock = mid_workspace.attempt("train_marian", 2).lock
    environment = {**os.environ, "PYTHONPATH": str(demo.PROJECT)}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], env=environment, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        started = time.monotonic()
        demo._cleared(mid_workspace)
        assert holder.wait(10) == -9
        assert time.monotonic() - started < 10
    assert not mid_workspace.root.exists()


def test_without_comets_environment_the_pipeline_goes_without_it(monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    """The overrides are ones that the pipeline takes; the warning says how to have it after all."""
    monkeypatch.setenv("VIGIL_COMET_PYTHON", str(tmp_path / "python"))
    monkeypatch.setattr(demo, "SETUP", tmp_path / "no-launcher")  # the real one would install
    overrides = demo.comet_overrides()
    pipeline = config.load(demo.PIPELINE, ["download.url=http://127.0.0.1:1/", *overrides])
    assert [stage.settings["comet_model"] for stage in pipeline.stages if stage.module == "stages.evaluate"] == ["", "", ""]
    assert "setup --comet" in capsys.readouterr().out
    (tmp_path / "python").write_text("")
    assert demo.comet_overrides() == []


def test_the_launchers_name_for_comets_place_is_heard(monkeypatch: Any, tmp_path: Path) -> None:
    """VIGIL_COMET_VENV becomes the interpreter that the stages look for."""
    monkeypatch.delenv("VIGIL_COMET_PYTHON", raising=False)
    monkeypatch.setenv("VIGIL_COMET_VENV", str(tmp_path))
    assert demo.comet_python() == tmp_path / "bin" / "python"
    assert os.environ["VIGIL_COMET_PYTHON"] == str(tmp_path / "bin" / "python")
    monkeypatch.delenv("VIGIL_COMET_PYTHON")


def test_every_demo_stage_is_one_of_seattles(tmp_path: Path) -> None:
    """Same eleven stages, same modules, same needs: what the demo shows is what the real run does."""
    given = ["download.url=http://127.0.0.1:1/", "corpus.source=/bible"]
    small, real = (config.load(demo.PROJECT / "pipelines" / name, given) for name in ("demo.toml", "seattle.toml"))
    shape = [(s.name, s.module, s.needs, s.after, s.resource, s.optional) for s in real.stages]
    assert [(s.name, s.module, s.needs, s.after, s.resource, s.optional) for s in small.stages] == shape
    assert len(shape) == 11


@pytest.mark.parametrize("missing", ["download.url", "corpus.source"])
@pytest.mark.parametrize("empty", [True, False])
def test_seattle_is_refused_without_what_only_the_owner_knows(missing: str, empty: bool) -> None:
    """Left out or empty: refused before hour 0, naming the field."""
    given = {"download.url": "http://127.0.0.1:1/", "corpus.source": "/bible"}
    given[missing] = ""
    overrides = [f"{key}={value}" for key, value in given.items() if value or empty]
    with pytest.raises(config.ConfigError, match=missing.partition(".")[2]):
        config.load(demo.PROJECT / "pipelines" / "seattle.toml", overrides)

"""Recordings side by side: the same bytes as one by one, and a worker that is killed costs its own recording at most."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from stages import preprocess
from stages.runtime import StageContext
from stages.sound_passes import Record, Work
from stages.sound_workers import Said, WorkerError, side_by_side, worker_count
from state.contract import ExitCode, StopRequested
from state.durable import tree_digest
from state.settings import Preprocess
from tests.stage_attempts import notes
from tests.unit.stages.test_preprocess import CLIPS, context

GB = 1_000_000_000
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("settings", "recordings", "sound_mb", "free_gb", "cores", "expected"),
    [
        ({}, 30, 1700, 8, 4, 2),
        ({}, 30, 1700, 1, 4, 1),
        ({}, 30, 1700, 8, 1, 1),
        ({}, 1, 1700, 8, 4, 1),
        ({}, 6, 1, 8, 4, 1),
        ({"workers": 4}, 30, 1700, 8, 8, 4),
        ({"workers": 4, "speaker_model": "x/y"}, 30, 1700, 8, 8, 2),
        ({"worker_mb": 0.0}, 6, 0, 8, 4, 2),
    ],
    ids=["usual", "little memory", "one core", "one recording", "little sound", "more", "with a model", "forced"],
)
def test_workers_are_as_many_as_fit(
    settings: dict[str, Any], recordings: int, sound_mb: int, free_gb: int, cores: int, expected: int
) -> None:
    """Never more than asked for, than recordings, cores or memory; none of their own where there is little to do."""
    assert worker_count(Preprocess(**settings), recordings, sound_mb * 1_000_000, free_gb * GB, cores) == expected


def recordings(ctx: StageContext, names: tuple[str, ...] = ("bread", "lamp", "river")) -> None:
    for name in names:
        shutil.copy(CLIPS / f"{name}.flac", ctx.workspace.raw_audio)


def test_side_by_side_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two workers and none deliver equal folders, with the metadata in the order of the names."""
    digests = set()
    for name, settings in (("one", {"workers": 1}), ("two", {"workers": 2, "worker_mb": 0.0})):
        ctx = context(tmp_path / name, settings)
        recordings(ctx, ("lamp", "bread"))
        (ctx.workspace.raw_audio / "none.wav").touch()
        assert preprocess.main(ctx).summary.endswith("from 2 of 3 recordings")
        assert "none.wav is empty" in notes(ctx)
        digests.add(tree_digest(ctx.workspace.cleaned_audio))
        assert not list(ctx.scratch().iterdir())
    assert len(digests) == 1


def works(ctx: StageContext) -> list[Work]:
    settings = Preprocess()
    paths = sorted(ctx.workspace.raw_audio.iterdir())
    return [Work(path, path.stem, settings, ctx.scratch() / path.stem, lambda _share: None) for path in paths]


def workers() -> dict[psutil.Process, list[str]]:
    """The workers of this process that are alive, with their command lines."""
    found = {}
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found[child] = child.cmdline()
    return {child: line for child, line in found.items() if "stages.sound_workers" in line}


def worker_of(name: str) -> psutil.Process | None:
    """The process that is at work on a recording, if it is."""
    return next((child for child, line in workers().items() if any(part.endswith(f"/{name}.flac") for part in line)), None)


class Killer:
    """Kills the worker of one recording as soon as it is there, some times."""

    def __init__(self, name: str, times: int) -> None:
        self.name, self.times = name, times
        self.beside: list[int] = []

    def look(self) -> None:
        worker = worker_of(self.name)
        if self.times and worker is not None:
            self.beside.append(len(workers()))
            worker.kill()
            self.times -= 1


def test_a_killed_worker_costs_nothing_at_first(tmp_path: Path) -> None:
    """Its recording is tried again when the others are done; all of them end whole."""
    ctx = context(tmp_path)
    recordings(ctx, ("lamp", "river"))
    killer = Killer("lamp", 1)
    found = list(side_by_side(works(ctx), 2, lambda _shares: None, killer.look))
    assert killer.times == 0
    assert [work.stem for work, _record in found][-1] == "lamp"
    assert {work.stem for work, record in found if isinstance(record, Record) and record.chunks} == {"lamp", "river"}


def test_what_is_lost_is_told_and_done_at_the_next_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage goes on without the recording, says so, and publishes nothing of it, so that it is not taken for done."""
    ctx = context(tmp_path, {"worker_mb": 0.0})
    recordings(ctx, ("lamp", "river"))
    killer = Killer("lamp", 2)
    real = side_by_side
    monkeypatch.setattr(preprocess, "side_by_side", lambda works, count, beat, _look: real(works, count, beat, killer.look))
    assert preprocess.main(ctx).summary.endswith("from 1 of 2 recordings")
    assert killer.beside[1:] == [1]  # the second time with no other beside it
    assert "recording set aside: lamp.flac: its worker was killed twice (signal 9)" in notes(ctx)
    monkeypatch.undo()
    second = context(tmp_path, number=2)
    assert preprocess.main(second).summary.endswith("from 2 of 2 recordings")


def test_a_stop_ends_the_workers(tmp_path: Path) -> None:
    """What `look` raises comes through within a second, and no process is left."""
    ctx = context(tmp_path)
    recordings(ctx)

    def look() -> None:
        if worker_of("bread") and worker_of("lamp"):
            raise StopRequested

    with pytest.raises(StopRequested):
        list(side_by_side(works(ctx), 2, lambda _shares: None, look))
    assert not workers()


def test_a_worker_that_fails_is_the_stages_own_failure(tmp_path: Path) -> None:
    """A full disk in a worker leaves with the code for a full disk and the worker's words, not as a crash."""
    ctx = context(tmp_path)
    recordings(ctx, ("lamp",))
    (work,) = works(ctx)
    gone = Work(work.path.with_name("gone.flac"), "gone", work.settings, work.folder, work.beat)
    with pytest.raises(WorkerError, match=r"gone\.flac") as caught:
        list(side_by_side([gone], 1, lambda _shares: None, lambda: None))
    assert caught.value.exit_code == 1
    said = Said(code=ExitCode.DISK_FULL, message=os.strerror(errno.ENOSPC))
    assert WorkerError(said).exit_code == ExitCode.DISK_FULL


def test_a_worker_without_its_stage_does_nothing(tmp_path: Path) -> None:
    """Its parent is another process than the one that it was started for: it leaves at once."""
    command = [sys.executable, "-m", "stages.sound_workers", "x.wav", "x", str(tmp_path), str(tmp_path), "1"]
    ended = subprocess.run(command, capture_output=True, timeout=60, check=False, cwd=ROOT)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")
    assert not list(tmp_path.iterdir())


def test_workers_end_with_their_stage(tmp_path: Path) -> None:
    """A stage that is killed leaves no worker behind to write into the next attempt's folders."""
    ctx = context(tmp_path, {"worker_mb": 0.0})
    recordings(ctx)
    ctx.attempt.spec.write_bytes(msgspec.json.encode(ctx.spec))
    with subprocess.Popen([sys.executable, "-m", "stages.preprocess", str(ctx.attempt.root)], cwd=ROOT) as stage:
        found: list[psutil.Process] = []
        until = time.monotonic() + 60
        while len(found) < 2:
            assert stage.poll() is None
            assert time.monotonic() < until
            found = psutil.Process(stage.pid).children()
        stage.kill()
        stage.wait()
    _gone, alive = psutil.wait_procs(found, timeout=30)
    assert not alive

"""The daemon with real short stages: real processes, real signals, real files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from daemon import locks
from daemon.inbox import new_command, submit
from state.checkpoints import Checkpoints
from state.contract import CommandKind, Outcome
from state.machine import Status
from state.pipeline import Pipeline, Resource, StageConfig
from state.store import Store, read_journal
from state.workspace import Workspace

PROJECT = Path(__file__).parents[2]
WATCH = """
import sys, msgspec
from pathlib import Path
from daemon import logs, supervisor
from state.pipeline import Pipeline
from state.workspace import Workspace
workspace = Workspace.at(sys.argv[1])
logs.set_up(workspace, console=None)
pipeline = msgspec.json.decode(Path(sys.argv[2]).read_bytes(), type=Pipeline)
raise SystemExit(supervisor.watch_over(workspace, pipeline, Path(sys.argv[2]), with_report=False))
"""


def probe(name, resource=Resource.CPU, needs=(), optional=False, silence_s=1800.0, grace_s=120.0, **settings):
    return StageConfig(
        name=name,
        module="tests.process.probe",
        resource=resource,
        needs=needs,
        optional=optional,
        silence_s=silence_s,
        grace_s=grace_s,
        settings=settings,
    )


class Watched:
    """A daemon on a workspace, as a process of its own."""

    def __init__(self, folder: Path, *stages: StageConfig, keep_free_gb: float = 0.0) -> None:
        self.workspace = Workspace.at(folder / "w")
        self.file = folder / "pipeline.json"
        self.output = folder / "console.txt"
        self.file.write_bytes(msgspec.json.encode(Pipeline(name="probes", keep_free_gb=keep_free_gb, stages=stages)))

    def start(self) -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-c", WATCH, str(self.workspace.root), str(self.file)]
        with open(self.output, "ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def run(self, timeout_s: float = 60.0) -> int:
        code = self.start().wait(timeout=timeout_s)
        assert "Traceback" not in self.output.read_text()
        return code

    def state(self):
        return Store(self.workspace.state).peek()

    def wait_for(self, condition, timeout_s: float = 30.0):
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if (found := condition()) is not None and found is not False:
                return found
            time.sleep(0.05)
        raise AssertionError("it did not come to pass in time")

    def step_of(self, name: str) -> int:
        """Newest step in the trail of a probe."""
        trail = self.workspace.scratch(name) / "trail.txt"
        return len(trail.read_text().split()) if trail.exists() else 0

    def trail(self, name: str) -> list[int]:
        return [int(line) for line in (self.workspace.scratch(name) / "trail.txt").read_text().split()]


def test_a_run_succeeds_and_tells_it(tmp_path):
    """Two stages in a row: exit 0, receipts, logs under the numbers, a journal that tells the story once."""
    watched = Watched(tmp_path, probe("first", steps=2), probe("second", needs=("first",), steps=2))
    assert watched.run() == 0
    assert [stage.state for stage in watched.state().stages] == [Status.SUCCEEDED] * 2
    assert (watched.workspace.logs / "02_second.log").resolve().name == "output.log"
    kinds = [fact.kind for fact in read_journal(watched.workspace.journal)]
    assert kinds[0] == "run.started"
    assert kinds.count("stage.succeeded") == 2
    assert kinds[-1] == "run.finished"
    receipt = json.loads(watched.workspace.result("second").read_text())
    assert receipt["outputs"][0]["path"] == "out/second"


def test_a_second_run_does_nothing_again(tmp_path):
    """Finished stages are not run again."""
    watched = Watched(tmp_path, probe("only", steps=2))
    assert watched.run() == 0
    assert watched.run() == 0
    assert len(watched.state().stage("only").attempts) == 1


@pytest.mark.parametrize("fault", ["crash", "kill", "no_receipt", "TransientError", "OutOfMemoryError", "DivergedError"])
def test_a_fault_in_mid_stage_is_survived(tmp_path, fault):
    """The next attempt goes on from the newest checkpoint: each step is done once."""
    watched = Watched(tmp_path, probe("only", steps=4, at_step=3, fault=fault))
    daemon = watched.start()
    waiting = watched.wait_for(
        lambda: watched.workspace.state.exists() and watched.state().stage("only").state is Status.BACKING_OFF
    )
    assert waiting
    assert submit(watched.workspace, new_command(CommandKind.RETRY, "only")).ok
    assert daemon.wait(timeout=60) == 0
    assert watched.trail("only") == [1, 2, 3, 4]
    assert len(watched.state().stage("only").attempts) == 2


def test_a_wrong_setting_fails_the_run_at_once(tmp_path):
    """MISCONFIGURED is not retried; the exit code is 1; an optional stage's failure leaves it 0."""
    wrong = {"steps": "many"}
    watched = Watched(tmp_path, probe("only", **wrong))
    assert watched.run() == 1
    status = watched.state().stage("only").status
    assert status.outcome is Outcome.MISCONFIGURED
    assert "$.steps" in status.reason
    (tmp_path / "b").mkdir()
    assert Watched(tmp_path / "b", probe("bonus", optional=True, **wrong)).run() == 0


def test_a_retry_left_for_a_finished_run_is_carried_out(tmp_path):
    """Asked while no daemon ran, it waits in control/; the next run does it and finishes again."""
    watched = Watched(tmp_path, probe("only", steps=2, at_step=1, fault="MisconfiguredError"))
    assert watched.run() == 1
    assert submit(watched.workspace, new_command(CommandKind.RETRY, "only"), wait_s=0) is None
    assert watched.run() == 0
    assert watched.state().stage("only").state is Status.SUCCEEDED


def test_sigterm_lets_the_stage_checkpoint_and_the_next_run_goes_on(tmp_path):
    """Stopped in mid-stage: exit 83 in seconds, nothing lost, nothing done twice."""
    watched = Watched(tmp_path, probe("only", steps=30, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 3)
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(timeout=20) == 83
    stopped_at = watched.step_of("only")
    assert stopped_at < 30
    assert watched.state().stage("only").attempts[-1].outcome is Outcome.STOPPED
    assert watched.run() == 0
    assert watched.trail("only") == list(range(1, 31))


def test_a_deaf_stage_is_killed_after_its_grace(tmp_path):
    """SIGKILL ends what does not listen, and that counts as stopped."""
    watched = Watched(tmp_path, probe("only", steps=600, step_s=0.1, fault="deaf", at_step=-1, grace_s=1.0))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 2)
    daemon.send_signal(signal.SIGINT)
    assert daemon.wait(timeout=20) == 83
    assert watched.state().stage("only").attempts[-1].outcome is Outcome.STOPPED


def test_a_killed_daemon_costs_the_stage_nothing(tmp_path):
    """After SIGKILL of the daemon the stage works on; the next daemon adopts it: one attempt, each step once."""
    watched = Watched(tmp_path, probe("only", steps=40, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 3)
    daemon.kill()
    daemon.wait()
    seen = watched.step_of("only")
    watched.wait_for(lambda: watched.step_of("only") > seen)
    assert watched.run() == 0
    assert len(watched.state().stage("only").attempts) == 1
    assert watched.trail("only") == list(range(1, 41))


def test_a_stage_that_died_with_its_daemon_goes_on(tmp_path):
    """Everything killed at once, as by a power cut: the attempt is INTERRUPTED and the next goes on from the checkpoint."""
    watched = Watched(tmp_path, probe("only", steps=30, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 3)
    daemon.kill()
    daemon.wait()
    for pid in locks.holders(watched.workspace.attempt("only", 1).lock):
        os.kill(pid, signal.SIGKILL)
    assert watched.run() == 0
    attempts = watched.state().stage("only").attempts
    assert [attempt.outcome for attempt in attempts] == [Outcome.INTERRUPTED, Outcome.SUCCEEDED]
    trail = watched.trail("only")
    assert sorted(set(trail)) == list(range(1, 31))
    assert len(trail) <= 31


def test_a_stage_that_finished_while_no_daemon_ran_has_succeeded(tmp_path):
    """The receipt and exit.json tell a daemon that was not its parent."""
    watched = Watched(tmp_path, probe("only", steps=8, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 2)
    daemon.kill()
    daemon.wait()
    watched.wait_for(lambda: watched.workspace.attempt("only", 1).exit.exists())
    assert watched.run() == 0
    assert [a.outcome for a in watched.state().stage("only").attempts] == [Outcome.SUCCEEDED]


def test_a_live_stage_is_adopted_by_a_daemon_whose_state_is_a_generation_old(tmp_path):
    """The torn state.json held the launch; the generation before launches the same attempt, finds it alive, and takes it."""
    watched = Watched(tmp_path, probe("only", steps=40, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 3)
    daemon.kill()
    daemon.wait()
    os.truncate(watched.workspace.state, 700)
    assert watched.run() == 0
    assert len(watched.state().stage("only").attempts) == 1
    assert watched.trail("only") == list(range(1, 41))


@pytest.mark.parametrize("fault", ["hang", "deadlock", "freeze"])
def test_silence_is_ended(tmp_path, fault):
    """A stage that sleeps, is deadlocked or was stopped by a signal is killed after its limit and tried again."""
    watched = Watched(tmp_path, probe("only", steps=3, fault=fault, silence_s=4.0))
    assert watched.run() == 0
    assert [a.outcome for a in watched.state().stage("only").attempts] == [Outcome.HUNG, Outcome.SUCCEEDED]


def test_stages_of_different_resources_run_side_by_side(tmp_path):
    """Two attempts are alive at the same time."""
    watched = Watched(tmp_path, probe("one", steps=15, step_s=0.1), probe("two", resource=Resource.GPU, steps=15, step_s=0.1))
    assert watched.run() == 0
    first, second = (stage.attempts[0] for stage in watched.state().stages)
    assert first.started_at < second.ended_at
    assert second.started_at < first.ended_at


def test_one_daemon_a_workspace(tmp_path):
    """The second is turned away and changes nothing; the lock is not inherited by stages."""
    watched = Watched(tmp_path, probe("only", steps=30, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 1)
    second = watched.start()
    assert second.wait(timeout=20) == 1
    assert "WorkspaceBusyError" in watched.output.read_text()
    watched.output.unlink()
    daemon.kill()
    daemon.wait()
    assert locks.held(watched.workspace.lock) is False
    assert watched.run() == 0


def test_commands_act_on_a_live_daemon(tmp_path):
    """skip, pause, resume and stop are answered, each within seconds."""
    watched = Watched(tmp_path, probe("one", steps=600, step_s=0.1), probe("two", steps=600, step_s=0.1))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("one") >= 1)
    assert submit(watched.workspace, new_command(CommandKind.SKIP, "one")).ok
    watched.wait_for(lambda: watched.step_of("two") >= 1)
    assert watched.state().stage("one").state is Status.SKIPPED
    assert not submit(watched.workspace, new_command(CommandKind.SKIP, "three")).ok
    assert submit(watched.workspace, new_command(CommandKind.PAUSE)).ok
    watched.wait_for(lambda: watched.state().stage("two").state is Status.BACKING_OFF)
    held_at = watched.step_of("two")
    time.sleep(1.5)
    assert watched.step_of("two") == held_at
    assert submit(watched.workspace, new_command(CommandKind.RESUME)).ok
    watched.wait_for(lambda: watched.step_of("two") > held_at)
    assert submit(watched.workspace, new_command(CommandKind.STOP)).ok
    assert daemon.wait(timeout=20) == 83


def test_another_pipelines_workspace_is_refused(tmp_path):
    """Nothing of the first run is changed."""
    watched = Watched(tmp_path, probe("only", steps=1))
    assert watched.run() == 0
    before = watched.workspace.state.read_bytes()
    watched.file.write_bytes(msgspec.json.encode(Pipeline(name="other", stages=(probe("only"),))))
    second = watched.start()
    assert second.wait(timeout=20) == 1
    assert "WorkspaceMismatchError" in watched.output.read_text()
    assert watched.workspace.state.read_bytes() == before


def test_damage_on_the_disk_is_mended_and_told_once(tmp_path):
    """A cut state.json and a changed line of the journal: the run goes on from the generation before, and both are said."""
    watched = Watched(tmp_path, probe("only", steps=2, at_step=1, fault="MisconfiguredError"))
    assert watched.run() == 1
    whole = watched.workspace.state.read_bytes()
    watched.workspace.state.write_bytes(whole[: len(whole) // 2])
    lines = watched.workspace.journal.read_bytes().split(b"\n")
    watched.workspace.journal.write_bytes(b"\n".join([lines[0].replace(b"started", b"stopped"), *lines[1:]]))
    for _ in range(2):
        assert watched.run() == 1
    told = [fact.text for fact in read_journal(watched.workspace.journal) if fact.kind == "state.repaired"]
    assert sum("state.json" in text for text in told) == 1
    assert sum("1 of its lines cannot be read" in text for text in told) == 1


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB as the workspace."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    folder = tmp_path / "w"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder, leave_bytes):
    """Write a file that leaves so much; its path."""
    filler = folder / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(folder).free - leave_bytes))
    return filler


@pytest.mark.root
def test_a_disk_that_fills_up_in_mid_stage_stops_it_and_space_lets_it_go_on(tmp_path, small_disk):
    """An older checkpoint goes first; the save that still does not fit is not begun, and waits for the space that it named."""
    watched = Watched(tmp_path, probe("only", steps=12, step_s=0.1, checkpoint_bytes=600_000))
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 3)
    filler = fill(small_disk, leave_bytes=15_000)
    waiting = watched.wait_for(lambda: watched.state().stage("only").state is Status.BACKING_OFF)
    assert waiting
    status = watched.state().stage("only").status
    assert status.outcome is Outcome.DISK_FULL
    assert status.needed_bytes > 600_000
    kept = Checkpoints(watched.workspace.checkpoints("only")).newest_step()
    assert kept >= 3
    filler.unlink()
    assert daemon.wait(timeout=60) == 0
    trail = watched.trail("only")
    assert sorted(set(trail)) == list(range(1, 13))
    assert len(trail) - 12 < len(watched.state().stage("only").attempts)  # the step in flight, once an attempt


@pytest.mark.root
def test_a_nearly_full_disk_holds_the_run_before_a_save_fails(tmp_path, small_disk):
    """The stage checkpoints and waits, which is told; with space it goes on and loses nothing."""
    watched = Watched(tmp_path, probe("only", steps=60, step_s=0.1), keep_free_gb=0.0005)
    daemon = watched.start()
    watched.wait_for(lambda: watched.step_of("only") >= 2)
    filler = fill(small_disk, leave_bytes=400_000)
    watched.wait_for(lambda: watched.state().disk_hold != "" and watched.state().stage("only").state is Status.BACKING_OFF)
    assert watched.state().stage("only").attempts[-1].outcome is Outcome.STOPPED
    assert watched.step_of("only") < 60
    filler.unlink()
    assert daemon.wait(timeout=60) == 0
    assert watched.trail("only") == list(range(1, 61))
    kinds = [fact.kind for fact in read_journal(watched.workspace.journal)]
    assert kinds.count("disk.held") == kinds.count("disk.freed") == 1

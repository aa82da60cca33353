"""The accounts of real runs with real kills, against what somebody outside saw."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from benchmarks.goodput import BEFORE, scene
from daemon import accounts, energy, locks, view
from daemon.before_leaving.drill_plan import STAGE
from daemon.inbox import new_command, submit
from state.contract import CommandKind, Outcome
from state.machine import Status
from state.workspace import Workspace
from tests.process.test_supervisor import Watched, probe

LOOK_S = 0.01


class Onlooker:
    """Sees processes by their locks and steps by what a stage writes into its own file; reads no event and no state."""

    def __init__(self, workspace: Workspace, stage: str) -> None:
        self.workspace, self.stage = workspace, stage
        self.alive_s = 0.0
        """In which any process of the stage lived."""
        self.steps: list[tuple[float, int, int]] = []
        """(when, attempt, step)."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Onlooker:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        trail, before = self.workspace.scratch(self.stage) / "trail.txt", time.monotonic()
        while not self._over.is_set():
            attempts = sorted(self.workspace.stage(self.stage).glob("attempts/*/attempt.lock"))
            alive = bool(attempts) and locks.held(attempts[-1])
            written = trail.read_text().split() if trail.exists() else []
            self.steps += [(time.time(), len(attempts), int(step)) for step in written[len(self.steps) :]]
            now = time.monotonic()
            self.alive_s += now - before if alive else 0.0
            before = now
            self._over.wait(LOOK_S)

    def useful_s(self, began_at: float, ended_at: float) -> float:
        """From the steps alone: the stretches in which each was the first of its number."""
        new, furthest = list[tuple[float, int]](), 0
        for at, attempt, step in self.steps:
            if step > furthest:
                furthest = step
                new.append((at, attempt))
        spans = [[at for at, _attempt in group] for _number, group in itertools.groupby(new, key=lambda one: one[1])]
        spans[0].insert(0, began_at)
        spans[-1].append(ended_at)
        return sum(span[-1] - span[0] for span in spans)


def test_the_accounts_agree_with_an_onlooker(tmp_path: Path) -> None:
    """A stage killed, then the power cut: work, useful work and what was down agree with what was seen outside, to a second."""
    watched = Watched(tmp_path, probe("only", steps=25, step_s=0.1, at_step=6, fault="kill"))
    lock = watched.workspace.attempt("only", 2).lock
    with Onlooker(watched.workspace, "only") as onlooker:
        daemon = watched.start()
        watched.wait_for(lambda: watched.workspace.state.exists() and watched.state().stage("only").state is Status.BACKING_OFF)
        submit(watched.workspace, new_command(CommandKind.RETRY, "only"))  # five seconds' wait are one too many here
        watched.wait_for(lambda: onlooker.steps[-1][2] >= 8)
        pids = [*locks.holders(lock)]
        for pid in (daemon.pid, *pids):
            os.kill(pid, signal.SIGKILL)
        daemon.wait()
        cut_at = time.time()
        time.sleep(2)  # the outage that is to be accounted for
        booted_at = time.time()
        assert watched.run() == 0
        seen = view.read(watched.workspace)
        attempts = seen.run.stage("only").attempts
        ended_at = attempts[-1].ended_at
        assert ended_at is not None
    found = accounts.read(watched.workspace, seen, time.time())
    (book,) = found.stages
    assert [attempt.outcome for attempt in attempts] == [Outcome.CRASHED, Outcome.INTERRUPTED, Outcome.SUCCEEDED]
    assert book.wall_s == pytest.approx(ended_at - attempts[0].started_at, abs=0.01)
    assert book.useful_s + book.repeated_s == pytest.approx(onlooker.alive_s, abs=2.5)
    assert book.useful_s == pytest.approx(onlooker.useful_s(attempts[0].started_at, ended_at), abs=2.5)
    assert booted_at - cut_at <= book.lost_s <= booted_at - cut_at + 2.0  # and what the daemon takes to start
    assert book.waiting_s == pytest.approx(book.wall_s - onlooker.alive_s - book.lost_s, abs=2.5)
    crash, cut = found.costs
    assert crash.seconds + cut.seconds == pytest.approx(book.wall_s - book.useful_s, abs=0.01)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_under_kills_has_the_goodput_that_is_seen_outside(tmp_path: Path) -> None:
    """A real training, killed three times, twice with the daemon: repeated work is what the steps done twice and the loads took."""
    draw = random.Random(1)
    with scene(tmp_path / "w", 16) as on:
        on.overrides = [*on.overrides, f"{STAGE}.epochs=6"]
        on.boot(*(part for name in BEFORE for part in ("--stage", name)))
        on.finish()
        on.boot(*(part for name in (*BEFORE, STAGE) for part in ("--stage", name)))
        goal = 0
        for power_cut in (True, False, True):
            goal += draw.randint(20, 30)
            on.wait(f"step {goal}", lambda goal=goal: max(on.steps(on.newest_attempt()), default=0) >= goal)
            if power_cut:
                on.power_cut()
                on.boot(*(part for name in (*BEFORE, STAGE) for part in ("--stage", name)))
            else:
                on.signal_stage(signal.SIGKILL)
        on.finish()
        repeated = on.repeated()
        loads_s = 0.0
        for number in range(2, on.newest_attempt() + 1):
            stepped = [event.at for event in on.events(number) if getattr(event, "step", None)]
            loads_s += stepped[0] - on.run().stage(STAGE).attempts[number - 1].started_at
        seen = view.read(on.workspace)
        found = accounts.read(on.workspace, seen, time.time())
    (book,) = (book for book in found.stages if book.stage == STAGE)
    result = next(stage.result for stage in seen.stages if stage.config.name == STAGE)
    assert result is not None
    assert len(found.costs) == 3
    step_s = float(result.metrics["seconds"]) / result.metrics["steps"]
    print(f"{book} repeated steps {repeated}, {step_s:.2f} s each, loads {loads_s:.1f} s")
    assert book.repeated_s == pytest.approx(repeated * step_s + loads_s, rel=0.25, abs=3.0)


def test_the_daemon_measures_what_the_gpu_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a program that always says 100 W: the whole of a short run is in energy.jsonl when the daemon has ended."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text("#!/bin/sh\necho 'RTX A2000, 97, 14820, 16380, 71, 100.00'\n")
    (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    watched = Watched(tmp_path, probe("only", steps=10, step_s=0.1))
    assert watched.run() == 0
    run = watched.state()
    (found,) = [one for one in energy.read(watched.workspace, run.pipeline) if one.gpu_kwh is not None]
    assert run.finished_at is not None
    assert found.gpu_kwh * 3.6e6 == pytest.approx(100 * (run.finished_at - run.starts[0].at), rel=0.5)

"""What systemd is told: when the daemon is ready, what it does in one line, that it ticks, and that it leaves."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from daemon.effects import Heard
from daemon.notify import STATUS_COLUMNS, Notifier, Way, listen, sentence
from state.contract import Note, Outcome, Progress
from state.pipeline import Pipeline, StageConfig
from state.snapshot import Attempt, BackingOff, Running, RunState, StageState, Succeeded

NOW = 1000.0


def run_of(*statuses: object, **values: object) -> RunState:
    """A run with a stage for each status, a, b, c, ...; each has begun once."""
    names = "abcdefgh"[: len(statuses)]
    pipeline = Pipeline(name="p", stages=tuple(StageConfig(name=name, module="stages.x") for name in names))
    stages = tuple(
        StageState(name=name, status=status, attempts=(Attempt(number=1, started_at=0.0),))  # type: ignore[arg-type]
        for name, status in zip(names, statuses, strict=True)
    )
    return RunState(id="r", pipeline=pipeline, pipeline_path="p.toml", started_at=0.0, stages=stages, **values)  # type: ignore[arg-type]


def told(done: float, at: float, total: float = 100.0, unit: str = "steps") -> Progress:
    return Progress(at=at, done=done, total=total, unit=unit)


def heard(stage: str, *events: object, attempt: int = 1) -> list[Heard]:
    return [Heard(stage, attempt, number, event) for number, event in enumerate(events)]  # type: ignore[arg-type]


DONE = Succeeded(at=1.0)
AT_WORK = Running(since=0.0)
WAITS = BackingOff(since=0.0, delay_s=60.0, due_monotonic_s=60.0, boot="b", reason="the site is down", outcome=Outcome.TRANSIENT)


@pytest.mark.parametrize(
    ("run", "leaving", "said"),
    [
        (run_of(DONE, AT_WORK, DONE), False, "stage 2 of 3: b 45 %, 1 min 50 s left"),
        (run_of(AT_WORK, AT_WORK), False, "stage 1 of 2: a; 2 of 2: b 45 %, 1 min 50 s left"),
        (run_of(DONE, WAITS), False, "b waits: the site is down"),
        (run_of(DONE, WAITS, paused=True), False, "paused until `vigil resume`"),
        (run_of(DONE, WAITS, disk_hold="1 GB free"), False, "waits for disk space: 1 GB free"),
        (run_of(AT_WORK, AT_WORK), True, "saves a, b, then leaves"),
        (run_of(DONE, WAITS), True, "leaves: all is saved"),
        (run_of(DONE, DONE), True, "Finished: all 2 stages succeeded."),
    ],
)  # fmt: skip
def test_the_run_in_a_line(run: RunState, leaving: bool, said: str) -> None:
    """What is at work and how far, else why nothing is."""
    ways = {"b": Way(1, told(5, 900.0), told(45, 980.0))}
    assert sentence(run, ways, NOW - 20, leaving=leaving) == said


def test_the_line_fits() -> None:
    """However long the reason: `systemctl status` has 80 columns."""
    assert len(sentence(run_of(replace(WAITS, reason="x" * 300)), {}, NOW)) == STATUS_COLUMNS


def test_what_an_earlier_attempt_told_counts_no_more() -> None:
    """A new attempt is shown without a share until it tells its own."""
    ways = listen({}, heard("a", told(90, 10.0)))
    run = run_of(AT_WORK)
    again = replace(run, stages=(replace(run.stages[0], attempts=(*run.stages[0].attempts, Attempt(number=2, started_at=20.0))),))
    assert sentence(run, ways, NOW) == "stage 1 of 1: a 90 %"
    assert sentence(again, ways, NOW) == "stage 1 of 1: a"
    assert sentence(again, listen(ways, heard("a", told(10, 21.0), attempt=2)), NOW) == "stage 1 of 1: a 10 %"


def test_each_phase_has_its_own_pace() -> None:
    """Another unit, another total or a step back begin a new one; what is no progress changes nothing."""
    ways = listen({}, heard("a", told(1, 1.0), Note(at=1.5, text="x"), told(11, 2.0)))
    assert ways["a"].rate == 10
    for other in (told(12, 3.0, unit="files"), told(12, 3.0, total=50), told(3, 3.0)):
        assert listen(ways, heard("a", other))["a"] == Way(1, other, other)
    assert listen(ways, heard("a", told(12, 2.0)))["a"].rate == 11


class Ear:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.line.bind(address.replace("@", "\0", 1))
        self.line.setblocking(False)

    def heard(self) -> list[str]:
        """The lines of the next datagram; none when nothing was said."""
        try:
            return self.line.recv(4096).decode().split("\n")
        except BlockingIOError:
            return []


@pytest.fixture(params=["file", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """NOTIFY_SOCKET, in both its forms."""
    return f"@vigil-test-{uuid.uuid4().hex}" if request.param == "abstract" else str(tmp_path / "s")


@pytest.fixture
def ear(address: str) -> Iterator[Ear]:
    made = Ear(address)
    yield made
    made.line.close()


def test_it_is_ready_once_and_tells_only_what_changed(address: str, ear: Ear) -> None:
    """READY and STATUS with the first tick; each feeds the watchdog; the status only when it is another."""
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    assert ear.heard() == ["READY=1", "STATUS=stage 1 of 1: a", "WATCHDOG=1"]
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    assert ear.heard() == ["WATCHDOG=1"]
    notifier.hear(heard("a", told(50, NOW)))
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    assert ear.heard() == ["STATUS=stage 1 of 1: a 50 %", "WATCHDOG=1"]


def test_leaving_it_asks_for_time_with_each_tick(address: str, ear: Ear) -> None:
    """And once more for what follows the last."""
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(2):
        notifier.ticked(run_of(AT_WORK), NOW, leaving=True)
        assert ear.heard()[-2:] == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=15000000"]
    notifier.ends()
    assert ear.heard() == ["STOPPING=1", "EXTEND_TIMEOUT_USEC=400000000"]


def test_a_word_that_was_not_taken_is_said_again(tmp_path: Path) -> None:
    """Nobody listens, or systemd is busy and its queue is full: the tick neither fails nor waits, and READY is not lost."""
    address = str(tmp_path / "s")
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    ear = Ear(address)
    other = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(2000):  # more than a queue takes
        other.ticked(run_of(AT_WORK), NOW, leaving=False)
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    while ear.heard():
        pass
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    assert ear.heard() == ["READY=1", "STATUS=stage 1 of 1: a", "WATCHDOG=1"]
    ear.line.close()


def test_no_stage_inherits_the_line(address: str, ear: Ear) -> None:
    """What is meant for the daemon is taken out of the environment; the rest stays."""
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3", "WATCHDOG_PID": "4", "PATH": "/bin"}
    Notifier(environ).ends()
    assert environ == {"PATH": "/bin"}
    assert ear.heard()


def test_without_systemd_nothing_is_said() -> None:
    """In a terminal there is nobody to tell."""
    notifier = Notifier({})
    notifier.hear(heard("a", told(1, NOW)))
    notifier.ticked(run_of(AT_WORK), NOW, leaving=False)
    notifier.ends()

"""The service in a real systemd: it outlives power cuts, its own death, frost and want of memory, and knows when to stay down."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from daemon import locks
from daemon.launcher import environment
from state.checkpoints import Checkpoints
from state.contract import Outcome, Spec
from state.durable import tree_digest
from state.machine import Status
from state.snapshot import RunState
from state.store import Store
from state.workspace import Workspace
from tests.service.machine import CHECKOUT, Machine, skip_without, wait_until

skip_without()
pytestmark = pytest.mark.root

UNIT = "vigil.service"
QUICK = "RestartSec=500ms\nBindReadOnlyPaths=/proc/sys/kernel/random/boot_id"
"""Drop-in: as the unit has it, and sooner. Its own /proc would show the boot_id of the machine beneath, which never boots."""
DAEMON_LIMIT_BYTES = 60_000_000
SLOW_PROBE = {"steps": 1000, "step_s": 0.1, "at_step": 9999}


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One machine for all: each test has a workspace of its own."""
    made = Machine(tmp_path_factory.mktemp("service") / "machine", wsl=True)
    made.create()
    try:
        made.boot()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def service(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service, not started, with an empty workspace named after the test."""
    name = re.sub(r"\W+", "_", request.node.name)
    made = Service(machine, f"/srv/{name}")
    try:
        yield made
    finally:
        machine.run("systemctl", "disable", UNIT, check=False)
        machine.run("systemctl", "stop", "--no-block", UNIT, check=False)
        machine.run("systemctl", "kill", "--signal=KILL", UNIT, check=False)
        machine.run("systemctl", "stop", UNIT, check=False)


def stage(name: str, module: str = "tests.process.probe", lines: str = "", **settings: object) -> str:
    """A `[[stage]]` of a pipeline file."""
    values = "\n".join(f"{key} = {toml(value)}" for key, value in settings.items())
    return f'[[stage]]\nname = "{name}"\nmodule = "{module}"\n{lines}\n[stage.settings]\n{values}\n'


def toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"')


class Service:
    """vigil.service on one workspace of a machine."""

    def __init__(self, machine: Machine, workspace: str) -> None:
        self.machine = machine
        self.inside = workspace
        self.workspace = Workspace.at(machine.make_folder(workspace))
        self.pipeline = f"{workspace}.toml"

    def write(self, *stages: str, name: str = "away") -> None:
        """Write the pipeline file."""
        self.machine.path(self.pipeline).write_text(f'name = "{name}"\nkeep_free_gb = 0\n' + "\n".join(stages))

    def install(self, *, drop_in: str = QUICK, memory_max: str = "4G", credential: str = "", environment: str = "") -> None:
        """Fill in the template as install_wsl_service.sh does."""
        values = {
            "USER": "owner",
            "GROUP": "owner",
            "HOME": "/home/owner",
            "VIGIL": str(CHECKOUT),
            "PYTHON": f'"{sys.prefix}/bin/python"',
            "PIPELINE": f'"{self.pipeline}"',
            "WORKSPACE": f'"{self.inside}"',
            "ARGUMENTS": "",
            "CREDENTIAL": credential,
            "EXTRA_ENVIRONMENT": f"Environment=PYTHONPATH={CHECKOUT} {environment}",
            "MEMORY_MAX": memory_max,
            "READ_WRITE": f'"{self.inside}" "-/home/owner/.cache"',
        }
        text = (CHECKOUT / "systemd" / UNIT).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        folder = self.machine.path("/etc/systemd/system")
        (folder / UNIT).write_text(text)
        (folder / f"{UNIT}.d").mkdir(exist_ok=True)
        (folder / f"{UNIT}.d" / "test.conf").write_text(f"[Service]\n{drop_in}\n")
        self.machine.run("systemctl", "daemon-reload")
        self.machine.run("systemctl", "reset-failed", UNIT, check=False)

    def start(self, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Enable and start; returns when it is ready."""
        self.machine.run("systemctl", "enable", UNIT)
        done = self.machine.run("systemctl", "start", UNIT, check=False)  # `enable --now` of systemd 255 hides that it failed
        assert not check or done.returncode == 0, done.stderr + self.machine.journal(UNIT)
        return done

    def signal(self, name: str) -> None:
        """Signal the daemon alone."""
        self.machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={name}", UNIT)

    def show(self, name: str) -> str:
        return self.machine.show(UNIT, name)

    def state(self) -> RunState:
        return Store(self.workspace.state).peek()

    def status(self, name: str) -> Status | None:
        """Of a stage, as saved; None before the first save."""
        return self.state().stage(name).state if self.workspace.state.exists() else None

    def outcomes(self, name: str) -> list[Outcome | None]:
        return [attempt.outcome for attempt in self.state().stage(name).attempts]

    def processes(self, name: str, attempt: int = 1) -> set[int]:
        """Of an attempt, as this machine numbers them."""
        return set(locks.holders(self.workspace.attempt(name, attempt).lock))

    def trail(self, name: str) -> list[int]:
        """The steps that a probe has made."""
        path = self.workspace.scratch(name) / "trail.txt"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def wait_for_step(self, name: str, step: int) -> None:
        wait_until(lambda: len(self.trail(name)) >= step, f"step {step} of {name}")

    def wait_for(self, wanted: str, limit_s: float = 60.0) -> None:
        """Until systemd calls the service `active`, `inactive` or `failed`."""
        wait_until(lambda: self.show("ActiveState") == wanted, f"{wanted} ({self.show('ActiveState')})", limit_s)

    def wait_for_restart(self, count: int = 1) -> None:
        """Until systemd has started the service again, and it is up."""
        wait_until(lambda: int(self.show("NRestarts")) >= count and self.show("ActiveState") == "active", f"restart {count}")


def test_the_unit_is_sound(machine: Machine, service: Service) -> None:
    """systemd finds no fault with it, and as much is closed as CUDA allows."""
    service.install()
    verified = machine.run("systemd-analyze", "verify", f"/etc/systemd/system/{UNIT}")
    assert not verified.stdout + verified.stderr
    shown = machine.run("systemd-analyze", "security", "--offline=yes", "--threshold=40", f"/etc/systemd/system/{UNIT}").stdout
    assert float(re.findall(r"Overall exposure level .*: ([0-9.]+)", shown)[0]) <= 4.0


def test_it_is_ready_says_what_it_does_and_is_light(machine: Machine, service: Service) -> None:
    """Enabled and active with the first saved tick; `systemctl status` shows the stage; the daemon takes less than 60 MB and is the
    last to go when memory runs out; a stage has no line to systemd; /tmp is the machine's."""
    service.write(stage("slow", **SLOW_PROBE), stage("later", lines='needs = ["slow"]'))
    service.install()
    service.start()
    assert service.status("slow") is Status.RUNNING  # saved before READY
    assert machine.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    service.wait_for_step("slow", 12)
    said = wait_until(
        lambda: re.search(r"Status: \"(stage 1 of 2: slow \d+ %, .* left)\"", machine.run("systemctl", "status", UNIT).stdout),
        "a status",
    )
    assert len(said[0]) <= 80
    daemon = Path(f"/proc/{next(iter(set(locks.holders(service.workspace.lock))))}")
    peak_kib = int(re.findall(r"VmHWM:\s+(\d+) kB", (daemon / "status").read_text())[0])
    assert peak_kib * 1024 < DAEMON_LIMIT_BYTES
    (pid,) = service.processes("slow")
    scores = [int(Path(f"/proc/{p}/oom_score_adj").read_text()) for p in (pid, int(daemon.name))]
    assert scores[0] == 500 > scores[1]
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"NOTIFY_SOCKET" not in environ
    assert b"/usr/lib/wsl/lib" in environ


def test_its_death_costs_the_stage_nothing(service: Service) -> None:
    """SIGKILL of the daemon, then frost (SIGSTOP) until the watchdog ends it: each time systemd starts it again and it adopts
    the stage, whose process goes on and makes each step once. At the end the service is down and stays down."""
    service.write(stage("slow", steps=110, step_s=0.1, at_step=9999))
    service.install(drop_in=f"{QUICK}\nWatchdogSec=2s")
    service.start()
    service.wait_for_step("slow", 3)
    processes = service.processes("slow")
    service.signal("KILL")
    service.wait_for_restart(1)
    assert service.processes("slow") == processes
    service.signal("STOP")
    service.wait_for_restart(2)
    assert service.processes("slow") == processes
    assert "Watchdog timeout" in service.machine.journal(UNIT)
    assert "Fatal Python error: Aborted" in service.machine.journal(UNIT)  # and where it stood
    service.wait_for("inactive")
    assert service.show("Result") == "success"
    assert service.show("NRestarts") == "2"
    assert service.trail("slow") == list(range(1, 111))
    assert service.outcomes("slow") == [Outcome.SUCCEEDED]


def by_hand(spec_file: Path, workspace: Workspace) -> subprocess.Popen[bytes]:
    """The attempt of a spec in another workspace, with no daemon."""
    spec = replace(msgspec.json.decode(spec_file.read_bytes(), type=Spec), workspace=str(workspace.root))
    attempt = workspace.attempt(spec.stage, spec.attempt)
    attempt.root.mkdir(parents=True)
    attempt.spec.write_bytes(msgspec.json.encode(spec))
    environ = {**environment(), "PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-P", "-m", spec.module, str(attempt.root)], cwd=workspace.root, env=environ)


TINY_TRAINING = {
    "model": "tiny", "examples": 120, "epochs": 10, "effective_batch": 8, "learning_rate": 0.01, "bf16": False,
    "checkpoint_every_steps": 10, "evaluations": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "settings", "delivered"),
    [
        ("tests.service.chain", {"steps": 80, "step_s": 0.05}, "delivered"),
        pytest.param("tests.process.tiny_training", TINY_TRAINING, "fine_tuned_tiny", marks=pytest.mark.slow),
    ],
)
def test_a_power_cut_changes_no_bit(
    machine: Machine, service: Service, tmp_path: Path, module: str, settings: dict[str, object], delivered: str
) -> None:
    """Everything dies in mid-stage. At the next boot the service comes up by itself, resumes, and delivers what an undisturbed
    attempt delivers. Started once more it sees the finished run and ends at once, well."""
    service.write(stage("long", module, **settings))
    service.install(environment="OMP_NUM_THREADS=1")
    service.start()
    undisturbed = Workspace.at(tmp_path / "w")
    reference = by_hand(service.workspace.attempt("long", 1).spec, undisturbed)
    try:
        checkpoints = Checkpoints(service.workspace.checkpoints("long"))
        wait_until(lambda: (checkpoints.newest_step() or 0) >= 20, "a checkpoint")
        machine.powercut()
        assert service.status("long") is Status.RUNNING
        machine.boot()
        assert service.show("ActiveState") in ("active", "activating")
        service.wait_for("inactive")
        assert reference.wait(120) == 0
    finally:
        reference.kill()
        reference.wait()
    assert service.outcomes("long") == [Outcome.INTERRUPTED, Outcome.SUCCEEDED]
    assert tree_digest(service.workspace.root / delivered) == tree_digest(undisturbed.root / delivered)
    assert service.state().starts[-1].boot != service.state().starts[0].boot
    service.start()
    service.wait_for("inactive")
    assert service.show("Result") == "success"
    assert len(service.outcomes("long")) == 2


def test_a_stage_that_takes_too_much_is_killed_alone(service: Service) -> None:
    """Over MemoryMax the kernel ends the stage, not the daemon, and the service goes on; the memory ladder finds what fits."""
    hungry = {"effective_batch": 8, "mib_each": 40, "cgroup": service.inside}  # the folder: the service's cgroup is limit enough
    service.write(stage("hungry", "tests.process.hungry", **hungry))
    service.install(memory_max="256M")
    service.start()
    daemon = service.show("MainPID")
    wait_until(lambda: service.status("hungry") is Status.BACKING_OFF, "the stage's death")
    assert (service.show("MainPID"), service.show("ActiveState")) == (daemon, "active")
    service.wait_for("inactive")
    assert service.outcomes("hungry") == [Outcome.OUT_OF_MEMORY, Outcome.SUCCEEDED]
    assert service.state().stage("hungry").batch.micro_batch == 4
    assert service.show("NRestarts") == "0"


def test_a_clean_reboot_saves_first(machine: Machine, service: Service) -> None:
    """Shut down in order, the daemon has the stage save and gets the time for it, though a step takes longer than TimeoutStopSec;
    after the boot it goes on from there."""
    service.write(stage("slow", steps=4, step_s=2.0, at_step=9999))
    service.install(drop_in=f"{QUICK}\nTimeoutStopSec=1s")
    service.start()
    wait_until(lambda: service.processes("slow"), "the stage")
    service.wait_for_step("slow", 1)
    began = time.monotonic()
    machine.halt()
    assert time.monotonic() - began < 50.0
    assert service.status("slow") is Status.BACKING_OFF
    assert service.outcomes("slow") == [Outcome.STOPPED]
    assert service.state().stage("slow").attempts[0].checkpoint_step == len(service.trail("slow"))
    machine.boot()
    service.wait_for("inactive")
    assert service.trail("slow") == [1, 2, 3, 4]
    assert service.outcomes("slow") == [Outcome.STOPPED, Outcome.SUCCEEDED]


def test_stopped_by_the_owner_it_stays_down(machine: Machine, service: Service) -> None:
    """`vigil stop` and `systemctl stop` let the stage save and are no failure; only a start starts it again, and it goes on."""
    service.write(stage("slow", **SLOW_PROBE))
    service.install()
    service.start()
    service.wait_for_step("slow", 2)
    vigil = ["env", f"PYTHONPATH={CHECKOUT}", f"{sys.prefix}/bin/python", "-P", "-m", "daemon.cli"]
    machine.run(*vigil, "stop", "--workspace", service.inside)
    service.wait_for("inactive")
    assert (service.show("Result"), service.show("ExecMainStatus"), service.show("NRestarts")) == ("success", "83", "0")
    service.start()
    service.wait_for_step("slow", len(service.trail("slow")) + 2)
    machine.run("systemctl", "stop", UNIT)
    assert (service.show("ActiveState"), service.show("Result")) == ("inactive", "success")
    assert not service.processes("slow", 2)
    assert service.trail("slow") == list(range(1, len(service.trail("slow")) + 1))
    assert service.outcomes("slow") == [Outcome.STOPPED, Outcome.STOPPED]


@pytest.mark.slow
def test_a_stuck_daemon_leaves_nothing_behind(machine: Machine, service: Service) -> None:
    """One that freezes while it is told to stop is ended in time, and with it what it left at work."""
    service.write(stage("slow", fault="deaf", **{**SLOW_PROBE, "at_step": 1}))
    service.install(drop_in=f"{QUICK}\nTimeoutStopSec=2s")
    service.start()
    service.wait_for_step("slow", 1)
    assert service.processes("slow")
    machine.run("systemctl", "stop", "--no-block", UNIT)
    wait_until(lambda: service.show("SubState") == "stop-sigterm", "the stop")
    for pid in locks.holders(service.workspace.lock):
        os.kill(pid, signal.SIGSTOP)
    service.wait_for("failed")
    assert service.show("Result") == "timeout"
    wait_until(lambda: not service.processes("slow"), "the end of the stage")


def test_a_wrong_pipeline_fails_at_once(service: Service) -> None:
    """Not in a loop, and the journal says what is wrong, where."""
    service.write(stage("slow", lines='resorce = "gpu"'))
    service.install()
    assert service.start(check=False).returncode != 0
    assert (service.show("ActiveState"), service.show("ExecMainStatus"), service.show("NRestarts")) == ("failed", "78", "0")
    assert "resorce" in service.machine.journal(UNIT)


def test_a_failed_run_is_not_repeated(service: Service) -> None:
    """A required stage failed for good: the service failed, visibly, and does not start the run again and again."""
    service.write(stage("bad", steps=2, at_step=1, fault="MisconfiguredError"))
    service.install()
    service.start(check=False)
    service.wait_for("failed")
    assert (service.show("ExecMainStatus"), service.show("NRestarts")) == ("1", "0")


def test_what_may_pass_is_tried_again(service: Service) -> None:
    """A workspace that another daemon holds: tried again until it is free."""
    service.write(stage("quick", steps=1))
    service.install()
    held = locks.take(service.workspace.lock)
    os.chown(service.workspace.lock, 1234, 1234)
    try:
        service.start(check=False)
        wait_until(lambda: int(service.show("NRestarts")) >= 2, "two restarts")
        assert "status=75" in service.machine.journal(UNIT)
    finally:
        os.close(held)
    wait_until(lambda: service.status("quick") is Status.SUCCEEDED, "the run")
    service.wait_for("inactive")


def test_the_credential_arrives(machine: Machine, service: Service) -> None:
    """The bot has its token from systemd, from a file that only root can read."""
    secret = machine.path("/etc/vigil")
    secret.mkdir(mode=0o700, exist_ok=True)
    (secret / "telegram-token").write_text("123456:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghi\n")
    (secret / "telegram-token").chmod(0o600)
    (service.workspace.root / "telegram.toml").write_text('owner_id = 1\nbase_url = "http://127.0.0.1:9"\n')
    service.write(stage("slow", **SLOW_PROBE))
    service.install(credential="LoadCredential=telegram_token:/etc/vigil/telegram-token")
    service.start()
    wait_until(lambda: "telegram.offline" in service.workspace.daemon_log.read_text(), "a bot that tries to speak")


def test_a_fault_of_vigils_own_is_no_ended_run() -> None:
    """An exception that nobody expected leaves with 70, which is tried again; 1 would look like a run that failed."""
    broken = "import daemon.cli as cli; cli.main = lambda: 1 / 0; cli.entry()"
    done = subprocess.run([sys.executable, "-c", broken], cwd=CHECKOUT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 70
    assert "ZeroDivisionError" in done.stderr

"""install_wsl_service.sh in a real systemd that looks like WSL2: there, in use, and back again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.machine import CHECKOUT, Machine, skip_without, wait_until
from tests.service.scene import TOKEN, make_windows, snapshot

skip_without()
pytestmark = pytest.mark.root

UNIT = "vigil.service"
SCRIPT = str(CHECKOUT / "install_wsl_service.sh")
NASTY = 'a "b" $HOME ${X} %h \\ ; é'
PIPELINE = """\
name = "away"
keep_free_gb = 0
keep_free_windows_gb = 0
[[stage]]
name = "probe"
module = "tests.process.probe"
[stage.settings]
steps = 3000
step_s = 0.1
at_step = 9999
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine with a Windows at /opt/windows, whose owner is `owner`."""
    subprocess.run([CHECKOUT / "vigil", "setup"], check=True, stderr=subprocess.DEVNULL)  # inside, the checkout cannot be written
    made = Machine(tmp_path_factory.mktemp("install") / "machine", wsl=True)
    made.create()
    try:
        make_windows(made.path("/opt/windows"))
        made.path("/mnt/c/Users/Jörg Müller").mkdir(parents=True)
        made.path("/etc/wsl.conf").write_text("[user]\ndefault=owner\n")
        made.path("/srv/away.toml").write_text(PIPELINE)
        token = made.path("/root/token")
        token.write_text(TOKEN)
        made.boot()
        yield made
    finally:
        made.destroy()


def call(machine: Machine, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The script, inside, as root."""
    path = f"PATH=/opt/windows:{os.environ['PATH']}"
    return machine.run("env", path, "WINDOWS=/opt/windows", f"VIGIL_VENV={sys.prefix}", SCRIPT, *arguments, check=check)


def test_there_and_back_in_a_real_systemd(machine: Machine) -> None:
    """Installed means enabled, active, verified and the token arrived; again is no change; after a power cut it is up by itself;
    uninstalled means that /etc is what it was, byte for byte."""
    etc = machine.path("/etc")
    before = snapshot(etc)
    told = ("--pipeline", "/srv/away.toml", "--workspace", "/srv/the run", "--user", "owner", "--token-file", "/root/token")
    first = call(machine, "install", "--yes", *told, "--set", f"probe.fault={NASTY}")
    assert first.stdout.startswith("* The environment"), first.stdout

    assert machine.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    assert machine.show(UNIT, "ActiveState") == "active"
    pid = machine.show(UNIT, "MainPID")
    assert f"probe.fault={NASTY}" in machine.run("cat", f"/proc/{pid}/cmdline").stdout.split("\0")
    assert machine.path("/srv/the run").stat().st_uid == 1234
    wait_until(lambda: machine.path("/srv/the run/stages/probe/attempts/001/events.jsonl").exists(), "the stage's start")
    verified = call(machine, "verify")
    for line in ("ok  systemd reads the unit", "ok  the bot's token reaches the service", "ok  Windows: power", "All is in order."):
        assert f"\n{line}\n" in verified.stdout, verified.stdout

    after = snapshot(etc)
    second = call(machine, "install", "--yes")
    assert second.stdout.splitlines()[-1] == "Nothing to change: all is as it should be."
    assert (snapshot(etc), machine.show(UNIT, "MainPID")) == (after, pid)

    machine.powercut()
    machine.boot()
    wait_until(lambda: machine.show(UNIT, "ActiveState") == "active", "the service after a power cut")

    call(machine, "uninstall", "--yes")
    assert machine.show(UNIT, "LoadState") == "not-found"
    assert snapshot(etc) == before
    assert not machine.path("/mnt/c/Users/Jörg Müller/.wslconfig").exists()
    assert machine.path("/srv/the run/state.json").exists()


def test_a_credential_that_would_come_empty_takes_the_other_way(machine: Machine) -> None:
    """Where LoadCredential= leaves an empty folder (systemd #38103) the service reads /etc/vigil itself, and the token arrives."""
    machine.run("mount", "--make-private", "/run")  # as a distribution has it whose /run is not shared
    etc = machine.path("/etc")
    before = snapshot(etc)
    told = ("--pipeline", "/srv/away.toml", "--workspace", "/srv/other", "--user", "owner", "--token-file", "/root/token")
    call(machine, "install", "--yes", "--without-windows", *told)
    unit = machine.path(f"/etc/systemd/system/{UNIT}").read_text()
    assert ("LoadCredential" in unit, "Environment=CREDENTIALS_DIRECTORY=/etc/vigil" in unit) == (False, True)
    token = machine.path("/etc/vigil/telegram_token").stat()
    assert (token.st_uid, token.st_mode & 0o777) == (1234, 0o600)
    assert "ok  the bot's token reaches the service" in call(machine, "verify").stdout
    call(machine, "uninstall", "--yes")
    assert snapshot(etc) == before
    machine.run("mount", "--make-shared", "/run")


def test_a_service_that_cannot_start_is_told(machine: Machine) -> None:
    """A workspace of another pipeline is refused by the daemon: install says that the start failed, and verify says how to look."""
    Path(machine.make_folder("/srv/busy")).joinpath("state.json").write_text("torn")
    etc = snapshot(machine.path("/etc"))
    told = ("--pipeline", "/srv/away.toml", "--workspace", "/srv/busy", "--user", "owner", "--without-windows")
    done = call(machine, "install", "--yes", *told, check=False)
    assert done.returncode != 0
    assert "systemctl start vigil.service" in done.stderr
    verified = call(machine, "verify", check=False)
    assert (verified.returncode, "journalctl -u vigil.service" in verified.stdout) == (1, True), verified.stdout
    call(machine, "uninstall", "--yes")
    assert snapshot(machine.path("/etc")) == etc

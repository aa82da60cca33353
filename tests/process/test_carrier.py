"""A bundle on its way: real ssh to a real sshd, real rsync, real cuts."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from daemon import view
from daemon.results import bundle
from daemon.results.bundle import BundleError, Manifest
from daemon.results.carrier import Carrier
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
LARGE = "fine_tuned_marian_mi/model.safetensors"
LARGE_BYTES = 12 << 20
CUT_BYTES = 4 << 20
PRIVILEGE_SEPARATION = Path("/run/sshd")

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs ssh and sshd: openssh-server")
needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")


def quiet(_done_bytes: int, _total_bytes: int, _what: str) -> None:
    pass


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The ssh command that reaches an sshd of our own on this machine, with keys made on the spot."""
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "own"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/own.pub\nPidFile none\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    ours = os.geteuid() == 0 and not PRIVILEGE_SEPARATION.exists()
    if ours:
        PRIVILEGE_SEPARATION.mkdir(mode=0o755)
    assert SSHD is not None
    with open(folder / "log", "wb") as log:
        daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "config"], stdout=log, stderr=log)
    try:
        command = (
            f"ssh -F none -p {port} -i {folder}/own -o IdentitiesOnly=yes -o BatchMode=yes -o LogLevel=ERROR "
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        )
        answers = [*command.split(), host(), "true"]
        until(lambda: subprocess.run(answers, capture_output=True, check=False).returncode == 0, (folder / "log").read_text())
        yield command
    finally:
        daemon.terminate()
        daemon.wait()
        if ours:
            PRIVILEGE_SEPARATION.rmdir()


def host() -> str:
    return f"{getpass.getuser()}@127.0.0.1"


@pytest.fixture
def made(finished_workspace: Workspace) -> tuple[Path, Manifest]:
    """A bundle with one large file, and a smaller one after it."""
    large = finished_workspace.root / LARGE
    large.parent.mkdir(parents=True)
    large.write_bytes(os.urandom(LARGE_BYTES))
    (finished_workspace.metrics / "more.bin").write_bytes(os.urandom(1 << 20))
    folder = finished_workspace.inside(bundle.FOLDER)
    seen = view.read(finished_workspace)
    return folder, bundle.assemble(finished_workspace, seen, folder, 1.8e9, with_audio=False, say=quiet)


def verified(folder: Path) -> bool:
    """By the tool of every machine, without Vigil."""
    done = subprocess.run(["sha256sum", "-c", "--quiet", bundle.SUMS], cwd=folder, check=False, capture_output=True)
    return done.returncode == 0 and (folder / bundle.MANIFEST).exists()


def flip(path: Path) -> None:
    """One byte, and the dates of before."""
    dates = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(dates.st_atime_ns, dates.st_mtime_ns))


def cutting(folder: Path, ssh: str, doing: str, cut_bytes: int) -> str:
    """An ssh that lets `cut_bytes` of the first `doing` through and then stands still until the file `reached` is removed; later it
    counts what goes over the wire."""
    script = folder / "cutting-ssh"
    script.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *{shlex.quote(doing)}*) ;; *) exec {ssh} "$@" ;; esac\n'
        f"if [ -e {folder}/wire ]; then mkfifo {folder}/pipe$$; exec 3<&0; tee -a {folder}/wire <&3 >{folder}/pipe$$ &\n"
        f'exec {ssh} "$@" <{folder}/pipe$$; fi\n'
        f": > {folder}/wire\n"
        f"(dd bs=65536 count={cut_bytes} iflag=count_bytes status=none; : > {folder}/reached\n"
        f'while [ -e {folder}/reached ]; do sleep 0.05; done) | {ssh} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def broken_off(carrier: Carrier, folder: Path, manifest: Manifest, reached: Path, victim: str) -> str:
    """Kill the program `victim` by its pid once so much is through; what the owner reads then."""

    def kill() -> None:
        until(reached.exists, "the middle of the transfer")
        ours = [p for p in psutil.Process().children() if p.name() == victim]
        for process in ours:
            os.kill(process.pid, signal.SIGKILL)
        reached.unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(BundleError) as caught:
        carrier.ship(folder, manifest, quiet)
    killer.join()
    return str(caught.value)


@needs_rsync
def test_a_transfer_that_was_cut_goes_on_in_the_middle_of_a_file(ssh: str, made: tuple[Path, Manifest], tmp_path: Path) -> None:
    """rsync killed after 4 of 12 MB: the error says what to do, the next call sends only the rest, and all verifies there.

    A byte that flips over there afterwards, size and date as before, is invisible to rsync: the far side's own sha256 finds it.
    """
    folder, manifest = made
    there = tmp_path / "over there" / "it's"
    carrier = Carrier.to(f"{host()}:{there}", cutting(tmp_path, ssh, "rsync --server", CUT_BYTES))
    said = broken_off(carrier, folder, manifest, tmp_path / "reached", "rsync")
    assert "give the same command again: it goes on where this one stopped" in said
    until(lambda: (there / LARGE).exists() and (there / LARGE).stat().st_size > CUT_BYTES // 2, "what came through is kept")
    assert (there / LARGE).stat().st_size < LARGE_BYTES
    told: list[tuple[int, int, str]] = []
    assert carrier.ship(folder, manifest, lambda *said: told.append(said)) == []
    assert verified(there)
    assert LARGE_BYTES - CUT_BYTES <= (tmp_path / "wire").stat().st_size < manifest.total_bytes - CUT_BYTES // 2
    assert {what.split()[0] for _done, _total, what in told} == {"sending", "verifying"}
    assert told[-1][0] == told[-1][1] == manifest.total_bytes
    flip(there / LARGE)
    (there / "journal.jsonl").unlink()
    assert not verified(there)
    assert carrier.ship(folder, manifest, quiet) == [LARGE]
    assert verified(there)


@pytest.mark.slow
def test_without_rsync_what_verifies_is_not_sent_again(
    ssh: str, made: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No rsync here: a stream, cut by killing ssh when the large file is over there; then only the files that do not verify."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("ssh", "sh", "dd", "tee", "sleep", "mkfifo"):
        (tools / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(tools))
    folder, manifest = made
    there = tmp_path / "there"
    carrier = Carrier.to(f"{host()}:{there}", cutting(tmp_path, ssh, "tar -xf", LARGE_BYTES + (512 << 10)))
    said = broken_off(carrier, folder, manifest, tmp_path / "reached", "cutting-ssh")
    assert "broke off" in said
    sent = (folder / LARGE).read_bytes()
    until(lambda: (there / LARGE).exists() and (there / LARGE).read_bytes() == sent, "what came through is kept")
    assert carrier.ship(folder, manifest, quiet) == []
    monkeypatch.undo()
    assert verified(there)
    assert 0 < (tmp_path / "wire").stat().st_size < LARGE_BYTES // 2


@pytest.mark.parametrize(
    ("path", "port", "words"),
    [("/dev/null/x", None, "cannot be reached or written: "), ("x", 1, "Connection refused"), ("x", 0, "not installed here")],
)
def test_a_far_side_that_will_not_is_named(ssh: str, made: tuple[Path, Manifest], path: str, port: int | None, words: str) -> None:
    """A folder that cannot be made, a port where nobody listens, no ssh: one sentence with the place and the cause."""
    other = ssh if port is None else ssh.replace(" -p ", " -p 1 -o Port=") if port else "ssh-that-is-not-there"
    with pytest.raises(BundleError, match=words):
        Carrier.to(f"{host()}:{path}", other).ship(*made, quiet)


@pytest.mark.parametrize("target", ["laptop", "me@laptop:", ":path", "-oProxyCommand=x:path", "/a:b", "me@ laptop:x"])
def test_a_target_of_another_form_is_refused(target: str) -> None:
    """Nothing that ssh would take for an option; a folder of this machine is told of --out."""
    with pytest.raises(BundleError, match=r"is not user@host:path.*--out"):
        Carrier.to(target)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root, to mount a small disk")
def test_a_far_disk_without_room_is_told_before_anything_is_sent(ssh: str, made: tuple[Path, Manifest], tmp_path: Path) -> None:
    """How much is to be sent, how much is free there."""
    there = tmp_path / "small"
    there.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", there], check=True)
    try:
        with pytest.raises(BundleError, match=r"14 MB are to be sent and .*small has 4.2 MB free"):
            Carrier.to(f"{host()}:{there}", ssh).ship(*made, quiet)
        assert not any(there.iterdir())
    finally:
        subprocess.run(["umount", there], check=True)


def test_the_command_says_what_it_took_and_that_it_verifies(ssh: str, finished_workspace: Workspace, tmp_path: Path) -> None:
    """`vigil bundle --to` by the real command: eighty columns, exit 0, and the far side verifies without Vigil."""
    there = tmp_path / "there"
    command = [sys.executable, "-P", "-m", "daemon.cli", "bundle", "--workspace", str(finished_workspace.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--ssh", ssh, "--to", f"{host()}:{there}"], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert verified(there)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Run 20260212-180000 (Vigil demo): ")
    assert lines[-1] == f"Every file is verified at {host()}:{there}"
    assert max(len(line) for line in lines if "/" not in line) <= 80
    refused = subprocess.run([*command, "--to", "laptop"], env=environment, capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)

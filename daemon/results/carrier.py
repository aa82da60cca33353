"""Takes a bundle to another machine by ssh and has every file's sha256 checked there; what differs is sent again.

With rsync at both ends a broken transfer goes on in the middle of a file; without it a tar stream carries what does not verify yet.
Nothing but ssh, sh and sha256sum (or shasum) is needed over there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from daemon import words
from daemon.results.bundle import MANIFEST, SUMS, BundleError, Entry, Manifest, Say, sum_line

ROUNDS = 3
CONNECT = ("-o", "ConnectTimeout=20", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
STALLED_S = 120
ASK_S = 300.0
_DONE = re.compile(r"([\d,.]+)\s+(\d+)%")


@dataclass(frozen=True)
class There:
    """The far side as it was found."""

    rsync: bool
    free_bytes: int
    used_bytes: int
    """By the folder."""


@dataclass(frozen=True)
class Carrier:
    """A way to `host` (as ssh takes it, perhaps with a user) and a folder there."""

    host: str
    path: str
    ssh: tuple[str, ...] = ("ssh",)

    @classmethod
    def to(cls, target: str, ssh: str = "ssh") -> Carrier:
        """The way to `user@host:path`.

        Raises:
            BundleError: it has another form.
        """
        host, colon, path = target.partition(":")
        if not (host and colon and path) or host.startswith("-") or "/" in host or any(map(str.isspace, host)):
            raise BundleError(
                f"{target!r} is not user@host:path, such as me@laptop:results; for a folder of this machine use --out"
            )
        return cls(host, path.removeprefix("~/"), tuple(shlex.split(ssh)))

    @property
    def shown(self) -> str:
        return f"{self.host}:{self.path}"

    def command(self, script: str) -> list[str]:
        """To run `script` in the folder over there, whatever shell the account has."""
        return [*self.ssh, *CONNECT, self.host, f"sh -c {shlex.quote(f'cd {shlex.quote(self.path)} || exit 9; {script}')}"]

    def look(self) -> There:
        """Make the folder and see what is there.

        Raises:
            BundleError: no way to it, or it cannot be written.
        """
        script = f"mkdir -p {shlex.quote(self.path)} && cd {shlex.quote(self.path)} && : > .vigil-write && rm .vigil-write"
        found = "echo VIGIL rsync `command -v rsync`; echo VIGIL sum `command -v sha256sum || command -v shasum`"
        sizes = "echo VIGIL free `df -Pk . | tail -n 1`; echo VIGIL used `du -sk .`"
        command = [*self.ssh, *CONNECT, self.host, f"sh -c {shlex.quote(f'{script} && ({found}; {sizes})')}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=False)
        except FileNotFoundError:
            raise BundleError(f"{self.ssh[0]} is not installed here: `sudo apt install openssh-client`") from None
        except subprocess.TimeoutExpired:
            raise BundleError(f"{self.host} did not answer within {ASK_S:.0f} s; try `ssh {self.host}` by hand") from None
        told = {line.split()[1]: line.split()[2:] for line in done.stdout.splitlines() if line.startswith("VIGIL ")}
        if done.returncode != 0 or "used" not in told:
            raise BundleError(
                f"{self.shown} cannot be reached or written: {_last(done.stderr) or 'ssh failed'}; try `ssh {self.host}`"
            )
        if not told["sum"]:
            raise BundleError(f"{self.host} has neither sha256sum nor shasum: nothing could be verified there; install coreutils")
        return There(bool(told["rsync"]), int(told["free"][3]) * 1024, int(told["used"][0]) * 1024)

    def ship(self, folder: Path, manifest: Manifest, say: Say) -> list[str]:
        """Bring the bundle in `folder` there; the paths that had to be mended on the way.

        Raises:
            BundleError: it broke off, or does not verify; the same call goes on.
        """
        there = self.look()
        _mind_the_space(manifest, there, self)
        by_rsync = there.rsync and shutil.which("rsync") is not None
        wrong = [entry.path for entry in manifest.files]
        mended: list[str] = []
        for number in range(ROUNDS):
            if by_rsync:
                self._rsync(folder, [*wrong, SUMS, MANIFEST], say, anew=number > 0)
            else:
                sent = set(wrong) if number else set(self.check(manifest.files, say, folder))
                self._tar(folder, [entry for entry in manifest.files if entry.path in sent], say)
            among = set(wrong)
            wrong = self.check([entry for entry in manifest.files if entry.path in among], say, folder)
            if not wrong:
                return mended
            mended = wrong
        raise BundleError(
            f"{words.plural(len(wrong), 'file')} at {self.shown} differ after {ROUNDS} tries, such as {wrong[0]}: look at its disk"
        )

    def check(self, entries: Sequence[Entry], say: Say, folder: Path) -> list[str]:
        """Have the far side read all of `entries`; the paths that are not as listed."""
        wanted = {sum_line(entry).partition("  ")[2].rstrip("\n"): entry for entry in entries}
        script = "export LC_ALL=C; if command -v sha256sum >/dev/null; then sha256sum -c -; else shasum -a 256 -c -; fi 2>/dev/null"
        good: set[str] = set()
        done_bytes, total_bytes = 0, sum(entry.size_bytes for entry in entries)
        with tempfile.TemporaryFile() as sums:
            sums.writelines(sum_line(entry).encode() for entry in entries)
            sums.seek(0)
            with _Program(self.command(script), stdin=sums) as program:
                for line in program.lines():
                    name, _colon, result = line.removeprefix("\\").rpartition(": ")
                    if (entry := wanted.get(name)) is not None:
                        done_bytes += entry.size_bytes
                        say(done_bytes, total_bytes, f"verifying {entry.path}")
                        good |= {entry.path} if result == "OK" else set()
                program.end(self.shown, fine=(0, 1))
        return [entry.path for entry in entries if entry.path not in good]

    def _rsync(self, folder: Path, paths: Sequence[str], say: Say, *, anew: bool) -> None:
        """Bring `paths` there; `anew`: whatever their size and date say."""
        with tempfile.NamedTemporaryFile() as names:
            names.write("".join(f"{path}\0" for path in paths).encode())
            names.flush()
            command = [
                *("rsync", "-rt", "-s", "--inplace", "--partial", f"--timeout={STALLED_S}", "--info=progress2", "--from0"),
                *(f"--files-from={names.name}", *(["--ignore-times"] if anew else [])),
                *("-e", shlex.join([*self.ssh, *CONNECT]), f"{folder}/", f"{self.host}:{self.path}/"),
            ]
            total_bytes = sum((folder / path).stat().st_size for path in paths)
            with _Program(command) as program:
                for line in program.lines():
                    if (found := _DONE.search(line)) is not None:
                        say(int(re.sub(r"\D", "", found[1])), total_bytes, "sending")
                program.end(self.shown)

    def _tar(self, folder: Path, entries: Sequence[Entry], say: Say) -> None:
        """Bring these there in one stream, with the list of all."""
        done_bytes, total_bytes = 0, sum(entry.size_bytes for entry in entries)
        with _Program(self.command("tar -xf -"), stdin=subprocess.PIPE) as program:
            with contextlib.suppress(BrokenPipeError), program.input() as pipe, _stream(pipe) as tar:
                for entry in entries:
                    say(done_bytes, total_bytes, f"sending {entry.path}")
                    tar.add(folder / entry.path, entry.path, recursive=False)
                    done_bytes += entry.size_bytes
                for name in (SUMS, MANIFEST):
                    tar.add(folder / name, name)
            program.end(self.shown)


def _stream(pipe: IO[bytes]) -> tarfile.TarFile:
    return tarfile.open(fileobj=pipe, mode="w|", format=tarfile.PAX_FORMAT)


class _Program:
    """A program at work on a transfer, its complaints kept; ended with the block, however that ends."""

    def __init__(self, command: list[str], stdin: IO[bytes] | int = subprocess.DEVNULL) -> None:
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115  closed with the block
        self._name = command[0]
        self._process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=self._complaints)

    def __enter__(self) -> _Program:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def lines(self) -> Iterator[str]:
        """What it prints, a line each time it goes to a new line or back to the beginning of one."""
        assert self._process.stdout is not None
        rest = b""
        while block := os.read(self._process.stdout.fileno(), 1 << 16):
            *whole, rest = re.split(rb"[\r\n]", rest + block)
            yield from (line.decode(errors="surrogateescape") for line in whole)

    def end(self, shown: str, fine: Sequence[int] = (0,)) -> None:
        """Wait for its end.

        Raises:
            BundleError: it ended otherwise than `fine`.
        """
        code = self._process.wait()
        if code in fine:
            return
        self._complaints.seek(0)
        said = _last(self._complaints.read().decode(errors="replace"))
        raise BundleError(
            f"the way to {shown} broke off ({self._name} ended with code {code}{f': {said}' if said else ''}); "
            "give the same command again: it goes on where this one stopped"
        )


def _mind_the_space(manifest: Manifest, there: There, carrier: Carrier) -> None:
    missing_bytes = max(0, manifest.total_bytes - there.used_bytes)
    if missing_bytes > there.free_bytes:
        raise BundleError(
            f"{words.size(missing_bytes)} are to be sent and {carrier.shown} has {words.size(there.free_bytes)} free; "
            "free some there, or name another folder"
        )


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return words.clip(lines[-1], 200) if lines else ""

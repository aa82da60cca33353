"""The Linux side: who the service runs as, what is checked before anything is written, which files it needs, and systemd."""

from __future__ import annotations

import grp
import os
import pwd
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from service import settings_file, unit
from service.changes import Wanted, content_of
from service.options import EX_MISCONFIGURED, EX_TRY_AGAIN, EX_USAGE, InstallError, Options
from service.settings_file import Setting, SettingsFileError

UNIT = "vigil.service"
MEMORY_MAX = "90%"
WSL_CONF = (Setting("boot", "systemd", "true"), Setting("boot", "initTimeout", "60000"))
TOKEN = re.compile(rb"\s*[0-9]{1,20}:[A-Za-z0-9_-]{30,80}\s*")

_READ_PIPELINE = """\
import sys
from pathlib import Path
from daemon.config import ConfigError, load
try: print(len(load(Path(sys.argv[1]), sys.argv[2:]).stages))
except ConfigError as error: sys.exit(str(error))
"""


@dataclass(frozen=True)
class Place:
    """Where everything lies. `root` is the clone; `destdir` stands before every path that is written."""

    root: Path
    venv: Path
    destdir: str

    def at(self, path: str) -> Path:
        """Where `path` is written."""
        return Path(self.destdir + path)

    @property
    def unit(self) -> Path:
        """The service."""
        return self.at(f"/etc/systemd/system/{UNIT}")

    @property
    def enabled(self) -> Path:
        """The link that starts it with the machine; `systemctl enable` would make the same."""
        return self.at(f"/etc/systemd/system/multi-user.target.wants/{UNIT}")

    @property
    def token(self) -> Path:
        """The bot's token, under the name that the daemon looks for."""
        return self.at("/etc/vigil/telegram_token")

    @property
    def wsl_conf(self) -> Path:
        """WSL's settings of this distribution."""
        return Path(os.path.realpath(self.at("/etc/wsl.conf")))

    @property
    def manifest(self) -> Path:
        """What uninstall needs."""
        return self.at("/var/lib/vigil-install")

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.venv / "bin" / "python"

    @property
    def booted(self) -> bool:
        """Whether a systemd runs here that can be told."""
        return not self.destdir and Path("/run/systemd/system").is_dir()


@dataclass(frozen=True)
class User:
    """Who the service runs as."""

    name: str
    group: str
    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> User:
        """The user of that name.

        Raises:
            InstallError: there is none.
        """
        try:
            found = pwd.getpwnam(name)
        except KeyError as error:
            raise InstallError(EX_USAGE, f"there is no user {name!r} here: give --user NAME, such as {_somebody()}") from error
        return cls(name, grp.getgrgid(found.pw_gid).gr_name, found.pw_uid, found.pw_gid, found.pw_dir)

    def run(self, command: Sequence[str], *, quiet: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as this user, where root can; else as who we are."""
        pipe = subprocess.PIPE if quiet else None
        environ = {**os.environ, "HOME": self.home, "USER": self.name, "LOGNAME": self.name}
        if os.geteuid() != 0 or self.uid == 0:
            return subprocess.run(command, env=environ, text=True, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, check=False)
        return subprocess.run(
            command,
            env=environ,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            check=False,
            cwd="/",
            user=self.uid,
            group=self.gid,
            extra_groups=os.getgrouplist(self.name, self.gid),
        )


def _somebody() -> str:
    people = [one.pw_name for one in pwd.getpwall() if 1000 <= one.pw_uid < 60000]
    return people[0] if people else "root"


# -- before anything is written


def set_up(place: Place) -> None:
    """The environment, made as whoever owns the clone.

    Raises:
        InstallError: with the launcher's own exit code; it has said why.
    """
    owner = User.named(pwd.getpwuid(place.root.stat().st_uid).pw_name)
    done = owner.run(["env", f"VIGIL_VENV={place.venv}", str(place.root / "vigil"), "setup"], quiet=False)
    if done.returncode:
        raise InstallError(done.returncode, "the environment could not be made (see above); nothing else was changed")


def check_pipeline(place: Place, options: Options, user: User) -> int:
    """Read the pipeline as the service will; how many stages it has.

    Raises:
        InstallError: it is refused, or the user cannot read it or run Vigil.
    """
    command = [str(place.python), "-I", "-B", "-c", _READ_PIPELINE, options.pipeline, *options.set]
    try:
        done = user.run(command)
    except PermissionError as error:
        text = f"{user.name} may not run {place.python}: put the clone where {user.name} can read it"
        raise InstallError(EX_MISCONFIGURED, text) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it gave no reason"]
        raise InstallError(EX_MISCONFIGURED, f"{said[-1]}\nvigil: nothing was changed")
    return int(done.stdout)


def check_workspace(place: Place, options: Options, user: User) -> None:
    """The user can write there, if it is there.

    Raises:
        InstallError: not so.
    """
    folder = place.at(options.workspace)
    if folder.exists() and user.run(["test", "-d", str(folder), "-a", "-w", str(folder)]).returncode:
        text = f"{folder} is no folder that {user.name} can write: chown it, or choose another --workspace"
        raise InstallError(EX_MISCONFIGURED, text)


def read_token(options: Options, place: Place) -> bytes | None:
    """The token that is to be installed; None when there is none, or when only root may see the one that is.

    Raises:
        InstallError: it cannot be read, or is none.
    """
    if not options.token_file:
        try:
            return content_of(place.token) if options.has_token else None
        except PermissionError:
            return None
    try:
        content = Path(options.token_file).read_bytes()
    except OSError as error:
        raise InstallError(
            EX_MISCONFIGURED, f"{options.token_file}: {error.strerror}; give --token-file FILE or leave it out"
        ) from error
    if not TOKEN.fullmatch(content):
        text = f"{options.token_file}: this is no bot token: BotFather's look like 123456:ABC-DEF..."
        raise InstallError(EX_MISCONFIGURED, text)
    return content.strip() + b"\n"


def credentials_arrive(place: Place, user: User) -> bool:
    """Whether LoadCredential= works here: where /run is not shared, services get an empty folder and no error (systemd #38103)."""
    if not place.booted or os.geteuid() != 0:
        return True
    command = ["systemd-run", "--quiet", "--wait", "--collect", "-p", f"User={user.name}", "-p", "ProtectSystem=strict"]
    look = ["-p", "LoadCredential=probe:/etc/os-release", "/bin/sh", "-c", 'test -s "$CREDENTIALS_DIRECTORY/probe"']
    return subprocess.run([*command, *look], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


# -- the files


def wanted_files(place: Place, options: Options, user: User, token: bytes | None, *, wsl: bool, arrives: bool) -> list[Wanted]:
    """What must lie under /etc, in the order of writing.

    Raises:
        InstallError: a value cannot stand in a unit, or a file is no text.
    """
    wanted = []
    if token is not None:
        owner = (0, 0) if arrives else (user.uid, user.gid)
        wanted.append(Wanted(place.token, token, "The bot's token, for the service alone", 0o600, owner, secret=True))
    if wsl:
        why = "WSL starts systemd, and gives it 60 s to stop"
        mode, owner = mode_of(place.wsl_conf)
        wanted.append(Wanted(place.wsl_conf, merged(place.wsl_conf, WSL_CONF), why, mode, owner, merged=True))
    wanted.append(Wanted(place.unit, _unit(place, options, user, arrives).encode(), f"The service; it runs as {user.name}"))
    target = f"/etc/systemd/system/{UNIT}".encode()
    wanted.append(Wanted(place.enabled, target, "The service starts with the machine", link=True))
    return wanted


def mode_of(path: Path) -> tuple[int, tuple[int, int]]:
    """Mode and owner of a file that is changed, or as its folder suggests for a new one."""
    try:
        found = path.stat()
    except FileNotFoundError:
        found = path.parent.stat()
        return 0o644, (found.st_uid, found.st_gid)
    return found.st_mode & 0o7777, (found.st_uid, found.st_gid)


def merged(path: Path, settings: Sequence[Setting]) -> bytes:
    """What a settings file should hold.

    Raises:
        InstallError: it is no text.
    """
    try:
        return settings_file.merge(content_of(path) or b"", settings)
    except SettingsFileError as error:
        raise InstallError(EX_MISCONFIGURED, f"{path}: {error}; repair it or move it away, then install again") from error


def _unit(place: Place, options: Options, user: User, arrives: bool) -> str:
    template = place.root / "systemd" / UNIT
    try:
        return unit.fill(template.read_text(encoding="utf-8"), _values(place, options, user, arrives))
    except (OSError, unit.UnitError) as error:
        raise InstallError(EX_MISCONFIGURED, str(error)) from error


def _values(place: Place, options: Options, user: User, arrives: bool) -> Mapping[str, str]:
    moved = [
        value
        for name, _, value in (one.partition("=") for one in options.environment)
        if name.startswith("HF_") and value[:1] == "/"
    ]
    credential = f"LoadCredential={place.token.name}:/etc/vigil/{place.token.name}"
    if not arrives:
        credential = "Environment=CREDENTIALS_DIRECTORY=/etc/vigil"
    return {
        "USER": user.name,
        "GROUP": user.group,
        "HOME": unit.escaped(user.home),
        "VIGIL": unit.word(str(place.root)),
        "PYTHON": unit.argument(str(place.python)),
        "PIPELINE": unit.argument(options.pipeline),
        "WORKSPACE": unit.argument(options.workspace),
        "ARGUMENTS": " ".join(f"--set {unit.argument(one)}" for one in options.set),
        "EXTRA_ENVIRONMENT": "\n".join(unit.environment(one) for one in options.environment),
        "CREDENTIAL": credential if options.has_token else "",
        "MEMORY_MAX": MEMORY_MAX,
        "READ_WRITE": unit.paths([*writable(options, user), *moved]),
    }


def writable(options: Options, user: User) -> list[str]:
    """The workspace, the caches, and Vigil's history of how long stages took (`daemon.planning.foresight`)."""
    return [options.workspace, f"{user.home}/.cache", f"{user.home}/.local/state/vigil"]


# -- systemd


def systemctl(*arguments: str) -> str:
    """What systemctl prints.

    Raises:
        InstallError: it failed.
    """
    done = subprocess.run(["systemctl", *arguments], text=True, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise InstallError(EX_TRY_AGAIN, f"systemctl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def properties() -> dict[str, str]:
    """What systemd says of the service."""
    names = ("ActiveState", "SubState", "Result", "StatusText", "MainPID", "ExecMainStartTimestampMonotonic", "UnitFileState")
    return dict(line.partition("=")[::2] for line in systemctl("show", UNIT, "-p", ",".join(names)).splitlines())

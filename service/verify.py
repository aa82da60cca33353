"""Looks at an installation: each finding is in order or not, and then with the command that mends it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from service import settings_file, system
from service.changes import Changes, Sight, content_of
from service.options import Options, combine_answers
from service.system import UNIT, WSL_CONF, Place
from service.windows import WindowsError
from service.windows_half import WindowsHalf

INSTALL = "sudo ./install_wsl_service.sh install --yes"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. Without faults it is in order."""

    what: str
    faults: tuple[str, ...] = ()
    mend: str = INSTALL


def look(place: Place, changes: Changes, half: WindowsHalf, *, wsl: bool) -> list[Finding]:
    """Everything there is to look at; nothing where nothing is installed."""
    if not changes.installed:
        return []
    options = combine_answers(changes.manifest.answers)
    found = [*_files(place, changes)]
    if wsl:
        content = content_of(place.wsl_conf) or b""
        missing = [f"without {setting}" for setting in WSL_CONF if settings_file.merge(content, [setting]) != content]
        found.append(Finding(str(place.wsl_conf), tuple(missing)))
    if place.booted:
        found += [_unit(place), _enabled(), _active()]
        if options.has_token:
            found.append(_credential(place))
    elif not place.destdir:
        found.append(Finding("systemd", ("it does not run here",), "in PowerShell: wsl --shutdown; then open WSL again"))
    if wsl:
        found += _windows(half, options)
    return found


def _files(place: Place, changes: Changes) -> list[Finding]:
    found = []
    for name in changes.manifest.files:
        path = Path(name)
        if path.is_relative_to(place.at("/etc")) and path != place.wsl_conf:
            sight = changes.sight(path)
            fine = sight in (Sight.OURS, Sight.UNREADABLE)
            mend = f"mv {name} {name}.mine; {INSTALL}" if sight is Sight.CHANGED else INSTALL
            found.append(Finding(name, () if fine else (sight.value,), mend))
    return found


def _unit(place: Place) -> Finding:
    done = subprocess.run(
        ["systemd-analyze", "verify", str(place.unit)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if UNIT in line]
    return Finding("systemd reads the unit", tuple(said) if said or not done.returncode else (done.stderr.strip(),))


def _enabled() -> Finding:
    state = system.properties()["UnitFileState"]
    return Finding("the service starts with the machine", () if state == "enabled" else (f"it is {state or 'unknown'}",))


def _active() -> Finding:
    now = system.properties()
    state, what = now["ActiveState"], "the service is active"
    if state == "active":
        return Finding(f"{what}: {now['StatusText']}" if now["StatusText"] else what)
    if state == "inactive" and now["Result"] == "success" and now["ExecMainStartTimestampMonotonic"] != "0":
        return Finding("the run has ended, or was stopped")
    return Finding(what, (f"it is {state} ({now['Result']})",), f"journalctl -u {UNIT} -n 30; sudo systemctl restart {UNIT}")


def _credential(place: Place) -> Finding:
    """Looked at with the service's own eyes: an empty folder is what a broken systemd gives it."""
    what, pid = "the bot's token reaches the service", system.properties()["MainPID"]
    if pid == "0":
        return Finding(f"{what}: cannot be seen, it does not run")
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        folder = next(one.partition(b"=")[2].decode() for one in variables if one.startswith(b"CREDENTIALS_DIRECTORY="))
        same = Path(f"/proc/{pid}/root{folder}/{place.token.name}").read_bytes() == place.token.read_bytes()
    except StopIteration:
        return Finding(what, ("it was started without one",), f"sudo systemctl restart {UNIT}")
    except PermissionError:
        return Finding(f"{what}: only root can see")
    except OSError as error:
        return Finding(what, (str(error),))
    return Finding(what, () if same else ("it has another one",), f"sudo systemctl restart {UNIT}")


def _windows(half: WindowsHalf, options: Options) -> list[Finding]:
    if len(options.without) == 3:
        return []
    try:
        return [Finding(f"Windows: {what}", tuple(faults)) for what, faults in half.faults(options)]
    except WindowsError as error:
        return [Finding("Windows", (str(error),), "open WSL's own terminal and ask again")]


def print_findings(found: list[Finding], place: Place, changes: Changes, *, verify: bool) -> int:
    """A line for each, and for what is not in order the command; verify's exit status is 1 then."""
    if not found:
        print("Vigil's service is not installed. To install it: sudo ./install_wsl_service.sh install")
        return int(verify)
    options = combine_answers(changes.manifest.answers)
    if not verify:
        print(f"pipeline   {options.pipeline}\nworkspace  {options.workspace}\nuser       {options.user}")
    for one in found:
        print(f"{'not' if one.faults else 'ok '} {one.what}")
        for fault in one.faults:
            print(f"      {fault}")
        if one.faults:
            print(f"      mend: {one.mend}")
    bad = sum(bool(one.faults) for one in found)
    print(f"{bad} of {len(found)} not in order." if bad else "All is in order.")
    return int(verify and bad > 0)

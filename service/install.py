"""The verbs of install_wsl_service.sh. Called by it, never by hand: `python -m service.install ROOT VERB ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from service import system, windows
from service.changes import Changes, ManifestError, Wanted
from service.options import (
    EX_MISCONFIGURED,
    EX_NO_PERMISSION,
    EX_TRY_AGAIN,
    InstallError,
    Options,
    ask_for_the_rest,
    combine,
    parser,
    remembered,
    settle,
    yes,
)
from service.screen import Screen, complain
from service.system import Place, User
from service.verify import look, print_findings
from service.windows_half import WindowsHalf

UPDATES = "Pause Windows Update and the updates of the Microsoft Store for the trip:\n    they restart the machine and WSL."
SHUTDOWN = (
    "Once, when nothing else is at work in WSL, in PowerShell (WSL reads its settings\n    only as it starts); then open WSL again:"
)
TRIAL = "Restart Windows, do not log in, wait ten minutes, log in and look:"
UNINSTALLED = "Uninstalled: everything is as it was. The run's folder and the environment stay."
KEPT = "To have Vigil's again, move yours away and install again:"
VERIFY = "sudo ./install_wsl_service.sh verify"


class Installation:
    """One call: what is asked for, where it goes, and what is told."""

    def __init__(self, place: Place, screen: Screen, environ: Mapping[str, str]) -> None:
        self.place = place
        self.screen = screen
        self.changes = Changes(place.manifest, as_root=os.geteuid() == 0)
        self.wsl = windows.is_wsl(place.destdir)
        self.half = WindowsHalf(windows.Tools(environ, place.destdir), self.changes, screen, self._write)

    # -- install

    def install(self, options: Options) -> int:
        """Everything in its order; what is in order already is left alone."""
        user = User.named(options.user)
        self._prepare(options, user)
        token = system.read_token(options, self.place)
        arrives = not options.has_token or system.credentials_arrive(self.place, user)
        if self.wsl:
            self.half.prepare(options)
        files = system.wanted_files(self.place, options, user, token, wsl=self.wsl, arrives=arrives)
        if not self.screen.dry and self.changes.manifest.answers != remembered(options):
            self.changes.manifest.answers = remembered(options)
            self.changes.save()
        self._folders(options, user)
        written = [wanted for wanted in files if self._write(wanted)]
        first = self.screen.changed
        if self.wsl:
            self.half.install(options)
        else:
            self.screen.step("This is no WSL: the Windows half is left out")
        self._start(any(not wanted.merged for wanted in written))
        return self._last_words(any(wanted.merged for wanted in written) or self.screen.changed > first)

    def _prepare(self, options: Options, user: User) -> None:
        """All that can be wrong is found here, before anything is written."""
        self.screen.step("The environment: ./vigil setup")
        if self.screen.dry and not self.place.python.exists():
            self.screen.told("would be made; only then can the pipeline be checked")
            return
        if not self.screen.dry:
            system.set_up(self.place)
        self.screen.step(f"The pipeline is read as {user.name}: {options.pipeline}")
        self.screen.told(f"in order, stages: {system.check_pipeline(self.place, options, user)}")
        system.check_workspace(self.place, options, user)
        if windows.is_mount(Path(options.workspace)):
            self.screen.told("WARNING: the workspace lies on a Windows drive, which is slow: better choose a folder of Linux")

    def _folders(self, options: Options, user: User) -> None:
        """All that the service may write to must be there before it starts."""
        for folder in (self.place.at(one) for one in system.writable(options, user)):
            if folder.exists():
                continue
            self.screen.step(f"A folder of {user.name}'s: {folder}")
            self.screen.did("make it" if self.screen.dry else "made")
            if not self.screen.dry:
                self.changes.make_folder(folder, 0o755, (user.uid, user.gid))

    def _write(self, wanted: Wanted) -> bool:
        """Write one file unless it is as it should be, or its owner's; whether it was, or would be, written."""
        self.screen.step(wanted.why)
        if self.changes.is_done(wanted):
            self.screen.told(f"{wanted.path}: unchanged")
            return False
        if self.changes.is_owners(wanted):
            self.screen.told(f"{wanted.path}: LEFT, you changed it")
            self.screen.leave(KEPT, f"mv {wanted.path} {wanted.path}.mine")
            return False
        if self.screen.dry:
            self.screen.did(f"write {wanted.path}")
            self.screen.show(wanted)
        else:
            self.changes.write(wanted)
            self.screen.did(f"{wanted.path}: written")
        return True

    def _start(self, changed: bool) -> None:
        """Have systemd read the unit and start it, or start it again if it changed."""
        if not self.place.booted:
            self.screen.step("No systemd can be told here: Vigil starts when the machine does")
            return
        now = system.properties()
        fresh = now["ExecMainStartTimestampMonotonic"] == "0"
        if not changed and not fresh:
            return
        active = now["ActiveState"] in ("active", "activating", "reloading")
        verb = "restart" if active else "start"
        self.screen.step("The service starts again; its stages save first" if active else "The service starts")
        self.screen.did(f"systemctl daemon-reload; systemctl {verb} vigil")
        if not self.screen.dry:
            system.systemctl("daemon-reload")
            system.systemctl(verb, system.UNIT)
            self.screen.told(system.properties()["StatusText"] or "active")

    def _last_words(self, windows_changed: bool) -> int:
        screen = self.screen
        refused = len(screen.left)
        if self.wsl and windows_changed:
            screen.leave(SHUTDOWN, "wsl --shutdown")
            screen.leave(UPDATES)
            screen.leave(TRIAL, VERIFY)
        done = "That is all; nothing was changed." if screen.dry else "Installed, but not all of it." if refused else "Installed."
        screen.close(done if screen.changed or refused else "Nothing to change: all is as it should be.")
        return int(refused > 0 and not screen.dry)

    # -- uninstall

    def uninstall(self) -> int:
        """Stop, and give everything back. What the owner changed stays and is told."""
        screen = self.screen
        if not self.changes.installed:
            if not screen.dry:
                self.changes.forget()  # what a killed call left before its first note
            screen.close("Vigil's service is not installed: nothing to take back.")
            return 0
        self._stop()
        self.half.uninstall()
        screen.step("Every file as it was")
        if screen.dry:
            for name in reversed(self.changes.manifest.files):
                screen.did(f"give back {name}")
            screen.close("That is all; nothing was changed.")
            return 0
        self._give_back()
        screen.close("Uninstalled, but for this." if screen.left else UNINSTALLED)
        return int(bool(screen.left))

    def _give_back(self) -> None:
        for path, told in self.changes.restore():
            self.screen.did(f"{path}: {told}")
            if told.startswith("LEFT"):
                self.screen.leave(f"{path} was changed by you, so it stays")
        if self.place.booted:
            system.systemctl("daemon-reload")
        if self.screen.left:
            self.screen.leave("If it may stay like this, have Vigil forget it:", f"sudo rm -r {self.place.manifest}")
        else:
            self.changes.forget()

    def _stop(self) -> None:
        if not self.place.booted:
            return
        self.screen.step("The service stops; its stages save first. `./vigil run` goes on from there")
        if system.properties()["ActiveState"] not in ("inactive", "failed"):
            self.screen.did("systemctl stop vigil")
            if not self.screen.dry:
                system.systemctl("stop", system.UNIT)
        if not self.screen.dry and system.properties()["ActiveState"] == "failed":
            system.systemctl("reset-failed", system.UNIT)


def _needs_root(verb: str, *, dry: bool, destdir: str) -> None:
    if os.geteuid() != 0 and not destdir and not dry and verb != "status":
        raise InstallError(EX_NO_PERMISSION, f"{verb} needs root: sudo ./install_wsl_service.sh {verb} ...")


def act(root: Path, arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """One call; its exit status."""
    args = parser().parse_args(arguments)
    dry = bool(getattr(args, "dry_run", False))
    destdir = environ.get("DESTDIR", "").rstrip("/")
    _needs_root(args.verb, dry=dry, destdir=destdir)
    place = Place(root, Path.cwd() / (environ.get("VIGIL_VENV") or root / ".venv"), destdir)
    one = Installation(place, Screen(dry), environ)
    if args.verb in ("status", "verify"):
        return print_findings(look(place, one.changes, one.half, wsl=one.wsl), place, one.changes, verify=args.verb == "verify")
    quiet = args.yes or dry
    if args.verb == "uninstall":
        return one.uninstall() if quiet or yes("Stop Vigil's service and give everything back?", True) else 1
    options = combine(args, one.changes.manifest.answers, root, environ)
    if not quiet:
        options = ask_for_the_rest(options, wsl=one.wsl)
        if not yes("Install now? (--dry-run shows every write first)", True):
            return 1
    return one.install(settle(options))


def main() -> int:
    """The process's exit status."""
    try:
        return act(Path(sys.argv[1]), sys.argv[2:], os.environ)
    except InstallError as error:
        complain(str(error))
        return error.code
    except ManifestError as error:
        complain(str(error))
        return EX_MISCONFIGURED
    except OSError as error:
        complain(f"{error}; repeat the same command when that is mended: it goes on, and uninstall works too")
        return EX_TRY_AGAIN
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on, and uninstall takes back what was done")
        return 130


if __name__ == "__main__":
    sys.exit(main())

"""What is changed of Windows, step by step, and taken back again. What Windows refuses is left to the owner, with the command."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from service import settings_file, system, windows
from service.changes import Changes, Wanted, content_of
from service.options import PARTS, Options
from service.screen import Screen
from service.settings_file import SettingsFileError, text_of
from service.windows import TASK, Host, Tools, WindowsError, command_line

AS_ADMINISTRATOR = "In PowerShell as administrator:"
AGAIN = "Open WSL's own terminal and "
SLEEP = ("SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE")


class WindowsHalf:
    """The three parts: .wslconfig, the scheduled task, power."""

    def __init__(self, tools: Tools, changes: Changes, screen: Screen, write: Callable[[Wanted], bool]) -> None:
        self.tools = tools
        self._write = write
        self._changes = changes
        self._screen = screen
        self._host: Host | None = None
        self._silence = ""

    def files(self, host: Host, options: Options) -> list[Wanted]:
        """What must lie in the Windows user's folder."""
        wanted = []
        if "wslconfig" not in options.without:
            path = host.profile / ".wslconfig"
            content = system.merged(path, windows.wslconfig(host.memory_bytes, options.memory_gb, options.swap_gb))
            why = "WSL does not stop when it is idle, and has memory enough"
            wanted.append(Wanted(path, content, why, *system.mode_of(path), drive=True, merged=True))
        if "task" not in options.without:
            xml = windows.task_xml(host, "S4U" if options.logon == "s4u" else "Password")
            path = host.profile / ".vigil-keep-alive.xml"
            wanted.append(Wanted(path, xml, "The scheduled task, as Windows reads it", *system.mode_of(path), drive=True))
        return wanted

    def prepare(self, options: Options) -> None:
        """Look at Windows and read its files, before anything is written; a Windows that does not answer is told later.

        Raises:
            InstallError: a file of the owner's is no text.
        """
        if set(options.without) >= set(PARTS):
            return
        try:
            self._host = self.tools.host()
            self.files(self._host, options)
        except WindowsError as error:
            self._silence = str(error)

    def install(self, options: Options) -> None:
        """All that is wanted of it."""
        if self._silence:
            self._unanswered(self._silence)
        if self._host is None:
            if not self._silence:
                self._screen.step("Windows stays as it is (--without-windows)")
            return
        try:
            for wanted in self.files(self._host, options):
                self._write(wanted)
            if "task" not in options.without:
                self._register(self._host, options)
            if "power" not in options.without:
                self._keep_awake(self._host)
        except WindowsError as error:
            self._unanswered(str(error))

    def _unanswered(self, error: str) -> None:
        self._screen.step("Windows does not answer")
        self._screen.told(error)
        self._screen.leave(f"{AGAIN}install again, or leave Windows out:\n    --without-windows")

    def _register(self, host: Host, options: Options) -> None:
        self._screen.step("The task starts WSL with Windows, and again within five minutes if it stops")
        found, wanted = self.tools.task(), self.files(host, options)[-1]
        if found is not None and not windows.task_differs(found, text_of(wanted.content)):
            self._screen.told(f"{TASK}: unchanged")
            return
        if found is not None and "task" not in self._changes.manifest.windows:
            self._screen.told(f"{TASK}: LEFT, there is a task of this name that is not Vigil's")
            self._screen.leave("Rename or remove that task in Windows' Task Scheduler, then install again.")
            return
        self._remember("task", TASK)
        arguments = ["/create", "/tn", TASK, "/xml", self.tools.windows_path(wanted.path), "/f"]
        if options.logon == "password":
            why = "In PowerShell as administrator; it asks for your Windows password and keeps\n    it in Windows alone:"
            self._screen.leave(why, command_line("schtasks", [*arguments, "/ru", host.account, "/rp", "*"]))
            return
        self._effect("SCHTASKS", arguments)

    def _keep_awake(self, host: Host) -> None:
        self._screen.step("Windows neither sleeps nor hibernates on mains power")
        standby_s = self.tools.standby_s()
        if standby_s:
            self._remember("standby_s", standby_s)
            self._effect("POWERCFG", ["/change", "standby-timeout-ac", "0"])
        if host.hibernates:
            self._remember("hibernates", True)
            self._effect("POWERCFG", ["/hibernate", "off"])
        if not standby_s and not host.hibernates:
            self._screen.told("power: unchanged")

    def _remember(self, name: str, value: object) -> None:
        """What it was before Vigil first changed it."""
        if not self._screen.dry and name not in self._changes.manifest.windows:
            self._changes.manifest.windows[name] = value
            self._changes.save()

    def _effect(self, tool: str, arguments: Sequence[str]) -> bool:
        """Ask Windows for it; the owner is told the command where it refuses."""
        program = windows.TOOLS[tool][0].removesuffix(".exe")
        line = command_line(program, arguments)
        if self._screen.dry:
            self._screen.did(line)
            return True
        try:
            self.tools.ask(tool, *arguments)
        except WindowsError as error:
            self._screen.told(f"refused: {error}")
            self._screen.leave(AS_ADMINISTRATOR, line)
            return False
        self._screen.did(f"done: {line}")
        return True

    # -- taking it back

    def uninstall(self) -> None:
        """The task and the power settings; the files are given back with the others."""
        known = self._changes.manifest.windows
        if not known:
            return
        self._screen.step("Windows' settings as they were")
        try:
            if "task" in known and (self.tools.task() is None or self._effect("SCHTASKS", ["/delete", "/tn", TASK, "/f"])):
                self._forget("task")
            if "standby_s" in known and self._sleeps_again(known["standby_s"]):
                self._forget("standby_s")
            if "hibernates" in known and (self.tools.host().hibernates or self._effect("POWERCFG", ["/hibernate", "on"])):
                self._forget("hibernates")
        except WindowsError as error:
            self._screen.told(str(error))
            self._screen.leave(f"Windows' settings could not be given back. {AGAIN}uninstall\n    again.")

    def _sleeps_again(self, standby_s: int) -> bool:
        if self.tools.standby_s():  # the owner has chosen another time, or it was given back already
            return True
        done = self._effect("POWERCFG", ["/setacvalueindex", *SLEEP, str(standby_s)])
        return self._effect("POWERCFG", ["/setactive", "SCHEME_CURRENT"]) and done

    def _forget(self, name: str) -> None:
        if not self._screen.dry:
            del self._changes.manifest.windows[name]
            self._changes.save()

    # -- looking

    def faults(self, options: Options) -> list[tuple[str, list[str]]]:
        """Each part with what is not as wanted.

        Raises:
            WindowsError: Windows does not answer.
        """
        host, found = self.tools.host(), list[tuple[str, list[str]]]()
        if "wslconfig" not in options.without:
            found.append((".wslconfig", _wslconfig_faults(host, options)))
        if "task" not in options.without:
            task = self.tools.task()
            xml = text_of(self.files(host, options)[-1].content)
            found.append(
                (f"scheduled task {TASK!r}", ["it is not registered"] if task is None else windows.task_differs(task, xml))
            )
        if "power" not in options.without:
            standby_s = self.tools.standby_s()
            sleeps = [f"Windows sleeps after {standby_s // 60} min"] if standby_s else []
            found.append(("power", [*sleeps, *(["hibernation is on"] if host.hibernates else [])]))
        return found


def _wslconfig_faults(host: Host, options: Options) -> list[str]:
    content = content_of(host.profile / ".wslconfig") or b""
    settings = windows.wslconfig(host.memory_bytes, options.memory_gb, options.swap_gb)
    try:
        return [f"without {setting}" for setting in settings if settings_file.merge(content, [setting]) != content]
    except SettingsFileError as error:
        return [str(error)]

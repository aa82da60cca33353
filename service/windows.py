"""The Windows side of WSL, reached through Windows' own tools: who is logged on, the keep-alive, power.

What a tool prints is taken as it comes: UTF-16LE or UTF-8 or an old code page, CRLF, any language. So nothing here looks for words:
numbers, names and XML are read.
"""

from __future__ import annotations

import codecs
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from xml.etree import ElementTree

from service.settings_file import Setting

TASK = "Vigil keep-alive"
TIMEOUT_S = 60.0
GIB = 1 << 30

_SYSTEM32 = "/mnt/c/Windows/System32"
TOOLS = {
    "POWERSHELL": ("powershell.exe", f"{_SYSTEM32}/WindowsPowerShell/v1.0/powershell.exe"),
    "WSL_EXE": ("wsl.exe", f"{_SYSTEM32}/wsl.exe"),
    "SCHTASKS": ("schtasks.exe", f"{_SYSTEM32}/schtasks.exe"),
    "POWERCFG": ("powercfg.exe", f"{_SYSTEM32}/powercfg.exe"),
    "WSLPATH": ("wslpath", "/usr/bin/wslpath"),
}
"""What may name another program, its name on the PATH, and where it lies when sudo has shortened the PATH."""

_LOOK = """\
[Console]::OutputEncoding = [Text.Encoding]::UTF8
'profile=' + $env:USERPROFILE
'account=' + [Security.Principal.WindowsIdentity]::GetCurrent().Name
'memory_bytes=' + (Get-CimInstance Win32_ComputerSystem).TotalPhysicalMemory
'hibernate=' + (Get-ItemProperty 'HKLM:\\SYSTEM\\CurrentControlSet\\Control\\Power').HibernateEnabled
$w = Join-Path $env:ProgramFiles 'WSL\\wsl.exe'
if (-not (Test-Path $w)) { $w = Join-Path $env:SystemRoot 'System32\\wsl.exe' }
'wsl=' + $w
"""


class WindowsError(Exception):
    """Windows did not answer, or refused; the message says what was asked and what came back."""


@dataclass(frozen=True)
class Host:
    """What Windows says of itself. `profile` is the Linux path of the user's folder."""

    profile: Path
    account: str
    memory_bytes: int
    hibernates: bool
    wsl_exe: str
    distribution: str


class Tools:
    """Windows' programs. What has an effect is only shown when `dry`."""

    def __init__(self, environ: Mapping[str, str], destdir: str) -> None:
        self._environ = {**environ, "WSL_UTF8": "1"}
        self._destdir = destdir
        self._folder = next((place for place in ("/mnt/c/", "/") if Path(place).is_dir()), "/")  # they dislike a Linux folder

    def ask(self, tool: str, *arguments: str) -> str:
        """What a tool prints.

        Raises:
            WindowsError: it is not there, fails, or does not answer in time.
        """
        name, elsewhere = TOOLS[tool]
        program = self._environ.get(tool) or shutil.which(name, path=self._environ.get("PATH")) or elsewhere
        try:
            done = subprocess.run(
                [program, *arguments],
                env=self._environ,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise WindowsError(f"{name} cannot be asked: {error}") from error
        if done.returncode:
            said = " ".join((decode(done.stderr) + decode(done.stdout)).split())
            raise WindowsError(f"{name} ended with status {done.returncode}: {said[:300] or 'it said nothing'}")
        return decode(done.stdout)

    def host(self) -> Host:
        """Look at Windows.

        Raises:
            WindowsError: it does not answer, or with something else.
        """
        answer = self.ask("POWERSHELL", "-NoProfile", "-NonInteractive", "-Command", _LOOK)
        said = dict(line.partition("=")[::2] for line in answer.splitlines())
        try:
            return Host(
                profile=Path(self._destdir + self.ask("WSLPATH", "-u", said["profile"]).strip()),
                account=said["account"],
                memory_bytes=int(said["memory_bytes"]),
                hibernates=said["hibernate"].strip() != "0",
                wsl_exe=said["wsl"],
                distribution=self._distribution(),
            )
        except (LookupError, ValueError) as error:
            raise WindowsError(f"powershell.exe answered without {error}: {answer.strip()[:300]!r}") from error

    def _distribution(self) -> str:
        r"""This distribution's name, from its own network path `\\wsl.localhost\NAME\`; sudo hides WSL_DISTRO_NAME."""
        name = self.ask("WSLPATH", "-w", "/").strip().strip("\\").split("\\")[1]
        if name not in self.ask("WSL_EXE", "--list", "--quiet").split("\n"):
            raise WindowsError(f"wsl.exe knows no distribution {name!r}")
        return name

    def windows_path(self, path: Path) -> str:
        """How Windows calls a file of the profile."""
        return self.ask("WSLPATH", "-w", str(path).removeprefix(self._destdir)).strip()

    def task(self) -> str | None:
        """The scheduled task's XML; None where there is none."""
        try:
            return self.ask("SCHTASKS", "/query", "/tn", TASK, "/xml")
        except WindowsError:
            self.ask("SCHTASKS", "/query", "/fo", "csv", "/nh")  # so that silence is not taken for absence
            return None

    def standby_s(self) -> int:
        """After how many idle seconds the machine sleeps on mains power; 0 is never.

        Raises:
            WindowsError: it does not say.
        """
        numbers = re.findall(r"0x([0-9a-fA-F]{8})\b", self.ask("POWERCFG", "/query", "SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE"))
        if len(numbers) < 2:
            raise WindowsError("powercfg.exe did not name the sleep time-out")
        return int(numbers[-2], 16)  # the last two are of now: on mains, on battery


def is_wsl(root: str) -> bool:
    """Whether this is a Linux inside WSL."""
    try:
        return "microsoft" in Path(f"{root}/proc/sys/kernel/osrelease").read_text().lower()
    except OSError:
        return False


def decode(output: bytes) -> str:
    """What a Windows tool printed, with plain line ends."""
    if output.startswith(codecs.BOM_UTF16_LE) or output[1:2] == b"\0":
        text = output.decode("utf-16-le", "replace")
    else:
        try:
            text = output.decode()
        except UnicodeDecodeError:
            text = output.decode("cp850")
    return re.sub(r"\r+\n", "\n", text.lstrip("\ufeff"))


def command_line(program: str, arguments: Sequence[str]) -> str:
    """A command as it is typed in PowerShell or cmd."""
    return " ".join([program, *(f'"{one}"' if re.search(r"[\s()]", one) else one for one in arguments)])


# -- .wslconfig


def wslconfig(memory_bytes: int, memory_gb: int | None, swap_gb: int | None) -> list[Setting]:
    """What must stand in .wslconfig. Sizes that the owner has chosen stay; else Windows keeps a fifth, at least 4 GB."""
    host_gb = round(memory_bytes / GIB)
    memory = memory_gb or max(host_gb - max(4, host_gb // 5), host_gb // 2, 1)
    swap = max(8, host_gb // 2) if swap_gb is None else swap_gb
    return [
        Setting("general", "instanceIdleTimeout", "-1"),
        Setting("wsl2", "vmIdleTimeout", "-1"),
        Setting("wsl2", "memory", f"{memory}GB", () if memory_gb else ("*",)),
        Setting("wsl2", "swap", f"{swap}GB", () if swap_gb is not None else ("*",)),
        Setting("experimental", "autoMemoryReclaim", "dropCache", ("disabled",)),
    ]


# -- the scheduled task


def task_xml(host: Host, logon: str) -> bytes:
    """The keep-alive as Windows' Task Scheduler exports it. `logon`: S4U or Password.

    A held wsl.exe is what keeps a distribution from counting as idle. The first trigger is for boots, the second for now.
    """
    arguments = f'-d "{host.distribution}" -u root --exec sleep infinity'
    again = "<Repetition><Interval>PT5M</Interval><StopAtDurationEnd>false</StopAtDurationEnd></Repetition>"
    text = f"""\
<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <RegistrationInfo><Description>For Vigil, by install_wsl_service.sh</Description></RegistrationInfo>
  <Triggers>
    <BootTrigger>{again}<Enabled>true</Enabled><Delay>PT30S</Delay></BootTrigger>
    <RegistrationTrigger>{again}<Enabled>true</Enabled></RegistrationTrigger>
  </Triggers>
  <Principals>
    <Principal id="Author">
      <UserId>{escape(host.account, quote=False)}</UserId>
      <LogonType>{logon}</LogonType>
      <RunLevel>LeastPrivilege</RunLevel>
    </Principal>
  </Principals>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <DisallowStartIfOnBatteries>false</DisallowStartIfOnBatteries>
    <StopIfGoingOnBatteries>false</StopIfGoingOnBatteries>
    <StartWhenAvailable>true</StartWhenAvailable>
    <IdleSettings><StopOnIdleEnd>false</StopOnIdleEnd><RestartOnIdle>false</RestartOnIdle></IdleSettings>
    <Enabled>true</Enabled>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <RestartOnFailure><Interval>PT1M</Interval><Count>255</Count></RestartOnFailure>
  </Settings>
  <Actions Context="Author">
    <Exec>
      <Command>{escape(host.wsl_exe, quote=False)}</Command>
      <Arguments>{escape(arguments, quote=False)}</Arguments>
    </Exec>
  </Actions>
</Task>
"""
    return codecs.BOM_UTF16_LE + text.replace("\n", "\r\n").encode("utf-16-le")


_OF_THE_TASK = (
    "Triggers/BootTrigger/Repetition/Interval",
    "Triggers/BootTrigger/Delay",
    "Triggers/BootTrigger/Enabled",
    "Principals/Principal/LogonType",
    "Settings/MultipleInstancesPolicy",
    "Settings/DisallowStartIfOnBatteries",
    "Settings/StopIfGoingOnBatteries",
    "Settings/Enabled",
    "Settings/ExecutionTimeLimit",
    "Settings/RestartOnFailure/Interval",
    "Settings/RestartOnFailure/Count",
    "Actions/Exec/Command",
    "Actions/Exec/Arguments",
)
"""What counts. The scheduler turns account names into numbers and adds much of its own."""
_LEFT_OUT = {"Settings/MultipleInstancesPolicy": "IgnoreNew", "Settings/Enabled": "true", "Triggers/BootTrigger/Enabled": "true"}
"""Its defaults, which it need not write."""


def task_differs(found: str, wanted: str) -> list[str]:
    """What stands otherwise in the task that Windows has: `Settings/Enabled is 'false'`."""
    try:
        there, ours = _elements(found), _elements(wanted)
    except ElementTree.ParseError as error:
        return [f"its XML cannot be read: {error}"]
    different = []
    for path in _OF_THE_TASK:
        seen = there.findtext(path) or _LEFT_OUT.get(path)
        if seen != ours.findtext(path):
            different.append(f"{path} is {seen!r}")
    return different


def _elements(xml: str) -> ElementTree.Element:
    """The tree without name spaces and without the declaration, whose encoding is not that of what was printed."""
    plain = re.sub(r'\sxmlns="[^"]*"', "", re.sub(r"^\s*<\?xml[^>]*\?>", "", xml))
    return ElementTree.fromstring(plain.strip())


def is_mount(path: Path) -> bool:
    """Whether `path` lies on a Windows drive, which is slow and may be gone."""
    return bool(re.match(r"/mnt/[a-z](/|$)", os.fspath(path)))

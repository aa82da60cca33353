"""The readings of preflight: small, each with a time-out of its own, none able to break another.

What takes heavy packages is asked of short processes of the environment (`python -c`, `python -m stages....`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bible_data.build import Options
from bible_data.errors import CorpusError
from bible_data.sources import find_file, read_text
from daemon import host
from daemon.before_leaving.checks import PACKAGES, NotKnown, Text, Torch, Windows
from daemon.launcher import PROJECT, environment
from daemon.phone import telegram_settings
from state.needs import MemoryAsked, MemoryPredicted, Model, Place, Said
from state.settings import Corpus
from state.workspace import Workspace

ENVIRONMENT_S = 240.0
"""trl alone takes ten seconds of a quiet machine."""
TORCH_S = 120.0
MODELS_S, MODEL_S = 60.0, 25.0
"""For the process, and for each model that it asks the hub about."""
MEMORY_S = 30.0
LISTING_S = 90.0
HEAD_S = 15.0
TELEGRAM_S = 40.0
SHORT_S = 10.0
WINDOWS_S = 45.0
MESSAGE = "Preflight: this chat works."
LAST_WORDS = 160
POWERSHELL = "/mnt/c/Windows/System32/WindowsPowerShell/v1.0/powershell.exe"

T = TypeVar("T")

_TORCH = """
import json, torch
cuda = torch.cuda.is_available()
seen = {"version": torch.__version__, "cuda": cuda}
if cuda:
    torch.zeros(1, device="cuda").add_(1).item()
    seen |= {"device": torch.cuda.get_device_name(0), "total_bytes": torch.cuda.get_device_properties(0).total_memory}
    seen["bf16"] = torch.cuda.is_bf16_supported()
print(json.dumps(seen))
"""
_IMPORTS = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        module = importlib.import_module(name)
        version = getattr(module, "__version__", None) or importlib.import_module(name + ".version").__version__
        print("found", name, version, flush=True)
    except BaseException as error:
        print("fault", name, type(error).__name__, " ".join(str(error).split())[:150], flush=True)
"""
_COMET = "from importlib.metadata import version; import pkg_resources; print(version('unbabel-comet'))"
_WINDOWS = """
$tasks = @(Get-ScheduledTask | Where-Object { $_.TaskName -match 'vigil' } | ForEach-Object { "$($_.TaskName): $($_.State)" })
$config = Get-Content -Raw "$env:USERPROFILE\\.wslconfig" -ErrorAction SilentlyContinue
$standby = powercfg /query SCHEME_CURRENT SUB_SLEEP STANDBYIDLE | Out-String
@{ tasks = $tasks; wslconfig = "$config"; standby = "$standby" } | ConvertTo-Json -Compress
"""


@dataclass(frozen=True)
class Answer:
    """What a command printed, how it ended (None: it was late and was killed), and its last words."""

    out: bytes
    code: int | None
    words: str

    @property
    def why(self) -> str:
        """Why it is no good answer."""
        return "no answer in time" if self.code is None else self.words or f"it ended with code {self.code}"


def gather(readings: Mapping[str, Callable[[], Any]], limits_s: Mapping[str, float]) -> dict[str, Any]:
    """All readings at once, each in a thread; one that fails, or is late by its limit, is NotKnown with the reason."""
    found: dict[str, Any] = {}

    def read(name: str) -> None:
        try:
            found[name] = readings[name]()
        except Exception as error:  # whatever it is, it may not break the others
            found[name] = NotKnown(why(error))

    threads = {name: threading.Thread(target=read, args=(name,), daemon=True) for name in readings}
    started = time.monotonic()
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, started + limits_s[name] - time.monotonic()))
    return {name: found.get(name, NotKnown(f"no answer within {limits_s[name]:.0f} s")) for name in readings}


def why(error: Exception) -> str:
    """What went wrong, on one line: an error of the system in its own words, another one with its name."""
    reason = getattr(error, "reason", error)  # urllib wraps the system's
    known = isinstance(reason, OSError | telegram_settings.SettingsError) or type(reason).__name__ == "UnreachableError"
    text = " ".join(str(getattr(reason, "strerror", None) or reason).split())[:LAST_WORDS]
    return text if known and text else f"{type(reason).__name__}: {text}"


def ask(command: Sequence[str], timeout_s: float, *, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> Answer:
    """Run `command` to its end or to its time-out; then its whole session is killed and not waited for: it may hang in a driver.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(
        list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True
    )
    out: dict[str, bytes] = {"out": b"", "err": b""}

    def talk() -> None:
        with contextlib.suppress(OSError, ValueError):
            out["out"], out["err"] = process.communicate(stdin)

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    talker.join(timeout_s)
    late = talker.is_alive()
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        talker.join(1.0)
    lines = out["err"].decode(errors="replace").strip().splitlines()
    return Answer(out["out"], None if late else process.returncode, lines[-1].strip()[:LAST_WORDS] if lines else "")


# -- the environments


def torch() -> Torch | NotKnown:
    """What the environment's torch sees; a first computation on the GPU included."""
    answer = ask([sys.executable, "-P", "-c", _TORCH], TORCH_S, env=environment())
    return msgspec.convert(msgspec.json.decode(answer.out), Torch) if answer.code == 0 else NotKnown(answer.why)


def packages() -> tuple[dict[str, str], dict[str, str]]:
    """(versions, faults) of what the stages import."""
    answer = ask([sys.executable, "-P", "-c", _IMPORTS, *PACKAGES], ENVIRONMENT_S, env=environment())
    lines = [line.split(" ", 2) for line in answer.out.decode(errors="replace").splitlines()]
    told = [line for line in lines if len(line) == 3]
    return tuple({name: text for kind, name, text in told if kind == wanted} for wanted in ("found", "fault"))  # type: ignore[return-value]


def comet() -> str | NotKnown | None:
    """The version in COMET's environment; None where there is none."""
    folder = Path(os.environ.get("VIGIL_COMET_VENV") or PROJECT / ".venv-comet")
    python = Path(os.environ.get("VIGIL_COMET_PYTHON") or folder / "bin" / "python")
    if not os.access(python, os.X_OK):
        return None
    answer = ask([str(python), "-I", "-W", "ignore", "-c", _COMET], TORCH_S)
    return answer.out.decode().strip() if answer.code == 0 else NotKnown(answer.why)


# -- models and memory


def models(workspace: Workspace, wanted: Sequence[Model]) -> list[Said]:
    """What the hub's process says of them; what it had said when it was late counts."""
    command = [sys.executable, "-P", "-m", "stages.fetch", "look", str(workspace.root)]
    answer = ask(command, MODELS_S + MODEL_S * len(wanted), stdin=msgspec.json.encode(list(wanted)), env=environment())
    said = [msgspec.json.decode(line, type=Said) for line in answer.out.splitlines() if line.endswith(b"}")]
    if not said:
        raise OSError(answer.why)
    return said


def memory(asked: Sequence[MemoryAsked], place: Place) -> list[MemoryPredicted]:
    """The accounts of `stages.footprint`."""
    question = msgspec.json.encode({"wants": list(asked), "place": place})
    answer = ask([sys.executable, "-P", "-m", "stages.footprint"], MEMORY_S, stdin=question, env=environment())
    if answer.code != 0:
        raise OSError(answer.why)
    return msgspec.json.decode(answer.out, type=list[MemoryPredicted])


# -- data


def texts(workspace: Workspace, settings: Corpus, *, quick: bool) -> list[Text]:
    """Every text that the corpus will be built from: found, and unless `quick` read as the build reads it.

    The sample needs no look: it is made by the stage.
    """
    usual = Options()
    source = workspace.root / Path(settings.source).expanduser()
    if (source.name == "formats") and source.is_dir():
        source = source.parent
    named = {"en": settings.english or usual.english, "es": settings.spanish or usual.spanish}
    return [_text(source, language, name, settings.min_verses, quick) for language, names in named.items() for name in names]


def _text(source: Path, language: str, name: str, min_verses: int, quick: bool) -> Text:
    try:
        if quick:
            find_file(source, name)
            return Text(name)
        return Text(name, read_text(source, language, name, min_verses).filled)
    except CorpusError as error:
        return Text(name, fault=str(error))


def listed(url: str, newest: int) -> int | NotKnown:
    """Recordings that the address lists, as yt-dlp sees it."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "yt_dlp",
        "--ignore-config",
        "--no-cache-dir",
        "--flat-playlist",
        "--socket-timeout",
        "15",
    ]
    answer = ask([*command, "--playlist-end", str(newest), "--print", "id", "--", url], LISTING_S, env=environment())
    count = len([line for line in answer.out.splitlines() if line.strip()])
    return count if count else NotKnown(answer.why.removeprefix("ERROR: "))


def built(workspace: Workspace) -> dict[str, int]:
    """Lines of the corpus files that are there; empty where none was built."""
    paths = {"train": workspace.train_pairs, "test": workspace.test_pairs, "glossary": workspace.glossary_pairs}
    return {name: _lines(path) for name, path in paths.items()} if workspace.train_pairs.exists() else {}


def _lines(path: Path) -> int:
    try:
        with open(path, "rb") as file:
            return sum(1 for _line in file)
    except OSError:
        return 0


def recordings_here(workspace: Workspace) -> int:
    """Finished recordings."""
    return len(list(workspace.raw_audio.glob("*.info.json"))) if workspace.raw_audio.is_dir() else 0


# -- the outside


def head(address: str) -> tuple[float, float | None]:
    """(seconds until it answered, how far this clock is ahead of its Date).

    Raises:
        OSError: no answer.
    """
    started = time.monotonic()
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "vigil"})  # http(s) by settings
    try:
        with urllib.request.urlopen(request, timeout=HEAD_S) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # it did answer
        date = error.headers.get("Date")
    took_s, now = time.monotonic() - started, time.time()
    return took_s, None if date is None else now - took_s / 2 - parsedate_to_datetime(date).timestamp()


def synchronized() -> bool | None:
    """Whether systemd says that NTP keeps the clock; None where it does not say."""
    if shutil.which("timedatectl") is None:
        return None
    answer = ask(["timedatectl", "show", "-p", "NTPSynchronized", "--value"], SHORT_S)
    return {b"yes": True, b"no": False}.get(answer.out.strip())


def telegram(workspace: Workspace, *, quick: bool) -> tuple[str | None, bool]:
    """(the bot's name, whether a silent message arrived); no name where nobody is paired.

    Raises:
        SettingsError, UnreachableError: with a sentence that holds no token.
    """
    settings = telegram_settings.load(workspace, os.environ)
    if settings is None:
        return None, False
    from daemon.aside import Loop
    from daemon.phone.secrecy import prepare

    prepare(settings.token)
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(asyncio.wait_for(_round_trip(settings, quick=quick), TELEGRAM_S))


async def _round_trip(settings: telegram_settings.Telegram, *, quick: bool) -> tuple[str, bool]:
    from daemon.phone.dialogue import Message
    from daemon.phone.outbox import Deliver
    from daemon.phone.wire import Arrived, Wire

    wire = Wire(settings.token, settings.base_url, settings.chat_id)
    try:
        name = await wire.name()
        if quick:
            return name, False
        ending = await wire.deliver(Deliver(Message(key="preflight", html=MESSAGE), silent=True))
        return name, isinstance(ending, Arrived)
    finally:
        await wire.close()


def telegram_address(workspace: Workspace) -> str:
    """Where the Bot API is."""
    with contextlib.suppress(telegram_settings.SettingsError):
        return telegram_settings.read_file(telegram_settings.folders(workspace, os.environ))[1].base_url
    return telegram_settings.API


# -- away from home


def service() -> tuple[str | NotKnown, str]:
    """What systemd says of the unit: (is-enabled, is-active)."""
    if shutil.which("systemctl") is None:
        return NotKnown("no systemd here"), ""
    enabled, active = (ask(["systemctl", verb, "vigil.service"], SHORT_S) for verb in ("is-enabled", "is-active"))
    if enabled.code is None or (not enabled.out.strip() and "not been booted" in enabled.words):
        return NotKnown(f"systemd does not run here ({enabled.why})"), ""
    return enabled.out.decode(errors="replace").strip(), active.out.decode(errors="replace").strip()


def windows(version: Path = Path("/proc/version")) -> Windows | NotKnown | None:
    """Windows' own settings, by PowerShell; None where this is no WSL."""
    powershell = (
        os.environ.get("POWERSHELL") or shutil.which("powershell.exe") or (POWERSHELL if Path(POWERSHELL).exists() else None)
    )
    if "microsoft" not in version.read_text().lower():
        return None
    if powershell is None:
        return NotKnown("powershell.exe is not on the path (interop is off)")
    answer = ask([powershell, "-NoProfile", "-NonInteractive", "-Command", _WINDOWS], WINDOWS_S)
    if answer.code != 0:
        return NotKnown(f"PowerShell: {answer.why}")
    text = answer.out.decode("utf-16-le" if b"\0" in answer.out[:4] else "utf-8", "replace")
    found = re.search(r"\{.*\}", text, re.DOTALL)
    return msgspec.json.decode(found[0], type=Windows) if found else NotKnown("PowerShell said nothing")


def disks(workspace: Workspace, cache: Path) -> tuple[host.Disk, host.Disk, host.Disk | None, bool]:
    """(the workspace's, the cache's, Windows' drive where there is one, whether the first two are one file system)."""
    found = host.read_disks(workspace)
    own = host.read_disks(Workspace.at(cache))[0]
    same = Path(found[0].path).stat().st_dev == Path(own.path).stat().st_dev
    return found[0], own, found[1] if len(found) > 1 else None, same

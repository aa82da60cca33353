"""A computer to install on, in a folder: its /etc, and a Windows around it that answers as the real one does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
SCRIPT = CHECKOUT / "install_wsl_service.sh"
SHIM = Path(__file__).parent / "windows_shims" / "shim.py"
TOOLS = ("powershell.exe", "wsl.exe", "schtasks.exe", "powercfg.exe", "wslpath")
TASK = "Vigil keep-alive"
TOKEN = "123456:" + "A" * 35


def make_windows(folder: Path, **settings: Any) -> None:
    """Its programs, and what it is like (see the shim)."""
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"standby_s": 1800, "hibernate": 1, **settings}))
    program = f"#!{sys.executable} -IS\n{SHIM.read_text()}"
    for tool in TOOLS:
        (folder / tool).write_text(program)
        (folder / tool).chmod(0o755)


class Scene:
    """DESTDIR, with or without a Windows around it."""

    def __init__(self, folder: Path, *, wsl: bool = True, **settings: Any) -> None:
        self.root = folder / "computer"
        self.windows = folder / "windows"
        self.profile = self.root / "mnt/c/Users/Jörg Müller"
        self.pipeline = folder / "the pipeline.toml"
        for path in (self.root / "etc/systemd/system", self.root / "proc/sys/kernel", self.root / "var/lib", self.profile):
            path.mkdir(parents=True)
        release = "6.6.87.2-microsoft-standard-WSL2" if wsl else "6.8.0-45-generic"
        (self.root / "proc/sys/kernel/osrelease").write_text(f"{release}\n")
        make_windows(self.windows, **settings)
        self.pipeline.write_text('name = "away"\n[[stage]]\nname = "probe"\nmodule = "tests.process.probe"\n')
        self.token = folder / "token"
        self.token.write_text(f"{TOKEN}\n")

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "DESTDIR": str(self.root),
            "WINDOWS": str(self.windows),
            "PATH": f"{self.windows}:{os.environ['PATH']}",
        }

    def call(self, *arguments: str, before: Sequence[str] = (), answers: str = "") -> subprocess.CompletedProcess[str]:
        """install_wsl_service.sh with these arguments."""
        command = [*before, str(SCRIPT), *arguments]
        return subprocess.run(command, env=self.environ, input=answers, text=True, capture_output=True, timeout=120, check=False)

    def install(self, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """`install --yes` with what it must know."""
        told = ("--pipeline", str(self.pipeline), "--workspace", "/srv/the run", "--user", "root", "--token-file", str(self.token))
        return self.call("install", "--yes", *told, *more, before=before)

    def asked(self, tool: str = "") -> list[list[str]]:
        """What Windows was asked for, one tool or all; mere questions left out."""
        path = self.windows / "asked.jsonl"
        all_of_it = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        questions = {"/query", "-NoProfile", "--list", "-u", "-w"}
        return [one for one in all_of_it if one[1] not in questions and one[0].startswith(tool)]

    def setting(self, name: str) -> Any:
        """How Windows is set now."""
        return json.loads((self.windows / "settings.json").read_text())[name]

    @property
    def task(self) -> Path:
        """Where this Windows keeps the task."""
        return self.windows / "tasks" / f"{TASK}.xml"

    def files(self) -> dict[str, tuple[object, ...]]:
        """Every file and folder that may be written, down to the nanosecond."""
        return {**snapshot(self.root / "etc"), **snapshot(self.root / "mnt"), **snapshot(self.root / "var")}


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Of everything below a folder: type and mode, owner, content or target, and a file's time."""
    seen: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        found = path.lstat()
        if path.is_symlink():
            seen[str(path)] = ("link", os.readlink(path))  # noqa: PTH115  the text itself
        elif path.is_dir():
            seen[str(path)] = ("folder", oct(found.st_mode), found.st_uid, found.st_gid)
        else:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            seen[str(path)] = (digest, oct(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns)
    return seen

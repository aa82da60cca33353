"""An environment's folder: its paths, its record, its lock, who uses it, and torch's files in it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from locks.plan import EXIT_MISCONFIGURED, EXIT_TRY_AGAIN, ROOT, Record, SetupError

# What belongs to torch in site-packages: its own folders and those of the CUDA libraries that a CUDA build brings along.
TORCH_PARTS = ("torch", "torch-*.dist-info", "torchgen", "functorch", "nvidia*", "triton*", "cuda*", "_cuda_*")


@dataclass(frozen=True)
class Environment:
    """One environment's folder and the paths in it that matter here."""

    folder: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    @property
    def own(self) -> Path:
        """Where the record, the stamps and the log of the set-up lie."""
        return self.folder / "vigil"

    @property
    def usable(self) -> bool:
        """Whether the interpreter is there: not so when the Python it was made with has been removed."""
        return os.access(self.python, os.X_OK)

    @property
    def site_packages(self) -> Path:
        """The one folder that packages are installed to."""
        found = sorted((self.folder / "lib").glob("python3.*/site-packages"))
        if len(found) != 1:
            text = f"{self.folder} has {len(found)} site-packages folders, not one: remove it and give the same command again"
            raise SetupError(EXIT_TRY_AGAIN, text)
        return found[0]

    @property
    def version(self) -> str:
        """Major and minor version of the environment's Python, `3.12`."""
        return self.site_packages.parent.name.removeprefix("python")

    def read_record(self) -> Record:
        """What the last set-up left. A folder made by other means is adopted if it is whole; its packages are then checked.

        Raises SetupError for a folder that is not an environment: it is never emptied.
        """
        unfinished = Record(root=str(ROOT), begun="environment")
        try:
            raw = json.loads((self.own / "record.json").read_text())
            return Record(root=str(raw["root"]), begun=raw["begun"], done=dict(raw["done"]))
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError):
            return unfinished
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return unfinished
        if not (self.folder / "pyvenv.cfg").is_file() and not self.own.is_dir():
            text = f"{self.folder} is not an environment and is not empty: name another folder, or remove it"
            raise SetupError(EXIT_MISCONFIGURED, text)
        activate = self.folder / "bin" / "activate"  # the standard library's venv writes it after it has installed pip
        whole = activate.is_file() and self.usable and self._has_pip()
        return Record(root=str(ROOT), done={"environment": self.version}) if whole else unfinished

    def _has_pip(self) -> bool:
        command = [str(self.python), "-I", "-m", "pip", "--version"]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def write_record(self, record: Record) -> None:
        """Replaces the record; it is on the disk when this returns."""
        write_durably(self.own / "record.json", json.dumps(asdict(record), indent=1) + "\n")

    def clear(self) -> None:
        """Removes everything but the record and the log, which say that this is going on."""
        for stamp in self.own.glob("*.stamp"):
            stamp.unlink()
        for entry in self.folder.iterdir():
            if entry != self.own:
                _remove(entry)


def write_durably(path: Path, text: str) -> None:
    """Replaces a file whole; its content is on the disk when this returns."""
    new = path.with_name(path.name + ".new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _remove(path: Path) -> None:
    """Removes a file, a link (never what it points to) or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def users_of(folder: Path) -> list[int]:
    """Ids of the running processes that were started by the environment's own interpreter."""
    prefix = os.fsencode(folder / "bin") + b"/"
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or belongs to somebody else
        if command.startswith(prefix) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return sorted(found)


@contextmanager
def only_one(folder: Path, tell: Callable[[str], None]) -> Iterator[int]:
    """Holds the lock of the set-ups in `folder`'s parent; yields its descriptor.

    Installers inherit the descriptor, so one that outlives a killed set-up keeps the next set-up waiting until it is done.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another set-up is at work in {folder.parent}; waiting for it to end")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _torch_parts(site_packages: Path) -> list[Path]:
    return sorted({path for pattern in TORCH_PARTS for path in site_packages.glob(pattern)})


def discard_torch(env: Environment) -> None:
    """Removes torch and its libraries, or the links to another environment's."""
    for part in _torch_parts(env.site_packages):
        _remove(part)


def share_torch(main: Environment, env: Environment) -> bool:
    """Links `main`'s torch and its libraries into `env`; False, and nothing done, if the Pythons differ or `main` has no torch."""
    if not main.usable or main.version != env.version:
        return False
    parts = _torch_parts(main.site_packages)
    if not any(part.name == "torch" for part in parts):
        return False
    for part in parts:
        (env.site_packages / part.name).symlink_to(part)
    return True

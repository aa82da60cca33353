"""A small registry of wheels made on the spot, for the tests of the set-up: no network, real archives, real hashes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MANY_FILES = 4000  # enough for pip to take seconds over them
TORCH = '__version__ = "2.13.0+small"\nclass cuda:\n    is_available = staticmethod(lambda: False)\n'


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """A wheel of pure Python files; METADATA and WHEEL are made up where `files` does not hold them."""
    info = f"{name}-{version}.dist-info"
    whole = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **files,
    }
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, data in whole.items():
            wheel.writestr(inside, data)
        wheel.writestr(f"{info}/RECORD", "".join(f"{inside},,\n" for inside in [*whole, f"{info}/RECORD"]))
    return path


def setuptools_wheel(folder: Path) -> Path:
    """The setuptools of this environment, packed up again: what builds the project in the small environment too."""
    found = importlib.metadata.distribution("setuptools")
    own = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    files = {
        str(file): file.read_binary()
        for file in found.files or []
        if ".." not in file.parts and file.suffix != ".pyc" and not (file.name in own and ".dist-info" in file.parts[0])
    }
    return write_wheel(folder, "setuptools", found.version, files)


def lock_of(*wheels: Path) -> str:
    """The lock file that pins these wheels by hash."""
    lines = []
    for wheel in wheels:
        name, version, _ = wheel.name.split("-", 2)
        lines.append(f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines)


@dataclass(frozen=True)
class Wheels:
    """The small registry of these tests."""

    folder: Path
    alpha: Path
    alpha_2: Path
    big: Path
    tool: Path
    comet: Path
    setuptools: Path


def make_wheels(folder: Path) -> Wheels:
    """Fills `folder` with the wheels."""
    parts = {f"big/part_{number:05}.txt": b"x" * 200 for number in range(MANY_FILES)}
    write_wheel(folder, "torch", "2.13.0", {"torch/__init__.py": TORCH.encode(), "torchgen/__init__.py": b""})
    return Wheels(
        folder=folder,
        alpha=write_wheel(folder, "alpha", "1.0", {"alpha.py": b'VERSION = "1.0"'}),
        alpha_2=write_wheel(folder, "alpha", "2.0", {"alpha.py": b'VERSION = "2.0"'}),
        big=write_wheel(folder, "big", "1.0", parts),
        tool=write_wheel(folder, "tool", "1.0", {"tool.py": b""}),
        comet=write_wheel(folder, "small_comet", "1.0", {"comet/__init__.py": b""}),
        setuptools=setuptools_wheel(folder),
    )

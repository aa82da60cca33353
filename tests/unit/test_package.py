"""The packages keep to the imports that the design allows them, and are ours."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("bible_data", "daemon", "stages", "state")
HEAVY = ("torch", "transformers", "numpy", "scipy", "datasets", "peft", "trl", "faster_whisper", "av", "stages")
ON_COMETS_SIDE = {"comet_process.py", "tiny_comet.py"}  # run in COMET's own environment, on the packages of comet.lock
STATE_MAY_IMPORT = {"state", "msgspec", "transitions"}


def modules_of(package: str) -> list[str]:
    """The dotted names of a package's modules."""
    files = sorted((ROOT / package).rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]


def imports_of(file: Path) -> set[str]:
    """The top-level names that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{file} has a relative import"
            found.add(node.module.partition(".")[0])
    return found


def loaded_by(modules: list[str]) -> dict[str, str | None]:
    """What a fresh process has in sys.modules after importing `modules`, with the file of each."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(json.dumps({name: getattr(module, '__file__', None) for name, module in sys.modules.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_daemon_stays_light_and_is_ours() -> None:
    """Importing every module of daemon, state and bible_data loads nothing heavy and no stage, and `daemon` is this checkout's."""
    modules = [
        name for package in ("daemon", "state", "bible_data") for name in modules_of(package) if not name.endswith("__main__")
    ]
    assert len(modules) > 3
    loaded = loaded_by(modules)
    assert [name for name in HEAVY if name in loaded] == []
    for package in ("daemon", "state", "bible_data"):
        assert loaded[package] == str(ROOT / package / "__init__.py")


@pytest.mark.parametrize("file", sorted((ROOT / "state").rglob("*.py")), ids=lambda file: file.stem)
def test_state_imports_little(file: Path) -> None:
    """state imports the standard library, msgspec and, in machine.py alone, transitions."""
    foreign = {name for name in imports_of(file) if name not in sys.stdlib_module_names}
    allowed = STATE_MAY_IMPORT if file.name == "machine.py" else STATE_MAY_IMPORT - {"transitions"}
    assert foreign <= allowed


@pytest.mark.parametrize("file", sorted((ROOT / "locks").glob("*.py")), ids=lambda file: file.stem)
def test_set_up_needs_nothing_installed(file: Path) -> None:
    """locks imports the standard library alone."""
    assert {name for name in imports_of(file) if name not in sys.stdlib_module_names} <= {"locks"}


def test_no_name_is_taken() -> None:
    """No module of ours hides one of the standard library or of a dependency."""
    taken = {name for name, sold_as in importlib.metadata.packages_distributions().items() if set(sold_as) != {"vigil-train"}}
    assert not {*OURS, "locks"} & (taken | set(sys.stdlib_module_names))


def test_every_import_is_declared() -> None:
    """What the code imports from outside is named in pyproject.toml, so that a lock made from it is complete."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["train"], *extras["mirror"], *extras["separation"]]
    declared = {name_of(line) for line in lines}
    sold_as = importlib.metadata.packages_distributions()
    missing = {}
    for file in (file for package in OURS for file in (ROOT / package).rglob("*.py") if file.name not in ON_COMETS_SIDE):
        for name in imports_of(file) - {*OURS, *sys.stdlib_module_names}:
            if not declared & {name_of(sold) for sold in sold_as.get(name, [name])}:
                missing[name] = str(file.relative_to(ROOT))
    assert missing == {}


@pytest.mark.parametrize("kind", ["main", "dev", "comet", "mirror"])
def test_locks_pin_what_is_asked_for_and_no_place(kind: str) -> None:
    """Each lock pins every name of its `.in` file, every line with a hash, and tells no place to download from."""
    text = (ROOT / "locks" / f"{kind}.lock").read_text()
    assert "://" not in text
    assert "index" not in text.replace("rapidfuzz", "")
    blocks = text.replace("\\\n", "").splitlines()
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)
    pinned = {name_of(block) for block in blocks}
    asked = {
        name_of(line) for line in (ROOT / "locks" / f"{kind}.in").read_text().splitlines() if line and not line.startswith("#")
    }
    assert asked <= pinned
    assert "torch" not in pinned


def test_lock_covers_the_dependencies() -> None:
    """Every dependency of pyproject.toml is pinned in the lock that serves it; torch stands in torch.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        kind: {name_of(line) for line in (ROOT / "locks" / f"{kind}.lock").read_text().splitlines()}
        for kind in ("main", "dev", "mirror")
    }
    torch = {name_of((ROOT / "locks" / "torch.txt").read_text())}
    assert {name_of(line) for line in [*project["dependencies"], *project["optional-dependencies"]["train"]]} <= pinned[
        "main"
    ] | torch
    for extra in ("dev", "mirror"):
        assert {name_of(line) for line in project["optional-dependencies"][extra]} <= pinned[extra]


def name_of(requirement: str) -> str:
    """`Faster_Whisper>=1.2` -> `faster-whisper`."""
    name = requirement.strip()
    for stop in "[=<>!~ ;#\\":
        name = name.partition(stop)[0]
    return name.lower().replace("_", "-").replace(".", "-")

"""What an environment is made from, what was done to it and what is left to do: values only, no files are changed here."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"

EXIT_TRY_AGAIN = 75  # the network, the disk or another process stood in the way
EXIT_MISCONFIGURED = 78  # the owner must change a setting

# Steps that leave doubt about every package when cut short: neither pip nor uv can tell a half-unpacked package from a whole one.
DOUBTFUL_STEPS = ("environment", "packages", "dev", "comet")


class SetupError(Exception):
    """The environment could not be made; the text says why and what to do, the code becomes the exit status."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Record:
    """How far an environment has come: the steps done, each with a digest of what it was done from, and the one under way."""

    root: str
    begun: str | None = None
    done: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to do: empty the folder first or not, which steps to take, and whether packages that worked so far get replaced."""

    clear: bool
    steps: tuple[str, ...]
    replaces: bool


def make_plan(record: Record, wanted: Mapping[str, str], *, usable: bool) -> Plan:
    """The steps of `wanted` (in order, step to digest) that `record` does not vouch for, and every step after the first of them.

    `usable` says whether the folder's Python can still be started. The folder is emptied when it cannot, when a doubtful step was
    interrupted, when the checkout was moved (scripts carry full paths) and when another version of Python is asked for.
    """
    interrupted = record.begun in DOUBTFUL_STEPS
    python = wanted.get("environment", "any")
    other_python = python != "any" and record.done.get("environment", python) != python
    if not usable or interrupted or other_python or record.root != str(ROOT):
        return Plan(clear=True, steps=tuple(wanted), replaces="environment" in record.done and not interrupted)
    stale = [step for step, digest in wanted.items() if not _vouched(record, step, digest)]
    if not stale:
        return Plan(clear=False, steps=(), replaces=False)
    steps = tuple(wanted)[tuple(wanted).index(stale[0]) :]
    replaces = record.begun is None and any(step in record.done and step != "project" for step in stale)
    return Plan(clear=False, steps=steps, replaces=replaces)


def _vouched(record: Record, step: str, digest: str) -> bool:
    done = record.done.get(step)
    return record.begun != step and done is not None and (step == "environment" or done == digest)


def digest_of(*parts: bytes | str) -> str:
    """A short name for the parts' content; where one part ends and the next begins matters."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:16]


def wanted_steps(kind: str, main_folder: Path, *, python: str) -> dict[str, str]:
    """The steps of one kind of environment, in order, each with a digest of what it is made from. `python`: `any` or a version."""
    torch = digest_of((LOCKS / "torch.txt").read_bytes())
    lock = digest_of((LOCKS / f"{kind}.lock").read_bytes())
    if kind == "dev":
        return {"dev": lock}
    if kind == "comet":
        return {"environment": python, "comet": lock, "torch": digest_of(torch, str(main_folder)), "check": digest_of(lock, torch)}
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())
    about = [described.get("project"), described.get("build-system"), described.get("tool", {}).get("setuptools")]
    return {"environment": python, "packages": lock, "torch": torch, "project": digest_of(json.dumps(about, sort_keys=True))}


def title_of(step: str) -> str:
    """What a step is called on the screen."""
    named = {
        "environment": "an empty environment",
        "packages": "the packages of locks/main.lock",
        "dev": "the tools of locks/dev.lock",
        "comet": "the packages of locks/comet.lock",
        "torch": (LOCKS / "torch.txt").read_text().strip(),
        "project": "Vigil itself",
        "check": "a look at what was installed",
    }
    return named[step]

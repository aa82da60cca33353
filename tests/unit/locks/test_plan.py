"""What a set-up decides to do, from what the record says and what is wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from packaging.requirements import Requirement

from locks.plan import LOCKS, ROOT, Plan, Record, digest_of, make_plan, title_of, wanted_steps

WANTED = {"environment": "any", "packages": "p1", "torch": "t1", "project": "v1"}
DONE = Record(root=str(ROOT), done={"environment": "3.11", "packages": "p1", "torch": "t1", "project": "v1"})
NOTHING = Plan(clear=False, steps=(), replaces=False)


def test_nothing_to_do() -> None:
    """A record that vouches for every step leaves nothing to do."""
    assert make_plan(DONE, WANTED, usable=True) == NOTHING


def test_first_time() -> None:
    """Without a finished environment the folder is emptied and every step is taken; nothing in use is replaced."""
    started = Record(root=str(ROOT), begun="environment")
    assert make_plan(started, WANTED, usable=False) == Plan(clear=True, steps=tuple(WANTED), replaces=False)


@pytest.mark.parametrize("begun", ["environment", "packages", "dev", "comet"])
def test_doubt_empties_the_folder(begun: str) -> None:
    """An interrupted install of locked packages leaves half-unpacked ones that no installer notices, so all is made anew."""
    plan = make_plan(replace(DONE, begun=begun), WANTED, usable=True)
    assert plan == Plan(clear=True, steps=tuple(WANTED), replaces=False)


@pytest.mark.parametrize(("begun", "steps"), [("torch", ("torch", "project")), ("project", ("project",))])
def test_interrupted_alone(begun: str, steps: tuple[str, ...]) -> None:
    """torch and the project can be done again without the rest, and the steps after them follow."""
    done = {step: digest for step, digest in DONE.done.items() if step not in steps}
    assert make_plan(Record(str(ROOT), begun, done), WANTED, usable=True) == Plan(clear=False, steps=steps, replaces=False)


def test_interrupted_update_does_not_count_as_done() -> None:
    """A step that had been done once and was begun again is done again, though its old digest is the wanted one."""
    assert make_plan(replace(DONE, begun="torch"), WANTED, usable=True).steps == ("torch", "project")


def test_new_lock_replaces() -> None:
    """A changed lock is installed over the old one, which a running process would feel; a changed pyproject.toml is not felt."""
    assert make_plan(DONE, {**WANTED, "packages": "p2"}, usable=True) == Plan(False, ("packages", "torch", "project"), True)
    assert make_plan(DONE, {**WANTED, "project": "v2"}, usable=True) == Plan(False, ("project",), False)


@pytest.mark.parametrize(
    ("record", "wanted", "usable"),
    [
        (replace(DONE, root="/elsewhere"), WANTED, True),
        (DONE, {**WANTED, "environment": "3.12"}, True),
        (DONE, WANTED, False),
    ],
    ids=["moved", "other Python asked for", "Python removed"],
)
def test_remade(record: Record, wanted: dict[str, str], usable: bool) -> None:
    """A moved checkout, another Python and a removed one each need a new environment in place of a finished one."""
    assert make_plan(record, wanted, usable=usable) == Plan(clear=True, steps=tuple(WANTED), replaces=True)


def test_asking_for_the_same_python_changes_nothing() -> None:
    """VIGIL_PYTHON of the version that is there already is no reason to start again."""
    assert make_plan(DONE, {**WANTED, "environment": "3.11"}, usable=True) == NOTHING


def test_adopted_folder_is_completed() -> None:
    """An environment made by hand counts as an empty one: all packages are gone through, nothing is removed."""
    adopted = Record(root=str(ROOT), done={"environment": "3.11"})
    assert make_plan(adopted, WANTED, usable=True) == Plan(False, ("packages", "torch", "project"), False)


def test_dev_tools_stand_beside() -> None:
    """The dev tools are one more step in the same folder."""
    assert make_plan(DONE, {"dev": "d1"}, usable=True) == Plan(clear=False, steps=("dev",), replaces=False)
    assert make_plan(replace(DONE, done={**DONE.done, "dev": "d1"}), {"dev": "d1"}, usable=True) == NOTHING


def test_digests() -> None:
    """A digest depends on the content and on where its parts end."""
    assert digest_of("a", b"b") == digest_of(b"a", "b")
    assert len({digest_of("ab"), digest_of("a", "b"), digest_of("b", "a"), digest_of()}) == 4


def test_steps_of_the_real_locks() -> None:
    """Each kind has its steps in order, each with a title, and COMET's torch depends on where the main environment lies."""
    kinds = {kind: wanted_steps(kind, ROOT / ".venv", python="any") for kind in ("main", "dev", "comet")}
    assert {kind: list(steps) for kind, steps in kinds.items()} == {
        "main": ["environment", "packages", "torch", "project"],
        "dev": ["dev"],
        "comet": ["environment", "comet", "torch", "check"],
    }
    titles = [title_of(step) for steps in kinds.values() for step in steps]
    assert len(set(titles)) == 7
    assert any(title.startswith("torch==") for title in titles)
    assert wanted_steps("comet", ROOT / "other", python="any")["torch"] != kinds["comet"]["torch"]


@pytest.mark.parametrize("lock", ["main", "dev", "mirror"])
def test_every_python_gets_the_same_versions(lock: str) -> None:
    """What is proven on one of the supported versions of Python is what runs on the others, to the last digit."""
    lines = [line.rstrip("\\ ") for line in (LOCKS / f"{lock}.lock").read_text().splitlines() if "==" in line]
    wanted = [Requirement(line) for line in lines]
    chosen = []
    for python in ("3.11", "3.12", "3.13"):
        marks = {
            "python_version": python,
            "python_full_version": f"{python}.3",
            "sys_platform": "linux",
            "platform_system": "Linux",
        }
        chosen.append({one.name: str(one.specifier) for one in wanted if one.marker is None or one.marker.evaluate(marks)})
    assert chosen[0]
    assert chosen[0] == chosen[1] == chosen[2]

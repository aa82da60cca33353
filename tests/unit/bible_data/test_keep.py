"""What an interrupted build keeps: taken over if it is whole and belongs to the same inputs, else made again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bible_data.build import GLOSSARY, MANIFEST, TEST, TRAIN, Options, build
from bible_data.keep import Keep, inputs_digest
from bible_data.sample import ENGLISH, SPANISH

OPTIONS = Options(english=ENGLISH, spanish=SPANISH, min_verses=1500)
NAMES = [("en", name) for name in ENGLISH] + [("es", name) for name in SPANISH]
FILES = (TRAIN, TEST, GLOSSARY, MANIFEST)


class StopAskedError(Exception):
    """What ends a build between two steps."""


class Run:
    """Builds of the sample into one folder; `said` are the steps of the last one."""

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.out, self.keep = source, root / "out", root / "keep"
        self.said: list[str] = []

    def build(self, stop_before: str = "never") -> None:
        self.said = []

        def progress(_done: int, _total: int, message: str) -> None:
            self.said.append(message)
            if message == stop_before:
                raise StopAskedError

        build(self.source, self.out, OPTIONS, progress=progress, keep=self.keep)

    @property
    def made(self) -> set[str]:
        return {message for message in self.said if "kept" not in message} - {"done"}


@pytest.fixture(scope="module")
def whole(sample_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus built without a folder to keep anything in."""
    out = tmp_path_factory.mktemp("whole")
    build(sample_folder, out, OPTIONS)
    return out


@pytest.mark.parametrize(
    "stop", ["cleaning MuestraA", "checking that MuestraA is aligned", "splitting the references", "writing the glossary"]
)
def test_a_build_goes_on_with_the_step_in_flight(sample_folder: Path, whole: Path, tmp_path: Path, stop: str) -> None:
    """The second build makes the step before which the first one ended and those after it, no other; the bytes are the same."""
    run = Run(sample_folder, tmp_path)
    with pytest.raises(StopAskedError):
        run.build(stop)
    before = run.made
    run.build()
    assert before & run.made == {stop}
    assert [(run.out / name).read_bytes() for name in FILES] == [(whole / name).read_bytes() for name in FILES]
    assert [path for path in run.out.rglob(".*") if path.is_file()] == []


@pytest.mark.parametrize("damage", ["flipped", "cut", "emptied"])
def test_a_damaged_unit_is_made_again(sample_folder: Path, whole: Path, tmp_path: Path, damage: str) -> None:
    """A unit that differs from its digest does not count, and neither does a file of pairs."""
    run = Run(sample_folder, tmp_path)
    run.build()
    for path in (next(run.keep.glob("*/splitting*")), run.out / TEST):
        content = path.read_bytes()
        middle = len(content) // 2
        kinds = {"flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :], "cut": content[:middle]}
        path.write_bytes(kinds.get(damage, b""))
    run.build()
    assert run.made == {"splitting the references", "writing the test pairs"}
    assert [(run.out / name).read_bytes() for name in FILES] == [(whole / name).read_bytes() for name in FILES]


def test_other_inputs_are_other_units(sample_folder: Path, tmp_path: Path) -> None:
    """A changed text, licence note or option gives another digest; units under another digest are removed."""
    source = shutil.copytree(sample_folder, tmp_path / "source")
    digests = [inputs_digest(source, NAMES, OPTIONS), inputs_digest(source, NAMES, Options(ENGLISH, SPANISH, 1501))]
    for path in (source / "formats/csv/MuestraB.csv", source / "sources/en/SampleA/README.md"):
        path.write_bytes(path.read_bytes() + b"\n")
        digests.append(inputs_digest(source, NAMES, OPTIONS))
    assert len(set(digests)) == 4
    Keep(tmp_path / "keep", digests[0]).write("a step", [1])
    assert Keep(tmp_path / "keep", digests[0]).read("a step") == [1]
    assert Keep(tmp_path / "keep", digests[1]).read("a step") is None
    assert Keep(tmp_path / "keep", digests[0]).read("a step") is None

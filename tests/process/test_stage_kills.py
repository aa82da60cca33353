"""Promise 5: every stage resumes inside itself: killed at random instants it repeats no finished unit and ends the same."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import soundfile

from bible_data.sample import write_sample
from daemon.before_leaving.demo_server import Clip, Faults, serve
from stages import tiny
from stages.comet_scores import comet_python
from state.contract import Spec
from state.durable import tree_digest
from state.workspace import Workspace
from tests.process.forks import Forks, harry, numbered, result_of, told

AUDIO = Path(__file__).resolve().parents[2] / "pipelines" / "demo_audio"
SPEAKERS = ("bread", "lamp", "river", "table")
KILLS = [2, pytest.param(10, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    stages = ("download", "corpus", "preprocess", "transcribe", "evaluate")
    with Forks(*(f"stages.{stage}" for stage in stages), "faster_whisper", "faster_whisper.vad") as started:
        yield started


def spec_of(root: Path, stage: str, **settings: Any) -> Spec:
    return Spec(run_id="r", stage=stage, module=f"stages.{stage}", attempt=1, workspace=str(root), settings=settings)


def lasts_s(spec: Spec, seconds: float, begins: Callable[[dict[str, Any]], bool]) -> tuple[float, float]:
    """Of an undisturbed attempt: seconds to the event with which the work begins, and to its end."""
    first_at = next(event["at"] for event in told(spec) if begins(event))
    return seconds - (result_of(spec).at - first_at), seconds


def at_work(event: dict[str, Any]) -> bool:
    return event["type"] == "progress" and event["done"] > 0


class Units:
    """The units that were finished when an attempt was killed; none of them may be worked on again."""

    def __init__(self, finished: Callable[[], set[str]], worked_on: Callable[[int], set[str]]) -> None:
        self.finished, self.worked_on = finished, worked_on
        self.at_kill: dict[int, set[str]] = {}

    def look(self, attempt: int) -> None:
        self.at_kill[attempt] = self.finished()

    def check(self, attempts: int) -> None:
        """No attempt worked on a unit that was finished at an earlier kill, and some were finished before the last kill."""
        kept: set[str] = set()
        for number in range(1, attempts + 1):
            again = self.worked_on(number) & kept
            assert not again, f"attempt {number} did again {sorted(again)}"
            kept |= self.at_kill.get(number, set())
        assert kept


def folder_digest(path: Path) -> str:
    return tree_digest(path)[0]


# -- download


@pytest.mark.slow
@pytest.mark.parametrize("kills", KILLS)
def test_download(forks: Forks, tmp_path: Path, kills: int) -> None:
    """Unit: a recording, and the listing. The server's log: of what was finished at a kill, nothing is asked for again."""
    (tmp_path / "site").mkdir()
    clips = []
    for number in range(6):
        file = tmp_path / "site" / f"file{number}.flac"
        shutil.copy(AUDIO / f"{SPEAKERS[number % 4]}.flac", file)
        clips.append(Clip(f"clip{number}", f"Title {number}", file, soundfile.info(file).duration))
    with serve(tmp_path / "site", faults=Faults(seconds_per_block=0.005 * kills), clips=clips) as server:
        settings = {"url": server.feed_url, "newest": 6, "min_duration_s": 1.0, "first_delay_s": 0.01}
        whole = spec_of(tmp_path / "whole", "download", **settings)
        ended = forks.run(whole)
        spec = spec_of(tmp_path / "killed", "download", **settings)
        workspace = Workspace.at(spec.workspace)
        asked: dict[str, int] = {}

        def look(_attempt: int = 0) -> None:
            names = {f"file{int(path.name[:3]) - 1}.flac" for path in workspace.raw_audio.glob("*.info.json")}
            names |= {"feed.xml"} if (workspace.scratch("download") / "listing.json").exists() else set()
            for name in names:
                assert asked.setdefault(name, server.requests[name]) == server.requests[name], name

        harry(forks, spec, random.Random(kills), kills, lasts_s(whole, ended.seconds, at_work), "recordings", killed=look)
        last = dict(asked)
        look()
        assert last
        assert last.items() <= asked.items()
    assert folder_digest(workspace.raw_audio) == folder_digest(tmp_path / "whole" / "stark_data" / "raw")


# -- corpus


@pytest.mark.parametrize("kills", KILLS)
def test_corpus(forks: Forks, tmp_path: Path, kills: int) -> None:
    """Unit: a step of the build for one text, the split, a file of pairs. A kept one is announced as such, and never made again."""
    source = write_sample(tmp_path / "source")
    settings = {"source": str(source), "english": ("SampleA", "SampleB"), "spanish": ("MuestraA", "MuestraB"), "min_verses": 1000}
    whole = spec_of(tmp_path / "whole", "corpus", **settings)
    ended = forks.run(whole)
    spec = spec_of(tmp_path / "killed", "corpus", **settings)
    workspace = Workspace.at(spec.workspace)

    def finished() -> set[str]:
        return {path.stem for path in workspace.scratch("corpus").glob("units/*/[!.]*.json")}

    def worked_on(number: int) -> set[str]:
        said = [event["message"] for event in told(numbered(spec, number)) if event["type"] == "progress"]
        return {re.sub("[^A-Za-z0-9_-]", "_", message) for message in said if "kept" not in message}

    units = Units(finished, worked_on)
    begins = lasts_s(whole, ended.seconds, lambda event: event["type"] == "progress")
    units.check(
        harry(forks, spec, random.Random(kills), kills, begins, "steps", phases=[("writing the train", 0.05)], killed=units.look)
    )
    assert folder_digest(workspace.corpus) == folder_digest(tmp_path / "whole" / "bible_data")


# -- sound


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with six recordings of about half a minute."""
    workspace = Workspace.at(tmp_path_factory.mktemp("raw"))
    workspace.raw_audio.mkdir(parents=True)
    for number in range(6):
        speaker, rate = soundfile.read(AUDIO / f"{SPEAKERS[number % 4]}.flac")
        silence = [0.0] * number  # so that no two are the same file
        soundfile.write(workspace.raw_audio / f"sermon{number}.flac", [*silence, *speaker, *(speaker if number % 2 else ())], rate)
    return workspace.root


@pytest.fixture(scope="module")
def cleaned(raw: Path, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, float]:
    """An undisturbed run of the audio passes, and how long it took."""
    root = tmp_path_factory.mktemp("cleaned")
    shutil.copytree(raw, root, dirs_exist_ok=True)
    spec = spec_of(root, "preprocess", max_chunk_s=6.0)
    return spec, forks.run(spec).seconds


@pytest.mark.parametrize("kills", KILLS)
def test_preprocess(raw: Path, cleaned: tuple[Spec, float], forks: Forks, tmp_path: Path, kills: int) -> None:
    """Unit: a recording. One that has its record is never decoded again."""
    whole, seconds = cleaned
    shutil.copytree(raw, tmp_path, dirs_exist_ok=True)
    spec = msgspec.structs.replace(whole, workspace=str(tmp_path))
    workspace = Workspace.at(tmp_path)

    def finished() -> set[str]:
        return {f"{path.parent.name}.flac" for path in workspace.cleaned_audio.glob("[!.]*/record.json")}

    def worked_on(number: int) -> set[str]:
        return {event["message"] for event in told(numbered(spec, number)) if event["type"] == "progress" and event["done"] % 1}

    units = Units(finished, worked_on)
    units.check(harry(forks, spec, random.Random(kills), kills, lasts_s(whole, seconds, at_work), "recordings", killed=units.look))
    assert folder_digest(workspace.cleaned_audio) == folder_digest(Path(whole.workspace) / "stark_data" / "cleaned")


@pytest.mark.parametrize("kills", KILLS)
def test_transcribe(cleaned: tuple[Spec, float], forks: Forks, tmp_path: Path, kills: int) -> None:
    """Unit: a batch of chunks. The count that a finished batch announces is announced once in all attempts."""
    model = tmp_path / "models"
    make_mumbling_whisper(model)
    settings = {"model": str(model / "ct2"), "beam_size": 1, "batch_size": 2, "min_avg_logprob": -50.0}
    settings |= {"max_compression_ratio": 1e3, "max_repeats": 1000, "max_chars_per_s": 1e4}
    specs = [spec_of(tmp_path / name, "transcribe", **settings) for name in ("whole", "killed")]
    for one in specs:
        shutil.copytree(Path(cleaned[0].workspace) / "stark_data", Path(one.workspace) / "stark_data")
    whole, spec = specs
    ended = forks.run(whole)
    workspace = Workspace.at(spec.workspace)

    def finished() -> set[str]:
        files = [*workspace.scratch("transcribe").glob("*.jsonl"), *workspace.transcripts.glob("sermon*.jsonl")]
        return {str(count + 1) for count in range(sum(max(0, file.read_bytes().count(b"\n") - 1) for file in files) // 2 * 2)}

    def worked_on(number: int) -> set[str]:
        return {
            f"{event['done']:.0f}"
            for event in told(numbered(spec, number))
            if event["type"] == "progress" and event["message"][:6] == "sermon"
        }

    units = Units(finished, worked_on)
    units.check(
        harry(forks, spec, random.Random(kills), kills, lasts_s(whole, ended.seconds, at_work), "segments", killed=units.look)
    )
    assert folder_digest(workspace.transcripts) == folder_digest(Path(whole.workspace) / "stark_data" / "transcripts")


def make_mumbling_whisper(folder: Path) -> None:
    """An untrained model that says something about any sound."""
    for name in ("hf", "ct2"):
        (folder / name).mkdir(parents=True)
    tiny.make_whisper(folder / "hf", [pair[0] for pair in tiny.sample_pairs()], d_model=96)
    tiny.convert_whisper(folder / "hf", folder / "ct2")


# -- evaluation


def verses(count: int) -> list[dict[str, Any]]:
    """Invented verses in one English edition and three Spanish ones."""
    animals = (("lamb", "cordero"), ("ox", "buey"), ("dove", "paloma"), ("camel", "camello"))
    return [
        {"en": f"Lo, the {en} drank at well {n}.", "es": f"{verb} {es} en el pozo {n}.", "book": "Tales", "chapter": 1, "verse": n,
         "genre": "gospels" if n % 2 else "poetry", "en_source": "E1", "es_source": f"S{verb}"}
        for n in range(1, count + 1)
        for en, es in [animals[n % 4]]
        for verb in ("Bebió", "Bebía", "Bebe")
    ]  # fmt: skip


def evaluation(root: Path, model: Path, count: int, comet_model: str = "", *, batch_size: int) -> Spec:
    """A workspace with a test set and a model, and the spec that scores it."""
    workspace = Workspace.at(root)
    shutil.copytree(model, workspace.models / "tiny")
    lines = "".join(json.dumps(line) + "\n" for line in verses(count))
    for path in (workspace.test_pairs, workspace.train_pairs):
        path.parent.mkdir(parents=True)
        path.write_text(lines)
    models = [{"name": "marian", "kind": "marian", "model": "models/tiny"}]
    settings = {"label": "before", "comet_model": comet_model, "min_references": 20, "batch_size": batch_size, "num_beams": 2}
    return spec_of(root, "evaluate", **settings, max_new_tokens=20, models=models)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("marian")
    tiny.make_marian(folder, [(line["en"], line["es"]) for line in verses(40)], pieces=90, d_model=32, layers=1)
    return folder


class Appended:
    """A file whose whole lines at a kill stay where they are: each holds what it took to make it."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self.folder, self.pattern = folder, pattern
        self.lines: list[bytes] = []

    def look(self, _attempt: int = 0) -> None:
        content = b"".join(path.read_bytes() for path in self.folder.glob(self.pattern))
        lines = [line for line in content.splitlines() if is_whole(line)]
        assert lines[: len(self.lines)] == self.lines
        self.lines = lines


def is_whole(line: bytes) -> bool:
    """A line that a kill tore is no JSON."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def scores(spec: Spec) -> dict[str, Any]:
    """The results of the label without times."""
    found = json.loads((Workspace.at(spec.workspace).metrics / "before.json").read_bytes())
    del found["at"], found["attempt"]
    for row in found["models"].values():
        del row["speed"]
    return dict(found)


@pytest.mark.parametrize("kills", KILLS)
def test_evaluate(marian: Path, forks: Forks, tmp_path: Path, kills: int) -> None:
    """Unit: a batch. Its line, with the seconds that it took, stays; each sentence is translated once; the results are the same."""
    sentences = 20 * kills
    whole, spec = (evaluation(tmp_path / name, marian, sentences, batch_size=2) for name in ("whole", "killed"))
    ended = forks.run(whole)
    workspace = Workspace.at(spec.workspace)
    kept = Appended(workspace.scratch("evaluate") / "translations", "*.jsonl")
    phases = [("translating", 0.3), ("comparing", 0.02)]
    harry(
        forks,
        spec,
        random.Random(kills),
        kills,
        lasts_s(whole, ended.seconds, at_work),
        "sentences",
        phases=phases,
        killed=kept.look,
    )
    kept.look()
    ids = [one["id"] for line in kept.lines for one in json.loads(line)["hypotheses"]]
    assert len(ids) == len(set(ids)) == sentences
    assert scores(spec) == scores(whole)
    translations = Path("metrics", "translations", "before", "marian.jsonl")
    assert (workspace.root / translations).read_bytes() == (Path(whole.workspace) / translations).read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(comet_python() is None, reason="COMET's environment is not there (./vigil setup --comet)")
def test_comet(marian: Path, forks: Forks, tmp_path: Path) -> None:
    """Unit: a chunk of 128 rows. Stage and COMET's process die together, ten times; each row is scored once, to the same score."""
    translated = evaluation(tmp_path / "translated", marian, 1200, "tiny", batch_size=32)
    forks.run(translated)
    whole, spec = (scored_anew(translated, tmp_path / name) for name in ("whole", "killed"))
    ended = forks.run(whole)
    begins = lasts_s(whole, ended.seconds, lambda event: event["type"] == "progress" and event["done"] > 1200)
    parts = Appended(Workspace.at(spec.workspace).scratch("evaluate") / "comet", "*.parts.jsonl")
    phases = [("loading COMET", 1.0), ("comparing", 0.02)]
    harry(forks, spec, random.Random(1), 10, begins, "sentences", phases=phases, killed=parts.look)
    parts.look()
    ids = [one for line in parts.lines for one in json.loads(line)["scores"]]
    assert len(ids) == len(set(ids)) == 3600
    assert len(parts.lines) == -(-3600 // 128)
    assert scores(spec) == scores(whole)


def scored_anew(spec: Spec, root: Path) -> Spec:
    """A copy of an evaluated workspace that has the translations and the metric, and no COMET score."""
    shutil.copytree(spec.workspace, root)
    workspace = Workspace.at(root)
    for folder in (workspace.stage("evaluate") / "attempts", workspace.scratch("evaluate") / "comet", workspace.metrics):
        shutil.rmtree(folder)
    workspace.result("evaluate").unlink()
    return msgspec.structs.replace(spec, workspace=str(root))

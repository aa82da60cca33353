"""stages.fetch without a hub: folders are looked at as the stage will read them. With a hub: tests/process/test_fetch.py."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from stages import replay
from stages.fetch import check_snapshot, demucs_repository, look
from state.contract import MisconfiguredError
from state.needs import Kind, Model, Where
from state.workspace import Workspace

CLIPS = Path(__file__).parents[3] / "pipelines" / "demo_audio" / "replay"
HEAD = "client_id\tpath\tsentence\taccents"


def common_voice(folder: Path) -> Path:
    """Two clips as Common Voice's archive unpacks, and a line for one that was not unpacked."""
    (folder / "clips").mkdir(parents=True)
    sounds = [path for path in sorted(CLIPS.iterdir()) if path.suffix != ".jsonl"][:2]
    for number, path in enumerate(sounds):
        shutil.copy(path, folder / "clips" / f"{number}{path.suffix}")
    names = [*(path.name for path in sorted((folder / "clips").iterdir())), "gone.mp3"]
    lines = [HEAD, *(f"s{number}\t{name}\tWords {number}.\t" for number, name in enumerate(names))]
    (folder / "validated.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_common_voice_is_counted_as_the_training_will_read_it(tmp_path: Path) -> None:
    """A path counts from the workspace; the clip that was not unpacked counts for nothing; the size is that of the others."""
    folder = common_voice(tmp_path / "cv" / "en")
    seen = look(Workspace.at(tmp_path), Model("cv/en", "speech", clips=3000))
    assert (seen.where, seen.clips) == (Where.HERE, 2)
    assert seen.size_bytes == sum(path.stat().st_size for path in (folder / "clips").iterdir())
    assert look(Workspace.at(tmp_path), Model(str(CLIPS), "speech", clips=1)).clips == len(list(CLIPS.glob("*.flac")))


def no_table(folder: Path) -> None:
    (folder / "validated.tsv").unlink()


def one_above(folder: Path) -> None:
    folder.rename(folder.parent / "en")
    folder.mkdir()
    (folder.parent / "en").rename(folder / "en")


def other_columns(folder: Path) -> None:
    (folder / "validated.tsv").write_text("client_id\tfile\ttext\ns1\t0.flac\tWords\n")


def nothing_in_it(folder: Path) -> None:
    (folder / "validated.tsv").write_text("")


def no_text_file(folder: Path) -> None:
    (folder / "validated.tsv").write_bytes(HEAD.encode() + b"\ns1\t0.flac\tW\xff\xfe\n")


def no_clips(folder: Path) -> None:
    shutil.rmtree(folder / "clips")


def no_sound(folder: Path) -> None:
    for path in (folder / "clips").iterdir():
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_table, "there is no metadata.jsonl and no Common Voice in {}"),
        (one_above, "no Common Voice in {}; there is one in {}/en: name that folder"),
        (
            other_columns,
            "{}/validated.tsv has no column path and none sentence; its first line holds client_id, file, text: unpack",
        ),
        (nothing_in_it, "{}/validated.tsv has no column path and none sentence; its first line holds nothing"),
        (no_text_file, "{}/validated.tsv cannot be read after line"),
        (no_clips, "none of the clips that {}/validated.tsv lists is in {}/clips: unpack them too; correct replay_source"),
        (no_sound, "{}/clips/0.flac: there is no sound in it; unpack the clips again"),
    ],
)
def test_a_faulty_common_voice_is_named(tmp_path: Path, spoil: Callable[[Path], None], words: str) -> None:
    """The file, what was found, and what to do; never a training that starts without speech in silence."""
    folder = common_voice(tmp_path / "cv")
    spoil(folder)
    seen = look(Workspace.at(tmp_path), Model("cv", "speech", clips=10))
    assert seen.where is Where.BROKEN
    assert words.replace("{}", str(folder)) in seen.text


@pytest.mark.parametrize(
    ("kind", "architecture", "where"),
    [
        ("sounds", "ASTForAudioClassification", Where.HERE),
        ("sounds", "Wav2Vec2ForSequenceClassification", Where.HERE),
        ("sounds", "WavLMForXVector", Where.BROKEN),
        ("voices", "WavLMForXVector", Where.HERE),
        ("voices", "ASTForAudioClassification", Where.BROKEN),
    ],
)
def test_a_model_of_another_trade_is_refused(tmp_path: Path, kind: Kind, architecture: str, where: Where) -> None:
    """transformers would load its body, invent the head, and say so in a log line only."""
    folder = tmp_path / "ears"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    (folder / "preprocessor_config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    seen = look(Workspace.at(tmp_path), Model("ears", kind))
    assert seen.where is where
    assert (architecture in seen.text) is (where is Where.BROKEN)
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in look(Workspace.at(tmp_path), Model("ears", kind)).text


def test_demucs_itself_is_needed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package no model helps; with it, a .safetensors file that is there is enough."""
    (tmp_path / "voice.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "needs demucs, which is not installed" in look(Workspace.at(tmp_path), Model("htdemucs", "demucs")).text
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: sys)
    seen = look(Workspace.at(tmp_path), Model("voice.safetensors", "demucs"))
    assert (seen.where, seen.size_bytes) == (Where.HERE, 7)
    assert "is not there" in look(Workspace.at(tmp_path), Model("gone.safetensors", "demucs")).text


def test_a_bag_of_demucs_models_is_whole_with_all_of_them(tmp_path: Path) -> None:
    """Each file that the description names; the repositories have demucs's own names."""
    rest = "weights: [[1., 0.], [0., 1.]]\nsegment: 44\n"
    for text in (f"models: ['f7e0c4bc', 'd12395a8']\n{rest}", f"models:\n- f7e0c4bc\n- d12395a8\n{rest}"):
        (tmp_path / "htdemucs_ft.yaml").write_text(text)
        (tmp_path / "f7e0c4bc.safetensors").write_bytes(b"1")
        with pytest.raises(MisconfiguredError, match=r"models: d12395a8\.safetensors$"):
            check_snapshot(tmp_path, "demucs")
        (tmp_path / "d12395a8.safetensors").write_bytes(b"1")
        check_snapshot(tmp_path, "demucs")
        (tmp_path / "d12395a8.safetensors").unlink()
    (tmp_path / "htdemucs_ft.yaml").write_text("- nothing\n")
    with pytest.raises(MisconfiguredError, match="it names none"):
        check_snapshot(tmp_path, "demucs")
    names = ("htdemucs", "htdemucs_ft", "mdx_extra_q", "me/htdemucs_6s")
    assert [demucs_repository(name) for name in names] == [
        "adefossez/HTDemucs",
        "adefossez/HTDemucs-ft",
        "adefossez/Demucs-mdx_extra_q",
        "me/HTDemucs-6s",
    ]


def test_speech_that_was_brought_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the models in the cache, whatever configuration and split are named; nothing is asked of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = replay.brought("owner/speech:en:train")
    assert folder.parent.parent == tmp_path
    shutil.copytree(CLIPS, folder)
    seen = look(Workspace.at(tmp_path), Model("hub:owner/speech:en:train", "speech", clips=4))
    assert (seen.where, seen.clips) == (Where.HERE, len(list(CLIPS.glob("*.flac"))))

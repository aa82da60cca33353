"""Models come into the cache as the stages need them, from a hub that refuses, breaks off, lies, and goes away."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bible_data import sample
from daemon.before_leaving import fetch
from stages import tiny
from stages.fetch import chosen
from state.needs import Cache, Model, ModelSeen, Said, Where
from state.pipeline import Pipeline, StageConfig
from state.workspace import Workspace
from tests.process.fake_hub import COMMIT, TOKEN, FakeHub

ROOT = Path(__file__).resolve().parents[2]
MARIAN = Model("owner/marian", "marian")
BIG_BYTES = 24_000_000
"""Over two of the chunks in which huggingface_hub writes."""


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A tiny Marian as opus-mt is laid out, with weights of other frameworks beside it."""
    folder = tmp_path_factory.mktemp("marian")
    texts = list(sample.texts().values())
    pairs = [(texts[0][verse], texts[2][verse]) for verse in list(texts[0])[:200] if verse in texts[2]]
    tiny.make_marian(folder, pairs, pieces=200, d_model=32, layers=1)
    (folder / "tf_model.h5").write_bytes(b"\0" * 30_000)
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


@pytest.fixture
def comet(tmp_path):
    """The files of a COMET model, and of the encoder that it names."""
    folder, encoder = tmp_path / "comet-model", tmp_path / "encoder-model"
    (folder / "checkpoints").mkdir(parents=True)
    encoder.mkdir()
    (folder / "checkpoints" / "model.ckpt").write_bytes(random.Random(1).randbytes(BIG_BYTES))
    (folder / "hparams.yaml").write_text("pretrained_model: owner/encoder\n")
    for name in ("config.json", "tokenizer.json"):
        (encoder / name).write_text("{}")
    (encoder / "pytorch_model.bin").write_bytes(b"\0" * 50_000)
    return {"owner/comet": folder, "owner/encoder": encoder}


def command(verb, home):
    return [sys.executable, "-P", "-m", "stages.fetch", verb, str(home / "run")]


def surroundings(hub, home, **more):
    return hub.environment(home, **{"PYTHONPATH": str(ROOT), "VIGIL_COMET_PYTHON": "/nowhere", **more})


def said(verb, hub, home, *models, **more):
    """What the process says to its end."""
    question = msgspec.json.encode(list(models))
    done = subprocess.run(command(verb, home), env=surroundings(hub, home, **more), input=question, capture_output=True, cwd=home)
    assert done.returncode == 0, done.stderr.decode()
    return [msgspec.json.decode(line, type=Said) for line in done.stdout.splitlines()]


def seen(*asked, **more):
    return {one.model.name: one for one in said(*asked, **more) if isinstance(one, ModelSeen)}


@pytest.mark.parametrize(
    ("kind", "names", "expected"),
    [
        ("marian", ["config.json", "source.spm", "pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md"], 3),
        ("gemma", ["config.json", "model.safetensors.index.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"], 4),
        ("whisper", ["config.json", "model.safetensors", "model.fp32-1-of-2.safetensors", "flax_model.msgpack"], 2),
        ("whisper", ["config.json", "pytorch_model-1-of-2.bin", "pytorch_model-2-of-2.bin", "pytorch_model.bin.index.json"], 4),
        ("ctranslate2", ["config.json", "model.bin", "tokenizer.json", "vocabulary.json", "README.md"], 4),
        ("adapter", ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt"], 2),
        ("encoder", ["config.json", "tokenizer.json", "model.safetensors", "onnx/config.json"], 2),
        ("gemma", ["config.json", "tokenizer.json", "gemma.gguf"], 0),
        ("comet", ["hparams.yaml", "checkpoints/model.ckpt", "README.md"], 3),
    ],
)  # fmt: skip
def test_only_what_a_stage_loads_is_chosen(kind, names, expected):
    """One set of weights in the form that is loaded, and the small files; none where the repository holds no model."""
    found = chosen(names, kind)
    assert len(found) == expected
    assert not {"tf_model.h5", "flax_model.msgpack", "optimizer.pt", "onnx/config.json"} & set(found)


def test_the_hub_is_asked_for_sizes_licences_and_names(marian, tmp_path):
    """To fetch with its size; gated with its size, given to an accepted token; private and unknown alike; what the run makes."""
    folders = dict.fromkeys(("owner/marian", "owner/gated", "owner/secret"), marian)
    models = [*(Model(name, "marian") for name in (*folders, "owner/unknown", "models/tiny")), Model("owner/marian", "gemma")]
    with FakeHub(folders, gated={"owner/gated"}, private={"owner/secret"}, accepted={TOKEN}) as hub:
        found = [one for one in said("look", hub, tmp_path, *models) if isinstance(one, ModelSeen)]
        wheres = [one.where for one in found]
        assert wheres == [Where.TO_FETCH, Where.GATED, Where.DENIED, Where.DENIED, Where.MADE, Where.TO_FETCH]
        needed = sum(path.stat().st_size for path in marian.iterdir() if path.is_file() and path.suffix != ".h5")
        assert found[0].size_bytes == found[1].size_bytes == needed
        assert found[0].missing_bytes >= needed - 5000
        assert found[0].config["d_model"] == 32
        assert "accept its licence" in found[1].text
        told = seen("look", hub, tmp_path, Model("owner/gated", "marian"), HF_TOKEN=TOKEN)
        assert told["owner/gated"].where is Where.TO_FETCH
        assert TOKEN not in json.dumps(msgspec.to_builtins(list(told.values())))


def test_a_busy_hub_and_no_network_are_away(marian, tmp_path):
    """429 and a closed port mean later; the setting that forbids the network is told."""
    with FakeHub({"owner/marian": marian}, busy=True) as hub:
        assert seen("look", hub, tmp_path, MARIAN)["owner/marian"].where is Where.AWAY
        cache, told = said("look", hub, tmp_path, MARIAN, HF_HUB_OFFLINE="1")
        assert isinstance(cache, Cache)
        assert cache.offline
        assert told.where is Where.AWAY
    assert seen("look", hub, tmp_path, MARIAN)["owner/marian"].where is Where.AWAY


def test_a_killed_fetch_goes_on_where_it_stopped(comet, tmp_path):
    """SIGKILL in the middle of a large file: the next one asks for the rest only, and the whole is as the hub has it."""
    model = Model("owner/comet", "comet")
    with FakeHub(comet, hold_after_bytes=21_000_000) as hub:
        question = tmp_path / "question.json"
        question.write_bytes(msgspec.json.encode([model]))
        with open(question, "rb") as asked:
            process = subprocess.Popen(
                command("bring", tmp_path), env=surroundings(hub, tmp_path), stdin=asked, stdout=subprocess.DEVNULL, cwd=tmp_path
            )
        assert hub.holding.wait(60)
        blobs = tmp_path / "hub" / "models--owner--comet" / "blobs"
        wait_for(lambda: any(path.stat().st_size >= 10_000_000 for path in blobs.glob("*.vigil-part")))
        process.send_signal(signal.SIGKILL)
        process.wait()
        told = seen("bring", hub, tmp_path, model)
        assert told["owner/comet"].where is Where.HERE
        assert not [path.name for path in blobs.iterdir() if len(path.suffix) > 1]
        assert [first for name, first, _bytes in hub.sent if name == "model.ckpt"][-1] >= 10_000_000
        assert (tmp_path / "hub" / "models--owner--encoder" / "snapshots" / COMMIT / "tokenizer.json").exists()
        assert not any(name == "pytorch_model.bin" for name, _first, _bytes in hub.sent)
    checkpoint = tmp_path / "hub" / "models--owner--comet" / "snapshots" / COMMIT / "checkpoints" / "model.ckpt"
    assert checkpoint.read_bytes() == (comet["owner/comet"] / "checkpoints" / "model.ckpt").read_bytes()


def wait_for(true, seconds=30.0):
    import time

    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_comet_finds_its_encoder_without_a_hub(tmp_path):
    """Fetched into the cache that COMET's own environment, with its older huggingface_hub, looks into; proved by its classes."""
    python = ROOT / ".venv-comet" / "bin" / "python"
    if not python.exists():
        pytest.skip("COMET's environment is not there: ./vigil setup --comet")
    from tokenizers import Tokenizer, models

    folder, encoder = tmp_path / "comet-model", tmp_path / "encoder-model"
    (folder / "checkpoints").mkdir(parents=True)
    encoder.mkdir()
    (folder / "checkpoints" / "model.ckpt").write_bytes(b"weights")
    (folder / "hparams.yaml").write_text("pretrained_model: owner/encoder\n")
    pieces = [(piece, 0.0) for piece in ("<s>", "<pad>", "</s>", "<unk>", "a", "<mask>")]
    Tokenizer(models.Unigram(pieces, unk_id=3)).save(str(encoder / "tokenizer.json"))
    (encoder / "config.json").write_text('{"model_type": "xlm-roberta", "vocab_size": 6}')
    model = Model("owner/comet", "comet")
    with FakeHub({"owner/comet": folder, "owner/encoder": encoder}) as hub:
        told = seen("bring", hub, tmp_path, model, VIGIL_COMET_PYTHON=str(python))
        assert told["owner/comet"].where is Where.HERE, told["owner/comet"].text
        (tmp_path / "hub" / "models--owner--encoder" / "snapshots" / COMMIT / "tokenizer.json").unlink()
        again = seen("bring", hub, tmp_path, model, VIGIL_COMET_PYTHON=str(python))
        assert again["owner/comet"].where is Where.HERE, again["owner/comet"].text


@pytest.mark.slow
def test_a_file_that_came_damaged_is_fetched_anew(comet, tmp_path):
    """One byte changed on the way: found by the digest, removed, and right after the next fetch."""
    model = Model("owner/comet", "comet")
    with FakeHub(comet, damage=True) as hub:
        first = seen("bring", hub, tmp_path, model)["owner/comet"]
        assert first.where is Where.AWAY
        assert "model.ckpt was damaged" in first.text
        assert seen("bring", hub, tmp_path, model)["owner/comet"].where is Where.HERE


def pipeline(*models):
    stages = (
        StageConfig(name=f"train_{number}", module="stages.train_marian", settings={"model": name})
        for number, name in enumerate(models)
    )
    return Pipeline(name="p", stages=tuple(stages))


@pytest.fixture
def at_home(monkeypatch):
    """This process's environment as a hub wants it."""

    def use(hub, home):
        for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE"))]:
            monkeypatch.delenv(name)
        for name, value in hub.environment(home).items():
            monkeypatch.setenv(name, value)

    return use


def test_what_was_fetched_loads_without_a_hub(marian, tmp_path, at_home):
    """The command tells each model on a line, and which licence to accept (exit code 1); once all is here the hub may be gone: the
    next call says so, and the stage's own loading code loads tokenizer and weights by the hub's name."""
    lines, workspace = [], Workspace.at(tmp_path)
    with FakeHub({"owner/marian": marian, "owner/gated": marian}, gated={"owner/gated"}) as hub:
        at_home(hub, tmp_path)
        assert fetch.fetch(workspace, pipeline("owner/marian", "owner/gated"), say=lines.append, terminal=False) == 1
    told = "\n".join(lines)
    assert "· owner/marian" in told
    assert "✓ owner/marian" in told
    assert "Open https://huggingface.co/owner/gated, accept its licence, and set HF_TOKEN" in told
    assert max(len(line) for line in lines if line[0] in "✓·✗") <= 80
    assert fetch.fetch(workspace, pipeline("owner/marian"), say=lines.append, terminal=False) == 0
    assert "HF_HUB_OFFLINE=1 works" in lines[-1]
    snapshot = tmp_path / "hub" / "models--owner--marian" / "snapshots" / COMMIT
    assert not {"tf_model.h5", "onnx"} & {path.name for path in snapshot.iterdir()}
    program = (
        "from transformers import MarianTokenizer; from stages.train_marian import load_model, TrainMarian\n"
        "model = load_model('owner/marian', TrainMarian(model='owner/marian'))\n"
        "ids = MarianTokenizer.from_pretrained('owner/marian')('God is love', return_tensors='pt')\n"
        "print(model.generate(**ids, max_new_tokens=4).shape[0], model.config.d_model)\n"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    loaded = subprocess.run([sys.executable, "-P", "-c", program], env=offline, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["1", "32"]


def test_a_full_disk_is_told_before_anything_is_fetched(marian, tmp_path, at_home):
    """Exit code 82, and nothing but what was looked at has been asked of the hub."""
    if os.getuid():
        pytest.skip("mounting a small disk takes root")
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], check=True)
    try:
        with FakeHub({"owner/marian": marian}) as hub:
            at_home(hub, disk)
            lines = []
            assert fetch.fetch(Workspace.at(tmp_path), pipeline("owner/marian"), say=lines.append, terminal=False) == 82
            assert hub.sent == []
        assert any("free some space first" in line for line in lines)
    finally:
        subprocess.run(["umount", str(disk)], check=True)

"""Models come into the cache as the stages need them, from a hub that refuses, breaks off, lies, and goes away."""

import io
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForXVector,
)

from bible_data import sample
from daemon.before_leaving import fetch
from stages import tiny
from stages.fetch import CLIP_BYTES, chosen
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
    also = os.environ.get("PYTHONPATH")
    return hub.environment(
        home, **{"PYTHONPATH": f"{ROOT}:{also}" if also else str(ROOT), "VIGIL_COMET_PYTHON": "/nowhere", **more}
    )


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
        ("sounds", ["config.json", "preprocessor_config.json", "pytorch_model.bin", "optimizer.pt", "flax_model.msgpack"], 3),
        ("voices", ["config.json", "preprocessor_config.json", "model.safetensors", "pytorch_model.bin"], 3),
        ("demucs", ["htdemucs.yaml", "955717e8.safetensors", "README.md", "LICENSE"], 2),
        ("demucs", ["htdemucs.yaml", "README.md"], 0),
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


def test_the_hub_is_asked_for_speech(tmp_path, marian):
    """About as much as will come, never more than there is; its licence; a name that is none. Nothing is brought by looking."""
    names = ("owner/speech", "owner/gated", "owner/small")
    folders = {f"datasets/{name}": tmp_path / name for name in names}
    for folder, size in zip(folders.values(), (500_000, 500_000, 900), strict=True):
        folder.mkdir(parents=True)
        (folder / "train.parquet").write_bytes(b"0" * size)
    asked = [Model(f"hub:{name}:en", "speech", 2) for name in (*names, "owner/unknown")]
    with FakeHub(folders, gated={"datasets/owner/gated"}, accepted={TOKEN}) as hub:
        found = [one for one in said("look", hub, tmp_path, *asked) if isinstance(one, ModelSeen)]
        assert [one.where for one in found] == [Where.TO_FETCH, Where.GATED, Where.TO_FETCH, Where.DENIED]
        assert [one.missing_bytes for one in found] == [4 * 2 * CLIP_BYTES, 4 * 2 * CLIP_BYTES, 900, 0]
        assert found[1].model.page == "datasets/owner/gated"
        assert seen("look", hub, tmp_path, asked[1], HF_TOKEN=TOKEN)[asked[1].name].where is Where.TO_FETCH
        assert hub.sent == []


def speech(folder, rows):
    """A data set as the hub has them: so many rows of a short sound, its number and a text, every tenth without one."""
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(1600, dtype=np.float32), 16_000, format="FLAC")
    audio = {"bytes": sound.getvalue(), "path": "x.flac"}
    table = pa.Table.from_pylist([{"audio": audio, "sentence": f"Text {n}." if n % 10 else ""} for n in range(rows)])
    kinds = {"audio": {"_type": "Audio"}, "sentence": {"dtype": "string", "_type": "Value"}}
    told = json.dumps({"info": {"features": kinds}})
    (folder / "data").mkdir(parents=True)
    pq.write_table(table.replace_schema_metadata({"huggingface": told}), folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.slow
def test_speech_of_the_hub_goes_on_after_a_kill_and_is_read_without_a_hub(tmp_path):
    """SIGKILL among the clips: those that are there stay, the others follow, none twice; then the training's own code takes as many
    as it wants without a network. Who has less than will be wanted is told how many there are."""
    model = Model("hub:owner/speech::train", "speech", 500)
    part = tmp_path / "hub" / "vigil-speech" / "owner--speech--train.part" / "metadata.jsonl"
    folder = part.parent.with_suffix("")
    with FakeHub({"datasets/owner/speech": speech(tmp_path / "speech", 5000)}) as hub:
        question = tmp_path / "question.json"
        question.write_bytes(msgspec.json.encode([model]))
        with open(question, "rb") as asked:
            process = subprocess.Popen(
                command("bring", tmp_path), env=surroundings(hub, tmp_path), stdin=asked, stdout=subprocess.DEVNULL, cwd=tmp_path
            )
        wait_for(lambda: part.exists() and part.read_bytes().count(b"\n") >= 50)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not folder.exists()
        with open(part, "ab") as file:
            file.write(b'{"file_name": "torn')  # as a power cut leaves it
        first = part.with_name("000001.flac").stat().st_ino
        told = seen("bring", hub, tmp_path, model)[model.name]
    assert (told.where, told.clips) == (Where.HERE, 1800), told.text
    assert (folder / "000001.flac").stat().st_ino == first
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    numbers = [number for number in range(2000) if number % 10]
    assert [(line["file_name"], line["text"]) for line in lines] == [(f"{n:06d}.flac", f"Text {n}.") for n in numbers]
    program = (
        "from stages import replay; from stages.runtime import StageContext; from state.contract import Spec\n"
        "from state.workspace import Workspace\n"
        "spec = Spec(run_id='r', stage='w', module='stages.train_whisper', attempt=1, workspace='run')\n"
        "ctx = StageContext(spec, Workspace.at('run').attempt('w', 1))\n"
        "print(len(replay.find(ctx, 'hub:owner/speech::train', 300)[0]))\n"
    )
    offline = surroundings(hub, tmp_path, HF_HUB_OFFLINE="1")
    command_line = [sys.executable, "-P", "-c", program]
    found = subprocess.run(command_line, env=offline, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout == "1800\n"


@pytest.mark.slow
def test_the_models_of_the_audio_passes_load_without_a_hub(tmp_path):
    """A classifier, and a speaker model that is published without safetensors, as microsoft/wavlm-base-plus-sv is: fetched by name,
    then loaded by the code of the stage, the hub gone."""
    ears, voices = tmp_path / "ears", tmp_path / "voices"
    ASTForAudioClassification(
        ASTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_length=64, num_mel_bins=32)
    ).save_pretrained(ears)
    ASTFeatureExtractor(max_length=64, num_mel_bins=32).save_pretrained(ears)
    narrow = {"conv_dim": (8, 8), "conv_stride": (5, 64), "conv_kernel": (10, 64), "num_feat_extract_layers": 2}
    narrow |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_buckets": 8, "xvector_output_dim": 12}
    narrow |= {"tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1)}
    model = WavLMForXVector(WavLMConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, **narrow))
    model.save_pretrained(voices)
    (voices / "model.safetensors").unlink()
    torch.save(model.state_dict(), voices / "pytorch_model.bin")
    Wav2Vec2FeatureExtractor().save_pretrained(voices)
    asked = [Model("owner/ears", "sounds"), Model("owner/voices", "voices"), Model("owner/voices", "sounds")]
    with FakeHub({"owner/ears": ears, "owner/voices": voices}) as hub:
        first, second, wrong = [one for one in said("bring", hub, tmp_path, *asked) if isinstance(one, ModelSeen)]
    assert (first.where, second.where) == (Where.HERE, Where.HERE), first.text + second.text
    assert wrong.where is Where.BROKEN
    assert "is a WavLMForXVector, and none that classifies sounds" in wrong.text
    program = (
        "import numpy as np; from stages import diarization, sound_kinds\n"
        "sound = np.random.default_rng(0).normal(0, 0.1, 32000).astype('float32')\n"
        "print(diarization.vector_of('owner/voices')(sound).shape, 0 <= sound_kinds.music_model('owner/ears')(sound) <= 1)\n"
    )
    offline = surroundings(hub, tmp_path, HF_HUB_OFFLINE="1")
    loaded = subprocess.run([sys.executable, "-P", "-c", program], env=offline, capture_output=True, text=True, cwd=tmp_path)
    assert loaded.stdout == "(12,) True\n", loaded.stderr


@pytest.mark.slow
def test_demucs_finds_its_bag_without_a_hub(tmp_path):
    """By demucs's own short name, description and models, nothing else of the repository; loaded by the stage, the hub gone."""
    pytest.importorskip("demucs", reason="demucs is installed only where separation is wanted")
    from demucs.demucs import Demucs
    from safetensors.torch import save_file

    bag = tmp_path / "bag"
    bag.mkdir()
    kwargs = {"sources": ["drums", "vocals"], "channels": 4, "depth": 2, "lstm_layers": 0, "audio_channels": 2, "segment": 5}
    metadata = {"klass": "demucs.demucs.Demucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    tensors = {name: tensor.contiguous() for name, tensor in Demucs(**kwargs).state_dict().items()}
    save_file(tensors, bag / "955717e8.safetensors", metadata=metadata)
    (bag / "htdemucs.yaml").write_text("models: ['955717e8']\n")
    (bag / "README.md").write_text("x")
    model = Model("htdemucs", "demucs")
    with FakeHub({"adefossez/HTDemucs": bag}) as hub:
        assert seen("look", hub, tmp_path, model)["htdemucs"].where is Where.TO_FETCH
        told = seen("bring", hub, tmp_path, model)["htdemucs"]
    assert told.where is Where.HERE, told.text
    snapshot = tmp_path / "hub" / "models--adefossez--HTDemucs" / "snapshots" / COMMIT
    assert {path.name for path in snapshot.iterdir()} == {"955717e8.safetensors", "htdemucs.yaml"}
    program = "import numpy as np; from stages.separation import voice_of\n"
    program += "print(voice_of('htdemucs')(np.zeros(16000, dtype='float32')).shape)"
    offline = surroundings(hub, tmp_path, HF_HUB_OFFLINE="1")
    loaded = subprocess.run([sys.executable, "-P", "-c", program], env=offline, capture_output=True, text=True, cwd=tmp_path)
    assert loaded.stdout == "(16000,)\n", loaded.stderr


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


KIWI = """
import importlib.util, os, sys, warnings
from pathlib import Path
warnings.filterwarnings("ignore")
spec = importlib.util.spec_from_file_location("tiny_comet", sys.argv[1])
tiny = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tiny)
os.chdir(sys.argv[2])
tiny.make_encoder(Path("encoder"), [f"The word {n} of day {n % 7}." for n in range(300)], 0)
import pytorch_lightning, torch, yaml
from comet.models import ReferencelessRegression
model = ReferencelessRegression(
    pretrained_model="encoder", encoder_model="XLM-RoBERTa", hidden_sizes=[8], dropout=0.0, layer="mix", pool="avg",
    layer_transformation="softmax", layer_norm=False, nr_frozen_epochs=0, keep_embeddings_frozen=False, local_files_only=True,
)
told = {**dict(model.hparams), "class_identifier": "referenceless_regression_metric", "pretrained_model": "owner/encoder"}
told["local_files_only"] = False
Path("kiwi/checkpoints").mkdir(parents=True)
kept = {"state_dict": model.state_dict(), "hyper_parameters": told, "pytorch-lightning_version": pytorch_lightning.__version__}
torch.save(kept, "kiwi/checkpoints/model.ckpt")
Path("kiwi/hparams.yaml").write_text(yaml.safe_dump(told))
"""


@pytest.mark.slow
def test_a_comet_behind_a_licence_scores_without_a_hub(tmp_path):
    """As CometKiwi is given out: refused without a token that accepted, whole with one, and then the stage's own process scores
    translations by the hub's name, no reference at hand and the hub gone."""
    python = ROOT / ".venv-comet" / "bin" / "python"
    if not python.exists():
        pytest.skip("COMET's environment is not there: ./vigil setup --comet")
    subprocess.run([python, "-I", "-c", KIWI, ROOT / "stages" / "tiny_comet.py", tmp_path], check=True, capture_output=True)
    model = Model("owner/kiwi", "comet")
    folders = {"owner/kiwi": tmp_path / "kiwi", "owner/encoder": tmp_path / "encoder"}
    with FakeHub(folders, gated={"owner/kiwi"}, accepted={TOKEN}) as hub:
        refused = seen("bring", hub, tmp_path, model, VIGIL_COMET_PYTHON=str(python))["owner/kiwi"]
        assert refused.where is Where.GATED
        told = seen("bring", hub, tmp_path, model, VIGIL_COMET_PYTHON=str(python), HF_TOKEN=TOKEN)["owner/kiwi"]
        assert told.where is Where.HERE, told.text
    rows = [{"id": str(n), "src": f"The word {n}.", "mt": f"La palabra {n}.", "ref": ""} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = [python, "-I", ROOT / "stages" / "comet_process.py", "rows.jsonl", "scores.json", "--model", "owner/kiwi"]
    offline = surroundings(hub, tmp_path, HF_HUB_OFFLINE="1")
    done = subprocess.run(process, env=offline, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads((tmp_path / "scores.json").read_bytes())["scores"]) == {"0", "1", "2"}


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


@pytest.mark.slow
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

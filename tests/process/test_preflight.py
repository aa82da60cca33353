"""`vigil preflight` as a command: real readings beside tools that answer, hang and lie; what is shown, and the exit code."""

import json
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from daemon.before_leaving import checks_read, preflight
from daemon.before_leaving.checks import Finding, Light, NotKnown
from daemon.phone.telegram_settings import FILE
from state.workspace import Workspace
from tests.process.fake_hub import FakeHub
from tests.telegram.fake_api import OWNER_ID, FakeApi

ROOT = Path(__file__).resolve().parents[2]
GPU = "NVIDIA RTX A2000 16GB Ada"
PIPELINE = """
name = "Test"
deadline = "Tue 08:00"
[[stage]]
name = "download"
module = "stages.download"
resource = "network"
[[stage]]
name = "corpus"
module = "stages.corpus"
settings.source = "sample"
[[stage]]
name = "train_marian"
module = "stages.train_marian"
resource = "gpu"
settings.model = "Helsinki-NLP/opus-mt-en-es"
[[stage]]
name = "train_gemma"
module = "stages.train_gemma"
resource = "gpu"
settings.model = "google/translategemma-4b-it"
settings.gradient_checkpointing = true
settings.max_tokens = 4096
settings.micro_batch = 1
[[stage]]
name = "preprocess"
module = "stages.preprocess"
settings.speaker_model = "owner/no-such-voices"
[[stage]]
name = "evaluate"
module = "stages.evaluate"
resource = "gpu"
settings.label = "before"
settings.comet_model = ""
settings.kiwi_model = "Unbabel/wmt22-cometkiwi-da"
settings.models = [{ name = "M", kind = "marian", model = "Helsinki-NLP/opus-mt-en-es" }]
[[stage]]
name = "train_whisper"
module = "stages.train_whisper"
resource = "gpu"
settings.model = "models/whisper"
settings.replay_source = "cv"
settings.replay_required = false
[[stage]]
name = "bonus"
module = "stages.train_gemma"
resource = "gpu"
optional = true
settings.model = "google/translategemma-12b-it"
"""


def tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path):
    """A card, an enabled service, a kept clock."""
    folder = tmp_path / "tools"
    folder.mkdir()
    fields = checks_read.host.GPU_FIELDS.split(",")
    values = {"name": GPU, "memory.total": "16380"}
    tool(folder, "nvidia-smi", f"echo '{', '.join(values.get(field, '1') for field in fields)}'")
    tool(folder, "systemctl", "case $1 in is-enabled) echo enabled ;; *) echo active ;; esac")
    tool(folder, "timedatectl", "echo yes")
    return folder


@pytest.fixture
def hub(tmp_path):
    """One model whole, two behind a licence, the others unknown."""
    marian, gemma = tmp_path / "marian", tmp_path / "gemma"
    for folder, names in (
        (marian, ("config.json", "pytorch_model.bin", "source.spm")),
        (gemma, ("config.json", "model.safetensors")),
    ):
        folder.mkdir()
        for name in names:
            (folder / name).write_text('{"model_type": "marian"}' if name == "config.json" else "x" * 3000)
    config = {"model_type": "marian", "d_model": 512, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 65001}
    (marian / "config.json").write_text(json.dumps(config | {"encoder_ffn_dim": 2048, "decoder_ffn_dim": 2048}))
    (tmp_path / "kiwi" / "checkpoints").mkdir(parents=True)
    (tmp_path / "kiwi" / "hparams.yaml").write_text("pretrained_model: microsoft/infoxlm-large\n")
    (tmp_path / "kiwi" / "checkpoints" / "model.ckpt").write_bytes(b"0" * 30_000)
    name, kiwi = "google/translategemma-4b-it", "Unbabel/wmt22-cometkiwi-da"
    folders = {"Helsinki-NLP/opus-mt-en-es": marian, name: gemma, kiwi: tmp_path / "kiwi"}
    with FakeHub(folders, gated={name, kiwi}) as running:
        yield running


def call(tmp_path, hub, tools, *more, **surroundings):
    (tmp_path / "p.toml").write_text(PIPELINE)
    environment = hub.environment(
        tmp_path / "cache", PATH=f"{tools}:/usr/bin:/bin", NO_COLOR="1", PYTHONPATH=str(ROOT), **surroundings
    )
    command = [
        sys.executable,
        "-P",
        "-m",
        "daemon.cli",
        "preflight",
        "p.toml",
        "--quick",
        "--workspace",
        str(tmp_path / "run"),
        *more,
    ]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)


def test_a_plan_is_looked_at_whole(tmp_path, hub, tools, capsys):
    """Each part of the plan has its finding; the licence is red with its link, the bonus yellow, the bot hears a silent
    message, the token is nowhere, and the exit code is 1."""
    run = tmp_path / "run"
    (run / "cv").mkdir(parents=True)
    (run / "cv" / "train.tsv").write_text("client_id\tfile\n")
    with FakeApi() as api:
        token = run / "telegram_token"
        token.write_text(api.token)
        token.chmod(0o600)
        (run / FILE).write_text(f'base_url = "{api.url}"\ntoken_file = "telegram_token"\nowner_id = {OWNER_ID}\n')
        done = call(tmp_path, hub, tools, "--json")
        assert done.returncode == 1, done.stderr
        assert api.token not in done.stdout + done.stderr
        assert api.sent == []
    told = json.loads(done.stdout)
    found = {one["title"]: one for one in told["findings"]}
    lights = {title: one["light"] for title, one in found.items()}
    assert told["ok"] is False
    assert lights["driver"] == "green"
    assert GPU in found["driver"]["seen"]
    assert lights["Helsinki-NLP/opus-mt-en-es"] == "yellow"
    assert lights["google/translategemma-4b-it"] == "red"
    assert "https://huggingface.co/google/translategemma-4b-it" in found["google/translategemma-4b-it"]["mend"]
    assert lights["google/translategemma-12b-it"] == "yellow"
    kiwi, voices, speech = (found[title] for title in ("Unbabel/wmt22-cometkiwi-da", "owner/no-such-voices", "general speech"))
    assert (kiwi["light"], voices["light"], speech["light"]) == ("yellow", "red", "red")
    assert "open https://huggingface.co/Unbabel/wmt22-cometkiwi-da and accept it" in kiwi["mend"]
    assert f"{run}/cv/train.tsv has no column path and none sentence" in speech["seen"]
    assert lights["train_marian"] == "green"
    assert lights["train_gemma"] == "red"
    assert "max_tokens" in found["train_gemma"]["mend"]
    assert (lights["recordings"], lights["deadline"], lights["rehearsal"]) == ("red", "yellow", "yellow")
    assert (lights["service"], lights["clock"], lights["Hugging Face hub"], lights["Telegram bot"]) == ("green",) * 4
    assert any("checkpoints" in line for line in found["the workspace's disk"]["detail"])
    shown_in_80_columns(msgspec.convert(told["findings"], list[Finding]), capsys)


def shown_in_80_columns(findings, capsys):
    """No line is wider, nothing is coloured where there is no terminal, and red comes first in what is to be done."""
    preflight.show(findings, 80)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in out
    assert f"  ✓ driver                     {GPU}, 17 GB" in lines
    summary = lines[next(number for number, line in enumerate(lines) if line.startswith("Not ready: ")) :]
    signs = [line[2] for line in summary if line[:2] == "  " and line[2] in "✗!"]
    assert signs == sorted(signs, key="✗!".index)
    assert any("--set download.url=" in line for line in summary)


def test_the_bot_hears_a_silent_message(tmp_path, monkeypatch):
    """The round trip: the bot's name, and one message that does not ring; a refused token is told without the token."""
    workspace = Workspace.at(tmp_path)
    with FakeApi() as api:
        token = tmp_path / "telegram_token"
        token.write_text(api.token)
        token.chmod(0o600)
        (tmp_path / FILE).write_text(f'base_url = "{api.url}"\ntoken_file = "telegram_token"\nowner_id = {OWNER_ID}\n')
        assert checks_read.telegram(workspace, quick=False) == (api.username, True)
        assert [(message.text, message.silent) for message in api.sent] == [(checks_read.MESSAGE, True)]
        token.write_text("123456789:" + "B" * 35)
        read = checks_read.gather({"telegram": lambda: checks_read.telegram(workspace, quick=False)}, {"telegram": 30.0})[
            "telegram"
        ]
        assert isinstance(read, NotKnown)
        assert "B" * 35 not in read.why


def test_a_pipeline_file_with_a_fault_is_one_finding(tmp_path, hub, tools):
    """It is red with the file and the field, and the machine is looked at all the same."""
    (tmp_path / "bad.toml").write_text('name = "x"\n[[stage]]\nname = "a"\nmodule = "stages.corpus"\nsettings.sauce = 1\n')
    scene = preflight.scene_of(Workspace.at(tmp_path / "run"), tmp_path / "bad.toml", [], quick=True)
    (fault,) = scene.faults
    assert fault.light is Light.RED
    assert "sauce" in fault.seen
    assert scene.pipeline is None


def test_readings_cannot_break_each_other():
    """One that raises and one that never ends are not known, with the reason; the third has its value, in time."""
    started = time.monotonic()
    found = checks_read.gather(
        {"bad": lambda: 1 / 0, "late": lambda: time.sleep(30), "good": lambda: 7}, {"bad": 5.0, "late": 0.5, "good": 5.0}
    )
    assert time.monotonic() - started < 5
    assert found["good"] == 7
    assert found["bad"] == NotKnown("ZeroDivisionError: division by zero")
    assert isinstance(found["late"], NotKnown)
    assert "no answer within" in found["late"].why


def test_a_command_that_hangs_is_killed_with_its_children(tmp_path):
    """The whole session goes, and what was printed before counts."""
    answer = checks_read.ask(["/bin/sh", "-c", f"echo early; sleep 60 & echo $! > {tmp_path}/pid; wait"], 1.0)
    assert answer.code is None
    assert answer.why == "no answer in time"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_windows_is_asked_by_powershell(tmp_path, monkeypatch, encoding):
    """In either encoding; one that hangs or is missing is not known, and without WSL nothing is asked."""
    version = tmp_path / "version"
    version.write_text("Linux version 6.6.87.2-microsoft-standard-WSL2")
    (tmp_path / "answer").write_bytes(
        '{"wslconfig":"[wsl2]","standby":"0x0 0x00000000","tasks":["Vigil: Ready"]}\r\n'.encode(encoding)
    )
    tool(tmp_path, "powershell.exe", f"cat {tmp_path}/answer")
    monkeypatch.setenv("POWERSHELL", str(tmp_path / "powershell.exe"))
    assert checks_read.windows(version).tasks == ("Vigil: Ready",)
    tool(tmp_path, "powershell.exe", "echo 'not allowed' >&2; exit 1")
    assert checks_read.windows(version) == NotKnown("PowerShell: not allowed")
    monkeypatch.delenv("POWERSHELL")
    monkeypatch.setenv("PATH", "/nowhere")
    assert isinstance(checks_read.windows(version), NotKnown)
    version.write_text("Linux version 6.8.0-generic")
    assert checks_read.windows(version) is None


def test_a_green_plan_says_so():
    """Nothing to mend, nothing to look at: one line."""
    found = [Finding(group="disk", title="disk", light=Light.GREEN, seen="much room")]
    assert [line.plain for line in preflight.lines(found, 80)] == [
        "Disk",
        "  ✓ disk                       much room",
        "",
        "Everything is green.",
    ]

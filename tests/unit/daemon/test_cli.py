"""What can be typed, what it prints, and with which code it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from bible_data.sample import write_sample
from daemon import cli, locks
from state.contract import Answer, Command, CommandKind
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent.parent.parent

SMALL = """
name = "small"
[[stage]]
name = "download"
module = "stages.download"
resource = "network"
"""


@contextmanager
def daemon_of(workspace: Workspace) -> Iterator[None]:
    """The lock of a daemon, held; nobody answers."""
    handle = locks.take(workspace.lock)
    try:
        yield
    finally:
        os.close(handle)


def answer_next(workspace: Workspace, ok: bool, text: str) -> threading.Thread:
    """Answers the next command in control/, as the daemon does."""

    def wait() -> None:
        for _ in range(200):
            for path in workspace.control.glob("*.json"):
                command = msgspec.json.decode(path.read_bytes(), type=Command)
                workspace.answers.mkdir(exist_ok=True)
                answer = Answer(id=command.id, ok=ok, text=f"{text} {command.kind} {command.stage} {command.now}", at=time.time())
                part = workspace.answers / "part"
                part.write_bytes(msgspec.json.encode(answer))
                part.rename(workspace.answers / f"{command.id}.json")
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


# -- bad calls and bad surroundings


@pytest.mark.parametrize(
    "argv",
    [
        *("", "fly", "run", "skip", "status extra", "log -n 0", "log -n x", "corpus --source x"),
        *("run p.toml --set download.url", "run p.toml --set url=x", "run p.toml --se a.b=c"),
    ],
)
def test_a_bad_call_leaves_with_2(argv: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is guessed, nothing is begun; the words go to standard error."""
    with pytest.raises(SystemExit) as left:
        cli.main(argv.split())
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert (out, "usage: vigil" in err) == ("", True)


PIPELINES = {
    "missing": (None, "cannot be read"),
    "not text": (b"\xff\xfe\x00", "cannot be read"),
    "not toml": (b"name = ", "not valid TOML"),
    "no stages": (b'name = "x"', "`stage`"),
    "no url": (SMALL.encode(), "`$.stage[0].settings`"),
    "empty url": (SMALL.encode() + b'[stage.settings]\nurl = ""\n', "`$.stage[0].settings.url`"),
    "typo": (SMALL.encode() + b"[stage.settings]\nurll = 1\n", "`urll`"),
    "wrong type": (SMALL.replace('resource = "network"', 'resource = "tpu"').encode(), "`$.stage[0].resource`"),
    "cycle": (SMALL.replace("[[stage]]", '[[stage]]\nneeds = ["download"]').encode(), "waits for itself"),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_a_bad_pipeline_file_leaves_with_78(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence that names the file and the field; no workspace is made for it."""
    content, words = PIPELINES[name]
    path = tmp_path / "pipeline.toml"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["run", str(path), "--workspace", str(tmp_path / "run")]) == 78
    out, err = capsys.readouterr()
    assert err.startswith(f"vigil: {path}: ")
    assert words in err
    assert (out, err.count("\n"), (tmp_path / "run").exists()) == ("", 1, False)


@pytest.mark.parametrize("command", ["status", "watch", "log", "skip x", "retry x", "pause", "resume", "stop", "report"])
def test_a_folder_without_a_run_leaves_with_2(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing is put into it: no queued command, no report."""
    assert cli.main([*command.split(), "--workspace", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"vigil: there is no run in {tmp_path}; start one with `vigil run PIPELINE`, or name its folder with --workspace\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "log", "skip x", "report"])
def test_a_state_that_cannot_be_read_leaves_with_74(
    command: str, mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both generations damaged: said so, with what to do; never shown as an empty run."""
    mid_workspace.state.write_bytes(b"x")
    assert cli.main([*command.split(), "--workspace", str(mid_workspace.root)]) == 74
    assert "restore one from a copy" in capsys.readouterr().err


def test_a_workspace_that_cannot_be_written_leaves_with_73(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file where the folder should be: one sentence with the path and the way out."""
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(SMALL + '[stage.settings]\nurl = "http://127.0.0.1:1/"\n')
    (tmp_path / "file").write_text("mine")
    assert cli.main(["run", str(pipeline), "--workspace", str(tmp_path / "file" / "run")]) == 73
    err = capsys.readouterr().err
    assert str(tmp_path / "file" / "run") in err
    assert "choose another with --workspace" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_with_82() -> None:
    """By its errno, wherever in the workspace it showed."""
    args = cli.parser().parse_args(["run", "p.toml"])
    code, text = cli.explain(OSError(28, "No space left on device"), args)
    assert code == 82
    assert "is full" in text


def test_what_is_not_expected_is_not_hidden() -> None:
    """A fault of Vigil's own keeps its traceback."""
    with pytest.raises(ZeroDivisionError):
        cli.explain(ZeroDivisionError(), cli.parser().parse_args(["status"]))


def vigil(*argv: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own: one that sets up the daemon's logs."""
    command = [sys.executable, "-P", "-m", "daemon.cli", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_a_busy_workspace_leaves_with_75(mid_workspace: Workspace, tmp_path: Path) -> None:
    """Two daemons never share a run, and the second says who is there."""
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(SMALL + '[stage.settings]\nurl = "http://127.0.0.1:1/"\n')
    before = mid_workspace.state.read_bytes()
    with daemon_of(mid_workspace):
        done = vigil("run", str(pipeline), "--workspace", str(mid_workspace.root))
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert f"another daemon runs in {mid_workspace.root}" in done.stderr
    assert mid_workspace.state.read_bytes() == before


def test_another_pipeline_leaves_with_78(mid_workspace: Workspace, tmp_path: Path) -> None:
    """A workspace belongs to its pipeline."""
    pipeline = tmp_path / "p.toml"
    pipeline.write_text(SMALL + '[stage.settings]\nurl = "http://127.0.0.1:1/"\n')
    done = vigil("run", str(pipeline), "--workspace", str(mid_workspace.root))
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert "holds a run of pipeline 'Vigil demo'" in done.stderr


# -- looking


def test_status_prints_one_json_object(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """And nothing else, with the host measured now."""
    assert cli.main(["status", "--json", "--workspace", str(mid_workspace.root)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["run", "stages", "host", "forecast"]
    assert found["run"]["daemon_running"] is False
    assert found["host"]["memory_total_bytes"] > found["host"]["memory_used_bytes"] > 0
    assert found["host"]["disks"][0]["free_bytes"] > 0


def test_log_shows_the_journal_or_a_stage(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The last lines asked for; of a stage, its newest attempt's output."""
    place = ["--workspace", str(mid_workspace.root)]
    assert cli.main(["log", "-n", "2", *place]) == 0
    assert [line.split("  ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        "run 20260212-180000 goes on after a restart of the machine",
        "train_marian started (attempt 2)",
    ]
    assert cli.main(["log", "--json", "-n", "1", *place]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "stage.started"
    mid_workspace.attempt("train_marian", 1).output.write_text("old\n")
    mid_workspace.attempt("train_marian", 2).output.write_text("one\ntwo\nthree\n")
    assert cli.main(["log", "train_marian", "-n", "2", *place]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
    assert cli.main(["log", "train_gemma_4b", *place]) == 0
    assert capsys.readouterr() == ("", "train_gemma_4b has not started yet.\n")
    assert cli.main(["log", "train_gema_4b", *place]) == 2
    assert "no stage is called 'train_gema_4b'; there are download," in capsys.readouterr().err


def test_watch_without_a_terminal_prints_the_facts(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, and it ends when nobody is at work."""
    assert cli.main(["watch", "--workspace", str(mid_workspace.root)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 17


def test_report_says_where_it_is(finished_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and the path; with --quiet nothing; with --json both paths."""
    place = ["--workspace", str(finished_workspace.root)]
    assert cli.main(["report", "--quiet", *place]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["report", "--json", *place]) == 0
    assert {Path(path).name for path in json.loads(capsys.readouterr().out).values()} == {"index.html", "report.md"}
    assert cli.main(["report", *place]) == 0
    assert capsys.readouterr().out.endswith(f"The report: {finished_workspace.report / 'index.html'}\n")


def test_where_the_workspace_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--workspace, else VIGIL_WORKSPACE, else ./run; the demo's own beside it."""
    parse = cli.parser().parse_args
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIGIL_WORKSPACE", raising=False)
    assert cli._workspace(parse(["status"])).root == tmp_path / "run"
    assert cli._workspace(parse(["demo"]), cli.DEMO_WORKSPACE).root == tmp_path / "demo-run"
    monkeypatch.setenv("VIGIL_WORKSPACE", "elsewhere")
    assert cli._workspace(parse(["status"])).root == tmp_path / "elsewhere"
    assert cli._workspace(parse(["status", "--workspace", "here"])).root == tmp_path / "here"


# -- asking


def test_a_command_without_a_daemon_is_queued_and_said_so(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """One file in control/, to be carried out with the next run, and 75 because it is not done."""
    assert cli.main(["skip", "train_marian", "--now", "--workspace", str(mid_workspace.root)]) == 75
    assert "is queued and carried out when the run goes on" in capsys.readouterr().out
    queued = [msgspec.json.decode(path.read_bytes(), type=Command) for path in mid_workspace.control.iterdir()]
    assert [(one.kind, one.stage, one.now, one.by) for one in queued] == [(CommandKind.SKIP, "train_marian", True, "cli")]


@pytest.mark.parametrize(("ok", "code", "start"), [(True, 0, "said retry"), (False, 1, "Refused: said retry")])
def test_a_command_is_answered(
    ok: bool, code: int, start: str, mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemon's own words; 1 when it refuses."""
    with daemon_of(mid_workspace):
        thread = answer_next(mid_workspace, ok, "said")
        assert cli.main(["retry", "train_whisper", "--workspace", str(mid_workspace.root)]) == code
        thread.join()
    assert capsys.readouterr().out == f"{start} train_whisper False\n"


def test_a_command_answers_in_json_too(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """ok is null while nobody has answered."""
    assert cli.main(["pause", "--json", "--workspace", str(mid_workspace.root)]) == 75
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["text"]) == (None, "queued")


def test_stop_without_a_daemon_stops_nothing(mid_workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not queued: it would end the next run as it begins."""
    assert cli.main(["stop", "--workspace", str(mid_workspace.root)]) == 0
    assert "nothing to stop" in capsys.readouterr().out
    assert not mid_workspace.control.exists()


# -- light


def test_looking_loads_nothing_heavy(mid_workspace: Workspace) -> None:
    """`status` must feel instant: no plot library, no terminal library, nothing of the stages."""
    heavy = {"torch", "transformers", "numpy", "matplotlib", "jinja2", "rich", "structlog", "watchdog", "stages", "yt_dlp"}
    code = (
        "import sys; from daemon import cli; "
        f"assert cli.main(['status', '--workspace', {str(mid_workspace.root)!r}]) == 0; "
        f"print(sorted({heavy!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"


def test_a_closed_pipe_is_no_failure(mid_workspace: Workspace) -> None:
    """`vigil log | head -1` ends quietly."""
    command = f"{sys.executable} -P -m daemon.cli log --workspace {mid_workspace.root} | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """In 80 columns, with the exit codes."""
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for name in ("demo", "run", "status", "watch", "log", "skip", "retry", "pause", "resume", "stop", "report", "corpus", "setup"):
        assert f"\n    {name} " in text
    assert "exit codes" in text


# -- the corpus


SAMPLE = ["--english", "SampleA,SampleB", "--spanish", "MuestraA,MuestraB", "--min-verses", "2000"]


@pytest.fixture(scope="module")
def bibles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own invented texts, in the layout of the real ones."""
    return write_sample(tmp_path_factory.mktemp("bibles"))


def test_corpus_writes_four_files_and_accounts_for_them(bibles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The names that other programs read, the counts as tables, or the manifest as JSON."""
    out = tmp_path / "out"
    assert cli.main(["corpus", "--source", str(bibles), "--out", str(out), *SAMPLE]) == 0
    text = capsys.readouterr().out
    assert "after the versification map" in text
    found = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert found == [
        "aligned/verse_pairs_train.jsonl",
        "glossary/glossary_pairs.jsonl",
        "holdout/verse_pairs_test.jsonl",
        "manifest.json",
    ]
    assert cli.main(["corpus", "--source", str(bibles), "--out", str(out), "--json", *SAMPLE]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "manifest.json").read_text())


@pytest.mark.parametrize("source", ["empty", "missing"])
def test_a_bad_source_leaves_with_78(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence naming what is missing; nothing is written."""
    (tmp_path / "empty").mkdir()
    assert cli.main(["corpus", "--source", str(tmp_path / source), "--out", str(tmp_path / "out")]) == 78
    err = capsys.readouterr().err
    assert str(tmp_path / source) in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_leaves_with_73(
    bibles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the folder should be."""
    (tmp_path / "file").write_text("mine")
    assert cli.main(["corpus", "--source", str(bibles), "--out", str(tmp_path / "file"), *SAMPLE]) == 73
    assert str(tmp_path / "file") in capsys.readouterr().err

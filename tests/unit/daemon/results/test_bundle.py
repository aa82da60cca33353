"""What is taken along, and that it is what it says."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from daemon import view
from daemon.results import bundle
from daemon.results.bundle import BundleError, Entry, Manifest
from state.contract import Output, Result
from state.durable import tree_digest
from state.workspace import Workspace

MARIAN = "fine_tuned_marian_mi/model.safetensors"
CT2 = "fine_tuned_marian_mi/ct2/model.bin"
GENERAL = "metrics/translations_general/after/MarianMT.jsonl"
TOKEN = b"123456789:AAabcdefghijklmnopqrstuvwxyz0123456"


@pytest.fixture
def brought(finished_workspace: Workspace) -> Workspace:
    """A finished run with what Marian delivered, recordings, a checkpoint, a bot's files and a log."""
    root = finished_workspace.root
    for path, data in {
        MARIAN: os.urandom(3 << 20),
        "fine_tuned_marian_mi/config.json": b"{}",
        CT2: b"the same for CTranslate2",
        GENERAL: b"{}\n",
        "stark_data/raw/sermon.mp3": os.urandom(2 << 20),
        "stages/train_marian/checkpoints/step-00000160/weights.bin": b"checkpoint",
        "telegram/outbox.jsonl": b"private",
        "telegram_token": TOKEN,
        "logs/progress.log": b"Stage 1 complete.\n",
        "report/index.html": b"<html>report</html>",
        "stages/train_marian/attempts/001/output.log": b"said\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    (root / "logs" / "07_train_marian.log").symlink_to("../stages/train_marian/attempts/001/output.log")
    receipt = msgspec.json.decode(finished_workspace.result("train_marian").read_bytes(), type=Result)
    digest, size_bytes = tree_digest(finished_workspace.fine_tuned_marian)
    output = Output(path="fine_tuned_marian_mi", size_bytes=size_bytes, sha256=digest)
    finished_workspace.result("train_marian").write_bytes(msgspec.json.encode(msgspec.structs.replace(receipt, outputs=(output,))))
    return finished_workspace


def quiet(_done_bytes: int, _total_bytes: int, _what: str) -> None:
    pass


def make(workspace: Workspace, folder: Path, *, with_audio: bool = False) -> Manifest:
    return bundle.assemble(workspace, view.read(workspace), folder, 1.8e9, with_audio=with_audio, say=quiet)


def paths(manifest: Manifest) -> set[str]:
    return {entry.path for entry in manifest.files}


def why(manifest: Manifest, path: str) -> str:
    return next((left.why for left in manifest.left_out if left.path == path), "")


def test_results_and_records_are_taken_and_nothing_private(brought: Workspace, tmp_path: Path) -> None:
    """Adapters, metrics, logs, report, state and journal; no checkpoint, no recording, nothing of the bot."""
    made = make(brought, tmp_path / "out")
    found = paths(made)
    assert {
        MARIAN,
        CT2,
        GENERAL,
        "state.json",
        "journal.jsonl",
        "report/index.html",
        "logs/progress.log",
        "metrics/eval_results.json",
    } <= found
    assert {"stages/train_marian/result.json", "stages/train_marian/attempts/001/output.log", "logs/07_train_marian.log"} <= found
    on_disk = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert on_disk == found | {bundle.MANIFEST, bundle.SUMS}
    assert not [path for path in on_disk if "telegram" in path or "checkpoints" in path or path.endswith((".mp3", ".lock"))]
    assert not why(made, "fine_tuned_marian_mi"), "it is what was delivered"
    assert why(made, "stark_data/raw") == "recordings: add --with-audio"
    assert (made.run, made.complete, made.finished_at is not None) == ("20260212-180000", True, True)
    assert made.versions["python"].startswith("3.")
    assert made.total_bytes == sum(entry.size_bytes for entry in made.files)
    assert msgspec.json.decode((tmp_path / "out" / bundle.MANIFEST).read_bytes(), type=Manifest) == made


def test_recordings_come_along_when_asked(brought: Workspace, tmp_path: Path) -> None:
    """--with-audio."""
    assert "stark_data/raw/sermon.mp3" in paths(make(brought, tmp_path / "out", with_audio=True))


def test_what_is_missing_is_named_and_stops_nothing(brought: Workspace, tmp_path: Path) -> None:
    """A failed bonus, a delivered folder that is gone, a report never written."""
    (brought.report / "index.html").unlink()
    made = make(brought, tmp_path / "out")
    assert why(made, "results of train_gemma_12b").startswith("it is FAILED: out of memory")
    assert why(made, "fine_tuned_gemma_mi_A") == "was delivered and is gone"
    assert "vigil report" in why(made, "report/index.html")
    lines = bundle.summary_lines(made)
    assert max(map(len, lines)) <= 80


def test_large_results_take_no_second_place_on_the_disk(brought: Workspace, tmp_path: Path) -> None:
    """They are the same file under a second name (or share its blocks); what the run may write on is a copy."""
    make(brought, tmp_path / "out")
    large, copied = tmp_path / "out" / MARIAN, tmp_path / "out" / "journal.jsonl"
    assert (
        large.stat().st_ino == (brought.root / MARIAN).stat().st_ino or large.read_bytes() == (brought.root / MARIAN).read_bytes()
    )
    with open(brought.journal, "ab") as file:
        file.write(b"more\n")
    assert not copied.read_bytes().endswith(b"more\n")


def test_the_tool_of_every_machine_verifies_it(brought: Workspace, tmp_path: Path) -> None:
    """`sha256sum -c SHA256SUMS` needs no Vigil; odd names included."""
    odd = brought.metrics / "back\\slash\nnew line.json"
    odd.write_text("odd")
    make(brought, tmp_path / "out")
    command = ["sha256sum", "-c", "--quiet", bundle.SUMS]
    assert subprocess.run(command, cwd=tmp_path / "out", check=False, capture_output=True).returncode == 0
    (tmp_path / "out" / "journal.jsonl").write_bytes(b"changed")
    assert subprocess.run(command, cwd=tmp_path / "out", check=False, capture_output=True).returncode == 1


def test_a_second_making_mends_what_is_wrong_and_takes_what_is_new(brought: Workspace, tmp_path: Path) -> None:
    """A flipped byte in a copy of the same size and date, a leftover of an interrupted copy, a file that is no longer there."""
    out = tmp_path / "out"
    (brought.metrics / "old.json").write_text("old")
    make(brought, out)
    target = out / MARIAN
    data, dates = target.read_bytes(), target.stat()
    target.unlink()
    target.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    os.utime(target, ns=(dates.st_atime_ns, dates.st_mtime_ns))
    (out / "metrics" / ".eval_results.json.part").write_bytes(b"half")
    (brought.metrics / "old.json").unlink()
    made = make(brought, out)
    assert target.read_bytes() == data
    assert bundle.check(out, made.files, quiet) == []
    assert not (out / "metrics" / "old.json").exists()
    assert not list(out.rglob("*.part"))


def test_a_disk_that_cannot_link_gets_copies(brought: Workspace) -> None:
    """Another file system: everything is there, read back and equal."""
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == brought.root.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    out = elsewhere / f"vigil-bundle-{os.getpid()}"
    try:
        made = make(brought, out)
        assert (out / MARIAN).read_bytes() == (brought.root / MARIAN).read_bytes()
        assert (out / MARIAN).stat().st_nlink == 1
        assert bundle.check(out, made.files, quiet) == []
    finally:
        shutil.rmtree(out, ignore_errors=True)


def test_a_token_in_a_log_keeps_that_file_at_home(brought: Workspace, tmp_path: Path) -> None:
    """Also one that lies across two blocks of reading, and one that only the owner's settings name."""
    (brought.logs / "leak.log").write_bytes(b"x" * ((1 << 20) - 20) + TOKEN + b" more")
    (brought.metrics / "hub.json").write_text('{"token": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"}')
    (brought.root / "telegram_token").chmod(0o600)
    (brought.root / "telegram.toml").write_text(
        'token_file = "telegram_token"\nowner_id = 5\nheartbeat_url = "https://ping.example/private-thing"\n'
    )
    (brought.root / "telegram.toml").chmod(0o600)
    (brought.logs / "ping.log").write_text("GET https://ping.example/private-thing 200")
    (brought.logs / "digest.log").write_text(f"1770919200:{hashlib.sha256(b'no secret').hexdigest()}")
    made = make(brought, tmp_path / "out")
    assert {"logs/leak.log", "metrics/hub.json", "logs/ping.log"}.isdisjoint(paths(made))
    assert "logs/digest.log" in paths(made)
    assert "secret" in why(made, "logs/leak.log")
    assert not (tmp_path / "out" / "logs" / "leak.log").exists()


def test_what_is_not_what_the_stage_delivered_is_said(brought: Workspace, tmp_path: Path) -> None:
    """The receipt's sha256 is held against the files that are taken."""
    assert not why(make(brought, tmp_path / "one"), "fine_tuned_marian_mi")
    (brought.fine_tuned_marian / "config.json").write_text('{"edited": true}')
    assert "not what train_marian delivered" in why(make(brought, tmp_path / "two"), "fine_tuned_marian_mi")


def test_a_folder_of_something_else_is_left_alone(brought: Workspace, tmp_path: Path) -> None:
    """Foreign files, another run's bundle, or the run's own folders: refused before anything is written."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.doc").write_text("precious")
    with pytest.raises(BundleError, match="something else"):
        make(brought, foreign)
    assert [path.name for path in foreign.iterdir()] == ["thesis.doc"]
    other = tmp_path / "other"
    made = make(brought, other)
    (other / bundle.MANIFEST).write_bytes(msgspec.json.encode(msgspec.structs.replace(made, run="another")))
    with pytest.raises(BundleError, match="of run another"):
        make(brought, other)
    with pytest.raises(BundleError, match="inside the run's own folder"):
        make(brought, brought.metrics / "bundle")


def test_a_disk_without_room_is_told_before_anything_is_copied(
    brought: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How much is needed, how much there is, what to do."""
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10_000))
    with pytest.raises(BundleError, match=r"must be copied .* has 10 kB free; name a folder on another disk with --out"):
        make(brought, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_outside_is_not_followed(brought: Workspace, tmp_path: Path) -> None:
    """What lies outside the run's folder is nobody's to send."""
    (tmp_path / "private.txt").write_text("private")
    (brought.metrics / "link.json").symlink_to(tmp_path / "private.txt")
    made = make(brought, tmp_path / "out")
    assert "outside" in why(made, "metrics/link.json")
    assert "metrics/link.json" not in paths(made)


def test_progress_fits_the_terminal() -> None:
    """A bar, a share, sizes and the file at hand, in eighty columns."""
    line = bundle.progress_line(450_000_000, 1_000_000_000, "verifying fine_tuned_gemma_mi_A/adapter_model.safetensors of the run")
    assert len(line) < 80
    assert line.startswith("███████░░░░░░░░░  45 %  450 MB of 1.0 GB  verifying")
    assert bundle.sum_line(Entry(path="a\\b", size_bytes=1, sha256="0" * 64)) == "\\" + "0" * 64 + "  a\\\\b\n"

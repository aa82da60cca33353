"""Downloads for real, by yt-dlp from a server on this machine that misbehaves the way sites do."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
import soundfile

from daemon.before_leaving.demo_server import Clip, ClipServer, Faults, serve
from stages import download
from stages.runtime import StageContext
from state.contract import ExitCode, MisconfiguredError, Spec, StopRequested, TransientError
from state.durable import tree_digest, tree_files
from state.workspace import Attempt, Workspace
from tests.stage_attempts import notes

ROOT = Path(__file__).parents[2]


def spec(root: Path, url: str, number: int = 1, **settings: Any) -> tuple[Spec, Attempt]:
    workspace = Workspace.at(root)
    attempt = workspace.attempt("download", number)
    attempt.root.mkdir(parents=True)
    values = {"url": url, "newest": 3, "min_duration_s": 1.0, "first_delay_s": 0.01, "tries": 3, **settings}
    made = Spec(run_id="r", stage="download", module="stages.download", attempt=number, workspace=str(root), settings=values)
    attempt.spec.write_bytes(msgspec.json.encode(made))
    return made, attempt


def context(root: Path, url: str, number: int = 1, **settings: Any) -> StageContext:
    return StageContext(*spec(root, url, number, **settings))


def names(root: Path) -> list[str]:
    return [path.name for path in tree_files(root / "stark_data" / "raw")]


@contextmanager
def site(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d"), faults: Faults | None = None) -> Iterator[ClipServer]:
    """A feed of two-second recordings, newest first; `a` is the newest. In the end no connection to it may be open."""
    folder.mkdir(exist_ok=True)
    clips = []
    for number, name in enumerate(names):
        file = folder / f"file{number}.flac"
        soundfile.write(file, np.random.default_rng(number).normal(0, 0.1, 32_000), 16_000)
        clips.append(Clip(name, f"Title of {name}", file, 2.0))
    gc.disable()  # it would close what was left open
    try:
        with serve(folder, faults=faults, clips=clips) as server:
            yield server
            peers = [held.raddr.port for held in psutil.Process().net_connections("tcp") if held.raddr]
            assert server.server_address[1] not in peers
    finally:
        gc.enable()


def test_the_newest_are_fetched_with_their_metadata(tmp_path: Path) -> None:
    """Three of four, newest first, under our names; each with an info file whose numbers are those of the file."""
    with site(tmp_path / "site") as server:
        ctx = context(tmp_path / "run", server.feed_url)
        delivery = download.main(ctx)
    assert names(tmp_path / "run") == [
        f"{number:03d}_{name}.{kind}" for number, name in enumerate("abc", 1) for kind in ("flac", "info.json")
    ]
    info = json.loads((ctx.workspace.raw_audio / "001_a.info.json").read_text())
    assert (info["title"], info["duration"], info["decoded_s"]) == ("Title of a", 2.0, 2.0)
    assert info["size_bytes"] == (tmp_path / "site" / "file0.flac").stat().st_size
    assert (ctx.workspace.raw_audio / "001_a.flac").read_bytes() == (tmp_path / "site" / "file0.flac").read_bytes()
    assert delivery.metrics["recordings"] == 3
    assert (ctx.scratch() / "archive.txt").read_text().splitlines() == ["generic a", "generic b", "generic c"]
    assert server.requests["file3.flac"] == 0


def test_nothing_is_fetched_twice(tmp_path: Path) -> None:
    """A second attempt asks the site for nothing, not even the listing."""
    with site(tmp_path / "site") as server:
        download.main(context(tmp_path / "run", server.feed_url))
        before = dict(server.requests)
        download.main(context(tmp_path / "run", server.feed_url, 2))
        assert dict(server.requests) == before


def test_a_refusing_site_is_asked_again(tmp_path: Path) -> None:
    """503 on the listing and on a file are tried again and go through."""
    with site(tmp_path / "site", faults=Faults(unavailable={"feed.xml": 2, "file1.flac": 2})) as server:
        assert download.main(context(tmp_path / "run", server.feed_url)).metrics["recordings"] == 3


def test_a_cut_line_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The connection breaks twice: the rest is fetched by ranges, and the file is the original."""
    with site(tmp_path / "site", faults=Faults(cut={"file0.flac": (20_000, 3)})) as server:
        download.main(context(tmp_path / "run", server.feed_url, newest=1, tries=5))
        assert server.ranges["file0.flac"] >= 1
    assert (tmp_path / "run/stark_data/raw/001_a.flac").read_bytes() == (tmp_path / "site/file0.flac").read_bytes()


def test_a_truncated_file_is_never_taken_for_the_recording(tmp_path: Path) -> None:
    """The server's file is shorter than the recording: tried again, then left out, told, and the next one taken."""
    with site(tmp_path / "site", faults=Faults(shortened={"file1.flac": 30_000})) as server:
        ctx = context(tmp_path / "run", server.feed_url)
        metrics = download.main(ctx).metrics
        assert (metrics["recordings"], metrics["recordings_left_out"]) == (3, 1)
        assert server.requests["file1.flac"] >= 3
    assert [name for name in names(tmp_path / "run") if name.endswith(".flac")] == ["001_a.flac", "003_c.flac", "004_d.flac"]
    assert any("Title of b" in text and "is cut short" in text for text in notes(ctx).splitlines())


def test_what_is_gone_is_left_out_once(tmp_path: Path) -> None:
    """404: no second try, the next recording instead, the count told; the next attempt does not ask again."""
    with site(tmp_path / "site", faults=Faults(missing=frozenset({"file0.flac"}))) as server:
        ctx = context(tmp_path / "run", server.feed_url)
        download.main(ctx)
        asked = server.requests["file0.flac"]
        download.main(context(tmp_path / "run", server.feed_url, 2))
        assert server.requests["file0.flac"] == asked == 1
    assert "3 of 3 wanted recordings are here; 1 listed ones were left out" in notes(ctx).splitlines()


def test_short_recordings_are_left_out(tmp_path: Path) -> None:
    """By the announced length without a request, as by the real one when the site said nothing."""
    with site(tmp_path / "site", ("a",)) as server:
        for folder, duration_s in (("told", 2.0), ("untold", None)):
            server.clips[0] = Clip("a", "A", server.clips[0].file, duration_s)
            with pytest.raises(MisconfiguredError, match="2 s long, recordings under 60 s are left out"):
                download.main(context(tmp_path / folder, server.feed_url, min_duration_s=60.0))
            assert (server.requests["file0.flac"] > 0) == (duration_s is None)


def test_no_network_is_transient(tmp_path: Path) -> None:
    """Nobody listens at the address: TRANSIENT, so that the daemon waits for the network however long that takes."""
    with site(tmp_path / "site") as server:
        url = server.feed_url
    with pytest.raises(TransientError, match="the network does not answer after 3 tries"):
        download.main(context(tmp_path / "run", url))


def test_a_site_that_goes_away_between_is_transient_and_keeps_what_is_here(tmp_path: Path) -> None:
    """The listing and one recording came, then every request is refused: TRANSIENT, the one is kept, the rest follows."""
    with site(tmp_path / "site", faults=Faults(unavailable={"file1.flac": 99, "file2.flac": 99})) as server:
        with pytest.raises(TransientError, match=r"1 recordings are here; the site refuses 2 for now: Title of b: .*503"):
            download.main(context(tmp_path / "run", server.feed_url))
        assert names(tmp_path / "run") == ["001_a.flac", "001_a.info.json"]
        server.faults = Faults()
        assert download.main(context(tmp_path / "run", server.feed_url, 2)).metrics["recordings"] == 3
        assert server.requests["file0.flac"] == 2  # one look, one download: not fetched anew


def test_one_recording_that_is_refused_for_ever_does_not_hold_up_the_rest(tmp_path: Path) -> None:
    """Refused in three attempts while others came: left out, the next one taken."""
    with site(tmp_path / "site", faults=Faults(unavailable={"file1.flac": 9999})) as server:
        for number in (1, 2):
            with pytest.raises(TransientError):
                download.main(context(tmp_path / "run", server.feed_url, number))
        ctx = context(tmp_path / "run", server.feed_url, 3)
        assert download.main(ctx).metrics["recordings"] == 3
    assert "refused in 3 attempts" in notes(ctx)


@pytest.mark.parametrize(
    ("path", "words"),
    [("/nothing.xml", "cannot be listed: .*404"), ("/pages/none", "cannot be listed: .*404")],
)
def test_an_address_that_leads_nowhere_is_misconfigured(tmp_path: Path, path: str, words: str) -> None:
    """404 for the listing itself: no retry can mend a wrong address."""
    with site(tmp_path / "site") as server, pytest.raises(MisconfiguredError, match=words):
        download.main(context(tmp_path / "run", server.url + path))


def test_an_empty_feed_is_misconfigured(tmp_path: Path) -> None:
    """A list of nothing."""
    with site(tmp_path / "site", ()) as server, pytest.raises(MisconfiguredError, match="gave no recording that can be used"):
        download.main(context(tmp_path / "run", server.feed_url))


@pytest.mark.parametrize("name", ["../../x", "-rf", "a/../../../etc/cron.d/x", "%(id)s", "con\nnl", "..", "~root"])
def test_hostile_ids_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    """An id that is a path, an option or a template is only a name: everything lies in raw/ and the stage's own folder."""
    with site(tmp_path / "site", (name,)) as server:
        download.main(context(tmp_path / "run", server.feed_url, newest=1))
    assert {path.relative_to(tmp_path).parts[:2] for path in tree_files(tmp_path)} <= {
        ("run", "stages"),
        ("run", "stark_data"),
        ("site", "file0.flac"),
    }
    (sound, _info) = names(tmp_path / "run")
    assert sound.startswith("001_")
    assert sound[4].isalnum()


def test_what_is_no_sound_is_left_out(tmp_path: Path) -> None:
    """A web page under the name of a recording is not audio; a feed of nothing else is misconfigured."""
    with site(tmp_path / "site", ("a",)) as server:
        server.clips[0].file.write_bytes(b"<!doctype html><title>Sign in</title>" * 100)
        with pytest.raises(MisconfiguredError, match="gave no recording that can be used: Title of a"):
            download.main(context(tmp_path / "run", server.feed_url))
    assert names(tmp_path / "run") == []


def test_captions_are_kept_beside_the_sound(tmp_path: Path) -> None:
    """Where the page has a caption track it lies beside the recording; without the setting it does not."""
    with site(tmp_path / "site", ("a",)) as server:
        captions = tmp_path / "site" / "a.vtt"
        captions.write_text("WEBVTT\n\n00:00.000 --> 00:02.000\nGood morning\n")
        server.clips[0] = Clip("a", "A", server.clips[0].file, 2.0, captions)
        download.main(context(tmp_path / "with", server.feed_url, newest=1))
        download.main(context(tmp_path / "without", server.feed_url, newest=1, captions=False))
    assert names(tmp_path / "with") == ["001_a.en.vtt", "001_a.flac", "001_a.info.json"]
    assert names(tmp_path / "without") == ["001_a.flac", "001_a.info.json"]


def test_refused_captions_do_not_cost_the_recording(tmp_path: Path) -> None:
    """The captions are 404: the sound is fetched without, and that is told."""
    with site(tmp_path / "site", ("a",), Faults(missing=frozenset({"a.vtt"}))) as server:
        captions = tmp_path / "site" / "a.vtt"
        captions.write_text("WEBVTT\n")
        server.clips[0] = Clip("a", "A", server.clips[0].file, 2.0, captions)
        ctx = context(tmp_path / "run", server.feed_url, newest=1)
        download.main(ctx)
    assert names(tmp_path / "run") == ["001_a.flac", "001_a.info.json"]
    assert "captions of A left out" in notes(ctx)


def test_a_stop_during_a_download_keeps_the_part(tmp_path: Path) -> None:
    """SIGTERM's request is seen between two blocks; the next attempt goes on inside the file."""
    with site(tmp_path / "site", ("a",), Faults(seconds_per_block=0.1)) as server:
        soundfile.write(server.clips[0].file, np.random.default_rng(0).normal(0, 0.1, 640_000), 16_000)
        server.clips[0] = Clip("a", "A", server.clips[0].file, 40.0)

        class Stopping(StageContext):
            def progress(self, done: float, *args: Any, **kwargs: Any) -> None:
                super().progress(done, *args, **kwargs)
                if done > 0.2:
                    self.request_stop()

        with pytest.raises(StopRequested):
            download.main(Stopping(*spec(tmp_path / "run", server.feed_url, newest=1)))
        server.faults = Faults()
        download.main(context(tmp_path / "run", server.feed_url, 2, newest=1))
        assert server.ranges["file0.flac"] == 1
    assert (tmp_path / "run/stark_data/raw/001_a.flac").read_bytes() == (tmp_path / "site/file0.flac").read_bytes()


def start(attempt: Attempt) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stages.download", str(attempt.root)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_killed_at_any_moment_it_ends_with_the_same_files(tmp_path: Path) -> None:
    """The real process, killed by SIGKILL a little after its first, second, third ... request, ends as an undisturbed one."""
    with site(tmp_path / "site", faults=Faults(seconds_per_block=0.02)) as server:
        _spec, attempt = spec(tmp_path / "whole", server.feed_url)
        assert start(attempt).wait(timeout=120) == ExitCode.SUCCEEDED
        whole = tree_digest(tmp_path / "whole/stark_data/raw")
        code, kills, number = -1, 0, 0
        while code != ExitCode.SUCCEEDED:
            number += 1
            _spec, attempt = spec(tmp_path / "killed", server.feed_url, number)
            until = server.requests.total() + number
            process = start(attempt)
            while process.poll() is None and server.requests.total() < until:
                time.sleep(0.005)
            time.sleep(0.02 * number)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
            code = process.wait(timeout=120)
            assert code in (ExitCode.SUCCEEDED, -signal.SIGKILL)
        assert kills >= 2
        assert tree_digest(tmp_path / "killed/stark_data/raw") == whole
        assert (tmp_path / "killed/stages/download/result.json").is_file()

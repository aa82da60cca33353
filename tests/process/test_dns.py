"""A real daemon whose bot asks a name server that never answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from state.pipeline import Pipeline, StageConfig
from state.store import Store
from state.workspace import Workspace
from tests.telegram.wire import TOKEN

ROOT = Path(__file__).parents[2]
SERVERS = ("127.66.4.53", "127.66.4.54")
BOUND = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
DAEMON = """
import os, sys
from pathlib import Path
import msgspec
from daemon import logs, supervisor
from state.pipeline import Pipeline
from state.workspace import Workspace
workspace, path = Workspace.at(sys.argv[1]), Path(sys.argv[2])
logs.set_up(workspace, console=None)
pipeline = msgspec.json.decode(path.read_bytes(), type=Pipeline)
os._exit(supervisor.watch_over(workspace, pipeline, path, with_report=False, with_bot=True))
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare")
def test_stop_is_quick_though_no_name_server_answers(tmp_path: Path) -> None:
    """Under 5 s from SIGTERM to the end of the process, stage and all, while the resolver of the C library waits."""
    workspace, path, resolv = Workspace.at(tmp_path / "w"), tmp_path / "pipeline.json", tmp_path / "resolv.conf"
    stage = StageConfig(name="one", module="tests.process.probe", settings={"steps": 4000, "step_s": 0.05})
    path.write_bytes(msgspec.json.encode(Pipeline(name="probes", keep_free_gb=0.0, stages=(stage,))))
    resolv.write_text("".join(f"nameserver {server}\n" for server in SERVERS))
    workspace.root.mkdir()
    (workspace.root / "token").write_text(TOKEN)
    (workspace.root / "token").chmod(0o600)
    (workspace.root / "telegram.toml").write_text('token_file = "token"\nowner_id = 7\nbase_url = "http://api.nowhere.example"\n')
    listening = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _server in SERVERS]
    for each, server in zip(listening, SERVERS, strict=True):
        each.bind((server, 53))
        each.settimeout(30)
    arguments = [sys.executable, "-c", DAEMON, str(workspace.root), str(path)]
    daemon = subprocess.Popen(["unshare", "--mount", "sh", "-c", BOUND, "sh", str(resolv), *arguments], cwd=ROOT)
    try:
        assert b"nowhere" in listening[0].recv(512), "the bot asks"
        until(lambda: (workspace.attempt("one", 1).events).exists())
        began = time.monotonic()
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 83
        took_s = time.monotonic() - began
    finally:
        daemon.kill()
        daemon.wait()
        for each in listening:
            each.close()
    print(f"stopped in {took_s:.2f} s")
    assert took_s < 5.0
    assert Store(workspace.state).peek().stage("one").attempts[-1].outcome == "STOPPED"


def until(condition, limit_s: float = 20.0) -> None:
    """Wait for what nobody announces."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not so in time"
        time.sleep(0.02)

"""The heartbeat of a real daemon whose tick hangs in a read, while its bot lives."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from state.pipeline import Pipeline, StageConfig
from state.workspace import Workspace
from tests.telegram.fake_api import OWNER_ID, FakeApi
from tests.unit.daemon.phone.test_heartbeat import Service

ROOT = Path(__file__).parents[2]
DAEMON = """
import os, sys
from pathlib import Path
import msgspec
from daemon import logs, supervisor
from daemon.phone import heartbeat
from daemon.phone.bot import Bot
from daemon.phone.telegram_settings import Secret, Telegram
from state.pipeline import Pipeline
from state.workspace import Workspace
from tests.process.bot_program import FAST
root, pipeline, url, token, owner, address = sys.argv[1:]
workspace = Workspace.at(root)
logs.set_up(workspace, console=None)
supervisor.TICK_S, heartbeat.TICK_LIMIT_S = 0.1, 2.0
settings = Telegram(
    token=Secret(token), owner_id=int(owner), chat_id=int(owner), base_url=url, heartbeat=Secret(address), heartbeat_every_s=0.1
)
Bot(workspace, settings, FAST).start()
path = Path(pipeline)
supervisor.watch_over(workspace, msgspec.json.decode(path.read_bytes(), type=Pipeline), path, with_report=False)
os._exit(0)
"""


def test_a_tick_that_hangs_in_a_read_silences_the_heartbeat(tmp_path: Path) -> None:
    """The bot answers all the while; there is no ping until the read ends and a tick with it."""
    workspace = Workspace.at(tmp_path / "w")
    stage = StageConfig(name="one", module="tests.process.probe", settings={"steps": 4000, "step_s": 0.05})
    path = tmp_path / "pipeline.json"
    path.write_bytes(msgspec.json.encode(Pipeline(name="probes", keep_free_gb=0.0, stages=(stage,))))
    with FakeApi() as api, Service().at_work() as service:
        arguments = [str(workspace.root), str(path), api.url, api.token, str(OWNER_ID), service.url]
        daemon = subprocess.Popen([sys.executable, "-c", DAEMON, *arguments], cwd=ROOT)
        try:
            until(lambda: len(service.asked) > 2)
            until(lambda: "stage=one" in service.asked[-1])
            hang = workspace.control / "hang.json"
            os.mkfifo(hang)  # whoever reads it waits for one who writes
            until(lambda: "no tick comes to its end" in workspace.daemon_log.read_text())
            heard = len(service.asked)
            api.owner.says("/ping")
            api.wait_for(lambda: any("Here" in message.text for message in api.sent))
            time.sleep(1.0)  # nothing to wait for: nothing shall come
            assert len(service.asked) == heard
            os.close(os.open(hang, os.O_WRONLY))
            until(lambda: len(service.asked) > heard)
        finally:
            daemon.terminate()
            daemon.wait(30)


def until(condition, limit_s: float = 20.0) -> None:
    """Wait for what nobody announces."""
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "not so in time"
        time.sleep(0.02)

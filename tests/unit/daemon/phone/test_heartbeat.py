"""The heartbeat: it vouches for what the daemon sees, and is silent when it sees nothing."""

import asyncio
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
import structlog

from daemon import locks, pulse, view
from daemon.phone.bot import Bot, World
from daemon.phone.heartbeat import FRESH_S, Heart, look, with_query
from daemon.phone.telegram_settings import Secret, Telegram
from state.contract import Progress
from tests.conftest import ExampleRun, mid_run
from tests.process.bot_program import FAST


class Service:
    """An outside service on this machine: it keeps what it was asked for."""

    def __init__(self):
        self.asked = []
        self.code = 200

    @contextmanager
    def at_work(self):
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                service.asked.append(self.path)
                self.send_response(service.code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_port}/secret-of-mine"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def service():
    with Service().at_work() as made:
        yield made


class Scene:
    """A run whose Marian stage is at work, and its daemon's lock."""

    def __init__(self, folder):
        example = ExampleRun(folder / "run")
        self.workspace = mid_run(example)
        self.now = example.now
        self.events = self.workspace.attempt("train_marian", 2).events
        os.utime(self.events, (self.now, self.now))
        self.silence_s = example.pipeline.stage("train_marian").silence_s
        self.lock = locks.take(self.workspace.lock)

    def leave(self):
        if self.lock:
            os.close(self.lock)
        self.lock = None


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.phone.heartbeat.TICK_LIMIT_S", 0.05)
    made = Scene(tmp_path)
    yield made
    made.leave()


def beats(scene, service, count=1, **changes):
    """So many beats, each of which takes no time; what was logged."""
    counter = iter(range(1_000_000))
    given = {"ticks": lambda: next(counter)} | changes

    async def live():
        heart = Heart(scene.workspace, Secret(service.url), 0.0, lambda: scene.now, **given)
        for _ in range(count):
            await heart.beat()

    with structlog.testing.capture_logs() as logged:
        asyncio.run(live())
    return logged


def test_a_ping_tells_how_far_the_run_is(scene, service):
    """The stage at work, its step, and how many stages are settled."""
    assert beats(scene, service) == []
    asked = urlsplit(service.asked[0])
    assert asked.path == "/secret-of-mine"
    assert parse_qs(asked.query) == {"done": ["100"], "stage": ["train_marian"], "settled": ["5"]}


def test_an_address_keeps_its_own_query():
    """What the owner wrote comes first."""
    assert with_query("https://x.test/a?key=b", {"done": 1.5, "stage": "a b"}) == "https://x.test/a?key=b&done=1.5&stage=a+b"


def test_silent_without_a_daemon(scene, service):
    """A run that nobody holds is not vouched for."""
    scene.leave()
    (line,) = beats(scene, service)
    assert service.asked == []
    assert (line["event"], line["reason"]) == ("heartbeat.silent", "no daemon is known to hold the run")


def test_silent_when_the_run_cannot_be_read(scene, service):
    """Both generations of the state are damaged: no ping, one line however long it lasts."""
    for path in scene.workspace.root.glob("state.json*"):
        path.write_bytes(b"{")
    (line,) = beats(scene, service, 3)
    assert service.asked == []
    assert line["reason"].startswith("the run cannot be read")


def test_silent_when_the_tick_stands_still(scene, service):
    """Ticks ended before and none ends now; once one does again, the run is vouched for again."""
    (line,) = beats(scene, service, ticks=lambda: 7)
    assert service.asked == []
    assert line["reason"] == "no tick comes to its end"
    assert beats(scene, service) == []
    assert len(service.asked) == 1


def test_silent_when_a_stage_is_silent_for_too_long(scene, service):
    """Up to its limit, and the time that the daemon needs to end it, a stage may say nothing; and no longer."""
    began = scene.now
    scene.now = began + scene.silence_s + FRESH_S - 1
    assert beats(scene, service) == []
    scene.now = began + scene.silence_s + FRESH_S + 1
    (line,) = beats(scene, service)
    assert len(service.asked) == 1
    assert line["reason"] == "train_marian is silent for too long"


def test_an_announced_silence_is_granted(scene, service):
    """A stage that announced a long save has twice its time, as the daemon grants it."""
    told = Progress(at=scene.now, done=100, quiet_s=scene.silence_s * 2)
    with open(scene.events, "ab") as file:
        file.write(msgspec.json.encode(told) + b"\n")
    os.utime(scene.events, (scene.now, scene.now))
    scene.now += scene.silence_s * 4 + FRESH_S - 1
    assert look(scene.workspace, scene.now)[1] == ""
    assert look(scene.workspace, scene.now + 2)[1] == "train_marian is silent for too long"


def test_a_service_that_does_not_hear_is_told_of_once(scene, service):
    """One line when it begins and no address in it; the next ping that is heard is the end of it."""
    service.code = 500
    (line,) = beats(scene, service, 3)
    assert len(service.asked) == 3
    assert "secret" not in str(line)
    assert line["reason"] == "the ping was not heard: HTTPError"


def test_a_slow_disk_is_no_sight_of_the_run(scene, service, monkeypatch):
    """What was seen before does not count: a view that does not come in time is none."""
    monkeypatch.setattr("daemon.phone.heartbeat.LOOK_LIMIT_S", 0.05)
    hanging = threading.Event()
    read = view.read
    monkeypatch.setattr("daemon.view.read", lambda workspace: hanging.wait(10.0) and read(workspace))
    (line,) = beats(scene, service)
    hanging.set()
    assert service.asked == []
    assert line["reason"] == "the run cannot be read: TimeoutError"


def test_the_bot_has_a_heart(scene, service):
    """It beats beside everything else, and also while Telegram cannot be reached; no log holds its address."""
    settings = Telegram(
        token=Secret("123456:" + "A" * 35),
        owner_id=7,
        chat_id=7,
        base_url="http://127.0.0.1:9",
        heartbeat=Secret(service.url),
        heartbeat_every_s=0.1,
    )
    tick, end_s = threading.Event(), time.monotonic() + 20.0
    with structlog.testing.capture_logs() as logged:
        bot = Bot(scene.workspace, settings, FAST, World(clock=lambda: scene.now))
        bot.start()
        try:
            while len(service.asked) < 2 and time.monotonic() < end_s:
                tick.wait(0.02)
                pulse.beat()  # as the supervisor does
        finally:
            bot.stop()
    assert len(service.asked) >= 2
    assert "stage=train_marian" in service.asked[0]
    assert "secret" not in str(logged)

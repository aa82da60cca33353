"""The mirror: red alarms and their ends go to other services too, kept, marked, and in nobody's way."""

import asyncio
import json
import os
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec

import pytest
import structlog

from daemon import words
from daemon.phone import mirror
from daemon.phone.bot import Bot, World
from daemon.phone.courier import INSTALL
from daemon.phone.dialogue import Message, Ring
from daemon.phone.mirror import TOLD_AFTER, Mirror, UnusableError, follow, name_of, open_line, stuck, unusable, worded
from daemon.phone.outbox import OLD_S, Deliver, Outbox, after_crash, put
from daemon.phone.telegram_settings import Secret, Telegram
from state.snapshot import Fact
from state.store import Journal
from tests.conftest import ExampleRun, mid_run
from tests.process.bot_program import FAST
from tests.telegram.fake_api import OWNER_ID, FakeApi

URL = Secret("json://somebody:password@127.0.0.1:1/topic")
NOW = 1_770_919_200.0
RED = Message(key="a", html="🔴 <b>Marian failed</b>\nloss&lt;0.5", ring=Ring.RED, kind="stage.failed", at=NOW)
OVER = Message(key="a/over", html="✅ Solved", kind="stage.failed", at=NOW, replaces="a")


EMPTY = Outbox()


def grown(*messages, mirrored=EMPTY):
    """The mirror's outbox once Telegram's has taken these in, one after the other."""
    box = EMPTY
    for message in messages:
        later = put(box, message)
        mirrored, box = follow(box, later, mirrored, NOW), later
    return mirrored


def keys(box):
    return [entry.message.key for entry in box.waiting]


def test_red_ones_and_their_ends_are_mirrored():
    """What rings or is silent is not, nor the edit of what was no alarm; a red one comes again as "still"."""
    loud = Message(key="b", html="done", ring=Ring.LOUD, kind="stage.succeeded")
    edit = Message(key="b/over", html="done again", kind="stage.succeeded", replaces="b")
    still = Message(key="a/still/1", html="Still", ring=Ring.RED, kind="stage.failed")
    assert keys(grown(RED, loud, edit, still, OVER)) == ["a", "a/still/1", "a/over"]


def test_the_end_of_an_alarm_is_a_message_of_its_own():
    """Elsewhere nothing can be edited, no button tapped; the end comes although the alarm has left long ago."""
    box = grown(RED, OVER)
    assert [entry.message.replaces for entry in box.waiting] == ["", ""]
    assert keys(follow(Outbox(), put(Outbox(), OVER), Outbox(sent={"a": mirror.outbox.Sent()}), NOW)) == ["a/over"]


def test_what_was_mirrored_is_not_mirrored_again():
    """After a restart Telegram's outbox still holds it: it is the same."""
    mirrored = grown(RED)
    assert grown(RED, mirrored=mirrored) == mirrored


def test_the_text_is_bare_and_says_when_it_is_late():
    """No tags, typed as meant; one that could not leave in time tells its own."""
    step = Deliver(RED, silent=False)
    assert worded(step, NOW + 1, None) == "🔴 Marian failed\nloss<0.5"
    assert worded(step, NOW + OLD_S + 1, None).endswith(") 🔴 Marian failed\nloss<0.5")
    assert worded(step, NOW + OLD_S + 1, None).startswith("(")


class Scene:
    """A mirror, its outbox as it was kept each time, and a service that answers as it is told."""

    def __init__(self, box, *answers, **changes):
        self.box = box
        self.kept = [box]
        self.sent = []
        self.told = []
        self.answers = list(answers)
        given = {"opened": lambda _url: self.line, "retry_s": 0.001, "tell": self.told.append} | changes
        self.mirror = Mirror(URL, lambda: self.box, self.keep, lambda: NOW, **given)

    def keep(self, box):
        self.box = box
        self.kept.append(box)

    def line(self, text):
        assert self.box.waiting[0].trying, "the try is kept before it"
        self.sent.append(text)
        answer = self.answers.pop(0) if self.answers else True
        if isinstance(answer, Exception):
            raise answer
        return answer

    def passes_on(self, times=1, limit_s=5.0):
        """So many messages; what was logged."""

        async def live():
            async with asyncio.timeout(limit_s):
                for _ in range(times):
                    await self.mirror.pass_on()

        with structlog.testing.capture_logs() as logged:
            asyncio.run(live())
        return logged


def test_a_failed_try_comes_again_marked():
    """Nobody knows what became of it; the log has one line for the outage and one for its end, and no secret."""
    scene = Scene(grown(RED), False, OSError("no route to password"))
    logged = scene.passes_on(3)
    assert [text.partition("\n")[0] for text in scene.sent] == ["🔴 Marian failed", *["(again) 🔴 Marian failed"] * 2]
    assert (scene.box.waiting, list(scene.box.sent)) == ((), ["a"])
    assert [line["event"] for line in logged] == ["mirror.offline", "mirror.online"]
    assert "password" not in str(logged)


def test_a_kill_at_any_moment_loses_nothing_and_marks_the_repeat():
    """Whatever was kept last, the next process sends it, marked if it may have been sent before; or it was sent."""
    scene = Scene(grown(RED))
    scene.passes_on()
    for kept, repeats in zip(scene.kept, (["🔴"], ["(again) 🔴"], []), strict=True):
        later = Scene(after_crash(kept))
        if later.box.waiting:
            later.passes_on()
        assert [text.partition(" Marian")[0] for text in later.sent] == repeats
        assert list(later.box.sent) == ["a"]


def test_a_service_that_hangs_holds_up_nobody(monkeypatch):
    """The try ends after its limit, is in doubt, and the loop turns meanwhile."""
    monkeypatch.setattr(mirror, "SEND_LIMIT_S", 0.1)
    hanging = threading.Event()
    scene = Scene(grown(RED), opened=lambda _url: lambda _text: hanging.wait(10.0))
    latest_s = 0.0

    async def live():
        nonlocal latest_s
        sending = asyncio.ensure_future(scene.mirror.pass_on())
        while not sending.done():
            began_s = time.monotonic()
            await asyncio.sleep(0.005)
            latest_s = max(latest_s, time.monotonic() - began_s)

    asyncio.run(live())
    hanging.set()
    assert scene.box.waiting[0].doubts == 1
    assert latest_s < 0.1
    assert not scene.mirror.at_work, "the daemon's end does not wait for one that was tried"


def test_what_cannot_be_used_says_so_once_and_is_looked_at_again():
    """One line in the log and one message however often; what waits is kept, and goes out when Apprise was installed."""
    scene = Scene(grown(RED), opened=lambda _url: refuse() if len(scene.told) < 3 else scene.line)

    def refuse():
        raise UnusableError("because")

    logged = scene.passes_on(3)
    assert [(line["event"], line["service"], line["reason"]) for line in logged] == [("mirror.unusable", "json", "because")]
    assert {message.key for message in scene.told} == {unusable(URL, "", NOW).key}
    assert (keys(scene.box), scene.mirror.at_work) == (["a"], False)
    assert [line["event"] for line in scene.passes_on()] == ["mirror.online"]
    assert [text.partition("\n")[0] for text in scene.sent] == ["🔴 Marian failed"]


def test_the_owner_is_told_of_a_service_that_takes_nothing():
    """Not at the first failure, which may pass; of one outage always under the same key, whatever is repeated in it."""
    scene = Scene(grown(RED), *[False] * (TOLD_AFTER + 2))
    scene.passes_on(TOLD_AFTER - 1)
    assert scene.told == []
    scene.passes_on(4)
    assert {message.key for message in scene.told} == {stuck(URL, RED, NOW).key}
    assert len(scene.told) == 3
    assert "(again)" not in scene.told[-1].html


def test_the_words_for_the_owner():
    """What is wrong, what it means, what to do; silent, and of the address no more than its kind."""
    texts = [words.bare(unusable(URL, "Apprise knows no such address.", NOW).html), words.bare(stuck(URL, RED, NOW).html)]
    assert texts == [
        "🟠 The mirror json:// is of no use.\nApprise knows no such address.\n\nRed alarms come here alone.",
        "🟠 The mirror json:// does not take\n🔴 Marian failed\nIs its address right? It is tried again.",
    ]
    assert {unusable(URL, "", NOW).ring, stuck(URL, RED, NOW).ring} == {Ring.SILENT}


STAND_IN = """
import json, os, sys, time
class Apprise:
    def add(self, url):
        self.url = url
        print(url, file=sys.stderr)
        return url.startswith("json://")
    def notify(self, title, body):
        seen = [open(f"/proc/self/{name}").read() for name in ("cmdline", "environ")]
        with open(os.path.join(os.path.dirname(__file__), "seen"), "w") as file:
            json.dump({"pid": os.getpid(), "process": seen, "body": body}, file)
        time.sleep(60 if "hang" in self.url else 0)
        if "crash" in self.url:
            raise ValueError(self.url)
        return "refuse" not in self.url
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Apprise as far as the process that loads it is concerned, so that this is proved where it is not installed."""
    (tmp_path / "apprise.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda: json.loads((tmp_path / "seen").read_text())


@pytest.mark.parametrize(
    ("address", "taken"),
    [("json://topic", True), ("json://refuse/topic", False), ("json://crash/topic", False)],
    ids=["takes", "refuses", "crashes"],
)
def test_each_alarm_has_a_process_of_its_own(stand_in, address, taken, capfd):
    """Its address is no argument, in no environment and on no console; a plug-in that crashes is a no."""
    assert open_line(Secret(address))("🔴 loss<0.5") is taken
    seen = stand_in()
    assert (seen["pid"] != os.getpid(), seen["body"]) == (True, "🔴 loss<0.5")
    assert "daemon.phone.courier" in seen["process"][0]
    assert "topic" not in "".join(seen["process"]) + "".join(capfd.readouterr())


def test_a_process_that_hangs_is_ended(stand_in, monkeypatch):
    """After the limit of a try there is none left."""
    send = open_line(Secret("json://hang"))
    monkeypatch.setattr(mirror, "SEND_LIMIT_S", 1.0)
    with pytest.raises(mirror.subprocess.TimeoutExpired):
        send("🔴")
    with pytest.raises(ProcessLookupError):
        os.kill(stand_in()["pid"], 0)


@pytest.mark.parametrize(
    ("package", "address", "says"),
    [(STAND_IN, "nonsense://password", "no such address"), ("raise ImportError", "json://password", INSTALL)],
)
def test_an_address_that_cannot_be_used_says_what_to_do(stand_in, tmp_path, package, address, says):
    """The message holds what to type, and not the address."""
    (tmp_path / "apprise.py").write_text(package)
    with pytest.raises(UnusableError) as raised:
        open_line(Secret(address))
    assert says in str(raised.value)
    assert "password" not in str(raised.value)


def test_an_address_has_a_name_that_tells_nothing():
    """The same each time, another for another one."""
    assert name_of(URL) == name_of(Secret(URL.reveal())) != name_of(Secret("json://other"))
    assert "topic" not in name_of(URL)


def until(condition, limit_s=10.0):
    """Wait for what no call of Telegram's announces."""
    pause, end_s = threading.Event(), time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "it did not come true in time"
        pause.wait(0.02)


class Post:
    """Several services, each with what it was sent and with what it answers."""

    def __init__(self):
        self.sent = {}
        self.answer = lambda _service: True

    def open(self, url):
        if "wrong" in url.reveal():
            raise UnusableError("It is wrong.")
        sent = self.sent.setdefault(url.reveal(), [])

        def line(text):
            sent.append(text)
            return self.answer(url.reveal())

        return line


def test_a_red_fact_goes_to_telegram_and_to_every_mirror(tmp_path):
    """One service is dead and one hangs: Telegram and the third have it at once; a new bot tries the dead one again, marked.

    The owner is told of one that cannot be used, once over both bots.
    """
    good, dead, hung, wrong = (Secret(f"json://{name}") for name in ("good", "dead", "hung", "wrong"))
    post, hanging = Post(), threading.Event()
    post.answer = lambda name: name == good.reveal() or (name == hung.reveal() and hanging.wait(20.0))
    workspace = mid_run(ExampleRun(tmp_path / "run"))
    with FakeApi() as api:
        settings = Telegram(
            token=Secret(api.token), owner_id=OWNER_ID, chat_id=OWNER_ID, base_url=api.url, mirror=(dead, hung, good, wrong)
        )
        bot = Bot(workspace, settings, FAST, World(line=post.open))
        bot.start()
        fact = Fact(id="9" * 6, at=time.time(), kind="stage.failed", text="train_marian failed", stage="train_marian")
        Journal(workspace.journal).tell(fact)
        try:
            api.wait_for(lambda: any("🔴" in message.text for message in api.sent))
            until(lambda: len(post.sent) == 3 and all(post.sent.values()))
            assert "🔴" in post.sent[good.reveal()][0]
            assert "<b>" not in post.sent[good.reveal()][0]
        finally:
            bot.stop()
            hanging.set()
        diary = (workspace.root / "telegram" / "bot.json").read_text()
        assert "json://" not in diary
        post.answer = lambda _name: True
        bot = Bot(workspace, settings, FAST, World(line=post.open))
        bot.start()
        try:
            until(lambda: all(post.sent[url.reveal()][-1].startswith("(again) 🔴") for url in (dead, hung)))
        finally:
            bot.stop()
    assert len(post.sent[good.reveal()]) == 1, "it had arrived"
    assert sum("🔴" in message.text for message in api.sent) == 1
    assert [(message.silent, "It is wrong." in message.text) for message in api.sent if "🟠" in message.text] == [(True, True)]


@contextmanager
def service(code=200):
    """A service on this machine that takes JSON; its address, and the bodies that came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            came.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Secret(f"json://somebody:password@127.0.0.1:{server.server_port}/topic"), came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_real_apprise_delivers_the_text_as_it_is(capfd):
    """Through real HTTP: one POST, the text unchanged; a refusal is a no; nothing of the address is printed."""
    if find_spec("apprise") is None:
        pytest.skip(f"Apprise is optional: {INSTALL}")
    with service() as (url, came):
        assert open_line(url)("🔴 Marian failed\nloss<0.5 & *more*") is True
        assert [(body["title"], body["message"]) for body in came] == [("Vigil", "🔴 Marian failed\nloss<0.5 & *more*")]
    with service(500) as (url, came):
        assert open_line(url)("again") is False
        assert len(came) == 1
    with pytest.raises(UnusableError, match="no such address"):
        open_line(Secret("nothing-of-the-kind://secret"))
    printed = "".join(capfd.readouterr())
    assert "password" not in printed
    assert "secret" not in printed

"""`vigil pair`, against the strict Bot API server: the owner is the one who brings the code, and the token stays secret."""

import dataclasses
import re
import stat
import threading
import time

import pytest

from daemon.phone import pairing, telegram_settings
from daemon.phone.bot import Bot
from daemon.phone.dialogue import Asked
from daemon.phone.pairing import PairingError, judge
from daemon.phone.telegram_settings import Secret, Telegram
from state.workspace import Workspace
from tests.conftest import ExampleRun, mid_run
from tests.process.bot_program import FAST
from tests.telegram.fake_api import OWNER_ID, FakeApi
from tests.telegram.wire import BAD_GATEWAY, CONFLICT, UNAUTHORIZED

CODE = "s3cret-code"


@pytest.fixture
def api():
    with FakeApi() as server:
        yield server


class Pairing:
    """`vigil pair` in a thread of its own."""

    def __init__(self, api, folder, mirror="", **options):
        self.folder = folder
        self.said, self.error, self.code = [], None, None
        self.environ = {"XDG_CONFIG_HOME": str(folder)}
        (folder / "vigil").mkdir(parents=True, exist_ok=True)
        (folder / "vigil" / "telegram.toml").write_text(
            f'{mirror}owner_id = 1  # an older one\nquiet_hours = "21:00-08:00"\nbase_url = "{api.url}"\n'
            '[rings]\n"stage.failed" = "loud"\n'
        )
        self.options = {"token_file": None, "ask": lambda _prompt: api.token} | options
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            pairing.pair(None, environ=self.environ, say=self.said.append, **self.options)
        except PairingError as error:
            self.error = error

    def link(self, api):
        api.wait_for(lambda: any("t.me" in text for text in self.said) and api.called("getUpdates", outcome=""))
        return re.search(r"https://t\.me/(\w+)\?start=([\w-]+)", "\n".join(self.said)).groups()

    def ended(self):
        self.thread.join(timeout=20)
        assert not self.thread.is_alive()
        return self


def asked(text, **changes):
    return Asked(**({"update_id": 1, "user_id": 5, "chat_id": 5, "private": True, "at": 1.0, "text": text} | changes))


@pytest.mark.parametrize(
    ("message", "owner", "wrong"),
    [
        (asked(f"/start {CODE}"), True, False),
        (asked(f"/start {CODE}", private=False), False, False),
        (asked("/start nonsense"), False, True),
        (asked("/start"), False, False),
        (asked(CODE), False, False),
        (asked("/start \ud83d"), False, True),
    ],
)
def test_the_owner_is_who_brings_the_code_in_private(message, owner, wrong):
    """A bare /start is no try; a group is never the place, even with the right code."""
    verdict = judge(message, CODE)
    assert (verdict.owner is not None, verdict.wrong) == (owner, wrong)


def test_the_owner_is_recognised_greeted_and_written_down(api, tmp_path):
    """A stranger and a bare /start do not disturb; the rest of telegram.toml stays; nobody else can read the token."""
    pair = Pairing(api, tmp_path)
    name, code = pair.link(api)
    assert name == api.username
    api.person(4, "Eve").says("/start")
    api.person(4, "Eve").says("/start guess")
    api.owner.says(f"/start {code}")
    assert pair.ended().error is None
    folder = tmp_path / "vigil"
    text = (folder / "telegram.toml").read_text()
    found = telegram_settings.load(Workspace.at(tmp_path / "run"), pair.environ)
    assert (found.owner_id, found.chat_id, found.token.reveal(), found.quiet) == (OWNER_ID, OWNER_ID, api.token, (1260, 480))
    assert "an older one" not in text
    assert '"stage.failed" = "loud"' in text
    assert stat.S_IMODE((folder / "telegram_token").stat().st_mode) == 0o600
    assert next(message.text for message in api.transcript() if message.by != OWNER_ID).startswith("Vigil watches over")
    assert api.transcript(4)[-1].by == 4, "Eve hears nothing"
    assert api.unconfirmed() == 0, "the daemon shall not hear the code again"
    assert api.token not in text + "".join(pair.said)


def test_five_wrong_codes_end_it(api, tmp_path):
    """A sixth guess is of no use."""
    pair = Pairing(api, tmp_path)
    _name, code = pair.link(api)
    for number in range(5):
        api.person(4, "Eve").says(f"/start {number}")
    api.owner.says(f"/start {code}")
    assert "five wrong codes" in str(pair.ended().error)
    assert not (tmp_path / "vigil" / "telegram_token").exists()


def test_a_link_that_nobody_opens_ends(api):
    """Its time is bounded, though the poll waits."""
    with pytest.raises(PairingError, match="not opened in time"), pairing.asyncio.Runner() as runner:
        runner.run(pairing.introduce(Secret(api.token), api.url, lambda _text: None, lives_s=0.5))


def test_a_refused_token_is_told_at_once(api, tmp_path):
    """The owner sits there: he need not wait for repeats."""
    api.fail("getMe", UNAUTHORIZED)
    began = time.monotonic()
    assert "refuses this token" in str(Pairing(api, tmp_path).ended().error)
    assert time.monotonic() - began < pairing.RETRY_S + 3


def test_a_bad_network_is_waited_for(api, tmp_path):
    """One failed call costs a pause and no more."""
    api.fail("getMe", BAD_GATEWAY)
    pair = Pairing(api, tmp_path)
    _name, code = pair.link(api)
    api.owner.says(f"/start {code}")
    assert pair.ended().error is None


def test_a_vigil_at_work_with_the_same_bot_steps_aside(api, tmp_path):
    """Telegram lets one of the two poll: the daemon leaves the line to the pairing for a while, and has it again afterwards."""
    settings = Telegram(token=Secret(api.token), owner_id=OWNER_ID, chat_id=OWNER_ID, base_url=api.url)
    bot = Bot(mid_run(ExampleRun(tmp_path / "run")), settings, dataclasses.replace(FAST, longest_retry_s=1.0))
    bot.start()
    try:
        api.wait_for(lambda: api.called("getUpdates", outcome=""))
        pair = Pairing(api, tmp_path)
        _name, code = pair.link(api)
        api.wait_for(lambda: any("it steps aside" in text for text in pair.said))  # the daemon has polled in between
        while pair.thread.is_alive():  # the daemon may have the line at that instant: pressed again, as was said
            api.owner.says(f"/start {code}")
            pair.thread.join(timeout=2)
        assert pair.error is None
        assert [text for text in pair.said if "steps aside" in text] == [pairing.SHARED], "said once"
        api.owner.says("/ping")
        api.wait_for(lambda: any("Here" in message.text for message in api.sent))
    finally:
        bot.stop()


def test_a_program_that_keeps_the_line_is_told_of(api, tmp_path, monkeypatch):
    """It never gives way: the pairing ends long before its link does, and says in one sentence what to do."""
    monkeypatch.setattr(pairing, "TURN_S", 0.01)
    api.fail("getUpdates", CONFLICT, times=None)
    error = Pairing(api, tmp_path).ended().error
    assert "`vigil stop`" in str(error)


def test_what_is_typed_wrong_is_not_repeated(api, tmp_path):
    """It may be another secret."""
    error = Pairing(api, tmp_path, ask=lambda _prompt: "hunter2").ended().error
    assert "no bot token" in str(error)
    assert "hunter2" not in str(error)


def test_the_token_may_come_from_a_file(api, tmp_path):
    """As it does where there is no terminal."""
    (tmp_path / "t").write_text(api.token + "\n")
    pair = Pairing(api, tmp_path, token_file=tmp_path / "t")
    api.owner.says(f"/start {pair.link(api)[1]}")
    assert pair.ended().error is None


def test_a_mirror_that_cannot_be_used_is_told_of(api, tmp_path, monkeypatch):
    """Addresses that stood in telegram.toml before are looked at; what is said holds none of them."""
    (tmp_path / "apprise.py").write_text("class Apprise:\n    def add(self, url):\n        return 'good' in url\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pair = Pairing(api, tmp_path, mirror='mirror = ["json://good", "jason://password"]\n')
    api.owner.says(f"/start {pair.link(api)[1]}")
    assert pair.ended().error is None
    assert [text for text in pair.said if "Its mirror" in text] == [
        "\nIts mirror 2 is of no use: Apprise knows no such address. Mend `mirror` in telegram.toml and start the run again."
    ]


def test_pairing_again_leaves_the_settings_to_their_owner(tmp_path):
    """telegram.toml may hold addresses with secrets: written anew it is 0600, and what the owner wrote stays."""
    owner = Asked(update_id=1, user_id=OWNER_ID, chat_id=OWNER_ID, private=True, at=1.0)
    for _ in range(2):
        pairing.store(tmp_path, Secret("1:a"), owner)
        path = tmp_path / telegram_settings.FILE
        path.write_text(path.read_text() + 'mirror = ["ntfy://secret@host/topic"]\n' * ("mirror" not in path.read_text()))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().count("mirror") == path.read_text().count("owner_id") == 1

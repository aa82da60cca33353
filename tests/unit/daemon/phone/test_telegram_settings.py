"""telegram.toml: every field checked, the token kept from everybody's eyes."""

import copy
import pickle
from datetime import UTC, datetime

import pytest

from daemon.phone.dialogue import Message, Ring
from daemon.phone.telegram_settings import Secret, SettingsError, Telegram, as_token, load
from state.workspace import Workspace

TOKEN = "123456:" + "Ab-_9" * 7


@pytest.fixture
def home(tmp_path):
    """A configuration folder, an empty workspace, and the environment that names the former."""
    (tmp_path / "config" / "vigil").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    return tmp_path


def settings(home, text=None, *, token=TOKEN, mode=0o600, workspace_text=None, **environ):
    folder = home / "config" / "vigil"
    if text is not None:
        (folder / "telegram.toml").write_text(text)
    if workspace_text is not None:
        (home / "run" / "telegram.toml").write_text(workspace_text)
    if token is not None:
        for place in (folder, home / "run"):
            (place / "secret").write_text(token + "\n")
            (place / "secret").chmod(mode)
    return load(Workspace.at(home / "run"), {"XDG_CONFIG_HOME": str(home / "config"), **environ})


def test_what_pair_wrote_is_read(home):
    """Token, owner and chat come from the configuration folder; the rest has defaults."""
    found = settings(home, 'token_file = "secret"\nowner_id = 7\n')
    assert (found.token.reveal(), found.owner_id, found.chat_id) == (TOKEN, 7, 7)
    assert (found.base_url, found.quiet) == ("https://api.telegram.org", (22 * 60, 7 * 60))


def test_the_workspace_comes_first(home):
    """A telegram.toml in the workspace stands in place of the user's."""
    own = 'token_file = "secret"\nowner_id = 8\nbase_url = "http://localhost:1/"\n'
    found = settings(home, 'token_file = "secret"\nowner_id = 7\n', workspace_text=own)
    assert (found.owner_id, found.base_url) == (8, "http://localhost:1")


def test_without_a_token_there_is_no_bot(home):
    """No token is no fault."""
    assert settings(home) is None
    assert settings(home, "owner_id = 7") is None


def test_the_credential_of_systemd_will_do(home):
    """Where telegram.toml names no file, $CREDENTIALS_DIRECTORY/telegram_token is the token, whatever its mode."""
    (home / "telegram_token").write_text(TOKEN)
    assert settings(home, "owner_id = 7", CREDENTIALS_DIRECTORY=str(home)).token.reveal() == TOKEN


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("owner = 7", "unknown field `owner`"),
        ('owner_id = "seven"', "`$.owner_id`"),
        ('[rings]\n"stage.failed" = "shrill"', "`$.rings[...]`"),
        ('quiet_hours = "22-7"', "`$.quiet_hours`"),
        ('time_zone = "Mars/Base"', "`$.time_zone`"),
        ('time_zone = "../../etc/passwd"', "`$.time_zone`"),
        ("owner_id = ", "telegram.toml: "),
        ("", "`$.owner_id`"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(home, text, told):
    """The message names the file and the field."""
    lines = [line for line in ('token_file = "secret"', "owner_id = 7") if text and line.split(" =")[0] not in text]
    with pytest.raises(SettingsError) as caught:
        settings(home, "\n".join([*(lines or ['token_file = "secret"']), text]))
    assert told in str(caught.value)
    assert "telegram.toml" in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_can_read_is_refused(home, mode):
    """The message says what to do, and not the token."""
    with pytest.raises(SettingsError, match="chmod 600") as caught:
        settings(home, 'token_file = "secret"\nowner_id = 7\n', mode=mode)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("token", ["", "hello", TOKEN + " x", "123456:short"])
def test_what_is_no_token_is_refused_and_not_repeated(home, token):
    """A wrong file may hold another secret: its content is not shown, not even as the error's cause."""
    with pytest.raises(SettingsError) as caught:
        settings(home, 'token_file = "secret"\nowner_id = 7\n', token=token)
    assert caught.value.__cause__ is None
    assert not token or token not in str(caught.value)


def test_a_missing_token_file_names_the_field(home):
    """It is a fault: somebody meant a token to be there."""
    with pytest.raises(SettingsError, match=r"\$\.token_file"):
        settings(home, 'token_file = "gone"\nowner_id = 7\n')


def test_a_secret_shows_itself_to_nobody():
    """Neither printed, nor inside another value, nor pickled or copied deeply."""
    secret = Secret("hush")
    shown = Telegram(token=secret, owner_id=1, chat_id=1)
    assert "hush" not in f"{secret} {secret!r} {[secret]} {shown} {secret!s:>9}"
    for give_away in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="not written"):
            give_away(secret)
    with pytest.raises(ValueError, match="no bot token") as caught:
        as_token("hush")
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("hours", "clock", "quiet"),
    [
        ((22 * 60, 7 * 60), "21:59", False),
        ((22 * 60, 7 * 60), "22:00", True),
        ((22 * 60, 7 * 60), "06:59", True),
        ((22 * 60, 7 * 60), "07:00", False),
        ((13 * 60, 15 * 60), "14:00", True),
        ((13 * 60, 15 * 60), "15:00", False),
        (None, "03:00", False),
    ],
)
def test_quiet_hours_may_pass_midnight(hours, clock, quiet):
    """The first minute belongs to them, the last does not."""
    at = datetime.fromisoformat(f"2026-02-12T{clock}").replace(tzinfo=UTC).timestamp()
    assert Telegram(token=Secret(""), owner_id=1, chat_id=1, zone=UTC, quiet=hours).is_quiet(at) is quiet


def test_the_owner_says_how_loud_a_kind_is(home):
    """on leaves Vigil's choice, the other words replace it; other kinds stay as they are."""
    rings = '[rings]\n"a" = "off"\n"b" = "red"\n"c" = "on"\n'
    found = settings(home, f'token_file = "secret"\nowner_id = 7\n{rings}')
    told = {kind: found.ringed(Message(key="k", html="x", kind=kind, ring=Ring.LOUD)).ring for kind in "abcd"}
    assert told == {"a": Ring.OFF, "b": Ring.RED, "c": Ring.LOUD, "d": Ring.LOUD}


SECRETS = (
    'mirror = ["ntfys://me:pass@ntfy.sh/topic", "ntfys://me:pass@ntfy.sh/topic"]\nheartbeat_url = "https://hc-ping.com/uuid"\n'
)


def test_what_lies_beyond_telegram_is_off_by_default(home):
    """No mirror and no heartbeat that nobody asked for."""
    found = settings(home, 'token_file = "secret"\nowner_id = 7\n')
    assert (found.mirror, found.heartbeat, found.heartbeat_every_s) == ((), None, 300.0)


def test_addresses_beyond_telegram_are_secrets(home):
    """Each once, none in the repr; a file that others can read is refused with the command that mends it."""
    text = 'token_file = "secret"\nowner_id = 7\n' + SECRETS
    with pytest.raises(SettingsError, match=r"telegram\.toml: others can read it .*chmod 600"):
        settings(home, text)
    (home / "config" / "vigil" / "telegram.toml").chmod(0o600)
    found = settings(home)
    assert [url.reveal() for url in found.mirror] == ["ntfys://me:pass@ntfy.sh/topic"]
    assert found.heartbeat.reveal() == "https://hc-ping.com/uuid"
    assert not {"pass", "uuid"} & set(repr(found).replace("/", " ").replace(":", " ").split())


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ('mirror = ["ntfys://ok/topic", "pass word"]', r"mirror\[1\]"),
        ('mirror = ["ntfys:"]', r"mirror\[0\]"),
        ('heartbeat_url = "file:///etc/pass"', "heartbeat_url"),
        ('heartbeat_url = "https://"', "heartbeat_url"),
        ("heartbeat_every_s = 1", "heartbeat_every_s"),
    ],
)
def test_a_wrong_address_is_named_and_not_repeated(home, line, where):
    """The message says which field is wrong, and not what stands in it."""
    path = home / "config" / "vigil" / "telegram.toml"
    path.touch(0o600)
    with pytest.raises(SettingsError, match=rf"\$\.{where}") as raised:
        settings(home, f'token_file = "secret"\nowner_id = 7\n{line}\n')
    assert "pass" not in str(raised.value)

"""telegram.toml and the bot's token: whom Vigil talks to, when it may ring, how loudly, and where else.

The file lies in the workspace, else in the user's configuration folder (`$XDG_CONFIG_HOME/vigil`); `vigil pair` writes it. The
token is a file that only its owner can read, or a credential of systemd; never an argument, never an environment variable.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from enum import StrEnum
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import replace

from daemon import words
from daemon.phone.dialogue import Message, Ring
from state.workspace import Workspace

FILE = "telegram.toml"
TOKEN_FILE = "telegram_token"
API = "https://api.telegram.org"
_TOKEN = re.compile(r"[0-9]{1,20}:[A-Za-z0-9_-]{30,80}")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*[^\s:]")
_WEB_ADDRESS = re.compile(r"https?://[^\s/:]\S*[^\s:#]")
_HOURS = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])")


class SettingsError(Exception):
    """The Telegram settings cannot be used; the message names the file, the field and the next step."""


class Secret:
    """A text that shows itself to nobody but `reveal`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text; for the one who sends it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not written anywhere")


class RingRule(StrEnum):
    """What the owner wants of one kind of event."""

    ON = "on"
    """As Vigil thinks right."""
    OFF = "off"
    SILENT = "silent"
    LOUD = "loud"
    RED = "red"


class TelegramFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may stand in telegram.toml."""

    base_url: str = API
    """Of a self-hosted Bot API server, a proxy, a test."""
    token_file: str = ""
    """Relative to the folder of telegram.toml."""
    owner_id: int = 0
    chat_id: int = 0
    """Of the private chat; 0: the owner's id, which is the same number."""
    quiet_hours: str = "22:00-07:00"
    """Local; nothing but red rings then. Empty: none."""
    time_zone: str = ""
    """Such as Europe/Madrid; empty: this machine's."""
    rings: dict[str, RingRule] = {}
    """By the journal's name of an event, such as "stage.succeeded"."""
    mirror: tuple[str, ...] = ()
    """Apprise's addresses, which get the red alarms too. They may hold secrets, so nobody else may read the file then."""
    heartbeat_url: str = ""
    """Pinged while the daemon sees the run; who knows it can ping it, so nobody else may read the file then."""
    heartbeat_every_s: Annotated[float, msgspec.Meta(ge=30)] = 300.0


@dataclass(frozen=True)
class Telegram:
    """All that the bot needs to know."""

    token: Secret
    owner_id: int
    chat_id: int
    base_url: str = API
    zone: tzinfo | None = None
    quiet: tuple[int, int] | None = None
    """First and last minute of the day, local."""
    rings: Mapping[str, RingRule] | None = None
    mirror: tuple[Secret, ...] = ()
    heartbeat: Secret | None = None
    heartbeat_every_s: float = 300.0

    def is_quiet(self, at: float) -> bool:
        """Whether `at` lies in the quiet hours."""
        if self.quiet is None:
            return False
        moment = words.local(at, self.zone)
        minute, (start, end) = moment.hour * 60 + moment.minute, self.quiet
        return start <= minute < end if start <= end else minute >= start or minute < end

    def ringed(self, message: Message) -> Message:
        """`message` as loud as the owner wants its kind."""
        rule = (self.rings or {}).get(message.kind, RingRule.ON)
        return message if rule is RingRule.ON else replace(message, ring=Ring(rule))


def load(workspace: Workspace, environ: Mapping[str, str]) -> Telegram | None:
    """The settings for a run; None when there is no token, which is no fault.

    Raises:
        SettingsError: a file is wrong, or nobody was paired.
    """
    path, file = read_file(folders(workspace, environ))
    token = read_token(path, file, environ)
    if token is None:
        return None
    if not file.owner_id:
        raise SettingsError(f"{path}: nobody is paired with this bot - at `$.owner_id`; run `vigil pair`")
    return Telegram(
        token=token,
        owner_id=file.owner_id,
        chat_id=file.chat_id or file.owner_id,
        base_url=file.base_url.rstrip("/"),
        zone=_zone(path, file.time_zone),
        quiet=_quiet(path, file.quiet_hours),
        rings=file.rings,
        mirror=_mirror(path, file),
        heartbeat=_heartbeat(path, file),
        heartbeat_every_s=file.heartbeat_every_s,
    )


def folders(workspace: Workspace | None, environ: Mapping[str, str]) -> list[Path]:
    """Where telegram.toml may lie, the first one first."""
    home = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return [*([workspace.root] if workspace else []), Path(home) / "vigil"]


def read_file(places: list[Path]) -> tuple[Path, TelegramFile]:
    """The first telegram.toml there is, checked, and its path; where there is none: the last place, and the defaults.

    Raises:
        SettingsError: unreadable, or refused by a rule.
    """
    path = next((place / FILE for place in places if (place / FILE).exists()), places[-1] / FILE)
    try:
        return path, msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), TelegramFile)
    except FileNotFoundError:
        return path, TelegramFile()
    except (OSError, ValueError) as error:  # msgspec's, TOML's and Unicode's errors are ValueErrors
        raise SettingsError(f"{path}: {error}") from error


def read_token(path: Path, file: TelegramFile, environ: Mapping[str, str]) -> Secret | None:
    """The token that `file`, which lies at `path`, names; else systemd's credential; else None.

    Raises:
        SettingsError: it cannot be read, others can read it too, or it is no token.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if file.token_file:
        source = path.parent / Path(file.token_file).expanduser()
        _check_private(source)
    elif credentials and (Path(credentials) / TOKEN_FILE).exists():
        source = Path(credentials) / TOKEN_FILE
    else:
        return None
    return token_in(source)


def token_in(source: Path) -> Secret:
    """The token in a file.

    Raises:
        SettingsError: unreadable, or no token.
    """
    try:
        return as_token(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{source}: {'this is no bot token' if isinstance(error, ValueError) else error}") from None


def as_token(text: str) -> Secret:
    """`text` as a token.

    Raises:
        ValueError: it has not the form of one; the message does not repeat it.
    """
    if not _TOKEN.fullmatch(text.strip()):
        raise ValueError("this is no bot token: BotFather's look like 123456:ABC-DEF...")
    return Secret(text.strip())


def _check_private(source: Path) -> None:
    try:
        mode = source.stat().st_mode
    except OSError as error:
        raise SettingsError(f"{source}: {error.strerror} - at `$.token_file`; run `vigil pair`") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"{source}: others can read it (mode {stat.S_IMODE(mode):o}); run `chmod 600` on it")


def _zone(path: Path, name: str) -> tzinfo | None:
    try:
        return ZoneInfo(name) if name else None
    except (OSError, ValueError, KeyError) as error:  # ZoneInfoNotFoundError is a KeyError
        raise SettingsError(f"{path}: no time zone {name!r}, such as Europe/Madrid - at `$.time_zone`") from error


def _quiet(path: Path, text: str) -> tuple[int, int] | None:
    if not text:
        return None
    found = _HOURS.fullmatch(text)
    if found is None:
        raise SettingsError(f"{path}: {text!r} is not like 22:00-07:00 - at `$.quiet_hours`")
    first_hour, first_minute, last_hour, last_minute = map(int, found.groups())
    return first_hour * 60 + first_minute, last_hour * 60 + last_minute


def _mirror(path: Path, file: TelegramFile) -> tuple[Secret, ...]:
    if file.mirror:
        _check_private(path)
    for place, address in enumerate(file.mirror):
        if not _ADDRESS.fullmatch(address):
            raise SettingsError(f"{path}: this is no address of Apprise's, such as ntfys://ntfy.sh/topic - at `$.mirror[{place}]`")
    return tuple(Secret(address) for address in dict.fromkeys(file.mirror))


def _heartbeat(path: Path, file: TelegramFile) -> Secret | None:
    if not file.heartbeat_url:
        return None
    _check_private(path)
    if not _WEB_ADDRESS.fullmatch(file.heartbeat_url):
        raise SettingsError(f"{path}: this is no address such as https://hc-ping.com/... - at `$.heartbeat_url`")
    return Secret(file.heartbeat_url)

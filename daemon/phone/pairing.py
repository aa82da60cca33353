"""`vigil pair`: takes the bot's token, recognises its owner by a code that only he can know, and writes telegram.toml.

The token is typed without an echo or read from a file, and is kept in a file of its own that only the user can read. The code
stands in a link that is shown here alone, counts for ten minutes, and is void after five wrong ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import hmac
import os
import re
import secrets
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from subprocess import SubprocessError
from typing import TYPE_CHECKING, TypeVar

import msgspec

from daemon.aside import Loop
from daemon.phone import answers, telegram_settings
from daemon.phone.dialogue import Asked, Message, Ring
from daemon.phone.outbox import Deliver
from daemon.phone.secrecy import prepare
from daemon.phone.telegram_settings import FILE, TOKEN_FILE, Secret, TelegramFile
from state.durable import write_atomically
from state.workspace import Workspace

if TYPE_CHECKING:
    from daemon.phone.wire import Wire

LINK_LIVES_S = 600.0
MOST_TRIES = 5
POLL_S = 10
RETRY_S = 2.0
TURN_S = 0.05
"""Until the next poll when another program took the line, and with it what comes just then."""
MOST_TURNS = 20
"""In a row, without an answer in between: the other program does not give way."""
T = TypeVar("T")
SHARED = """\
Another program uses this bot. If it is a Vigil at work, it steps aside now.
If pressing Start changes nothing, press it again.
"""
TAKEN = (
    "nobody was paired: another program keeps this bot's messages to itself; end it (a Vigil at work: `vigil stop`) and give the"
    " same command again, or make a bot of Vigil's own with BotFather"
)
OURS = re.compile(r"^\s*(token_file|owner_id|chat_id)\s*=.*\n?", re.MULTILINE)


class PairingError(Exception):
    """Nobody was paired; the message says why and what to do."""


@dataclass(frozen=True)
class Verdict:
    """What a message to the bot means for the pairing."""

    owner: Asked | None = None
    wrong: bool = False


def judge(asked: Asked, code: str) -> Verdict:
    """Whether `asked` brings the code, from a private chat; a `/start` with another one is a wrong try."""
    word, _space, brought = asked.text.strip().partition(" ")
    if not asked.private or word != "/start" or not brought:
        return Verdict()
    right = hmac.compare_digest(brought.strip().encode("utf-8", "replace"), code.encode())
    return Verdict(owner=asked) if right else Verdict(wrong=True)


def _say(text: str) -> None:
    """At once: the link must show in a pipe too."""
    print(text, flush=True)


def pair(
    workspace: Workspace | None,
    token_file: Path | None,
    *,
    environ: Mapping[str, str] = os.environ,
    say: Callable[[str], None] = _say,
    ask: Callable[[str], str] = getpass.getpass,
) -> int:
    """Pair: into the workspace's folder when one is given, else into the user's configuration folder.

    Raises:
        PairingError: Telegram refused the token, or nobody came in time.
        SettingsError: the token or an older telegram.toml cannot be used.
        OSError: a file cannot be written.
    """
    folder = telegram_settings.folders(workspace, environ)[0]
    path, before = telegram_settings.read_file([folder])
    token = telegram_settings.token_in(token_file) if token_file is not None else _typed(ask)
    prepare(token)
    with asyncio.Runner(loop_factory=Loop) as runner:
        try:
            owner = runner.run(introduce(token, before.base_url.rstrip("/"), say))
        except KeyboardInterrupt:
            raise PairingError("nobody was paired: interrupted; give the same command again") from None
    store(folder, token, owner)
    say(f"Paired. The settings are in {path}; a run that is at work takes them up when it is started again.")
    _check_mirrors(before, say)
    return 0


def _check_mirrors(settings: TelegramFile, say: Callable[[str], None]) -> None:
    """Say which of the addresses that stood in telegram.toml already cannot be used."""
    from daemon.phone.mirror import UnusableError, open_line

    for number, address in enumerate(settings.mirror, start=1):
        try:
            open_line(Secret(address))
        except (UnusableError, OSError, SubprocessError) as error:
            say(f"\nIts mirror {number} is of no use: {error if isinstance(error, UnusableError) else type(error).__name__}")


def store(folder: Path, token: Secret, owner: Asked) -> None:
    """Write the token, which nobody else may read, and telegram.toml, of which all else stays as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / TOKEN_FILE, token.reveal() + "\n")
    path = folder / FILE
    kept = OURS.sub("", path.read_text(encoding="utf-8")) if path.exists() else ""
    name = msgspec.json.encode(TOKEN_FILE).decode()
    write_private(path, f"token_file = {name}\nowner_id = {owner.user_id}\nchat_id = {owner.chat_id}\n{kept}")


def write_private(path: Path, text: str) -> None:
    """Replace the file by one that was never readable for others."""
    before = os.umask(0o077)
    try:
        write_atomically(path, text)
    finally:
        os.umask(before)


async def introduce(token: Secret, base_url: str, say: Callable[[str], None], *, lives_s: float = LINK_LIVES_S) -> Asked:
    """Show the link, wait for the one who opens it, and greet him; his message."""
    from daemon.phone.wire import Wire

    wire = Wire(token, base_url)
    try:
        name = await _patiently(wire.name, time.monotonic() + 3 * RETRY_S)
        code = secrets.token_urlsafe(16)
        say(f"Open this link on your phone and press Start (it counts for {lives_s / 60:.0f} minutes):")
        say(f"\n  https://t.me/{name}?start={code}\n")
        owner = await _wait_for_owner(wire, code, time.monotonic() + lives_s, say)
        wire.chat_id = owner.chat_id
        greeting = answers.welcome()
        await wire.deliver(Deliver(Message(key="welcome", html=greeting.html, ring=Ring.LOUD), silent=False))
        return owner
    finally:
        await wire.close()


async def _wait_for_owner(wire: Wire, code: str, deadline_s: float, say: Callable[[str], None]) -> Asked:
    from daemon.phone.wire import UnreachableError

    tries, offset = 0, 0
    shared = cache(lambda: say(SHARED))  # once
    while True:
        received = await _patiently(partial(wire.updates, offset, min(POLL_S, _left_s(deadline_s))), deadline_s, shared)
        offset = received.offset
        for asked in received.asked:
            verdict = judge(asked, code)
            if verdict.owner is not None:
                with contextlib.suppress(UnreachableError):
                    await wire.updates(offset, 0)  # confirms it: the daemon need not hear it again
                return verdict.owner
            tries += verdict.wrong
            if tries >= MOST_TRIES:
                raise PairingError(
                    "nobody was paired: five wrong codes came; somebody guesses. Give the command again for a new link"
                )
        if time.monotonic() >= deadline_s:
            raise PairingError("nobody was paired: the link was not opened in time; give the same command again")


async def _patiently(call: Callable[[], Awaitable[T]], deadline_s: float, shared: Callable[[], None] = lambda: None) -> T:
    """What `call` gives; asked again while Telegram cannot be reached and there is time. Tells `shared` that it is in turns."""
    from daemon.phone.wire import UnreachableError

    turns = 0
    while True:
        try:
            return await call()
        except UnreachableError as error:
            if error.token_refused:
                raise PairingError("nobody was paired: Telegram refuses this token; copy it from BotFather again") from None
            turns += error.taken
            if turns >= MOST_TURNS:
                raise PairingError(TAKEN) from None
            if time.monotonic() + RETRY_S >= deadline_s:
                raise PairingError(
                    f"nobody was paired: no good answer from Telegram ({error}); look at the token and the network"
                ) from None
            pause_s = RETRY_S
            if error.taken:
                shared()
                pause_s = TURN_S
        await asyncio.sleep(pause_s)


def _left_s(deadline_s: float) -> int:
    return max(0, round(deadline_s - time.monotonic()))


def _typed(ask: Callable[[str], str]) -> Secret:
    if ask is getpass.getpass and not sys.stdin.isatty():
        raise PairingError("there is no terminal to type the token at: give --token-file FILE")
    try:
        return telegram_settings.as_token(ask("The bot's token, as BotFather gave it (it is not shown): "))
    except ValueError as error:
        raise PairingError(f"nobody was paired: {error}") from None

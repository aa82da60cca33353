"""A process that may talk to Telegram and never tells its token: what is to be set before its threads start."""

from __future__ import annotations

import logging
import os

from daemon.phone.telegram_settings import Secret

RESOLVER = "timeout:2 attempts:1"
NOISY = ("httpx", "httpcore", "telegram", "asyncio")


def prepare(token: Secret) -> None:
    """Make the process ready to talk to Telegram; to be called before its threads start."""
    keep_secret(token)
    os.environ.setdefault("PTB_TIMEDELTA", "true")  # else the library warns whenever Telegram asks for silence
    if "RES_OPTIONS" not in os.environ:
        os.putenv("RES_OPTIONS", RESOLVER)  # for this process's resolver (resolv.conf(5)); os.environ goes to the stages


class _Redacted(logging.Formatter):
    """Another formatter without the secret, in tracebacks neither."""

    def __init__(self, inner: logging.Formatter, secret: Secret) -> None:
        super().__init__()
        self.inner = inner
        self.secret = secret

    def format(self, record: logging.LogRecord) -> str:
        text, token = self.inner.format(record), self.secret.reveal()
        return text.replace(token, "***").replace(token.rpartition(":")[2], "***")


def keep_secret(token: Secret) -> None:
    """Take the token out of whatever the root's handlers write from now on, and silence those who write it in every line."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    for handler in logging.getLogger().handlers:
        if not (isinstance(handler.formatter, _Redacted) and handler.formatter.secret is token):
            handler.setFormatter(_Redacted(handler.formatter or logging.Formatter(), token))

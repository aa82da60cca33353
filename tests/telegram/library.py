"""The real library against a server of ours, called from a test that is not asynchronous."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import telegram
from telegram.request import HTTPXRequest

from tests.telegram.wire import TOKEN


class Library:
    """`telegram.Bot`, one call after the other: `library("send_message", chat_id=1, text="x")` gives what the library gives."""

    def __init__(self, url: str, token: str = TOKEN, timeout_s: float = 5.0) -> None:
        timeouts = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "write_timeout": timeout_s, "pool_timeout": timeout_s}
        quick = {"verify": False}  # reading the certificates takes most of a test's time, and there is no TLS here
        self._requests = [HTTPXRequest(**timeouts, httpx_kwargs=quick) for _ in range(2)]
        self._runner = asyncio.Runner()
        self._bot = telegram.Bot(token, base_url=f"{url}/bot", get_updates_request=self._requests[0], request=self._requests[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for request in self._requests:
            self._runner.run(request.shutdown())
        self._runner.close()

    def __call__(self, method: str, **parameters: Any) -> Any:
        return self._runner.run(getattr(self._bot, method)(**parameters))

    def says(self, text: str, chat_id: int, **parameters: Any) -> telegram.Message:
        """Send HTML to a chat."""
        return self("send_message", chat_id=chat_id, text=text, parse_mode="HTML", **parameters)

"""Waiting for what may take for ever, in an event loop: each call has a daemon thread of its own, which holds up nobody.

A disk, a driver or a name server that hangs then costs one answer, and neither the others nor the end of the process. The loop's
own executor would be waited for when Python ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def settle_types() -> None:
    """Have msgspec look through every type that is loaded; to be called before threads read files.

    It does so when a type is first decoded, and a second thread that decodes it meanwhile crashes the process (msgspec 0.22).
    """
    types: list[type] = [msgspec.Struct]
    for each in types:  # grows
        types += each.__subclasses__()
    for each in types[1:]:
        with contextlib.suppress(TypeError, NameError):  # what cannot be looked through is never decoded
            msgspec.json.Decoder(each)


async def aside(call: Callable[[], T], limit_s: float | None = None) -> T:
    """What `call` returns or raises.

    Raises:
        TimeoutError: after `limit_s`; the call goes on unheard.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # it is a T then
        else:
            future.set_exception(error)

    def work() -> None:
        result, failure = None, None
        try:
            result = call()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True, name="aside").start()
    async with asyncio.timeout(limit_s):
        return await future


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose name look-ups are set aside."""

    async def getaddrinfo(self, *args: Any, **options: Any) -> Any:
        return await aside(lambda: socket.getaddrinfo(*args, **options))

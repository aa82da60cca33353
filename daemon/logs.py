"""The daemon's own log: JSON lines into logs/daemon.jsonl, readable lines on the console."""

from __future__ import annotations

import logging
from logging.handlers import RotatingFileHandler
from typing import TextIO

import structlog

from state.workspace import Workspace

MAX_BYTES = 5_000_000
KEPT_FILES = 5


def set_up(workspace: Workspace, console: TextIO | None) -> None:
    """Send every log event to the file, and to `console` unless it is None."""
    workspace.logs.mkdir(parents=True, exist_ok=True)
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    file = RotatingFileHandler(workspace.daemon_log, maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
    file.setFormatter(_formatter(shared, structlog.processors.JSONRenderer(ensure_ascii=False)))
    handlers: list[logging.Handler] = [file]
    if console is not None:
        readable = logging.StreamHandler(console)
        readable.setFormatter(_formatter(shared, structlog.dev.ConsoleRenderer(colors=console.isatty(), pad_event_to=24)))
        handlers.append(readable)
    logging.raiseExceptions = False  # a log line that a full disk refuses is lost in silence: it must not flood the console
    logging.getLogger("transitions").setLevel(logging.WARNING)
    logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _formatter(shared: list[structlog.typing.Processor], renderer: structlog.typing.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer]
    )

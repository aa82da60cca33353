"""What the bot and the owner say to each other, as values: messages out, questions in, and what is to be done about one.

`answers`, `questions` and `messages` have the words, `chat` decides, `outbox` keeps what is to
be sent, `wire` talks to Telegram.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from state.contract import Command


class Ring(StrEnum):
    """How loudly a message arrives."""

    RED = "red"
    """Rings in quiet hours too; comes again as "still" while it lasts."""
    LOUD = "loud"
    SILENT = "silent"
    OFF = "off"


class Button(msgspec.Struct, frozen=True):
    """One button under a message."""

    text: str
    data: str
    """What a tap sends back: at most 64 bytes."""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to send: text with Telegram's HTML tags, and perhaps a picture, a file, buttons."""

    key: str
    """The same thing twice has the same key, and is sent once."""
    html: str
    ring: Ring = Ring.SILENT
    kind: str = ""
    """The journal's name of the event (`stage.succeeded`), for on, silent and off; empty for an answer."""
    at: float = 0.0
    """Of the event, seconds since the epoch; an answer: of the question."""
    buttons: tuple[tuple[Button, ...], ...] = ()
    """Rows of buttons."""
    photo: str = ""
    """Path of a PNG."""
    draws: str = ""
    """What is drawn into a picture just before it leaves: `scores`; without one, should that fail."""
    document: str = ""
    """Path of a file."""
    replaces: str = ""
    """Key of an earlier message that this one is an edit of; sent as a new one where there is none to edit."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """An update of Telegram's, reduced to what matters: a text message or a tap on a button."""

    update_id: int
    user_id: int
    chat_id: int
    private: bool
    at: float
    """When it was sent, by Telegram's clock; of a tap: when it came."""
    text: str = ""
    data: str = ""
    """Of a tap: the button's; empty: it is a text message."""
    callback_id: str = ""
    message_id: int = 0
    """Of a tap: the message that holds the button."""


class Say(msgspec.Struct, frozen=True, tag="say"):
    """Send a message, or edit the one that it replaces."""

    message: Message


class Toast(msgspec.Struct, frozen=True, tag="toast"):
    """Answer a tap with a few words that vanish: at most 200 characters."""

    callback_id: str
    text: str


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Put a command of the owner into control/; its answer comes back by its id."""

    command: Command


class Show(msgspec.Struct, frozen=True, tag="show"):
    """Make something that takes a process of its own, then send it: `plot` of a stage, `report`."""

    what: str
    stage: str
    key: str


Act = Say | Toast | Submit | Show

"""What comes in: events in order and once, commands whatever is written there."""

import time

import msgspec
import pytest

from daemon.inbox import Inbox, new_command, submit
from state.contract import Answer, CommandKind, Note
from state.workspace import Workspace


@pytest.fixture
def inbox(tmp_path):
    opened = Inbox(Workspace.at(tmp_path))
    yield opened
    opened.close()


def test_events_are_heard_once_and_a_torn_line_waits(inbox):
    """A line counts when its end has come; one that is no event is passed over; offsets tell the place."""
    path = inbox.workspace.attempt("a", 1).events
    path.parent.mkdir(parents=True)
    first, second = (msgspec.json.encode(Note(at=1.0, text=text)) for text in ("one", "two"))
    path.write_bytes(first + b"\nnonsense\n" + second[:10])
    assert [(h.offset, h.event.text) for h in inbox.events("a", 1)] == [(0, "one")]
    with path.open("ab") as file:
        file.write(second[10:] + b"\n")
    assert [(h.offset, h.event.text) for h in inbox.events("a", 1)] == [(len(first) + 10, "two")]
    assert inbox.events("a", 1) == ()


def test_a_command_wakes_the_wait(inbox):
    """The tick does not sleep through a command."""
    started = time.monotonic()
    submit(inbox.workspace, new_command(CommandKind.PAUSE), wait_s=0)
    inbox.wait(10.0)
    assert time.monotonic() - started < 5.0


def test_commands_come_oldest_first_and_bad_ones_are_set_aside(inbox):
    """A file that is no command neither blocks the others nor is lost."""
    commands = [new_command(CommandKind.PAUSE), new_command(CommandKind.RESUME)]
    for command in reversed(commands):
        submit(inbox.workspace, command, wait_s=0)
    (inbox.workspace.control / "0.json").write_text("{")
    (inbox.workspace.control / "1.json").write_text('{"id": "x", "kind": "explode", "at": 1}')
    assert list(inbox.commands()) == commands
    assert sorted(path.name for path in inbox.workspace.control.glob("*.unreadable")) == ["0.unreadable", "1.unreadable"]


def test_a_reply_reaches_the_one_who_asked(inbox):
    """The answer is read by id, and the command is gone from control/."""
    command = new_command(CommandKind.SKIP, "a")
    assert submit(inbox.workspace, command, wait_s=0) is None
    answer = Answer(id=command.id, ok=True, text="done", at=1.0)
    inbox.reply(answer)
    assert submit(inbox.workspace, command, wait_s=1.0) == answer

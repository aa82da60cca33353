"""kill -9 between any two lines of the outbox's life: `python -m tests.process.outbox_kills FOLDER [EVERY]`.

Prints a JSON line at the end. One life puts two messages and an edit into the outbox and delivers them to a file that stands for
Telegram. Each line that it executes in `outbox`, `state.durable` or here is once the last one; then a second life goes on
undisturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from daemon.phone import outbox
from daemon.phone.dialogue import Message, Ring
from daemon.phone.outbox import Deliver, Keeper, Outbox
from state import durable

os.fsync = lambda _handle: None  # a killed process loses no page that it wrote; only a power cut does

MESSAGES = (
    Message(key="a", html="one", ring=Ring.RED, kind="stage.failed", at=1.0),
    Message(key="b", html="two", ring=Ring.LOUD, kind="stage.succeeded", at=1.0),
    Message(key="a/solved", html="solved", kind="stage.failed", at=1.0, replaces="a"),
)
WATCHED = {outbox.__file__, durable.__file__, __file__}


def live(folder: Path) -> None:
    """Put in what is not yet there, then deliver all that waits."""
    keeper = Keeper(folder / "telegram" / "outbox.json", Outbox)
    box = outbox.after_crash(keeper.load() or Outbox())
    for message in MESSAGES:
        box = outbox.put(box, message)
    keeper.save(box)
    while isinstance(step := outbox.next_step(box, 2.0), Deliver):
        key = step.message.key
        box = outbox.begun(box, key)
        keeper.save(box)
        message_id = telegram(folder, step)
        box = outbox.arrived(box, key, message_id)
        keeper.save(box)
    keeper.sweep()


def telegram(folder: Path, step: Deliver) -> int:
    """What the owner's phone got: a line for each message and edit; the id of the message."""
    with open(folder / "phone.jsonl", "ab") as phone:
        number = step.edits or phone.tell() + 1
        os.write(phone.fileno(), json.dumps([number, bool(step.edits), step.message.html]).encode() + b"\n")
    return number


def killed_at(folder: Path, number: int | None) -> bool:
    """Whether a life in a process of its own was killed at that line; None: it is left alone."""
    child = os.fork()
    if child == 0:
        if number is not None:
            sys.settrace(_killer(number))
        live(folder)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"a life ended with {code} at line {number}")
    return code != 0


def _killer(number: int) -> Callable[..., Any]:
    left = number

    def trace(frame: FrameType, event: str, _value: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename not in WATCHED:
            return None
        left -= event == "line"
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def faults(folder: Path) -> tuple[list[str], int]:
    """What is wrong with what the phone got, and how many repeats there are."""
    got = [json.loads(line) for line in (folder / "phone.jsonl").read_text().splitlines()]
    texts = Counter(text for _number, edited, text in got if not edited)
    repeats = sum(count for text, count in texts.items() if text.startswith(outbox.AGAIN))
    found = [f"{text}: {count} times" for text, count in texts.items() if count > 1]
    for text in ("one", "two"):
        if not texts[text] + texts[outbox.AGAIN + text]:
            found.append(f"{text}: lost")
    if (last := [(number, text) for number, edited, text in got if edited][-1:]) != [(_id_of(got), "solved")]:
        found.append(f"the edit: {last}")
    if repeats > 1 or sorted(folder.rglob("*.tmp")):
        found.append(f"{repeats} repeats, {sorted(folder.rglob('*.tmp'))} left")
    return found, repeats


def _id_of(got: list[Any]) -> int:
    """The newest message that says "one"."""
    return [number for number, edited, text in got if not edited and text.endswith("one")][-1]


def main(root: Path, every: int) -> None:
    """Kill a life at every `every`th line."""
    number, repeats = 0, 0
    while True:
        folder = root / "life"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if not killed_at(folder, number):
            break
        killed_at(folder, None)
        found, again = faults(folder)
        if found:
            raise SystemExit(f"killed at line {number}: {found}")
        repeats += again
        number += every
    print(json.dumps({"kills": number // every, "repeats": repeats}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)

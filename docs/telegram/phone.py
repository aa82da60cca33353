"""The pictures of docs/telegram.md: what the bot says of the example run of the tests, on an imitation of a phone 390 pixels wide.

    .venv/bin/python docs/telegram/phone.py

Needs Chromium and a font with emoji (on Debian and Ubuntu: chromium, fonts-noto-color-emoji).
The words come from `daemon.phone`, to the letter; nothing here is written by hand but the order.
"""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import subprocess
import tempfile
from collections.abc import Sequence
from datetime import UTC
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from PIL import Image

from daemon import scores, view
from daemon.phone import answers, messages, questions
from daemon.phone.dialogue import Button, Message
from daemon.phone.standing import More
from daemon.results import plots
from daemon.view import View
from state.contract import CommandKind
from state.forecast import Forecast
from state.snapshot import Fact, Start
from tests.conftest import ExampleRun, finished_run, mid_run
from tests.unit.daemon.phone_views import HOST, fact, fact_of, live, more_of, now_of, stage_of, with_run, with_stage

HERE = Path(__file__).parent
CHROMIUM = "chromium"
WIDTH, TALLEST = 390, 3400
COLOURS = 128
STYLE = """
body { margin: 0; background: #c9dbe4; font: 15px/1.35 "Liberation Sans", "Noto Color Emoji", sans-serif; width: 390px; }
.phone { padding: 10px 8px; }
.bubble { background: #fff; border-radius: 14px; padding: 7px 11px; margin: 8px 0 0; white-space: pre-wrap; max-width: 330px;
          width: fit-content; overflow-wrap: anywhere; }
.ours { background: #e3fdca; margin-left: auto; }
.bubble b { font-weight: 700; }
pre { font: 12.5px/1.35 "Liberation Mono", monospace; margin: 3px 0; white-space: pre-wrap; }
img { width: 330px; border-radius: 9px; display: block; margin-bottom: 5px; }
.row { display: flex; gap: 4px; margin: 4px 0 0; width: 352px; }
.row span { flex: 1; background: #7f9bab; color: #fff; text-align: center; border-radius: 9px; padding: 7px 4px; font-size: 14px; }
.pin { background: #fff; border-left: 3px solid #4a90c2; padding: 5px 10px; margin: -10px -8px 0; font-size: 13px; color: #456; }
.when { text-align: center; color: #456; font-size: 13px; margin: 12px 0 2px; }
"""


def bubble(said: Message | str, *, picture: bytes = b"") -> str:
    """A message of the bot's, with its buttons."""
    message = Message(key="", html=said) if isinstance(said, str) else said
    shown = f'<img src="data:image/png;base64,{base64.b64encode(picture).decode()}">' if picture else ""
    words = message.html.replace("</pre>\n", "</pre>")  # a block ends its line by itself
    return f'<div class="bubble">{shown}{words}</div>{keyboard(message.buttons)}'


def keyboard(rows: Sequence[Sequence[Button]]) -> str:
    spans = ("".join(f"<span>{html.escape(button.text)}</span>" for button in row) for row in rows)
    return "".join(f'<div class="row">{row}</div>' for row in spans)


def owner(text: str) -> str:
    """A message of the owner's."""
    return f'<div class="bubble ours">{html.escape(text)}</div>'


def when(text: str) -> str:
    """What a reader must know to understand the next message."""
    return f'<div class="when">{html.escape(text)}</div>'


def look(mid: View, done: View) -> list[str]:
    """Asking."""
    now = now_of(mid)
    due = now + 4 * 86_400
    plan = Forecast(at=now, p50_at=due - 20 * 3600, p80_at=due - 11 * 3600, deadline_at=due)
    more = dataclasses.replace(more_of(mid), forecast=plan)
    card = messages.card(mid, HOST, now, UTC, more)
    return [
        '<div class="pin"><b>Pinned message</b><br>Vigil demo · 5 of 11 done</div>',
        bubble(card),
        owner("/status"),
        bubble(
            Message(key="", html=answers.status(mid, HOST, now, UTC, more), buttons=((Button("Refresh", ""),),)),
        ),
        owner("/stages"),
        bubble(answers.stages(done)),
    ]


def act(mid: View, curve: bytes) -> list[str]:
    """Acting."""
    marian, number = stage_of(mid, "train_marian"), "a"
    text = "skip train_marian: train_marian stops at its next save and is skipped; what is saved stays"
    fields = {"by": "telegram", "ok": True, "id": questions.command_id(number)}
    answered = messages.for_fact(fact(1, "command.answered", text, fields=fields), mid, UTC)
    assert answered is not None
    ask = Message(
        key="", html=questions.question(CommandKind.SKIP, marian, mid), buttons=questions.choices(CommandKind.SKIP, number, marian)
    )
    stop = Message(
        key="", html=questions.question(CommandKind.STOP, None, mid), buttons=questions.choices(CommandKind.STOP, number, None)
    )
    return [
        owner("/skip"),
        bubble(ask),
        when("after a tap on “Save and skip …” the same message reads"),
        bubble(answered),
        owner("/stop"),
        bubble(stop),
        owner("/plot"),
        bubble(answers.plotted(marian), picture=curve),
        owner("/help"),
        bubble(answers.help_text()),
    ]


def tell(mid: View) -> list[str]:
    """What comes by itself."""
    due = now_of(mid) + 4 * 86_400
    late = {"p50_at": due + 3600, "p80_at": due + 3 * 3600, "deadline_at": due, "leave_out": ["train_gemma_12b", "evaluate_12b"]}
    choice = {"choice": "Without TranslateGemma 12B QLoRA and Evaluation of the 12B it fits (Mon 15:10)."}
    slipped = messages.for_fact(fact(9, "plan.slipped", "late", fields=late | choice), mid, UTC)
    hold = "everything waits: the disk has 900 MB free and 1 GB are to be kept; free some, it then goes on by itself"
    held, freed = fact(1, "disk.held", hold, level="error"), fact(200, "disk.freed", "there is disk space again: the run goes on")
    waiting = dataclasses.replace(mid, facts=(held, freed))
    red, end = (messages.for_fact(one, waiting, UTC) for one in (held, freed))
    back = messages.for_fact(*after_power_cut(mid), UTC)
    assert None not in (red, end, back, slipped)
    return [
        bubble(red),
        bubble(messages.still(red, 1)),
        when("once there is space, the first one reads"),
        bubble(end),
        when("after a power cut"),
        bubble(back),
        when("at 08:00"),
        bubble(messages.digest(mid, HOST, now_of(mid), UTC)),
        bubble(slipped),
    ]


def results(done: View, measured: More, chart: bytes) -> list[str]:
    """What comes at the end."""
    good, over = (
        messages.for_fact(fact_of(done, *which), done, UTC, measured)
        for which in (("stage.succeeded", "evaluate_after"), ("run.finished",))
    )
    assert None not in (good, over)
    return [bubble(good, picture=chart), bubble(over)]


def after_power_cut(mid: View) -> tuple[Fact, View]:
    """A fact that tells a reboot, and the run as it was when the lights went out."""
    marian = stage_of(mid, "train_marian")
    assert marian.progress is not None
    last = marian.progress.at
    at = last + 7800
    attempts = (replace(marian.state.attempts[-1], ended_at=None),)
    seen = with_stage(mid, "train_marian", {"attempts": attempts}, checkpoint=70)
    seen = with_run(seen, starts=(seen.run.starts[0], Start(at=at, boot="2")))
    return Fact(id="9", at=at, kind="run.resumed", text="run x goes on", fields={"rebooted": True}), seen


def photographed(parts: Sequence[str], folder: Path) -> bytes:
    """The page as a PNG with few colours, cut where it ends."""
    page, shot = folder / "page.html", folder / "page.png"
    page.write_text(f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style><div class="phone">{"".join(parts)}</div>')
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--force-device-scale-factor=2",
    ]
    size = [f"--window-size={WIDTH},{TALLEST}", f"--user-data-dir={folder / 'profile'}", f"--screenshot={shot}"]
    subprocess.run([CHROMIUM, *options, *size, page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        whole = image.convert("RGB").crop((0, 0, 2 * WIDTH, 2 * TALLEST))
    pixels = np.asarray(whole)
    last = int(np.flatnonzero((pixels != pixels[-1, 0]).any(axis=(1, 2))).max())
    buffer = io.BytesIO()
    whole.crop((0, 0, whole.width, last + 20)).quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Write the pictures beside this file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:  # Chromium may still be writing its profile
        folder = Path(made)
        middle, finished = mid_run(ExampleRun(folder / "mid")), finished_run(ExampleRun(folder / "done"))
        mid, done = live(view.read(middle)), live(view.read(finished))
        measured = More(scores=scores.read(finished.eval_results))
        history = [attempt for attempt in view.read_history(middle, mid.run) if attempt.stage == "train_marian"]
        curve = plots.training(history)
        assert curve is not None
        pages = {
            "look": look(mid, done),
            "act": act(mid, plots.picture("train_marian", curve)),
            "tell": tell(mid),
            "results": results(done, measured, plots.score_picture(scores.overall(measured.scores))),
        }
        for name, parts in pages.items():
            (HERE / f"{name}.png").write_bytes(photographed(parts, folder))


if __name__ == "__main__":
    main()

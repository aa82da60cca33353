"""A run on a machine far away, its owner with a phone, and a network that fails at random between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import view, words
from daemon.before_leaving.demo import CLIPS
from daemon.before_leaving.demo_server import serve
from daemon.phone import answers, messages
from daemon.phone.dialogue import Ring
from daemon.phone.outbox import AGAIN
from daemon.phone.telegram_settings import RingRule, TelegramFile
from state.contract import CommandKind
from state.workspace import Workspace
from tests.acceptance.test_demo import SHORT
from tests.telegram import wire
from tests.telegram.fake_api import OWNER_ID, FakeApi, Seen

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "telegram.md"
BLOCK = re.compile(r"(?<=<!-- transcript -->\n```text\n).*?(?=```\n<!-- end -->)", re.DOTALL)
REWRITE = "VIGIL_REWRITE_TRANSCRIPT"
"""Set: the transcript in the documentation becomes that of this run."""
FAULTS = [
    *(
        wire.BAD_GATEWAY,
        wire.CONFLICT,
        wire.GARBAGE,
        wire.HANG_UP,
        wire.HOTEL_404,
        wire.HOTEL_PAGE,
        wire.LOST_REPLY,
        wire.NOT_FOUND,
    ),
    *(wire.RESET, wire.SERVER_ERROR, wire.TRUNCATED, wire.UNAUTHORIZED, wire.flood(1)),
]
WAIT_S = 120.0
BONUS = """
[[stage]]
name = "bonus"
title = "A bonus"
module = "stages.train_marian"
needs = ["train_marian"]
resource = "gpu"
optional = true
[stage.settings]
model = "models/marian-drill"
"""
STEPS_FIRST = 10


@dataclass
class Owner:
    """Ada, who does what the script says and waits for each answer."""

    api: FakeApi
    tapped: dict[int, list[str]] = field(default_factory=dict)
    """What she tapped, by message."""

    def finds(self, words: str, among: Callable[[], Any]) -> Seen:
        return self.api.wait_for(lambda: next((m for m in among() if m.by != OWNER_ID and words in m.text), None), WAIT_S)

    def sees(self, words: str) -> Seen:
        """A message that holds `words`, as it stands now."""
        return self.finds(words, self.api.transcript)

    def asks(self, text: str, words: str) -> Seen:
        """The answer, which holds `words`."""
        before = len(self.api.sent)
        self.api.owner.says(text)
        return self.finds(words, lambda: self.api.sent[before:])

    def does(self, kind: CommandKind, words: str, stage: str = "") -> None:
        """Ask, confirm the question, which holds `words`, by its first button, and see what became of it."""
        question = self.asks(f"/{kind} {stage}".rstrip(), words)
        label, data = question.buttons[0][0]
        self.api.owner.taps(question.message_id, data)
        self.tapped.setdefault(question.message_id, []).append(label)
        self.sees(f"✅ {kind.capitalize()} ")


@contextmanager
def running(workspace: Workspace, api: FakeApi, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`vigil` with the bot paired by telegram.toml."""
    workspace.root.mkdir()
    token = workspace.root / "telegram_token"
    token.write_text(api.token)
    token.chmod(0o600)
    settings = f'token_file = "{token.name}"\nowner_id = {OWNER_ID}\nbase_url = "{api.url}"\nquiet_hours = ""\ntime_zone = "UTC"\n'
    (workspace.root / "telegram.toml").write_text(settings)
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "VIGIL_COMET_PYTHON": sys.executable}
    command = [sys.executable, "-P", "-m", "daemon.cli", *arguments, "--workspace", str(workspace.root)]
    with open(workspace.root.with_suffix(".txt"), "wb") as output:
        child = subprocess.Popen(command, env=surroundings, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield child
    finally:
        child.terminate()  # the stages leave with it
        child.wait(60)


def converse(owner: Owner, workspace: Workspace, trained: str, bonus: str) -> None:
    """The script: look, pause in mid-training, look around, skip the bonus, go on."""
    owner.sees("as of")
    owner.asks("/help", "/status")
    until(lambda: step_of(workspace, trained) >= STEPS_FIRST)
    owner.asks("/status", "Step ")
    owner.does(CommandKind.PAUSE, "Pause the run?")
    owner.asks("/status", "Paused")
    assert owner.asks(f"/plot {trained}", "Loss").photo.startswith(b"\x89PNG")
    owner.asks("/stages", "⚪")
    owner.asks("/events", " paused")
    owner.asks(f"/log 3 {trained}", "last lines")
    owner.does(CommandKind.SKIP, "Skip ", bonus)
    owner.api.owner.says("/report")
    owner.api.wait_for(lambda: any(b"<html" in message.document for message in owner.api.sent), WAIT_S)
    owner.does(CommandKind.RESUME, "Go on with the run?")


@dataclass(frozen=True)
class Case:
    """What is run."""

    arguments: tuple[str, ...]
    trained: str = "train_marian"
    bonus: str = "bonus"
    wait_s: float = 120.0
    documented: bool = False


def drill(folder: Path, url: str) -> Case:
    """The drill's pipeline with a bonus behind it, and a training that lasts until the owner is through."""
    path = folder / "pipeline.toml"
    path.write_text((ROOT / "pipelines" / "drill.toml").read_text() + BONUS)
    return Case(("run", str(path), "--set", f"download.url={url}", "--set", "train_marian.epochs=16"), documented=True)


def demo(_folder: Path, _url: str) -> Case:
    """The whole demo, shortened but for the training that is paused."""
    overrides = [*SHORT, "train_marian.max_examples=1800", "train_marian.epochs=4"]
    sets = [word for override in overrides for word in ("--set", override)]
    return Case(("demo", "--telegram", *sets), bonus="train_gemma_12b", wait_s=600.0)


@pytest.mark.parametrize("case_of", [drill, pytest.param(demo, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_the_owner_is_told_and_obeyed_whatever_the_network_does(tmp_path: Path, case_of: Callable[[Path, str], Case]) -> None:
    """Every answer came, each act happened once, nothing was lost, no repeat is unmarked, and the card says that it is over."""
    workspace = Workspace.at(tmp_path / "run")
    with FakeApi() as api, serve(CLIPS) as server:
        owner, case = Owner(api), case_of(tmp_path, server.feed_url)
        api.fail_at_random(0.2, FAULTS, seed=7)
        with running(workspace, api, *case.arguments) as vigil:
            converse(owner, workspace, case.trained, case.bonus)
            assert vigil.wait(case.wait_s) == 0, workspace.root.with_suffix(".txt").read_text()
        api.heal()
        outcomes = Counter(call.outcome for call in api.calls)
        assert sum(outcomes[fault.name] for fault in FAULTS) > 10, "the network did fail"
        check_acts(workspace, case.bonus)
        check_messages(workspace, api)
        check_card(api)
        if case.documented:
            check_page(transcript(owner))


def check_acts(workspace: Workspace, bonus: str) -> None:
    """Each of the owner's commands was carried out, once, and all three are his."""
    answered = [fact for fact in view.read(workspace).facts if fact.kind == "command.answered"]
    assert [fact.text.partition(":")[0] for fact in answered] == ["pause", f"skip {bonus}", "resume"]
    assert all(fact.fields["ok"] and fact.fields["id"].startswith("tg-") for fact in answered)
    assert len(list(workspace.answers.glob("*.json"))) == 3


def check_messages(workspace: Workspace, api: FakeApi) -> None:
    """What the journal holds and is news was shown; the same words twice only with the mark."""
    seen = view.read(workspace)
    shown = {heading(message.text) for message in (*api.sent, *api.edited)}
    told = [messages.for_fact(fact, seen, UTC) for fact in seen.facts]
    due = [heading(words.bare(message.html)) for message in told if message is not None and message.ring is not Ring.OFF]
    assert len(due) >= 8
    assert [words for words in due if words not in shown] == []
    unmarked = Counter(message.text for message in api.sent if not message.text.startswith(AGAIN))
    assert [words for words, times in unmarked.items() if times > 1] == []


def check_card(api: FakeApi) -> None:
    """It was begun once, however often a reply to it or to an edit was lost, and the one that is pinned says that it is over."""
    (pinned,) = [message for message in api.transcript() if message.pinned]
    assert "🏁" in pinned.text
    begun = [message for message in api.sent if "as of" in message.text]
    assert [message.text for message in begun[1:] if not message.text.startswith(AGAIN)] == []


def heading(text: str) -> str:
    return text.removeprefix(AGAIN).partition("\n")[0]


# -- the transcript


def transcript(owner: Owner) -> str:
    """The talk from top to bottom: each message as it came, and under it what became of it."""
    sent = {message.message_id: message for message in owner.api.sent}
    lines: list[str] = []
    for last in owner.api.transcript():
        if last.by == OWNER_ID:
            lines += spoken("Ada", last.text)
            continue
        first = sent[last.message_id]
        lines += spoken("Vigil", (first.photo and "[picture] ") or (first.document and f"[{first.document_name}] ") or "", first)
        lines += [line for label in owner.tapped.get(last.message_id, ()) for line in spoken("Ada", f"taps [{label}]")]
        if last.text != first.text:
            lines += spoken("Vigil", "now: ", last)
    return "".join(f"{line}\n" for line in lines)


def spoken(who: str, words: str, message: Seen | None = None) -> list[str]:
    """Who said it, with the lines below each other, and the buttons."""
    text = words + (message.text if message else "")
    rows = [" ".join(f"[{label}]" for label, _data in row) for row in (message.buttons if message else ())]
    return [f"{who if not place else '':<6}{line}".rstrip() for place, line in enumerate([*text.split("\n"), *rows])]


def check_page(told: str) -> None:
    """Whatever begins a message in the documentation's transcript begins one today; numbers and days apart."""
    page = PAGE.read_text(encoding="utf-8")
    if os.environ.get(REWRITE):
        page = BLOCK.sub(lambda _old: told, page)
        PAGE.write_text(page, encoding="utf-8")
    kept = BLOCK.search(page)
    assert kept is not None
    assert len(fixed(kept[0])) > 20
    assert fixed(kept[0]) <= fixed(told), f"run this test with {REWRITE}=1 to write the page anew"


def fixed(told: str) -> set[str]:
    """The first lines of all that was said, without what differs from run to run."""
    first = [line.replace(AGAIN, "").replace("now: ", "") for line in told.splitlines() if line[:1].strip()]
    return {re.sub(r"\d[\d,.]*|\b[A-Z][a-z]{2} (?=\d)| [A-Z][a-z]{2}$", "#", line) for line in first}


def test_the_page_names_what_there_is() -> None:
    """Every command, every kind of news that comes by default, every setting and rule is in docs/telegram.md."""
    page = PAGE.read_text(encoding="utf-8")
    quiet = {"command.answered", "disk.freed"}  # edits of what the page names
    kinds = [*(messages._TELL.keys() - quiet), "gpu.hot", "network.back", "digest"]
    names = [f"`{kind}`" for kind in kinds] + [f"`/{command}" for command in answers.COMMANDS]
    names += [f"{name} = " for name in msgspec.structs.asdict(TelegramFile()) if name != "rings"] + ["[rings]", *RingRule]
    assert [name for name in names if name not in page] == []


# -- what they share


def step_of(workspace: Workspace, name: str) -> int:
    """The last step that the stage told."""
    if not workspace.state.exists():
        return 0
    return next(stage.step or 0 for stage in view.read(workspace).stages if stage.config.name == name)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 2 * WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.1)

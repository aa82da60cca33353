"""The part of the bot that hears: takes updates, decides (`chat`) and keeps that before Telegram is told that they arrived.

What was decided is then carried out: commands go into control/, what takes a process of its own is made and sent.
"""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from msgspec.structs import replace

from daemon import scores
from daemon.aside import aside
from daemon.launcher import environment
from daemon.phone import answers, chat, outbox
from daemon.phone.dialogue import Act, Asked, Message, Say, Show, Submit, Toast
from daemon.phone.mind import Mind
from state.contract import Command
from state.durable import write_atomically
from state.workspace import Workspace

if TYPE_CHECKING:
    from daemon.phone.wire import Received, UnreachableError, Wire

SHOW_LIMIT_S = 120.0
REMEMBERED_UPDATES = 200
MOST_STRANGERS = 20

log = structlog.get_logger()


class Hearing:
    """What the owner asks, and what becomes of it."""

    def __init__(self, mind: Mind, wire: Wire) -> None:
        self._mind, self._wire = mind, wire
        self._has_menu = False
        self._taken_at = -math.inf
        self._strangers: set[int] = set()
        self._sideline: set[asyncio.Task[Any]] = set()

    async def hear(self) -> None:
        """One poll. What it brought is decided and kept before the next one confirms it."""
        from daemon.phone.wire import UnreachableError

        mind, pace = self._mind, self._mind.pace
        try:
            wait_s = pace.poll_s if mind.reach.is_up else 0  # a short one shows at once that Telegram is back
            received = await self._wire.updates(mind.saved.offset, wait_s)
        except UnreachableError as error:
            mind.reach.down(str(error))
            await asyncio.sleep(pace.longest_retry_s if self._leaves(error) else pace.after_failures_s(mind.reach.failures))
            return
        if mind.reach.up():
            mind.heard.set()
        if not self._has_menu:
            self._has_menu = True
            self._on_the_side(self._wire.menu(list(answers.COMMANDS.items())))
        await self._take(received)

    def _leaves(self, error: UnreachableError) -> bool:
        """Whether the line is taken again and again: `vigil pair` with the same token needs it, and gets it for a while."""
        if not error.taken:
            return False
        before, self._taken_at = self._taken_at, time.monotonic()
        return self._taken_at - before < 2 * self._mind.pace.longest_retry_s

    async def _take(self, received: Received) -> None:
        mind = self._mind
        fresh = tuple(number for number in received.poison if number not in mind.diary.done)
        for number in fresh:
            log.warning("telegram.update_unreadable", update=number)
        for asked in received.asked:
            if asked.update_id not in mind.diary.done:
                await self._attend_to(asked)
        if received.offset != mind.diary.offset:
            mind.keep(replace(mind.diary, offset=received.offset, done=self._done(*fresh)))
        if mind.saved.offset != received.offset:  # the disk refuses: these come again at once
            await asyncio.sleep(mind.pace.retry_s)

    def _done(self, *updates: int) -> tuple[int, ...]:
        return (*self._mind.diary.done, *updates)[-REMEMBERED_UPDATES:]

    async def _attend_to(self, asked: Asked) -> None:
        if not self._knows(asked):
            return
        mind = self._mind
        acts: list[Act] = []
        memory = mind.diary.memory
        try:
            seen = await mind.seen()
            more = await mind.more(seen, output=asked.text.startswith("/log"))
            memory, acts = chat.decide(asked, memory, seen, mind.host_now(), mind.clock(), mind.settings.zone, more)
        except Exception:  # one that cannot be answered must not come back for ever
            log.exception("telegram.update_failed", update=asked.update_id)
        box = mind.diary.outbox
        for act in acts:
            if isinstance(act, Say):
                box = outbox.put(box, act.message)
        todo = (*mind.diary.todo, *(act for act in acts if isinstance(act, Submit | Show)))
        mind.keep(replace(mind.diary, memory=memory, outbox=box, todo=todo, done=self._done(asked.update_id)))
        mind.heard.set()
        self._submit()
        mind.errands.set()
        for act in acts:
            if isinstance(act, Toast):
                self._on_the_side(self._wire.toast(act))

    def _knows(self, asked: Asked) -> bool:
        """Whether it is the owner, in private; others get silence, and one line each in the log."""
        settings = self._mind.settings
        if asked.user_id == settings.owner_id and asked.private and asked.chat_id == settings.chat_id:
            return True
        if asked.user_id not in self._strangers and len(self._strangers) < MOST_STRANGERS:
            self._strangers.add(asked.user_id)
            log.warning("telegram.stranger", user=asked.user_id, private=asked.private)
        return False

    def _on_the_side(self, call: Any) -> None:
        """Do it without waiting; what becomes of it is of no matter."""
        begun = asyncio.ensure_future(call)
        self._sideline.add(begun)
        begun.add_done_callback(self._sideline.discard)

    # -- what was decided

    async def run_errands(self) -> None:
        """Carry out what was decided, one after the other."""
        mind = self._mind
        await mind.errands.wait()
        mind.errands.clear()
        self._submit()
        for act in mind.diary.todo:
            if isinstance(act, Show):
                message = await self._shown(act)
                mind.keep_box(outbox.put(mind.diary.outbox, message))
                self._strike(act)
        if mind.diary.todo:
            await asyncio.sleep(mind.pace.longest_retry_s)
            mind.errands.set()

    def _submit(self) -> None:
        """Put the commands into control/, each once: a command that was answered, or lies there, is done."""
        for act in self._mind.diary.todo:
            if isinstance(act, Submit):
                try:
                    self._hand_in(act.command)
                except OSError as error:
                    log.error("telegram.command_not_queued", id=act.command.id, error=str(error))
                    continue
                self._strike(act)

    def _hand_in(self, command: Command) -> None:
        mind, name = self._mind, f"{command.id}.json"
        if (mind.workspace.answers / name).exists():
            return
        if chat.fresh(command.at, mind.clock()):
            write_atomically(mind.workspace.control / name, msgspec.json.encode(command))
        else:
            late = Message(key=f"late/{command.id}", html=answers.not_passed_on(command), at=command.at)
            mind.keep_box(outbox.put(mind.diary.outbox, late))

    def _strike(self, act: Submit | Show) -> None:
        diary = self._mind.diary
        self._mind.keep(replace(diary, todo=tuple(one for one in diary.todo if one != act)))

    async def _shown(self, act: Show) -> Message:
        mind, workspace = self._mind, self._mind.workspace
        now, seen = mind.clock(), await mind.seen()
        picture = workspace.root / "telegram" / f"plot-{act.stage}.png"
        arguments = ["plot", act.stage, "--out", str(picture)] if act.what == "plot" else ["report", "--quiet"]
        trouble = await aside(lambda: vigil(workspace, arguments))
        if trouble:
            return Message(key=act.key, html=answers.not_made(trouble), at=now)
        if act.what == "plot":
            stage = next((s for s in seen.stages if s.config.name == act.stage), None) if seen else None
            return Message(key=act.key, html=answers.plotted(stage) if stage else act.stage, at=now, photo=str(picture))
        html = answers.scored(scores.read(workspace.eval_results))
        return Message(key=act.key, html=html, at=now, document=str(workspace.report / "index.html"))


def vigil(workspace: Workspace, arguments: list[str]) -> str:
    """Run a subcommand in a short-lived process; what it complained of, empty when it did what it should."""
    command = [sys.executable, "-P", "-m", "daemon.cli", *arguments, "--workspace", str(workspace.root)]
    try:
        ended = subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SHOW_LIMIT_S, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if ended.returncode == 0 else (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]

"""`vigil drill`: break a run in every way that Vigil promises to survive, on the owner's own machine, and say what came of it.

One training runs undisturbed. In its middle everything stands still for a moment and the folder is copied: what a power cut would
have left. Every fault then starts from a copy of that, two at a time, and its end is compared with the undisturbed one.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import msgspec

from daemon.before_leaving.drill_faults import FAULTS, Fault, Ground, checkpoint_folders, feed, free_port, recordings_digest, served
from daemon.before_leaving.drill_plan import DOWNLOAD
from daemon.before_leaving.drill_scene import Scene, StuckError
from daemon.words import plural
from state.pipeline import Pipeline
from state.snapshot import Fact

LANES = 2
ROUNDS = 3
"""Of each fault, at other moments, unless the drill is to be quick."""
QUIET_FACTS = ("stage.started", "stage.succeeded", "run.finished")
QUIET_NOTES = ("The ledger proves", "fits ")
ANSWERS_SHOWN = 5
"""Sentences of the journal that the table has room for; --json has all."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one fault."""

    fault: str
    injected: tuple[str, ...]
    answers: tuple[str, ...]
    """The journal's own words, and what was seen beside them."""
    recovered_s: float | None
    """From the fault, or from its end where it lasts, to the first work that nobody had done before; None: it never came."""
    repeated_steps: int
    result: str
    faults: tuple[str, ...] = ()
    """What did not hold; empty when all did."""
    folder: str = ""

    @property
    def held(self) -> bool:
        """Whether the promise was kept."""
        return not self.faults


def drill(
    plan: tuple[Pipeline, str],
    folder: Path | None,
    *,
    quick: bool,
    seed: int | None,
    only: Sequence[str],
    as_json: bool,
    columns: int,
) -> int:
    """Break everything in `plan` (of `drill_plan`) once, or ROUNDS times, and print what came of it: 0 if all held, else 1.

    `folder` is where the scratch runs go; None: a temporary one. What held is removed, what did not is kept and named.
    """
    seed = random.randrange(1_000_000) if seed is None else seed
    faults = chosen(only)
    rounds = 1 if quick else ROUNDS
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="vigil-drill-", dir=folder)).resolve()
    words = sys.stderr if as_json else sys.stdout

    def say(text: str) -> None:
        print(text, file=words, flush=True)

    say(f"Vigil drill, seed {seed}: {plural(len(faults) * rounds, 'fault')}, in {scratch}")
    began = time.monotonic()
    findings: list[Finding] = []
    try:
        ground = prepare(scratch, *plan)
        say(f"  {time.monotonic() - began:4.0f} s  undisturbed: {ground.steps} steps, a checkpoint every {ground.every_steps}")
        for finding in _tried(faults, ground, scratch, rounds, seed):
            findings.append(finding)
            say(f"  {time.monotonic() - began:4.0f} s  {finding.fault}: {finding.result}")
    finally:
        held = len(findings) == len(faults) * rounds and all(finding.held for finding in findings)
        if held:
            shutil.rmtree(scratch)
        else:
            say(f"kept for you to look at: {scratch}")
    seconds = time.monotonic() - began
    findings.sort(key=lambda finding: [fault.name for fault in FAULTS].index(finding.fault))
    if as_json:
        whole = {"seed": seed, "held": held, "seconds": round(seconds, 1), "findings": findings}
        print(msgspec.json.format(msgspec.json.encode(whole), indent=2).decode())
    else:
        print("\n".join(table(findings, columns, seed, seconds)))
    return 0 if held else 1


def chosen(names: Sequence[str]) -> list[Fault]:
    """The faults with these names, or all.

    Raises:
        BadCallError: there is none of that name.
    """
    from daemon.cli import BadCallError

    known = {fault.name: fault for fault in FAULTS}
    if strange := sorted(set(names) - known.keys()):
        raise BadCallError(f"no fault is called {strange[0]!r}; there are {', '.join(known)}")
    return [fault for fault in FAULTS if not names or fault.name in names]


# -- the undisturbed run


def prepare(scratch: Path, pipeline: Pipeline, name: str) -> Ground:
    """Run the pipeline undisturbed, and copy it in mid-training on the way.

    Raises:
        StuckError: not even that went well.
    """
    port = free_port()
    overrides = (f"{DOWNLOAD}.url={feed(port)}",)
    stage = pipeline.stage(name)
    file = scratch / "pipeline.json"
    file.write_bytes(msgspec.json.format(msgspec.json.encode(pipeline), indent=1))
    snapshot = scratch / "snapshot"
    abandoned = threading.Event()
    with served(port, 0.0), Scene(scratch / "undisturbed", file, name, overrides, abandoned) as scene:
        scene.boot()
        scene.wait("two checkpoints", lambda: len(checkpoint_folders(scene)) >= 2)
        with scene.frozen():
            shutil.copytree(scene.root, snapshot, symlinks=True)
        scene.finish()
        undisturbed, recordings = scene.end(), recordings_digest(scene)
    return Ground(
        pipeline=file,
        stage=name,
        module=stage.module,
        steps=int(undisturbed.metrics["steps"]),
        examples=int(undisturbed.metrics["training_pairs"]),
        every_steps=int(stage.settings["checkpoint_every_steps"]),
        snapshot=snapshot,
        undisturbed=undisturbed,
        recordings=recordings,
        overrides=overrides,
        abandoned=abandoned,
    )


# -- one fault


def _tried(faults: Sequence[Fault], ground: Ground, scratch: Path, rounds: int, seed: int) -> Iterator[Finding]:
    """The findings as they come. An interrupt ends every scene at its next look."""
    with ThreadPoolExecutor(LANES) as lanes:
        asked = [
            lanes.submit(try_out, fault, ground, scratch / f"{fault.name}-{number}", f"{seed} {fault.name} {number}")
            for number in range(1, rounds + 1)
            for fault in faults
        ]
        try:
            for answer in as_completed(asked):
                yield answer.result()
        except BaseException:
            lanes.shutdown(wait=False, cancel_futures=True)
            ground.abandoned.set()
            raise


def try_out(fault: Fault, ground: Ground, root: Path, seed: str) -> Finding:
    """Break one thing in a run of its own at `root`, and judge what came of it."""
    if fault.fresh:
        root.mkdir()
    else:
        shutil.copytree(ground.snapshot, root, symlinks=True)
    with Scene(root, ground.pipeline, DOWNLOAD if fault.fresh else ground.stage, ground.overrides, ground.abandoned) as scene:
        try:
            wrong = fault.act(scene, ground, random.Random(seed))
        except (StuckError, OSError) as error:
            wrong = [str(error)]
        finding = judged(fault, ground, scene, wrong)
    if finding.held:
        shutil.rmtree(root)
    return finding


def judged(fault: Fault, ground: Ground, scene: Scene, wrong: Sequence[str]) -> Finding:
    """What a scene at its end shows, against what the fault may cost."""
    outcomes = scene.outcomes()
    repeated = scene.repeated()
    allowed = fault.lost_checkpoints * ground.every_steps + 1  # and the step in flight
    found = [*wrong]
    if fault.ended and tuple(outcomes) != fault.ended:
        found.append(f"the attempts ended {', '.join(outcomes)}, not {', '.join(fault.ended)}")
    if repeated > allowed:
        found.append(f"{repeated} steps done twice, more than {allowed}")
    facts = [fact.text for fact in scene.facts() if _speaks(fact)]
    return Finding(
        fault=fault.name,
        injected=tuple(scene.injected),
        answers=(*dict.fromkeys(facts), *scene.remarks),
        recovered_s=None if scene.recovered_s is None else round(scene.recovered_s, 1),
        repeated_steps=repeated,
        result="; ".join(found) if found else fault.promise,
        faults=tuple(found),
        folder=str(scene.root) if found else "",
    )


def _speaks(fact: Fact) -> bool:
    """Whether a fact is an answer to a fault, not the course of every run."""
    return fact.level != "debug" and fact.kind not in QUIET_FACTS and not any(words in fact.text for words in QUIET_NOTES)


# -- words


def table(findings: Sequence[Finding], columns: int, seed: int, seconds: float) -> list[str]:
    """The findings for people, at most `columns` wide."""
    lines = ["", f"{'fault':20}{'back after':>12}{'done twice':>14}   result"]
    for one in findings:
        back = "never" if one.recovered_s is None else f"{one.recovered_s:.1f} s"
        head = f"{one.fault:20}{back:>12}{plural(one.repeated_steps, 'step'):>14}   "
        lines += _hanging(head, [("" if one.held else "FAILED: ") + one.result], columns)
        lines += _hanging("    done   ", ["; ".join(one.injected)], columns)
        lines += _hanging("    Vigil  ", one.answers[:ANSWERS_SHOWN], columns)
    failed = sum(not one.held for one in findings)
    verdict = "all held" if not failed else f"{failed} did NOT hold"
    return [*lines, "", f"{plural(len(findings), 'fault')} in {seconds:.0f} s, {verdict}; --seed {seed} does the same again"]


def _hanging(head: str, texts: Sequence[str], columns: int) -> list[str]:
    """`texts`, each from a new line, behind `head` and under it."""
    indent = " " * len(head)
    lines = [line for text in texts for line in textwrap.wrap(text, max(20, columns - len(head)))]
    return [f"{head if number == 0 else indent}{line}" for number, line in enumerate(lines)]

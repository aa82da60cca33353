"""The drill's faults, each a function that breaks one thing in a scene, lets Vigil answer, and says what did not hold.

They are real: signals, bits on the disk, a file system without space, an allocator that refuses, a server that is gone. Two are
made by the inside of the stage's process (`stages.drill`), since nothing outside can make them.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from daemon.before_leaving.drill_scene import End, Scene, StuckError, surrounded
from daemon.inbox import new_command, submit
from state.checkpoints import MANIFEST, Checkpoints
from state.contract import CommandKind, Outcome, Progress
from state.durable import file_digest, tree_files, write_atomically
from state.snapshot import BackingOff
from state.workspace import Workspace

DAY_S = 86_400
LEARNED_SHARE = 0.5
"""Of what the undisturbed run gained in dev loss: so much must be learned where the result cannot be the same."""
CLIPS = Path(__file__).resolve().parents[2] / "pipelines" / "demo_audio"
SECONDS_PER_BLOCK = 0.1
"""Of the server: slow enough that the line can be cut in the middle of a recording."""

SHIFTED_CLOCK = """\
import time
_true = time.time
def _shifted():
    with open({path!r}) as file:
        return _true() + float(file.read())
time.time = _shifted
"""
"""sitecustomize.py of every Python of a scene whose wall clock jumps."""


@dataclass(frozen=True)
class Ground:
    """What every fault of a drill stands on."""

    pipeline: Path
    stage: str
    module: str
    steps: int
    examples: int
    every_steps: int
    """Steps from one checkpoint to the next."""
    snapshot: Path
    """A run in mid-training, as a power cut left it just after the second checkpoint."""
    undisturbed: End
    recordings: str
    """Digest of what the download stage delivers."""
    overrides: tuple[str, ...]
    abandoned: threading.Event
    """Set when the drill is interrupted."""


@dataclass(frozen=True)
class Fault:
    """One thing to break."""

    name: str
    text: str
    act: Callable[[Scene, Ground, random.Random], list[str]]
    """Breaks it, sees the run to its end, and returns what did not hold."""
    ended: tuple[Outcome, ...] = (Outcome.SUCCEEDED,)
    """How the attempts from the fault on must have ended."""
    lost_checkpoints: int = 1
    """How many checkpoint intervals it may cost."""
    promise: str = "equal, bit by bit"
    """What holds of the result."""
    fresh: bool = False
    """It begins with an empty folder, and breaks the download."""


def moment(ground: Ground, draw: random.Random) -> int:
    """A step for the fault: after the snapshot, and early enough to have a run left to recover in."""
    return draw.randrange(2 * ground.every_steps + 4, ground.steps * 6 // 10)


def same_end(scene: Scene, ground: Ground) -> list[str]:
    """What is not bit by bit as in the undisturbed run."""
    return scene.end().differences(ground.undisturbed)


# -- processes


def daemon_killed(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """The stage goes on alone, and the next daemon adopts it."""
    step = moment(ground, draw)
    scene.boot()
    scene.reach(step)
    at_work = scene.attempt_pids()
    scene.strike(f"SIGKILL to the daemon at step {step}", scene.kill_daemon)
    alone = scene.reached()
    scene.wait("a step without a daemon", partial(_beyond, scene, alone))
    kept = scene.attempt_pids() == at_work != []
    scene.boot()
    scene.finish()
    if not kept:
        return ["the stage did not work on"]
    scene.remarks.append(f"adopted: the stage worked on as process {at_work[0]}, no attempt was added")
    return same_end(scene, ground)


def stage_killed(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """The stage is started again and ends as it would have."""
    step = moment(ground, draw)
    scene.boot()
    scene.reach(step)
    scene.strike(f"SIGKILL to the stage at step {step}", lambda: scene.signal_stage(signal.SIGKILL))
    scene.finish()
    return same_end(scene, ground)


def stage_stopped(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """The silence is noticed, and the stage ended and started again."""
    step = moment(ground, draw)
    scene.boot()
    scene.reach(step)
    scene.strike(f"SIGSTOP to the stage at step {step}: alive, and silent", lambda: _stop_in_mid_step(scene))
    scene.finish()
    return same_end(scene, ground)


def _stop_in_mid_step(scene: Scene) -> None:
    """Not in a phase that it announced as a long silence: that would not be a hang for a long time."""
    while True:
        scene.signal_stage(signal.SIGSTOP)
        last = scene.events(scene.newest_attempt())[-1]
        if not (isinstance(last, Progress) and last.quiet_s):
            return
        reached = scene.reached()
        scene.signal_stage(signal.SIGCONT)
        scene.wait("the next step", partial(_beyond, scene, reached))


def _beyond(scene: Scene, step: float) -> bool:
    return scene.reached() > step


def power_cut(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """Daemon and stage die at once, in the midst of a step."""
    _cut(scene, ground, draw, "SIGKILL to daemon and stage")
    scene.boot()
    scene.finish()
    return same_end(scene, ground)


def _cut(scene: Scene, ground: Ground, draw: random.Random, what: str) -> None:
    step = moment(ground, draw)
    scene.boot()
    scene.reach(step)
    scene.strike(f"{what} at step {step}", scene.power_cut)


# -- files


def torn_state(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """state.json is cut short at any byte; the copy and the journal make it good."""
    _cut(scene, ground, draw, "power cut")
    path = scene.workspace.state
    size_bytes = path.stat().st_size
    kept_bytes = draw.randrange(size_bytes)
    os.truncate(path, kept_bytes)
    scene.injected.append(f"state.json cut to {kept_bytes} of {size_bytes} bytes")
    scene.boot()
    scene.finish()
    return [*same_end(scene, ground), *([] if scene.told("state.repaired") else ["the journal does not say so"])]


def damaged_checkpoint(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """The newest checkpoint is found out and the one before it taken."""
    _cut(scene, ground, draw, "power cut")
    folder = checkpoint_folders(scene)[-1]
    path = max((file for file in tree_files(folder) if file.name != MANIFEST), key=lambda file: file.stat().st_size)
    bit = draw.randrange(8 * path.stat().st_size)
    flip(path, bit)
    scene.injected.append(f"bit {bit} of {folder.name}/{path.name} flipped")
    scene.boot()
    scene.finish()
    return [*same_end(scene, ground), *([] if scene.told("damaged", folder.name) else ["the damage was not told"])]


def checkpoint_folders(scene: Scene) -> list[Path]:
    """The checkpoints of the stage, oldest first."""
    return sorted(scene.workspace.checkpoints(scene.stage).glob("step-*"))


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        value = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([value ^ 1 << bit % 8]))


def clock_jump(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """Every Python of the scene gets a wall clock that can be set while it runs."""
    folder = scene.root.with_name(f"{scene.root.name}-clock")
    offset = folder / "offset"
    write_atomically(offset, "0")
    write_atomically(folder / "sitecustomize.py", SHIFTED_CLOCK.format(path=str(offset)))
    scene.surroundings["PYTHONPATH"] = str(folder)
    step = min(moment(ground, draw), ground.steps - 5 * ground.every_steps)
    scene.boot()
    scene.reach(step)
    scene.strike(f"the wall clock jumps a day ahead at step {step}", lambda: write_atomically(offset, str(DAY_S)))
    _next_checkpoint(scene, 1)
    scene.injected.append("then two days back")
    write_atomically(offset, str(-DAY_S))
    _next_checkpoint(scene, 1)
    scene.injected.append("then a power cut, and the newest checkpoint looks the oldest")
    scene.power_cut()
    folders = checkpoint_folders(scene)
    for age, folder in enumerate(folders):
        os.utime(folder, (time.time() - age * DAY_S,) * 2)
    scene.boot()
    scene.finish()
    newest = int(folders[-1].name.removeprefix("step-"))
    held = [] if scene.told(f"Resumed from step {newest},") else [f"it did not go on from the newest checkpoint, step {newest}"]
    return [*same_end(scene, ground), *held, *(["a deadline fired"] if scene.told("attempt.hung") else [])]


def _next_checkpoint(scene: Scene, more: int) -> None:
    checkpoints = Checkpoints(scene.workspace.checkpoints(scene.stage))
    step = checkpoints.newest_step() or 0
    scene.wait(f"a checkpoint after step {step}", lambda: (checkpoints.newest_step() or 0) >= step + more)


# -- space and memory


def full_disk(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """Full to the last byte for as long as the stage lives: not even an event or the daemon's state can be written."""
    step = moment(ground, draw)
    ballast = scene.grounds.enter_context(own_disk(scene))
    if ballast is None:
        return _refused_writes(scene, ground, step)
    scene.boot()
    scene.reach(step)

    def full_and_ended() -> bool:
        fill(ballast)
        return not scene.attempt_pids()

    scene.strike(
        f"the disk (a tmpfs) is filled to the last byte at step {step}",
        lambda: scene.wait("the stage to leave a full disk", full_and_ended),
    )
    ballast.unlink()
    scene.injected.append("emptied once the stage has left")
    return _after_the_disk(scene, ground)


def fill(path: Path) -> None:
    """Append to a file until the file system refuses."""
    with contextlib.suppress(OSError), open(path, "ab", buffering=0) as file:
        while file.write(bytes(PAGE_BYTES)):
            pass


def _refused_writes(scene: Scene, ground: Ground, step: int) -> list[str]:
    scene.boot()
    scene.reach(step)
    limit_bytes = max(file.stat().st_size for file in tree_files(checkpoint_folders(scene)[-1])) // 2

    def refuse() -> None:
        for pid in scene.attempt_pids():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    scene.strike(f"from step {step} on, every write beyond {limit_bytes:,} bytes of a file is refused (RLIMIT_FSIZE)", refuse)
    return _after_the_disk(scene, ground)


def _after_the_disk(scene: Scene, ground: Ground) -> list[str]:
    """The stage goes on by itself: at once where it knew how much it needs, else within minutes, which the owner cuts short."""
    scene.wait("Vigil to wait for the disk", lambda: Outcome.DISK_FULL in scene.outcomes())
    status = scene.run().stage(scene.stage).status
    if isinstance(status, BackingOff) and not status.needed_bytes:
        submit(scene.workspace, new_command(CommandKind.RETRY, scene.stage))
        scene.injected.append("and `vigil retry`, not to wait for the next try by itself")
    scene.finish()
    return same_end(scene, ground)


KEEPER = """\
set -e
mkdir "$1.disk"
mount -t tmpfs -o size="$2" vigil-drill "$1.disk"
cp -a "$1/." "$1.disk"
mount --bind "$1.disk" "$1"
echo ready
exec cat
"""
PAGE_BYTES = 4096
DISK_BYTES = 128 << 20
"""And three times what the scene holds. Memory is taken only for what is written."""


@contextlib.contextmanager
def own_disk(scene: Scene) -> Iterator[Path | None]:
    """Put the scene on a tmpfs in a mount namespace of its own, which goes with the block.

    Yields the path of a file to fill it with, or None where neither root nor an unprivileged user namespace can mount.
    """
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    size_bytes = DISK_BYTES + 3 * sum(file.stat().st_size for file in tree_files(scene.root))
    command = ["unshare", *user, "--mount", "sh", "-c", KEEPER, "keeper", str(scene.root), str(size_bytes)]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seen_from_here = Path(f"/proc/{keeper.pid}/root{scene.root}")
    try:
        if not (keeper.stdout and keeper.stdout.readline()):
            yield None
            return
        enter = ("--user", "--preserve-credentials") if user else ()
        scene.within = ("nsenter", *enter, "--mount", f"--target={keeper.pid}", "--")
        scene.workspace = Workspace(seen_from_here)
        yield seen_from_here / "ballast"
        with contextlib.suppress(OSError, shutil.Error):  # kept for whoever looks why it failed
            shutil.copytree(seen_from_here, scene.root, symlinks=True, dirs_exist_ok=True)
    finally:
        keeper.communicate()


# -- the inside of the stage


def out_of_memory(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """The batch is made smaller, and as much is learned."""
    batches = draw.randrange(10, 30)
    what = f"from batch {batches} on, only half of one fits (RLIMIT_AS)"
    _meet(scene, ground, "memory", batches, what, "Out of memory")
    return like_end(scene, ground)


def not_a_number(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """Twice, since its end can be compared with nothing but itself: the learning rate is lowered, an example left out."""
    step = moment(ground, draw)
    what = "the loss of one example is not a number, whenever it is used"
    _meet(scene, ground, "poison", step, what, "diverged")
    again_at = scene.root.with_name(f"{scene.root.name}-again")
    shutil.copytree(ground.snapshot, again_at, symlinks=True)
    with Scene(again_at, ground.pipeline, ground.stage, ground.overrides, ground.abandoned) as again:
        _meet(again, ground, "poison", step, what, "diverged")
        differences = [f"done again, {difference}" for difference in again.end().differences(scene.end())]
    shutil.rmtree(again_at)
    ledger = scene.workspace.scratch(scene.stage) / "ledger.jsonl"
    left_out = {example for line in ledger.read_bytes().splitlines() for example in msgspec.json.decode(line).get("skipped", ())}
    scene.remarks.append(
        f"the ledger names {len(left_out)} of {ground.examples} examples as left out; done again, it ends the same"
    )
    named = [] if len(left_out) == 1 else [f"{len(left_out)} examples were left out for one that was spoilt"]
    return [*like_end(scene, ground), *named, *differences]


def _meet(scene: Scene, ground: Ground, kind: str, at: int, what: str, told: str) -> None:
    """See a run through whose stage makes a fault inside itself; the fault counts from when Vigil has told of it."""
    scene.surroundings["VIGIL_DRILL"] = msgspec.json.encode({"module": ground.module, "kind": kind, "at": at}).decode()
    scene.boot("--through", "stages.drill")
    scene.reach(2 * ground.every_steps + 1)
    scene.strike(what, lambda: scene.wait(what, lambda: scene.told(told)))
    scene.finish()


def like_end(scene: Scene, ground: Ground) -> list[str]:
    """What does not hold of a training that cannot equal the undisturbed one: all of it done, proved, and as good."""
    found, wanted = scene.end().metrics, ground.undisturbed.metrics
    faults = [] if found.get("ledger_exact") == 1.0 else ["the ledger proves nothing"]
    if found.get("steps") != wanted["steps"]:
        faults.append(f"{found.get('steps')} steps instead of {wanted['steps']}")
    gained, wanted_gain = (one["dev_loss_before"] - one["dev_loss_after"] for one in (found, wanted))
    if not gained >= LEARNED_SHARE * max(0.0, wanted_gain):
        faults.append(f"dev loss {found['dev_loss_after']:.3f} where the undisturbed run has {wanted['dev_loss_after']:.3f}")
    scene.remarks.append(f"dev loss {found['dev_loss_after']:.3f}, undisturbed {wanted['dev_loss_after']:.3f}")
    return faults


# -- the network


def dead_network(scene: Scene, ground: Ground, draw: random.Random) -> list[str]:
    """Only the download, from nothing: the training does not need it."""
    port = free_port()
    scene.overrides = (*(one for one in scene.overrides if not one.startswith("download.url=")), f"download.url={feed(port)}")
    recordings = draw.randrange(1, 3)
    with served(port):
        scene.boot("--stage", scene.stage)
        scene.wait("a recording in mid-download", lambda: scene.reached() > recordings)
    scene.strike(
        f"the server is gone in the middle of recording {recordings + 1}",
        lambda: scene.wait("the network to be given up for now", lambda: Outcome.TRANSIENT in scene.outcomes()),
    )
    before = delivered(scene)
    with served(port):
        scene.injected.append("it is back once Vigil waits")
        scene.finish()
    there = delivered(scene)
    wrong = [f"{name} was there and was fetched again" for name, written in before.items() if there.get(name) != written]
    return wrong if recordings_digest(scene) == ground.recordings else [*wrong, "the recordings differ"]


def delivered(scene: Scene) -> dict[str, tuple[int, int]]:
    """Inode and time of every recording in its place: another one of either was written anew."""
    files = scene.workspace.raw_audio.glob("*.flac")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def recordings_digest(scene: Scene) -> str:
    """Digest over names and bytes of the recordings and captions; what the site said of them holds the server's address."""
    files = (file for file in tree_files(scene.workspace.raw_audio) if file.suffix != ".json")
    return " ".join(f"{file.name}:{file_digest(file)}" for file in files)


SERVER = """\
import sys
from pathlib import Path
from daemon.before_leaving.demo_server import Faults, serve
with serve(Path(sys.argv[1]), int(sys.argv[2]), Faults(seconds_per_block=float(sys.argv[3]))):
    print(flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def served(port: int, seconds_per_block: float = SECONDS_PER_BLOCK) -> Iterator[None]:
    """The demo's recordings on a port of this machine; at the end the server is killed, its connections with it."""
    command = [sys.executable, "-P", "-c", SERVER, str(CLIPS), str(port), str(seconds_per_block)]
    server = subprocess.Popen(command, env=surrounded({}), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if not (server.stdout and server.stdout.readline()):
            raise StuckError(f"the server of recordings did not start on port {port}")
        yield
    finally:
        server.kill()
        server.communicate()


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def feed(port: int) -> str:
    """The address of the demo's feed on this machine."""
    return f"http://127.0.0.1:{port}/feed.xml"


GOOD = Outcome.SUCCEEDED
FAULTS = (
    Fault("nan", "a loss that is not a number", not_a_number, (Outcome.DIVERGED, GOOD), 9, "goes on without the example"),
    Fault("stage-stopped", "SIGSTOP to the stage: a hang", stage_stopped, (Outcome.HUNG, GOOD)),
    Fault("full-disk", "no space for the next checkpoint", full_disk, (Outcome.DISK_FULL, GOOD)),
    Fault("clock-jump", "the wall clock jumps a day", clock_jump, (Outcome.INTERRUPTED, GOOD)),
    Fault("dead-network", "the server is gone", dead_network, (Outcome.TRANSIENT, GOOD), promise="the same recordings", fresh=True),
    Fault("stage-killed", "SIGKILL to the stage", stage_killed, (Outcome.CRASHED, GOOD)),
    Fault("power-cut", "SIGKILL to everything at once", power_cut, (Outcome.INTERRUPTED, GOOD)),
    Fault("torn-state", "state.json is cut short", torn_state, ()),
    Fault("damaged-checkpoint", "a bit of the newest one flips", damaged_checkpoint, (Outcome.INTERRUPTED, GOOD), 2),
    Fault("daemon-killed", "SIGKILL to the daemon", daemon_killed),
    Fault("out-of-memory", "half of the memory is gone", out_of_memory, promise="no step lost, as well learned"),
)
"""The longest first: two go on at a time."""

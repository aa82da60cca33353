"""The week away, walked from a fresh clone to the results: prints the transcript that docs/week-away-transcript.md keeps.

    sudo .venv/bin/python -m tests.service.week_away > docs/week-away-transcript.md

Needs root and ../shared/tools/boot-systemd, and a quarter of an hour. The computer is a real systemd that looks like WSL2, with a
disk, a user and a Windows of its own (tests/service/windows_shims). The phone is the strict Bot API server of tests/telegram. Each
command is run as it stands in the transcript; one that does not end as it should ends the walk. `DIFFERS` says what is smaller.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from daemon.before_leaving.demo import CLIPS
from daemon.before_leaving.demo_server import serve
from tests.service.machine import BOOT_SYSTEMD, CHECKOUT, Machine, wait_until
from tests.service.scene import make_windows, snapshot
from tests.telegram.fake_api import BOT_ID, FakeApi, Seen

LIMIT_S = 900.0
WIDTH = 132
DIFFERS = """\
What is smaller here than in `pipelines/seattle.toml`, and what is played:

- six stages with tiny models instead of eleven with the real ones, and so minutes instead of days (`away.toml` below);
- no GPU, and no network but this computer's own: the recordings come from a server beside it, which `download.url` names;
- Windows' tools answer as the real ones do, and remember what they were asked;
- Telegram is a strict Bot API server beside it, named in `telegram.toml` before pairing;
- systemd, the power cut and the boots are real. What only this computer needs is one drop-in of the unit (its boot's own number).
"""
AWAY = """\
name = "Seattle, made small"
deadline = "Tue 08:00"
price_per_kwh = 0.40
currency = "EUR"
keep_free_gb = 1.0
keep_free_windows_gb = 1.0

[[stage]]
name = "download"
title = "Sermon download"
module = "stages.download"
resource = "network"
[stage.settings]
newest = 4
min_duration_s = 2.0

[[stage]]
name = "corpus"
title = "Bible corpus"
module = "stages.corpus"
resource = "cpu"
[stage.settings]
source = "sample"
min_verses = 2000

[[stage]]
name = "evaluate_before"
title = "Baseline evaluation"
module = "stages.evaluate"
needs = ["corpus"]
resource = "gpu"
[stage.settings]
label = "before"
comet_model = ""
min_references = 20
max_references = 40
num_beams = 2
max_new_tokens = 40
models = [{ name = "MarianMT", kind = "marian", model = "models/marian-en-es" }]

[[stage]]
name = "train_marian"
title = "MarianMT training"
module = "stages.train_marian"
needs = ["corpus"]
after = ["evaluate_before"]
resource = "gpu"
[stage.settings]
model = "models/marian-en-es"
max_examples = 3000
epochs = 5
effective_batch = 32
learning_rate = 1e-3
bf16 = false
dev_examples = 64
evaluations = 4
checkpoint_every_s = 5.0

[[stage]]
name = "evaluate_after"
title = "Post-training evaluation"
module = "stages.evaluate"
needs = ["corpus"]
after = ["evaluate_before", "train_marian"]
resource = "gpu"
[stage.settings]
label = "after"
comet_model = ""
min_references = 20
max_references = 40
num_beams = 2
max_new_tokens = 40
models = [{ name = "MarianMT", kind = "marian", model = "fine_tuned_marian_mi", trained_by = "train_marian" }]

[[stage]]
name = "train_gemma_12b"
title = "TranslateGemma 12B QLoRA"
module = "stages.train_gemma"
needs = ["corpus"]
after = ["evaluate_after"]
resource = "gpu"
optional = true
least_share = 0.4
[stage.settings]
model = "models/gemma-tiny-b"
size = "B"
epochs = 1
effective_batch = 16
learning_rate = 5e-3
bf16 = false
dev_examples = 16
evaluations = 2
max_examples = 160
checkpoint_every_s = 20.0
"""
SEES_ITS_BOOT = "[Service]\nBindReadOnlyPaths=/proc/sys/kernel/random/boot_id\n"
PREFLIGHTS_POWERSHELL = """\
# What preflight asks PowerShell for; all else goes to the installer's shim.
import json, os, subprocess, sys
from pathlib import Path

home = Path("/opt/windows")
if not any("ConvertTo-Json" in word for word in sys.argv):
    os.execv(home / "installers" / "powershell.exe", [str(home / "installers" / "powershell.exe"), *sys.argv[1:]])
configs = list(Path("/mnt/c/Users").glob("*/.wslconfig"))
standby = subprocess.run([home / "powercfg.exe", "/query", "SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE"], capture_output=True)
print(json.dumps({
    "tasks": [f"{task.stem}: Ready" for task in (home / "tasks").glob("*.xml")],
    "wslconfig": configs[0].read_text() if configs else "",
    "standby": standby.stdout.decode("cp850"),
}))
"""
ETC = "sudo tar -C / --sort=name --mtime=@0 -cf - etc | sha256sum"


class Walk:
    """One owner at one computer: types, reads, looks at the phone. Everything is printed as Markdown."""

    def __init__(self, machine: Machine, api: FakeApi) -> None:
        self.machine = machine
        self.api = api
        self.shown = 0
        self.pip = [f"{name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]
        self.path = f"/opt/windows:{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self.bare = [(machine_name(machine), "desktop"), (sys.base_prefix, "/usr"), (api.token, "(the token)")]

    def chapter(self, title: str, text: str = "") -> None:
        """A heading, and what it is about."""
        print(f"\n## {title}\n" + (f"\n{text}\n" if text else ""), flush=True)

    def types(self, command: str, *, code: int = 0, head: int = 400, tail: int = 400, keep: str = "") -> str:
        """Run a command line in ~/vigil and print what it says: `head` first and `tail` last lines, of those that `keep` finds."""
        with self.started(command) as process:
            text = self.readable(process.communicate(timeout=LIMIT_S)[0])
        lines = text.splitlines()
        kept = [line for line in lines if re.search(keep, line)]
        self.block(
            f"$ {command}", *shortened(kept, head, tail), *([f"(exit code {process.returncode})"] if process.returncode else [])
        )
        if process.returncode != code:
            raise SystemExit(f"{command}: left with {process.returncode}, not {code}:\n{text}")
        return text

    @contextmanager
    def started(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """A command line at work; `sudo` makes it root's, as sudo does."""
        root = command.startswith("sudo ")
        user = ["SUDO_USER=owner", "HOME=/root"] if root else ["HOME=/home/owner", "USER=owner", *self.pip]
        who = [] if root else ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "--"]
        surroundings = [*user, f"PATH={self.path}", "WINDOWS=/opt/windows", "OMP_NUM_THREADS=1", "PYTHONUNBUFFERED=1"]
        line = f"cd /home/owner/vigil && {command.removeprefix('sudo ')}"
        call = [str(BOOT_SYSTEMD), "run", str(self.machine.folder), *who, "env", *surroundings, "bash", "-c", line]
        with subprocess.Popen(
            call, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def pairs(self, command: str) -> None:
        """`vigil pair`, with the phone at hand: its owner opens the link."""
        with self.started(command) as process:
            assert process.stdout is not None
            said = ""
            while (found := re.search(r"\?start=(\S+)", said)) is None:
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{command}: no link:\n{said}")
                said += line
            self.api.owner.says(f"/start {found[1]}")
            said += process.communicate(timeout=LIMIT_S)[0]
        self.block(f"$ {command}", *self.readable(said).splitlines())
        if process.returncode:
            raise SystemExit(f"{command}: left with {process.returncode}")

    def asks_the_phone(self, text: str) -> None:
        """A question to the bot; it waits for the answer."""
        self.phone()
        before = len(self.api.sent)
        self.api.owner.says(text)
        self.api.wait_for(lambda: len(self.api.sent) > before, 60.0)
        print(f"The owner writes `{text}`.\n")
        self.phone()

    def phone(self) -> None:
        """Print what the phone got since it was looked at last, as it stands now."""
        now = {message.message_id: message for message in self.api.transcript() if message.by == BOT_ID}
        fresh, self.shown = self.api.sent[self.shown :], len(self.api.sent)
        lines = [line for message in fresh for line in on_the_phone(now.get(message.message_id, message))]
        if lines:
            print("On the phone:")
            self.block(*lines)

    def waits(self, what: str, condition: Callable[[], object], limit_s: float = LIMIT_S) -> None:
        """Time passes until something is so."""
        began = time.monotonic()
        wait_until(condition, what, limit_s)
        print(f"*{what} ({time.monotonic() - began:.0f} s).*\n", flush=True)

    def block(self, *lines: str) -> None:
        """Lines as they are."""
        print("```text", *(line.rstrip() for line in lines), "```", sep="\n", end="\n\n", flush=True)

    def readable(self, text: str) -> str:
        """Without what is only this machine's, and cut where a line is too long."""
        for ours, told in self.bare:
            text = text.replace(ours, told)
        lines = (line.rpartition("\r")[2] for line in text.splitlines())
        return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines)


def machine_name(machine: Machine) -> str:
    """Its host name, which boot-systemd makes from the folder."""
    return machine.path("/etc/hostname").read_text().strip()


def shortened(lines: Sequence[str], head: int, tail: int) -> list[str]:
    """The first and the last of them; what was left out is said."""
    left = len(lines) - head - tail
    return list(lines) if left <= 1 else [*lines[:head], f"[... {left} lines]", *lines[len(lines) - tail :]]


def on_the_phone(message: Seen) -> list[str]:
    """A message: how it came, its words, its buttons."""
    how = "silent" if message.silent else "rings"
    kind = "a picture, " if message.photo else f"{message.document_name}, " if message.document else ""
    pinned = ", pinned" if message.pinned else ""
    edited = ", edited" if message.edited_at else ""
    words = [f"    {line}".rstrip() for line in message.text.splitlines()]
    return [
        f"[{kind}{how}{pinned}{edited}]",
        *words,
        *("    " + " ".join(f"[{label}]" for label, _ in row) for row in message.buttons),
    ]


def install_windows(machine: Machine) -> None:
    """The installer's Windows, which the owner may use too, with a PowerShell that answers preflight as well."""
    windows = machine.path("/opt/windows")
    make_windows(windows)
    (windows / "installers").mkdir()
    (windows / "powershell.exe").rename(windows / "installers" / "powershell.exe")
    (windows / "powershell.exe").write_text(f"#!{sys.executable} -IS\n{PREFLIGHTS_POWERSHELL}")
    (windows / "asked.jsonl").touch()
    for path in (windows, *windows.iterdir()):
        path.chmod(0o777)
    machine.path("/mnt/c/Users/Jörg Müller").mkdir(parents=True)


@contextmanager
def computer() -> Iterator[Machine]:
    """A computer with WSL on it: Windows, an owner, and a clone of this checkout's last commit."""
    os.environ["BS_NET"] = "host"  # the feed and the Bot API are servers of this process
    os.environ["BS_BIND"] = os.environ.get("PIP_FIND_LINKS", "")
    with tempfile.TemporaryDirectory(prefix="week-away-") as folder:
        machine = Machine(Path(folder) / "machine", wsl=True)
        machine.create()
        try:
            furnish(machine)
            machine.boot()
            yield machine
        finally:
            machine.destroy()


def furnish(machine: Machine) -> None:
    """What is on its disk before the walk begins."""
    install_windows(machine)
    machine.path("/etc/wsl.conf").write_text("[user]\ndefault=owner\n")
    drop_in = machine.path("/etc/systemd/system/vigil.service.d/boot.conf")
    drop_in.parent.mkdir()
    drop_in.write_text(SEES_ITS_BOOT)
    home = machine.path("/home/owner")
    subprocess.run(["git", "clone", "--quiet", str(CHECKOUT), str(home / "vigil")], check=True)
    (home / "away.toml").write_text(AWAY)
    subprocess.run(["chown", "-R", "1234:1234", str(home)], check=True)


# -- the chapters


def set_up(walk: Walk) -> None:
    walk.chapter("Monday: set up", "A clone, the first call, the models, the pipeline of the trip.")
    walk.types("git -C ~/vigil log -1 --format='a clone of %s'", keep="^")
    walk.types("./vigil setup", keep=r"^vigil: (\[\d/\d\] .* s\b(?!:)|[^\[])", head=12, tail=4)
    walk.types("mkdir -p ~/week && .venv/bin/python -P -m stages.tiny ~/week/models 2>/dev/null", head=3, tail=3)
    walk.types("cat ~/away.toml")


def look_ahead(walk: Walk, feed: str) -> None:
    walk.chapter("Tuesday: is everything there?")
    walk.types(f"./vigil preflight ~/away.toml --workspace ~/week --set download.url={feed}", code=1)
    walk.types(f"./vigil fetch ~/away.toml --workspace ~/week --set download.url={feed}")


def rehearse(walk: Walk, feed: str) -> None:
    walk.chapter("Wednesday: the rehearsal", "Every stage once, each killed in the middle and resumed.")
    walk.types(f"./vigil rehearse ~/away.toml --workspace ~/week --set download.url={feed}")


def pair(walk: Walk) -> None:
    walk.chapter(
        "Wednesday: the phone", "`telegram.toml` names the Bot API server beside this computer; else pairing writes it all."
    )
    settings = walk.machine.make_folder("/home/owner/.config/vigil")
    os.chown(settings.parent, 1234, 1234)
    for name, text in {
        "telegram.toml": f'base_url = "{walk.api.url}"\nquiet_hours = ""\ntime_zone = "UTC"\n',
        "token": walk.api.token,
    }.items():
        (settings / name).write_text(text)
        (settings / name).chmod(0o600)
        os.chown(settings / name, 1234, 1234)
    walk.pairs("./vigil pair --token-file ~/.config/vigil/token")
    walk.phone()


def drill(walk: Walk) -> None:
    walk.chapter("Thursday: break it on purpose", "One of the eleven faults; without `--only` all of them.")
    walk.types("./vigil drill --quick --only power-cut")


def install(walk: Walk, feed: str) -> None:
    walk.chapter("Thursday: the service")
    told = f"--pipeline /home/owner/away.toml \\\n    --workspace /home/owner/week --set download.url={feed}"
    walk.types(f"sudo ./install_wsl_service.sh install --dry-run {told}", head=30, tail=30)
    walk.types(ETC)
    walk.types(f"sudo ./install_wsl_service.sh install --yes {told}")
    walk.types("sudo ./install_wsl_service.sh verify")
    walk.types(f"./vigil preflight --workspace ~/week --set download.url={feed}", head=60, tail=60)


def leave(walk: Walk) -> None:
    walk.chapter("Thursday evening: it is at work, leave")
    walk.types("systemctl status vigil --no-pager --lines=0")
    walk.types("./vigil status --workspace ~/week")
    walk.phone()


def power_cut(walk: Walk) -> None:
    walk.chapter("Friday: a power cut in the middle of a training", "SIGKILL of the whole machine at once; then it is switched on.")
    week = walk.machine.path("/home/owner/week")
    walk.waits("the training has saved its first checkpoint", lambda: list(week.glob("stages/train_marian/checkpoints/step-*")))
    walk.asks_the_phone("/status")
    walk.machine.powercut()
    print("*The power is cut. Nobody is there. It comes back.*\n")
    walk.machine.boot()
    walk.waits(
        "the training is at work again, by itself", lambda: (week / "stages/train_marian/attempts/002/events.jsonl").exists()
    )
    walk.types("uptime -p; systemctl is-active vigil")
    walk.types("./vigil status --workspace ~/week")


def away(walk: Walk) -> None:
    walk.chapter("While away: what the phone says")
    show = walk.machine.show
    walk.waits("the run goes to its end", lambda: show("vigil", "ActiveState") in ("inactive", "failed"))
    walk.phone()


def come_back(walk: Walk) -> None:
    walk.chapter("Tuesday: coming back")
    walk.types("sudo ./install_wsl_service.sh status")
    walk.types("./vigil status --workspace ~/week")
    walk.types("./vigil log --workspace ~/week", head=10, tail=30)
    walk.types("./vigil report --workspace ~/week")
    walk.types("./vigil accounts --workspace ~/week")
    walk.types("./vigil bundle --workspace ~/week --out ~/results")
    walk.types("cd ~/results && sha256sum --quiet -c SHA256SUMS && echo every sum is right")


def uninstall(walk: Walk) -> None:
    walk.chapter("Take it back")
    walk.types("sudo ./install_wsl_service.sh uninstall --yes")
    walk.types(ETC)


def main() -> None:
    """The whole walk."""
    if os.geteuid() != 0 or not BOOT_SYSTEMD.exists():
        raise SystemExit(f"the walk needs root, and {BOOT_SYSTEMD}")
    with ExitStack() as stack:
        api, machine = stack.enter_context(FakeApi()), stack.enter_context(computer())
        feed = stack.enter_context(serve(CLIPS)).feed_url
        walk = Walk(machine, api)
        print(f"# A week away: the transcript\n\nPrinted by `python -m tests.service.week_away`.\n{DIFFERS}")
        set_up(walk)
        before = snapshot(machine.path("/etc"))
        look_ahead(walk, feed)
        rehearse(walk, feed)
        pair(walk)
        drill(walk)
        install(walk, feed)
        leave(walk)
        power_cut(walk)
        away(walk)
        come_back(walk)
        uninstall(walk)
        if snapshot(machine.path("/etc")) != before:
            raise SystemExit("/etc is not what it was")


if __name__ == "__main__":
    main()

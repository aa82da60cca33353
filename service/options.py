"""What the owner asks for: the command line, what an earlier installation was told, and questions for the rest."""

from __future__ import annotations

import argparse
import os
import pwd
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

EX_USAGE = 2
EX_TRY_AGAIN = 75
EX_NO_PERMISSION = 77
EX_MISCONFIGURED = 78

PARTS = ("wslconfig", "task", "power")
QUESTIONS = {
    "wslconfig": "Set .wslconfig so that WSL does not stop when it is idle?",
    "task": "Register a scheduled task that starts WSL with Windows and keeps it?",
    "power": "Forbid Windows to sleep and to hibernate on mains power?",
}
LEAVES = {"wslconfig": ".wslconfig as it is", "task": "out the scheduled task", "power": "sleep and hibernation as they are"}
ABOUT = """\
Makes Vigil a service of this machine, so that a run goes on by itself after
anything. Everything is shown, and uninstall gives every byte back.
"""
EPILOG = """\
exit codes: 0 well; 1 something is left to do or not in order; 2 a bad call;
75 try again; 77 needs root; 78 the pipeline file or a setting is wrong
"""


class InstallError(Exception):
    """It cannot be done like this; `code` becomes the exit status, the text says why and what to do."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Options:
    """What is installed. All but the token is remembered for the next call."""

    pipeline: str = ""
    workspace: str = ""
    user: str = ""
    set: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    logon: str = "s4u"
    memory_gb: int | None = None
    swap_gb: int | None = None
    has_token: bool = False
    token_file: str = ""


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    whole = argparse.ArgumentParser(
        prog="install_wsl_service.sh",
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True)
    own = verbs.add_parser("install", help="install, or bring up to date; repeat it freely", allow_abbrev=False)
    _add_install(own)
    own = verbs.add_parser("uninstall", help="stop the service and give every byte back", allow_abbrev=False)
    _add_both(own)
    verbs.add_parser("status", help="what is installed, what differs, what is active", allow_abbrev=False)
    verbs.add_parser("verify", help="check everything; exit 1 where something is not in order", allow_abbrev=False)
    return whole


def _add_both(own: argparse.ArgumentParser) -> None:
    own.add_argument("--dry-run", action="store_true", help="show every write and every Windows command; do nothing")
    own.add_argument("--yes", action="store_true", help="ask nothing")


def _add_install(own: argparse.ArgumentParser) -> None:
    _add_both(own)
    own.add_argument("--pipeline", metavar="FILE", help="such as pipelines/seattle.toml")
    own.add_argument("--workspace", metavar="DIR", help="the folder of the run; made if it is missing")
    own.add_argument("--user", metavar="NAME", help="who the service runs as (who called sudo, else whose clone this is)")
    own.add_argument(
        "--token-file", metavar="FILE", help="the Telegram bot's token, for a machine where `vigil pair` has not put it"
    )
    own.add_argument("--set", metavar="STAGE.KEY=VALUE", action="append", help="as of `vigil run`; may be repeated")
    own.add_argument(
        "--environment", metavar="NAME=VALUE", action="append", help="a variable of the service, such as HF_HOME=/data/hf"
    )
    for part in PARTS:
        own.add_argument(f"--without-{part}", dest="without", action="append_const", const=part, help=f"leave {LEAVES[part]}")
    own.add_argument("--without-windows", dest="without", action="append_const", const="windows", help="change nothing of Windows")
    own.add_argument("--logon", choices=("s4u", "password"), help="how the scheduled task logs on (s4u: no password is stored)")
    own.add_argument("--memory-gb", type=int, metavar="N", help="of WSL (Windows keeps a fifth)")
    own.add_argument("--swap-gb", type=int, metavar="N", help="of WSL (half of the memory)")


def combine(args: argparse.Namespace, answers: Mapping[str, Any], root: Path, environ: Mapping[str, str]) -> Options:
    """The call laid over the answers of an earlier installation, and those over the defaults."""
    chosen = Options(user=environ.get("SUDO_USER") or _owner_of(root))
    chosen = replace(chosen, **_known(answers))
    given = _known(vars(args))
    if "without" in given:
        given["without"] = PARTS if "windows" in given["without"] else tuple(part for part in PARTS if part in given["without"])
    chosen = replace(chosen, **given)
    return replace(chosen, has_token=chosen.has_token or bool(chosen.token_file))


def combine_answers(answers: Mapping[str, Any]) -> Options:
    """What was installed."""
    return replace(Options(), **_known(answers))


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(Options)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in names and value is not None
    }


def remembered(options: Options) -> dict[str, Any]:
    """What the manifest keeps."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in asdict(options).items() if name != "token_file"
    }


def ask_for_the_rest(options: Options, *, wsl: bool) -> Options:
    """Ask what is open. The answers of before are the defaults."""
    options = replace(
        options,
        pipeline=_ask("Pipeline file", options.pipeline),
        workspace=_ask("Folder of the run", options.workspace or str(Path.home() / "vigil-run")),
        user=_ask("The service runs as", options.user),
    )
    if wsl:
        without = [part for part in PARTS if not yes(QUESTIONS[part], part not in options.without)]
        options = replace(options, without=tuple(without))
    return options


def settle(options: Options) -> Options:
    """Absolute paths.

    Raises:
        InstallError: something that nobody can guess is missing.
    """
    for name in ("pipeline", "workspace"):
        if not getattr(options, name):
            raise InstallError(EX_USAGE, f"--{name} is missing: give --yes --pipeline FILE --workspace DIR, or leave --yes out")
    token = str(Path(options.token_file).expanduser().absolute()) if options.token_file else ""
    return replace(options, pipeline=_absolute(options.pipeline), workspace=_absolute(options.workspace), token_file=token)


def yes(question: str, default: bool) -> bool:
    """A yes or a no of the owner's."""
    return re.match("[yYjJsS]", _ask(f"{question} [{'Y/n' if default else 'y/N'}]", "", "y" if default else "n")) is not None


def _ask(question: str, shown: str, default: str = "") -> str:
    try:
        return input(f"{question}{f' [{shown}]' if shown else ''}: ").strip() or shown or default
    except EOFError:
        raise InstallError(EX_USAGE, "nobody answers here: give --yes with --pipeline FILE and --workspace DIR") from None


def _absolute(text: str) -> str:
    return os.path.normpath(Path(text).expanduser().absolute())


def _owner_of(path: Path) -> str:
    try:
        return pwd.getpwuid(path.stat().st_uid).pw_name
    except KeyError:
        return "root"

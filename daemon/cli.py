"""The command line: one function per subcommand, each returning its exit code. Heavy imports wait inside them.

Exit codes: 0 well; 1 a required stage failed, or a command was refused; 2 a bad call; 70 a fault of Vigil's own; 73 the
workspace cannot be written; 74 its state cannot be read; 75 busy, or not answered yet; 78 a bad pipeline file; 82 disk full; 83
stopped before the end, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from state.contract import CommandKind, ExitCode
from state.durable import write_atomically
from state.workspace import Workspace

EX_USAGE = 2
EX_SOFTWARE = 70  # sysexits.h, as the next three
EX_CANNOT_CREATE = 73
EX_IO_ERROR = 74
EX_BUSY = 75

DEFAULT_WORKSPACE = "run"
DEMO_WORKSPACE = "demo-run"
ANSWER_WAIT_S = 10.0
FOLLOW_S = 0.5

HELP = """\
Keeps a training run of many days alive while nobody is at home, and tells
what it did. The workspace is the folder of one run: --workspace DIR, else
$VIGIL_WORKSPACE, else ./run (the demo: ./demo-run).
"""
EXITS = """\
exit codes of run and demo:
   0  no required stage failed          1  a required stage failed
  73  the workspace cannot be written  74  its saved state cannot be read
  75  another daemon holds it          78  the pipeline file is wrong
  82  the disk is full                 83  stopped; the same command goes on
   2  a bad call                        70  a fault of Vigil's own
"""


class BadCallError(Exception):
    """What was asked cannot be done as it was asked; the message says how."""


# -- subcommands


def run(args: argparse.Namespace) -> int:
    """Run a pipeline to its end, or go on with it."""
    from daemon import config, logs, supervisor

    path = Path(args.pipeline).resolve()
    pipeline = config.load(path, args.set)
    workspace = _workspace(args)
    prepare_workspace(workspace)
    logs.set_up(workspace, sys.stderr)
    code = supervisor.watch_over(workspace, pipeline, path, with_bot=True)
    say_end(workspace, code)
    return code


def demo(args: argparse.Namespace) -> int:
    """Show the whole pipeline with tiny models, in minutes."""
    from daemon.before_leaving.demo import demo as show

    return show(_workspace(args, DEMO_WORKSPACE), fresh=args.fresh, overrides=args.set, with_telegram=args.telegram)


def drill(args: argparse.Namespace) -> int:
    """Break a small run in every way that Vigil promises to survive."""
    from daemon.before_leaving.drill import drill as break_things
    from daemon.before_leaving.drill_plan import plan

    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal too: the drill's daemons must not outlive it
        signal.signal(number, _leave_quietly)
    folder = None if args.workspace is None else Path(args.workspace)
    planned = plan(Path(args.pipeline).resolve() if args.pipeline else None, args.stage, args.set)
    return break_things(planned, folder, quick=args.quick, seed=args.seed, only=args.only, as_json=args.json, columns=_columns())


def rehearse(args: argparse.Namespace) -> int:
    """Try every stage of a pipeline on a few items, and say whether the owner can leave."""
    import shlex

    from daemon import config
    from daemon.before_leaving.rehearse import rehearse as try_out

    path = Path(args.pipeline).resolve()
    pipeline = config.load(path, args.set)
    workspace = _workspace(args)
    given = [part for override in args.set for part in ("--set", override)]
    again = shlex.join(["./vigil", "rehearse", args.pipeline, "--workspace", str(workspace.root), *given])
    return try_out(workspace, pipeline, path, only=args.stage, again=again, as_json=args.json, columns=_columns())


def status(args: argparse.Namespace) -> int:
    """Say how far every stage is."""
    from daemon import host, report, scores, view
    from state import forecast

    workspace = _workspace(args)
    seen = view.read(workspace)
    machine = msgspec.to_builtins(host.read_host(workspace))
    if args.json:
        _print_json(report.status_object(seen, machine, time.time(), forecast.latest(workspace)))
    else:
        said = [scores.briefly(sentence) for _model, sentence in scores.verdicts(scores.read(workspace.eval_results))]
        plan = forecast.latest(workspace)
        _print(report.status_lines(seen, machine, time.time(), columns=_columns(), forecast=plan, verdicts=said))
    return 0


def watch(args: argparse.Namespace) -> int:
    """Show the run as it goes."""
    from daemon.watch import watch as show

    signal.signal(signal.SIGTERM, _leave_quietly)
    return show(_workspace(args), wait_for_daemon_s=args.wait)


def log(args: argparse.Namespace) -> int:
    """Print the journal, or the output of a stage's newest attempt."""
    from daemon import report, view

    workspace = _workspace(args)
    seen = view.read(workspace)
    if args.stage is None:
        facts = [fact for fact in seen.facts if fact.level != "debug"][-args.lines :]
        _print([msgspec.json.encode(fact).decode() if args.json else report.fact_line(fact) for fact in facts])
        if args.follow:
            _follow_facts(workspace, {fact.id for fact in seen.facts}, as_json=args.json)
        return 0
    stage = next((stage.state for stage in seen.stages if stage.config.name == args.stage), None)
    if stage is None:
        raise BadCallError(f"no stage is called {args.stage!r}; there are {', '.join(s.config.name for s in seen.stages)}")
    if not stage.attempts:
        print(f"{args.stage} has not started yet.", file=sys.stderr)
    else:
        _print(view.tail_lines(workspace.attempt(args.stage, stage.attempts[-1].number).output, args.lines))
    if args.follow:
        _follow_output(workspace, args.stage)
    return 0


def skip(args: argparse.Namespace) -> int:
    """Leave a stage out."""
    return _ask(args, CommandKind.SKIP)


def retry(args: argparse.Namespace) -> int:
    """Try a failed, skipped or waiting stage again."""
    return _ask(args, CommandKind.RETRY)


def pause(args: argparse.Namespace) -> int:
    """Checkpoint what runs and start nothing new."""
    return _ask(args, CommandKind.PAUSE)


def resume(args: argparse.Namespace) -> int:
    """Go on after a pause."""
    return _ask(args, CommandKind.RESUME)


def stop(args: argparse.Namespace) -> int:
    """Let the stages checkpoint and end the daemon."""
    from daemon import view

    if view.daemon_alive(_workspace(args)) is False:  # a queued stop would end the next run as it begins
        view.read(_workspace(args))
        text = "Vigil is not running here: there is nothing to stop."
        if args.json:
            _print_json({"id": None, "ok": True, "text": text})
        else:
            print(text)
        return 0
    return _ask(args, CommandKind.STOP)


def report(args: argparse.Namespace) -> int:
    """Write report/index.html and report/report.md."""
    from daemon.report import page_lines
    from daemon.results import page

    if args.quiet:  # the daemon asks, beside a training
        os.nice(10)
    workspace = _workspace(args)
    written = page.write(workspace)
    if args.json:
        _print_json({"html": str(written.html), "markdown": str(written.markdown)})
    elif not args.quiet:
        _print([*written.table, "", *page_lines(written.html, os.environ)])
    return 0


def accounts(args: argparse.Namespace) -> int:
    """Say where the hours and the energy went, and what each failure cost."""
    from daemon import accounts, energy, view

    workspace = _workspace(args)
    seen = view.read(workspace)
    found, used = accounts.read(workspace, seen, time.time()), energy.read(workspace, seen.run.pipeline)
    if args.json:
        _print_json({**dataclasses.asdict(found), "energy": [dataclasses.asdict(one) for one in used]})
    else:
        _print([*accounts.lines(found, columns=_columns()), "", *energy.lines(used, seen.run.pipeline)])
    return 0


def bundle(args: argparse.Namespace) -> int:
    """Gather what the run has brought into one folder that can be verified, and bring it to another machine."""
    from daemon import view
    from daemon.results import bundle
    from daemon.results.carrier import Carrier

    workspace = _workspace(args)
    carrier = Carrier.to(args.to, args.ssh) if args.to else None
    folder = workspace.inside(bundle.FOLDER) if args.out is None else Path(args.out).expanduser().resolve()
    seen = view.read(workspace)
    try:
        made = bundle.assemble(workspace, seen, folder, time.time(), with_audio=args.with_audio, say=_show_bytes)
        _print([*bundle.summary_lines(made, _columns()), f"Every file is verified in {folder}"])
        if carrier is not None:
            mended = carrier.ship(folder, made, _show_bytes)
            again = f" ({len(mended)} sent again, since they differed)" if mended else ""
            _print([f"Every file is verified at {carrier.shown}{again}"])
    except KeyboardInterrupt:
        raise bundle.BundleError("interrupted; the same command goes on where this one stopped") from None
    except OSError as error:
        raise bundle.BundleError(f"{folder} cannot be written: {error}; mend that, then give the same command again") from error
    return 0


def plot(args: argparse.Namespace) -> int:
    """Draw the loss of a stage, or the scores."""
    from daemon import scores, view
    from daemon.results import plots

    workspace = _workspace(args)
    if args.scores:
        rows = scores.overall(scores.read(workspace.eval_results))
        if not rows:
            raise BadCallError("nothing was scored yet: there is nothing to draw")
        write_atomically(Path(args.out), plots.score_picture(rows))
        return 0
    if not args.stage:
        raise BadCallError("name a STAGE, or say --scores")
    history = [attempt for attempt in view.read_history(workspace, view.read(workspace).run) if attempt.stage == args.stage]
    shown = plots.training(history)
    if shown is None:
        raise BadCallError(f"{args.stage!r} has told no loss: there is nothing to draw")
    write_atomically(Path(args.out), plots.picture(args.stage, shown))
    return 0


def pair(args: argparse.Namespace) -> int:
    """Set up the Telegram bot."""
    from daemon.phone.pairing import pair as introduce

    workspace = None if args.workspace is None else Workspace.at(args.workspace)
    return introduce(workspace, None if args.token_file is None else Path(args.token_file))


def preflight(args: argparse.Namespace) -> int:
    """Look whether everything is there for a week away."""
    from daemon.before_leaving.preflight import preflight as look

    path = Path(args.pipeline) if args.pipeline else None
    return look(_workspace(args), path, args.set, quick=args.quick, as_json=args.json, columns=_columns())


def fetch(args: argparse.Namespace) -> int:
    """Bring every model that the pipeline names into the cache."""
    from daemon import config
    from daemon.before_leaving.fetch import fetch as bring
    from daemon.before_leaving.preflight import overrides_with_unset

    path = Path(args.pipeline)
    return bring(_workspace(args), config.load(path, overrides_with_unset(path, args.set)), as_json=args.json)


def corpus(args: argparse.Namespace) -> int:
    """Build the verse pairs, the test set and the glossary from a folder of Bible texts."""
    from bible_data.build import Options, build
    from bible_data.manifest import explain as account

    given = {name: getattr(args, name) for name in ("english", "spanish", "min_verses") if getattr(args, name) is not None}
    manifest = build(Path(args.source), Path(args.out), Options(**given), progress=_show_progress)
    sys.stdout.write(manifest.encode().decode() if args.json else account(manifest))
    return 0


def setup(args: argparse.Namespace) -> int:
    """The launcher sets up before Python starts; here there is nothing left to do."""
    raise BadCallError("set-up is done by the launcher of a clone: ./vigil setup")


# -- what they share


def _workspace(args: argparse.Namespace, default: str = DEFAULT_WORKSPACE) -> Workspace:
    return Workspace.at(args.workspace or os.environ.get("VIGIL_WORKSPACE") or default)


def prepare_workspace(workspace: Workspace) -> None:
    """Make the workspace and prove that it can be written, before anything else is tried.

    Raises:
        OSError: it cannot.
    """
    workspace.root.mkdir(parents=True, exist_ok=True)
    probe = workspace.logs / ".writable"
    write_atomically(probe, f"{os.getpid()}\n")
    probe.unlink()


def say_end(workspace: Workspace, code: int) -> None:
    """Print how the run ended, its outputs, the scores and where the report is."""
    from daemon import report, scores, view

    with contextlib.suppress(FileNotFoundError):
        state = view.read(workspace).run
        print()
        if code == ExitCode.STOPPED:
            print("Stopped before the end; what is done is kept. The same command goes on from here.")
            return
        table = scores.text_table(scores.read(workspace.eval_results), columns=_columns())
        _print([report.summary(state, view.results(workspace, state)), *(["", *table] if table else [])])
        page = workspace.report / "index.html"
        if page.exists():
            _print(["", *report.page_lines(page, os.environ)])


def _ask(args: argparse.Namespace, kind: CommandKind) -> int:
    from daemon import report, view
    from daemon.inbox import new_command, submit

    workspace = _workspace(args)
    view.read(workspace)  # a folder that holds no run takes no commands
    command = new_command(kind, getattr(args, "stage", None), now=getattr(args, "now", False))
    alive = view.daemon_alive(workspace)
    answer = submit(workspace, command, ANSWER_WAIT_S if alive else 0.0)
    if args.json:
        _print_json({"id": command.id, "ok": answer.ok if answer else None, "text": answer.text if answer else "queued"})
    else:
        asked = " ".join(filter(None, (str(kind), command.stage)))
        _print(report.answer_lines(asked, answer.ok if answer else None, answer.text if answer else "", alive))
    return EX_BUSY if answer is None else 0 if answer.ok else 1


def _follow_facts(workspace: Workspace, told: set[str], *, as_json: bool) -> None:
    from daemon import report, view

    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(FOLLOW_S)
            for fact in view.read(workspace).facts:
                if fact.id not in told and fact.level != "debug":
                    _print([msgspec.json.encode(fact).decode() if as_json else report.fact_line(fact)])
                told.add(fact.id)


def _follow_output(workspace: Workspace, stage: str) -> None:
    """Print what the newest attempt of `stage` writes, going over to the next attempt when there is one, until Ctrl-C."""
    from daemon import view

    offsets: dict[Path, int] = {}
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            attempts = view.read(workspace).run.stage(stage).attempts
            path = workspace.attempt(stage, attempts[-1].number).output if attempts else None
            if path is not None and path.exists():
                if path not in offsets:
                    offsets[path] = path.stat().st_size if not offsets else 0
                with open(path, "rb") as file:
                    file.seek(offsets[path])
                    fresh = file.read()
                offsets[path] += len(fresh)
                sys.stdout.write(fresh.decode("utf-8", "replace"))
                sys.stdout.flush()
            time.sleep(FOLLOW_S)


def _show_progress(done: int, total: int, message: str) -> None:
    """One line that rewrites itself, on a terminal only."""
    if sys.stderr.isatty():
        end = "" if done < total else "\n"
        sys.stderr.write(f"\r\x1b[K{message} ({done} of {total}){end}")
        sys.stderr.flush()


def _show_bytes(done_bytes: int, total_bytes: int, what: str) -> None:
    """One line that rewrites itself, on a terminal only; gone when all is done."""
    from daemon.results.bundle import progress_line

    if sys.stderr.isatty():
        shown = progress_line(done_bytes, total_bytes, what, _columns()) if done_bytes < total_bytes else ""
        sys.stderr.write(f"\r\x1b[K{shown}")
        sys.stderr.flush()


def _columns() -> int:
    """Columns of the terminal; 80 where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return 80


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    sys.stdout.flush()


def _leave_quietly(_number: int, _frame: object) -> None:
    raise SystemExit(0)


# -- the call


def parser() -> argparse.ArgumentParser:
    """What can be typed."""
    whole = argparse.ArgumentParser(
        prog="vigil", description=HELP, epilog=EXITS, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)

    def command(name: str, act: Callable[[argparse.Namespace], int], text: str, *, json: str = "") -> argparse.ArgumentParser:
        own = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        own.add_argument("--workspace", metavar="DIR", help="the folder of the run (see `vigil --help`)")
        if json:
            own.add_argument("--json", action="store_true", help=json)
        own.set_defaults(act=act)
        return own

    own = command("demo", demo, "the whole pipeline with tiny models, in minutes")
    own.add_argument("--fresh", action="store_true", help="remove the demo's earlier run and start over")
    own.add_argument("--telegram", action="store_true", help="let the paired bot follow it (see `vigil pair`)")
    _add_overrides(own)
    own = command("run", run, "run a pipeline file to its end, or go on with it")
    own.add_argument("pipeline", metavar="PIPELINE", help="such as pipelines/seattle.toml")
    _add_overrides(own)
    own = command("rehearse", rehearse, "try every stage on a few items before you leave", json="print one object")
    own.add_argument("pipeline", metavar="PIPELINE", help="such as pipelines/seattle.toml")
    _add_overrides(own)
    own.add_argument("--stage", metavar="STAGE", action="append", default=[], help="only this and what it needs; may be repeated")
    _add_drill(command("drill", drill, "break a small run in every way and see it recover", json="print one object"))
    command("status", status, "how far every stage is", json="print one object (docs/status-json.md)")
    own = command("watch", watch, "the run as it goes, with progress bars")
    own.add_argument("--wait", type=float, default=0.0, metavar="SECONDS", help="give a run that is just starting time to appear")
    own = command("log", log, "the journal, or the output of one stage", json="one fact a line, as JSON")
    own.add_argument("stage", nargs="?", metavar="STAGE")
    own.add_argument("-n", "--lines", type=_count, default=40, metavar="N", help="the last N lines (40)")
    own.add_argument("-f", "--follow", action="store_true", help="go on as more is written, until Ctrl-C")
    _add_wishes(command)
    own = command("report", report, "write report/index.html and report/report.md", json="print the paths")
    own.add_argument("--quiet", action="store_true", help="print nothing")
    _add_return(command)
    _add_plot(command("plot", plot, "draw the loss of a stage, or the scores, as a picture"))
    _add_pair(command("pair", pair, "set up the Telegram bot, in two minutes"))
    _add_before_leaving(command)
    _add_corpus(command("corpus", corpus, "build verse pairs, test set and glossary", json="print the manifest"))
    command("setup", setup, "install or repair the environments (done by ./vigil)")
    return whole


DRILL = """\
Runs Vigil's own small pipeline (pipelines/drill.toml) in a scratch folder, on
the CPU, breaks it in every way that Vigil promises to survive, and compares
each end with the undisturbed run's. Exit code 0 only if all held. With PIPELINE
it is a training stage of your own and what that needs, cut down to a hundred
steps; it cannot be one that needs the network. The scratch folder is made in --workspace (or
the system's temporary folder), removed when all held, and kept and named when
not. Without --quick each fault strikes three times, at different moments.
"""


def _add_drill(own: argparse.ArgumentParser) -> None:
    own.description, own.formatter_class = DRILL, argparse.RawDescriptionHelpFormatter
    own.add_argument("pipeline", nargs="?", metavar="PIPELINE", help="a pipeline file of your own")
    own.add_argument("--stage", metavar="STAGE", help="its training stage; the first that does without the network")
    _add_overrides(own)
    own.add_argument("--quick", action="store_true", help="each fault once, in under four minutes on two cores")
    own.add_argument("--seed", type=int, metavar="N", help="the same faults at the same steps as another drill")
    own.add_argument("--only", action="append", default=[], metavar="FAULT", help="such as power-cut; may be repeated")


def _add_wishes(command: Callable[..., argparse.ArgumentParser]) -> None:
    own = command("skip", skip, "leave a stage out; its checkpoints are kept", json="print the answer")
    own.add_argument("stage", metavar="STAGE")
    own.add_argument("--now", action="store_true", help="do not wait for the next safe point")
    own = command("retry", retry, "try a failed, skipped or waiting stage again", json="print the answer")
    own.add_argument("stage", metavar="STAGE")
    command("pause", pause, "checkpoint what runs and start nothing new", json="print the answer")
    command("resume", resume, "go on after a pause", json="print the answer")
    command("stop", stop, "let the stages checkpoint and end; `run` goes on later", json="print the answer")


def _add_return(command: Callable[..., argparse.ArgumentParser]) -> None:
    command("accounts", accounts, "where the hours and the energy went, and what each failure cost", json="print one object")
    own = command("bundle", bundle, "gather the results in one verified folder, here or over there")
    where = own.add_mutually_exclusive_group()
    where.add_argument("--to", metavar="USER@HOST:PATH", help="send it there by ssh, and have it verified there")
    where.add_argument("--out", metavar="FOLDER", help="make it there; else in the run's own folder, where it takes little space")
    own.add_argument("--with-audio", action="store_true", help="the recordings too")
    own.add_argument("--ssh", default="ssh", metavar="COMMAND", help="such as 'ssh -p 2222'")


def _add_plot(own: argparse.ArgumentParser) -> None:
    own.add_argument("stage", nargs="?", metavar="STAGE")
    own.add_argument("--scores", action="store_true", help="the scores before and after instead")
    own.add_argument("--out", required=True, metavar="FILE", help="where the PNG goes")


def _add_before_leaving(command: Callable[..., argparse.ArgumentParser]) -> None:
    own = command("preflight", preflight, "is everything there for a week away?", json="print the findings")
    own.add_argument("pipeline", nargs="?", metavar="PIPELINE", help="such as pipelines/seattle.toml; else that of the run")
    own.add_argument("--quick", action="store_true", help="leave out what takes long, and the message to the chat")
    _add_overrides(own)
    own = command("fetch", fetch, "bring the pipeline's models into the cache", json="print what became of each")
    own.add_argument("pipeline", metavar="PIPELINE", help="such as pipelines/seattle.toml")
    _add_overrides(own)


def _add_pair(own: argparse.ArgumentParser) -> None:
    own.add_argument("--token-file", metavar="FILE", help="read BotFather's token from there instead of asking for it")


def _add_corpus(own: argparse.ArgumentParser) -> None:
    own.add_argument("--source", required=True, metavar="DIR", help="texts in the layout of scrollmapper/bible_databases")
    own.add_argument("--out", required=True, metavar="DIR", help="where the corpus goes")
    own.add_argument("--english", type=_names, metavar="A,B", help="English texts (KJV,ASV,BBE,YLT,NHEB)")
    own.add_argument("--spanish", type=_names, metavar="A,B", help="Spanish texts (SpaRV,SpaRV1865)")
    own.add_argument("--min-verses", type=_count, metavar="N", help="refuse a text with fewer verses (20000)")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    wanted = "lay a setting over the file's; may be repeated"
    parser.add_argument("--set", metavar="STAGE.KEY=VALUE", action="append", default=[], type=_override, help=wanted)


def _override(text: str) -> str:
    path, equals, _value = text.partition("=")
    stage, dot, key = path.partition(".")
    if not (stage and dot and key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE.KEY=VALUE, such as download.url=https://example.org/playlist")
    return text


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Do what `argv` asks and return the exit code; every expected failure is one sentence on standard error."""
    args = parser().parse_args(argv)
    try:
        code: int = args.act(args)
    except BrokenPipeError:  # `vigil log | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        code, text = explain(error, args)
        print(f"vigil: {text}", file=sys.stderr)
    return code


CODES = {
    "BadCallError": EX_USAGE,
    "StateUnreadableError": EX_IO_ERROR,
    "ConfigError": ExitCode.MISCONFIGURED,
    "WorkspaceMismatchError": ExitCode.MISCONFIGURED,
    "WorkspaceBusyError": EX_BUSY,
    "PreparationError": 1,
    "StuckError": 1,
    "CorpusError": ExitCode.MISCONFIGURED,
    "FetchError": 1,
    "SettingsError": ExitCode.MISCONFIGURED,
    "PairingError": 1,
    "BundleError": 1,
}
"""By name, since their modules are imported only where they are needed; their texts are whole sentences already."""


def explain(error: Exception, args: argparse.Namespace) -> tuple[int, str]:
    """The exit code and the sentence for `error`; what is not expected is raised again."""
    name = type(error).__name__
    if name == "CorpusError" and isinstance(error.__cause__, OSError) and "cannot be written" in str(error):
        return EX_CANNOT_CREATE, str(error)
    if name in CODES:
        return CODES[name], str(error)
    if not isinstance(error, OSError):
        raise error
    writes, option = (
        args.command in ("run", "demo", "corpus", "drill", "rehearse"),
        "--out" if args.command == "corpus" else "--workspace",
    )
    if isinstance(error, FileNotFoundError) and not writes:
        return EX_USAGE, f"there is no run in {place(args)}{_elsewhere(args)}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.DISK_FULL, f"the disk of {place(args)} is full ({error}); free some space, then give the same command again"
    return EX_CANNOT_CREATE, f"{place(args)} cannot be used: {error}; choose another with {option}"


def place(args: argparse.Namespace) -> Path:
    """The folder that a command works on."""
    if args.command == "corpus":
        return Path(args.out).resolve()
    return _workspace(args, DEMO_WORKSPACE if args.command == "demo" else DEFAULT_WORKSPACE).root


def _elsewhere(args: argparse.Namespace) -> str:
    """Where a run may be instead."""
    if args.workspace is None and (Path(DEMO_WORKSPACE) / "state.json").exists():
        return f"; there is one in ./{DEMO_WORKSPACE}: add --workspace {DEMO_WORKSPACE}"
    return "; start one with `vigil run PIPELINE`, or name its folder with --workspace"


def entry() -> None:
    """The console script. A thread that hangs in a name server may neither keep the end nor crash it.

    A fault of our own has a code of its own: 1 is a run that ended, and systemd would not start it again.
    """
    try:
        code = main()
    except Exception:
        traceback.print_exc()
        code = EX_SOFTWARE
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    entry()

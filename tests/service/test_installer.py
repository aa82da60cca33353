"""install_wsl_service.sh on a computer in a folder, with a Windows that answers as the real one does."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

import pytest

from tests.service.scene import TASK, TOKEN, Scene

WSL_CONF = b"# by hand\n[boot]\ncommand = service cron start\n\n[user]\ndefault=jm"
WSLCONFIG = b"# mine\r\n[wsl2]\r\nmemory=24GB # enough\r\n"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    """A computer under WSL whose owner has settings already."""
    made = Scene(tmp_path)
    (made.root / "etc/wsl.conf").write_bytes(WSL_CONF)
    (made.root / "etc/wsl.conf").chmod(0o640)
    (made.profile / ".wslconfig").write_bytes(WSLCONFIG)
    return made


def test_all_of_it_there_and_back(scene: Scene) -> None:
    """Install sets everything; a second one changes nothing, not even a time, and says so; uninstall gives back every byte."""
    before = scene.files()
    first = scene.install()
    assert first.returncode == 0, first.stderr
    assert "wsl --shutdown" in first.stdout
    assert "Pause Windows Update" in first.stdout

    assert (scene.root / "etc/wsl.conf").read_bytes() == (
        b"# by hand\n[boot]\ncommand = service cron start\nsystemd=true\ninitTimeout=60000\n\n[user]\ndefault=jm\n"
    )
    assert (scene.root / "etc/wsl.conf").stat().st_mode & 0o777 == 0o640
    assert (scene.profile / ".wslconfig").read_bytes() == (
        b"# mine\r\n[wsl2]\r\nmemory=24GB # enough\r\nvmIdleTimeout=-1\r\nswap=32GB\r\n"
        b"\r\n[general]\r\ninstanceIdleTimeout=-1\r\n\r\n[experimental]\r\nautoMemoryReclaim=dropCache\r\n"
    )
    token = scene.root / "etc/vigil/telegram_token"
    assert (token.read_text(), token.stat().st_mode & 0o777) == (f"{TOKEN}\n", 0o600)
    unit = (scene.root / "etc/systemd/system/vigil.service").read_text()
    assert f'run "{scene.pipeline}" --workspace "/srv/the run"\n' in unit
    assert "@" not in "".join(line for line in unit.splitlines() if not line.startswith(("#", "SystemCallFilter")))
    assert "LoadCredential=telegram_token:/etc/vigil/telegram_token" in unit
    xml = "C:\\Users\\Jörg Müller\\.vigil-keep-alive.xml"
    assert scene.asked() == [
        ["schtasks", "/create", "/tn", TASK, "/xml", xml, "/f"],
        ["powercfg", "/change", "standby-timeout-ac", "0"],
        ["powercfg", "/hibernate", "off"],
    ]

    after, asked = scene.files(), scene.asked()
    second = scene.install()
    assert (second.returncode, second.stdout.splitlines()[-1]) == (0, "Nothing to change: all is as it should be.")
    assert (scene.files(), scene.asked()) == (after, asked)
    verified = scene.call("verify")
    assert (verified.returncode, verified.stdout.splitlines()[-1]) == (0, "All is in order."), verified.stdout

    done = scene.call("uninstall", "--yes")
    assert done.returncode == 0, done.stderr
    assert scene.files() == before
    assert (scene.task.exists(), scene.setting("standby_s"), scene.setting("hibernate")) == (False, 1800, 1)
    again = scene.call("uninstall", "--yes")
    assert (again.returncode, "nothing to take back" in again.stdout) == (0, True)


def test_a_dry_run_shows_everything_and_does_nothing(scene: Scene) -> None:
    """--dry-run prints every write and every command, never the token, and touches nothing; so does that of uninstall."""
    before = scene.files()
    shown = scene.install("--dry-run")
    assert shown.returncode == 0, shown.stderr
    for line in (
        "    | +systemd=true", "    | +vmIdleTimeout=-1", "    | ExecStart=", "    | Type=notify", "ExecutionTimeLimit>PT0S<",
        '    would: schtasks /create /tn "Vigil keep-alive" /xml "C:\\Users\\Jörg Müller\\.vigil-keep-alive.xml" /f',
        "    would: powercfg /hibernate off", "    (43 bytes, not shown)", "That is all; nothing was changed.",
    ):  # fmt: skip
        assert line in shown.stdout, line
    assert TOKEN not in shown.stdout
    assert (scene.files(), scene.asked()) == (before, [])
    scene.install()
    after, asked = scene.files(), scene.asked()
    assert "would: give back" in scene.call("uninstall", "--dry-run").stdout
    assert (scene.files(), scene.asked()) == (after, asked)


def test_a_fresh_clone_can_be_asked_what_would_happen(scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before set-up, any Python will do for a dry run, and it makes no environment."""
    monkeypatch.setenv("VIGIL_VENV", str(tmp_path / "none"))
    monkeypatch.setenv("VIGIL_PYTHON", sys.executable)
    shown = scene.install("--dry-run")
    assert (shown.returncode, "would be made" in shown.stdout) == (0, True), shown.stderr
    assert f'ExecStart="{tmp_path}/none/bin/python"' in shown.stdout
    assert not (tmp_path / "none").exists()


def test_without_wsl_windows_is_left_out(tmp_path: Path) -> None:
    """On plain Linux nothing is asked of Windows and no file of WSL's is made; one line says so."""
    scene = Scene(tmp_path, wsl=False)
    before = scene.files()
    done = scene.install()
    assert done.returncode == 0, done.stderr
    assert "* This is no WSL: the Windows half is left out\n" in done.stdout
    assert not (scene.root / "etc/wsl.conf").exists()
    assert not (scene.windows / "asked.jsonl").exists()
    assert scene.call("uninstall", "--yes").returncode == 0
    assert scene.files() == before


@pytest.mark.parametrize(
    ("part", "asked", "files"),
    [
        ("--without-task", ["powercfg"], [".wslconfig"]),
        ("--without-power", ["schtasks"], [".vigil-keep-alive.xml", ".wslconfig"]),
        ("--without-wslconfig", ["powercfg", "schtasks"], [".vigil-keep-alive.xml"]),
        ("--without-windows", [], []),
    ],
)
def test_each_part_of_windows_is_optional(tmp_path: Path, part: str, asked: list[str], files: list[str]) -> None:
    """What is left out is neither asked for nor written, and verify does not miss it."""
    scene = Scene(tmp_path)
    assert scene.install(part).returncode == 0
    assert sorted({one[0] for one in scene.asked()}) == asked
    assert sorted(path.name for path in scene.profile.iterdir()) == files
    assert scene.call("verify").returncode == 0


def test_the_password_is_never_asked_for(scene: Scene) -> None:
    """With --logon password the command is printed for the owner, who types the password into Windows itself."""
    done = scene.install("--logon", "password")
    assert (
        f'schtasks /create /tn "{TASK}" /xml "C:\\Users\\Jörg Müller\\.vigil-keep-alive.xml" /f /ru "DESKTOP-1\\Jörg Müller" /rp *'
        in done.stdout
    )
    assert scene.asked("schtasks") == []
    assert "it is not registered" in scene.call("verify").stdout


def test_what_windows_refuses_is_left_to_the_owner(tmp_path: Path) -> None:
    """Without an administrator's rights the Linux half is done, the refused commands are printed, and verify finds them missing."""
    scene = Scene(tmp_path, refuses=["schtasks", "powercfg"])
    done = scene.install()
    assert done.returncode == 1
    assert done.stdout.count("In PowerShell as administrator:") == 3
    assert "      powercfg /hibernate off\n" in done.stdout
    assert (scene.root / "etc/systemd/system/vigil.service").exists()
    verified = scene.call("verify")
    assert verified.returncode == 1
    for fault in ("it is not registered", "Windows sleeps after 30 min", "hibernation is on"):
        assert fault in verified.stdout


@pytest.mark.parametrize("tool", ["powershell", "wslpath", "wsl"])
def test_a_windows_that_does_not_answer_stops_its_half_only(tmp_path: Path, tool: str) -> None:
    """Where interop is broken the service is installed all the same, and what to do is said."""
    scene = Scene(tmp_path, dead=[tool])
    done = scene.install()
    assert (done.returncode, "Open WSL's own terminal and install again" in done.stdout) == (1, True)
    assert (scene.root / "etc/systemd/system/vigil.service").exists()
    assert not (scene.profile / ".wslconfig").exists()
    assert scene.call("uninstall", "--yes").returncode == 0


def test_an_old_wsl_that_prints_utf16_is_understood(tmp_path: Path) -> None:
    """wsl.exe's list is read although it ignores WSL_UTF8."""
    assert Scene(tmp_path, old_wsl=True).install().returncode == 0


def test_the_tools_can_be_named(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """POWERSHELL=, WSL_EXE=, SCHTASKS=, POWERCFG= and WSLPATH= name the programs; the PATH is not searched then."""
    moved = scene.windows.rename(scene.windows.with_name("elsewhere"))
    for variable, tool in {
        "POWERSHELL": "powershell.exe",
        "WSL_EXE": "wsl.exe",
        "SCHTASKS": "schtasks.exe",
        "POWERCFG": "powercfg.exe",
        "WSLPATH": "wslpath",
    }.items():
        monkeypatch.setenv(variable, str(moved / tool))
    scene.windows.mkdir()
    (moved / "settings.json").rename(scene.windows / "settings.json")
    assert scene.install().returncode == 0
    assert scene.task.exists()


def test_somebody_elses_task_is_left(scene: Scene) -> None:
    """A task of the same name that Vigil did not make is neither changed nor deleted."""
    scene.task.parent.mkdir()
    scene.task.write_text('<?xml version="1.0" encoding="UTF-16"?>\n<Task/>\n')
    done = scene.install()
    assert (done.returncode, "not Vigil's" in done.stdout) == (1, True)
    assert scene.asked("schtasks") == []
    scene.call("uninstall", "--yes")
    assert scene.task.exists()


# -- what the owner does in between


def test_a_unit_that_the_owner_changed_is_left(scene: Scene) -> None:
    """Neither install nor uninstall touches it; both say so, and how to get Vigil's. So with a file on the Windows side."""
    scene.install()
    xml = scene.profile / ".vigil-keep-alive.xml"
    xml.write_bytes(b"mine")
    unit = scene.root / "etc/systemd/system/vigil.service"
    unit.write_text(unit.read_text() + "# mine\n")
    mine = unit.read_bytes()
    done = scene.install("--set", "probe.steps=3")
    assert (done.returncode, f"mv {unit}" in done.stdout) == (1, True)
    assert scene.call("verify").returncode == 1
    done = scene.call("uninstall", "--yes")
    assert (done.returncode, "was changed by you" in done.stdout) == (1, True)
    assert (unit.read_bytes(), xml.read_bytes()) == (mine, b"mine")
    unit.unlink()
    xml.unlink()
    assert scene.call("uninstall", "--yes").returncode == 0
    assert not (scene.root / "var/lib/vigil-install").exists()


def test_settings_that_the_owner_changed_are_merged_again_and_never_overwritten(scene: Scene) -> None:
    """What the owner adds to .wslconfig stays through a second install; uninstall leaves the file and names the backup."""
    scene.install()
    path = scene.profile / ".wslconfig"
    path.write_bytes(path.read_bytes().replace(b"vmIdleTimeout=-1\r\n", b"") + b"sparseVhd=true\r\n")
    assert "without [wsl2] vmIdleTimeout=-1" in scene.call("verify").stdout
    assert scene.install().returncode == 0
    merged = path.read_bytes()
    assert b"sparseVhd=true\r\n" in merged
    assert b"vmIdleTimeout=-1\r\n" in merged
    done = scene.call("uninstall", "--yes")
    assert done.returncode == 1
    assert path.read_bytes() == merged
    backup = next(line.split(": ")[-1] for line in done.stdout.splitlines() if ".wslconfig: LEFT" in line)
    assert Path(backup).read_bytes() == WSLCONFIG
    path.write_bytes(WSLCONFIG)
    assert scene.call("uninstall", "--yes").returncode == 0


def test_a_unit_that_was_there_comes_back(scene: Scene) -> None:
    """A vigil.service of another origin is replaced, and given back with its mode and its time."""
    unit = scene.root / "etc/systemd/system/vigil.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    unit.chmod(0o600)
    os.utime(unit, ns=(10**18, 10**18))
    before = scene.files()
    assert scene.install().returncode == 0
    assert scene.call("uninstall", "--yes").returncode == 0
    assert scene.files() == before


def test_an_installation_is_brought_up_to_date(scene: Scene) -> None:
    """Another call changes what is asked for and remembers the rest; uninstall still gives back the first bytes."""
    before = scene.files()
    scene.install()
    done = scene.call("install", "--yes", "--set", 'probe.text=a "b" $HOME %h')
    assert done.returncode == 0, done.stderr
    unit = (scene.root / "etc/systemd/system/vigil.service").read_text()
    assert r'"/srv/the run" --set "probe.text=a \"b\" $$HOME %%h"' in unit
    assert (scene.root / "etc/vigil/telegram_token").read_text() == f"{TOKEN}\n"
    assert scene.call("uninstall", "--yes").returncode == 0
    assert scene.files() == before


# -- what is refused


def refused(scene: Scene, code: int, *arguments: str) -> str:
    """The sentence of a call that must fail with `code` and write nothing."""
    before = scene.files()
    done = scene.call(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert (scene.files(), scene.asked()) == (before, [])
    return done.stderr


def test_what_is_wrong_is_named_before_anything_is_written(scene: Scene) -> None:
    """A bad pipeline, setting, user, token or file leaves all as it was; the message names the value and the next step."""
    base = ("install", "--yes", "--workspace", "/srv/run", "--user", "root", "--pipeline")
    good = (*base, str(scene.pipeline))
    assert "/nowhere.toml: cannot be read" in refused(scene, 78, *base, "/nowhere.toml")
    assert "no stage 'nobody'" in refused(scene, 78, *good, "--set", "nobody.steps=3")
    assert "no user 'nobody-here'" in refused(scene, 2, *good, "--user", "nobody-here")
    assert "HF_HOME is not NAME=VALUE" in refused(scene, 78, *good, "--environment", "HF_HOME").replace("'", "")
    assert "control character" in refused(scene, 78, *good, "--set", "probe.text='a\tb'")
    scene.token.write_text("hello\n")
    assert f"{scene.token}: this is no bot token" in refused(scene, 78, *good, "--token-file", str(scene.token))
    assert "/no/token: No such file" in refused(scene, 78, *good, "--token-file", "/no/token")
    assert "--pipeline is missing" in refused(scene, 2, "install", "--yes")
    assert "nobody answers here" in refused(scene, 2, "install")
    for path in (scene.root / "etc/wsl.conf", scene.profile / ".wslconfig"):
        kept = path.read_bytes()
        path.write_bytes(codecs.BOM_UTF16_LE + b"x")
        assert f"{path}: it is not readable as utf-16-le" in refused(scene, 78, *good)
        path.write_bytes(kept)


def test_a_damaged_manifest_is_named(scene: Scene) -> None:
    """Nothing is guessed: the manifest and the backups are named, and nothing is touched."""
    scene.install()
    manifest = scene.root / "var/lib/vigil-install/manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    before = scene.files()
    done = scene.call("uninstall", "--yes")
    assert (done.returncode, f"{manifest}: damaged" in done.stderr, "backup" in done.stderr) == (78, True, True)
    assert scene.files() == before


def test_questions_have_answers_ready(scene: Scene) -> None:
    """Without --yes everything is asked, each part of Windows too; what was answered is what gets installed."""
    done = scene.call("install", answers=f"{scene.pipeline}\n/srv/asked\nroot\n\nn\ny\ny\n")
    assert done.returncode == 0, done.stderr
    assert '--workspace "/srv/asked"' in (scene.root / "etc/systemd/system/vigil.service").read_text()
    assert sorted({one[0] for one in scene.asked()}) == ["powercfg"]


def test_status_says_what_is_there(scene: Scene) -> None:
    """Before, in between and after; its exit code is no verdict."""
    assert "is not installed" in scene.call("status").stdout
    scene.install()
    (scene.root / "etc/systemd/system/vigil.service").unlink()
    scene.task.unlink()
    shown = scene.call("status")
    assert shown.returncode == 0
    for line in ("workspace  /srv/the run", "      not there", "      it is not registered", "2 of 7 not in order."):
        assert line in shown.stdout, shown.stdout
    assert max(map(len, shown.stdout.replace(str(scene.root), "").replace(str(scene.root.parent), "").splitlines())) <= 100

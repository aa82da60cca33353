"""What the installer writes, decided without writing it: merged settings, the filled unit, Windows' answers."""

from __future__ import annotations

import codecs
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import settings_file, unit, windows
from service.settings_file import Setting, SettingsFileError, merge
from service.system import WSL_CONF
from service.windows import Host

HOST = Host(
    profile=None,  # type: ignore[arg-type]  # not asked for here
    account="DESKTOP-1\\Jörg <M&M>",
    memory_bytes=68_601_704_448,
    hibernates=True,
    wsl_exe="C:\\Program Files\\WSL\\wsl.exe",
    distribution="Ubuntu-24.04",
)
WSLCONFIG = windows.wslconfig(64 << 30, None, None)

ODD = {
    "nothing": b"",
    "no line end": b"[wsl2]\nprocessors=8",
    "carriage returns": b"# mine\r\n[wsl2]\r\nmemory=24GB # enough\r\n\r\n[network]\r\n",
    "byte order mark": codecs.BOM_UTF8 + "[wsl2]\r\n# für später\r\n".encode(),
    "UTF-16": codecs.BOM_UTF16_LE + "[wsl2]\r\nmemory=8GB\r\n".encode("utf-16-le"),
    "old code page": b"# f\xfcr sp\xe4ter\r\n[boot]\r\n",
    "capitals and spaces": b"[ WSL2 ]\n  VMIDLETIMEOUT = 60000  # a minute\n[Boot]\nSystemd = false\n",
    "twice": b"[wsl2]\nvmIdleTimeout=1\n[boot]\nsystemd=false\n[wsl2]\nvmIdleTimeout=2\nsystemd=left alone\n",
    "comments that look alike": b"[wsl2]\n#vmIdleTimeout=5\n# [general]\n[boot]\n#systemd=true\n",
    "continued lines": b"[wsl2]\nkernelCommandLine=a \\\nvmIdleTimeout=5\n[boot]\ncommand=x \\",
    "in quotes": b'[general]\ninstanceIdleTimeout="-1"\n[boot]\nsystemd="true"\n',
    "before any section": b"systemd=maybe\n\n\n[user]\ndefault=jm\n",
    "no key": b"[wsl2\nvmIdleTimeout\n=\n[]\n",
}


def read(data: bytes, *, first_counts: bool) -> dict[tuple[str, str], str]:
    """The settings as WSL's parser sees them, in either of the ways that its versions treat what stands twice."""
    mark = next((mark for mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF8) if data.startswith(mark)), b"")
    text = data[len(mark) :].decode("utf-16-le" if mark == codecs.BOM_UTF16_LE else "utf-8", "surrogateescape")
    text = re.sub(r"(?m)^([^#\n]*\S[^\n]*)\\\r?\n", r"\1", text) if "\\" in text else text
    section, seen = "", dict[tuple[str, str], str]()
    for line in text.split("\n"):
        said = line.partition("#")[0].strip()
        if said.startswith("[") and "]" in said:
            section = said[1 : said.index("]")].strip().lower()
        elif "=" in said:
            key, _, value = said.partition("=")
            place = (section, key.strip().lower())
            if not (first_counts and place in seen):
                seen[place] = value.strip().strip('"')
    return seen


def holds(data: bytes, settings: list[Setting]) -> bool:
    """Whether all of them count, whichever of two does."""
    return all(
        setting.accepts(read(data, first_counts=first).get((setting.section, setting.key.lower()), ""))
        for setting in settings
        for first in (True, False)
    )


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("settings", [WSLCONFIG, list(WSL_CONF)], ids=[".wslconfig", "wsl.conf"])
def test_a_merge_sets_what_is_wanted_and_a_second_changes_nothing(name: str, settings: list[Setting]) -> None:
    """Whatever the file looks like, the settings count afterwards, and merging again is no change."""
    merged = merge(ODD[name], settings)
    assert holds(merged, settings), merged
    assert merge(merged, settings) == merged


@pytest.mark.parametrize("name", ODD)
def test_a_merge_leaves_every_other_byte(name: str) -> None:
    """Without the lines that were added or whose value was set, the file is what it was, in its order and with its line ends."""
    before, merged = ODD[name], merge(ODD[name], WSLCONFIG)
    codec = "utf-16-le" if before.startswith(codecs.BOM_UTF16_LE) else "latin-1"
    old, new = before.decode(codec).split("\n"), merged.decode(codec).split("\n")
    keys = {setting.key.lower() for setting in WSLCONFIG}
    ours = re.compile(rf"\s*({'|'.join(keys)})\s*=", re.IGNORECASE)
    rest = iter(line.rstrip("\r") for line in new)
    for line in old:
        if not ours.match(line):
            assert line.rstrip("\r") in rest, line
    assert ("\r\n" in before.decode(codec)) == ("\r\n" in merged.decode(codec))


PIECES = st.sampled_from(
    [
        *(
            "[wsl2]",
            "[WSL2] # x",
            "[general]",
            "[boot]",
            "[",
            "=",
            "a=b",
            "\t",
            "",
            "# note",
            "x \\ # y",
            "kernelCommandLine=quiet \\",
        ),
        *("vmIdleTimeout=5", "VmIdleTimeout = -1", "memory=4GB # x", "swap=", "instanceIdleTimeout=1", "autoMemoryReclaim=gradual"),
    ]
)


@given(st.lists(PIECES, max_size=14), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_any_file_can_be_merged(pieces: list[str], newline: str, ends: bool) -> None:
    """Of any lines in any order: the settings count, a second merge changes nothing, and the owner's choices stay."""
    data = (newline.join(pieces) + (newline if ends else "")).encode()
    merged = merge(data, WSLCONFIG)
    assert holds(merged, WSLCONFIG), (data, merged)
    assert merge(merged, WSLCONFIG) == merged
    if read(data, first_counts=False).get(("wsl2", "memory")) == "4GB":
        assert read(merged, first_counts=False)["wsl2", "memory"] == "4GB"


def test_the_owners_choices_stay() -> None:
    """Memory, swap and a reclaim that is switched off are the owner's; gradual reclaim is known to freeze, and goes."""
    merged = merge(b"[wsl2]\nmemory=24GB\nswap=0\n[experimental]\nautoMemoryReclaim=disabled\n", WSLCONFIG)
    assert b"memory=24GB\nswap=0\n" in merged
    assert b"autoMemoryReclaim=disabled" in merged
    assert b"autoMemoryReclaim=dropCache" in merge(b"[experimental]\nautoMemoryReclaim=gradual\n", WSLCONFIG)
    assert b"memory=40GB" in merge(b"[wsl2]\nmemory=24GB\n", windows.wslconfig(64 << 30, 40, None))


@pytest.mark.parametrize(("host_gb", "memory_gb"), [(8, 4), (16, 12), (32, 26), (64, 52), (128, 103)])
def test_windows_keeps_a_fifth(host_gb: int, memory_gb: int) -> None:
    """WSL gets all memory but a fifth, of which at least 4 GB; never less than WSL's own default of a half."""
    wanted = {setting.key: setting.value for setting in windows.wslconfig(host_gb << 30, None, None)}
    assert wanted["memory"] == f"{memory_gb}GB"


@pytest.mark.parametrize("data", [b"[boot]\0\0", codecs.BOM_UTF16_LE + b"a"], ids=["zero bytes", "half a sign"])
def test_what_is_no_text_is_refused(data: bytes) -> None:
    """A file that no editor wrote is not merged."""
    with pytest.raises(SettingsFileError):
        settings_file.merge(data, WSLCONFIG)


# -- the unit


def test_words_are_quoted_as_systemd_reads_them() -> None:
    """systemd.syntax(7): quotes, backslashes, percent signs, and for arguments dollar signs are escaped."""
    assert unit.argument('a "b" $c %d \\e') == r'"a \"b\" $$c %%d \\e"'
    assert unit.environment("HF_HOME=/data/$x %") == 'Environment="HF_HOME=/data/$x %%"'
    assert unit.paths(["/a b", "/c"]) == '"-/a b" "-/c"'


@pytest.mark.parametrize("bad", ["a\nExecStartPre=/bin/evil", "tab\t", "bell\a"])
def test_a_control_character_is_refused(bad: str) -> None:
    """A line end could begin another setting of the unit."""
    with pytest.raises(unit.UnitError, match="control character"):
        unit.argument(bad)


def test_a_template_of_another_version_is_refused() -> None:
    """A placeholder that nobody fills is an error, and an empty one takes its line along."""
    assert (
        unit.fill("# @NOT@ said\n@EMPTY@\nUser=@USER@ @EMPTY@\n\n", {"EMPTY": "", "USER": "anna"}) == "# @NOT@ said\nUser=anna\n\n"
    )
    with pytest.raises(unit.UnitError, match="@NEW@"):
        unit.fill("Key=@NEW@\n", {})


# -- Windows


@pytest.mark.parametrize(
    "printed",
    [
        "Müller\r\n".encode("utf-16-le"),
        codecs.BOM_UTF16_LE + "Müller\r\n".encode("utf-16-le"),
        codecs.BOM_UTF8 + "Müller\r\n".encode(),
        "Müller\r\r\n".encode("cp850"),
    ],
    ids=["UTF-16", "UTF-16 with its mark", "UTF-8", "a code page"],
)
def test_any_encoding_is_read(printed: bytes) -> None:
    """A Windows tool may print UTF-16LE, UTF-8 or the console's code page, with one or two carriage returns."""
    assert windows.decode(printed) == "Müller\n"


def task() -> str:
    return settings_file.text_of(windows.task_xml(HOST, "S4U"))


def test_the_task_is_what_keeps_wsl() -> None:
    """Boot trigger with a delay and a repetition, no time limit, one at a time, on batteries too, after failures again, S4U."""
    plain = "".join(task().split())
    for wanted in (
        "<BootTrigger><Repetition><Interval>PT5M</Interval>",
        "<Delay>PT30S</Delay>",
        "<ExecutionTimeLimit>PT0S<",
        "<MultipleInstancesPolicy>IgnoreNew<",
        "<DisallowStartIfOnBatteries>false<",
        "<StopIfGoingOnBatteries>false<",
        "<RestartOnFailure>",
        "<LogonType>S4U<",
        "<UserId>DESKTOP-1\\Jörg&lt;M&amp;M&gt;<",
        "C:\\ProgramFiles\\WSL\\wsl.exe",
        '-d"Ubuntu-24.04"-uroot--execsleepinfinity',
    ):
        assert wanted in plain
    data = windows.task_xml(HOST, "Password")
    assert data.startswith(codecs.BOM_UTF16_LE)
    assert "\r\n" in data.decode("utf-16")


@pytest.mark.parametrize(
    ("ours", "theirs", "fault"),
    [
        ("PT0S", "P3D", "Settings/ExecutionTimeLimit is 'P3D'"),
        ("<StopIfGoingOnBatteries>false", "<StopIfGoingOnBatteries>true", "Settings/StopIfGoingOnBatteries is 'true'"),
        ("S4U", "InteractiveToken", "Principals/Principal/LogonType is 'InteractiveToken'"),
        ("IgnoreNew", "StopExisting", "Settings/MultipleInstancesPolicy is 'StopExisting'"),
        ("<Delay>PT30S</Delay>", "", "Triggers/BootTrigger/Delay is None"),
        ("sleep infinity", "true", "Actions/Exec/Arguments is '-d \"Ubuntu-24.04\" -u root --exec true'"),
    ],
)
def test_a_task_that_differs_is_told(ours: str, theirs: str, fault: str) -> None:
    """What would stop the keep-alive is found; what Windows adds or turns into numbers is no difference."""
    assert windows.task_differs(task(), task()) == []
    adapted = (
        task().replace("DESKTOP-1\\Jörg", "S-1-5-21").replace("<MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>", "")
    )
    assert windows.task_differs(adapted, task()) == []
    assert windows.task_differs(task().replace(ours, theirs), task()) == [fault]
    assert windows.task_differs("no XML", task())[0].startswith("its XML cannot be read")

"""Windows, as far as the installer asks it: called by the name of one of its tools, it answers as that tool does.

The words are German, since nothing may depend on English. WINDOWS is the folder that keeps what this Windows is like: `asked.jsonl`
(all that it was asked), `tasks/`, and `settings.json`, where also stand `refuses` (tools without their rights), `dead` (tools that
always fail) and `old_wsl` (a wsl.exe that does not know WSL_UTF8).
"""

import json
import os
import re
import sys
from pathlib import Path

HOME = Path(os.environ["WINDOWS"])
TOOL = Path(sys.argv[0]).name.removesuffix(".exe")
ASKED = sys.argv[1:]
SETTINGS = {"memory_bytes": 68_601_704_448, "user": "Jörg Müller", "refuses": [], "dead": [], "old_wsl": False}
SETTINGS.update(json.loads((HOME / "settings.json").read_text()))
NAMES = "http://schemas.microsoft.com/windows/2004/02/mit/task"


def say(text: str, codec: str = "cp850", stream: str = "stdout") -> None:
    getattr(sys, stream).buffer.write(text.replace("\n", "\r\n").encode(codec))


def refuse(text: str, status: int = 1) -> None:
    say(f"FEHLER: {text}\n", stream="stderr")
    raise SystemExit(status)


def keep(name: str, value: object) -> None:
    SETTINGS[name] = value
    (HOME / "settings.json").write_text(json.dumps(SETTINGS))


def needs_rights() -> None:
    if TOOL in SETTINGS["refuses"]:
        refuse("Zugriff verweigert")


def powershell() -> None:
    answers = {
        "profile": f"C:\\Users\\{SETTINGS['user']}",
        "account": f"DESKTOP-1\\{SETTINGS['user']}",
        "memory_bytes": SETTINGS["memory_bytes"],
        "hibernate": SETTINGS["hibernate"],
        "wsl": "C:\\Program Files\\WSL\\wsl.exe",
    }
    say("\ufeff" + "".join(f"{name}={value}\n" for name, value in answers.items()), "utf-8")


def wsl() -> None:
    assert ASKED == ["--list", "--quiet"], ASKED
    utf8 = os.environ.get("WSL_UTF8") == "1" and not SETTINGS["old_wsl"]
    say("Ubuntu-24.04\ndocker-desktop\n", "utf-8" if utf8 else "utf-16-le")


def wslpath() -> None:
    way, path = ASKED
    if way == "-u":
        print("/mnt/" + path[0].lower() + path[2:].replace("\\", "/"))
    elif path.startswith("/mnt/c/"):
        print("C:\\" + path.removeprefix("/mnt/c/").replace("/", "\\"))
    else:
        print("\\\\wsl.localhost\\Ubuntu-24.04" + path.replace("/", "\\"))


def schtasks() -> None:
    given = dict(zip(ASKED[1::2], ASKED[2::2], strict=False))
    kept = HOME / "tasks" / f"{given.get('/tn')}.xml"
    if ASKED[0] == "/query":
        if "/tn" not in given:
            say('"\\Microsoft\\Windows\\Zeit","N/A","Bereit"\n')
        elif not kept.exists():
            refuse("Das System kann die angegebene Datei nicht finden: ü.")
        else:  # it says UTF-16 and prints the console's code page, with one carriage return too many
            sys.stdout.buffer.write(kept.read_text(encoding="utf-8").replace("\n", "\r\r\n").encode("cp850", "replace"))
        return
    needs_rights()
    if ASKED[0] == "/create":
        path = Path(os.environ.get("DESTDIR", "") + "/mnt/c/" + given["/xml"].removeprefix("C:\\").replace("\\", "/"))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(as_windows_keeps_it(path.read_bytes()), encoding="utf-8")
    elif not kept.exists():
        refuse("Das System kann die angegebene Datei nicht finden.")
    else:
        assert ASKED[0] == "/delete", ASKED
        assert "/f" in ASKED
        kept.unlink()
    say("ERFOLGREICH: Die geplante Aufgabe wurde geändert.\n")


def as_windows_keeps_it(data: bytes) -> str:
    """UTF-16 with its mark is demanded; the account becomes a number, and a default goes."""
    if not data.startswith(b"\xff\xfe"):
        refuse("(1,40)::FEHLER: Wechsel von aktueller Codierung zu angegebener nicht unterstützt.")
    from xml.etree import ElementTree  # here, since most calls do without

    ElementTree.register_namespace("", NAMES)
    tree = ElementTree.fromstring(data.decode("utf-16"))
    for user in tree.iter(f"{{{NAMES}}}UserId"):
        user.text = "S-1-5-21-1004336348-1177238915-682003330-1001"
    settings = tree.find(f"{{{NAMES}}}Settings")
    settings.remove(settings.find(f"{{{NAMES}}}MultipleInstancesPolicy"))
    ElementTree.SubElement(settings, f"{{{NAMES}}}Priority").text = "7"
    return '<?xml version="1.0" encoding="UTF-16"?>\n' + ElementTree.tostring(tree, encoding="unicode") + "\n"


def powercfg() -> None:
    if ASKED[0] == "/query":
        index = f"Index der aktuellen Wechselstromeinstellung: 0x{SETTINGS['standby_s']:08x}"
        say("Energieschema-GUID: 381b4222-f694-41f0-9685-ff5bb260df2e  (Ausbalanciert)\n")
        say(
            f"  Maximal mögliche Einstellung: 0xffffffff\n    {index}\n    Index der aktuellen Gleichstromeinstellung: 0x00000384\n"
        )
        return
    needs_rights()
    if ASKED[0] == "/hibernate":
        keep("hibernate", int(ASKED[1] == "on"))
    elif ASKED[:2] == ["/change", "standby-timeout-ac"]:
        keep("standby_s", int(ASKED[2]) * 60)
    elif ASKED[0] == "/setacvalueindex":
        assert ASKED[1:4] == ["SCHEME_CURRENT", "SUB_SLEEP", "STANDBYIDLE"]
        keep("standby_s", int(ASKED[4]))
    else:
        assert ASKED == ["/setactive", "SCHEME_CURRENT"], ASKED


with open(HOME / "asked.jsonl", "a") as file:
    file.write(json.dumps([TOOL, *(re.sub(r"\s+", " ", one) for one in ASKED)]) + "\n")
if TOOL in SETTINGS["dead"]:
    refuse("kein Anschluss unter dieser Nummer")
{"powershell": powershell, "wsl": wsl, "wslpath": wslpath, "schtasks": schtasks, "powercfg": powercfg}[TOOL]()

"""PURE: from what was read of the machine, the outside and the plan to findings: green, yellow, red, and what mends them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from daemon import words
from daemon.before_leaving.checks_plan import Need
from daemon.host import Disk, Gpu
from state.forecast import Estimate, Forecast, digest_of
from state.needs import Account, Cache, MemoryPredicted, Model, ModelSeen, Where
from state.pipeline import Pipeline

FEW_SECONDS, MANY_SECONDS = 30.0, 300.0
"""Of the clock's drift: worth telling; certificates and Telegram begin to fail."""
COMFORTABLE = 1.25
"""Of the disk that the plan needs."""
HUB = "https://huggingface.co"
TOKENS = f"{HUB}/settings/tokens"
NEEDS_DEMUCS = "needs demucs"
DEMUCS = '.venv/bin/python -m pip install "demucs>=4.1"'
PACKAGES = ("torch", "transformers", "bitsandbytes", "peft", "trl", "faster_whisper", "ctranslate2", "yt_dlp")
IDLE = re.compile(r"^\s*(instanceIdleTimeout|vmIdleTimeout)\s*=\s*(-?\d+)\s*$", re.MULTILINE)


class Light(StrEnum):
    """How a finding stands."""

    GREEN = "green"
    YELLOW = "yellow"
    RED = "red"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at."""

    group: str
    title: str
    light: Light
    seen: str
    """What was seen, in a sentence at most."""
    mend: str = ""
    """The command, or the act, that mends it; empty where nothing is to do."""
    detail: tuple[str, ...] = ()


@dataclass(frozen=True)
class NotKnown:
    """A reading that failed, and why; its finding is yellow."""

    why: str


@dataclass(frozen=True)
class Torch:
    """What the environment's torch says."""

    version: str
    cuda: bool
    device: str = ""
    total_bytes: int = 0
    bf16: bool = False


@dataclass(frozen=True)
class Text:
    """One Bible text, read."""

    name: str
    verses: int = 0
    fault: str = ""


@dataclass(frozen=True)
class Windows:
    """What Windows says of itself."""

    wslconfig: str
    standby: str
    """`powercfg /query` of the idle time before sleep."""
    tasks: tuple[str, ...]


def not_known(group: str, title: str, why: str, mend: str = "") -> Finding:
    """A finding without a reading."""
    return Finding(group=group, title=title, light=Light.YELLOW, seen=f"not known: {why}", mend=mend)


# -- the machine


def gpu(gpus: Sequence[Gpu] | None, torch: Torch | NotKnown, *, needed: bool) -> list[Finding]:
    """Driver and CUDA."""
    bad = Light.RED if needed else Light.YELLOW
    if gpus is None:
        found = [_machine("driver", bad, "nvidia-smi gives no answer", "wsl --shutdown (in Windows), then try again")]
    elif not gpus:
        without = "no NVIDIA driver; a training asks for bf16, which wants a GPU" if needed else "no NVIDIA driver: the CPU works"
        found = [_machine("driver", bad, without, "install NVIDIA's driver for Windows (never one inside WSL)" if needed else "")]
    else:
        total = sum(one.memory_total_bytes or 0 for one in gpus[:1])
        found = [_machine("driver", Light.GREEN, f"{gpus[0].name}, {words.size(total)}")]
    return [*found, _cuda(torch, bad if gpus != () or needed else Light.YELLOW, there=bool(gpus))]


def _cuda(torch: Torch | NotKnown, bad: Light, *, there: bool) -> Finding:
    if isinstance(torch, NotKnown):
        return not_known("machine", "CUDA", torch.why, "./vigil setup")
    if torch.cuda:
        seen = f"torch {torch.version} computes on {torch.device}{'' if torch.bf16 else ', which has no bf16'}"
        return _machine("CUDA", Light.GREEN if torch.bf16 else Light.YELLOW, seen)
    mend = "./vigil setup (its torch is one for CPUs)" if there and "+cpu" in torch.version else ""
    return _machine("CUDA", bad, f"torch {torch.version} sees no GPU", mend)


def packages(found: Mapping[str, str], faults: Mapping[str, str], *, wanted: Sequence[str] = PACKAGES) -> Finding:
    """The main environment: versions by name, and what could not be imported."""
    missing = [name for name in wanted if name not in found and name not in faults]
    if faults:
        name, fault = next(iter(faults.items()))
        return _machine(
            "packages (.venv)", Light.RED, f"{name} cannot be imported: {fault}", "rm .venv/vigil/main.stamp; ./vigil setup"
        )
    if missing:
        return not_known("machine", "packages (.venv)", f"no answer in time from {', '.join(missing)}")
    return _machine("packages (.venv)", Light.GREEN, ", ".join(f"{name} {found[name]}" for name in wanted[:4]) + " ...")


def comet(version: str | NotKnown | None) -> Finding:
    """COMET's environment; None: there is none."""
    if isinstance(version, NotKnown):
        return not_known("machine", "COMET (.venv-comet)", version.why, "./vigil setup --comet")
    if version is None:
        return _machine("COMET (.venv-comet)", Light.YELLOW, "not there: no COMET scores", "./vigil setup --comet")
    return _machine("COMET (.venv-comet)", Light.GREEN, f"unbabel-comet {version}")


def clock(drift_s: float | NotKnown | None, synchronized: bool | None) -> Finding:
    """The clock against a server's, and whether the machine keeps it right by itself."""
    kept = {True: "kept by NTP", False: "not kept by NTP", None: "NTP not known"}[synchronized]
    if drift_s is None or isinstance(drift_s, NotKnown):
        why = drift_s.why if isinstance(drift_s, NotKnown) else "no server told its time"
        return not_known("machine", "clock", f"{why}; {kept}")
    seen = f"{abs(drift_s):.0f} s {'behind' if drift_s < 0 else 'ahead'}" if abs(drift_s) >= 2 else "right to 2 s"
    light = Light.GREEN if abs(drift_s) < FEW_SECONDS else Light.YELLOW if abs(drift_s) < MANY_SECONDS else Light.RED
    return _machine("clock", light, f"{seen}; {kept}", "" if light is Light.GREEN else "sudo hwclock -s")


def _machine(title: str, light: Light, seen: str, mend: str = "") -> Finding:
    return Finding(group="machine", title=title, light=light, seen=seen, mend=mend)


# -- models


def model(seen: ModelSeen, stages: Sequence[str], cache: Cache | None, pipeline_path: str, *, needed: bool) -> Finding:
    """One model of the plan."""
    bad = Light.RED if needed else Light.YELLOW
    fetch = f"./vigil fetch {pipeline_path}"
    token = "" if cache is None or cache.token else f"; then export HF_TOKEN=... (a token of {TOKENS})"
    size = f"{words.size(seen.size_bytes)}" if seen.size_bytes else "size not known"
    offline = " (HF_HUB_OFFLINE is set)" if cache is not None and cache.offline else ""
    light, said, mend = {
        Where.HERE: (Light.GREEN, f"here, {size}", ""),
        Where.TO_FETCH: (Light.YELLOW, f"to fetch: {words.size(seen.missing_bytes)} of {size}", fetch),
        Where.GATED: (
            bad,
            "its licence is not accepted, or the token is not of who did",
            f"open {HUB}/{seen.model.page} and accept it{token}; {fetch}",
        ),
        Where.DENIED: (bad, "the hub does not know it, or does not show it", f"correct the name{token}"),
        Where.AWAY: (bad, f"not here, and the hub does not answer{offline}", f"{fetch} (when the network is back)"),
        Where.BROKEN: (bad, words.clip(seen.text, 200), DEMUCS if NEEDS_DEMUCS in seen.text else "mend what it says"),
        Where.MADE: (Light.YELLOW, "not there yet; a stage before, or `vigil demo`, has to make it", ""),
    }[seen.where]
    detail = (f"for {', '.join(stages)}", *([words.clip(seen.text, 300)] if seen.text else []))
    return Finding(group="models", title=seen.model.name, light=light, seen=said, mend=mend, detail=detail)


def memory(found: Sequence[MemoryPredicted], bonus: set[str], *, cuda: bool) -> list[Finding]:
    """Each stage's predicted memory against the GPU's, or the machine's."""
    return [_memory(one, one.stage in bonus, cuda=cuda) for one in found]


def _memory(one: MemoryPredicted, bonus: bool, *, cuda: bool) -> Finding:
    name = one.model.rpartition("/")[2]
    if one.account is None:
        return not_known("memory", one.stage, f"{name}: {one.why_not}")
    need = one.account.total_bytes if cuda else one.account.host_bytes
    seen = f"{name}, {words.size(need)} at micro-batch {one.account.micro_batch}"
    light = {True: Light.GREEN, None: Light.YELLOW, False: Light.YELLOW if bonus else Light.RED}[one.fits]
    said = {True: f"{seen}: fits", None: f"{seen} (no GPU here)", False: f"{seen}: does not fit"}[one.fits]
    return Finding(group="memory", title=one.stage, light=light, seen=said, mend=one.advice, detail=account_lines(one.account))


def account_lines(account: Account) -> tuple[str, ...]:
    """One line for each component."""
    rows = [[part.name, words.size(part.size_bytes)] for part in account.parts]
    return tuple(words.table([*rows, ["the machine's own memory", words.size(account.host_bytes)]], right=(1,)))


def host_memory(found: Sequence[MemoryPredicted], total_bytes: int) -> list[Finding]:
    """The machine's own memory against the stage that needs most of it."""
    largest = max((one for one in found if one.account), key=lambda one: one.account.host_bytes if one.account else 0, default=None)
    if largest is None or largest.account is None:
        return []
    seen = f"{words.size(largest.account.host_bytes)} for {largest.stage} of {words.size(total_bytes)}"
    fits = largest.account.host_bytes < total_bytes
    mend = "" if fits else "raise memory= in Windows' .wslconfig"
    return [Finding(group="memory", title="the machine", light=Light.GREEN if fits else Light.RED, seen=seen, mend=mend)]


# -- data


def texts(source: str, read: Sequence[Text] | NotKnown) -> Finding:
    """The Bible texts."""
    if isinstance(read, NotKnown):
        return _data("Bible texts", Light.RED, read.why, "--set corpus.source=/path/to/bible_databases")
    faults = [text for text in read if text.fault]
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        return _data("Bible texts", Light.RED, f"{faults[0].fault}{more}", "mend what it says, or change english/spanish")
    if not any(text.verses for text in read):
        return _data("Bible texts", Light.GREEN, f"{len(read)} files in {source} (not read: --quick)")
    verses = min(text.verses for text in read)
    listed = tuple(f"{text.name} {text.verses:,} verses" for text in read)
    return _data("Bible texts", Light.GREEN, f"{len(read)} texts, {verses:,} verses or more each", detail=listed)


def recordings(url: str, listed: int | NotKnown, newest: int, here: int) -> Finding:
    """The recordings: the address, and how many there are."""
    if here >= newest:
        return _data("recordings", Light.GREEN, f"{here} are here already")
    if not url:
        return _data(
            "recordings", Light.RED, "download.url is not set", "--set download.url=https://www.youtube.com/playlist?list=..."
        )
    if isinstance(listed, NotKnown):
        return _data(
            "recordings",
            Light.RED,
            f"{words.clip(url, 40)} cannot be listed: {listed.why}",
            "correct download.url, or wait for the network",
        )
    light = Light.GREEN if listed >= newest else Light.YELLOW
    return _data("recordings", light, f"{listed} listed, {newest} wanted; the download stage brings them")


def no_speech(*, needed: bool) -> Finding:
    """Nothing is named that Whisper could be kept from forgetting by."""
    seen = "replay_source is not set: Whisper may forget general speech"
    mend = "--set train_whisper.replay_source=/path/to/audiofolder (or Common Voice, or hub:owner/name)"
    return _data("general speech", Light.RED if needed else Light.YELLOW, seen, mend)


def speech(seen: ModelSeen | NotKnown, cache: Cache | None, pipeline_path: str, *, needed: bool) -> Finding:
    """General speech that is named: on the hub, or here and as the training will read it. What is broken ends the training."""
    if isinstance(seen, NotKnown):
        return not_known("data", "general speech", seen.why, f"./vigil fetch {pipeline_path}")
    if seen.where is not Where.HERE:
        found = model(seen, (), cache, pipeline_path, needed=needed or seen.where is Where.BROKEN)
        return msgspec.structs.replace(found, group="data", title="general speech", detail=(seen.model.name,))
    said = f"{seen.clips:,} clips in {seen.model.name}"
    if seen.clips >= seen.model.clips:
        return _data("general speech", Light.GREEN, said)
    return _data("general speech", Light.YELLOW, f"{said}; about {seen.model.clips:,} will be wanted, the rest is left out")


def corpus(counts: Mapping[str, int]) -> list[Finding]:
    """What the corpus stage has built already."""
    if not counts:
        return []
    seen = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    light = Light.GREEN if all(counts.values()) else Light.RED
    return [_data("corpus built", light, seen, "" if light is Light.GREEN else "./vigil retry corpus")]


def _data(title: str, light: Light, seen: str, mend: str = "", detail: tuple[str, ...] = ()) -> Finding:
    return Finding(group="data", title=title, light=light, seen=seen, mend=mend, detail=detail)


# -- disk


def disk(title: str, drive: Disk | NotKnown, needs: Sequence[Need], keep_free_gb: float, unsized: int = 0) -> Finding:
    """One drive against what the plan will write on it and what stays free; `unsized` models to come have sizes nobody knows."""
    if isinstance(drive, NotKnown):
        return not_known("disk", title, drive.why)
    keep = round(keep_free_gb * 1e9)
    need = sum(one.size_bytes for one in needs)
    lines = words.table([[one.what, words.size(one.size_bytes)] for one in (*needs, Need("stays free", keep))], right=(1,))
    fits, easily = drive.free_bytes >= need + keep, drive.free_bytes >= COMFORTABLE * need + keep
    seen = f"{words.size(drive.free_bytes)} free, {words.size(need)} needed and {words.size(keep)} kept free"
    seen += f", besides {words.plural(unsized, 'model')} of unknown size" if unsized else ""
    light = Light.RED if not fits else Light.GREEN if easily and not unsized else Light.YELLOW
    mend = "" if easily else f"free {words.size(COMFORTABLE * need + keep - drive.free_bytes)} on {drive.path}"
    return Finding(group="disk", title=title, light=light, seen=seen, mend=mend, detail=tuple(lines))


# -- the outside


def reachable(title: str, address: str, answered: float | NotKnown, *, needed: bool) -> Finding:
    """A host of the network; `answered` seconds."""
    host = urlsplit(address).hostname or address
    if isinstance(answered, NotKnown):
        light = Light.RED if needed else Light.YELLOW
        return Finding(group="network", title=title, light=light, seen=f"{host}: {answered.why}", mend=f"curl -I {address}")
    return Finding(group="network", title=title, light=Light.GREEN, seen=f"{host} answers in {answered:.1f} s")


def telegram(name: str | NotKnown | None, *, sent: bool, quick: bool) -> Finding:
    """The bot: None when nobody is paired."""
    group, title = "network", "Telegram bot"
    if name is None:
        return Finding(group=group, title=title, light=Light.YELLOW, seen="nobody is paired: no messages", mend="./vigil pair")
    if isinstance(name, NotKnown):
        return Finding(group=group, title=title, light=Light.RED, seen=name.why, mend="./vigil pair")
    seen = f"@{name} answers; the message {'was left out (--quick)' if quick else 'arrived (silent)'}"
    if not sent and not quick:
        return Finding(
            group=group, title=title, light=Light.RED, seen=f"@{name} answers, but may not write to you", mend="./vigil pair"
        )
    return Finding(group=group, title=title, light=Light.GREEN, seen=seen)


# -- away from home


def service(enabled: str | NotKnown, active: str) -> Finding:
    """The service, as `systemctl is-enabled vigil` and `is-active` say."""
    install = "sudo ./install_wsl_service.sh install"
    if isinstance(enabled, NotKnown):
        return _away("service", Light.YELLOW, enabled.why, install)
    if enabled in ("enabled", "enabled-runtime", "static", "linked"):
        return _away("service", Light.GREEN, f"{enabled}, {active or 'not running'}")
    seen = "not installed" if enabled in ("", "not-found") else enabled
    return _away("service", Light.YELLOW, f"{seen}: a restart of the machine ends the run", install)


def windows(seen: Windows | NotKnown | None) -> list[Finding]:
    """Windows' own settings; None: this is no WSL."""
    mend = "sudo ./install_wsl_service.sh install"
    if seen is None:
        return []
    if isinstance(seen, NotKnown):
        return [_away("Windows", Light.YELLOW, f"not read: {seen.why}", "sudo ./install_wsl_service.sh verify")]
    idle = dict(IDLE.findall(seen.wslconfig))
    missing = [name for name in ("instanceIdleTimeout", "vmIdleTimeout") if idle.get(name) != "-1"]
    stays = _away(".wslconfig", Light.YELLOW, f"{', '.join(missing)} not -1: WSL ends when idle", mend)
    found = [stays if missing else _away(".wslconfig", Light.GREEN, "WSL stays when idle")]
    times = [int(value, 16) for value in re.findall(r"0x[0-9a-fA-F]{8}", seen.standby)]
    if len(times) < 2:
        found.append(not_known("away", "Windows' sleep", "powercfg did not say"))
    else:
        asleep = _away(
            "Windows' sleep",
            Light.RED,
            f"after {times[-2] // 60} min on mains",
            "powercfg /change standby-timeout-ac 0 (in Windows)",
        )
        found.append(asleep if times[-2] else _away("Windows' sleep", Light.GREEN, "never on mains"))
    task = _away("scheduled task", Light.YELLOW, "none is called after Vigil: after an update of Windows nothing starts WSL", mend)
    return [*found, _away("scheduled task", Light.GREEN, ", ".join(seen.tasks)) if seen.tasks else task]


def rehearsal(pipeline: Pipeline, kept: Mapping[str, Estimate], pipeline_path: str) -> Finding:
    """Whether every stage was rehearsed with the settings that it has now."""
    digests = {stage.name: digest_of(stage) for stage in pipeline.stages}
    done = [name for name, digest in digests.items() if name in kept and kept[name].digest == digest]
    if len(done) == len(digests):
        return _away("rehearsal", Light.GREEN, f"all {words.plural(len(done), 'stage')} rehearsed")
    left = [name for name in digests if name not in done]
    seen = f"{len(done)} of {len(digests)} stages rehearsed; not {', '.join(left[:3])}{' ...' if len(left) > 3 else ''}"
    return _away("rehearsal", Light.YELLOW, seen, f"./vigil rehearse {pipeline_path}")


def deadline(wanted: str | None, forecast: Forecast | None) -> list[Finding]:
    """The deadline against the newest forecast."""
    if wanted is None:
        return []
    if forecast is None:
        return [not_known("away", "deadline", f"{wanted}; there is no forecast before the rehearsal or the run")]
    end = words.day_and_clock(forecast.p80_at)
    if forecast.fits:
        return [_away("deadline", Light.GREEN, f"{wanted}; done by {end} in 4 of 5 cases")]
    return [_away("deadline", Light.YELLOW, f"{wanted}; done only by {end} in 4 of 5 cases", forecast.choice)]


def _away(title: str, light: Light, seen: str, mend: str = "") -> Finding:
    return Finding(group="away", title=title, light=light, seen=seen, mend=mend)


def by_model(seen: Sequence[ModelSeen]) -> dict[Model, ModelSeen]:
    """What was seen, by model."""
    return {one.model: one for one in seen}

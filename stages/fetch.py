"""The process that talks to the Hugging Face hub: looks for the models and the speech of a plan, or brings them into the cache.

    python -m stages.fetch look WORKSPACE < MODELS.json       # what is here, what the hub would give, how large it is
    python -m stages.fetch bring WORKSPACE < MODELS.json      # bring what is missing, check it, load it offline

MODELS.json is a list of `state.needs.Model`; each line of what comes out is a `state.needs.Said`, written as soon as it is known.
What is brought is what the stages' own loaders ask for (`chosen`) and nothing else, into the cache that they look into. A
file that was begun goes on where it stopped; of a data set of speech the first clips come, as many as the training will look at.
Afterwards a run with HF_HUB_OFFLINE=1 finds everything.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import msgspec

from stages.loading import SAFETENSORS_INDEX, TORCH_INDEX, check_model_folder, loading, resolve_model
from state.contract import MisconfiguredError, TransientError
from state.durable import file_digest
from state.needs import Cache, Fetching, Model, ModelSeen, Said, Where
from state.workspace import Workspace

TELL_EVERY_S = 0.5
API_TIMEOUT_S = 15.0
SMALL = (".json", ".txt", ".model", ".spm", ".jinja", ".vocab")
WEIGHTS = (
    ("model.safetensors",),
    (SAFETENSORS_INDEX, "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
    (TORCH_INDEX, "pytorch_model-*-of-*.bin"),
)
"""In the order in which transformers looks for them; the first that is there is loaded."""
CTRANSLATE2 = ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*")
"""As faster-whisper asks."""
BAG = ("*.yaml", "*.safetensors")
"""As demucs asks."""
BAG_MODELS = re.compile(r"^models:\s*(\[[^\]]*\]|(?:\n?\s*- .*)+)", re.MULTILINE)
"""In YAML, the one way or the other."""
SHA256 = re.compile(r"[0-9a-f]{64}")
LARGE_BYTES = 10_000_000
LOADERS = {
    "marian": ("MarianConfig", "MarianTokenizer"),
    "whisper": ("WhisperConfig", "WhisperProcessor"),
    "gemma": ("Gemma3Config", "AutoTokenizer"),
    "sounds": ("AutoConfig", "AutoFeatureExtractor"),
    "voices": ("AutoConfig", "AutoFeatureExtractor"),
}
"""What the stages load beside the weights, by class."""
HEADS = {"sounds": ("ForAudioClassification", "ForSequenceClassification"), "voices": ("ForXVector",)}
"""How `architectures` ends in the config.json of such a model; with another one the stage would compute with random numbers."""
CLIP_BYTES = 60_000
"""Five seconds, between mp3 and FLAC."""
VERIFY_TIMEOUT_S = 300.0
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Repository:
    """What a model needs of one repository of the hub."""

    name: str
    kind: str
    """Of the model, or `encoder`: the tokenizer and configuration that a COMET model is built around."""


# -- which files


def chosen(names: Sequence[str], kind: str) -> list[str]:
    """PURE: of a repository's files, those that a model of `kind` is loaded from; empty when it holds no weights."""
    if kind == "comet":
        return list(names) if "checkpoints/model.ckpt" in names else []
    root = [name for name in names if "/" not in name]
    if kind == "demucs":  # a repository holds one bag of models
        return _matching(root, BAG) if all(_matching(root, (pattern,)) for pattern in BAG) else []
    if kind == "ctranslate2":
        return _matching(root, CTRANSLATE2) if "model.bin" in root else []
    small = [name for name in root if name.endswith(SMALL) and not name.endswith(".index.json")]
    if kind == "encoder":
        return small
    weights = ("adapter_model.safetensors",) if kind == "adapter" else next((one for one in WEIGHTS if one[0] in root), ())
    found = _matching(root, weights)
    return [*small, *found] if found else []


def _matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


# -- looking


def look(workspace: Workspace, model: Model) -> ModelSeen:
    """What is known of `model`: whole here, or what the hub says of it."""
    if model.kind == "speech":
        return look_at_speech(workspace, model)
    seen = _look(workspace, model)
    found = (seen.config or {}).get("architectures") or []
    if found and not any(str(name).endswith(HEADS.get(model.kind, "")) for name in found):
        wanted = {"sounds": "classifies sounds", "voices": "tells speakers apart by x-vectors"}[model.kind]
        text = f"model {model.name} is a {', '.join(map(str, found))}, and none that {wanted}; name another"
        return ModelSeen(model=model, where=Where.BROKEN, text=text)
    return seen


def _check_name(workspace: Workspace, model: Model, here: Path) -> None:
    """Check that `model` is a folder or file as its stage wants it, or may be a name on the hub.

    Raises:
        MisconfiguredError: it is neither, or what there is is not whole.
    """
    if model.kind == "demucs":
        from stages import separation  # late: loads scipy

        separation.check(str(here) if here.exists() else model.name)
    elif model.kind != "comet":
        resolve_model(workspace, model.name, model.kind)  # type: ignore[arg-type]  # the kinds that are left are its own
    elif model.name.endswith(".ckpt") and not here.is_file():
        raise MisconfiguredError(f"COMET checkpoint {here} is not there; correct the path")


def _look(workspace: Workspace, model: Model) -> ModelSeen:
    here = workspace.root / Path(model.name).expanduser()
    try:
        _check_name(workspace, model, here)
    except MisconfiguredError as error:
        made = here.is_relative_to(workspace.models) and not here.exists()
        return ModelSeen(model=model, where=Where.MADE if made else Where.BROKEN, text=str(error))
    if here.exists():
        return ModelSeen(model=model, where=Where.HERE, size_bytes=_size(here), config=_config(here))
    repositories = repositories_of(model)
    folders = [cached(one) for one in repositories]
    if all(folders):
        whole = sum(_size(folder) for folder in folders if folder)
        return ModelSeen(model=model, where=Where.HERE, size_bytes=whole, config=_config(folders[0]))
    return _asked(model, [one for one, folder in zip(repositories, folders, strict=True) if folder is None])


def repositories_of(model: Model) -> list[Repository]:
    """What has to be in the cache for `model`."""
    if model.kind == "ctranslate2" and "/" not in model.name:
        from faster_whisper.utils import _MODELS  # late: loads ctranslate2

        return [Repository(_MODELS[model.name], model.kind)]
    if model.kind == "demucs":
        return [Repository(demucs_repository(model.name), model.kind)]
    found = [Repository(model.name, model.kind)]
    if model.kind == "comet" and (folder := cached(found[0])):
        found += [Repository(name, "encoder") for name in _encoders(folder)]
    return found


def demucs_repository(name: str) -> str:
    """Where `demucs.hf.get_hf_model(name)` finds a bag of models: `htdemucs_ft` in adefossez/HTDemucs-ft."""
    owner, _, bag = name.rpartition("/")
    kept = "HTDemucs" + bag[len("htdemucs") :].replace("_", "-", 1) if re.match(r"htdemucs(_|$)", bag) else f"Demucs-{bag}"
    return f"{owner or 'adefossez'}/{kept}"


def _encoders(folder: Path) -> list[str]:
    named = re.search(
        r"^pretrained_model:\s*[\"']?([^\s\"'#]+)", (folder / "hparams.yaml").read_text(encoding="utf-8"), re.MULTILINE
    )
    return [named[1]] if named else []


def cached(repository: Repository) -> Path | None:
    """The snapshot in the cache, if it is whole; the network is not asked."""
    from huggingface_hub.file_download import repo_folder_name

    storage = Path(constants().HF_HUB_CACHE) / repo_folder_name(repo_id=repository.name, repo_type="model")
    with contextlib.suppress(OSError, MisconfiguredError, ValueError):
        folder = storage / "snapshots" / (storage / "refs" / "main").read_text().strip()
        check_snapshot(folder, repository.kind)
        return folder
    return None


def check_snapshot(folder: Path, kind: str) -> None:
    """Check that a snapshot holds what a model of `kind` is loaded from.

    Raises:
        MisconfiguredError, OSError: it does not.
    """
    if kind == "comet":
        if not (folder / "hparams.yaml").stat().st_size or not (folder / "checkpoints" / "model.ckpt").stat().st_size:
            raise MisconfiguredError(f"{folder} is no whole COMET model")
    elif kind == "encoder":
        json.loads((folder / "config.json").read_bytes())
        if not any((folder / name).is_file() for name in ("tokenizer.json", "sentencepiece.bpe.model")):
            raise MisconfiguredError(f"{folder} holds no tokenizer")
    elif kind == "demucs":
        _check_bag(folder)
    else:
        check_model_folder(folder, kind)  # type: ignore[arg-type]  # the kinds that are left are its own


def _check_bag(folder: Path) -> None:
    """Check that each model that demucs's description of a bag names is there."""
    lists = [found[1] for path in folder.glob("*.yaml") if (found := BAG_MODELS.search(path.read_text(encoding="utf-8")))]
    named = [f"{name}.safetensors" for text in lists for name in re.findall(r"\w+", text)]
    missing = [name for name in named if not (folder / name).is_file()]
    if missing or not named:
        raise MisconfiguredError(f"{folder} is no whole bag of demucs models: {', '.join(missing) or 'it names none'}")


def look_at_speech(workspace: Workspace, model: Model) -> ModelSeen:
    """What is known of general speech: here and read as the training will read it, or what the hub says of it."""
    from stages import replay  # late: only where speech is named

    name = model.name.removeprefix(replay.HUB)
    folder = replay.brought(name) if name != model.name else workspace.root / Path(name).expanduser()
    if name != model.name and not folder.is_dir():
        return _asked_for_speech(model, name.split(":")[0], replay.SPARE)
    try:
        rows, why = replay.unpacked(folder, replay.SPARE * model.clips, seed=0)
        if not rows:
            raise MisconfiguredError(f"{why}; correct replay_source, or mend what is there")
        _check_sound(rows[0].path)
    except MisconfiguredError as error:
        return ModelSeen(model=model, where=Where.BROKEN, text=str(error))
    return ModelSeen(model=model, where=Where.HERE, size_bytes=sum(row.path.stat().st_size for row in rows), clips=len(rows))


def _check_sound(path: Path) -> None:
    from stages.recordings import NotAudioError, decode

    try:
        if not any(block.size for block in decode(path)):
            raise NotAudioError("there is no sound in it")
    except (NotAudioError, OSError) as error:
        raise MisconfiguredError(f"{path}: {error}; unpack the clips again") from error


def _asked_for_speech(model: Model, name: str, spare: int) -> ModelSeen:
    """The hub's word on a data set: whether its largest file would be given, and about how much will come."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    size_bytes = 0
    try:
        with loading(name):
            info = HfApi().dataset_info(name, files_metadata=True, timeout=API_TIMEOUT_S)
            sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            size_bytes = min(sum(sizes.values()), spare * model.clips * CLIP_BYTES)
            if sizes:
                get_hf_file_metadata(hf_hub_url(name, max(sizes, key=sizes.__getitem__), repo_type="dataset"))
    except (TransientError, MisconfiguredError) as error:
        return ModelSeen(model=model, where=where_of(error), text=str(error), size_bytes=size_bytes, missing_bytes=size_bytes)
    return ModelSeen(model=model, where=Where.TO_FETCH, size_bytes=size_bytes, missing_bytes=size_bytes)


def _asked(model: Model, repositories: Sequence[Repository]) -> ModelSeen:
    sizes = missing = 0
    try:
        files = [(one, files_of(one)) for one in repositories]
        sizes = sum(size for _one, part in files for size in part.values())
        missing = sum(size for one, part in files for name, size in part.items() if not _has(one, name))
        with loading(model.name):
            config = _remote_config(*files[0])
    except (TransientError, MisconfiguredError) as error:
        return ModelSeen(model=model, where=where_of(error), text=str(error), size_bytes=sizes, missing_bytes=missing)
    return ModelSeen(model=model, where=Where.TO_FETCH, size_bytes=sizes, missing_bytes=missing, config=config)


def files_of(repository: Repository) -> dict[str, int]:
    """The files to bring and their sizes in bytes, as the hub tells.

    Raises:
        TransientError, MisconfiguredError: as `stages.loading` says.
    """
    from huggingface_hub import HfApi

    with loading(repository.name):
        info = HfApi().model_info(repository.name, files_metadata=True, timeout=API_TIMEOUT_S)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    names = chosen(list(sizes), repository.kind)
    if not names:
        raise MisconfiguredError(f"model {repository.name}: the repository holds no {repository.kind} model; correct the name")
    return {name: sizes[name] for name in names}


def _remote_config(repository: Repository, files: dict[str, int]) -> dict[str, Any] | None:
    """The model's config.json, a few kB, into the cache: whether a file is given shows whether the others will be."""
    from huggingface_hub import hf_hub_download

    name = "config.json" if "config.json" in files else min(files, key=lambda one: files[one])
    return _config(Path(hf_hub_download(repository.name, name)).parent)


def where_of(error: BaseException) -> Where:
    """What an error of `stages.loading` means for the model."""
    if isinstance(error, TransientError):
        return Where.AWAY
    kinds: set[str] = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {base.__name__ for base in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    return Where.GATED if "GatedRepoError" in kinds else Where.DENIED


def _has(repository: Repository, name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository.name, name), str)


def _config(folder: Path | None) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = json.loads((folder / "config.json").read_bytes())  # type: ignore[operator]  # None is a TypeError
        return found if isinstance(found, dict) else None
    return None


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# -- bringing


def bring(workspace: Workspace, model: Model) -> ModelSeen:
    """Bring what is missing of `model`, compare it with the hub's digests, and load what is small without the network."""
    seen = look(workspace, model)
    if seen.where is not Where.TO_FETCH:
        return seen
    try:
        if model.kind == "speech":
            bring_speech(model, seen.size_bytes)
            return look(workspace, model)
        for repository in _growing(model):
            if cached(repository) is None:
                _download(model, repository)
        verify(model)
    except (TransientError, MisconfiguredError) as error:
        return ModelSeen(model=model, where=where_of(error), text=str(error), size_bytes=seen.size_bytes)
    return look(workspace, model)


def bring_speech(model: Model, size_bytes: int) -> None:
    """The first clips of a data set, to where the training looks before it asks the hub."""
    from stages import replay

    name, most, told = model.name.removeprefix(replay.HUB), replay.SPARE * model.clips, 0.0

    def beat(number: int) -> None:
        nonlocal told
        if time.monotonic() - told >= TELL_EVERY_S:
            told = time.monotonic()
            say(Fetching(model=model, done_bytes=size_bytes * number // most, total_bytes=size_bytes))

    replay.collect(name, replay.brought(name), most, beat)
    say(Fetching(model=model, done_bytes=size_bytes, total_bytes=size_bytes))


def _growing(model: Model) -> Iterator[Repository]:
    """The repositories, those too that are known only when the first is here."""
    done: list[Repository] = []
    while left := [one for one in repositories_of(model) if one not in done]:
        done.append(left[0])
        yield left[0]


def _download(model: Model, repository: Repository) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    files = files_of(repository)
    blobs = Path(constants().HF_HUB_CACHE) / repo_folder_name(repo_id=repository.name, repo_type="model") / "blobs"
    with _telling(model, blobs, sum(files.values())), loading(repository.name):
        for name in (name for name, size in files.items() if size >= LARGE_BYTES):
            _bring_large(repository, name, blobs)
        folder = Path(snapshot_download(repository.name, allow_patterns=list(files), max_workers=4))
    for name in files:
        _check_digest(folder / name)
    try:
        check_snapshot(folder, repository.kind)
    except OSError as error:
        raise MisconfiguredError(f"model {repository.name}: {error}; give the same command again") from error


def _bring_large(repository: Repository, name: str, blobs: Path) -> None:
    """One large file into the cache's store, going on where a killed process stopped; huggingface_hub 2.4 would begin anew.

    `snapshot_download` finds it there by its digest.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    file = get_hf_file_metadata(hf_hub_url(repository.name, name))
    blob = blobs / str(file.etag)
    if not SHA256.fullmatch(blob.name) or blob.exists():
        return
    blobs.mkdir(parents=True, exist_ok=True)
    headers = build_hf_headers()
    if urlsplit(file.location).netloc != urlsplit(constants().ENDPOINT).netloc:
        headers.pop("authorization", None)  # the store behind the hub signs its addresses
    part = blob.with_name(f"{blob.name}.vigil-part")
    with open(part, "ab") as target:
        http_get(file.location, target, resume_size=target.tell(), headers=headers, expected_size=file.size)
        target.flush()
        os.fsync(target.fileno())
    os.replace(part, blob)
    for torn in blobs.glob(f"{blob.name}.*.incomplete"):
        torn.unlink(missing_ok=True)


def constants() -> Any:
    """huggingface_hub's settings, of the environment."""
    from huggingface_hub import constants as found

    return found


def _check_digest(path: Path) -> None:
    """A large file's blob is named after its SHA-256: one that differs is removed, so that the next try brings it anew."""
    blob = path.resolve()
    if SHA256.fullmatch(blob.name) and file_digest(blob) != blob.name:
        blob.unlink()
        path.unlink()
        raise TransientError(f"{path.name} was damaged on its way here and was removed; give the same command again")


@contextlib.contextmanager
def _telling(model: Model, blobs: Path, total_bytes: int) -> Iterator[None]:
    """Tell what the cache holds of it, again and again."""
    done = threading.Event()

    def tell() -> None:
        told = -1
        while not done.wait(TELL_EVERY_S):
            with contextlib.suppress(OSError):
                size = sum(file.stat().st_size for file in blobs.iterdir())
                if size != told:
                    say(Fetching(model=model, done_bytes=min(size, total_bytes), total_bytes=total_bytes))
                told = size

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        say(Fetching(model=model, done_bytes=total_bytes, total_bytes=total_bytes))


# -- proving


def verify(model: Model) -> None:
    """Load configuration and tokenizer of `model` in a process without the network, as the stages do.

    Raises:
        MisconfiguredError: it cannot be loaded.
    """
    python, code = sys.executable, [*("-m", "stages.fetch", "prove"), model.kind, model.name]
    if model.kind == "comet":
        from stages.comet_scores import comet_python

        comet = comet_python()
        if comet is None:
            return
        python, code = str(comet), ["-I", "-c", PROVE_COMET, model.name]
    environment = {**os.environ, **OFFLINE}
    try:
        done = subprocess.run(
            [python, *code], env=environment, capture_output=True, text=True, timeout=VERIFY_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise TransientError(f"model {model.name} is here; loading its tokenizer took over {VERIFY_TIMEOUT_S:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise MisconfiguredError(f"model {model.name} is here and cannot be loaded without the network ({said[:300]})")


PROVE_COMET = """
import sys, os, yaml
from huggingface_hub import snapshot_download
from transformers import XLMRobertaConfig, XLMRobertaTokenizerFast
hparams = yaml.safe_load(open(os.path.join(snapshot_download(sys.argv[1]), "hparams.yaml")))
if "pretrained_model" in hparams:
    XLMRobertaTokenizerFast.from_pretrained(hparams["pretrained_model"])
    XLMRobertaConfig.from_pretrained(hparams["pretrained_model"])
"""
"""As `comet.load_from_checkpoint` does it, without the checkpoint of 2 GB itself."""


def prove(kind: str, name: str) -> None:
    """Load configuration and tokenizer by the classes of the stages; whatever goes wrong is raised."""
    if kind == "ctranslate2":
        from faster_whisper.utils import download_model
        from tokenizers import Tokenizer

        Tokenizer.from_file(str(Path(download_model(name, local_files_only=True)) / "tokenizer.json"))
        return
    if kind == "adapter":
        from peft import PeftConfig

        PeftConfig.from_pretrained(name)
        return
    if kind == "demucs":
        from stages.separation import voice_of

        voice_of(name)
        return
    import transformers  # its classes are imported one by one, when they are asked for

    for loader in LOADERS[kind]:
        getattr(transformers, loader).from_pretrained(name)


# -- the process


def say(said: Said) -> None:
    """One line, at once."""
    sys.stdout.buffer.write(msgspec.json.encode(said) + b"\n")
    sys.stdout.buffer.flush()


def main(arguments: Sequence[str]) -> int:
    """Look for, or bring, the models on standard input."""
    if arguments[0] == "prove":
        prove(arguments[1], arguments[2])
        return 0
    from huggingface_hub import get_token

    act = {"look": look, "bring": bring}[arguments[0]]
    models = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Model])
    say(Cache(folder=str(constants().HF_HUB_CACHE), offline=bool(constants().HF_HUB_OFFLINE), token=get_token() is not None))
    for model in models:
        say(act(Workspace.at(arguments[1]), model))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

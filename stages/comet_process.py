"""COMET scores of a file of translations: rows in, scores out, in a process and an environment of its own.

    python stages/comet_process.py IN.jsonl OUT.json --model MODEL [--gpus 0] [--batch 16] [--parent PID]

COMET's pins (transformers below 5, numpy below 2) cannot stand beside the rest of Vigil, so this file imports the
standard library and comet and nothing of Vigil. MODEL is a checkpoint file or a hub name. IN.jsonl holds one
`{"id", "src", "mt", "ref"}` a line, `ref` empty for a metric that needs none. Scores land chunk by chunk, fsynced, in
OUT.json.parts.jsonl
(`{"model", "scores": {id: score}}`); rows that stand there for the same checkpoint are not scored again, so a killed
process loses one chunk. At the end OUT.json appears by rename:
`{"schema": 1, "name", "model", "sha256", "demo", "version", "scores": {id: score}}`.

Checkpoints are read by torch with weights_only, so nothing in them is executed. Exit codes: 0, 75 (the hub did not give the
model), 78 (the model or the input is wrong), 80 (out of memory at batch 1).
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = str(Path(__file__).resolve().parent)
sys.path[:] = [folder for folder in sys.path if folder != HERE]  # a script's folder comes first: its modules would hide others

CHUNK_ROWS = 128
DOWNLOAD_TRIES = 3
DOWNLOAD_WAIT_S = 20.0
PR_SET_PDEATHSIG = 1
TRANSIENT, MISCONFIGURED, OUT_OF_MEMORY = 75, 78, 80
DEMO_MARK = "vigil_demo_metric"


def main() -> int:
    """Score IN.jsonl and write OUT.json; the exit code says what went wrong."""
    arguments = parse()
    die_with(arguments.parent)
    rows = [json.loads(line) for line in arguments.rows.read_bytes().splitlines() if line.strip()]
    quieten()
    checkpoint = find(arguments.model)
    if checkpoint is None:
        return MISCONFIGURED if looks_like_file(arguments.model) else TRANSIENT
    identity = {"model": arguments.model, "sha256": file_sha256(checkpoint)}
    parts = Path(f"{arguments.out}.parts.jsonl")
    scores = kept(parts, identity["sha256"])
    missing = sorted(
        (row for row in rows if row["id"] not in scores), key=lambda row: (len(row["src"]) + len(row["mt"]), row["id"])
    )
    if missing:
        model = load(checkpoint)
        gpus = arguments.gpus if gpu_there() else 0
        batch = arguments.batch
        for start in range(0, len(missing), CHUNK_ROWS):
            chunk = missing[start : start + CHUNK_ROWS]
            values, batch = score(model, chunk, batch, gpus)
            found = {row["id"]: round(float(value), 6) for row, value in zip(chunk, values, strict=True)}
            append(parts, {"model": identity["sha256"], "scores": found})
            scores.update(found)
    write(
        arguments.out,
        {
            "schema": 1,
            **identity,
            **described(checkpoint, arguments.model),
            "scores": {row["id"]: scores[row["id"]] for row in rows},
        },
    )
    return 0


def parse() -> argparse.Namespace:
    """The command line, paths made absolute."""
    parser = argparse.ArgumentParser(description="COMET scores of a file of translations")
    parser.add_argument("rows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--gpus", type=int, default=0, choices=(0, 1))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--parent", type=int, default=0, help="pid of the stage: this process ends with it")
    arguments = parser.parse_args()
    arguments.rows, arguments.out = arguments.rows.resolve(), arguments.out.resolve()
    return arguments


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when `parent` ends: no orphan may keep the GPU after its stage was killed."""
    if parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)


def quieten() -> None:
    """Set what must stand before comet is imported: nothing unpickled, no telemetry, no warnings about others' code."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.filterwarnings("ignore")


def looks_like_file(model: str) -> bool:
    """Whether `model` is meant as a path: a hub name has exactly one slash and no suffix of a checkpoint."""
    return model.endswith(".ckpt") or model.startswith((".", "/", "~")) or model.count("/") != 1


def find(model: str) -> Path | None:
    """The checkpoint file, fetched from the hub if need be; None, with the reason on standard error, when it is not to be had."""
    path = Path(model).expanduser()
    if path.is_file():
        return path.resolve()
    if looks_like_file(model):
        print(f"COMET checkpoint {model} is not there", file=sys.stderr)
        return None
    from comet import download_model

    for attempt in range(DOWNLOAD_TRIES):
        try:
            return Path(download_model(model))
        except Exception as error:  # comet raises KeyError for whatever the hub said
            print(f"COMET model {model} could not be fetched ({error}); try {attempt + 1} of {DOWNLOAD_TRIES}", file=sys.stderr)
        time.sleep(DOWNLOAD_WAIT_S if attempt + 1 < DOWNLOAD_TRIES else 0)
    return None


def load(checkpoint: Path) -> Any:
    """The model; a relative encoder path in its hyperparameters counts from the model's own folder.

    The tokenizer and the configuration of the encoder named there are loaded too: from the cache or the hub.
    """
    from comet import load_from_checkpoint

    for name in ("pytorch_lightning", "lightning_fabric"):  # after the import, which sets them: a banner for every chunk
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)
    os.chdir(checkpoint.parents[1])
    return load_from_checkpoint(str(checkpoint))


def gpu_there() -> bool:
    """Whether this environment's torch sees a GPU."""
    import torch

    return bool(torch.cuda.is_available())


def score(model: Any, chunk: list[dict[str, str]], batch: int, gpus: int) -> tuple[list[float], int]:
    """Scores of a chunk and the batch that fitted, halved until it does; leaves with code 80 when one row does not fit."""
    samples = [{name: row[name] for name in ("src", "mt", "ref") if row[name]} | {"mt": row["mt"]} for row in chunk]
    while True:
        try:
            return model.predict(samples, batch_size=batch, gpus=gpus, num_workers=0, progress_bar=False).scores, batch
        except (RuntimeError, MemoryError) as error:
            said = str(error).lower()  # CUBLAS_STATUS_ALLOC_FAILED is one, too
            if not (isinstance(error, MemoryError) or "memory" in said or "alloc_failed" in said):
                raise
            print(f"out of memory at batch {batch}", file=sys.stderr)
        if batch == 1:
            sys.exit(OUT_OF_MEMORY)
        batch //= 2


def described(checkpoint: Path, model: str) -> dict[str, Any]:
    """What the report should call the metric."""
    import yaml

    hparams = yaml.safe_load((checkpoint.parents[1] / "hparams.yaml").read_text(encoding="utf-8"))
    demo = hparams.get(DEMO_MARK)
    return {"name": demo or model, "demo": bool(demo), "version": version("unbabel-comet")}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept(parts: Path, checkpoint: str) -> dict[str, float]:
    """Scores of earlier processes by the same checkpoint; a torn last line is passed over."""
    scores: dict[str, float] = {}
    if parts.exists():
        for line in parts.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                part = json.loads(line)
                if part["model"] == checkpoint:
                    scores.update(part["scores"])
    return scores


def append(path: Path, part: dict[str, Any]) -> None:
    """Append one line, durably; a torn last line is ended first."""
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with open(path, "ab") as file:
        file.write((b"\n" if torn else b"") + json.dumps(part).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def write(path: Path, content: dict[str, Any]) -> None:
    """Replace `path` whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())

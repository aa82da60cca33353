"""Trains a small Marian from nothing on real verses and says whether the scores rose: benchmarks/real_marian.toml, run and judged.

    python -m benchmarks.real_marian --workspace FOLDER [--data FOLDER]

`--data` holds `bible_databases/` in scrollmapper's layout, its files packed by xz or not (default: ../shared/data beside
the repository). A second call with the same workspace goes on where the first one was. Exit 0: BLEU and chrF++ rose and a paired
bootstrap says p < 0.05 for both; 1: they did not; else the exit code of the run.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from state.durable import write_atomically
from state.workspace import Workspace

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "benchmarks" / "real_marian.toml"
SIGNIFICANT_P = 0.05


def main() -> int:
    """Run, judge, and print one line a metric."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    arguments = parser.parse_args()
    workspace = Workspace.at(arguments.workspace)
    unpack(arguments.data / "bible_databases", workspace.root / "source" / "bible_databases")
    started = time.monotonic()
    command = [sys.executable, "-m", "daemon.cli", "run", str(PIPELINE), "--workspace", str(workspace.root)]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    if code != 0:
        return code
    compared = json.loads(workspace.eval_results.read_bytes())["comparisons"]["after"]["models"]["Marian"]
    trained = json.loads(workspace.result("train_marian").read_bytes())["metrics"]
    print(f"{trained['training_pairs']:.0f} training pairs, {time.monotonic() - started:.0f} s in all")
    verdicts = [rose(name, compared["overall"][name]) for name in ("bleu", "chrf")]
    return 0 if all(verdicts) else 1


def unpack(source: Path, target: Path) -> None:
    """Copy the texts to `target`, unpacking what xz packed; files that are there already are left alone."""
    if not source.is_dir():
        sys.exit(f"{source} is not there; name the folder that holds bible_databases with --data")
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        unpacked = target / (relative.with_suffix("") if path.suffix == ".xz" else relative)
        if path.is_file() and not unpacked.exists():
            unpacked.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".xz":
                write_atomically(unpacked, lzma.decompress(path.read_bytes()))
            else:
                shutil.copyfile(path, unpacked)


def rose(name: str, delta: dict[str, Any]) -> bool:
    """Whether the metric rose and chance is no explanation; printed too."""
    real = delta["delta"] > 0 and delta["p_value"] < SIGNIFICANT_P
    interval = f"95 % interval {delta['ci_low']:+.2f} to {delta['ci_high']:+.2f}"
    print(f"{name}: {delta['before']:.2f} -> {delta['after']:.2f} ({delta['delta']:+.2f}, {interval}, p = {delta['p_value']:.4f})")
    return bool(real)


if __name__ == "__main__":
    sys.exit(main())

"""Power cuts on a true ext4 or xfs: a loop device, shut down in mid-write by the call that fstests uses. Needs root and mkfs.

  python -m tests.faults.realfs tests.faults.store_program --fs xfs --cuts 200

The cut comes when a number was promised, or at a random instant. The file system stops without a flush, the program is killed, the
journal is replayed by the next mount, and what is found must hold every promise.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.program import Program, acked, fault_of, fork, load

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), xfs_fs.h; ext4 has the same
NO_LOG_FLUSH = struct.pack("I", 2)
MKFS = {"ext4": ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"], "xfs": ["mkfs.xfs", "-q", "-f"]}
SIZE_BYTES = {"ext4": 64 << 20, "xfs": 320 << 20}
ENDLESS = 1_000_000


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120)


@contextlib.contextmanager
def mounted(image: Path, target: Path, kind: str) -> Iterator[int]:
    """The file system in `image` at `target`, and a handle on it."""
    run("mount", "-t", kind, "-o", "loop", str(image), str(target))
    handle = os.open(target, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)
        run("umount", str(target))


def until(reader: int, number: int | None, seconds: float) -> bytes:
    """What the program says until it has promised `number`, or for so long."""
    said, end = b"", time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not (number and b"ACK %d\n" % number in said):
        if select.select([reader], [], [], left)[0]:
            said += os.read(reader, 65536)
    return said


def cut(program: Program, image: Path, mount: Path, kind: str, number: int | None, seconds: float) -> tuple[int, str]:
    """One power cut after `number` was promised or so many seconds: what had been promised, and what is wrong."""
    folder = mount / "d"
    reader, writer = os.pipe()
    with mounted(image, mount, kind) as handle:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.fsync(handle)
        pid = fork(program, folder, ENDLESS, writer, stopped=False)
        try:
            said = until(reader, number, seconds)
            os.kill(pid, signal.SIGSTOP)  # the machine stops ...
            fcntl.ioctl(handle, SHUTDOWN, NO_LOG_FLUSH)  # ... and nothing more reaches the disk
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(writer)
        while more := os.read(reader, 65536):
            said += more
        os.close(reader)
    promised = acked(said)
    with mounted(image, mount, kind):
        return promised, fault_of(program, folder, promised, rerun=False)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--fs", choices=sorted(MKFS), default="ext4")
    parser.add_argument("--cuts", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--window-s", type=float, default=0.3)
    args = parser.parse_args(argv)
    program, rng, faults, seconds, promises = load(args.program), random.Random(args.seed), [], [], 0
    with tempfile.TemporaryDirectory(prefix="realfs.", dir="/dev/shm") as name:
        image, mount = Path(name) / "image", Path(name) / "mount"
        mount.mkdir()
        image.touch()
        os.truncate(image, SIZE_BYTES[args.fs])
        run(*MKFS[args.fs], str(image))
        for index in range(args.cuts):
            began = time.monotonic()
            number = index // 2 % 10 + 1 if index % 2 == 0 else None
            promised, why = cut(program, image, mount, args.fs, number, 30.0 if number else rng.uniform(0, args.window_s))
            promises += promised
            seconds.append(time.monotonic() - began)
            if why:
                faults.append(f"cut {index}: {why}")
    print(f"{args.fs:<5} cuts={args.cuts} promises={promises} violations={len(faults)} median {statistics.median(seconds):.2f} s")
    print("\n".join(f"  {fault}" for fault in faults[:5]))
    return 1 if faults or not promises else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

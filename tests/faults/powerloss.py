"""Power cuts over a recorded run: every disk image that un-fsynced data and names allow, for two kinds of file system.

  python -m tests.faults.powerloss tests.faults.store_program --model posix
  python -m tests.faults.powerloss tests.faults.store_program --eio

  posix   a name is durable only after fsync of its folder; of the others any subset may be there (the strictest)
  ext4    a successful fsync commits every earlier name; of the others any prefix may be there; data of a file that was renamed
          over an existing one is written first (auto_da_alloc)
  --eio   the run is recorded once for each fsync, which fails with EIO: its pages are dropped and marked clean, so that a later
          fsync of that file does not bring them back (https://lwn.net/Articles/752063/)

After every recorded change, each image must hold every promise made before it, and a rerun on it must reach the end. Calls that are
not modelled are refused, but for memory maps, which are not seen.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tests.faults.crashpoint import fresh
from tests.faults.program import MARKER, Program, acked, fault_of, load, silent, traced

TRACED = (
    "openat,close,write,pwrite64,writev,pwritev,lseek,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,"
    "linkat,symlink,symlinkat,ftruncate,truncate,fcntl,dup,sendfile,copy_file_range,fallocate,sync,newfstatat"
)
UNKNOWN = {"writev", "pwritev", "symlink", "symlinkat", "truncate", "sendfile", "copy_file_range", "fallocate", "sync"}
LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|\?)")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
SUBSETS_OF = 8  # up to so many names every subset is tried, beyond that a sample


@dataclass(eq=False)
class Inode:
    """A file or a folder; `writes` are (offset, bytes), or (None, bytes of that new length) for a truncation."""

    is_folder: bool
    writes: list[tuple[int | None, bytes]] = field(default_factory=list)
    synced: int = 0
    """So many of the writes are on disk."""


@dataclass
class Name:
    """A change of names: link, unlink, rename or exchange."""

    kind: str
    paths: tuple[str, ...]
    inode: Inode | None = None
    replaces: bool = False
    durable: bool = False


@dataclass
class Handle:
    path: str
    inode: Inode
    offset: int = 0
    appends: bool = False


class Disk:
    """Replays a trace call by call: what the storage holds for certain, and what it may hold."""

    def __init__(self, root: Path, model: str) -> None:
        self.root, self.model = PurePosixPath(root), model
        self.tree: dict[str, Inode] = {"": Inode(is_folder=True)}
        self.names: list[Name] = []
        self.handles: dict[int, Handle] = {}
        self.acked = 0
        self.started = False
        self.written = 0

    @property
    def version(self) -> tuple[int, int, int]:
        """Changes with all that adds an image; an fsync only takes some away."""
        return self.acked, len(self.names), self.written

    def feed(self, line: str) -> None:
        match = LINE.match(line)
        if match is None:
            return
        call, text, result = match[1], match[2], -1 if match[3] == "?" else int(match[3])
        paths = [bytes.fromhex(found.replace("\\x", "")) for found in STRING.findall(text)]
        arguments = STRING.sub("S", text).split(", ")
        if call in ("fsync", "fdatasync"):
            self._sync(int(arguments[0]), result == 0)
        elif call == "newfstatat":
            self.started = self.started or paths[:1] == [MARKER.encode()]
        elif result >= 0:
            self._apply(call, arguments, paths, result)

    def _apply(self, call: str, arguments: list[str], strings: list[bytes], result: int) -> None:
        if call == "write" and arguments[0] == "1":
            self.acked = max(self.acked, acked(strings[0]))
        elif call in ("write", "pwrite64", "lseek", "ftruncate"):
            self._data(call, arguments, strings, result)
        elif call == "openat":
            self._open(self._path(arguments[0], strings[0]), arguments[2], result)
        elif call == "close":
            self.handles.pop(int(arguments[0]), None)
        elif call in ("fcntl", "dup"):
            if (call == "dup" or "F_DUPFD" in arguments[1]) and int(arguments[0]) in self.handles:
                self.handles[result] = self.handles[int(arguments[0])]
        elif call in UNKNOWN:
            raise SystemExit(f"{call} is not modelled")
        else:
            self._rename(call, arguments, strings)

    def _path(self, at: str, raw: bytes) -> str | None:
        """Relative to the root; None outside it."""
        path = PurePosixPath(raw.decode())
        if not path.is_absolute():
            if at == "AT_FDCWD" or int(at) not in self.handles:
                return None
            path = self.root / self.handles[int(at)].path / path
        if not path.is_relative_to(self.root):
            return None
        relative = path.relative_to(self.root).as_posix()
        return "" if relative == "." else relative

    def _open(self, path: str | None, flags: str, handle: int) -> None:
        if path is None:
            return
        inode = self.tree.get(path)
        if inode is None:
            inode = self.tree[path] = Inode(is_folder=False)
            self.names.append(Name("link", (path,), inode))
        elif "O_TRUNC" in flags:
            inode.writes.append((None, b""))
        self.handles[handle] = Handle(path, inode, appends="O_APPEND" in flags)

    def _data(self, call: str, arguments: list[str], strings: list[bytes], result: int) -> None:
        handle = self.handles.get(int(arguments[0]))
        if handle is None:
            return
        self.written += call != "lseek"
        if call == "lseek":
            handle.offset = result
        elif call == "ftruncate":
            handle.inode.writes.append((None, content(handle.inode.writes)[: int(arguments[1])]))
        elif call == "pwrite64":
            handle.inode.writes.append((int(arguments[3]), strings[0][:result]))
        else:
            offset = len(content(handle.inode.writes)) if handle.appends else handle.offset
            handle.inode.writes.append((offset, strings[0][:result]))
            handle.offset = offset + result

    def _rename(self, call: str, arguments: list[str], strings: list[bytes]) -> None:
        ats = [arguments[0], arguments[2]] if call in ("renameat", "renameat2", "linkat") else [arguments[0]] * 2
        paths = tuple(path for at, raw in zip(ats, strings, strict=False) if (path := self._path(at, raw)) is not None)
        if len(paths) != len(strings):
            return
        if call.startswith("rename"):
            name = Name(
                "exchange" if "RENAME_EXCHANGE" in arguments[-1] else "rename", paths, self.tree[paths[0]], paths[1] in self.tree
            )
        elif call.startswith("link"):
            name = Name("link", paths[1:], self.tree[paths[0]])
        elif call.startswith("mkdir"):
            name = Name("link", paths, Inode(is_folder=True))
        else:
            name = Name("unlink", paths)
        self.names.append(name)
        perform(self.tree, name)

    def _sync(self, number: int, done: bool) -> None:
        handle = self.handles.get(number)
        if handle is None:
            return
        if not done:
            del handle.inode.writes[handle.inode.synced :]  # dropped, and counted as clean from now on
            return
        handle.inode.synced = len(handle.inode.writes)
        for name in self.names:
            touched = {str(PurePosixPath(path).parent) for path in name.paths}
            name.durable = name.durable or self.model == "ext4" or (handle.path or ".") in touched
        self._forget_removed()

    def _forget_removed(self) -> None:
        """What happened below a folder that is durably gone makes no difference any more."""
        below: tuple[str, ...] = ()
        for name in reversed(self.names):
            if name.kind == "unlink" and name.durable:
                below = (*below, name.paths[0] + "/")
            name.durable = name.durable or (bool(below) and all(path.startswith(below) for path in name.paths))

    def images(self, limit: int, rng: random.Random) -> Iterator[dict[str, bytes | None]]:
        """What may be on disk after a power cut now: contents by path, None for a folder."""
        for picked in self._picks(limit, rng):
            tree, flushed = self._tree(picked)
            inodes = [inode for inode in dict.fromkeys(tree.values()) if not inode.is_folder]
            choices = [[content(inode.writes)] if inode in flushed else contents(inode) for inode in inodes]
            for chosen in combinations(choices, limit, rng):
                held = dict(zip(inodes, chosen, strict=True))
                yield {path: held.get(inode) for path, inode in tree.items()}

    def _picks(self, limit: int, rng: random.Random) -> Iterable[set[int]]:
        open_ones = [index for index, name in enumerate(self.names) if not name.durable]
        if self.model == "ext4":
            return [set(open_ones[:count]) for count in range(len(open_ones) + 1)]
        if len(open_ones) <= SUBSETS_OF:
            return map(set, itertools.chain.from_iterable(itertools.combinations(open_ones, n) for n in range(len(open_ones) + 1)))
        sample = [{index for index in open_ones if rng.random() < 0.5} for _ in range(limit)]
        return [set(), set(open_ones), *sample]

    def _tree(self, picked: set[int]) -> tuple[dict[str, Inode], set[Inode]]:
        tree: dict[str, Inode] = {"": self.tree[""]}
        flushed = set[Inode]()
        for index, name in enumerate(self.names):
            if name.durable or index in picked:
                perform(tree, name)
                if self.model == "ext4" and name.kind == "rename" and name.replaces and name.inode is not None:
                    flushed.add(name.inode)
        whole = {path: inode for path, inode in tree.items() if all(parent in tree for parent in parents(path))}
        whole.pop("")
        return whole, flushed


def perform(tree: dict[str, Inode], name: Name) -> None:
    """Apply a change of names; what it moved may be missing where an earlier change was lost."""
    first, last = name.paths[0], name.paths[-1]
    if name.kind == "unlink":
        tree.pop(first, None)
        return
    if name.kind == "link":
        assert name.inode is not None
        tree[first] = name.inode
        return
    moved = take(tree, first)
    if name.kind == "exchange":
        tree.update({first + path: inode for path, inode in take(tree, last).items()})
    if name.inode is not None and moved.setdefault("", name.inode) is not name.inode:
        moved = {"": name.inode}  # what is renamed is the file itself, whatever became of the changes before
    tree.update({last + path: inode for path, inode in moved.items()})


def take(tree: dict[str, Inode], top: str) -> dict[str, Inode]:
    """Remove `top` and what is below it from the tree; by the rest of their paths."""
    return {path[len(top) :]: tree.pop(path) for path in list(tree) if path == top or path.startswith(top + "/")}


def parents(path: str) -> list[str]:
    return ["" if str(parent) == "." else str(parent) for parent in PurePosixPath(path).parents]


def content(writes: Sequence[tuple[int | None, bytes]]) -> bytes:
    data = bytearray()
    for offset, piece in writes:
        if offset is None:
            data = bytearray(piece)
        else:
            data.extend(bytes(max(0, offset - len(data))))
            data[offset : offset + len(piece)] = piece
    return bytes(data)


def contents(inode: Inode) -> list[bytes]:
    """What a file may hold: any number of its un-synced writes, the last one torn, or the new length with zeros."""
    writes = inode.writes
    found = [content(writes[:count]) for count in range(inode.synced, len(writes) + 1)]
    if inode.synced < len(writes):
        offset, piece = writes[-1]
        if offset is not None:
            found.append(content([*writes[:-1], (offset, piece[: len(piece) // 2])]))
        found.append(found[0].ljust(len(content(writes)), b"\0"))
    return list(dict.fromkeys(found))


def combinations(choices: list[list[bytes]], limit: int, rng: random.Random) -> Iterable[tuple[bytes, ...]]:
    total = 1
    for choice in choices:
        total *= len(choice)
    if total <= limit:
        return itertools.product(*choices)
    return (tuple(rng.choice(choice) for choice in choices) for _ in range(limit))


@dataclass
class Tally:
    """What came of the images."""

    cuts: int = 0
    images: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n  ".join(
            [f"cuts={self.cuts} distinct images={self.images} violations={len(self.violations)}", *self.violations[:5]]
        )


def cut(program: Program, root: Path, trace: Path, model: str, limit: int, tally: Tally, seen: set[bytes]) -> None:
    """The images of one recorded run, each checked once."""
    disk, rng = Disk(root / "d", model), random.Random(0)
    for line in trace.read_text().splitlines():
        before = disk.version
        disk.feed(line)
        if not disk.started or disk.version == before:
            continue
        tally.cuts += 1
        for image in disk.images(limit, rng):
            key = hashlib.blake2b(repr((disk.acked, sorted(image.items()))).encode()).digest()
            if key in seen:
                continue
            seen.add(key)
            tally.images += 1
            if why := fault_of(program, lay_out(image, root / "x"), disk.acked):
                tally.violations.append(f"after {line.split('(')[0]} (cut {tally.cuts}): {why}")


def lay_out(image: dict[str, bytes | None], parent: Path) -> Path:
    parent.mkdir(exist_ok=True)
    folder = fresh(parent)
    for path, data in sorted(image.items()):
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
    return folder


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--model", choices=["posix", "ext4"], default="posix")
    parser.add_argument("--limit", type=int, default=60, help="images of one cut and one choice of names, at most")
    parser.add_argument("--eio", action="store_true")
    args = parser.parse_args(argv)
    program, tally, seen, began, fired = load(args.program), Tally(), set[bytes](), time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="powerloss.", dir="/dev/shm") as name:
        root, trace = Path(name), Path(name) / "trace"
        program.work(fresh(root), program.LAST, silent)
        while True:
            inject = ["-e", f"inject=fsync,fdatasync:error=EIO:when={fired + 1}"] if args.eio else []
            status, promised = traced(program, fresh(root), trace, ["-xx", "-s", "16777216", "-e", f"trace={TRACED}", *inject])
            if args.eio and "(INJECTED)" not in trace.read_text():
                break
            fired += args.eio
            if not args.eio and (status or promised != program.LAST):
                raise SystemExit(f"the undisturbed run failed: status {status}, acked {promised}")
            cut(program, root, trace, args.model, args.limit, tally, seen)
            if not args.eio:
                break
    print(f"{args.model} fsyncs failed={fired} {tally} {time.monotonic() - began:.1f} s")
    return 1 if tally.violations or not tally.images else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""From what was raised to an exit code: every error says what the daemon should do about it."""

from __future__ import annotations

import errno
import gc
import http.client
import resource
import signal
import socket
import ssl
import subprocess
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path

import httpx
import msgspec
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from stages.runtime import exit_code
from state import contract
from state.contract import ExitCode


def from_cause(error: Exception, cause: BaseException) -> Exception:
    """`error` raised from `cause`."""
    try:
        raise error from cause
    except Exception as raised:
        return raised


def while_handling(error: Exception, other: BaseException) -> Exception:
    """`error`, raised by code that was handling `other`."""
    try:
        try:
            raise other
        except BaseException:
            raise error  # noqa: B904  the implicit context is the point
    except Exception as raised:
        return raised


def answer(status: int) -> httpx.HTTPStatusError:
    """What `raise_for_status` raises."""
    request = httpx.Request("GET", "https://example.org")
    return httpx.HTTPStatusError(f"{status}", request=request, response=httpx.Response(status, request=request))


DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (contract.StopRequested(), ExitCode.STOPPED),
        (contract.MisconfiguredError(), ExitCode.MISCONFIGURED),
        (contract.DivergedError(), ExitCode.DIVERGED),
        (contract.DiskFullError(), ExitCode.DISK_FULL),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), ExitCode.OUT_OF_MEMORY),
        (torch.AcceleratorError("CUDA error: out of memory"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA driver error: out of memory"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("Error: out of memory at line 380 in file /src/csrc/ops.cu"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: device not ready"), ExitCode.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), ExitCode.OUT_OF_MEMORY),
        (MemoryError(), ExitCode.OUT_OF_MEMORY),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ExitCode.OUT_OF_MEMORY),
        *(
            (OSError(number, "x"), ExitCode.DISK_FULL)
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)
        ),
        (ConnectionResetError(errno.ECONNRESET, "x"), ExitCode.TRANSIENT),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), ExitCode.TRANSIENT),
        (TimeoutError("timed out"), ExitCode.TRANSIENT),
        (socket.gaierror(-3, "Temporary failure in name resolution"), ExitCode.TRANSIENT),
        (ssl.SSLError("handshake"), ExitCode.TRANSIENT),
        (http.client.IncompleteRead(b""), ExitCode.TRANSIENT),
        (urllib.error.URLError("no route"), ExitCode.TRANSIENT),
        (httpx.ConnectTimeout("x"), ExitCode.TRANSIENT),
        (httpx.RemoteProtocolError("x"), ExitCode.TRANSIENT),
        (LocalEntryNotFoundError("the hub cannot be reached"), ExitCode.TRANSIENT),
        (answer(503), ExitCode.TRANSIENT),
        (answer(429), ExitCode.TRANSIENT),
        (answer(404), 1),
        (BrokenPipeError(errno.EPIPE, "a worker died"), 1),
        (FileNotFoundError(errno.ENOENT, "x"), 1),
        (PermissionError(errno.EACCES, "x"), 1),
        (KeyError("memory"), 1),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 1),
        (KeyboardInterrupt(), 1),
        (from_cause(OSError("no model"), httpx.ConnectError("x")), ExitCode.TRANSIENT),
        (from_cause(ValueError("x"), contract.MisconfiguredError()), ExitCode.MISCONFIGURED),
        (while_handling(KeyError("x"), OSError(errno.ENOSPC, "x")), ExitCode.DISK_FULL),
        (while_handling(KeyError("x"), MemoryError()), ExitCode.OUT_OF_MEMORY),
        (while_handling(KeyError("x"), httpx.ConnectError("x")), 1),
        (while_handling(KeyError("x"), contract.StopRequested()), 1),
    ],
    ids=lambda value: f"{type(value).__name__} {value}"[:60] if isinstance(value, BaseException) else None,
)
def test_each_error_has_its_code(error: BaseException, code: int) -> None:
    """By what it is or was raised from; a bug met while handling a network error is a bug, or it would be retried for ever."""
    assert exit_code(error) == code


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def write_torch(path: Path) -> None:
    torch.save({"a": torch.zeros(200_000)}, path)


def write_torch_into_a_file(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"a": torch.zeros(200_000)}, file)


def write_safetensors(path: Path) -> None:
    save_file({"a": torch.zeros(200_000)}, path)


def write_bytes(path: Path) -> None:
    path.write_bytes(bytes(200_000))


@pytest.mark.parametrize("write", [write_torch, write_torch_into_a_file, write_safetensors, write_bytes])
def test_a_write_that_the_kernel_refuses_is_a_full_disk(tmp_path: Path, small_files: None, write: Callable[[Path], None]) -> None:
    """The true errors of the libraries that write checkpoints, most of which keep no errno."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  each library has its own
        write(tmp_path / "x")
    assert exit_code(caught.value) == ExitCode.DISK_FULL


IMPORTING = """
import gc, sys
attempt, sys.argv = sys.argv[1], ["-m"]  # as while `python -m stages.NAME` looks for the module
import stages
print("importing", gc.get_threshold()[0] > 10_000)
from stages.runtime import run
run(lambda _ctx: print("working", gc.get_threshold(), flush=True), [attempt])
"""


def test_the_collector_is_slow_only_while_a_stage_imports(tmp_path: Path) -> None:
    """A stage's imports are a fifth faster with few collections; the work, which runs for days, has Python's own pace."""
    spec = contract.Spec(run_id="r", stage="s", module="m", attempt=1, workspace=str(tmp_path), settings={})
    (tmp_path / "spec.json").write_bytes(msgspec.json.encode(spec))
    done = subprocess.run([sys.executable, "-c", IMPORTING, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines()[:2] == ["importing True", f"working {gc.get_threshold()}"], done.stderr

"""What an error's text tells."""

import pytest

from state import symptoms


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Error: out of memory at line 380 in file /src/csrc/ops.cu",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.",
        "CUDA error: device not ready",
        "unable to mmap 88 bytes from file <model.safetensors>: Cannot allocate memory (12)",
        "  what():  std::bad_alloc",
        "MemoryError",
    ],
)
def test_memory(text):
    """Each text of the libraries in use, as they print it."""
    assert symptoms.out_of_memory(text)
    assert not symptoms.disk_refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "OSError: [Errno 28] No space left on device",
        "Error while serializing: I/O error: No space left on device (os error 28)",
        "Error while serializing: I/O error: File too large (os error 27)",
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "[Errno 122] Disk quota exceeded: 'x'",
        "[Errno 30] Read-only file system: 'x'",
        "[Errno 5] Input/output error",
    ],
)
def test_disk(text):
    """A full, failing or read-only disk, as Python, Rust and PyTorch print it."""
    assert symptoms.disk_refuses(text)
    assert not symptoms.out_of_memory(text)


@pytest.mark.parametrize("text", ["", "KeyError: 'memory'", "CUDA error: an illegal memory access was encountered"])
def test_neither(text):
    """An illegal access is a bug and no want of memory."""
    assert not symptoms.out_of_memory(text)
    assert not symptoms.disk_refuses(text)

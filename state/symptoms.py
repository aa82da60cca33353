"""What an error's number or text tells: memory ran out, the disk refuses, the network is away.

Shared by the stage, which has the exception, and the daemon, which has only a dead process's last line of output.
"""

from __future__ import annotations

import errno

DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
"""The last two too: under WSL they are how a full Windows drive shows itself (microsoft/WSL #4269, #6986)."""
NETWORK_ERRNOS = frozenset(
    {
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT),
        *(errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED),
    }
)

_MEMORY = (
    "out of memory",  # CUDA error:, CUDA driver error:, bitsandbytes' "Error: out of memory at line"
    "cannot allocate memory",
    "can't allocate memory",  # DefaultCPUAllocator
    "std::bad_alloc",
    "memoryerror",
    "_status_alloc_failed",  # CUBLAS, CUDNN, CUSPARSE
    "device not ready",  # WSL near the limit
)
_DISK = (
    "no space left on device",
    "disk quota exceeded",
    "file too large (os error",  # safetensors and tokenizers tell the errno by its text
    "read-only file system",
    "input/output error",
    *("pytorchstreamwriter failed", "] . unexpected pos"),  # torch.save keeps no errno
)


def out_of_memory(text: str) -> bool:
    """Whether `text` says that memory, of the GPU or the machine, ran out."""
    lower = text.lower()
    return any(words in lower for words in _MEMORY)


def disk_refuses(text: str) -> bool:
    """Whether `text` says that the disk is full, failing or read-only."""
    lower = text.lower()
    return any(words in lower for words in _DISK)

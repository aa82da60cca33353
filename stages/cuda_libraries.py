"""The CUDA 12 libraries that CTranslate2 wants, beside a PyTorch that brings CUDA 13.

CTranslate2 4.8 opens `libcublas.so.12` by name (faster-whisper #1431, CTranslate2 #1933). The package nvidia-cublas-cu12 puts
it into site-packages, where the loader does not look. Loading it by path first is enough: the loader then finds it by its
soname. The transcription does so in a process that never imports torch; the evaluation does it beside torch, after a trial in a
process of its own (`stages.quick_marian`).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from pathlib import Path

CUBLAS = "libcublas.so.12"
WANTED = ("cuda_runtime/lib/libcudart.so.12", "cublas/lib/libcublasLt.so.12", f"cublas/lib/{CUBLAS}", "cudnn/lib/libcudnn.so.9")
"""Below site-packages/nvidia, each after what it needs."""


def preload(search: Iterable[str] | None = None) -> list[str]:
    """Load what is there of WANTED from the `nvidia` folders on `search` (default: sys.path); returns the paths loaded.

    A library that does not load (another CUDA's cuDNN, say) is passed over: the caller checks for what it must have.
    """
    loaded = []
    folders = [Path(entry, "nvidia") for entry in (sys.path if search is None else search) if entry]
    for name in WANTED:
        for path in (folder / name for folder in folders):
            if path.is_file() and loads(str(path)):
                loaded.append(str(path))
                break
    return loaded


def loads(name: str) -> bool:
    """Whether the loader can open the library `name` for the whole process."""
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        return False
    return True

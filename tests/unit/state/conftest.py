"""A folder for tests that write the same file thousands of times."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """In memory where the machine has such a folder, else on disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="vigil.", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)

"""In memory: content for a library that reads files only, in a file that no other process can open by a name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def in_memory(content: bytes) -> Iterator[Path]:
    """Yield the path of a file in memory with that content."""
    with os.fdopen(os.memfd_create("slmpack"), "w+b") as file:
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")

"""Files that a kill or a power cut leaves whole."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO


def sync_file(path: Path) -> None:
    """Put a file, or a folder's entries, on the disk itself: else a power cut may undo what was written or renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Write a file, on the disk itself when this returns; its folder's entry is not (sync_file)."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` into a file so that, whenever the process or the power dies, it holds the old or the new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    write_file(temporary, data)
    temporary.replace(path)
    sync_file(path.parent)


def lock_file(file: IO[str]) -> bool:
    """Lock an open file until it is closed or this process dies; False if another process has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

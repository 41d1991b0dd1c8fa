"""Files that a kill or a power cut leaves whole, and a disk that refuses says so in one line."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO


class DiskError(OSError):
    """The disk refuses to take a file; one line says which, how many bytes, and why."""


@contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn an OSError inside into a DiskError. size: bytes that were to be written, if that is known."""
    try:
        yield
    except DiskError:
        raise
    except OSError as error:
        what = f"{size:,} bytes" if size else "it"
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            reason += f", {_free(path):,} bytes are free"
        raise DiskError(f"{path}: cannot write {what} ({reason})") from error


def _free(path: Path) -> int:
    disk = os.statvfs(next(folder for folder in path.absolute().parents if folder.exists()))
    return disk.f_bavail * disk.f_frsize


def sync_file(path: Path) -> None:
    """Put a file, or a folder's entries, on the disk itself: else a power cut may undo what was written or renamed."""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(file: FileIO, data: bytes) -> None:
    """Write to an unbuffered file, which may take less than it is given at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def write_file(path: Path, data: bytes) -> None:
    """Write a file, on the disk itself when this returns; its folder's entry is not (sync_file). DiskError."""
    with writing(path, len(data)), path.open("wb", buffering=0) as file:
        write_all(file, data)
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` into a file so that, whenever the process or the power dies, it holds the old or the new, whole.

    DiskError, and no change, if the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        write_file(temporary, data)
    except DiskError:
        with suppress(OSError):  # which a directory that has become read-only refuses, too
            temporary.unlink()  # a full disk needs its room
        raise
    with writing(path, len(data)):
        temporary.replace(path)
    sync_file(path.parent)


def open_lock(path: Path) -> IO[str]:
    """Open a file to lock, and make it if there is none. OSError, and no change, if it is a link or holds anything.

    It may hold the number of a process, as `RunDir.lock` writes it.
    """
    foreign = OSError(errno.EEXIST, "it is no lock of ours; remove it")
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise foreign if error.errno == errno.ELOOP else error from None
    status = os.fstat(descriptor)
    own = stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size <= 20
    if not own or not re.fullmatch(rb"\d*\n?", os.pread(descriptor, 20, 0)):
        os.close(descriptor)
        raise foreign
    return os.fdopen(descriptor, "r+")


def lock_file(file: IO[str]) -> bool:
    """Lock an open file until it is closed or this process dies; False if another process has it locked.

    OSError where the file system knows no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

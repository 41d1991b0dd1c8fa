"""An append-only log of records, a row of files, that a killed process loses nothing acknowledged from.

    directory/00000000000000000000.log    records 0, 1, .. in the order they were appended
              00000000000000000731.log    records 731, ..: a file is named after its first record
              index                       what the records do not tell; replaced before any file is deleted
              lock                        held by the one process that may write

record = magic (4 bytes), sequence number (8), length (4), CRC32 of number, length and payload (4), payload; all
little-endian. Every record says where it belongs, so damage costs the records it touches and no other, and numbers
without a whole record tell what is lost. Only what follows the last whole record of the last file was being written
when the process died, and never acknowledged: it is cut off.

Choice: many episodes in a file. Why: a file for each takes two to four times as long to store (a new inode, a rename,
an unlink, and with `fsync: always` a folder to flush). What would change it: few, large episodes.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from qttdm.common.config import Config
from qttdm.common.disk import sync_file

FILE_BYTES = 16 * 2**20
"""size at which a new file is begun, and in which disk space is given back; a larger record gets its own file"""
_MAGIC = b"\xf5SEG"
_HEAD = struct.Struct("<4sQII")  # magic, sequence number, length, CRC32
_CHECKED = struct.Struct("<QI")  # the part of the head that the CRC32 covers, before the payload


class DiskConfig(Config):
    """How records reach the disk. A killed process loses none in any case; a power cut loses what was not flushed."""

    fsync: Literal["always", "interval"] = "interval"
    """when records are flushed to the disk itself: before each is acknowledged, or all of them once in a while"""
    fsync_seconds: float = Field(default=1.0, gt=0.0)
    """interval: seconds between flushes while records are being appended"""
    lock_seconds: float = Field(default=10.0, ge=0.0)
    """how long to wait for another process that has the log: one that was killed may need a moment to be gone"""


class Log:
    """Records with running numbers. One process, which a lock makes sure of; `flush` and `sync` from any thread."""

    def __init__(self, directory: Path, config: DiskConfig) -> None:
        """Open or create the log, cut off a torn tail. RuntimeError if another process keeps it open."""
        self.directory, self.config = directory, config
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / "lock").open("w")
        self._be_the_only_one()
        self.sizes = {int(path.stem): path.stat().st_size for path in sorted(directory.glob("*.log"))}
        """bytes of each file, by its first record's number, in order"""
        self.torn = False
        """was anything cut off?"""
        self._file: FileIO
        self._flushing = threading.Lock()
        self._appended, self._flushed = 1, 0  # records; what the last process left may not be on the disk itself
        self._flushed_at = time.monotonic()
        self.begin(0) if not self.sizes else self._continue()

    def append(self, record: bytes) -> None:
        """Write a record with the number `next`; `flush` makes it durable. OSError, and no change, on failure."""
        checksum = zlib.crc32(record, zlib.crc32(_CHECKED.pack(self.next, len(record))))
        frame = _HEAD.pack(_MAGIC, self.next, len(record), checksum) + record
        if self.sizes[self._last] and self.sizes[self._last] + len(frame) > FILE_BYTES:
            self.begin(self.next)
        try:
            rest = memoryview(frame)
            while rest:  # an unbuffered file may take less than it is given
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(self.sizes[self._last])  # it was not acknowledged and may come again
            raise
        self.sizes[self._last] += len(frame)
        self.next += 1
        self._appended += 1

    def begin(self, sequence: int) -> None:
        """Append to a new file from now on, from that number; the file before is on disk by then."""
        if self.sizes:
            os.fsync(self._file.fileno())
        self._file = self._path(sequence).open("ab", buffering=0)
        sync_file(self.directory)
        self.sizes[sequence], self._last, self.next = 0, sequence, sequence

    def read(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(number, payload) of the whole records from number `start` to before `stop`, one file in memory at a time."""
        for first, following in pairwise([*self.sizes, self.next]):
            if following > start and first < stop and self._path(first).exists():
                data = self._path(first).read_bytes()
                for sequence, begin, end in _whole_records(data):
                    if start <= sequence < stop:
                        yield sequence, data[begin + _HEAD.size : end]
                        start = sequence + 1  # a number comes once, in order

    def flush(self) -> None:
        """Make durable what was appended, if that is due: always, or after `fsync_seconds`."""
        if self.config.fsync == "always" or time.monotonic() - self._flushed_at >= self.config.fsync_seconds:
            self.sync()

    def sync(self) -> None:
        """Flush all that was appended to the disk itself; one flush serves all threads that wait for it."""
        wanted = self._appended
        with self._flushing:
            if self._flushed < wanted:
                appended = self._appended  # before the file: one that is replaced meanwhile is flushed by `begin`
                os.fsync(self._file.fileno())
                self._flushed, self._flushed_at = appended, time.monotonic()

    def deletable(self, sequence: int) -> list[int]:
        """The files, oldest first, all of whose records have numbers below `sequence`; never the last."""
        return [first for first, following in pairwise(self.sizes) if following <= sequence]

    def delete(self, firsts: list[int]) -> None:
        """Delete these files."""
        for first in firsts:
            self._path(first).unlink(missing_ok=True)
            del self.sizes[first]
        sync_file(self.directory)

    def rewind(self, sequence: int) -> None:
        """Forget the records from that number on, so that it is the next again."""
        self.delete([first for first in reversed(self.sizes) if first >= sequence])  # a kill leaves a shorter row
        if self.sizes:
            self._continue(sequence)
        if not self.sizes or self.next != sequence:
            self.begin(sequence)
        self._appended += 1
        self.sync()

    def close(self) -> None:
        """Flush, and let another process write. A log that is merely dropped or killed loses no record either."""
        self.sync()
        self._lock.close()

    def _path(self, first: int) -> Path:
        return self.directory / f"{first:020d}.log"

    def _continue(self, stop: int | None = None) -> None:
        """Append to the last file from now on, after its last whole record (before `stop`)."""
        self._last = self.next = list(self.sizes)[-1]
        end = 0
        for sequence, _, record_end in _whole_records(self._path(self._last).read_bytes()):
            if stop is None or sequence < stop:
                self.next, end = sequence + 1, record_end
        self._file = self._path(self._last).open("ab", buffering=0)
        self._file.truncate(end)
        self.torn |= stop is None and self.sizes[self._last] > end
        self.sizes[self._last] = end

    def _be_the_only_one(self) -> None:
        """Take the lock; its last holder may be about to end."""
        deadline = time.monotonic() + self.config.lock_seconds
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    self._lock.close()
                    message = f"{self.directory}: in use by another process, want to be its only writer"
                    raise RuntimeError(message) from None
            time.sleep(0.05)


def _whole_records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(sequence number, begin, end) of each undamaged record of a file, wherever it is."""
    view = memoryview(data)
    begin = data.find(_MAGIC)
    while begin >= 0 and begin + _HEAD.size <= len(data):
        _, sequence, length, checksum = _HEAD.unpack_from(data, begin)
        end = begin + _HEAD.size + length
        payload = view[begin + _HEAD.size : end]
        if end <= len(data) and zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, length))) == checksum:
            yield sequence, begin, end
        else:
            end = begin + 1
        begin = data.find(_MAGIC, end)

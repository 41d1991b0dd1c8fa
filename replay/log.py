"""An append-only log of records, in a row of files. A killed process loses no acknowledged record.

    directory/00000000000000000000.log    records 0, 1, .. in the order they were appended
              00000000000000000731.log    records 731, ..: a file is named after its first record
              lock                        held by the one process that may write

record = magic (4 bytes), sequence number (8), length (4), CRC32 of number, length and payload (4), payload; all
little-endian. Every record carries its number, so damage costs the records it touches and no other, and the numbers
without a whole record are those lost. Each process begins a file of its own, with the number after the last whole
record: one that a killed process did not finish was never acknowledged.

Choice: many episodes in a file. Why: a file for each takes two to four times as long to store (a new inode, a rename,
an unlink, and with `fsync: always` a folder to flush). What would change it: few, large episodes.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Literal

from qttdm.common.disk import DiskError, lock_file, open_lock, sync_file, write_all, writing

Fsync = Literal["always", "interval"]
"""when records are flushed to the disk itself: before each is acknowledged, or all of them once a second. A killed
process loses none in any case; a power cut loses what was not flushed."""
FILE_BYTES = 16 * 2**20
"""size at which a new file is begun, and in which disk space is given back; a larger record gets its own file"""
FLUSH_SECONDS = 1.0
"""between flushes while records are being appended, with `fsync: interval`"""
LOCK_SECONDS = 10.0
"""how long to wait for another process that has the log: one that was killed may need a moment to be gone"""
_MAGIC = b"\xf5SEG"
_HEAD = struct.Struct("<4sQII")  # magic, sequence number, length, CRC32
_CHECKED = struct.Struct("<QI")  # the part of the head that the CRC32 covers, before the payload


class Log:
    """Records with running numbers. One process writes, from one thread at a time; any thread may `flush`."""

    def __init__(self, directory: Path, fsync: Fsync) -> None:
        """Open or create the log. RuntimeError if it cannot be locked, DiskError."""
        self.directory, self.fsync = directory, fsync
        with writing(directory):
            directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = open_lock(directory / "lock")
            deadline = time.monotonic() + LOCK_SECONDS
            while not lock_file(self._lock):
                if time.monotonic() >= deadline:
                    self._lock.close()
                    raise RuntimeError(f"{directory}: in use by another process, want to be its only writer")
                time.sleep(0.05)
        except OSError as error:
            raise RuntimeError(f"{directory / 'lock'}: cannot lock the log ({error.strerror})") from None
        self.sizes = {int(path.stem): path.stat().st_size for path in sorted(directory.glob("*.log"))}
        """bytes of each file, by its first record's number, in order"""
        self._file: FileIO
        self._flushing = threading.Lock()
        self._flushed_at = time.monotonic()
        self._last = self.next = max(self.sizes, default=0)
        for sequence, _, _ in _whole_records(self._path(self._last)):
            self.next = sequence + 1
        self.begin(self.next)

    def append(self, record: bytes) -> None:
        """Write a record with the number `next`; `flush` makes it durable. DiskError, and no change, on failure."""
        checksum = zlib.crc32(record, zlib.crc32(_CHECKED.pack(self.next, len(record))))
        frame = _HEAD.pack(_MAGIC, self.next, len(record), checksum) + record
        if self.sizes[self._last] and self.sizes[self._last] + len(frame) > FILE_BYTES:
            self.begin(self.next)
        try:
            with writing(self._path(self._last), len(frame)):
                write_all(self._file, frame)
        except DiskError:
            self._file.truncate(self.sizes[self._last])  # it was not acknowledged and may come again
            raise
        self.sizes[self._last] += len(frame)
        self.next += 1

    def begin(self, sequence: int) -> None:
        """Begin a file, whose first record has that number; the file before is on disk by then."""
        with self._flushing:
            if self.sizes:
                sync_file(self._path(self._last))
            with writing(self._path(sequence)):
                file = self._path(sequence).open("ab", buffering=0)
                file.truncate(0)  # it may be there, without a whole record
            sync_file(self.directory)
            self._file = file
            self.sizes[sequence], self._last, self.next, self._flushed = 0, sequence, sequence, sequence

    def read(self, start: int) -> Iterator[tuple[int, bytes]]:
        """Yield (number, payload) of the whole records from number `start` on, one file in memory at a time."""
        for first, following in pairwise([*self.sizes, self.next]):
            for sequence, record, _ in _whole_records(self._path(first)) if following > start else ():
                if sequence >= start:
                    yield sequence, record
                    start = sequence + 1  # a number comes once, in order

    def flush(self) -> None:
        """Make durable what was appended, if that is due: always, or after FLUSH_SECONDS."""
        if self.fsync == "always" or time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Flush all that was appended to the disk itself; one flush serves all threads that wait for it."""
        wanted = self.next
        with self._flushing:
            if self._flushed < wanted:
                appended = self.next
                with writing(self._path(self._last)):
                    os.fsync(self._file.fileno())
                self._flushed, self._flushed_at = appended, time.monotonic()

    def files_before(self, sequence: int) -> list[int]:
        """List the files, by first number, that hold no record from that number on; never the last file."""
        return [first for first, following in pairwise(self.sizes) if following <= sequence]

    def delete(self, firsts: Iterable[int]) -> None:
        """Delete the files with these first numbers, in this order."""
        for first in firsts:
            self._path(first).unlink(missing_ok=True)
            del self.sizes[first]
        sync_file(self.directory)

    def rewind(self, sequence: int) -> None:
        """Delete the records from that number on, so that it is the next again."""
        self.delete([first for first in reversed(self.sizes) if first >= sequence])  # a kill leaves a shorter row
        if self.sizes:
            self._last = max(self.sizes)
            ends = (end for number, _, end in _whole_records(self._path(self._last)) if number < sequence)
            self.sizes[self._last] = max(ends, default=0)
            os.truncate(self._path(self._last), self.sizes[self._last])
        self.begin(sequence)

    def close(self) -> None:
        """Flush, and let another process write. A log that is merely dropped or killed loses no record either."""
        self.sync()
        self._lock.close()

    def _path(self, first: int) -> Path:
        return self.directory / f"{first:020d}.log"


def records_in(directory: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, payload) of the whole records, in order, also while another process writes; nothing is changed."""
    start = 0
    for path in sorted(directory.glob("*.log")):
        for sequence, record, _ in _whole_records(path):
            if sequence >= start:
                yield sequence, record
                start = sequence + 1


def _whole_records(path: Path) -> Iterator[tuple[int, bytes, int]]:
    """Yield (number, payload, offset of its end) of each undamaged record of a file, wherever it is."""
    data = path.read_bytes() if path.exists() else b""
    begin = data.find(_MAGIC)
    while begin >= 0 and begin + _HEAD.size <= len(data):
        _, sequence, length, checksum = _HEAD.unpack_from(data, begin)
        end = begin + _HEAD.size + length
        payload = data[begin + _HEAD.size : end]
        if end <= len(data) and zlib.crc32(payload, zlib.crc32(_CHECKED.pack(sequence, length))) == checksum:
            yield sequence, payload, end
        else:
            end = begin + 1
        begin = data.find(_MAGIC, end)

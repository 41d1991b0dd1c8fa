"""An append-only log of byte records, a row of files, that a killed process loses nothing acknowledged from.

    directory/00000000000000000000.segment    records 0, 1, .. in the order they were appended
              00000000000000000731.segment    records 731, ..: a segment is named after its first record
              lock                            held by the one process that may write

record = magic (4 bytes), sequence number (8), length (4), CRC32 of number, length and payload (4), payload; all
little-endian. Every record says where it belongs, so damage is bounded by itself:

- What follows the last whole record of the last segment was being written when the process died, and was never
  acknowledged: it is cut off when the log is opened.
- Damage anywhere else costs the records it touches and no other. Reading goes on at the next whole record; the gap in
  the sequence numbers says how many were lost; the file is left as it is, for whoever wants to look.

Both are counted in `dropped`. Choice: skip and count, not refuse. Why: these are episodes to learn from, and a run is
worth more than one of them. What would change it: records that depend on each other.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import Field

from qttdm.common.config import Config

_MAGIC = b"\xf5SEG"
_HEAD = struct.Struct("<4sQII")  # magic, sequence number, length, CRC32
_CHECKED = struct.Struct("<QI")  # the part of the head that the CRC32 covers, before the payload
_SUFFIX = ".segment"


class SegmentConfig(Config):
    """How records reach the disk. A killed process loses none in any case; a power cut loses what was not flushed."""

    max_segment_bytes: int = Field(default=16 * 2**20, gt=0)
    """size at which a new file is begun, and in which disk space is given back; a larger record gets its own file"""
    fsync: Literal["always", "interval", "never"] = "interval"
    """when records are flushed to the disk itself: each before `append` returns; all by the first append that comes
    `fsync_seconds` after the last flush; or whenever the operating system likes"""
    fsync_seconds: float = Field(default=1.0, gt=0.0)
    """interval: seconds between flushes while records are being appended"""
    lock_seconds: float = Field(default=10.0, ge=0.0)
    """how long to wait for another process that has the log: one that was killed may need a moment to be gone"""


class SegmentLog:
    """Records with running sequence numbers from 0. One writer, which a lock makes sure of; not thread-safe."""

    def __init__(self, directory: Path, config: SegmentConfig) -> None:
        """Open or create the log, cut off a torn tail. RuntimeError if another process keeps it open."""
        self.directory, self.config = directory, config
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = (directory / "lock").open("w")
        self._be_the_only_one()
        self._synced_at = time.monotonic()
        self._torn = 0
        self._missing: set[int] = set()  # sequence numbers that reading found no whole record for
        firsts = sorted(int(path.stem) for path in directory.glob("*" + _SUFFIX))
        self._sizes = {first: self._path(first).stat().st_size for first in firsts}  # bytes, by first record; in order
        if self._sizes:
            self._torn = int(self._continue_last())
        else:
            self.next_sequence = 0
            self._begin_segment()

    @property
    def first_sequence(self) -> int:
        """Number of the oldest record that has not been discarded; `next_sequence` if there is none."""
        return next(iter(self._sizes))

    @property
    def dropped(self) -> int:
        """Records found torn or damaged so far, by opening and by reading. A torn tail counts as one."""
        return self._torn + len(self._missing)

    @property
    def bytes_on_disk(self) -> int:
        """Size of all segments."""
        return sum(self._sizes.values())

    def append(self, record: bytes) -> int:
        """Write one record, as durably as `fsync` says, and return its number. OSError, and no change, on failure."""
        checksum = zlib.crc32(record, zlib.crc32(_CHECKED.pack(self.next_sequence, len(record))))
        frame = _HEAD.pack(_MAGIC, self.next_sequence, len(record), checksum) + record
        if self._size and self._size + len(frame) > self.config.max_segment_bytes:
            self._begin_segment()
        try:
            _write(self._file, frame)
            if self.config.fsync == "always" or (
                self.config.fsync == "interval" and time.monotonic() - self._synced_at >= self.config.fsync_seconds
            ):
                self.sync()
        except OSError:
            self._file.truncate(self._size)  # it was not acknowledged and may come again
            raise
        self._size += len(frame)
        self.next_sequence += 1
        return self.next_sequence - 1

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
        """(number, payload) of the whole records from number `start` (or the oldest) to before `stop` (or the end).

        Sequential, one segment in memory at a time. Finish reading before changing the log.
        """
        stop = self.next_sequence if stop is None else stop
        expected = max(start, self.first_sequence)
        firsts = list(self._sizes)
        for first, following in zip(firsts, [*firsts[1:], self.next_sequence], strict=True):
            if following <= start or first >= stop:
                continue
            data = self._path(first).read_bytes()
            for sequence, begin, end in _whole_records(data):
                if expected <= sequence < stop:
                    self._missing.update(range(expected, sequence))
                    expected = sequence + 1
                    yield sequence, data[begin + _HEAD.size : end]
        self._missing.update(range(expected, min(stop, self.next_sequence)))

    def sync(self) -> None:
        """Flush what was appended to the disk itself."""
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def can_discard(self, sequence: int) -> bool:
        """Would `discard_before` delete anything?"""
        return len(self._sizes) > 1 and list(self._sizes)[1] <= sequence

    def discard_before(self, sequence: int) -> None:
        """Delete, oldest first, the segments all of whose records have numbers below `sequence`."""
        if not self.can_discard(sequence):
            return
        while self.can_discard(sequence):
            first = self.first_sequence
            self._path(first).unlink()
            del self._sizes[first]
        sync_folder(self.directory)

    def rewind(self, sequence: int) -> None:
        """Forget the records from number `sequence` on, so that it is the next again. ValueError if it is not here."""
        if not self.first_sequence <= sequence <= self.next_sequence:
            here = f"{self.first_sequence} to {self.next_sequence}"
            raise ValueError(f"{self.directory}: got sequence number {sequence} to go back to, want one of {here}")
        while (last := list(self._sizes)[-1]) > sequence:  # newest first: a kill in between leaves a shorter log
            self._path(last).unlink()
            del self._sizes[last]
        self._continue_last(sequence)
        self.next_sequence = sequence
        self.sync()
        sync_folder(self.directory)

    def close(self) -> None:
        """Flush, and let another process write. A log that is merely dropped or killed loses no record either."""
        if self.config.fsync != "never":
            self.sync()
        self._file.close()
        self._lock.close()

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

    @property
    def _size(self) -> int:
        return self._sizes[self._last]

    @_size.setter
    def _size(self, size: int) -> None:
        self._sizes[self._last] = size

    def _path(self, first: int) -> Path:
        return self.directory / f"{first:020d}{_SUFFIX}"

    def _begin_segment(self) -> None:
        """Append to a new file from now on; the one before is on disk by then, so only the last can be torn."""
        if self._sizes and self.config.fsync != "never":
            self.sync()
        file = self._path(self.next_sequence).open("ab", buffering=0)
        sync_folder(self.directory)
        self._file, self._last = file, self.next_sequence
        self._size = 0

    def _continue_last(self, stop: int | None = None) -> bool:
        """Append to the last segment from now on, after its last whole record (before `stop`). Was anything cut off?"""
        self._last = list(self._sizes)[-1]
        self.next_sequence, end = self._last, 0
        for sequence, _, record_end in _whole_records(self._path(self._last).read_bytes()):
            if stop is None or sequence < stop:
                self.next_sequence, end = sequence + 1, record_end
        self._file = self._path(self._last).open("ab", buffering=0)
        self._file.truncate(end)
        cut = self._size > end
        self._size = end
        return cut


def sync_folder(path: Path) -> None:
    """Put a folder's entries on disk: without it a power cut may undo the creation or removal of a file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` into a file so that, whenever the process or the power dies, it holds the old or the new, whole."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _write(file: BinaryIO, data: bytes) -> None:
    """All of it: an unbuffered file may take less than it is given."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


def _whole_records(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(sequence number, begin, end) of each undamaged record of a segment, wherever it is."""
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

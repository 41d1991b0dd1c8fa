"""failure.txt says why a seed failed, also when that is a full disk: its room is taken at the start and kept."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from qttdm.common.disk import DiskError, write_all, write_file

ROOM_BYTES = 2**16
"""of a traceback over several processes, a few thousand are usual"""


class FailureFile:
    """The failure.txt of one seed."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self._room = run_dir / "failure.txt", run_dir / ".failure-room"

    def keep_room(self) -> None:
        """Forget the last failure, and take room for the next; a disk that has none is told of when it fails."""
        self.path.unlink(missing_ok=True)
        with suppress(DiskError):
            write_file(self._room, os.urandom(ROOM_BYTES))  # zeros may take no room, compressed

    def write(self, text: str) -> None:
        """Write why; to stderr if the disk refuses even so."""
        data = text.encode(errors="replace")[-ROOM_BYTES:]
        try:
            with self._room.open("r+b" if self._room.exists() else "wb", buffering=0) as file:
                write_all(file, data)
                file.truncate(len(data))
                os.fsync(file.fileno())
            self._room.replace(self.path)
        except OSError as error:
            print(f"{self.path}: cannot be written ({error.strerror}):\n{text}", file=sys.stderr, flush=True)

    def give_back(self) -> None:
        """Give the room back, at the end of a seed that has not failed."""
        with suppress(OSError):
            self._room.unlink(missing_ok=True)

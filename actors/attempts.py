"""How often an evaluation has been tried, on disk: a simulator that fails or hangs in it must not do so for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from replay.segments import replace_file

MOST_ATTEMPTS = 3


class Attempts:
    """Of the evaluation under way, told apart by its weights' version.

    What is tried is in the file before it begins: a process that takes the place of one that was killed goes on with
    the same attempt, of one that hung with the next.
    """

    def __init__(self, path: Path, hung: bool) -> None:
        """hung: the last process that wrote to this file hung in what it tried."""
        self.path = path
        self._version, self._attempt = map(int, path.read_text().split()) if path.exists() else (-1, 0)
        if hung:
            self._attempt += 1

    def of(self, version: int) -> Iterator[int]:
        """Those that are left, from 0; to be asked for the next one when the last has failed."""
        if version != self._version:
            self._version, self._attempt = version, 0
        while self._attempt < MOST_ATTEMPTS:
            replace_file(self.path, f"{self._version} {self._attempt}\n".encode())
            yield self._attempt
            self._attempt += 1

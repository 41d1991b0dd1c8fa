"""How often evaluations have been tried, on disk: a simulator that fails or hangs in one must not do so for ever."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qttdm.common.disk import replace_file

MOST_ATTEMPTS = 3


class Attempts:
    """Of each evaluation that is under way or had trouble, by its weights' version.

    What is tried is in the file before it begins: a process that takes the place of one that was killed goes on with
    the same attempt, of one that hung with the next. Ray may ask it for the evaluations in another order.
    """

    def __init__(self, path: Path, hung: bool) -> None:
        """hung: the last process that wrote to this file hung in what it tried."""
        self.path = path
        self._tried: dict[int, int] = {}  # the one under way is the last
        for line in path.read_text().splitlines() if path.exists() else []:
            version, attempt = map(int, line.split())
            self._tried[version] = attempt
        if hung and self._tried:
            self._tried[next(reversed(self._tried))] += 1

    def of(self, version: int) -> Iterator[int]:
        """Those that are left, from 0; to be asked for the next one when the last has failed."""
        attempt = self._tried.pop(version, 0)
        self._tried = {other: tried for other, tried in self._tried.items() if tried}
        while attempt < MOST_ATTEMPTS:
            self._tried[version] = attempt
            replace_file(self.path, "".join(f"{v} {tried}\n" for v, tried in self._tried.items()).encode())
            yield attempt
            attempt += 1
        self._tried[version] = attempt

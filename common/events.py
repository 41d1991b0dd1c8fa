"""What happened to a run, for a person: one line each in `events.log`, written by the process that saw it."""

from __future__ import annotations

import os
import time
from pathlib import Path


class EventLog:
    """Appends lines `<UTC time> <who>: <what>`; several processes may write to one file."""

    def __init__(self, path: Path, who: str) -> None:
        self.path, self.who = path, who

    def write(self, what: str) -> None:
        """Append an event as one line. If the disk refuses it, print it: training goes on."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {self.who}: {' '.join(what.split())}\n"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())  # one call: lines of several processes do not mix
            finally:
                os.close(file)
        except OSError:
            print(line, end="", flush=True)


class Waiting:
    """Logs what a process waits for, every so many seconds of one wait. For one thread."""

    def __init__(self, events: EventLog, seconds: float) -> None:
        self.events, self.seconds = events, seconds
        self.over()

    def over(self) -> None:
        """End the wait."""
        self._since: float | None = None

    def still(self, what: str) -> None:
        """Begin a wait, or go on with it; log its reason when it is time."""
        now = time.monotonic()
        if self._since is None:
            self._since = self._said = now
        elif now - self._said >= self.seconds:
            self._said = now
            self.events.write(f"has waited {now - self._since:.0f} s for {what}")

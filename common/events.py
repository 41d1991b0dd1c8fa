"""Write what happened to a run to `events.log`, one line an event, from any of its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path


class EventLog:
    """Append lines `<UTC time> <who>: <what>`; several processes may write to one file."""

    def __init__(self, path: Path, who: str) -> None:
        self.path, self.who = path, who

    def write(self, what: str) -> None:
        """Write one event as one line. A disk that refuses it does not stop training: it is printed instead."""
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
    """Log a wait without a deadline: what for, every so many seconds. For one thread."""

    def __init__(self, events: EventLog, seconds: float) -> None:
        self.events, self.seconds = events, seconds
        self.over()

    def over(self) -> None:
        """End the wait; a later one starts anew."""
        self._since: float | None = None

    def still(self, what: str | Callable[[], str]) -> None:
        """Begin or continue to wait for `what`; a function is called only when that is to be said."""
        now = time.monotonic()
        if self._since is None:
            self._since = self._said = now
        elif now - self._said >= self.seconds:
            self._said = now
            self.events.write(f"has waited {now - self._since:.0f} s for {what if isinstance(what, str) else what()}")

"""End a process that hangs, and leave a file with its stacks; its supervisor starts it anew."""

from __future__ import annotations

import faulthandler
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qttdm.common.disk import writing
from qttdm.common.events import EventLog
from qttdm.common.metrics.process import FAILURES
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.run_dir import RunDir


class Watchdog:
    """End this process if a step of its work hangs. A context manager: it is armed inside.

    A thread of faulthandler's own, in C: it also fires when a simulator hangs without giving Python a turn.
    """

    def __init__(self, run_dir: Path, who: str, seconds: float) -> None:
        """Open `<run_dir>/hung/<who>.txt` for the stacks; one that is there is kept under a number."""
        self.seconds = seconds
        self.events = EventLog(RunDir(run_dir).events_path, who)
        folder = run_dir / "hung"
        self.found: Path | None = None
        """stacks that the last process left when it hung"""
        path = stacks_path(run_dir, who)
        with writing(path):
            folder.mkdir(exist_ok=True)
            if path.exists() and path.stat().st_size > 0:
                number = sum(1 for _ in folder.glob(f"{who}.*.txt")) + 1
                self.found = path.rename(folder / f"{who}.{number}.txt")
            self._file = path.open("w")

    def report_hang(self, telemetry: Telemetry) -> None:
        """Count it, and say so in events.log, if the process before this one hung."""
        if self.found:
            telemetry.inc(FAILURES, kind="hung")
            self.events.write(f"hung, was ended and is back in a new process, see {self.found}")

    def rearm(self) -> bool:
        """Start the next step's time. Returns False, so that it can stand where `should_stop` is asked."""
        faulthandler.dump_traceback_later(self.seconds, exit=True, file=self._file)
        return False

    def __enter__(self) -> None:
        self.rearm()

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disarm it inside: waiting for others is not hanging."""
        faulthandler.cancel_dump_traceback_later()
        try:
            yield
        finally:
            self.rearm()


def stacks_path(run_dir: Path, who: str) -> Path:
    """Say where a process leaves its stacks if it hangs."""
    return run_dir / "hung" / f"{who}.txt"


def stacks(run_dir: Path) -> list[Path]:
    """List the stacks of processes that hung and have been started anew since."""
    return list((run_dir / "hung").glob("*.*.txt"))


SAY_WHO_HUNG = """
read -r ended && exit
[ -t 2 ] && printf '\\033[?25h' >&2
for file; do [ -s "$file" ] && echo "qttdm: $(basename "$file" .txt) hung, see $file; $QTTDM_ADVICE" >&2; done
"""


@contextmanager
def announced(files: Sequence[Path], advice: str) -> Iterator[None]:
    """Print one line to stderr if this process ends by hanging inside; a shell does, since no thread here gets a turn.

    files: where stacks are left then, each named after what hung. advice: the line's end.
    """
    shell = subprocess.Popen(
        ["sh", "-c", SAY_WHO_HUNG, "sh", *map(str, files)],
        stdin=subprocess.PIPE,
        env={**os.environ, "QTTDM_ADVICE": advice},
        start_new_session=True,  # Ctrl-C is for this process only
    )
    try:
        yield
    finally:
        shell.communicate(b"ended\n")

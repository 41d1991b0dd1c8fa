"""The watchdog in processes of their own: one that hangs ends, and the next one says where it hung."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.metrics.watchdog import Watchdog, stacks

ROOT = Path(__file__).parents[3]
BEGIN = """
import sys, threading, time
from pathlib import Path
from qttdm.common.metrics.watchdog import Watchdog

dog = Watchdog(Path(sys.argv[1]), "actor-0", 0.8)
"""


def run(directory: Path, body: str) -> subprocess.CompletedProcess:
    """A process that makes a watchdog and then does `body`."""
    command = [sys.executable, "-c", BEGIN + body, str(directory)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


HANG = """
def a_simulator_that_hangs():
    while True:
        time.sleep(0.01)

with dog:
    a_simulator_that_hangs()
"""


class TestHanging:
    @pytest.mark.parametrize(
        "body",
        [
            HANG,
            # Python gets no turn: the list is compared within one call that keeps the interpreter's lock.
            "x = [0] * 10**6\ny = [x] * 10**6\nz = [list(x)] * 10**6\nwith dog:\n    y == z",
        ],
        ids=["in Python", "in C"],
    )
    def test_ends_the_process(self, tmp_path, body):
        done = run(tmp_path, body)
        assert done.returncode == 1
        stacks = (tmp_path / "hung" / "actor-0.txt").read_text()
        assert "Timeout (0:00:00.8" in stacks
        assert "<module>" in stacks

    def test_says_where(self, tmp_path):
        run(tmp_path, HANG)
        assert "in a_simulator_that_hangs" in (tmp_path / "hung" / "actor-0.txt").read_text()

    def test_the_next_process_finds_the_stacks_and_keeps_them(self, tmp_path):
        for number in (1, 2):
            run(tmp_path, HANG)
            done = run(tmp_path, "print(dog.found)")
            assert done.stdout.strip() == str(tmp_path / "hung" / f"actor-0.{number}.txt")
        for number in (1, 2):
            assert "a_simulator_that_hangs" in (tmp_path / "hung" / f"actor-0.{number}.txt").read_text()
        assert (tmp_path / "hung" / "actor-0.txt").read_text() == ""

    def test_the_next_process_counts_it_and_says_so(self, tmp_path):
        run(tmp_path, HANG)
        done = run(
            tmp_path,
            """
from qttdm.common.metrics.telemetry import Telemetry
telemetry = Telemetry.silent("actor")
dog.report_hang(telemetry)
print(telemetry.snapshot()["qttdm_failures_total", "hung"])
""",
        )
        assert done.stdout.strip() == "1.0", done.stderr
        (line,) = (tmp_path / "events.log").read_text().splitlines()
        assert line.endswith(f"actor-0: hung, was ended and is back in a new process, see {stacks(tmp_path)[0]}")

    def test_after_anything_else_there_is_nothing_to_say(self, tmp_path):
        telemetry = Telemetry.silent("actor")
        Watchdog(tmp_path, "actor-0", 1.0).report_hang(telemetry)
        assert telemetry.snapshot()["qttdm_failures_total", "hung"] == 0
        assert not (tmp_path / "events.log").exists()
        assert stacks(tmp_path) == []

    def test_others_are_not_mistaken_for_it(self, tmp_path):
        run(tmp_path, HANG)
        done = run(tmp_path, "print(Watchdog(Path(sys.argv[1]), 'actor-1', 1.0).found)")
        assert done.stdout.strip() == "None"


class TestWorking:
    @pytest.mark.parametrize(
        "body",
        [
            "dog.seconds = 2.5\nwith dog:\n"
            "    for _ in range(6):\n        time.sleep(0.5)\n        assert dog.rearm() is False",
            "with dog:\n    pass\ntime.sleep(1.2)",
            "with dog:\n    with dog.off():\n        time.sleep(1.2)",
            "time.sleep(1.2)",
            # an error on the way out of the watched work is not followed by an end from outside
            "try:\n    with dog:\n        raise KeyError\nexcept KeyError:\n    time.sleep(1.2)",
        ],
        ids=["steps", "done", "waiting", "not begun", "raised"],
    )
    def test_is_left_alone(self, tmp_path, body):
        done = run(tmp_path, body)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "hung" / "actor-0.txt").read_text() == ""
        assert run(tmp_path, "print(dog.found)").stdout.strip() == "None"

    def test_is_watched_again_after_waiting(self, tmp_path):
        assert (
            run(tmp_path, "with dog:\n    with dog.off():\n        time.sleep(1.0)\n    time.sleep(30)").returncode == 1
        )

    def test_is_watched_again_after_waiting_that_raised(self, tmp_path):
        body = """
with dog:
    try:
        with dog.off():
            raise TimeoutError
    except TimeoutError:
        time.sleep(30)
"""
        assert run(tmp_path, body).returncode == 1

"""events.log: whole lines, whoever writes them."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

from qttdm.common.events import EventLog, Waiting

ROOT = Path(__file__).parents[2]


def test_one_line_each_with_time_and_author(tmp_path):
    path = tmp_path / "events.log"
    EventLog(path, "learner").write("waits for\n  12 more decisions")
    EventLog(path, "actor 3").write("is back")
    first, second = path.read_text().splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ learner: waits for 12 more decisions", first)
    assert second.endswith("Z actor 3: is back")


def test_lines_of_several_processes_do_not_mix(tmp_path):
    path, count = tmp_path / "events.log", 200
    program = f"""
import sys
from pathlib import Path
from qttdm.common.events import EventLog
log = EventLog(Path(sys.argv[1]), sys.argv[2])
for i in range({count}):
    log.write(f"{{i}} " + 500 * sys.argv[2])
"""
    children = [subprocess.Popen([sys.executable, "-c", program, str(path), who], cwd=ROOT) for who in "abc"]
    assert [child.wait(timeout=60) for child in children] == [0, 0, 0]
    lines = path.read_text().splitlines()
    assert len(lines) == 3 * count
    for who in "abc":
        mine = [line for line in lines if f"Z {who}: " in line]
        assert [line.split(": ", 1)[1] for line in mine] == [f"{i} {500 * who}" for i in range(count)]


def test_a_disk_that_refuses_does_not_stop_anyone(tmp_path, capsys):
    EventLog(tmp_path / "gone" / "events.log", "driver").write("starts")
    assert capsys.readouterr().out.endswith("driver: starts\n")


def test_a_long_wait_is_told_of_now_and_then(tmp_path):
    log = EventLog(tmp_path / "events.log", "actor 0")
    waiting, began = Waiting(log, 0.2), time.monotonic()
    waiting.still("a permit")
    assert not log.path.exists()
    while not log.path.exists() or len(log.path.read_text().splitlines()) < 3:
        assert time.monotonic() - began < 60
        waiting.still("a permit")
    lines = log.path.read_text().splitlines()
    assert len(lines) <= (time.monotonic() - began) / 0.2
    assert all(re.fullmatch(r"\S+ actor 0: has waited \d+ s for a permit", line) for line in lines)


def test_waits_one_after_the_other_are_not_one_long_wait(tmp_path):
    log = EventLog(tmp_path / "events.log", "actor 0")
    waiting = Waiting(log, 0.05)
    for _ in range(3):
        waiting.still("a permit")
        waiting.over()
        time.sleep(0.06)
    assert not log.path.exists()
    waiting.still("an answer")
    time.sleep(0.06)
    waiting.still("an answer")
    assert re.search(r"actor 0: has waited \d+ s for an answer\n$", log.path.read_text())

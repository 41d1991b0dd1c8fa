"""A line for each seed: what is told of a run on a cluster."""

import io
import re

import pytest
from rich.console import Console

from qttdm.deploy.screens import cluster_progress
from qttdm.deploy.screens.cluster_progress import ClusterProgress

RUNNING = {
    "seed": 3,
    "state": "running",
    "error": "",
    "hung": 1,
    "env_steps": 12_000,
    "episode_return": 123.45,
    "eval_return": 99.0,
    "updates_per_second": 40.26,
    "decisions_per_second": 41.0,
    "seconds": 200.0,
    "spent": {"waiting_for_decisions": 30.0, "waiting_for_batches": 20.0, "updating": 150.0},
    "replay_fill": 0.12,
    "staleness": 37,
    "actor_restarts": 2,
    "environment_failures": 1,
}
QUEUED = {"seed": 4, "state": "queued", "error": "", "hung": 0}
CELLS = [
    "env steps 12,000 24%",
    "return 123.5",
    "eval 99.0",
    "updates/s 40.3",
    "decisions/s 41.0",
    "idle 25%",
    "fill 12%",
    "stale 37",
    "restarts 4",
]


def notice(*seeds):
    return {"name": "walk", "directory": "runs/walk", "task": "dmc/walker-walk", "env_steps": 50_000, "seeds": seeds}


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(cluster_progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def file():
    return io.StringIO()


def test_plain_lines(file):
    with ClusterProgress(Console(file=file, width=80)) as progress:
        progress.show(notice(RUNNING, QUEUED))
    first, second = file.getvalue().splitlines()  # whole lines, however narrow the terminal is thought to be
    assert first.startswith("seed 3 | state running | env steps 12,000 24%")
    for cell in CELLS:
        assert cell in first
    assert second == "seed 4 | state queued | env steps 0 0% | restarts 0"


def test_plain_lines_come_when_a_state_changes_and_now_and_then(file, clock):
    with ClusterProgress(Console(file=file, width=80)) as progress:

        def lines(*seeds):
            file.truncate(0)
            progress.show(notice(*seeds))
            return [line.strip("\0").split(" | env")[0] for line in file.getvalue().splitlines()]

        assert len(lines(RUNNING, QUEUED)) == 2
        clock[0] += 5
        assert lines(RUNNING, QUEUED) == []
        clock[0] += 5
        assert lines(RUNNING, QUEUED) == ["seed 3 | state running"]  # nothing is new of one that is queued
        clock[0] += 1
        assert lines(RUNNING, QUEUED | {"state": "running"}) == ["seed 4 | state running"]
        assert lines(RUNNING | {"state": "finished"}, QUEUED) == ["seed 3 | state finished", "seed 4 | state queued"]


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_in_a_terminal(file, width):
    late = RUNNING | {"env_steps": 500_000, "episode_return": 1234.5, "eval_return": -1234.5}
    with ClusterProgress(Console(file=file, width=width, force_terminal=True)) as progress:
        progress.show(notice(RUNNING, QUEUED) | {"env_steps": 500_000})
        progress.show(notice(late, QUEUED) | {"env_steps": 500_000})
    *_, first, second = [line for line in file.getvalue().splitlines() if re.search("running|queued", line)]
    assert " ".join(first.split()) == "3 running 500,000 100% 1234 -1234 40.3 41.0 25% 12% 37 4"
    assert " ".join(second.split()) == "4 queued 0 0% - - - - - - - 0"
    for word in ("env steps", "return", "eval", "updates", "sions/s", "idle", "fill", "stale", "starts"):
        assert word in file.getvalue()

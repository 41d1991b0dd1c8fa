"""The planner service hangs and is killed in the middle of a run: actors do as they are configured, and come back."""

from __future__ import annotations

import os
import signal

import pytest

from qttdm.common.weights import GENERATION
from tests.remote.live import Live, check_books, settings, status_of

pytestmark = pytest.mark.ray


def served(when_gone: str):
    return settings(
        "cluster={planning: service, actors: 1, shards: 1, hang_seconds: 20, timeout_seconds: 15}",
        f"cluster.asking={{when_gone: {when_gone}, timeout_seconds: 2}}",
    )


def back(live: Live, pid: int) -> None:
    """The planner is in a new process, and is asked."""
    live.replaced("planner-0", pid)
    live.until(lambda: live.ask("planner-0", "__ray_call__", status_of)["answers"] > 20, "it is asked again")
    assert live.ask("planner-0", "__ray_call__", status_of)["weights_version"] > GENERATION


def check_untouched(live: Live) -> None:
    """Nothing else suffered: no episode was lost, nobody restarted."""
    books = check_books(live.seeds[0])
    assert books.meta["counters"]["actor_restarts"] == books.meta["counters"]["environment_failures"] == 0
    assert sorted(e.number for e in [*books.stored, *books.later]) == list(range(books.totals.episodes))


def test_actors_plan_by_themselves_while_it_is_gone(cluster, tmp_path):
    with Live(cluster, tmp_path / "run", [served("local")]) as live:
        live.progress()
        live.until(lambda: live.ask("planner-0", "__ray_call__", status_of)["answers"] > 0, "it is asked")
        pid = live.kill("planner-0", signal.SIGSTOP)
        live.progress()
        os.kill(pid, signal.SIGKILL)
        back(live, pid)
        live.progress()
    check_untouched(live)


def test_actors_wait_until_it_is_back(cluster, tmp_path):
    config = served("wait")
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.progress()
        pid = live.kill("planner-0", signal.SIGSTOP)
        live.until(
            lambda: live.ask("learner", "status")["seconds_since_progress"] > 1.5 * config.cluster.hang_seconds,
            "they wait, longer than a decision may take, and nobody takes that for hanging",
        )
        os.kill(pid, signal.SIGKILL)
        back(live, pid)
        live.progress()
    check_untouched(live)

"""A whole node dies: the run goes on elsewhere, as soon as there is room."""

from __future__ import annotations

import re

import pytest

from tests.remote.live import Live, check_books, gone, settings, workers

pytestmark = pytest.mark.ray

PROCESSES = ("learner", "evaluator", "replay-0", "actor-0")


def test_killed_nodes(cluster, tmp_path):
    def node():
        """One with a GPU, which the head has not."""
        return cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=80 * 2**20)

    def move(live, old, new) -> None:
        """The run is on the old node, which is killed; then on the new one (made if need be), nothing lost."""
        before = live.ask("learner", "status")
        processes = workers(cluster, [old])
        assert all(live.pid(name) in processes for name in PROCESSES)
        cluster.remove_node(old, allow_graceful=False)
        new = new()
        for pid, title in processes.items():
            gone(pid, title)
        live.until(lambda: live.ask("learner", "status"), "the learner is back")
        live.progress()
        assert all(live.pid(name) in workers(cluster, [new]) for name in PROCESSES)
        assert live.ask("learner", "status")["episodes"] >= before["episodes"]
        assert live.versions == sorted(live.versions)

    first = node()
    config = settings("cluster={actors: 1, shards: 1, gpus_per_seed: 1, timeout_seconds: 20}")
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.progress()
        second = node()
        move(live, first, lambda: second)

        def when_it_is_missed():
            missed = (
                "has waited .*learner.* to start; a seed reserves 0.5 CPU, 1 GPU; 0.5 CPU; the nodes have free 8 CPU\n"
            )
            live.until(lambda: re.search(missed, live.events()), "it says what it waits for")
            return node()

        move(live, second, when_it_is_missed)
    check_books(live.seeds[0])
    cluster.remove_node(cluster.worker_nodes.copy().pop())

"""Over a live run, stopped and resumed: updates follow decisions, and Ray's object store stays as small as it was."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from qttdm.deploy.cluster.cluster_run import old_seeds
from tests.remote.live import Live, behind, check_books, objects_stored, settings, tolerance

pytestmark = pytest.mark.ray

PUBLISHES = 240  # half an hour's worth at 50 updates between two, 5.5 updates a second
# What one snapshot, the batches under way and calls in flight come to, and what Ray has not freed yet: more on a fast
# machine. One object kept for each publish would be 240.
OBJECTS, MEBIBYTES = 160, 8


def lowest_priority(pid: int) -> int:
    """The highest nice value of a process's threads."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):  # it ended just now
            found.append(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    return max(found)


def test_pace_and_object_store(cluster, tmp_path):
    config = settings(
        "cluster={actors: 3, shards: 2, publish_every: 1}",
        "training={env_steps: 1000000, eval_every: 1000000, log_every: 10}",
    )
    directory = tmp_path / "run"
    with Live(cluster, directory, [config]) as live:
        live.progress()
        actor, learner = live.pid("actor-0"), live.pid("learner")
        live.until(lambda: lowest_priority(actor) > lowest_priority(learner), "the learner goes first")
        first, before = live.ask("learner", "status")["version"], objects_stored()
        stores = [before]

        def hundreds_of_publishes():
            stores.append(objects_stored())
            return live.ask("learner", "status")["version"] > first + PUBLISHES

        live.until(hundreds_of_publishes, f"{PUBLISHES} publishes")
        assert max(objects for objects, _ in stores) < live.objects + OBJECTS
        assert max(size for _, size in stores) < before[1] + MEBIBYTES
    stopped = check_books(live.seeds[0])

    env_steps = stopped.meta["counters"]["env_steps"] + 2400
    path = live.seeds[0].run_dir.config_path
    path.write_text(path.read_text().replace("env_steps: 1000000", f"env_steps: {env_steps}"))
    with Live(cluster, directory, [], old_seeds(directory)) as live:
        live.end()
    books = check_books(live.seeds[0])
    assert live.seeds[0].state == "finished"
    assert books.meta["counters"]["decisions"] > stopped.meta["counters"]["decisions"] + len(stopped.later)
    # At every moment the updates are what the decisions ask for, less at most the tolerance; so over any stretch too.
    assert behind(config, books) <= tolerance(config)
    for line in books.lines:
        for later in books.lines:
            if later["decisions"] > line["decisions"] >= config.training.seed_decisions:
                updates, decisions = later["updates"] - line["updates"], later["decisions"] - line["decisions"]
                assert abs(updates - config.training.update_ratio * decisions) <= tolerance(config)

"""Where the processes of one seed are, and what it says while it has no place."""

from __future__ import annotations

import os
import re

import pytest
import ray

from tests.remote.live import Live, settings

pytestmark = pytest.mark.ray


def where(actor) -> tuple[list[str], str]:
    """Runs in an actor: the GPUs that Ray gives it, and those that its process sees."""
    return ray.get_runtime_context().get_accelerator_ids()["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]


def test_the_learner_has_a_gpu_of_its_own_where_there_are_two(cluster, tmp_path):
    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=150 * 2**20)
    config = settings(
        "cluster={actors: 1, shards: 1, planning: service, planners: 3, gpus_per_seed: 2}",
        # The sum of these floats is less than 0.4: there must be room for each nevertheless.
        "cluster={learner_cpus: 0.05, evaluator_cpus: 0.35, shard_cpus: 0, planner_cpus: 0}",
    )
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.progress()
        names = ("learner", "evaluator", "planner-0", "planner-1", "planner-2", "actor-0")
        gpus = {name: live.ask(name, "__ray_call__", where) for name in names}
    [own], [shared] = gpus["learner"][0], gpus["evaluator"][0]
    assert {own, shared} == {"0", "1"}
    planners = {name: ([shared], shared) for name in names if name.startswith("planner")}
    assert gpus == {"learner": ([own], own), "evaluator": ([shared], shared), "actor-0": ([], ""), **planners}
    cluster.remove_node(node)


def test_a_queued_seed_says_what_it_waits_for(cluster, tmp_path):
    configs = [settings("cluster={actor_cpus: 3, actors: 2, timeout_seconds: 1}", seed=seed) for seed in (0, 1)]
    with Live(cluster, tmp_path / "run", configs) as live:
        live.until(lambda: {seed.state for seed in live.seeds} == {"running", "queued"}, "one is there, one is queued")
        [queued] = [seed for seed in live.seeds if seed.state == "queued"]
        line = r"driver: has waited \d+ s for a place: a seed reserves 0\.5\d* CPU; 3 CPU; 3 CPU; the nodes have free"

        def said() -> list[str]:
            path = queued.run_dir.events_path
            return re.findall(line, path.read_text()) if path.exists() else []

        live.until(lambda: len(said()) > 1, "the other says so, again and again")

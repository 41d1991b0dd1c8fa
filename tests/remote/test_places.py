"""Where the processes of one seed are, and that each of its planners has work."""

from __future__ import annotations

import os

import pytest
import ray

from tests.remote.live import Live, check_books, settings, status_of

pytestmark = pytest.mark.ray


def where(actor) -> tuple[list[str], str]:
    """Runs in an actor: the GPUs that Ray gives it, and those that its process sees."""
    return ray.get_runtime_context().get_accelerator_ids()["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]


def test_the_learner_has_a_gpu_of_its_own_where_there_are_two_and_several_planners_share_the_actors(cluster, tmp_path):
    node = cluster.add_node(num_cpus=2, num_gpus=2, object_store_memory=150 * 2**20)
    config = settings(
        "cluster={actors: 3, shards: 1, planning: service, planners: 2, gpus_per_seed: 2}",
        # The sum of these floats is less than 0.4: there must be room for each nevertheless.
        "cluster={learner_cpus: 0.05, evaluator_cpus: 0.35, shard_cpus: 0, planner_cpus: 0}",
    )
    with Live(cluster, tmp_path / "run", [config]) as live:
        live.progress()
        names = ("learner", "evaluator", "planner-0", "planner-1", *(f"actor-{i}" for i in range(3)))
        gpus = {name: live.ask(name, "__ray_call__", where) for name in names}
        for name in ("planner-0", "planner-1"):
            live.until(
                lambda name=name: live.ask(name, "__ray_call__", status_of)["answers"] > 0,
                f"{name} plans: its actors have turns",
            )
            status = live.ask(name, "__ray_call__", status_of)
            assert status["refusals"].keys() <= {"busy"}
            assert status["weights_version"] > 0
        live.progress()
    [own], [shared] = gpus["learner"][0], gpus["evaluator"][0]
    assert {own, shared} == {"0", "1"}
    planners = {name: ([shared], shared) for name in names if name.startswith("planner")}
    actors = {name: ([], "") for name in names if name.startswith("actor")}
    assert gpus == {"learner": ([own], own), "evaluator": ([shared], shared), **planners, **actors}
    assert {episode.actor for episode in check_books(live.seeds[0]).stored} == {0, 1, 2}
    cluster.remove_node(node)

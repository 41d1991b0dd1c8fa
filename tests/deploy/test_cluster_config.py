"""deploy/cluster_config.py: what one seed reserves, and the settings that contradict each other."""

import pytest

from common.config import ConfigError, validate
from deploy.cluster_config import ClusterConfig


def config(**settings) -> ClusterConfig:
    return validate(ClusterConfig, settings, "a file")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"gpus_per_seed": 0.3}, ["gpus_per_seed=0.3", "1/n"]),
        ({"gpus_per_seed": 1.5}, ["gpus_per_seed=1.5", "whole number"]),
        ({"publish_every": 50, "max_staleness": 49}, ["max_staleness=49", "publish_every=50"]),
        ({"service": {"max_wait_ms": 2000}, "asking": {"timeout_seconds": 2}}, ["service.max_wait_ms=2000"]),
        ({"hang_seconds": 60}, ["hang_seconds=60", "timeout_seconds"]),
        (
            {"hang_seconds": 5, "timeout_seconds": 4, "planning": "service"},
            ["hang_seconds=5", "10", "asking.timeout_seconds"],
        ),
    ],
)
def test_a_contradiction_is_refused(settings, names):
    with pytest.raises(ConfigError) as error:
        config(**settings)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("gpus", [0, 0.25, 1 / 3, 0.5, 1, 2])
def test_shares_that_fill_a_gpu_are_taken(gpus):
    assert config(gpus_per_seed=gpus).learner_gpus == gpus


def test_a_seed_reserves_its_learners_node_and_a_place_for_each_actor():
    assert config(actors=2, shards=3, gpus_per_seed=0.5).bundles() == [{"CPU": 5, "GPU": 0.5}, {"CPU": 1}, {"CPU": 1}]
    served = config(planning="service", planners=2, gpus_per_seed=1)
    assert served.bundles() == [{"CPU": 5, "GPU": 1}, {"CPU": 1}]
    assert served.learner_gpus + 2 * served.planner_gpus == 1
    free = config(shard_cpus=0, evaluator_cpus=0, learner_cpus=0, actor_cpus=0)
    assert all(0 < bundle["CPU"] < 0.01 for bundle in free.bundles())  # Ray refuses an empty one

"""deploy/configs/cluster_config.py: what one seed reserves, and the settings that contradict each other."""

import itertools

import pytest

from qttdm.common.config import ConfigError, validate
from qttdm.deploy.configs.cluster_config import UNITS, ClusterConfig, units


def config(**settings) -> ClusterConfig:
    return validate(ClusterConfig, settings, "a file")


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"gpus_per_seed": 0.3}, ["gpus_per_seed=0.3", "1/n"]),
        ({"gpus_per_seed": 1.5}, ["gpus_per_seed=1.5", "whole number"]),
        ({"gpus_per_seed": 3}, ["gpus_per_seed=3", "at most 2"]),
        ({"gpus_per_seed": 5, "planning": "service", "planners": 2}, ["gpus_per_seed=5", "at most 4"]),
        ({"gpus_per_seed": 0.0001}, ["gpus_per_seed=0.0001", "too little", "1 other"]),
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


@pytest.mark.parametrize(
    ("gpus", "planners", "learner", "planning"),
    [
        (0, 0, 0, 0),
        (0.5, 0, 0.25, 0.25),
        (1, 0, 0.5, 0.5),
        (2, 0, 1, 1),
        (1, 1, 0.5, 0.25),
        (1 / 3, 1, 0.1666, 0.0833),
        (2, 3, 1, 0.25),
        (3, 1, 1, 1),
        (3, 2, 1, 0.5),  # three on two GPUs: a third of both for each would leave none whole
        (4, 3, 1, 0.5),
    ],
)
def test_half_is_the_learners_and_the_rest_is_for_those_that_plan(gpus, planners, learner, planning):
    c = config(gpus_per_seed=gpus, planning="service" if planners else "local", planners=max(1, planners))
    assert (c.learner_gpus, c.planning_gpus) == (learner, planning)


@pytest.mark.parametrize("planning", ["local", "service"])
@pytest.mark.parametrize("planners", [1, 2, 3, 4])
def test_the_shares_of_a_gpu_fit_their_bundle(planning, planners):
    for gpus in (2, *(1 / n for n in range(1, 500))):
        c = config(gpus_per_seed=gpus, planning=planning, planners=planners)
        bundle, processes = c.bundles()[0]["GPU"], c.planning_processes
        for counted in (units, nearest):  # the first is what Ray does
            assert counted(c.learner_gpus) + processes * counted(c.planning_gpus) <= counted(bundle)
            assert counted(c.planning_gpus) > 0
            assert gpus > 1 or round(1 / gpus) * counted(bundle) <= UNITS  # n of 1/n fit a GPU


def test_the_shares_of_cpus_fit_their_bundle():
    tenths = [i / 20 for i in range(25)]
    for learner, shard, evaluator in itertools.product(tenths, tenths, (0.35, 0.63, 1 / 3)):
        c = config(learner_cpus=learner, shard_cpus=shard, shards=3, evaluator_cpus=evaluator)
        wanted = units(learner) + 3 * units(shard) + units(evaluator)
        assert units(c.bundles()[0]["CPU"]) == wanted


def nearest(amount: float) -> int:
    """What a scheduler that rounds would count."""
    return round(amount * UNITS)


def test_a_seed_reserves_its_learners_node_and_a_place_for_each_actor():
    assert config(actors=2, shards=3, gpus_per_seed=0.5).bundles() == [{"CPU": 5, "GPU": 0.5}, {"CPU": 1}, {"CPU": 1}]
    served = config(planning="service", planners=2, gpus_per_seed=1)
    assert served.bundles() == [{"CPU": 5, "GPU": 1}, {"CPU": 1}]
    free = config(shard_cpus=0, evaluator_cpus=0, learner_cpus=0, actor_cpus=0)
    assert all(0 < bundle["CPU"] < 0.01 for bundle in free.bundles())  # Ray refuses an empty one

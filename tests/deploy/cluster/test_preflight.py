"""Is there room for the seeds: for ever, and now."""

import pytest

from qttdm.common.config import ConfigError
from qttdm.deploy.cluster.preflight import check_capacity
from qttdm.deploy.configs.cluster_config import ClusterConfig

SEED = [{"CPU": 2.0, "GPU": 0.5}, {"CPU": 1.0}, {"CPU": 1.0}]


def room(nodes, seeds, bundles=SEED, free=None):
    return check_capacity(bundles, nodes, nodes if free is None else free, seeds)


def test_room_for_all():
    assert room([{"CPU": 8, "GPU": 1}], 2) == "the cluster has room for all seeds now"
    assert room([{"CPU": 6, "GPU": 1}, {"CPU": 2}], 2) == "the cluster has room for all seeds now"


@pytest.mark.parametrize(
    ("nodes", "free", "fit"),
    [
        ([{"CPU": 8, "GPU": 1}], None, 2),  # the GPU holds two shares
        ([{"CPU": 4, "GPU": 4}], None, 1),
        ([{"CPU": 8, "GPU": 1}], [{"CPU": 4, "GPU": 0.5}], 1),  # another run has the rest
        ([{"CPU": 8, "GPU": 1}], [{"CPU": 8}], 0),
        ([{"CPU": 8, "GPU": 1}], [{}], 0),
    ],
)
def test_too_much_for_now_is_queued(nodes, free, fit):
    assert room(nodes, 3, free=free) == f"the cluster has room for {fit} of 3 seeds now; the others are queued"


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (
            [{"CPU": 2}, {"CPU": 1, "GPU": 1}],
            ["a seed needs 4 CPU, the whole cluster has 3", "--actors", "--num-cpus=N"],
        ),
        ([{"CPU": 16}], ["a seed needs 0.5 GPU, the whole cluster has 0", "--gpus-per-seed", "--num-gpus=N"]),
        (
            [{"CPU": 1}] * 8 + [{"GPU": 1}],
            ["largest part needs 2 CPU, 0.5 GPU on one node", "8 x 1 CPU; ", "; 1 x 1 GPU"],
        ),
        ([{"memory": 1}], ["a seed needs 4 CPU, the whole cluster has 0"]),
    ],
)
def test_too_much_for_ever_names_the_resource(nodes, words):
    with pytest.raises(ConfigError) as raised:
        room(nodes, 1)
    for word in words:
        assert word in str(raised.value)


def test_shares_that_do_not_add_up_exactly_fit():
    bundles = ClusterConfig(learner_cpus=0.1, shard_cpus=0, evaluator_cpus=0, actors=2, actor_cpus=0.1).bundles()
    assert 0.1 + 0.1 + 0.1 > 0.3
    assert room([{"CPU": 0.3}], 1, bundles) == "the cluster has room for all seeds now"

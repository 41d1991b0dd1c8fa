"""Bodies on a real cluster: each one a task, with the same outcome as here."""

import numpy as np
import pytest

from qttdm.common.environments.config import EnvConfig
from qttdm.deploy.bodies.cluster import gather_on_cluster
from qttdm.deploy.bodies.collect import Bodies, gather_here, names

pytestmark = pytest.mark.ray


def test_bodies_are_the_same_on_the_cluster(cluster):
    bodies = Bodies(EnvConfig(action_repeat=4, episode_steps=20), 0, 2, 0.5)
    tasks = names("line", 2, 0, 5)
    there = {gathered.task: gathered for gathered in gather_on_cluster(tasks, bodies)}
    assert there.keys() == {*tasks}
    for here in gather_here(tasks, bodies, 2):
        for one, other in zip(here.episodes, there[here.task].episodes, strict=True):
            assert np.array_equal(one.observations, other.observations)

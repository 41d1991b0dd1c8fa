"""One Ray for the whole session: starting and stopping it costs about 5 s."""

from __future__ import annotations

import os

import pytest
import ray


@pytest.fixture(scope="session")
def cluster():
    # A local Ray turns token authentication on and leaves a token in the user's home unless told not to.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(
        num_cpus=8,  # logical: shards and actors of a test may share the cores there are
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()

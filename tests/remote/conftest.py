"""One Ray for each process of tests: to start and stop it takes 5 s. Tests may add nodes to it, and kill them."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
import ray

from qttdm.deploy.configs.cluster_config import NAMESPACE
from tests.remote.nodes import Nodes

os.environ |= {"RAY_prestart_worker_first_driver": "0"}  # else each Ray starts a worker for each core at once


@pytest.fixture(autouse=True)
def keeps_its_priority(monkeypatch):
    """Some tests run an actor's methods here; whatever this process starts later would inherit the lowest priority."""
    monkeypatch.setattr("qttdm.actors.remote.give_way", lambda: None)


@pytest.fixture(scope="session")
def cluster():
    # A local Ray turns token authentication on and leaves a token in the user's home unless told not to. Its files are
    # in a folder of this session's, as is the address that others on this machine would find with `auto`.
    folder = tempfile.mkdtemp(prefix="ray-")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}
    # Logical CPUs: the processes of a test share the cores there are.
    head = {"num_cpus": 8, "object_store_memory": 200 * 2**20, "include_dashboard": False}
    nodes = Nodes(initialize_head=True, head_node_args=head)
    ray.init(
        address=nodes.address,
        namespace=NAMESPACE,
        log_to_driver=False,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
    )
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)  # what Ray's last processes still write

"""The Kubernetes pods that are shipped have room for the run that is shipped with them."""

import json
import shlex
import subprocess
import sys

import pytest

from qttdm.deploy.cli.main import app
from tests.deploy.test_platforms import RAY_JOB, groups, load

pytestmark = pytest.mark.ray

PLACE = """
import json, os, shutil, sys, tempfile
files = tempfile.mkdtemp(prefix="ray-")
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": files}
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group

nodes, bundles, seeds = json.loads(sys.argv[1])
memory = {"object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
for node in nodes:
    cluster.add_node(num_cpus=node["CPU"], num_gpus=node["GPU"], **memory)
ray.init(address=cluster.address, log_to_driver=False)
groups = [placement_group(bundles, strategy="PACK") for _ in range(seeds)]
print(len(ray.wait([group.ready() for group in groups], num_returns=seeds, timeout=60)[0]))
ray.shutdown()
cluster.shutdown()
shutil.rmtree(files)
"""


def test_the_pods_hold_all_seeds_of_the_entrypoint_at_once():
    """Asked of Ray's own scheduler: nodes with the pods' CPUs and GPUs, and the seeds' placement groups."""
    words = shlex.split(load(RAY_JOB)["spec"]["entrypoint"])[1:]
    configs = app.parse_args(words, print_error=False, exit_on_error=False)[1].arguments["settings"].configs()
    nodes = []
    for group in groups()[1:]:
        requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
        nodes += [{"CPU": int(requests["cpu"]), "GPU": int(requests.get("nvidia.com/gpu", 0))}] * group["replicas"]
    wanted = json.dumps([nodes, configs[0].cluster.bundles(), len(configs)])
    placed = subprocess.run([sys.executable, "-c", PLACE, wanted], capture_output=True, text=True, timeout=180)
    assert placed.stdout.split()[-1:] == [str(len(configs))], placed.stderr

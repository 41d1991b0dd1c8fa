"""The clients that the documentation shows, against a real server."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from tests.fakes import Acting
from tests.planner_service.serving.serving import INFO, serving, tiny_policy
from tests.planner_service.serving.test_service import numbers as observation

ROOT = Path(__file__).parents[3]
CLIENTS = ROOT / "docs" / "clients"


class TestNode:
    @pytest.fixture(autouse=True)
    def node(self):
        if not shutil.which("node"):
            pytest.skip("no node here")

    def run(self, *arguments, lines=(), **environment):
        command = ["node", str(CLIENTS / "client.mjs"), *map(str, arguments)]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        own = os.environ | environment
        return subprocess.run(command, input=text, capture_output=True, text=True, env=own, timeout=60)

    def test_gets_the_local_policys_actions(self):
        observations = [observation(step) for step in range(5)]
        with serving(token="sésame") as it:
            ran = self.run(it.port, "127.0.0.1", 5, lines=[o.tolist() for o in observations], QTTDM_TOKEN="sésame")
        assert (ran.returncode, ran.stderr) == (0, "")
        got = [json.loads(line) for line in ran.stdout.splitlines()]
        policy = tiny_policy()
        policy = Acting(policy)
        policy.begin([5], 0.0)
        assert np.allclose(got, [policy.act(o[None])[0] for o in observations], atol=1e-5)

    def test_says_what_the_server_refuses(self):
        with serving(token="sesame") as it:
            refused = self.run(it.port, QTTDM_TOKEN="guess")
            assert (refused.returncode, refused.stderr) == (1, "unauthorised: the token is missing or wrong\n")
            short = self.run(it.port, lines=[[1.0, 2.0]], QTTDM_TOKEN="sesame")
        assert (short.returncode, short.stderr) == (1, "bad_observation: observations: got [2] numbers, want [3]\n")

    def test_packs_and_unpacks_all_that_the_protocol_has(self):
        """Its msgpack against ours, both ways."""
        import msgpack

        values = [None, True, False, 0, 127, 128, 2**16, 2**32, 2**53 - 1, -1, -0.5, 1e300, "", "ä" * 40, "x" * 70_000]
        values += [[], list(range(20)), list(range(70_000)), {}, {str(i): i for i in range(20)}, {"a": [{"b": None}]}]
        ours = msgpack.packb(values)
        script = (
            f"import {{ pack, unpack }} from {json.dumps((CLIENTS / 'client.mjs').as_uri())};"
            "const parts = []; for await (const part of process.stdin) parts.push(part);"
            "process.stdout.write(pack(unpack(Buffer.concat(parts))));"
        )
        ran = subprocess.run(
            ["node", "--input-type=module", "-e", script], input=ours, capture_output=True, check=True, timeout=60
        )
        assert msgpack.unpackb(ran.stdout) == values


@pytest.mark.parametrize(("name", "port"), [("drive.py", "port=7747"), ("drive_node.py", "PORT = 7747")])
def test_the_examples_drive_a_gymnasium_environment_to_the_same_return(tmp_path, name, port):
    """As they stand in the documentation, but for the port."""
    if name == "drive_node.py" and not shutil.which("node"):
        pytest.skip("no node here")
    shutil.copytree(CLIENTS, tmp_path / "clients")
    example = tmp_path / "clients" / name
    source = example.read_text()
    assert source.count(port) == 1
    info = {**INFO, "task": "gym/Pendulum-v1", "action_repeat": 20}
    with serving(tiny_policy(action_dim=1), info=info) as it:
        example.write_text(source.replace("7747", str(it.port)))
        own = os.environ | {"PYTHONPATH": str(ROOT)}
        ran = subprocess.run([sys.executable, example], capture_output=True, text=True, env=own, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert it.service._counts["answers"] == 10  # 200 steps, each action held for 20
    env = make_env("gym/Pendulum-v1", EnvConfig(action_repeat=20))
    policy = tiny_policy(action_dim=1)
    policy = Acting(policy)
    policy.begin([0], 0.0)
    (observation, _), score, over = env.reset(seed=0), 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation[None])[0])
        score, over = score + reward, terminated or truncated
    assert ran.stdout == f"return {score:.1f}\n"

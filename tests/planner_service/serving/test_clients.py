"""The clients that the documentation shows, against a real server."""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from tests.fakes import Acting
from tests.planner_service.serving.serving import INFO, serving, tiny_policy
from tests.planner_service.serving.test_fuzz import mutate_bytes
from tests.planner_service.serving.test_service import numbers as observation

ROOT = Path(__file__).parents[3]
CLIENTS = ROOT / "docs" / "clients"


def node_options():
    """Environment variables with which node has WebSockets."""
    version = subprocess.check_output(["node", "--version"], text=True)
    old = int(version[1:].split(".")[0]) < 22
    return {"NODE_OPTIONS": "--experimental-websocket", "NODE_NO_WARNINGS": "1"} if old else {}


def local_actions(seed, observations):
    policy = Acting(tiny_policy())
    policy.begin([seed], 0.0)
    return [policy.act(o[None])[0] for o in observations]


@pytest.mark.skipif(not shutil.which("node"), reason="no node here")
class TestNode:
    def run(self, *command, lines=(), **environment):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        own = os.environ | node_options() | environment
        command = ["node", *map(str, command)]
        return subprocess.run(command, input=text, capture_output=True, text=True, env=own, timeout=60, cwd=CLIENTS)

    def test_gets_the_local_policys_actions(self):
        observations = [observation(step) for step in range(5)]
        with serving(token="s.e-s~a_m+e") as it:
            url, lines = f"ws://127.0.0.1:{it.port}", [o.tolist() for o in observations]
            ran = self.run("client.mjs", url, 5, lines=lines, QTTDM_TOKEN="s.e-s~a_m+e")
        assert (ran.returncode, ran.stderr) == (0, "")
        got = [json.loads(line) for line in ran.stdout.splitlines()]
        assert np.allclose(got, local_actions(5, observations), atol=1e-5)

    def test_sends_no_token_unencrypted_to_another_machine(self):
        for host in ("robot.invalid", "127.robot.invalid"):
            ran = self.run("client.mjs", f"ws://{host}:7747", QTTDM_TOKEN="sesame")
            assert ran.returncode == 1
            assert ran.stderr.startswith(f"the token would go to {host} unencrypted; want wss://")
        meant = self.run("client.mjs", "ws://robot.invalid:7747", QTTDM_TOKEN="sesame", QTTDM_PLAIN_TEXT="1")
        assert meant.stderr == "ws://robot.invalid:7747: no service there, or it refused or hung up\n"

    def test_mutated_answers_are_an_action_or_an_error_of_one_line(self):
        """Of a service that means no good, or of a broken one; what comes is JSON, binary, cut, or nearly right."""
        rng, peers = random.Random(0), 300

        def answer(socket):
            with suppress(ConnectionClosed):  # it does not say goodbye
                converse(socket)

        def converse(socket):
            for message in socket:
                result = {"action": [0.5, -0.25], "value": 0.5, "weights_version": 1, "iterations": 2, "late": False}
                right = {"episodes": [1]} if json.loads(message)["call"] == "begin" else {"results": [result]}
                data = json.dumps(right).encode()
                if rng.random() < 0.5:
                    data = mutate_bytes(rng, data)
                elif rng.random() < 0.4:
                    place = right if rng.random() < 0.5 else result
                    place[rng.choice([*place, "error"])] = rng.choice(
                        [None, [], {}, [None], "x", 1e400, [{}], [[0.5]], -1]
                    )
                    data = json.dumps(right).encode()
                socket.send(data if rng.random() < 0.05 else data.decode(errors="replace"))

        script = f"""
            import {{ connect }} from "{(CLIENTS / "client.mjs").as_uri()}";
            for (let i = 0; i < {peers}; i++) {{
              let act, got;
              try {{
                act = await connect(process.argv[1], i);
                got = [await act([0, 0, 0]), await act([0, 0, 0])];
              }} catch (error) {{ got = error.message; }}
              console.log(JSON.stringify(got));
            }}
            process.exit();"""
        with serve(answer, "127.0.0.1", 0, subprotocols=["qttdm.3"], compression=None) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.socket.getsockname()[1]
            ran = self.run("--input-type=module", "-e", script, f"ws://127.0.0.1:{port}")
            server.shutdown()
        assert (ran.returncode, ran.stderr) == (0, "")
        outcomes = [json.loads(line) for line in ran.stdout.splitlines()]
        assert len(outcomes) == peers
        errors = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert 0.2 * peers < len(errors) < peers
        assert all(re.match(r"ws://127\.0\.0\.1:\d+: |.*: ", error) and "\n" not in error for error in errors)
        for action in (action for outcome in outcomes if isinstance(outcome, list) for action in outcome):
            assert all(isinstance(number, int | float) and abs(number) < 1e308 for number in action)

    def test_says_what_the_server_refuses(self):
        with serving(token="sesame") as it:
            url = f"ws://127.0.0.1:{it.port}"
            refused = self.run("client.mjs", url, QTTDM_TOKEN="guess")
            assert refused.returncode == 1
            assert refused.stderr == f"{url}: no service there, or it refused or hung up\n"
            short = self.run("client.mjs", url, lines=[[1.0, 2.0]], QTTDM_TOKEN="sesame")
        assert (short.returncode, short.stderr) == (
            1,
            "bad_observation: observations: got a list of 2, want [3] numbers\n",
        )

    def test_the_page_shows_the_action(self):
        """Its script as it stands, in node, whose `document` is the form filled in."""
        (script,) = re.findall(r'<script type="module">(.*)</script>', (CLIENTS / "page.html").read_text(), re.DOTALL)
        with serving(token="sesame") as it:
            fields = {"url": f"ws://127.0.0.1:{it.port}", "token": "sesame", "seed": "5"}
            fields["observations"] = json.dumps({"observations": observation(0).tolist()})
            page = f"""
                const found = {{ form: {{}}, pre: {{ textContent: "" }} }};
                globalThis.document = {{ querySelector: (name) => found[name] }};
                globalThis.FormData = class {{ constructor() {{ return Object.entries({json.dumps(fields)}); }} }};
                {script}
                await found.form.onsubmit({{ preventDefault() {{}} }});
                console.log(found.pre.textContent); process.exit();"""
            ran = self.run("--input-type=module", "-e", page.replace("./client.mjs", (CLIENTS / "client.mjs").as_uri()))
        assert (ran.returncode, ran.stderr) == (0, "")
        assert np.allclose(json.loads(ran.stdout), local_actions(5, [observation(0)])[0], atol=1e-5)


def test_the_robot_gets_its_actions_and_stops_safely_without_a_service(tmp_path):
    """As it stands in the documentation, but for the port; then the service dies in the middle."""
    source = (CLIENTS / "robot.py").read_text()
    bounds = {"low": [-2.0, 1.0], "high": [2.0, 3.0]}
    info = {**INFO, "action_bounds": bounds, "decision_seconds": 0.5}
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    with serving(info=info) as it:
        example = tmp_path / "robot.py"
        shown = source.replace("7747", str(it.port)).replace(
            'policy says."""', 'policy says."""\n    print(action.tolist(), flush=True)'
        )
        example.write_text(shown)
        ran = subprocess.run([sys.executable, example, "2"], capture_output=True, text=True, env=own, timeout=60)
        assert ran.stdout.splitlines()[2:] == ["[0.0, 1.0]", "2 decisions, 0 ticks without one in time; stopped"]
        child = subprocess.Popen([sys.executable, example, "999"], stdout=subprocess.PIPE, text=True, env=own)
        child.stdout.readline()
    out, _ = child.communicate(timeout=60)
    assert "[0.0, 1.0]" in out.splitlines()  # the safe action
    assert out.splitlines()[-1].endswith("stopped")


@pytest.mark.parametrize(("name", "port"), [("drive.py", "port=7747"), ("drive_node.py", "PORT = 7747")])
def test_the_examples_drive_a_gymnasium_environment_to_the_same_return(tmp_path, name, port):
    """As they stand in the documentation, but for the port."""
    if name == "drive_node.py" and not shutil.which("node"):
        pytest.skip("no node here")
    shutil.copytree(CLIENTS, tmp_path / "clients")
    example = tmp_path / "clients" / name
    source = example.read_text()
    assert source.count(port) == 1
    info = {
        **INFO,
        "task": "gym/Pendulum-v1",
        "action_repeat": 20,
        "episode_steps": 200,
        "action_bounds": {"low": [-2.0], "high": [2.0]},
    }
    units = {"in_units": lambda action: 2 * action}
    with serving(tiny_policy(action_dim=1), info=info, **units) as it:
        example.write_text(source.replace("7747", str(it.port)))
        own = os.environ | {"PYTHONPATH": str(ROOT)} | (node_options() if name == "drive_node.py" else {})
        ran = subprocess.run([sys.executable, example], capture_output=True, text=True, env=own, timeout=120)
        assert ran.returncode == 0, ran.stderr
        assert it.service._counts["answers"] == 10  # 200 steps, each action held for 20
    env = make_env("gym/Pendulum-v1", EnvConfig(action_repeat=20))
    policy = Acting(tiny_policy(action_dim=1))
    policy.begin([0], 0.0)
    (observation, _), score, over = env.reset(seed=0), 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy.act(observation[None])[0])
        score, over = score + reward, terminated or truncated
    assert ran.stdout == f"return {score:.1f}\n"

"""The same episode as drive.py's, its actions by client.mjs: Node reads an observation a line and writes an action."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from gymnasium.wrappers import RescaleAction

from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.planner_service.serving.client import Client

PORT = 7747
with Client(port=PORT) as client:
    info = client.call("info")
env = make_env(info["task"], EnvConfig(action_repeat=info["action_repeat"], episode_steps=info["episode_steps"]))
env = RescaleAction(env, *map(np.float32, info["action_bounds"].values()))  # from its own units
command = ["node", Path(__file__).with_name("client.mjs"), f"ws://127.0.0.1:{PORT}"]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as node:
    (observation, _), score, over = env.reset(seed=0), 0.0, False
    while not over:
        print(json.dumps(observation.tolist()), file=node.stdin)
        if not (action := node.stdout.readline()):
            sys.exit("client.mjs ended, see above; it needs Node 22 or newer, or `npm install ws` in docs/clients")
        observation, reward, terminated, truncated, _ = env.step(json.loads(action))
        score, over = score + reward, terminated or truncated
    node.stdin.close()
print(f"return {score:.1f}")

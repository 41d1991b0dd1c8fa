"""One episode of a served agent in its own task, a Gymnasium environment: `qttdm serve RUN`, then this."""

import numpy as np
from gymnasium.wrappers import RescaleAction

from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.planner_service.serving.client import Client

with Client(port=7747) as client:
    info, episode = client.call("info"), client.episode(seed=0)
    env = make_env(info["task"], EnvConfig(action_repeat=info["action_repeat"], episode_steps=info["episode_steps"]))
    env = RescaleAction(env, *map(np.float32, info["action_bounds"].values()))  # from its own units
    (observation, _), score, over = env.reset(seed=0), 0.0, False
    while not over:
        action = episode.act(observation)["action"]
        observation, reward, terminated, truncated, _ = env.step(action)
        score, over = score + reward, terminated or truncated
print(f"return {score:.1f}")

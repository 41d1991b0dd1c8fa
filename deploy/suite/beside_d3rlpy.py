"""Train d3rlpy's algorithms on a data set of ours, for so many minutes of one core, and evaluate them: docs/offline.md.

python -m qttdm.deploy.suite.beside_d3rlpy cart/medium-v1 --minutes 5 --algorithms iql,td3-bc,rebrac,dt
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from qttdm.common.config import ConfigError
from qttdm.common.environments.make import EnvConfig, make_env
from qttdm.common.seeding import derive_seed
from qttdm.deploy.suite.experiments import mean
from qttdm.replay.datasets import Dataset, open_dataset

EPISODES = 20


class TimeIsUpError(Exception):
    """Ends `fit`."""


def trained(algorithm: str, dataset: Dataset, minutes: float, seed: int) -> tuple[Any, int, float]:
    """Train with d3rlpy's own settings, observations brought to mean 0 and deviation 1; returns updates, best return.

    Rewards are scaled for the Decision Transformer alone, whose examples do so.
    """
    d3rlpy = importlib.import_module("d3rlpy")
    d3rlpy.seed(seed)
    episodes = list(dataset.episodes())
    last = [np.arange(e.decisions) == e.decisions - 1 for e in episodes]
    logs = d3rlpy.dataset.MDPDataset(
        observations=np.concatenate([e.observations[:-1] for e in episodes]),
        actions=np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate([e.rewards for e in episodes])[:, None],
        terminals=np.concatenate([at & e.terminated for at, e in zip(last, episodes, strict=True)]),
        timeouts=np.concatenate([at & (not e.terminated) for at, e in zip(last, episodes, strict=True)]),
    )
    a, p = d3rlpy.algos, d3rlpy.preprocessing
    config = {
        "iql": a.IQLConfig,
        "td3-bc": a.TD3PlusBCConfig,
        "rebrac": a.ReBRACConfig,
        "dt": lambda **scalers: a.DecisionTransformerConfig(
            max_timestep=1 + max(e.decisions for e in episodes),
            reward_scaler=p.MultiplyRewardScaler(0.001),
            **scalers,
        ),
    }[algorithm]
    model = config(observation_scaler=p.StandardObservationScaler()).create(device=False)
    ends, updates = time.process_time() + 60 * minutes, 0

    def look_at_clock(_: Any, __: int, step: int) -> None:
        nonlocal updates
        updates = step
        if time.process_time() > ends:
            raise TimeIsUpError

    try:
        quiet = d3rlpy.logging.NoopAdapterFactory()
        settings = {"n_steps": 10**7, "n_steps_per_epoch": 50, "logger_adapter": quiet, "show_progress": False}
        model.fit(logs, callback=look_at_clock, **settings)
    except TimeIsUpError:
        pass
    return model, updates, max(e.episode_return for e in episodes)


def returns_of(model: Any, dataset: Dataset, target: float, seed: int) -> list[float]:
    """Act from the start states that `qttdm eval` has; target: the return that a Decision Transformer is asked for."""
    returns = []
    if dataset.task is None:
        raise ConfigError(f"data set {dataset.name} names no task to evaluate in")
    with closing(make_env(dataset.task, EnvConfig(action_repeat=dataset.action_repeat or 1))) as env:
        for number in range(EPISODES):
            act: Callable[[np.ndarray, float], np.ndarray]
            if hasattr(model, "as_stateful_wrapper"):
                act = model.as_stateful_wrapper(target_return=target).predict
            else:
                act = lambda observation, reward: model.predict(observation[None])[0]  # noqa: E731
            observation, _ = env.reset(seed=derive_seed(seed, "evaluation", number) % 2**31)
            total, reward, done = 0.0, 0.0, False
            while not done:
                action = np.clip(act(observation, reward), -1, 1).astype(np.float32)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, done = total + reward, terminated or truncated
            returns.append(total)
    return returns


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and evaluate each; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", help="Minari's id, or a folder")
    parser.add_argument(
        "--minutes", type=float, default=5.0, help="of processor time: others on the machine do not count"
    )
    parser.add_argument("--algorithms", default="iql,td3-bc,rebrac,dt")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        dataset = open_dataset(options.dataset)
        for algorithm in options.algorithms.split(","):
            model, updates, best = trained(algorithm, dataset, options.minutes, options.seed)
            result = mean(returns_of(model, dataset, best, options.seed))
            print(f"| d3rlpy {algorithm} | {updates:,} | {result} |", flush=True)
    except ConfigError as error:
        print(f"beside_d3rlpy: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

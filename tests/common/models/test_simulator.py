"""What the simulator predicts is what happens, in every domain of the suite."""

import numpy as np
import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import list_tasks, make_env
from qttdm.common.models.simulator import Simulator

TASKS = {task.partition("-")[0]: task for task in list_tasks() if task.startswith("dmc/")}
"""The last of each domain: where tasks draw something for each episode, these do."""
TOO_LARGE = ["dmc/quadruped-escape"]


def roll(task: str, seed: int, decisions: int = 8, **config) -> tuple[float, float, np.ndarray, np.ndarray]:
    """The same actions in the task and in its simulator, beside two sequences that differ: sums and last sights."""
    env = make_env(task, EnvConfig(action_repeat=2, **config), with_state=True)
    rng, action_dim = np.random.default_rng(seed), env.task_spec.action_dim
    observation, _ = env.reset(seed=seed)
    for _ in range(3):  # into the episode: warm starts count
        observation = env.step(rng.uniform(-1, 1, action_dim).astype(np.float32))[0]
    simulator = Simulator(env.task_spec, threads=2)
    context = {name: torch.from_numpy(array[None]) for name, array in env.observe(observation).items()}
    rollout = simulator.select(simulator.start(context), torch.tensor([0, 0, 0]), decisions)
    obtained = predicted = 0.0
    for _ in range(decisions):
        actions = rng.uniform(-1, 1, (3, action_dim)).astype(np.float32)
        predicted += float(simulator.step(rollout, torch.from_numpy(actions)).rewards[1])
        observation, reward, *_ = env.step(actions[1])
        obtained += reward
    seen = simulator.state(rollout)["observations"].numpy()
    assert not np.array_equal(seen[0], seen[1])
    return predicted, obtained, seen[1], observation


@pytest.mark.parametrize("task", TASKS.values())
def test_predicted_rewards_are_obtained(task):
    predicted, obtained, seen, observation = roll(task, seed=5)
    assert predicted == pytest.approx(obtained, abs=1e-6)
    assert seen == pytest.approx(observation, abs=1e-6)


def test_what_a_task_draws_for_an_episode_comes_along():
    """A simulator whose own episode has another target."""
    env = make_env("dmc/reacher-easy", EnvConfig(), with_state=True)
    for seed in (1, 2):
        observation, _ = env.reset(seed=seed)
        simulator = Simulator(env.task_spec, threads=1)
        context = {name: torch.from_numpy(array[None]) for name, array in env.observe(observation).items()}
        rollout = simulator.select(simulator.start(context), torch.tensor([0]), 1)
        simulator.step(rollout, torch.zeros(1, 2))
        assert rollout.observations[0] == pytest.approx(env.step(np.zeros(2, np.float32))[0], abs=1e-6)


@pytest.mark.parametrize("task", [*TOO_LARGE, "metaworld/reach", "gym/Pendulum-v1"])
def test_where_no_state_can_be_shown_the_task_says_so(task):
    assert make_env(task, EnvConfig()).task_spec.simulator_state == 0
    with pytest.raises(ConfigError, match=f"{task} cannot show its simulator's state"):
        make_env(task, EnvConfig(), with_state=True)


def test_nothing_is_earned_after_the_end():
    """Of a sequence that has ended, while another goes on: no reward, and log-odds of plus and minus infinity."""
    env = make_env("dmc/lqr-lqr_2_1", EnvConfig(action_repeat=1), with_state=True)  # ends at rest
    observation, _ = env.reset(seed=0)
    assert env.task_spec.terminates
    simulator = Simulator(env.task_spec, threads=2)
    moving = env.observe(observation)
    resting = {name: np.zeros_like(array) for name, array in moving.items()}
    context = {name: torch.from_numpy(np.stack([moving[name], resting[name]])) for name in moving}
    rollout = simulator.select(simulator.start(context), torch.tensor([0, 1]), 2)
    first = simulator.step(rollout, torch.zeros(2, 1))
    assert first.continuation_logits.tolist() == [np.inf, -np.inf]
    second = simulator.step(rollout, torch.ones(2, 1))
    assert second.rewards[1] == 0
    assert second.rewards[0] != 0
    assert second.continuation_logits.tolist() == [np.inf, -np.inf]


def test_a_sequence_that_cannot_be_simulated_ends_and_the_others_go_on():
    env = make_env("dmc/cartpole-swingup", EnvConfig(), with_state=True)
    observation, _ = env.reset(seed=0)
    simulator = Simulator(env.task_spec, threads=1)
    context = {name: torch.from_numpy(np.stack([array] * 2)) for name, array in env.observe(observation).items()}
    context["simulator_state"][0, 1:] = 1e12
    rollout = simulator.select(simulator.start(context), torch.tensor([0, 1]), 1)
    rewards = simulator.step(rollout, torch.zeros(2, 1)).rewards
    assert rollout.alive.tolist() == [False, True]
    assert rewards.tolist() == [0.0, env.step(np.zeros(1, np.float32))[1]]


def test_actions_of_the_box():
    simulator = Simulator(make_env("dmc/pendulum-swingup", EnvConfig()).task_spec, threads=1)
    assert simulator.quantise(torch.tensor([-3.0, 0.25])).tolist() == [-1.0, 0.25]
    assert simulator.uniform(torch.tensor([0.0, 0.75])).tolist() == [-1.0, 0.5]

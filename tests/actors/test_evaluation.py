"""Evaluation: repeatable, without exploration, and without a trace in training."""

import numpy as np
import pytest

from qttdm.actors.episodes import Stopped, run_episodes
from qttdm.actors.evaluation import Evaluation, evaluate, film
from qttdm.common.seeding import derive_seed
from qttdm.planner_service.policies.random_actions import RandomPolicy
from tests.fakes import point_env, tiny_data


class Recorder(RandomPolicy):
    """Random actions; keeps with what episodes were started."""

    def __init__(self):
        super().__init__(tiny_data())
        self.began = ([], None)

    def start(self, seed, exploration):
        self.began = ([*self.began[0], seed], exploration)
        return super().start(seed, exploration)


def test_the_same_seed_gives_the_same_result_in_any_environments():
    policy, envs = RandomPolicy(tiny_data()), [point_env(6) for _ in range(3)]
    first = evaluate(envs, policy, seed=1)
    again = evaluate([point_env(6) for _ in range(3)], policy, seed=1)
    assert evaluate(envs, policy, seed=1) == first == again
    assert evaluate(envs, policy, seed=2) != first
    assert len(set(first.returns)) == 3  # different start states


def test_episodes_do_not_depend_on_how_many_are_run():
    policy, envs = RandomPolicy(tiny_data()), [point_env(6) for _ in range(3)]
    assert evaluate(envs[:2], policy, 1).returns == evaluate(envs, policy, 1).returns[:2]


def test_does_not_explore():
    policy = Recorder()
    evaluate([point_env(2)], policy, seed=0)
    assert policy.began[1] == 0.0


def test_start_states_are_not_those_of_training():
    """Seeds are derived: evaluation episode i of run 0 is not what anyone gets with seed i."""
    policy = Recorder()
    evaluate([point_env(2) for _ in range(4)], policy, seed=0)
    assert not set(policy.began[0]) & set(range(100))
    assert len(set(policy.began[0])) == 4


def test_another_attempt_has_other_start_states():
    envs, began = [point_env(2), point_env(2)], []
    for attempt in range(3):
        policy = Recorder()
        evaluate(envs, policy, seed=0, attempt=attempt)
        began.append(policy.began[0])
    assert began[0] == [derive_seed(0, "evaluation", i) for i in range(2)]
    assert len({seed for seeds in began for seed in seeds}) == 6


def test_a_training_episode_is_the_same_with_evaluations_around_it():
    env, eval_env, policy = point_env(6), point_env(6), RandomPolicy(tiny_data())
    (undisturbed,) = run_episodes([env], policy, [3], 1.0)
    evaluate([eval_env], policy, seed=3)
    age, place = env.unwrapped.age, env.unwrapped.place.copy()
    evaluate([eval_env], policy, seed=4)
    assert env.unwrapped.age == age
    assert np.array_equal(env.unwrapped.place, place)
    (disturbed,) = run_episodes([env], policy, [3], 1.0)
    assert np.array_equal(undisturbed.observations, disturbed.observations)


def test_success_is_the_share_of_episodes_that_end_in_it():
    envs = [point_env(n) for n in (1, 2, 3, 4, 5)]  # an odd number of steps is a success
    assert evaluate(envs, RandomPolicy(tiny_data()), seed=0).success == pytest.approx(0.6)


def test_mean_return():
    assert Evaluation([1.0, 2.0, 6.0], None).mean_return == 3.0


def test_returns_are_undiscounted_sums():
    env = point_env(3)
    (got,) = evaluate([env], RandomPolicy(tiny_data()), seed=0).returns
    assert 0 < got <= 3.0
    rewards = []
    step = env.step
    env.step = lambda action: (rewards.append((answer := step(action))[1]), answer)[1]
    evaluate([env], RandomPolicy(tiny_data()), seed=0)
    assert got == pytest.approx(sum(rewards), abs=1e-5)


def test_can_be_stopped():
    with pytest.raises(Stopped):
        evaluate([point_env(3)], RandomPolicy(tiny_data()), seed=0, should_stop=lambda: True)


def test_the_film_is_of_the_first_evaluation_episode():
    policy, env = Recorder(), point_env(4)
    env.render = lambda: np.full((2, 2, 3), env.unwrapped.age, np.uint8)
    frames, episode = film(env, policy, seed=8)
    again = Recorder()
    evaluate([point_env(4)], again, seed=8)
    assert policy.began == again.began
    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 3, 4]
    assert len(episode.rewards) == 4

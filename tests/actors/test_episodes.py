"""The environment loop, on toy environments and policies that show their workings."""

from itertools import count

import numpy as np
import pytest

from qttdm.actors.episodes import Stopped, run_episodes
from qttdm.common.contracts import Decisions
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.make import make_env
from qttdm.common.episode import EnvironmentFailure
from qttdm.planner_service.policies.random_actions import RandomPolicy
from tests.fakes import point_env, tiny_data


class Scripted:
    """Acts by the number of the decision and shows what it was asked; new weights before every third decision."""

    weights_version = 5

    def __init__(self, changes=False):
        self.changes, self.asked, self.began = changes, [], None

    def start(self, seed, exploration):
        self.began = ([*(self.began or ([],))[0], seed], exploration)

    def decide(self, episodes, context):
        observations = context["observations"]
        if self.changes and len(self.asked) == 3:
            self.weights_version = 9
        self.asked.append(observations.copy())
        rows = np.arange(len(observations))[:, None]
        actions = (0.1 * (len(self.asked) - 5 * rows).clip(-9, 9) * np.ones(2)).astype(np.float32)
        return Decisions(actions, np.zeros(len(actions), np.float32))


def collect(envs, policy, seeds=None, exploration=1.0, **more):
    return run_episodes(envs, policy, range(len(envs)) if seeds is None else seeds, exploration, **more)


class TestRecording:
    def test_every_observation_is_kept_around_its_decision(self):
        policy = Scripted()
        (episode,) = collect([point_env(7)], policy)
        assert episode.observations.shape == (8, 3)
        assert episode.actions.shape == (7, 2)
        assert episode.rewards.shape == (7,)
        assert all(array.dtype == np.float32 for array in (episode.observations, episode.actions, episode.rewards))
        # The decision's observation is what the policy saw; what it answered is what the environment did.
        assert np.array_equal(episode.observations[:-1], np.concatenate(policy.asked))
        assert np.allclose(episode.observations[:, 2], 0.01 * np.arange(8))
        assert np.allclose(episode.actions[:, 0], 0.1 * np.arange(1, 8))
        moved = np.diff(episode.observations[:, :2], axis=0)
        assert np.allclose(moved, 0.1 * episode.actions, atol=0.06)  # up to the environment's noise
        assert np.allclose(episode.rewards, np.exp(-np.sum(episode.observations[1:, :2] ** 2, axis=1)), atol=1e-5)

    def test_endings_of_the_task_and_of_time_are_told_apart(self):
        truncated, terminated = collect([point_env(6), point_env(6, ends_at=4)], Scripted())
        assert (truncated.terminated, truncated.decisions) == (False, 6)
        assert (terminated.terminated, terminated.decisions) == (True, 4)

    def test_simulator_steps_count_the_action_repeat(self):
        """10 simulator steps as decisions of 4: the last one is cut short by the time limit."""
        (episode,) = collect([point_env(10, action_repeat=4)], Scripted())
        assert (episode.decisions, episode.env_steps) == (3, 10)
        assert np.allclose(episode.observations[:, 2], [0.0, 0.04, 0.08, 0.1])

    @pytest.mark.parametrize(("steps", "success"), [(5, 1.0), (6, 0.0)])
    def test_success_is_the_last_steps(self, steps, success):
        (episode,) = collect([point_env(steps)], Scripted())
        assert episode.success == success

    @pytest.mark.parametrize("said", [{}, {2: 0.0, 5: 1.0}])
    def test_success_of_a_task_that_says_it_now_and_then_or_never(self, said):
        """The fifth step is in the middle of the second decision, which is the last."""
        env = point_env(6, action_repeat=3)
        step, steps = env.env.step, count(1)
        env.env.step = lambda action: (*step(action)[:4], {"success": said[n]} if (n := next(steps)) in said else {})
        (episode,) = collect([env], Scripted())
        assert episode.success == said.get(5)

    def test_the_weights_in_use_are_recorded_when_they_change_midway(self):
        short, long = collect([point_env(2), point_env(6)], Scripted(changes=True))
        assert (short.oldest_weights, short.newest_weights) == (5, 5)
        assert (long.oldest_weights, long.newest_weights) == (5, 9)


class TestLockstep:
    def test_environments_of_different_lengths_finish_each_for_itself(self):
        lengths = [5, 2, 7]
        policy = Scripted()
        episodes = collect([point_env(n) for n in lengths], policy)
        assert [e.decisions for e in episodes] == lengths
        assert [len(o) for o in policy.asked] == [3] * 7  # rows do not move when a neighbour is done
        for i, episode in enumerate(episodes):
            seen = np.stack([o[i] for o in policy.asked])
            assert np.array_equal(seen[: lengths[i]], episode.observations[:-1])

    def test_an_environment_is_not_stepped_after_its_end(self):
        done, other = point_env(2), point_env(5)
        collect([done, other], Scripted())
        assert done.unwrapped.age == 2

    def test_an_episode_does_not_depend_on_its_neighbours(self):
        envs, policy = [point_env(5), point_env(3), point_env(6)], RandomPolicy(tiny_data())
        together = collect(envs, policy, seeds=[1, 2, 3])
        (alone,) = collect(envs[2:], policy, seeds=[3])
        for name in ("observations", "actions", "rewards"):
            assert np.array_equal(getattr(together[2], name), getattr(alone, name))

    def test_the_policy_is_told_seeds_and_exploration(self):
        policy = Scripted()
        collect([point_env(1), point_env(1)], policy, seeds=(4, 2**62), exploration=0.25)
        assert policy.began == ([4, 2**62], 0.25)

    def test_as_many_seeds_as_environments(self):
        with pytest.raises(ValueError, match="zip"):
            collect([point_env(1), point_env(1)], Scripted(), seeds=[0])


class TestSeeds:
    def test_an_episode_is_a_function_of_its_seed(self):
        env, policy = point_env(6), RandomPolicy(tiny_data())
        (first,), (other,), (again,) = (collect([env], policy, seeds=[s]) for s in (1, 2, 1))
        assert np.array_equal(first.observations, again.observations)
        assert np.array_equal(first.actions, again.actions)
        assert not np.array_equal(first.observations[0], other.observations[0])
        assert not np.array_equal(first.actions, other.actions)


class TestStopping:
    def test_stops_at_once(self):
        env, asked = point_env(50), []
        with pytest.raises(Stopped):
            collect([env], Scripted(), should_stop=lambda: asked.append(0) or len(asked) > 3)
        assert env.unwrapped.age == 2  # the first question comes before the reset

    def test_an_environment_that_was_stopped_can_start_anew(self):
        env, policy = point_env(6), RandomPolicy(tiny_data())
        (whole,) = collect([env], policy, seeds=[1])
        asked = []
        with pytest.raises(Stopped):
            collect([env], policy, seeds=[1], should_stop=lambda: asked.append(0) or len(asked) > 3)
        (after,) = collect([env], policy, seeds=[1])
        assert np.array_equal(whole.observations, after.observations)


def spoil(env, name, call, change):
    """The toy answers its call number `call` of `name` (from 1) with what `change` makes of the answer."""
    original, calls = getattr(env.unwrapped, name), []

    def spoiled(*arguments, **keywords):
        calls.append(name)
        answer = original(*arguments, **keywords)
        return change(answer) if len(calls) == call else answer

    setattr(env.unwrapped, name, spoiled)
    return env


def diverge(*_):
    raise ArithmeticError("Physics state is invalid.\n  BADQACC in mj_step.")


class TestFailures:
    @pytest.mark.parametrize(
        ("name", "call", "change", "where", "why"),
        [
            ("step", 3, diverge, "at decision 3", "ArithmeticError: Physics state is invalid. BADQACC in mj_step."),
            ("reset", 1, diverge, "at the reset", "ArithmeticError: Physics state is invalid. BADQACC in mj_step."),
            ("step", 2, lambda a: (a[0] * [1, np.nan, 1], *a[1:]), "at decision 2", "observation[1] is nan"),
            ("step", 1, lambda a: (a[0], -np.inf, *a[2:]), "at decision 1", "the reward is -inf"),
            ("step", 1, lambda a: (a[0], 1e39, *a[2:]), "at decision 1", "the reward is 1e+39"),
            ("step", 1, lambda a: (a[0], None, *a[2:]), "at decision 1", "the reward is None, want a number"),
            ("step", 2, lambda a: next(iter(())), "at decision 2", "StopIteration:"),
            ("reset", 1, lambda a: (a[0] + [0, 0, np.inf], a[1]), "at the reset", "observation[2] is inf"),
            ("reset", 1, lambda a: (a[0][:1], a[1]), "at the reset", "observation has 1 numbers, its space declares 3"),
            ("step", 2, lambda a: (np.zeros(4), *a[1:]), "at decision 2", "has 4 numbers, its space declares 3"),
            ("step", 2, lambda a: (*a[:4], {"success": np.nan}), "at decision 2", 'info["success"] is nan'),
            (
                "step",
                2,
                lambda a: (*a[:4], {"success": "so so"}),
                "at decision 2",
                "could not convert string to float: 'so so'",
            ),
        ],
    )
    def test_one_line_says_which_where_and_why(self, name, call, change, where, why):
        envs = [point_env(9), spoil(point_env(9), name, call, change)]
        with pytest.raises(EnvironmentFailure) as caught:
            collect(envs, Scripted(), seeds=[6, 7])
        message = str(caught.value)
        assert message.startswith(f"Point failed {where} of the episode with seed 7: ")
        assert message.endswith(why)
        assert "\n" not in message
        assert f": {type(caught.value.__cause__).__name__}:" in message

    def test_a_registered_environment_goes_by_its_id(self):
        env = make_env("gym/FakePoint-v0", EnvConfig())
        with pytest.raises(EnvironmentFailure, match=r"^gym/FakePoint-v0 failed at decision 1 "):
            collect([spoil(env, "step", 1, diverge)], Scripted())

    def test_what_the_policy_raises_is_not_the_environments(self):
        policy = Scripted()
        policy.decide = diverge
        with pytest.raises(ArithmeticError):
            collect([point_env(3)], policy)


def test_watch_sees_the_first_environment_at_its_start_and_after_each_step():
    envs, ages = [point_env(4), point_env(6)], []
    collect(envs, Scripted(), watch=lambda env: ages.append((env is envs[0], env.unwrapped.age)))
    assert ages == [(True, age) for age in range(5)]

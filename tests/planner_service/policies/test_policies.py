"""What every policy promises actors, and what tells the three apart."""

import functools
import itertools
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from qttdm.common.contracts import ArraySpec, DataSpec
from qttdm.common.models.actor_critic import ActorCritic, ActorCriticConfig, LatentActor
from qttdm.common.models.iql import IQL, IQLConfig
from qttdm.common.models.latent import Encoder, LatentConfig
from qttdm.common.weights import Weights
from qttdm.planner_service.planners.mppi import MPPI, MPPIConfig
from qttdm.planner_service.policies.greedy import EpsilonConfig, GreedyPolicy
from qttdm.planner_service.policies.lockstep import Lockstep
from qttdm.planner_service.policies.planning import PlanningPolicy, next_power_of_two, on_device, until
from qttdm.planner_service.policies.random_actions import RandomPolicy
from tests.fakes import randomise, tiny_data, tiny_qt, tiny_tdm

CPU = torch.device("cpu")
OBSERVATIONS = np.array([[0.1, -0.5, 1.0], [1.0, 0.3, -0.2], [-2.0, 0.0, 0.4]], np.float32)
CONTEXT = {"observations": OBSERVATIONS}


def mpc(compile=False, **config):
    settings = {"samples": 16, "elites": 4, "qt_samples": 3, "iterations": 2, **config}
    return planning(MPPIConfig(**settings), tiny_tdm(0), tiny_qt(1), compile)


def planning(config, tdm, qt, compile=False):
    networks = nn.ModuleDict({"tdm": tdm} | ({"qt": qt} if qt is not None else {}))
    return PlanningPolicy(MPPI(config, 0.95, 2, tdm, qt), networks, tiny_data(), CPU, compile=compile)


def greedy(qt=None):
    qt = qt or tiny_qt(1)
    return GreedyPolicy(qt, nn.ModuleDict({"qt": qt}), tiny_data(), CPU)


def iql():
    torch.manual_seed(0)
    network = randomise(IQL(IQLConfig(width=8), 3, 2))
    return GreedyPolicy(network, nn.ModuleDict({"iql": network}), tiny_data(), CPU)


def twm(data=None, shape=(3,), choices=None, act="mode"):
    torch.manual_seed(0)
    latent = LatentConfig(variables=3, classes=4, hidden=8, layers=1, grid_channels=2)
    actor_critic = ActorCritic(ActorCriticConfig(hidden=8, layers=1, act=act), latent.size, 2, choices)
    networks = nn.ModuleDict({"world_model": Encoder(latent, shape), "actor_critic": actor_critic})
    randomise(networks, std=1.0)
    return GreedyPolicy(LatentActor(*networks.values()), networks, data or tiny_data(), CPU)


POLICIES = {"mpc": mpc, "greedy": greedy, "iql": iql, "twm": twm, "random": lambda: RandomPolicy(tiny_data())}
LEARNED = ["mpc", "greedy", "iql", "twm"]


def act(policy, seeds=(3, 4, 5), exploration=1.0, observations=OBSERVATIONS, decisions=2):
    episodes = Lockstep(policy, seeds, exploration)
    return np.stack([episodes.act({"observations": observations}) for _ in range(decisions)])


@pytest.mark.parametrize("name", POLICIES)
class TestContract:
    @pytest.mark.parametrize("exploration", [0.0, 1.0])
    def test_actions_are_float32_within_the_range(self, name, exploration):
        actions = act(POLICIES[name](), exploration=exploration)
        assert actions.shape == (2, 3, 2)
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1.0

    def test_the_seeds_decide(self, name):
        policy = POLICIES[name]()
        first, again, other = act(policy), act(policy), act(policy, seeds=(6, 7, 8))
        assert np.array_equal(first, again)  # also: an episode leaves nothing of an earlier episode
        assert not np.array_equal(first, other)

    def test_each_environment_has_its_own_stream(self, name):
        policy = POLICIES[name]()
        together = act(policy)
        alone = act(policy, seeds=(4,), observations=OBSERVATIONS[1:2])
        assert np.allclose(alone[:, 0], together[:, 1], atol=1e-5)

    def test_global_random_state_is_left_alone(self, name):
        policy = POLICIES[name]()
        torch.manual_seed(1)
        before = torch.get_rng_state()
        act(policy)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", LEARNED)
class TestWeights:
    def test_load_takes_over_weights_and_version(self, name):
        policy, teacher = POLICIES[name](), POLICIES[name]()
        with torch.no_grad():
            for parameter in teacher.networks.parameters():
                parameter.mul_(-1.5)
        before = act(policy, exploration=0.0)
        assert policy.weights_version == 0
        policy.load(Weights.of(teacher.networks, version=7))
        assert policy.weights_version == 7
        assert not np.allclose(act(policy, exploration=0.0), before)
        assert np.array_equal(act(policy, exploration=0.0), act(teacher, exploration=0.0))

    def test_weights_of_another_architecture_are_refused(self, name):
        with pytest.raises(ValueError, match="parameters"):
            POLICIES[name]().load(Weights.of(torch.nn.Linear(2, 2), version=1))

    def test_networks_are_frozen_and_in_eval_mode(self, name):
        networks = POLICIES[name]().networks
        assert not any(module.training for module in networks.modules())
        assert not any(parameter.requires_grad for parameter in networks.parameters())

    def test_freezes_networks_handed_over_in_training(self, name):
        tdm, qt = tiny_tdm(0).train().requires_grad_(True), tiny_qt(1).train().requires_grad_(True)
        config = MPPIConfig(samples=4, elites=2)
        policy = planning(config, tdm, qt) if name == "mpc" else greedy(qt)
        assert not any(module.training for module in policy.networks.modules())
        assert not any(parameter.requires_grad for parameter in policy.networks.parameters())


@pytest.mark.parametrize("name", LEARNED)
class TestDecide:
    """Episodes that are not in lockstep: whichever are due, each as if it were alone."""

    def test_the_company_changes_nothing(self, name):
        policy = POLICIES[name]()
        alone = {seed: act(policy, (seed,), seed % 2, OBSERVATIONS[:1], decisions=4)[:, 0] for seed in (3, 4, 5)}
        episodes = {seed: policy.start(seed, seed % 2) for seed in alone}  # some explore, some do not
        together = {seed: [] for seed in alone}
        for due in [(3,), (5, 3), (4, 5, 3), (4, 3), (5, 4), (4, 5)]:
            context = {"observations": np.repeat(OBSERVATIONS[:1], len(due), axis=0)}
            actions = policy.decide([episodes[s] for s in due], context).actions
            for seed, action in zip(due, actions, strict=True):
                together[seed].append(action)
        for seed, actions in together.items():
            assert len(actions) == 4
            assert np.allclose(actions, alone[seed], atol=1e-5)

    def test_comes_with_a_value_for_each(self, name):
        policy = POLICIES[name]()
        decisions = policy.decide([policy.start(seed, 0.0) for seed in (3, 4, 5)], CONTEXT)
        assert decisions.values.dtype == np.float32
        if name != "mpc":
            want, iterations = policy.value_function.value(on_device(CONTEXT, CPU)), 0
        else:
            noise = policy.planner.draw([policy.start(seed, 0.0).generator for seed in (3, 4, 5)])
            carry = policy.planner.begin(3, CPU)
            want, iterations = policy.planner.plan(on_device(CONTEXT, CPU), carry, noise, False).values, 2
        assert np.allclose(decisions.values, want, atol=1e-5)
        assert decisions.iterations == iterations

    def test_exploration_is_each_episodes_own(self, name):
        policy = POLICIES[name]()
        calm, wild = act(policy, exploration=0.0, decisions=1)[0], act(policy, exploration=1.0, decisions=1)[0]
        episodes = [policy.start(seed, exploration) for seed, exploration in [(3, 1.0), (4, 0.0), (5, 1.0)]]
        mixed = policy.decide(episodes, CONTEXT).actions
        assert np.allclose(mixed[::2], wild[::2], atol=1e-5)
        assert np.allclose(mixed[1], calm[1], atol=1e-5)


class TestDeadline:
    def test_as_many_iterations_as_fit_but_one_at_least(self):
        policy = mpc(iterations=6)
        for left, fitting in [(-1.0, {1}), (3600.0, {6})]:
            episodes = [policy.start(seed, 0.0) for seed in (3, 4, 5)]
            decisions = policy.decide(episodes, CONTEXT, deadline=time.monotonic() + left)
            assert decisions.iterations in fitting
            assert np.abs(decisions.actions).max() <= 1

    def test_the_next_iteration_is_taken_to_last_as_long_as_those_so_far(self, monkeypatch):
        clock = iter([100.0, 100.3, 100.5, 101.0])  # 0.3 s, then 0.25 s on average, then 0.33 s
        monkeypatch.setattr(time, "monotonic", lambda: next(clock))
        more = until(101.0, CPU)
        assert [more(1), more(2), more(3)] == [True, True, False]


class TestPlanningPolicy:
    def test_networks_are_those_the_planner_uses(self):
        assert list(mpc().networks) == ["tdm", "qt"]
        alone = planning(MPPIConfig(samples=4, elites=2), tiny_tdm(0), None)
        assert list(alone.networks) == ["tdm"]
        assert act(alone).shape == (2, 3, 2)

    def test_exploration_turns_on_the_planners_own(self):
        policy = mpc(random_bins=1.0)
        calm, wild = act(policy, exploration=0.0), act(policy, exploration=0.01)
        assert not np.allclose(calm, wild)

    def test_the_warm_start_lasts_within_an_episode_and_ends_with_it(self):
        policy = mpc(init_std=0.5)
        episodes = Lockstep(policy, [3, 4, 5], 1.0)
        actions = [episodes.act(CONTEXT) for _ in range(3)]
        assert all(e.carry["mean"].abs().max() > 0 for e in episodes.episodes)  # something was handed on
        again = Lockstep(policy, [3, 4, 5], 1.0)
        assert all(e.carry["mean"].abs().max() == 0 for e in again.episodes)
        assert np.array_equal(again.act(CONTEXT), actions[0])

    def test_a_plan_that_is_not_finite_leaves_the_warm_start_as_it_was(self):
        policy = mpc()
        episodes = [policy.start(seed, 0.0) for seed in (3, 4, 5)]
        policy.decide(episodes, CONTEXT)
        before = [e.carry for e in episodes]
        absurd = OBSERVATIONS.copy()
        absurd[1] = 3e38
        assert policy.decide(episodes, {"observations": absurd}).finite.tolist() == [True, False, True]
        assert [e.carry is was for e, was in zip(episodes, before, strict=True)] == [False, True, False]


class TestGreedyPolicy:
    def test_without_exploration_it_is_the_greedy_action(self):
        policy = greedy()
        bins, _ = policy.value_function.choose(torch.from_numpy(OBSERVATIONS))
        want = policy.value_function.tokenizer.decode(bins).numpy()
        assert all(np.array_equal(actions, want) for actions in act(policy, exploration=0.0, decisions=5))

    @pytest.mark.parametrize("epsilon", [0.3, 1.0])
    def test_explores_with_probability_epsilon_uniformly(self, epsilon):
        policy, environments = greedy(), 3000
        observations = np.repeat(OBSERVATIONS[:1], environments, axis=0)
        (actions,) = act(policy, range(environments), epsilon, observations, decisions=1)
        bins = policy.value_function.tokenizer.encode(torch.from_numpy(actions))
        best = policy.value_function.choose(torch.from_numpy(OBSERVATIONS[:1]))[0]
        # One draw decides for the whole action: it is greedy with 1 - epsilon, or by chance.
        stayed = (bins == best).all(dim=1).float().mean().item()
        assert stayed == pytest.approx(1 - epsilon + epsilon / 49, abs=0.03)
        for n in range(2):
            share = torch.bincount(bins[:, n], minlength=7) / environments
            want = torch.full((7,), epsilon / 7)
            want[best[0, n]] += 1 - epsilon
            assert share.numpy() == pytest.approx(want.numpy(), abs=0.03)


def test_random_actions_are_uniform():
    (actions,) = act(RandomPolicy(tiny_data()), range(3000), observations=np.zeros((3000, 3), np.float32), decisions=1)
    counts, _ = np.histogram(actions, bins=8, range=(-1, 1))
    assert counts / actions.size == pytest.approx(np.full(8, 1 / 8), abs=0.02)
    assert abs(np.corrcoef(actions.T)[0, 1]) < 0.06


def test_random_actions_may_be_held_and_are_extremes_half_of_the_time():
    policy, blank = RandomPolicy(tiny_data(), "held"), np.zeros((200, 3), np.float32)
    actions = np.stack(act(policy, range(200), observations=blank, decisions=400))  # [T, E, N]
    changes = (actions[1:] != actions[:-1]).any(axis=-1)
    seen = 1 - 0.5 * 0.5 * 0.5**2  # an extreme may follow itself
    assert changes.mean() == pytest.approx(seen / np.mean([1, 2, 4, 8, 16]), rel=0.05)
    assert (np.abs(actions) == 1).all(axis=-1).mean() == pytest.approx(0.5, abs=0.03)
    assert np.abs(actions.mean(axis=(0, 1))).max() < 0.03
    longest = max(len(list(same)) for _, same in itertools.groupby(changes[:, 0].tolist()))
    assert 8 < longest < 40


def test_random_choices_may_be_held():
    data = replace(tiny_data(), actions=ArraySpec((), "int64"), choices=3)
    drawn = np.stack(act(RandomPolicy(data, "held"), [0], observations=np.zeros((1, 3), np.float32), decisions=400))
    assert (drawn.dtype, set(drawn.flat)) == (np.int64, {0, 1, 2})
    assert 0.05 < (drawn[1:] != drawn[:-1]).mean() < 0.2


def test_epsilon_falls_linearly_to_its_end():
    epsilon = EpsilonConfig()
    for progress, want in [(0.0, 1.0), (0.15, 0.505), (0.3, 0.01), (0.7, 0.01), (1.0, 0.01)]:
        assert epsilon.at(progress) == pytest.approx(want)
    assert EpsilonConfig(start=0.5, end=0.1, share=1.0).at(0.5) == pytest.approx(0.3)


class TestCompiled:
    """Captured as on a GPU, and run by torch as it stands: tests/gpu has what is made of it there."""

    def test_the_whole_decision_is_one_graph_for_each_power_of_two_and_the_same_decision(self, monkeypatch):
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=self.backend))
        self.sizes = []
        settings = {"horizon": 1, "keep_elites": 2}
        plain, compiled = mpc(**settings), mpc(compile=True, **settings)
        for episodes, exploration in ((1, 0.0), (3, 1.0), (4, 0.0)):
            seeds, observations = range(episodes), np.resize(OBSERVATIONS, (episodes, 3))
            got = act(compiled, seeds, exploration, observations)
            np.testing.assert_allclose(got, act(plain, seeds, exploration, observations), atol=1e-5)
        assert self.sizes == [1, 1, 4, 4, 4, 4]

    def backend(self, graph, example_inputs, **_):
        """Notes how many environments there are, whenever the one graph runs."""

        def run(*inputs):
            self.sizes.append(
                max(part.shape[0] for part in inputs if torch.is_tensor(part) and part.dtype == torch.bool)
            )
            return graph.forward(*inputs)

        return run

    def test_sizes(self):
        assert [next_power_of_two(n) for n in (1, 2, 3, 4, 5, 63, 64, 65)] == [1, 2, 4, 4, 8, 64, 64, 128]


@pytest.mark.parametrize("name", LEARNED)
def test_warming_up_changes_nothing(name):
    warm = POLICIES[name]()
    warm.warm_up(4)
    np.testing.assert_array_equal(act(warm), act(POLICIES[name]()))


IMAGES = DataSpec({"observations": ArraySpec((4, 5, 2), "uint8")}, ArraySpec((), "int64"), 3, None, choices=6, stack=3)


def test_an_actor_draws_choices_as_likely_as_it_says_and_evaluates_by_the_likeliest():
    policy = twm(IMAGES, (4, 5, 6), choices=6)
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 2), np.uint8)
    shown = {"observations": image.repeat(4000, axis=0)}
    with torch.no_grad():
        latents = policy.value_function.latents(torch.from_numpy(np.concatenate([image] * 3, axis=-1)))
        p = policy.networks["actor_critic"].actor(latents).softmax(dim=-1)[0]
    drawn = policy.decide([policy.start(seed, 1.0) for seed in range(4000)], shown).actions
    assert drawn.dtype == np.int64
    counts = np.bincount(drawn, minlength=6) / 4000
    np.testing.assert_allclose(counts, p.numpy(), atol=0.03)
    best = policy.decide([policy.start(seed, 0.0) for seed in range(4000)], shown).actions
    assert (best == int(p.argmax())).all()
    published = twm(IMAGES, (4, 5, 6), choices=6, act="draw")
    assert (published.decide([published.start(s, 0.0) for s in range(4000)], shown).actions == drawn).all()


def test_each_episode_has_its_own_newest_images():
    """An episode that began later, in company, is as if it were alone: the first image stands for those before it."""
    policy = twm(IMAGES, (4, 5, 6), choices=6)
    seen = []
    policy.value_function.propose = lambda state, *_: (
        seen.append(state["observations"].numpy().copy()) or torch.zeros(len(state["observations"]), dtype=torch.int64),
        torch.zeros(len(state["observations"])),
    )
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 5, 2), np.uint8)
    first, second = policy.start(0, 0.0), policy.start(1, 0.0)
    policy.decide([first], {"observations": images[0]})
    policy.decide([first, second], {"observations": np.concatenate(images[1:3])})
    policy.decide([second, first], {"observations": np.concatenate(images[3:5])})
    a, b, c, d, e = images[:, 0]
    want = [[[a, a, a]], [[a, a, b], [c, c, c]], [[c, c, d], [a, b, e]]]
    for got, rows in zip(seen, want, strict=True):
        np.testing.assert_array_equal(got, np.stack([np.concatenate(row, axis=-1) for row in rows]))

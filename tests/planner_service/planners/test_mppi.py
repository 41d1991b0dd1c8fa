"""Algorithm 2 against known optima, Python loops and a golden file; each environment planned as if it were alone."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.common.trees import join, split
from qttdm.planner_service.planners.mppi import (
    MPPI,
    PRESETS,
    MPPIConfig,
)
from tests.fakes import FakeDynamics, FakeValue, tiny_config, tiny_qt, tiny_tdm

CPU = torch.device("cpu")
GOLDEN = Path(__file__).with_name("golden_plan.json")


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise_for(config, action_dim, *seeds):
    value = FakeValue(None, action_dim, 3)
    return make_planner(config, 1.0, FakeDynamics(None, action_dim, 3), value).draw(generators(*seeds))


def fresh(config, action_dim, environments=1):
    return make_planner(config, 1.0, FakeDynamics(None, action_dim, 3), None).begin(environments, CPU)


def make_planner(config, discount, dynamics, value_function):
    return MPPI(config, discount, dynamics.action_dim, dynamics, value_function)


def plan(planner, observations, seeds=None, explore=False, state=None, noise=None):
    """One decision for [E, M] observations, by default with seeds 0, 1, .. and nothing planned before."""
    seeds = range(len(observations)) if seeds is None else seeds
    n = planner.dynamics.action_dim
    state = state or fresh(planner.config, n, len(observations))
    return planner.plan({"observations": observations}, state, noise or noise_for(planner.config, n, *seeds), explore)


def value_of_sequence(planner, observation, actions):
    """The planner's estimate for one sequence [H, N]: with one noiseless sample that is the best value found."""
    assert (planner.config.samples, planner.config.iterations, planner.config.elites) == (1, 1, 1)
    state = dict(fresh(planner.config, actions.shape[1]), mean=actions.unsqueeze(0))
    noise = noise_for(planner.config, actions.shape[1], 0)
    noise = dict(noise, normal=torch.zeros_like(noise["normal"]))
    return planner.plan({"observations": observation.unsqueeze(0)}, state, noise, explore=False).values.item()


ONE_SEQUENCE = {"samples": 1, "elites": 1, "iterations": 1, "qt_samples": 0}


# --- known dynamics -----------------------------------------------------------------------------------------------

STEP_TIME, SPEED_COST, ACTION_COST = 0.3, 0.1, 0.1


def double_integrator(states, actions):
    """A mass pushed along a line, [place, speed]; pays minus a quadratic cost of where it gets to and of the push."""
    place = states[:, 0] + STEP_TIME * states[:, 1]
    speed = states[:, 1] + STEP_TIME * actions[:, 0]
    cost = place**2 + SPEED_COST * speed**2 + ACTION_COST * actions[:, 0] ** 2
    return torch.stack([place, speed], dim=1), -cost, None


def riccati_action(state, horizon, discount):
    """The first action of the finite-horizon linear-quadratic optimum."""
    a = torch.tensor([[1.0, STEP_TIME], [0.0, 1.0]], dtype=torch.float64)
    b = torch.tensor([[0.0], [STEP_TIME]], dtype=torch.float64)
    q = torch.diag(torch.tensor([1.0, SPEED_COST], dtype=torch.float64))
    p = torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(horizon):
        m = q + discount * p
        gain = (b.T @ m @ a) / (ACTION_COST + b.T @ m @ b)
        p = a.T @ m @ a - a.T @ m @ b @ gain
    return -(gain @ state.double()).item()


class TestKnownDynamics:
    CONFIG = MPPIConfig(horizon=8, samples=400, elites=40, iterations=8, init_std=1.0, temperature=20.0)

    def planner(self, config=CONFIG, discount=0.98):
        return make_planner(config, discount, FakeDynamics(double_integrator, 1, bins=1001), None)

    @pytest.mark.parametrize("state", [(0.3, 0.0), (-0.3, 0.1), (0.1, -0.4)])
    def test_the_first_action_is_that_of_the_linear_quadratic_optimum(self, state):
        state = torch.tensor([state])
        optimum = riccati_action(state[0], 8, 0.98)
        assert 0.1 < abs(optimum) < 0.9  # inside the action range, and not nothing
        assert plan(self.planner(), state).actions.item() == pytest.approx(optimum, abs=0.06)

    def test_receding_horizon_control_steers_to_the_origin(self):
        planner, state = self.planner(), torch.tensor([[1.0, 0.5], [-1.0, 0.0]])
        warm = fresh(planner.config, 1, 2)
        streams = generators(0, 1)
        for _ in range(30):
            outcome = planner.plan({"observations": state}, warm, planner.draw(streams), explore=False)
            warm = outcome.carry
            state = double_integrator(state, outcome.actions)[0]
        assert state.abs().max() < 0.1

    def test_finds_the_best_of_all_sequences_on_a_grid(self):
        bins, horizon = 9, 3
        config = MPPIConfig(horizon=horizon, samples=512, elites=16, temperature=1e6)
        planner = make_planner(config, 0.9, FakeDynamics(double_integrator, 1, bins), None)
        start, grid = torch.tensor([[0.4, -0.9]]), torch.linspace(-1, 1, bins)
        returns = {}
        for sequence in itertools.product(range(bins), repeat=horizon):
            state, total = start, 0.0
            for k, index in enumerate(sequence):
                state, reward, _ = double_integrator(state, grid[index].view(1, 1))
                total += 0.9**k * reward.item()
            returns[sequence] = total
        best = max(returns, key=returns.get)
        outcome = plan(planner, start)
        assert outcome.values.item() == pytest.approx(returns[best], abs=1e-5)
        assert outcome.actions.item() == pytest.approx(grid[best[0]].item(), abs=1e-5)  # so cold: the best elite alone

    def test_a_terminal_value_overrules_a_myopic_reward(self):
        def push(states, actions):  # going right costs a little now
            return states + actions, -actions[:, 0], None

        config = MPPIConfig(horizon=2, samples=128, elites=16, qt_samples=4)
        myopic = make_planner(config, 0.98, FakeDynamics(push, 1, 21), None)
        assert plan(myopic, torch.zeros(1, 1)).actions.item() < -0.8
        far_sighted = make_planner(config, 0.98, FakeDynamics(push, 1, 21), FakeValue(lambda s: 10 * s[:, 0], 1, 21))
        assert plan(far_sighted, torch.zeros(1, 1)).actions.item() > 0.8

    @pytest.mark.parametrize("mortal", [False, True])
    def test_avoids_what_ends_the_episode(self, mortal):
        def tempting(states, actions):  # a positive action pays half as much again, and may be the last
            positive = actions[:, 0] > 0
            logits = torch.where(positive, -20.0, 20.0) if mortal else None
            return states, 1 + 0.5 * positive, logits

        config = MPPIConfig(horizon=4, samples=256, elites=16, temperature=10.0)
        outcome = plan(make_planner(config, 0.98, FakeDynamics(tempting, 1, 20), None), torch.zeros(1, 1))
        assert (outcome.actions.item() > 0) is not mortal

    def test_proposals_of_the_value_function_compete(self):
        def needle(states, actions):  # pays at exactly the middle bin, which 4 samples of bins 0..200 will not hit
            return states, 100.0 * (actions[:, 0].abs() < 1e-3), None

        value = FakeValue(lambda s: 0 * s[:, 0], 1, 201)
        config = MPPIConfig(horizon=2, samples=4, elites=2, qt_samples=2, iterations=1, random_bins=0.0)
        with_proposals = make_planner(config, 1.0, FakeDynamics(needle, 1, 201), value)
        without = make_planner(config.model_copy(update={"qt_samples": 0}), 1.0, FakeDynamics(needle, 1, 201), value)
        assert plan(with_proposals, torch.zeros(1, 1)).values.item() == 200.0
        assert plan(without, torch.zeros(1, 1)).values.item() == 0.0


def test_an_executed_action_is_within_the_range_in_spite_of_rounding():
    """13 equally good elites of all ones: in float32 their weights sum to more than 1."""
    config = MPPIConfig(samples=13, elites=13, iterations=1, qt_samples=0)
    noise = noise_for(config, 1, 0)
    noise = dict(noise, normal=torch.full_like(noise["normal"], 50.0))
    dynamics = FakeDynamics(lambda s, a: (s, a[:, 0], None), 1, 21)
    outcome = plan(make_planner(config, 0.9, dynamics, None), torch.zeros(1, 1), noise=noise)
    assert outcome.actions.item() == 1.0


# --- Eq. 10, elites, moments: slow twins ---------------------------------------------------------------------------


def slow_value(tdm, qt, observation, actions, discount, first_dimension):
    """Eq. 10 for one sequence [H, N]: whole windows through the TDM again at each step, bins tried one by one."""
    states, total, weight = [observation], 0.0, 1.0
    for k in range(len(actions)):
        out = tdm(torch.stack(states).unsqueeze(0), actions[: k + 1].unsqueeze(0))
        total += weight * out.rewards[0, k].item()
        weight *= discount
        if out.continuation_logits is not None:
            weight *= 1 / (1 + math.exp(-out.continuation_logits[0, k].item()))
        states.append(out.observations[0, k])
    if qt is None:
        return total
    bins = torch.zeros(1, 0, dtype=torch.long)
    for _ in range(1 if first_dimension else qt.action_dim):
        q = qt(states[-1].unsqueeze(0), qt.tokenizer.decode(bins))[:, 0, -1].mean(dim=0)  # [K]
        best = max(range(len(q)), key=lambda k: q[k].item())
        bins = torch.cat([bins, torch.tensor([[best]])], dim=1)
    return total + weight * q[best].item()


class TestReturn:
    @pytest.mark.parametrize("can_terminate", [False, True])
    @pytest.mark.parametrize("terminal", ["none", "greedy", "first_dimension"])
    def test_equals_its_slow_twin(self, can_terminate, terminal):
        tdm = tiny_tdm(0, can_terminate=can_terminate)
        qt = tiny_qt(1, terminal_value="greedy" if terminal == "none" else terminal)
        config = MPPIConfig(**ONE_SEQUENCE)
        planner = make_planner(config, 0.9, tdm, None if terminal == "none" else qt)
        g = torch.Generator().manual_seed(0)
        seen = []
        for _ in range(5):
            observation = torch.randn(3, generator=g)
            actions = tdm.tokenizer.decode(torch.randint(7, (3, 2), generator=g))
            twin = slow_value(
                tdm, planner.value_function, observation, actions, 0.9, first_dimension=terminal == "first_dimension"
            )
            seen.append(value_of_sequence(planner, observation, actions))
            assert seen[-1] == pytest.approx(twin, abs=1e-4)
        assert max(seen) - min(seen) > 0.05

    @pytest.mark.parametrize("can_terminate", [False, True])
    def test_averaged_over_depths_it_is_the_mean_of_shorter_sequences(self, can_terminate):
        tdm, qt = tiny_tdm(0, can_terminate=can_terminate), tiny_qt(1)
        planner = make_planner(MPPIConfig(**ONE_SEQUENCE, average_depths=True), 0.9, tdm, qt)
        actions = tdm.tokenizer.decode(torch.randint(7, (3, 2), generator=torch.Generator().manual_seed(0)))
        twins = [slow_value(tdm, qt, torch.ones(3), actions[:depth], 0.9, first_dimension=False) for depth in (1, 2, 3)]
        assert value_of_sequence(planner, torch.ones(3), actions) == pytest.approx(sum(twins) / 3, abs=1e-4)
        assert max(twins) - min(twins) > 0.01

    def test_the_terminal_options_differ(self):
        config, tdm = MPPIConfig(**ONE_SEQUENCE), tiny_tdm(0)
        values = []
        for terminal in ("greedy", "first_dimension"):
            planner = make_planner(config, 0.9, tdm, tiny_qt(1, terminal_value=terminal))
            values.append(value_of_sequence(planner, torch.ones(3), torch.zeros(3, 2)))
        assert abs(values[0] - values[1]) > 1e-3

    def test_terminal_values_are_greedy_whatever_the_proposals_do(self):
        def only_right(states, actions):  # any sequence but the sample's is far worse
            return states + actions, -1000 * (actions - 1.0).abs().sum(dim=1), None

        qt = tiny_qt(1, obs_dim=2)
        config = MPPIConfig(**{**ONE_SEQUENCE, "qt_samples": 3}, random_bins=1.0, horizon=2)
        planner = make_planner(config, 0.9, FakeDynamics(only_right, 2, 7), qt)
        state = dict(fresh(config, 2), mean=torch.ones(1, 2, 2))
        for seed in range(5):
            noise = noise_for(config, 2, seed)
            noise = dict(noise, normal=torch.zeros_like(noise["normal"]))
            value = planner.plan({"observations": torch.zeros(1, 2)}, state, noise, explore=False).values
            assert torch.allclose(value, 0.9**2 * qt.value({"observations": torch.full((1, 2), 2.0)}), atol=1e-6)


def target_dynamics(states, actions):
    """Pays for closeness to an action that depends on the state; two action dims."""
    return 0.9 * states + 0.3 * actions, -3 * ((actions - torch.tanh(states)) ** 2).sum(dim=1), None


class TestFit:
    """One iteration against loops."""

    def twin(self, config, discount, start, noise, bins):
        """Sequences, values of all samples; then elites, weights, mean, std, by loops over numbers."""
        scored = []
        for j in range(config.samples):
            sequence, state, total = [], start, 0.0
            for h in range(config.horizon):
                action = []
                for n in range(2):
                    wish = min(1.0, max(-1.0, config.init_std * noise["normal"][0, 0, j, h, n].item()))
                    action.append(2 * round((wish + 1) * (bins - 1) / 2) / (bins - 1) - 1)
                state, reward, _ = target_dynamics(state, torch.tensor([action]))
                total += discount**h * reward.item()
                sequence.append(action)
            scored.append((total, sequence))
        scored.sort(key=lambda pair: -pair[0])
        elites = scored[: config.elites]
        raw = [math.exp(config.temperature * (value - elites[0][0])) for value, _ in elites]
        weights = [w / sum(raw) for w in raw]
        mean, std = torch.zeros(config.horizon, 2), torch.zeros(config.horizon, 2)
        for h, n in itertools.product(range(config.horizon), range(2)):
            mean[h, n] = sum(w * s[h][n] for w, (_, s) in zip(weights, elites, strict=True))
            variance = sum(w * (s[h][n] - mean[h, n].item()) ** 2 for w, (_, s) in zip(weights, elites, strict=True))
            std[h, n] = min(config.max_std, max(config.min_std, math.sqrt(variance)))
        return elites, weights, mean, std

    @pytest.mark.parametrize(("min_std", "max_std"), [(0.05, 2.0), (0.5, 2.0), (0.05, 0.22)])
    def test_elites_weights_and_moments_equal_their_slow_twin(self, min_std, max_std):
        init = 0.8 if max_std > 0.8 else max_std
        config = MPPIConfig(
            samples=32, elites=8, iterations=1, horizon=2, init_std=init, min_std=min_std, max_std=max_std
        )
        planner = make_planner(config, 0.9, FakeDynamics(target_dynamics, 2, 11), None)
        start, noise = torch.tensor([[0.5, -1.0]]), noise_for(config, 2, 3)
        elites, _, mean, std = self.twin(config, 0.9, start, noise, 11)
        outcome = plan(planner, start, noise=noise)
        assert outcome.values.item() == pytest.approx(elites[0][0], abs=1e-4)
        assert torch.allclose(outcome.actions[0], mean[0], atol=1e-4)  # evaluating: the weighted mean
        assert outcome.figures["std"].item() == pytest.approx(std.mean().item(), abs=1e-4)
        assert torch.allclose(outcome.carry["mean"][0], torch.stack([mean[1], torch.zeros(2)]), atol=1e-4)
        assert (std == 0.5).any() == (min_std == 0.5)
        assert (std == 0.22).any() == (max_std == 0.22)

    def test_collecting_draws_an_elite_by_its_weight(self):
        config = MPPIConfig(samples=32, elites=4, iterations=1, horizon=2, init_std=0.8, random_bins=0.0)
        planner = make_planner(config, 0.9, FakeDynamics(target_dynamics, 2, 11), None)
        start, noise = torch.tensor([[0.5, -1.0]]), noise_for(config, 2, 3)
        elites, weights, _, _ = self.twin(config, 0.9, start, noise, 11)
        total = 0.0
        for (_, sequence), weight in zip(elites, weights, strict=True):
            for share in (0.01, 0.99):  # just inside both ends of the stretch that belongs to this elite
                chosen = dict(noise, elite=torch.tensor([total + share * weight]))
                action = plan(planner, start, noise=chosen, explore=True).actions[0]
                assert torch.allclose(action, torch.tensor(sequence[0]), atol=1e-6)
            total += weight

    def test_the_next_iteration_samples_from_the_fitted_gaussian(self):
        config = MPPIConfig(samples=32, elites=8, iterations=2, horizon=2, init_std=0.8)
        dynamics = FakeDynamics(target_dynamics, 2, 11)
        start, noise = torch.tensor([[0.5, -1.0]]), noise_for(config, 2, 3)
        _, _, mean, std = self.twin(config, 0.9, start, noise, 11)
        plan(make_planner(config, 0.9, dynamics, None), start, noise=noise)
        second = torch.stack(dynamics.taken[2:], dim=1)  # [J, H, N]
        assert torch.allclose(second, dynamics.tokenizer.snap(mean + std * noise["normal"][0, 1]), atol=1e-5)


# --- randomness and batches ----------------------------------------------------------------------------------------

VARIANTS = {
    "paper": {},
    "keep_elites": {"keep_elites": 3},
    "drawn elite": {"execute": "elite"},
    "first_dimension": {},
}


def small_planner(variant="paper", with_qt=True):
    config = MPPIConfig(samples=24, qt_samples=5, elites=6, iterations=4, **VARIANTS[variant])
    terminal = "first_dimension" if variant == "first_dimension" else "greedy"
    return make_planner(config, 0.95, tiny_tdm(2), tiny_qt(3, terminal_value=terminal) if with_qt else None)


def decisions(planner, observations, seeds, explore, count=3):
    """Actions [count, E, N] of some decisions in a row, at observations [count, E, M]; and the last plan."""
    streams = generators(*seeds)
    state = fresh(planner.config, 2, len(seeds))
    actions = []
    for t in range(count):
        outcome = planner.plan({"observations": observations[t]}, state, planner.draw(streams), explore)
        state = outcome.carry
        actions.append(outcome.actions)
    return torch.stack(actions), outcome


class TestBatch:
    @pytest.mark.parametrize("explore", [False, True])
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_each_environment_is_planned_as_if_alone(self, variant, explore):
        planner, seeds = small_planner(variant), [11, 12, 13, 14]
        observations = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
        together, last = decisions(planner, observations, seeds, explore)
        order = [2, 0, 3, 1]
        shuffled, _ = decisions(planner, observations[:, order], [seeds[i] for i in order], explore)
        assert torch.allclose(shuffled, together[:, order], atol=1e-5)
        for i, seed in enumerate(seeds):
            alone, last_alone = decisions(planner, observations[:, i : i + 1], [seed], explore)
            assert torch.allclose(alone[:, 0], together[:, i], atol=1e-5)
            assert torch.allclose(last_alone.values[0], last.values[i], atol=1e-5)
            assert torch.allclose(last_alone.figures["std"][0], last.figures["std"][i], atol=1e-5)
        assert (together.amax(dim=1) - together.amin(dim=1)).max() > 1e-3  # they do differ

    def test_without_a_qt_as_well(self):
        planner = small_planner(with_qt=False)
        observations = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0))
        together, _ = decisions(planner, observations, [1, 2], explore=True)
        alone, _ = decisions(planner, observations[:, 1:], [2], explore=True)
        assert torch.allclose(alone[:, 0], together[:, 1], atol=1e-5)

    def test_exploring_and_not_in_one_batch(self):
        planner, seeds = small_planner(), [11, 12, 13]
        observations = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
        mixed, _ = decisions(planner, observations, seeds, torch.tensor([True, False, True]))
        collecting, _ = decisions(planner, observations, seeds, True)
        evaluating, _ = decisions(planner, observations, seeds, False)
        assert torch.equal(mixed[:, ::2], collecting[:, ::2])
        assert torch.equal(mixed[:, 1], evaluating[:, 1])
        assert not torch.equal(collecting, evaluating)

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("explore", [False, True])
    def test_an_environment_whose_networks_overflow_spoils_itself_alone(self, variant, explore):
        planner, seeds = small_planner(variant), [11, 12, 13]
        observations = torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(0))
        undisturbed, _ = decisions(planner, observations, seeds, explore)
        observations[:2, 1] = 3e38
        disturbed, last = decisions(planner, observations[:2], seeds, explore, count=2)
        assert torch.equal(disturbed[:, ::2], undisturbed[:2, ::2])
        assert last.values.isfinite().tolist() == [True, False, True]

    def test_states_joined_and_split_are_the_same_states(self):
        planner = small_planner("keep_elites")
        states = [plan(planner, torch.randn(1, 3), [seed]).carry for seed in range(3)]
        for own, again in zip(states, split(join(states)), strict=True):
            assert own.keys() == again.keys()
            assert all(torch.equal(own[name], again[name]) for name in own)


class TestAnytime:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_stopped_early_it_is_a_planner_of_fewer_iterations(self, variant):
        planner, observations = small_planner(variant), torch.randn(2, 3)
        noise = noise_for(planner.config, 2, 0, 1)
        asked = []
        stopped = planner.plan(
            {"observations": observations},
            fresh(planner.config, 2, 2),
            noise,
            False,
            more=lambda n: asked.append(n) or n < 2,
        )
        shorter = make_planner(
            planner.config.model_copy(update={"iterations": 2}), 0.95, planner.dynamics, planner.value_function
        )
        want = plan(shorter, observations, noise=dict(noise, normal=noise["normal"][:, :2]))
        assert (stopped.iterations, asked) == (2, [1, 2])
        assert torch.equal(stopped.actions, want.actions)
        assert torch.equal(stopped.values, want.values)
        assert torch.equal(stopped.carry["mean"], want.carry["mean"])

    def test_with_time_enough_it_is_the_whole_plan(self):
        planner, observations = small_planner(), torch.randn(2, 3)
        noise, state = noise_for(planner.config, 2, 0, 1), fresh(planner.config, 2, 2)
        outcome = planner.plan({"observations": observations}, state, noise, False, more=lambda n: True)
        assert outcome.iterations == 4
        assert torch.equal(outcome.actions, plan(planner, observations, noise=noise).actions)


class TestRandomness:
    def test_same_generator_same_plan_other_generator_other_plan(self):
        planner, observations = small_planner(), torch.ones(3, 1, 3)
        for explore in (False, True):
            first, again, other = (decisions(planner, observations, [s], explore)[0] for s in (5, 5, 6))
            assert torch.equal(first, again)
            assert not torch.allclose(first, other, atol=1e-3)

    def test_noise_is_the_generators_own_whatever_the_batch(self):
        config = MPPIConfig(samples=4, elites=2, qt_samples=3)
        both, one = noise_for(config, 2, 8, 9), noise_for(config, 2, 9)
        for name in ("normal", "proposal", "elite", "action"):
            assert torch.equal(both[name][1], one[name][0])

    def test_evaluating_knows_no_random_bins_and_no_drawn_elite(self):
        planner, observation = small_planner(), torch.ones(1, 3)
        noise = noise_for(planner.config, 2, 0)
        other = dict(noise, elite=1 - noise["elite"], action=torch.stack([0 * noise["action"][:, 0]] * 2, dim=1))
        plans = [plan(planner, observation, noise=x) for x in (noise, other)]
        assert torch.equal(plans[0].actions, plans[1].actions)
        collecting = plan(planner, observation, noise=other, explore=True)
        assert torch.equal(collecting.actions, torch.full((1, 2), -1.0))  # every bin replaced, by the first

    def test_executing_an_elite_draws_it_by_its_weight_without_random_bins(self):
        config = MPPIConfig(samples=24, elites=6, iterations=1, qt_samples=5, init_std=0.4, execute="elite")
        planner, observation = make_planner(config, 0.95, tiny_tdm(2), tiny_qt(3)), torch.ones(1, 3)
        noise = noise_for(planner.config, 2, 0)
        actions = set()
        for chance in torch.linspace(0, 0.99, 12):
            drawn = dict(noise, elite=torch.tensor([chance]), action=torch.zeros_like(noise["action"]))
            action = plan(planner, observation, noise=drawn).actions
            assert torch.equal(action, planner.dynamics.quantise(action))
            actions.add(tuple(action[0].tolist()))
        assert len(actions) > 1
        assert (-1.0, -1.0) not in actions  # what random bins would have made of it

    def test_collecting_replaces_a_tenth_of_the_bins(self):
        config, environments, bins = MPPIConfig(**ONE_SEQUENCE, horizon=1, init_std=0.1), 2000, 255
        planner = make_planner(config, 0.9, FakeDynamics(lambda s, a: (s, s[:, 0], None), 3, bins), None)
        noise = noise_for(config, 3, *range(environments))
        noise = dict(noise, normal=torch.zeros_like(noise["normal"]))  # all would take the middle bin
        observations, state = torch.zeros(environments, 1), fresh(config, 3, environments)
        actions = planner.plan({"observations": observations}, state, noise, explore=True).actions
        replaced = actions.abs() > 1e-6  # [E, N]
        assert replaced.float().mean(dim=0).numpy() == pytest.approx([0.1] * 3, abs=0.025)  # 3.7 standard errors
        assert (replaced[:, 0] & replaced[:, 1]).float().mean() == pytest.approx(0.01, abs=0.009)  # independent
        assert actions[replaced].mean().item() == pytest.approx(0.0, abs=0.09)  # and uniform
        assert actions[replaced].std().item() == pytest.approx(3**-0.5, abs=0.06)

    @pytest.mark.parametrize("dimensions", [1, 6])
    def test_or_collecting_changes_a_tenth_of_the_actions(self, dimensions):
        config, environments = MPPIConfig(**ONE_SEQUENCE, horizon=1, init_std=0.1, random_per_action=True), 3000
        planner = make_planner(config, 0.9, FakeDynamics(lambda s, a: (s, s[:, 0], None), dimensions, 255), None)
        noise = noise_for(config, dimensions, *range(environments))
        noise = dict(noise, normal=torch.zeros_like(noise["normal"]))  # all would take the middle bins
        observations, state = torch.zeros(environments, 1), fresh(config, dimensions, environments)
        actions = planner.plan({"observations": observations}, state, noise, explore=True).actions
        changed = (actions.abs() > 1e-6).any(dim=1)  # [E]
        assert changed.float().mean().item() == pytest.approx(0.1, abs=0.02)  # 3.7 standard errors

    def test_proposals_replace_a_tenth_of_the_greedy_bins(self):
        qt = tiny_qt(4, action_dim=1)
        config = MPPIConfig(samples=2, elites=2, iterations=1, qt_samples=2000)
        dynamics = FakeDynamics(lambda s, a: (s, s[:, 0], None), 1, 7)
        plan(make_planner(config, 0.9, dynamics, qt), torch.ones(1, 3))
        greedy = qt.tokenizer.decode(qt.choose(torch.ones(1, 3))[0])
        changed = (torch.stack(dynamics.taken[:3]) - greedy).abs() > 1e-3  # [H, Q, 1]
        assert changed.float().mean().item() == pytest.approx(0.1 * 6 / 7, abs=0.015)

    def test_or_a_tenth_of_the_greedy_actions(self):
        qt = tiny_qt(4, action_dim=3)
        config = MPPIConfig(samples=2, elites=2, iterations=1, qt_samples=2000, random_per_action=True)
        dynamics = FakeDynamics(lambda s, a: (s, s[:, 0], None), 3, 7)
        plan(make_planner(config, 0.9, dynamics, qt), torch.ones(1, 3))
        greedy = qt.tokenizer.decode(qt.choose(torch.ones(1, 3))[0])
        changed = ((torch.stack(dynamics.taken[:3])[:, -2000:] - greedy).abs() > 1e-3).any(dim=-1)  # [H, Q]
        assert changed.float().mean().item() == pytest.approx(0.1 * 6 / 7, abs=0.015)


# --- optimisations -------------------------------------------------------------------------------------------------


class TestEconomies:
    def best_by_iteration(self, keep, seed):
        full = MPPIConfig(samples=6, elites=3, iterations=6, horizon=2, keep_elites=keep, qt_samples=0)
        noise = noise_for(full, 2, seed)
        values = []
        for iterations in range(1, 7):
            config = full.model_copy(update={"iterations": iterations})
            planner = make_planner(config, 0.9, FakeDynamics(target_dynamics, 2, 101), None)
            upto = dict(noise, normal=noise["normal"][:, :iterations])
            values.append(plan(planner, torch.tensor([[1.0, -1.0]]), noise=upto).values.item())
        return values

    def test_kept_elites_never_let_the_best_value_fall(self):
        def falls(values):
            return any(later < earlier - 1e-6 for earlier, later in itertools.pairwise(values))

        assert not any(falls(self.best_by_iteration(1, seed)) for seed in range(8))
        assert any(falls(self.best_by_iteration(0, seed)) for seed in range(8))

    def test_kept_elites_compete_shifted_in_the_next_decision(self):
        config = MPPIConfig(samples=64, elites=8, iterations=6, horizon=3, keep_elites=2, min_std=0.05)
        dynamics = FakeDynamics(target_dynamics, 2, 101)
        first = plan(make_planner(config, 0.9, dynamics, None), torch.tensor([[1.0, -1.0]]))
        assert first.carry["has_elites"].tolist() == [True]
        assert torch.equal(first.carry["elites"][:, :, -1], torch.zeros(1, 2, 2))  # shifted: nothing at the end yet

        # Next, one bad sample a decision: the best that can be found is a kept sequence.
        poor = config.model_copy(update={"samples": 2, "elites": 2, "iterations": 1})
        noise = noise_for(poor, 2, 7)
        noise = dict(noise, normal=torch.full_like(noise["normal"], 50.0))  # samples of all ones
        start = torch.tensor([[-1.0, 0.5]])
        second = plan(make_planner(poor, 0.9, dynamics, None), start, noise=noise, state=first.carry)
        values = []
        for sequence in [*first.carry["elites"][0], torch.ones(3, 2)]:
            state, total = start, 0.0
            for k in range(3):
                state, reward, _ = target_dynamics(state, dynamics.tokenizer.snap(sequence[k : k + 1]))
                total += 0.9**k * reward.item()
            values.append(total)
        assert second.values.item() == pytest.approx(max(values[:2]), abs=1e-4)
        assert max(values[:2]) > values[2] + 0.1

    def test_an_episodes_first_decision_has_no_kept_elites(self):
        """The zeros in their place must not compete: here a zero sequence would be the best by far."""
        config = MPPIConfig(samples=2, elites=2, iterations=1, horizon=2, keep_elites=2)
        noise = noise_for(config, 2, 0)
        noise = dict(noise, normal=torch.full_like(noise["normal"], 50.0))
        dynamics = FakeDynamics(lambda s, a: (s, -a.abs().sum(dim=1), None), 2, 101)
        outcome = plan(make_planner(config, 1.0, dynamics, None), torch.zeros(1, 2), noise=noise)
        assert outcome.values.item() == pytest.approx(-4.0)
        assert outcome.actions[0].tolist() == pytest.approx([1.0, 1.0])


# --- configuration, cost, golden file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "names"),
    [
        ("qt-tdm.planner.elites=200", ["elites=200", "from 1 to 10"]),
        ("qt-tdm.planner.keep_elites=5", ["keep_elites=5", "elites=4"]),
        ("qt-tdm.planner.init_std=3.0", ["init_std=3.0", "min_std=0.05", "max_std=2.0"]),
        ("qt-tdm.planner.init_std=0.01", ["init_std=0.01", "min_std=0.05", "max_std=2.0"]),
        ("qt-tdm.planner.horizon=0", ["qt-tdm.planner.horizon: got 0", "> 0"]),
        ("qt-tdm.planner.random_bins=1.5", ["qt-tdm.planner.random_bins: got 1.5", "<= 1"]),
        ("qt-tdm.planner.temperature=0", ["qt-tdm.planner.temperature: got 0", "> 0"]),
        ("qt-tdm.qt.terminal_value=last", ["qt-tdm.qt.terminal_value: got 'last'", "greedy", "first_dimension"]),
        ("qt-tdm.planner.execute=best", ["qt-tdm.planner.execute: got 'best'", "mean", "elite"]),
        ("qt-tdm.planner.samplse=5", ["unknown key qt-tdm.planner.samplse", "samples"]),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(override, names):
    with pytest.raises(ConfigError) as error:
        tiny_config(override)
    assert "\n" not in str(error.value)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize("terminal", ["greedy", "first_dimension"])
def test_network_passes_of_a_decision(terminal):
    """TDM: 1 for the root, H an iteration (the first one's take the proposals along). QT: N for each of the H proposed
    steps, V for the terminal values of an iteration; V = N greedily, 1 by the first dimension.

    1 + I H + H N + I V: with the paper's N=6, H=3, I=6 that is 73 greedily and 43 by the first dimension.
    """
    action_dim, horizon, iterations = 6, 3, 6
    tdm, qt = tiny_tdm(0, action_dim=action_dim), tiny_qt(1, action_dim=action_dim, terminal_value=terminal)
    passes = {"tdm": 0, "qt": 0}
    for name, trunk in (("tdm", tdm.trunk), ("qt", qt.towers[0].trunk)):
        trunk.register_forward_hook(lambda *_, name=name: passes.update({name: passes[name] + 1}))
    config = MPPIConfig(samples=8, elites=4, qt_samples=2)
    assert (config.horizon, config.iterations) == (horizon, iterations)
    plan(make_planner(config, 0.98, tdm, qt), torch.zeros(1, 3))
    value = action_dim if terminal == "greedy" else 1
    assert passes["tdm"] == 1 + iterations * horizon
    assert passes["qt"] == horizon * action_dim + iterations * value
    assert sum(passes.values()) == (73 if terminal == "greedy" else 43)
    if terminal == "first_dimension":
        assert sum(passes.values()) <= 27 + 3 * action_dim


def golden_plan(seed):
    """Two decisions of two environments: all that a plan consists of."""
    tdm, qt = tiny_tdm(seed), tiny_qt(seed + 1)
    planner = make_planner(MPPIConfig(samples=32, elites=8, qt_samples=4, iterations=3), 0.98, tdm, qt)
    streams, state, record = generators(seed, seed + 1), fresh(planner.config, 2, 2), []
    observations = torch.tensor([[[0.1, -0.2, 0.3], [1.0, 0.0, -1.0]], [[0.0, 0.4, 0.2], [0.5, 0.5, -0.5]]])
    for t, explore in enumerate((True, False)):
        outcome = planner.plan({"observations": observations[t]}, state, planner.draw(streams), explore)
        state = outcome.carry
        record.append(
            {
                "actions": outcome.actions.tolist(),
                "values": outcome.values.tolist(),
                "std": outcome.figures["std"].tolist(),
                "next_mean": state["mean"].tolist(),
            }
        )
    return record


def write_golden(seed=20260131):
    """Only for a change that is meant to alter plans; run it by hand."""
    GOLDEN.write_text(json.dumps({"seed": seed, "decisions": golden_plan(seed)}, indent=1) + "\n")


def test_plans_equal_the_golden_file():
    golden = json.loads(GOLDEN.read_text())
    for got, want in zip(golden_plan(golden["seed"]), golden["decisions"], strict=True):
        want["std"] = torch.tensor(want["std"]).mean(dim=(1, 2)).tolist()
        for name in want:
            assert torch.allclose(torch.tensor(got[name]), torch.tensor(want[name]), atol=1e-4), name


def test_noise_has_the_declared_shapes():
    config = MPPIConfig(samples=5, elites=2, qt_samples=3, iterations=2, horizon=4)
    noise = noise_for(config, 2, 0, 1)
    shapes = {name: tuple(part.shape) for name, part in noise.items()}
    assert shapes == {"normal": (2, 2, 5, 4, 2), "proposal": (2, 2, 4, 3, 2), "elite": (2,), "action": (2, 2, 2)}


def test_presets_say_all_that_trades_time_for_quality_and_exact_is_the_papers():
    assert MPPIConfig(**PRESETS["exact"]) == MPPIConfig()
    assert PRESETS["exact"].keys() == PRESETS["fast"].keys()
    exact, fast = (
        c.iterations * (c.samples + c.keep_elites) + c.qt_samples
        for c in (MPPIConfig(**PRESETS[name]) for name in ("exact", "fast"))
    )
    assert exact >= 4 * fast

"""Random shooting against loops: its noise, its choice, and that nobody else in the batch matters."""

import pytest
import torch

from qttdm.planner_service.planners.random_shooting import RandomShooting, RandomShootingConfig
from tests.fakes import FakeDynamics, FakeValue, tiny_tdm


def target(states, actions):
    """Pays for closeness to an action that depends on the state."""
    return 0.9 * states + 0.3 * actions, -((actions - torch.tanh(states)) ** 2).sum(dim=1), None


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def plan(planner, observations, seeds):
    noise = planner.draw(generators(*seeds))
    carry = planner.begin(len(seeds), torch.device("cpu"))
    return planner.plan({"observations": observations}, carry, noise, explore=False)


def slow_best(config, discount, start, normal, bins, value):
    """Action and value of the best sequence, by loops: normal [J, H, N]."""
    outcomes = []
    for sample in normal:
        state, total, place, taken = start, 0.0, torch.zeros(2), []
        for k, increment in enumerate(sample):
            place = place + config.std * increment if config.noise == "brownian" else config.std * increment
            action = ((place.clamp(-1, 1) + 1) * (bins - 1) / 2).round() * 2 / (bins - 1) - 1
            state, reward, _ = target(state, action.unsqueeze(0))
            total += discount**k * reward.item()
            taken.append(action)
        outcomes.append((total + discount ** len(sample) * value(state).item(), taken[0]))
    return max(outcomes, key=lambda outcome: outcome[0])


@pytest.mark.parametrize("noise", ["white", "brownian"])
@pytest.mark.parametrize("with_value", [False, True])
def test_it_executes_the_first_action_of_the_best_sequence(noise, with_value):
    config = RandomShootingConfig(horizon=3, samples=20, noise=noise, std=0.4)
    value = (lambda s: 5 * s[:, 0]) if with_value else (lambda s: torch.zeros(len(s)))
    planner = RandomShooting(
        config, 0.9, 2, FakeDynamics(target, 2, 21), FakeValue(value, 2, 21) if with_value else None
    )
    start = torch.tensor([[0.5, -1.0], [-0.2, 0.3]])
    outcome = plan(planner, start, [3, 4])
    normal = planner.draw(generators(3, 4))["normal"]
    for e in range(2):
        best, action = slow_best(config, 0.9, start[e : e + 1], normal[e], 21, value)
        assert outcome.values[e].item() == pytest.approx(best, abs=1e-5)
        torch.testing.assert_close(outcome.actions[e], action)


def test_brownian_noise_has_its_variance_per_increment():
    config = RandomShootingConfig(horizon=9, samples=4000, noise="brownian", std=0.05)
    dynamics = FakeDynamics(lambda s, a: (s, s[:, 0], None), 1, 100_001)
    plan(RandomShooting(config, 1.0, 1, dynamics), torch.zeros(1, 1), [0])
    taken = torch.stack(dynamics.taken).squeeze(-1)  # [H, J]
    want = [0.05 * (h + 1) ** 0.5 for h in range(9)]
    assert taken.std(dim=1).numpy() == pytest.approx(want, rel=0.05)


def test_actions_stay_in_the_box():
    config = RandomShootingConfig(horizon=5, samples=50, noise="brownian", std=2.0)
    dynamics = FakeDynamics(lambda s, a: (s, a[:, 0], None), 2, 21)
    outcome = plan(RandomShooting(config, 1.0, 2, dynamics), torch.zeros(1, 2), [0])
    assert all(actions.abs().max() <= 1 for actions in dynamics.taken)
    assert outcome.actions[0, 0].item() == 1.0


def test_each_environment_is_planned_as_if_alone_with_a_real_model():
    planner = RandomShooting(RandomShootingConfig(horizon=4, samples=30), 0.95, 2, tiny_tdm(2))
    observations = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    together = plan(planner, observations, [1, 2, 3])
    for e, seed in enumerate([1, 2, 3]):
        alone = plan(planner, observations[e : e + 1], [seed])
        torch.testing.assert_close(alone.actions[0], together.actions[e], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.values[0], together.values[e], atol=1e-5, rtol=0)

"""Random shooting against loops: its noise, its choice, and that nobody else in the batch matters."""

import pytest
import torch

from qttdm.common.config import ConfigError
from qttdm.planner_service.planners.random_shooting import RandomShooting, RandomShootingConfig
from tests.fakes import FakeDynamics, FakeValue, tiny_generalist, tiny_sequence_model, tiny_tdm


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


def test_brownian_noise_may_begin_anywhere_and_is_reflected():
    """It covers the box at every step, without drift; increments have their variance, but for reflections."""
    config = RandomShootingConfig(horizon=6, samples=1, noise="brownian", std=0.3, start="uniform")
    planner = RandomShooting(config, 1.0, 1, FakeDynamics(lambda s, a: (s, a[:, 0], None), 1, 21))
    normal = torch.randn(100_000, 6, 1, generator=generators(0)[0])
    walk = planner.sequences(normal).squeeze(-1)  # [J, H]
    assert walk.abs().max() <= 1
    assert walk.mean(dim=0).abs().max() < 0.01
    assert walk.var(dim=0).numpy() == pytest.approx([1 / 3] * 6, abs=0.01)  # uniform, at each step
    inside = (walk[:, 0].abs() < 0.1) & (walk[:, 1].abs() < 0.9)
    change = (walk[:, 1] - walk[:, 0])[inside]
    assert change.std().item() == pytest.approx(0.3, rel=0.05)
    for row in range(200):  # the obvious way
        place = torch.special.ndtr(normal[row, 0, 0]) * 2 - 1
        for step in range(6):
            place = place + config.std * normal[row, step, 0] if step else place
            folded = place
            while abs(folded) > 1:
                folded = torch.sign(folded) * 2 - folded
            assert walk[row, step].item() == pytest.approx(folded.item(), abs=1e-4)


@pytest.mark.parametrize("make", [tiny_generalist, tiny_sequence_model])
@pytest.mark.parametrize("proposals", [0, 5])
def test_each_episode_is_remembered_as_if_alone(proposals, make):
    """Two episodes that began at different times, decided for together, and one of them alone."""
    config = RandomShootingConfig(horizon=2, samples=8, context=2, proposals=proposals)
    planner = RandomShooting(config, 1.0, 2, make(0))
    seen = torch.rand(5, 2, 3, generator=generators(1)[0]) * 2 - 1

    def alone(episode, first):
        carry, chosen = planner.begin(1, torch.device("cpu")), []
        for step in range(first, 5):
            noise = planner.draw(generators(10 * step + episode))
            made = planner.plan({"observations": seen[step, [episode]]}, carry, noise, explore=False)
            carry = made.carry
            chosen.append(made.actions)
        return torch.cat(chosen), carry

    wanted = [alone(0, 0), alone(1, 2)]
    carry = planner.begin(1, torch.device("cpu"))
    for step in range(5):
        if step == 2:
            new = planner.begin(1, torch.device("cpu"))
            carry = {name: torch.cat([carry[name], new[name]]) for name in carry}
        together = [0] if step < 2 else [0, 1]
        noise = planner.draw(generators(*(10 * step + episode for episode in together)))
        made = planner.plan({"observations": seen[step, together]}, carry, noise, explore=False)
        carry = made.carry
        for row, episode in enumerate(together):
            torch.testing.assert_close(made.actions[row], wanted[episode][0][step - 2 * episode])
    assert torch.equal(carry["history"][0], wanted[0][1]["history"][0])
    bins = planner.memory.tokens.encode(seen[4, 0], planner.memory.columns_of("observations"))
    assert torch.equal(carry["history"][0, -1, :3], bins)  # the newest is at the end


class Diary(FakeDynamics):
    """A step is one number, 10 times the first of its action; the policy always takes 0.5."""

    slots = 1

    def start(self, context):
        self.shown = context.get("history")
        return super().start(context)

    def remember(self, root, actions):
        return (10 * actions[:, :1]).round().long()

    def act(self, rollout, actions, noise, proposed):
        taken = torch.where(proposed[:, None], 0.5 + noise, actions)
        return taken, self.step(rollout, taken)


def test_any_model_may_remember_and_propose():
    """The best action is 0.5, which only the policy takes."""
    model = Diary(lambda s, a: (s, -(a - 0.5).abs().sum(dim=1), None), 2, 21)
    config = RandomShootingConfig(horizon=1, samples=4, proposals=1, proposal_std=0.0, context=2)
    planner, shown = RandomShooting(config, 1.0, 2, model), []
    carry = planner.begin(1, torch.device("cpu"))
    for step in range(4):
        made = planner.plan({"observations": torch.zeros(1, 2)}, carry, planner.draw(generators(step)), explore=False)
        assert made.actions.tolist() == [[0.5, 0.5]]
        carry = made.carry
        shown.append(None if model.shown is None else model.shown.tolist())
    assert shown == [None, [[5]], [[5, 5]], [[5, 5]]]


def test_proposals_alone_without_noise_are_the_policy():
    generalist, now = tiny_generalist(0), torch.rand(1, 3)
    config = RandomShootingConfig(horizon=1, samples=1, proposals=1, proposal_std=0.0)
    made = plan(RandomShooting(config, 1.0, 2, generalist), now, [0])
    acted, _ = generalist.act(
        generalist.select(generalist.start({"observations": now}), torch.tensor([0]), 1),
        torch.zeros(1, 2),
        torch.zeros(1, 2),
        torch.tensor([True]),
    )
    assert torch.equal(made.actions, acted)


@pytest.mark.parametrize("wrong", [{"proposals": 2}, {"context": 1}])
def test_a_model_without_memory_is_one_line(wrong):
    with pytest.raises(ConfigError, match="this model has no memory of an episode and no policy"):
        RandomShooting(RandomShootingConfig(**wrong), 1.0, 2, tiny_tdm(0))

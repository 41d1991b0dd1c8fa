"""learner/parts/world_model.py and actor_critic.py against loops; what learns from what."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qttdm.common.batch import Batch
from qttdm.common.models.actor_critic import ActorCritic, ActorCriticConfig
from qttdm.common.models.latent import Decoder, Encoder, LatentConfig
from qttdm.common.models.world_model import Dynamics, WorldModelConfig
from qttdm.learner.learner import Learner, LearnerConfig
from qttdm.learner.parts.actor_critic import ActorCriticLearner, ActorCriticLearnerConfig
from qttdm.learner.parts.imagination import ImaginationConfig, Imagined
from qttdm.learner.parts.targets import advantages
from qttdm.learner.parts.world_model import WorldModelLearner, WorldModelLearnerConfig

B, L, M, A = 6, 4, 3, 3
LATENT = LatentConfig(variables=2, classes=3, hidden=8, layers=1)
IMAGINATION = ImaginationConfig(starts=5, horizon=3)


def make_batch(seed: int = 0) -> Batch:
    """Windows of noise, the first of them whole, the others cut off somewhere, some by termination."""
    rng = np.random.default_rng(seed)
    lengths = np.append(L, rng.integers(1, L + 1, B - 1))
    mask = np.arange(L) < lengths[:, None]
    return Batch(
        observations=rng.normal(size=(B, L + 1, M)).astype(np.float32),
        actions=rng.integers(0, A, (B, L)),
        rewards=rng.normal(size=(B, L)).astype(np.float32),
        terminated=(np.arange(L) == lengths[:, None] - 1) & (np.arange(B) % 2 == 0)[:, None],
        mask=mask,
    )


def tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in batch.items()}


def shake(network: nn.Module) -> None:
    """Move all that learns: fresh networks end in zeros, which would hide most mistakes."""
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn(p.shape))


def make_world(**config) -> WorldModelLearner:
    torch.manual_seed(0)
    sizes = WorldModelConfig(
        embed_dim=8, num_heads=2, num_layers=1, dropout=0.0, window=L, latent=LATENT, head_layers=1, latent_head=8,
        number_head=8, reward_bins=9,
    )  # fmt: skip
    dynamics = Dynamics(sizes, 1, A, 0.9, True)
    part = WorldModelLearner(WorldModelLearnerConfig(**config), Encoder(LATENT, (M,)), Decoder(LATENT, (M,)), dynamics)
    shake(dynamics)
    return part


def make_actor_critic(world: WorldModelLearner, **config) -> ActorCriticLearner:
    torch.manual_seed(1)
    network = ActorCritic(ActorCriticConfig(hidden=8, layers=1, value_bins=9), LATENT.size, 1, A)
    shake(network)
    return ActorCriticLearner(ActorCriticLearnerConfig(imagination=IMAGINATION, **config), network, world)


def softmax(x: list[float]) -> list[float]:
    weights = [math.exp(v - max(x)) for v in x]
    return [w / sum(weights) for w in weights]


def test_the_world_models_losses_are_loops_over_steps():
    part, batch = make_world(), tensors(make_batch())
    torch.manual_seed(3)
    total, metrics, seen = part.loss(batch)
    logits = part.network(batch["observations"]).detach()
    outcome, _ = part.dynamics(seen.latents[:, :-1], batch["actions"], batch["rewards"])
    wanted = part.network.scale(batch["observations"])
    sums = {"recon": [], "entropy": [], "latents": [], "surprise": [], "reward": [], "discount": []}
    for b in range(B):
        length = int(batch["mask"][b].sum())
        for t in range(length + 1):
            sums["recon"].append(50 * (part.decoder(seen.latents[b, t]) - wanted[b, t]).square().sum().item())
            p = [softmax(row.tolist()) for row in logits[b, t]]
            sums["entropy"].append(-sum(q * math.log(q) for row in p for q in row) / (2 * math.log(3)))
            if t == length:
                continue
            ended = bool(batch["terminated"][b, t])
            sums["reward"].append(part.dynamics.reward_bins.loss(outcome.rewards[b, t], batch["rewards"][b, t]).item())
            gamma, target = torch.sigmoid(outcome.discounts[b, t]).item(), 0.0 if ended else 0.9
            sums["discount"].append(-target * math.log(gamma) - (1 - target) * math.log(1 - gamma))
            if not ended:
                q = [softmax(row.tolist()) for row in outcome.latents[b, t]]
                p = [softmax(row.tolist()) for row in logits[b, t + 1]]
                pairs = [(x, y) for rows in zip(p, q, strict=True) for x, y in zip(*rows, strict=True)]
                sums["latents"].append(-sum(x * math.log(y) for x, y in pairs))
                sums["surprise"].append(-sum(y * math.log(x) for x, y in pairs))
    want = {name: sum(values) / len(values) for name, values in sums.items()}
    names = ("reconstruction", "entropy", "latents", "surprise", "emitted_reward", "discount")
    got = [metrics[n if n in metrics else f"{'latent' if n in ('entropy', 'surprise') else 'loss'}_{n}"] for n in names]
    assert torch.stack(got).tolist() == pytest.approx(list(want.values()), rel=1e-4)
    assert total.item() == pytest.approx(
        want["recon"] + 5 * max(0, 0.1 - want["entropy"]) + 0.01 * want["surprise"] + want["latents"]
        + 10 * want["reward"] + 50 * want["discount"], rel=1e-4,
    )  # fmt: skip
    alive = [[True] + [bool(batch["mask"][b, t] and not batch["terminated"][b, t]) for t in range(L)] for b in range(B)]
    assert seen.exists.tolist() == alive


def test_padding_changes_nothing():
    part, batch = make_world(), make_batch()
    other = {name: array.copy() for name, array in batch.items()}
    after = np.concatenate([np.zeros((B, 1), bool), ~batch["mask"]], axis=1)
    other["observations"][after], other["rewards"][~batch["mask"]], other["actions"][~batch["mask"]] = 9.0, 0.1, 2
    losses = []
    for each in (batch, other):
        torch.manual_seed(3)
        losses.append(part.loss(tensors(each))[0].item())
    assert losses[0] == losses[1]


def test_what_sends_gradients_to_what():
    """The dynamics' losses do not reach the encoder; what the encoder owes to the dynamics does not reach them."""
    batch = tensors(make_batch())
    without = {"entropy_weight": 0.0, "consistency_weight": 0.0}
    part = make_world(**without)
    total, _, _ = part.loss(batch)
    total.backward()
    alone = [p.grad.clone() for p in part.network.parameters() if p.grad is not None]
    torch.manual_seed(0)
    part = make_world(**without, reward_weight=0.0, discount_weight=0.0)
    total, _, _ = part.loss(batch)
    total.backward()
    torch.testing.assert_close(alone, [p.grad for p in part.network.parameters() if p.grad is not None])
    dynamics = [p.grad.clone() for p in part.dynamics.parameters() if p.grad is not None]
    part = make_world(entropy_weight=7.0, consistency_weight=3.0, reward_weight=0.0, discount_weight=0.0)
    total, _, _ = part.loss(batch)
    total.backward()
    torch.testing.assert_close(dynamics, [p.grad for p in part.dynamics.parameters() if p.grad is not None])
    changed = [p.grad for p in part.network.parameters() if p.grad is not None]
    assert not all(torch.equal(x, y) for x, y in zip(alone, changed, strict=True))


def test_a_batch_of_last_steps_alone_is_learned_from():
    """Nothing follows any of them: no latent is predicted, and imagination starts from what was seen before them."""
    world = make_world()
    learner = Learner(LearnerConfig(batch_size=B), [world, make_actor_critic(world)], torch.device("cpu"), 100, False)
    batch = make_batch()
    batch["mask"][:] = batch["terminated"][:] = np.arange(L) == 0
    learner.update(batch)
    metrics = learner.drain()
    assert metrics["loss_latents"] == 0.0
    assert metrics["loss_emitted_reward"] > 0.0


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_advantages_are_sums_of_discounted_errors(trace: float):
    """Every pair of steps; at lambda 1 the return is what was rewarded and the value after the last step."""
    g = torch.Generator().manual_seed(0)
    horizon, n = 6, 4
    rewards, values, following = torch.randn(3, horizon, n, generator=g)
    discounts, cut = torch.rand(horizon, n, generator=g), torch.rand(horizon, n, generator=g) < 0.3
    got = advantages(rewards, discounts, values, following, cut, trace)
    for i in range(n):
        for t in range(horizon):
            total, weight = 0.0, 1.0
            for k in range(t, horizon):
                error = rewards[k, i] + discounts[k, i] * following[k, i] - values[k, i]
                total += weight * error.item()
                if cut[k, i]:
                    break
                weight *= trace * discounts[k, i].item()
            assert got[t, i].item() == pytest.approx(total, abs=1e-5)


def some_imagined(horizon: int = 3, n: int = 4) -> Imagined:
    g = torch.Generator().manual_seed(2)
    z = torch.nn.functional.one_hot(torch.randint(0, 3, (2, horizon, n, 2), generator=g), 3).float().flatten(-2)
    rewards, weights = torch.randn(horizon, n, generator=g), torch.rand(horizon, n, generator=g)
    actions, cut = torch.randint(0, A, (horizon, n), generator=g), torch.rand(horizon, n, generator=g) < 0.3
    return Imagined(z[0], actions, rewards, torch.full((horizon, n), 0.9), z[1], cut, weights)


def test_actors_and_critics_losses_are_loops():
    part, x = make_actor_critic(make_world(), scale_advantages=False, entropy_threshold=0.95), some_imagined()
    part.network.value_bins.follow(torch.tensor([-50.0, 50.0]))
    actor, critic, metrics = part.loss(x)
    bins, net = part.network.value_bins, part.network
    values, following = (bins.mean(part.target(z)) for z in (x.latents, x.next_latents))
    gains = advantages(x.rewards, x.discounts, values, following, x.cut, 0.95)
    sums, total = [0.0, 0.0], x.weights.sum().item()
    for h in range(3):
        for i in range(4):
            p = softmax(net.actor(x.latents[h, i]).tolist())
            entropy = -sum(q * math.log(q) for q in p) / math.log(A)
            weight = x.weights[h, i].item() / total
            score = gains[h, i].item() * math.log(p[x.actions[h, i]])
            sums[0] += weight * (0.01 * max(0.0, 0.95 - entropy) - score)
            sums[1] += weight * bins.loss(net.critic(x.latents[h, i]), gains[h, i] + values[h, i]).item()
    assert [actor.item(), critic.item()] == pytest.approx(sums, rel=1e-4)
    assert metrics["advantage_unit"] == 1.0


def test_the_entropys_hinge_asks_nothing_of_states_above_it():
    part, x = make_actor_critic(make_world(), scale_advantages=False), some_imagined()
    part.network.actor = last = nn.Linear(LATENT.size, A)
    nn.init.zeros_(last.weight)
    for logits, moves in (([6.0, 0.0, 0.0], True), ([0.1, 0.0, 0.0], False)):
        last.bias.data, last.bias.grad = torch.tensor(logits), None
        _, entropy = part.network.judge(x.latents, x.actions)
        (0.1 - entropy).clamp_min(0).sum().backward()
        assert bool((last.bias.grad != 0).any()) == moves


def test_the_unit_of_advantages_follows_the_range_of_returns():
    part = make_actor_critic(make_world(), range_decay=0.5)
    wide, narrow = torch.linspace(0, 20, 101), torch.zeros(101)
    assert part._unit(wide).item() == pytest.approx(18.0)
    assert part._unit(narrow).item() == pytest.approx(9.0)
    for _ in range(9):
        unit = part._unit(narrow)
    assert unit.item() == 1.0


def test_imagined_experience_reaches_actor_and_critic_alone():
    world = make_world()
    part = make_actor_critic(world)
    world.loss(tensors(make_batch()))[0].backward()
    *_, world.seen = world.loss(tensors(make_batch()))
    before = [
        p.grad if p.grad is None else p.grad.clone()
        for p in [*world.network.parameters(), *world.dynamics.parameters()]
    ]
    actor, critic, _ = part.loss(part.imagine())
    (actor + critic).backward()
    after = [p.grad for p in [*world.network.parameters(), *world.dynamics.parameters()]]
    assert all((x is None and y is None) or torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert all(p.grad is not None for p in [*part.network.actor.parameters(), *part.network.critic.parameters()])


def test_updates_in_bfloat16_come_close():
    drained = []
    for bfloat16 in (False, True):
        world = make_world()
        parts = [world, make_actor_critic(world)]
        learner = Learner(LearnerConfig(batch_size=B), parts, torch.device("cpu"), 100, bfloat16)
        torch.manual_seed(5)
        learner.update(make_batch())
        drained.append(learner.drain())
    exact, rounded = drained
    for name in ("loss_reconstruction", "loss_latents", "loss_emitted_reward", "loss_discount"):
        assert rounded[name] == pytest.approx(exact[name], rel=0.1, abs=0.05)


def test_a_saved_learner_goes_on_bit_for_bit():
    def learner() -> Learner:
        world = make_world()
        return Learner(LearnerConfig(batch_size=B), [world, make_actor_critic(world)], torch.device("cpu"), 100, False)

    one, other = learner(), learner()
    for i in range(3):
        one.update(make_batch(i))
    saved = {name: value.clone() for name, value in one.state().items()}
    expected = [one.update(make_batch(i)) or one.drain() for i in (3, 4)]
    torch.manual_seed(99)
    other.load_state(saved)
    assert [other.update(make_batch(i)) or other.drain() for i in (3, 4)][1] == expected[1]
    assert set(other.networks) == {"world_model", "actor_critic"}

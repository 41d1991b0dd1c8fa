"""common/models/world_model.py and learner/parts/imagination.py against the same without a memory."""

import pytest
import torch
from torch import Tensor

from qttdm.common.models.latent import LatentConfig
from qttdm.common.models.world_model import Dynamics, Seen, WorldModelConfig
from qttdm.learner.parts.imagination import ImaginationConfig, draw_noise, imagine, one_hot, rewards_of

B, L, H, N_SEQUENCES = 3, 5, 4, 7
LATENT = LatentConfig(variables=2, classes=3)


def make_dynamics(choices: int | None = 3, feedback: str = "drawn", window: int = L) -> Dynamics:
    torch.manual_seed(0)
    config = WorldModelConfig(
        embed_dim=16,
        num_heads=2,
        num_layers=2,
        dropout=0.0,
        window=window,
        latent=LATENT,
        head_layers=1,
        latent_head=16,
        number_head=16,
        reward_bins=9,
        reward_feedback=feedback,
    )
    dynamics = Dynamics(config, 1 if choices is not None else 2, choices, 0.9, True).eval()
    with torch.no_grad():
        for p in dynamics.parameters():
            p.normal_(std=0.5)
    return dynamics


def windows(dynamics: Dynamics, choices: int | None) -> tuple[Seen, Tensor]:
    g = torch.Generator().manual_seed(1)
    latents = one_hot(torch.randn(B, L + 1, 2, 3, generator=g), torch.rand(B, L + 1, 2, generator=g))
    actions = torch.randint(0, 3, (B, L), generator=g) if choices else 2 * torch.rand(B, L, 2, generator=g) - 1
    rewards = torch.randn(B, L, generator=g)
    with torch.no_grad():
        _, cache = dynamics(latents[:, :-1], actions, rewards)
    exists = torch.ones(B, L + 1, dtype=torch.bool)
    exists[1, 3:] = False
    return Seen(latents, rewards, exists, cache), actions


def act(latents: Tensor, chance: Tensor) -> Tensor:
    """Some policy that depends on the latent."""
    if chance.ndim == 1:
        return ((latents @ torch.arange(6.0) + 3 * chance).long()) % 3
    return torch.tanh(latents[:, :2] + chance)


@pytest.mark.parametrize("choices", [3, None])
@pytest.mark.parametrize("feedback", ["drawn", "mean", "none"])
@pytest.mark.parametrize("cut_below", [0.0, 0.35])
@torch.no_grad()
def test_imagination_is_a_loop_over_whole_sequences(choices: int | None, feedback: str, cut_below: float):
    """Sequence by sequence, each step from scratch: all its steps, through the model anew."""
    dynamics = make_dynamics(choices, feedback, window=L + H)  # nothing is out of reach
    seen, actions = windows(dynamics, choices)
    config = ImaginationConfig(starts=N_SEQUENCES, horizon=H, cut_below=cut_below)
    noise = draw_noise(config, seen, 2, () if choices else (2,))
    got = imagine(dynamics, seen, act, noise, cut_below)
    cuts = 0
    for i in range(N_SEQUENCES):
        window, step = divmod(int(noise["starts"][i]), L + 1)
        assert seen.exists[window, step]
        zs, done = list(seen.latents[window, : step + 1]), list(actions[window, :step])
        rs, weight = list(seen.rewards[window, :step]), torch.tensor(1.0)
        for h in range(H):
            action = act(zs[-1][None], noise["actions"][h, i : i + 1])[0]
            done.append(action)
            outcome, _ = dynamics(
                torch.stack(zs)[None], torch.stack(done)[None], torch.stack([*rs, torch.tensor(0.0)])[None]
            )
            last = type(outcome)(*(x[0, -1] for x in (outcome.latents, outcome.rewards, outcome.discounts)))
            reward = rewards_of(dynamics, last, noise["rewards"][h, i])
            following = one_hot(last.latents, noise["latents"][h, i])
            discount = last.discounts.sigmoid()
            cut = bool(weight * discount < cut_below)
            torch.testing.assert_close(got.latents[h, i], zs[-1])
            torch.testing.assert_close(got.actions[h, i], action)
            torch.testing.assert_close(got.rewards[h, i], reward, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(got.discounts[h, i], discount)
            torch.testing.assert_close(got.next_latents[h, i], following)
            torch.testing.assert_close(got.weights[h, i], weight)
            assert got.cut[h, i] == cut
            cuts += cut
            if cut:
                other = int(noise["restarts"][h, i])
                zs, done, rs, weight = [seen.latents[other // (L + 1), other % (L + 1)]], [], [], torch.tensor(1.0)
            else:
                zs, rs, weight = [*zs, following], [*rs, reward], weight * discount
    assert (cuts > 0) == (cut_below > 0)


@torch.no_grad()
def test_starts_are_where_something_may_follow():
    dynamics = make_dynamics()
    seen, _ = windows(dynamics, 3)
    noise = draw_noise(ImaginationConfig(starts=500, horizon=2), seen, 2, ())
    for name in ("starts", "restarts"):
        drawn = noise[name].flatten()
        assert seen.exists.flatten()[drawn].all()
        assert len(drawn.unique()) == int(seen.exists.sum())  # all of them


@torch.no_grad()
def test_the_model_knows_what_it_emitted_only_if_it_is_told():
    """The second step's outcome depends on the first one's reward, and without the input it does not."""
    for feedback, depends in (("drawn", True), ("none", False)):
        dynamics = make_dynamics(feedback=feedback)
        seen, actions = windows(dynamics, 3)
        other = seen.rewards.clone()
        other[:, 0] += 3.0
        one, two = (dynamics(seen.latents[:, :-1], actions, r)[0].latents for r in (seen.rewards, other))
        assert torch.equal(one[:, 0], two[:, 0])
        assert torch.equal(one[:, 1], two[:, 1]) != depends

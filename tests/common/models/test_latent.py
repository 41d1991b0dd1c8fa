"""common/models/latent.py."""

import pytest
import torch

from qttdm.common.models.latent import Decoder, Encoder, LatentConfig, modes, straight_through

SMALL = LatentConfig(variables=3, classes=4, hidden=16, layers=1, channels=2, grid_channels=2)


def test_the_published_sizes():
    """Robine et al.'s code counts 8,234,532 parameters, 3,126,992 of them the encoder's."""
    encoder, decoder = Encoder(LatentConfig(), (64, 64, 4)), Decoder(LatentConfig(), (64, 64, 4))
    counts = [sum(p.numel() for p in network.parameters()) for network in (encoder, decoder)]
    assert counts == [3_126_992, 8_234_532 - 3_126_992]


@pytest.mark.parametrize(
    "shape", [(5,), (1,), (10, 10, 4), (7, 9, 1), (64, 64, 4), (84, 84, 1), (96, 64, 3), (16, 20, 3)]
)
def test_any_observation_becomes_a_latent_and_back(shape: tuple[int, ...]):
    encoder, decoder = Encoder(SMALL, shape), Decoder(SMALL, shape)
    seen = torch.rand(2, 3, *shape) if len(shape) == 1 else torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    logits = encoder(seen)
    assert logits.shape == (2, 3, 3, 4)
    latents = modes(logits).flatten(-2)
    assert (latents.sum(dim=-1) == 3).all()
    out = decoder(latents)
    assert out.shape == seen.shape
    torch.testing.assert_close(encoder(seen[1, 2]), logits[1, 2], rtol=1e-4, atol=1e-5)  # in company and alone
    torch.testing.assert_close(decoder(latents[1, 2:]), out[1, 2:])


@pytest.mark.parametrize("shape", [(5,), (10, 10, 1), (32, 32, 1)])
def test_what_is_observed_can_be_told_apart(shape: tuple[int, ...]):
    """An autoencoder of four observations learns them by heart: every pixel has a way through."""
    torch.manual_seed(0)
    seen = torch.randn(4, *shape)
    if len(shape) == 3:  # each has another white quarter
        seen = torch.zeros(4, *shape, dtype=torch.uint8)
        for i, half in enumerate((slice(None, shape[0] // 2), slice(shape[0] // 2, None))):
            seen[2 * i, half, : shape[1] // 2] = seen[2 * i + 1, half, shape[1] // 2 :] = 255
    encoder, decoder = Encoder(SMALL, shape), Decoder(SMALL, shape)
    wanted = seen.float() / (1 if len(shape) == 1 else 255)
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(150):
        logits = encoder(seen)
        loss = (decoder(straight_through(logits, torch.rand(4, 3)).flatten(-2)) - wanted).square().sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    off = (decoder(modes(encoder(seen)).flatten(-2)) - wanted).square().mean()
    assert off < 0.3 * wanted.var()


def test_samples_pass_gradients_straight_through():
    """The gradient of E[w . z] for two classes, by hand: the probabilities' own."""
    logits, worth = torch.tensor([[0.3, -0.4]], requires_grad=True), torch.tensor([2.0, 5.0])
    for chance, chosen in ((0.1, 0), (0.9, 1)):
        logits.grad = None
        z = straight_through(logits, torch.tensor([chance]))
        torch.testing.assert_close(z.detach(), torch.eye(2)[chosen][None])
        (z * worth).sum().backward()
        p = logits.detach().softmax(-1)[0]
        expected = p * (worth - (p * worth).sum())
        torch.testing.assert_close(logits.grad[0], expected)

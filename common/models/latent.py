"""What is observed as a few categorical variables, and back (Robine et al., 2023; Hafner et al., 2021).

    observation --Encoder--> logits [G, C] --sample--> z, one-hot --Decoder--> observation

G variables of C classes each. Samples pass gradients straight through: forward one-hot, backward as probabilities.
Images of 16 pixels a side or more go through the published convolutions, smaller grids (as MinAtar's) through one of
3 by 3; vectors are normalised and go through the MLP alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from qttdm.common.config import Config
from qttdm.common.models.scale import ObservationScale
from qttdm.common.models.two_hot import draw

SMALL = 16
"""pixels a side; an image with fewer is a grid, whose every cell counts"""
KERNELS = (5, 5, 6, 6)
"""of the decoder's transposed convolutions; further ones are as the last"""


class LatentConfig(Config):
    """Sizes of the observation model; defaults are the published ones."""

    variables: int = Field(default=32, gt=0)
    """G, categorical variables of a latent"""
    classes: int = Field(default=32, ge=2)
    """C, of each"""
    hidden: int = Field(default=512, gt=0)
    """width of the MLPs' hidden layers"""
    layers: int = Field(default=2, gt=0)
    """hidden layers of each MLP"""
    channels: int = Field(default=48, gt=0)
    """of the first convolution of an image; each further one has twice as many"""
    grid_channels: int = Field(default=16, gt=0)
    """of the convolution of a small grid"""

    @property
    def size(self) -> int:
        """Z, numbers of a latent."""
        return self.variables * self.classes


def mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """Make an MLP with SiLU."""
    sizes = [inputs, *[hidden] * layers]
    parts = [part for i in range(layers) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.SiLU())]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs))


def straight_through(logits: Tensor, chance: Tensor) -> Tensor:
    """Draw one-hot classes [.., G, C], whose gradient is the probabilities': uniforms [.., G]."""
    probabilities = logits.float().softmax(dim=-1)
    drawn = nn.functional.one_hot(draw(logits, chance), logits.shape[-1]).to(probabilities.dtype)
    return drawn + probabilities - probabilities.detach()


def modes(logits: Tensor) -> Tensor:
    """Return the likeliest classes, one-hot [.., G, C]."""
    return nn.functional.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(torch.float32)


class Pixels(nn.Module):
    """uint8 images [.., height, width, channels] to numbers in [0, 1], channels first: [B, channels, height, width]."""

    def forward(self, images: Tensor) -> Tensor:
        """Bring them to what convolutions take."""
        return images.flatten(0, -4).permute(0, 3, 1, 2).float() / 255.0


class Encoder(nn.Module):
    """Observations to logits of the latent; acting needs no more of the world model."""

    def __init__(self, config: LatentConfig, shape: Sequence[int]) -> None:
        """shape: of an observation, [M] or [height, width, channels of all stacked frames]."""
        super().__init__()
        self.config, self.shape = config, tuple(shape)
        self.scale: ObservationScale | None = None
        if len(shape) == 1:
            self.scale = ObservationScale(shape[0])
            features, self.convolutions = shape[0], nn.Sequential()
        else:
            self.convolutions = nn.Sequential(Pixels(), *convolutions(config, shape), nn.Flatten())
            with torch.no_grad():
                features = self.convolutions(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        self.mlp = mlp(features, config.hidden, config.layers, config.size)

    def forward(self, observations: Tensor) -> Tensor:
        """Return logits [.., G, C] of observations [.., *shape]."""
        leading = observations.shape[: -len(self.shape)]
        x = observations.reshape(-1, *self.shape)
        x = self.convolutions(x) if self.scale is None else self.scale(x)
        return self.mlp(x).reshape(*leading, self.config.variables, self.config.classes)


class Decoder(nn.Module):
    """Latents to the means of observations: pixels in [0, 1] or so, or normalised vectors."""

    def __init__(self, config: LatentConfig, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        if len(shape) == 1 or max(shape[:2]) < SMALL:
            self.layers: nn.Module = mlp(config.size, config.hidden, config.layers, int(torch.tensor(shape).prod()))
            self.deconvolved = False
        else:
            self.layers, self.deconvolved = deconvolutions(config, shape), True

    def forward(self, latents: Tensor) -> Tensor:
        """Return means [.., *shape] for latents [.., Z]."""
        out = self.layers(latents.reshape(-1, latents.shape[-1]))
        if self.deconvolved:
            height, width, _ = self.shape
            top, left = (out.shape[2] - height) // 2, (out.shape[3] - width) // 2
            out = out[:, :, top : top + height, left : left + width].permute(0, 2, 3, 1)
        return out.reshape(*latents.shape[:-1], *self.shape)


def convolutions(config: LatentConfig, shape: Sequence[int]) -> list[nn.Module]:
    """Make the published ones, kernel 4, stride 2, as many as halve the shorter side to 2 pixels; or a grid's."""
    height, width, inputs = shape
    if max(height, width) < SMALL:
        return [nn.Conv2d(inputs, config.grid_channels, 3, padding=1), nn.SiLU()]
    layers: list[nn.Module] = []
    side, outputs = min(height, width), config.channels
    while side >= 4:
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2), nn.SiLU()]
        side, inputs, outputs = (side - 4) // 2 + 1, outputs, 2 * outputs
    return layers


def deconvolutions(config: LatentConfig, shape: Sequence[int]) -> nn.Sequential:
    """Make the published ones, stride 2, from one pixel to an image at least as large as wanted: 64 by 64 by four."""
    height, width, outputs = shape
    kernels: list[int] = []
    side = 1
    while side < max(height, width):
        kernels.append(KERNELS[min(len(kernels), len(KERNELS) - 1)])
        side = (side - 1) * 2 + kernels[-1]
    channels = [config.channels * 2 ** (len(kernels) - 2 - i) for i in range(len(kernels) - 1)]
    inputs = 2 * channels[0] if channels else config.channels
    layers: list[nn.Module] = [nn.Linear(config.size, 2 * inputs), nn.SiLU(), nn.Unflatten(1, (2 * inputs, 1, 1))]
    sizes = [2 * inputs, *channels, outputs]
    for i, kernel in enumerate(kernels):
        layers += [nn.ConvTranspose2d(sizes[i], sizes[i + 1], kernel, stride=2), nn.SiLU()]
    last = layers[-2]
    assert isinstance(last, nn.ConvTranspose2d)
    assert last.bias is not None
    nn.init.constant_(last.bias, 0.5)
    return nn.Sequential(*layers[:-1])

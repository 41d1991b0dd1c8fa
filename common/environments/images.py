"""Images as observations: uint8, height by width by channels.

A grid of bools, as MinAtar's, becomes 0 and 255, so that what reads images need not know of it.
"""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium import spaces, wrappers
from numpy.typing import NDArray


def image_shape(space: spaces.Space) -> tuple[int, int, int] | None:
    """Return height, width and channels of a Box of uint8 or bool with two or three dimensions; None for others."""
    if not isinstance(space, spaces.Box) or space.dtype not in (np.uint8, np.bool_) or len(space.shape) not in (2, 3):
        return None
    height, width, *channels = space.shape
    return height, width, channels[0] if channels else 1


def looks_like_an_image(space: spaces.Space) -> bool:
    """Say whether flattening the space would hide that it is an image."""
    dimensions = len(space.shape or ())
    return dimensions > 2 or (dimensions == 2 and space.dtype == np.uint8)


def coloured(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn an image [height, width, C] into what can be looked at, [height, width, 3].

    One channel is grey, three are red, green and blue; of other numbers each has a colour, and they add up.
    """
    channels = image.shape[-1]
    if channels in (1, 3):
        return np.broadcast_to(image, (*image.shape[:2], 3)).copy()
    turns = np.arange(channels)[:, None] / channels + np.array([0.0, 1 / 3, 2 / 3])  # hues, evenly apart
    colours = 0.5 + 0.5 * np.cos(2 * np.pi * turns)  # [C, 3]
    mixed: NDArray[np.uint8] = (image @ colours).clip(0, 255).astype(np.uint8)
    return mixed


def as_image(env: gymnasium.Env, shape: tuple[int, int, int]) -> gymnasium.Env:
    """Show the environment's observations as uint8 images of that shape."""

    def image(shown: NDArray[np.generic]) -> NDArray[np.uint8]:
        array = np.asarray(shown)
        grid = array.astype(np.uint8) * np.uint8(255) if array.dtype == np.bool_ else array.astype(np.uint8)
        return grid[..., None] if grid.ndim == 2 else grid

    return wrappers.TransformObservation(env, image, spaces.Box(0, 255, shape, np.uint8))

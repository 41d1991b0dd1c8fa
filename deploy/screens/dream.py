"""Draw what happened beside what was imagined: a strip of frames and a video of images, curves of vectors."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from qttdm.common.environments.images import coloured
from qttdm.common.run_dir import RunDir
from qttdm.deploy.screens.video import VideoError, captioned, write_video

FRAME = 240
"""pixels a side of the video's pictures, at least"""
CELL = 80
"""of the strip's"""
CURVES = 12
"""numbers of a vector that are drawn, at most: those that move most"""
FPS = 6


@dataclass(frozen=True)
class Dream:
    """The same steps twice."""

    start: int
    """step of the episode after which nothing more was shown"""
    real: np.ndarray
    """observations [H+1, ..] from that step on; of images those of one step alone"""
    imagined: np.ndarray
    """the same, as decoded; the first is the last that was shown"""
    real_rewards: np.ndarray
    """[H]"""
    imagined_rewards: np.ndarray
    """[H]"""


def draw_dream(dream: Dream, folder: Path) -> Iterator[str]:
    """Write dream.png, and dream.mp4 of images, into a folder; yields a line about each."""
    paths, errors = RunDir(folder), np.abs(dream.real.astype(float) - dream.imagined).reshape(len(dream.real), -1)
    off = errors.mean(axis=1)
    yield (
        f"after step {dream.start}: mean error {off[1]:.3g} one step on, {off[-1]:.3g} {len(off) - 1} steps on; "
        f"rewards {dream.real_rewards.sum():.3g}, imagined {dream.imagined_rewards.sum():.3g}"
    )
    paths.dream_path.write_bytes(png_of(dream))
    yield (
        f"above what happened, below what was imagined: {paths.dream_path}"
        if dream.real.ndim > 2
        else (f"lines what happened, dashes what was imagined: {paths.dream_path}")
    )
    if dream.real.ndim > 2:
        sides = [
            captioned(_pictures(images, FRAME), rewards, 1)
            for images, rewards in ((dream.real, dream.real_rewards), (dream.imagined, dream.imagined_rewards))
        ]
        try:
            write_video(
                [np.concatenate(pair, axis=1) for pair in zip(*sides, strict=True)], paths.dream_video_path, FPS
            )
            yield f"left what happened, right what was imagined: {paths.dream_video_path}"
        except VideoError as error:
            yield f"no video: {error}"


def png_of(dream: Dream) -> bytes:
    """Draw a strip of images, what happened above what was imagined, or the curves of a vector: a PNG file."""
    file = io.BytesIO()
    if dream.real.ndim == 2:
        _draw_curves(dream).savefig(file, dpi=110)
    else:
        rows = [_pictures(images, CELL) for images in (dream.real, dream.imagined)]
        strip = np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)
        Image.fromarray(strip).save(file, "png")
    return file.getvalue()


def _pictures(images: NDArray[np.uint8], side: int) -> list[NDArray[np.uint8]]:
    """Colour and enlarge images [T, height, width, C] by a whole number, framed in grey."""
    times = max(1, -(-side // max(images.shape[1:3])))
    large = (coloured(image).repeat(times, axis=0).repeat(times, axis=1) for image in images)
    return [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=128) for image in large]


def _draw_curves(dream: Dream) -> Figure:
    """Draw the numbers of a vector that move most, real and imagined."""
    moving = np.argsort(-np.ptp(dream.real, axis=0))[:CURVES]
    columns = min(4, len(moving))
    rows = -(-len(moving) // columns)
    figure = Figure(figsize=(3 * columns, 2 * rows), layout="constrained")
    steps = dream.start + np.arange(len(dream.real))
    for place, number in enumerate(sorted(moving)):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.plot(steps, dream.real[:, number], color="C0")
        axes.plot(steps, dream.imagined[:, number], color="C1", linestyle="--")
        axes.set_title(f"observation[{number}]", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure

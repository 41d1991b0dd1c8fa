"""Frames to a file that any browser plays: H.264 in mp4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw  # which matplotlib needs


class VideoError(RuntimeError):
    """The video could not be written; its one line says why. A run can go on without it."""


def captioned(frames: Sequence[NDArray[np.uint8]], rewards: NDArray[Any], repeat: int) -> list[NDArray[np.uint8]]:
    """Write step and return so far onto T + 1 frames (uint8 [height, width, 3]) of an episode of T rewards.

    repeat: environment steps of a decision.
    """
    returns = np.concatenate([[0.0], np.cumsum(rewards)])
    drawn = []
    for number, (frame, so_far) in enumerate(zip(frames, returns, strict=True)):
        image = Image.fromarray(frame)
        words = f"step {number * repeat}  return {so_far:.1f}"
        place: dict[str, Any] = {"fill": "white", "stroke_fill": "black", "stroke_width": 1}
        ImageDraw.Draw(image).text((4, 4), words, font_size=max(10, frame.shape[0] // 20), **place)
        drawn.append(np.asarray(image))
    return drawn


def write_video(frames: Sequence[NDArray[np.uint8]], path: Path, fps: float) -> None:
    """Write frames (uint8 [height, width, 3] each, RGB, all of one size) as mp4 at `fps` frames per second.

    Odd sizes are scaled up by a row or column, because yuv420p, the one layout that every player reads, halves both.
    Raises VideoError when there are no frames, they do not fit together, or ffmpeg is missing or fails; no file stays
    behind.
    """
    kinds = sorted({(str(frame.dtype), frame.shape) for frame in frames})
    if len(kinds) != 1 or kinds[0][0] != "uint8" or kinds[0][1][2:] != (3,) or 0 in kinds[0][1]:
        raise VideoError(f"{path}: got frames {kinds}, want uint8 (height, width, 3), all of one size")
    height, width, _ = frames[0].shape
    try:
        import imageio_ffmpeg  # here, so that a machine without it can still train

        writer = imageio_ffmpeg.write_frames(
            str(path),
            (width, height),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=1,
            ffmpeg_log_level="quiet",
            output_params=["-vf", "scale=ceil(iw/2)*2:ceil(ih/2)*2"],
        )
        try:
            writer.send(None)
            for frame in frames:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()
        if not path.is_file() or path.stat().st_size == 0:  # close() does not look at ffmpeg's exit status
            raise VideoError(f"{path}: ffmpeg wrote nothing; is the folder there, and room on the disk?")
    except VideoError:
        path.unlink(missing_ok=True)
        raise
    except (ImportError, OSError, RuntimeError) as error:
        path.unlink(missing_ok=True)
        raise VideoError(f"{path}: cannot write the video ({' '.join(str(error).split())})") from error

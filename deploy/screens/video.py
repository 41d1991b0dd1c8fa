"""Frames to a file that any browser plays: H.264 in mp4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class VideoError(RuntimeError):
    """The video could not be written; its one line says why. A run can go on without it."""


def write_video(frames: Sequence[NDArray[np.uint8]], path: Path, fps: float) -> None:
    """Write frames (uint8 [height, width, 3] each, RGB, all of one size) as mp4 at `fps` frames per second.

    Odd sizes gain a row or column, because yuv420p, the one layout that every player reads, halves both. Raises
    VideoError when there are no frames, they do not fit together, or ffmpeg is missing or fails; no file stays behind.
    """
    if not frames:
        raise VideoError(f"{path}: no frames to write")
    shape = _checked(frames[0], path).shape
    try:
        import imageio_ffmpeg  # here, so that a machine without it can still train

        writer = imageio_ffmpeg.write_frames(
            str(path),
            (shape[1] + shape[1] % 2, shape[0] + shape[0] % 2),
            fps=fps,
            codec="libx264",
            pix_fmt_out="yuv420p",
            macro_block_size=2,
            ffmpeg_log_level="quiet",
        )
        try:
            writer.send(None)
            for frame in frames:
                if _checked(frame, path).shape != shape:
                    raise VideoError(f"{path}: frames of {shape} and of {frame.shape} in one video")
                writer.send(_even(frame))
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


def _even(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[height, width, 3] with the last row and column repeated where their number is odd."""
    height, width, _ = frame.shape
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))


def _checked(frame: NDArray[np.uint8], path: Path) -> NDArray[np.uint8]:
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8 or 0 in frame.shape:
        raise VideoError(f"{path}: got a frame {frame.dtype} {frame.shape}, want uint8 (height, width, 3)")
    return frame

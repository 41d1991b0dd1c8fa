from pathlib import Path

import imageio.v3
import imageio_ffmpeg
import numpy as np
import pytest

from qttdm.deploy.screens.video import VideoError, captioned, write_video


def moving_bar(height: int, width: int, length: int = 12) -> list[np.ndarray]:
    frames = [np.zeros((height, width, 3), np.uint8) for _ in range(length)]
    for index, frame in enumerate(frames):
        frame[:, index : index + 8] = (250, 30, 30)
    return frames


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 63), (48, 65), (50, 34)])
def test_what_was_written_is_what_plays(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "video.mp4"
    frames = moving_bar(height, width)
    write_video(frames, path, fps=25)
    about = next(imageio_ffmpeg.read_frames(str(path)))
    assert about["fps"] == 25
    assert about["pix_fmt"].startswith("yuv420p")
    assert about["codec"] == "h264"
    played = imageio.v3.imread(path)
    assert played.shape == (12, height + height % 2, width + width % 2, 3)
    for frame, seen in zip(frames, played, strict=True):  # lossy: in the bar red, outside it dark
        assert np.abs(seen[:height, :width].astype(int) - frame).mean() < 12


def test_scaling_adds_no_dark_edge(tmp_path: Path) -> None:
    white = [np.full((15, 33, 3), 255, np.uint8)] * 3
    write_video(white, tmp_path / "video.mp4", fps=10)
    assert imageio.v3.imread(tmp_path / "video.mp4").min() > 240


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], r"got frames \[\]"),
        ([np.zeros((8, 8, 3), np.float32)], "got frames .*float32"),
        ([np.zeros((8, 8), np.uint8)], "want uint8"),
        ([np.zeros((0, 8, 3), np.uint8)], "want uint8"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 10, 3), np.uint8)], "all of one size"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 4), np.uint8)], "want uint8"),
    ],
)
def test_frames_that_are_no_video(tmp_path: Path, frames: list[np.ndarray], message: str) -> None:
    with pytest.raises(VideoError, match=message):
        write_video(frames, tmp_path / "video.mp4", fps=10)
    assert not (tmp_path / "video.mp4").exists()


def test_a_place_that_cannot_be_written_or_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VideoError, match=r"none.video\.mp4"):
        write_video(moving_bar(16, 16), tmp_path / "none" / "video.mp4", fps=10)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "no-ffmpeg"))
    with pytest.raises(VideoError, match="cannot write the video") as caught:
        write_video(moving_bar(16, 16), tmp_path / "video.mp4", fps=10)
    assert "\n" not in str(caught.value)


def test_captions_tell_step_and_return_and_leave_the_rest_of_the_frame():
    frames = [np.zeros((200, 300, 3), np.uint8)] * 3
    first, second, _ = captioned(frames, np.array([1.5, 2.0]), repeat=2)
    assert first[:20].any()
    assert (first != second).any()
    assert not second[20:].any()
    (alike, _) = captioned(frames[:2], np.array([1.5]), repeat=2)
    assert (alike == first).all()

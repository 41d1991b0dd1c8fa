"""failure.txt needs no room when it is written, and a disk that refuses even so leaves no reason unsaid."""

from pathlib import Path

from qttdm.deploy.cluster.failure import ROOM_BYTES, FailureFile


def test_is_written_into_room_taken_before(tmp_path: Path) -> None:
    failure = FailureFile(tmp_path)
    (tmp_path / "failure.txt").write_text("of the last time")
    failure.keep_room()
    (room,) = tmp_path.iterdir()
    before = room.stat()
    assert before.st_blocks * 512 >= ROOM_BYTES
    failure.write("no space left\n")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_ino == before.st_ino  # nothing new was asked of the disk
    assert path.read_text() == "no space left\n"


def test_a_long_one_keeps_its_end(tmp_path: Path) -> None:
    failure = FailureFile(tmp_path)
    failure.keep_room()
    failure.write("x" * 2 * ROOM_BYTES + "the reason")
    assert (tmp_path / "failure.txt").stat().st_size == ROOM_BYTES
    assert (tmp_path / "failure.txt").read_text().endswith("xthe reason")


def test_no_room_and_no_disk_is_told_on_stderr(tmp_path: Path, capsys) -> None:
    (tmp_path / ".failure-room").symlink_to("/dev/full")
    failure = FailureFile(tmp_path)
    failure.keep_room()
    failure.write("the reason")
    err = capsys.readouterr().err
    assert "failure.txt: cannot be written (No space left on device):\nthe reason\n" in err


def test_a_good_end_leaves_nothing(tmp_path: Path) -> None:
    failure = FailureFile(tmp_path)
    failure.keep_room()
    failure.give_back()
    assert list(tmp_path.iterdir()) == []

"""common/disk.py: a file is the old one or the new one, a full disk is one line, a lock is a lock."""

import os

import pytest

from qttdm.common.disk import DiskError, open_lock, replace_file, write_file


def test_replace_file_keeps_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    replace_file(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    replace_file(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_a_full_disk_says_which_file_and_how_many_bytes(tmp_path):
    (tmp_path / "index.tmp").symlink_to("/dev/full")  # a disk that has no room
    want = r"index.tmp: cannot write 1,234 bytes \(No space left on device, [\d,]+ bytes are free\)$"
    with pytest.raises(DiskError, match=want):
        write_file(tmp_path / "index.tmp", bytes(1234))
    (tmp_path / "index").write_bytes(b"old")
    with pytest.raises(DiskError, match=want):
        replace_file(tmp_path / "index", bytes(1234))
    assert [path.name for path in tmp_path.iterdir()] == ["index"]  # what was half written keeps no room
    assert (tmp_path / "index").read_bytes() == b"old"


@pytest.mark.parametrize("found", ["link", "pipe", "file", "long file", "second name", "folder"])
def test_what_is_no_lock_is_neither_followed_nor_changed(tmp_path, found):
    lock, other = tmp_path / "lock", tmp_path / "other"
    other.write_text("precious")
    if found == "link":
        lock.symlink_to(other)
    elif found == "pipe":
        os.mkfifo(lock)
    elif found == "file":
        lock.write_text("precious")
    elif found == "long file":
        lock.write_text("1" * 100 + "precious")
    elif found == "second name":
        other.write_text("42")
        lock.hardlink_to(other)
    else:
        lock.mkdir()
    with pytest.raises(OSError, match=r"no lock of ours; remove it|Is a directory"):
        open_lock(lock)
    assert other.read_text() == ("42" if found == "second name" else "precious")
    assert found != "long file" or lock.read_text().endswith("precious")
    assert found != "file" or lock.read_text() == "precious"

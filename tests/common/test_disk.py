"""common/disk.py: a file is the old one or the new one."""

import os

import pytest

from qttdm.common.disk import replace_file


def test_replace_file_keeps_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    replace_file(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    replace_file(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"

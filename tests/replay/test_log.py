"""replay/log.py against a plain list of records, with the files cut and damaged at every place."""

import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from qttdm.replay.log import Log, records_in

HEAD = 20  # bytes in front of each payload


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 100)


def open_log(directory: Path, fsync: str = "interval") -> Log:
    return Log(directory, fsync)


def write(directory: Path, records: list[bytes]) -> None:
    log = open_log(directory)
    for record in records:
        log.append(record)
    log.close()


def pairs(log: Log, start: int = 0) -> list[tuple[int, bytes]]:
    found = list(log.read(start))
    assert [pair for pair in records_in(log.directory) if pair[0] >= start] == found
    return found


def contents(log: Log) -> list[bytes]:
    return [record for _, record in pairs(log)]


def reopened(log: Log) -> Log:
    log.close()
    return open_log(log.directory)


def files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.log"))


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_list(tmp_path, seed):
    """Appends, reopenings without a close, deletions and rewinds, in any order."""
    rng = random.Random(seed)
    log, model, first = open_log(tmp_path), [], 0  # model: every record, deleted ones as well
    for step in range(150):
        match rng.choice(["append"] * 6 + ["reopen", "delete", "rewind"]):
            case "append":
                model.append(rng.randbytes(rng.choice([0, 1, 10, 40, 200])))
                log.append(model[-1])
                log.flush()
            case "reopen":
                del log
                log = open_log(tmp_path)
            case "delete":
                log.delete(log.files_before(keep := rng.randint(first, len(model))))
                assert not log.files_before(keep)
                assert first <= next(iter(log.sizes)) <= keep  # never more than was allowed
                first = next(iter(log.sizes))
            case "rewind" if step % 4 == 0:
                log.rewind(stop := rng.randint(first, len(model)))
                del model[stop:]
        assert log.next == len(model)
        assert pairs(log) == list(enumerate(model))[first:]
        assert sum(log.sizes.values()) == sum(path.stat().st_size for path in files(tmp_path))
    assert len(model) > 20
    assert first > 0


def test_numbers_may_be_left_out(tmp_path):
    """Those of records that the disk has lost."""
    write(tmp_path, [b"a", b"b"])
    log = open_log(tmp_path)
    log.begin(7)
    log.append(b"c")
    log = reopened(log)
    assert pairs(log) == [(0, b"a"), (1, b"b"), (7, b"c")]
    assert log.next == 8


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    log.append(b"one")

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            self.file.write(data[:3])
            raise OSError("disk full")

        def __getattr__(self, name):
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full(log._file))
        with pytest.raises(OSError, match="disk full"):
            log.append(b"two")
    assert contents(log) == [b"one"]
    log.append(b"three")
    assert log.sizes == {0: files(tmp_path)[0].stat().st_size}
    log = reopened(log)
    assert contents(log) == [b"one", b"three"]


@pytest.mark.parametrize(("fsync", "want"), [("always", 10), ("interval", 1)])
def test_fsync_policies(tmp_path, monkeypatch, fsync, want):
    now, synced = 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    log = open_log(tmp_path, fsync=fsync)
    monkeypatch.setattr("qttdm.replay.log.FLUSH_SECONDS", 5.0)
    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 10**6)
    monkeypatch.setattr(os, "fsync", synced.append)
    for _ in range(10):  # at 1, 2, .. 10 minus a little: one is 5 seconds after the opening, none 5 after that
        now += 0.99
        log.append(b"x")
        log.flush()
    assert len(synced) == want


def test_a_flush_serves_all_who_wait_for_it_and_no_later_record(tmp_path, monkeypatch):
    log, inside, go_on, synced = open_log(tmp_path, fsync="always"), threading.Event(), threading.Event(), []

    def fsync(descriptor: int) -> None:
        synced.append(log.next)
        inside.set()
        assert go_on.wait(60)

    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 10**6)
    monkeypatch.setattr(os, "fsync", fsync)
    log.append(b"1")
    threads = [threading.Thread(target=log.flush)]
    threads[0].start()
    assert inside.wait(60)
    for _ in range(8):  # while the disk is busy with the first
        log.append(b"2")
        threads.append(threading.Thread(target=log.flush))
        threads[-1].start()
    assert all(thread.is_alive() for thread in threads)
    go_on.set()
    for thread in threads:
        thread.join()
    assert synced[0] == 1
    assert synced[-1] == 9  # nobody returned before the last record was flushed
    assert len(synced) <= 9
    log.flush()
    assert synced[-1] == 9


def test_files_are_rolled_by_size_and_named_after_their_first_record(tmp_path):
    write(tmp_path, [b"x" * 20, b"y" * 20, b"z" * 20, b"w" * 300, b""])
    assert [(int(path.stem), path.stat().st_size) for path in files(tmp_path)] == [
        (0, 80),
        (2, 40),
        (3, 320),
        (4, 20),
    ]


def test_reads_a_part(tmp_path):
    write(tmp_path, records := [bytes([i]) * 9 for i in range(20)])
    log = open_log(tmp_path)
    assert len(files(tmp_path)) > 4
    for start in range(22):
        assert [record for _, record in log.read(start)] == records[start:]


def test_a_torn_last_record_is_cut_off_wherever_it_tore(tmp_path, monkeypatch):
    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 1000)
    records = [b"first", b"second", b"third" * 9]
    write(tmp_path / "whole", records)
    size = files(tmp_path / "whole")[0].stat().st_size
    before = size - HEAD - len(records[-1])
    for length in range(before, size):
        for tail in (b"", bytes(50)):  # after a power cut a file may be longer than what was written
            directory = tmp_path / f"{length}-{len(tail)}"
            shutil.copytree(tmp_path / "whole", directory)
            with files(directory)[0].open("r+b") as file:
                file.truncate(length)
                file.seek(length)
                file.write(tail)
            log = open_log(directory)
            assert contents(log) == records[:2]
            log.append(b"again")
            log.sync()
            del log
            log = open_log(directory)
            assert contents(log) == [*records[:2], b"again"]


def test_damage_costs_the_records_it_touches_and_no_other(tmp_path):
    records = [bytes([65 + i]) * 15 for i in range(7)]
    write(tmp_path / "whole", records)
    sizes = [path.stat().st_size for path in files(tmp_path / "whole")]
    assert sizes == [70, 70, 70, 35]
    for position in range(sum(sizes) - 35):  # every byte but those of the last record, which would count as torn
        directory = tmp_path / str(position)
        shutil.copytree(tmp_path / "whole", directory)
        with files(directory)[position // 70].open("r+b") as file:
            file.seek(position % 70)
            byte = file.read(1)[0]
            file.seek(position % 70)
            file.write(bytes([byte ^ 0x41]))
        log, lost = open_log(directory), position // 35
        assert pairs(log) == [pair for pair in enumerate(records) if pair[0] != lost]
        assert log.next == 7
        shutil.rmtree(directory)


def test_a_damaged_stretch_in_the_last_file_is_not_taken_for_a_torn_tail(tmp_path, monkeypatch):
    monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 1000)
    write(tmp_path, [b"a" * 15, b"b" * 15, b"c" * 15, b"d" * 15])
    with files(tmp_path)[0].open("r+b") as file:
        file.seek(45)
        file.write(b"\xff" * 30)  # the length of the second and the head of the third
    log = open_log(tmp_path)
    assert pairs(log) == [(0, b"a" * 15), (3, b"d" * 15)]
    log.rewind(2)
    log.append(b"C")
    assert pairs(log) == [(0, b"a" * 15), (2, b"C")]


def test_a_payload_may_look_like_a_record(tmp_path):
    write(tmp_path / "inner", [b"secret"])
    inner = files(tmp_path / "inner")[0].read_bytes()
    write(tmp_path, [inner, inner * 3, b"end"])
    assert contents(open_log(tmp_path)) == [inner, inner * 3, b"end"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "other").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(RuntimeError, match=r"lock: cannot lock the log .it is no lock of ours"):
        open_log(tmp_path)
    assert (tmp_path / "other").read_text() == "precious"


def test_one_writer(tmp_path, monkeypatch):
    log = open_log(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("qttdm.replay.log.LOCK_SECONDS", 0.1)
        with pytest.raises(RuntimeError, match="in use by another process"):
            open_log(tmp_path)
    log.append(b"one")
    threading.Timer(0.2, log.close).start()  # as a process that was killed and takes its time
    assert contents(open_log(tmp_path)) == [b"one"]

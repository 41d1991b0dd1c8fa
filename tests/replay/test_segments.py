"""replay/segments.py against a plain list of records, with the files cut and damaged at every place."""

import os
import random
import shutil
import threading
from pathlib import Path

import pytest

from qttdm.common.config import ConfigError, validate
from qttdm.replay.segments import SegmentConfig, SegmentLog, replace_file

HEAD = 20  # bytes in front of each payload


def open_log(directory: Path, max_segment_bytes: int = 100, fsync: str = "never", **config) -> SegmentLog:
    return SegmentLog(directory, SegmentConfig(max_segment_bytes=max_segment_bytes, fsync=fsync, **config))


def write(directory: Path, records: list[bytes], **config) -> None:
    log = open_log(directory, **config)
    for record in records:
        log.append(record)
    log.close()


def contents(log: SegmentLog) -> list[bytes]:
    return [record for _, record in log.read()]


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.segment"))


@pytest.mark.parametrize("seed", range(20))
def test_equals_a_list(tmp_path, seed):
    """Appends, reopenings without a close, discards and rewinds, in any order."""
    rng = random.Random(seed)
    log, model, first = open_log(tmp_path), [], 0  # model: every record, discarded ones as well
    for step in range(150):
        match rng.choice(["append"] * 6 + ["reopen", "discard", "rewind"]):
            case "append":
                record = rng.randbytes(rng.choice([0, 1, 10, 40, 200]))
                assert log.append(record) == len(model)
                model.append(record)
            case "reopen":
                del log
                log = open_log(tmp_path)
            case "discard":
                log.discard_before(keep := rng.randint(first, len(model)))
                assert not log.can_discard(keep)
                assert first <= log.first_sequence <= keep  # never more than was allowed
                first = log.first_sequence
            case "rewind" if step % 4 == 0:
                log.rewind(stop := rng.randint(first, len(model)))
                del model[stop:]
        assert (log.first_sequence, log.next_sequence, log.dropped) == (first, len(model), 0)
        assert list(log.read()) == list(enumerate(model))[first:]
        assert log.bytes_on_disk == sum(path.stat().st_size for path in segments(tmp_path))
    assert len(model) > 20
    assert first > 0


def test_segments_are_rolled_by_size_and_named_after_their_first_record(tmp_path):
    write(tmp_path, [b"x" * 20, b"y" * 20, b"z" * 20, b"w" * 300, b""], max_segment_bytes=2 * (HEAD + 20))
    assert [(int(path.stem), path.stat().st_size) for path in segments(tmp_path)] == [
        (0, 80),
        (2, 40),
        (3, 320),
        (4, 20),
    ]


def test_reads_a_part(tmp_path):
    write(tmp_path, records := [bytes([i]) * 9 for i in range(20)])
    log = open_log(tmp_path)
    assert len(segments(tmp_path)) > 4
    for start in range(22):
        for stop in range(start, 22):
            assert [record for _, record in log.read(start, stop)] == records[start:stop]
    assert log.dropped == 0


def test_a_torn_last_record_is_cut_off_wherever_it_tore(tmp_path):
    records = [b"first", b"second", b"third" * 9]
    write(tmp_path / "whole", records, max_segment_bytes=1000)
    size = segments(tmp_path / "whole")[0].stat().st_size
    before = size - HEAD - len(records[-1])
    for length in range(before, size):
        for tail in (b"", bytes(50)):  # after a power cut a file may be longer than what was written
            directory = tmp_path / f"{length}-{len(tail)}"
            shutil.copytree(tmp_path / "whole", directory)
            with segments(directory)[0].open("r+b") as file:
                file.truncate(length)
                file.seek(length)
                file.write(tail)
            log = open_log(directory, max_segment_bytes=1000)
            assert contents(log) == records[:2]
            assert log.dropped == (length > before or tail != b"")
            assert log.append(b"again") == 2
            del log
            log = open_log(directory, max_segment_bytes=1000)
            assert (contents(log), log.dropped) == ([*records[:2], b"again"], 0)


def test_damage_costs_the_records_it_touches_and_no_other(tmp_path):
    records = [bytes([65 + i]) * 15 for i in range(7)]
    write(tmp_path / "whole", records)
    sizes = [path.stat().st_size for path in segments(tmp_path / "whole")]
    assert sizes == [70, 70, 70, 35]
    for position in range(sum(sizes) - 35):  # every byte but those of the last record, which would count as torn
        directory = tmp_path / str(position)
        shutil.copytree(tmp_path / "whole", directory)
        with segments(directory)[position // 70].open("r+b") as file:
            file.seek(position % 70)
            byte = file.read(1)[0]
            file.seek(position % 70)
            file.write(bytes([byte ^ 0x41]))
        log, lost = open_log(directory), position // 35
        for _ in range(2):  # reading again does not count again
            assert list(log.read()) == [pair for pair in enumerate(records) if pair[0] != lost]
            assert log.dropped == 1
        assert log.next_sequence == 7
        shutil.rmtree(directory)


def test_a_damaged_stretch_in_the_last_segment_is_not_taken_for_a_torn_tail(tmp_path):
    write(tmp_path, [b"a" * 15, b"b" * 15, b"c" * 15, b"d" * 15], max_segment_bytes=1000)
    with segments(tmp_path)[0].open("r+b") as file:
        file.seek(45)
        file.write(b"\xff" * 30)  # the length of the second and the head of the third
    log = open_log(tmp_path, max_segment_bytes=1000)
    assert list(log.read()) == [(0, b"a" * 15), (3, b"d" * 15)]
    assert log.dropped == 2
    log.rewind(2)
    assert log.append(b"C") == 2
    assert list(log.read()) == [(0, b"a" * 15), (2, b"C")]


def test_a_missing_segment_is_counted(tmp_path):
    write(tmp_path, [b"x" * 15] * 8)
    segments(tmp_path)[1].unlink()
    log = open_log(tmp_path)
    assert [sequence for sequence, _ in log.read()] == [0, 1, 4, 5, 6, 7]
    assert log.dropped == 2


def test_a_payload_may_look_like_a_record(tmp_path):
    write(tmp_path / "inner", [b"secret"])
    inner = segments(tmp_path / "inner")[0].read_bytes()
    write(tmp_path, [inner, inner * 3, b"end"])
    assert contents(open_log(tmp_path)) == [inner, inner * 3, b"end"]


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    log = open_log(tmp_path, fsync="always")
    log.append(b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            log.append(b"two")
    assert contents(log) == [b"one"]
    assert log.append(b"three") == 1
    del log
    log = open_log(tmp_path)
    assert (contents(log), log.dropped) == ([b"one", b"three"], 0)


@pytest.mark.parametrize(("fsync", "want"), [("always", 10), ("interval", 1), ("never", 0)])
def test_fsync_policies(tmp_path, monkeypatch, fsync, want):
    now, synced = 0.0, []
    monkeypatch.setattr("time.monotonic", lambda: now)
    log = open_log(tmp_path, max_segment_bytes=10**6, fsync=fsync, fsync_seconds=5.0)
    monkeypatch.setattr(os, "fsync", synced.append)
    for _ in range(10):  # at 1, 2, .. 10 minus a little: one is 5 seconds after the opening, none 5 after that
        now += 0.99
        log.append(b"x")
    assert len(synced) == want


def test_one_writer(tmp_path):
    log = open_log(tmp_path)
    with pytest.raises(RuntimeError, match="in use by another process"):
        open_log(tmp_path, lock_seconds=0.1)
    log.append(b"one")
    threading.Timer(0.2, log.close).start()  # as a process that was killed and takes its time
    assert contents(open_log(tmp_path, lock_seconds=60)) == [b"one"]


def test_rewind_refuses_what_is_not_there(tmp_path):
    write(tmp_path, [b"x" * 60] * 3)
    log = open_log(tmp_path)
    log.discard_before(2)
    for sequence in (1, 4):
        with pytest.raises(ValueError, match=f"got sequence number {sequence} .*, want one of 2 to 3"):
            log.rewind(sequence)
    assert contents(log) == [b"x" * 60]


def test_replace_file_keeps_the_old_one_until_the_new_one_is_whole(tmp_path, monkeypatch):
    replace_file(tmp_path / "file", b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    replace_file(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"


def test_config_names_what_it_wants():
    with pytest.raises(ConfigError, match="fsync: got 'sometimes', want 'always', 'interval' or 'never'"):
        validate(SegmentConfig, {"fsync": "sometimes"}, "x.yaml")

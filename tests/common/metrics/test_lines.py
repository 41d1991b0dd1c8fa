import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

import qttdm.learner.parts.qt  # noqa: F401 - declares its losses
from qttdm.common.config import ConfigError
from qttdm.common.disk import DiskError
from qttdm.common.metrics.lines import COUNTERS, NUMBERS, MetricsWriter, read_metrics


def counters(step: int) -> dict[str, float]:
    return dict.fromkeys(COUNTERS, step)


GOOD = json.dumps({"kind": "train", **counters(7), "episode_return": 0.5}).encode()


def write(path: Path, steps: range, keep_bytes: int | None = None) -> list[int]:
    """Write a train line per step; the offsets after each."""
    with closing(MetricsWriter(path, keep_bytes)) as writer:
        offsets = []
        for step in steps:
            writer.write("train", **counters(step), episode_return=step / 3)
            offsets.append(writer.sync())
    return offsets


def test_every_metric_says_its_unit_and_meaning() -> None:
    assert all(metric.unit and metric.meaning and name == metric.name for name, metric in NUMBERS.items())
    assert set(COUNTERS) <= NUMBERS.keys()


def test_a_line_is_readable_at_once_and_starts_with_kind_and_counters(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = MetricsWriter(path)  # deliberately not closed before reading
    writer.write("eval", episode_return=1.5, episode_returns=[1.0, 2.0], success=True, **counters(5))
    line = json.loads(path.read_text())
    assert list(line) == ["kind", *COUNTERS, "episode_return", "episode_returns", "success"]
    assert read_metrics(path) == [line]
    values = {"episode_return": 1.5, "episode_returns": [1.0, 2.0], "success": True}
    assert line == {"kind": "eval", **counters(5), **values}
    writer.close()


def test_non_finite_becomes_null_and_arrays_scalars_become_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with closing(MetricsWriter(path)) as writer:
        values = {"loss_q": math.nan, "q_mean": np.float32(-np.inf), "grad_norm_qt": torch.tensor(0.5)}
        writer.write("update", **counters(1), **values, episode_returns=(math.inf, 1.0), success=None)
    line = read_metrics(path)[0]
    assert (line["loss_q"], line["q_mean"], line["grad_norm_qt"]) == (None, None, 0.5)
    assert (line["episode_returns"], line["success"]) == ([None, 1.0], None)


def test_sinks_are_told_what_is_in_the_file_from_now_on(tmp_path: Path) -> None:
    path, told = tmp_path / "metrics.jsonl", []
    write(path, range(2))
    with closing(MetricsWriter(path, sinks=[told.append, told.append])) as writer:
        writer.write("update", **counters(2), loss_q=np.float32(0.5), q_mean=math.nan)
    assert told == 2 * [read_metrics(path)[-1]]


def test_refuses_what_nobody_declared(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path / "metrics.jsonl")) as writer:
        with pytest.raises(ValueError, match="loss_z not declared"):
            writer.write("update", **counters(1), loss_z=1.0)
        with pytest.raises(ValueError, match="got 'test'"):
            writer.write("test", **counters(1))
        with pytest.raises(ValueError, match="updates, episodes, wall_seconds missing"):
            writer.write("train", env_steps=1, decisions=1)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    write(whole, range(9))
    offsets = write(cut, range(6))
    with cut.open("ab") as file:
        file.write(b'{"kind": "tra')  # killed in the middle of a line
    write(cut, range(4, 9), keep_bytes=offsets[3])
    assert cut.read_bytes() == whole.read_bytes()
    write(cut, range(9), keep_bytes=0)
    assert cut.read_bytes() == whole.read_bytes()


def test_without_an_offset_complete_lines_stay_and_a_torn_one_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(2))
    path.write_bytes(path.read_bytes() + b'{"kind": "train", "env')
    write(path, range(2, 3))
    assert [line["env_steps"] for line in read_metrics(path)] == [0, 1, 2]


@pytest.mark.parametrize("shift", [1, -1])
def test_an_offset_that_the_file_does_not_have_is_refused_and_the_file_left_alone(tmp_path: Path, shift: int) -> None:
    path = tmp_path / "metrics.jsonl"
    end = write(path, range(3))[-1]
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"no line ends at {end + shift}"):
        MetricsWriter(path, keep_bytes=end + shift)
    assert path.read_bytes() == before


BAD = [
    *(b"{torn", b"3", b"\xff", b"", b"[" * 100_000, b'{"kind": "train", "env_steps": 1}'),
    *(GOOD.replace(b'"train"', kind) for kind in (b'"trbin"', b"[]")),
    *(GOOD.replace(b"episode_return", name) for name in (b"episode_seturn", b"loss_q")),
    *(GOOD.replace(b"0.5", value) for value in (b'"0.5"', b"NaN", b"1e999", b"[[1]]", b"{}")),
    *(GOOD.replace(b'"env_steps": 7', b'"env_steps": ' + value) for value in (b"null", b"true", b"[7]")),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda line: str(line[:60]))
def test_a_line_that_is_none_is_left_out_and_counted(tmp_path: Path, bad: bytes, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(GOOD + b"\n" + bad + b"\n" + GOOD + b"\n")
    assert read_metrics(path) == [json.loads(GOOD)] * 2
    assert capsys.readouterr().err == f"{path}: left out 1 damaged of 3 lines\n"


def test_reading_tolerates_a_torn_line_at_the_end(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    whole = path.read_bytes()
    for end in range(len(whole)):  # wherever the kill fell
        path.write_bytes(whole[:end])
        assert len(read_metrics(path)) == whole[:end].count(b"\n")
    assert capsys.readouterr().err == ""
    with pytest.raises(ConfigError, match="No such file"):
        read_metrics(tmp_path / "none")


def test_lines_that_are_gone_are_gone_on_without_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    offsets = write(path, range(3))
    with path.open("r+b") as file:
        file.seek(offsets[2] - 1)
        file.write(b" later lines\n")  # the end of the line at which the checkpoint was
    with closing(MetricsWriter(path, offsets[2], accept_losses=True)):
        assert [line["env_steps"] for line in read_metrics(path)] == [0, 1]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with closing(MetricsWriter(tmp_path / "metrics.jsonl")) as writer, open("/dev/full", "ab", buffering=0) as full:
        writer._file.close()
        writer._file = full
        with pytest.raises(DiskError, match=r"metrics.jsonl: cannot write \d+ bytes .No space left on device"):
            writer.write("train", **counters(1), episode_return=0.5)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write metrics"):
        MetricsWriter(tmp_path / "none" / "metrics.jsonl")

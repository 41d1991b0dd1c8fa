"""What TensorBoard and W&B are told, read back with their own packages."""

import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qttdm.common.config import ConfigError
from qttdm.common.metrics import sinks
from qttdm.common.metrics.sinks import SinksConfig, check_sinks, make_sinks, scalars, surviving

TRAIN = {"kind": "train", "env_steps": 40, "updates": 3, "episode_return": 1.5, "success": None}
EVAL = {"kind": "eval", "env_steps": 80, "updates": 9, "episode_return": 2.5, "episode_returns": [2.0, 3.0]}


def read(directory):
    events = EventAccumulator(str(directory))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_is_on_where_it_is_installed():
    assert len(make_sinks(SinksConfig(), Path("x"), {})) == 1


def test_without_tensorboard_the_default_writes_nothing(monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    check_sinks(SinksConfig())
    assert make_sinks(SinksConfig(), Path("x"), {}) == []


def test_off_imports_nothing():
    program = (
        "import sys; from pathlib import Path; from qttdm.common.metrics.sinks import *; "
        "assert make_sinks(SinksConfig(tensorboard=False), Path('x'), {}) == []; "
        "sys.exit(any(m.partition('.')[0] in ('tensorboard', 'wandb', 'torch') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_tensorboard_reads_every_number_back_at_its_environment_step(tmp_path):
    (sink,) = make_sinks(SinksConfig(tensorboard=True), tmp_path, {})
    for line in (TRAIN, EVAL, {**TRAIN, "env_steps": 120, "episode_return": 4.0}):
        sink(line)
    read_back = read(tmp_path / "tensorboard")
    assert read_back["train/episode_return"] == [(40, 1.5), (120, 4.0)]
    assert read_back["eval/episode_return"] == [(80, 2.5)]
    assert read_back["eval/updates"] == [(80, 9.0)]
    assert "train/success" not in read_back
    assert "eval/episode_returns" not in read_back


@pytest.mark.parametrize("seconds_later", [1, -3600])
def test_tensorboard_of_a_resumed_run_forgets_what_the_checkpoint_did_not_have(tmp_path, monkeypatch, seconds_later):
    """Also where the clock has been set back in between."""
    (before,) = make_sinks(SinksConfig(tensorboard=True), tmp_path, {})
    for step in (40, 80, 120, 160):
        before({**TRAIN, "env_steps": step, "episode_return": float(step)})
    now = time.time() + seconds_later
    monkeypatch.setattr(time, "time", lambda: now)
    (after,) = make_sinks(SinksConfig(tensorboard=True), tmp_path, {})
    for step in (120, 160):
        after({**TRAIN, "env_steps": step, "episode_return": -float(step)})
    assert read(tmp_path / "tensorboard")["train/episode_return"] == [(40, 40), (80, 80), (120, -120), (160, -160)]


def records(path):
    """Of an offline run's file: LevelDB's log format after a header of 7 bytes, a protocol buffer in each record."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # the rest of a block, too short for a header
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # complete, or the last part
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_keeps_every_number(tmp_path):
    program = (
        "from pathlib import Path; from qttdm.common.metrics.sinks import *; "
        "(sink,) = make_sinks(SinksConfig(tensorboard=False, wandb=True), Path('run').absolute(), {'seed': 7}); "
        f"[sink(line) for line in {[TRAIN, EVAL]!r}]"
    )
    (tmp_path / "run").mkdir()
    own = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=os.environ | own, timeout=120, check=True)
    (path,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    found = list(records(path))
    (name,) = {record.run.run_id for record in found if record.WhichOneof("record_type") == "run"}
    assert name == f"{tmp_path.name}-run"
    history = [
        {"/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["env_steps"] for row in history] == [40, 80]
    assert history[0]["train/episode_return"] == 1.5
    assert history[1]["eval/episode_return"] == 2.5


def test_a_missing_package_is_one_line_before_anything_starts(monkeypatch):
    monkeypatch.setattr(sinks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^sinks.wandb: the package is not installed; want: pip install wandb$"):
        check_sinks(SinksConfig(wandb=True))
    check_sinks(SinksConfig())


def test_a_sink_that_fails_says_so_once_and_is_left_out(capsys):
    told = []

    def sink(line):
        told.append(line)
        raise OSError("no space\nleft")

    tell = surviving("tensorboard", sink)
    tell(TRAIN)
    tell(EVAL)
    assert told == [TRAIN]
    assert capsys.readouterr().err == "sinks.tensorboard: left out from now on (no space left)\n"


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, capsys):
    (sink,) = make_sinks(SinksConfig(tensorboard=True), tmp_path, {})
    sink(TRAIN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        sink(EVAL)
        sink(TRAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert capsys.readouterr().err == "sinks.tensorboard: left out from now on ([Errno 27] File too large)\n"
    assert read(tmp_path / "tensorboard")["train/episode_return"] == [(40, 1.5)]


def test_scalars_leave_out_what_is_not_a_number():
    assert scalars(EVAL) == {"eval/env_steps": 80.0, "eval/updates": 9.0, "eval/episode_return": 2.5}

"""Flips and cuts anywhere in a run's files: what loads is what was written, and the rest is refused in one line.

QTTDM_DAMAGE=1200 does so many instead of the few that fit into every test run.
"""

import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from qttdm.common.checkpoint import Checkpoint, CheckpointStore
from qttdm.common.config import ConfigError, dump_config, load_config
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.runs.local import new_run
from qttdm.deploy.runs.saved_task import saved_task
from qttdm.learner.saved import check_state
from qttdm.replay.feed import EpisodesLostError
from qttdm.replay.shard import ReplayShard
from tests.deploy.runs.test_local import train
from tests.fakes import tiny_config

DAMAGES = int(os.environ.get("QTTDM_DAMAGE", "80"))
MOST_FLIPS = 8
KINDS = ("checkpoints", "replay", "config.yaml", "metrics.jsonl", "task.json")


class Run:
    """A finished run, and what its files say while they are whole."""

    def __init__(self, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qttdm.replay.log.FILE_BYTES", 1000)
            run = new_run(tiny_config("training.checkpoint_every=80", "sinks.tensorboard=false"), RunDir.create(folder))
            train(run)
            run.close()
        self.dir, (self.shard,) = run.run_dir, run.replay.shards
        self.store = CheckpointStore(self.dir.checkpoints_dir)
        self.saved = {path.name: CheckpointStore(path.parent).load_latest() for path in self._each_alone(folder)}
        self.newest = self.store.load_latest(check=check_state)
        self.lines = read_metrics(self.dir.metrics_path)
        self.config = load_config(RunConfig, self.dir.config_path)
        self.task = saved_task(self.dir, self.config)
        self.records = [record for _, record in self._opened(self.dir.path / "replay/shard-0")._log.read(0)]

    def check(self, kind: str, changed: Path, scratch: Path) -> str:
        """What comes of loading the damaged file: "loaded" or "refused". AssertionError if it loads wrong."""
        return getattr(self, f"_{kind.partition('.')[0]}")(changed, scratch)

    def _checkpoints(self, changed: Path, scratch: Path) -> str:
        damaged = changed.relative_to(self.dir.checkpoints_dir).parts[0]
        loaded = self.store.load_latest(check=check_state)
        assert same(loaded, self.saved[loaded.folder.name])
        if damaged != self.newest.folder.name:
            assert loaded.folder == self.newest.folder
        assert loaded.folder.name != damaged or same(loaded, self.newest)
        assert (loaded.folder == self.newest.folder) == (loaded.skipped == [])
        return "refused" if loaded.skipped else "loaded"

    def _replay(self, changed: Path, scratch: Path) -> str:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(changed.parent, scratch)  # opening it begins a file
        try:
            shard = self._opened(scratch)
        except RuntimeError as error:  # its lock is something else now
            return one_line(error)
        try:
            shard.load_state(self.newest.blobs["replay-0"])
        except EpisodesLostError as error:
            kept = [record for _, record in shard._log.read(0)]
            assert [record for record in self.records if record in kept] == kept != self.records
            assert shard.episodes_since(0).totals.episodes == len(kept)
            return one_line(error)
        finally:
            shard.close()
        assert [record for _, record in shard._log.read(0)] == self.records
        return "loaded"

    def _config(self, changed: Path, scratch: Path) -> str:
        try:
            config = load_config(RunConfig, changed)
        except ConfigError as error:
            return one_line(error)
        scratch.with_suffix(".yaml").write_text(dump_config(config))  # another digit is another setting: not noticed
        assert load_config(RunConfig, scratch.with_suffix(".yaml")) == config
        return "loaded"

    def _metrics(self, changed: Path, scratch: Path) -> str:
        lines = read_metrics(changed)
        others = [line for line in lines if line not in self.lines]
        assert len(others) <= MOST_FLIPS  # a digit or the name of a loss that is another, which is not noticed
        assert all(line.keys() >= {"kind", "env_steps"} for line in others)
        return "loaded" if len(lines) == len(self.lines) else "refused"

    def _task(self, changed: Path, scratch: Path) -> str:
        try:
            task = saved_task(self.dir, self.config)
        except ConfigError as error:
            return one_line(error)
        return "refused" if task is None else "loaded"

    def _opened(self, directory: Path) -> ReplayShard:
        return ReplayShard(directory, self.shard.config, self.shard._replay.data, 0)

    def _each_alone(self, folder: Path) -> list[Path]:
        copies = folder.with_name("copies")
        for path in (folder / "checkpoints").iterdir():
            shutil.copytree(path, copies / path.name / path.name)
        return [copies / path.name / path.name for path in copies.iterdir()]


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Equal bit for bit, wherever they are."""
    tensors = one.tensors.keys() == other.tensors.keys() and all(
        torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items()
    )
    return tensors and (one.step, one.meta, one.blobs) == (other.step, other.meta, other.blobs)


def one_line(error: Exception) -> str:
    assert str(error)
    assert "\n" not in str(error)
    return "refused"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return Run(tmp_path_factory.mktemp("damage") / "run")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_damaged_is_loaded_as_if_it_were_whole(run, kind, tmp_path, capsys):
    rng, outcomes = random.Random(kind), []
    top = run.dir.path / kind
    files = [path for path in sorted(top.rglob("*")) if path.is_file()] if top.is_dir() else [top]
    for _ in range(DAMAGES // len(KINDS)):
        path = rng.choice(files)
        whole = path.read_bytes()
        changed = bytearray(whole)
        if rng.random() < 0.3:
            del changed[rng.randrange(len(whole) + 1) :]
        for _ in range(rng.choice([1, 1, 1, 2, MOST_FLIPS]) if changed == whole and whole else 0):
            changed[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            outcomes.append(run.check(kind, path, tmp_path / "copy"))
        finally:
            path.write_bytes(whole)
    assert set(outcomes) <= {"loaded", "refused"}
    assert "refused" in outcomes

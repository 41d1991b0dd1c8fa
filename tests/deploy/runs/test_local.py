"""The paper's alternation, and runs that stop anywhere and go on as if they had not."""

import io
import itertools
import os
import resource
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from rich.console import Console

from qttdm.common.checkpoint import CheckpointError
from qttdm.common.config import ConfigError, dump_config, load_config
from qttdm.common.disk import DiskError
from qttdm.common.episode import EnvironmentFailure
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig, load_run_config, preset_path
from qttdm.deploy.runs.local import new_run, open_run, resume_run, silent
from qttdm.deploy.runs.trained import TrainedAgent
from qttdm.deploy.screens.progress import Progress
from qttdm.learner.learner import NonFiniteLossError
from qttdm.replay.codec import decode
from tests.fakes import Point, tiny_config

AGENTS = ("qt-tdm", "tdm", "qt", "mlp", "iql", "twm")
TIMES = ("wall_seconds", "decisions_per_second", "updates_per_second", "eval_seconds")


class Output:
    """What the display printed."""

    def __init__(self):
        self.file = io.StringIO()
        self.progress = Progress(320, console=Console(file=self.file))

    @property
    def text(self):
        return self.file.getvalue()


OPEN = {}  # the newest run in each directory


def start(tmp_path, *overrides, name="run", telemetry_of=silent, **more):
    run = new_run(tiny_config(*overrides, **more), RunDir.create(tmp_path / name), telemetry_of)
    OPEN[run.run_dir.path] = run
    return run


def reopen(run, how=open_run):
    """Go on as the next process would: the last one has let go of the replay."""
    OPEN.pop(run.run_dir.path).close()
    again = OPEN[run.run_dir.path] = how(run.run_dir)
    return again


def copied(run, folder):
    """The files of a run, to be changed."""
    return RunDir.open(shutil.copytree(run.run_dir.path, folder / "copy"))


def train(run, should_stop=lambda: False):
    """Train to the end or until stopped; returns what was printed."""
    output = Output()
    run.train(output.progress, should_stop)
    return output.text


def lines(run, *kinds):
    """The metrics of these kinds, without what the clock decides."""
    return [
        {key: value for key, value in line.items() if key not in TIMES and not key.startswith("share_")}
        for line in read_metrics(run.run_dir.metrics_path)
        if line["kind"] in kinds
    ]


def spied_permits(run):
    """The permits that its episodes are collected by, as they come."""
    permits, collect = [], run.loop._collect_here
    run.loop._collect_here = lambda permit: (permits.append(permit), collect(permit))
    return permits


def stored(run):
    """The episodes in replay."""
    return [decode(record) for _, record in run.replay.shards[0]._log.read(0)]


def assert_same_state(run, other):
    """Bit for bit: all that learns, all that is remembered, and what would be drawn next."""
    mine, theirs = run.learner.state(), other.learner.state()
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
    for a, b in zip(stored(run), stored(other), strict=True):
        for name, value in vars(a).items():
            assert np.array_equal(value, getattr(b, name)), name
    mine, theirs = run.replay.next(), other.replay.next()
    for name, value in mine.items():
        assert np.array_equal(value, theirs[name]), name
    assert replace(run.loop.counters, wall_seconds=0.0) == replace(other.loop.counters, wall_seconds=0.0)
    assert run.loop.pace.save() == other.loop.pace.save()


def scales(run):
    """Mean and standard deviation in the checkpoint, the target network's apart."""
    state = run.learner.state()
    places = "tdm/network/state_embedding.scale", "qt/network/scale"
    return [state[f"{place}.{name}"] for place in places for name in ("mean", "std")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, one per agent."""
    runs = {}
    for agent in AGENTS:
        runs[agent] = start(tmp_path_factory.mktemp("whole"), "training.eval_every=240", agent=agent)
        train(runs[agent])
    return runs


class TestAlternation:
    def test_one_episode_then_as_many_updates_as_decisions(self, tmp_path):
        run = start(tmp_path, "training.eval_every=160", "training.log_every=4")
        train(run)
        story = [(line["kind"], line["decisions"], line["updates"]) for line in lines(run, "train", "update", "eval")]
        assert story == [
            ("train", 10, 0),  # the seed episode: no updates
            ("train", 20, 0),
            ("update", 20, 4),
            ("update", 20, 8),
            ("update", 20, 10),
            ("eval", 20, 10),
            ("train", 30, 10),
            ("update", 30, 14),
            ("update", 30, 18),
            ("update", 30, 20),
            ("train", 40, 20),
            ("update", 40, 24),
            ("update", 40, 28),
            ("update", 40, 30),
            ("eval", 40, 30),
        ]
        assert [line["env_steps"] for line in lines(run, "train")] == [80, 160, 240, 320]
        assert [len(line["episode_returns"]) for line in lines(run, "eval")] == [2, 2]

    @pytest.mark.parametrize(("ratio", "updates"), [("0.5", [0, 5, 10, 15]), ("2.0", [0, 20, 40, 60])])
    def test_the_update_ratio_is_exact(self, tmp_path, ratio, updates):
        run = start(tmp_path, f"training.update_ratio={ratio}", agent="qt")
        train(run)
        after = {line["decisions"]: line["updates"] for line in lines(run, "train", "update")}
        assert list(after.values()) == updates
        assert run.learner.updates == updates[-1]

    def test_observations_are_scaled_by_those_that_were_drawn_so_far(self, tmp_path):
        options = ["qt-tdm.tdm.normalise=true", "qt-tdm.qt.normalise=true", "training.log_every=1"]
        run = start(tmp_path, *options, name="whole")
        train(run)
        seen = np.concatenate([episode.observations[:-1] for episode in stored(run)])
        assert scales(run)[0].numpy() == pytest.approx(seen.mean(axis=0), abs=0.3 * float(seen.std(axis=0).max()))
        assert scales(run)[1].numpy() == pytest.approx(seen.std(axis=0), rel=0.3, abs=0.02)
        part = start(tmp_path, *options, name="part")
        train(part, StopAt(lambda c: c.updates == 13).of(part))
        early = scales(part)
        part = reopen(part)
        train(part)
        assert not any(map(torch.equal, early, scales(part)))
        assert_same_state(part, run)

    def test_seed_episodes_are_random_and_come_before_any_update(self, tmp_path):
        # The third episode begins before 25, and is random too.
        run = start(tmp_path, "training={seed_decisions: 25, random_actions: held}")
        permits = spied_permits(run)
        train(run)
        trained = lines(run, "train")
        assert [permit.random for permit in permits] == [True, True, True, False]
        assert [line["updates"] for line in trained] == [0, 0, 0, 0]
        assert run.learner.updates == 10
        episodes = stored(run)
        assert [e.oldest_weights for e in episodes] == [e.newest_weights for e in episodes] == [0, 0, 0, 0]
        held = [(e.actions[1:] == e.actions[:-1]).all(axis=1).mean() for e in episodes]
        assert min(held[:3]) > 0.2 > held[3]

    def test_episodes_carry_the_weights_that_acted(self, tmp_path):
        run = start(tmp_path)
        train(run)
        assert [(e.oldest_weights, e.newest_weights) for e in stored(run)] == [(n, n) for n in (0, 0, 10, 20)]

    def test_episodes_that_end_early_are_counted_as_they_are(self, tmp_path):
        run = start(tmp_path, task="gym/FakePointEnds-v0")  # ends at simulator step 36: decision 5, after half of it
        train(run)
        trained = lines(run, "train")
        assert {line["episode_length"] for line in trained} == {5}
        assert [line["env_steps"] for line in trained][:3] == [36, 72, 108]
        assert all(e.terminated for e in stored(run))
        assert lines(run, "update")[0]["loss_continuation"] > 0

    def test_an_evaluation_made_early_is_not_the_one_that_is_due(self, tmp_path):
        """Time runs out while updates are due, `finish` evaluates what there is; what is due comes after them."""
        run = start(tmp_path, "training.eval_every=160")
        run.train(Output().progress, time_is_up=lambda: run.learner.updates == 22)  # one more
        assert run.loop.pace.backlog >= 1
        run.finish(Output().progress)
        again = reopen(run)
        train(again)
        whole = start(tmp_path / "whole", "training.eval_every=160")
        train(whole)
        due = [(line["env_steps"], line["updates"], line["episode_return"]) for line in lines(whole, "eval")]
        got = [(line["env_steps"], line["updates"], line["episode_return"]) for line in lines(again, "eval")]
        assert [updates for _, updates, _ in got] == [10, 23, 30]
        assert [got[0], got[2]] == due

    def test_a_stop_during_the_last_evaluation_is_obeyed_and_it_is_made_later(self, tmp_path):
        run = start(tmp_path)
        stop = StopAt(lambda c: run.loop.collected and c.backlog < 1, calls=4)
        assert "stopped early" in train(run, stop.of(run))
        assert lines(run, "eval") == []
        again = reopen(run)
        train(again)
        assert [line["updates"] for line in lines(again, "eval")] == [30]

    def test_learning_rates_are_reported(self, tmp_path):
        run = start(tmp_path, "qt-tdm.learner.tdm.schedule=linear")
        train(run)
        reported = lines(run, "update")
        assert reported[0]["lr_tdm"] > reported[-1]["lr_tdm"]
        assert {line["lr_qt"] for line in reported} == {run.config.settings.learner.qt.learning_rate}

    def test_checkpoints_are_written_when_due(self, tmp_path):
        run = start(tmp_path, "training.checkpoint_every=160", "training.keep_checkpoints=2")
        train(run)
        names = sorted(path.name for path in run.run_dir.checkpoints_dir.iterdir())
        assert names == ["00000002-step-320", "00000003-step-320"]  # due, and at the end; the one at 160 has gone


class TestAgents:
    @pytest.mark.parametrize(
        ("agent", "there", "absent"),
        [
            ("qt-tdm", {"loss_state", "loss_reward", "loss_q", "grad_norm_tdm", "grad_norm_qt"}, set()),
            ("tdm", {"loss_state", "loss_reward", "grad_norm_tdm"}, {"loss_q", "grad_norm_qt"}),
            ("qt", {"loss_q", "grad_norm_qt", "q_mean"}, {"loss_state", "grad_norm_tdm"}),
            ("mlp", {"loss_mlp_state", "loss_mlp_reward", "grad_norm_mlp", "lr_mlp"}, {"loss_q", "loss_state"}),
            ("iql", {"loss_value", "loss_critic", "loss_policy", "lr_iql"}, {"loss_q", "loss_state"}),
        ],
    )
    def test_each_trains_its_own_parts(self, whole, agent, there, absent):
        keys = lines(whole[agent], "update")[-1].keys()
        assert there <= keys
        assert not absent & keys

    def test_qt_collects_with_falling_epsilon(self, tmp_path):
        run = start(tmp_path, agent="qt")
        permits = spied_permits(run)
        train(run)
        assert [permit.exploration for permit in permits] == pytest.approx([1.0, 1 - 0.99 / 1.2, 0.01, 0.01])


@dataclass
class Now:
    """Where a run is."""

    episodes: int
    updates: int
    backlog: float


class StopAt:
    """True from the moment that a condition on where a run is has held `calls` times."""

    def __init__(self, condition, calls=1):
        self.condition, self.left = condition, calls

    def of(self, run):
        self.run = run
        return self

    def __call__(self):
        loop = self.run.loop
        if self.left > 0 and self.condition(Now(loop.counters.episodes, loop.learner.updates, loop.pace.backlog)):
            self.left -= 1
        return self.left == 0


STOPS = {
    "in the seed episode": lambda: StopAt(lambda c: c.episodes == 0, calls=5),
    "between episodes": lambda: StopAt(lambda c: c.updates == 10 and c.backlog < 1),
    "in an episode": lambda: StopAt(lambda c: c.episodes == 2 and c.updates == 10, calls=8),
    "in an evaluation": lambda: StopAt(lambda c: c.updates == 20 and c.backlog < 1, calls=4),
    "in the updates": lambda: StopAt(lambda c: c.updates == 13),
}


class Breaking:
    """An environment's `step` that fails at some of its calls, numbered over all environments of a run."""

    def __init__(self, monkeypatch, *calls):
        self.number, step = 0, Point.step

        def maybe_fail(point, action):
            self.number += 1
            if self.number in calls:
                raise RuntimeError("unstable")
            return step(point, action)

        monkeypatch.setattr(Point, "step", maybe_fail)


class TestFailures:
    def test_an_environment_that_fails_costs_its_episode(self, tmp_path, monkeypatch):
        other = start(tmp_path, name="other")
        train(other)
        run = start(tmp_path)
        Breaking(monkeypatch, 200)  # simulator steps, 80 an episode: in the third one
        train(run)
        assert (run.loop.counters.episodes, run.loop.counters.environment_failures) == (4, 1)
        ours, others = ([line["episode_return"] for line in lines(r, "train")] for r in (run, other))
        assert ours[:2] == others[:2]
        assert ours[2:] != others[2:]
        assert ours[2] == pytest.approx(others[3], rel=0.9)  # the next number's start, the same weights
        assert "actor 0 replaced its environments" in run.run_dir.events_path.read_text()
        assert [line["updates"] for line in lines(run, "eval")] == [30]

    def test_one_that_fails_again_and_again_ends_the_run_saved(self, tmp_path, monkeypatch):
        run = start(tmp_path)
        Breaking(monkeypatch, 170, 180, 190)
        with pytest.raises(EnvironmentFailure, match=r"unstable; that was 3 times in a row .*; the run is saved"):
            train(run)
        resumed = reopen(run)
        assert (resumed.loop.counters.episodes, resumed.loop.counters.environment_failures) == (2, 3)
        train(resumed)
        assert len(lines(resumed, "train")) == 4

    def test_one_that_cannot_be_made_again_ends_the_run_saved(self, tmp_path, monkeypatch):
        def no_licence(*_, **__):
            raise RuntimeError("no licence left")

        run = start(tmp_path)
        Breaking(monkeypatch, 170)
        monkeypatch.setattr(Point, "__init__", no_licence)
        monkeypatch.setattr(Point, "close", no_licence)
        with pytest.raises(EnvironmentFailure, match="no licence left; that was 3 times in a row"):
            train(run)
        monkeypatch.undo()
        assert reopen(run).loop.counters.episodes == 2

    def test_an_evaluation_is_tried_from_other_start_states(self, tmp_path, monkeypatch):
        other = start(tmp_path, name="other")
        train(other)
        run = start(tmp_path)
        Breaking(monkeypatch, 330)  # in the last evaluation, after four episodes
        train(run)
        ours, others = lines(run, "eval"), lines(other, "eval")
        assert len(ours) == len(others) == 1
        assert ours[0]["episode_returns"] != others[0]["episode_returns"]
        assert run.learner.weights().checksum == other.learner.weights().checksum

    def test_an_evaluation_that_fails_three_times_is_given_up(self, tmp_path, monkeypatch):
        run = start(tmp_path)
        Breaking(monkeypatch, 330, 340, 350)
        train(run)
        assert lines(run, "eval") == []
        assert run.loop.finished
        assert "gives up the evaluation after 30 updates" in run.run_dir.events_path.read_text()


class TestResume:
    @pytest.mark.parametrize("agent", AGENTS)
    @pytest.mark.parametrize("places", [[*STOPS][:-1], ["in the updates"]], ids=["elsewhere", "in the updates"])
    def test_stopped_and_resumed_equals_uninterrupted(self, tmp_path, whole, agent, places):
        torch.manual_seed(1)  # a run owes nothing to what was before it
        run = start(tmp_path, "training.eval_every=240", agent=agent)
        for where in places:
            assert "stopped early" in train(run, STOPS[where]().of(run))
            assert run.loop.counters.env_steps < 320
            torch.manual_seed(123)  # another process would start with other random numbers
            run = reopen(run)
        train(run)
        uninterrupted = reopen(whole[agent])  # as it was saved: comparing draws a batch
        assert_same_state(reopen(run), uninterrupted)
        assert lines(run, "train", "eval") == lines(uninterrupted, "train", "eval")
        if "in the updates" not in places:  # there the averages are split in two
            assert lines(run, "update") == lines(uninterrupted, "update")

    @pytest.mark.parametrize("agent", AGENTS)
    def test_another_seed_is_another_run(self, tmp_path, whole, agent):
        other = start(tmp_path, agent=agent, seed=1)
        train(other)
        returns = [{line["episode_return"] for line in lines(run, "train")} for run in (whole[agent], other)]
        assert not returns[0] & returns[1]

    def test_two_episodes_and_two_more_are_four(self, tmp_path, whole):
        """The state as it is in memory, not as loaded, for what loading might hide."""
        run = start(tmp_path, "training.eval_every=240")
        stop = STOPS["between episodes"]().of(run)
        train(run, stop)
        assert run.loop.counters.episodes == 2
        resumed = reopen(run)
        train(resumed)
        again = start(tmp_path, "training.eval_every=240", name="again")
        train(again)
        assert resumed.loop.counters.episodes == 4
        mine, theirs = resumed.learner.state(), again.learner.state()
        assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []
        assert resumed.learner.weights().checksum == again.learner.weights().checksum

    def test_finishing_what_is_finished_changes_nothing(self, tmp_path):
        run = start(tmp_path)
        train(run)
        output = Output()
        run.finish(output.progress)
        assert "no video: " in output.text  # a toy draws nothing
        assert [line["updates"] for line in lines(run, "eval")] == [30]
        before = run.run_dir.metrics_path.read_bytes()
        reopen(run).finish(Output().progress)
        assert run.run_dir.metrics_path.read_bytes() == before

    def test_a_run_killed_before_its_first_checkpoint_begins_again(self, tmp_path, whole, capsys):
        run = start(tmp_path)
        run.run_dir.metrics_path.write_text('{"kind": "train", "env_steps": 9999}\n')
        run.replay.insert(stored(reopen(whole["qt-tdm"]))[0])
        again = reopen(run, resume_run)
        assert "starting from the beginning" in capsys.readouterr().out
        train(again)
        assert lines(again, "train") == lines(whole["qt-tdm"], "train")

    def test_even_a_chain_of_sessions_with_no_time_at_all_gets_on(self, tmp_path, whole):
        """Time ends a session between episodes and updates, never in them."""
        run = start(tmp_path, "training.eval_every=240")
        for _ in range(100):
            calls = iter([False, True])
            run.train(Output().progress, time_is_up=lambda calls=calls: next(calls, True))
            run = reopen(run)
            if run.loop.finished:
                break
        assert_same_state(reopen(run), reopen(whole["qt-tdm"]))


@contextmanager
def no_longer(folder, most):
    """Let no file hold more than so many bytes; None: let nothing be made in the folders."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folders, is_root = [path for path in folder.rglob("*") if path.is_dir()], os.geteuid() == 0
    if most is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    else:
        for path in folders:
            path.chmod(0o555)
        if is_root:  # whom a mode does not stop
            os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path in folders:
            path.chmod(0o755)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestDamage:
    def test_a_damaged_newest_checkpoint_falls_back_and_says_so(self, tmp_path, capsys):
        run = start(tmp_path, "training.checkpoint_every=160")
        train(run)
        for newest in sorted(run.run_dir.checkpoints_dir.iterdir())[1:]:  # all but the one at 160
            file = newest / "tensors.safetensors"
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        resumed = reopen(run)
        assert resumed.loop.counters.env_steps == 160
        printed = capsys.readouterr().out
        assert "skipped checkpoint 00000003-step-320: tensors.safetensors does not match its checksum" in printed
        train(resumed)
        whole = start(tmp_path, "training.checkpoint_every=160", name="whole")
        train(whole)
        assert lines(resumed, "train", "update") == lines(whole, "train", "update")

    def test_nothing_but_damage_is_one_line(self, tmp_path, whole):
        run_dir = copied(whole["qt-tdm"], tmp_path)
        for folder in run_dir.checkpoints_dir.iterdir():
            (folder / "SHA256SUMS").write_text("")
        with pytest.raises(ConfigError, match="no checkpoint can be loaded"):
            open_run(run_dir)

    def test_a_replay_that_is_not_whole_is_named_and_gone_on_without_if_asked_for(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("qttdm.replay.log.FILE_BYTES", 1000)  # an episode in each file
        run = start(tmp_path, "training.env_steps=640")
        train(run, StopAt(lambda c: c.updates == 30 and c.backlog < 1).of(run))
        assert run.loop.counters.decisions == 40
        (tmp_path / "run/replay/shard-0" / f"{2:020d}.log").unlink()
        with pytest.raises(ConfigError) as error:
            reopen(run)
        assert str(error.value) == (
            f"{tmp_path}/run: its checkpoint counts on 40 decisions in replay, its shards have had 30 (shard 0: number "
            f"2); bring back the replay/ folder that belongs to it, or go on with what is left: qttdm train --resume "
            f"{tmp_path}/run --accept-losses"
        )
        OPEN[run.run_dir.path] = run
        resumed = reopen(run, partial(resume_run, accept_losses=True))
        assert "its shards have had 30 (shard 0: number 2); goes on with those" in capsys.readouterr().out
        train(resumed)
        counters = resumed.loop.counters
        assert (counters.episodes, counters.decisions, counters.env_steps) == (8, 80, 640)
        assert len(stored(resumed)) == 8
        assert resumed.learner.updates == 30 + 50  # one for each decision collected since
        assert_same_state(reopen(resumed), resumed)  # accepted once and for all

    def test_an_index_that_is_gone_costs_nothing(self, tmp_path, whole):
        run = reopen(whole["qt-tdm"])
        run_dir = copied(run, tmp_path)
        (run_dir.path / "replay/shard-0/index").unlink()
        assert_same_state(open_run(run_dir), run)

    @pytest.mark.parametrize(
        ("most", "refused"),
        [
            (1, r"replay/shard-0/\d+\.log: cannot write [\d,]+ bytes .File too large"),
            (9000, r"cannot save the checkpoint of step 240 .*safetensors: cannot write [\d,]+ bytes .File too large"),
            (None, r"cannot write [\d,]+ bytes .Permission denied"),
        ],
        ids=["no room for an episode", "nor for a checkpoint", "read-only"],
    )
    def test_a_disk_that_refuses_ends_the_run_in_one_line_and_it_goes_on_when_that_is_mended(
        self, tmp_path, whole, most, refused
    ):
        """A limit on what a file may hold is what a disk without room is to a program, and needs no privilege."""
        run = start(tmp_path, "training.eval_every=240", "training.checkpoint_every=80")
        train(run, StopAt(lambda c: c.episodes == 2 and c.backlog < 1).of(run))
        run = reopen(run)
        with no_longer(run.run_dir.path, most), pytest.raises((DiskError, CheckpointError), match=refused) as error:
            train(run)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.glob("run/**/*tmp*"))  # nothing half written takes room
        resumed = reopen(run)
        train(resumed)
        assert lines(resumed, "train", "eval") == lines(whole["qt-tdm"], "train", "eval")
        assert resumed.learner.weights().checksum == whole["qt-tdm"].learner.weights().checksum

    def test_a_clock_that_is_set_back_changes_nothing(self, tmp_path, whole, monkeypatch):
        now = itertools.count(2_000_000_000, -3600)
        monkeypatch.setattr(time, "time", lambda: float(next(now)))
        run = start(tmp_path, "training.eval_every=240", "training.checkpoint_every=80")
        train(run, StopAt(lambda c: c.episodes == 2).of(run))
        resumed = reopen(run)
        train(resumed)
        assert lines(resumed, "train", "eval") == lines(whole["qt-tdm"], "train", "eval")
        assert resumed.learner.weights().checksum == whole["qt-tdm"].learner.weights().checksum

    @pytest.mark.parametrize("change", ["qt-tdm.tdm.embed_dim=32", "qt-tdm.discount=0.5", "replay.capacity=999"])
    def test_a_checkpoint_that_does_not_fit_is_one_line(self, tmp_path, whole, change):
        run_dir = copied(whole["qt-tdm"], tmp_path)
        config = load_config(RunConfig, run_dir.config_path, overrides=[change])
        run_dir.config_path.write_text(dump_config(config))
        with pytest.raises(ConfigError, match="its checkpoint does not fit its settings") as error:
            open_run(run_dir)
        assert "\n" not in str(error.value)

    def test_a_replay_beyond_memory_is_one_line_and_leaves_no_directory(self, tmp_path):
        with pytest.raises(ConfigError, match=r"replay\.capacity=1000000000000000 does not fit into memory"):
            start(tmp_path, "replay.capacity=1000000000000000")
        assert not (tmp_path / "run").exists()

    def test_no_checkpoint_yet_is_one_line(self, tmp_path):
        run = start(tmp_path)
        with pytest.raises(ConfigError, match="there is no checkpoint in it yet"):
            reopen(run)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
class TestNonFiniteLoss:
    """Rewards of 1e38 are finite, and their squares are not."""

    POISON = "env={action_repeat: 1, episode_steps: 10}"

    def poisoned(self, tmp_path, *overrides):
        return start(tmp_path, self.POISON, "training.env_steps=60", *overrides, task="gym/FakePointPoisoned-v0")

    def test_stops_the_run_with_which_loss_where_and_what_is_good(self, tmp_path):
        run = self.poisoned(tmp_path, "training.checkpoint_every=10", "training.keep_checkpoints=9")
        with pytest.raises(NonFiniteLossError, match=r"^loss_reward.* not finite at update 1; ") as error:
            train(run)
        last = run.run_dir.checkpoints_dir / "00000001-step-10"
        assert str(error.value).endswith(f"the last good checkpoint is {last}")
        assert sorted(run.run_dir.checkpoints_dir.iterdir()) == [last]  # the ruined weights are not saved
        loaded = reopen(run)
        assert all(torch.isfinite(p).all() for p in loaded.learner.networks.parameters())

    def test_says_when_there_is_no_checkpoint(self, tmp_path):
        with pytest.raises(NonFiniteLossError, match="there was no checkpoint yet"):
            train(self.poisoned(tmp_path))


class TestEvaluate:
    def test_evaluations_do_not_change_what_is_learned(self, tmp_path):
        often = start(tmp_path, "training.eval_every=80", name="often")
        train(often)
        never = start(tmp_path, name="never")
        train(never)
        assert [len(lines(run, "eval")) for run in (often, never)] == [4, 1]
        assert often.learner.weights().checksum == never.learner.weights().checksum

    def test_looking_at_a_run_does_not_touch_its_files(self, tmp_path):
        """It may still be training: metrics after its last checkpoint are its own."""
        run = start(tmp_path)
        stop = STOPS["between episodes"]().of(run)
        train(run, stop)
        with run.run_dir.metrics_path.open("a") as file:
            file.write('{"kind": "train", "env_steps": 9999}\n')
        before = run.run_dir.metrics_path.read_bytes()
        TrainedAgent(run.run_dir.path).evaluate(1)
        assert run.run_dir.metrics_path.read_bytes() == before


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"tdm\.window=11"):
        start(tmp_path, "qt-tdm.tdm.window=11")


class TestSinks:
    def test_tensorboard_has_what_metrics_jsonl_has(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run = start(tmp_path, "training.eval_every=160")
        train(run)
        events = EventAccumulator(str(run.run_dir.path / "tensorboard"))
        events.Reload()
        for kind in ("train", "eval"):
            told = [(e.step, e.value) for e in events.Scalars(f"{kind}/episode_return")]
            written = [(line["env_steps"], line["episode_return"]) for line in lines(run, kind)]
            assert np.array(told) == pytest.approx(np.array(written))
            assert told

    def test_off_means_no_files(self, tmp_path):
        run = start(tmp_path, "sinks.tensorboard=false")
        train(run)
        assert not list(run.run_dir.path.glob("tensorboard*"))


def test_a_lost_life_ends_what_is_collected_and_not_what_is_evaluated(tmp_path):
    """By the preset for Atari; Breakout's first ball is soon lost, and FIRE alone does not save it."""
    config = load_run_config(preset_path("twm-atari"), ["device=cpu"], task="atari/Breakout")
    assert config.env.life_loss_ends
    assert not load_run_config(preset_path("twm-atari"), task="minatar/breakout").env.life_loss_ends
    run = start(
        tmp_path,
        "env={action_repeat: 1, episode_steps: 2000, life_loss_ends: true}",
        task="atari/Breakout",
        agent="twm",
    )
    (collects,), evaluates = run.collector.envs, run.evaluator.settings.make_env()
    for env, lives in ((collects, 4), (evaluates, 0)):
        env.reset(seed=0)
        over = False
        while not over:
            *_, over, _, info = env.step(1)
        assert info["lives"] == lives

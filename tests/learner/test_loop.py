"""The learning loop with a real learner and real shards, in one thread: others act between its steps."""

from __future__ import annotations

import itertools
import re
import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

import qttdm.learner.loop
from qttdm.common.batch import Batch
from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.config import ConfigError
from qttdm.common.contracts import vector_data
from qttdm.common.episode import EnvironmentFailure, Episode
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import GENERATION, Weights, updates_of, version_of
from qttdm.deploy.runs.build import make_learner
from qttdm.learner.loop import LearningLoop
from qttdm.learner.permits import Permit
from qttdm.learner.schedule import TrainingConfig
from qttdm.replay.buffer import ReplayConfig
from qttdm.replay.client import merge, shard_of
from qttdm.replay.codec import encode
from qttdm.replay.feed import EpisodePage
from qttdm.replay.limiter import Pace, PaceConfig
from qttdm.replay.shard import ReplayShard, ShardConfig
from tests.fakes import point_env, tiny_config

LENGTH = 5  # decisions of an episode; of 2 simulator steps each
SEED_DECISIONS = 10
MAX_BACKLOG = 12.0
CONFIG = tiny_config("tdm.planner.horizon=1", "tdm.tdm={window: 3, embed_dim: 8}", agent="tdm")


class Killed(BaseException):
    """What a kill is here: nothing in the loop gets a chance to clean up."""


class Shards:
    """Real shards, reached without Ray."""

    def __init__(self, directory: Path, shards: int, capacity: int = 1000) -> None:
        config = ShardConfig(replay=ReplayConfig(capacity=capacity))
        self.shards = [
            ReplayShard(
                directory / f"shard-{i}",
                config,
                vector_data(3, 2, CONFIG.settings.tdm.window, CONFIG.settings.discount),
                seed=i,
            )
            for i in range(shards)
        ]
        self.refusals: list[str] = []  # what the next questions end with instead of an answer
        self.waits = 0  # for an answer
        self.synced = 0  # decisions stored when the disks were last flushed

    def next(self) -> Batch:
        self.waits += 1
        self._maybe_refuse()
        return merge([shard.sample(4) for shard in self.shards if shard.decisions])

    def episodes_since(self, cursors: list[int]) -> list[EpisodePage]:
        self.waits += 1
        self._maybe_refuse()
        return [shard.episodes_since(cursor) for shard, cursor in zip(self.shards, cursors, strict=True)]

    def save(self) -> dict[str, bytes]:
        self.waits += 1
        self._maybe_refuse()
        self.synced = self.decisions
        return {f"replay-{i}": shard.save_state() for i, shard in enumerate(self.shards)}

    def load(self, blobs: dict[str, bytes]) -> None:
        """Others have collected since."""

    def insert(self, episode: Episode) -> None:
        self.shards[shard_of(episode.actor, episode.number, len(self.shards))].insert(encode(episode))

    @property
    def decisions(self) -> int:
        """Ever inserted."""
        return sum(shard.episodes_since(0).totals.decisions for shard in self.shards)

    def close(self) -> None:
        for shard in self.shards:
            shard.close()

    def _maybe_refuse(self) -> None:
        if self.refusals:
            raise TimeoutError(self.refusals.pop())


@dataclass
class Desk:
    """Evaluates when asked for results, if it is open; the returns name the weights they are of."""

    open: bool = True
    newest_first: bool = False
    submitted: list[tuple[int, Weights]] = field(default_factory=list)
    waiting: list[tuple[int, Weights]] = field(default_factory=list)

    def submit(self, key: int, weights: Weights) -> None:
        self.submitted.append((key, weights))
        self.waiting.append((key, weights))

    def results(self) -> list[tuple[int, list[float], float | None, float]]:
        if not self.open:
            return []
        done, self.waiting = self.waiting[:: -1 if self.newest_first else 1], []
        return [(key, [float(w.values.sum()), float(updates_of(w.version))], None, 0.1) for key, w in done]


@dataclass
class Seed:
    """One seed of a run: what outlives its learner's process, and how to start that."""

    directory: Path
    shards: int = 2
    actors: int = 2
    ratio: float = 1.0
    training: dict[str, int] = field(default_factory=dict)
    timeout_seconds: float = 60.0
    capacity: int = 1000
    published: list[Weights] = field(default_factory=list)
    generation: int = 0

    def __post_init__(self) -> None:
        self.replay = Shards(self.directory / "replay", self.shards, self.capacity)
        self.run_dir = RunDir(self.directory)
        self.desk = Desk()
        self.numbers = [0] * self.actors  # of each actor's next episode
        self.process = "first"
        self.pay = 1.0

    def loop(
        self, shards: int | None = None, telemetry: Telemetry | None = None, accept_losses: bool = False
    ) -> LearningLoop:
        """A learner's process starts."""
        self.generation += 1
        torch.manual_seed(0)
        learner_ = make_learner(CONFIG, point_env(10, 2).task_spec, torch.device("cpu"))
        learner_.generation = self.generation
        learner_.telemetry = telemetry or learner_.telemetry
        settings = {"env_steps": 100, "eval_every": 30, "checkpoint_every": 1000, "log_every": 7}
        return LearningLoop(
            training=TrainingConfig(
                **(settings | self.training), seed_decisions=SEED_DECISIONS, update_ratio=self.ratio
            ),
            learner=learner_,
            replay=self.replay,
            pace=Pace(PaceConfig(max_backlog=MAX_BACKLOG), self.ratio, SEED_DECISIONS),
            run_dir=self.run_dir,
            publish_every=1,
            publish=self.published.append,
            evaluations=self.desk,
            exploration=lambda env_steps: env_steps / 100,
            shards=shards or self.shards,
            timeout_seconds=self.timeout_seconds,
            checkpoint=CheckpointStore(self.run_dir.checkpoints_dir).load_latest(),
            accept_losses=accept_losses,
        )

    def collect(self, loop: LearningLoop) -> None:
        """Each actor stores the episode it has a permit for, once the loop has heard of the last ones."""
        if loop.counters.decisions < self.replay.decisions:
            return
        for actor in range(self.actors):
            if loop.request_collect(actor, self.process).verdict == "collect":
                self.insert(actor)

    def insert(self, actor: int) -> None:
        number = self.numbers[actor]
        self.numbers[actor] += 1
        rng = np.random.default_rng([actor, number])
        episode = Episode(
            observations=rng.normal(size=(LENGTH + 1, 3)).astype(np.float32),
            actions=rng.uniform(-1, 1, (LENGTH, 2)).astype(np.float32),
            rewards=np.full(LENGTH, self.pay, np.float32),
            terminated=False,
            env_steps=2 * LENGTH,
            actor=actor,
            number=number,
            oldest_weights=version_of(self.generation, 0),
        )
        self.replay.insert(episode)

    def sow(self, loop: LearningLoop) -> None:
        """The seed decisions are stored and heard of."""
        for _ in range(SEED_DECISIONS // LENGTH):
            self.insert(0)
        loop._read_new_episodes()

    def run(self, loop: LearningLoop | None = None, until: object = None, then: object = None) -> str:
        """The loop with its actors, to its end; or until `until(loop)` holds: `then`, Killed by default, is done."""
        loop = loop or self.loop()

        def on_step() -> None:
            self.collect(loop)
            if until is not None and until(loop):
                if then is None:
                    raise Killed
                then(loop)

        return loop.run(on_step)

    def kill_when(self, until: object) -> None:
        with pytest.raises(Killed):
            self.run(until=until)

    def lines(self, kind: str) -> list[dict]:
        return [line for line in read_metrics(self.run_dir.metrics_path) if line["kind"] == kind]

    @property
    def events(self) -> str:
        return self.run_dir.events_path.read_text() if self.run_dir.events_path.exists() else ""

    def checkpoint(self) -> dict:
        return CheckpointStore(self.run_dir.checkpoints_dir).load_latest().meta

    def snapshot_after(self, updates: int) -> Weights:
        """The last published one with so many updates."""
        return [w for w in self.published if updates_of(w.version) == updates][-1]


@pytest.fixture
def seed(tmp_path):
    seed = Seed(tmp_path)
    yield seed
    seed.replay.close()


def check_finished(seed: Seed) -> None:
    """What holds at the end of a run, whatever happened on the way."""
    collected = seed.replay.decisions
    train, evals = seed.lines("train"), seed.lines("eval")
    assert collected == LENGTH * sum(seed.numbers)
    assert len(train) == sum(seed.numbers)  # each episode has its line, once
    assert sorted(line["actor"] for line in train) == sorted(a for a, n in enumerate(seed.numbers) for _ in range(n))
    assert [line["env_steps"] for line in train] == [2 * LENGTH * (i + 1) for i in range(len(train))]
    assert [line["decisions"] for line in train] == [LENGTH * (i + 1) for i in range(len(train))]
    assert [line["episodes"] for line in train] == [i + 1 for i in range(len(train))]
    meta = seed.checkpoint()
    updates = int(seed.ratio * (collected - SEED_DECISIONS))
    assert meta["finished"]
    assert (meta["pace"]["decisions"], meta["pace"]["updates"]) == (collected, updates)
    assert (meta["counters"]["env_steps"], meta["counters"]["episodes"]) == (2 * collected, len(train))
    versions = [w.version for w in seed.published]
    assert versions == sorted(set(versions))
    # Evaluations: at each multiple of 30 steps (every third episode), of the weights that its decisions ask for.
    due = list(range(30, 2 * collected + 1, 30))
    steps = sorted(line["env_steps"] for line in evals)
    assert steps == sorted({*due, 2 * collected})
    for line in evals:
        asked = max(0, int(seed.ratio * (line["env_steps"] // 2 - SEED_DECISIONS)))
        assert line["updates"] == line["episode_returns"][1] == asked
        assert line["decisions"] == line["env_steps"] // 2
        assert line["episodes"] == line["env_steps"] // 10


def test_preparing_waits_for_no_more_than_one_batch_between_two_steps(seed, monkeypatch):
    """The watchdog is rearmed at each step."""
    loop, story = seed.loop(), []
    seed.sow(loop)
    draw = seed.replay.next
    monkeypatch.setattr(seed.replay, "next", lambda: (story.append("batch"), draw())[1])
    monkeypatch.setattr(loop.learner, "prepare", lambda batches: [next(batches) for _ in range(5)])
    loop._update(lambda: story.append("step"))
    loop._update(lambda: story.append("step"))
    assert story == ["step", "batch"] * 5 + ["batch"] * 2  # the batch of each update; prepared once


class TestPace:
    @pytest.mark.parametrize("ratio", [0.5, 1.0, 2.5])
    @pytest.mark.parametrize("shards", [1, 3])
    def test_is_kept_at_every_moment_and_met_at_the_end(self, tmp_path, ratio, shards):
        seed = Seed(tmp_path, shards=shards, ratio=ratio)
        seen = []

        def look(loop):
            asked = max(0.0, ratio * (seed.replay.decisions - SEED_DECISIONS))
            in_flight = seed.actors * LENGTH
            assert asked - MAX_BACKLOG - ratio * in_flight <= loop.learner.updates <= asked
            seen.append((seed.replay.decisions, loop.learner.updates))
            return False

        assert seed.run(until=look) == "finished"
        check_finished(seed)
        assert len(set(seen)) > 10
        seed.replay.close()

    def test_also_after_a_kill_and_a_resume(self, seed):
        """What was stored after the checkpoint is made up for: not forgotten, not done twice."""
        seed.training = {"checkpoint_every": 40}
        seed.kill_when(lambda loop: loop.learner.updates >= 23)
        loop = seed.loop()
        assert loop.learner.updates < 23
        backlogs = []
        assert seed.run(loop, until=lambda loop: backlogs.append(loop.pace.backlog)) == "finished"
        assert max(backlogs) <= 23 + MAX_BACKLOG + seed.actors * LENGTH
        check_finished(seed)

    def test_decisions_that_were_not_counted_yet_count_for_permits(self, seed):
        """Else actors that are faster than the learner looks would run ahead as far as they like."""
        loop = seed.loop()
        seed.sow(loop)
        stored = 0
        while loop.request_collect(0, "first", LENGTH if stored else 0).verdict == "collect":
            seed.insert(0)
            stored += LENGTH
        assert MAX_BACKLOG <= stored < MAX_BACKLOG + LENGTH
        loop._read_new_episodes()
        assert loop.pace.backlog == stored  # each is counted once
        assert loop.request_collect(0, "first").verdict == "wait"


class TestLines:
    def test_of_a_run(self, seed):
        assert seed.run() == "finished"
        check_finished(seed)
        line = seed.lines("train")[-1]
        assert (line["episode_return"], line["episode_length"], line["success"]) == (LENGTH * 1.0, LENGTH, None)
        updates = seed.lines("update")
        assert [line["updates"] for line in updates] == [7, 14, 21, 28, 35, 40]
        assert {"loss_state", "loss_reward", "lr_tdm", "updates_per_second", "decisions_per_second"} <= updates[
            0
        ].keys()

    def test_staleness_is_in_updates_whatever_the_learners_start(self, seed):
        seed.generation = 3
        seed.run()
        line = seed.lines("train")[-1]
        assert line["staleness"] == line["updates"]

    @pytest.mark.parametrize("checkpoint_every", [1000, 40, 10])
    def test_once_each_after_kills(self, tmp_path, checkpoint_every):
        seed = Seed(tmp_path, training={"checkpoint_every": checkpoint_every})
        for updates in (0, 3, 9, 17, 30):
            seed.kill_when(lambda loop, updates=updates: loop.learner.updates >= updates and loop.counters.episodes)
        assert seed.run() == "finished"
        check_finished(seed)
        seed.replay.close()

    def test_once_each_after_everything_died(self, tmp_path):
        """As above, with shards that come back from their disks too."""
        seed = Seed(tmp_path, training={"checkpoint_every": 40})
        for updates in (3, 25):
            seed.kill_when(lambda loop, updates=updates: loop.learner.updates >= updates)
            seed.replay.close()
            seed.replay = Shards(tmp_path / "replay", 2)
        assert seed.run() == "finished"
        check_finished(seed)
        seed.replay.close()

    def test_episodes_that_were_evicted_unheard_are_counted(self, tmp_path):
        """A learner that was away for long: no lines for those, but the counters and the pace are right."""
        seed = Seed(tmp_path, shards=1, actors=1, capacity=2 * LENGTH)
        for _ in range(6):
            seed.insert(0)
        assert seed.run() == "finished"
        assert len(seed.lines("train")) == 2 + (10 - 6)
        assert seed.lines("train")[-1]["env_steps"] == 100
        assert (seed.checkpoint()["pace"]["decisions"], seed.checkpoint()["pace"]["updates"]) == (50, 40)
        assert [line["env_steps"] for line in seed.lines("eval")] == [60, 90, 100]
        seed.replay.close()


class TestEvaluation:
    def test_is_of_the_snapshot_of_its_step(self, seed):
        seed.run()
        assert [key for key, _ in seed.desk.submitted] == [30, 60, 90, 100]
        for key, weights in seed.desk.submitted:
            updates = key // 2 - SEED_DECISIONS
            assert weights.checksum == seed.snapshot_after(updates).checksum
            (line,) = [line for line in seed.lines("eval") if line["env_steps"] == key]
            assert line["episode_returns"] == [float(weights.values.sum()), updates]
            assert line["episode_return"] == pytest.approx(np.mean(line["episode_returns"]))

    def test_is_of_that_snapshot_also_when_more_is_stored_already(self, tmp_path):
        """Due at the first weights, and heard of together with episodes that ask for updates."""
        seed = Seed(tmp_path, training={"eval_every": 2 * SEED_DECISIONS})
        for _ in range(4):
            seed.insert(0)
        seed.run()
        first = seed.lines("eval")[0]
        assert (first["env_steps"], first["updates"], first["episode_returns"][1]) == (2 * SEED_DECISIONS, 0, 0)
        seed.replay.close()

    @pytest.mark.parametrize("newest_first", [False, True])
    def test_results_are_the_same_whatever_order_they_come_in(self, tmp_path, newest_first):
        at_once, late = Seed(tmp_path / "at-once"), Seed(tmp_path / "late")
        at_once.run()
        late.desk = Desk(open=False, newest_first=newest_first)

        def open_at_last(loop):
            late.desk.open = late.desk.open or len(late.desk.waiting) == 4

        late.run(until=open_at_last)
        check_finished(late)
        steps = [line["env_steps"] for line in late.lines("eval")]
        assert steps == ([100, 90, 60, 30] if newest_first else [30, 60, 90, 100])

        def results(seed):
            return sorted((line["env_steps"], line["updates"], line["episode_returns"]) for line in seed.lines("eval"))

        assert results(late) == results(at_once)
        for seed in (at_once, late):
            seed.replay.close()

    def test_the_status_shows_the_newest_by_step(self, seed):
        seed.desk = Desk(open=False, newest_first=True)

        def open_at_last(loop):
            seed.desk.open = seed.desk.open or len(seed.desk.waiting) == 4

        loop = seed.loop()
        seed.run(loop, until=open_at_last)
        assert loop.status()["eval_env_steps"] == 100

    def test_what_was_under_way_at_a_checkpoint_is_made_again_with_the_same_weights(self, seed):
        seed.desk.open = False
        assert seed.run(until=lambda loop: loop.learner.updates == 25, then=LearningLoop.stop) == "stopped"
        first = list(seed.desk.submitted)
        assert [key for key, _ in first] == [30, 60]
        assert seed.lines("eval") == []
        seed.desk = Desk()
        assert seed.run() == "finished"
        again = seed.desk.submitted
        assert [key for key, _ in again] == [30, 60, 90, 100]
        assert [(k, w.version, w.checksum) for k, w in again[:2]] == [(k, w.version, w.checksum) for k, w in first]
        np.testing.assert_array_equal(again[0][1].values, first[0][1].values)
        check_finished(seed)

    def test_what_was_planned_at_a_checkpoint_is_not_forgotten(self, seed):
        """30 steps are in replay, the updates that they ask for are not made yet."""
        planned = lambda loop: loop.counters.evaluations >= 1 and loop.learner.updates == 2  # noqa: E731
        assert seed.run(until=planned, then=LearningLoop.stop) == "stopped"
        assert seed.desk.submitted == []
        assert seed.run() == "finished"
        check_finished(seed)

    def test_a_result_written_after_the_checkpoint_is_not_doubled(self, seed):
        seed.training = {"checkpoint_every": 60}
        seed.desk.open = False

        def answer_after_the_checkpoint(loop):
            seed.desk.open = loop.counters.checkpoints > 0 and loop.learner.updates > 25
            return len(seed.lines("eval")) >= 2

        with pytest.raises(Killed):
            seed.run(until=answer_after_the_checkpoint)
        seed.desk = Desk()
        assert seed.run() == "finished"
        check_finished(seed)

    def test_the_last_one_is_waited_for_also_after_a_kill(self, seed):
        seed.desk.open = False
        seed.training = {"checkpoint_every": 100}
        seed.kill_when(lambda loop: [key for key, _ in seed.desk.waiting] == [30, 60, 90, 100])
        seed.desk = Desk()
        assert seed.run() == "finished"
        check_finished(seed)

    def test_stopped_while_waiting_for_the_last_one(self, seed):
        seed.desk.open = False
        assert seed.run(until=lambda loop: len(seed.desk.waiting) == 4, then=LearningLoop.stop) == "stopped"
        assert not seed.checkpoint()["finished"]
        seed.desk = Desk()
        assert seed.run() == "finished"
        check_finished(seed)


class TestGoingOn:
    def test_stopped_and_resumed_it_learns_what_it_would_have_learned(self, tmp_path):
        """Without processes there is no race, so this much can be asked for."""
        whole, parts = Seed(tmp_path / "whole"), Seed(tmp_path / "parts")
        whole.run()
        for updates in (0, 6, 21):
            reached = lambda loop, updates=updates: loop.learner.updates == updates  # noqa: E731
            assert parts.run(until=reached, then=LearningLoop.stop) == "stopped"
        assert parts.run() == "finished"
        check_finished(parts)
        assert parts.published[-1].checksum == whole.published[-1].checksum
        for seed in (whole, parts):
            seed.replay.close()

    def test_versions_never_go_back(self, seed):
        seed.training = {"checkpoint_every": 40}
        seed.kill_when(lambda loop: loop.learner.updates >= 23)
        newest = seed.published[-1].version
        loop = seed.loop()
        before = loop.learner.updates
        assert before < updates_of(newest)
        seed.run(loop)
        later = seed.published[[w.version for w in seed.published].index(newest) + 1 :]
        assert later[0].version == 2 * GENERATION + before  # published at once: actors wait for it
        assert all(w.version > newest for w in later)

    def test_counters_and_cursors_are_the_checkpoints(self, seed):
        seed.run(until=lambda loop: loop.learner.updates == 15, then=LearningLoop.stop)
        meta = seed.checkpoint()
        loop = seed.loop()
        assert loop.cursors.positions == meta["cursors"] != [0, 0]
        assert loop.pace.save() == meta["pace"]
        assert loop.counters.env_steps == meta["counters"]["env_steps"]
        assert loop.status()["wall_seconds"] >= meta["counters"]["wall_seconds"] > 0
        assert f"learner: goes on from the checkpoint at {meta['pace']['updates']} updates" in seed.events

    def test_a_finished_run_has_nothing_left_to_do(self, seed):
        """Ray asks again if the learner was killed between its last checkpoint and its answer."""
        seed.run()
        lines = seed.run_dir.metrics_path.read_bytes()
        seed.desk.submitted.clear()
        assert seed.run() == "finished"
        assert seed.desk.submitted == []
        assert seed.run_dir.metrics_path.read_bytes() == lines
        check_finished(seed)

    def test_a_damaged_checkpoint_is_skipped_and_said_so(self, seed):
        seed.training = {"checkpoint_every": 20}
        seed.kill_when(lambda loop: loop.learner.updates == 20)
        newest = sorted(seed.run_dir.checkpoints_dir.iterdir())[-1]
        (newest / "checkpoint.json").write_text("{}")
        assert seed.run() == "finished"
        assert f"skipped checkpoint {newest.name}" in seed.events
        check_finished(seed)

    def test_a_replay_that_is_gone_is_refused(self, tmp_path):
        seed = Seed(tmp_path)
        seed.run(until=lambda loop: loop.learner.updates == 15, then=LearningLoop.stop)
        stored = seed.replay.decisions
        seed.replay.close()
        shutil.rmtree(tmp_path / "replay" / "shard-1")
        seed.replay = Shards(tmp_path / "replay", 2)
        with pytest.raises(ConfigError, match=f"counts on {stored} decisions in replay, its shards have had") as error:
            seed.loop()
        assert "bring back the replay/ folder" in str(error.value)
        assert "--accept-losses" in str(error.value)
        assert "\n" not in str(error.value)
        seed.replay.close()

    def test_a_lost_episode_is_refused_by_name_also_when_later_ones_make_up_for_it(self, tmp_path):
        seed = Seed(tmp_path, training={"env_steps": 200})
        seed.run(until=lambda loop: loop.learner.updates == 60, then=LearningLoop.stop)
        seed.numbers = [max(shard.next_number(actor) for shard in seed.replay.shards) for actor in range(seed.actors)]
        seed.replay.close()
        (segment, *_) = sorted((tmp_path / "replay" / "shard-1").glob("*.log"))
        damaged = bytearray(segment.read_bytes())
        damaged[40] ^= 1  # in the first record
        segment.write_bytes(damaged)
        seed.replay = Shards(tmp_path / "replay", 2)
        for _ in range(3):  # more than was lost
            seed.insert(0)
        with pytest.raises(ConfigError, match=r"\(shard 1: number 0\); bring back the replay/ folder"):
            seed.loop()
        loop = seed.loop(accept_losses=True)
        assert "(shard 1: number 0); goes on with those" in seed.events
        loop.save()
        loop.metrics.close()
        seed.loop()  # accepted once and for all
        seed.replay.close()

    def test_what_is_left_of_a_replay_is_gone_on_with_if_asked_for(self, tmp_path):
        """The updates for what was lost do not count: from there on there is one for each decision, as before."""
        seed = Seed(tmp_path, training={"env_steps": 200})
        seed.run(until=lambda loop: loop.learner.updates == 60, then=LearningLoop.stop)
        before, had = seed.checkpoint(), seed.replay.decisions
        seed.replay.close()
        shutil.rmtree(tmp_path / "replay" / "shard-1")
        seed.replay = Shards(tmp_path / "replay", 2)
        left = seed.replay.decisions
        assert SEED_DECISIONS < left < had
        loop = seed.loop(accept_losses=True)
        assert f"counts on {had} decisions in replay, its shards have had {left} (shard 1: all from" in seed.events
        backlog = before["pace"]["decisions"] - SEED_DECISIONS - before["pace"]["updates"]
        assert loop.pace.backlog == backlog
        seed.numbers = [max(shard.next_number(actor) for shard in seed.replay.shards) for actor in range(seed.actors)]
        assert seed.run(loop) == "finished"
        stored = seed.replay.decisions
        assert seed.checkpoint()["counters"]["env_steps"] == 2 * stored
        assert seed.loop().learner.updates == before["pace"]["updates"] + backlog + stored - left
        late = [line for line in seed.lines("eval") if line["updates"] > before["pace"]["updates"]]
        assert late
        for line in late:
            assert line["episode_returns"][1] == line["updates"]
        seed.replay.close()

    def test_a_checkpoint_counts_on_nothing_that_a_power_cut_could_take(self, seed):
        """Else the run could not go on after one: see the test above."""
        seed.training = {"checkpoint_every": 20}
        saved = []

        def look(loop):
            newest = loop.store.newest()
            if newest is not None and newest not in saved:
                saved.append(newest)
                assert loop.pace.decisions <= seed.replay.synced

        seed.run(until=look)
        assert len(saved) > 2
        assert seed.checkpoint()["pace"]["decisions"] <= seed.replay.synced

    @pytest.mark.parametrize("shards", [1, 3])
    def test_another_number_of_shards_is_refused(self, seed, shards):
        seed.run(until=lambda loop: loop.learner.updates == 15, then=LearningLoop.stop)
        with pytest.raises(ConfigError, match=f"is of 2 replay shards, got {shards}"):
            seed.loop(shards=shards)


class TestPermits:
    def test_random_until_the_seed_is_in(self, seed):
        seed.actors = 1
        permits: dict[int, Permit] = {}

        def look(loop):
            permit = loop.request_collect(0, seed.process)
            if permit.verdict == "collect":
                permits[loop.counters.decisions] = permit

        seed.run(until=look)
        assert [decisions for decisions, permit in permits.items() if permit.random] == [0, LENGTH]
        assert len(permits) == 10
        for decisions, permit in permits.items():
            assert permit.exploration == 2 * decisions / 100
            assert permit.version in [w.version for w in seed.published]

    def test_wait_until_what_was_stored_has_been_read(self, seed):
        """What was stored since the checkpoint may ask for more updates than the backlog allows."""
        loop = seed.loop()
        for _ in range(4 + SEED_DECISIONS // LENGTH):
            seed.insert(0)
        seed.replay.refusals.append("late")
        loop._read_new_episodes()
        assert loop.request_collect(0, seed.process).verdict == "wait"
        loop._read_new_episodes()
        assert loop.pace.backlog == 4 * LENGTH
        assert loop.request_collect(0, seed.process).verdict == "wait"
        loop.pace.sampled(4 * LENGTH)
        assert loop.request_collect(0, seed.process).verdict == "collect"

    def test_wait_while_the_backlog_is_too_large(self, seed):
        loop = seed.loop()
        loop._read_new_episodes()
        waits, backlogs = [], []

        def insert_regardless():
            permit = loop.request_collect(0, seed.process)
            assert permit.verdict == "done" or (permit.verdict == "wait") == (loop.pace.backlog >= MAX_BACKLOG)
            if permit.verdict == "wait":
                assert 0.005 <= permit.retry_seconds <= 1.0
                waits.append(permit)
                backlogs.append(loop.pace.backlog)
            elif permit.verdict == "collect" and loop.counters.decisions == seed.replay.decisions:
                for actor in (0, 1, 0, 1):
                    seed.insert(actor)

        loop.run(insert_regardless)
        assert waits
        assert max(backlogs) >= MAX_BACKLOG

    def test_done_at_the_end_and_after_a_stop(self, seed):
        loop = seed.loop()
        loop._read_new_episodes()
        assert loop.request_collect(0, "a").verdict == "collect"
        loop.stop()
        assert loop.request_collect(0, "a").verdict == "done"
        assert loop.run() == "stopped"
        loop = seed.loop()
        loop._read_new_episodes()
        assert loop.request_collect(0, "a").verdict == "collect"
        seed.run(loop)
        assert loop.request_collect(0, "a").verdict == "done"
        assert seed.loop().request_collect(0, "a").verdict == "done"

    def test_restarts_are_counted_and_told(self, seed):
        loop = seed.loop()
        for actor, process in [(0, "a"), (1, "b"), (0, "a"), (0, "c"), (1, "b"), (0, "c"), (0, "d")]:
            loop.request_collect(actor, process)
        loop.environment_failed(1, "Point failed\nat the reset")
        status = loop.status()
        assert (status["actor_restarts"], status["environment_failures"]) == (2, 1)
        assert seed.events.count("actor 0 is back in a new process") == 2
        assert "learner: actor 1 replaced its environments: Point failed at the reset\n" in seed.events
        loop.stop()
        loop.run()
        assert seed.loop().status()["actor_restarts"] == 2  # kept with the checkpoint


class TestFailures:
    def test_three_in_a_row_of_one_actor_end_it_saved(self, seed):
        """Steps of the loop: F fails, E stores an episode; of two actors in turns."""
        loop = seed.loop()
        schedule = iter([(0, "F"), (1, "F"), (0, "F"), (0, "E"), (1, "F"), (0, "F"), (1, "E"), (0, "F"), (0, "F")])

        def happen():
            for actor, what in itertools.islice(schedule, 1):
                seed.insert(actor) if what == "E" else loop.environment_failed(actor, f"Point failed\n{actor}")

        with pytest.raises(
            EnvironmentFailure, match=r"^Point failed 0; that was 3 times in a row of actor 0; the run is"
        ):
            loop.run(happen)
        assert [*schedule] == []
        again = seed.loop()
        assert (again.counters.episodes, again.counters.environment_failures) == (2, 7)


class TestWaiting:
    def test_is_for_one_answer_between_two_steps(self, seed):
        """Longer than one timeout, and a watchdog would take a learner that waits for one that hangs."""
        seed.training = {"checkpoint_every": 20}
        waits = []

        def look(loop):
            waits.append(seed.replay.waits)
            seed.replay.waits = 0

        seed.run(until=look)
        assert set(waits[1:]) == {0, 1}  # [0] has the start's

    def test_for_decisions_is_complained_about(self, seed):
        seed.timeout_seconds = 0.05
        loop = seed.loop()
        loop.run(lambda: loop.stop() if loop.spent.seconds["waiting_for_decisions"] > 0.13 else None)
        lines = seed.events.splitlines()
        assert 1 <= len(lines) <= 3  # once every so often, not at every look
        assert re.search(r"learner: the learner waits for 11 more decisions \(0 so far\), for \d+ s", lines[0])

    def test_for_decisions_ends_when_an_actor_tells_of_some(self, seed, monkeypatch):
        monkeypatch.setattr(qttdm.learner.loop, "WAIT_SECONDS", 1e6)
        loop, learned = seed.loop(), threading.Event()

        def act() -> None:
            time.sleep(0.3)  # the loop waits by then
            for _ in range(SEED_DECISIONS // LENGTH + 1):
                seed.insert(actor=0)
                loop.request_collect(0, seed.process, stored=LENGTH)
            learned.wait(30)
            loop.stop()

        actor = threading.Thread(target=act)
        actor.start()
        loop.run(lambda: learned.set() if loop.learner.updates else None)
        actor.join()
        assert learned.is_set()

    def test_for_the_last_evaluation_is_complained_about(self, seed):
        seed.timeout_seconds = 0.05
        seed.desk.open = False
        seed.run(
            until=lambda loop: "waits for 4 evaluations" in seed.events if loop.collected else False, then=open_desk
        )
        check_finished(seed)

    def test_for_shards_is_told_and_gone_on_from(self, seed):
        waited = "waited 1 s for the replay shards for a batch"
        loop = seed.loop()

        def refuse_now_and_then(loop):
            if loop.learner.updates in (3, 4, 20) and loop.learner.updates not in refused:
                refused.add(loop.learner.updates)
                seed.replay.refusals += [waited] * 2

        refused: set[int] = set()
        seed.run(loop, until=refuse_now_and_then)
        assert seed.events.count(f"learner: {waited}\n") == 6
        check_finished(seed)

    def test_for_shards_at_the_start_is_told_and_gone_on_from(self, seed):
        seed.run(until=lambda loop: loop.learner.updates == 15, then=LearningLoop.stop)
        seed.replay.refusals = ["waited 1 s for the replay shards' new episodes"] * 3
        assert seed.run() == "finished"
        assert seed.events.count("waited 1 s for the replay shards' new episodes") == 3

    def test_where_the_time_went(self, seed):
        loop = seed.loop()
        seed.run(loop)
        status = loop.status()
        assert 0 < sum(status["spent"].values()) <= status["seconds"]
        assert status["spent"]["updating"] > 0
        assert status["finished"] is True


def open_desk(loop: LearningLoop) -> None:
    loop.evaluations.desk.open = True


def test_stop_saves_after_the_update_under_way(seed):
    assert seed.run(until=lambda loop: loop.learner.updates == 11, then=LearningLoop.stop) == "stopped"
    meta = seed.checkpoint()
    assert 11 <= meta["pace"]["updates"] <= 12
    assert seed.lines("update")[-1]["updates"] == meta["pace"]["updates"]  # the losses up to here are written too

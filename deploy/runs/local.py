"""QT-TDM in one process: the paper's alternation (Algorithm 1), exactly.

    collect one episode -> replay -> as many updates as it had decisions -> now and then: evaluate, checkpoint

The state of a run is its counters and what `LocalRun.save` writes. Every episode's randomness derives from the run's
seed and the episode's number, so a run that stops anywhere and is resumed does what it would have done.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import count
from typing import Any

import msgpack
import torch

from qttdm.actors.diagnosis import tell_evaluation
from qttdm.actors.episodes import EnvironmentFailure, Stopped, run_episodes
from qttdm.actors.evaluation import Evaluation
from qttdm.actors.measured import ACTOR_SECONDS, MeasuredPolicy
from qttdm.common.checkpoint import Checkpoint, CheckpointStore
from qttdm.common.config import ConfigError, dump_config, load_config
from qttdm.common.environments.rendering import RenderError
from qttdm.common.metrics.lines import MetricsWriter
from qttdm.common.metrics.sinks import make_sinks
from qttdm.common.metrics.telemetry import Activities, MakeTelemetry, Telemetry
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights
from qttdm.deploy.agents.agent import Agent, data_of, exploration, make_learner
from qttdm.deploy.configs.cluster_config import SEED_STATE
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.runs.trained import newest_checkpoint
from qttdm.deploy.screens.progress import Progress
from qttdm.deploy.screens.video import VideoError, write_video
from qttdm.learner.learner import NonFiniteLossError
from qttdm.learner.measure import TimeSpent, open_metrics, watch
from qttdm.planner_service.policies.random_actions import RandomPolicy
from qttdm.replay.buffer import Replay
from qttdm.replay.codec import decode, encode
from qttdm.replay.measure import INSERT_SECONDS, SAMPLE_SECONDS
from qttdm.replay.measure import watch as watch_replay
from qttdm.replay.shard import ShardStats


@dataclass
class Counters:
    """How far a run is."""

    env_steps: int = 0
    decisions: int = 0
    updates: int = 0
    episodes: int = 0
    failures: int = 0
    """episodes that were not finished, because the environment failed"""
    owed: float = 0.0
    """updates that the decisions so far ask for and that have not been made"""
    evaluations: int = 0
    """evaluations that have been due and made"""
    checkpoints: int = 0
    """multiples of `checkpoint_every` passed"""
    evaluated_updates: int = -1
    """of which weights the last evaluation was, by their number of updates"""
    wall_seconds: float = 0.0


class LocalRun:
    """One run in its directory: `train()` until its end or until asked to stop."""

    def __init__(self, config: RunConfig, run_dir: RunDir, checkpoint: Checkpoint | None = None) -> None:
        """A fresh run, or the continuation of one. ConfigError if the settings do not fit together or to the task."""
        self.config, self.training, self.run_dir = config, config.training, run_dir
        self.agent = Agent(config)
        self.device, self.env, self.policy = self.agent.device, self.agent.env, self.agent.policy
        spec = self.agent.spec
        torch.manual_seed(derive_seed(config.seed, "learner"))
        self.learner = make_learner(config, spec, self.device)
        self.random_policy = RandomPolicy(data_of(config, spec))
        replay_seed = derive_seed(config.seed, "replay")
        try:
            self.replay = Replay(
                config.replay, spec.obs_dim, spec.action_dim, config.tdm.window, config.discount, replay_seed
            )
        except MemoryError as error:
            raise ConfigError(f"replay.capacity={config.replay.capacity} does not fit into memory ({error})") from None
        self.store = CheckpointStore(run_dir.checkpoints_dir, config.training.keep_checkpoints)
        self.counters = Counters()
        self._metrics_bytes = 0
        if checkpoint is not None:
            try:
                self._metrics_bytes = self._load(checkpoint)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                reason = str(error).strip().splitlines()[0]
                raise ConfigError(
                    f"{run_dir.path}: its checkpoint does not fit its settings ({reason}); undo the change to "
                    f"config.yaml"
                ) from error
        self._moved_at = time.monotonic()
        self._started = self._moved_at - self.counters.wall_seconds
        self.measure(Telemetry.silent)

    @cached_property
    def metrics(self) -> MetricsWriter:
        """Opened, and cut back to the checkpoint, by whoever writes first: looking at a run leaves its files alone."""
        writer = open_metrics(self.run_dir.metrics_path, self._metrics_bytes, self.learner.telemetry)
        writer.sinks += make_sinks(self.config.sinks, self.run_dir.path, self.config.model_dump())
        return writer

    def measure(self, make_telemetry: MakeTelemetry) -> None:
        """Have what the run does told to Prometheus, by the parts that it would have on a cluster. Before `train`."""
        driver, actor, evaluator = (make_telemetry(part, 0) for part in ("driver", "actor", "evaluator"))
        self.learner.telemetry = make_telemetry("learner", 0)
        self._storing = make_telemetry("replay", 0)
        self._spent = TimeSpent(self.learner.telemetry)
        self._actor_spent = Activities(actor, ACTOR_SECONDS, rest="waiting")
        self._acting = MeasuredPolicy(self.policy, actor, self._actor_spent)
        self._evaluating = MeasuredPolicy(self.policy, evaluator)
        watch(self)
        watch_replay(self, None, self._storing)
        driver.set(SEED_STATE, 1.0, state="running")

    def train(
        self,
        progress: Progress,
        should_stop: Callable[[], bool] = lambda: False,
        time_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Algorithm 1 until `env_steps` are collected, or until told to stop; then a checkpoint.

        should_stop: at once, dropping the episode in flight. time_is_up: after the episode or the update under way, so
        that even a chain of short resumed sessions gets on.
        Raises NonFiniteLossError, naming the last good checkpoint, and EnvironmentFailure, when all before that episode
        is saved; whoever goes on collects another in its place.
        """
        c, t = self.counters, self.config.training
        try:
            while c.env_steps < t.env_steps or c.owed >= 1:
                if time_is_up():
                    raise Stopped
                self._collect(progress, should_stop)
                self._learn(progress, lambda: should_stop() or time_is_up())
                if c.env_steps // t.eval_every > c.evaluations:
                    self._evaluate(progress, should_stop)
                if c.env_steps // t.checkpoint_every > c.checkpoints:
                    self.save()
        except Stopped:
            progress.note("stopped early")
        except NonFiniteLossError as error:
            last = self.store.newest()
            kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
            raise NonFiniteLossError(f"{error}; {kept}") from None
        except EnvironmentFailure as error:
            c.failures += 1
            self.save()
            raise EnvironmentFailure(f"{error}; the run is saved, --resume goes on with another episode") from error
        self.save()

    def finish(self, progress: Progress, should_stop: Callable[[], bool] = lambda: False) -> None:
        """A last evaluation unless the newest weights have one, and a short video of the behaviour."""
        try:
            if self.counters.evaluated_updates != self.counters.updates:
                self._evaluate(progress, should_stop)
                self.save()
            self.policy.load(self.learner.weights())
            write_video(self.agent.film(should_stop), self.run_dir.video_path, self.agent.frames_per_second)
            progress.note(f"video: {self.run_dir.video_path}")
        except Stopped:
            progress.note("stopped before the last evaluation and the video were done")
        except (RenderError, VideoError) as error:
            progress.note(f"no video: {error}")

    def evaluate(self, episodes: int, should_stop: Callable[[], bool] = lambda: False) -> Evaluation:
        """The current weights, in environments of their own."""
        self._evaluating.load(self._snapshot())
        result = self.agent.evaluate(episodes, should_stop, self._evaluating)
        tell_evaluation(self._evaluating.telemetry, self._evaluating, result.episodes)
        return result

    def status(self) -> dict[str, Any]:
        """Plain numbers of where the run is."""
        now = time.monotonic()
        return {
            **asdict(self.counters),
            "wall_seconds": now - self._started,
            "seconds_since_progress": now - self._moved_at,
            "version": self.policy.weights_version,
        }

    def stats(self) -> ShardStats:
        """Of the replay, as if it were a cluster's only shard; it is on disk in checkpoints only."""
        c, r = self.counters, self.replay
        return ShardStats(
            decisions=r.decisions,
            episodes=r.num_episodes,
            fill=r.fill,
            inserted_decisions=c.decisions,
            inserted_episodes=c.episodes,
            inserted_env_steps=c.env_steps,
            bytes_on_disk=0,
            dropped_records=0,
            duplicates=0,
            sampled_batches=c.updates,
            capacity=self.config.replay.capacity,
            sampled_age=r.sampled_age,
        )

    def save(self) -> None:
        """An atomic checkpoint of everything; at this point nothing is lost by a kill."""
        with self._spent.on("saving"):
            self._save()

    def _save(self) -> None:
        c = self.counters
        c.checkpoints = c.env_steps // self.config.training.checkpoint_every
        self._tick()
        self.store.save(
            c.env_steps,
            self.learner.state(),
            {"counters": asdict(c), "metrics_bytes": self.metrics.sync()},
            {
                "replay.state": self.replay.state(),
                "replay.episodes": msgpack.packb([encode(e) for e in self.replay.episodes()]),
            },
        )

    def _load(self, checkpoint: Checkpoint) -> int:
        """Undo `save`; returns how many bytes of metrics belong to it."""
        self.counters = Counters(**checkpoint.meta["counters"])
        self.learner.load_state(checkpoint.tensors)
        episodes = msgpack.unpackb(checkpoint.blobs["replay.episodes"])
        self.replay.load(checkpoint.blobs["replay.state"], map(decode, episodes))
        return int(checkpoint.meta["metrics_bytes"])

    def _collect(self, progress: Progress, should_stop: Callable[[], bool]) -> None:
        """Line 2: one episode into replay. Not while updates or an evaluation are owed: so only after an early stop."""
        c, t = self.counters, self.config.training
        if c.owed >= 1 or c.env_steps // t.eval_every > c.evaluations:
            return
        started = time.monotonic()
        random = c.decisions < t.seed_decisions
        policy = self.random_policy if random else self._acting
        epsilon = 1.0 if random else exploration(self.config, c.env_steps)
        with self._actor_spent.on("fetching"):
            policy.load(self._snapshot())
        seed = derive_seed(self.config.seed, "episode", c.episodes + c.failures)
        tell = self._telling(progress, f"collecting episode {c.episodes}", should_stop)
        try:
            with self._spent.on("waiting_for_decisions"), self._actor_spent.on("simulating"):
                (episode,) = run_episodes([self.env], policy, [seed], epsilon, tell)
        except Stopped:
            progress.note("the episode in flight is dropped; a resumed run collects it again")
            raise
        with self._actor_spent.on("storing"), self._storing.timed(INSERT_SECONDS):
            self.replay.add(episode)
        self._moved_at = time.monotonic()
        c.env_steps += episode.env_steps
        c.decisions += episode.decisions
        c.episodes += 1
        if not random:
            c.owed += episode.decisions * t.update_ratio
        self._report(
            progress,
            "train",
            episode_return=episode.episode_return,
            episode_length=episode.decisions,
            success=episode.success,
            epsilon=epsilon if random or self.config.agent == "qt" else self.config.planner.random_bins,
            decisions_per_second=episode.decisions / (time.monotonic() - started),
        )

    def _telling(self, progress: Progress, what: str, should_stop: Callable[[], bool]) -> Callable[[], bool]:
        """`should_stop`, asked before each decision, that also shows how far the episode is."""
        decisions = count()

        def stop() -> bool:
            progress.doing(f"{what}: decision {next(decisions)} of {self.agent.spec.episode_decisions}")
            return should_stop()

        return stop

    def _learn(self, progress: Progress, should_stop: Callable[[], bool]) -> None:
        """Lines 3-14: the updates owed."""
        c, t = self.counters, self.config.training
        while c.owed >= 1:
            started, first = time.monotonic(), c.updates
            while c.owed >= 1 and c.updates - first < t.log_every:
                with self._spent.on("waiting_for_batches"), self._storing.timed(SAMPLE_SECONDS):
                    batch = self.replay.sample(self.config.learner.batch_size)
                with self._spent.on("updating"):
                    self.learner.update(batch)
                self._moved_at = time.monotonic()
                c.updates += 1
                c.owed -= 1
                progress.doing(f"learning: update {c.updates}, {c.owed:.0f} to go")
                if stop := should_stop():  # asked after an update, so that every session makes at least one
                    break
            losses = self.learner.drain()
            if losses:
                speed = (c.updates - first) / (time.monotonic() - started)
                values = losses | self.learner.learning_rates()
                self._report(progress, "update", **values, updates_per_second=speed)
            if stop:
                raise Stopped

    def _evaluate(self, progress: Progress, should_stop: Callable[[], bool]) -> None:
        """Mean over `eval_episodes` episodes: the one that is due, unless updates are owed, as after an early stop."""
        c, started = self.counters, time.monotonic()
        tell = self._telling(progress, "evaluating", should_stop)
        result = self.evaluate(self.config.training.eval_episodes, tell)
        if c.owed < 1:
            c.evaluations = c.env_steps // self.config.training.eval_every
        c.evaluated_updates = c.updates
        self._report(
            progress,
            "eval",
            episode_return=result.mean_return,
            episode_returns=result.returns,
            success=result.success,
            episodes_evaluated=len(result.returns),
            eval_seconds=time.monotonic() - started,
        )
        progress.evaluation(c.env_steps, result.mean_return, result.success)

    def _report(self, progress: Progress, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and the display."""
        c = self.counters
        self._tick()
        counters = {
            "env_steps": c.env_steps,
            "decisions": c.decisions,
            "updates": c.updates,
            "episodes": c.episodes,
            "wall_seconds": round(c.wall_seconds, 3),
        }
        self.metrics.write(kind, **counters, **values)
        if kind == "eval":  # the display shows evaluations apart from training returns
            values = {}
        progress.update(**counters, **values)

    def _snapshot(self) -> Weights:
        """What acts from now on."""
        with self._spent.on("publishing"):
            return self.learner.weights()

    def _tick(self) -> None:
        self.counters.wall_seconds = time.monotonic() - self._started


def open_run(run_dir: RunDir) -> LocalRun:
    """The run in that directory, as its newest good checkpoint left it. ConfigError if it cannot go on from that."""
    config = load_config(RunConfig, run_dir.config_path)
    checkpoint = newest_checkpoint(run_dir)
    if "replay.episodes" not in checkpoint.blobs:  # shards keep a cluster's episodes
        raise ConfigError(f"{run_dir.path}: trained on a cluster; go on with: qttdm cluster resume NAME")
    return LocalRun(config, run_dir, checkpoint)


def resume_run(run_dir: RunDir) -> LocalRun:
    """As `open_run`; a run that was killed before its first checkpoint begins again."""
    config = load_config(RunConfig, run_dir.config_path)
    if CheckpointStore(run_dir.checkpoints_dir).newest() is None:
        print(f"{run_dir.path}: there is no checkpoint yet, starting from the beginning")
        return LocalRun(config, run_dir)
    return open_run(run_dir)


def new_run(config: RunConfig, run_dir: RunDir) -> LocalRun:
    """A fresh run in a directory just made; its resolved configuration is written first.

    If the run cannot be built the directory goes again, so that the corrected command finds its name free.
    """
    run_dir.config_path.write_text(dump_config(config))
    try:
        return LocalRun(config, run_dir)
    except ConfigError:
        shutil.rmtree(run_dir.path)
        raise

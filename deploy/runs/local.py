"""QT-TDM in one process: the LearningLoop with a collector, an evaluator and the replay's shards beside it.

    LearningLoop --_collect--> one episode -> shard --next--> as many updates as it had decisions -> evaluate, save

The paper's alternation (Algorithm 1), exactly. Every episode's randomness derives from the run's seed and the episode's
number, and a checkpoint goes back to its replay, so a run that stops anywhere and is resumed does what it would have
done. Its directory and its checkpoints are a cluster's: either goes on with the other's.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import torch

from qttdm.actors.collector import Collector
from qttdm.actors.episodes import Stopped
from qttdm.actors.evaluator import Evaluator
from qttdm.actors.settings import ActorSettings
from qttdm.common.checkpoint import Checkpoint, CheckpointStore
from qttdm.common.config import ConfigError, dump_config
from qttdm.common.contracts import DreamingAgent, resized
from qttdm.common.disk import DiskError, replace_file, sync_file, write_file
from qttdm.common.environments.rendering import RenderError
from qttdm.common.episode import EnvironmentFailure
from qttdm.common.metrics.sinks import make_sinks
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog, stacks
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import Weights, read_generation
from qttdm.deploy.configs.cluster_config import SEED_STATE
from qttdm.deploy.configs.run_config import RunConfig, load_saved_config, with_env_steps
from qttdm.deploy.runs.acting import ActingAgent
from qttdm.deploy.runs.build import exploration, make_learner, make_task_env
from qttdm.deploy.runs.machine import machine
from qttdm.deploy.runs.offline import LOGGED, fill, logged_task, mixture
from qttdm.deploy.runs.saved_task import save_task
from qttdm.deploy.runs.trained import newest_checkpoint
from qttdm.deploy.screens.progress import Progress
from qttdm.deploy.screens.video import VideoError, write_video
from qttdm.learner.loop import LearningLoop
from qttdm.learner.metrics import report_run
from qttdm.learner.permits import Permit
from qttdm.replay.limiter import Pace
from qttdm.replay.metrics import report_sizes
from qttdm.replay.mixed import MixedReplay
from qttdm.replay.shard import ReplayShard, ShardConfig
from qttdm.replay.source import LocalShards

ACTOR = 0  # as which episodes are collected here
PROCESSES = (f"actor-{ACTOR}", "evaluator", "learner")
"""of a cluster, whose work is done here, each under its own watchdog"""

TelemetryOf = Callable[[RunConfig], MakeTelemetry]


def silent(config: RunConfig) -> MakeTelemetry:
    """Measure nothing."""
    return Telemetry.silent


class LocalRun:
    """One run in its directory: `train()` until its end or until asked to stop."""

    def __init__(
        self,
        config: RunConfig,
        run_dir: RunDir,
        checkpoint: Checkpoint | None = None,
        telemetry: MakeTelemetry = Telemetry.silent,
        accept_losses: bool = False,
    ) -> None:
        """A fresh run, or the continuation of one; accept_losses as LearningLoop.

        ConfigError if the settings do not fit together or to the task.
        """
        self.config, self.run_dir, self.telemetry = config, run_dir, telemetry
        self.logged = logged_task(config)
        self.agent = ActingAgent(config, self.logged)
        save_task(run_dir, config, self.agent.spec)
        self.device = self.agent.device
        torch.manual_seed(derive_seed(config.seed, "learner"))
        self.learner = make_learner(config, self.agent.spec, self.device)
        self.learner.telemetry = telemetry("learner", 0)
        self.learner.generation = read_generation(run_dir.path)
        self.watchdog = Watchdog(run_dir.path, "learner", config.cluster.hang_seconds)
        self.watchdog.report_hang(self.learner.telemetry)
        settings = ActorSettings(
            run_dir=run_dir.path,
            seed=config.seed,
            make_env=partial(make_task_env, config, self.agent.spec),
            make_policy=lambda still_waiting: self.agent.policy,
            data=self.agent.data,
            envs=0 if self.logged else 1,
            random_actions=config.training.random_actions,
            hang_seconds=config.cluster.hang_seconds,
            telemetry=telemetry,
        )
        training = replace(settings, make_env=partial(make_task_env, config, self.agent.spec, training=True))
        self.collector = Collector(training, ACTOR)
        self.evaluator = Evaluator(replace(settings, envs=config.training.eval_episodes))
        self._waiting: deque[tuple[int, Weights]] = deque()  # evaluations to be made
        self._hangs = sum(path.name.startswith(f"{PROCESSES[0]}.") for path in stacks(run_dir.path))
        self._should_stop: Callable[[], bool] = lambda: False
        self._progress: Progress | None = None
        self.replay = self._open_replay(checkpoint)
        try:
            if checkpoint is None and config.training.dataset is not None:
                fill(self.replay, config, print)
            self.loop = self._make_loop(checkpoint, accept_losses)
        except BaseException:
            self.replay.close()
            raise
        if self.collector.watchdog.found:
            self.loop.environment_failed(ACTOR, f"hung, see {self.collector.watchdog.found}")
        self._report_run()

    def train(
        self,
        progress: Progress,
        should_stop: Callable[[], bool] = lambda: False,
        time_is_up: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run Algorithm 1 until `env_steps` are collected, or until asked to stop; then a checkpoint.

        should_stop: at once, dropping the episode in flight. time_is_up: after the episode or the update under way, so
        that even a chain of short resumed sessions gets on.
        Raises what LearningLoop.run does.
        """
        self._show_on(progress, should_stop)
        self.agent.policy.warm_up(max(1, self.config.training.eval_episodes))  # compiling takes longer than a watchdog

        def on_step() -> None:
            self.watchdog.rearm()
            progress.doing(f"learning: update {self.learner.updates}, {self.loop.pace.backlog:.0f} to go")
            if should_stop() or time_is_up():
                self.loop.stop()

        try:
            with self.watchdog:
                ended = self.loop.run(on_step)
        except Stopped:
            self.loop.save()
            ended = "stopped"
        if ended == "stopped":
            progress.note("stopped early")

    def finish(self, progress: Progress, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Evaluate the newest weights unless that is done, and film the behaviour; not where there is no simulator."""
        if self.config.training.eval_episodes == 0:
            return
        self._show_on(progress, should_stop)
        try:
            if self.loop.evaluations.last_updates != self.learner.updates:
                self.loop.evaluate_newest()
                self.loop.save()
            self.agent.policy.load(self.learner.weights())
            with self.evaluator.watchdog:
                frames, frames_per_second = self.agent.film(lambda: self.evaluator.watchdog.rearm() or should_stop())
            write_video(frames, self.run_dir.video_path, frames_per_second)
            progress.note(f"video: {self.run_dir.video_path}")
        except Stopped:
            progress.note("stopped before the last evaluation and the video were done")
        except (RenderError, VideoError, EnvironmentFailure) as error:
            progress.note(f"no video: {error}")

    def close(self) -> None:
        """Let another process go on with this run."""
        self.replay.close()

    def _act_with(self, weights: Weights) -> None:
        with self.collector.time_spent.on("fetching"):
            self.collector.policy.load(weights)

    def _collect(self, permit: Permit) -> None:
        """Put one episode into replay; of an environment that fails, none."""
        counters, pace = self.loop.counters, self.loop.pace
        number = max(counters.episodes + counters.environment_failures, self.replay.next_number(ACTOR))
        again = (self._hangs,) if self._hangs else ()  # the episode that the last process hung in is not tried again
        seed = derive_seed(self.config.seed, "episode", number, *again)
        stop = self._stop_showing(f"collecting episode {counters.episodes}")
        try:
            (episode,) = self.collector.collect([seed], permit.random, permit.exploration, stop)
        except Stopped:
            if self._progress:
                self._progress.note("the episode in flight is dropped; a resumed run collects it again")
            raise
        except EnvironmentFailure as error:
            self.loop.environment_failed(ACTOR, str(error))
            self.collector.replace_environments()
            return
        if permit.random:
            pace.extend_seed(episode.decisions)
        with self.collector.time_spent.on("storing"):
            self.replay.insert(episode.named(ACTOR, number))

    def submit(self, key: int, weights: Weights) -> None:
        """As EvaluationDesk."""
        self._waiting.append((key, weights))

    def results(self) -> list[tuple[int, list[float], float | None, float]]:
        """As EvaluationDesk: evaluate now. Raises Stopped; the loop still has the evaluations that are not made."""
        done = []
        while self._waiting:
            key, weights = self._waiting.popleft()
            done.append((key, *self.evaluator.evaluate(weights, self._stop_showing("evaluating"))))
        return done

    def _stop_showing(self, what: str) -> Callable[[], bool]:
        """Wrap `should_stop`, asked before each decision, so that it also shows how far the episode is."""
        decisions = count()

        def stop() -> bool:
            if self._progress:
                of = self.agent.spec.episode_decisions
                self._progress.doing(f"{what}: decision {next(decisions)} of {of}")
            return self._should_stop()

        return stop

    def _show_on(self, progress: Progress, should_stop: Callable[[], bool]) -> None:
        self._progress, self._should_stop = progress, should_stop

    def _show(self, line: dict[str, Any]) -> None:
        """Show one line of metrics.jsonl on the display, evaluations apart from training returns."""
        if self._progress is None:
            return
        if line["kind"] == "eval":
            steps = self.config.training.steps_done(line["env_steps"], line["updates"])
            self._progress.evaluation(steps, line["episode_return"], line["success"])
        else:
            self._progress.update(**{name: value for name, value in line.items() if name != "kind"})

    def _dream(self) -> bytes | None:
        """Draw what a world model expects of the episode that was evaluated last, a PNG file; None if there is none."""
        if not isinstance(self.agent.agent, DreamingAgent) or (episode := self.evaluator.first) is None:
            return None
        from qttdm.deploy.runs.dream import imagine_with  # with matplotlib
        from qttdm.deploy.screens.dream import png_of

        dream = imagine_with(self.learner, episode, self.agent.data.stack, self.config.seed)
        return None if dream is None else png_of(dream)

    def _open_replay(self, checkpoint: Checkpoint | None) -> LocalShards:
        """Open all shards that the run has, of a cluster perhaps; one for a new run."""
        c, folder = self.config, self.run_dir.path / "replay"
        if checkpoint is None and folder.exists() and self.learner.generation == 0:
            shutil.rmtree(folder)  # the run begins again, with the same episodes; a cluster's are kept
        mixed = mixture(c, self.agent.spec)
        number = len(mixed) if mixed else max(1, len(list(folder.glob("shard-*"))))
        data = (
            [resized(self.agent.data, d.obs_dim, d.action_dim) for d in mixed] if mixed else [self.agent.data] * number
        )
        share = c.replay.model_copy(update={"capacity": -(-c.replay.capacity // number)})
        config = ShardConfig(replay=share, fsync=c.cluster.fsync, keep_states=c.training.keep_checkpoints + 1)
        shards: list[ReplayShard] = []
        telemetry = [self.telemetry("replay", i) for i in range(number)]
        seed = derive_seed(c.seed, "replay")
        try:
            for i, directory in enumerate(folder / f"shard-{i}" for i in range(number)):
                shards.append(ReplayShard(directory, config, data[i], seed + i))
                report_sizes(shards[-1], directory, telemetry[i])
        except MemoryError as error:
            raise ConfigError(f"replay.capacity={c.replay.capacity} does not fit into memory ({error})") from None
        except ValueError as error:
            raise self._does_not_fit(error) from error
        except RuntimeError as error:
            raise ConfigError(str(error)) from None
        batch_size, seed = self.agent.agent.batch_size, derive_seed(c.seed, "draw")
        if mixed:
            lengths, weights = (
                [(d.obs_dim, d.action_dim) for d in mixed],
                [c.training.shares.get(d.name, 1.0) for d in mixed],
            )
            return MixedReplay(shards, telemetry, batch_size, seed, lengths, weights, LOGGED)
        return LocalShards(shards, telemetry, batch_size, seed)

    def _make_loop(self, checkpoint: Checkpoint | None, accept_losses: bool) -> LearningLoop:
        c = self.config
        try:
            loop = LearningLoop(
                training=c.training,
                learner=self.learner,
                replay=self.replay,
                pace=Pace(
                    c.cluster.pace, c.training.update_ratio, c.training.seed_decisions, c.training.offline_updates
                ),
                run_dir=self.run_dir,
                publish_every=c.cluster.publish_every,
                publish=self._act_with,
                evaluations=self,
                exploration=partial(exploration, c, self.agent.spec),
                shards=len(self.replay.shards),
                timeout_seconds=c.cluster.timeout_seconds,
                checkpoint=checkpoint,
                collect_here=self._collect,
                accept_losses=accept_losses,
            )
        except ConfigError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise self._does_not_fit(error) from error
        loop.metrics.sinks += [
            *make_sinks(c.sinks, self.run_dir.path, c.model_dump(by_alias=True), self._dream),
            self._show,
        ]
        return loop

    def _does_not_fit(self, error: Exception) -> ConfigError:
        reason = str(error).strip().splitlines()[0]
        return ConfigError(
            f"{self.run_dir.path}: its checkpoint does not fit its settings ({reason}); undo the change to "
            f"config.yaml, or use the qttdm that saved it"
        )

    def _report_run(self) -> None:
        """Report to Prometheus as the parts that the run would have on a cluster."""
        report_run(self.loop)
        driver = self.telemetry("driver", 0)
        driver.set(SEED_STATE, 1.0, state="running")


def open_run(run_dir: RunDir, telemetry_of: TelemetryOf = silent) -> LocalRun:
    """Go on with the run in that directory from its newest good checkpoint. ConfigError if that cannot be."""
    config = load_saved_config(run_dir.config_path)
    return LocalRun(config, run_dir, newest_checkpoint(run_dir), telemetry_of(config))


def resume_run(
    run_dir: RunDir, telemetry_of: TelemetryOf = silent, env_steps: int | None = None, accept_losses: bool = False
) -> LocalRun:
    """As `open_run`; a run that was killed before its first checkpoint begins again. accept_losses: as LearningLoop.

    env_steps: train until so many, as if the run had been started with it: linear schedules now end there. It is
    written to config.yaml. ConfigError if the run has had so many already.
    """
    config, checkpoint = load_saved_config(run_dir.config_path), None
    if CheckpointStore(run_dir.checkpoints_dir).newest() is None:
        print(f"{run_dir.path}: there is no checkpoint yet, starting from the beginning")
    else:
        checkpoint = newest_checkpoint(run_dir)
    done = checkpoint.meta["counters"]["env_steps"] if checkpoint else 0
    if env_steps is not None:
        config = with_env_steps(config, env_steps, done, run_dir)
    run = LocalRun(config, run_dir, checkpoint, telemetry_of(config), accept_losses)
    if env_steps is not None:  # not before the run has shown that it can go on
        replace_file(run_dir.config_path, dump_config(config).encode())
    elif run.loop.finished:
        had = f"its {done:,} steps" if done else f"its {config.training.offline_updates:,} offline updates"
        print(f"{run_dir.path}: has had {had}; --env-steps {2 * done or 10_000} would train longer")
    return run


def new_run(config: RunConfig, run_dir: RunDir, telemetry_of: TelemetryOf = silent) -> LocalRun:
    """Make a fresh run in a directory just made; its resolved configuration is written first.

    If the run cannot be built the directory goes again, so that the corrected command finds its name free.
    """
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"shards": 1})})
    try:
        write_file(run_dir.config_path, dump_config(config).encode())
        write_file(run_dir.machine_path, json.dumps(machine()).encode())
        sync_file(run_dir.path.absolute().parent)
        return LocalRun(config, run_dir, telemetry=telemetry_of(config))
    except (ConfigError, DiskError):
        shutil.rmtree(run_dir.path)
        raise

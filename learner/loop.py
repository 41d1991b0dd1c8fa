"""The learner's side of Algorithm 1 when others collect: as many updates as their decisions ask for, weights out.

    shards    --news-->     counters, `train` lines of metrics.jsonl
    shards    --batches-->  update --> weights for everyone, `update` lines
    evaluator --results-->  `eval` lines

Knows nothing of processes: replay, publishing and evaluating come in as objects (learner/remote.py has them over Ray).
What counts is what the shards have on disk. The loop reads it from them like a newspaper, from where its last
checkpoint left off, so a kill of anyone neither loses nor doubles an episode in the counters or in metrics.jsonl.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from qttdm.common.checkpoint import Checkpoint, CheckpointStore
from qttdm.common.config import ConfigError
from qttdm.common.events import EventLog
from qttdm.common.metrics.process import FAILURES
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import Weights, updates_of
from qttdm.learner.counters import Counters
from qttdm.learner.evaluations import EvaluationDesk, Evaluations
from qttdm.learner.learner import Learner, NonFiniteLossError
from qttdm.learner.measure import Rates, TimeSpent, open_metrics
from qttdm.learner.schedule import TrainingConfig
from qttdm.learner.tickets import Rounds, Ticket
from qttdm.replay.limiter import Pace
from qttdm.replay.news import MOST_EPISODES, News, StoredEpisode
from qttdm.replay.source import ReplaySource

HEAR_EVERY = 0.2  # seconds between two looks at the news while there is work
LOOK_EVERY = 0.1  # seconds between two looks when there is none, unless an actor says that it has stored something


class LearningLoop:
    """`run()` until the run's end; `ticket()` and `status()` may be called from other threads meanwhile."""

    def __init__(
        self,
        training: TrainingConfig,
        learner: Learner,
        replay: ReplaySource,
        pace: Pace,
        run_dir: RunDir,
        publish_every: int,
        publish: Callable[[Weights], None],
        evaluations: EvaluationDesk,
        exploration: Callable[[int], float],
        shards: int,
        timeout_seconds: float,
        accept_losses: bool = False,
    ) -> None:
        """Goes on from the run directory's newest checkpoint if it has one.

        publish_every: updates. exploration: of the environment steps so far. timeout_seconds: how long to wait for
        anything before saying so in events.log. ConfigError if the replay holds less than the checkpoint counts on,
        unless accept_losses.
        """
        self.training, self.learner, self.replay, self.pace, self.run_dir = training, learner, replay, pace, run_dir
        self.publish_every, self._publish_weights = publish_every, publish
        self.exploration, self.timeout_seconds = exploration, timeout_seconds
        self.rounds, self.evaluations = Rounds(pace), Evaluations(evaluations)
        self.events = EventLog(run_dir.events_path, "learner")
        self.store = CheckpointStore(run_dir.checkpoints_dir, training.keep_checkpoints)
        self.counters, self.cursors = Counters(), [0] * shards
        self.telemetry = learner.telemetry
        self.spent = TimeSpent(self.telemetry)
        self.version, self.finished = -1, False
        self.newest: dict[str, Any] = {}
        """the newest value of everything reported"""
        self._asking = threading.Lock()  # actors ask from several threads: one ticket after the other
        self._boots: dict[int, str] = {}
        self._stop, self._told = threading.Event(), threading.Event()
        checkpoint = self.store.load_latest()
        metrics_bytes = self._load(checkpoint, accept_losses) if checkpoint is not None else 0
        self.metrics = open_metrics(run_dir.metrics_path, metrics_bytes, self.telemetry)
        self._opened = self._moved_at = self._complained_at = time.monotonic()
        self._heard_at, self._has_heard = 0.0, False
        self._started = self._opened - self.counters.wall_seconds
        self._first_updates = learner.updates
        self.rates = Rates(self.spent, learner.updates, self.counters.decisions)

    def run(self, on_step: Callable[[], object] = lambda: None) -> Literal["finished", "stopped"]:
        """Until `env_steps` are collected and their updates made, or `stop()`. Ends with a checkpoint.

        on_step: called between any two things it does, each of which waits for others once at most. Raises
        NonFiniteLossError, naming the last good checkpoint.
        """
        try:
            self._publish()
            while not self._stop.is_set():
                on_step()
                self._hear()
                on_step()
                if self.pace.want_sample:
                    self._update()
                elif self.collected:
                    self._finish(on_step)
                    return "finished" if self.finished else "stopped"
                else:
                    self._wait(self.pace.waiting_for())
                self._evaluate()
                if self.counters.env_steps // self.training.checkpoint_every > self.counters.checkpoints:
                    on_step()
                    self._save()
            on_step()
            self._save()
            return "stopped"
        except NonFiniteLossError as error:
            last = self.store.newest()
            kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
            raise NonFiniteLossError(f"{error}; {kept}") from None

    @property
    def collected(self) -> bool:
        """Are all environment steps of the run in replay?"""
        return self.counters.env_steps >= self.training.env_steps

    def stop(self) -> None:
        """Make `run` save and return, after the update under way."""
        self._stop.set()
        self._told.set()

    def ticket(self, actor: int, boot: str, stored: int = 0) -> Ticket:
        """May this actor begin another round of episodes?

        boot: tells one process of this actor from the next. stored: decisions that it has put into replay since it
        asked last.
        """
        with self._asking:
            return self._ticket(actor, boot, stored)

    def _ticket(self, actor: int, boot: str, stored: int) -> Ticket:
        now = time.monotonic()
        self.rounds.ended(actor, stored, now)
        if stored:
            self._told.set()
        if self._boots.setdefault(actor, boot) != boot:
            self._boots[actor] = boot
            self.counters.actor_restarts += 1
            self.events.write(f"actor {actor} is back in a new process")
        if self.collected or self.finished or self._stop.is_set():
            return Ticket("done")
        if not self._has_heard:  # of what was stored since the checkpoint, which may be owed already
            return Ticket("wait", retry_seconds=LOOK_EVERY, reason="the learner to read what was stored")
        update_seconds = self.spent.per_update(self.learner.updates - self._first_updates)
        excess = self.rounds.excess(actor, update_seconds)
        if excess >= 0:  # ask again when they may be made, but not too often: a question costs this process its time
            return Ticket("wait", retry_seconds=min(1.0, max(0.05, (excess + 1) * update_seconds)))
        self.rounds.began(actor, now)
        return Ticket(
            "collect",
            random=self.pace.decisions < self.pace.seed_decisions,
            exploration=self.exploration(self.counters.env_steps),
            version=self.version,
        )

    def environment_failed(self, actor: int, why: str) -> None:
        """An actor replaced its environments."""
        self.counters.environment_failures += 1
        self.events.write(f"actor {actor} replaced its environments: {why}")

    def status(self) -> dict[str, Any]:
        """Plain numbers of where the run is; seconds and shares are since this learner's start."""
        now = time.monotonic()
        return {
            **self.newest,
            **asdict(self.counters),
            "wall_seconds": now - self._started,
            "updates": self.learner.updates,
            "owed": self.pace.owed,
            "version": self.version,
            "seconds": now - self._opened,
            "spent": dict(self.spent.seconds),
            "seconds_since_progress": now - self._moved_at,
            "finished": self.finished,
        }

    def _hear(self) -> None:
        """Read the news of the shards: counters, pace, `train` lines."""
        now = time.monotonic()
        if self.pace.want_sample and now - self._heard_at < HEAR_EVERY:
            return
        self._heard_at = now
        c = self.counters
        more = True
        while more:
            if not (news := self._news()):
                return
            for shard, told in enumerate(news):
                for episode in told.episodes:
                    self._count(episode)
                self.cursors[shard] = told.cursor
            more = any(len(told.episodes) == MOST_EPISODES for told in news)
        # The totals also know of episodes that were evicted before they could be told of.
        c.env_steps = sum(told.totals.env_steps for told in news)
        c.decisions = sum(told.totals.decisions for told in news)
        c.episodes = sum(told.totals.episodes for told in news)
        self._plan_evaluation()
        if c.decisions > self.pace.decisions:
            self._moved_at = now
            self.pace.inserted(c.decisions - self.pace.decisions)
        self.evaluations.hand_in_due(self.learner)  # of the present weights: before another update
        self.rounds.heard(now)
        self._has_heard = True

    def _news(self) -> list[News]:
        """Of each shard, since its cursor; none if the shards did not answer in time, which is then in events.log."""
        try:
            return self.replay.news(self.cursors)
        except TimeoutError as error:
            self._late(error)
            return []

    def _count(self, episode: StoredEpisode) -> None:
        """One more episode, and its line."""
        c = self.counters
        c.env_steps += episode.env_steps
        c.decisions += episode.decisions
        c.episodes += 1
        self._report(
            "train",
            actor=episode.actor,
            episode_return=episode.episode_return,
            episode_length=episode.decisions,
            success=episode.success,
            staleness=max(0, self.learner.updates - updates_of(episode.oldest_weights)),
        )
        self._plan_evaluation()

    def _plan_evaluation(self) -> None:
        """If one is due at the decisions counted now: of the weights with all the updates that these ask for."""
        c = self.counters
        if c.env_steps // self.training.eval_every > c.evaluations:
            c.evaluations = c.env_steps // self.training.eval_every
            to_come = self.pace.updates_for(c.decisions) - self.pace.updates
            self.evaluations.plan(self._counts() | {"updates": self.learner.updates + math.floor(to_come)})

    def _update(self) -> None:
        """Algorithm 1, lines 3-14, once; what is due by the number of updates."""
        try:
            with self.spent.on("waiting_for_batches"):
                batch = self.replay.next()
        except TimeoutError as error:
            self._late(error)
            return
        with self.spent.on("copying"):
            staged = self.learner.stage(batch)
        with self.spent.on("updating"):
            self.learner.update_staged(staged)
        self.pace.sampled()
        self._moved_at = time.monotonic()
        if self.learner.updates % self.publish_every == 0:
            self._publish()
        if self.learner.updates % self.training.log_every == 0:
            self._log()

    def _wait(self, reason: str) -> None:
        """A moment in which there is nothing to do; after a while without progress the reason goes to events.log."""
        started = time.monotonic()
        with self.spent.on("waiting_for_decisions"):
            self._told.wait(LOOK_EVERY)
        self._told.clear()
        if started - max(self._moved_at, self._complained_at) > self.timeout_seconds:
            self._complained_at = started
            self.events.write(f"{reason}, for {started - self._moved_at:.0f} s")

    def _publish(self) -> None:
        """A snapshot for everyone who plans."""
        with self.spent.on("publishing"):
            weights = self.learner.weights()
            self._publish_weights(weights)
        self.version = weights.version

    def _evaluate(self) -> None:
        """Hand in the evaluations whose time has come, and write down those that have ended."""
        self.evaluations.hand_in_due(self.learner)
        self._take_results()

    def _take_results(self) -> None:
        """`eval` lines, with the counters of when they were planned."""
        for counts, values in self.evaluations.results():
            self.metrics.write("eval", **(counts | {"wall_seconds": self._wall_seconds()}), **values)
            if counts["env_steps"] >= self.newest.get("eval_env_steps", 0):
                self.newest |= {"eval_return": values["episode_return"], "eval_env_steps": counts["env_steps"]}

    def _finish(self, on_step: Callable[[], object]) -> None:
        """A last evaluation unless the newest weights have one; all results; the last checkpoint."""
        self._evaluate()
        if self.evaluations.last_updates != self.learner.updates:
            self.evaluations.hand_in(self._counts(), self.learner)
        self._moved_at = time.monotonic()
        while self.evaluations and not self._stop.is_set():
            on_step()
            self._wait(f"the learner waits for {len(self.evaluations)} evaluations")
            self._take_results()
        self.finished = not self.evaluations
        self._save()

    def _log(self) -> None:
        """An `update` line: the losses since the last one, and where the time went."""
        losses = self.learner.drain()
        rates = self.rates(self.learner.updates, self.counters.decisions)
        if losses:
            self._report("update", **losses, **self.learner.learning_rates(), **rates)

    def _save(self) -> None:
        """An atomic checkpoint. The replay is not in it: shards keep theirs, and the cursors say how much counts."""
        self._log()
        with self.spent.on("saving"):
            self._checkpoint()

    def _checkpoint(self) -> None:
        try:
            self.replay.sync()  # or a power cut could leave a checkpoint that counts on more than the disk has
        except TimeoutError as error:
            self._late(error)
        c = self.counters
        c.checkpoints = c.env_steps // self.training.checkpoint_every
        c.wall_seconds = self._wall_seconds()
        evaluations, blobs = self.evaluations.save()
        meta = {
            "counters": asdict(c),
            "pace": self.pace.save(),
            "cursors": self.cursors,
            **evaluations,
            "metrics_bytes": self.metrics.sync(),
            "finished": self.finished,
        }
        self.store.save(c.env_steps, self.learner.state(), meta, blobs)

    def _load(self, checkpoint: Checkpoint, accept_losses: bool) -> int:
        """Undo `_save`; returns how many bytes of metrics belong to it."""
        meta = checkpoint.meta
        self.learner.load_state(checkpoint.tensors)
        self.counters = Counters(**meta["counters"])
        if len(meta["cursors"]) != len(self.cursors):
            raise ConfigError(
                f"{self.run_dir.path}: its checkpoint is of {len(meta['cursors'])} replay shards, got "
                f"cluster.shards={len(self.cursors)}; the number of shards of a run cannot change"
            )
        self.cursors = list(meta["cursors"])
        self.pace.load(meta["pace"])
        self.finished = meta["finished"]
        self._check_replay(accept_losses)
        self.evaluations.load(meta, checkpoint.blobs)
        for message in [*checkpoint.skipped, f"goes on from the checkpoint at {self.learner.updates} updates"]:
            self.events.write(message)
        return int(meta["metrics_bytes"])

    def _check_replay(self, accept_losses: bool) -> None:
        """ConfigError unless the shards have what the checkpoint counts on: without it the return may collapse."""
        while not (news := self._news()):  # a large shard takes its time to read itself back from disk
            pass
        held = sum(told.totals.decisions for told in news)
        if held >= self.pace.decisions:
            return
        losses = f"its checkpoint counts on {self.pace.decisions} decisions in replay, its shards have had {held}"
        if not accept_losses:
            raise ConfigError(
                f"{self.run_dir.path}: {losses}; bring back the replay/ folder that belongs to it, or go on with what "
                f"is left: qttdm cluster resume NAME --accept-losses"
            )
        self.events.write(f"{losses}; goes on with those, as was asked for")
        self.pace.lost(self.pace.decisions - held)

    def _late(self, error: TimeoutError) -> None:
        """Someone did not answer in time."""
        self.telemetry.inc(FAILURES, kind="timeout")
        self.events.write(str(error))

    def _counts(self) -> dict[str, Any]:
        """The counters that every line begins with."""
        c = self.counters
        return {
            "env_steps": c.env_steps,
            "decisions": c.decisions,
            "updates": self.learner.updates,
            "episodes": c.episodes,
            "wall_seconds": self._wall_seconds(),
        }

    def _report(self, kind: str, **values: Any) -> None:
        """One line of metrics.jsonl, and for whoever asks for the status."""
        self.metrics.write(kind, **self._counts(), **values)
        self.newest |= values

    def _wall_seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

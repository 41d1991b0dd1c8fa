"""Algorithm 1: an update for each decision collected; evaluations and checkpoints when due.

    replay    --pages-->    counters, `train` lines of metrics.jsonl
    replay    --batches-->  update --> weights for actors and evaluator, `update` lines
    evaluator --results-->  `eval` lines

Knows nothing of processes: replay, publishing, evaluating and collecting come in as objects. On a cluster they are
elsewhere and ask for permits (learner/remote.py); on one machine an episode is collected here whenever no update is
due, the paper's alternation (deploy/runs/local.py). What counts is what the replay has on disk: the loop reads on
from where its last checkpoint left off, so a kill neither loses nor doubles an episode in the counters or the metrics.

Over 400 lines, since saving, loading and reporting are of the same counters that the algorithm moves.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, Literal

from qttdm.common.batch import Batch
from qttdm.common.checkpoint import Checkpoint, CheckpointStore
from qttdm.common.config import ConfigError
from qttdm.common.contracts import Learner
from qttdm.common.episode import EnvironmentFailure
from qttdm.common.events import EventLog
from qttdm.common.metrics.process import FAILURES
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import Weights, updates_of
from qttdm.learner.counters import Counters
from qttdm.learner.cursors import Cursors
from qttdm.learner.evaluations import EvaluationDesk, Evaluations
from qttdm.learner.learner import NonFiniteLossError
from qttdm.learner.metrics import Rates, open_metrics, seconds_per_update, time_spent
from qttdm.learner.permits import Permit, Rounds
from qttdm.learner.saved import start_from
from qttdm.learner.schedule import TrainingConfig
from qttdm.replay.feed import PAGE_EPISODES, EpisodePage, EpisodesLostError, StoredEpisode
from qttdm.replay.limiter import Pace
from qttdm.replay.source import ReplaySource

READ_EVERY = 0.2  # seconds between two looks for new episodes while there are updates to make
MOST_FAILURES = 3  # of one actor's environments, without an episode in between, after which the run ends
WAIT_SECONDS = 0.1  # between two looks when there are none, unless an actor says that it has stored something


class LearningLoop:
    """`run()` until the run's end; `request_collect()` and `status()` may be called from other threads meanwhile."""

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
        checkpoint: Checkpoint | None = None,
        collect_here: Callable[[Permit], None] | None = None,
        accept_losses: bool = False,
    ) -> None:
        """Goes on from the checkpoint, if there is one.

        publish_every: updates. exploration: of the environment steps so far. timeout_seconds: how long to wait for
        anything before saying so in events.log. collect_here: puts one episode into replay; None where actors ask.
        ConfigError if the replay or metrics.jsonl holds less than the checkpoint counts on, unless accept_losses.
        """
        self.training, self.learner, self.replay, self.pace, self.run_dir = training, learner, replay, pace, run_dir
        self.publish_every, self._publish_weights, self._collect_here = publish_every, publish, collect_here
        self.exploration, self.timeout_seconds = exploration, timeout_seconds
        self.rounds, self.evaluations = Rounds(pace), Evaluations(evaluations)
        self.events = EventLog(run_dir.events_path, "learner")
        self.store = CheckpointStore(run_dir.checkpoints_dir, training.keep_checkpoints)
        self.counters, self.cursors = Counters(), Cursors(shards)
        self.telemetry = learner.telemetry
        self.spent = time_spent(self.telemetry)
        self.version, self.finished = -1, False
        self.newest: dict[str, Any] = {}
        """the newest value of everything reported"""
        self._asking = threading.Lock()  # actors ask from several threads: one permit after the other
        self._processes: dict[int, str] = {}
        self._failures: dict[int, list[str]] = {}  # of each actor's environments, since its last episode
        self._stop, self._stored = threading.Event(), threading.Event()
        metrics_bytes = self._load(checkpoint, accept_losses) if checkpoint is not None else 0
        if checkpoint is None and training.start_from is not None:
            start_from(learner, training.start_from)
        self.metrics = open_metrics(run_dir.metrics_path, metrics_bytes, self.telemetry, accept_losses)
        self._opened = self._moved_at = self._complained_at = time.monotonic()
        self._read_at, self._has_read = 0.0, False
        self._started = self._opened - self.counters.wall_seconds
        self._first_updates = self._logged_updates = learner.updates
        self.rates = Rates(self.spent, learner.updates, self.counters.decisions)

    def run(self, on_step: Callable[[], object] = lambda: None) -> Literal["finished", "stopped"]:
        """Train until `env_steps` are collected and their updates made, or `stop()`; then save a checkpoint.

        on_step: called between any two things it does, each of which waits for others once at most. Raises
        NonFiniteLossError, naming the last good checkpoint; EnvironmentFailure, all saved, when an actor's environments
        fail MOST_FAILURES times in a row; and what evaluating in this process raises.
        """
        try:
            self._publish()
            if self.training.start_from is not None and self.store.newest() is None:
                on_step()
                self.save()  # a learner that is started again goes on from here, whatever became of the source
            while not (self._stop.is_set() or self.finished):
                on_step()
                self._read_new_episodes()
                self._check_environments()
                self._evaluate()
                on_step()
                self._save_if_due(on_step)
                if self.pace.can_sample:
                    self._update(on_step)
                elif not self.collected:
                    self._collect()
                else:
                    self._finish(on_step)
            on_step()
            self.save()
            return "finished" if self.finished else "stopped"
        except NonFiniteLossError as error:
            last = self.store.newest()
            kept = f"the last good checkpoint is {last}" if last else "there was no checkpoint yet"
            raise NonFiniteLossError(f"{error}; {kept}") from None

    @property
    def collected(self) -> bool:
        """Are all environment steps of the run in replay?"""
        return self.counters.env_steps >= self.training.env_steps

    @property
    def _steps_done(self) -> int:
        """Offline updates and environment steps so far: by them evaluations and checkpoints are due."""
        return self.training.steps_done(self.counters.env_steps, self.learner.updates)

    @property
    def _is_offline(self) -> bool:
        """Is the data set all there is, so far?"""
        return self.learner.updates <= self.training.offline_updates and self.counters.env_steps == 0

    def stop(self) -> None:
        """Make `run` save and return, after what is under way."""
        self._stop.set()
        self._stored.set()

    def request_collect(self, actor: int, process: str, stored: int = 0) -> Permit:
        """May this actor begin another round of episodes?

        process: names the actor's process; a restart has another. stored: decisions inserted since it asked last.
        """
        with self._asking:
            return self._answer(actor, process, stored)

    def _answer(self, actor: int, process: str, stored: int) -> Permit:
        now = time.monotonic()
        self.rounds.ended(actor, stored, now)
        if stored:
            self._stored.set()
        if self._processes.setdefault(actor, process) != process:
            self._processes[actor] = process
            self.counters.actor_restarts += 1
            self.events.write(f"actor {actor} is back in a new process")
        if self.collected or self.finished or self._stop.is_set():
            return Permit("done")
        if not self._has_read:  # what was stored since the checkpoint, whose updates may be due already
            return Permit("wait", retry_seconds=WAIT_SECONDS, reason="the learner to read what was stored")
        update_seconds = seconds_per_update(self.spent, self.learner.updates - self._first_updates)
        updates = self.rounds.updates_before_insert(actor, update_seconds)
        if updates >= 0:  # ask again when they may be made, but not too often: a question costs this process its time
            return Permit("wait", retry_seconds=min(1.0, max(0.05, (updates + 1) * update_seconds)))
        self.rounds.began(actor, now)
        return self._permit()

    def _permit(self) -> Permit:
        """Make a permit to collect now."""
        return Permit(
            "collect",
            random=self.pace.decisions < self.pace.seed_decisions,
            exploration=self.exploration(self.counters.env_steps),
            version=self.version,
        )

    def environment_failed(self, actor: int, why: str) -> None:
        """Count that an actor dropped an episode and replaces its environments."""
        self.counters.environment_failures += 1
        self._failures[actor] = [*self._failures.get(actor, ()), " ".join(why.split())]
        self.events.write(f"actor {actor} replaced its environments: {why}")

    def _check_environments(self) -> None:
        """Save and raise EnvironmentFailure if an actor's environments have failed too often in a row."""
        if all(len(reasons) < MOST_FAILURES for reasons in [*self._failures.values()]):  # actors report meanwhile
            return
        self._read_at = 0.0  # an episode that was stored in between counts
        if not self._read_new_episodes():
            return
        for actor, reasons in [*self._failures.items()]:
            if len(reasons) >= MOST_FAILURES:
                self.save()
                advice = "the run is saved and can be resumed"
                if self.counters.episodes == 0:
                    advice = "no episode has gone well yet: mend the environment first"
                raise EnvironmentFailure(
                    f"{reasons[-1]}; that was {len(reasons)} times in a row of actor {actor}; {advice}"
                )

    def status(self) -> dict[str, Any]:
        """Say where the run is in plain numbers; seconds and shares are since this learner's start."""
        now = time.monotonic()
        return {
            **self.newest,
            **asdict(self.counters),
            "wall_seconds": now - self._started,
            "updates": self.learner.updates,
            "backlog": self.pace.backlog,
            "version": self.version,
            "seconds": now - self._opened,
            "spent": dict(self.spent.seconds),
            "seconds_since_progress": now - self._moved_at,
            "finished": self.finished,
        }

    def _read_new_episodes(self) -> bool:
        """Count what the shards have stored since the last look: counters, pace, `train` lines, evaluations due.

        False if it was not time to look yet, or they did not answer.
        """
        now = time.monotonic()
        if self.pace.can_sample and now - self._read_at < READ_EVERY:
            return False
        self._read_at = now
        c = self.counters
        more = True
        while more:
            if not (pages := self._next_pages()):
                return False
            for shard, page in enumerate(pages):
                for episode in page.episodes:
                    self._count(episode)
                self.cursors.positions[shard] = page.cursor
            more = any(len(page.episodes) == PAGE_EPISODES for page in pages)
        # The totals also know of episodes that were evicted before they could be read.
        c.env_steps = sum(page.totals.env_steps for page in pages)
        c.decisions = sum(page.totals.decisions for page in pages)
        c.episodes = sum(page.totals.episodes for page in pages)
        self._plan_evaluation()
        if c.decisions > self.pace.decisions:
            self._moved_at = now
            self.pace.inserted(c.decisions - self.pace.decisions)
        self.rounds.counted(now)
        self._has_read = True
        return True

    def _next_pages(self) -> list[EpisodePage]:
        """Read each shard's page from its cursor on; [] if they did not answer in time, which events.log then says."""
        try:
            return self.replay.episodes_since(self.cursors.positions)
        except TimeoutError as error:
            self._report_timeout(error)
            return []

    def _count(self, episode: StoredEpisode) -> None:
        """Count one more episode, and write its line."""
        self._failures.pop(episode.actor, None)
        c = self.counters
        c.env_steps += episode.env_steps
        c.decisions += episode.decisions
        c.episodes += 1
        if episode.env_steps == 0:  # of a data set
            return
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
        """Plan an evaluation if one is due now: of the weights with all the updates that the decisions ask for."""
        c = self.counters
        if self.training.eval_episodes and self._steps_done // self.training.eval_every > c.evaluations:
            c.evaluations = self._steps_done // self.training.eval_every
            to_come = 0.0 if self._is_offline else self.pace.updates_for(c.decisions) - self.pace.updates
            self.evaluations.plan(self._counts() | {"updates": self.learner.updates + math.floor(to_come)})

    def _update(self, on_step: Callable[[], object]) -> None:
        """Make one update (lines 3-14); publish and log when due."""
        try:
            with self.spent.on("waiting_for_batches"):
                if self.learner.updates == 0 and self.training.start_from is None:
                    self.learner.prepare(self._batches(on_step))
                batch = self.replay.next()
        except TimeoutError as error:
            self._report_timeout(error)
            return
        with self.spent.on("updating"):
            self.learner.update(batch)
        self.pace.sampled()
        self._moved_at = time.monotonic()
        if self._is_offline:
            self._plan_evaluation()
        if self._collect_here is None and self.learner.updates % self.publish_every == 0:
            self._publish()
        if self.learner.updates - self._logged_updates >= self.training.log_every or self._is_between_episodes:
            self._log()

    def _batches(self, on_step: Callable[[], object]) -> Iterator[Batch]:
        """Draw batches without end."""
        while True:
            on_step()
            yield self.replay.next()

    @property
    def _is_between_episodes(self) -> bool:
        """Is the next one to be collected in this process, all updates made?"""
        return self._collect_here is not None and not self.pace.can_sample

    def _collect(self) -> None:
        """Collect one episode with the newest weights (line 2), or wait for a moment for those of others."""
        if self._collect_here is None:
            self._wait(self.pace.waiting_for())
            return
        self._publish()
        with self.spent.on("waiting_for_decisions"):
            self._collect_here(self._permit())

    def _wait(self, reason: str) -> None:
        """Wait for a moment; after a while without progress the reason goes to events.log."""
        started = time.monotonic()
        with self.spent.on("waiting_for_decisions"):
            self._stored.wait(WAIT_SECONDS)
        self._stored.clear()
        if started - max(self._moved_at, self._complained_at) > self.timeout_seconds:
            self._complained_at = started
            self.events.write(f"{reason}, for {started - self._moved_at:.0f} s")

    def _publish(self) -> None:
        """Hand a snapshot to all that act."""
        with self.spent.on("publishing"):
            weights = self.learner.weights()
            self._publish_weights(weights)
        self.version = weights.version

    def _evaluate(self) -> None:
        """Hand in the evaluations whose updates are made, and write an `eval` line for each that has ended."""
        self.evaluations.hand_in_due(self.learner)
        for counts, values in self.evaluations.results():
            self.metrics.write("eval", **(counts | {"wall_seconds": self._wall_seconds()}), **values)
            if counts["env_steps"] >= self.newest.get("eval_env_steps", 0):
                self.newest |= {"eval_return": values["episode_return"], "eval_env_steps": counts["env_steps"]}

    def evaluate_newest(self) -> None:
        """Evaluate the newest weights unless that is done, or nothing is evaluated."""
        self._evaluate()
        if self.training.eval_episodes and self.evaluations.last_updates != self.learner.updates:
            self.evaluations.hand_in(self._counts(), self.learner)
            self._evaluate()

    def _finish(self, on_step: Callable[[], object]) -> None:
        """Evaluate the last weights, and wait for all results."""
        self.evaluate_newest()
        self._moved_at = time.monotonic()
        while self.evaluations and not self._stop.is_set():
            on_step()
            self._wait(f"the learner waits for {len(self.evaluations)} evaluations")
            self._evaluate()
        self.finished = not self.evaluations

    def _log(self) -> None:
        """Write an `update` line: the losses since the last one, and where the time went."""
        self._logged_updates = self.learner.updates
        losses = self.learner.drain()
        rates = self.rates(self.learner.updates, self.counters.decisions)
        if losses:
            self._report("update", **losses, **rates)

    def _save_if_due(self, on_step: Callable[[], object]) -> None:
        """Save at multiples of `checkpoint_every`; in the alternation when its updates are made."""
        due = self._steps_done // self.training.checkpoint_every > self.counters.checkpoints
        if due and (self._collect_here is None or self._is_between_episodes or self._is_offline):
            self.save()
            on_step()

    def save(self) -> None:
        """Write an atomic checkpoint. Episodes are not in it: shards keep them, and the cursors say how many count."""
        self._log()
        with self.spent.on("saving"):
            try:
                replay = self.replay.save()  # on disk, or a power cut could leave a checkpoint that counts on more
            except TimeoutError as error:
                self._report_timeout(error)
                replay = {}
            c = self.counters
            c.checkpoints = self._steps_done // self.training.checkpoint_every
            c.wall_seconds = self._wall_seconds()
            evaluations, weights = self.evaluations.save()
            meta = {
                "counters": asdict(c),
                "pace": self.pace.save(),
                **self.cursors.save(),
                **evaluations,
                "metrics_bytes": self.metrics.sync(),
                "finished": self.finished,
            }
            self.store.save(c.env_steps, self.learner.state(), meta, replay | weights)

    def _load(self, checkpoint: Checkpoint, accept_losses: bool) -> int:
        """Undo `save`; returns how many bytes of metrics belong to it."""
        meta = checkpoint.meta
        self.learner.load_state(checkpoint.tensors)
        self.counters = Counters(**meta["counters"])
        try:
            self.cursors.load(meta)
        except ValueError as error:
            raise ConfigError(f"{self.run_dir.path}: {error}") from None
        self.pace.load(meta["pace"])
        self.finished = meta["finished"] and self.collected  # more steps may be wanted since
        lost = ""
        try:
            self.replay.load(checkpoint.blobs)
        except EpisodesLostError as error:
            lost = str(error)
        self._check_replay(accept_losses, lost)
        self.evaluations.load(meta, checkpoint.blobs)
        for message in [*checkpoint.skipped, f"goes on from the checkpoint at {self.learner.updates} updates"]:
            self.events.write(message)
        return int(meta["metrics_bytes"])

    def _check_replay(self, accept_losses: bool, lost: str) -> None:
        """Raise ConfigError unless the shards have what the checkpoint counts on: else the return may collapse.

        lost: what they said when they were to go back to it.
        """
        while not (pages := self._next_pages()):  # a large shard takes its time to read itself back from disk
            pass
        held = sum(page.totals.decisions for page in pages)
        missing = self.cursors.new_losses(pages) or ([lost] if lost else [])
        if held >= self.pace.decisions and not missing:
            return
        named = f" ({', '.join(missing[:3])}{', ..' if len(missing) > 3 else ''})" if missing else ""
        losses = (
            f"its checkpoint counts on {self.pace.decisions} decisions in replay, its shards have had {held}{named}"
        )
        if not accept_losses:
            here = f"qttdm train --resume {self.run_dir.path}" if self._collect_here else "qttdm cluster resume NAME"
            raise ConfigError(
                f"{self.run_dir.path}: {losses}; bring back the replay/ folder that belongs to it, or go on with what "
                f"is left: {here} --accept-losses"
            )
        self.events.write(f"{losses}; goes on with those, as was asked for")
        if self._collect_here:
            print(f"{self.run_dir.path}: {losses}; goes on with those")
        self.pace.lost(max(0, self.pace.decisions - held))
        self.cursors.go_back(pages)

    def _report_timeout(self, error: TimeoutError) -> None:
        """Count that someone did not answer in time, and say who."""
        self.telemetry.inc(FAILURES, kind="timeout")
        self.events.write(str(error))

    def _counts(self) -> dict[str, Any]:
        """Return the counters that every line begins with."""
        c = self.counters
        return {
            "env_steps": c.env_steps,
            "decisions": c.decisions,
            "updates": self.learner.updates,
            "episodes": c.episodes,
            "wall_seconds": self._wall_seconds(),
        }

    def _report(self, kind: str, **values: Any) -> None:
        """Write one line of metrics.jsonl, and keep it for `status`."""
        self.metrics.write(kind, **self._counts(), **values)
        self.newest |= values

    def _wall_seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)

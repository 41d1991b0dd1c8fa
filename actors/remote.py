"""Collecting and evaluating as Ray actors.

    learner <--ticket--  CollectorActor --episodes--> shards      one process, E environments in lockstep
    learner --take-----> CollectorActor                           new weights, used from the next decision on
    learner --evaluate-> EvaluatorActor

`CollectorActor.run` is retried by Ray after a kill, in a new process: it asks the learner for weights and the shards
for the number of its next episode, and goes on. Lost is what was in flight.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from qttdm.actors.attempts import MOST_ATTEMPTS, Attempts
from qttdm.actors.diagnosis import tell_evaluation
from qttdm.actors.episodes import EnvironmentFailure, run_episodes
from qttdm.actors.evaluation import evaluate
from qttdm.actors.measured import ACTOR_SECONDS, MeasuredPolicy
from qttdm.common.contracts import DataSpec, Policy
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.episode import Episode
from qttdm.common.events import EventLog, Waiting
from qttdm.common.metrics.instruments import gauge
from qttdm.common.metrics.process import CALLS, FAILURES
from qttdm.common.metrics.telemetry import Activities, MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import GENERATION, Weights, updates_of
from qttdm.planner_service.policies.random_actions import RandomPolicy
from qttdm.replay.client import shard_of
from qttdm.replay.codec import encode

LOWEST_PRIORITY = 19  # Linux's; Ray's own for its workers is 15
ASK_EVERY = 5.0  # seconds after the last word from the learner at which a collector asks whether its weights are old


@dataclass(frozen=True)
class ActorSettings:
    """What a collector or an evaluator is started with: small, since a restart gets it again."""

    run_dir: Path
    seed: int
    """the run's"""
    make_env: Callable[[], TaskEnv]
    make_policy: Callable[[Callable[[], object]], Policy]
    """given what to call while it waits for another process, so that this is not taken for hanging"""
    data: DataSpec
    """the agent's"""
    envs: int
    """E, environments stepped in lockstep and planned for in one batch"""
    threads: int
    """torch's"""
    max_staleness: int
    """updates that the newest published weights may be ahead of those acted on"""
    hang_seconds: float
    """a decision, planning and simulating together, that takes longer has hung"""
    timeout_seconds: float
    """how long to wait for another process before saying so in events.log"""
    telemetry: MakeTelemetry = Telemetry.silent


STALENESS = gauge(
    "qttdm_staleness_updates", ("actor",), "updates", "that the newest weights known are ahead of those acting now"
)
STALENESS_LIMIT = gauge(
    "qttdm_staleness_limit_updates",
    ("actor",),
    "updates",
    "cluster.max_staleness: beyond it the actor fetches newer ones",
)


class CollectorActor:
    """Actor number `index` of one seed. `take` and `alive` are answered while `run` runs."""

    def __init__(self, settings: ActorSettings, index: int, learner: str, shards: list[str]) -> None:
        """Names of the actors it works with, which must be there."""
        torch.set_num_threads(settings.threads)
        self.settings, self.index = settings, index
        self.telemetry = settings.telemetry("actor", index)
        self.time_spent = Activities(self.telemetry, ACTOR_SECONDS, rest="simulating")
        self.learner, self.shards = ray.get_actor(learner), [ray.get_actor(name) for name in shards]
        self.boot = uuid.uuid4().hex
        self.events = EventLog(RunDir(settings.run_dir).events_path, f"actor {index}")
        self.watchdog = Watchdog(settings.run_dir, f"actor-{index}", settings.hang_seconds)
        self.policy = MeasuredPolicy(settings.make_policy(self.watchdog.rearm), self.telemetry, self.time_spent)
        self.envs = make_environments(settings, self.watchdog)
        self.random_policy = RandomPolicy(settings.data)
        self._offered: deque[Weights] = deque(maxlen=1)
        """the newest that were sent, until they are loaded: put in by one thread, taken out by another"""
        self._loaded_version = self._newest_version = 0
        self._heard_at = 0.0
        self._question: ray.ObjectRef | None = None
        self._inserting = 0
        self.telemetry.before_report(self._measure)

    def run(self) -> int:
        """Collect until the learner says that it is done; returns the number of episodes."""
        give_way()
        self._pull()
        if self.watchdog.found:
            self.telemetry.inc(FAILURES, kind="hung")
            self._tell_failure(f"hung, see {self.watchdog.found}")
        number = max(
            self._ask(shard.next_number.remote(self.index), f"the number of its next episode from shard {i}")
            for i, shard in enumerate(self.shards)
        )
        # The episode that this actor's last process hung in must not be the first of this one again.
        attempt = int(time.time()) if ray.get_runtime_context().was_current_actor_reconstructed else 0
        collected = stored = 0
        refused = self._waiting()
        while True:
            asked = self._control("ticket").remote(self.index, self.boot, stored)
            ticket = self._ask(asked, "a ticket from the learner")
            stored = 0
            if ticket.verdict == "done":
                return collected
            if ticket.verdict == "wait":
                refused.still(ticket.reason)
                with self.time_spent.on("waiting"):
                    time.sleep(ticket.retry_seconds)
                continue
            refused.over()
            self._heard(ticket.version)
            names = range(number, number + len(self.envs))
            number = names.stop
            try:
                episodes = self._collect(names, ticket.random, ticket.exploration, attempt)
            except EnvironmentFailure as error:  # other numbers, so other seeds, next: these might fail again
                self._replace_environments(str(error))
                continue
            for name, episode in zip(names, episodes, strict=True):
                self._insert(episode.named(self.index, name))
                collected, stored = collected + 1, stored + episode.decisions

    @ray.method(concurrency_group="control")
    def take(self, values: np.ndarray, version: int, checksum: int) -> None:
        """New weights, from the learner: float32 [P], read-only and in shared memory."""
        self._offered.append(Weights(values, version, checksum))
        self._heard(version)

    def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        self.telemetry.flush()

    def alive(self) -> int:
        """The process's number: an answer at all is what matters."""
        return os.getpid()

    def _collect(self, names: range, random: bool, exploration: float, attempt: int) -> list[Episode]:
        """One episode in each environment."""
        policy = self.random_policy if random else self.policy
        seeds = [derive_seed(self.settings.seed, "episode", self.index, name, attempt) for name in names]
        with self.watchdog:
            return run_episodes(self.envs, policy, seeds, exploration, should_stop=self._before_decision)

    def _before_decision(self) -> bool:
        """Newer weights if there are any; never stops the episode."""
        self.watchdog.rearm()
        if self._offered:
            self._load(self._offered.pop())  # out before they are loaded: newer ones may come meanwhile
        now = time.monotonic()
        if self._question is None and now - self._heard_at > ASK_EVERY:  # perhaps this process was left out
            self._question = self._control("version").remote()
        elif self._question is not None and ray.wait([self._question], timeout=0)[0]:
            self._heard(ray.get(self._question))
            self._question = None
        if self._too_old():
            with self.watchdog.off(), self.time_spent.on("fetching"):
                self._pull()
        return False

    def _too_old(self) -> bool:
        """Are the weights acted on further behind the newest than allowed, or of a learner that is no more?"""
        mine, newest = self.policy.weights_version, self._newest_version
        return mine // GENERATION < newest // GENERATION or newest - mine > self.settings.max_staleness

    def _heard(self, version: int) -> None:
        """The learner has published that version."""
        self._newest_version = max(self._newest_version, version)
        self._heard_at = time.monotonic()

    def _pull(self) -> None:
        """Fetch the newest weights, waiting until the learner has some."""
        waiting = self._waiting()
        while True:
            newest = self._ask(self._control("newest").remote(), "the newest weights from the learner")
            waiting.still("the learner to publish weights" if newest is None else "the newest weights to arrive")
            if newest is not None:
                (reference,), version, checksum = newest
                try:
                    weights = Weights(ray.get(reference, timeout=self.settings.timeout_seconds), version, checksum)
                except RayError:  # replaced by newer ones, or lost with the learner's process
                    continue
                self._load(weights)
                self._heard(version)
                return
            time.sleep(0.1)

    def _load(self, weights: Weights) -> None:
        """Unless newer ones are loaded here. (The version acted on may be a planner's.)"""
        if weights.version > self._loaded_version:
            self.policy.load(weights)
            self._loaded_version = weights.version

    def _insert(self, episode: Episode) -> None:
        """Store an episode: on disk when this returns. One at a time, so a slow shard slows its actors."""
        shard = shard_of(episode.actor, episode.number, len(self.shards))
        self._inserting = 1
        with self.time_spent.on("storing"):
            self._ask(
                self.shards[shard].insert.options(concurrency_group="insert").remote(encode(episode)),
                f"shard {shard} to store an episode",
            )
        self._inserting = 0

    def _measure(self) -> None:
        """Before each report."""
        mine = updates_of(self.policy.weights_version)
        self.telemetry.set(STALENESS, max(0, updates_of(self._newest_version) - mine))
        self.telemetry.set(STALENESS_LIMIT, self.settings.max_staleness)
        self.telemetry.set(CALLS, self._inserting, call="inserts")

    def _replace_environments(self, why: str) -> None:
        """All of them: a simulator that failed may have left anything behind."""
        self.telemetry.inc(FAILURES, kind="environment")
        self._tell_failure(why)
        close_environments(self.envs, self.watchdog)
        self.envs = make_environments(self.settings, self.watchdog)

    def _tell_failure(self, why: str) -> None:
        """For the learner to count, and to write into events.log."""
        told = self._control("environment_failed").remote(self.index, why)
        self._ask(told, "the learner to hear of a failed environment")

    def _control(self, method: str) -> Any:
        """A method of the learner that is answered while it learns."""
        return getattr(self.learner, method).options(concurrency_group="control")

    def _ask(self, answer: ray.ObjectRef, what: str) -> Any:
        """Wait for an answer however long it takes, but not silently: the other side may be restarting."""
        waiting = self._waiting()
        while True:
            waiting.still(what)
            try:
                return ray.get(answer, timeout=self.settings.timeout_seconds)
            except GetTimeoutError:
                self.telemetry.inc(FAILURES, kind="timeout")

    def _waiting(self) -> Waiting:
        """For as long as it takes, but not silently."""
        return Waiting(self.events, self.settings.timeout_seconds)


def give_way() -> None:
    """Where cores are fewer than processes, the learner goes first: the calling thread takes what the others leave.

    Else actors that outnumber the cores slow the learner, and then all wait for it while cores are idle.
    """
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)  # on Linux of this thread, elsewhere of its process


def make_environments(settings: ActorSettings, watchdog: Watchdog) -> list[TaskEnv]:
    """E of them; making them may hang as well."""
    with watchdog:
        return [settings.make_env() for _ in range(settings.envs)]


def close_environments(envs: list[TaskEnv], watchdog: Watchdog) -> None:
    """Which may hang as well."""
    with watchdog:
        for env in envs:
            env.close()


class EvaluatorActor:
    """Evaluates what the learner sends, one snapshot after the other.

    Where a simulator fails or hangs it tries again with other start states, and then gives this evaluation up: one
    must not end the run, nor, since Ray retries a call whose process ended, go on for ever.
    """

    def __init__(self, settings: ActorSettings) -> None:
        """settings.envs: episodes of an evaluation, run in lockstep."""
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.telemetry = settings.telemetry("evaluator", 0)
        self.watchdog = Watchdog(settings.run_dir, "evaluator", settings.hang_seconds)
        self.watchdog.tell(self.telemetry)
        self.events = EventLog(RunDir(settings.run_dir).events_path, "evaluator")
        self.attempts = Attempts(settings.run_dir / "evaluating", hung=self.watchdog.found is not None)
        self.policy = MeasuredPolicy(settings.make_policy(self.watchdog.rearm), self.telemetry)
        self.envs: list[TaskEnv] = []
        """made within an attempt, so that a process which hangs has always hung in one"""

    def evaluate(self, values: np.ndarray, version: int, checksum: int) -> tuple[list[float], float | None, float]:
        """Returns of the episodes, share of successes (None: the task has none), seconds. No returns: given up."""
        give_way()
        self.policy.load(Weights(values, version, checksum))
        which = f"the evaluation after {updates_of(version)} updates"
        for attempt in self.attempts.of(version):
            try:
                return self._evaluate(attempt)
            except EnvironmentFailure as error:
                self.telemetry.inc(FAILURES, kind="environment")
                self.events.write(f"replaces its environments, which failed in {which}: {error}")
                close_environments(self.envs, self.watchdog)
                self.envs = []
        self.events.write(f"gives up {which}: its environments have failed or hung {MOST_ATTEMPTS} times")
        return [], None, 0.0

    def _evaluate(self, attempt: int) -> tuple[list[float], float | None, float]:
        """Each attempt has start states of its own."""
        self.envs = self.envs or make_environments(self.settings, self.watchdog)
        started = time.monotonic()
        with self.watchdog:
            result = evaluate(self.envs, self.policy, self.settings.seed, self.watchdog.rearm, attempt)
            seconds = time.monotonic() - started
            tell_evaluation(self.telemetry, self.policy, result.episodes)
        return result.returns, result.success, seconds

    def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        self.telemetry.flush()

    def alive(self) -> int:
        """The process's number: an answer at all is what matters."""
        return os.getpid()

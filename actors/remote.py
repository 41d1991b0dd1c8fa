"""Collecting and evaluating as Ray actors.

    learner <--request_collect-- CollectorActor --episodes--> shards    one process, E environments in lockstep
    learner --take-------------> CollectorActor                         new weights, used from the next decision on
    learner --evaluate---------> EvaluatorActor

`CollectorActor.run` is retried by Ray after a kill, in a new process: it asks the learner for weights and the shards
for the number of its next episode, and goes on. Lost is what was in flight.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import deque
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from qttdm.actors.collector import Collector
from qttdm.actors.evaluator import Evaluator, Result
from qttdm.actors.metrics import STALENESS, STALENESS_LIMIT
from qttdm.actors.settings import ActorSettings
from qttdm.common.episode import EnvironmentFailure, Episode
from qttdm.common.events import EventLog, Waiting
from qttdm.common.metrics.process import CALLS, FAILURES
from qttdm.common.run_dir import RunDir
from qttdm.common.seeding import derive_seed
from qttdm.common.weights import GENERATION, Weights, updates_of
from qttdm.replay.client import shard_of
from qttdm.replay.codec import encode

LOWEST_PRIORITY = 19  # Linux's; Ray's own for its workers is 15
ASK_EVERY = 5.0  # seconds after the last word from the learner at which a collector asks whether its weights are old


class CollectorActor(Collector):
    """Actor number `index` of one seed. `take` and `alive` are answered while `run` runs."""

    def __init__(self, settings: ActorSettings, index: int, learner: str, shards: list[str]) -> None:
        """Names of the actors it works with, which must be there."""
        torch.set_num_threads(settings.threads)
        super().__init__(settings, index)
        self.learner, self.shards = ray.get_actor(learner), [ray.get_actor(name) for name in shards]
        self.process = uuid.uuid4().hex
        self.events = EventLog(RunDir(settings.run_dir).events_path, f"actor {index}")
        self._offered: deque[Weights] = deque(maxlen=1)
        """the newest that were sent, until they are loaded: put in by one thread, taken out by another"""
        self._loaded_version = self._newest_version = 0
        self._heard_at = 0.0
        self._question: ray.ObjectRef | None = None
        self._inserting = 0
        self.telemetry.before_report(self._measure)

    def run(self) -> None:
        """Collect until the learner says that it is done."""
        give_way()
        self._pull()
        if self.watchdog.found:
            self._report_failure(f"hung, see {self.watchdog.found}")
        number = max(
            self._ask(shard.next_number.remote(self.index), f"the number of its next episode from shard {i}")
            for i, shard in enumerate(self.shards)
        )
        # The episode that this actor's last process hung in must not be the first of this one again.
        attempt = int(time.time()) if ray.get_runtime_context().was_current_actor_reconstructed else 0
        stored = 0
        refused = self._waiting()
        while True:
            asked = self._control("request_collect").remote(self.index, self.process, stored)
            permit = self._ask(asked, "a permit from the learner")
            stored = 0
            if permit.verdict == "done":
                return
            if permit.verdict == "wait":
                refused.still(permit.reason)
                time.sleep(permit.retry_seconds)
                continue
            refused.over()
            self._heard(permit.version)
            names = range(number, number + self.settings.envs)
            number = names.stop
            seeds = [derive_seed(self.settings.seed, "episode", self.index, name, attempt) for name in names]
            try:
                episodes = self.collect(seeds, permit.random, permit.exploration, self._before_decision)
            except EnvironmentFailure as error:  # other numbers, so other seeds, next: these might fail again
                self._report_failure(str(error))
                self.replace_environments()
                continue
            for name, episode in zip(names, episodes, strict=True):
                self._insert(episode.named(self.index, name))
                stored += episode.decisions

    @ray.method(concurrency_group="control")
    def take(self, values: np.ndarray, version: int, checksum: int) -> None:
        """Take new weights, from the learner: float32 [P], read-only and in shared memory."""
        self._offered.append(Weights(values, version, checksum))
        self._heard(version)

    def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        self.telemetry.flush()

    def _before_decision(self) -> bool:
        """Load newer weights if there are any; never stops the episode."""
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
        """Note that the learner has published that version."""
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
        """Load weights, unless newer ones are loaded here. (The version acted on may be a planner's.)"""
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
        """Set the gauges before each report."""
        mine = updates_of(self.policy.weights_version)
        self.telemetry.set(STALENESS, max(0, updates_of(self._newest_version) - mine))
        self.telemetry.set(STALENESS_LIMIT, self.settings.max_staleness)
        self.telemetry.set(CALLS, self._inserting, call="inserts")

    def _report_failure(self, why: str) -> None:
        """Report a failed environment to the learner, which counts it and writes it into events.log."""
        told = self._control("environment_failed").remote(self.index, why)
        self._ask(told, "the learner to hear of a failed environment")

    def _control(self, method: str) -> Any:
        """Return a method of the learner that is answered while it learns."""
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
        """Begin a wait without end, which events.log names now and then."""
        return Waiting(self.events, self.settings.timeout_seconds)


def give_way() -> None:
    """Lower the calling thread's priority: where cores are fewer than processes, the learner goes first.

    Else actors that outnumber the cores slow the learner, and then all wait for it while cores are idle.
    """
    os.setpriority(os.PRIO_PROCESS, 0, LOWEST_PRIORITY)  # on Linux of this thread, elsewhere of its process


class EvaluatorActor:
    """An Evaluator for what the learner sends. Ray asks again if its process ends."""

    def __init__(self, settings: ActorSettings) -> None:
        torch.set_num_threads(settings.threads)
        self.evaluator = Evaluator(settings)

    def evaluate(self, values: np.ndarray, version: int, checksum: int) -> Result:
        """As Evaluator."""
        give_way()
        return self.evaluator.evaluate(Weights(values, version, checksum))

    def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        self.evaluator.telemetry.flush()

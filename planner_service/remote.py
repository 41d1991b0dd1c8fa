"""The planner service as a Ray actor, and the policy of an actor that asks it.

    CollectorActor: ServicePolicy --begin, act, end--> PlannerActor (PlannerService, on a GPU share or CPUs)
    learner --take(weights)--> PlannerActor --newest--> learner, before its first episode

If the service dies, hangs or is busy, the actor does what its configuration says and comes back to it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.common.weights import GENERATION, Weights
from qttdm.planner_service.policies.greedy import GreedyPolicy
from qttdm.planner_service.policies.planning import MPCPolicy
from qttdm.planner_service.policies.policy import Decisions
from qttdm.planner_service.serving.messages import Answer, Refusal, Request, ServiceError
from qttdm.planner_service.serving.service import AskingConfig, PlannerService, ServiceConfig, ServiceStatus

RETRY_MS = 200.0  # after which to ask again a planner that waits for weights


@dataclass(frozen=True)
class PlannerSettings:
    """What a planner process is started with: small, since a restart gets it again."""

    run_dir: Path
    service: ServiceConfig
    make_policy: Callable[[], MPCPolicy | GreedyPolicy]
    """called in the actor's process, where its device is"""
    obs_dim: int
    threads: int
    """torch's"""
    hang_seconds: float
    """a batch that takes longer has hung: the process ends, and Ray starts it anew"""
    telemetry: MakeTelemetry = Telemetry.silent


BEGIN_ANEW = ("unknown_episode", "wrong_step", "stopping")
"""refusals of a service that has lost what it knew of the episode"""


class PlannerActor:
    """PlannerService for Ray: an async actor, whose methods are that class's with bare arrays for objects."""

    def __init__(self, settings: PlannerSettings, learner: str, index: int = 0) -> None:
        """learner: the actor's name, which must be there; a restarted planner asks it for weights."""
        self.telemetry = settings.telemetry("planner", index)
        self.learner = ray.get_actor(learner)
        torch.set_num_threads(settings.threads)
        watchdog = Watchdog(settings.run_dir, f"planner-{index}", settings.hang_seconds)
        watchdog.tell(self.telemetry)
        policy = settings.make_policy()
        policy.warm_up(settings.service.max_batch)
        self.service = PlannerService(settings.service, policy, settings.obs_dim, self.telemetry, watchdog)
        self._fetching = asyncio.Lock()

    async def begin(self, seeds: list[int], exploration: float) -> list[int] | Refusal:
        """Numbers of the episodes begun. `busy` until there are weights: nobody acts on a fresh network."""
        try:
            if not await self._has(1):
                return Refusal("busy", "no weights yet", RETRY_MS)
            return await self.service.begin(seeds, exploration)
        except ServiceError as error:
            return error.refusal

    async def act(
        self, episodes: list[int], steps: list[int], observations: np.ndarray, oldest: int
    ) -> list[Answer | Refusal]:
        """One decision for each episode, by weights of version `oldest` or newer; observations float32 [E, M].

        `busy` while it has none such.
        """
        if not await self._has(oldest):
            return [Refusal("busy", f"no weights of version {oldest} yet", RETRY_MS) for _ in episodes]
        requests = zip(episodes, steps, np.array(observations), strict=True)  # a copy: Ray's view pins its store
        return await self.service.act([Request(episode, step, row) for episode, step, row in requests])

    async def end(self, episodes: list[int]) -> None:
        """Release them."""
        await self.service.end(episodes)

    async def take(self, values: np.ndarray, version: int, checksum: int) -> None:
        """New weights, from the learner; used from the next batch on. Older ones than it has are left."""
        if version > self.service.policy.weights_version:
            await self.service.load(Weights(values, version, checksum))

    async def _has(self, oldest: int) -> bool:
        """Are its weights of that version or newer? If not, it first asks the learner: it may have been left out."""
        policy = self.service.policy
        if policy.weights_version < oldest:
            async with self._fetching:  # once for all who come with the same question
                if policy.weights_version < oldest:
                    await self._pull()
        return policy.weights_version >= oldest

    async def _pull(self) -> None:
        """Fetch the newest weights, if the learner has any now."""
        try:
            newest = await self.learner.newest.options(concurrency_group="control").remote()
            if newest is None:
                return
            (reference,), version, checksum = newest
            values = await reference
        except RayError:  # the learner is starting, or has newer ones by now
            return
        await self.take(values, version, checksum)

    async def stats(self) -> ServiceStatus:
        """How it is doing."""
        return await self.service.status()

    async def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        await asyncio.to_thread(self.telemetry.flush)

    async def alive(self) -> int:
        """The process's number: an answer at all is what matters."""
        return os.getpid()


class ServicePolicy:
    """A Policy whose decisions come from a PlannerActor, with a policy of its own for when that is gone.

    No decision is by weights more than `max_staleness` updates behind the newest that were loaded here: a planner whose
    own are older than that fetches newer ones first. It is busy until it has them.
    """

    decided: Decisions | None = None

    def __init__(
        self,
        config: AskingConfig,
        planner: str,
        local: MPCPolicy | GreedyPolicy,
        max_staleness: int,
        still_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """planner: the actor's name. local: takes the same weights, and plans if need be. max_staleness: in updates.

        still_waiting: called before every question, for whoever would take waiting for the service for hanging.
        """
        self.config, self.name, self.local, self.still_waiting = config, planner, local, still_waiting
        self.max_staleness = max_staleness
        self.greedy: GreedyPolicy | None = None
        if isinstance(local, MPCPolicy) and local.planner.value_function is not None:
            self.greedy = GreedyPolicy(local.planner.value_function, local.device)
        self.weights_version = 0
        self.lost = 0
        """times that the service was gone"""
        self._planner: Any = None
        self._episodes: list[int] = []
        self._steps: list[int] = []
        self._alone = False

    def load(self, weights: Weights) -> None:
        """For planning alone, and the measure of how old the service's may be, which it gets from the learner."""
        if weights.version < self.local.weights_version:  # the caller compares with those that act: the service's
            return
        self.local.load(weights)
        if self._alone or self.weights_version == 0:
            self.weights_version = weights.version

    def begin(self, seeds: list[int], exploration: float) -> None:
        """Start one episode for each seed with the service, or alone if it is gone."""
        self._seeds, self._exploration = seeds, exploration
        self._alone = False
        if self._episodes:  # of the episodes before
            self._planner.end.options(max_task_retries=0).remote(self._episodes)
        self._begin()

    def act(self, observations: np.ndarray) -> np.ndarray:
        """As Policy. ServiceError if the service cannot plan for these observations."""
        actions: dict[int, np.ndarray] = {}  # by row
        versions = []
        while not self._alone and (open_rows := [i for i in range(len(observations)) if i not in actions]):
            episodes, steps = [self._episodes[i] for i in open_rows], [self._steps[i] for i in open_rows]
            answers = self._ask("act", episodes, steps, observations[open_rows], self._oldest())
            refusals = [answer for answer in answers or [] if isinstance(answer, Refusal) and answer.code != "busy"]
            if hopeless := [refusal for refusal in refusals if refusal.code not in BEGIN_ANEW]:
                raise ServiceError(hopeless[0])
            if answers is None or refusals:
                actions.clear()  # it restarted, or released the episodes: begun anew there
                self._begin()
                continue
            for i, answer in zip(open_rows, answers, strict=True):
                if isinstance(answer, Answer):
                    actions[i] = answer.action
                    self._steps[i] += 1
                    versions.append(answer.weights_version)
            if busy := [answer for answer in answers if isinstance(answer, Refusal)]:
                if self.config.when_busy == "greedy" and self.greedy is not None:
                    greedy = self._greedily(observations)
                    actions |= {i: greedy[i] for i in open_rows if i not in actions}
                    versions.append(self.local.weights_version)
                else:
                    self._pause(busy)
        if self._alone:
            self.weights_version = self.local.weights_version
            return self.local.act(observations)
        self.weights_version = min(versions)
        return np.stack([actions[i] for i in range(len(observations))])

    def _oldest(self) -> int:
        """Version of the oldest weights that may act.

        Never of an earlier start of the learner than the newest, nor older than those that acted last: a planner that
        was away may have been left behind by what was planned alone meanwhile.
        """
        newest = self.local.weights_version
        return max(newest - self.max_staleness, newest - newest % GENERATION, self.weights_version)

    def _begin(self) -> None:
        """The episodes at the service, from whatever step they are at: it plans from a cold start. Or alone."""
        self._episodes, self._steps = [], [0] * len(self._seeds)
        while not self._alone and not self._episodes:
            begun = self._ask("begin", self._seeds, self._exploration)
            if isinstance(begun, Refusal):
                self._pause([begun])
            else:
                self._episodes = begun or []

    def _ask(self, method: str, *arguments: Any) -> Any:
        """The service's answer; None if it is gone, after which this policy is alone or may ask again."""
        self.still_waiting()
        try:
            if self._planner is None:
                self._planner = ray.get_actor(self.name)
            answer = getattr(self._planner, method).options(max_task_retries=0).remote(*arguments)
            return ray.get(answer, timeout=self.config.timeout_seconds)
        except RayTaskError:  # a mistake of ours, not a failure of the service
            raise
        except (RayError, ValueError):  # died, is starting, hangs; or not there yet
            self.lost += 1
            if self.config.when_gone == "local":
                self._alone = True
                self.local.begin(self._seeds, self._exploration)
            else:
                time.sleep(0.2)
            return None

    def _greedily(self, observations: np.ndarray) -> np.ndarray:
        """The Q-Transformer's actions [E, N]."""
        assert self.greedy is not None
        self.greedy.begin(self._seeds, 0.0)
        return self.greedy.act(observations)

    @staticmethod
    def _pause(refusals: Sequence[Refusal]) -> None:
        time.sleep(max(refusal.retry_ms or 10.0 for refusal in refusals) / 1e3)

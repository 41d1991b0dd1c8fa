"""The planner service as a Ray actor, and the policy of an actor that asks it.

    CollectorActor: ServicePolicy --begin, act, end--> PlannerActor (PlannerService, on a GPU share or CPUs)
    learner --take(weights)--> PlannerActor --newest--> learner, before its first episode

If the service dies, hangs or is busy, the actor does what its configuration says and comes back to it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import nn

from qttdm.common.contracts import ArrayTree, DataSpec, Decisions, Policy
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.common.weights import GENERATION, Weights
from qttdm.planner_service.serving.messages import Answer, Refusal, Request, ServiceError
from qttdm.planner_service.serving.service import AskingConfig, PlannerService, ServiceConfig

RETRY_MS = 200.0  # after which to ask again a planner that waits for weights


@dataclass(frozen=True)
class PlannerSettings:
    """What a planner process is started with: small, since a restart gets it again."""

    run_dir: Path
    service: ServiceConfig
    make_policy: Callable[[], Policy]
    """called in the actor's process, where its device is"""
    data: DataSpec
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
        watchdog.report_hang(self.telemetry)
        policy = settings.make_policy()
        policy.warm_up(settings.service.max_batch)
        self.service = PlannerService(settings.service, policy, settings.data, self.telemetry, watchdog)
        self._fetching = asyncio.Lock()

    async def begin(self, seeds: list[int], exploration: float) -> list[int] | Refusal:
        """Begin episodes, and return their numbers. `busy` until there are weights: nobody acts on a fresh network."""
        try:
            if not await self._has(1):
                return Refusal("busy", "no weights yet", RETRY_MS)
            return await self.service.begin(seeds, exploration)
        except ServiceError as error:
            return error.refusal

    async def act(
        self, episodes: list[int], steps: list[int], observations: dict[str, np.ndarray], oldest: int
    ) -> list[Answer | Refusal]:
        """Decide for each episode, by weights of version `oldest` or newer; observations by name, [E, ..].

        `busy` while it has none such.
        """
        if not await self._has(oldest):
            return [Refusal("busy", f"no weights of version {oldest} yet", RETRY_MS) for _ in episodes]
        own = {name: np.array(array) for name, array in observations.items()}  # copies: Ray's views pin its store
        return await self.service.act(
            [
                Request(episode, step, {name: array[i] for name, array in own.items()})
                for i, (episode, step) in enumerate(zip(episodes, steps, strict=True))
            ]
        )

    async def end(self, episodes: list[int]) -> None:
        """Release them."""
        await self.service.end(episodes)

    async def take(self, values: np.ndarray, version: int, checksum: int) -> None:
        """Take new weights, from the learner; used from the next batch on. Older ones than it has are left."""
        if version > self.service.policy.weights_version:
            await self.service.load(Weights(values, version, checksum))

    async def _has(self, oldest: int) -> bool:
        """Are its weights of that version or newer? If not, it first asks the learner: it may have been left out."""
        policy = self.service.policy
        if policy.weights_version < oldest:
            async with self._fetching:  # once for all who come with the same question
                if policy.weights_version < oldest:
                    with suppress(RayError):  # the learner is starting, or has newer ones by now
                        newest = await self.learner.newest.options(concurrency_group="control").remote()
                        if newest is not None:
                            (reference,), version, checksum = newest
                            await self.take(await reference, version, checksum)
        return policy.weights_version >= oldest

    async def flush(self) -> None:
        """Report what was measured; asked when the run ends."""
        await asyncio.to_thread(self.telemetry.flush)


@dataclass
class AskedEpisode:
    """One episode of an actor that asks the service."""

    seed: int
    exploration: float
    carry: Any
    """of the policy of the actor's own, for when it plans alone"""
    number: int | None = None
    """the service's; None: not begun there"""
    step: int = 0
    """decisions that the service has answered"""


class ServicePolicy:
    """A Policy whose decisions come from a PlannerActor, with a policy of its own for when that is gone.

    No decision is by weights more than `max_staleness` updates behind the newest that were loaded here: a planner whose
    own are older than that fetches newer ones first. It is busy until it has them.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        config: AskingConfig,
        planner: str,
        local: Policy,
        greedy: Policy | None,
        max_staleness: int,
        still_waiting: Callable[[], object] = lambda: None,
    ) -> None:
        """planner: the actor's name. local: takes the same weights, and plans if need be. max_staleness: in updates.

        greedy: shares the networks of `local` and acts while the service is busy, where the configuration wants that.
        still_waiting: called before every question, so that waiting for the service is not taken for hanging.
        """
        self.config, self.name, self.local, self.greedy = config, planner, local, greedy
        self.max_staleness, self.still_waiting = max_staleness, still_waiting
        self.weights_version = 0
        self.lost = 0
        """times that the service was gone"""
        self._planner: Any = None
        self._begun: list[int] = []
        self._alone = False

    @property
    def networks(self) -> nn.Module:
        """The local policy's."""
        return self.local.networks

    def load(self, weights: Weights) -> None:
        """Take weights for planning alone; they also say how old the service's may be."""
        if weights.version < self.local.weights_version:  # the caller compares with those that act: the service's
            return
        self.local.load(weights)
        if self._alone or self.weights_version == 0:
            self.weights_version = weights.version

    def warm_up(self, environments: int) -> None:
        """Do nothing: the service warms up itself."""

    def start(self, seed: int, exploration: float, goal: Any = None) -> AskedEpisode:
        """Make the carry of one episode, which begins at the service with its first decision."""
        self._alone = False
        return AskedEpisode(seed, exploration, self.local.start(seed, exploration, goal))

    def decide(
        self, episodes: Sequence[AskedEpisode], observations: ArrayTree, deadline: float | None = None
    ) -> Decisions:
        """As Policy. ServiceError if the service cannot plan for these observations."""
        answers: dict[int, Answer] = {}  # by row
        while not self._alone and (open_rows := [i for i in range(len(episodes)) if i not in answers]):
            if any(e.number is None for e in episodes):
                self._begin(episodes)
                continue
            asked = [episodes[i] for i in open_rows]
            numbers, steps = [e.number for e in asked], [e.step for e in asked]
            rows = {name: array[open_rows] for name, array in observations.items()}
            replies = self._ask("act", numbers, steps, rows, self._oldest())
            refusals = [reply for reply in replies or [] if isinstance(reply, Refusal) and reply.code != "busy"]
            if hopeless := [refusal for refusal in refusals if refusal.code not in BEGIN_ANEW]:
                raise ServiceError(hopeless[0])
            if replies is None or refusals:  # it restarted, or released the episodes: begun anew there
                answers.clear()
                for episode in episodes:
                    episode.number = None
                continue
            for i, reply in zip(open_rows, replies, strict=True):
                if isinstance(reply, Answer):
                    answers[i] = reply
                    episodes[i].step += 1
            if busy := [reply for reply in replies if isinstance(reply, Refusal)]:
                if self.config.when_busy == "greedy" and self.greedy is not None:
                    return self._fill(episodes, observations, answers)
                self._pause(busy)
        if self._alone:
            decisions = self.local.decide([e.carry for e in episodes], observations, deadline)
            self.weights_version = self.local.weights_version
            return decisions
        return self._decisions([answers[i] for i in range(len(episodes))])

    def _decisions(self, answers: Sequence[Answer]) -> Decisions:
        """All the service's."""
        self.weights_version = min(answer.weights_version for answer in answers)
        actions = np.stack([answer.action for answer in answers])
        values = np.array([answer.value for answer in answers], np.float32)
        return Decisions(actions, values, min(answer.iterations for answer in answers))

    def _fill(self, episodes: Sequence[AskedEpisode], observations: ArrayTree, answers: dict[int, Answer]) -> Decisions:
        """Combine what the service has answered with the greedy actions of the others."""
        assert self.greedy is not None
        greedy = self.greedy.decide([self.greedy.start(e.seed, 0.0) for e in episodes], observations)
        actions, values = greedy.actions.copy(), greedy.values.copy()
        for i, answer in answers.items():
            actions[i], values[i] = answer.action, answer.value
        versions = [answer.weights_version for answer in answers.values()]
        self.weights_version = min([*versions, self.local.weights_version])
        return Decisions(actions, values)

    def _oldest(self) -> int:
        """Return version of the oldest weights that may act.

        Never of an earlier start of the learner than the newest, nor older than those that acted last: a planner that
        was away may have been left behind by what was planned alone meanwhile.
        """
        newest = self.local.weights_version
        return max(newest - self.max_staleness, newest - newest % GENERATION, self.weights_version)

    def _begin(self, episodes: Sequence[AskedEpisode]) -> None:
        """Begin all episodes at the service, from their present step, without a warm start; end those before."""
        if self._begun and self._planner is not None:
            self._planner.end.options(max_task_retries=0).remote(self._begun)
        self._begun = []
        while not self._alone and not self._begun:
            begun = self._ask("begin", [e.seed for e in episodes], episodes[0].exploration)
            if isinstance(begun, Refusal):
                self._pause([begun])
            else:
                self._begun = begun or []
        for episode, number in zip(episodes, self._begun, strict=False):
            episode.number, episode.step = number, 0

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Return the service's answer; None if it is gone, after which this policy is alone or may ask again."""
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
            else:
                time.sleep(0.2)
            return None

    @staticmethod
    def _pause(refusals: Sequence[Refusal]) -> None:
        time.sleep(max(refusal.retry_ms or 10.0 for refusal in refusals) / 1e3)

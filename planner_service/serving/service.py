"""The planner service: decisions for many clients at once, each as if it were alone.

    act -> queue --a batch: full, or the first has waited max_wait_ms--> planner thread: policy.decide -> answers
    load ------------------------------------------------- between two batches -> planner thread: policy.load

An asyncio class without sockets: `server.py` serves it over WebSockets, and a Ray actor can hold it as it is. What an
episode carries from decision to decision stays here until it ends or its client falls silent. All methods run in one
event loop; planning has a thread of its own, so that the loop always answers.

Choice: batches are closed and answered in plain callbacks. Why: with a task that waits for requests, a future for each
and one for the thread, an answer takes seven turns of the loop where four do.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from qttdm.common.config import Config
from qttdm.common.contracts import DataSpec, Decisions, Policy
from qttdm.common.metrics.gpu import report_gpu
from qttdm.common.metrics.instruments import counter, histogram
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.weights import Weights
from qttdm.planner_service.policies.metrics import APPLY_SECONDS, DECISION_SECONDS, DECISIONS
from qttdm.planner_service.serving.messages import REFUSALS, Answer, Refusal, Request, ServiceError
from qttdm.planner_service.serving.observations import read_observations

BATCH_SIZE = histogram(
    "qttdm_service_batch_size",
    ("planner",),
    "requests",
    "decided together",
    (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0),
)
REQUESTS = counter(
    "qttdm_service_requests_total",
    ("planner",),
    "requests",
    "answered in time or only after their deadline, or refused and why",
    "outcome",
    ("answered", "answered_late", *REFUSALS),
)
TELL_AFTER_S = 1e-3
"""delay of a batch's measurements after its answers: by then the answers are sent"""


class ServiceConfig(Config):
    """How requests become batches, and how much is taken on."""

    max_batch: int = Field(default=64, gt=0)
    """most requests decided together"""
    max_wait_ms: float = Field(default=2.0, ge=0)
    """longest that the first request of a batch waits for company; it waits for nobody when all episodes are there"""
    max_queue: int = Field(default=1024, gt=0)
    """requests that may wait; the next one is answered `busy` at once"""
    max_episodes: int = Field(default=1024, gt=0)
    """episodes under way, all clients together"""
    silence_s: float = Field(default=60.0, gt=0)
    """an episode whose client has not asked for so long is released when others begin"""

    @model_validator(mode="after")
    def _batch_fits_queue(self) -> ServiceConfig:
        if self.max_queue < self.max_batch:
            raise ValueError(f"max_queue={self.max_queue} is less than max_batch={self.max_batch}; want at least that")
        return self


class AskingConfig(Config):
    """How an actor uses the planner service."""

    timeout_seconds: float = Field(default=10.0, gt=0)
    """an answer that takes longer is not waited for: the service is taken to be gone"""
    when_gone: Literal["local", "wait"] = "local"
    """plan in the actor's own process for the rest of the episode, or wait for the service to be back"""
    when_busy: Literal["wait", "greedy"] = "wait"
    """ask again after the time it says, or act with the Q-Transformer's greedy action this once"""


@dataclass
class _Episode:
    state: Any
    """the policy's carry"""
    seen: float
    """when its client last asked, in time.monotonic()'s seconds, as all times here"""
    step: int = 0
    """decisions answered"""
    waiting: _Waiting | None = None
    last: Answer | None = None


@dataclass(eq=False)
class _Waiting:
    """A request in the queue or in the batch being decided."""

    request: Request
    observations: dict[str, np.ndarray]
    episode: _Episode
    arrived: float
    deadline: float | None
    outcome: asyncio.Future[Answer | Refusal]
    """shielded from those who wait for it: a call that is cancelled takes nobody's answer but its own"""
    expiry: asyncio.TimerHandle | None = None

    @property
    def timed(self) -> bool:
        """Does its deadline end the planning?"""
        return self.request.anytime and self.deadline is not None


@dataclass(frozen=True)
class _Planned:
    """A batch's decisions, by which weights, and when."""

    decisions: Decisions
    weights_version: int
    began: float
    ended: float


class PlannerService:
    """Episodes, the queue and its batches, around one policy."""

    def __init__(
        self,
        config: ServiceConfig,
        policy: Policy,
        data: DataSpec,
        telemetry: Telemetry | None = None,
        watch: AbstractContextManager[None] = nullcontext(),  # noqa: B008 - it has no state
    ) -> None:
        """telemetry: a planner's; None: nothing is measured. watch: entered for each batch's planning: a Watchdog."""
        self.config, self.policy, self.data, self.watch = config, policy, data, watch
        self.telemetry = telemetry or Telemetry.silent("planner")
        self._episodes: dict[int, _Episode] = {}
        self._numbers = count(1)
        self._queue: deque[_Waiting] = deque()
        self._batch: list[_Waiting] = []  # being decided
        self._company: asyncio.TimerHandle | None = None  # until when the queue waits for more
        self._planner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")
        self._plan_seconds = 0.0
        self._stopping = False
        self._counts: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self.telemetry.before_report(partial(report_gpu, self.telemetry, policy.device))

    async def begin(
        self, seeds: Sequence[int], exploration: float = 0.0, goal: Sequence[float] | None = None
    ) -> list[int]:
        """Start one episode for each seed, exploration in [0, 1]; returns their numbers.

        goal: observation that all are to reach. ServiceError `busy` if they are too many, `stopping`; ValueError if the
        policy takes no such goal.
        """
        if self._stopping:
            raise ServiceError(self._refuse("stopping", "no new episodes"))
        self.release_silent()
        if len(self._episodes) + len(seeds) > self.config.max_episodes:
            message = (
                f"{len(self._episodes)} episodes under way and {len(seeds)} more, at most {self.config.max_episodes}"
            )
            raise ServiceError(self.refuse_episodes(message))
        begun = {
            next(self._numbers): _Episode(self.policy.start(seed, exploration, goal), time.monotonic())
            for seed in seeds
        }
        self._episodes |= begun
        return list(begun)

    def release_silent(self) -> Set[int]:
        """Release the episodes whose clients have been silent for too long; returns the numbers of the others."""
        silent = time.monotonic() - self.config.silence_s
        self._episodes = {n: e for n, e in self._episodes.items() if e.seen > silent or e.waiting}
        return self._episodes.keys()

    def refuse_episodes(self, message: str) -> Refusal:
        """Refuse and count a `begin` of too many episodes: silent ones make room in a while."""
        return self._refuse("busy", message, 1e3 * self.config.silence_s)

    async def end(self, episodes: Sequence[int]) -> None:
        """Release them; those that are not there need none."""
        for number in episodes:
            self._episodes.pop(number, None)
        self._begin_batch()  # those who wait may have waited for these

    async def act(self, requests: Sequence[Request]) -> list[Answer | Refusal]:
        """Decide for each request, or say why not."""
        admitted = [self._admit(request) for request in requests]
        self._begin_batch()
        return [await asyncio.shield(a.outcome) if isinstance(a, _Waiting) else a for a in admitted]

    async def load(self, weights: Weights) -> None:
        """Take new network weights for the batches to come; older ones are left. ValueError if they do not fit."""
        await asyncio.get_running_loop().run_in_executor(self._planner, self._load, weights)

    def status(self) -> dict[str, Any]:
        """Say how the service is doing, since its start: the answer to `health`, docs/protocol.md."""
        return {
            "weights_version": self.policy.weights_version,
            "episodes": len(self._episodes),
            "queued": len(self._queue),
            "answers": self._counts["answers"],
            "batches": self._counts["batches"],
            "refusals": dict(self._refused),
            "plan_ms": 1e3 * self._plan_seconds,
        }

    async def stop(self) -> None:
        """Answer those who wait, and refuse everyone else."""
        self._stopping = True
        self._begin_batch()
        for waiting in (*self._batch, *self._queue):
            await asyncio.shield(waiting.outcome)
        self._planner.shutdown(wait=False)

    # --- one request ---

    def _admit(self, request: Request) -> Answer | Refusal | _Waiting:
        """Answer a request at once, or queue it."""
        now = time.monotonic()
        episode = self._episodes.get(request.episode)
        if episode is None:
            return self._refuse("unknown_episode", "no such episode of this client; begin one")
        episode.seen = now
        try:
            observations = read_observations(request.observations, self.data)
        except ValueError as error:
            return self._refuse("bad_observation", str(error))
        if episode.waiting is not None and request.step == episode.step:  # asked again
            return episode.waiting
        if episode.last is not None and request.step == episode.step - 1:
            return episode.last
        if request.step != episode.step:
            return self._refuse("wrong_step", f"got step {request.step}, want {episode.step}")
        if self._stopping:
            return self._refuse("stopping", "no new requests")
        if len(self._queue) >= self.config.max_queue:
            batches = len(self._queue) / self.config.max_batch + 1
            return self._refuse("busy", f"{len(self._queue)} requests wait", 1e3 * batches * self._plan_seconds)
        deadline = None if request.deadline_ms is None else now + 1e-3 * request.deadline_ms
        loop = asyncio.get_running_loop()
        waiting = episode.waiting = _Waiting(request, observations, episode, now, deadline, loop.create_future())
        self._queue.append(waiting)
        if deadline is not None:
            waiting.expiry = loop.call_at(deadline, self._expire, waiting)
        return waiting

    def _expire(self, waiting: _Waiting) -> None:
        """Refuse a request whose deadline has come, unless it is being planned."""
        if waiting in self._queue:
            self._queue.remove(waiting)
            self._resolve(waiting, self._refuse("late", f"waited {waiting.request.deadline_ms:g} ms"))

    def _resolve(self, waiting: _Waiting, outcome: Answer | Refusal) -> None:
        episode = waiting.episode
        episode.waiting = None
        if waiting.expiry is not None:
            waiting.expiry.cancel()
        if isinstance(outcome, Answer):
            episode.step += 1
            episode.last = outcome
            self._counts["answers"] += 1
        waiting.outcome.set_result(outcome)

    def _refuse(self, code: str, message: str, retry_ms: float | None = None) -> Refusal:
        self._refused[code] += 1
        self.telemetry.inc(REQUESTS, outcome=code)
        return Refusal(code, message, retry_ms)

    # --- batches ---

    def _begin_batch(self) -> None:
        """Have a batch planned if the planner is free, and it is full, has all episodes in it, or it is time."""
        if self._batch or not self._queue:
            return
        if self._company is not None:
            self._company.cancel()
            self._company = None
        left = self._closing_time() - time.monotonic()
        if left > 0 and not self._stopping and len(self._queue) < min(self.config.max_batch, len(self._episodes)):
            self._company = asyncio.get_running_loop().call_later(left, self._begin_batch)
            return
        batch = self._batch = self._close_batch()
        deadline = min(w.deadline for w in batch if w.deadline is not None) if batch[0].timed else None
        planning = self._planner.submit(self._plan, batch, deadline)
        planning.add_done_callback(partial(self._tell_loop, asyncio.get_running_loop()))

    def _tell_loop(self, loop: asyncio.AbstractEventLoop, planning: Future[_Planned]) -> None:
        """Hand the batch back to the loop, from the planner's thread, which may outlive the loop."""
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._end_batch, planning)

    def _closing_time(self) -> float:
        """Return when the first has waited long enough, or a deadline leaves no more than the time to plan."""
        deadlines = [w.deadline - self._plan_seconds for w in self._queue if w.deadline is not None]
        return min([self._queue[0].arrived + 1e-3 * self.config.max_wait_ms, *deadlines])

    def _close_batch(self) -> list[_Waiting]:
        """Take the first in the queue and those who may be planned with it.

        A batch whose planning ends at a deadline has only requests that want that, and the earliest deadline counts:
        nobody else gets less planning for them.
        """
        batch: list[_Waiting] = []
        others: deque[_Waiting] = deque()
        for w in self._queue:
            fits = w.timed == self._queue[0].timed and len(batch) < self.config.max_batch
            (batch if fits else others).append(w)
        self._queue = others
        return batch

    def _end_batch(self, planning: Future[_Planned]) -> None:
        """Answer the batch that has been planned, and begin the next."""
        batch, self._batch = self._batch, []
        try:
            self._answer(batch, planning.result())
        except Exception as error:  # whatever it is, out of memory above all, others may fare better
            for w in batch:
                if not w.outcome.done():
                    self._resolve(w, self._refuse("failed", f"{type(error).__name__}: {error}".splitlines()[0]))
        self._begin_batch()

    def _answer(self, batch: list[_Waiting], planned: _Planned) -> None:
        """Give each request its decision."""
        self._plan_seconds = planned.ended - planned.began
        self._counts["batches"] += 1
        d = planned.decisions
        for w, action, value, finite in zip(batch, d.actions, d.values, d.finite, strict=True):
            if not finite:
                self._resolve(w, self._refuse("failed", "the plan for this observation is not finite"))
                continue
            answer = Answer(
                action=action,
                value=float(value),
                weights_version=planned.weights_version,
                iterations=d.iterations,
                queue_ms=1e3 * (planned.began - w.arrived),
                plan_ms=1e3 * self._plan_seconds,
                late=w.deadline is not None and planned.ended > w.deadline,
            )
            self._resolve(w, answer)
        asyncio.get_running_loop().call_later(TELL_AFTER_S, self._tell, batch, planned, time.monotonic())

    def _tell(self, batch: list[_Waiting], planned: _Planned, answered: float) -> None:
        """Report what was measured of a batch."""
        t = self.telemetry
        t.observe(BATCH_SIZE, len(batch))
        t.observe(DECISION_SECONDS, planned.ended - planned.began, stage="plan")
        t.inc(DECISIONS, len(batch))
        for w in batch:
            if isinstance(answer := w.outcome.result(), Answer):
                t.inc(REQUESTS, outcome="answered_late" if answer.late else "answered")
                t.observe(DECISION_SECONDS, 1e-3 * answer.queue_ms, stage="queue")
                t.observe(DECISION_SECONDS, answered - w.arrived, stage="total")

    def _plan(self, batch: list[_Waiting], deadline: float | None) -> _Planned:
        """Decide for a batch, in the planner's thread."""
        began = time.monotonic()
        states = [w.episode.state for w in batch]
        observations = {name: np.stack([w.observations[name] for w in batch]) for name in self.data.observations}
        with self.watch:
            decisions = self.policy.decide(states, observations, deadline)
        return _Planned(decisions, self.policy.weights_version, began, time.monotonic())

    def _load(self, weights: Weights) -> None:
        """Take weights unless they are older, in the planner's thread, where no others can come between."""
        if weights.version < self.policy.weights_version:
            return
        with self.telemetry.timed(APPLY_SECONDS):
            self.policy.load(weights)

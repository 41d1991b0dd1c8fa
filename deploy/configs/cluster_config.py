"""Settings of one seed on a cluster: numbers of processes, what each reserves, how long they wait for each other."""

from __future__ import annotations

import math
from typing import Literal, get_args

from pydantic import Field, model_validator

from qttdm.common.config import Config
from qttdm.common.metrics.instruments import gauge
from qttdm.planner_service.serving.service import AskingConfig, ServiceConfig
from qttdm.replay.limiter import PaceConfig
from qttdm.replay.log import Fsync

NAMESPACE = "qttdm"
"""Ray's namespace of all our actors' names."""
UNITS = 10_000
"""of each resource; Ray cuts off what is smaller, so that 0.05 + 0.35 CPUs are 3,999 units to it"""


class ClusterConfig(Config):
    """Used by `qttdm cluster` only. Everything is per seed."""

    actors: int = Field(default=1, gt=0)
    """processes that collect episodes"""
    envs_per_actor: int = Field(default=1, gt=0)
    """environments that an actor steps in lockstep, planned for in one batch"""
    planning: Literal["local", "service"] = "local"
    """actors plan themselves, or ask the planner service, where the requests of all are planned in one batch"""
    planners: int = Field(default=1, gt=0)
    """processes of the planner service"""
    shards: int = Field(default=1, gt=0)
    """processes that the replay is spread over; fixed for a run"""
    gpus_per_seed: float = Field(default=0.0, ge=0)
    """a whole number or 1/n, for the learner, the evaluator and the planner service if there is one; 0: all on CPUs"""
    learner_cpus: float = Field(default=1.0, ge=0)
    """that Ray reserves for the learner; also torch's threads there (at least 1), unless `threads` says"""
    actor_cpus: float = Field(default=1.0, ge=0)
    """of each actor; also torch's threads there (at least 1), unless `threads` says"""
    planner_cpus: float = Field(default=1.0, ge=0)
    """of each process of the planner service; without a GPU also torch's threads there"""
    shard_cpus: float = Field(default=1.0, ge=0)
    """of each replay process"""
    evaluator_cpus: float = Field(default=1.0, ge=0)
    """of the evaluator; also torch's threads there (at least 1), unless `threads` says"""
    publish_every: int = Field(default=50, gt=0)
    """updates between two broadcasts of weights"""
    max_staleness: int = Field(default=1000, gt=0)
    """updates that the published weights may be ahead of an actor's; beyond it the actor waits for newer ones"""
    service: ServiceConfig = ServiceConfig()
    """how the planner service makes batches of requests"""
    asking: AskingConfig = AskingConfig()
    """what actors do when the planner service is gone or busy"""
    pace: PaceConfig = PaceConfig()
    """how far decisions and updates may be apart"""
    prefetch: int = Field(default=2, ge=0)
    """batches under way ahead of the one being learned from"""
    fsync: Fsync = "interval"
    """when shards flush episodes to the disk itself: before each is acknowledged, or all of them once a second"""
    hang_seconds: float = Field(default=120.0, gt=0)
    """a decision (planning and simulating together) or an update that takes longer has hung: its process is replaced"""
    heartbeat_seconds: float = Field(default=120.0, gt=0)
    """a process that does not answer for so long is killed and started again"""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """how long a process waits for another before it says so in events.log"""
    metrics_port: int | None = Field(default=9108, ge=1, le=65535)
    """where the cluster's exporter serves metrics to Prometheus, on the head node; null: nothing is measured"""
    metrics_host: str = "127.0.0.1"
    """address that it listens on; any but loopback shows the metrics to everybody who reaches the port"""

    @model_validator(mode="after")
    def _shares_are_whole(self) -> ClusterConfig:
        gpus = self.gpus_per_seed
        if not gpus.is_integer() and (gpus > 1 or abs(round(1 / gpus) - 1 / gpus) > 1e-6):  # Ray hangs on others
            raise ValueError(f"gpus_per_seed={gpus:g}: want a whole number or 1/n, such as 0.5 or 0.25")
        if gpus > 1 + self.planning_processes:
            raise ValueError(
                f"gpus_per_seed={gpus:g} is more than the seed's processes can use, one GPU each; want at most "
                f"{1 + self.planning_processes}: the learner's, the evaluator's and each planner's"
            )
        if gpus > 0 and self.planning_gpus == 0:
            raise ValueError(
                f"gpus_per_seed={gpus:g} is too little to share between the learner and {self.planning_processes} "
                f"others; Ray's smallest share is 1/{UNITS}"
            )
        if self.max_staleness < self.publish_every:
            raise ValueError(
                f"max_staleness={self.max_staleness} is less than publish_every={self.publish_every}: actors would "
                f"wait for weights that are not published; want max_staleness of at least {self.publish_every}"
            )
        if self.service.max_wait_ms / 1e3 >= self.asking.timeout_seconds:
            raise ValueError(
                f"service.max_wait_ms={self.service.max_wait_ms:g} is not less than asking.timeout_seconds="
                f"{self.asking.timeout_seconds:g}: actors would give up before a batch closes"
            )
        waits = max(self.timeout_seconds, self.asking.timeout_seconds if self.planning == "service" else 0.0)
        if self.hang_seconds <= waits:
            raise ValueError(
                f"hang_seconds={self.hang_seconds:g} is not more than {waits:g}, the longest that a process waits for "
                f"another at a time (timeout_seconds, asking.timeout_seconds): it would be taken to hang"
            )
        return self

    @property
    def planning_processes(self) -> int:
        """Number of processes that plan on the learner's node: the evaluator and the planner service's."""
        return 1 + (self.planners if self.planning == "service" else 0)

    @property
    def learner_gpus(self) -> float:
        """Give the learner's share: half of one GPU, or a whole GPU where there are several. It cannot use more."""
        return amount_of(min(units(self.gpus_per_seed) // 2, UNITS))

    @property
    def planning_gpus(self) -> float:
        """Give the share of each planning process: they fill what the learner leaves, each on one GPU."""
        if self.gpus_per_seed > 1:
            return amount_of(UNITS // math.ceil(self.planning_processes / (self.gpus_per_seed - 1)))
        return amount_of(units(self.gpus_per_seed) // 2 // self.planning_processes)

    def bundles(self) -> list[dict[str, float]]:
        """List what Ray reserves for one seed, resources by name: first the learner's node, then one for each actor.

        Shards, evaluator and planner service are on the learner's node, because it exchanges most with them.
        """
        here = units(self.learner_cpus) + self.shards * units(self.shard_cpus) + units(self.evaluator_cpus)
        if self.planning == "service":
            here += self.planners * units(self.planner_cpus)
        learner = {"CPU": amount_of(here), "GPU": amount_of(units(self.gpus_per_seed))}
        # Ray refuses an empty bundle; a thousandth is a place without a claim.
        return [
            {name: amount for name, amount in wanted.items() if amount > 0} or {"CPU": 0.001}
            for wanted in (learner, *[{"CPU": self.actor_cpus}] * self.actors)
        ]


def units(amount: float) -> int:
    """Convert an amount of a resource to Ray's smallest units."""
    return int(amount * UNITS)


def amount_of(units: int) -> float:
    """Convert units to an amount: the quotient, or the next number where Ray would count that as one unit less."""
    quotient = units / UNITS
    return quotient if int(quotient * UNITS) == units else math.nextafter(quotient, math.inf)


SeedState = Literal["queued", "starting", "running", "stopping", "finished", "stopped", "failed"]
"""State of one seed."""
SEED_STATE = gauge(
    "qttdm_seed_state",
    ("driver",),
    "1",
    "1 for the state that the seed is in, 0 for the others",
    "state",
    get_args(SeedState),
    lasting=True,
)

"""What a collector or an evaluator is started with, in whichever process it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qttdm.common.contracts import DataSpec, Policy, RandomActions
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog


@dataclass(frozen=True)
class ActorSettings:
    """Small, since a process that is restarted gets it again."""

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
    hang_seconds: float
    """a decision, planning and simulating together, that takes longer has hung"""
    random_actions: RandomActions = "independent"
    """of the episodes before there is a policy"""
    telemetry: MakeTelemetry = Telemetry.silent
    threads: int = 1
    """torch's, where the actor has a process of its own"""
    max_staleness: int = 0
    """updates that the newest published weights may be ahead of those acted on"""
    timeout_seconds: float = 60.0
    """how long to wait for another process before saying so in events.log"""


def make_environments(settings: ActorSettings, watchdog: Watchdog) -> list[TaskEnv]:
    """Make E environments under the watchdog: making can hang."""
    with watchdog:
        return [settings.make_env() for _ in range(settings.envs)]


def close_environments(envs: list[TaskEnv], watchdog: Watchdog) -> None:
    """Close all environments under the watchdog: closing can hang, and one that has failed may fail in closing too."""
    with watchdog:
        for env in envs:
            with suppress(Exception):  # it is anyone's code
                env.close()

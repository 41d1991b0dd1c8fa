"""Collect episodes: a policy in its environments, under a watchdog, with environments that are replaced if they fail.

CollectorActor (actors/remote.py), a process on a cluster --> Collector <-- LocalRun, a run on one machine
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qttdm.actors.episodes import run_episodes
from qttdm.actors.measured import MeasuredPolicy
from qttdm.actors.metrics import ACTOR_SECONDS
from qttdm.actors.settings import ActorSettings, close_environments, make_environments
from qttdm.common.episode import EnvironmentFailure, Episode
from qttdm.common.metrics.process import FAILURES
from qttdm.common.metrics.telemetry import TimeSpent
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.planner_service.policies.random_actions import RandomPolicy


class Collector:
    """Actor number `index` of one seed."""

    def __init__(self, settings: ActorSettings, index: int) -> None:
        self.settings, self.index = settings, index
        self.telemetry = settings.telemetry("actor", index)
        self.time_spent = TimeSpent(self.telemetry, ACTOR_SECONDS, rest="waiting")
        self.watchdog = Watchdog(settings.run_dir, f"actor-{index}", settings.hang_seconds)
        if self.watchdog.found:
            self.telemetry.inc(FAILURES, kind="hung")
        self.policy = MeasuredPolicy(settings.make_policy(self.watchdog.rearm), self.telemetry, self.time_spent)
        self.envs = make_environments(settings, self.watchdog)
        self.random_policy = RandomPolicy(settings.data, settings.random_actions)

    def collect(
        self, seeds: Sequence[int], random: bool, exploration: float, should_stop: Callable[[], bool]
    ) -> list[Episode]:
        """Run one episode in each environment, random or the policy's; raises as `run_episodes`.

        should_stop: asked before each reset and each decision. Raises EnvironmentFailure also if
        environments cannot be made again.
        """
        if not self.envs:
            try:
                self.envs = make_environments(self.settings, self.watchdog)
            except Exception as error:  # it is anyone's code
                what = " ".join(f"{type(error).__name__}: {error}".split())
                raise EnvironmentFailure(f"the environment cannot be made again: {what}") from error

        def before_decision() -> bool:
            self.watchdog.rearm()
            return should_stop()

        policy = self.random_policy if random else self.policy
        with self.watchdog, self.time_spent.on("simulating"):
            return run_episodes(self.envs, policy, seeds, exploration, before_decision)

    def replace_environments(self) -> None:
        """Replace all of them, by the next `collect`: a simulator that failed may have left anything behind."""
        self.telemetry.inc(FAILURES, kind="environment")
        close_environments(self.envs, self.watchdog)
        self.envs = []

"""Evaluate one snapshot of weights after the other, also where simulators fail or hang.

    EvaluatorActor (actors/remote.py), a process on a cluster --> Evaluator <-- LocalRun, a run on one machine

Where a simulator fails or hangs, try again with other start states, then give this evaluation up: one must neither end
the run nor, since its process is started again, go on for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from qttdm.actors.diagnosis import report_evaluation
from qttdm.actors.evaluation import evaluate
from qttdm.actors.measured import MeasuredPolicy
from qttdm.actors.settings import ActorSettings, close_environments, make_environments
from qttdm.common.disk import replace_file
from qttdm.common.environments.task_env import TaskEnv
from qttdm.common.episode import EnvironmentFailure, Episode
from qttdm.common.events import EventLog
from qttdm.common.metrics.process import FAILURES
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import Weights, updates_of

MOST_ATTEMPTS = 3
Result = tuple[list[float], float | None, float]
"""returns of the episodes, share of successes (None: the task has none), seconds; no returns: given up"""


class Evaluator:
    """The evaluator of one seed."""

    def __init__(self, settings: ActorSettings) -> None:
        """settings.envs: episodes of an evaluation, run in lockstep."""
        self.settings = settings
        self.telemetry = settings.telemetry("evaluator", 0)
        self.watchdog = Watchdog(settings.run_dir, "evaluator", settings.hang_seconds)
        self.watchdog.report_hang(self.telemetry)
        self.events = EventLog(RunDir(settings.run_dir).events_path, "evaluator")
        self.attempts = Attempts(settings.run_dir / "evaluating", hung=self.watchdog.found is not None)
        self.policy = MeasuredPolicy(settings.make_policy(self.watchdog.rearm), self.telemetry)
        self.envs: list[TaskEnv] = []
        """made within an attempt, so that a process which hangs has always hung in one"""
        self.first: Episode | None = None
        """the first episode of the newest evaluation"""

    def evaluate(self, weights: Weights, should_stop: Callable[[], bool] = lambda: False) -> Result:
        """Evaluate these weights. should_stop: asked before each decision; raises Stopped if it holds."""
        self.policy.load(weights)
        which = f"the evaluation after {updates_of(weights.version)} updates"
        for attempt in self.attempts.of(weights.version):
            try:
                return self._evaluate(attempt, should_stop)
            except EnvironmentFailure as error:
                self.telemetry.inc(FAILURES, kind="environment")
                self.events.write(f"replaces its environments, which failed in {which}: {error}")
                close_environments(self.envs, self.watchdog)
                self.envs = []
        self.events.write(f"gives up {which}: its environments have failed or hung {MOST_ATTEMPTS} times")
        return [], None, 0.0

    def _evaluate(self, attempt: int, should_stop: Callable[[], bool]) -> Result:
        """Evaluate from the start states of this attempt."""

        def before_decision() -> bool:
            self.watchdog.rearm()
            return should_stop()

        s = self.settings
        self.envs = self.envs or make_environments(s, self.watchdog)
        started = time.monotonic()
        with self.watchdog:
            result = evaluate(self.envs, self.policy, s.seed, before_decision, attempt)
            seconds = time.monotonic() - started
            report_evaluation(self.telemetry, self.policy, result.episodes)
        self.first = result.episodes[0]
        return result.returns, result.success, seconds


class Attempts:
    """Count, on disk, the attempts at each evaluation that is under way or had trouble, by its weights' version.

    What is tried is in the file before it begins: a process that takes the place of one that was killed goes on with
    the same attempt, of one that hung with the next. Ray may ask it for the evaluations in another order.
    """

    def __init__(self, path: Path, hung: bool) -> None:
        """hung: the last process that wrote to this file hung in what it tried."""
        self.path = path
        self._tried: dict[int, int] = {}  # the one under way is the last
        for line in path.read_text().splitlines() if path.exists() else []:
            version, attempt = map(int, line.split())
            self._tried[version] = attempt
        if hung and self._tried:
            self._tried[next(reversed(self._tried))] += 1

    def of(self, version: int) -> Iterator[int]:
        """Yield the attempts that are left, from 0; take the next one when the last has failed."""
        attempt = self._tried.pop(version, 0)
        self._tried = {other: tried for other, tried in self._tried.items() if tried}
        while attempt < MOST_ATTEMPTS:
            self._tried[version] = attempt
            replace_file(self.path, "".join(f"{v} {tried}\n" for v, tried in self._tried.items()).encode())
            yield attempt
            attempt += 1
        self._tried[version] = attempt

"""The learner as a Ray actor: LearningLoop over the shards, the collectors and the evaluator of one seed.

    collector --request_collect, newest--> learner --take(weights)--> collectors    (one object in the store for all)
                                           learner --evaluate-------> evaluator

`run` is retried by Ray after a kill, in a new process, and goes on from the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.contracts import Learner
from qttdm.common.disk import replace_file
from qttdm.common.metrics.lines import Sink
from qttdm.common.metrics.process import CALLS
from qttdm.common.metrics.telemetry import MakeTelemetry, Telemetry
from qttdm.common.metrics.watchdog import Watchdog
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import Weights, read_generation
from qttdm.learner.loop import LearningLoop
from qttdm.learner.metrics import report_run
from qttdm.learner.permits import Permit
from qttdm.learner.saved import check_state
from qttdm.learner.schedule import TrainingConfig
from qttdm.replay.limiter import Pace
from qttdm.replay.remote import RemoteReplay


@dataclass(frozen=True)
class LearnerSettings:
    """What a learner process is started with: small, since a restart gets it again."""

    run_dir: Path
    training: TrainingConfig
    make_learner: Callable[[], Learner]
    """called in the actor's process, where its device is"""
    make_replay: Callable[[list[Any]], RemoteReplay]
    """of the shards' handles"""
    make_pace: Callable[[], Pace]
    exploration: Callable[[int], float]
    """of the environment steps so far"""
    publish_every: int
    """updates"""
    hang_seconds: float
    """an update, or anything else the loop does at once, that takes longer has hung"""
    timeout_seconds: float
    telemetry: MakeTelemetry = Telemetry.silent
    make_sinks: Callable[[], list[Sink]] = list
    """make further receivers of the lines of metrics.jsonl; called in the actor's process"""
    accept_losses: bool = False
    """see LearningLoop"""


class LearnerActor:
    """One seed's learner."""

    def __init__(self, settings: LearnerSettings, shards: list[str], evaluator: str, planners: list[str]) -> None:
        """Names of the actors it works with. (Handles as arguments would break a restart if they went out of scope.)

        Shards and evaluator must be there; weights go to each planner once it has started.
        """
        self.settings = settings
        self.telemetry = settings.telemetry("learner", 0)
        self.shards = [ray.get_actor(name) for name in shards]
        self.loop: LearningLoop | None = None
        self.broadcast = Broadcast(planners)
        self.evaluations = RemoteEvaluations(ray.get_actor(evaluator))
        self.stopped = False

    def run(self) -> str:
        """Run the loop: "finished" or "stopped"."""
        s = self.settings
        watchdog = Watchdog(s.run_dir, "learner", s.hang_seconds)
        watchdog.report_hang(self.telemetry)
        learner = s.make_learner()
        learner.generation, learner.telemetry = next_generation(s.run_dir), self.telemetry
        replay = s.make_replay(self.shards)
        self.loop = LearningLoop(
            training=s.training,
            learner=learner,
            replay=replay,
            pace=s.make_pace(),
            run_dir=RunDir(s.run_dir),
            publish_every=s.publish_every,
            publish=self.broadcast.send,
            evaluations=self.evaluations,
            exploration=s.exploration,
            shards=len(self.shards),
            timeout_seconds=s.timeout_seconds,
            checkpoint=CheckpointStore(RunDir(s.run_dir).checkpoints_dir).load_latest(check=check_state),
            accept_losses=s.accept_losses,
        )
        self.loop.metrics.sinks += s.make_sinks()
        report_run(self.loop)
        self.telemetry.before_report(lambda: self._report_calls(replay))
        if self.stopped:
            self.loop.stop()
        with watchdog:
            return self.loop.run(on_step=watchdog.rearm)

    def request_collect(self, actor: int, process: str, stored: int) -> Permit:
        """Pass on to `LearningLoop.request_collect`; while the learner starts, actors wait."""
        if self.loop is None:
            return Permit("wait", retry_seconds=0.5, reason="the learner to start")
        return self.loop.request_collect(actor, process, stored)

    def newest(self) -> tuple[list[ray.ObjectRef], int, int] | None:
        """Return the newest weights: [values], version, checksum; None before the first. A collector starts so."""
        return self.broadcast.newest

    def version(self) -> int:
        """Return version of the newest published weights; 0 before the first."""
        return self.broadcast.newest[1] if self.broadcast.newest is not None else 0

    def environment_failed(self, actor: int, why: str) -> None:
        """Pass on to `LearningLoop.environment_failed`; not counted while the learner starts."""
        if self.loop is not None:
            self.loop.environment_failed(actor, why)

    def status(self) -> dict[str, Any]:
        """Return `LearningLoop.status`; {} while the learner starts."""
        return self.loop.status() if self.loop is not None else {}

    def stop(self) -> None:
        """Make `run` save and return."""
        self.stopped = True
        if self.loop is not None:
            self.loop.stop()

    def _report_calls(self, replay: RemoteReplay) -> None:
        """Report the calls in flight."""
        in_flight = {
            "batches": replay.under_way,
            "evaluations": self.evaluations.under_way,
            "weights": self.broadcast.under_way,
        }
        for call, number in in_flight.items():
            self.telemetry.set(CALLS, number, call=call)

    def flush(self) -> None:
        """Send the last report, at the end of a run."""
        self.telemetry.flush()


class Broadcast:
    """Sends weights to all planners: put into the object store once, whatever their number.

    A planner that has not taken the last ones is sent no more until it has, so that neither calls nor snapshots pile
    up behind one that hangs. It fetches the newest itself.
    """

    def __init__(self, planners: list[str]) -> None:
        self.names = planners
        self.newest: tuple[list[ray.ObjectRef], int, int] | None = None
        self._handles: dict[str, Any] = {}
        self.answers: dict[str, ray.ObjectRef] = {}
        """the last call to each, by name"""

    def send(self, weights: Weights) -> None:
        """Put a snapshot into the store, in place of the last one, and send it to the planners."""
        reference = ray.put(weights.values)
        self.newest = ([reference], weights.version, weights.checksum)
        for name in self.names:
            handle = self._handle(name)
            answer = self.answers.get(name)
            if handle is None or (answer is not None and not ray.wait([answer], timeout=0)[0]):
                continue
            take = handle.take.options(max_task_retries=0)
            self.answers[name] = take.remote(reference, weights.version, weights.checksum)

    @property
    def under_way(self) -> int:
        """Snapshots sent that have not been taken yet."""
        answers = list(self.answers.values())
        return len(ray.wait(answers, num_returns=len(answers), timeout=0)[1]) if answers else 0

    def _handle(self, name: str) -> Any:
        """Find the actor of that name, None if it does not exist yet. A handle outlives restarts."""
        if name not in self._handles:
            try:
                self._handles[name] = ray.get_actor(name)
            except ValueError:
                return None
        return self._handles[name]


class RemoteEvaluations:
    """The evaluator's queue, as LearningLoop sees it. Ray asks again if the evaluator is killed."""

    def __init__(self, evaluator: Any) -> None:
        self.evaluator = evaluator
        self._under_way: dict[ray.ObjectRef, int] = {}

    def submit(self, key: int, weights: Weights) -> None:
        """As EvaluationDesk."""
        reference = ray.put(weights.values)
        answer = self.evaluator.evaluate.remote(reference, weights.version, weights.checksum)
        self._under_way[answer] = key

    @property
    def under_way(self) -> int:
        """Evaluations that have no result yet."""
        return len(self._under_way)

    def results(self) -> list[tuple[int, list[float], float | None, float]]:
        """As EvaluationDesk. Raises the evaluator's exception, if it ended with one."""
        if not self._under_way:
            return []
        answers = list(self._under_way)
        ended, _ = ray.wait(answers, num_returns=len(answers), timeout=0)
        return [(self._under_way.pop(answer), *ray.get(answer)) for answer in ended]


def next_generation(run_dir: Path) -> int:
    """Count one more start of a learner in this directory, on disk: 1 for the first."""
    generation = read_generation(run_dir) + 1
    replace_file(run_dir / "generation", str(generation).encode())
    return generation

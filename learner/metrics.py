"""Report the metrics of a run and its learner: from the lines of metrics.jsonl, and looked up before each report.

    MetricsWriter --each line--> report_line: episodes, evaluations, what the learner's parts compute
    reporter ----report_run----> counters, pace, checkpoints, disk     (in the thread that reports)
    LearningLoop --TimeSpent---> seconds by activity

Counts of what is in metrics.jsonl are its lines': after a kill they go back with the file to the checkpoint, and on.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.metrics.gpu import report_gpu
from qttdm.common.metrics.instruments import QUICK, Components, counter, gauge, histogram
from qttdm.common.metrics.lines import COUNTERS, MetricsWriter, declare, read_metrics
from qttdm.common.metrics.process import report_disk
from qttdm.common.metrics.telemetry import Telemetry, TimeSpent
from qttdm.learner.learner import UPDATE_SECONDS
from qttdm.learner.schedule import TrainingConfig

if TYPE_CHECKING:
    from qttdm.learner.loop import LearningLoop

ACTIVITIES = ("waiting_for_decisions", "waiting_for_batches", "updating", "publishing", "saving")
RATES = declare(
    ("updates_per_second", "1/s", "speed of learning"),
    ("decisions_per_second", "1/s", "speed of collecting"),
    ("share_waiting_for_decisions", "fraction", "of the learner's time: the pace allowed no update (cluster)"),
    ("share_waiting_for_batches", "fraction", "of its time: no batch had come yet (cluster)"),
    ("share_updating", "fraction", "of its time: updates (cluster)"),
    ("share_publishing", "fraction", "of its time: sending weights (cluster)"),
    ("share_saving", "fraction", "of its time: checkpoints (cluster)"),
)

LEARNER: Components = ("learner",)
VALUE = gauge(
    "qttdm_learner",
    LEARNER,
    "1",
    "what the learner's parts compute, by its name in metrics.jsonl, as in the newest `update` line",
    "name",
    most=90,
)
ENV_STEPS = counter(
    "qttdm_env_steps_total", LEARNER, "steps", "simulator steps collected, action repeats counted", durable=True
)
DECISIONS = counter(
    "qttdm_decisions_total", LEARNER, "decisions", "decisions collected, random ones included", durable=True
)
EPISODES = counter("qttdm_episodes_total", LEARNER, "episodes", "training episodes collected", durable=True)
UPDATES = counter(
    "qttdm_updates_total",
    LEARNER,
    "updates",
    "updates in the weights; after a learner's restart it waits until those are made again",
    durable=True,
)
TARGET = gauge("qttdm_target_env_steps", LEARNER, "steps", "simulator steps that the run is to collect", lasting=True)
RUN_SECONDS = gauge(
    "qttdm_run_seconds", LEARNER, "s", "time spent on the run, earlier parts of a resumed one included", lasting=True
)
PROGRESS_AGE = gauge("qttdm_progress_age_seconds", LEARNER, "s", "since the last update was made or episode arrived")
BACKLOG = gauge("qttdm_update_backlog", LEARNER, "updates", "still to be made for the decisions so far")
PACE = gauge(
    "qttdm_pace_ratio",
    LEARNER,
    "fraction",
    "updates made for each decision after the seed decisions, of those asked for (training.update_ratio)",
)
RETURN = histogram(
    "qttdm_episode_return",
    LEARNER,
    "reward",
    "undiscounted return of training episodes",
    # even over 0 to 1000, the range of dm_control; Meta-World ends at 5000, Pendulum begins at -1600
    (
        *(-10000.0, -3000.0, -1600.0, -1000.0, -500.0, -200.0, -100.0, -10.0, 0.0, 10.0),
        *(50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0),
        *(1500.0, 2000.0, 3000.0, 4000.0, 5000.0, 10000.0),
    ),
    durable=True,
)
RETURN_LAST = gauge(
    "qttdm_episode_return_last", LEARNER, "reward", "return of the newest training episode", lasting=True
)
OUTCOMES = counter(
    "qttdm_episode_outcomes_total",
    LEARNER,
    "episodes",
    "training episodes by how they ended; undefined: the task knows no success",
    "outcome",
    ("success", "failure", "undefined"),
    durable=True,
)
EVALUATION_RETURN = gauge(
    "qttdm_evaluation_return", LEARNER, "reward", "mean return of the newest evaluation", lasting=True
)
EVALUATION_SUCCESS = gauge(
    "qttdm_evaluation_success",
    LEARNER,
    "fraction",
    "its share of successes, where the task defines them",
    lasting=True,
)
LEARNER_SECONDS = counter(
    "qttdm_learner_seconds_total",
    LEARNER,
    "s",
    "where the time goes: waiting because actors are behind, waiting for batches, the others by name",
    "activity",
    ACTIVITIES,
)
PUBLISH_SECONDS = histogram("qttdm_weights_publish_seconds", LEARNER, "s", "taking a snapshot and sending it", QUICK)
CHECKPOINT_SECONDS = histogram(
    "qttdm_checkpoint_seconds",
    LEARNER,
    "s",
    "saving a checkpoint",
    (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0),
)
CHECKPOINT_AGE = gauge(
    "qttdm_checkpoint_age_seconds",
    LEARNER,
    "s",
    "since the newest checkpoint was saved, or since the start if there is none",
)
EACH_TIME: dict[str, tuple[str, dict[str, str]]] = {
    "waiting_for_batches": (UPDATE_SECONDS, {"part": "wait"}),
    "publishing": (PUBLISH_SECONDS, {}),
    "saving": (CHECKPOINT_SECONDS, {}),
}
"""histograms of activities; the device's part of an update is measured by the learner"""


def time_spent(telemetry: Telemetry) -> TimeSpent:
    """Count where the learner's seconds go, from now on."""
    return TimeSpent(telemetry, LEARNER_SECONDS, histograms=EACH_TIME)


def seconds_per_update(spent: TimeSpent, updates: int) -> float:
    """Average over so many updates, with waiting for batches; > 0."""
    seconds = sum(spent.seconds[activity] for activity in ("waiting_for_batches", "updating"))
    return max(1e-6, seconds / max(1, updates))


class Rates:
    """Compute a run's speeds, and shares of its learner's time, between two calls."""

    def __init__(self, spent: TimeSpent, updates: int, decisions: int) -> None:
        self.spent = spent
        self._last = time.monotonic(), updates, decisions, dict(spent.seconds)

    def __call__(self, updates: int, decisions: int) -> dict[str, float]:
        """Compute speeds and shares since the last call, from the totals as of now."""
        then, updates_then, decisions_then, spent_then = self._last
        self._last = now, _, _, spent = time.monotonic(), updates, decisions, dict(self.spent.seconds)
        passed = max(1e-9, now - then)
        return {
            "updates_per_second": (updates - updates_then) / passed,
            "decisions_per_second": (decisions - decisions_then) / passed,
            **{f"share_{what}": (seconds - spent_then[what]) / passed for what, seconds in spent.items()},
        }


def open_metrics(
    path: Path, keep_bytes: int | None, telemetry: Telemetry, accept_losses: bool = False
) -> MetricsWriter:
    """Open a MetricsWriter whose lines are reported to Prometheus too, first those already in the file."""
    writer = MetricsWriter(path, keep_bytes, [partial(report_line, telemetry)], accept_losses)
    for line in read_metrics(path):
        report_line(telemetry, line)
    return writer


def report_line(telemetry: Telemetry, line: dict[str, Any]) -> None:
    """Report one line of metrics.jsonl; nulls are left out."""
    values = {name: value for name, value in line.items() if value is not None}
    if line["kind"] == "train":
        if "episode_return" in values:
            telemetry.observe(RETURN, values["episode_return"])
            telemetry.set(RETURN_LAST, values["episode_return"])
        success = values.get("success")
        telemetry.inc(OUTCOMES, outcome="undefined" if success is None else "success" if success > 0 else "failure")
    elif line["kind"] == "eval":
        for name, metric in (("episode_return", EVALUATION_RETURN), ("success", EVALUATION_SUCCESS)):
            if name in values:
                telemetry.set(metric, values[name])
    else:
        for name in values.keys() - {"kind", *COUNTERS, *RATES}:
            telemetry.set(VALUE, values[name], name=name)


def report_run(run: LearningLoop) -> None:
    """Set the run's counters, pace and checkpoint age before each report of its learner's telemetry."""
    telemetry, started = run.learner.telemetry, time.time()
    telemetry.set(TARGET, run.training.env_steps)
    telemetry.before_report(lambda: _report_status(telemetry, run.training, run.status()))
    telemetry.before_report(lambda: _report_checkpoint(telemetry, run.store, started))
    telemetry.before_report(partial(report_gpu, telemetry, run.learner.device))


def _report_status(telemetry: Telemetry, training: TrainingConfig, status: dict[str, Any]) -> None:
    telemetry.count_to(ENV_STEPS, status["env_steps"])
    telemetry.count_to(DECISIONS, status["decisions"])
    telemetry.count_to(EPISODES, status["episodes"])
    telemetry.count_to(UPDATES, status["updates"])
    telemetry.set(RUN_SECONDS, status["wall_seconds"])
    telemetry.set(PROGRESS_AGE, status["seconds_since_progress"])
    telemetry.set(BACKLOG, status["backlog"])
    asked = (status["decisions"] - training.seed_decisions) * training.update_ratio
    if asked > 0:
        telemetry.set(PACE, status["updates"] / asked)


def _report_checkpoint(telemetry: Telemetry, store: CheckpointStore, started: float) -> None:
    """Set the newest checkpoint's age, and the size of the disk that it is on."""
    newest = store.newest()
    try:
        saved = started if newest is None else newest.stat().st_mtime
    except FileNotFoundError:  # it has just been replaced by one that the next report finds
        return
    telemetry.set(CHECKPOINT_AGE, max(0.0, time.time() - saved))
    report_disk(telemetry, store.directory.parent)  # the run's, which is there before a checkpoint is

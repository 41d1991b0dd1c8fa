"""What is told to Prometheus of a run and its learner: read off metrics.jsonl, and looked up before each report.

    MetricsWriter --each line--> tell_line: episodes, evaluations, losses
    reporter ------watch-------> counters, pace, checkpoints, disk     (in the reporter's thread)
    LearningLoop --TimeSpent---> where its time goes

Counts of what is in metrics.jsonl are its lines': after a kill they go back with the file to the checkpoint, and on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from qttdm.common.checkpoint import CheckpointStore
from qttdm.common.metrics.gpu import watch_gpu
from qttdm.common.metrics.lines import MetricsWriter, read_metrics
from qttdm.common.metrics.telemetry import Telemetry
from qttdm.common.weights import updates_of
from qttdm.learner.learner import Learner
from qttdm.learner.schedule import TrainingConfig

FLOAT32 = 4  # bytes
ACTIVITIES = ("waiting_for_decisions", "waiting_for_batches", "copying", "updating", "publishing", "saving")
EACH_TIME: dict[str, tuple[str, dict[str, str]]] = {
    "waiting_for_batches": ("qttdm_update_seconds", {"part": "wait"}),
    "publishing": ("qttdm_weights_publish_seconds", {}),
    "saving": ("qttdm_checkpoint_seconds", {}),
}
"""histograms of activities; the device's part of an update is measured by the learner"""
GAUGES = {
    "loss_state": ("qttdm_loss", {"term": "state"}),
    "loss_reward": ("qttdm_loss", {"term": "reward"}),
    "loss_continuation": ("qttdm_loss", {"term": "continuation"}),
    "loss_q": ("qttdm_loss", {"term": "td"}),
    "grad_norm_tdm": ("qttdm_gradient_norm", {"network": "tdm"}),
    "grad_norm_qt": ("qttdm_gradient_norm", {"network": "qt"}),
    "lr_tdm": ("qttdm_learning_rate", {"network": "tdm"}),
    "lr_qt": ("qttdm_learning_rate", {"network": "qt"}),
    "q_mean": ("qttdm_q_mean", {}),
    "q_max": ("qttdm_q_max", {}),
    "q_target_mean": ("qttdm_q_target_mean", {}),
    "replayed_return": ("qttdm_replayed_return", {}),
    "target_drift": ("qttdm_target_drift_ratio", {}),
}
"""by what an `update` line calls them"""


class TimeSpent:
    """Where the learner's seconds went since its start."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.telemetry = telemetry
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """What is done inside; one thing at a time."""
        started = time.monotonic()
        try:
            yield
        finally:
            passed = time.monotonic() - started
            self.seconds[activity] += passed
            self.telemetry.inc("qttdm_learner_seconds_total", passed, activity=activity)
            if activity in EACH_TIME:
                name, label = EACH_TIME[activity]
                self.telemetry.observe(name, passed, **label)

    def per_update(self, updates: int) -> float:
        """Seconds of an update, on average, if so many were made; > 0."""
        spent = self.seconds
        return max(1e-6, (spent["waiting_for_batches"] + spent["copying"] + spent["updating"]) / max(1, updates))


class Rates:
    """How fast a run is, and what its learner does, between two calls."""

    def __init__(self, spent: TimeSpent, updates: int, decisions: int) -> None:
        self.spent = spent
        self._last = time.monotonic(), updates, decisions, dict(spent.seconds)

    def __call__(self, updates: int, decisions: int) -> dict[str, float]:
        """Per second, and shares of the time, since the last call, with so many of them now."""
        then, updates_then, decisions_then, spent_then = self._last
        self._last = now, _, _, spent = time.monotonic(), updates, decisions, dict(self.spent.seconds)
        passed = max(1e-9, now - then)
        return {
            "updates_per_second": (updates - updates_then) / passed,
            "decisions_per_second": (decisions - decisions_then) / passed,
            **{f"share_{what}": (seconds - spent_then[what]) / passed for what, seconds in spent.items()},
        }


def open_metrics(path: Path, keep_bytes: int | None, telemetry: Telemetry) -> MetricsWriter:
    """A MetricsWriter whose lines are told, those that it keeps first."""
    writer = MetricsWriter(path, keep_bytes, sinks=[partial(tell_line, telemetry)])
    for line in read_metrics(path):
        tell_line(telemetry, line)
    return writer


def tell_line(telemetry: Telemetry, line: dict[str, Any]) -> None:
    """One line of metrics.jsonl; null is not told."""
    values = {name: value for name, value in line.items() if value is not None}
    if line["kind"] == "train":
        _tell_episode(telemetry, values)
    elif line["kind"] == "eval":
        _tell_evaluation(telemetry, values)
    else:
        for name in GAUGES.keys() & values.keys():
            gauge, label = GAUGES[name]
            telemetry.set(gauge, values[name], **label)


def _tell_episode(telemetry: Telemetry, line: dict[str, Any]) -> None:
    if "episode_return" in line:
        telemetry.observe("qttdm_episode_return", line["episode_return"])
        telemetry.set("qttdm_episode_return_last", line["episode_return"])
    telemetry.observe("qttdm_episode_decisions", line["episode_length"])
    if "success" in line:
        telemetry.inc("qttdm_episode_outcomes_total", outcome="success" if line["success"] > 0 else "failure")
        telemetry.set("qttdm_episode_success_last", line["success"])
    else:
        telemetry.inc("qttdm_episode_outcomes_total", outcome="undefined")


def _tell_evaluation(telemetry: Telemetry, line: dict[str, Any]) -> None:
    telemetry.inc("qttdm_evaluations_total")
    telemetry.set("qttdm_evaluation_env_steps", line["env_steps"])
    if "episode_return" in line:
        telemetry.set("qttdm_evaluation_return", line["episode_return"])
        telemetry.set("qttdm_evaluation_return_min", min(line["episode_returns"]))
        telemetry.set("qttdm_evaluation_return_max", max(line["episode_returns"]))
    if "success" in line:
        telemetry.set("qttdm_evaluation_success", line["success"])


class Run(Protocol):
    """What makes the updates: LearningLoop, or a run on one machine."""

    learner: Learner
    training: TrainingConfig
    store: CheckpointStore

    def status(self) -> dict[str, Any]:
        """Plain numbers of where it is."""


def watch(run: Run) -> None:
    """Have it looked at before each report of its learner's telemetry."""
    learner, training, telemetry = run.learner, run.training, run.learner.telemetry
    telemetry.set("qttdm_target_env_steps", training.env_steps)
    telemetry.set("qttdm_update_ratio_target", training.update_ratio)
    telemetry.set("qttdm_learner_generation", learner.generation)
    telemetry.set("qttdm_weights_bytes", sum(p.numel() * FLOAT32 for p in learner.networks.parameters()))
    telemetry.before_report(lambda: _look(telemetry, training, run.status()))
    telemetry.before_report(CheckpointWatch(run.store, telemetry))
    telemetry.before_report(partial(watch_gpu, telemetry, learner.device))


def _look(telemetry: Telemetry, training: TrainingConfig, status: dict[str, Any]) -> None:
    s = status
    for what in ("env_steps", "decisions", "episodes", "updates"):
        telemetry.count_to(f"qttdm_{what}_total", s[what])
    telemetry.set("qttdm_run_seconds", s["wall_seconds"])
    telemetry.set("qttdm_progress_age_seconds", s["seconds_since_progress"])
    telemetry.set("qttdm_updates_owed", s["owed"])
    if s["version"] >= 0:
        telemetry.set("qttdm_weights_updates", updates_of(s["version"]))
    if s["decisions"] > training.seed_decisions:
        telemetry.set("qttdm_update_ratio", s["updates"] / (s["decisions"] - training.seed_decisions))


class CheckpointWatch:
    """The newest checkpoint, and the disk that it is on."""

    def __init__(self, store: CheckpointStore, telemetry: Telemetry) -> None:
        self.store, self.telemetry, self.started = store, telemetry, time.time()
        self._newest: Path | None = None

    def __call__(self) -> None:
        """Look."""
        newest = self.store.newest()
        try:
            saved = self.started if newest is None else newest.stat().st_mtime
            if newest is not None and newest != self._newest:
                size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
                self.telemetry.set("qttdm_checkpoint_bytes", size)
                self.telemetry.count_to("qttdm_checkpoints_total", self.store.number(newest))
        except FileNotFoundError:  # it has just been replaced by one that the next look finds
            return
        self._newest = newest
        self.telemetry.set("qttdm_checkpoint_age_seconds", max(0.0, time.time() - saved))
        disk = shutil.disk_usage(self.store.directory.parent)  # the run's, which is there before a checkpoint is
        self.telemetry.set("qttdm_disk_free_bytes", disk.free)
        self.telemetry.set("qttdm_disk_size_bytes", disk.total)

"""Every metric that Prometheus sees, declared once: what it is called, who reports it, its unit, and what it means.

    component --inc, set, observe--> Telemetry --snapshots--> exporter --/metrics--> Prometheus

(The lines of metrics.jsonl, which plots are made of, are common/metrics/lines.py's.) Every series carries the
labels of COMMON; a metric may have one label of its own, whose values are listed here. So the number of series that a
process can ever make is known: `series_of`. docs/metrics.md is written from this file by `make docs`. Longer than
other files because it is a list.

Choice: some counters and histograms are `durable`: their owner takes them from what is on disk, counted from the run's
beginning. Why: a learner that is killed goes back to its checkpoint and counts some episodes again; added up over its
processes they would be too many. Of a durable metric the largest value that any process reported is the true one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Component = Literal["driver", "learner", "actor", "evaluator", "replay", "planner", "exporter"]
COMPONENTS: dict[Component, str] = {
    "driver": "the process of `qttdm cluster train`, once for each seed",
    "learner": "makes the updates; counts the run's progress",
    "actor": "collects episodes",
    "evaluator": "evaluates snapshots of the weights, and the models on fresh episodes",
    "replay": "a shard of the replay",
    "planner": "a planner service",
    "exporter": "what is scraped; its own metrics have no common labels",
}
Components = tuple[Component, ...]
DRIVER: Components = ("driver",)
LEARNER: Components = ("learner",)
ACTOR: Components = ("actor",)
EVALUATOR: Components = ("evaluator",)
REPLAY: Components = ("replay",)
PLANNER: Components = ("planner",)
EXPORTER: Components = ("exporter",)
ACTING: Components = ("actor", "evaluator", "planner")
PROCESSES: Components = ("driver", "learner", "actor", "evaluator", "replay", "planner")

COMMON = {
    "run": "name of the run, its directory's",
    "seed": "of the run",
    "task": "such as dmc/walker-walk",
    "component": "which part of the system",
    "index": "which of the parts of that kind, from 0",
}
"""Labels of every series but the exporter's own."""

Kind = Literal["counter", "gauge", "histogram"]

QUICK = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds of calls and copies: half a decade a bucket, from what a lock costs to what is a stall."""
DECISION = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds of a decision or an update: finest where control at 10 to 50 Hz succeeds or fails."""
SLOW = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Seconds of evaluations and checkpoints."""
RETURNS = (
    *(-10000.0, -3000.0, -1600.0, -1000.0, -500.0, -200.0, -100.0, -10.0, 0.0, 10.0),
    *(50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 600.0, 700.0, 800.0, 900.0, 1000.0),
    *(1500.0, 2000.0, 3000.0, 4000.0, 5000.0, 10000.0),
)
"""Even over 0 to 1000, the range of dm_control; Meta-World ends at 5000, Pendulum begins at -1600."""
LENGTHS = (10.0, 20.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0, 500.0, 700.0, 1000.0)
"""Decisions of an episode."""
STALENESS = (0.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0, 500.0, 1000.0, 2000.0, 5000.0)
"""Updates; cluster.publish_every is 50 and cluster.max_staleness 1000 unless told otherwise."""
SIZES = (1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 128.0)
"""Requests in a batch."""
ITERATIONS = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0)
"""Of Algorithm 2; the paper has 6."""


@dataclass(frozen=True)
class Instrument:
    """One metric."""

    name: str
    kind: Kind
    components: Components
    """who reports it"""
    unit: str
    meaning: str
    label: str | None = None
    """its own label, besides the common ones"""
    values: tuple[str, ...] = ()
    """all values of that label"""
    buckets: tuple[float, ...] = ()
    """a histogram's upper bounds; one more has no bound"""
    durable: bool = False
    """counted from the run's beginning, from what is on disk; see this module's docstring"""
    lasting: bool = False
    """a gauge that is still true when its process is no more; others are served only while it reports"""
    observed: bool = False
    """it is the exporter that says this of a process, not the process itself"""

    @property
    def series(self) -> int:
        """Time series of one process."""
        each = 1
        if self.kind == "histogram":  # one bucket more, without bound; count; sum, unless it could fall
            each = len(self.buckets) + (2 if self.buckets[0] < 0 else 3)
        return each * max(1, len(self.values))


def counter(
    name: str,
    components: Components,
    unit: str,
    meaning: str,
    label: str | None = None,
    values: tuple[str, ...] = (),
    durable: bool = False,
    observed: bool = False,
) -> Instrument:
    """What only grows."""
    return Instrument(name, "counter", components, unit, meaning, label, values, durable=durable, observed=observed)


def gauge(
    name: str,
    components: Components,
    unit: str,
    meaning: str,
    label: str | None = None,
    values: tuple[str, ...] = (),
    lasting: bool = False,
    observed: bool = False,
) -> Instrument:
    """What goes up and down."""
    return Instrument(name, "gauge", components, unit, meaning, label, values, lasting=lasting, observed=observed)


def histogram(
    name: str,
    components: Components,
    unit: str,
    meaning: str,
    buckets: tuple[float, ...],
    label: str | None = None,
    values: tuple[str, ...] = (),
    durable: bool = False,
) -> Instrument:
    """How what happens is distributed."""
    return Instrument(name, "histogram", components, unit, meaning, label, values, buckets, durable=durable)


STATES = ("queued", "starting", "running", "stopping", "finished", "stopped", "failed")
REFUSED = ("bad_observation", "unknown_episode", "wrong_step", "busy", "late", "failed", "stopping")
"""planner_service/serving/messages.py's codes; a test holds both together"""

DECLARED = [
    # --- the run's progress ---
    counter(
        "qttdm_env_steps_total", LEARNER, "steps", "simulator steps collected, action repeats counted", durable=True
    ),
    counter("qttdm_decisions_total", LEARNER, "decisions", "decisions collected, random ones included", durable=True),
    counter("qttdm_episodes_total", LEARNER, "episodes", "training episodes collected", durable=True),
    counter(
        "qttdm_updates_total",
        LEARNER,
        "updates",
        "updates in the weights; after a learner's restart it waits until those are made again",
        durable=True,
    ),
    gauge("qttdm_target_env_steps", LEARNER, "steps", "simulator steps that the run is to collect", lasting=True),
    gauge(
        "qttdm_run_seconds",
        LEARNER,
        "s",
        "time spent on the run, earlier parts of a resumed one included",
        lasting=True,
    ),
    gauge("qttdm_progress_age_seconds", LEARNER, "s", "since the last update was made or episode heard of"),
    gauge("qttdm_learner_generation", LEARNER, "1", "how often a learner of this seed has been started"),
    gauge(
        "qttdm_seed_state",
        DRIVER,
        "1",
        "1 for the state that the seed is in, 0 for the others",
        "state",
        STATES,
        lasting=True,
    ),
    gauge(
        "qttdm_run_info",
        DRIVER,
        "1",
        "1 for the agent that is trained",
        "agent",
        ("qt-tdm", "tdm", "qt"),
        lasting=True,
    ),
    # --- returns ---
    histogram(
        "qttdm_episode_return", LEARNER, "reward", "undiscounted return of training episodes", RETURNS, durable=True
    ),
    gauge("qttdm_episode_return_last", LEARNER, "reward", "return of the newest training episode", lasting=True),
    histogram("qttdm_episode_decisions", LEARNER, "decisions", "length of training episodes", LENGTHS, durable=True),
    counter(
        "qttdm_episode_outcomes_total",
        LEARNER,
        "episodes",
        "training episodes by how they ended; undefined: the task knows no success",
        "outcome",
        ("success", "failure", "undefined"),
        durable=True,
    ),
    gauge("qttdm_episode_success_last", LEARNER, "fraction", "success of the newest training episode", lasting=True),
    counter("qttdm_evaluations_total", LEARNER, "evaluations", "`eval` lines in metrics.jsonl", durable=True),
    gauge("qttdm_evaluation_return", LEARNER, "reward", "mean return of the newest evaluation", lasting=True),
    gauge("qttdm_evaluation_return_min", LEARNER, "reward", "lowest return of its episodes", lasting=True),
    gauge("qttdm_evaluation_return_max", LEARNER, "reward", "highest return of its episodes", lasting=True),
    gauge(
        "qttdm_evaluation_success",
        LEARNER,
        "fraction",
        "its share of successes, where the task defines them",
        lasting=True,
    ),
    gauge(
        "qttdm_evaluation_env_steps",
        LEARNER,
        "steps",
        "simulator steps collected when its weights were taken",
        lasting=True,
    ),
    histogram("qttdm_evaluation_seconds", EVALUATOR, "s", "time of an evaluation", SLOW),
    # --- acting and planning ---
    histogram(
        "qttdm_decision_seconds",
        ACTING,
        "s",
        "time of a decision, all environments of a batch together: in the planner's queue, planning, and from "
        "observation to action",
        DECISION,
        "stage",
        ("queue", "plan", "total"),
    ),
    counter(
        "qttdm_acted_total",
        ACTING,
        "decisions",
        "decisions made, also for episodes that were then dropped, and for those that wait for others to end",
    ),
    counter("qttdm_acted_episodes_total", ("actor", "evaluator"), "episodes", "episodes ended and, by actors, stored"),
    histogram("qttdm_planner_iterations", ACTING, "iterations", "of planning, in a decision", ITERATIONS),
    gauge(
        "qttdm_plan_value",
        ACTING,
        "scaled return",
        "return that the best sequence of the newest plans promises, mean",
    ),
    gauge(
        "qttdm_plan_terminal_share_ratio",
        ACTING,
        "fraction",
        "share of the terminal value in that promise: its magnitude over the sum of both parts' magnitudes, mean",
    ),
    gauge("qttdm_plan_std", ACTING, "action", "std of the last fitted Gaussian, mean; the action range is [-1, 1]"),
    gauge(
        "qttdm_action_saturation_ratio",
        ("actor", "evaluator"),
        "fraction",
        "share of the newest episode's action components beyond 0.95",
    ),
    counter(
        "qttdm_actor_seconds_total",
        ACTOR,
        "s",
        "where the time goes: planning, simulating, storing episodes, waiting for the learner to keep pace, "
        "fetching weights",
        "activity",
        ("planning", "simulating", "storing", "waiting", "fetching"),
    ),
    # --- weights ---
    gauge(
        "qttdm_weights_updates",
        ("learner", "actor", "evaluator", "planner"),
        "updates",
        "in the weights: learner: newest published; others: acting now",
    ),
    gauge("qttdm_weights_bytes", LEARNER, "bytes", "size of a published snapshot"),
    histogram("qttdm_weights_publish_seconds", LEARNER, "s", "taking a snapshot and sending it", QUICK),
    histogram("qttdm_weights_apply_seconds", ACTING, "s", "loading a snapshot into the networks that act", QUICK),
    gauge("qttdm_staleness_updates", ACTOR, "updates", "that the newest weights known are ahead of those acting now"),
    gauge(
        "qttdm_staleness_limit_updates",
        ACTOR,
        "updates",
        "cluster.max_staleness: beyond it the actor fetches newer ones",
    ),
    histogram(
        "qttdm_episode_staleness_updates",
        ACTOR,
        "updates",
        "that the newest weights known at an episode's end are ahead of the oldest that acted in it",
        STALENESS,
    ),
    # --- learning ---
    gauge(
        "qttdm_loss",
        LEARNER,
        "1",
        "mean since the last look, as in metrics.jsonl",
        "term",
        ("state", "reward", "continuation", "td"),
    ),
    gauge("qttdm_gradient_norm", LEARNER, "1", "before clipping, mean since the last look", "network", ("tdm", "qt")),
    gauge("qttdm_learning_rate", LEARNER, "1", "of the next update", "network", ("tdm", "qt")),
    gauge("qttdm_q_mean", LEARNER, "scaled return", "Q of the bins taken, mean over batch, dimensions and heads"),
    gauge("qttdm_q_max", LEARNER, "scaled return", "largest Q of a batch, of the bins taken, mean over heads"),
    gauge("qttdm_q_target_mean", LEARNER, "scaled return", "mean of the targets"),
    gauge(
        "qttdm_replayed_return",
        LEARNER,
        "scaled return",
        "Monte-Carlo return of the same states: the discounted rewards to the end of the stored episode, mean",
    ),
    gauge("qttdm_target_drift_ratio", LEARNER, "fraction", "distance of the target network, over the network's norm"),
    histogram(
        "qttdm_update_seconds",
        LEARNER,
        "s",
        "time of an update: waiting for its batch, copying it to the device, computing",
        DECISION,
        "part",
        ("wait", "copy", "compute"),
    ),
    counter(
        "qttdm_learner_seconds_total",
        LEARNER,
        "s",
        "where the time goes: waiting because actors are behind, waiting for batches, the others by name",
        "activity",
        ("waiting_for_decisions", "waiting_for_batches", "copying", "updating", "publishing", "saving"),
    ),
    gauge(
        "qttdm_gpu_memory_bytes",
        ("learner", "planner"),
        "bytes",
        "on the device",
        "use",
        ("allocated", "reserved", "total"),
    ),
    gauge(
        "qttdm_gpu_utilisation_ratio",
        ("learner", "planner"),
        "fraction",
        "share of time in which the device computed",
    ),
    # --- how good the models are, on fresh evaluation episodes ---
    gauge(
        "qttdm_model_state_error",
        EVALUATOR,
        "observation unit^2",
        "mean squared error per dimension of a predicted state: the next one, and the last one of the planner's "
        "horizon, predicted open-loop",
        "rollout",
        ("one_step", "open_loop"),
        lasting=True,
    ),
    gauge(
        "qttdm_model_state_error_ratio",
        EVALUATOR,
        "fraction",
        "that error over the one of predicting that nothing moves",
        "rollout",
        ("one_step", "open_loop"),
        lasting=True,
    ),
    gauge(
        "qttdm_model_reward_error",
        EVALUATOR,
        "scaled reward^2",
        "mean squared error of a predicted reward, likewise",
        "rollout",
        ("one_step", "open_loop"),
        lasting=True,
    ),
    gauge(
        "qttdm_value_expected",
        EVALUATOR,
        "scaled return",
        "what the policy promised, mean over decisions",
        lasting=True,
    ),
    gauge(
        "qttdm_value_realised",
        EVALUATOR,
        "scaled return",
        "what the same decisions got: discounted rewards to the episode's end and, where a time limit ended it, "
        "the promise of the last decision",
        lasting=True,
    ),
    # --- replay ---
    counter(
        "qttdm_replay_inserted_episodes_total",
        REPLAY,
        "episodes",
        "ever inserted, evicted ones included",
        durable=True,
    ),
    counter("qttdm_replay_inserted_decisions_total", REPLAY, "decisions", "of those", durable=True),
    counter("qttdm_replay_inserted_env_steps_total", REPLAY, "steps", "simulator steps of those", durable=True),
    counter("qttdm_replay_duplicates_total", REPLAY, "episodes", "inserts of what had been inserted before"),
    counter("qttdm_replay_damaged_records_total", REPLAY, "records", "found torn or damaged on disk"),
    counter("qttdm_replay_sampled_batches_total", REPLAY, "batches", "parts of batches drawn"),
    gauge("qttdm_replay_decisions", REPLAY, "decisions", "stored now"),
    gauge("qttdm_replay_episodes", REPLAY, "episodes", "stored now"),
    gauge("qttdm_replay_capacity_decisions", REPLAY, "decisions", "that it can store"),
    gauge("qttdm_replay_fill_ratio", REPLAY, "fraction", "stored of what it can store"),
    gauge(
        "qttdm_replay_sampled_age_decisions",
        REPLAY,
        "decisions",
        "inserted into this shard since those that the newest batch begins at, mean",
    ),
    histogram("qttdm_replay_insert_seconds", REPLAY, "s", "storing an episode, on disk at the end", QUICK),
    histogram("qttdm_replay_sample_seconds", REPLAY, "s", "drawing this shard's part of a request", QUICK),
    gauge("qttdm_replay_disk_bytes", REPLAY, "bytes", "size of its log"),
    # --- pace ---
    gauge("qttdm_updates_owed", LEARNER, "updates", "that the decisions so far ask for and that have not been made"),
    gauge("qttdm_update_ratio", LEARNER, "1", "updates made for each decision after the seed decisions"),
    gauge("qttdm_update_ratio_target", LEARNER, "1", "training.update_ratio", lasting=True),
    # --- checkpoints ---
    counter("qttdm_checkpoints_total", LEARNER, "checkpoints", "ever saved", durable=True),
    gauge(
        "qttdm_checkpoint_age_seconds",
        LEARNER,
        "s",
        "since the newest was saved, or since the start if there is none",
    ),
    gauge("qttdm_checkpoint_bytes", LEARNER, "bytes", "size of the newest"),
    histogram("qttdm_checkpoint_seconds", LEARNER, "s", "saving one", SLOW),
    # --- what goes wrong ---
    counter(
        "qttdm_failures_total",
        ("driver", "learner", "actor", "evaluator", "planner"),
        "failures",
        "environment: one failed and was replaced; hung: this process follows one that hung; timeout: another did "
        "not answer in time; unresponsive: gave no sign of life and was killed; non_finite: a loss was not a "
        "number; seed: a seed was given up",
        "kind",
        ("environment", "hung", "timeout", "unresponsive", "non_finite", "seed"),
    ),
    gauge(
        "qttdm_calls_in_flight",
        ("learner", "driver", "actor"),
        "calls",
        "not answered yet: requests for batches, evaluations, weights sent, signs of life, inserts",
        "call",
        ("batches", "evaluations", "weights", "heartbeats", "inserts"),
    ),
    gauge("qttdm_disk_free_bytes", ("learner", "replay"), "bytes", "on the file system that holds the run"),
    gauge("qttdm_disk_size_bytes", ("learner", "replay"), "bytes", "of that file system"),
    # --- the planner service ---
    histogram("qttdm_service_batch_size", PLANNER, "requests", "decided together", SIZES),
    histogram(
        "qttdm_service_batch_wait_seconds", PLANNER, "s", "from a batch's first request until it was closed", QUICK
    ),
    counter(
        "qttdm_service_requests_total",
        PLANNER,
        "requests",
        "answered in time or only after their deadline, or refused and why",
        "outcome",
        ("answered", "answered_late", *REFUSED),
    ),
    gauge("qttdm_service_queue_length", PLANNER, "requests", "that wait now"),
    gauge("qttdm_service_episodes", PLANNER, "episodes", "under way now"),
    # --- every process ---
    counter("qttdm_process_cpu_seconds_total", PROCESSES, "s", "processor time, user and system"),
    gauge("qttdm_process_resident_bytes", PROCESSES, "bytes", "memory, shared memory included"),
    gauge("qttdm_process_start_time_seconds", PROCESSES, "s", "when the process was started, Unix time"),
    counter(
        "qttdm_reports_total",
        PROCESSES,
        "reports",
        "to the exporter; dropped: it was away, or had not answered the last one",
        "result",
        ("sent", "dropped"),
    ),
    counter("qttdm_reporting_seconds_total", PROCESSES, "s", "processor time of taking and sending reports"),
    # --- what the exporter sees of them: common labels, of the process that it speaks of ---
    counter(
        "qttdm_process_restarts_total", PROCESSES, "restarts", "new processes in place of ones that died", observed=True
    ),
    gauge(
        "qttdm_process_up",
        PROCESSES,
        "1",
        "1: it reports; 0: it has been silent for too long; absent: its run ended in good order",
        observed=True,
    ),
    gauge(
        "qttdm_process_heartbeat_age_seconds",
        PROCESSES,
        "s",
        "since its last report; absent after the run's end",
        observed=True,
    ),
    # --- the exporter's own ---
    counter(
        "qttdm_exporter_reports_total",
        EXPORTER,
        "reports",
        "received: newer than all before; late: repeated or overtaken, without effect; refused: not understood, or "
        "of more processes than it keeps",
        "result",
        ("accepted", "late", "refused"),
    ),
    counter("qttdm_exporter_state_failures_total", EXPORTER, "failures", "to write its state to disk"),
    gauge("qttdm_exporter_processes", EXPORTER, "processes", "that it serves, dead ones included"),
    gauge("qttdm_exporter_start_time_seconds", EXPORTER, "s", "when its process was started, Unix time"),
]
INSTRUMENTS: dict[str, Instrument] = {instrument.name: instrument for instrument in DECLARED}


def series_of(component: Component) -> int:
    """The most time series that one process of that kind ever has."""
    return sum(instrument.series for instrument in INSTRUMENTS.values() if component in instrument.components)

"""Dashboard 2: what is the bottleneck, and is anything stuck or dying?"""

from __future__ import annotations

from typing import Any

from qttdm.deploy.monitoring.grafana.panels import GREEN, ORANGE, RED, board, lines, mean, number, of, quantile, rate

SEED = "run, task, seed"
WAITING = "~waiting_for_.*"


def each(query: str) -> str:
    """One value for each seed."""
    return f"max by ({SEED}) ({query})"


def system() -> Any:
    """The dashboard."""
    well = [
        number(
            "Environment steps per second",
            "Simulator steps collected, all chosen seeds together, over the last 5 minutes.",
            f"sum(rate({of('qttdm_env_steps_total')}[5m]))",
            "short",
        ),
        number(
            "Updates per second",
            "All chosen seeds together, over the last 5 minutes.",
            f"sum(rate({of('qttdm_updates_total')}[5m]))",
            "short",
        ),
        number(
            "Pace",
            "Updates made for each decision, of those asked for (training.update_ratio); mean over seeds. Far below 1: "
            "the learner does not keep up.",
            f"avg({of('qttdm_update_ratio')} / {of('qttdm_update_ratio_target')})",
            "percentunit",
            {0: ORANGE, 0.9: GREEN},
        ),
        number(
            "Learner waits",
            "Share of the learner's time in which it waits for decisions or batches: much means that acting is the "
            "bottleneck, little that learning is.",
            f"sum(rate({of('qttdm_learner_seconds_total', activity=WAITING)}[5m])) / "
            f"sum(rate({of('qttdm_learner_seconds_total')}[5m]))",
            "percentunit",
        ),
        number(
            "Staleness",
            "How far the published weights are ahead of those that act, of the limit (cluster.max_staleness), where it "
            "is most.",
            f"max({of('qttdm_staleness_updates')} / {of('qttdm_staleness_limit_updates')})",
            "percentunit",
            {0.8: ORANGE, 1: RED},
        ),
        number(
            "Checkpoint age",
            "Of the seed whose newest checkpoint is oldest: so much is learned again after a crash.",
            f"max({of('qttdm_checkpoint_age_seconds')})",
            "s",
            {3600: ORANGE, 7200: RED},
        ),
        number(
            "Restarts",
            "New processes in place of ones that died, in the time shown.",
            f"sum(increase({of('qttdm_process_restarts_total')}[$__range]))",
            "none",
            {1: ORANGE, 10: RED},
            decimals=0,
        ),
        number(
            "Disk free",
            "On the file system that holds the run, where it is least.",
            f"min({of('qttdm_disk_free_bytes')} / {of('qttdm_disk_size_bytes')})",
            "percentunit",
            {0: RED, 0.1: ORANGE, 0.2: GREEN},
        ),
    ]
    time = [
        lines(
            "Where the learner's time goes",
            "Shares of a second, mean over seeds. Waiting for decisions: the actors are slower than it. Waiting for "
            "batches: the replay is.",
            {"{{activity}}": f"avg by (activity) ({rate('qttdm_learner_seconds_total')})"},
            "percentunit",
            stacked=True,
            maximum=1,
            width=12,
        ),
        lines(
            "Where the actors' time goes",
            "Shares of a second, mean over actors. Waiting: they are ahead of the learner, or their weights too old.",
            {"{{activity}}": f"avg by (activity) ({rate('qttdm_actor_seconds_total')})"},
            "percentunit",
            stacked=True,
            maximum=1,
            width=12,
        ),
        lines(
            "Time of an update",
            "Mean: waiting for its batch, copying it to the device, computing.",
            {"{{part}}": mean("qttdm_update_seconds", "part")},
            "s",
            stacked=True,
        ),
        lines(
            "Time of a decision",
            "Of 95 in 100, from observation to action, for all environments of a batch together.",
            {"{{component}}": quantile(0.95, "qttdm_decision_seconds", "component", stage="total")},
            "s",
        ),
        lines(
            "Processors",
            "In use, by component: what is near the number that it has cannot go faster.",
            {"{{component}}": f"sum by (component) ({rate('qttdm_process_cpu_seconds_total')})"},
            "short",
            stacked=True,
        ),
    ]
    pace = [
        lines(
            "Pace",
            "Updates made for each decision after the seed decisions, and what is asked for.",
            {
                "seed {{seed}}": each(of("qttdm_update_ratio")),
                "asked for": f"max({of('qttdm_update_ratio_target')})",
            },
            "short",
        ),
        lines(
            "Updates owed",
            "That the decisions so far ask for and that have not been made: growing for long means that learning is "
            "the bottleneck.",
            {"seed {{seed}}": each(of("qttdm_updates_owed"))},
            "short",
        ),
        lines(
            "Calls in flight",
            "Not answered yet. One kind that only grows: whoever is to answer it is stuck.",
            {"{{call}}": f"sum by (call) ({of('qttdm_calls_in_flight')})"},
            "short",
        ),
        lines(
            "Replay: fill",
            "Stored of what it can store. When full, the oldest episodes leave.",
            {"seed {{seed}}": f"avg by ({SEED}) ({of('qttdm_replay_fill_ratio')})"},
            "percentunit",
            maximum=1,
        ),
        lines(
            "Replay: in and out",
            "Decisions stored per second, and parts of batches drawn per second.",
            {
                "decisions in": f"sum({rate('qttdm_replay_inserted_decisions_total')})",
                "batches out": f"sum({rate('qttdm_replay_sampled_batches_total')})",
            },
            "short",
        ),
        lines(
            "Replay: time",
            "Of 95 in 100 inserts and samples.",
            {
                "insert": quantile(0.95, "qttdm_replay_insert_seconds"),
                "sample": quantile(0.95, "qttdm_replay_sample_seconds"),
            },
            "s",
        ),
        lines(
            "Replay: age of what is learned from",
            "Decisions inserted into a shard since those that its newest batch begins at, mean.",
            {"seed {{seed}}": f"avg by ({SEED}) ({of('qttdm_replay_sampled_age_decisions')})"},
            "short",
        ),
        lines(
            "Replay: size on disk",
            "Of all its shards.",
            {"seed {{seed}}": f"sum by ({SEED}) ({of('qttdm_replay_disk_bytes')})"},
            "bytes",
        ),
        lines(
            "Staleness",
            "Updates that the newest weights known are ahead of those acting, where that is most; and the limit.",
            {
                "seed {{seed}}": each(of("qttdm_staleness_updates")),
                "limit": f"max({of('qttdm_staleness_limit_updates')})",
            },
            "short",
        ),
    ]
    faults = [
        lines(
            "Restarts",
            "So far, by component: new processes in place of ones that died.",
            {"{{component}}": f"sum by (component) ({of('qttdm_process_restarts_total')})"},
            "none",
        ),
        lines(
            "Failures",
            "So far, by kind. docs/metrics.md says what each is; the seed's events.log says when and why.",
            {"{{kind}}": f"sum by (kind) ({of('qttdm_failures_total')})"},
            "none",
        ),
        lines(
            "Silence",
            "Since the last report, of the most silent process of each component. They report every two seconds.",
            {"{{component}}": f"max by (component) ({of('qttdm_process_heartbeat_age_seconds')})"},
            "s",
            {30: RED},
        ),
        lines(
            "Checkpoint age",
            "Since the newest was saved, or since the start.",
            {"seed {{seed}}": each(of("qttdm_checkpoint_age_seconds"))},
            "s",
            {7200: RED},
        ),
        lines(
            "Checkpoints and weights: time",
            "Mean of saving a checkpoint, of publishing weights, and of taking them over.",
            {
                "checkpoint": mean("qttdm_checkpoint_seconds", SEED),
                "publish": mean("qttdm_weights_publish_seconds", SEED),
                "take over": mean("qttdm_weights_apply_seconds", SEED),
            },
            "s",
            logarithmic=True,
        ),
        lines(
            "Reports that did not get through",
            "Dropped per second: the exporter was away or slow. The next report says all, so a few do no harm.",
            {"{{component}}": f"sum by (component) ({rate('qttdm_reports_total', result='dropped')})"},
            "short",
        ),
    ]
    machines = [
        lines(
            "Memory",
            "Resident, by component; shared memory counts in every process.",
            {"{{component}}": f"sum by (component) ({of('qttdm_process_resident_bytes')})"},
            "bytes",
            stacked=True,
        ),
        lines(
            "GPU: in use",
            "Share of time in which the device computed.",
            {
                "{{component}} busy": f"avg by (component) ({of('qttdm_gpu_utilisation_ratio')})",
            },
            "percentunit",
            maximum=1,
        ),
        lines(
            "GPU: memory",
            "Allocated of what the device has; without a GPU there is none.",
            {
                "{{component}} seed {{seed}}": f"{of('qttdm_gpu_memory_bytes', use='allocated')} / ignoring(use) "
                f"{of('qttdm_gpu_memory_bytes', use='total')}"
            },
            "percentunit",
            {0.95: RED},
            maximum=1,
        ),
        lines(
            "Nodes: processors",
            "In use, by node of the cluster, of all that runs there. From Ray.",
            {"{{instance}}": "ray_node_cpu_utilization / 100"},
            "percentunit",
            {0.95: ORANGE},
            maximum=1,
        ),
        lines(
            "Nodes: memory",
            "In use, by node of the cluster. Ray kills processes from 95% on. From Ray.",
            {"{{instance}}": "ray_node_mem_used / ray_node_mem_total"},
            "percentunit",
            {0.9: ORANGE, 0.95: RED},
            maximum=1,
        ),
        lines(
            "Nodes: object store",
            "Ray's shared memory for weights and batches, by node. From Ray.",
            {"{{instance}}": 'sum by (instance) (ray_object_store_memory{Location=~"MMAP_.*"})'},
            "bytes",
        ),
    ]
    return board(
        "qttdm-system",
        "QT-TDM 2: System",
        "Where a run's time goes, whether its parts keep pace, and what broke.",
        "qttdm_env_steps_total",
        {
            "Is it well?": well,
            "What is the bottleneck?": time,
            "Pace, replay, weights": pace,
            "Is anything stuck or dying?": faults,
            "Machines": machines,
        },
    )

"""Dashboard 3: does planning answer in time, how full are its batches, and what are its plans like?"""

from __future__ import annotations

from typing import Any

from qttdm.deploy.monitoring.grafana.panels import (
    ORANGE,
    RED,
    board,
    distribution,
    lines,
    mean,
    number,
    of,
    quantile,
    rate,
)

PLANNING = "~actor|planner"
LATE = "~answered_late|late"
REFUSED = "!~answered|answered_late|late"


def share(outcome: str) -> str:
    """Of the requests of the last 5 minutes."""
    some, every = of("qttdm_service_requests_total", outcome=outcome), of("qttdm_service_requests_total")
    return f"sum(rate({some}[5m])) / sum(rate({every}[5m]))"


def planner() -> Any:
    """The dashboard."""
    well = [
        number(
            "Decisions per second",
            "Of all actors, wherever they plan, over the last 5 minutes.",
            f"sum(rate({of('qttdm_acted_total', component='actor')}[5m]))",
            "short",
        ),
        number(
            "Decision time",
            "Of 95 in 100, from observation to action.",
            quantile(0.95, "qttdm_decision_seconds", component=PLANNING, stage="total"),
            "s",
        ),
        number(
            "Too late",
            "Share of requests answered after their deadline or given up because of it, over the last 5 minutes.",
            share(LATE),
            "percentunit",
            {0.01: ORANGE, 0.05: RED},
        ),
        number(
            "Refused",
            "Share of requests refused for another reason than lateness; the panel `Requests` says which.",
            share(REFUSED),
            "percentunit",
            {0.001: ORANGE, 0.05: RED},
        ),
        number(
            "Batch size",
            "Requests decided together, mean.",
            f"sum(rate({of('qttdm_service_batch_size_sum')}[5m])) / "
            f"sum(rate({of('qttdm_service_batch_size_count')}[5m]))",
            "short",
            decimals=1,
        ),
        number(
            "Queue",
            "Requests that wait now.",
            f"sum({of('qttdm_service_queue_length')})",
            "none",
        ),
        number("Episodes", "Under way now.", f"sum({of('qttdm_service_episodes')})", "none"),
        number(
            "Weights behind",
            "Updates that the learner's newest published weights are ahead of the service's.",
            f"max(max by (run, task, seed) ({of('qttdm_weights_updates', component='learner')}) - on (run, task, seed) "
            f"group_right {of('qttdm_weights_updates', component='planner')})",
            "short",
        ),
    ]
    latency = [
        lines(
            "Decision time",
            "From observation to action: half of all, 95 in 100, 99 in 100.",
            {
                f"{{{{component}}}} {label}": quantile(
                    part, "qttdm_decision_seconds", "component", component=PLANNING, stage="total"
                )
                for label, part in {"50%": 0.5, "95%": 0.95, "99%": 0.99}.items()
            },
            "s",
        ),
        distribution(
            "Decision time, distribution",
            "How many decisions took how long, from observation to action.",
            "qttdm_decision_seconds",
            "s",
            stage="total",
        ),
        lines(
            "Where a decision's time goes",
            "Mean: in the service's queue, and planning.",
            {"{{component}} {{stage}}": mean("qttdm_decision_seconds", "component, stage", stage="!total")},
            "s",
        ),
    ]
    service = [
        lines(
            "Requests",
            "By what came of them, per second. busy: the queue was full; late: nobody would have waited for the "
            "answer; the others are mistakes of whoever asked.",
            {"{{outcome}}": f"sum by (outcome) ({rate('qttdm_service_requests_total')})"},
            "short",
        ),
        lines(
            "Batches",
            "Requests decided together: mean, and of 95 in 100. Small ones waste a GPU: more environments, or a longer "
            "cluster.service.max_wait_ms.",
            {
                "mean": mean("qttdm_service_batch_size", "component"),
                "95%": quantile(0.95, "qttdm_service_batch_size"),
            },
            "short",
        ),
        lines(
            "Waiting for a batch to fill",
            "From a batch's first request until it was closed, of 95 in 100.",
            {"planner {{index}}": quantile(0.95, "qttdm_service_batch_wait_seconds", "index")},
            "s",
        ),
    ]
    plans = [
        lines(
            "Value of plans",
            "What the best sequence of the newest plans promises. It rises with learning.",
            {"{{component}} seed {{seed}}": f"avg by (component, seed) ({of('qttdm_plan_value')})"},
            "short",
        ),
        lines(
            "Share of the terminal value",
            "How much of a plan's promise is the Q-Transformer's value of where it ends, not the model's rewards.",
            {"{{component}} seed {{seed}}": f"avg by (component, seed) ({of('qttdm_plan_terminal_share_ratio')})"},
            "percentunit",
            maximum=1,
        ),
        lines(
            "How sure plans are",
            "Spread of the last fitted Gaussian (actions are from -1 to 1), and share of action components at their "
            "limits, beyond 0.95.",
            {
                "spread, {{component}}": f"avg by (component) ({of('qttdm_plan_std')})",
                "at the limits, {{component}}": f"avg by (component) ({of('qttdm_action_saturation_ratio')})",
            },
            "percentunit",
        ),
        lines(
            "Iterations",
            "Of planning, in a decision, mean.",
            {"{{component}}": mean("qttdm_planner_iterations", "component")},
            "short",
        ),
        lines(
            "Weights in use",
            "Updates in the weights: the learner's newest published, and those that act.",
            {"{{component}} seed {{seed}}": f"max by (component, seed) ({of('qttdm_weights_updates')})"},
            "short",
            width=16,
        ),
    ]
    return board(
        "qttdm-planner",
        "QT-TDM 3: Planner service",
        "How fast and how well decisions are planned. `Service` is empty where actors plan for themselves.",
        "qttdm_acted_total",
        {
            "Is it well?": well,
            "How long do decisions take?": latency,
            "Service": service,
            "What are its plans like?": plans,
        },
    )

"""Metrics of deciding: of actors that plan for themselves, and of the planner service."""

from __future__ import annotations

from qttdm.common.metrics.instruments import DECISION, QUICK, Components, counter, histogram

ACTING: Components = ("actor", "evaluator", "planner")
DECISION_SECONDS = histogram(
    "qttdm_decision_seconds",
    ACTING,
    "s",
    "time of a decision, all environments of a batch together: in the planner's queue, planning, and from observation "
    "to action",
    DECISION,
    "stage",
    ("queue", "plan", "total"),
)
DECISIONS = counter(
    "qttdm_acted_total",
    ACTING,
    "decisions",
    "decisions made, also for episodes that are dropped later or wait for others of their batch to end",
)
APPLY_SECONDS = histogram(
    "qttdm_weights_apply_seconds", ACTING, "s", "loading a snapshot into the networks that act", QUICK
)

"""Metrics of actors, in a file without Ray: `qttdm serve` and the dashboards name them too."""

from __future__ import annotations

from qttdm.common.metrics.instruments import counter, gauge

ACTOR_SECONDS = counter(
    "qttdm_actor_seconds_total",
    ("actor",),
    "s",
    "where the time goes: planning, simulating, storing episodes, waiting for the learner to keep pace, fetching "
    "weights",
    "activity",
    ("planning", "simulating", "storing", "waiting", "fetching"),
)
STALENESS = gauge(
    "qttdm_staleness_updates", ("actor",), "updates", "that the newest weights known are ahead of those acting now"
)
STALENESS_LIMIT = gauge(
    "qttdm_staleness_limit_updates",
    ("actor",),
    "updates",
    "cluster.max_staleness: beyond it the actor fetches newer ones",
)

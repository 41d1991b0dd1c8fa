"""Declare Prometheus metrics, each once, in the file that computes it:

    UPDATE_SECONDS = histogram("qttdm_update_seconds", ("learner",), "s", "time of an update", DECISION)
    telemetry.observe(UPDATE_SECONDS, 0.01)

    component --inc, set, observe--> Telemetry --snapshots--> exporter --/metrics--> Prometheus

Numbers that a learner's part computes are declared by common/metrics/lines.py's `declare` and need no entry here. Every
series carries the labels of COMMON; a metric may have one label of its own. Its values are listed, or at most `most` in
number, so that the number of series of a process is bounded: `series_of`. docs/metrics.md is written from the registry.

Choice: some counters and histograms are `durable`: their owner takes them from what is on disk, counted from the run's
beginning. Why: a learner that is killed goes back to its checkpoint and counts some episodes again; added up over its
processes they would be too many. Of a durable metric the largest value that any process reported is the true one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

Component = Literal["driver", "learner", "actor", "evaluator", "replay", "planner"]
COMPONENTS: dict[Component, str] = {
    "driver": "the process of `qttdm cluster train`, once for each seed",
    "learner": "makes the updates; counts the run's progress",
    "actor": "collects episodes",
    "evaluator": "evaluates snapshots of the weights, and the models on fresh episodes",
    "replay": "a shard of the replay",
    "planner": "a planner service",
}
Components = tuple[Component, ...]
PROCESSES: Components = tuple(COMPONENTS)

COMMON = {
    "run": "name of the run, its directory's",
    "seed": "of the run",
    "task": "such as dmc/walker-walk",
    "component": "which part of the system",
    "index": "which of the parts of that kind, from 0",
}
"""Labels of every series."""

Kind = Literal["counter", "gauge", "histogram"]

QUICK = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Seconds of calls and copies: half a decade a bucket, from what a lock costs to what is a stall."""
DECISION = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Seconds of a decision or an update: finest where control at 10 to 50 Hz succeeds or fails."""


@dataclass(frozen=True)
class Instrument:
    """The declaration of one metric."""

    name: str
    kind: Kind
    components: Components
    """that report it"""
    unit: str
    meaning: str
    buckets: tuple[float, ...] = ()
    """a histogram's upper bounds; one more has no bound"""
    label: str | None = None
    """its own label, besides the common ones"""
    values: tuple[str, ...] = ()
    """all values of that label; empty: any, up to `most` of them"""
    most: int = 0
    durable: bool = False
    """counted from the run's beginning, from what is on disk; see this module's docstring"""
    lasting: bool = False
    """a gauge that is still true when its process is gone; others are served only while it reports"""
    observed: bool = False
    """the exporter reports it of a process, not the process itself"""

    @property
    def series(self) -> int:
        """Number of time series of one process."""
        each = 1
        if self.kind == "histogram":  # one bucket more, without bound; count; sum, unless it could fall
            each = len(self.buckets) + (2 if self.buckets[0] < 0 else 3)
        return each * max(1, len(self.values), self.most)

    def zero(self) -> float | list[float]:
        """Return where a counter begins, or a histogram: its sum, then the count of each bucket."""
        return [0.0] * (len(self.buckets) + 2) if self.kind == "histogram" else 0.0

    def takes(self, value: str) -> bool:
        """May the metric's own label have this value? "" where it has no label."""
        return bool(re.fullmatch(r"\w{1,64}", value)) if self.most else value in (self.values or ("",))


INSTRUMENTS: dict[str, Instrument] = {}
"""By name, all that the modules imported so far declare; deploy/monitoring/declared.py imports every one."""


def counter(name: str, components: Components, unit: str, meaning: str, *label: Any, **options: Any) -> str:
    """Declare a number that only grows; label: its name and its values. Returns the name, for Telemetry."""
    return _declare(Instrument(name, "counter", components, unit, meaning, (), *label, **options))


def gauge(name: str, components: Components, unit: str, meaning: str, *label: Any, **options: Any) -> str:
    """Declare a number that goes up and down."""
    return _declare(Instrument(name, "gauge", components, unit, meaning, (), *label, **options))


def histogram(
    name: str, components: Components, unit: str, meaning: str, buckets: tuple[float, ...], *label: Any, **options: Any
) -> str:
    """Declare a distribution."""
    return _declare(Instrument(name, "histogram", components, unit, meaning, buckets, *label, **options))


def _declare(instrument: Instrument) -> str:
    """Add a declaration to INSTRUMENTS and return its name. ValueError if another metric has that name."""
    if INSTRUMENTS.setdefault(instrument.name, instrument) != instrument:
        raise ValueError(f"{instrument.name}: declared twice")
    return instrument.name


def series_of(component: Component) -> int:
    """Count the most time series that one process of that kind ever has."""
    return sum(instrument.series for instrument in INSTRUMENTS.values() if component in instrument.components)

"""What one process measures of itself: Prometheus metrics by their declared names, and snapshots of all of them.

    telemetry = Telemetry(Identity("run", "0", "dmc/walker-walk", "actor", "3"), Boot.now())
    telemetry.inc("qttdm_acted_total", 2)
    telemetry.observe("qttdm_decision_seconds", 0.04, stage="plan")
    telemetry.snapshot()                                                 # absolute values, plain data

A call costs about a microsecond and never waits: sending is Reporter's. A name, component or label that is not declared
(instruments.py) raises at once. Counters and histograms are reported from the start, as zeros, so that a first event
shows as a step; a gauge is reported once it was set.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

import msgpack
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from qttdm.common.metrics.instruments import INSTRUMENTS, Component, Instrument, Kind

Value = float | list[float]
"""of a histogram: the sum, then how many fell into each bucket (not cumulated), the one without bound last"""
Snapshot = dict[tuple[str, str], Value]
"""by metric and value of its own label ("" if it has none)"""


@dataclass(frozen=True)
class Identity:
    """The common labels of a process: the same for whichever process takes its place."""

    run: str
    seed: str
    task: str
    component: Component
    index: str = "0"


@dataclass(frozen=True)
class Boot:
    """One process among those that have had an identity."""

    number: str
    """unlike any other's"""
    restarted: bool = False
    """it took the place of one that died"""

    @staticmethod
    def now(restarted: bool = False) -> Boot:
        """Of this process."""
        return Boot(uuid.uuid4().hex[:16], restarted)


@dataclass(frozen=True)
class Report:
    """All that a process has measured since its start. Absolute: one that is lost or comes twice does no harm."""

    identity: Identity
    boot: Boot
    number: int
    """counted from 1 in each boot"""
    snapshot: Snapshot

    def packed(self) -> bytes:
        """For another process, whose program may be another version."""
        values = [[name, label, value] for (name, label), value in self.snapshot.items()]
        packed: bytes = msgpack.packb([list(astuple(self.identity)), list(astuple(self.boot)), self.number, values])
        return packed

    @staticmethod
    def unpacked(data: bytes) -> Report:
        """Undo `packed`. ValueError if it is something else."""
        try:
            identity, boot, number, values = msgpack.unpackb(data)
            snapshot = {(name, label): value for name, label, value in values}
            return Report(Identity(*identity), Boot(*boot), number, snapshot)
        except (TypeError, ValueError) as error:
            raise ValueError(f"not a report: {error}") from None


class Telemetry:
    """The metrics of one process. Any thread may use it."""

    def __init__(self, identity: Identity, boot: Boot | None = None) -> None:
        """boot: shared by the several parts of a process that has more than one."""
        self.identity, self.boot = identity, boot or Boot.now()
        self.reporter: Any = None
        """the Reporter that sends it, if any"""
        self.registry = CollectorRegistry()
        self._metrics: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[Any, ...], Any] = {}
        self._totals: dict[tuple[Any, ...], float] = {}
        self._before: list[Callable[[], object]] = []
        self._reported = 0
        self._adding = threading.Lock()

    @staticmethod
    def silent(component: Component, index: int = 0) -> Telemetry:
        """Measure without reporting."""
        return Telemetry(Identity("", "", "", component, str(index)))

    def flush(self) -> None:
        """Send a last report, if there is a reporter, and wait for it, but not long: before a process ends."""
        if self.reporter is not None:
            self.reporter.flush()

    def inc(self, name: str, amount: float = 1.0, /, **label: str) -> None:
        """Raise a counter by that much."""
        self._child("counter", name, label).inc(amount)

    def count_to(self, name: str, total: float, /, **label: str) -> None:
        """Raise a counter to a total kept elsewhere. One thread only; less than before changes nothing."""
        key = (name, *label.items())
        before = self._totals.get(key, 0.0)
        child = self._child("counter", name, label)
        if total > before:
            child.inc(total - before)
            self._totals[key] = total

    def set(self, name: str, value: float, /, **label: str) -> None:
        """Set a gauge."""
        self._child("gauge", name, label).set(value)

    def observe(self, name: str, value: float, /, **label: str) -> None:
        """Add a value to a histogram."""
        self._child("histogram", name, label).observe(value)

    def timed(self, name: str, /, **label: str) -> Timed:
        """A context: the seconds of what is done inside, in a histogram, unless it raises."""
        return Timed(self, name, label)

    def before_report(self, look: Callable[[], object]) -> None:
        """Call that before each report, in the reporter's thread: for values that are looked up, not pushed."""
        self._before.append(look)

    def report(self, failed: Callable[[Exception], object]) -> Report:
        """Take the next report. failed: called with the error of a look; the other values are reported all the same."""
        for look in self._before:
            try:
                look()
            except Exception as error:  # whatever it is: to measure must not end the component
                failed(error)
        self._reported += 1
        return Report(self.identity, self.boot, self._reported, self.snapshot())

    def snapshot(self) -> Snapshot:
        """All values as of now."""
        for instrument in list(INSTRUMENTS.values()):
            if self._may_report(instrument) and instrument.kind != "gauge":
                self._metric(instrument)
        values: Snapshot = {}
        for family in self.registry.collect():
            for sample in family.samples:
                labels = dict(sample.labels)
                bound = labels.pop("le", None)
                label = next(iter(labels.values()), "")
                if sample.name.endswith("_created"):
                    continue
                if family.type != "histogram":
                    values[sample.name, label] = sample.value
                elif bound is not None:  # in rising order, cumulated
                    values.setdefault((family.name, label), [0.0]).append(sample.value)  # type: ignore[union-attr]
                elif sample.name.endswith("_sum"):
                    values[family.name, label][0] = sample.value  # type: ignore[index]
        for value in values.values():
            if isinstance(value, list):
                value[2:] = [upper - lower for lower, upper in pairwise(value[1:])]
        return values

    def _may_report(self, instrument: Instrument) -> bool:
        return self.identity.component in instrument.components and not instrument.observed

    def _metric(self, instrument: Instrument) -> Any:
        """Its metric here, made when first needed; a counter's or histogram's series begin at zero."""
        name, labels = instrument.name, [instrument.label] if instrument.label else []
        with self._adding:
            if name not in self._metrics:
                more: Any = {"labelnames": labels, "registry": self.registry}
                if instrument.kind == "histogram":
                    more["buckets"] = instrument.buckets
                made = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}[instrument.kind]
                metric = self._metrics[name] = made(name, instrument.meaning, **more)
                for value in instrument.values if instrument.kind != "gauge" else ():
                    metric.labels(value)
        return self._metrics[name]

    def _child(self, kind: Kind, name: str, label: dict[str, str]) -> Any:
        key = (kind, name, *label.items())
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._find(kind, name, label)
        return child

    def _find(self, kind: Kind, name: str, label: dict[str, str]) -> Any:
        """ValueError unless this component has that metric, of that kind, with that label."""
        instrument = INSTRUMENTS.get(name)
        if instrument is None:
            raise ValueError(f"{name}: not declared; see common/metrics/instruments.py")
        if instrument.kind != kind or not self._may_report(instrument):
            got = f"a {instrument.kind} of {', '.join(instrument.components)}"
            raise ValueError(f"{name}: is {got}; not a {kind} that {self.identity.component} may report")
        if list(label) != ([instrument.label] if instrument.label else []):
            raise ValueError(f"{name}: got labels {list(label)}, want {[instrument.label] if instrument.label else []}")
        if not label:
            return self._metric(instrument)
        (value,) = label.values()
        if not instrument.takes(value):
            raise ValueError(f"{name}: got {instrument.label}={value!r}, want one of {', '.join(instrument.values)}")
        if instrument.most and sum(key[1] == name for key in self._children) >= instrument.most:
            raise ValueError(f"{name}: {instrument.label}={value!r} would be one more than {instrument.most} series")
        return self._metric(instrument).labels(value)


class Timed:
    """What Telemetry.timed returns: a class, since a generator would cost as much again as the histogram."""

    __slots__ = ("_label", "_name", "_started", "_telemetry")

    def __init__(self, telemetry: Telemetry, name: str, label: dict[str, str]) -> None:
        self._telemetry, self._name, self._label = telemetry, name, label

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._telemetry.observe(self._name, time.perf_counter() - self._started, **self._label)


MakeTelemetry = Callable[[Component, int], Telemetry]
"""Of a component and its index, in its own process: what a component is started with."""


class Activities:
    """Where a thread's time goes: one activity at a time, each a value of the counter's label."""

    def __init__(self, telemetry: Telemetry, name: str, rest: str) -> None:
        """rest: the activity while no other is under way."""
        self.telemetry, self.name = telemetry, name
        self._label = INSTRUMENTS[name].label
        self._activity, self._since = rest, time.perf_counter()

    @contextmanager
    def on(self, activity: str) -> Iterator[None]:
        """Count the time inside as that activity, and afterwards as the one before."""
        before = self._activity
        self._switch(activity)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, activity: str) -> None:
        now = time.perf_counter()
        assert self._label is not None, self.name
        self.telemetry.inc(self.name, now - self._since, **{self._label: self._activity})
        self._activity, self._since = activity, now


def combine(values: Sequence[Value], durable: bool) -> Value:
    """What several processes in a row have counted together: the sums, or of durable metrics the largest."""
    how: Callable[[Any], float] = max if durable else sum
    if isinstance(values[0], list):
        return [how(column) for column in zip(*values, strict=True)]
    return how(values)

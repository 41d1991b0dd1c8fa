"""Metrics by their declared names, snapshots as plain data, and what it costs."""

import time

import msgpack
import pytest
from prometheus_client import CollectorRegistry

from qttdm.common.metrics.instruments import COMPONENTS, INSTRUMENTS, series_of
from qttdm.common.metrics.telemetry import Identity, Report, Telemetry, combine
from qttdm.deploy.monitoring.exporter import Exporter


def actor() -> Telemetry:
    return Telemetry(Identity("run", "0", "dmc/walker-walk", "actor", "3"))


def fail(error: Exception) -> None:
    raise error


def test_counters_and_histograms_begin_at_zero_and_gauges_when_they_are_set():
    snapshot = actor().snapshot()
    assert snapshot["qttdm_acted_total", ""] == 0
    assert snapshot["qttdm_actor_seconds_total", "planning"] == 0
    assert snapshot["qttdm_decision_seconds", "queue"] == (0.0,) * (
        len(INSTRUMENTS["qttdm_decision_seconds"].buckets) + 2
    )
    assert {INSTRUMENTS[name].kind for name, _ in snapshot} == {"counter", "histogram"}


def test_a_snapshot_has_what_was_measured():
    t = actor()
    t.inc("qttdm_acted_total")
    t.inc("qttdm_acted_total", 2)
    t.inc("qttdm_actor_seconds_total", 0.5, activity="waiting")
    t.set("qttdm_staleness_updates", -3.5)
    t.set("qttdm_calls_in_flight", 2, call="inserts")
    snapshot = t.snapshot()
    assert snapshot["qttdm_acted_total", ""] == 3
    assert snapshot["qttdm_actor_seconds_total", "waiting"] == 0.5
    assert snapshot["qttdm_staleness_updates", ""] == -3.5
    assert snapshot["qttdm_calls_in_flight", "inserts"] == 2
    assert ("qttdm_calls_in_flight", "batches") not in snapshot


def test_a_histogram_is_its_sum_and_a_count_for_each_bucket():
    t = actor()
    buckets = INSTRUMENTS["qttdm_decision_seconds"].buckets
    values = [0.0005, buckets[3], buckets[3] + 1e-6, 99.0]  # a bound belongs to the bucket that it ends
    for value in values:
        t.observe("qttdm_decision_seconds", value, stage="plan")
    total, *counts = t.snapshot()["qttdm_decision_seconds", "plan"]
    assert total == pytest.approx(sum(values))
    want = [0] * (len(buckets) + 1)
    want[0], want[3], want[4], want[-1] = 1, 1, 1, 1
    assert counts == want


def test_count_to_takes_over_a_total_and_never_goes_back():
    t = Telemetry.silent("learner")
    for total, want in [(10, 10), (10, 10), (7, 10), (12, 12)]:
        t.count_to("qttdm_env_steps_total", total)
        assert t.snapshot()["qttdm_env_steps_total", ""] == want


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        (lambda t: t.inc("qttdm_actd_total"), "not declared"),
        (lambda t: t.set("qttdm_acted_total", 1), "a counter of"),
        (lambda t: t.inc("qttdm_staleness_updates"), "a gauge of"),
        (lambda t: t.set("qttdm_learner", 1.0, name="loss_q"), "not a gauge that actor may report"),
        (lambda t: t.inc("qttdm_process_restarts_total"), "not a counter that actor may report"),
        (lambda t: t.inc("qttdm_acted_total", activity="planning"), "got labels"),
        (lambda t: t.inc("qttdm_actor_seconds_total"), "got labels"),
        (lambda t: t.inc("qttdm_actor_seconds_total", kind="planning"), "got labels"),
        (lambda t: t.inc("qttdm_actor_seconds_total", activity="sleeping"), "want one of planning"),
    ],
)
def test_what_is_not_declared_raises_at_once(use, complaint):
    t = actor()
    t.inc("qttdm_actor_seconds_total", activity="planning")  # a label seen before must not open the door to others
    with pytest.raises(ValueError, match=complaint):
        use(t)


def test_a_report_travels_as_bytes():
    t = actor()
    t.observe("qttdm_decision_seconds", 0.1, stage="plan")
    t.set("qttdm_staleness_updates", float("nan"))
    first, second = t.report(fail), t.report(fail)
    assert (first.number, second.number) == (1, 2)
    back = Report.unpacked(first.packed())
    assert back.identity == t.identity
    assert (back.process_id, back.restarted) == (t.process_id, False)
    assert repr(back.snapshot) == repr(first.snapshot)  # NaN is not equal to itself
    assert len(first.packed()) < 20_000


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb(7), msgpack.packb([1, 2, 3, 4]), b"\x94" * 50])
def test_what_is_not_a_report_is_refused(data):
    with pytest.raises(ValueError, match="not a report"):
        Report.unpacked(data)


def test_values_are_looked_up_before_each_report_and_a_look_that_fails_costs_only_its_own():
    t, failures = actor(), []
    t.before_report(lambda: 1 / 0)
    t.before_report(lambda: t.set("qttdm_staleness_updates", 4.0))
    report = t.report(failures.append)
    assert report.snapshot["qttdm_staleness_updates", ""] == 4.0
    assert [type(error) for error in failures] == [ZeroDivisionError]


@pytest.mark.parametrize("component", COMPONENTS)
def test_no_process_has_more_series_than_stated(component):
    """Everything of a component set, with every value of every label."""
    t = Telemetry.silent(component)
    for i in INSTRUMENTS.values():
        if component in i.components and not i.observed:
            use = {
                "counter": t.inc,
                "gauge": lambda n, **k: t.set(n, 1.0, **k),
                "histogram": lambda n, **k: t.observe(n, 1.0, **k),
            }
            values = i.values or [f"v{k}" for k in range(i.most)]
            for labels in [{i.label: value} for value in values] if i.label else [{}]:
                use[i.kind](i.name, **labels)
    exporter = Exporter()
    exporter.report(t.report(fail).packed())
    registry = CollectorRegistry()
    registry.register(exporter)
    samples = [s for family in registry.collect() for s in family.samples]
    assert len(samples) == series_of(component)
    measured = {name for name, _ in t.snapshot()}
    assert measured == {i.name for i in INSTRUMENTS.values() if component in i.components and not i.observed}


def test_a_label_without_a_list_takes_a_bounded_number_of_names():
    t, most = Telemetry.silent("learner"), INSTRUMENTS["qttdm_learner"].most
    for k in range(most):
        t.set("qttdm_learner", 1.0, name=f"loss_{k}")
    t.set("qttdm_learner", 2.0, name="loss_0")
    with pytest.raises(ValueError, match=f"one more than {most} series"):
        t.set("qttdm_learner", 1.0, name="loss_of_all")
    with pytest.raises(ValueError, match="got name='a b'"):
        t.set("qttdm_learner", 1.0, name="a b")


def test_combine_adds_up_or_takes_the_largest():
    assert combine(1.0, 5.0, durable=False) == 6.0
    assert combine(1.0, 5.0, durable=True) == 5.0
    assert combine((1.0, 2.0), (3.0, 1.0), durable=False) == (4.0, 3.0)
    assert combine((1.0, 2.0), (3.0, 1.0), durable=True) == (3.0, 2.0)


def test_measuring_costs_next_to_nothing():
    """Against the least that a component does at a time, about a millisecond: an insert, a draw, a toy's decision."""
    t = actor()

    def each(action, times):
        best = float("inf")
        for _ in range(5):
            started = time.perf_counter()
            for _ in range(times):
                action()
            best = min(best, (time.perf_counter() - started) / times)
        return best

    work = each(lambda: sum(range(50_000)), 5)  # plain Python of about a millisecond, on this machine as it is now
    assert each(lambda: t.observe("qttdm_decision_seconds", 0.01, stage="plan"), 2000) < 0.01 * work
    assert each(lambda: t.inc("qttdm_actor_seconds_total", 0.01, activity="planning"), 2000) < 0.01 * work
    assert each(lambda: t.report(fail).packed(), 20) < 0.01 * 2000 * work  # every two seconds

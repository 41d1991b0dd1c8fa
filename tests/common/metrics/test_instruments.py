"""What is declared keeps Prometheus's conventions and this project's own."""

import re

import pytest

from qttdm.common.metrics.instruments import COMMON, COMPONENTS, DECLARED, INSTRUMENTS, REFUSED, Instrument, series_of
from qttdm.planner_service.serving.messages import REFUSALS


@pytest.mark.parametrize("instrument", DECLARED, ids=lambda i: i.name)
def test_names_follow_the_conventions(instrument: Instrument):
    assert re.fullmatch(r"qttdm_[a-z0-9_]*[a-z0-9]", instrument.name)
    assert instrument.name.endswith("_total") == (instrument.kind == "counter")
    base = instrument.name.removesuffix("_total")
    assert base.endswith("_seconds") == (instrument.unit == "s")
    assert base.endswith("_bytes") == (instrument.unit == "bytes")
    assert not base.endswith(("_sum", "_count", "_bucket", "_created", "_info_total"))
    assert instrument.meaning
    assert not instrument.meaning.endswith(".")
    assert "|" not in instrument.meaning + instrument.unit  # a column of the page


@pytest.mark.parametrize("instrument", DECLARED, ids=lambda i: i.name)
def test_labels_are_bounded_and_buckets_rise(instrument: Instrument):
    assert (instrument.label is None) == (instrument.values == ())
    assert instrument.label not in (*COMMON, "le", "job", "instance")
    assert len(set(instrument.values)) == len(instrument.values)
    assert (instrument.kind == "histogram") == bool(instrument.buckets)
    assert list(instrument.buckets) == sorted(set(instrument.buckets))
    assert not instrument.durable or instrument.kind != "gauge"
    assert not instrument.lasting or instrument.kind == "gauge"
    assert instrument.components
    assert set(instrument.components) <= COMPONENTS.keys()


def test_no_name_is_declared_twice():
    assert len(DECLARED) == len(INSTRUMENTS)


def test_refusals_are_those_of_the_service():
    assert set(REFUSED) == set(REFUSALS)


def test_a_process_has_few_series():
    assert {name: series_of(name) for name in COMPONENTS if series_of(name) > 250} == {}

"""What is declared keeps Prometheus's conventions and this project's own."""

import re

import pytest

import qttdm.deploy.monitoring.exporter  # noqa: F401 - with it every metric is declared
from qttdm.common.metrics.instruments import COMMON, COMPONENTS, INSTRUMENTS, Instrument, counter, series_of
from qttdm.common.metrics.lines import NUMBERS, declare

EACH = pytest.mark.parametrize("instrument", INSTRUMENTS.values(), ids=lambda i: i.name)


@EACH
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


@EACH
def test_labels_are_bounded_and_buckets_rise(instrument: Instrument):
    assert (instrument.label is None) == (instrument.values == () and not instrument.most)
    assert instrument.label not in (*COMMON, "le", "job", "instance")
    assert len(set(instrument.values)) == len(instrument.values)
    assert (instrument.kind == "histogram") == bool(instrument.buckets)
    assert list(instrument.buckets) == sorted(set(instrument.buckets))
    assert not instrument.durable or instrument.kind != "gauge"
    assert not instrument.lasting or instrument.kind == "gauge"
    assert instrument.components
    assert set(instrument.components) <= COMPONENTS.keys()


def test_a_name_has_one_meaning():
    with pytest.raises(ValueError, match="qttdm_acted_total: declared twice"):
        counter("qttdm_acted_total", ("actor",), "decisions", "something else")
    with pytest.raises(ValueError, match="loss_q: declared twice"):
        declare(("loss_q", "1", "something else"))


def test_a_process_has_few_series():
    assert {name: series_of(name) for name in COMPONENTS if series_of(name) > 250} == {}
    assert len(NUMBERS) < INSTRUMENTS["qttdm_learner"].most

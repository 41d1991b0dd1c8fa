"""docs/metrics.md says what common/metrics/instruments.py does."""

from qttdm.common.metrics.instruments import INSTRUMENTS
from qttdm.deploy.monitoring.metrics_page import PAGE, page


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_metric_is_on_it():
    text = page()
    assert [name for name in INSTRUMENTS if f"`{name}`" not in text] == []

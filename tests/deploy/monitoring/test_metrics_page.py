"""docs/metrics.md says what is declared, and declared.py imports every module that declares."""

import re
from importlib import import_module
from pathlib import Path

import qttdm.deploy.monitoring.declared as declared
from qttdm.deploy.monitoring.metrics_page import PAGE, page

ROOT = Path(__file__).parents[3]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_module_that_declares_is_imported():
    """A metric of one that is not would be refused by the exporter."""
    imported = set(re.findall(r"import (qttdm[\w.]+)", Path(declared.__file__).read_text()))
    declaring = {
        "qttdm." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("actors", "common", "deploy", "learner", "planner_service", "replay")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^(\w+ = )?(counter|gauge|histogram|declare)\(", path.read_text(), re.MULTILINE)
    }
    own = {"qttdm.deploy.monitoring.exporter"}  # imports declared.py itself
    assert declaring - own == imported
    assert all(import_module(name) for name in imported)

"""docs/metrics.md says what is declared, and declared.py imports every module that declares."""

import re
import subprocess
import sys
from pathlib import Path

from qttdm.deploy.monitoring.metrics_page import PAGE, page

ROOT = Path(__file__).parents[3]


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make docs`"


def test_every_module_that_declares_is_imported():
    """A metric of one that is not would be refused by the exporter."""
    code = "import sys, qttdm.deploy.monitoring.declared; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    declaring = {
        "qttdm." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("actors", "common", "deploy", "learner", "planner_service", "replay")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^(\w+ = )?(counter|gauge|histogram|declare)\(", path.read_text(), re.MULTILINE)
    }
    own = {"qttdm.deploy.monitoring.exporter"}  # imports declared.py itself
    assert declaring - own <= {*done.stdout.split()}

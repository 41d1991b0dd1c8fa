"""The documentation site: it builds without a warning, and has a row for each setting."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qttdm.deploy.agents.registry import AGENTS
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.runs.serve import ServeConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def keys(settings, prefix=""):
    """The dotted keys of a page of settings."""
    for key, value in settings.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]


def test_a_row_for_every_setting(site):
    rows = set(re.findall(r"<td><code>([\w.-]+)</code></td>", (site / "settings" / "index.html").read_text()))
    for agent in AGENTS:
        config = load_run_config(preset_path("laptop"), agent=agent)
        assert {*keys(config.model_dump(mode="json", by_alias=True))} <= rows
    assert {*keys(ServeConfig().model_dump(mode="json"))} <= rows


def test_the_functions_are_documented(site):
    page = (site / "api" / "index.html").read_text()
    assert all(f'id="qttdm.deploy.api.{name}"' in page for name in ("train", "load", "evaluate", "metrics", "plot"))
    assert 'id="qttdm.common.contracts.Planner.plan"' in page


def test_the_files_that_the_readme_names_are_there():
    """MkDocs sees to the links of docs/."""
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
        assert [link for link in links if not (ROOT / link).exists()] == []

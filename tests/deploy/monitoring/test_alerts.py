"""Prometheus's files, by Prometheus's own tool: they load, each alert fires when it should and only then."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy" / "monitoring" / "prometheus"
promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool: apt install prometheus")


def rules():
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def expectations():
    """Name of the alert, and how many of it the test file expects at a time."""
    for test in yaml.safe_load((FOLDER / "alerts.test.yml").read_text())["tests"]:
        for expected in test["alert_rule_test"]:
            yield expected["alertname"], len(expected["exp_alerts"])


def ask(*command, folder=FOLDER):
    return subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=60)


@promtool
@pytest.mark.parametrize("command", ["check config prometheus.yml", "check rules alerts.yml"])
def test_prometheus_loads_them(command):
    answer = ask(*command.split())
    assert answer.returncode == 0, answer.stderr + answer.stdout


@promtool
def test_alerts_fire_when_they_should_and_only_then():
    answer = ask("test", "rules", "alerts.test.yml")
    assert answer.returncode == 0, answer.stderr + answer.stdout


@promtool
@pytest.mark.parametrize("name", rules())
def test_an_alert_that_always_or_never_fires_would_be_found(name, tmp_path):
    shutil.copy(FOLDER / "alerts.test.yml", tmp_path)
    for condition in ("vector(1)", "vector(1) < 0"):
        content = yaml.safe_load((FOLDER / "alerts.yml").read_text())
        rule = next(rule for rule in content["groups"][0]["rules"] if rule["alert"] == name)
        rule["expr"] = condition
        (tmp_path / "alerts.yml").write_text(yaml.safe_dump(content))
        answer = ask("test", "rules", "alerts.test.yml", folder=tmp_path)
        assert f"alertname: {name}" in answer.stdout + answer.stderr


def test_each_alert_is_tested_for_firing_and_for_not_firing():
    counts = list(expectations())
    assert {name for name, number in counts if number} == set(rules())
    assert {name for name, number in counts if not number} == set(rules())


@pytest.mark.parametrize("name", rules())
def test_each_alert_names_the_run_or_the_target_and_links_to_what_to_do(name):
    annotations = rules()[name]["annotations"]
    named = "$labels.instance" if name == "ScrapeTargetDown" else "$labels.run"
    assert named in annotations["summary"]
    page, _, anchor = annotations["runbook_url"].partition("#")
    headings = re.findall("^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == name.lower()
    assert name in headings

"""Every query that a dashboard's panel or variable or an alert makes, for Prometheus: read from what is shipped.

for query in all_queries("walker-1"):
    answer = get(f"http://127.0.0.1:9090/api/v1/query?query={quote(query.text)}")
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[3] / "deploy" / "monitoring"
DASHBOARDS = FOLDER / "grafana" / "dashboards"
ALERTS = FOLDER / "prometheus" / "alerts.yml"
LABEL_VALUES = re.compile(r"label_values\((?P<series>.+), (?P<label>\w+)\)")


@dataclass(frozen=True)
class Query:
    """One query."""

    where: str
    """such as "training.json: Losses, A"; of an alert "alerts.yml: LearnerStalled" """
    text: str
    """PromQL, every variable replaced"""

    @property
    def is_alert(self) -> bool:
        """Of an alert, whose answer is empty as long as all is well."""
        return self.where.startswith(ALERTS.name)


def all_queries(run: str, rate_interval: str = "1m", time_range: str = "15m") -> list[Query]:
    """All tasks and seeds of that run. The intervals stand for what Grafana computes from the width of a panel."""
    return [
        *(Query(where, substituted(text, run, rate_interval, time_range)) for where, text in of_dashboards()),
        *(Query(f"{ALERTS.name}: {name}", text) for name, text in of_alerts()),
    ]


def of_dashboards() -> Iterator[tuple[str, str]]:
    """Where, and what it asks; what a variable can be set to is asked as a query for its series."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        content = json.loads(path.read_text())
        for panel in panels(content):
            for target in panel["targets"]:
                yield f"{path.name}: {panel['title']}, {target['refId']}", target["expr"]
        for variable in content["templating"]["list"]:
            if variable["type"] == "query":
                found = LABEL_VALUES.fullmatch(variable["query"])
                assert found, variable["query"]
                yield f"{path.name}: variable {variable['name']}", f"group by ({found['label']}) ({found['series']})"


def of_alerts() -> Iterator[tuple[str, str]]:
    """Name and condition."""
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def panels(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of a dashboard, those that ask something."""
    return (panel for panel in content["panels"] if panel["type"] != "row")


def substituted(text: str, run: str, rate_interval: str, time_range: str) -> str:
    """A dashboard's query with its variables replaced as Grafana would: this run, everything of it."""
    values = {"$run": run, "$task": ".*", "$seed": ".*", "$__rate_interval": rate_interval, "$__range": time_range}
    for name in sorted(values, key=len, reverse=True):
        text = text.replace(name, values[name])
    assert "$" not in text, text
    return text

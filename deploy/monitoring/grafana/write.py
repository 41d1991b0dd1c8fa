"""`make docs`: the dashboards' JSON, which Grafana is given, written from their Python."""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from qttdm.deploy.monitoring.grafana.planner import planner
from qttdm.deploy.monitoring.grafana.queries import DASHBOARDS
from qttdm.deploy.monitoring.grafana.system import system
from qttdm.deploy.monitoring.grafana.training import training


def files() -> dict[Path, str]:
    """What each of them has to contain."""
    return {
        DASHBOARDS / f"{name}.json": json.dumps(build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, build in {"training": training, "system": system, "planner": planner}.items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(f"wrote {path}")

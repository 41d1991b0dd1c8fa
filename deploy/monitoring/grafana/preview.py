"""Pictures of the dashboards without Grafana: their panels and queries, asked of Prometheus, drawn with matplotlib.

python -m qttdm.deploy.monitoring.grafana.preview RUN --minutes 10 --out docs/images
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from qttdm.common.config import ConfigError
from qttdm.deploy.monitoring.grafana.queries import DASHBOARDS, substituted

CELL = (0.62, 0.36)  # inches of a cell of Grafana's grid, 24 to a row
COLOURS = {"green": "#3f8f3f", "orange": "#d9822b", "red": "#c0392b"}
POINTS = 240  # in time


@dataclass(frozen=True)
class Source:
    """A Prometheus, a run, and a span of time."""

    url: str
    run: str
    start: float
    """Unix time"""
    end: float

    @property
    def step(self) -> float:
        """Seconds between points."""
        return max(1.0, (self.end - self.start) / POINTS)

    def ask(self, text: str, over_time: bool) -> list[dict[str, Any]]:
        """A panel's query: its series over time, or their values at the end. ConfigError if Prometheus refuses it."""
        query = substituted(text, self.run, f"{max(20, math.ceil(4 * self.step))}s", f"{self.end - self.start:.0f}s")
        arguments = {"query": query, "time": str(self.end)}
        if over_time:
            arguments = {"query": query, "start": str(self.start), "end": str(self.end), "step": str(self.step)}
        path = "query_range" if over_time else "query"
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(arguments)}") as answer:
                result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except urllib.error.HTTPError as error:
            raise ConfigError(f"preview: {query}: {error.read().decode()}") from None
        except OSError as error:
            raise ConfigError(f"preview: no Prometheus at {self.url} ({getattr(error, 'reason', error)})") from None
        return result


@dataclass(frozen=True)
class Series:
    """A line of a panel."""

    name: str
    labels: dict[str, str]
    minutes: np.ndarray
    """since the start [points]"""
    values: np.ndarray
    """[points]"""


def series(source: Source, panel: dict[str, Any]) -> list[Series]:
    """All lines of a panel, with Grafana's legends."""
    found = []
    for target in panel["targets"]:
        for answer in source.ask(target["expr"], over_time=True):
            labels = answer["metric"]
            legend = target.get("legendFormat", "__auto")
            name = legend
            for label in re.findall(r"{{(\w+)}}", legend):
                name = name.replace(f"{{{{{label}}}}}", labels.get(label, ""))
            times, values = np.array(answer["values"], float).T
            found.append(Series("" if legend == "__auto" else name, labels, (times - source.start) / 60, values))
    return found


def readable(value: float, unit: str) -> str:
    """A number in a unit of Grafana's."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{value:.0%}" if abs(value) >= 0.1 or value == 0 else f"{value:.1%}"
    if unit == "s" and value >= 60:
        return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1e3:.3g} ms"
    suffixes = ["", " KiB", " MiB", " GiB", " TiB"] if unit == "bytes" else ["", " K", " Mil", " Bil"]
    base = 1024.0 if unit == "bytes" else 1000.0
    power = 0
    while abs(value) >= base and power < len(suffixes) - 1:
        value, power = value / base, power + 1
    return f"{value:.3g}{suffixes[power]}{' s' if unit == 's' else ''}"


def colour(panel: dict[str, Any], value: float) -> str:
    """By the panel's thresholds."""
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLOURS[reached[-1]]


def draw_number(ax: Axes, source: Source, panel: dict[str, Any]) -> None:
    """In large print, with the line of how it changed behind it; of several, each with its name."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    found = series(source, panel)
    ax.set_axis_off()
    for i, line in enumerate(found):
        last = line.values[-1]
        x = (i + 0.5) / len(found)
        size = 15 if len(found) == 1 else 11
        style: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": "center"}
        ax.text(x, 0.55, readable(last, unit), color=colour(panel, last), fontsize=size, weight="bold", **style)
        ax.text(x, 0.2, line.name, fontsize=6, color="0.4", **style)
    if len(found) == 1 and np.isfinite(found[0].values).sum() > 1:
        ax.fill_between(found[0].minutes, found[0].values, np.nanmin(found[0].values), color="0.9", zorder=0)
        ax.margins(0, 0.8)
    if not found:
        ax.text(0.5, 0.5, "-", transform=ax.transAxes, ha="center", va="center", fontsize=15, color="0.5")


def draw_lines(ax: Axes, source: Source, panel: dict[str, Any]) -> None:
    """Lines, stacked or not, with the thresholds as dashes."""
    defaults = panel["fieldConfig"]["defaults"]
    custom, found = defaults.get("custom", {}), series(source, panel)
    if custom.get("stacking", {}).get("mode") == "normal" and found:
        minutes = np.unique(np.concatenate([line.minutes for line in found]))
        parts = [np.interp(minutes, line.minutes, line.values, left=0, right=0) for line in found]
        ax.stackplot(minutes, parts, labels=[line.name for line in found], alpha=0.7)
    else:
        for line in found:
            ax.plot(line.minutes, line.values, linewidth=1, label=line.name)
    by_name = {line.name: line for line in found}
    for override in panel["fieldConfig"]["overrides"]:
        settings = {p["id"]: p["value"] for p in override["properties"]}
        upper, lower = by_name.get(override["matcher"]["options"]), by_name.get(settings.get("custom.fillBelowTo", ""))
        if upper and lower and len(upper.values) == len(lower.values):
            ax.fill_between(upper.minutes, lower.values, upper.values, alpha=0.15, color="0.4")
    if custom.get("scaleDistribution", {}).get("type") == "log":
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is not None and found:
            ax.axhline(step["value"], color=COLOURS[step["color"]], linestyle="--", linewidth=0.8)
    if "max" in defaults:
        ax.set_ylim(defaults.get("min", 0), defaults["max"])
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: readable(value, defaults["unit"])))
    if 0 < len(found) <= 12:
        ax.legend(fontsize=5, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    finish(ax, source, bool(found))


def draw_heatmap(ax: Axes, source: Source, panel: dict[str, Any]) -> None:
    """How many fell into which bucket, over time."""
    found = sorted(series(source, panel), key=lambda line: float(line.labels["le"]))
    if found:
        minutes = np.unique(np.concatenate([line.minutes for line in found]))
        cumulated = np.stack([np.interp(minutes, line.minutes, line.values) for line in found])
        counts = np.diff(cumulated, axis=0, prepend=0)
        kept = np.flatnonzero(counts.sum(axis=1) > 0)
        if len(kept):
            shown = slice(max(0, kept[0] - 1), kept[-1] + 2)
            ax.pcolormesh(minutes, np.arange(len(found))[shown], counts[shown], cmap="Blues", shading="nearest")
            ticks = np.arange(len(found))[shown]
            unit = panel["fieldConfig"]["defaults"]["unit"]
            labels = [
                readable(float(found[i].labels["le"]), unit) if found[i].labels["le"] != "+Inf" else "" for i in ticks
            ]
            ax.set_yticks(ticks, labels)
    finish(ax, source, bool(found))


def draw_table(ax: Axes, source: Source, panel: dict[str, Any]) -> None:
    """A row for each set of labels, a column for each query."""
    names = next(t for t in panel["transformations"] if t["id"] == "organize")["options"]["renameByName"]
    units = {
        o["matcher"]["options"]: next(p["value"] for p in o["properties"] if p["id"] == "unit")
        for o in panel["fieldConfig"]["overrides"]
    }
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for target in panel["targets"]:
        name = names[f"Value #{target['refId']}"]
        for answer in source.ask(target["expr"], over_time=False):
            labels = answer["metric"]
            text = labels.get("state") or readable(float(answer["value"][1]), units[name])
            cells.setdefault((labels["run"], labels["task"], labels["seed"]), {})[name] = text
    ax.set_axis_off()
    if not cells:
        return finish(ax, source, False)
    columns = ["run", "task", "seed", *names.values()]
    rows = [[*key, *[cells[key].get(name, "-") for name in names.values()]] for key in sorted(cells)]
    table = ax.table(rows, colLabels=columns, loc="upper center", cellLoc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(6)
    return None


def finish(ax: Axes, source: Source, found: bool) -> None:
    """What all panels over time have in common."""
    ax.set_xlim(0, (source.end - source.start) / 60)
    ax.tick_params(labelsize=5, length=2)
    ax.grid(alpha=0.3, linewidth=0.5)
    if not found:
        ax.text(0.5, 0.5, "no data", transform=ax.transAxes, ha="center", va="center", color="0.5", fontsize=7)


DRAW = {"stat": draw_number, "timeseries": draw_lines, "heatmap": draw_heatmap, "table": draw_table}


def preview(dashboard: Path, source: Source) -> Figure:
    """The whole dashboard, laid out as Grafana does."""
    content = json.loads(dashboard.read_text())
    height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in content["panels"])
    figure = Figure(figsize=(24 * CELL[0], height * CELL[1]), dpi=80)
    for panel in content["panels"]:
        at = panel["gridPos"]
        left, bottom = at["x"] / 24, 1 - (at["y"] + at["h"]) / height
        if panel["type"] == "row":
            figure.text(0.008, bottom + 0.35 / height, panel["title"], fontsize=9, weight="bold")
            continue
        pad = (0.035, 1.5 / height) if panel["type"] in ("timeseries", "heatmap") else (0.004, 0.2 / height)
        box = (left + pad[0], bottom + pad[1], at["w"] / 24 - pad[0] - 0.008, (at["h"] - 0.9) / height - pad[1])
        ax = figure.add_axes(box)
        DRAW[panel["type"]](ax, source, panel)
        ax.set_title(panel["title"], fontsize=7, pad=3)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    p = argparse.ArgumentParser(
        prog="python -m qttdm.deploy.monitoring.grafana.preview", description=__doc__.splitlines()[0]
    )
    p.add_argument("run", metavar="RUN", help="the label `run`")
    p.add_argument("--prometheus", metavar="URL", default="http://127.0.0.1:9090")
    p.add_argument("--minutes", metavar="M", type=float, default=60.0, help="how far back from the end")
    p.add_argument("--end", metavar="T", type=float, help="Unix time; default: now")
    p.add_argument("--out", metavar="DIR", type=Path, default=Path())
    o = p.parse_args(arguments)
    end = o.end or time.time()
    source = Source(o.prometheus, o.run, end - 60 * o.minutes, end)
    mpl.use("Agg")
    try:
        for path in sorted(DASHBOARDS.glob("*.json")):
            out = o.out / f"dashboard-{path.stem}.png"
            preview(path, source).savefig(out)
            print(out)
    except ConfigError as error:
        print(f"qttdm: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make docs`: the dashboards' JSON that Grafana reads, written from panels.yaml."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as c
from grafana_foundation_sdk.models import dashboard as d
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

import qttdm.deploy.monitoring.exporter  # noqa: F401 - with it every metric is declared
from qttdm.common.metrics.instruments import INSTRUMENTS

DASHBOARDS = Path(__file__).resolve().parent / "dashboards"
CHOSEN = 'run="$run",task=~"$task",seed=~"$seed"'  # the dashboard's variables as labels
SOURCE = d.DataSourceRef(type_val="prometheus", uid="${datasource}")
LETTERS = "ABCDEFGHIJKLMNOP"
KINDS: dict[str, Any] = {"number": stat, "lines": timeseries, "heat": heatmap, "table": table}
FIELDS = {"title", "question", "show", "unit", "width", "limits", "log", "stacked", "max", "queries"}


def chosen(query: str) -> str:
    """Narrow every series of ours to the chosen ones. ValueError for a metric that is not declared."""

    def narrow(found: re.Match[str]) -> str:
        name, labels = found["name"], found["labels"]
        if name not in INSTRUMENTS and re.sub("_(bucket|count|sum)$", "", name) not in INSTRUMENTS:
            raise ValueError(f"{name}: not declared; see common/metrics/instruments.py")
        return f"{name}{{{CHOSEN}{',' + labels if labels else ''}}}"

    return re.sub(r"(?P<name>\bqttdm_\w+)(\{(?P<labels>[^}]*)\})?", narrow, query)


def thresholds(limits: dict[float, str]) -> dashboard.ThresholdsConfig:
    """Colour a value from each limit on; green below."""
    steps = [d.Threshold(value=None, color="green"), *(d.Threshold(value=v, color=c) for v, c in limits.items())]
    return dashboard.ThresholdsConfig().mode(d.ThresholdsMode.ABSOLUTE).steps(steps)


def panel(row: dict[str, Any], kind: str, width: int) -> Any:
    """Build one panel of panels.yaml. ValueError for an unknown field."""
    if unknown := row.keys() - FIELDS:
        raise ValueError(f"{row['title']}: got {', '.join(sorted(unknown))}, want {', '.join(sorted(FIELDS))}")
    built = KINDS[kind].Panel().title(row["title"]).description(row["question"]).datasource(SOURCE).unit(row["unit"])
    built = built.height(4 if kind == "number" else 8).span(row.get("width", width))
    built = built.thresholds(thresholds(row.get("limits", {})))
    queries = row["queries"] if isinstance(row["queries"], dict) else {"": row["queries"]}
    for letter, (legend, text) in zip(LETTERS, queries.items(), strict=False):
        target = prometheus.Dataquery().expr(chosen(text[0] if kind == "table" else text)).ref_id(letter)
        target = target.datasource(SOURCE).range().legend_format(legend or ("{{le}}" if kind == "heat" else "__auto"))
        if kind in ("heat", "table"):
            target = target.format(PromQueryFormat.HEATMAP if kind == "heat" else PromQueryFormat.TABLE)
        built = built.with_target(target.instant() if kind == "table" else target)
    style: dict[str, Any] = {"number": number, "lines": lines, "heat": heat, "table": columns}
    return style[kind](built, row)


def number(built: stat.Panel, row: dict[str, Any]) -> stat.Panel:
    """Show the newest number in large print; `-` where there is none."""
    built = built.no_value("-").color_mode(c.BigValueColorMode.VALUE).graph_mode(c.BigValueGraphMode.AREA)
    return built.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))


def lines(built: timeseries.Panel, row: dict[str, Any]) -> timeseries.Panel:
    """Show lines over time."""
    legend = common.VizLegendOptions().display_mode(c.LegendDisplayMode.LIST).show_legend(True)
    built = built.legend(legend.placement(c.LegendPlacement.BOTTOM)).fill_opacity(50 if row.get("stacked") else 0)
    built = built.tooltip(common.VizTooltipOptions().mode(c.TooltipDisplayMode.MULTI))
    if row.get("limits"):
        built = built.thresholds_style(common.GraphThresholdsStyleConfig().mode(c.GraphThresholdsStyleMode.DASHED))
    if row.get("stacked"):
        built = built.stacking(common.StackingConfig().mode(c.StackingMode.NORMAL))
    if row.get("log"):
        built = built.scale_distribution(common.ScaleDistributionConfig().type(c.ScaleDistribution.LOG).log(10))
    return built.min(0).max(row["max"]) if "max" in row else built


def heat(built: heatmap.Panel, row: dict[str, Any]) -> heatmap.Panel:
    """Show a histogram over time."""
    built = built.y_axis(heatmap.YAxisConfig().unit(row["unit"])).show_legend().exemplars_color("orange")
    built = built.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
    return built.show_value(c.VisibilityMode.NEVER).mode(c.TooltipDisplayMode.SINGLE)


def columns(built: table.Panel, row: dict[str, Any]) -> table.Panel:
    """Show a table with a row for each set of labels."""
    built = built.no_value("-").show_header(True).frame_index(0)
    for name, (_, unit, *limits) in row["queries"].items():
        cell = {"unit": unit}
        if limits:
            cell |= {"thresholds": thresholds(*limits).build().to_json(), "custom.cellOptions": {"type": "color-text"}}
        built = built.override_by_name(name, [d.DynamicConfigValue(k, v) for k, v in cell.items()])
    renamed = {f"Value #{letter}": name for letter, name in zip(LETTERS, row["queries"], strict=False)}
    steps = {"merge": {}, "organize": {"excludeByName": {"Time": True}, "renameByName": renamed}}
    return built.transformations([d.DataTransformerConfig(id_val=k, options=v) for k, v in steps.items()])


def variables(built: dashboard.Dashboard) -> dashboard.Dashboard:
    """Add the choice of a run, and of some or all of its tasks and seeds."""
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    built = built.with_variable(source.hide(d.VariableHide.HIDE_VARIABLE))
    everything = d.VariableOption(selected=True, text=["All"], value=["$__all"])
    for name, among in {"run": "", "task": '{run="$run"}', "seed": '{run="$run",task=~"$task"}'}.items():
        choice = dashboard.QueryVariable(name).label(name).datasource(SOURCE)
        choice = choice.query(f"label_values(qttdm_env_steps_total{among}, {name})")
        choice = choice.refresh(d.VariableRefresh.ON_TIME_RANGE_CHANGED)
        if name != "run":
            choice = choice.multi(True).include_all(True).all_value(".*").current(everything)
        order = d.VariableSort.ALPHABETICAL_DESC if name == "run" else d.VariableSort.NUMERICAL_ASC
        built = built.with_variable(choice.sort(order))
    return built


def board(name: str, content: dict[str, Any]) -> Any:
    """Build one dashboard: numbers in its first row, lines in the others unless they say otherwise."""
    built = dashboard.Dashboard(content["title"]).uid(f"qttdm-{name}").description(content["description"])
    built = built.tags(["qttdm"]).time("now-1h", "now").refresh("10s").timezone("browser")
    link = dashboard.DashboardLink("Dashboards").type(d.DashboardLinkType.DASHBOARDS).tags(["qttdm"])
    built = built.tooltip(d.DashboardCursorSync.CROSSHAIR).link(link.keep_time(True).include_vars(True))
    built, numbers = variables(built), iter(range(1, 1000))
    for index, (title, rows) in enumerate(content["rows"].items()):
        built = built.with_row(dashboard.Row(title).id(next(numbers)))
        for row in rows:
            kind, width = ("lines", 8) if index else ("number", 24 // len(rows))
            built = built.with_panel(panel(row, row.get("show", kind), width).id(next(numbers)))
    result = built.build()
    for model in result.templating.list_val or []:
        model.auto = model.auto_min = model.auto_count = None  # the builder's own, which Grafana does not know
    return result


def files() -> dict[Path, str]:
    """Write the text of each dashboard's file."""
    return {
        DASHBOARDS / f"{name}.json": json.dumps(board(name, row), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"
        for name, row in yaml.safe_load(DASHBOARDS.with_name("panels.yaml").read_text()).items()
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
        print(f"wrote {path}")

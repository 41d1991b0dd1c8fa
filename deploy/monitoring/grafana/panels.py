"""What the dashboards are put together from: queries by declared names, and the kinds of panels there are.

    lines("Losses", "Mean of the last updates.", {"{{term}}": f"avg by (term) ({of('qttdm_loss')})"}, "short")

Every panel has a unit, thresholds and a description, because its function asks for them; thresholds are bounds at which
its colour changes, and without any there is nothing to be good or bad about it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from qttdm.common.metrics.instruments import INSTRUMENTS

CHOSEN = 'run="$run",task=~"$task",seed=~"$seed"'
"""What the dashboard's variables say."""
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
EVERYTHING = VariableOption(selected=True, text=["All"], value=["$__all"])
GREEN, ORANGE, RED = "green", "orange", "red"
Limits = Mapping[float, str]
"""From that value on that colour, green before; `{0: RED, 0.9: GREEN}`: too little is bad."""
Queries = Mapping[str, str]
"""Legend, in which {{label}} stands for a label's value: query."""


def of(name: str, **narrowed: str) -> str:
    """The chosen series of a metric, and of those the ones with these labels: of("qttdm_loss", term="td").

    "~a|b" is a pattern, "!a" all others, "!~a|b" both. ValueError for a metric that is not declared.
    """
    if name not in INSTRUMENTS and re.sub("_(bucket|count|sum)$", "", name) not in INSTRUMENTS:
        raise ValueError(f"{name}: not declared in common/metrics/instruments.py")
    matchers = [CHOSEN]
    for label, value in narrowed.items():
        operator = next(sign for sign in ("!~", "!", "~", "") if value.startswith(sign))
        equals = {"!~": "!~", "!": "!=", "~": "=~", "": "="}[operator]
        matchers.append(f'{label}{equals}"{value.removeprefix(operator)}"')
    return f"{name}{{{','.join(matchers)}}}"


def rate(name: str, **narrowed: str) -> str:
    """How fast a counter grows, per second."""
    return f"rate({of(name, **narrowed)}[$__rate_interval])"


def mean(name: str, by: str, **narrowed: str) -> str:
    """Of what a histogram observed, for each value of the labels `by`."""
    total, count = (f"sum by ({by}) ({rate(f'{name}_{part}', **narrowed)})" for part in ("sum", "count"))
    return f"{total} / {count}"


def quantile(share: float, name: str, by: str = "", **narrowed: str) -> str:
    """Of what a histogram observed: the value that this share of it is below."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) ({rate(f'{name}_bucket', **narrowed)}))"


def number(
    title: str,
    description: str,
    queries: Queries | str,
    unit: str,
    limits: Limits | None = None,
    width: int = 3,
    decimals: int | None = None,
) -> stat.Panel:
    """A number in large print, coloured by the limits; `-` where there is none."""
    panel = stat.Panel().title(title).description(description).datasource(SOURCE).height(4).span(width)
    panel = panel.unit(unit).thresholds(thresholds(limits)).no_value("-")
    panel = panel.color_mode(BigValueColorMode.VALUE).graph_mode(BigValueGraphMode.AREA)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    if decimals is not None:
        panel = panel.decimals(decimals)
    for target in targets(queries):
        panel = panel.with_target(target)
    return panel


def lines(
    title: str,
    description: str,
    queries: Queries,
    unit: str,
    limits: Limits | None = None,
    width: int = 8,
    stacked: bool = False,
    logarithmic: bool = False,
    maximum: float | None = None,
    between: tuple[str, str] | None = None,
) -> timeseries.Panel:
    """Lines over time; between: legends of two lines, lower and upper, whose space is filled."""
    panel = timeseries.Panel().title(title).description(description).datasource(SOURCE).height(8).span(width)
    panel = panel.unit(unit).thresholds(thresholds(limits)).fill_opacity(50 if stacked else 0)
    panel = panel.tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    panel = panel.legend(
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    if limits:
        style = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds_style(style)
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if logarithmic:
        panel = panel.scale_distribution(common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    if maximum is not None:
        panel = panel.min(0).max(maximum)
    if between is not None:
        lower, upper = between
        fill = [DynamicConfigValue("custom.fillBelowTo", lower), DynamicConfigValue("custom.fillOpacity", 20)]
        panel = panel.override_by_name(upper, fill)
    for target in targets(queries):
        panel = panel.with_target(target)
    return panel


def distribution(title: str, description: str, name: str, unit: str, width: int = 8, **narrowed: str) -> heatmap.Panel:
    """A histogram over time, as a heat map."""
    buckets = of(f"{name}_bucket", **narrowed)
    query = f"sum by (le) (increase({buckets}[$__rate_interval]))"
    panel = heatmap.Panel().title(title).description(description).datasource(SOURCE).height(8).span(width)
    panel = panel.thresholds(thresholds(None)).unit(unit)
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit)).show_legend().exemplars_color("orange")
    panel = panel.color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32))
    panel = panel.show_value(VisibilityMode.NEVER).mode(TooltipDisplayMode.SINGLE)
    (target,) = targets({"{{le}}": query})
    return panel.with_target(target.format(PromQueryFormat.HEATMAP))


def rows(title: str, description: str, columns: Mapping[str, tuple[str, str, Limits | None]]) -> table.Panel:
    """A row for each set of labels; columns: name: query, unit, limits."""
    panel = table.Panel().title(title).description(description).datasource(SOURCE).height(8).span(24)
    panel = panel.thresholds(thresholds(None)).unit("short").no_value("-").show_header(True).frame_index(0)
    names = dict(zip(columns, "ABCDEFGHIJKLMNOP", strict=False))
    for name, (query, unit, limits) in columns.items():
        (target,) = targets(query)
        panel = panel.with_target(target.ref_id(names[name]).instant().format(PromQueryFormat.TABLE))
        properties = [DynamicConfigValue("unit", unit)]
        if limits:
            colour = thresholds(limits).build().to_json()
            properties += [
                DynamicConfigValue("thresholds", colour),
                DynamicConfigValue("custom.cellOptions", {"type": "color-text"}),
            ]
        panel = panel.override_by_name(name, properties)
    renamed = {f"Value #{letter}": name for name, letter in names.items()}
    return panel.transformations(
        [
            DataTransformerConfig(id_val="merge", options={}),
            DataTransformerConfig(
                id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": renamed}
            ),
        ]
    )


def targets(queries: Queries | str) -> list[prometheus.Dataquery]:
    """One for each query, by letter."""
    by_legend = {"": queries} if isinstance(queries, str) else queries
    built = []
    for letter, (legend, query) in zip("ABCDEFGH", by_legend.items(), strict=False):
        target = prometheus.Dataquery().expr(query).ref_id(letter).datasource(SOURCE).range()
        built.append(target.legend_format(legend or "__auto"))
    return built


def thresholds(limits: Limits | None) -> dashboard.ThresholdsConfig:
    """As Grafana writes them."""
    steps = [Threshold(value=None, color=GREEN)]
    steps += [Threshold(value=value, color=colour) for value, colour in (limits or {}).items()]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def board(uid: str, title: str, description: str, known_by: str, chapters: Mapping[str, Sequence[Any]]) -> Any:
    """A dashboard with its variables; known_by: a metric that every run has which is to be chosen from here."""
    built = dashboard.Dashboard(title).uid(uid).description(description).tags(["qttdm"])
    built = built.time("now-1h", "now").refresh("10s").tooltip(DashboardCursorSync.CROSSHAIR).timezone("browser")
    built = built.link(
        dashboard.DashboardLink("Dashboards")
        .type(DashboardLinkType.DASHBOARDS)
        .tags(["qttdm"])
        .keep_time(True)
        .include_vars(True)
    )
    source = dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    built = built.with_variable(source.hide(VariableHide.HIDE_VARIABLE))
    chosen: list[str] = []
    for name in ("run", "task", "seed"):
        values = (
            f"label_values({known_by}{{{','.join(chosen)}}}, {name})" if chosen else f"label_values({known_by}, run)"
        )
        variable = dashboard.QueryVariable(name).label(name).datasource(SOURCE).query(values)
        variable = variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        if name == "run":
            chosen.append('run="$run"')
            variable = variable.sort(VariableSort.ALPHABETICAL_DESC)
        else:
            chosen.append(f'{name}=~"${name}"')
            variable = (
                variable.sort(VariableSort.NUMERICAL_ASC)
                .multi(True)
                .include_all(True)
                .all_value(".*")
                .current(EVERYTHING)
            )
        built = built.with_variable(variable)
    number_of_panel = 0
    for chapter, panels in chapters.items():
        built = built.with_row(dashboard.Row(chapter).id(number_of_panel := number_of_panel + 1))
        for panel in panels:
            built = built.with_panel(panel.id(number_of_panel := number_of_panel + 1))
    result = built.build()
    for model in result.templating.list_val or []:
        model.auto = model.auto_min = model.auto_count = None  # the builder's own, which Grafana does not know
    return result

"""Draw learning curves of run directories: one colour per group, the seeds of a group taken together.

A group is the runs whose config.yaml differ in nothing but the seed, where they ran (device, threads) and what they
reported to (sinks). It is called after its agent and the settings in which the groups of its task differ. Its line is
the mean over seeds, its band the 95% percentile-bootstrap interval of that mean. Seeds evaluated at different steps are
first interpolated linearly onto the union of their steps, within the range that all of them reached, so no curve is
extrapolated. With one group of one run there is no interval to show; its own evaluations and training returns are drawn
instead.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from qttdm.common.config import ConfigError, read_yaml
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.common.weights import read_generation

Array = NDArray[np.float64]
Row = tuple[str, ...]  # of the printed table
Curve = tuple[Array, Array]  # environment steps [T] increasing, values [T]
PUBLISHED = Path(__file__).with_name("reference_curves.csv")  # others' methods; part of the package
NOT_SETTINGS = ("seed", "device", "threads", "sinks")  # may differ within a group
AXES = {"env_steps": "environment steps", "updates": "updates"}
LABELS = {"episode_return": "evaluation return (sum of rewards)", "success": "evaluation success (fraction)"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe-Ito: told apart by all


@dataclass(frozen=True)
class Run:
    """One run as it is plotted: who it is, and its evaluation and training lines of metrics.jsonl."""

    task: str
    path: Path
    seed: int
    settings: dict[str, str]  # dotted key -> value as it is written in a label; without NOT_SETTINGS
    evaluations: list[dict[str, Any]]
    episodes: list[dict[str, Any]]

    def has_section_of(self, key: str) -> bool:
        """Say whether a dotted key could be among its settings; a key without a dot is every run's."""
        section, dot, _ = key.partition(".")
        return not dot or any(own.startswith(f"{section}.") for own in self.settings)

    @property
    def axis(self) -> str:
        """What its curve is over: environment steps, or updates if it took none."""
        return "env_steps" if any(line["env_steps"] for line in self.evaluations) else "updates"

    def curve(self, metric: str) -> Curve:
        """Read a metric off the evaluations; nulls are left out, and of two lines at one step the later one counts."""
        points = {line[self.axis]: line[metric] for line in self.evaluations if line.get(metric) is not None}
        return np.array(sorted(points), float), np.array([points[step] for step in sorted(points)], float)


def plot_runs(run_dirs: Sequence[Path], out: Path, references: Path | None = None, metric: str | None = None) -> str:
    """Draw the runs, one panel per task, to the png `out`; returns a table of the last scores to print.

    `metric` is episode_return or success; None takes success where every evaluation of the task has one. `references`
    is a csv of published curves with the columns source, task, step, reward_or_success. Raises ConfigError for
    a directory that is not a run or has nothing to plot, two runs of one group with the same seed, and a reference file
    that cannot be read.
    """
    runs = [read_run(path) for path in run_dirs]
    tasks = sorted({run.task for run in runs})
    if not tasks:
        raise ConfigError("plot: no run directories given")
    figure = Figure(figsize=((9.6 if references else 6.4) * len(tasks), 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    table: list[Row] = [("task", "group", "runs", "at step", "score", "mean", "95% interval", "IQM")]
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        here = [run for run in runs if run.task == task]
        known = all(line.get("success") is not None for run in here for line in run.evaluations)
        score = metric or ("success" if known else "episode_return")
        published = read_references(references, task, score) if references else {}
        table += _draw_task(axes, task, here, score, published)
    try:
        figure.savefig(out, format="png")
    except OSError as error:
        raise ConfigError(f"{out}: cannot write the plot ({error.strerror})") from None
    return _as_text(table)


def read_run(path: Path) -> Run:
    """Read a run's config.yaml and metrics.jsonl; ConfigError when it is no run or has not been evaluated yet."""
    run_dir = RunDir.open(path)
    config = read_yaml(run_dir.config_path.read_text(encoding="utf-8", errors="replace"), str(run_dir.config_path))
    if not isinstance(config, dict) or "task" not in config:
        raise ConfigError(f"{run_dir.config_path}: names no task; not a run's configuration")
    lines = read_metrics(run_dir.metrics_path)
    evaluations = [line for line in lines if line.get("kind") == "eval"]
    if not evaluations:
        raise ConfigError(f"{path}: has no evaluations yet, nothing to plot")
    on_cluster = read_generation(path) > 0  # else the cluster's settings are there and had no effect
    unused = NOT_SETTINGS if on_cluster else (*NOT_SETTINGS, "cluster")
    settings = dotted({key: value for key, value in config.items() if key not in unused})
    settings |= {"on": "cluster"} if on_cluster else {}
    episodes = [line for line in lines if line.get("kind") == "train"]
    return Run(str(config["task"]), path, config.get("seed", 0), settings, evaluations, episodes)


def dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten settings: {"qt": {"bins": 5}} -> {"qt.bins": "5"}."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group the runs of one task by label, sorted. ConfigError if a group has one seed twice."""
    alike: dict[tuple[tuple[str, str], ...], list[Run]] = defaultdict(list)
    for run in runs:
        group = alike[tuple(sorted(run.settings.items()))]
        if twin := next((other for other in group if other.seed == run.seed), None):
            raise ConfigError(f"plot: {twin.path} and {run.path} have the same settings and the same seed, {run.seed}")
        group.append(run)
    keys = sorted({key for run in runs for key in run.settings} - {"agent"})
    # A section (an agent's, the cluster's) tells apart the runs that have it, and nothing of the others.
    telling = [key for key in keys if len({run.settings.get(key) for run in runs if run.has_section_of(key)}) > 1]
    groups = {}
    for members in alike.values():
        first = members[0]
        told = [key for key in telling if key in first.settings or (key != "on" and first.has_section_of(key))]
        shown = [f"{key}={first.settings.get(key, '-')}" for key in told]
        groups[" ".join([first.settings.get("agent", "run"), *shown])] = members
    return dict(sorted(groups.items()))


def read_references(path: Path, task: str, metric: str) -> dict[str, Curve]:
    """Read published curves of a task and metric, by source, seeds averaged at each step.

    Tasks match by their bare name, so `mw-hammer` in the file serves `metaworld/hammer-v3`. What is published for
    Meta-World (`mw-`) is success, for every other task the return; the other metric has no curves.
    """
    name = _bare_name(task)
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                published = "success" if row["task"].startswith("mw-") else "episode_return"
                if _bare_name(row["task"]) == name and metric == published:
                    values[row["source"]][float(row["step"])].append(float(row["reward_or_success"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path}: cannot read reference curves; want a csv of source, task, step, reward_or_success ({error!r})"
        ) from None
    return {
        source: (np.array(sorted(points)), np.array([np.mean(points[step]) for step in sorted(points)]))
        for source, points in values.items()
    }


def _bare_name(task: str) -> str:
    """Drop family and version: dmc/walker-walk -> walker-walk; mw-hammer and metaworld/hammer-v3 -> hammer."""
    return re.sub(r"-v\d+$", "", task.rsplit("/", 1)[-1].removeprefix("mw-"))


def align(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """Interpolate R curves onto one grid: steps [G], values [R, G]; all their steps within the common range.

    ValueError when the ranges do not overlap.
    """
    low, high = max(steps[0] for steps, _ in curves), min(steps[-1] for steps, _ in curves)
    if low > high:
        raise ValueError(f"curves share no range of steps: one starts at {low:g}, one ends at {high:g}")
    union = np.unique(np.concatenate([steps for steps, _ in curves]))
    grid = union[(union >= low) & (union <= high)]
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in curves])


def bootstrap_interval(values: Array, samples: int = 2000, seed: int = 0) -> tuple[Array, Array]:
    """Compute the 95% percentile-bootstrap interval of the mean over runs: values [R, G] -> low [G], high [G].

    Whole runs are drawn with replacement, the same draw for every step, because a run's points depend on each other.
    """
    runs = len(values)
    drawn = np.random.default_rng(seed).integers(runs, size=(samples, runs))  # [samples, R]
    weights = np.stack([(drawn == run).mean(axis=1) for run in range(runs)], axis=1)  # [samples, R], share of the draw
    low, high = np.percentile(weights @ values, [2.5, 97.5], axis=0)  # of [samples, G]
    return low, high


def mean_interval(values: Sequence[float] | Array) -> tuple[float, float, float]:
    """Compute the mean over runs or episodes, [R], and the ends of its 95% interval."""
    (low,), (high,) = bootstrap_interval(np.array(values)[:, None])
    return float(np.mean(values)), float(low), float(high)


def interquartile_mean(values: Array) -> Array:
    """Compute the mean of the middle half over runs: values [R, ...] -> [...].

    A quarter of the weight is cut from each end, exactly: with R runs the sorted run i covers [i/R, (i+1)/R] and weighs
    as much of that as lies in [1/4, 3/4]. Equals rliable's trimmed mean where 4 divides R; theirs rounds the cut down.
    """
    runs = len(values)
    edges = np.clip(np.arange(runs + 1) / runs, 0.25, 0.75)
    return np.tensordot(np.diff(edges) / 0.5, np.sort(values, axis=0), axes=1)


def _draw_task(axes: Axes, task: str, runs: Sequence[Run], metric: str, references: dict[str, Curve]) -> list[Row]:
    """Draw one panel; returns the table's row of each group."""
    if len(runs) == 1 and metric == "episode_return":
        _draw_training(axes, runs[0])
    rows = []
    for number, (label, members) in enumerate(group_runs(runs).items()):
        curves = [run.curve(metric) for run in members]
        if any(len(steps) == 0 for steps, _ in curves):
            raise ConfigError(f"plot: a run of {task} ({label}) has no {metric} in its evaluations")
        try:
            grid, values = align(curves)
        except ValueError as error:
            raise ConfigError(f"plot: {task} ({label}): {error}") from None
        _draw_group(axes, label, grid, values, COLOURS[number % len(COLOURS)])
        rows.append(_score(task, label, metric, grid, values))
    _draw_references(axes, references, span=max(run.curve(metric)[0][-1] for run in runs))
    _decorate(axes, task, metric, AXES[runs[0].axis])
    return rows


def _draw_group(axes: Axes, label: str, grid: Array, values: Array, colour: str) -> None:
    """Draw mean and interval of values [R, G]; a single run gets markers at its evaluations instead."""
    if len(values) == 1:
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5, "label": label}
    else:
        low, high = bootstrap_interval(values)
        style = {"label": f"{label} ({len(values)} runs)"}
        axes.fill_between(grid, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(grid, values.mean(axis=0), color=colour, linewidth=1.8, zorder=3, **style)


def _score(task: str, label: str, metric: str, grid: Array, values: Array) -> Row:
    """Make the table's row: a group's values [R, G] at the last step that all of its runs reached."""
    form = ".2f" if metric == "success" else ".1f"
    mean, low, high = mean_interval(values[:, -1])
    interval = f"{low:{form}} to {high:{form}}" if len(values) > 1 else "-"
    iqm = format(float(interquartile_mean(values[:, -1])), form)
    return task, label, str(len(values)), f"{grid[-1]:,.0f}", metric, format(mean, form), interval, iqm


def _draw_training(axes: Axes, run: Run) -> None:
    lines = [line for line in run.episodes if line["episode_return"] is not None]
    if lines:
        steps, returns = ([line[name] for line in lines] for name in ("env_steps", "episode_return"))
        axes.plot(steps, returns, color="0.6", linewidth=0.7, label="training episodes", zorder=1)


def _draw_references(axes: Axes, references: dict[str, Curve], span: float) -> None:
    """Draw published curves, dashed and only as far as the runs go."""
    for number, (source, (steps, values)) in enumerate(sorted(references.items())):
        shown = steps <= span
        shade = str(0.35 + 0.4 * number / max(1, len(references)))
        style: dict[str, Any] = {"linestyle": ("--", ":", "-.")[number % 3], "linewidth": 1.1, "marker": "."}
        axes.plot(steps[shown], values[shown], color=shade, **style, markersize=4, label=source, zorder=2)


def _decorate(axes: Axes, task: str, metric: str, label: str) -> None:
    axes.set_title(task)
    axes.set_xlabel(label)
    axes.set_ylabel(LABELS[metric])
    axes.xaxis.set_major_locator(MaxNLocator(5))  # numbers with separators are wide
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    if metric == "success":
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    labels = [fill(label, 40, break_long_words=False) for label in labels]
    many = sum(label.count("\n") + 1 for label in labels) > 4  # lines; they would cover the curves
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if many else {}
    axes.legend(handles, labels, frameon=False, fontsize="small", **where)


def _as_text(rows: Sequence[Row]) -> str:
    """Format rows in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )

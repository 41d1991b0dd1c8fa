"""Say how well a variant does: one table, one picture, beside published curves; or which of two variants does better.

Tables of tasks hold the tasks' own scores, aggregates normalised ones, 0 to 1. Intervals are 95% percentile-bootstrap.
The aggregate is rliable's: the interquartile mean over runs and tasks, its bootstrap stratified by task. It is computed
here, in ten lines: the library needs 160 MB of others, which pip installs in versions that fail at import (arch 7.2
with pandas 3), and it refuses tasks with unequal numbers of runs, as a suite under way has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from qttdm.common.config import ConfigError
from qttdm.deploy.screens.plot import (
    COLOURS,
    Array,
    Curve,
    align,
    bootstrap_interval,
    interquartile_mean,
    mean_interval,
)
from qttdm.deploy.suite.results import Method, Result, as_method, largest_score

STEPS = (20_000, 30_000, 50_000, 100_000)
FARTHEST = 25_000  # steps between two points of a curve that a score between them is interpolated from


def score_at(curve: Curve, step: float) -> float | None:
    """Read a curve off at that step; None where it has no points near enough."""
    steps, scores = curve
    right = int(np.searchsorted(steps, step))
    if right == len(steps):
        return None
    if steps[right] == step:
        return float(scores[right])
    if right == 0 or steps[right] - steps[right - 1] > FARTHEST:
        return None
    return float(np.interp(step, steps, scores))


def scores_at(curves: Sequence[Curve], step: float) -> Array:
    """Read all curves off that reach so far: -> [R]."""
    scores = [score_at(curve, step) for curve in curves]
    return np.array([score for score in scores if score is not None])


def aggregate(scores: Sequence[Array], samples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Compute the interquartile mean over all runs of all tasks, and its interval: scores, [R] of each task.

    A sample draws each task's runs anew from that task's own, so that no task is ever missing.
    """
    generator = np.random.default_rng(seed)
    drawn = [task[generator.integers(len(task), size=(samples, len(task)))] for task in scores]  # each [samples, R]
    low, high = np.percentile(interquartile_mean(np.concatenate(drawn, axis=1).T), [2.5, 97.5])
    return float(interquartile_mean(np.concatenate(scores))), float(low), float(high)


def table(results: Sequence[Result], name: str, references: Mapping[str, Method]) -> str:
    """Write the report's markdown: aggregates of the methods that have all tasks, then each task."""
    methods = {name: as_method(results), **references}
    last = max(result.curve[0][-1] for result in results)
    steps = [step for step in STEPS if step <= last] or [int(last)]
    heads = [f"at {step:,}" for step in steps]
    tasks = list(methods[name])
    of_dmc = [task for task in tasks if largest_score(task) > 1]
    groups = {"all tasks": tasks} | ({"dmc": of_dmc} if 0 < len(of_dmc) < len(tasks) else {})
    aggregates = [
        [f"{group} ({len(of_group)})", method, *(_aggregate_cell(curves, of_group, step) for step in steps)]
        for group, of_group in groups.items()
        for method, curves in methods.items()
    ]
    rows = []
    for task in tasks:
        own = [result for result in results if result.task == task]
        minutes = np.mean([result.seconds / 60 for result in own])
        speed = np.mean([result.decisions_per_second for result in own])
        for method, curves in methods.items():
            if task in curves:
                cells = [_score_cell(scores_at(curves[task], step), task) for step in steps]
                if {*cells} == {"-"}:
                    continue
                cost = [f"{minutes:.1f}", f"{speed:.0f}"] if method == name else ["", ""]
                rows.append([task, method, str(len(curves[task])), *cells, *cost])
    made = sorted({f"{result.commit} on {result.cpu}" for result in results})
    return (
        "Interquartile mean of the normalised score, over all runs:\n\n"
        + _markdown(["tasks", "method", *heads], [row for row in aggregates if {*row[2:]} != {"-"}])
        + "\nMean score of each task: return of dmc, success of metaworld:\n\n"
        + _markdown(["task", "method", "runs", *heads, "minutes", "decisions/s"], rows)
        + f"\nMade by {'; '.join(made)}. Minutes and decisions/s are a run's mean, learning included.\n"
    )


def _aggregate_cell(curves: Method, tasks: Sequence[str], step: float) -> str:
    scores = [scores_at(curves.get(task, ()), step) / largest_score(task) for task in tasks]
    if any(len(task) == 0 for task in scores):
        return "-"
    mean, low, high = aggregate(scores)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _score_cell(scores: Array, task: str) -> str:
    if len(scores) == 0:
        return "-"
    form = ".2f" if largest_score(task) == 1 else ".0f"
    mean, low, high = mean_interval(scores)
    return f"{mean:{form}}" + (f" ({low:{form}} to {high:{form}})" if len(scores) > 1 else "")


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def picture(results: Sequence[Result], name: str, references: Mapping[str, Method], out: Path) -> None:
    """Draw a panel for each task: every method's mean and interval over its seeds."""
    methods = {name: as_method(results), **references}
    tasks, last = list(methods[name]), max(result.curve[0][-1] for result in results)
    columns = 3 if len(tasks) > 4 else 2
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(4.0 * columns, 2.7 * rows + 0.7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = {}
    for axes, task in zip(panels, tasks, strict=False):
        for (method, curves), colour in zip(methods.items(), cycle(COLOURS)):
            if task in curves:
                grid, values = align(curves[task])
                ours = method == name
                style: dict[str, Any] = (
                    {"linewidth": 2.2, "zorder": 3} if ours else {"linewidth": 1.0, "linestyle": "--"}
                )
                low, high = bootstrap_interval(values)
                if np.diff(grid).max(initial=0) > FARTHEST:  # what lies between is not known
                    style["linestyle"] = "none"
                    axes.vlines(grid, low, high, color=colour, linewidth=1.0)
                else:
                    axes.fill_between(grid, low, high, color=colour, alpha=0.25 if ours else 0.1, linewidth=0)
                shown[method] = axes.plot(grid, values.mean(axis=0), marker=".", color=colour, **style)[0]
        axes.set_title(task, fontsize="medium")
        axes.set_xlim(0, 1.02 * last)
        axes.set_ylim(-0.03 * largest_score(task), 1.03 * largest_score(task))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(tasks) :]:
        axes.set_visible(False)
    figure.supxlabel("environment steps", fontsize="medium")
    figure.supylabel("return (dmc), success (metaworld)", fontsize="medium")
    names = [method for method in methods if method in shown]
    figure.legend([shown[method] for method in names], names, loc="outside upper center", ncols=columns, frameon=False)
    figure.savefig(out, format="png")


def compare(first: Sequence[Result], second: Sequence[Result], names: Sequence[str]) -> str:
    """Say by how much the second variant's mean along the curve is above the first's, run by run. ConfigError.

    Runs of one task and seed make a pair; what counts of each are its evaluations at the steps that both have.
    """
    a, b = ({(r.task, r.seed): r.curve for r in results} for results in (first, second))
    pairs = {pair: means for pair in a if pair in b and (means := _along(a[pair], b[pair], pair[0]))}
    if not pairs:
        raise ConfigError(f"--compare {' '.join(names)}: no task and seed has evaluations at the same steps in both")
    rows = [[task, str(seed), f"{x:.3f}", f"{y:.3f}", f"{y - x:+.3f}"] for (task, seed), (x, y) in pairs.items()]
    mean, low, high = mean_interval([y - x for x, y in pairs.values()])
    verdict = "rises" if low > 0 else "falls" if high < 0 else "neither rises nor falls"
    return (
        _markdown(["task", "seed", *names, "difference"], rows)
        + f"\n{names[1]} to {names[0]}, normalised mean along the curve of {len(pairs)} pairs of runs: "
        f"{mean:+.3f} ({low:+.3f} to {high:+.3f}): {verdict}"
    )


def _along(a: Curve, b: Curve, task: str) -> tuple[float, float] | None:
    """Compute both normalised means over the steps that both have; None if there are none."""
    shared = np.intersect1d(a[0], b[0])
    if len(shared) == 0:
        return None
    x, y = (float(scores[np.isin(steps, shared)].mean()) / largest_score(task) for steps, scores in (a, b))
    return x, y

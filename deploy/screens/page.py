"""One page of runs that needs nothing else: curves to zoom into, settings that differ, videos, machines.

The groups, intervals and published curves are those of `plot`; plotly draws them, its program is in the page once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from qttdm.common.config import ConfigError
from qttdm.common.extras import need
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import load_run_config, preset_path
from qttdm.deploy.screens.plot import (
    COLOURS,
    LABELS,
    PUBLISHED,
    Run,
    align,
    bootstrap_interval,
    dotted,
    group_runs,
    read_references,
    read_run,
)
from qttdm.deploy.screens.rows import short_time

LARGEST_VIDEO = 20_000_000  # bytes; a larger one is only named
STYLE = (
    "body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse}td,th{border-bottom:1px solid #ddd;padding:.3em .8em;text-align:left}"
)


def write_page(run_dirs: Sequence[Path], out: Path) -> None:
    """Write the runs' page to `out`. ConfigError: no runs, what `plot_runs` refuses, no plotly, `out` not writable."""
    if not run_dirs:
        raise ConfigError("report: no run directories given; want qttdm report RUN ..")
    need("report", "qttdm report")
    from plotly.offline import get_plotlyjs

    runs = [read_run(path) for path in run_dirs]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>QT-TDM: {len(runs)} runs</title>',
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script><h1>QT-TDM: {len(runs)} runs</h1>",
        *(_curves(task, [run for run in runs if run.task == task]) for task in sorted({run.task for run in runs})),
        "<h2>Runs</h2>" + _table(*_overview(runs)),
        "<h2>Settings that differ between the runs, or from the nearest preset</h2>" + _table(*_settings(runs)),
        *(_video(run) for run in runs),
    ]
    try:
        out.write_text("\n".join(parts), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out}: cannot write the report ({error.strerror})") from None


def _curves(task: str, runs: Sequence[Run]) -> str:
    """Draw a task's groups, each with its interval, and published curves as far as the runs go."""
    from plotly.graph_objects import Figure, Scatter

    known = all(line.get("success") is not None for run in runs for line in run.evaluations)
    metric, figure = "success" if known else "episode_return", Figure()
    for number, (label, members) in enumerate(group_runs(runs).items()):
        curves, colour = [run.curve(metric) for run in members], COLOURS[number % len(COLOURS)]
        try:
            grid, values = align(curves)
        except (ValueError, IndexError) as error:
            raise ConfigError(f"report: {task} ({label}): {error}") from None
        if len(values) > 1:
            low, high = bootstrap_interval(values)
            band: dict[str, Any] = {"x": [*grid, *grid[::-1]], "y": [*high, *low[::-1]], "hoverinfo": "skip"}
            look: dict[str, Any] = {"fill": "toself", "fillcolor": colour, "opacity": 0.2, "line": {"width": 0}}
            figure.add_trace(Scatter(**band, **look, mode="lines", legendgroup=label, showlegend=False))
        name = f"{label} ({len(values)} run{'s' * (len(values) > 1)})"
        line = {"color": colour}
        figure.add_trace(Scatter(x=list(grid), y=list(values.mean(axis=0)), name=name, legendgroup=label, line=line))
    last = max(run.curve(metric)[0][-1] for run in runs)
    for source, (steps, scores) in read_references(PUBLISHED, task, metric).items():
        shown = steps <= last
        if shown.sum() < 2:  # nothing to compare with yet
            continue
        dash = {"dash": "dash", "width": 1}
        figure.add_trace(Scatter(x=list(steps[shown]), y=list(scores[shown]), name=source, line=dash))
    axes = {"xaxis_title": "environment steps", "yaxis_title": LABELS[metric]}
    figure.update_layout(
        **axes, template="plotly_white", height=480, showlegend=True, legend={"orientation": "h", "y": -0.2}
    )
    # That button would send the data to plotly's site, the logo is a link to it.
    config = {"displaylogo": False, "modeBarButtonsToRemove": ["sendChartToCloud"]}
    chart = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return f"<h2>{escape(task)}</h2>{chart}<p>Mean over seeds and its 95% bootstrap interval; dashed: published.</p>"


def _overview(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Make the table of what each run came to, in which time and on which machine."""
    rows = []
    for run in runs:
        last, path = run.evaluations[-1], RunDir(run.path).machine_path
        try:
            made = "; ".join(f"{name} {value}" for name, value in json.loads(path.read_text()).items())
        except (OSError, ValueError, AttributeError):
            made = "not recorded"
        success = "-" if last.get("success") is None else f"{last['success']:.0%}"
        score = [f"{last['env_steps']:,}", f"{last['episode_return']:.1f}", success]
        rows.append([str(run.path), run.task, str(run.seed), *score, short_time(last.get("wall_seconds")), made])
    return ["run", "task", "seed", "steps", "return", "success", "time", "started on"], rows


def _settings(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Make the table of settings in which the runs differ from each other or from the preset that is nearest to all.

    A run does not keep the name of its preset.
    """
    name, preset = _nearest_preset(runs)
    rows = []
    for key in sorted({key for run in runs for key in run.settings} - {"task", "on"}):
        values = [run.settings.get(key, "-") for run in runs]
        if len({*values, preset.get(key, "-")}) > 1:
            rows.append([key, preset.get(key, "-"), *values])
    return ["setting", name, *(run.path.name for run in runs)], rows


def _nearest_preset(runs: Sequence[Run]) -> tuple[str, dict[str, str]]:
    """Find the preset with the fewest settings that are other than the runs'; its name and settings for the first."""
    first, found = runs[0], []
    for path in sorted(preset_path("laptop").parent.glob("*.yaml")):
        try:
            config = load_run_config(path, task=first.task, agent=first.settings.get("agent"))
        except ConfigError:  # it has no settings for that agent, or the agent is not here
            continue
        settings = dotted(config.model_dump(mode="json", by_alias=True))
        differing = sum(settings.get(key) != value for run in runs for key, value in run.settings.items())
        found.append((differing, f"preset {path.stem}", settings))
    return min(found)[1:] if found else ("default", {})


def _video(run: Run) -> str:
    """Embed a run's video, if it has one."""
    path = RunDir(run.path).video_path
    if not path.is_file():
        return ""
    head = f"<h2>Video of {escape(str(run.path))}</h2>"
    if path.stat().st_size > LARGEST_VIDEO:
        return f"{head}<p>{escape(str(path))} is too large to be in this page.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'{head}<video controls loop muted src="data:video/mp4;base64,{data}"></video>'


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return (
        f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in heads)}"
        + "".join(f"<tr>{x}" for x in lines)
        + "</table>"
    )

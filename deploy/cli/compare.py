"""`qttdm compare-models`: hold several runs' dynamics models against the same logged episodes, and plan in each."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from qttdm.common.config import ConfigError
from qttdm.deploy.cli.options import Count, Positive


def compare_models(
    *runs: Path,
    dataset: str,
    task: str | None = None,
    starts: Count = 100,
    steps: Count = 50,
    episodes: Count | None = None,
    samples: Count = 128,
    horizon: Count = 10,
    noise: Literal["white", "brownian"] = "white",
    std: Positive = 0.5,
    out: Path = Path("models"),
) -> None:
    """Compare what dynamics models foresee, and optionally how well one planner does in each: docs/agents.md.

    Args:
        runs: directories of runs, of one task, whose agents have a dynamics model
        dataset: a Minari data set, by id or folder, of episodes that none of them has learned from
        task: instead of the runs' own; for models of many tasks
        starts: places in its episodes from which each model is told nothing but the actions
        steps: that it imagines from there
        episodes: act in so many as well, by random shooting in each model, and in the simulator where it can
        samples: of the random shooting, action sequences
        horizon: decisions that it looks ahead
        noise: how it draws sequences
        std: of that noise, as std of an agent's planner
        out: OUT.md is the table, OUT.png the picture
    """
    from qttdm.deploy.suite.compare_models import compare, draw, table
    from qttdm.planner_service.planners.random_shooting import RandomShootingConfig
    from qttdm.replay.datasets import open_dataset

    if not runs:
        raise ConfigError("compare-models: name runs whose agents have a dynamics model")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}; make it, or choose another --out")
    planner = RandomShootingConfig(samples=samples, horizon=horizon, noise=noise, std=std)
    judged = compare(runs, open_dataset(dataset), starts, steps, episodes or 0, planner, task)
    page, picture = (out.with_name(f"{out.name}.{suffix}") for suffix in ("md", "png"))
    page.write_text(text := table(judged), encoding="utf-8")
    draw(judged, picture)
    print(f"{text}table: {page}; picture: {picture}")

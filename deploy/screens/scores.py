"""Atari 100k, by what a human scores: mean, median, interquartile mean and optimality gap (Agarwal et al., 2021).

A score counts as (score - random) / (human - random); both are in atari100k.csv (Mnih et al., 2015, as Kaiser et al.,
2020, use them). Mean and median are over games, of each the mean over seeds; the interquartile mean and the gap to 1
are over all runs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np

from qttdm.common.config import ConfigError
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import load_saved_config

Scores = Mapping[str, Sequence[float]]
"""of each game, one of each seed"""


def references() -> dict[str, tuple[float, float]]:
    """Read what random actions and a human score in each game."""
    text = files("qttdm.deploy.screens").joinpath("atari100k.csv").read_text(encoding="utf-8")
    return {row["game"]: (float(row["random"]), float(row["human"])) for row in csv.DictReader(text.splitlines())}


def normalised(scores: Scores) -> dict[str, np.ndarray]:
    """Normalise scores by game. ConfigError for a game that is not in the benchmark, or has no score."""
    known, found = references(), {}
    for game, values in scores.items():
        if game not in known or len(values) == 0:
            what = "no score" if game in known else "no game of Atari 100k"
            raise ConfigError(f"{game}: {what}; want scores of {', '.join(known)}")
        random, human = known[game]
        found[game] = (np.asarray(values, float) - random) / (human - random)
    return found


def summary(scores: Scores) -> dict[str, float]:
    """Return mean, median, IQM and optimality gap."""
    by_game = normalised(scores)
    means = np.array([values.mean() for values in by_game.values()])
    runs = np.sort(np.concatenate(list(by_game.values())))
    cut = len(runs) // 4  # whole runs, as Agarwal et al.'s own code does
    return {
        "mean": float(means.mean()),
        "median": float(np.median(means)),
        "IQM": float(runs[cut : len(runs) - cut].mean()),
        "optimality gap": float(np.maximum(0.0, 1.0 - runs).mean()),
    }


def read_scores(paths: Sequence[Path]) -> dict[str, list[float]]:
    """Read JSON files {"Pong": [score of each seed, ..], ..}, and runs, whose newest evaluation counts. ConfigError."""
    found: dict[str, list[float]] = {}
    for path in paths:
        for game, values in (_of_run(path) if path.is_dir() else _of_file(path)).items():
            found.setdefault(game, []).extend(values)
    return found


def table(scores: Scores) -> str:
    """Write games and summary as lines."""
    lines = [
        f"{game:16} {np.mean(scores[game]):12,.1f} {values.mean():8.3f}  {len(values)} runs"
        for game, values in normalised(scores).items()
    ]
    left = len(references()) - len(scores)
    rest = f"; {left} of the benchmark's games are missing" if left else ""
    of_all = ", ".join(f"{name} {value:.3f}" for name, value in summary(scores).items())
    return "\n".join([*lines, f"{of_all}{rest}"])


def _of_run(path: Path) -> dict[str, list[float]]:
    run = RunDir.open(path)
    task = load_saved_config(run.config_path).task
    if not task.startswith("atari/"):
        raise ConfigError(f"{path}: a run of {task}; want runs of atari/ tasks")
    returns = [line["episode_return"] for line in read_metrics(run.metrics_path) if line["kind"] == "eval"]
    if not returns:
        raise ConfigError(f"{path}: there is no evaluation in it yet")
    return {task.removeprefix("atari/"): [returns[-1]]}


def _of_file(path: Path) -> dict[str, list[float]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(game): [float(value) for value in values] for game, values in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f'{path}: cannot be read ({reason}); want a run, or JSON as {{"Pong": [18.5, 20]}}') from None

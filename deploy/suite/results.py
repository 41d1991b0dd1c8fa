"""What a finished run leaves for the report: its evaluations as a small CSV, with who made them.

    # {"settings": "3fa29b7c01de", "commit": "117327b", "decisions_per_second": 85.4, "cpu": "AMD EPYC 7763"}
    env_steps,return,success,wall_seconds
    5000,312.41,,24.1

A variant is a folder of these, one for each task and seed; published curves are read into the same shape.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from qttdm.common.config import ConfigError
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.screens.plot import Curve

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_SETTINGS = {"seed", "device", "threads", "cluster", "sinks"}  # where a run was made and reported to, not what it is
COLUMNS = ("env_steps", "return", "success", "wall_seconds")

Method = Mapping[str, Sequence[Curve]]
"""task -> score by environment steps of each seed: return of dmc/ tasks, success of metaworld/ ones"""


@dataclass(frozen=True)
class Result:
    """One finished run."""

    task: str
    seed: int
    settings: str
    """hash of what it was configured to do"""
    commit: str
    cpu: str
    decisions_per_second: float
    """of the whole run: learning and evaluating included"""
    rows: Sequence[Sequence[float | None]]
    """COLUMNS of each evaluation"""

    @property
    def curve(self) -> Curve:
        """Return the score by environment steps."""
        rows = np.array(self.rows, float)  # None becomes nan
        return rows[:, 0], rows[:, 1 if largest_score(self.task) > 1 else 2]

    @property
    def seconds(self) -> float:
        return float(np.array(self.rows, float)[-1, 3])

    def write(self, path: Path) -> None:
        """Write the CSV, whole or not at all."""
        about = {key: getattr(self, key) for key in ("settings", "commit", "decisions_per_second", "cpu")}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            file.write(f"# {json.dumps(about)}\n")
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *self.rows])
        unfinished.replace(path)


def largest_score(task: str) -> float:
    """Return what a task's scores are divided by to normalise them."""
    return 1.0 if task.startswith("metaworld/") else 1000.0


def file_stem(task: str, seed: int) -> str:
    """Name a run's files: dmc/walker-walk and 0 -> dmc-walker-walk-seed0."""
    return f"{task.replace('/', '-')}-seed{seed}"


def settings_hash(config: RunConfig) -> str:
    """Hash the resolved settings; runs with equal hashes differ in the seed at most, and in what was compiled.

    Those at their defaults are left out: a setting that is new to the program leaves older results as they are.
    """
    settings = config.model_dump(mode="json", by_alias=True, exclude=NOT_SETTINGS, exclude_defaults=True)
    return hashlib.sha256(json.dumps(_without_compile(settings), sort_keys=True).encode()).hexdigest()[:12]


def _without_compile(settings: Any) -> Any:
    """Drop every `compile`: it changes how fast the same numbers are computed, up to rounding."""
    if not isinstance(settings, dict):
        return settings
    return {key: _without_compile(value) for key, value in settings.items() if key != "compile"}


def commit() -> str:
    """Name the program's commit, with -dirty if files of code or settings differ from it; or say `unknown`."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.yaml")
        return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def result_of(run_dir: RunDir, config: RunConfig, made_by: str) -> Result | None:
    """Read the run's result off its metrics; None if it is not finished. made_by: the commit."""
    lines = read_metrics(run_dir.metrics_path) if run_dir.metrics_path.exists() else []
    evaluations = [line for line in lines if line["kind"] == "eval"]
    if not evaluations or evaluations[-1]["env_steps"] < config.training.env_steps:
        return None
    last, about = evaluations[-1], Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.*)", about.read_text() if about.exists() else "")
    return Result(
        task=config.task,
        seed=config.seed,
        settings=settings_hash(config),
        commit=made_by,
        cpu=cpu[1] if cpu else "unknown",
        decisions_per_second=round(last["decisions"] / last["wall_seconds"], 1),
        rows=[
            (line["env_steps"], round(line["episode_return"], 3), line["success"], round(line["wall_seconds"], 1))
            for line in evaluations
        ],
    )


def read_result(path: Path) -> Result:
    """Undo `write`. ConfigError if the file is not what it writes."""
    name = re.fullmatch(r"(dmc|metaworld)-(.+)-seed(\d+)", path.stem)
    try:
        if name is None:
            raise ValueError(f"want a name such as {file_stem('dmc/walker-walk', 0)}.csv")
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [[float(row[key]) if row[key] else None for key in COLUMNS] for row in csv.DictReader(lines)]
        result = Result(f"{name[1]}/{name[2]}", int(name[3]), rows=rows, **json.loads(first.removeprefix("# ")))
        if not rows or np.isnan(result.curve).any():
            raise ValueError("scores are missing")
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a result as qttdm suite writes it ({error!r})") from None


def read_variant(folder: Path) -> list[Result]:
    """Read a variant's results by task and seed. ConfigError if there is none, or runs of a task differ in settings."""
    results = sorted(map(read_result, folder.glob("*.csv")), key=lambda result: (result.task, result.seed))
    if not results:
        others = sorted({path.parent.name for path in folder.parent.glob("*/*-seed*.csv")})
        raise ConfigError(f"{folder}: no results in it; want one of {', '.join(others) or 'none yet'}")
    for a, b in pairwise(results):
        if a.task == b.task and a.settings != b.settings:
            raise ConfigError(
                f"{folder}: {a.task} seed {a.seed} has the settings {a.settings}, seed {b.seed} has {b.settings}; "
                f"move one of them to another variant's folder"
            )
    return results


def as_method(results: Sequence[Result]) -> Method:
    """Order results as published curves are."""
    tasks = dict.fromkeys(result.task for result in results)
    return {task: [result.curve for result in results if result.task == task] for task in tasks}


def read_references(path: Path, tasks: Iterable[str]) -> dict[str, Method]:
    """Read published curves of these tasks, by source. The file says mw-reach for metaworld/reach. ConfigError."""
    names = {task.replace("metaworld/", "mw-").removeprefix("dmc/"): task for task in tasks}
    points: dict[tuple[str, str, str], dict[float, float]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if task := names.get(row["task"]):
                    curve = points.setdefault((row["source"], task, row["seed"]), {})
                    curve[float(row["step"])] = float(row["reward_or_success"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: want a csv of source, task, step, reward_or_success, seed ({error!r})") from None
    methods: dict[str, dict[str, list[Curve]]] = {}
    for (source, task, _), curve in points.items():
        steps, scores = np.array(sorted(curve.items())).T
        methods.setdefault(source, {}).setdefault(task, []).append((steps, scores))
    return {**methods}

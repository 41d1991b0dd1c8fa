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
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from qttdm.common.config import ConfigError
from qttdm.common.metrics.lines import read_metrics
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.screens.plot import Curve

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_SETTINGS = {"seed", "device", "threads", "cluster", "sinks"}  # where a run was made and reported to, not what it is

Method = Mapping[str, Mapping[int, Curve]]
"""task -> seed -> score by environment steps: return of dmc/ tasks, success of metaworld/ ones"""


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
    rows: Sequence[tuple[float, float, float | None, float]]
    """of each evaluation: env_steps, return, success, wall_seconds"""

    @property
    def curve(self) -> Curve:
        """Return the score by environment steps."""
        column = 2 if largest_score(self.task) == 1 else 1
        return np.array([row[0] for row in self.rows], float), np.array([row[column] for row in self.rows], float)

    @property
    def minutes(self) -> float:
        return self.rows[-1][3] / 60

    def write(self, path: Path) -> None:
        """Write the CSV, whole or not at all."""
        about = {key: getattr(self, key) for key in ("settings", "commit", "decisions_per_second", "cpu")}
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with unfinished.open("w", newline="", encoding="utf-8") as file:
            file.write(f"# {json.dumps(about)}\n")
            csv.writer(file, lineterminator="\n").writerows([("env_steps", "return", "success", "wall_seconds")])
            csv.writer(file, lineterminator="\n").writerows(self.rows)
        unfinished.replace(path)


def largest_score(task: str) -> float:
    """Return what divides a task's scores to normalise them: return of dmc/ by 1000, success of metaworld/ by 1."""
    return 1.0 if task.startswith("metaworld/") else 1000.0


def file_stem(task: str, seed: int) -> str:
    """Name a run's files: dmc/walker-walk and 0 -> dmc-walker-walk-seed0."""
    return f"{task.replace('/', '-')}-seed{seed}"


def settings_hash(config: RunConfig) -> str:
    """Hash the resolved settings; of two configurations with equal hashes one run is a repetition of the other."""
    settings = config.model_dump(mode="json", by_alias=True, exclude=NOT_SETTINGS)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


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


def cpu_name() -> str:
    """Name this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def result_of(run_dir: RunDir, config: RunConfig, made_by: str) -> Result | None:
    """Read the run's result off its metrics; None if it is not finished. made_by: the commit."""
    lines = read_metrics(run_dir.metrics_path) if run_dir.metrics_path.exists() else []
    evaluations = [line for line in lines if line["kind"] == "eval"]
    if not evaluations or evaluations[-1]["env_steps"] < config.training.env_steps:
        return None
    rows = [
        (line["env_steps"], line["episode_return"], line["success"], round(line["wall_seconds"], 1))
        for line in evaluations
    ]
    last = evaluations[-1]
    speed = round(last["decisions"] / last["wall_seconds"], 1)
    return Result(config.task, config.seed, settings_hash(config), made_by, cpu_name(), speed, rows)


def read_result(path: Path, task: str, seed: int) -> Result:
    """Undo `write`. ConfigError if the file is not what it writes."""
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        rows = [
            (float(row["env_steps"]), float(row["return"]), _optional(row["success"]), float(row["wall_seconds"]))
            for row in csv.DictReader(lines)
        ]
        if not rows or (largest_score(task) == 1 and any(row[2] is None for row in rows)):
            raise ValueError("no scores in it")
        return Result(task, seed, rows=rows, **json.loads(first.removeprefix("# ")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: want a result as qttdm suite writes it ({error!r})") from None


def _optional(text: str) -> float | None:
    return float(text) if text else None


def read_variant(folder: Path) -> list[Result]:
    """Read all results of a variant. ConfigError if there is none, or if seeds of one task had different settings."""
    results: list[Result] = []
    for path in sorted(folder.glob("*.csv")):
        if not (name := re.fullmatch(r"(dmc|metaworld)-(.+)-seed(\d+)", path.stem)):
            raise ConfigError(
                f"{path}: want only results in this folder, such as {file_stem('dmc/walker-walk', 0)}.csv"
            )
        results.append(read_result(path, f"{name[1]}/{name[2]}", int(name[3])))
    if not results:
        others = sorted({path.parent.name for path in folder.parent.glob("*/*-seed*.csv")})
        raise ConfigError(f"{folder}: no results in it; variants that have some: {', '.join(others) or 'none'}")
    results.sort(key=lambda result: (result.task, result.seed))
    for one, next_one in pairwise(results):
        if one.task == next_one.task and one.settings != next_one.settings:
            raise ConfigError(
                f"{folder}: {one.task} has the settings {one.settings} with seed {one.seed}, {next_one.settings} with "
                f"seed {next_one.seed}; move one of them to another variant's folder"
            )
    return results


def as_method(results: Sequence[Result]) -> Method:
    """Order results as published curves are."""
    tasks = dict.fromkeys(result.task for result in results)
    return {task: {r.seed: r.curve for r in results if r.task == task} for task in tasks}


def read_references(path: Path, tasks: Iterable[str]) -> dict[str, Method]:
    """Read published curves of these tasks, by source. The file calls metaworld/reach mw-reach. ConfigError."""
    names = {
        task.partition("/")[2] if largest_score(task) > 1 else f"mw-{task.partition('/')[2]}": task for task in tasks
    }
    points: dict[str, dict[str, dict[str, dict[float, float]]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if task := names.get(row["task"]):
                    seeds = points.setdefault(row["source"], {}).setdefault(task, {})
                    seeds.setdefault(row["seed"], {})[float(row["step"])] = float(row["reward_or_success"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: want a csv of source, task, step, reward_or_success, seed ({error!r})") from None
    return {
        source: {
            task: {
                number: (np.array(sorted(curve)), np.array([curve[step] for step in sorted(curve)]))
                for number, curve in enumerate(seeds.values())
            }
            for task, seeds in of_source.items()
        }
        for source, of_source in points.items()
    }

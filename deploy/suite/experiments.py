"""What suites of experiments share: runs and data sets that are made once, tables, and the command that runs them."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qttdm.common.config import ConfigError
from qttdm.common.run_dir import RunDir
from qttdm.deploy.api import train
from qttdm.deploy.runs.local import resume_run
from qttdm.deploy.runs.training import train_in
from qttdm.deploy.screens.plot import mean_interval

CART = "dmc/cartpole-swingup"
REPEAT = {"env.action_repeat": 8}
RUN = Path("runs/offline-suite/cartpole")
"""the agent whose episodes are logged; data sets are beside it"""
Row = Sequence[object]
Experiment = Callable[[Sequence[int]], list[Row]]
"""makes a table, its head first, of so many seeds"""


def cartpole(kind: str, episodes: int, seed: int | None = None) -> str:
    """Return the data set of that kind, collected from `cartpole_run` if it is missing.

    seed: others than the run's are other episodes.
    """
    name = f"cart/{kind}-{episodes}-v0" if seed is None else f"cart/{kind}-{episodes}-seed{seed}-v0"
    if not (data_root() / name).exists():
        other = [] if seed is None else ["--set", f"seed={seed}"]
        wanted = ["--kind", kind, "--episodes", f"{episodes}", "--references", "10", "--out", name]
        command("collect", "--run", f"{cartpole_run()}", *wanted, *other)
    return name


def cartpole_run() -> Path:
    """Return the run whose agent is logged, which keeps its checkpoints; trained if it is missing."""
    if not RUN.exists():
        keep = "training.eval_every=4000 training.checkpoint_every=4000 training.keep_checkpoints=50"
        settings = [word for item in [*keep.split(), "env.action_repeat=8"] for word in ("--set", item)]
        command("train", "--task", CART, "--seed", "3", "--env-steps", "60_000", "--run-dir", f"{RUN}", *settings)
    return RUN


def command(*words: str) -> None:
    """Run `qttdm` with these words. ConfigError if it fails."""
    program = [sys.executable, "-c", "from qttdm.deploy.cli.main import main; main()", *words]
    if subprocess.run(program, check=False).returncode != 0:
        raise ConfigError(f"qttdm {' '.join(words)} failed; its own words are above")


def data_root() -> Path:
    """Return where data sets are kept: with the runs, unless the user says otherwise."""
    return Path(os.environ.setdefault("MINARI_DATASETS_PATH", str((RUN.parent / "data").absolute())))


def trained(
    path: Path, task: str, seed: int, dataset: str | None = None, preset: str = "tt-laptop", /, **settings: Any
) -> Path:
    """Return a run that learns from a data set alone, or of its own, trained to its end if it is not yet."""
    if path.exists():
        directory = RunDir.open(path)
        train_in(directory, partial(resume_run, directory))
        return path
    offline: dict[str, Any] = {}
    if dataset is not None:
        offline = {"training.dataset": dataset, "training.env_steps": 0, "training.eval_episodes": 0}
    return train(task, preset, seed=seed, run_dir=path, **{**offline, **settings})


def head(seeds: Sequence[int]) -> list[str]:
    """Name the columns of a table over seeds."""
    return [*(f"seed {seed}" for seed in seeds), "all"]


def mean(numbers: Iterable[float], unit: str = ".0f") -> str:
    """Write the mean and its interval; unit: as of a format."""
    middle, low, high = mean_interval([*numbers])
    to = "-" if low >= 0 else " to "
    return f"{middle:{unit}} ({low:{unit}}{to}{high:{unit}})"


share = partial(mean, unit=".0%")


def run_suite(
    folder: Path,
    description: str,
    experiments: Mapping[str, Experiment],
    arguments: Sequence[str] | None,
    seeds: tuple[Sequence[int], str],
) -> int:
    """Run the experiments that a command line names, or all; tables go to FOLDER/NAME.md. Returns the exit status.

    seeds: which are used if none are named, and what help says of them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(experiments)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds[0], help=seeds[1])
    options = parser.parse_args(arguments)
    names = options.names or [*experiments]
    try:
        if unknown := [name for name in names if name not in experiments]:
            raise ConfigError(f"there is no experiment {unknown[0]!r}; want one of {', '.join(experiments)}")
        for name in names:
            first, *rows = experiments[name](options.seeds)
            lines = ["| " + " | ".join(map(str, row)) + " |" for row in (first, ["---"] * len(first), *rows)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"\n{name}", *lines, "", sep="\n")
    except ConfigError as error:
        print(f"{folder.name}: {error}", file=sys.stderr)
        return 2
    return 0

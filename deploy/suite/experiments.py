"""What suites of experiments share: a command that runs those named, and runs that are not made twice."""

from __future__ import annotations

import argparse
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

Row = Sequence[object]


def arguments_of(about: str | None, names: Iterable[str], seeds: Sequence[int], which: str) -> argparse.ArgumentParser:
    """Make the options that every suite has; seeds: the default, and in `which` who uses fewer."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}; default: all")
    default = " ".join(map(str, seeds))
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds, help=f"default: {default}; {which}")
    return parser


def run_experiments(suite: str, experiments: Mapping[str, Callable[[], Sequence[Row]]], names: Sequence[str]) -> int:
    """Run those named, or all, print their tables, and keep them in runs/SUITE/NAME.md; returns the exit status.

    The first row of an experiment is its table's head.
    """
    folder = Path("runs") / suite
    try:
        if unknown := [name for name in names if name not in experiments]:
            raise ConfigError(f"there is no experiment {unknown[0]!r}; want one of {', '.join(experiments)}")
        for name in names or [*experiments]:
            first, *rows = experiments[name]()
            lines = ["| " + " | ".join(map(str, row)) + " |" for row in (first, ["---"] * len(first), *rows)]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
            print(f"\n{name}", *lines, "", sep="\n", flush=True)
    except ConfigError as error:
        print(f"{suite}: {error}", file=sys.stderr)
        return 2
    return 0


def trained(path: Path, task: str, preset: str, seed: int, **settings: Any) -> Path:
    """Return that run, trained to its end if it is not yet. settings: as qttdm.train's."""
    if not path.exists():
        return train(task, preset, seed=seed, run_dir=path, **settings)
    directory = RunDir.open(path)
    train_in(directory, partial(resume_run, directory))
    return path


def mean(numbers: Iterable[float], unit: str = ".0f") -> str:
    """Write the mean and its interval; unit: as of a format."""
    middle, low, high = mean_interval([*numbers])
    to = " to " if low < 0 else "-"
    return f"{middle:{unit}} ({low:{unit}}{to}{high:{unit}})"

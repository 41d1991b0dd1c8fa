"""One whole training on this machine: checked, shown, stopped, plotted. `qttdm train` and `qttdm.train` are this."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from qttdm.common.checkpoint import CheckpointError
from qttdm.common.disk import DiskError
from qttdm.common.metrics.sinks import check_sinks
from qttdm.common.metrics.watchdog import announced, stacks_path
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig, check_fits
from qttdm.deploy.runs.build import choose_device
from qttdm.deploy.runs.local import PROCESSES, LocalRun
from qttdm.deploy.runs.offline import logged_task, with_dataset
from qttdm.deploy.runs.probe import make_probed, probe
from qttdm.deploy.runs.stopping import stopping
from qttdm.deploy.screens.plot import plot_runs
from qttdm.deploy.screens.progress import Progress

PROBED = 10
"""random decisions before anything is written"""


def make_directory(config: RunConfig, path: Path | None = None) -> tuple[RunConfig, RunDir]:
    """Check that the run can be made and its environment steps, then make its directory: `path`, or runs/<task>-<time>.

    Returns the settings too, with those that follow from the run's data set, if it has one. ConfigError, before
    anything is written.
    """
    choose_device(config.device)
    check_sinks(config.sinks)
    if logged := logged_task(config):
        check_fits(config, logged)
        config = with_dataset(config, logged)
    else:
        with closing(make_probed(config.task, config.env, config.cluster.hang_seconds)) as env:
            check_fits(config, env.task_spec)
            config = with_dataset(config, env.task_spec)
            probe(env, PROBED, config.cluster.hang_seconds)
    return config, RunDir.create(path) if path else RunDir.create_for(config.task)


def train_in(
    directory: RunDir, start: Callable[[], LocalRun], max_minutes: float | None = None, resumable: bool = True
) -> None:
    """Train the run that `start` makes or opens, until its end, Ctrl-C or so many minutes; draw its curve.

    resumable: another process can make its environment.
    """
    began = time.monotonic()
    go_on = f"go on with: qttdm train --resume {directory.path}"
    if not resumable:
        go_on = "it cannot be resumed, since its environment is in no module that another process could import"
    announcing = announced(
        [stacks_path(directory.path, who) for who in PROCESSES], f"{go_on} (or allow more time: cluster.hang_seconds)"
    )
    with directory.lock(), stopping() as stopped, announcing, closing(start()) as local:
        c = local.config
        print(f"{c.agent} on {c.task}, seed {c.seed}, {local.device}: {directory.path}")
        with Progress(
            c.training.steps, max_minutes, seed=c.seed, offline_updates=c.training.offline_updates
        ) as progress:
            try:
                local.train(progress, stopped, lambda: time.monotonic() - began > 60 * (max_minutes or float("inf")))
                if not stopped():
                    local.finish(progress, stopped)
            except (CheckpointError, DiskError) as error:
                raise type(error)(f"{error}; when that is mended, {go_on}") from error
        if stopped():
            print(f"saved; {go_on}")
        else:
            if not local.loop.finished:  # the time was up
                print(f"{c.training.steps:,} steps were wanted; {go_on}")
            if c.training.eval_episodes > 0:
                print(plot_runs([directory.path], directory.curve_path))
                print(f"curve: {directory.curve_path}")

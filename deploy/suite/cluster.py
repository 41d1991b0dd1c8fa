"""A run of the suite as one task of the Ray cluster, which looks like a process of this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import ray
from ray.exceptions import RayError

from qttdm.deploy.suite.runs import LOOK_SECONDS, start_here


class ClusterProcess:
    """As `Process`: it waits for a CPU of the cluster, and its folder is one that all nodes share."""

    def __init__(self, command: list[str], log: Path) -> None:
        task = ray.remote(_run).options(num_cpus=1, max_retries=0)
        self._task = task.remote(command, log.absolute(), os.getcwd())

    def poll(self) -> int | None:
        """Return the exit status, None while it runs or waits; 1 if its node died."""
        if not ray.wait([self._task], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self._task))
        except RayError:
            return 1

    def terminate(self) -> None:
        """Interrupt the task, which asks the run to save."""
        ray.cancel(self._task)

    def kill(self) -> None:
        """End it at once; what it has started notices nothing, and goes on to its end."""
        ray.cancel(self._task, force=True)


def _run(command: list[str], log: Path, folder: str) -> int:
    """Run the command in that folder of a node."""
    os.chdir(folder)
    process = start_here(command, log)
    while True:
        try:
            return process.wait(LOOK_SECONDS)  # Ray's interrupt comes between two calls, not into one
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            process.terminate()  # a worker of Ray blocks SIGINT, and what it starts inherits that

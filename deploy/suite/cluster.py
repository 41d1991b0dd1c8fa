"""A run of the suite as one task of the Ray cluster, which looks like a process of this machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ray
from ray.exceptions import RayError

from qttdm.deploy.suite.runs import start_here


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

    def send_signal(self, number: int) -> None:
        """Interrupt the task, which passes it on."""
        ray.cancel(self._task)

    def kill(self) -> None:
        """End it at once; what it has started notices nothing, and goes on to its end."""
        ray.cancel(self._task, force=True)


def _run(command: list[str], log: Path, folder: str) -> int:
    """Run the command in that folder of a node; an interrupt asks it to save."""
    os.chdir(folder)
    process = start_here(command, log)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)

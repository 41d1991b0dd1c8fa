"""Run what is missing of a benchmark: each run a `qttdm train` of its own, a few at a time.

    missing --start--> runs/suite/NAME/dmc-walker-walk-seed0/  (its log beside it)  --finished--> DOCS/NAME/..-seed0.csv

A stop reaches every run once, each saves a checkpoint, and the next call goes on from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from qttdm.common.config import ConfigError, dump_config, load_config
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig
from qttdm.deploy.suite.results import commit, file_stem, read_result, result_of, settings_hash

LOOK_SECONDS = 0.2  # between two looks at the runs
SAY = partial(print, flush=True)  # at once, also into a file


class Process(Protocol):
    """What has been started; subprocess.Popen is one."""

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""

    def terminate(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """End it at once."""


Start = Callable[[list[str], Path], Process]
"""starts a command whose output goes to the end of a file"""


class SuiteRun:
    """One task and seed: where its files are, and how far it is."""

    def __init__(self, config: RunConfig, runs: Path, results: Path) -> None:
        """runs, results: the variant's folders."""
        stem = file_stem(config.task, config.seed)
        self.config, self.name = config, f"{config.task} seed {config.seed}"
        self.run_dir, self.log = RunDir(runs / stem), runs / f"{stem}.log"
        self.page, self.result_path = runs / f"{stem}.yaml", results / f"{stem}.csv"
        self.commit = "unknown"

    @property
    def done(self) -> bool:
        """Is its result there? ConfigError if that, or the run under way, is of other settings."""
        wanted, done = settings_hash(self.config), self.result_path.exists()
        if done:
            where, there = self.result_path, read_result(self.result_path).settings
        elif self.run_dir.config_path.exists():
            where, there = self.run_dir.path, settings_hash(load_config(RunConfig, self.run_dir.config_path))
        else:
            return False
        if there != wanted:
            raise ConfigError(
                f"{where}: is of other settings ({there}) than those asked for ({wanted}); give these a --name of "
                f"their own, or move it away"
            )
        return done

    def start(self, start: Start) -> Process:
        """Start the run, or go on with it."""
        train = [sys.executable, "-m", "qttdm.deploy.cli.main", "train"]
        self.commit = commit()
        if self.run_dir.path.exists():
            return start([*train, "--resume", str(self.run_dir.path)], self.log)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.page.write_text(dump_config(self.config), encoding="utf-8")
        return start([*train, "--preset", str(self.page), "--run-dir", str(self.run_dir.path)], self.log)

    def keep_result(self) -> str:
        """Write the result of what has ended; returns why there is none, or nothing."""
        result = result_of(self.run_dir, self.config, self.commit)
        if result is None:
            log = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
            return (log.splitlines() or ["ended without a word"])[-1]
        result.write(self.result_path)
        return ""


def start_here(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process on this machine. A session of its own: the terminal's Ctrl-C would reach it a second time."""
    with log.open("ab") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )


def run_all(
    missing: Sequence[SuiteRun],
    start: Start,
    parallel: int,
    stopped: Callable[[], bool],
    say: Callable[[str], object] = SAY,
) -> dict[str, str]:
    """Run all, `parallel` at a time, and keep their results; returns why runs failed, by name.

    Once stopped, what is running is asked to save, and nothing else begins.
    """
    waiting, running, failed = deque(missing), dict[SuiteRun, Process](), dict[str, str]()
    asked = False
    try:
        while running or (waiting and not stopped()):
            while waiting and len(running) < parallel and not stopped():
                run = waiting.popleft()
                say(f"{run.name}: starts ({len(missing) - len(waiting)} of {len(missing)}), {run.log}")
                running[run] = run.start(start)
            if stopped() and not asked:
                asked = True
                for process in running.values():
                    process.terminate()
            for run in [run for run, process in running.items() if process.poll() is not None]:
                del running[run]
                problem = run.keep_result()
                if problem and not asked:
                    failed[run.name] = problem
                say(f"{run.name}: {'stopped' if problem and asked else problem or 'finished'}")
            time.sleep(LOOK_SECONDS)
    finally:
        for process in running.values():
            process.kill()
    return failed

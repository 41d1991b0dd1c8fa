"""Where a run keeps its files, and the lock that lets one process at a time train in it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from qttdm.common.config import ConfigError
from qttdm.common.disk import lock_file, open_lock


def named_after(task: str) -> str:
    """Return a task's name as a part of a file's: gym/my_module:Wind-v0 -> gym-my_module-Wind-v0."""
    return re.sub(r"[^\w.-]", "-", task)


class RunDir:
    """The files of one run, by name. Made by `create`, `create_for` or `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_path = path / "config.yaml"
        """the resolved configuration, as `common.config.dump_config` writes it"""
        self.machine_path = path / "machine.json"
        """the machine and versions it was started with, as `deploy.runs.machine` describes them"""
        self.task_path = path / "task.json"
        """what the run's task is like, as `deploy/runs/saved_task.py` writes it"""
        self.events_path = path / "events.log"
        """what happened, for a person (common/events.py)"""
        self.metrics_path, self.checkpoints_dir = path / "metrics.jsonl", path / "checkpoints"
        self.curve_path, self.video_path = path / "curve.png", path / "video.mp4"
        self.dream_path, self.dream_video_path = path / "dream.png", path / "dream.mp4"

    @classmethod
    def create(cls, path: Path) -> RunDir:
        """Make a new, empty run directory at exactly `path`; ConfigError when it exists or cannot be made."""
        try:
            return cls._make(path)
        except FileExistsError:
            go_on = ", or --resume it" if cls(path).config_path.is_file() else ""
            raise ConfigError(f"{path}: exists; choose another --run-dir{go_on}") from None

    @classmethod
    def create_for(cls, task: str, root: Path = Path("runs")) -> RunDir:
        """Make a new one named after task and time, such as runs/dmc-walker-walk-20260131-235959; -2, -3 if taken."""
        name = f"{named_after(task)}-{time.strftime('%Y%m%d-%H%M%S')}"
        for attempt in count(1):
            try:  # making it is also the check, so two runs that start together cannot both get one name
                return cls._make(root / (name if attempt == 1 else f"{name}-{attempt}"))
            except FileExistsError:
                continue
        raise AssertionError("unreachable")

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Open an existing run; ConfigError when `path` holds no config.yaml."""
        run = cls(path)
        if not run.config_path.is_file():
            raise ConfigError(f"{path}: not a run directory (no config.yaml in it)")
        return run

    @classmethod
    def _make(cls, path: Path) -> RunDir:
        """Make the directory; FileExistsError when it is there already, ConfigError when it cannot be made."""
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise
        except OSError as error:
            raise ConfigError(f"{path}: cannot make the run directory ({error.strerror})") from None
        return cls(path)

    @property
    def name(self) -> str:
        """Name the run in metrics: after its directory, or for a seed of a cluster's run (NAME/seed-0) that run's."""
        path = self.path.absolute()
        of_cluster = re.fullmatch(r"seed-\d+", path.name) and self.events_path.exists()
        return path.parent.name if of_cluster else path.name

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; ConfigError when another has it. The system lets go if the process dies."""
        path = self.path / "lock"
        try:
            file = open_lock(path)
            locked = lock_file(file)
        except OSError as error:
            raise ConfigError(f"{path}: cannot lock the run directory ({error.strerror})") from None
        with file:
            if not locked:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise ConfigError(
                    f"{self.path}: process {holder} is training here and holds {path}; wait for it or stop it"
                )
            file.seek(0)
            file.truncate(0)
            with suppress(OSError):  # a full disk: the lock holds, it only does not say whose it is
                os.write(file.fileno(), f"{os.getpid()}\n".encode())
            yield

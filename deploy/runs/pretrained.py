"""Trained agents that come with the package, and how a run becomes one: a run directory with what acting needs.

RUN/config.yaml, task.json                    --export_run--> DIRECTORY, about 1 MB for the laptop preset
RUN/checkpoints/NAME (networks alone of it)                   eval, serve and load take it as a run
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from qttdm.common.checkpoint import CheckpointStore, load_checkpoint
from qttdm.common.config import ConfigError
from qttdm.common.disk import write_file
from qttdm.common.run_dir import RunDir

if TYPE_CHECKING:
    from qttdm.deploy.runs.trained import TrainedAgent

PREFIX = "pretrained"


def pretrained_names() -> list[str]:
    """List what comes with the package."""
    return sorted(config.parent.name for config in _folder().glob("*/config.yaml"))


def find_run(path: Path) -> Path:
    """Find a run: `pretrained/NAME` is the package's unless there is such a folder here, all else a path.

    ConfigError for a name that the package does not have.
    """
    if len(path.parts) != 2 or path.parts[0] != PREFIX or path.exists():
        return path
    if path.parts[1] not in pretrained_names():
        raise ConfigError(f"{path}: no such trained agent; there are {', '.join(pretrained_names())}")
    return _folder() / path.parts[1]


def output_folder(run: RunDir) -> Path:
    """Return where files made of a run go: into it, or the working directory if it is one of the package's."""
    return Path() if run.path.parent == _folder() else run.path


def export_run(agent: TrainedAgent, out: Path) -> None:
    """Copy a run without its optimiser, target network and replay. ConfigError if `out` exists or cannot be made."""
    source, checkpoint = agent.run_dir, load_checkpoint(agent.loaded, blobs=False)
    target = RunDir.create(out)
    for path in (source.config_path, source.task_path):
        if path.is_file():
            write_file(target.path / path.name, path.read_bytes())
    networks = {name: t for name, t in checkpoint.tensors.items() if "/network/" in name or name == "updates"}
    CheckpointStore(target.checkpoints_dir).save(checkpoint.step, networks, {}, {})


def _folder() -> Path:
    return Path(str(files("qttdm.deploy") / PREFIX))

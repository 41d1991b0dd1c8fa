"""What a run's task is like, kept with the run: acting then needs no simulator, nor its libraries.

RUN/task.json = the TaskSpec, and the settings with which it was read off an environment
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.disk import write_file
from qttdm.common.run_dir import RunDir
from qttdm.deploy.configs.run_config import RunConfig


def save_task(run_dir: RunDir, config: RunConfig, spec: TaskSpec) -> None:
    """Write what is known of the task into the run."""
    text = json.dumps({**_settings(config), "spec": asdict(spec)}, indent=1)
    write_file(run_dir.task_path, text.encode())


def saved_task(run_dir: RunDir, config: RunConfig) -> TaskSpec | None:
    """Read it back. None where an environment has to tell: an older run, or other settings of the environment.

    ConfigError if the file is damaged.
    """
    try:
        saved = json.loads(run_dir.task_path.read_bytes())
        spec = TypeAdapter(TaskSpec).validate_python(saved.pop("spec"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, AttributeError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{run_dir.task_path}: damaged ({reason}); remove it, and the environment is asked") from None
    return spec if saved == _settings(config) else None


def _settings(config: RunConfig) -> dict[str, Any]:
    return {"task": config.task, "env": config.env.model_dump(mode="json")}

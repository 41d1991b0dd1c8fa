"""Options that several commands share, and how a command ends: one line for each mistake."""

# Without postponed annotations: they hold help texts made here, and subclasses are in other modules.

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.validators import Number

from qttdm.common.config import ConfigError, read_yaml
from qttdm.common.extras import need
from qttdm.common.run_dir import RunDir
from qttdm.deploy.agents.registry import AGENTS
from qttdm.deploy.configs.presets import PRESET_FILES

if TYPE_CHECKING:
    from qttdm.deploy.configs.run_config import RunConfig
    from qttdm.deploy.monitoring.local_exporter import LocalExporter


def whole(_: Any, tokens: Sequence[Token]) -> int:
    """Convert as a page of settings does, so that 1e5 and 100_000 are numbers; cyclopts would round 1.5."""
    try:
        number = read_yaml(tokens[0].value, "")
    except ConfigError:
        number = None
    if type(number) is not int:
        raise ValueError(f"got {tokens[0].value!r}, want a whole number")
    return number


def seed_list(text: str) -> list[int]:
    """Read seeds as `--seeds` takes them. ConfigError."""
    try:
        seeds = [read_yaml(part, "") for part in text.split(",")]
    except ConfigError:
        seeds = []
    if not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds) or len({*seeds}) < len(seeds):
        raise ConfigError(f"--seeds: got {text!r}, want different whole numbers from 0, such as 0,1,2")
    return seeds


Count = Annotated[int, Parameter(converter=whole, validator=Number(gte=1))]
Seed = Annotated[int, Parameter(converter=whole, validator=Number(gte=0))]
RunPath = Annotated[Path, Parameter(help="a run, one of its checkpoints, or pretrained/NAME")]
Positive = Annotated[float, Parameter(validator=Number(gt=0, lt=float("inf")))]
Port = Annotated[int, Parameter(converter=whole, validator=Number(gte=1, lte=65535))]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Overrides:
    """Settings laid over those of a run or a preset."""

    planner: str | None = None
    """exact (the paper's) or fast; --set wins over it"""
    set: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """KEY=VALUE, such as qt-tdm.planner.horizon=5; may be repeated"""


@dataclass(frozen=True, kw_only=True)
class Choice(Overrides):
    """Which agent on which task."""

    preset: Annotated[
        str | None, Parameter(help=f"default: laptop; one of {', '.join(PRESET_FILES)}, or a .yaml file")
    ] = None
    task: str | None = None
    """such as dmc/walker-walk; `qttdm tasks` lists them"""
    agent: Annotated[
        str | None, Parameter(help=f"default: the preset's; one of {', '.join(AGENTS)}, or module:Class")
    ] = None
    start_from: Annotated[Path | None, Parameter(name="--from")] = None
    """a run, or pretrained/NAME: its agent, with its settings and networks, is what learns on"""

    shortcuts: ClassVar[dict[str, str]] = {}
    """key of the setting that an option stands for"""

    def load(self, seed: int | None = None) -> "RunConfig":
        """Resolve the configuration. ConfigError."""
        from qttdm.deploy.configs.run_config import load_run_config, load_saved_config, preset_path
        from qttdm.deploy.runs.pretrained import find_run

        items = [*self.set]
        for name, key in self.shortcuts.items():
            value = getattr(self, name)
            if value is not None:
                if any(item.startswith(f"{key}=") for item in self.set):
                    option = name.replace("_", "-")
                    raise ConfigError(f"--{option} and --set {key} are the same setting; give one of them")
                items.append(f"{key}={value}")
        path, agent, section = preset_path(self.preset or "laptop"), self.agent, dict[str, Any]()
        if self.start_from is not None:
            run = RunDir.open(find_run(self.start_from)).path.absolute()
            start = load_saved_config(run / "config.yaml")
            if agent not in (None, start.agent):
                raise ConfigError(f"--from {self.start_from} is of agent {start.agent}; want no other --agent")
            agent, section = start.agent, {start.section: start.settings.model_dump(mode="json")}
            items.append(f"training.start_from={json.dumps(str(run))}")
        return load_run_config(path, items, self.planner, task=self.task, seed=seed, agent=agent, **section)


@dataclass(frozen=True, kw_only=True)
class Settings(Choice):
    """What a new run is made from."""

    env_steps: Count | None = None
    """simulator steps to train each seed for"""
    dataset: str | None = None
    """a Minari data set, by id or folder: its episodes are in replay from the start"""
    offline_updates: Count | None = None
    """updates on it before the first own episode"""
    shortcuts: ClassVar = {
        "env_steps": "training.env_steps",
        "dataset": "training.dataset",
        "offline_updates": "training.offline_updates",
    }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Where this process serves its metrics."""

    metrics_port: Port | None = None
    """serve metrics to Prometheus: docs/metrics.md"""
    metrics_host: str = "127.0.0.1"
    """any other address shows them to everybody who reaches the port"""

    def serve(self) -> "LocalExporter | None":
        """Serve as asked for. ConfigError if that is not possible, before anything else is done."""
        if self.metrics_port is None:
            return None
        need("monitor", "--metrics-port")
        from qttdm.deploy.monitoring.exporter import serve
        from qttdm.deploy.monitoring.local_exporter import LocalExporter

        serve(metrics := LocalExporter(), self.metrics_host, self.metrics_port)
        print(f"metrics: http://{self.metrics_host}:{self.metrics_port}/metrics")
        return metrics


class RunFailed(RuntimeError):  # noqa: N818 - the other seeds of the run went on
    """Some seeds failed: which, and why, in one line."""


def run(app: App, arguments: Sequence[str] | None) -> int:
    """Run one command; returns the exit status: 2 for a user's mistake, 1 for a run that failed, 130 if interrupted."""
    words = sys.argv[1:] if arguments is None else [*arguments]
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
        if command == app.help_print and not {"--help", "-h"} & {*words}:
            raise CycloptsError(msg="want a command", command_chain=app.parse_commands(words)[0])
        command(*bound.args, **bound.kwargs)
        return 0
    except CycloptsError as error:
        problem, chain = " ".join(str(error).rstrip(".").split()), ["qttdm", *(error.command_chain or ())]
        return _end(2, f"{problem} (see {' '.join(chain)} --help)")
    except ConfigError as error:
        return _end(2, error)
    except KeyboardInterrupt:
        return _end(130, "interrupted")
    except _failures() as error:
        return _end(1, error)


def _end(status: int, words: object) -> int:
    print(f"qttdm: {words}", file=sys.stderr)
    return status


def _failures() -> tuple[type[Exception], ...]:
    """What may end a run; imported late, so that `--help` and a mistyped option answer at once."""
    from qttdm.common.checkpoint import CheckpointError
    from qttdm.common.disk import DiskError
    from qttdm.common.environments.rendering import RenderError
    from qttdm.common.episode import EnvironmentFailure
    from qttdm.deploy.screens.video import VideoError
    from qttdm.learner.learner import NonFiniteLossError

    return NonFiniteLossError, EnvironmentFailure, CheckpointError, DiskError, RenderError, VideoError, RunFailed

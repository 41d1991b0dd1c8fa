"""The whole configuration of a run: every component's own settings under one roof, and what must hold between them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from qttdm.common.config import Config, ConfigError
from qttdm.common.environments.config import EnvConfig
from qttdm.common.environments.task_env import TaskSpec
from qttdm.common.metrics.sinks import SinksConfig
from qttdm.common.models.qt import QTConfig
from qttdm.common.models.tdm import TDMConfig
from qttdm.deploy.configs.cluster_config import ClusterConfig
from qttdm.learner.learner import LearnerConfig
from qttdm.learner.schedule import TrainingConfig
from qttdm.planner_service.planners.mppi import PRESETS, PlannerConfig
from qttdm.planner_service.policies.greedy import EpsilonConfig
from qttdm.replay.buffer import ReplayConfig


class RunConfig(Config):
    """What `config.yaml` holds."""

    task: str
    """<family>/<name>; `qttdm tasks` lists them"""
    agent: Literal["qt-tdm", "tdm", "qt"] = "qt-tdm"
    """the paper's method, or one of its two modules alone"""
    seed: int = Field(default=0, ge=0)
    """every random stream derives from it"""
    device: str = "auto"
    """a torch device; auto: cuda where there is one, else cpu"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast in planning and learning, parameters stay float32; auto: on a GPU only"""
    threads: int | None = Field(default=None, gt=0)
    """torch's CPU threads; null: torch decides"""
    discount: float = Field(default=0.98, gt=0, lt=1)
    """gamma, per decision"""
    env: EnvConfig = EnvConfig()
    tdm: TDMConfig = TDMConfig()
    qt: QTConfig = QTConfig()
    planner: PlannerConfig = PlannerConfig()
    epsilon: EpsilonConfig = EpsilonConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    training: TrainingConfig = TrainingConfig()
    cluster: ClusterConfig = ClusterConfig()
    sinks: SinksConfig = SinksConfig()


def check_fits(config: RunConfig, spec: TaskSpec) -> None:
    """ConfigError, naming keys, values and what would do, if the settings contradict each other or the task."""
    window, decisions = config.tdm.window, spec.episode_decisions
    n_steps = config.learner.qt.n_step
    total = config.training.env_steps // spec.action_repeat
    samples = config.planner.samples
    checks = [
        (
            window <= decisions,
            f"tdm.window={window} is longer than an episode of {config.task}, {decisions} decisions "
            f"(env.action_repeat={spec.action_repeat}); want tdm.window from 1 to {decisions}",
        ),
        (
            config.agent != "qt-tdm" or config.tdm.bins == config.qt.bins,
            f"tdm.bins={config.tdm.bins} and qt.bins={config.qt.bins} differ; QT and TDM read the same action tokens, "
            f"want both equal",
        ),
        (
            config.agent == "qt" or config.planner.horizon <= window,
            f"planner.horizon={config.planner.horizon} is longer than tdm.window={window}, the longest sequence the "
            f"TDM learns; want planner.horizon from 1 to {window}",
        ),
        (
            config.agent != "tdm" or config.planner.elites <= samples,
            f"planner.elites={config.planner.elites} is more than the {samples} samples of an iteration, and agent=tdm "
            f"has no QT to propose others; want planner.elites from 1 to {samples}",
        ),
        (
            config.agent == "tdm" or config.learner.qt.states_per_window + n_steps - 1 <= window,
            f"learner.qt.states_per_window={config.learner.qt.states_per_window} with learner.qt.n_step={n_steps} "
            f"does not fit tdm.window={window}; want their sum to be at most {window + 1}",
        ),
        (
            config.replay.capacity >= decisions,
            f"replay.capacity={config.replay.capacity} does not hold one episode of {decisions} decisions; "
            f"want at least {decisions}",
        ),
        (
            config.training.seed_decisions < total,
            f"training.seed_decisions={config.training.seed_decisions} leaves nothing to learn in: "
            f"training.env_steps={config.training.env_steps} is {total} decisions; want fewer than {total}",
        ),
    ]
    for holds, message in checks:
        if not holds:
            raise ConfigError(message)


def preset_path(name: str) -> Path:
    """A preset's file, by name or as a path ending in .yaml. ConfigError lists the names there are."""
    if name.endswith(".yaml"):
        return Path(name)
    folder = Path(str(resources.files("qttdm.deploy.configs")))
    path = folder / f"{name}.yaml"
    if not path.is_file():
        names = sorted(p.stem for p in folder.glob("*.yaml"))
        raise ConfigError(f"--preset {name}: there is none; want one of {', '.join(names)}, or a path to a .yaml file")
    return path


def planner_preset(name: str) -> list[str]:
    """What `--planner NAME` stands for, as `--set` items. ConfigError lists the names there are."""
    if name not in PRESETS:
        raise ConfigError(f"there is no planner {name!r}; want one of {', '.join(PRESETS)}")
    return planner_items(PRESETS[name])


def planner_items(settings: dict[str, Any]) -> list[str]:
    """Planner settings as `--set` takes them."""
    return [f"planner.{key}={value}" for key, value in settings.items()]

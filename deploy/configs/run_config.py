"""The whole configuration of a run: the run's settings, the agent's section, and what must hold between them."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, create_model

from qttdm.common.config import Config, ConfigError, load_config, read_yaml, validate
from qttdm.common.contracts import Agent, TaskSpec
from qttdm.common.environments.config import EnvConfig
from qttdm.common.metrics.sinks import SinksConfig, check_sinks
from qttdm.common.run_dir import RunDir
from qttdm.deploy.agents.registry import AGENTS, OWN, agent_class, section_of
from qttdm.deploy.configs.cluster_config import ClusterConfig
from qttdm.deploy.configs.presets import PRESET_FILES
from qttdm.learner.schedule import TrainingConfig
from qttdm.planner_service.planners.mppi import PRESETS
from qttdm.replay.buffer import ReplayConfig

DEFAULT_AGENT = "qt-tdm"
BEFORE_SECTIONS = {"discount", "epsilon", "learner", "planner"}
"""Keys at the top of a page from before agents had sections."""


class RunConfig(Config):
    """What `config.yaml` holds. The agent's own settings stand in the section named like it."""

    section: ClassVar[str] = ""
    """where in the page `settings` stand"""

    task: str
    """<family>/<name>; `qttdm tasks` lists them"""
    agent: str = Field(
        default=DEFAULT_AGENT,
        description=f"which agent learns: {', '.join(AGENTS)}, or module:Class of one's own, in section `{OWN}`",
    )
    seed: int = Field(default=0, ge=0)
    """every random stream derives from it"""
    device: str = "auto"
    """a torch device; auto: cuda where there is one, else cpu"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16: autocast in planning and learning, parameters stay float32; auto: on a GPU only"""
    threads: int | None = Field(default=None, gt=0)
    """torch's CPU threads; null: torch decides"""
    env: EnvConfig = EnvConfig()
    """how the simulator is presented to the agent"""
    settings: SerializeAsAny[Config] = Config()
    """the agent's"""
    replay: ReplayConfig = ReplayConfig()
    """what is kept and how it is drawn"""
    training: TrainingConfig = TrainingConfig()
    """how long, and what is done on the way"""
    cluster: ClusterConfig = ClusterConfig()
    """how a seed is spread over processes: `qttdm cluster`"""
    sinks: SinksConfig = SinksConfig()
    """where each line of metrics goes too"""

    @classmethod
    def for_content(
        cls, raw: Mapping[str, Any], command_line: Mapping[str, Any]
    ) -> tuple[type[RunConfig], dict[str, Any]]:
        """Take the chosen agent's section for `settings`; other agents' sections of a preset are left out."""
        agent = raw.get("agent", DEFAULT_AGENT)
        if not isinstance(agent, str):
            raise ConfigError(f"agent: got {agent!r}, want a name or module:Class")
        section, kind = section_of(agent), with_settings(agent)
        if old := sorted(BEFORE_SECTIONS & raw.keys() - command_line.keys()):
            raise ConfigError(
                f"{old[0]}: an agent's settings stand in its section, {section}.{old[0]}; a run of the older format "
                f"can only be used by the version of qttdm that made it"
            )
        others = {*AGENTS, OWN} - {section}
        for key in others & raw.keys():
            if key in command_line:
                raise ConfigError(f"{key}: has no effect, the agent is {agent}; its settings begin with {section}")
            if not isinstance(raw[key], Mapping):
                raise ConfigError(f"{key}: got {raw[key]!r}, want a mapping of settings")
        return kind, {key: value for key, value in raw.items() if key not in others}

    @property
    def own_modules(self) -> list[str]:
        """Names of the modules of a user's own that task and agent are in."""
        return [name.removeprefix("gym/").partition(":")[0] for name in (self.task, self.agent) if ":" in name]

    def make_agent(self, task: TaskSpec) -> Agent:
        """Make the agent for that task."""
        return agent_class(self.agent)(self.settings, task)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as plain values: the class was made for the agent, and other processes make it again."""
        return _restored, (self.model_dump(mode="json", by_alias=True),)


@cache
def with_settings(agent: str) -> type[RunConfig]:
    """Return RunConfig with that agent's section. ConfigError if there is no such agent."""
    section, settings = section_of(agent), agent_class(agent).Settings
    field = Field(default=settings(), alias=section, description="the agent's own settings: docs/agents.md")
    kind: type[RunConfig] = create_model("RunConfig", __base__=RunConfig, settings=(settings, field))
    kind.section = section
    return kind


def _restored(raw: dict[str, Any]) -> RunConfig:
    return validate(RunConfig, raw, "configuration")


def load_run_config(path: Path, overrides: Sequence[str] = (), planner: str | None = None, **chosen: Any) -> RunConfig:
    """As `load_config`; planner: the name of planner settings that `overrides` win over. ConfigError."""
    if planner is None:
        return load_config(RunConfig, path, overrides=overrides, **chosen)
    if planner not in PRESETS:
        raise ConfigError(f"there is no planner {planner!r}; want one of {', '.join(PRESETS)}")
    of_planner = re.compile(r"[^.=]+\.planner\b")  # which may only fit together with the named ones
    others = [item for item in overrides if not of_planner.match(item)]
    config = load_config(RunConfig, path, overrides=others, **chosen)
    own = getattr(config.settings, "planner", None)
    if getattr(own, "kind", None) != "mppi":
        raise ConfigError(f"--planner {planner}: agent={config.agent} does not plan by kind mppi, which it is for")
    items = [f"{config.section}.planner.{key}={value}" for key, value in PRESETS[planner].items()]
    return load_config(RunConfig, path, overrides=[*items, *overrides], **chosen)


def load_saved_config(path: Path, overrides: Sequence[str] = (), planner: str | None = None) -> RunConfig:
    """As `load_run_config`, of a run's own page. Says on stderr what code it names: that is imported, and so run."""
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"), str(path))
        named = [raw[key] for key in ("task", "agent") if ":" in raw.get(key, "")]
    except (OSError, UnicodeDecodeError, AttributeError, TypeError, ConfigError):
        named = []  # what is wrong with it is said below
    if named:
        print(f"{path}: imports the code that it names: {', '.join(named)}", file=sys.stderr, flush=True)
    return load_run_config(path, overrides, planner)


def with_env_steps(config: RunConfig, env_steps: int, done: int, run_dir: RunDir) -> RunConfig:
    """Return the configuration of a run that is to train until `env_steps`; it has had `done`. ConfigError."""
    if env_steps <= done:
        raise ConfigError(f"--env-steps {env_steps}: {run_dir.path} has had {done} already; want more than that")
    training = config.training.model_copy(update={"env_steps": env_steps})
    return config.model_copy(update={"training": training})


def check_fits(config: RunConfig, task: TaskSpec) -> None:
    """Raise ConfigError, naming keys, values and what would do, if the settings contradict each other or the task."""
    agent = config.make_agent(task)
    try:
        agent.check(task)
    except ConfigError as error:
        raise ConfigError(f"{config.section}: {error}") from None
    shown = ("observations", "simulator_state") if task.simulator_state else ("observations",)
    if missing := [name for name in agent.data.observations if name not in shown]:
        raise ConfigError(
            f"agent={config.agent} asks for {', '.join(missing)}, {task.name} shows {', '.join(shown)}; dmc tasks also "
            f"show simulator_state (not dmc/quadruped-escape, whose terrain is too large to keep with every step)"
        )
    decisions, total = task.episode_decisions, config.training.env_steps // task.action_repeat
    if config.replay.capacity < decisions:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} does not hold one episode of {decisions} decisions; "
            f"want at least {decisions}"
        )
    training = config.training
    if training.dataset is None and (training.env_steps == 0 or training.offline_updates > 0):
        raise ConfigError(
            f"training.env_steps={training.env_steps} with training.offline_updates={training.offline_updates} learns "
            f"from a data set; name it: --dataset ID"
        )
    if training.steps == 0:
        raise ConfigError(
            "training.env_steps=0 with training.offline_updates=0 makes no update; want more than 0 of either"
        )
    if training.dataset is None and training.seed_decisions >= total:
        raise ConfigError(
            f"training.seed_decisions={config.training.seed_decisions} leaves nothing to learn in: "
            f"training.env_steps={config.training.env_steps} is {total} decisions; want fewer than {total}"
        )


def check_cluster(config: RunConfig, task: TaskSpec) -> None:
    """As `check_fits`, of a seed on a cluster."""
    if config.training.dataset is not None:
        raise ConfigError(
            f"training.dataset={config.training.dataset}: a data set is learned from on one machine, by qttdm train"
        )
    check_sinks(config.sinks)
    check_fits(config, task)
    c, decisions = config.cluster, task.episode_decisions
    if config.replay.capacity // c.shards < decisions:
        raise ConfigError(
            f"replay.capacity={config.replay.capacity} over cluster.shards={c.shards} does not leave a shard one "
            f"episode of {decisions} decisions; want at least {c.shards * decisions}"
        )
    if config.device not in ("auto", *(("cuda", "cuda:0") if c.gpus_per_seed > 0 else ("cpu",))):
        raise ConfigError(
            f"device={config.device} and cluster.gpus_per_seed={c.gpus_per_seed:g} contradict each other; leave device "
            f"at auto: each process then uses the one GPU that it is given a share of"
        )


def preset_path(name: str) -> Path:
    """Find a preset's file, by name or as a path ending in .yaml. ConfigError lists the names there are."""
    if name.endswith(".yaml"):
        return Path(name)
    if name not in PRESET_FILES:
        names = ", ".join(PRESET_FILES)
        raise ConfigError(f"--preset {name}: there is none; want one of {names}, or a path to a .yaml file")
    return PRESET_FILES[name]

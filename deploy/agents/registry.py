"""The agents by name. A new one is its own file and a line here; one of a user's own is named `module:Class`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qttdm.common.config import Config, ConfigError
from qttdm.common.own_modules import find_own

if TYPE_CHECKING:
    from qttdm.common.contracts import Agent

AGENTS = {
    "qt-tdm": "qttdm.deploy.agents.qt_tdm:QTTDM",
    "tdm": "qttdm.deploy.agents.tdm:TDMAgent",
    "qt": "qttdm.deploy.agents.qt:QTAgent",
    "mlp": "qttdm.deploy.agents.mlp_dynamics:MLPAgent",
    "iql": "qttdm.deploy.agents.iql:IQLAgent",
    "trajectory-transformer": "qttdm.deploy.agents.trajectory_transformer:TrajectoryTransformer",
    "twm": "qttdm.deploy.agents.twm:TWMAgent",
    "generalist": "qttdm.deploy.agents.generalist:Generalist",
    "simulator-shooting": "qttdm.deploy.agents.simulator_shooting:SimulatorShooting",
}
OWN = "own"
"""The section of an agent that is named `module:Class`."""
METHODS = ("check", "learner", "policy", "exploration")


def section_of(agent: str) -> str:
    """Name the section in which a configuration has that agent's settings."""
    return OWN if ":" in agent else agent


def agent_class(name: str) -> type[Agent]:
    """Find the agent of that name, or the `module:Class`. ConfigError if there is none, or if it is no agent."""
    path = name if ":" in name else AGENTS.get(name)
    if path is None:
        raise ConfigError(f"agent: there is no {name!r}; want one of {', '.join(AGENTS)}, or module:Class of your own")
    try:
        found = find_own(path)
    except Exception as error:  # the module is anybody's code
        raise ConfigError(f"agent: cannot import {name} ({type(error).__name__}: {error}); want module:Class") from None
    missing = [method for method in METHODS if not hasattr(found, method)]
    try:
        settings = found.Settings()
    except (AttributeError, TypeError, ValueError):
        settings = None
    if not isinstance(settings, Config):
        missing.append("Settings, a qttdm.common.config.Config with a default for each field")
    if missing:
        raise ConfigError(f"agent: {name} is no agent: it has no {', '.join(missing)} (common/contracts.py, Agent)")
    kind: type[Agent] = found
    return kind

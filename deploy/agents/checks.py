"""What must hold between the settings of several agents' parts; each error names keys, values and what would do."""

from __future__ import annotations

from qttdm.common.config import ConfigError
from qttdm.common.contracts import TaskSpec
from qttdm.common.models.tdm import TDMConfig
from qttdm.learner.learner import LearnerConfig
from qttdm.learner.parts.qt import QTLearnerConfig
from qttdm.planner_service.planners.choice import PlannerConfig
from qttdm.planner_service.planners.mppi import MPPIConfig


def check_vectors(task: TaskSpec) -> None:
    """Raise ConfigError for images and discrete actions, which most agents have no use for."""
    if task.image_shape is not None or task.choices is not None:
        what = "observes images" if task.image_shape is not None else "has discrete actions"
        raise ConfigError(
            f"takes vectors and continuous actions, and {task.name} {what}; want --agent twm, with --preset twm-laptop"
        )


def check_window(key: str, window: int, task: TaskSpec) -> None:
    """Raise ConfigError unless an episode of the task has that many decisions."""
    if window > task.episode_decisions:
        raise ConfigError(
            f"{key}={window} is longer than an episode of {task.name}, {task.episode_decisions} decisions "
            f"(env.action_repeat={task.action_repeat}); want {key} from 1 to {task.episode_decisions}"
        )


def check_horizon(horizon: int, tdm: TDMConfig) -> None:
    """Raise ValueError unless the dynamics model learns sequences as long as the planner's."""
    if horizon > tdm.window:
        raise ValueError(
            f"planner.horizon={horizon} is longer than tdm.window={tdm.window}, the longest sequence the TDM learns; "
            f"want planner.horizon from 1 to {tdm.window}"
        )


def check_sequence(window: int, context: int, horizon: int) -> None:
    """Raise ValueError unless context and plan fit together into the sequence model's window."""
    if window < context + horizon:
        raise ValueError(
            f"model.window={window} is shorter than planner.context + planner.horizon = {context + horizon}, which "
            f"the model is asked for; want at least {context + horizon}"
        )


def check_not_compiled(learner: LearnerConfig) -> None:
    """Raise ValueError if losses are to be compiled, by an agent that has none to compile."""
    if learner.compile:
        raise ValueError(
            "learner.compile=true: of this agent nothing is compiled; want false, or agent qt-tdm, tdm, qt, mlp or iql"
        )


def check_elites(planner: PlannerConfig) -> None:
    """Raise ValueError unless an iteration without a QT's proposals has as many sequences as elites."""
    if isinstance(planner, MPPIConfig) and planner.elites > planner.samples:
        raise ValueError(
            f"planner.elites={planner.elites} is more than the {planner.samples} samples of an iteration, and this "
            f"agent has no QT to propose others; want planner.elites from 1 to {planner.samples}"
        )


def check_targets(qt: QTLearnerConfig, window: int, key: str) -> None:
    """Raise ValueError unless all states that the QT learns from have their n-step returns within the window."""
    if qt.states_per_window + qt.n_step - 1 > window:
        raise ValueError(
            f"learner.qt.states_per_window={qt.states_per_window} with learner.qt.n_step={qt.n_step} does not fit "
            f"{key}={window}; want their sum to be at most {window + 1}"
        )

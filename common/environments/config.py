"""What a run may choose about its environment, whatever the task's family."""

from __future__ import annotations

from pydantic import Field

from qttdm.common.config import Config


class EnvConfig(Config):
    """How the simulator is presented to the agent.

    A *simulator step* is one control step of the task's own library; a *decision* is one action of the agent, repeated
    for `action_repeat` simulator steps.
    """

    action_repeat: int = Field(default=1, ge=1)
    """Simulator steps that each action lasts; their rewards are summed."""

    episode_steps: int | None = Field(default=None, ge=1)
    """Time limit in simulator steps; None is the task's own (dmc 1000, metaworld 200, gym as registered)."""

    terminates: bool | None = None
    """Whether an episode can end by itself, before its time limit; None is what the task declares.

    False also turns an end that does come into a truncation, so that nothing downstream ever sees `terminated`.
    """

    life_loss_ends: bool = False
    """Whether losing a life ends an episode that is collected for training; Atari's games have lives, or none.

    The next episode goes on in the same game, after an interruption of the run in another one. Evaluations always play
    whole games.
    """
